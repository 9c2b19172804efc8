//! A payment gateway for tests: it misbehaves on request, and its ledger records the money that it takes and refunds.
//!
//! It speaks the generic protocol or that of a provider ([`Protocol`]); each behaves as its documentation says, with its own
//! errors. The first query of a PortOne payment counts as the request to pay: its money is taken before.
//!
//! Taking money and replying are separate, as with a real gateway: it may take the money and never reply. Tests assert on the
//! ledger: no money is taken twice, or kept for a failed order ([`FakeGateway::kept`]), and no request is invalid
//! ([`FakeGateway::faults`]).
//!
//! A uid is one payment: repeated requests take the money at most once and get the first decision. After a cancel the payment
//! is refused. A cancel under an idempotency key refunds a part, once per key. A cancel before the payment does not prevent it. The gateway does not sleep: a late reply waits until the test
//! releases it.

mod handlers;
mod http;
mod kakaopay;
mod portone;
mod toss;
mod windows;

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// The effect of a `POST /payments`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Takes the money and approves.
    Approve,
    /// Refuses the payment finally.
    Decline,
    /// Takes no money, never replies.
    Hang,
    /// Takes the money, never replies.
    ApproveThenHang,
    /// Takes the money and replies when the test calls [`FakeGateway::release_late`], even if the client has disconnected; until
    /// then the payment is not found.
    ApproveLate,
    /// Takes no money, replies 200 with an invalid body.
    Garbage,
    /// Takes the money, replies 200 with an invalid body.
    GarbageAfterApproval,
    /// Takes no money, replies 500.
    ServerError,
    /// Takes the money, replies 500.
    ServerErrorAfterApproval,
    /// Takes the money, breaks the connection in the middle of the reply.
    CutAfterApproval,
    /// Takes no money, replies with the approval of another order.
    ApproveOther,
    /// Takes no money, replies with this status and body.
    Answer(u16, String),
    /// Takes the money, replies with this status and body.
    AnswerAfterApproval(u16, String),
    /// Takes this amount instead of the requested one, and reports it in this reply and in later ones.
    ApproveAmount(i64),
    /// The same, but never replies.
    ApproveAmountThenHang(i64),
}

/// The effect of a `GET /payments/{uid}` or a `POST /payments/{uid}/cancel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryBehaviour {
    /// Executes the request, and replies correctly.
    Truthful,
    /// Executes the request, and never replies.
    ThenHang,
    /// Executes the request, and replies 500.
    ThenServerError,
    /// Does nothing, and never replies.
    Hang,
    /// Does nothing, and replies 500.
    ServerError,
    /// Does nothing, and replies 200 with an invalid body.
    Garbage,
    /// Does nothing, and replies that there is no such money.
    Denied,
    /// Executes the request, and replies with this status and body.
    ThenAnswer(u16, String),
    /// Does nothing, and replies with this status and body.
    Answer(u16, String),
}

/// What a fake gateway speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Toss,
    KakaoPay,
    PortOne,
}

impl Protocol {
    pub const ALL: [Protocol; 4] = [Protocol::Http, Protocol::Toss, Protocol::KakaoPay, Protocol::PortOne];

    /// The protocols of providers.
    pub const PROVIDERS: [Protocol; 3] = [Protocol::Toss, Protocol::KakaoPay, Protocol::PortOne];
}

/// Runs a test over each protocol. The last one that it prints is the one that failed.
pub async fn over_each_protocol(test: impl AsyncFn(Protocol)) {
    for protocol in Protocol::ALL {
        eprintln!("through {protocol:?}");
        test(protocol).await;
    }
}

/// A running fake gateway. Dropped, it ends at once and breaks every connection.
pub struct FakeGateway {
    pub protocol: Protocol,
    url: String,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    protocol: Protocol,
    ledger: Mutex<Ledger>,
    /// Counts the requests and the releases.
    changes: watch::Sender<u64>,
}

struct Ledger {
    payments: HashMap<String, Payment>,
    next_pay: VecDeque<Behaviour>,
    every_pay: Behaviour,
    every_status: QueryBehaviour,
    every_cancel: QueryBehaviour,
    /// The `transactionId` of every approval; `None`: one per payment.
    transaction_id: Option<Value>,
    /// Whether it names the refunded amount of a payment; a number: this amount instead of the true one.
    cancelled_amounts: CancelledAmounts,
    /// Of the latest request.
    headers: HeaderMap,
    faults: Vec<String>,
}

