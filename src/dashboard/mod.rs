//! The dashboard: the page at `/ops`, and what it shows while it happens.
//!
//! Owns the page's files ([`assets`]) and the stream that it listens to ([`feed`]): what a snapshot says ([`snapshot`]) is put
//! together by one [`reader`], out of what `domain` reads of both stores, the audits, the process's own metrics ([`traffic`])
//! and what the other processes say of theirs ([`reporter`]). Signing in is left to `http`, and so is everything that an operator does there: the page acts by the
//! operators' API, as anybody else.

mod assets;
mod feed;
mod part;
mod rates;
mod reader;
mod reporter;
mod sales;
mod snapshot;
mod traffic;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{
        HeaderName, HeaderValue,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS},
    },
    middleware::{from_fn_with_state, map_response},
    response::Response,
    routing::{any, get},
};
use uuid::Uuid;

pub use self::{feed::Feed, reporter::keep_reporting, snapshot::Instance};
use crate::{
    http::{
        auth::{require::session_only, session::Sessions},
        error::not_found,
        state::AppState,
    },
    model::Millis,
};

/// The page may show and ask for what this service sends, and nothing else; nobody may show it in a frame.
const GUARDS: [(HeaderName, HeaderValue); 4] = [
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

/// Everything under `/ops`, the routes of the `session` included. The page and its files are for everybody: they say nothing.
pub fn router(session: Router<AppState>, sessions: Arc<Sessions>) -> Router<AppState> {
    Router::new()
        .route("/ops", get(assets::page))
        .route("/ops/", get(assets::page))
        .route("/ops/assets/{file}", get(assets::file))
        .merge(feed::router().layer(from_fn_with_state(sessions, session_only)))
        .merge(session)
        .route("/ops/{*rest}", any(not_found))
        .layer(map_response(guarded))
}

async fn guarded(mut response: Response) -> Response {
    for (name, value) in GUARDS {
        response.headers_mut().insert(name, value);
    }
    response
}

impl Instance {
    /// The process that serves on `address`.
    pub fn new(address: SocketAddr, started_at: Millis) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().take(64).collect();
        let name = if host.is_empty() { address.to_string() } else { format!("{host}:{}", address.port()) };
        Instance { id: Uuid::now_v7(), name, version: env!("CARGO_PKG_VERSION").to_owned(), started_at: started_at.0 }
    }
}
