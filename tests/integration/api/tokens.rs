//! `AUTH=jwt`: a token acts only for its own user, on every route. (`src/jwt` tests the tokens themselves.)

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use firstcome::config::{Auth, AuthConfig, Secret};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::openapi::Document,
    support::{
        api_kit::in_contract,
        harness::{Options, Reply, TestApp, read},
    },
};

const SECRET: &str = "a secret of more than thirty-two bytes";

/// A token with these claims, signed by HS256.
pub fn token_of(secret: &str, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(&json!({"alg": "HS256", "typ": "JWT"})), part(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, message.as_bytes())))
}

/// A token of the user that expires after an hour of the test's clock.
fn token(test: &TestApp, user: i64) -> String {
    token_of(SECRET, &json!({"sub": user.to_string(), "exp": test.clock.now().0 / 1000 + 3600}))
}

async fn shop(options: Options) -> TestApp {
    let auth = AuthConfig { auth: Auth::Jwt, auth_jwt_secret: Some(Secret::new(SECRET)), ..AuthConfig::default() };
    TestApp::with(Options { auth, ..options }).await
}

/// Sends a request with this token.
async fn send(test: &TestApp, method: &Method, path: &str, body: Option<&Value>, token: Option<&str>) -> Reply {
    let mut request = test.client.request(method.clone(), format!("{}{path}", test.base));
    if let Some(body) = body {
        request = request.json(body);
    }
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    read(request).await
}

/// A request to one operation of the API, about a user.
struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
    /// Whether the request has the user's id, rather than only an order's.
    names_user: bool,
}

/// A request for each operation of the document under `/api/`, about `user` and its order `order`, and whether the
/// operation requires a user's token.
fn operations(document: &Value, user: i64, order: i64) -> Vec<(Call, bool)> {
    let mut all = Vec::new();
    for (template, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if !template.starts_with("/api/") {
                continue;
            }
            let mut path = template.replace("{orderId}", &order.to_string()).replace("{productId}", "1");
            let mut names_user = template.contains("{userId}");
            path = path.replace("{userId}", &user.to_string());
            assert!(!path.contains('{'), "{template} has a parameter that this test does not know");
            let parameters = operation["parameters"].as_array();
            if parameters
                .into_iter()
                .flatten()
                .any(|parameter| parameter["name"] == "userId" && parameter["in"] == "query")
            {
                path = format!("{path}?userId={user}");
                names_user = true;
            }
            let content = &operation["requestBody"]["content"]["application/json"];
            let mut body = content.get("example").cloned();
            if let Some(body) = &mut body {
                if body.get("userId").is_some() {
                    body["userId"] = user.into();
                    names_user = true;
                }
                if body.get("orderId").is_some() {
                    body["orderId"] = order.into();
                }
            }
            let requires_token = operation["security"].to_string().contains("userToken");
            let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
            all.push((Call { method, path, body, names_user }, requires_token));
        }
    }
    all
}

