//! A Redis that keeps nothing (`REDIS_DURABILITY=none`) comes back empty while services run: one of them rebuilds it from
//! PostgreSQL, which has everything that was acknowledged (`ACK=postgres`), and the sale goes on without a command.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

use firstcome::{
    config::{Ack, RedisDurability},
    dev::{self, RedisServer, ScratchDir},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::durability::reopen,
    process::binary::{Running, Servers, get, post, run},
    support::harness::{self, Options, until},
};

const CLIENTS: usize = 8;
const UNITS: i64 = 500;
/// Writes that are acknowledged before each fault, and after the last one.
const BETWEEN_FAULTS: usize = 60;

/// The crowd's side: what was acknowledged.
struct Crowd {
    bases: [String; 2],
    product: i64,
    acknowledged: AtomicUsize,
    sold: AtomicI64,
}

impl Crowd {
    /// A write under a key, repeated at any instance until its outcome is known.
    async fn settle(&self, method: Method, path: &str, body: &Value, key: &str) -> Value {
        let (client, turn) = (harness::client(), AtomicUsize::new(0));
        let settled = until("a write has an outcome", async || {
            let base = &self.bases[turn.fetch_add(1, SeqCst) % self.bases.len()];
            let request = client.request(method.clone(), format!("{base}{path}"));
            let reply = request.header("Idempotency-Key", key).json(body).send().await.ok()?;
            let (status, text) = (reply.status(), reply.text().await.ok()?);
            if status == 503 || text.contains("REQUEST_IN_PROGRESS") {
                return None;
            }
            assert_eq!(status, 200, "{path}: {text}");
            serde_json::from_str(&text).ok()
        })
        .await;
        self.acknowledged.fetch_add(1, SeqCst);
        settled
    }

    /// Charges and orders until `stop`; returns the balance that the user was told last.
    async fn shop(&self, user: i64, stop: &CancellationToken) -> i64 {
        let mut balance = 0;
        for round in 0.. {
            if stop.is_cancelled() {
                break;
            }
            let path = format!("/api/v1/balances/{user}");
            let charged =
                self.settle(Method::PUT, &path, &json!({"amount": 10}), &format!("charge-{user}-{round}")).await;
            balance += 10;
            assert_eq!(charged["balance"], balance, "an acknowledged charge is gone, or was made twice");
            if round % 4 == 0 {
                let lines = json!([{"productId": self.product, "quantity": 1}]);
                let body = json!({"userId": user, "orderProducts": lines});
                let order = self.settle(Method::POST, "/api/v1/orders", &body, &format!("order-{user}-{round}")).await;
                let (order, key) = (order["orderId"].as_i64().unwrap(), format!("pay-{user}-{round}"));
                let pay = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 10});
                self.settle(Method::POST, "/api/v1/payments", &pay, &key).await;
                balance -= 10;
                self.sold.fetch_add(1, SeqCst);
            }
        }
        balance
    }
}

async fn start(servers: &Servers, name: &str) -> (Running, String) {
    let variables = [
        ("REDIS_DURABILITY", "none"),
        ("ACK", "postgres"),
        ("REDIS_TIMEOUT_MS", "2000"),
        ("MAX_OPEN_ORDERS_PER_USER", "1000"),
    ];
    let mut running = servers.start_with(&["serve"], &variables, name);
    let base = running.base().await;
    (running, base)
}

