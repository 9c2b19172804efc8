//! 운영: everything behind the operators' token.
//!
//! The whole of `/admin` is, also what does not exist: a stranger learns nothing from a 404.

mod audit;
mod coupons;
mod orders;
mod products;
mod projection;
mod users;
mod withheld;

use axum::{middleware::from_fn_with_state, routing::any};
use utoipa_axum::router::OpenApiRouter;

use super::{
    AppState,
    auth::{AdminToken, operators_only},
    not_found,
};

/// What takes as long as there is much to do.
pub const LONG_PATHS: &[&str] = &[users::BULK_PATH, audit::AUDIT_PATH];

/// The operators' routes, open to bearers of `token`.
pub fn router(token: Option<AdminToken>) -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(users::router())
        .merge(products::router())
        .merge(coupons::router())
        .merge(orders::router())
        .merge(projection::router())
        .merge(withheld::router())
        .merge(audit::router())
        .route("/admin", any(not_found))
        .route("/admin/", any(not_found))
        .route("/admin/{*rest}", any(not_found))
        .layer(from_fn_with_state(token, operators_only))
}