/// Every operation that names a user requires the token of this user.
#[tokio::test]
async fn user_routes_refuse_other_users_tokens() {
    for partitions in [1, 3] {
        let test = shop(Options { partitions, ..Options::default() }).await;
        let (me, other) = (test.user(100_000).await, test.user(100_000).await);
        let product = test.product(1_000, 100).await;
        let (mine, theirs) = (token(&test, me), token(&test, other));
        let placed = json!({"userId": other, "orderProducts": [{"productId": product, "quantity": 1}]});
        let placed = send(&test, &Method::POST, "/api/v1/orders", Some(&placed), Some(&theirs)).await.ok();
        let order = placed["orderId"].as_i64().unwrap();
        let document = Document::new(test.get("/v3/api-docs").await.ok());

        let operations = operations(&document.0, other, order);
        assert!(operations.len() >= 13 && operations.iter().filter(|(_, required)| *required).count() >= 9);
        let before = test.snapshot().await;
        for (Call { method, path, body, names_user }, requires_token) in &operations {
            let named = format!("{method} {path}");
            let ask = |token| send(&test, method, path, body.as_ref(), token);
            let (anonymous, foreign) = (ask(None).await, ask(Some(&mine)).await);
            for reply in [&anonymous, &foreign] {
                document.check_reply(method.as_str(), path, reply);
                in_contract(path, reply);
            }
            assert!(*requires_token || !*names_user, "{named} names a user and requires no token");
            if !*requires_token {
                assert!(anonymous.status.is_success() || anonymous.status == 404, "{named}: {}", anonymous.text);
                continue;
            }
            anonymous.refused(401, "INVALID_TOKEN");
            assert_eq!(anonymous.headers["www-authenticate"], "Bearer error=\"invalid_token\"", "{named}");
            if *names_user {
                foreign.refused(403, "FORBIDDEN");
            } else {
                assert_eq!(foreign.status, 404, "{named}: {}", foreign.text);
            }
        }
        assert_eq!(test.snapshot().await, before, "a refused request has an effect");
        // The owner's token is accepted; the operation itself may refuse the request.
        for (Call { method, path, body, .. }, requires_token) in &operations {
            if *requires_token {
                let reply = send(&test, method, path, body.as_ref(), Some(&theirs)).await;
                assert!(![401, 403].contains(&reply.status.as_u16()), "{method} {path}: {}", reply.text);
                document.check_reply(method.as_str(), path, &reply);
            }
        }
        test.finish().await;
    }
}

#[tokio::test]
async fn token_errors_reported_in_order() {
    let test = shop(Options::default()).await;
    let (me, other) = (test.user(1_000).await, test.user(1_000).await);
    let (mine, unknown_users) = (token(&test, me), token(&test, 9_999));
    let put = async |user: i64, body: Value, token: Option<&str>| {
        send(&test, &Method::PUT, &format!("/api/v1/balances/{user}"), Some(&body), token).await
    };
    // The token is checked first, then the body, then whether the token's user is the request's user.
    put(me, json!({"amount": 0}), None).await.refused(401, "INVALID_TOKEN");
    put(other, json!({"amount": 0}), Some(&mine)).await.refused(400, "INVALID_AMOUNT");
    put(other, json!({"amount": 1}), Some(&mine)).await.refused(403, "FORBIDDEN");
    put(9_999, json!({"amount": 1}), Some(&unknown_users)).await.refused(404, "USER_NOT_FOUND");
    put(9_999, json!({"amount": 1}), Some(&mine)).await.refused(403, "FORBIDDEN");
    assert_eq!(put(me, json!({"amount": 1}), Some(&mine)).await.ok()["balance"], 1_001);
    let get = async |path: &str, token: Option<&str>| send(&test, &Method::GET, path, None, token).await;
    get(&format!("/api/v1/balances/{other}/history?limit=0"), Some(&mine)).await.refused(403, "FORBIDDEN");
    get(&format!("/api/v1/balances/{me}/history?limit=0"), Some(&mine)).await.refused(400, "INVALID_REQUEST");
    get("/api/v1/balances/x", Some(&mine)).await.refused(404, "USER_NOT_FOUND");
    get("/api/v1/balances/x", None).await.refused(401, "INVALID_TOKEN");
    // Routes without a user and unknown paths require no token. Operators' routes take operators' tokens only.
    for path in
        ["/api/v1/products", "/api/v1/products/popular", "/api/v1/campaigns", "/healthz", "/readyz", "/v3/api-docs"]
    {
        get(path, None).await.ok();
        get(path, Some("nonsense")).await.ok();
    }
    get("/api/v1/nothing", None).await.refused(404, "NOT_FOUND");
    get("/admin/v1/projection", Some(&mine)).await.refused(401, "UNAUTHORIZED");
    get(&format!("/api/v1/balances/{me}"), Some(crate::support::harness::ADMIN)).await.refused(401, "INVALID_TOKEN");

    // Every bad token gets the same message.
    let path = format!("/api/v1/balances/{me}");
    let claims = |exp: i64| json!({"sub": me.to_string(), "exp": exp});
    let now = test.clock.now().0 / 1000;
    let mut messages = Vec::new();
    for bad in [
        String::new(),
        "nonsense".to_owned(),
        "a.b.c".to_owned(),
        token_of("another secret of more than 32 bytes.", &claims(now + 60)),
        token_of(SECRET, &claims(now - 60)),
        token_of(SECRET, &json!({"sub": me.to_string()})),
        format!("{mine}x"),
        mine[..mine.len() - 2].to_owned(),
        "x".repeat(12_000),
    ] {
        let reply = get(&path, Some(&bad)).await;
        reply.refused(401, "INVALID_TOKEN");
        messages.push(reply.text);
    }
    messages.dedup();
    assert_eq!(messages.len(), 1);
    let twice = test.client.get(format!("{}{path}", test.base)).bearer_auth(&mine).bearer_auth(&mine);
    read(twice).await.refused(401, "INVALID_TOKEN");
    get(&path, Some(&mine)).await.ok();
    // The token expires.
    test.clock.advance(3_600_000 + 30_000);
    get(&path, Some(&mine)).await.refused(401, "INVALID_TOKEN");
    get(&path, Some(&token(&test, me))).await.ok();
    test.finish().await;
}

