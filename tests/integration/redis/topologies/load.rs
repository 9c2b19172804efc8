//! Clients that charge, order, pay and take coupons over HTTP, each request under a key and repeated until it is answered; and the
//! comparison of every acknowledged reply with the stores afterwards.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::harness::{Reply, TestApp, raw_redis, read, until};

/// Requests of each client that count as progress.
const PROGRESS: usize = 8;
const STOCK: i64 = 1_000_000;
const BALANCE: i64 = 1_000_000;
const PRICE: i64 = 10;

pub struct Load {
    client: Client,
    base: String,
    partitions: i64,
    users: Vec<i64>,
    products: Vec<i64>,
    campaigns: Vec<i64>,
    over: AtomicBool,
    /// By client: its acknowledged requests.
    acknowledged: Vec<AtomicUsize>,
    unavailable: AtomicUsize,
    gap: Mutex<Gap>,
}

/// The longest time without any acknowledgement.
struct Gap {
    last: Instant,
    longest: Duration,
}

/// A request, and the reply that ended it.
pub struct Request {
    client: usize,
    method: Method,
    path: String,
    body: Value,
    key: String,
    status: StatusCode,
    text: String,
}

impl Load {
    /// A load of so many clients, a user each, on products and campaigns of every partition.
    pub async fn new(test: &TestApp, clients: usize) -> Load {
        let partitions = i64::from(test.options.partitions);
        let users = test.users(clients as i64, BALANCE).await;
        let (mut products, mut campaigns) = (Vec::new(), Vec::new());
        for _ in 0..partitions {
            products.push(test.product(PRICE, STOCK).await);
        }
        for _ in 0..4 {
            campaigns.push(test.campaign("FIXED", 1, STOCK).await);
        }
        Load {
            client: test.client.clone(),
            base: test.base.clone(),
            partitions,
            acknowledged: users.iter().map(|_| AtomicUsize::new(0)).collect(),
            users,
            products,
            campaigns,
            over: AtomicBool::new(false),
            unavailable: AtomicUsize::new(0),
            gap: Mutex::new(Gap { last: Instant::now(), longest: Duration::ZERO }),
        }
    }

    /// Runs the load while `disturbed` runs. Returns every request.
    pub async fn during(&self, disturbed: impl AsyncFnOnce()) -> Vec<Request> {
        self.gap.lock().last = Instant::now();
        let disturbed = async {
            disturbed().await;
            self.over.store(true, Ordering::SeqCst);
        };
        let clients = join_all((0..self.users.len()).map(|client| self.run(client)));
        let (requests, ()) = tokio::join!(clients, disturbed);
        let requests: Vec<Request> = requests.into_iter().flatten().collect();
        println!(
            "{} requests, {} times 503, at most {:?} without an answer",
            requests.len(),
            self.unavailable.load(Ordering::SeqCst),
            self.gap.lock().longest
        );
        requests
    }

    /// Waits until each client has been answered some more times.
    pub async fn progress(&self) {
        let counts = || self.acknowledged.iter().map(|count| count.load(Ordering::SeqCst));
        let goals: Vec<usize> = counts().map(|count| count + PROGRESS).collect();
        until("the clients are served", async || {
            counts().zip(&goals).all(|(count, goal)| count >= *goal).then_some(())
        })
        .await;
    }

