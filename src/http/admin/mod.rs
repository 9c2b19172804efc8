//! 운영: everything for operators alone.
//!
//! The whole of `/admin` is, also what does not exist: a stranger learns nothing from a 404.

mod audit;
mod coupons;
mod orders;
mod products;
mod projection;
mod users;
mod withheld;

use std::sync::Arc;

use axum::{middleware::from_fn_with_state, routing::any};
use utoipa_axum::router::OpenApiRouter;

use super::{AppState, Sessions, auth::operators_only, not_found};

/// What takes as long as there is much to do.
pub const LONG_PATHS: &[&str] = &[users::BULK_PATH, audit::AUDIT_PATH];

/// The operators' routes, open to whom `sessions` knows as one.
pub fn router(sessions: Arc<Sessions>) -> OpenApiRouter<AppState> {
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
        .layer(from_fn_with_state(sessions, operators_only))
}
