//! `/metrics`: what Prometheus scrapes.
//!
//! Not in the OpenAPI document: it is no JSON API. What is told is [`metrics`](crate::metrics)'s; here is who may ask, and how
//! often it is made anew, so that whoever asks in a loop costs nothing.

use std::time::{Duration, Instant};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    AppState,
    auth::Token,
    error::{ApiError, Code},
};
use crate::{config::MetricsConfig, domain::Error, metrics};

/// How long a text is told again. Much less than anybody's interval between two scrapes.
const TOLD_AGAIN: Duration = Duration::from_millis(500);

/// This resource's route.
pub fn router() -> Router<AppState> {
    Router::new().route("/metrics", get(scrape))
}

/// What scrapes share.
pub struct Scrapes {
    /// Without one anybody may scrape.
    token: Option<Token>,
    /// Held by the one that makes it anew.
    last: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
}

impl Scrapes {
    pub fn new(config: &MetricsConfig) -> Self {
        Scrapes { token: Token::given(config.metrics_token.as_ref()), last: tokio::sync::Mutex::new(None) }
    }
}

async fn scrape(State(app): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let Scrapes { token, last } = &app.scrapes;
    if token.as_ref().is_some_and(|token| !token.is_borne_by(&headers)) {
        return Err(Code::Unauthorized.into());
    }
    let mut last = last.lock().await;
    let text = match last.as_ref() {
        Some((at, text)) if at.elapsed() < TOLD_AGAIN => text.clone(),
        _ => {
            let mut observed = app.engine.observe().await;
            observed.ready &= !app.stopping.is_cancelled();
            let text = metrics::text(&observed).map_err(|error| Error::Internal(error.into()))?;
            let text = Bytes::from(text);
            *last = Some((Instant::now(), text.clone()));
            text
        }
    };
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
