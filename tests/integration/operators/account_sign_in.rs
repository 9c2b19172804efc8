//! Sign-in with the company's account, against a provider whose ID tokens a test chooses. (`tests/web` signs in at a real one.)

use firstcome::config::{LimitsConfig, OidcConfig, OperatorsConfig, Secret};
use reqwest::{
    Client, Method, Url,
    header::{COOKIE, LOCATION, SET_COOKIE},
};
use serde_json::{Value, json};

use crate::support::{
    api_kit::get,
    fake_issuer::{CLIENT_ID, CLIENT_SECRET, FakeIssuer, Fault, parameters},
    harness::{ADMIN, Options, Reply, TestApp, browser, read},
};

/// Options of a service whose operators have accounts at this provider.
pub fn options(issuer: &FakeIssuer) -> Options {
    let oidc = OidcConfig {
        ops_oidc_issuer: Some(issuer.url.clone()),
        ops_oidc_client_id: Some(CLIENT_ID.to_owned()),
        ops_oidc_client_secret: Some(Secret::new(CLIENT_SECRET)),
        ..OidcConfig::default()
    };
    Options { operators: OperatorsConfig { oidc, ..OperatorsConfig::admin(ADMIN) }, ..Options::default() }
}

/// A browser that follows no redirect by itself.
struct Browser<'a> {
    test: &'a TestApp,
    client: Client,
    /// The cookie of the sign-in.
    cookie: String,
}

impl<'a> Browser<'a> {
    fn new(test: &'a TestApp) -> Self {
        Browser { test, client: browser(), cookie: String::new() }
    }

    async fn go(&self, path: &str) -> Reply {
        read(self.client.get(format!("{}{path}", self.test.base)).header(COOKIE, &self.cookie)).await
    }

    /// Begins a sign-in. Returns the provider's URL.
    async fn begin(&mut self) -> String {
        let reply = self.go("/ops/oidc").await;
        assert_eq!((reply.status.as_u16(), reply.headers["cache-control"].to_str().unwrap()), (303, "no-store"));
        let set = cookies(&reply);
        assert_eq!(set.len(), 1, "{set:?}");
        assert!(set[0].starts_with("firstcome_ops_sign_in="), "{set:?}");
        assert!(set[0].ends_with("; HttpOnly; SameSite=Lax; Path=/ops/oidc; Max-Age=600"), "{set:?}");
        self.cookie = set[0].split(';').next().unwrap().to_owned();
        location(&reply)
    }

    /// Comes back from the provider.
    async fn back(&self, url: &str, code: &str) -> Reply {
        self.back_with(&[("state", &parameters(url)["state"]), ("code", code)]).await
    }

    async fn back_with(&self, parameters: &[(&str, &str)]) -> Reply {
        let url = Url::parse_with_params("http://x/ops/oidc/callback", parameters).unwrap();
        self.go(&format!("{}?{}", url.path(), url.query().unwrap())).await
    }

    /// Signs in with these claims.
    async fn sign_in(&mut self, issuer: &FakeIssuer, claims: Value) -> Reply {
        let url = self.begin().await;
        let code = issuer.code(&url, self.test.clock.now().0, &claims);
        self.back(&url, &code).await
    }
}

fn location(reply: &Reply) -> String {
    reply.headers[LOCATION].to_str().unwrap().to_owned()
}

fn cookies(reply: &Reply) -> Vec<String> {
    reply.headers.get_all(SET_COOKIE).iter().map(|set| set.to_str().unwrap().to_owned()).collect()
}

/// The sign-in is refused for this reason: the browser is at the page, and has no session.
#[track_caller]
fn refused(reply: &Reply, reason: &str) {
    assert_eq!((reply.status.as_u16(), location(reply)), (303, format!("/ops#sign-in-{reason}")));
    let cleared = "firstcome_ops_sign_in=; HttpOnly; SameSite=Lax; Path=/ops/oidc; Max-Age=0";
    assert_eq!(cookies(reply), [cleared], "{reason}");
}