/// The requests and the state of one uid.
#[derive(Default)]
struct Payment {
    asked: Option<PayBody>,
    /// What the customer approved at the provider.
    window: Option<Window>,
    /// The customer has authenticated on KakaoPay's page.
    is_authenticated: bool,
    posts: usize,
    status_queries: usize,
    cancels: usize,
    decision: Option<Decision>,
    /// A payment of [`Behaviour::ApproveLate`] before its release.
    is_late: bool,
    /// The won refunded.
    given_back: i64,
    /// The won of the last refund.
    last_cancel: i64,
    /// The parts that were refunded, by idempotency key.
    parts: HashMap<String, i64>,
}

/// The customer's window at a provider.
#[derive(Clone, Debug)]
struct Window {
    merchant_order_id: String,
    amount: i64,
}

/// What the gateway says of the parts that it has refunded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelledAmounts {
    Named,
    /// It recognises a repeat by its key alone.
    Unnamed,
    /// Whatever it has refunded.
    Said(i64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Taken { amount: i64 },
    Declined,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PayBody {
    merchant_uid: String,
    order_id: i64,
    user_id: i64,
    amount: i64,
}

impl FakeGateway {
    /// One of the generic protocol.
    pub async fn start() -> FakeGateway {
        FakeGateway::speaking(Protocol::Http).await
    }

    /// Listens on a free port of 127.0.0.1; approves everything by default.
    pub async fn speaking(protocol: Protocol) -> FakeGateway {
        let shared = Arc::new(Shared {
            protocol,
            ledger: Mutex::new(Ledger {
                payments: HashMap::new(),
                next_pay: VecDeque::new(),
                every_pay: Behaviour::Approve,
                every_status: QueryBehaviour::Truthful,
                every_cancel: QueryBehaviour::Truthful,
                transaction_id: None,
                cancelled_amounts: CancelledAmounts::Named,
                headers: HeaderMap::new(),
                faults: Vec::new(),
            }),
            changes: watch::Sender::new(0),
        });
        let router = match protocol {
            Protocol::Http => http::router(),
            Protocol::Toss => toss::router(),
            Protocol::KakaoPay => kakaopay::router(),
            Protocol::PortOne => portone::router(),
        };
        let router = router.with_state(Arc::clone(&shared));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Not axum::serve: its connections outlive it.
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                while connections.try_join_next().is_some() {}
            }
        });
        FakeGateway { protocol, url, shared, server }
    }

    /// The base URL, for `PAYMENT_GATEWAY_<TYPE>_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sets the behaviour of the next payment request, under any uid; another call sets that of the request after it.
    pub fn next(&self, behaviour: Behaviour) {
        self.ledger().next_pay.push_back(behaviour);
    }

    /// Sets the behaviour of every payment request, after those of [`FakeGateway::next`].
    pub fn always(&self, behaviour: Behaviour) {
        self.ledger().every_pay = behaviour;
    }

    /// Sets the behaviour of every status query.
    pub fn status_queries_are(&self, manner: QueryBehaviour) {
        self.ledger().every_status = manner;
    }

    /// Sets the behaviour of every cancel.
    pub fn cancels_are(&self, manner: QueryBehaviour) {
        self.ledger().every_cancel = manner;
    }

    /// Sets what it says of the parts that it has refunded.
    pub fn cancelled_amounts_are(&self, said: CancelledAmounts) {
        self.ledger().cancelled_amounts = said;
    }

    /// Sets the `transactionId` of every approval.
    pub fn transaction_ids_are(&self, id: Value) {
        self.ledger().transaction_id = Some(id);
    }

    /// Takes the money of every late payment before it returns, and replies to clients that still wait.
    pub fn release_late(&self) {
        for payment in self.ledger().payments.values_mut().filter(|payment| payment.is_late) {
            payment.is_late = false;
            payment.take();
        }
        self.shared.changed();
    }

    /// Waits for `count` payment requests under `uid`.
    pub async fn posted(&self, uid: &str, count: usize) {
        self.until(|ledger| ledger.payments.get(uid).is_some_and(|payment| payment.posts >= count)).await;
    }

    /// Waits for a payment request under any uid. Returns one of the uids.
    pub async fn any_posted(&self) -> String {
        self.until(|ledger| ledger.payments.values().any(|payment| payment.posts > 0)).await;
        let ledger = self.ledger();
        let (uid, _) = ledger.payments.iter().find(|(_, payment)| payment.posts > 0).unwrap();
        uid.clone()
    }

    /// Waits for `count` status queries for `uid`.
    pub async fn queried(&self, uid: &str, count: usize) {
        self.until(|ledger| ledger.payments.get(uid).is_some_and(|payment| payment.status_queries >= count)).await;
    }

    /// The won taken under `uid`, including refunded ones.
    pub fn taken(&self, uid: &str) -> Option<i64> {
        self.ledger().payments.get(uid).and_then(Payment::taken)
    }

    /// The only uid of a request.
    pub fn only_uid(&self) -> String {
        let [uid] = &self.uids()[..] else { panic!("one payment was tried: {:?}", self.uids()) };
        uid.clone()
    }

    /// Whether the money taken under `uid` was refunded.
    pub fn cancelled(&self, uid: &str) -> bool {
        self.ledger().payments.get(uid).is_some_and(Payment::is_given_back)
    }

    /// The won taken under `uid` and not refunded.
    pub fn kept(&self, uid: &str) -> i64 {
        self.ledger().payments.get(uid).map_or(0, Payment::kept)
    }

    /// Every uid of a request, in no order.
    pub fn uids(&self) -> Vec<String> {
        self.ledger().payments.keys().cloned().collect()
    }

    /// The order of the first payment request under `uid`.
    pub fn order_of(&self, uid: &str) -> Option<i64> {
        Some(self.ledger().payments.get(uid)?.asked.as_ref()?.order_id)
    }

    /// The won taken in all, including refunded ones.
    pub fn total_taken(&self) -> i64 {
        self.ledger().payments.values().filter_map(Payment::taken).sum()
    }

    /// The won refunded in all.
    pub fn total_given_back(&self) -> i64 {
        self.ledger().payments.values().map(|payment| payment.given_back).sum()
    }

    /// The won taken in all and not refunded.
    pub fn total_kept(&self) -> i64 {
        self.ledger().payments.values().map(Payment::kept).sum()
    }

    /// Payment requests under `uid`.
    pub fn posts(&self, uid: &str) -> usize {
        self.ledger().payments.get(uid).map_or(0, |payment| payment.posts)
    }

    /// Payment requests in all.
    pub fn total_posts(&self) -> usize {
        self.ledger().payments.values().map(|payment| payment.posts).sum()
    }

    /// Status queries for `uid`.
    pub fn status_queries(&self, uid: &str) -> usize {
        self.ledger().payments.get(uid).map_or(0, |payment| payment.status_queries)
    }

    /// Cancel requests for `uid`.
    pub fn cancels(&self, uid: &str) -> usize {
        self.ledger().payments.get(uid).map_or(0, |payment| payment.cancels)
    }

    /// A header of the latest request.
    pub fn header(&self, name: &str) -> Option<String> {
        Some(self.ledger().headers.get(name)?.to_str().unwrap().to_owned())
    }

    /// The `Authorization` header of the latest request.
    pub fn authorization(&self) -> Option<String> {
        self.header(AUTHORIZATION.as_str())
    }

    /// Requests that no correct client sends: bodies outside the contract, one uid for two payments, a refund of another amount.
    /// A test should end without one.
    pub fn faults(&self) -> Vec<String> {
        self.ledger().faults.clone()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared.ledger()
    }

    async fn until(&self, condition: impl Fn(&Ledger) -> bool) {
        let mut changes = self.shared.changes.subscribe();
        while !condition(&self.ledger()) {
            changes.changed().await.unwrap();
        }
    }
}

