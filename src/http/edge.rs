//! What happens to every request, whatever it is: its id, its time limit, its line in the log, and the promise that a
//! failure is always the envelope of [`error`](super::error).
//!
//! The one thing it can't reach is a request so malformed that hyper refuses it before there is one (a broken request
//! line, headers beyond the limits): that is a bare 400, 414 or 431.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{
        Extensions, HeaderMap, HeaderName, HeaderValue,
        header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use uuid::Uuid;

use super::{
    error::{ApiError, Code, Failure},
    leftover,
};

/// Names the request, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long requests may take.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// Any request, from its head to the head of its reply.
    pub request: Duration,
    /// Requests to `long_paths`, which are expected to take long.
    pub long: Duration,
    /// Routes, as registered.
    pub long_paths: &'static [&'static str],
}

/// The id of a request, in its extensions: 1–64 characters `[A-Za-z0-9._-]`.
#[derive(Clone, Debug)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The client's own if it is sane, else a new one.
    fn choose(headers: &HeaderMap) -> Self {
        let sane = |id: &&str| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        let theirs = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).filter(sane);
        RequestId(theirs.map_or_else(|| Uuid::now_v7().simple().to_string().into(), Arc::from))
    }

    /// The id of the request with these extensions; empty outside of [`edge`].
    pub fn of(extensions: &Extensions) -> String {
        extensions.get::<RequestId>().map_or_else(String::new, |id| id.0.as_ref().to_owned())
    }
}

/// The outermost layer.
pub async fn edge(State(limits): State<TimeLimits>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = RequestId::choose(request.headers());
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("-", MatchedPath::as_str);
    let limit = if limits.long_paths.contains(&route) { limits.long } else { limits.request };

    let (request, leftover) = leftover::keep(request);
    let answer = AssertUnwindSafe(tokio::time::timeout(limit, next.run(request))).catch_unwind().await;
    let mut response = match answer {
        Ok(Ok(response)) => enveloped(response),
        Ok(Err(_elapsed)) => {
            tracing::warn!(request_id = %id.0, %method, route, ?limit, "request timed out");
            ApiError::from(Code::Unavailable).into_response()
        }
        Err(panic) => {
            tracing::error!(request_id = %id.0, %method, route, panic = said(&*panic), "handler panicked");
            ApiError::from(Code::Internal).into_response()
        }
    };

    if let Some(leftover) = leftover.filter(|_| !response.status().is_success()) {
        // A client that does not get on with it gets no longer than for any request.
        let _ = tokio::time::timeout(limit, leftover.forget()).await;
    }

    if let Some(Failure { code, cause: Some(cause) }) = response.extensions().get() {
        match code {
            Code::Internal => tracing::error!(request_id = %id.0, %method, route, error = %cause, "request failed"),
            _ => tracing::warn!(request_id = %id.0, %method, route, error = %cause, "request turned away"),
        }
    }
    tracing::debug!(
        request_id = %id.0,
        %method,
        route,
        status = response.status().as_u16(),
        ms = began.elapsed().as_secs_f64() * 1e3,
        "request"
    );
    if let Ok(id) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    response
}

/// Any failure that is not ours yet becomes ours, and keeps the headers that mean something to a client.
fn enveloped(response: Response) -> Response {
    let status = response.status();
    let failed = status.is_client_error() || status.is_server_error();
    if !failed || response.extensions().get::<Failure>().is_some() {
        return response;
    }
    let mut ours = ApiError::from(Code::of_status(status)).into_response();
    for name in [ALLOW, RETRY_AFTER] {
        if let Some(value) = response.headers().get(&name) {
            ours.headers_mut().insert(name, value.clone());
        }
    }
    debug_assert!(ours.headers().contains_key(CONTENT_TYPE) && !ours.headers().contains_key(CONTENT_LENGTH));
    ours
}

/// The message of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("(no message)")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use axum::{
        Router,
        body::Body,
        extract::Json,
        http::StatusCode,
        middleware::from_fn_with_state,
        routing::{get, post},
    };
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    fn app() -> Router {
        let limits =
            TimeLimits { request: Duration::from_millis(20), long: Duration::from_secs(60), long_paths: &["/long"] };
        let longer_than_a_request = || tokio::time::sleep(Duration::from_millis(200));
        Router::new()
            .route("/fine", get(|| async { "fine" }))
            .route("/echo", get(|request: Request| async move { RequestId::of(request.extensions()) }))
            .route(
                "/panic",
                get(|| async {
                    if true {
                        panic!("secret")
                    }
                }),
            )
            .route("/hang", get(std::future::pending::<()>))
            .route("/long", get(longer_than_a_request))
            .route("/axum", post(|_: Json<u8>| async {}))
            .route("/teapot", get(|| async { (StatusCode::IM_A_TEAPOT, "short and stout") }))
            .route("/bad-gateway", get(|| async { (StatusCode::BAD_GATEWAY, "plain text") }))
            .layer(from_fn_with_state(limits, edge))
    }

    async fn send(method: &str, path: &str, id: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(id) = id {
            request = request.header(X_REQUEST_ID, id);
        }
        let response = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn every_failure_is_the_envelope() {
        for (method, path, code) in [
            ("GET", "/unknown", Code::NotFound),
            ("POST", "/fine", Code::MethodNotAllowed),
            ("GET", "/panic", Code::Internal),
            ("GET", "/hang", Code::Unavailable),
            ("POST", "/axum", Code::UnsupportedMediaType),
            ("GET", "/teapot", Code::InvalidRequest),
            ("GET", "/bad-gateway", Code::Internal),
        ] {
            let (status, headers, body) = send(method, path, None).await;
            assert_eq!(status, code.status(), "{path}");
            assert_eq!(headers[CONTENT_TYPE], "application/json", "{path}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap()["errorCode"], code.as_str(), "{path}");
            assert!(headers.contains_key(X_REQUEST_ID), "{path}");
            assert_eq!(headers.contains_key(RETRY_AFTER), code == Code::Unavailable, "{path}");
        }
        assert_eq!(send("POST", "/fine", None).await.1[ALLOW], "GET,HEAD");
        assert_eq!(send("GET", "/long", None).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn sane_ids_are_kept_and_others_replaced() {
        let (_, headers, seen) = send("GET", "/echo", Some("client-1.A_z")).await;
        assert_eq!(headers[X_REQUEST_ID], "client-1.A_z");
        assert_eq!(seen, "client-1.A_z");
        for insane in ["", "a b", "ü", "x;y", &"x".repeat(65)] {
            let (_, headers, seen) = send("GET", "/echo", Some(insane)).await;
            assert_ne!(headers[X_REQUEST_ID], insane);
            assert_eq!(headers[X_REQUEST_ID], seen.as_str());
            assert_eq!(seen.len(), 32);
        }
    }
}
