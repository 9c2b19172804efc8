//! Operators' sessions: sign-in, sign-out, and the requests that a cookie admits.

use std::sync::Arc;

use firstcome::{
    config::{LimitsConfig, OperatorsConfig},
    http::{
        auth::{operator::Operators, session::Sessions},
        limits::Limits,
    },
};
use reqwest::{Method, header::COOKIE};
use serde_json::{Value, json};

use super::{KIM, options_with_kim};
use crate::support::{
    api_kit::in_contract,
    harness::{ADMIN, Options, Reply, TestApp, read},
};

async fn sign_in(test: &TestApp, token: &str) -> Reply {
    let reply = test.post("/ops/session", json!({"token": token})).await;
    if !reply.status.is_success() {
        in_contract("/ops/session", &reply);
    }
    reply
}

/// The cookie of a sign-in, as the next request sends it.
fn cookie(reply: &Reply) -> String {
    assert_eq!((reply.status.as_u16(), reply.text.as_str()), (204, ""));
    assert_eq!(reply.headers["cache-control"], "no-store");
    let set = reply.headers["set-cookie"].to_str().unwrap();
    set.split(';').next().unwrap().to_owned()
}

/// Sends a request with a cookie and without a token.
async fn send_with_cookie(
    test: &TestApp,
    method: Method,
    path: &str,
    cookie: &str,
    header: bool,
    body: Option<Value>,
) -> Reply {
    let mut request = test.client.request(method, format!("{}{path}", test.base)).header(COOKIE, cookie);
    if header {
        request = request.header("x-firstcome-ops", "1");
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    read(request).await
}

async fn session(test: &TestApp, cookie: &str) -> Reply {
    send_with_cookie(test, Method::GET, "/ops/session", cookie, false, None).await
}

#[tokio::test]
async fn session_admits_requests_until_sign_out() {
    let test = TestApp::with(options_with_kim()).await;
    let signed_in = sign_in(&test, KIM).await;
    let set = signed_in.headers["set-cookie"].to_str().unwrap();
    assert!(set.starts_with("firstcome_ops=kim."), "{set}");
    assert!(set.ends_with("; HttpOnly; SameSite=Strict; Path=/ops; Max-Age=28800"), "{set}");
    assert!(!set.contains(KIM));
    // The browser sends the cookie to the operators' paths only, not to other pages of this origin such as the
    // documentation.
    let paths =
        signed_in.headers.get_all("set-cookie").iter().map(|set| {
            set.to_str().unwrap().split("; ").find_map(|part| part.strip_prefix("Path=")).unwrap().to_owned()
        });
    assert_eq!(paths.collect::<Vec<_>>(), ["/ops", "/admin"]);
    let cookie = cookie(&signed_in);
    let shown = session(&test, &cookie).await.ok();
    assert_eq!(shown, json!({"operator": "kim", "role": "admin", "expiresAt": test.clock.now().0 + 28_800_000}));

    // A form on another site sends the cookie but no custom header, so the cookie alone is refused.
    let new = json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP"});
    let before = test.snapshot().await;
    for (method, path) in [(Method::POST, "/admin/v1/products"), (Method::GET, "/admin/v1/orders")] {
        let body = (method == Method::POST).then(|| new.clone());
        send_with_cookie(&test, method, path, &cookie, false, body).await.refused(401, "UNAUTHORIZED");
    }
    assert_eq!(test.snapshot().await, before);
    send_with_cookie(&test, Method::POST, "/admin/v1/products", &cookie, true, Some(new)).await.created();
    send_with_cookie(&test, Method::GET, "/admin/v1/projection", &cookie, true, None).await.ok();
    send_with_cookie(&test, Method::GET, "/admin/v1/nothing", &cookie, true, None).await.refused(404, "NOT_FOUND");

    let signed_out = send_with_cookie(&test, Method::DELETE, "/ops/session", &cookie, false, None).await;
    assert_eq!(signed_out.status, 204);
    let cleared = "firstcome_ops=; HttpOnly; SameSite=Strict; Path=/ops; Max-Age=0";
    assert_eq!(signed_out.headers["set-cookie"], cleared);
    session(&test, &cookie).await.refused(401, "UNAUTHORIZED");
    send_with_cookie(&test, Method::GET, "/admin/v1/projection", &cookie, true, None)
        .await
        .refused(401, "UNAUTHORIZED");
    // A second sign-out, and one without a cookie.
    for cookie in [cookie.as_str(), "firstcome_ops="] {
        let again = send_with_cookie(&test, Method::DELETE, "/ops/session", cookie, false, None).await;
        assert_eq!((again.status.as_u16(), again.headers["set-cookie"].to_str().unwrap()), (204, cleared));
    }
    test.finish().await;
}

#[tokio::test]
async fn session_refused_when_cookie_invalid() {
    let test = TestApp::with(options_with_kim()).await;
    for wrong in ["wrong", "kim", &KIM[1..], &format!("kim:{KIM}")] {
        let refused = sign_in(&test, wrong).await;
        refused.refused(401, "UNAUTHORIZED");
        assert!(!refused.headers.contains_key("set-cookie"));
    }
    for wrong in
        [json!({}), json!({"token": ""}), json!({"token": 1}), json!([KIM]), json!({"token": "x".repeat(1_001)})]
    {
        test.post("/ops/session", wrong).await.refused(400, "INVALID_REQUEST");
    }
    // An HTML form can send this content type.
    let form = test.client.post(format!("{}/ops/session", test.base));
    let form = form.header("content-type", "text/plain").body(json!({"token": KIM}).to_string());
    read(form).await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    // A token is not a cookie, and a token in the URL is ignored.
    for path in ["/ops/session", "/ops/session?token=a-token-of-kim-0123"] {
        session_at(&test, path).await.refused(401, "UNAUTHORIZED");
    }
    for cookie in ["firstcome_ops", "firstcome_ops=", &format!("firstcome_ops={KIM}"), "other=1"] {
        session(&test, cookie).await.refused(401, "UNAUTHORIZED");
    }
    let put = test.put("/ops/session", json!({"token": KIM})).await;
    put.refused(405, "METHOD_NOT_ALLOWED");
    test.finish().await;
}

async fn session_at(test: &TestApp, path: &str) -> Reply {
    read(test.client.get(format!("{}{path}", test.base)).bearer_auth(KIM)).await
}

#[tokio::test]
async fn sign_in_slowed_after_failures() {
    let mut options = options_with_kim();
    options.limits = LimitsConfig { rate_limit_guesses_per_minute: 20, rate_limit_keys: 10, ..LimitsConfig::off() };
    let test = TestApp::with(options).await;
    let cookie = cookie(&sign_in(&test, KIM).await);
    let mut statuses = Vec::new();
    // On a slow machine a few more attempts are admitted.
    while statuses.last() != Some(&429) {
        let refused = sign_in(&test, "wrong").await;
        statuses.push(refused.status.as_u16());
        assert!(statuses.len() < 100_000);
    }
    assert!(statuses.len() > 20 && statuses[..statuses.len() - 1].iter().all(|status| *status == 401));
    // The limit is per address, and open sessions stay open.
    let elsewhere =
        reqwest::Client::builder().no_proxy().local_address("127.0.0.2".parse::<std::net::IpAddr>().unwrap());
    let elsewhere = elsewhere.build().unwrap();
    let signing_in = elsewhere.post(format!("{}/ops/session", test.base)).json(&json!({"token": ADMIN}));
    assert_eq!(read(signing_in).await.status, 204);
    read(elsewhere.get(format!("{}/admin/v1/orders", test.base)).bearer_auth(ADMIN)).await.ok();
    send_with_cookie(&test, Method::GET, "/admin/v1/orders", &cookie, true, None).await.ok();
    test.finish().await;
}

#[tokio::test]
async fn session_valid_on_every_instance_without_database() {
    let test = TestApp::with(options_with_kim()).await;
    let cookie = cookie(&sign_in(&test, KIM).await);
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert(COOKIE, cookie.parse().unwrap());
    let instance = |operators: &OperatorsConfig, secure| {
        let limits = Arc::new(Limits::new(&LimitsConfig::off()));
        Arc::new(Sessions::new(Operators::new(operators).unwrap(), test.clock.clone(), secure, limits))
    };
    let other = instance(&test.options.operators, true);
    assert_eq!(other.session(&headers).unwrap().operator.name(), "kim");
    let without_kim = instance(&OperatorsConfig::admin(ADMIN), false);
    assert!(without_kim.session(&headers).is_none());

    // A sign-in uses no store.
    test.db.clone().close().await.unwrap();
    let another = self::cookie(&sign_in(&test, ADMIN).await);
    assert_ne!(another, cookie);
    session(&test, &cookie).await.ok();
    assert_eq!(session(&test, &another).await.ok()["operator"], "admin");
    test.finish_unchecked().await;
}

#[tokio::test]
async fn sign_in_accepted_while_writes_shed() {
    let mut options = options_with_kim();
    options.durability.max_backlog = 1;
    let test = TestApp::with(options).await;
    // Without a projector the backlog stays.
    test.user(0).await;
    test.post("/admin/v1/users", json!({"userName": "x"})).await.refused(503, "SERVICE_UNAVAILABLE");
    session(&test, &cookie(&sign_in(&test, KIM).await)).await.ok();
    test.finish().await;
}

#[tokio::test]
async fn session_cookie_secure_when_behind_tls() {
    let mut options = Options::default();
    options.operators.ops_cookie_secure = true;
    let test = TestApp::with(options).await;
    let signed_in = sign_in(&test, ADMIN).await;
    let set = signed_in.headers["set-cookie"].to_str().unwrap();
    assert!(set.ends_with("; Path=/ops; Max-Age=28800; Secure"), "{set}");
    let signed_out = send_with_cookie(&test, Method::DELETE, "/ops/session", &cookie(&signed_in), false, None).await;
    assert!(signed_out.headers["set-cookie"].to_str().unwrap().ends_with("; Max-Age=0; Secure"));
    test.finish().await;
}

#[tokio::test]
async fn session_refused_when_expired() {
    let test = TestApp::start().await;
    let cookie = cookie(&sign_in(&test, ADMIN).await);
    test.clock.advance(28_800_000 - 1);
    session(&test, &cookie).await.ok();
    test.clock.advance(1);
    session(&test, &cookie).await.refused(401, "UNAUTHORIZED");
    test.finish().await;
}