impl Drop for FakeGateway {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic in one handler must not hide the ledger from the test that will report it.
        self.ledger.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Payment {
    fn taken(&self) -> Option<i64> {
        match self.decision {
            Some(Decision::Taken { amount }) => Some(amount),
            Some(Decision::Declined) | None => None,
        }
    }

    fn kept(&self) -> i64 {
        self.taken().unwrap_or(0) - self.given_back
    }

    /// The amount of the customer's window, or of the request.
    fn amount(&self) -> i64 {
        let asked = self.asked.as_ref().map(|asked| asked.amount);
        asked.or(self.window.as_ref().map(|window| window.amount)).unwrap_or(0)
    }

    /// What is said to be refunded; `None`: nothing is said.
    fn said_cancelled(&self, said: CancelledAmounts) -> Option<i64> {
        match said {
            CancelledAmounts::Named => Some(self.given_back),
            CancelledAmounts::Said(amount) => Some(amount),
            CancelledAmounts::Unnamed => None,
        }
    }

    fn is_given_back(&self) -> bool {
        self.taken().is_some_and(|taken| self.given_back >= taken)
    }

    /// Takes the money, unless this payment is decided already.
    fn take(&mut self) {
        let amount = self.amount();
        self.decision.get_or_insert(Decision::Taken { amount });
    }
}
