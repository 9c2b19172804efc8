//! A receiver of webhooks that checks signatures, and answers as a test says.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
    routing::any,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::Value;
use tokio::{net::TcpListener, sync::Notify};

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// By arrival.
    pub number: usize,
    pub id: String,
    pub timestamp: i64,
    pub signatures: Vec<String>,
    pub body: String,
    pub event: Value,
}

impl Received {
    /// Whether one of the signatures is by this secret.
    pub fn is_signed_by(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let text = format!("{}.{}.{}", self.id, self.timestamp, self.body);
        let expected = format!("v1,{}", STANDARD.encode(hmac::sign(&key, text.as_bytes())));
        self.signatures.contains(&expected)
    }

    pub fn kind(&self) -> &str {
        self.event["type"].as_str().unwrap()
    }

    pub fn subject(&self) -> &str {
        self.event["subject"].as_str().unwrap()
    }
}

type Answer = Arc<dyn Fn(&Received) -> u16 + Send + Sync>;
type Hangs = Arc<dyn Fn(&Received) -> bool + Send + Sync>;

#[derive(Clone)]
struct ReceiverState {
    received: Arc<Mutex<Vec<Received>>>,
    answer: Arc<Mutex<Answer>>,
    /// Which requests get no answer.
    hangs: Arc<Mutex<Hangs>>,
    released: Arc<Notify>,
}

pub struct Receiver {
    pub url: String,
    state: ReceiverState,
    serving: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub async fn start() -> Receiver {
        let state = ReceiverState {
            received: Arc::default(),
            answer: Arc::new(Mutex::new(Arc::new(|_| 204))),
            hangs: Arc::new(Mutex::new(Arc::new(|_| false))),
            released: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = Router::new().route("/{*path}", any(receive)).with_state(state.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Receiver { url, state, serving }
    }

    /// Answers with the status that `answer` returns from now on.
    pub fn answers(&self, answer: impl Fn(&Received) -> u16 + Send + Sync + 'static) {
        *self.state.answer.lock().unwrap() = Arc::new(answer);
    }

    pub fn hangs(&self, hangs: bool) {
        self.hangs_for(move |_| hangs);
    }

    /// Does not answer those requests from now on.
    pub fn hangs_for(&self, hangs: impl Fn(&Received) -> bool + Send + Sync + 'static) {
        *self.state.hangs.lock().unwrap() = Arc::new(hangs);
    }

    /// Answers the requests that hang, and all later ones.
    pub fn release(&self) {
        self.hangs(false);
        self.state.released.notify_waiters();
    }

    /// All requests until now, also those that were not answered with success.
    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// Forgets the requests, and returns them.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut self.state.received.lock().unwrap())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn receive(State(state): State<ReceiverState>, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/cloudevents+json; charset=utf-8");
    let body = String::from_utf8(body.to_vec()).unwrap();
    let mut received = Received {
        number: 0,
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp").parse().unwrap(),
        signatures: header("webhook-signature").split(' ').map(str::to_owned).collect(),
        event: serde_json::from_str(&body).unwrap(),
        body,
    };
    {
        let mut all = state.received.lock().unwrap();
        received.number = all.len();
        all.push(received.clone());
    }
    let hangs = state.hangs.lock().unwrap().clone();
    if hangs(&received) {
        state.released.notified().await;
    }
    let answer = state.answer.lock().unwrap().clone();
    let status = StatusCode::from_u16(answer(&received)).unwrap();
    if status.is_redirection() {
        return (status, [(LOCATION, "/elsewhere")]).into_response();
    }
    // More than a sender has to read.
    let text = if status == StatusCode::OK { "x".repeat(1 << 20) } else { String::new() };
    (status, text).into_response()
}
