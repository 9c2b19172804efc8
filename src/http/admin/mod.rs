//! 운영: everything for operators alone.
//!
//! The whole of `/admin` is, also what does not exist: a stranger learns nothing from a 404.

mod audit;
mod coupons;
mod dead_letters;
mod operator_log;
mod orders;
mod payments;
mod products;
mod projection;
pub mod session;
mod timeline;
mod users;
mod withheld;

use std::sync::Arc;

use axum::{middleware::from_fn_with_state, routing::any};
use utoipa_axum::router::OpenApiRouter;

use super::{
    auth::{require::operators_only, session::Sessions},
    error::not_found,
    middleware::{
        operator_log::{Notes, noted},
        unknown_fields::{Parameters, known_parameters_only},
    },
    state::AppState,
};

/// What takes as long as there is much to do.
pub const LONG_PATHS: &[&str] = &[users::BULK_PATH, audit::AUDIT_PATH];

/// The operators' routes, open to whom `sessions` knows as one; what they do is noted.
pub fn router(sessions: Arc<Sessions>, notes: Notes) -> OpenApiRouter<AppState> {
    let routes = OpenApiRouter::new()
        .merge(users::router())
        .merge(products::router())
        .merge(coupons::router())
        .merge(orders::router())
        .merge(payments::router())
        .merge(projection::router())
        .merge(dead_letters::router())
        .merge(withheld::router())
        .merge(audit::router())
        .merge(operator_log::router())
        .merge(timeline::router());
    let known = Arc::new(Parameters::of(routes.get_openapi()));
    routes
        .layer(from_fn_with_state(known, known_parameters_only))
        .layer(from_fn_with_state(notes, noted))
        .route("/admin", any(not_found))
        .route("/admin/", any(not_found))
        .route("/admin/{*rest}", any(not_found))
        .layer(from_fn_with_state(sessions, operators_only))
}
