//! What pages of other origins may do from a browser: call the public API, where the configuration says so, and never the
//! operators'.
//!
//! Around everything else, so that a page can also read that it was refused, and when to come back.

use std::time::Duration;

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderName, Method,
        header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use super::framing;
use crate::{
    config::CorsOrigins,
    http::{
        headers::{IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED, X_REQUEST_ID, X_UNKNOWN_FIELDS},
        limits::Traffic,
    },
};

/// What a page may send: what the API reads; what a page's tracing adds to each of its calls; and, for browsers that know the
/// wildcard, whatever else. A header means nothing here that is not one of these, and no cookie is ever sent along. The wildcard
/// does not stand for `Authorization`.
const ALLOWED: [HeaderName; 9] = [
    CONTENT_TYPE,
    AUTHORIZATION,
    IDEMPOTENCY_KEY,
    X_REQUEST_ID,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("sentry-trace"),
    HeaderName::from_static("*"),
];
/// What a page may read of a reply, beside what any page may.
const EXPOSED: [HeaderName; 5] = [X_REQUEST_ID, RETRY_AFTER, IDEMPOTENT_REPLAYED, X_UNKNOWN_FIELDS, WWW_AUTHENTICATE];

/// For which a browser need not ask again.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The router, with what these origins are told. For none it stays as it is.
pub fn around(router: Router, origins: &CorsOrigins) -> Router {
    let layer = match origins {
        CorsOrigins::Own => return router,
        CorsOrigins::Any => CorsLayer::new().allow_origin(Any),
        CorsOrigins::Listed(origins) => CorsLayer::new().allow_origin(AllowOrigin::list(origins.clone())),
    };
    let layer = layer
        .allow_methods([Method::GET, Method::POST, Method::PUT])
        .allow_headers(ALLOWED)
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE);
    let open = layer.layer(router.clone());
    Router::new().fallback_service(service_fn(move |request: Request| {
        let (open, shut) = (open.clone(), router.clone());
        async move {
            match Traffic::of(request.uri().path()) {
                // What is refused is not to be answered here, before anybody has looked at it.
                Traffic::Public if framing::flaw(&request).is_none() => open.oneshot(request).await,
                _ => shut.oneshot(request).await,
            }
        }
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use axum::{
        body::Body,
        http::{HeaderMap, StatusCode, header::*},
        routing::{any, get, put},
    };

    use super::*;

    const SHOP: &str = "https://shop.example";

    async fn send(origins: &str, method: Method, path: &str, origin: &str) -> (StatusCode, HeaderMap) {
        let router = Router::new()
            .route("/api/v1/balances/{userId}", put(|| async { "fine" }))
            .route("/api/v1/refused", get(|| async { StatusCode::TOO_MANY_REQUESTS }))
            .route("/admin/{*rest}", any(|| async { StatusCode::UNAUTHORIZED }));
        let request = Request::builder().method(method).uri(path).header(HOST, "shop").header(ORIGIN, origin);
        let request = request.header(ACCESS_CONTROL_REQUEST_METHOD, "PUT").body(Body::empty()).unwrap();
        let response = around(router, &origins.parse().unwrap()).oneshot(request).await.unwrap();
        (response.status(), response.headers().clone())
    }

    fn allowed(headers: &HeaderMap) -> Option<&str> {
        headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|origin| origin.to_str().unwrap())
    }

    #[tokio::test]
    async fn cors_headers_absent_when_off() {
        let (status, headers) = send("", Method::OPTIONS, "/api/v1/balances/1", SHOP).await;
        assert_eq!((status.as_u16(), allowed(&headers)), (405, None));
        let (status, headers) = send("", Method::PUT, "/api/v1/balances/1", SHOP).await;
        assert_eq!((status.as_u16(), allowed(&headers)), (200, None));
    }

    #[tokio::test]
    async fn cors_allows_listed_origins_only() {
        let listed = "https://shop.example,https://other.example";
        let (status, headers) = send(listed, Method::OPTIONS, "/api/v1/balances/1", SHOP).await;
        assert_eq!((status.as_u16(), allowed(&headers)), (200, Some(SHOP)));
        for (name, wanted) in [
            (ACCESS_CONTROL_ALLOW_METHODS, "GET,POST,PUT"),
            (
                ACCESS_CONTROL_ALLOW_HEADERS,
                "content-type,authorization,idempotency-key,x-request-id,traceparent,tracestate,baggage,sentry-trace,*",
            ),
            (ACCESS_CONTROL_MAX_AGE, "3600"),
        ] {
            assert_eq!(headers[&name], wanted, "{name}");
        }
        for (method, path) in
            [(Method::PUT, "/api/v1/balances/1"), (Method::GET, "/api/v1/refused"), (Method::GET, "/nowhere")]
        {
            let (_, headers) = send(listed, method.clone(), path, SHOP).await;
            assert_eq!(allowed(&headers), Some(SHOP), "{path}");
            let exposed = "x-request-id,retry-after,idempotent-replayed,x-unknown-fields,www-authenticate";
            assert_eq!(headers[ACCESS_CONTROL_EXPOSE_HEADERS], exposed);
            assert!(headers[VARY].to_str().unwrap().contains("origin"), "{path}");
            assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
            for other in ["https://shop.example.evil.example", "http://shop.example", "null"] {
                assert_eq!(allowed(&send(listed, method.clone(), path, other).await.1), None, "{other}");
            }
        }
    }

    #[tokio::test]
    async fn cors_wildcard_excludes_operators_routes() {
        let (_, headers) = send("*", Method::PUT, "/api/v1/balances/1", "https://anybody.example").await;
        assert_eq!(allowed(&headers), Some("*"));
        for origins in ["*", SHOP] {
            for method in [Method::OPTIONS, Method::PUT] {
                let (status, headers) = send(origins, method, "/admin/v1/users", SHOP).await;
                assert_eq!(status, 401);
                assert!(headers.keys().all(|name| !name.as_str().starts_with("access-control")), "{headers:?}");
            }
        }
    }
}