/// The session's cookie after a sign-in.
#[track_caller]
fn session_cookie(reply: &Reply) -> String {
    assert_eq!((reply.status.as_u16(), location(reply).as_str()), (303, "/ops"));
    let set = cookies(reply);
    let session = set.iter().filter(|cookie| cookie.contains("; HttpOnly; SameSite=Strict; Path=/"));
    assert_eq!(session.count(), 2, "{set:?}");
    set[0].split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn account_signs_in_with_its_role() {
    let issuer = FakeIssuer::start().await;
    let test = TestApp::with(options(&issuer)).await;
    assert_eq!(issuer.requests(), 0, "a start does not ask the provider");
    assert_eq!(test.get("/ops/sign-in").await.ok(), json!({"token": true, "oidc": true}));
    let mut browser = Browser::new(&test);
    let url = browser.begin().await;
    let asked = parameters(&url);
    assert!(url.starts_with(&format!("{}/authorize?", issuer.url)), "{url}");
    assert_eq!(asked["redirect_uri"], format!("{}/ops/oidc/callback", test.base));
    assert_eq!(asked["scope"], "openid email profile");
    assert!(asked["state"].len() >= 43 && asked["nonce"].len() >= 43 && asked["state"] != asked["nonce"]);
    assert!(!url.contains(CLIENT_SECRET) && !browser.cookie.contains(&asked["state"]));

    let code = issuer.code(&url, test.clock.now().0, &json!({}));
    let signed_in = browser.back(&url, &code).await;
    let cookie = session_cookie(&signed_in);
    let url_of = |path: &str| format!("{}{path}", test.base);
    let session = read(test.client.get(url_of("/ops/session")).header(COOKIE, &cookie)).await.ok();
    let expected = json!({"operator": "oidc:kim@shop.example", "role": "operator",
        "expiresAt": test.clock.now().0 + 28_800_000});
    assert_eq!(session, expected);

    // The session is one like that of a token: with the header, within the role.
    let send = async |method: Method, path: &str, header: bool, body: &Value| {
        let mut request = test.client.request(method, url_of(path)).header(COOKIE, &cookie).json(body);
        if header {
            request = request.header("x-firstcome-ops", "1");
        }
        read(request).await
    };
    let product = json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP"});
    send(Method::POST, "/admin/v1/products", false, &product).await.refused(401, "UNAUTHORIZED");
    send(Method::POST, "/admin/v1/products", true, &product).await.created();
    send(Method::POST, "/admin/v1/users", true, &json!({"userName": "x"})).await.refused(403, "INSUFFICIENT_ROLE");
    let log = get(&test, "/admin/v1/operator-log?operator=oidc:kim@shop.example").await.ok();
    let actions: Vec<_> = log["content"].as_array().unwrap().iter().rev().map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["GET /ops/oidc/callback", "POST /admin/v1/products", "POST /admin/v1/users"]);
    assert!(log["content"].as_array().unwrap().iter().all(|entry| entry["role"] == "operator"));

    let signed_out = read(test.client.delete(url_of("/ops/session")).header(COOKIE, &cookie)).await;
    assert_eq!(signed_out.status, 204);
    read(test.client.get(url_of("/ops/session")).header(COOKIE, &cookie)).await.refused(401, "UNAUTHORIZED");
    // Tokens go on working.
    test.get("/admin/v1/projection").await.ok();
    test.finish().await;
}

