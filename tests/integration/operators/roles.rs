//! Roles of operators: the table against the document, the routes of the sources and the running service.

use std::{collections::BTreeSet, fs};

use firstcome::{
    config::{OperatorsConfig, Secret},
    http::roles::ROLES,
    model::Role,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::account_sign_in;
use crate::support::{
    api_kit::{document, get, in_contract},
    fake_issuer::FakeIssuer,
    harness::{ADMIN, Options, Reply, TestApp, read},
    repository::files_below,
};

const VIEWER: &str = "a-token-of-a-viewer";
const OPERATOR: &str = "a-token-of-an-operator";

/// Options of a service with an operator of each role.
fn options() -> Options {
    let admin_tokens = Some(Secret::new(format!("lee:viewer:{VIEWER},kim:operator:{OPERATOR}")));
    Options { operators: OperatorsConfig { admin_tokens, ..OperatorsConfig::admin(ADMIN) }, ..Options::default() }
}

fn token_of(role: Role) -> &'static str {
    match role {
        Role::Viewer => VIEWER,
        Role::Operator => OPERATOR,
        Role::Admin => ADMIN,
    }
}

async fn send(test: &TestApp, method: &str, path: &str, body: Option<&Value>, token: &str) -> Reply {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = test.client.request(method, format!("{}{path}", test.base)).bearer_auth(token);
    read(match body {
        Some(body) => request.json(body),
        None => request,
    })
    .await
}

/// The operators' routes of the table, by method and path.
fn rows() -> impl Iterator<Item = (Role, &'static str, &'static str)> {
    ROLES.iter().filter_map(|(role, method, route)| Some(((*role)?, *method, *route)))
}

#[tokio::test]
async fn table_of_roles_matches_document_and_router() {
    // With everything that has routes.
    let issuer = FakeIssuer::start().await;
    let test = TestApp::with(account_sign_in::options(&issuer)).await;
    let paths = document(&test).await.0["paths"].as_object().unwrap().clone();
    let mut documented = BTreeSet::new();
    for (path, item) in paths.iter().filter(|(path, _)| path.starts_with("/admin")) {
        documented.extend(item.as_object().unwrap().keys().map(|method| (method.to_ascii_uppercase(), path.clone())));
    }
    let row = |(_, method, route): (_, &str, &str)| (method.to_owned(), route.to_owned());
    let listed: BTreeSet<_> = rows().map(row).filter(|(_, route)| route.starts_with("/admin")).collect();
    let missing = |these: &BTreeSet<_>, those: &BTreeSet<_>| these.difference(those).cloned().collect::<Vec<_>>();
    assert_eq!(missing(&documented, &listed), [], "operations without a role: give them a row in src/http/roles.rs");
    assert_eq!(missing(&listed, &documented), [], "roles of operations that do not exist");

    // Routes that the document does not have are in the sources of the two routers.
    let known: BTreeSet<&str> = ROLES.iter().map(|row| row.2).collect();
    let mut routes = 0;
    for file in files_below("src/http/admin", ".rs").into_iter().chain(files_below("src/dashboard", ".rs")) {
        let text = fs::read_to_string(&file).unwrap();
        for route in text.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            routes += 1;
            // Every path that has no route of its own.
            let fallback = ["/admin", "/admin/", "/admin/{*rest}", "/ops/{*rest}"].contains(&route);
            assert!(fallback || known.contains(route), "{}: {route} has no row in src/http/roles.rs", file.display());
        }
    }
    assert!(routes >= 9, "{routes}");

    // Each row is a route: the router has its method.
    for (_, method, route) in ROLES {
        let path = route.replace("{file}", "app.js");
        let body = json!({});
        let reply = send(&test, method, &path, Some(&body).filter(|_| *method != "GET"), ADMIN).await;
        let known = !reply.text.contains("\"NOT_FOUND\"") && reply.status != 405;
        assert!(known, "{method} {route}: {} {}", reply.status, reply.text);
    }
    test.finish().await;
}