#[tokio::test]
async fn emptied_redis_rebuilt_by_running_services_under_load() {
    let mut servers = Servers::start().await;
    servers.redis.add_args(&["--appendonly", "no"]);
    servers.redis.restart().await.unwrap();
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let (mut first, a) = start(&servers, "first").await;
    let (mut second, b) = start(&servers, "second").await;
    let product = json!({"productName": "A", "price": 10, "stockQuantity": UNITS, "category": "SHOES"});
    let product = post(&a, "/admin/v1/products", product).await.created()["productId"].as_i64().unwrap();
    let users =
        post(&a, "/admin/v1/users/bulk", json!({"count": CLIENTS})).await.created()["firstUserId"].as_i64().unwrap();
    let crowd =
        Crowd { bases: [a.clone(), b], product, acknowledged: AtomicUsize::default(), sold: AtomicI64::default() };
    let stop = CancellationToken::new();
    let clients = futures_util::future::join_all((users..).take(CLIENTS).map(|user| crowd.shop(user, &stop)));
    let faults = async {
        let more = async || {
            let goal = crowd.acknowledged.load(SeqCst) + BETWEEN_FAULTS;
            until("the sale goes on", async || (crowd.acknowledged.load(SeqCst) >= goal).then_some(())).await;
        };
        more().await;
        let mut redis = harness::raw_redis(&servers.redis_url).await;
        let _: () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
        more().await;
        servers.redis.kill().await.unwrap();
        servers.redis.restart().await.unwrap();
        more().await;
        stop.cancel();
    };
    let (balances, ()) = tokio::join!(clients, faults);
    for (user, balance) in (users..).zip(balances) {
        assert_eq!(get(&a, &format!("/api/v1/balances/{user}")).await.ok()["balance"], balance);
    }
    let left = get(&a, &format!("/api/v1/products/{product}")).await.ok()["stockQuantity"].as_i64().unwrap();
    assert_eq!(left, UNITS - crowd.sold.load(SeqCst), "nothing acknowledged is lost, nothing is kept off sale");
    assert_eq!(get(&a, "/admin/v1/withheld").await.ok()["products"], json!([]));
    let rebuilt = [&first, &second].map(|service| service.err().matches("Redis is rebuilt from PostgreSQL").count());
    assert_eq!(rebuilt.iter().sum::<usize>(), 2, "once for each fault");
    let (status, said) = run(&mut servers.role(&["audit"])).await;
    assert!(status.success(), "{said}");
    first.stop().await;
    second.stop().await;
    servers.end().await;
}

/// Evicted keys make wrong decisions, which no durability makes good: also where only `INFO` tells the policy.
#[tokio::test]
async fn start_refused_when_redis_evicts_whatever_durability_is_asserted() {
    for closed in [&[][..], &["--rename-command", "CONFIG", ""]] {
        let dir = ScratchDir::new().unwrap();
        let mut config = dev::RedisServerConfig::new(dir.path().join("redis"));
        let evicts = ["--maxmemory-policy", "allkeys-lru"];
        config.extra_args = evicts.iter().chain(closed).map(|arg| (*arg).to_owned()).collect();
        let mut redis = RedisServer::start(config).await.unwrap();
        let database = harness::fresh_database().await;
        let mut config = harness::engine_config(&Options::default(), &redis.url(), &harness::postgres_url(&database));
        config.durability.ack = Ack::Postgres;
        for durability in [RedisDurability::Checked, RedisDurability::Asserted, RedisDurability::None] {
            config.redis.redis_durability = durability;
            let Err(error) = reopen(&config).await else { panic!("{durability:?}: it was opened") };
            assert!(format!("{error:#}").contains("maxmemory-policy is allkeys-lru"), "{durability:?}: {error:#}");
        }
        redis.kill().await.unwrap();
        harness::drop_database(&database).await;
    }
}

/// A Redis without persistence needs `ACK=postgres`.
#[tokio::test]
async fn start_refused_when_redis_keeps_nothing_and_replies_do_not_wait_for_postgres() {
    let mut config = harness::engine_config(&Options::default(), "redis://127.0.0.1:1", "postgres://a@127.0.0.1:1/b");
    config.redis.redis_durability = RedisDurability::None;
    let Err(error) = reopen(&config).await else { panic!("it was opened") };
    assert!(error.to_string().starts_with("REDIS_DURABILITY=none needs ACK=postgres"), "{error:#}");
}
