//! What happens to every request, whatever it is: its id, whether it is let in (see [`limits`](crate::http::limits)), its time
//! limit, its line in the log, its place in the metrics, what every reply says to browsers, and the promise that a failure is
//! always the envelope of [`error`](crate::http::error).
//!
//! The one thing it can't reach is a request so malformed that hyper refuses it before there is one (a broken request
//! line, headers beyond the limits): that is a bare 400, 414 or 431. hyper has no hook for these, and its replies could only
//! be told apart by their bytes.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    http::{
        Extensions, HeaderMap, HeaderValue, StatusCode,
        header::{
            ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, STRICT_TRANSPORT_SECURITY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{
    access_log, framing,
    unknown_fields::Parameters,
    unread_body::{self, Leftover},
};
use crate::{
    http::{
        error::{ApiError, Code, Failure},
        headers::X_REQUEST_ID,
        limits::{Client, Limits, Side, Traffic, costs},
        request_id::RequestId,
    },
    telemetry::metrics::http::{NOWHERE, Running},
};

/// How long requests may take.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// Any request, from its head to the head of its reply.
    pub request: Duration,
    /// A body, from its request's head to its end, whether anybody reads it or not.
    pub body: Duration,
    /// Requests to `long_paths`, which are expected to take long.
    pub long: Duration,
    /// Routes, as registered.
    pub long_paths: &'static [&'static str],
}

/// What the outermost layer knows.
pub struct Edge {
    time: TimeLimits,
    limits: Arc<Limits>,
    side: Side,
    /// What Strict-Transport-Security says, if anything.
    hsts: Option<HeaderValue>,
    /// Of the public API's operations.
    parameters: Parameters,
    /// Cancelled once the process is to end: bodies that nobody wants are not waited for any more.
    stopping: CancellationToken,
}

impl Edge {
    pub fn new(
        time: TimeLimits,
        limits: Arc<Limits>,
        side: Side,
        hsts_seconds: u64,
        stopping: CancellationToken,
    ) -> Self {
        let hsts = (hsts_seconds > 0).then(|| HeaderValue::try_from(format!("max-age={hsts_seconds}")).ok());
        Edge { time, limits, side, hsts: hsts.flatten(), parameters: Parameters::default(), stopping }
    }

    /// The same, which names what is not known of a request to the public API in its reply.
    pub fn naming_unknown(self, parameters: Parameters) -> Self {
        Edge { parameters, ..self }
    }

    /// Reads what is left of a refused request's body, for as long as any body may take: who is not let in does not get the
    /// time that the work would have had.
    async fn forget(&self, leftover: Leftover, began: Instant) {
        let left = self.time.body.saturating_sub(began.elapsed());
        tokio::select! {
            biased;
            _ = tokio::time::timeout(left, leftover.forget()) => {}
            () = self.stopping.cancelled() => {}
        }
    }
}