/// Another user's order is not found, and another user's idempotency key replays nothing.
#[tokio::test]
async fn orders_and_idempotency_keys_hidden_from_other_users() {
    let test = shop(Options::default()).await;
    let (me, other) = (test.user(10_000).await, test.user(10_000).await);
    let (mine, theirs) = (token(&test, me), token(&test, other));
    let product = test.product(1_000, 10).await;
    let order = json!({"userId": me, "orderProducts": [{"productId": product, "quantity": 1}]});
    let place = async |token: &str| {
        let request = test.client.post(format!("{}/api/v1/orders", test.base)).json(&order);
        read(request.header("Idempotency-Key", "one").bearer_auth(token)).await
    };
    let placed = place(&mine).await.ok();
    place(&theirs).await.refused(403, "FORBIDDEN");
    let again = place(&mine).await;
    assert!(again.replayed() && again.json() == placed);
    let path = format!("/api/v1/orders/{}", placed["orderId"]);
    let get = async |path: &str, token: &str| send(&test, &Method::GET, path, None, Some(token)).await;
    assert_eq!(get(&path, &mine).await.ok()["userId"], me);
    get(&path, &theirs).await.refused(404, "ORDER_NOT_FOUND");
    get(&format!("{path}?userId={other}"), &theirs).await.refused(404, "ORDER_NOT_FOUND");
    get(&format!("{path}?userId={me}"), &theirs).await.refused(403, "FORBIDDEN");
    let cancel = json!({"userId": other});
    let cancelled = send(&test, &Method::POST, &format!("{path}/cancel"), Some(&cancel), Some(&theirs)).await;
    cancelled.refused(404, "ORDER_NOT_FOUND");
    test.finish().await;
}

/// Without the issuer's keys the service can't judge a token, so it replies 503, not 401.
#[tokio::test]
async fn request_unavailable_when_issuer_unreachable() {
    let auth = AuthConfig {
        auth: Auth::Jwt,
        auth_jwks_url: Some(Secret::new("http://127.0.0.1:1/jwks")),
        ..AuthConfig::default()
    };
    let test = TestApp::with(Options { auth, ..Options::default() }).await;
    let user = test.user(0).await;
    let (path, token) = (format!("/api/v1/balances/{user}"), token(&test, user));
    let reply = send(&test, &Method::GET, &path, None, Some(&token)).await;
    reply.refused(503, "SERVICE_UNAVAILABLE");
    assert!(reply.headers.contains_key("retry-after"));
    send(&test, &Method::GET, &path, None, Some("nonsense")).await.refused(401, "INVALID_TOKEN");
    send(&test, &Method::GET, "/api/v1/products", None, None).await.ok();
    test.finish().await;
}

