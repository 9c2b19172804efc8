//! The dashboard: the page at `/ops` and its live feed.
//!
//! Owns the page's files ([`assets`]), signing in and out ([`session`], [`sign_in`]) and the stream of snapshots ([`feed`]). One [`reader`]
//! builds each [`snapshot`] from what the engine reads of both stores, the audits, the process's own metrics ([`traffic`]) and
//! the reports of the other processes ([`reporter`]); the [`history`] comes from the samples of all processes ([`sampler`]). What an operator changes on the page goes through the operators' API.

mod assets;
mod feed;
mod history;
mod part;
mod rates;
mod reader;
mod reporter;
mod sales;
mod sampler;
mod session;
mod sign_in;
mod snapshot;
mod traffic;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::FromRef,
    http::{
        HeaderName, HeaderValue,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS},
    },
    middleware::{from_fn, from_fn_with_state, map_response},
    response::Response,
    routing::{any, get},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::{feed::Feed, reporter::keep_reporting, sampler::keep_sampling, snapshot::Instance};
use crate::{
    audit::Auditor,
    engine::Engine,
    http::{
        auth::{require::session_only, session::Sessions},
        error::not_found,
        extract::write::Decoding,
        middleware::operator_log::ActionRecorder,
        roles::enforce,
    },
    model::Millis,
};

/// The page may load and call this service alone, and no page may frame it.
const PAGE_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
];

/// The state of the dashboard. Listeners of one process share it.
#[derive(Clone)]
pub struct Dashboard {
    pub engine: Arc<Engine>,
    /// Authenticates operators.
    pub sessions: Arc<Sessions>,
    /// Records signing in and out.
    pub recorder: ActionRecorder,
    /// The last audits.
    pub auditor: Arc<Auditor>,
    pub feed: Arc<Feed>,
    /// This process.
    pub instance: Arc<Instance>,
    pub decoding: Decoding,
    /// Cancelled once the process is to end: feeds end then.
    pub stopping: CancellationToken,
}

impl FromRef<Dashboard> for Decoding {
    fn from_ref(dashboard: &Dashboard) -> Self {
        dashboard.decoding.clone()
    }
}

/// Everything under `/ops`. The page and its files are open: they tell nothing.
pub fn router(dashboard: Dashboard) -> Router {
    let open = Router::new()
        .route("/ops", get(assets::page))
        .route("/ops/", get(assets::page))
        .route("/ops/assets/{file}", get(assets::file))
        .merge(session::router())
        .merge(sign_in::router());
    let sessions = from_fn_with_state(dashboard.sessions.clone(), session_only);
    Router::new()
        .merge(open.layer(from_fn(enforce)))
        .merge(feed::router().layer(from_fn(enforce)).layer(sessions))
        .route("/ops/{*rest}", any(not_found))
        .layer(map_response(with_page_headers))
        .with_state(dashboard)
}

async fn with_page_headers(mut response: Response) -> Response {
    for (name, value) in PAGE_HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}

impl Instance {
    /// The process `id`, which listens on `address`.
    pub fn new(id: Uuid, address: SocketAddr, started_at: Millis) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().take(64).collect();
        let name = if host.is_empty() { address.to_string() } else { format!("{host}:{}", address.port()) };
        Instance { id: id.to_string(), name, version: env!("CARGO_PKG_VERSION").to_owned(), started_at: started_at.0 }
    }
}
