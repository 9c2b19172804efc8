//! The routes of a process that waits for its stores: it is alive, not ready for these reasons, and 503 everywhere else.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::{
    error::ApiError,
    limits::Limits,
    middleware::{
        cors,
        pipeline::{Pipeline, TimeLimits},
    },
    request_class::{Listener, RequestClass},
    routes::health,
};
use crate::{
    config::{BrowserConfig, LimitsConfig},
    model::Error,
};

/// The reason until another is known.
const STARTING: &str = "starting";

/// The reasons why a process waits, as `/readyz` shows them.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<RwLock<Vec<String>>>);

impl Waiting {
    /// Replaces the reasons. Returns whether they changed.
    pub fn set(&self, reasons: Vec<String>) -> bool {
        let mut shown = self.0.write();
        let changed = *shown != reasons;
        *shown = reasons;
        changed
    }

    fn reasons(&self) -> Vec<String> {
        let shown = self.0.read();
        if shown.is_empty() { vec![STARTING.to_owned()] } else { shown.clone() }
    }
}

/// The router of such a process.
pub fn router(waiting: Waiting, browsers: &BrowserConfig) -> Router {
    let limits = Arc::new(Limits::new(&LimitsConfig::off()));
    // Never cancelled: these listeners end with the start.
    let stopping = CancellationToken::new();
    let pipeline = Pipeline::new(TimeLimits::default(), limits, Listener::All, browsers.hsts_seconds, stopping);
    let health = Router::new().route("/healthz", get(health::healthz)).route("/readyz", get(readyz));
    // Of a class of their own, so that CORS does not apply to them.
    let operators = Router::new()
        .route("/admin", any(unavailable))
        .route("/admin/", any(unavailable))
        .route("/admin/{*rest}", any(unavailable))
        .route("/ops", any(unavailable))
        .route("/ops/", any(unavailable))
        .route("/ops/{*rest}", any(unavailable));
    let metrics = Router::new().route("/metrics", any(unavailable));
    let public = pipeline.around(RequestClass::Public, Router::new().fallback(unavailable));
    cors::around(public, &browsers.cors_origins)
        .merge(pipeline.around(RequestClass::Operators, operators))
        .merge(pipeline.around(RequestClass::Metrics, metrics))
        .merge(pipeline.around(RequestClass::Health, health.with_state(waiting)))
}

async fn readyz(State(waiting): State<Waiting>) -> Response {
    health::not_ready(waiting.reasons())
}

async fn unavailable() -> Response {
    ApiError::from(Error::unavailable("the process waits for its stores")).into_response()
}
