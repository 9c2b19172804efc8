//! Every failure has the envelope of [`error`](crate::http::error): also a timeout, a panic, and a failure of axum or of a layer.

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use axum::{
    http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;

use super::access_log::RequestLine;
use crate::http::error::{ApiError, Code, Failure};

/// Runs a handler within `limit`; then 503. A panic is a 500.
pub async fn run(line: &RequestLine<'_>, limit: Duration, handler: impl Future<Output = Response>) -> Response {
    let &RequestLine { id, method, route } = line;
    match AssertUnwindSafe(tokio::time::timeout(limit, handler)).catch_unwind().await {
        Ok(Ok(response)) => enveloped(response),
        Ok(Err(_elapsed)) => {
            tracing::warn!(request_id = id.as_str(), %method, route, ?limit, "request timed out");
            ApiError::from(Code::Unavailable).into_response()
        }
        Err(panic) => {
            tracing::error!(request_id = id.as_str(), %method, route, panic = message(&*panic), "handler panicked");
            ApiError::from(Code::Internal).into_response()
        }
    }
}

/// Gives a failure without the envelope the envelope of its status. Keeps the headers that a client acts on.
fn enveloped(response: Response) -> Response {
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    if !failed || response.extensions().get::<Failure>().is_some() {
        return response;
    }
    let mut envelope = ApiError::from(Code::of_status(status)).into_response();
    for name in [ALLOW, RETRY_AFTER] {
        if let Some(value) = response.headers().get(&name) {
            envelope.headers_mut().insert(name, value.clone());
        }
    }
    debug_assert!(envelope.headers().contains_key(CONTENT_TYPE) && !envelope.headers().contains_key(CONTENT_LENGTH));
    envelope
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)")
}
