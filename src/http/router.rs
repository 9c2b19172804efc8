//! Every route and every layer.

use std::sync::Arc;

use axum::{
    Router,
    http::{
        HeaderValue,
        header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY},
    },
    middleware::{from_fn, from_fn_with_state, map_response},
    response::Response,
};
use utoipa_axum::router::OpenApiRouter;

#[cfg(feature = "baseline")]
use super::routes::baseline;
use super::{
    admin::{self, session},
    auth::{session::Sessions, user},
    error::not_found,
    limits::Side,
    middleware::{
        cors, durability,
        edge::{self, Edge},
        operator_log::Notes,
        tracing,
        unknown_fields::Parameters,
    },
    openapi,
    routes::{balances, coupons, health, metrics, orders, payments, products},
    state::AppState,
};
use crate::{config::BrowserConfig, dashboard, telemetry::traces};

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
        .merge(metrics::router())
        .fallback(not_found)
        .layer(from_fn_with_state(state.engine.clone(), durability::durable))
        // Not under what stands around writes: operators sign in when nothing else goes.
        .merge(dashboard::router(session::router(), state.sessions.clone()));
    // What is off is not there at all.
    if let Some(tokens) = tokens {
        routes = routes.layer(from_fn_with_state(tokens, user::users_only));
    }
    if traces::on() {
        routes = routes.layer(from_fn(tracing::trace));
    }
    let router = routes.layer(from_fn_with_state(Arc::new(edge), edge::edge)).with_state(state);
    cors::around(router, &browsers.cors_origins)
}

/// What a process that serves no API tells of itself: its health, and its metrics.
pub fn probes(state: AppState) -> Router {
    let edge = Edge::new(state.config.time_limits(), state.limits.clone(), Side::Both, 0, state.stopping.clone());
    Router::from(health::router())
        .merge(metrics::router())
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::new(edge), edge::edge))
        .with_state(state)
}

/// Every documented route, with its documentation.
pub fn routes(sessions: Arc<Sessions>, notes: Notes) -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(payments::router())
        .merge(balances::router())
        .merge(coupons::router())
        .merge(products::router())
        .merge(orders::router())
        .merge(admin::router(sessions, notes))
        .merge(health::router())
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