/// A role refuses before anything else is read: also a body that is invalid, and a resource that does not exist.
#[tokio::test]
async fn operation_refused_without_role_and_changes_nothing() {
    let test = TestApp::with(options()).await;
    let (user, product) = (test.user(1_000).await, test.product(10, 5).await);
    let coupon = test.campaign("FIXED", 10, 5).await;
    let api = document(&test).await;
    let before = test.snapshot().await;
    let mut refused = 0;
    for (needed, method, route) in rows().filter(|(.., route)| route.starts_with("/admin")) {
        let path = route
            .replace("{userId}", &user.to_string())
            .replace("{productId}", &product.to_string())
            .replace("{couponId}", &coupon.to_string())
            .replace("{orderId}", "1")
            .replace("{webhookId}", "1");
        assert!(!path.contains('{'), "{route} has a parameter that this test does not know");
        let operation = &api.0["paths"][route][method.to_ascii_lowercase()];
        let example = operation["requestBody"]["content"]["application/json"].get("example");
        for role in [Role::Viewer, Role::Operator] {
            if role.includes(needed) {
                continue;
            }
            for body in [example, Some(&json!({"unknown": 1})), None] {
                let reply = send(&test, method, &path, body, token_of(role)).await;
                reply.refused(403, "INSUFFICIENT_ROLE");
                api.check_reply(method, &path, &reply);
                in_contract(&path, &reply);
                let message = reply.json()["message"].as_str().unwrap().to_owned();
                assert!(message.ends_with(&format!("(needs the role {needed})")), "{message}");
                refused += 1;
            }
        }
    }
    assert!(refused > 30, "{refused}");
    assert_eq!(test.snapshot().await, before);

    // What a role may do, it does.
    for (needed, method, route) in rows().filter(|(.., route)| route.starts_with("/admin")) {
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            if role.includes(needed) {
                let path = route.replace(['{', '}'], "");
                let body = json!({});
                let body = Some(&body).filter(|_| method != "GET");
                let status = send(&test, method, &path, body, token_of(role)).await.status.as_u16();
                assert!(status != 401 && status != 403, "{method} {route} as {role}: {status}");
            }
        }
    }
    // Paths that do not exist need no role.
    send(&test, "GET", "/admin/v1/nothing", None, VIEWER).await.refused(404, "NOT_FOUND");
    send(&test, "DELETE", "/admin/v1/orders", None, VIEWER).await.refused(405, "METHOD_NOT_ALLOWED");
    test.finish().await;
}

#[tokio::test]
async fn session_has_role_of_its_operator() {
    let test = TestApp::with(options()).await;
    let signed_in = test.post("/ops/session", json!({"token": VIEWER})).await;
    let cookie = signed_in.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let url = |path: &str| format!("{}{path}", test.base);
    let session = read(test.client.get(url("/ops/session")).header("cookie", &cookie)).await.ok();
    assert_eq!((&session["operator"], &session["role"]), (&json!("lee"), &json!("viewer")));
    let as_lee = |request: reqwest::RequestBuilder| request.header("cookie", &cookie).header("x-firstcome-ops", "1");
    read(as_lee(test.client.get(url("/admin/v1/projection")))).await.ok();
    let product = json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP"});
    let refused = read(as_lee(test.client.post(url("/admin/v1/products"))).json(&product)).await;
    refused.refused(403, "INSUFFICIENT_ROLE");

    // The attempt is on record, with the role.
    let log = get(&test, "/admin/v1/operator-log?operator=lee").await.ok();
    let entries: Vec<_> = log["content"].as_array().unwrap().iter().collect();
    let summary = |entry: &Value| [&entry["role"], &entry["action"], &entry["status"]].map(Value::clone);
    assert_eq!(summary(entries[0]), [json!("viewer"), json!("POST /admin/v1/products"), json!(403)]);
    assert_eq!(summary(entries[1]), [json!("viewer"), json!("POST /ops/session"), json!(204)]);
    test.finish().await;
}

/// An instance of an earlier version writes no role.
#[tokio::test]
async fn operator_log_reads_entries_without_role() {
    let test = TestApp::start().await;
    test.sql(
        "INSERT INTO operator_log (id, operator, action, target, detail, status, request_id, at)
         VALUES (gen_random_uuid(), 'kim', 'POST /admin/v1/users', '', '', 201, '', now())",
    )
    .await;
    let log = get(&test, "/admin/v1/operator-log").await.ok();
    assert_eq!((&log["content"][0]["operator"], &log["content"][0]["role"]), (&json!("kim"), &Value::Null));
    test.finish().await;
}
