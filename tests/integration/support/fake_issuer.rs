//! A fake identity provider: OpenID Connect over HTTP, with the claims that a test wants.
//!
//! The test is the browser. [`FakeIssuer::code`] stands for a person who signs in at the provider: it takes the URL to which the
//! service sent the browser, and returns a code. The token endpoint takes the code once, from this client alone, and only with the
//! verifier of its challenge.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE, LOCATION},
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use reqwest::Url;
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub const CLIENT_ID: &str = "firstcome-ops";
pub const CLIENT_SECRET: &str = "a-client-secret-for-tests";

/// How the provider misbehaves.
#[derive(Clone, Copy, PartialEq)]
pub enum Fault {
    /// Never answers.
    Hangs,
    /// Leads elsewhere.
    Redirects,
    /// Answers more than anybody reads.
    Floods,
    /// Answers what is no JSON.
    Stammers,
}

/// The provider. It ends with the test.
#[derive(Clone)]
pub struct FakeIssuer {
    pub url: String,
    state: Arc<Mutex<IssuerState>>,
}

struct IssuerState {
    keys: Vec<SigningKey>,
    /// Replace fields of the metadata.
    metadata: Value,
    /// The codes that were not exchanged yet.
    codes: HashMap<String, Grant>,
    issued: u32,
    /// Answers 500 to everything.
    down: bool,
    /// The fault at this path.
    fault: Option<(&'static str, Fault)>,
    requests: u32,
}

struct SigningKey {
    id: String,
    pair: Ed25519KeyPair,
}

/// What a code is for.
struct Grant {
    redirect_uri: String,
    challenge: String,
    id_token: Option<String>,
}

/// The parameters of a URL.
pub fn parameters(url: &str) -> HashMap<String, String> {
    Url::parse(url).unwrap().query_pairs().into_owned().collect()
}

impl SigningKey {
    fn new(id: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        SigningKey { id: id.to_owned(), pair: Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap() }
    }

    fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": self.id, "x": x})
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let mut head = json!({"alg": "EdDSA", "kid": self.id, "typ": "JWT"});
        head.as_object_mut().unwrap().extend(header.as_object().unwrap().clone());
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(&head), part(claims));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(self.pair.sign(message.as_bytes())))
    }
}

impl FakeIssuer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/realms/shop", listener.local_addr().unwrap());
        let state = IssuerState {
            keys: vec![SigningKey::new("first")],
            metadata: json!({}),
            codes: HashMap::new(),
            issued: 0,
            down: false,
            fault: None,
            requests: 0,
        };
        let issuer = FakeIssuer { url, state: Arc::new(Mutex::new(state)) };
        let router = Router::new()
            .route("/realms/shop/.well-known/openid-configuration", get(metadata))
            .route("/realms/shop/keys", get(keys))
            .route("/realms/shop/token", post(token))
            .with_state(issuer.clone())
            .layer(from_fn_with_state(issuer.clone(), misbehave));
        tokio::spawn(async move { axum::serve(listener, router).await });
        issuer
    }

    fn state(&self) -> MutexGuard<'_, IssuerState> {
        self.state.lock().unwrap()
    }

    /// The number of requests so far.
    pub fn requests(&self) -> u32 {
        self.state().requests
    }

    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Misbehaves at the path that ends so.
    pub fn set_fault(&self, fault: Option<(&'static str, Fault)>) {
        self.state().fault = fault;
    }

    /// Replaces fields of the metadata.
    pub fn set_metadata(&self, fields: Value) {
        self.state().metadata = fields;
    }

    /// Signs with a new key from now on; the old one is gone.
    pub fn rotate_key(&self, id: &str) {
        self.state().keys = vec![SigningKey::new(id)];
    }

    /// A code for the sign-in at `url`, with an ID token that has these claims beside and instead of the usual ones; null omits one.
    pub fn code(&self, url: &str, now_ms: i64, claims: &Value) -> String {
        let mut all = json!({"iss": self.url, "aud": CLIENT_ID, "sub": "subject-7", "nonce": parameters(url)["nonce"],
            "iat": now_ms / 1000, "exp": now_ms / 1000 + 300, "email": "kim@shop.example", "email_verified": true,
            "roles": ["operator"]});
        let all = all.as_object_mut().unwrap();
        all.extend(claims.as_object().unwrap().clone());
        all.retain(|_, value| !value.is_null());
        let token = self.state().keys[0].sign(&json!({}), &json!(all));
        self.code_for(url, Some(token))
    }

    /// A code for a token with this header.
    pub fn code_with_header(&self, url: &str, header: &Value, claims: &Value) -> String {
        let token = self.state().keys[0].sign(header, claims);
        self.code_for(url, Some(token))
    }

    /// A code for this token, or for a reply without one.
    pub fn code_for(&self, url: &str, id_token: Option<String>) -> String {
        let asked = parameters(url);
        assert_eq!((asked["client_id"].as_str(), asked["response_type"].as_str()), (CLIENT_ID, "code"));
        assert_eq!(asked["code_challenge_method"], "S256");
        let mut state = self.state();
        state.issued += 1;
        let code = format!("code-{}", state.issued);
        let [redirect_uri, challenge] = ["redirect_uri", "code_challenge"].map(|name| asked[name].clone());
        state.codes.insert(code.clone(), Grant { redirect_uri, challenge, id_token });
        code
    }

    /// Counts a request; `None` if the provider is down.
    fn admit(&self) -> Option<MutexGuard<'_, IssuerState>> {
        let mut state = self.state();
        state.requests += 1;
        if state.down { None } else { Some(state) }
    }
}

