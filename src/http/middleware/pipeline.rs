//! The one layer around every route: the steps that every request takes, in order.
//!
//! Each step is a function of one job in a file of its own. They share a layer because every layer of axum boxes its future once
//! more per request.
//!
//! A request so malformed that hyper can't read it (a broken request line, headers beyond the limits) does not reach this layer:
//! hyper answers a bare 400, 414 or 431 and has no hook for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header::CONNECTION},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tokio_util::sync::CancellationToken;

use super::{
    access_log::RequestLine,
    envelope, framing, response_headers,
    unknown_fields::Parameters,
    unread_body::{self, UnreadBody},
};
use crate::{
    config::HttpConfig,
    http::{
        error::{ApiError, Code, Failure},
        limits::{Client, Limits, Permit, costs},
        reply::Waited,
        request_class::{Listener, RequestClass},
        request_id::RequestId,
    },
    telemetry::metrics::http::{NOWHERE, Running},
};

/// How long requests may take.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimits {
    /// From a request's head to the head of its reply; then 503.
    pub request: Duration,
    /// From a request's head to the end of its body, whether it is read or not.
    pub body: Duration,
    /// Instead of `request` for long routes: creating users in bulk, an audit.
    pub long: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        TimeLimits { request: Duration::from_secs(10), body: Duration::from_secs(5), long: Duration::from_secs(600) }
    }
}

impl From<&HttpConfig> for TimeLimits {
    fn from(config: &HttpConfig) -> Self {
        let request = Duration::from_millis(config.request_timeout_ms);
        TimeLimits { request, body: config.limits.body_timeout(), ..TimeLimits::default() }
    }
}

/// The steps around the routes of one class.
#[derive(Clone)]
pub struct Pipeline {
    class: RequestClass,
    listener: Listener,
    time: TimeLimits,
    /// Routes, as registered, that have the time of long ones.
    long_routes: &'static [&'static str],
    limits: Arc<Limits>,
    hsts: Option<HeaderValue>,
    /// The query parameters that the class's operations have; the reply names others.
    parameters: Arc<Parameters>,
    /// Cancelled once the process is to end: the rest of unread bodies is not read any more.
    stopping: CancellationToken,
}

impl Pipeline {
    /// A pipeline of `listener`, without long routes and without known parameters.
    pub fn new(
        time: TimeLimits,
        limits: Arc<Limits>,
        listener: Listener,
        hsts_seconds: u64,
        stopping: CancellationToken,
    ) -> Self {
        Pipeline {
            class: RequestClass::Public,
            listener,
            time,
            long_routes: &[],
            limits,
            hsts: response_headers::hsts(hsts_seconds),
            parameters: Arc::default(),
            stopping,
        }
    }

    /// The same, where these routes may take long.
    pub fn with_long_routes(self, long_routes: &'static [&'static str]) -> Self {
        Pipeline { long_routes, ..self }
    }

    /// The same, which names unknown fields and parameters of public requests in their replies.
    pub fn naming_unknown(self, parameters: Parameters) -> Self {
        Pipeline { parameters: Arc::new(parameters), ..self }
    }

    /// The routes, of this class, in a pipeline.
    pub fn around<S: Clone + Send + Sync + 'static>(&self, class: RequestClass, routes: Router<S>) -> Router<S> {
        routes.layer(from_fn_with_state(Arc::new(Pipeline { class, ..self.clone() }), run))
    }

    /// Runs the handler of an admitted request.
    async fn handle(
        &self,
        request: Request,
        next: Next,
        line: &RequestLine<'_>,
        began: Instant,
        permit: Permit<'_>,
    ) -> Response {
        let (request, unread) = unread_body::lend(request);
        let limit = if self.long_routes.contains(&line.route) { self.time.long } else { self.time.request };
        let response = envelope::run(line, limit, next.run(request)).await;
        drop(permit);
        // A client that was too slow with the body had all the time that a body has.
        let answered = response.status().is_success() || response.status() == StatusCode::REQUEST_TIMEOUT;
        if let Some(unread) = unread.filter(|_| !answered) {
            self.discard(unread, began).await;
        }
        response
    }

    /// Reads the rest of a refused request's body, within the time of a body: a refused request does not get the time that
    /// the work would have had.
    async fn discard(&self, unread: UnreadBody, began: Instant) {
        let left = self.time.body.saturating_sub(began.elapsed());
        tokio::select! {
            biased;
            _ = tokio::time::timeout(left, unread.discard()) => {}
            () = self.stopping.cancelled() => {}
        }
    }
}

