//! Cross-origin requests: pages of the configured origins may call the public API from a browser. No page of another origin may
//! call the operators' API.
//!
//! The outermost layer of the public routes, so that a page can also read a refusal and its `Retry-After`.

use std::time::Duration;

use axum::{
    Router,
    extract::Request,
    http::{
        HeaderName, Method,
        header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    routing::Route,
};
use tower::{Layer, ServiceExt, layer::layer_fn, service_fn};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use super::framing;
use crate::{
    config::CorsOrigins,
    http::headers::{IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED, X_REQUEST_ID, X_UNKNOWN_FIELDS},
};

/// The headers that a page may send: those that the API reads; those that a page's tracing adds; and, for browsers that know the
/// wildcard, any other. The API ignores the others, and cookies are never sent along. The wildcard does not include
/// `Authorization`.
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
/// The headers of a reply that a page may read, beside those that any page may.
const EXPOSED: [HeaderName; 5] = [X_REQUEST_ID, RETRY_AFTER, IDEMPOTENT_REPLAYED, X_UNKNOWN_FIELDS, WWW_AUTHENTICATE];

/// How long a browser may keep the answer to a preflight.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The routes, with the permissions of these origins. Without origins the routes stay as they are.
pub fn around(routes: Router, origins: &CorsOrigins) -> Router {
    let layer = match origins {
        CorsOrigins::Own => return routes,
        CorsOrigins::Any => CorsLayer::new().allow_origin(Any),
        CorsOrigins::Listed(origins) => CorsLayer::new().allow_origin(AllowOrigin::list(origins.clone())),
    };
    let layer = layer
        .allow_methods([Method::GET, Method::POST, Method::PUT])
        .allow_headers(ALLOWED)
        .expose_headers(EXPOSED)
        .max_age(MAX_AGE);
    routes.layer(layer_fn(move |route: Route| {
        let permitting = layer.layer(route.clone());
        service_fn(move |request: Request| {
            let (route, permitting) = (route.clone(), permitting.clone());
            async move {
                // A flawed request is refused further in: a preflight must not be answered here before that.
                match framing::flaw(&request) {
                    None => permitting.oneshot(request).await,
                    Some(_) => route.oneshot(request).await,
                }
            }
        })
    }))
}

#[cfg(test)]
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
            .fallback(async || StatusCode::NOT_FOUND);
        let operators = Router::new().route("/admin/{*rest}", any(|| async { StatusCode::UNAUTHORIZED }));
        let request = Request::builder().method(method).uri(path).header(HOST, "shop").header(ORIGIN, origin);
        let request = request.header(ACCESS_CONTROL_REQUEST_METHOD, "PUT").body(Body::empty()).unwrap();
        let response = around(router, &origins.parse().unwrap()).merge(operators).oneshot(request).await.unwrap();
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
