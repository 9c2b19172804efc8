//! The role that each of the operators' routes needs.
//!
//! [`ROLES`] is the one table. The router puts [`enforce`] around the operators' routes. A route without a row is refused to every
//! operator; a test compares the table with the OpenAPI document and with the routes.

use axum::{
    extract::{MatchedPath, Request},
    http::{Method, StatusCode, header::ALLOW},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    auth::operator::Operator,
    error::{ApiError, Code},
};
use crate::model::Role;

/// No operator is needed.
const OPEN: Option<Role> = None;
const VIEWER: Option<Role> = Some(Role::Viewer);
const OPERATOR: Option<Role> = Some(Role::Operator);
const ADMIN: Option<Role> = Some(Role::Admin);

/// Every route of `/admin` and `/ops`: the lowest role that it needs, its method and its path. A GET includes HEAD.
#[rustfmt::skip]
pub const ROLES: &[(Option<Role>, &str, &str)] = &[
    // The page, its files, signing in and out: they tell nothing.
    (OPEN, "GET", "/ops"),
    (OPEN, "GET", "/ops/"),
    (OPEN, "GET", "/ops/assets/{file}"),
    (OPEN, "GET", "/ops/oidc"),
    (OPEN, "GET", "/ops/oidc/callback"),
    (OPEN, "GET", "/ops/session"),
    (OPEN, "POST", "/ops/session"),
    (OPEN, "DELETE", "/ops/session"),
    (OPEN, "GET", "/ops/sign-in"),
    // Reads.
    (VIEWER, "GET", "/ops/feed"),
    (VIEWER, "GET", "/admin/v1/audit"),
    (VIEWER, "GET", "/admin/v1/audit/events"),
    (VIEWER, "GET", "/admin/v1/audit/progress"),
    (VIEWER, "GET", "/admin/v1/coupons/{couponId}"),
    (VIEWER, "GET", "/admin/v1/dead-letters"),
    (VIEWER, "GET", "/admin/v1/events"),
    (VIEWER, "GET", "/admin/v1/operator-log"),
    (VIEWER, "GET", "/admin/v1/orders"),
    (VIEWER, "GET", "/admin/v1/orders/{orderId}/timeline"),
    (VIEWER, "GET", "/admin/v1/payments/stuck"),
    (VIEWER, "GET", "/admin/v1/products/{productId}"),
    (VIEWER, "GET", "/admin/v1/products/{productId}/buyers"),
    (VIEWER, "GET", "/admin/v1/projection"),
    (VIEWER, "GET", "/admin/v1/recoveries"),
    (VIEWER, "GET", "/admin/v1/requests"),
    (VIEWER, "GET", "/admin/v1/sales"),
    (VIEWER, "GET", "/admin/v1/users/{userId}"),
    (VIEWER, "GET", "/admin/v1/users/{userId}/timeline"),
    (VIEWER, "GET", "/admin/v1/webhooks"),
    (VIEWER, "GET", "/admin/v1/webhooks/{webhookId}"),
    (VIEWER, "GET", "/admin/v1/webhooks/{webhookId}/deliveries"),
    (VIEWER, "GET", "/admin/v1/withheld"),
    // Sales.
    (OPERATOR, "POST", "/admin/v1/coupons"),
    (OPERATOR, "PUT", "/admin/v1/coupons/{couponId}"),
    (OPERATOR, "PATCH", "/admin/v1/coupons/{couponId}"),
    (OPERATOR, "POST", "/admin/v1/products"),
    (OPERATOR, "PUT", "/admin/v1/products/{productId}"),
    (OPERATOR, "PATCH", "/admin/v1/products/{productId}"),
    // Money.
    (ADMIN, "POST", "/admin/v1/orders/{orderId}/payment-outcome"),
    (ADMIN, "POST", "/admin/v1/orders/{orderId}/refund"),
    // Users, with their balances.
    (ADMIN, "POST", "/admin/v1/users"),
    (ADMIN, "POST", "/admin/v1/users/bulk"),
    (ADMIN, "PUT", "/admin/v1/users/{userId}"),
    (ADMIN, "DELETE", "/admin/v1/users/{userId}"),
    // Webhooks: they tell other systems everything.
    (ADMIN, "POST", "/admin/v1/webhooks"),
    (ADMIN, "PATCH", "/admin/v1/webhooks/{webhookId}"),
    (ADMIN, "DELETE", "/admin/v1/webhooks/{webhookId}"),
    (ADMIN, "POST", "/admin/v1/webhooks/{webhookId}/resend"),
    (ADMIN, "POST", "/admin/v1/webhooks/{webhookId}/rotate"),
    // Recovery. What a loss withheld may have been sold.
    (ADMIN, "POST", "/admin/v1/coupons/{couponId}/release"),
    (ADMIN, "POST", "/admin/v1/dead-letters/retry"),
    (ADMIN, "POST", "/admin/v1/products/{productId}/release"),
    (ADMIN, "POST", "/admin/v1/withheld/release"),
];