/// The layer.
async fn run(State(pipeline): State<Arc<Pipeline>>, mut request: Request, next: Next) -> Response {
    let Pipeline { class, listener, limits, .. } = &*pipeline;
    let began = Instant::now();
    let id = RequestId::assign(&mut request);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NOWHERE, MatchedPath::as_str);
    let line = RequestLine { id: &id, method: &method, route };
    let running = Running::begin(began, method.as_str(), route);
    let client = limits.client_of(request.extensions(), request.headers());
    let mut unknown = None;
    if *class == RequestClass::Public {
        unknown = pipeline.parameters.watch(&mut request);
    } else {
        request.extensions_mut().insert(*class);
        request.extensions_mut().insert(Client(client));
    }
    let flaw = framing::flaw(&request);

    let mut response = if !listener.serves(*class) {
        ApiError::from(Code::NotFound).into_response()
    } else {
        match limits.admit(*class, client, route) {
            // Nothing is read of its body: a flood is not worth the reading, and small bodies have arrived.
            Err(refused) => refused.into_response(),
            Ok(_) if let Some(flaw) = flaw => ApiError::because(Code::InvalidRequest, flaw).into_response(),
            Ok(permit) => pipeline.handle(request, next, &line, began, permit).await,
        }
    };
    if matches!(class, RequestClass::Operators | RequestClass::Metrics)
        && response.status() == StatusCode::UNAUTHORIZED
        && let Err(refused) = limits.admit_unauthenticated(client)
    {
        response = refused.into_response();
    }

    let failure = response.extensions().get::<Failure>();
    if let Some(failure) = failure
        && *class == RequestClass::Public
    {
        limits.charge(client, costs::of_refusal(failure.code));
    }
    let waited = response.extensions().get::<Waited>().map_or(Duration::ZERO, |waited| waited.0);
    running.answered(response.status().as_u16(), failure.map_or("", |failure| failure.code.as_str()), waited);
    if let Some(failure) = failure {
        line.failure(failure);
    }
    line.access(client, began, &response);
    let headers = response.headers_mut();
    id.set(headers);
    if let Some(unknown) = unknown {
        unknown.set(headers);
    }
    response_headers::set(headers, pipeline.hsts.as_ref());
    if flaw.is_some() {
        // Where the next request begins is not certain.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{
        body::Body,
        extract::{ConnectInfo, Json},
        http::{
            HeaderMap,
            header::{
                ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, RETRY_AFTER, STRICT_TRANSPORT_SECURITY,
                X_CONTENT_TYPE_OPTIONS,
            },
        },
        routing::{get, post},
    };
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        config::LimitsConfig,
        http::{error::not_found, headers::X_REQUEST_ID},
    };

    /// A pipeline that takes no longer than a test has time for.
    fn pipeline(limits: &LimitsConfig, listener: Listener, hsts_seconds: u64) -> Pipeline {
        let time = TimeLimits {
            request: Duration::from_millis(20),
            body: Duration::from_millis(20),
            long: Duration::from_secs(3600),
        };
        let limits = Arc::new(Limits::new(limits));
        Pipeline::new(time, limits, listener, hsts_seconds, CancellationToken::new())
            .with_long_routes(&["/long", "/admin/v1/shut"])
    }

    fn app_with(limits: &LimitsConfig, listener: Listener, hsts_seconds: u64) -> Router {
        let pipeline = pipeline(limits, listener, hsts_seconds);
        let longer_than_a_request = || tokio::time::sleep(Duration::from_millis(200));
        let public = Router::new()
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
            .fallback(not_found);
        let operators = Router::new()
            .route("/admin/v1/shut", get(|| async { StatusCode::UNAUTHORIZED }))
            .route("/ops/shut", get(|| async { StatusCode::UNAUTHORIZED }));
        let metrics = Router::new().route("/metrics", get(|| async {}));
        let health = Router::new().route("/readyz", get(|| async {}));
        pipeline
            .around(RequestClass::Public, public)
            .merge(pipeline.around(RequestClass::Operators, operators))
            .merge(pipeline.around(RequestClass::Metrics, metrics))
            .merge(pipeline.around(RequestClass::Health, health))
    }

    fn app() -> Router {
        app_with(&LimitsConfig::off(), Listener::All, 0)
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
        let secure = app_with(&LimitsConfig::off(), Listener::All, 63_072_000);
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
        let app = app_with(&two_tokens(), Listener::All, 0);
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
            let app = app_with(&two_tokens(), Listener::All, 0);
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
        for (listener, open, shut) in [
            (Listener::Public, ["/fine", "/readyz", "/readyz"], ["/metrics", "/admin/v1/shut", "/ops/shut"]),
            (Listener::Operators, ["/metrics", "/readyz", "/readyz"], ["/fine", "/echo", "/unknown"]),
        ] {
            let app = app_with(&LimitsConfig::off(), listener, 0);
            for path in open {
                assert_eq!(status(&app, "198.51.100.7", path).await, 200, "{listener:?} {path}");
            }
            for path in shut {
                assert_eq!(status(&app, "198.51.100.7", path).await, 404, "{listener:?} {path}");
            }
        }
        let operators = app_with(&LimitsConfig::off(), Listener::Operators, 0);
        assert_eq!(status(&operators, "198.51.100.7", "/admin/v1/shut").await, 401);
    }

    /// A body of which nothing ever comes.
    fn pending_body() -> Body {
        Body::from_stream(futures_util::stream::pending::<std::io::Result<&str>>())
    }

    #[tokio::test]
    async fn refused_request_ends_in_body_timeout_when_body_endless() {
        for path in ["/admin/v1/shut", "/ops/shut", "/teapot", "/unknown", "/axum"] {
            let request = Request::post(path).header(HOST, "test").body(pending_body()).unwrap();
            // It hangs for an hour where the work's time is waited for.
            let answer = tokio::time::timeout(Duration::from_secs(300), app().oneshot(request)).await.unwrap().unwrap();
            assert!(answer.status().is_client_error(), "{path}");
        }
    }

    #[tokio::test]
    async fn refused_request_ends_at_stop_when_body_endless() {
        let time = TimeLimits { request: DAY, body: DAY, long: DAY };
        const DAY: Duration = Duration::from_secs(86_400);
        let stopping = CancellationToken::new();
        let limits = Arc::new(Limits::new(&LimitsConfig::off()));
        let pipeline = Pipeline::new(time, limits, Listener::All, 0, stopping.clone());
        let app = pipeline.around(RequestClass::Public, Router::new());
        let answer = app.oneshot(Request::post("/unknown").header(HOST, "test").body(pending_body()).unwrap());
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
        let response = app().oneshot(coded.body(pending_body()).unwrap()).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()[CONNECTION]),
            (StatusCode::BAD_REQUEST, &"close".parse().unwrap())
        );
    }

    #[tokio::test]
    async fn not_found_charged_more_when_postgres_asked() {
        let unknown = get(|| async { ApiError::from(Code::OrderNotFound) });
        let limits = LimitsConfig { rate_limit_client_burst: 4, ..two_tokens() };
        let time = TimeLimits { request: DAY, body: DAY, long: DAY };
        const DAY: Duration = Duration::from_secs(86_400);
        let limits = Arc::new(Limits::new(&limits));
        let pipeline = Pipeline::new(time, limits, Listener::All, 0, CancellationToken::new());
        let app = pipeline.around(RequestClass::Public, Router::new().route("/api/v1/orders/{orderId}", unknown));
        assert_eq!(status(&app, "198.51.100.7", "/api/v1/orders/1").await, 404);
        assert_eq!(status(&app, "198.51.100.7", "/api/v1/orders/1").await, 429);
    }
}