#[tokio::test]
async fn id_token_refused_with_its_reason() {
    let issuer = FakeIssuer::start().await;
    let test = TestApp::with(options(&issuer)).await;
    let mut browser = Browser::new(&test);
    let now = test.clock.now().0 / 1000;
    for (claims, reason) in [
        (json!({"aud": "another-client"}), "audience"),
        (json!({"aud": null}), "audience"),
        (json!({"aud": [CLIENT_ID, "another-client"]}), "audience"),
        (json!({"aud": [CLIENT_ID, "another-client"], "azp": "another-client"}), "audience"),
        (json!({"azp": "another-client"}), "audience"),
        (json!({"iss": "https://another.example"}), "issuer"),
        (json!({"iss": null}), "issuer"),
        (json!({"exp": now - 30}), "expired"),
        (json!({"exp": null}), "token"),
        (json!({"iat": now + 60}), "expired"),
        (json!({"nbf": now + 60}), "expired"),
        (json!({"iat": null}), "token"),
        (json!({"nonce": "another"}), "nonce"),
        (json!({"nonce": null}), "nonce"),
        (json!({"roles": null}), "role"),
        (json!({"roles": []}), "role"),
        (json!({"roles": ["buyer", "Admin"]}), "role"),
        (json!({"roles": {"admin": true}}), "role"),
        (json!({"sub": null}), "name"),
        (json!({"sub": 7}), "name"),
    ] {
        let reply = browser.sign_in(&issuer, claims.clone()).await;
        assert_eq!(location(&reply), format!("/ops#sign-in-{reason}"), "{claims}");
        refused(&reply, reason);
    }
    // What differs from these by as little is admitted.
    for claims in [
        json!({"aud": [CLIENT_ID]}),
        json!({"aud": [CLIENT_ID, "another-client"], "azp": CLIENT_ID}),
        json!({"exp": now - 29}),
        json!({"iat": now + 30}),
        json!({"roles": "viewer"}),
        json!({"roles": ["buyer", "admin", "viewer"]}),
        json!({"email_verified": false}),
    ] {
        session_cookie(&browser.sign_in(&issuer, claims).await);
    }
    let all = json!({"iss": issuer.url, "aud": CLIENT_ID, "sub": "7", "iat": now, "exp": now + 60, "roles": "admin"});
    let with = async |browser: &mut Browser<'_>, change: fn(&FakeIssuer, &str, Value) -> String| {
        let url = browser.begin().await;
        let mut claims = all.clone();
        claims["nonce"] = parameters(&url)["nonce"].clone().into();
        let code = change(&issuer, &url, claims);
        browser.back(&url, &code).await
    };
    session_cookie(&with(&mut browser, |issuer, url, claims| issuer.code_with_header(url, &json!({}), &claims)).await);
    let bad: [fn(&FakeIssuer, &str, Value) -> String; 7] = [
        // An access token, another algorithm, none at all, an unknown key, an extension that must be understood.
        |issuer, url, claims| issuer.code_with_header(url, &json!({"typ": "at+jwt"}), &claims),
        |issuer, url, claims| issuer.code_with_header(url, &json!({"alg": "ES256"}), &claims),
        |issuer, url, claims| issuer.code_with_header(url, &json!({"alg": "none"}), &claims),
        |issuer, url, claims| issuer.code_with_header(url, &json!({"kid": "unknown"}), &claims),
        |issuer, url, claims| issuer.code_with_header(url, &json!({"crit": ["x"], "x": 1}), &claims),
        |issuer, url, _| issuer.code_for(url, Some("not.a.token".to_owned())),
        |issuer, url, _| issuer.code_for(url, None),
    ];
    for change in bad {
        refused(&with(&mut browser, change).await, "token");
    }
    // Nothing of it is on record, since nobody has signed in.
    let log = get(&test, "/admin/v1/operator-log?size=100").await.ok();
    assert_eq!(log["totalElements"], 8);
    test.finish().await;
}

