//! Several `firstcome serve` processes behind one address and several `firstcome project` processes are killed, stopped
//! and replaced under load. Every acknowledged decision survives.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::RwLock,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    process::binary::{ADMIN, Running, Servers, get, post, run},
    support::harness::{Reply, until},
};

const PARTITIONS: u16 = 2;
const USERS: usize = 16;
/// Every user wants one unit of each product; there are units for half of the users.
const PRODUCTS: usize = 6;
const CAMPAIGNS: usize = 3;
const EACH: i64 = USERS as i64 / 2;
const PRICE: i64 = 1_000;
const FIRST_BALANCE: i64 = 1_000_000;
const HOLD: Duration = Duration::from_secs(20);
/// The entries of a user's history that are read, at most.
const MAX_ENTRIES: usize = 1_000;

/// A round-robin load balancer that skips instances that refuse the connection.
pub struct Balancer {
    pub address: SocketAddr,
    instances: Arc<RwLock<Vec<SocketAddr>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Balancer {
    pub async fn start() -> Balancer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let instances = Arc::new(RwLock::new(Vec::new()));
        let behind = instances.clone();
        let accepting = tokio::spawn(async move {
            let mut links = JoinSet::new();
            for turn in 0_usize.. {
                let Ok((mut client, _)) = listener.accept().await else { return };
                while links.try_join_next().is_some() {}
                let behind = behind.clone();
                links.spawn(async move {
                    if let Some(mut instance) = connect(&behind, turn).await {
                        // When either side ends the connection, both are closed.
                        let _ = copy_bidirectional(&mut client, &mut instance).await;
                    }
                });
            }
        });
        Balancer { address, instances, accepting }
    }

    pub async fn add(&self, base: &str) {
        self.instances.write().await.push(address_of(base));
    }

