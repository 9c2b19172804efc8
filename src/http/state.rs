//! The state that handlers share. Handlers of a single resource have a state of their own, beside its routes.

use std::sync::Arc;

use axum::extract::FromRef;

use super::{extract::write::Decoding, limits::Limits};
use crate::{config::HttpConfig, engine::Engine};

/// The state of the public API. Axum clones it several times per request, so it is one counter.
#[derive(Clone)]
pub struct AppState(Arc<SharedState>);

/// What [`AppState`] points to.
pub struct SharedState {
    pub engine: Arc<Engine>,
    pub limits: Arc<Limits>,
    decoding: Decoding,
}

impl AppState {
    pub fn new(engine: Arc<Engine>, limits: Arc<Limits>, config: &HttpConfig) -> Self {
        let decoding = Decoding {
            body_limit: config.body_limit_bytes as usize,
            body_timeout: config.limits.body_timeout(),
            limits: limits.clone(),
            zone: engine.zone(),
        };
        AppState(Arc::new(SharedState { engine, limits, decoding }))
    }
}

impl std::ops::Deref for AppState {
    type Target = SharedState;

    fn deref(&self) -> &SharedState {
        &self.0
    }
}

impl FromRef<AppState> for Arc<Limits> {
    fn from_ref(state: &AppState) -> Self {
        state.limits.clone()
    }
}

impl FromRef<AppState> for Decoding {
    fn from_ref(state: &AppState) -> Self {
        state.decoding.clone()
    }
}