#[tokio::test]
async fn sign_in_bound_to_its_browser_and_used_once() {
    let issuer = FakeIssuer::start().await;
    let test = TestApp::with(options(&issuer)).await;
    let mut browser = Browser::new(&test);
    let code = |url: &str| issuer.code(url, test.clock.now().0, &json!({}));

    // The URL in another browser, which has begun a sign-in of its own; and in one that has not.
    let url = browser.begin().await;
    let mut another = Browser::new(&test);
    refused(&another.back(&url, &code(&url)).await, "state");
    another.begin().await;
    refused(&another.back(&url, &code(&url)).await, "state");
    // A state that is wrong, absent or twice there.
    let state = parameters(&url)["state"].clone();
    let state = state.as_str();
    for parameters in [
        &[("code", "code-1")][..],
        &[("state", ""), ("code", "code-1")],
        &[("state", &state[1..]), ("code", "code-1")],
        &[("state", state), ("state", state), ("code", "code-1")],
    ] {
        refused(&browser.back_with(parameters).await, "state");
    }
    let requests = issuer.requests();
    // The cookie of another name, and one that is not ours.
    let ours = browser.cookie.clone();
    for cookie in ["firstcome_ops_sign_in=", "firstcome_ops_sign_in=0.9999999999999", "other=1", &"x".repeat(500)] {
        browser.cookie = cookie.to_owned();
        refused(&browser.back(&url, "code-1").await, "state");
    }
    assert_eq!(issuer.requests(), requests, "the provider is not asked about them");

    // A cookie that a sibling domain set beside ours.
    browser.cookie = format!("firstcome_ops_sign_in=theirs; {ours}");
    session_cookie(&browser.back(&url, &code(&url)).await);
    // Once.
    browser.cookie = ours;
    refused(&browser.back(&url, &code(&url)).await, "state");

    // A code of another sign-in has another challenge; a code counts once.
    let first = browser.begin().await;
    let stolen = code(&first);
    let second = browser.begin().await;
    refused(&browser.back(&second, &stolen).await, "code");
    refused(&browser.sign_in(&issuer, json!({"nonce": parameters(&first)["nonce"]})).await, "nonce");
    let url = browser.begin().await;
    refused(&browser.back(&url, "code-unknown").await, "code");

    // Ten minutes.
    let url = browser.begin().await;
    test.clock.advance(600_000 - 1);
    let late = code(&url);
    test.clock.advance(1);
    refused(&browser.back(&url, &late).await, "state");
    test.finish().await;
}

/// The browser may come back to another process.
#[tokio::test]
async fn sign_in_ends_at_another_instance() {
    let issuer = FakeIssuer::start().await;
    let test = TestApp::with(options(&issuer)).await;
    let other = test.open_instance(&test.options).await.unwrap();
    let router = other.router(&test.http_config()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });

    let mut browser = Browser::new(&test);
    let url = browser.begin().await;
    let code = issuer.code(&url, test.clock.now().0, &json!({}));
    let back = format!("{base}/ops/oidc/callback?code={code}&state={}", parameters(&url)["state"]);
    // A balancer keeps the host that the browser asked.
    let host = test.base.trim_start_matches("http://").to_owned();
    let request = browser.client.get(back).header(COOKIE, &browser.cookie).header("host", host);
    let cookie = session_cookie(&read(request).await);
    let session = read(test.client.get(format!("{}/ops/session", test.base)).header(COOKIE, &cookie)).await;
    assert_eq!(session.ok()["operator"], "oidc:kim@shop.example");
    serving.abort();
    other.stop(None).await;
    test.finish().await;
}