/// The outermost layer.
pub async fn edge(State(edge): State<Arc<Edge>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = RequestId::choose(request.headers());
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NOWHERE, MatchedPath::as_str);
    let running = Running::begin(began, method.as_str(), route);
    let traffic = Traffic::of(request.uri().path());
    let client = client(&edge.limits, request.extensions(), request.headers());
    if traffic != Traffic::Public {
        request.extensions_mut().insert(Client(client));
    }
    let flaw = framing::flaw(&request);
    let limit = if edge.time.long_paths.contains(&route) { edge.time.long } else { edge.time.request };

    let unknown = edge.parameters.watch(&mut request);

    let mut response = if !edge.side.serves(traffic) {
        ApiError::from(Code::NotFound).into_response()
    } else {
        match edge.limits.admit(traffic, client, route) {
            // Nothing is read of its body: a flood is not to be carried, and what is small is here anyway.
            Err(refused) => refused.into_response(),
            Ok(_) if let Some(flaw) = flaw => ApiError::because(Code::InvalidRequest, flaw).into_response(),
            Ok(pass) => {
                let (request, leftover) = unread_body::keep(request);
                let answer = AssertUnwindSafe(tokio::time::timeout(limit, next.run(request))).catch_unwind().await;
                drop(pass);
                let response = match answer {
                    Ok(Ok(response)) => enveloped(response),
                    Ok(Err(_elapsed)) => {
                        tracing::warn!(request_id = id.as_str(), %method, route, ?limit, "request timed out");
                        ApiError::from(Code::Unavailable).into_response()
                    }
                    Err(panic) => {
                        tracing::error!(request_id = id.as_str(), %method, route, panic = said(&*panic), "handler panicked");
                        ApiError::from(Code::Internal).into_response()
                    }
                };
                // Who was too slow with the body was given all the time there is.
                let answered = response.status().is_success() || response.status() == StatusCode::REQUEST_TIMEOUT;
                if let Some(leftover) = leftover.filter(|_| !answered) {
                    edge.forget(leftover, began).await;
                }
                response
            }
        }
    };
    if matches!(traffic, Traffic::Operators | Traffic::Metrics)
        && response.status() == StatusCode::UNAUTHORIZED
        && let Err(refused) = edge.limits.admit_stranger(client)
    {
        response = refused.into_response();
    }

    let failure = response.extensions().get::<Failure>();
    if let Some(failure) = failure
        && traffic == Traffic::Public
    {
        edge.limits.charge(client, costs::of_refusal(failure.code));
    }
    running.answered(response.status().as_u16(), failure.map_or("", |failure| failure.code.as_str()));
    if let Some(Failure { code, cause: Some(cause) }) = failure {
        match code {
            Code::Internal => {
                tracing::error!(request_id = id.as_str(), %method, route, error = %cause, "request failed")
            }
            _ => tracing::warn!(request_id = id.as_str(), %method, route, error = %cause, "request turned away"),
        }
    }
    access_log::tell(&id, &method, route, client, began, &response);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(X_REQUEST_ID, id);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(unknown) = unknown {
        unknown.tell(headers);
    }
    // What is not said to be otherwise is somebody's, or of this moment.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Some(hsts) = &edge.hsts {
        headers.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    if flaw.is_some() {
        // Where the next request would start is not certain.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whom a request comes from; outside of a server, from nowhere.
pub fn client(limits: &Limits, extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>();
    limits.client(peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.ip()), headers)
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
        http::header::HOST,
        middleware::from_fn_with_state,
        routing::{get, post},
    };
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::config::LimitsConfig;

    fn app_with(limits: &LimitsConfig, side: Side, hsts_seconds: u64) -> Router {
        let time = TimeLimits {
            request: Duration::from_millis(20),
            body: Duration::from_millis(20),
            long: Duration::from_secs(3600),
            long_paths: &["/long", "/admin/v1/shut"],
        };
        let edge = Edge::new(time, Arc::new(Limits::new(limits)), side, hsts_seconds, CancellationToken::new());
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
            .route("/own", get(|| async { [(CACHE_CONTROL, "no-cache")] }))
            .route("/admin/v1/shut", get(|| async { StatusCode::UNAUTHORIZED }))
            .route("/ops/shut", get(|| async { StatusCode::UNAUTHORIZED }))
            .route("/metrics", get(|| async {}))
            .route("/readyz", get(|| async {}))
            .layer(from_fn_with_state(Arc::new(edge), super::edge))
    }

    fn app() -> Router {
        app_with(&LimitsConfig::off(), Side::Both, 0)
    }

    async fn send(method: &str, path: &str, id: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "test");
        if let Some(id) = id {
            request = request.header(X_REQUEST_ID, id);
        }
        let response = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn failure_answered_in_envelope() {
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
    async fn request_id_kept_when_valid_and_replaced_otherwise() {
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

    #[tokio::test]
    async fn reply_carries_security_headers() {
        for path in ["/fine", "/unknown", "/teapot", "/panic"] {
            let (_, headers, _) = send("GET", path, None).await;
            assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
            assert_eq!(headers[CACHE_CONTROL], "no-store", "{path}");
            assert!(!headers.contains_key(STRICT_TRANSPORT_SECURITY), "{path}");
        }
        assert_eq!(send("GET", "/own", None).await.1[CACHE_CONTROL], "no-cache");
        let secure = app_with(&LimitsConfig::off(), Side::Both, 63_072_000);
        let response =
            secure.oneshot(Request::get("/fine").header(HOST, "test").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.headers()[STRICT_TRANSPORT_SECURITY], "max-age=63072000");
    }

    async fn status(app: &Router, client: &str, path: &str) -> u16 {
        let mut request = Request::get(path).header(HOST, "test").body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(client.parse().unwrap(), 1)));
        let response = app.clone().oneshot(request).await.unwrap();
        assert!(response.headers().contains_key(X_REQUEST_ID));
        assert_eq!(response.status() == 429, response.headers().contains_key(RETRY_AFTER));
        response.status().as_u16()
    }

    fn two_tokens() -> LimitsConfig {
        LimitsConfig {
            // Slow enough that none comes back while this runs, however slowly.
            rate_limit_client_per_second: 1,
            rate_limit_client_burst: 2,
            rate_limit_keys: 10,
            ..LimitsConfig::off()
        }
    }

    #[tokio::test]
    async fn client_over_limit_refused_and_others_served() {
        let app = app_with(&two_tokens(), Side::Both, 0);
        let answers = [(); 20].map(|()| status(&app, "198.51.100.7", "/fine"));
        let answers = futures_util::future::join_all(answers).await;
        assert_eq!(answers[..2], [200, 200]);
        assert!(answers[2..].contains(&429), "{answers:?}");
        assert_eq!(status(&app, "198.51.100.8", "/fine").await, 200);
        for _ in 0..50 {
            assert_eq!(status(&app, "198.51.100.7", "/readyz").await, 200);
            assert_eq!(status(&app, "198.51.100.7", "/metrics").await, 200);
        }
    }

    #[tokio::test]
    async fn token_guesses_limited() {
        for path in ["/admin/v1/shut", "/ops/shut"] {
            let app = app_with(&two_tokens(), Side::Both, 0);
            let mut answers = Vec::new();
            for _ in 0..20 {
                answers.push(status(&app, "198.51.100.7", path).await);
            }
            assert_eq!(answers[..2], [401, 401], "{path}");
            assert!(answers[2..].contains(&429), "{answers:?}");
        }
    }

    #[tokio::test]
    async fn route_of_other_listener_not_found() {
        for (side, open, shut) in [
            (Side::Public, ["/fine", "/readyz", "/readyz"], ["/metrics", "/admin/v1/shut", "/ops/shut"]),
            (Side::Operators, ["/metrics", "/readyz", "/readyz"], ["/fine", "/echo", "/unknown"]),
        ] {
            let app = app_with(&LimitsConfig::off(), side, 0);
            for path in open {
                assert_eq!(status(&app, "198.51.100.7", path).await, 200, "{side:?} {path}");
            }
            for path in shut {
                assert_eq!(status(&app, "198.51.100.7", path).await, 404, "{side:?} {path}");
            }
        }
        let operators = app_with(&LimitsConfig::off(), Side::Operators, 0);
        assert_eq!(status(&operators, "198.51.100.7", "/admin/v1/shut").await, 401);
    }

    /// A body of which nothing ever comes.
    fn silent() -> Body {
        Body::from_stream(futures_util::stream::pending::<std::io::Result<&str>>())
    }

    #[tokio::test]
    async fn refused_request_ends_in_body_timeout_when_body_endless() {
        for path in ["/admin/v1/shut", "/ops/shut", "/teapot", "/unknown", "/axum"] {
            let request = Request::post(path).header(HOST, "test").body(silent()).unwrap();
            // It hangs for an hour where the work's time is waited for.
            let answer = tokio::time::timeout(Duration::from_secs(300), app().oneshot(request)).await.unwrap().unwrap();
            assert!(answer.status().is_client_error(), "{path}");
        }
    }

    #[tokio::test]
    async fn refused_request_ends_at_stop_when_body_endless() {
        let time = TimeLimits { request: DAY, body: DAY, long: DAY, long_paths: &[] };
        const DAY: Duration = Duration::from_secs(86_400);
        let stopping = CancellationToken::new();
        let edge = Edge::new(time, Arc::new(Limits::new(&LimitsConfig::off())), Side::Both, 0, stopping.clone());
        let app = Router::new().layer(from_fn_with_state(Arc::new(edge), super::edge));
        let answer = app.oneshot(Request::post("/unknown").header(HOST, "test").body(silent()).unwrap());
        tokio::pin!(answer);
        assert!(futures_util::poll!(&mut answer).is_pending());
        stopping.cancel();
        assert_eq!(answer.await.unwrap().status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn ambiguous_request_refused_and_connection_closed() {
        for (names, path) in
            [(&[][..], "/fine"), (&["a", "b"], "/fine"), (&["a"], "http://b/fine"), (&["a", "a"], "/unknown")]
        {
            let mut request = Request::get(path);
            for name in names {
                request = request.header(HOST, *name);
            }
            let response = app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{names:?} {path}");
            assert_eq!(response.headers()[CONNECTION], "close");
            assert!(response.headers().contains_key(X_REQUEST_ID));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["errorCode"], "INVALID_REQUEST");
        }
        let coded = Request::post("/axum").header(HOST, "a").header("transfer-encoding", "gzip, chunked");
        let response = app().oneshot(coded.body(silent()).unwrap()).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()[CONNECTION]),
            (StatusCode::BAD_REQUEST, &"close".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn not_found_charged_more_when_postgres_asked() {
        let unknown = get(|| async { ApiError::from(Code::OrderNotFound) });
        let limits = LimitsConfig { rate_limit_client_burst: 4, ..two_tokens() };
        let edge = Edge::new(
            TimeLimits { request: DAY, body: DAY, long: DAY, long_paths: &[] },
            Arc::new(Limits::new(&limits)),
            Side::Both,
            0,
            CancellationToken::new(),
        );
        const DAY: Duration = Duration::from_secs(86_400);
        let app = Router::new()
            .route("/api/v1/orders/{orderId}", unknown)
            .layer(from_fn_with_state(Arc::new(edge), super::edge));
        assert_eq!(status(&app, "198.51.100.7", "/api/v1/orders/1").await, 404);
        assert_eq!(status(&app, "198.51.100.7", "/api/v1/orders/1").await, 429);
    }
}