fn creating(partitions: u16) -> Options {
    let auth = AuthConfig {
        auth: Auth::Jwt,
        auth_jwt_secret: Some(Secret::new(SECRET)),
        auth_create_users: true,
        ..AuthConfig::default()
    };
    Options { partitions, auth, ..Options::default() }
}

/// A token with a name.
fn named_token(test: &TestApp, user: i64, name: &Value) -> String {
    let expires = test.clock.now().0 / 1000 + 3600;
    token_of(SECRET, &json!({"sub": user.to_string(), "name": name, "exp": expires}))
}

#[tokio::test]
async fn token_of_unknown_user_creates_user_once() {
    for partitions in [1, 3] {
        let test = TestApp::with(creating(partitions)).await;
        let token = named_token(&test, 70_001, &json!("이다은"));
        let balance = || send(&test, &Method::GET, "/api/v1/balances/70001", None, Some(&token));
        let charge = json!({"amount": 5});
        let charges = (0..8).map(|_| send(&test, &Method::PUT, "/api/v1/balances/70001", Some(&charge), Some(&token)));
        for (shown, charged) in std::iter::zip(
            futures_util::future::join_all((0..8).map(|_| balance())).await,
            futures_util::future::join_all(charges).await,
        ) {
            assert_eq!(shown.ok()["userName"], "이다은");
            charged.ok();
        }
        assert_eq!(balance().await.ok()["balance"], 40);
        // New ids are above it.
        assert_eq!(test.user(0).await, 70_002);
        // A name that no user can have, and none.
        for (user, name) in [(80_001, json!("x".repeat(101))), (80_002, json!(7)), (80_003, json!(" "))] {
            let token = named_token(&test, user, &name);
            let path = format!("/api/v1/balances/{user}");
            let shown = send(&test, &Method::GET, &path, None, Some(&token)).await.ok();
            assert_eq!(shown["userName"], format!("user-{user}"));
        }
        // A user that exists keeps its name.
        let own = test.user(3).await;
        let renaming = named_token(&test, own, &json!("x"));
        let path = format!("/api/v1/balances/{own}");
        assert_ne!(send(&test, &Method::GET, &path, None, Some(&renaming)).await.ok()["userName"], "x");
        test.finish().await;
    }
}

#[tokio::test]
async fn token_creates_no_user_when_invalid_forgotten_or_too_high() {
    let test = TestApp::with(creating(3)).await;
    let before = test.snapshot().await;
    let get = |user: i64, token: &str| {
        let (path, token) = (format!("/api/v1/balances/{user}"), token.to_owned());
        let test = &test;
        async move { send(test, &Method::GET, &path, None, Some(&token)).await }
    };
    let forged = token_of("another secret of thirty-two bytes", &json!({"sub": "5", "exp": 4_102_444_800_i64}));
    get(5, &forged).await.refused(401, "INVALID_TOKEN");
    let highest = i64::pow(2, 53) - 1;
    get(highest, &token(&test, highest)).await.refused(404, "USER_NOT_FOUND");
    let open = test.client.get(format!("{}/api/v1/products", test.base)).bearer_auth(token(&test, 6));
    read(open).await.ok();
    assert_eq!(test.snapshot().await, before);

    get(70_001, &token(&test, 70_001)).await.ok();
    assert_eq!(test.send(Method::DELETE, "/admin/v1/users/70001", None, None).await.status, 204);
    let before = test.snapshot().await;
    get(70_001, &token(&test, 70_001)).await.refused(404, "USER_NOT_FOUND");
    assert_eq!(test.snapshot().await, before);
    test.finish().await;
}
