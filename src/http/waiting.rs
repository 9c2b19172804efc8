//! What a process answers that waits for its stores: that it lives, for what it waits, and 503 to everything else.

use std::sync::{Arc, PoisonError, RwLock};

use axum::{
    Router,
    extract::State,
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::get,
};

use tokio_util::sync::CancellationToken;

use super::{
    error::ApiError,
    limits::{Limits, Side},
    middleware::{
        cors,
        edge::{self, Edge},
    },
    routes::health,
    state::HttpConfig,
};
use crate::{
    config::{BrowserConfig, LimitsConfig},
    model::Error,
};

/// What is said as long as nothing else is known.
const STARTING: &str = "starting";

/// For what a process waits, as whoever asks it is told.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<RwLock<Vec<String>>>);

impl Waiting {
    /// Has these reasons told from now on. Returns whether they are others than before.
    pub fn tell(&self, reasons: Vec<String>) -> bool {
        let mut told = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let differ = *told != reasons;
        *told = reasons;
        differ
    }

    fn reasons(&self) -> Vec<String> {
        let told = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if told.is_empty() { vec![STARTING.to_owned()] } else { told.clone() }
    }
}

/// The router of such a process.
pub fn waiting(waiting: Waiting, browsers: &BrowserConfig) -> Router {
    let limits = Arc::new(Limits::new(&LimitsConfig::off()));
    let edge = Edge::new(
        HttpConfig::default().time_limits(),
        limits,
        Side::Both,
        browsers.hsts_seconds,
        // Nobody waits here for long: these end with the start.
        CancellationToken::new(),
    );
    let router = Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(readyz))
        .fallback(unavailable)
        .with_state(waiting)
        .layer(from_fn_with_state(Arc::new(edge), edge::edge));
    cors::around(router, &browsers.cors_origins)
}

async fn readyz(State(waiting): State<Waiting>) -> Response {
    health::not_ready(waiting.reasons())
}

async fn unavailable() -> Response {
    ApiError::from(Error::unavailable("the process waits for its stores")).into_response()
}
