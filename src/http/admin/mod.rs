//! 운영: the operators' API.
//!
//! All of `/admin` asks for an operator, also paths that do not exist: without authentication a 404 tells nothing.

mod audit;
mod coupons;
mod dead_letters;
mod deliveries;
mod events;
mod operator_log;
mod orders;
mod payments;
mod products;
mod projection;
mod recoveries;
mod requests;
mod sales;
mod timeline;
mod users;
mod webhooks;
mod withheld;

use std::sync::Arc;

use axum::{
    Router,
    extract::FromRef,
    middleware::{from_fn, from_fn_with_state},
    routing::any,
};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use super::{
    auth::{require::operators_only, session::Sessions},
    error::not_found,
    extract::write::Decoding,
    limits::Limits,
    middleware::{
        operator_log::{ActionRecorder, recorded},
        unknown_fields::{Parameters, known_parameters_only},
    },
    roles::enforce,
    state::AppState,
};
use crate::{audit::Auditor, projector::Projector, webhooks::Webhooks};

pub use self::{coupons::CreateCampaignRequest, products::PutProductRequest, users::CreateUserRequest};

/// Routes whose time grows with the work.
pub const LONG_ROUTES: &[&str] = &[users::BULK_PATH, audit::AUDIT_PATH, events::EVENTS_PATH];

/// The state of the operators' API.
#[derive(Clone)]
pub struct AdminState {
    pub app: AppState,
    /// Retries dead letters.
    pub projector: Projector,
    /// The receivers of events.
    pub webhooks: Webhooks,
    /// Recomputes the invariants.
    pub auditor: Arc<Auditor>,
    /// Cancelled once the process is to end: streams end then.
    pub stopping: CancellationToken,
    /// Records what operators do.
    pub recorder: ActionRecorder,
}

impl FromRef<AdminState> for AppState {
    fn from_ref(state: &AdminState) -> Self {
        state.app.clone()
    }
}

impl FromRef<AdminState> for Arc<Limits> {
    fn from_ref(state: &AdminState) -> Self {
        state.app.limits.clone()
    }
}

impl FromRef<AdminState> for Decoding {
    fn from_ref(state: &AdminState) -> Self {
        Decoding::from_ref(&state.app)
    }
}

/// The documented routes.
pub fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .merge(users::router())
        .merge(products::router())
        .merge(sales::router())
        .merge(coupons::router())
        .merge(orders::router())
        .merge(payments::router())
        .merge(projection::router())
        .merge(recoveries::router())
        .merge(requests::router())
        .merge(dead_letters::router())
        .merge(withheld::router())
        .merge(audit::router())
        .merge(events::router())
        .merge(webhooks::router())
        .merge(deliveries::router())
        .merge(operator_log::router())
        .merge(timeline::router())
}

/// The routes, open to operators of the [roles](super::roles) that they need. Every change is recorded, also one that is refused.
pub fn router(state: AdminState, sessions: Arc<Sessions>) -> Router {
    let (routes, document) = routes().split_for_parts();
    let known = Arc::new(Parameters::of(&document));
    routes
        .layer(from_fn_with_state(known, known_parameters_only))
        .layer(from_fn(enforce))
        .layer(from_fn_with_state(state.recorder.clone(), recorded))
        .route("/admin", any(not_found))
        .route("/admin/", any(not_found))
        .route("/admin/{*rest}", any(not_found))
        .layer(from_fn_with_state(sessions, operators_only))
        .with_state(state)
}