#[tokio::test]
async fn provider_asked_again_after_outage_and_new_key() {
    let issuer = FakeIssuer::start().await;
    let test = TestApp::with(options(&issuer)).await;
    let mut browser = Browser::new(&test);
    issuer.set_down(true);
    for _ in 0..20 {
        refused(&browser.go("/ops/oidc").await, "unavailable");
    }
    assert_eq!(issuer.requests(), 1, "clicks within a second do not ask again");
    test.get("/readyz").await.ok();
    issuer.set_down(false);
    test.clock.advance(1_000);
    session_cookie(&browser.sign_in(&issuer, json!({})).await);

    // Goes away between the two steps.
    let url = browser.begin().await;
    let code = issuer.code(&url, test.clock.now().0, &json!({}));
    issuer.set_down(true);
    refused(&browser.back(&url, &code).await, "unavailable");
    issuer.set_down(false);

    // The metadata is of another issuer, or leads to another machine without encryption.
    for wrong in [
        json!({"issuer": "https://another.example"}),
        json!({"token_endpoint": "http://another.example/token"}),
        json!({"jwks_uri": "file:///etc/passwd"}),
        json!({"authorization_endpoint": 1}),
    ] {
        issuer.set_metadata(wrong.clone());
        test.clock.advance(3_600_000);
        assert_eq!(location(&browser.go("/ops/oidc").await), "/ops#sign-in-unavailable", "{wrong}");
    }
    issuer.set_metadata(json!({}));
    test.clock.advance(1_000);

    session_cookie(&browser.sign_in(&issuer, json!({})).await);
    issuer.rotate_key("second");
    refused(&browser.sign_in(&issuer, json!({})).await, "token");
    test.clock.advance(10_000);
    session_cookie(&browser.sign_in(&issuer, json!({})).await);

    // RFC 9207: a provider that names itself does so in every reply.
    issuer.set_metadata(json!({"authorization_response_iss_parameter_supported": true,
        "token_endpoint_auth_methods_supported": ["client_secret_post"]}));
    test.clock.advance(3_600_000);
    for (named, reason) in
        [(None, "issuer"), (Some("https://another.example"), "issuer"), (Some(issuer.url.as_str()), "")]
    {
        let url = browser.begin().await;
        let code = issuer.code(&url, test.clock.now().0, &json!({}));
        let state = parameters(&url)["state"].clone();
        let mut parameters = vec![("state", state.as_str()), ("code", code.as_str())];
        parameters.extend(named.map(|named| ("iss", named)));
        let reply = browser.back_with(&parameters).await;
        if reason.is_empty() { drop(session_cookie(&reply)) } else { refused(&reply, reason) }
    }
    // The provider says no; the text is anybody's.
    for error in ["access_denied", "<script>", ""] {
        let url = browser.begin().await;
        let state = parameters(&url)["state"].clone();
        refused(&browser.back_with(&[("state", &state), ("error", error), ("iss", &issuer.url)]).await, "denied");
    }
    test.finish().await;
}

#[tokio::test]
async fn provider_reply_refused_when_late_large_or_unreadable() {
    let issuer = FakeIssuer::start().await;
    let test = TestApp::with(options(&issuer)).await;
    let mut browser = Browser::new(&test);
    // One that hangs costs the time limit.
    for (path, faults) in [
        ("/openid-configuration", &[Fault::Floods, Fault::Redirects, Fault::Stammers, Fault::Hangs][..]),
        ("/keys", &[Fault::Floods, Fault::Redirects, Fault::Stammers]),
    ] {
        for fault in faults {
            issuer.set_fault(Some((path, *fault)));
            refused(&browser.go("/ops/oidc").await, "unavailable");
            test.clock.advance(1_000);
        }
    }
    for fault in [Fault::Floods, Fault::Redirects, Fault::Stammers, Fault::Hangs] {
        issuer.set_fault(None);
        let url = browser.begin().await;
        let code = issuer.code(&url, test.clock.now().0, &json!({}));
        issuer.set_fault(Some(("/token", fault)));
        refused(&browser.back(&url, &code).await, "unavailable");
    }
    issuer.set_fault(None);
    session_cookie(&browser.sign_in(&issuer, json!({})).await);
    test.finish().await;
}

/// A flood of refused sign-ins is answered without a line of the log for each.
#[tokio::test]
async fn sign_in_limited_when_refused_in_a_flood() {
    let issuer = FakeIssuer::start().await;
    let limits = LimitsConfig {
        rate_limit_client_per_second: 1,
        rate_limit_client_burst: 3,
        rate_limit_keys: 10,
        ..LimitsConfig::off()
    };
    let test = TestApp::with(Options { limits, ..options(&issuer) }).await;
    let browser = Browser::new(&test);
    let mut statuses = Vec::new();
    while statuses.last() != Some(&429) {
        statuses.push(browser.go("/ops/oidc/callback?code=a&state=b").await.status.as_u16());
        assert!(statuses.len() < 10_000);
    }
    assert!(statuses.len() > 3 && statuses[..3] == [303; 3], "{statuses:?}");
    assert_eq!(issuer.requests(), 0);
    test.finish().await;
}