    async fn run(&self, client: usize) -> Vec<Request> {
        let (user, mut requests) = (self.users[client], Vec::new());
        for round in 0.. {
            if self.over.load(Ordering::SeqCst) {
                break;
            }
            let ask = async |kind: &str, method: Method, path: String, body: Value| {
                self.answered(client, format!("{client}-{round}-{kind}"), method, path, body).await
            };
            requests.push(ask("charge", Method::PUT, format!("/api/v1/balances/{user}"), json!({"amount": 7})).await);
            if let Some(campaign) = self.campaigns.get(round) {
                let body = json!({"couponId": campaign, "userId": user});
                requests.push(ask("issue", Method::POST, "/api/v1/coupons/issue".to_owned(), body).await);
            }
            // Of its own partition, and of others in turn.
            let product = self.products[(client + round) % self.products.len()];
            let body = json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 1}]});
            let order = ask("order", Method::POST, "/api/v1/orders".to_owned(), body).await;
            let placed = order.id("orderId");
            requests.push(order);
            if let Some(order) = placed {
                let body = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": PRICE});
                requests.push(ask("pay", Method::POST, "/api/v1/payments".to_owned(), body).await);
            }
        }
        requests
    }

    /// Repeats a request under its key until it is answered.
    async fn answered(&self, client: usize, key: String, method: Method, path: String, body: Value) -> Request {
        let reply = until("the request is answered", async || {
            let reply = self.send(&method, &path, &body, &key).await;
            if reply.status != 503 {
                return Some(reply);
            }
            reply.refused(503, "SERVICE_UNAVAILABLE");
            assert!(reply.headers.contains_key("retry-after"), "{:?}", reply.headers);
            self.unavailable.fetch_add(1, Ordering::SeqCst);
            None
        })
        .await;
        assert!(reply.status.is_success() || reply.status.is_client_error(), "{path}: {} {}", reply.status, reply.text);
        self.acknowledged[client].fetch_add(1, Ordering::SeqCst);
        let mut gap = self.gap.lock();
        gap.longest = gap.longest.max(gap.last.elapsed());
        gap.last = Instant::now();
        Request { client, method, path, body, key, status: reply.status, text: reply.text }
    }

    async fn send(&self, method: &Method, path: &str, body: &Value, key: &str) -> Reply {
        let request = self.client.request(method.clone(), format!("{}{path}", self.base));
        read(request.header("Idempotency-Key", key).json(body)).await
    }

    /// Sends every request again. Returns the number of those that were acknowledged, and are gone.
    pub async fn lost(&self, requests: &[Request]) -> usize {
        let of_client = |client: usize| async move {
            let mut lost = 0;
            for request in requests.iter().filter(|request| request.client == client && request.status.is_success()) {
                let Request { method, path, body, key, text, .. } = request;
                let again = until("it is repeated", async || {
                    Some(self.send(method, path, body, key).await).filter(|reply| reply.status != 503)
                })
                .await;
                if !again.replayed() {
                    lost += 1;
                    continue;
                }
                assert_eq!((again.status, &again.text), (request.status, text), "{key}");
            }
            lost
        };
        join_all((0..self.users.len()).map(of_client)).await.into_iter().sum()
    }

    /// Ends what was held for orders of unknown outcome: every order that was placed is paid.
    async fn end_holds(&self, test: &TestApp) {
        for server in std::iter::once(&test.redis).chain(&test.others) {
            let mut link = raw_redis(&server.url()).await;
            for partition in 0..self.partitions {
                let key = format!("{{p{partition}}}:holds");
                // A node refuses the keys of others.
                let held = redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1).query_async(&mut link).await;
                for hold in held.unwrap_or_else(|_| Vec::<String>::new()) {
                    redis::cmd("ZADD").arg(&key).arg("XX").arg(1).arg(hold).exec_async(&mut link).await.unwrap();
                }
            }
        }
        until("nothing is due", async || test.engine.sweep().await.ok()).await;
    }

    /// Asserts that every request was acknowledged, that no acknowledged one is gone, and that each had its effect once.
    pub async fn assert_kept(&self, test: &TestApp, requests: &[Request]) {
        let refused: Vec<_> = requests.iter().filter(|request| !request.status.is_success()).collect();
        assert!(refused.is_empty(), "{}: {} {}", refused[0].key, refused[0].status, refused[0].text);
        assert_eq!(self.lost(requests).await, 0, "acknowledged requests are gone");
        self.end_holds(test).await;
        let count = |kind: &str, of: &dyn Fn(&Request) -> bool| {
            let requests = requests.iter().filter(|request| request.key.ends_with(kind) && of(request));
            requests.count() as i64
        };
        for (client, user) in self.users.iter().enumerate() {
            let of_client = |request: &Request| request.client == client;
            let (charged, paid) = (count("charge", &of_client), count("pay", &of_client));
            let balance = test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"].as_i64();
            assert_eq!(balance, Some(BALANCE + 7 * charged - PRICE * paid), "user {user}");
            let coupons = test.get(&format!("/api/v1/coupons/{user}")).await.ok();
            assert_eq!(coupons.as_array().unwrap().len() as i64, count("issue", &of_client), "user {user}");
        }
        for product in &self.products {
            let of_product = |request: &Request| request.body["orderProducts"][0]["productId"] == *product;
            assert_eq!(test.stock(*product).await, STOCK - count("order", &of_product), "product {product}");
        }
    }
}

impl Request {
    fn id(&self, field: &str) -> Option<i64> {
        if !self.status.is_success() {
            return None;
        }
        serde_json::from_str::<Value>(&self.text).unwrap()[field].as_i64()
    }
}