async fn misbehave(State(issuer): State<FakeIssuer>, request: Request, next: Next) -> Response {
    let fault = issuer.state().fault.filter(|(path, _)| request.uri().path().ends_with(path));
    let json = [(CONTENT_TYPE, "application/json")];
    match fault {
        None => next.run(request).await,
        Some((_, Fault::Hangs)) => std::future::pending().await,
        Some((_, Fault::Redirects)) => (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, "/elsewhere")]).into_response(),
        Some((_, Fault::Floods)) => (json, format!("{{\"x\": \"{}\"}}", "x".repeat(256 * 1024))).into_response(),
        Some((_, Fault::Stammers)) => (json, "{\"access_token\": \"an-access-token").into_response(),
    }
}

fn down() -> Response {
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

async fn metadata(State(issuer): State<FakeIssuer>) -> Response {
    let Some(state) = issuer.admit() else { return down() };
    let url = &issuer.url;
    let mut metadata = json!({"issuer": url, "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"), "jwks_uri": format!("{url}/keys")});
    metadata.as_object_mut().unwrap().extend(state.metadata.as_object().unwrap().clone());
    Json(metadata).into_response()
}

async fn keys(State(issuer): State<FakeIssuer>) -> Response {
    let Some(state) = issuer.admit() else { return down() };
    let keys: Vec<Value> = state.keys.iter().map(SigningKey::jwk).collect();
    Json(json!({"keys": keys})).into_response()
}

async fn token(State(issuer): State<FakeIssuer>, headers: HeaderMap, body: String) -> Response {
    let form: HashMap<String, String> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let Some(mut state) = issuer.admit() else { return down() };
    let refused = |status, error: &str| (status, Json(json!({"error": error}))).into_response();
    let basic = format!("Basic {}", STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}")));
    let in_header = headers.get(AUTHORIZATION).is_some_and(|value| value == basic.as_str());
    let in_body = form.get("client_secret").is_some_and(|secret| secret == CLIENT_SECRET);
    if !in_header && !in_body {
        return refused(StatusCode::UNAUTHORIZED, "invalid_client");
    }
    assert_eq!(form["grant_type"], "authorization_code");
    let Some(grant) = state.codes.remove(&form["code"]) else {
        return refused(StatusCode::BAD_REQUEST, "invalid_grant");
    };
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, form["code_verifier"].as_bytes()));
    if challenge != grant.challenge || form["redirect_uri"] != grant.redirect_uri {
        return refused(StatusCode::BAD_REQUEST, "invalid_grant");
    }
    let mut reply = json!({"access_token": "an-access-token", "token_type": "Bearer", "expires_in": 300});
    if let Some(id_token) = grant.id_token {
        reply["id_token"] = id_token.into();
    }
    Json(reply).into_response()
}