#[tokio::test]
async fn sign_in_slowed_after_refusals() {
    let issuer = FakeIssuer::start().await;
    let limits = LimitsConfig { rate_limit_guesses_per_minute: 5, rate_limit_keys: 10, ..LimitsConfig::off() };
    let test = TestApp::with(Options { limits, ..options(&issuer) }).await;
    let mut browser = Browser::new(&test);
    let mut reasons = Vec::new();
    while reasons.last().is_none_or(|last| last != "/ops#sign-in-slow") {
        reasons.push(location(&browser.sign_in(&issuer, json!({"roles": []})).await));
        assert!(reasons.len() < 10_000);
    }
    assert!(reasons.len() > 5 && reasons[..5].iter().all(|reason| reason == "/ops#sign-in-role"), "{reasons:?}");
    let requests = issuer.requests();
    refused(&browser.sign_in(&issuer, json!({})).await, "slow");
    assert_eq!(issuer.requests(), requests);
    test.finish().await;
}

#[tokio::test]
async fn sign_in_follows_settings() {
    let issuer = FakeIssuer::start().await;
    let mut options = options(&issuer);
    options.operators.ops_cookie_secure = true;
    options.operators.oidc.ops_oidc_role_claim = "resource_access.firstcome.roles".to_owned();
    options.operators.oidc.ops_oidc_name_claim = Some("preferred_username".to_owned());
    options.operators.oidc.ops_oidc_scopes = "groups openid".to_owned();
    let test = TestApp::with(options.clone()).await;
    let browser = Browser::new(&test);
    let reply = browser.go("/ops/oidc").await;
    let asked = parameters(&location(&reply));
    assert_eq!(asked["scope"], "openid groups");
    // Behind a TLS proxy the browser asks for https.
    assert_eq!(asked["redirect_uri"], format!("{}/ops/oidc/callback", test.base.replacen("http://", "https://", 1)));
    assert!(cookies(&reply)[0].ends_with("; Secure"));
    let browser = Browser { cookie: cookies(&reply)[0].split(';').next().unwrap().to_owned(), ..browser };
    let claims = json!({"preferred_username": "김다은", "resource_access": {"firstcome": {"roles": ["viewer"]}}});
    let code = issuer.code(&location(&reply), test.clock.now().0, &claims);
    let cookie = session_cookie(&browser.back(&location(&reply), &code).await);
    let session = read(test.client.get(format!("{}/ops/session", test.base)).header(COOKIE, cookie)).await.ok();
    assert_eq!((&session["operator"], &session["role"]), (&json!("oidc:김다은"), &json!("viewer")));

    // The host that a request names counts for nothing with a setting, and else must be one.
    for (setting, host, expected) in [
        (Some("https://ops.example/ops/oidc/callback"), "evil.example", Some("https://ops.example/ops/oidc/callback")),
        (None, "ops.example:8443", Some("https://ops.example:8443/ops/oidc/callback")),
        (None, "evil@ops.example", None),
        (None, "ops.example?", None),
    ] {
        options.operators.oidc.ops_oidc_redirect_url = setting.map(str::to_owned);
        let other = test.open_instance(&options).await.unwrap();
        let http = firstcome::config::HttpConfig { operators: options.operators.clone(), ..test.http_config() };
        let router = other.router(&http).unwrap();
        let request = axum::http::Request::get("/ops/oidc").header("host", host).body(axum::body::Body::empty());
        let reply = tower::ServiceExt::oneshot(router, request.unwrap()).await.unwrap();
        let to = reply.headers().get(LOCATION).map(|to| to.to_str().unwrap().to_owned()).unwrap_or_default();
        let asked = to.starts_with("http").then(|| parameters(&to)["redirect_uri"].clone());
        assert_eq!(asked.as_deref(), expected, "{host}: {to} {}", reply.status());
        other.stop(None).await;
    }
    test.finish().await;
}

#[tokio::test]
async fn sign_in_with_account_absent_without_provider() {
    let test = TestApp::start().await;
    assert_eq!(test.get("/ops/sign-in").await.ok(), json!({"token": true, "oidc": false}));
    let browser = Browser::new(&test);
    for path in ["/ops/oidc", "/ops/oidc/callback", "/ops/oidc/callback?code=a&state=b"] {
        browser.go(path).await.refused(404, "NOT_FOUND");
    }
    test.finish().await;
}