/// The role that an operation needs; `None` if the table lacks it.
pub fn needed(method: &str, route: &str) -> Option<Option<Role>> {
    let method = if method == "HEAD" { "GET" } else { method };
    ROLES.iter().find(|row| (row.1, row.2) == (method, route)).map(|row| row.0)
}

/// The layer. Stands inside the layer that authenticates operators.
pub async fn enforce(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(needed) = needed(request.method().as_str(), route) else {
        return unlisted(request.method(), route);
    };
    let operator = request.extensions().get::<Operator>();
    match needed {
        Some(_) if operator.is_none() => ApiError::from(Code::Unauthorized).into_response(),
        Some(role) if operator.is_some_and(|operator| !operator.role().includes(role)) => {
            ApiError::because(Code::InsufficientRole, &format!("needs the role {role}")).into_response()
        }
        _ => next.run(request).await,
    }
}

/// The reply to an operation without a row: its path has no such method, as far as the table knows; or no row at all.
fn unlisted(method: &Method, route: &str) -> Response {
    let mut allowed: Vec<&str> = ROLES.iter().filter(|row| row.2 == route).map(|row| row.1).collect();
    if allowed.is_empty() {
        tracing::error!(%method, route, "the table of roles lacks a route: it is refused");
        return ApiError::from(Code::InsufficientRole).into_response();
    }
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, allowed.join(","))]).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware::from_fn, routing::any};
    use tower::ServiceExt;

    use super::*;

    /// The status of a request by an operator of this role to a router that would answer it with 200.
    async fn status(method: &str, path: &str, role: Option<Role>) -> u16 {
        let routes = ["/ops", "/ops/feed", "/admin/v1/products", "/admin/v1/users", "/admin/v1/new"];
        let router = routes.iter().fold(Router::new(), |router, route| router.route(route, any(|| async {})));
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        role.map(|role| request.extensions_mut().insert(Operator::named("kim", role)));
        router.layer(from_fn(enforce)).oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn route_admits_its_role_and_higher_ones() {
        let all = [None, Some(Role::Viewer), Some(Role::Operator), Some(Role::Admin)];
        for (method, path, expected) in [
            ("GET", "/ops", [200; 4]),
            ("HEAD", "/ops/feed", [401, 200, 200, 200]),
            ("GET", "/ops/feed", [401, 200, 200, 200]),
            ("POST", "/admin/v1/products", [401, 403, 200, 200]),
            ("POST", "/admin/v1/users", [401, 403, 403, 200]),
            // Without a row.
            ("POST", "/admin/v1/new", [403; 4]),
            ("DELETE", "/admin/v1/products", [405; 4]),
        ] {
            for (role, expected) in all.into_iter().zip(expected) {
                assert_eq!(status(method, path, role).await, expected, "{method} {path} {role:?}");
            }
        }
    }

    #[test]
    fn table_has_each_route_once() {
        let mut routes: Vec<_> = ROLES.iter().map(|row| (row.2, row.1)).collect();
        routes.sort_unstable();
        routes.dedup();
        assert_eq!(routes.len(), ROLES.len());
        for (role, method, route) in ROLES {
            assert!(role.is_some() || route.starts_with("/ops"), "{method} {route} is open");
            assert!(*role != VIEWER || *method == "GET", "{method} {route} changes something");
        }
    }
}
