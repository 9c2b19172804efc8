//! What handlers share.

use std::{sync::Arc, time::Duration};

use axum::extract::FromRef;
use tokio_util::sync::CancellationToken;

use super::{
    admin,
    auth::session::Sessions,
    extract::write::Decoding,
    limits::Limits,
    middleware::{edge::TimeLimits, operator_log::Notes},
    routes::{health::Readiness, metrics::Scrapes},
};
use crate::{audit::Auditor, dashboard, engine::Engine, jwt::Tokens, projector::Projector};

/// What handlers share: cloned for every one of them, several times a request, so it is one counter.
#[derive(Clone)]
pub struct AppState(Arc<Parts>);

impl From<Parts> for AppState {
    fn from(parts: Parts) -> Self {
        AppState(Arc::new(parts))
    }
}

impl std::ops::Deref for AppState {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What there is to share.
pub struct Parts {
    /// Decides.
    pub engine: Arc<Engine>,
    /// Sees who is an operator.
    pub sessions: Arc<Sessions>,
    /// Notes what operators do.
    pub notes: Notes,
    /// Has another try at what could not be applied.
    pub projector: Projector,
    /// Recomputes the books.
    pub auditor: Arc<Auditor>,
    /// What the dashboard's watchers share.
    pub feed: Arc<dashboard::Feed>,
    /// Which process this is.
    pub instance: Arc<dashboard::Instance>,
    /// Whether it can serve, as found out a moment ago.
    pub readiness: Readiness,
    /// What is scraped, and by whom.
    pub scrapes: Scrapes,
    /// Verifies users' tokens; without it users need none.
    pub tokens: Option<Arc<Tokens>>,
    /// Limits on a request.
    pub config: HttpConfig,
    /// Limits on those who send them.
    pub limits: Arc<Limits>,
    /// Cancelled once the process is to end: it is not ready from then on, and replies without an end of their own have one.
    pub stopping: CancellationToken,
}

/// The limits on a request.
#[derive(Clone, Copy, Debug)]
pub struct HttpConfig {
    /// Bytes of the largest body let in.
    pub body_limit: usize,
    /// How long its body may take to arrive; then 408.
    pub body_timeout: Duration,
    /// From a request's head to its reply's; then 503.
    pub request_timeout: Duration,
    /// The same for what goes through many things: creating users in bulk, an audit.
    pub long_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            body_limit: 64 * 1024,
            body_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            long_timeout: Duration::from_secs(600),
        }
    }
}

impl HttpConfig {
    pub fn time_limits(self) -> TimeLimits {
        TimeLimits {
            request: self.request_timeout,
            body: self.body_timeout,
            long: self.long_timeout,
            long_paths: admin::LONG_PATHS,
        }
    }
}

impl FromRef<AppState> for Arc<Limits> {
    fn from_ref(state: &AppState) -> Self {
        state.limits.clone()
    }
}

impl FromRef<AppState> for Decoding {
    fn from_ref(state: &AppState) -> Self {
        let HttpConfig { body_limit, body_timeout, .. } = state.config;
        Decoding { body_limit, body_timeout, limits: state.limits.clone(), zone: state.engine.zone() }
    }
}
