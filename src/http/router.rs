//! Every route and every layer.

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
};
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

#[cfg(feature = "baseline")]
use super::routes::baseline;
use super::{
    admin::{self, AdminState},
    auth::{session::Sessions, user},
    error::not_found,
    limits::Limits,
    middleware::{
        cors, durability,
        pipeline::{Pipeline, TimeLimits},
        tracing,
        unknown_fields::Parameters,
    },
    openapi,
    request_class::{Listener, RequestClass},
    routes::{
        balances, coupons, gateways,
        health::{self, HealthState},
        metrics::{self, MetricsState},
        orders, payments, products,
    },
    state::AppState,
};
use crate::{config::HttpConfig, jwt::Tokens, telemetry::traces};

/// What the routes are served with. Listeners of one process share it.
#[derive(Clone)]
pub struct Services {
    pub app: AppState,
    pub admin: AdminState,
    pub health: HealthState,
    pub metrics: MetricsState,
    /// Authenticates operators.
    pub sessions: Arc<Sessions>,
    /// Authenticates users; without it they need no token.
    pub tokens: Option<Arc<Tokens>>,
    /// Cancelled once the process is to end.
    pub stopping: CancellationToken,
}

/// All routes, of which `listener` serves its classes. `pages` are further routes of the operators.
///
/// Layers from the outside in: CORS (public routes), the pipeline, traces, users' tokens (public routes), durability (the API and
/// the operators' API, which write), the handler. Pages are outside of durability: operators sign in also while writes are
/// rejected.
pub fn router(services: Services, config: &HttpConfig, listener: Listener, pages: Router) -> Router {
    let creates = config.auth.auth_create_users.then(|| services.app.engine.clone());
    let Services { app, admin, health, metrics, sessions, tokens, stopping } = services;
    let document = document();
    let hsts_seconds = config.browsers.hsts_seconds;
    let pipeline = Pipeline::new(TimeLimits::from(config), app.limits.clone(), listener, hsts_seconds, stopping);
    let durable = from_fn_with_state(app.engine.clone(), durability::durable);

    let parameters = Parameters::of(&document);
    let public = Router::from(api());
    #[cfg(feature = "baseline")]
    let public = public.merge(baseline::router());
    let public = public.merge(openapi::page::router(document, tokens.is_some())).fallback(not_found).with_state(app);
    let mut public = public.layer(durable.clone());
    if let Some(tokens) = tokens {
        public = public.layer(from_fn_with_state(user::UserTokens { tokens, creates }, user::users_only));
    }
    let public = pipeline.clone().naming_unknown(parameters).around(RequestClass::Public, traced(public));
    let public = cors::around(public, &config.browsers.cors_origins);

    let operators = admin::router(admin, sessions).layer(durable).merge(pages);
    let operators =
        pipeline.clone().with_long_routes(admin::LONG_ROUTES).around(RequestClass::Operators, traced(operators));

    let health = Router::from(health::routes()).with_state(health);
    let health = pipeline.around(RequestClass::Health, traced(health));

    let metrics = metrics::router().with_state(metrics);
    let metrics = pipeline.around(RequestClass::Metrics, traced(metrics));

    public.merge(operators).merge(health).merge(metrics)
}

/// The routes of a process without an API: health and metrics.
pub fn probes(health: HealthState, metrics: MetricsState, limits: Arc<Limits>, stopping: CancellationToken) -> Router {
    let pipeline = Pipeline::new(TimeLimits::default(), limits, Listener::All, 0, stopping);
    let health = pipeline.around(RequestClass::Health, Router::from(health::routes()).with_state(health));
    let metrics = pipeline.around(RequestClass::Metrics, metrics::router().with_state(metrics));
    pipeline.around(RequestClass::Public, Router::new().fallback(not_found)).merge(health).merge(metrics)
}

/// The public API.
fn api() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::document::base())
        .merge(payments::router())
        .merge(balances::router())
        .merge(coupons::router())
        .merge(products::router())
        .merge(orders::router())
        .merge(gateways::router())
}

/// The document of every route, as the handlers describe it.
pub fn document() -> OpenApi {
    let mut document = api().into_openapi();
    document.merge(admin::routes().into_openapi());
    document.merge(health::routes().into_openapi());
    document
}

/// The routes in a span of each request. Without traces the layer is absent.
fn traced(routes: Router) -> Router {
    if traces::on() { routes.layer(from_fn(tracing::trace)) } else { routes }
}
