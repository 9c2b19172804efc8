//! `/metrics`: what Prometheus scrapes.
//!
//! Not in the OpenAPI document: it is no JSON API. What is told is [`metrics`](crate::telemetry::metrics)'s; here is who may ask, and how
//! often it is made anew, so that whoever asks in a loop costs nothing.

use std::num::NonZeroU32;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use governor::Quota;

use super::recent::Recent;
use crate::{
    config::MetricsConfig,
    http::{
        auth::operator::{Token, bearer},
        error::{ApiError, Code},
        limits::Client,
        state::AppState,
    },
    model::Error,
    telemetry::metrics,
};

/// How often a text is made: much more often than anybody scrapes.
const RATE: Quota = Quota::per_second(NonZeroU32::new(2).unwrap()).allow_burst(NonZeroU32::MIN);

/// This resource's route.
pub fn router() -> Router<AppState> {
    Router::new().route("/metrics", get(scrape))
}

/// What scrapes share.
pub struct Scrapes {
    /// Without one anybody may scrape.
    token: Option<Token>,
    text: Recent<Bytes>,
}

impl Scrapes {
    /// # Errors
    /// The token could be guessed.
    pub fn new(config: &MetricsConfig) -> anyhow::Result<Self> {
        let token = Token::given("METRICS_TOKEN", config.metrics_token.as_ref())?;
        Ok(Scrapes { token, text: Recent::new(RATE) })
    }
}

async fn scrape(State(app): State<AppState>, Client(client): Client, headers: HeaderMap) -> Result<Response, ApiError> {
    let Scrapes { token, text } = &app.scrapes;
    if let Some(token) = token {
        let theirs = bearer(&headers).ok_or(Code::Unauthorized)?;
        app.limits.judge(client, || token.is(theirs).then_some(()))?;
    }
    let make = async || {
        let mut observed = app.engine.observe().await;
        observed.ready &= !app.stopping.is_cancelled();
        metrics::text(&observed).map(Bytes::from).map_err(|error| Error::Internal(error.into()))
    };
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text.get(make).await?).into_response())
}
