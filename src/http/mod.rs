//! The API over HTTP.
//!
//! Owns everything between a TCP connection and a verb of the [`Engine`]: decoding and its refusals, the status table,
//! the OpenAPI document, the operators' tokens and sessions, whom a request acts for, limits of all kinds and the accept loop.
//! Every decision about goods and money is left to the engine.
//!
//! One file per resource ([`payments`], [`balances`], [`coupons`], [`products`], [`orders`], [`admin`], [`health`],
//! [`scrape`]), each with its routes first, then its bodies, then its handlers; [`error`] is the one status table, [`edge`] what
//! happens to every request, [`limits`] who is let in, [`cors`] what pages of other origins may do, [`server`] the sockets.

mod access;
mod acting;
mod acts;
mod admin;
mod auth;
mod balances;
#[cfg(feature = "baseline")]
mod baseline;
mod body;
mod cors;
mod coupons;
mod decode;
mod durable;
mod edge;
pub mod error;
mod framing;
pub mod health;
mod leftover;
pub mod limits;
pub mod listener;
mod openapi;
mod orders;
mod params;
mod payments;
mod products;
mod recent;
mod reply;
mod scrape;
pub mod server;
pub mod session;
mod trace;
mod unknown;
mod waiting;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::FromRef,
    http::{
        HeaderValue,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
    },
    middleware::{from_fn, from_fn_with_state, map_response},
    response::Response,
};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

pub use acts::Notes;
pub use auth::{Operator, Operators};
pub use scrape::Scrapes;
pub use server::{ServerLimits, serve};
pub use session::Sessions;
pub use waiting::{Waiting, waiting};

use self::{
    edge::Edge,
    error::{ApiError, Code},
    limits::{Limits, Side},
    unknown::Parameters,
};
use crate::{
    audit::Auditor, config::BrowserConfig, dashboard, engine::Engine, jwt::Tokens, projector::Projector,
    telemetry::traces,
};

/// Every route, of which those of this side are served.
pub fn router(state: AppState, side: Side, browsers: &BrowserConfig) -> Router {
    let (routes, document) = routes(state.sessions.clone(), state.notes.clone()).split_for_parts();
    let tokens = state.tokens.clone();
    #[cfg(feature = "baseline")]
    let routes = routes.merge(baseline::router());
    let edge = Edge::new(
        state.config.time_limits(),
        state.limits.clone(),
        side,
        browsers.hsts_seconds,
        state.stopping.clone(),
    )
    .naming_unknown(Parameters::of(&document));
    let mut routes = routes
        .merge(openapi::router(document, tokens.is_some()).layer(map_response(documentation_guarded)))
        .merge(scrape::router())
        .fallback(not_found)
        .layer(from_fn_with_state(state.engine.clone(), durable::durable))
        // Not under what stands around writes: operators sign in when nothing else goes.
        .merge(dashboard::router(session::router(), state.sessions.clone()));
    // What is off is not there at all.
    if let Some(tokens) = tokens {
        routes = routes.layer(from_fn_with_state(tokens, acting::users_only));
    }
    if traces::on() {
        routes = routes.layer(from_fn(trace::trace));
    }
    let router = routes.layer(from_fn_with_state(Arc::new(edge), edge::edge)).with_state(state);
    cors::around(router, &browsers.cors_origins)
}

/// What a process that serves no API tells of itself: its health, and its metrics.
pub fn probes(state: AppState) -> Router {
    let edge = Edge::new(state.config.time_limits(), state.limits.clone(), Side::Both, 0, state.stopping.clone());
    Router::from(health::router())
        .merge(scrape::router())
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::new(edge), edge::edge))
        .with_state(state)
}

/// Every documented route, with its documentation.
fn routes(sessions: Arc<Sessions>, notes: Notes) -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(payments::router())
        .merge(balances::router())
        .merge(coupons::router())
        .merge(products::router())
        .merge(orders::router())
        .merge(admin::router(sessions, notes))
        .merge(health::router())
}

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
    pub readiness: health::Readiness,
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
    fn time_limits(self) -> edge::TimeLimits {
        edge::TimeLimits {
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

impl FromRef<AppState> for body::Decoding {
    fn from_ref(state: &AppState) -> Self {
        let HttpConfig { body_limit, body_timeout, .. } = state.config;
        body::Decoding { body_limit, body_timeout, limits: state.limits.clone(), zone: state.engine.zone() }
    }
}

/// The documentation's page runs the scripts of this service and talks to it, and nothing else: it has the dashboard's
/// origin, and a foreign script in it could act as an operator who is signed in. (It styles itself from its scripts.)
const DOCUMENTATION_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

async fn documentation_guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, DOCUMENTATION_POLICY);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

pub(crate) async fn not_found() -> ApiError {
    Code::NotFound.into()
}
