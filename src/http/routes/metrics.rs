//! `/metrics`: the metrics of [`telemetry`](crate::telemetry::metrics), for Prometheus.
//!
//! It is no JSON API and not in the OpenAPI document. The text is made at a bounded rate, so that frequent requests cost nothing.

use std::{num::NonZeroU32, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use governor::Quota;
use tokio_util::sync::CancellationToken;

use super::recent::Recent;
use crate::{
    config::MetricsConfig,
    engine::Engine,
    http::{
        auth::operator::{Token, bearer},
        error::{ApiError, Code},
        limits::{Client, Limits},
    },
    model::Error,
    telemetry::metrics,
};

/// How often the text is made: much more often than anything scrapes it.
const RATE: Quota = Quota::per_second(NonZeroU32::new(2).unwrap()).allow_burst(NonZeroU32::MIN);

/// The state of this route.
#[derive(Clone)]
pub struct MetricsState {
    engine: Arc<Engine>,
    limits: Arc<Limits>,
    /// Without one the metrics are open.
    token: Option<Token>,
    text: Arc<Recent<Bytes>>,
    /// Cancelled once the process is to end: it is not ready from then on.
    stopping: CancellationToken,
}

impl MetricsState {
    /// # Errors
    /// The token could be guessed.
    pub fn new(
        engine: Arc<Engine>,
        limits: Arc<Limits>,
        config: &MetricsConfig,
        stopping: CancellationToken,
    ) -> anyhow::Result<Self> {
        Ok(MetricsState { engine, limits, token: token(config)?, text: Arc::new(Recent::new(RATE)), stopping })
    }
}

/// Checks the setting of the token.
///
/// # Errors
/// The token could be guessed.
pub fn check(config: &MetricsConfig) -> anyhow::Result<()> {
    token(config).map(drop)
}

fn token(config: &MetricsConfig) -> anyhow::Result<Option<Token>> {
    Token::given("METRICS_TOKEN", config.metrics_token.as_ref())
}

/// The route.
pub fn router() -> Router<MetricsState> {
    Router::new().route("/metrics", get(text))
}

async fn text(
    State(state): State<MetricsState>,
    Client(client): Client,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if let Some(token) = &state.token {
        let given = bearer(&headers).ok_or(Code::Unauthorized)?;
        state.limits.judge(client, || token.is(given).then_some(()))?;
    }
    let make = async || {
        let mut observed = state.engine.observe().await;
        observed.ready &= !state.stopping.is_cancelled();
        metrics::text(&observed).map(Bytes::from).map_err(|error| Error::Internal(error.into()))
    };
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], state.text.get(make).await?).into_response())
}