    /// On return the instance has accepted every connection that was being opened.
    pub async fn remove(&self, base: &str) {
        self.instances.write().await.retain(|instance| *instance != address_of(base));
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Holds the lock until the connection is open.
async fn connect(instances: &RwLock<Vec<SocketAddr>>, turn: usize) -> Option<TcpStream> {
    let instances = instances.read().await;
    for n in 0..instances.len() {
        if let Ok(instance) = TcpStream::connect(instances[(turn + n) % instances.len()]).await {
            return Some(instance);
        }
    }
    None
}

fn address_of(base: &str) -> SocketAddr {
    base.strip_prefix("http://").unwrap().parse().unwrap()
}

/// The deployment as the clients of the test see it.
struct Deployment {
    balancer: Balancer,
    /// The instances whose state is compared with the replies.
    checked: Mutex<BTreeSet<String>>,
    client: reqwest::Client,
    products: Vec<i64>,
    campaigns: Vec<i64>,
    /// Writes with a known outcome.
    settled: AtomicUsize,
    /// Attempts without a reply or with a 503.
    failed_attempts: AtomicUsize,
    /// The units paid and not refunded, by product.
    sold: Vec<AtomicI64>,
    /// The issue numbers of the coupons, by campaign.
    issued: Vec<Mutex<Vec<i64>>>,
}

impl Deployment {
    /// Sends a write under a key until its outcome is known.
    async fn settle(&self, method: Method, path: &str, body: &Value, key: &str) -> Reply {
        let url = format!("http://{}{path}", self.balancer.address);
        let reply = until("a write has an outcome", async || {
            let request = self.client.request(method.clone(), &url).header("Idempotency-Key", key).json(body);
            let Ok(response) = request.send().await else {
                self.failed_attempts.fetch_add(1, SeqCst);
                return None;
            };
            let (status, headers) = (response.status(), response.headers().clone());
            let Ok(text) = response.text().await else {
                self.failed_attempts.fetch_add(1, SeqCst);
                return None;
            };
            let again = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
                || text.contains("REQUEST_IN_PROGRESS");
            self.failed_attempts.fetch_add(usize::from(again), SeqCst);
            (!again).then_some(Reply { status, headers, text })
        })
        .await;
        self.settled.fetch_add(1, SeqCst);
        reply
    }

    /// Reads `path` from every instance and checks the reply.
    async fn check_everywhere(&self, path: &str, holds: impl Fn(&Value) -> bool) {
        let checked = self.checked.lock().unwrap().clone();
        for base in checked {
            match self.client.get(format!("{base}{path}")).send().await {
                Ok(reply) => {
                    let (status, text) = (reply.status(), reply.text().await.unwrap_or_default());
                    if self.checked.lock().unwrap().contains(&base) {
                        assert_eq!(status, 200, "{base}{path}: {text}");
                        assert!(holds(&serde_json::from_str(&text).unwrap()), "{base}{path}: {text}");
                    }
                }
                Err(error) => assert!(!self.checked.lock().unwrap().contains(&base), "{error}"),
            }
        }
    }

    /// One client, until `stop`.
    async fn shop(&self, nth: usize, user: i64, stop: &CancellationToken) -> (i64, usize) {
        let (mut balance, mut entries) = (FIRST_BALANCE, usize::from(FIRST_BALANCE > 0));
        let key = |what: &str, round: usize| format!("{what}-{user}-{round}");
        for round in 0.. {
            if round >= PRODUCTS && (stop.is_cancelled() || entries + 1 >= MAX_ENTRIES) {
                break;
            }
            if let Some(campaign) = self.campaigns.get(round) {
                let body = json!({"couponId": campaign, "userId": user});
                let reply = self.settle(Method::POST, "/api/v1/coupons/issue", &body, &key("issue", round)).await;
                let won = reply.status == 200;
                match won {
                    true => self.issued[round].lock().unwrap().push(reply.ok()["issueNo"].as_i64().unwrap()),
                    false => reply.refused(409, "COUPON_OUT_OF_STOCK"),
                }
                let has = |coupons: &Value| coupons.as_array().unwrap().iter().any(|one| one["couponId"] == *campaign);
                self.check_everywhere(&format!("/api/v1/coupons/{user}"), |coupons| has(coupons) == won).await;
            }
            if let Some(product) = self.products.get(round) {
                let lines = json!([{"productId": product, "quantity": 1}]);
                let body = json!({"userId": user, "orderProducts": lines});
                let placed = Instant::now();
                let reply = self.settle(Method::POST, "/api/v1/orders", &body, &key("order", round)).await;
                if reply.status == 200 {
                    let order = reply.ok()["orderId"].as_i64().unwrap();
                    let path = format!("/api/v1/orders/{order}?userId={user}");
                    // The order may have expired if the machine stalled for longer than the hold.
                    let late = || placed.elapsed() >= HOLD;
                    self.check_everywhere(&path, |order| order["orderStatus"] == "PENDING" || late()).await;
                    let body = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": PRICE});
                    let paid = self.settle(Method::POST, "/api/v1/payments", &body, &key("pay", round)).await;
                    if paid.status == 400 && late() {
                        self.check_everywhere(&path, |order| order["closeReason"] == "EXPIRED").await;
                    } else {
                        paid.ok();
                        (balance, entries) = (balance - PRICE, entries + 1);
                        self.check_everywhere(&path, |order| order["orderStatus"] == "PAID").await;
                        if nth.is_multiple_of(3) {
                            let path = format!("/api/v1/orders/{order}/cancel");
                            self.settle(Method::POST, &path, &json!({"userId": user}), &key("cancel", round))
                                .await
                                .ok();
                            (balance, entries) = (balance + PRICE, entries + 1);
                        } else {
                            self.sold[round].fetch_add(1, SeqCst);
                        }
                    }
                } else {
                    reply.refused(409, "SOLD_OUT");
                }
            }
            let path = format!("/api/v1/balances/{user}");
            let charged = self.settle(Method::PUT, &path, &json!({"amount": 1}), &key("charge", round)).await.ok();
            (balance, entries) = (balance + 1, entries + 1);
            assert_eq!(charged["balance"], balance);
            self.check_everywhere(&path, |seen| seen["balance"] == balance).await;
        }
        (balance, entries)
    }
}

const VARIABLES: [(&str, &str); 4] = [
    ("PARTITIONS", "2"),
    ("NO_PROJECTOR", "true"),
    ("DRAIN_DELAY_SECONDS", "3"),
    // With two partitions, this is the time until the hold of an order that was never placed is released.
    ("ORDER_HOLD_SECONDS", "20"),
];

async fn serve(servers: &Servers, shop: Option<&Deployment>, name: &str) -> (Running, String) {
    let mut serve = servers.start_with(&["serve"], &VARIABLES, name);
    let base = serve.base().await;
    if let Some(shop) = shop {
        shop.join(&base).await;
    }
    (serve, base)
}

impl Deployment {
    async fn join(&self, base: &str) {
        self.balancer.add(base).await;
        self.checked.lock().unwrap().insert(base.to_owned());
    }

    /// Waits until the clients have done this many further writes.
    async fn wait_for_writes(&self, writes: usize) {
        let goal = self.settled.load(SeqCst) + writes;
        until("the crowd goes on", async || (self.settled.load(SeqCst) >= goal).then_some(())).await;
    }
}

fn project(servers: &Servers, name: &str) -> Running {
    servers.start_with(&["project"], &[("PARTITIONS", "2"), ("ORDER_HOLD_SECONDS", "20")], name)
}

/// Kills, stops and replaces every process under load.
async fn replace_processes(
    servers: &Servers,
    shop: &Deployment,
    (mut first, mut second): ((Running, String), (Running, String)),
    (mut projects, mut spare): (Running, Running),
) -> [Running; 3] {
    // One instance is killed; its clients move to the other.
    shop.wait_for_writes(4 * USERS).await;
    shop.checked.lock().unwrap().remove(&first.1);
    first.0.child.kill().await.unwrap();
    shop.wait_for_writes(USERS).await;
    shop.balancer.remove(&first.1).await;
    let (third, _) = serve(servers, Some(shop), "third").await;

    // The other one is replaced in order, which no client notices.
    shop.wait_for_writes(2 * USERS).await;
    let (fourth, _) = serve(servers, Some(shop), "fourth").await;
    let failed_attempts = shop.failed_attempts.load(SeqCst);
    shop.checked.lock().unwrap().remove(&second.1);
    second.0.signal(Signal::TERM);
    let ready = format!("{}/readyz", second.1);
    let asks = async || shop.client.get(&ready).send().await.map(|reply| reply.status().as_u16());
    until("it says that it is stopping, or has stopped", async || (asks().await.ok() != Some(200)).then_some(())).await;
    shop.balancer.remove(&second.1).await;
    // The stopping instance accepts connections during the drain delay, unless the machine stalls for as long.
    let in_time = asks().await.ok() == Some(503);
    println!("the instance that is stopped is seen to do so in time: {in_time}");
    let status = second.0.ended().await;
    assert!(status.success(), "{status}\n{}", second.0.err());
    if in_time {
        assert_eq!(
            shop.failed_attempts.load(SeqCst),
            failed_attempts,
            "a client noticed the replacement of an instance"
        );
    }

    // One projector is killed. The other is stopped, and its stop does not wait for an empty outbox.
    shop.wait_for_writes(2 * USERS).await;
    projects.child.kill().await.unwrap();
    shop.wait_for_writes(2 * USERS).await;
    let third_projects = project(servers, "third-projects");
    spare.signal(Signal::TERM);
    let status = spare.ended().await;
    assert!(status.success(), "{status}\n{}", spare.err());
    assert!(spare.logged("the outbox is drained").is_some(), "{}", spare.err());
    shop.wait_for_writes(2 * USERS).await;
    [third, fourth, third_projects]
}

#[tokio::test]
async fn instances_replaced_under_load_keep_acknowledged_decisions() {
    let servers = Servers::start().await;
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "{said}");
    // All processes start concurrently on a new store.
    let (first, second) = tokio::join!(serve(&servers, None, "first"), serve(&servers, None, "second"));
    let (projects, spare) = (project(&servers, "projects"), project(&servers, "projects-spare"));

    let base = &first.1;
    let product = json!({"productName": "P", "price": PRICE, "stockQuantity": EACH, "category": "SHOES"});
    let campaign = json!({"couponCode": "C", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": EACH,
        "expiredAt": "2099-01-01T00:00:00"});
    let (mut products, mut campaigns, mut users) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PRODUCTS {
        products.push(post(base, "/admin/v1/products", product.clone()).await.created()["productId"].as_i64().unwrap());
    }
    for _ in 0..CAMPAIGNS {
        campaigns.push(post(base, "/admin/v1/coupons", campaign.clone()).await.created()["couponId"].as_i64().unwrap());
    }
    for _ in 0..USERS {
        let user = json!({"userName": "A", "balance": FIRST_BALANCE});
        users.push(post(base, "/admin/v1/users", user).await.created()["userId"].as_i64().unwrap());
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shop = Deployment {
        balancer: Balancer::start().await,
        checked: Mutex::default(),
        // Each request has a new connection, so that every client reaches every instance.
        client: reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(300))
            .build()
            .unwrap(),
        products,
        campaigns,
        settled: AtomicUsize::new(0),
        failed_attempts: AtomicUsize::new(0),
        sold: (0..PRODUCTS).map(|_| AtomicI64::new(0)).collect(),
        issued: (0..CAMPAIGNS).map(|_| Mutex::default()).collect(),
    };
    for base in [&first.1, &second.1] {
        shop.join(base).await;
    }

    let stop = CancellationToken::new();
    let crowd = join_all(users.iter().enumerate().map(|(nth, user)| shop.shop(nth, *user, &stop)));
    let operator = async {
        let left = replace_processes(&servers, &shop, (first, second), (projects, spare)).await;
        stop.cancel();
        left
    };
    let (replies, [mut third, mut fourth, mut projects]) = tokio::join!(crowd, operator);
    println!("{:?} writes, {:?} attempts in vain", shop.settled, shop.failed_attempts);
    assert!(shop.failed_attempts.load(SeqCst) < shop.settled.load(SeqCst), "most attempts failed");

    // Every instance has every acknowledged effect, and so has PostgreSQL once everything is projected.
    let bases = shop.checked.lock().unwrap().clone();
    assert_eq!(bases.len(), 2);
    for base in &bases {
        until("PostgreSQL has caught up", async || {
            let projection = get(base, "/admin/v1/projection").await.ok();
            assert_eq!(projection["deadLetters"], 0);
            (projection["lagEvents"] == 0).then_some(())
        })
        .await;
        for ((user, (balance, entries)), nth) in users.iter().zip(&replies).zip(0..) {
            assert_eq!(get(base, &format!("/api/v1/balances/{user}")).await.ok()["balance"], *balance, "user {nth}");
            let history = get(base, &format!("/api/v1/balances/{user}/history?limit={MAX_ENTRIES}")).await.ok();
            assert_eq!(history.as_array().unwrap().len(), *entries, "user {nth}");
        }
        for (product, sold) in shop.products.iter().zip(&shop.sold) {
            // A unit held by an order whose instance died returns to sale.
            until("nothing is held any more", async || {
                let left =
                    get(base, &format!("/api/v1/products/{product}")).await.ok()["stockQuantity"].as_i64().unwrap();
                assert!(left <= EACH - sold.load(SeqCst), "{left} left, {sold:?} sold");
                (left == EACH - sold.load(SeqCst)).then_some(())
            })
            .await;
        }
    }
    for issued in &shop.issued {
        let issued: BTreeSet<i64> = issued.lock().unwrap().iter().copied().collect();
        assert_eq!(issued, (1..=EACH).collect(), "the issue numbers are not exactly 1..=EACH");
    }
    let audit = get(bases.first().unwrap(), "/admin/v1/audit").await.ok();
    assert_eq!(audit["balanced"], true, "{audit}");
    assert!(!third.err().contains(ADMIN));
    for running in [&mut third, &mut fourth, &mut projects] {
        running.stop().await;
    }
    let (status, said) = run(&mut servers.role(&["audit"])).await;
    assert_eq!(status.code(), Some(0), "{said}");
    servers.end_of(PARTITIONS).await;
}
