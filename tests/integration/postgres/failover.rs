//! PostgreSQL fails over, under load, to a streaming standby that lacks its last commits: nothing acknowledged is missing
//! afterwards, and no command is typed. See also `recovery::step_back`.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use firstcome::{
    dev::{self, RedisServer, ScratchDir},
    postgres,
};
use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;

use crate::{
    process::binary::{Running, Servers, get, post, put, run},
    support::{
        harness::{self, until},
        standby::{self, Standby},
    },
};

const PARTITIONS: u16 = 3;
const CLIENTS: usize = 6;
/// Decisions that each client makes that only the primary has.
const LOST: usize = 10;

/// A shop on a primary with a standby.
struct Pair {
    servers: Servers,
    standby: Option<Standby>,
}

async fn pool(url: &str) -> PgPool {
    PgPool::connect(url).await.unwrap()
}

impl Pair {
    async fn start() -> Pair {
        let dir = ScratchDir::new().unwrap();
        let redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
        let (postgres, standby) = standby::pair(&dir, false).await;
        let (redis_url, postgres_url) = (redis.url(), standby.url(&postgres, "postgres"));
        let servers = Servers { redis, postgres, redis_url, postgres_url, dir };
        let (status, said) = run(&mut servers.role(&["migrate"])).await;
        assert!(status.success(), "{said}");
        standby.caught_up(&servers.postgres).await;
        Pair { servers, standby: Some(standby) }
    }

    fn serve(&self, ack: &str, name: &str) -> Running {
        let partitions = PARTITIONS.to_string();
        let variables = [("ACK", ack), ("PARTITIONS", partitions.as_str()), ("ORDER_HOLD_SECONDS", "5")];
        self.servers.start_with(&["serve"], &variables, name)
    }

    /// The primary is gone, and the standby takes its place.
    async fn fail_over(&mut self) {
        self.servers.postgres.kill().await.unwrap();
        self.servers.postgres = self.standby.take().unwrap().promote().await;
    }
}

/// What the clients were told.
#[derive(Default)]
struct Acknowledged {
    /// Paid orders.
    orders: Vec<i64>,
    charges: Vec<i64>,
    coupons: Vec<(i64, i64)>,
}

/// A shop under load: users, products and campaigns in every partition.
struct Load {
    bases: Vec<String>,
    users: Vec<i64>,
    products: Vec<i64>,
    acknowledged: Mutex<Acknowledged>,
    /// Rounds that each client has finished.
    rounds: Mutex<Vec<usize>>,
    ended: AtomicBool,
}

impl Load {
    async fn prepare(bases: Vec<String>) -> Load {
        let base = &bases[0];
        let mut users = Vec::new();
        for _ in 0..CLIENTS {
            let user = json!({"userName": "A", "balance": 1_000_000});
            users.push(post(base, "/admin/v1/users", user).await.created()["userId"].as_i64().unwrap());
        }
        let mut products = Vec::new();
        for _ in 0..PARTITIONS {
            let product = json!({"productName": "P", "price": 100, "stockQuantity": 100_000, "category": "SHOES"});
            products.push(post(base, "/admin/v1/products", product).await.created()["productId"].as_i64().unwrap());
        }
        let homes: std::collections::BTreeSet<i64> =
            products.iter().map(|product| product % i64::from(PARTITIONS)).collect();
        assert_eq!(homes.len(), usize::from(PARTITIONS));
        let rounds = Mutex::new(vec![0; CLIENTS]);
        Load { bases, users, products, acknowledged: Mutex::default(), rounds, ended: AtomicBool::new(false) }
    }

    /// Orders of every product, so that stock is held in every partition; paid, refunded or left to expire. A 503 is a
    /// customer's bad luck.
    async fn client(&self, number: usize) {
        let (user, base) = (self.users[number], &self.bases[number % self.bases.len()]);
        for round in 0.. {
            if self.ended.load(SeqCst) {
                return;
            }
            let charge = put(base, &format!("/api/v1/balances/{user}"), json!({"amount": 300})).await;
            if charge.status == 200 {
                self.acknowledged.lock().unwrap().charges.push(user);
            }
            let lines: Vec<_> =
                self.products.iter().map(|product| json!({"productId": product, "quantity": 1})).collect();
            let order = post(base, "/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await;
            if order.status == 200 && round % 5 != 0 {
                let order = order.json()["orderId"].as_i64().unwrap();
                let pay = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 300});
                if post(base, "/api/v1/payments", pay).await.status == 200 {
                    self.acknowledged.lock().unwrap().orders.push(order);
                    if round % 3 == 0 {
                        post(base, &format!("/api/v1/orders/{order}/cancel"), json!({"userId": user})).await;
                    }
                }
            }
            if round % 4 == 0 {
                let campaign = json!({"couponCode": "C", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 5,
                    "expiredAt": "2099-01-01T00:00:00"});
                let created = post(base, "/admin/v1/coupons", campaign).await;
                if created.status == 201 {
                    let coupon = created.json()["couponId"].as_i64().unwrap();
                    let issue = json!({"couponId": coupon, "userId": user});
                    if post(base, "/api/v1/coupons/issue", issue).await.status == 200 {
                        self.acknowledged.lock().unwrap().coupons.push((coupon, user));
                    }
                }
            }
            self.rounds.lock().unwrap()[number] = round + 1;
        }
    }

    /// Waits until every client has made this many further rounds.
    async fn more(&self, rounds: usize) {
        let before = self.rounds.lock().unwrap().clone();
        until("the load goes on", async || {
            let now = self.rounds.lock().unwrap().clone();
            now.iter().zip(&before).all(|(now, before)| *now >= before + rounds).then_some(())
        })
        .await;
    }

    /// Everything that a client was told is in PostgreSQL.
    async fn is_all_there(&self, url: &str) {
        let db = pool(url).await;
        let (orders, charges, coupons) = {
            let acknowledged = self.acknowledged.lock().unwrap();
            (acknowledged.orders.clone(), acknowledged.charges.len() as i64, acknowledged.coupons.clone())
        };
        assert!(orders.len() > CLIENTS && !coupons.is_empty());
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM orders WHERE id = ANY($1) AND paid_at IS NOT NULL")
            .bind(&orders)
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(found, orders.len() as i64, "orders that were acknowledged as paid");
        let found: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM balance_entries WHERE transaction_type = 'CHARGE' AND amount = 300",
        )
        .fetch_one(&db)
        .await
        .unwrap();
        assert!(found >= charges, "{found} of {charges} charges");
        for (coupon, user) in coupons {
            let found: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM (SELECT coupon_id, user_id FROM user_coupons UNION
                     SELECT coupon_id, user_id FROM remote_coupons) AS issued WHERE coupon_id = $1 AND user_id = $2",
            )
            .bind(coupon)
            .bind(user)
            .fetch_one(&db)
            .await
            .unwrap();
            assert_eq!(found, 1, "coupon {coupon} of user {user}");
        }
        db.close().await;
    }
}

async fn decisions_survive(ack: &str) {
    let mut pair = Pair::start().await;
    let mut serves = [pair.serve(ack, "serve-1"), pair.serve(ack, "serve-2")];
    let mut bases = Vec::new();
    for serve in &mut serves {
        bases.push(serve.base().await);
    }
    let load = Arc::new(Load::prepare(bases.clone()).await);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let load = load.clone();
            tokio::spawn(async move { load.client(number).await })
        })
        .collect();
    load.more(2).await;
    pair.standby.as_ref().unwrap().cut().await;
    load.more(LOST).await;
    pair.fail_over().await;
    load.more(LOST).await;
    for base in &bases {
        until("it is ready", async || (get(base, "/readyz").await.status == 200).then_some(())).await;
    }
    load.ended.store(true, SeqCst);
    for client in join_all(clients).await {
        client.unwrap();
    }
    let rewound: std::collections::BTreeSet<u64> = serves
        .iter()
        .flat_map(|serve| serve.log())
        .filter(|line| {
            line["fields"]["message"].as_str().is_some_and(|said| said.starts_with("PostgreSQL has gone back"))
        })
        .map(|line| line["fields"]["partition"].as_u64().unwrap())
        .collect();
    assert_eq!(rewound.len(), usize::from(PARTITIONS), "{rewound:?}");
    let metrics = get(&bases[0], "/metrics").await.text;
    assert!(metrics.contains("firstcome_partition_freezes_total 0"), "a partition was frozen");
    // The orders that were left alone expire.
    until("every hold has ended", async || {
        let open = get(&bases[0], "/admin/v1/orders?status=PENDING").await;
        (open.status == 200 && open.json()["totalElements"] == 0).then_some(())
    })
    .await;
    let report = get(&bases[0], "/admin/v1/audit").await.ok();
    assert_eq!(report["balanced"], true, "{report:#}");
    load.is_all_there(&pair.servers.postgres_url).await;
    for serve in &mut serves {
        serve.stop().await;
    }
    pair.servers.end_of(PARTITIONS).await;
}

#[tokio::test]
async fn decisions_survive_standby_behind_when_redis_acknowledges() {
    decisions_survive("redis").await;
}

#[tokio::test]
async fn decisions_survive_standby_behind_when_postgres_acknowledges() {
    decisions_survive("postgres").await;
}

/// A standby is no primary that has gone back: its position is not believed, and connections to it are not kept.
#[tokio::test]
async fn standby_is_unavailable_until_promoted() {
    let mut pair = Pair::start().await;
    let mut serve = pair.serve("redis", "serve");
    let base = serve.base().await;
    let user = post(&base, "/admin/v1/users", json!({"userName": "A", "balance": 5})).await.created();
    let db = postgres::connect(&harness::postgres_config(&pair.servers.postgres_url)).await.unwrap();
    postgres::progress::projected(&db).await.unwrap();
    let standby = pair.standby.take().unwrap();
    standby.caught_up(&pair.servers.postgres).await;
    standby.lead_to(&standby.server);
    pair.servers.postgres.kill().await.unwrap();
    until("the standby is found and not used", async || {
        let refused = postgres::progress::projected(&db).await.expect_err("a standby is used");
        refused.to_string().contains("is a standby").then_some(())
    })
    .await;
    let path = format!("/api/v1/balances/{}", user["userId"]);
    put(&base, &path, json!({"amount": 1})).await.ok();
    pair.servers.postgres = standby.promote().await;
    until("it is used as primary", async || postgres::progress::projected(&db).await.ok()).await;
    db.close().await.unwrap();
    serve.stop().await;
    pair.servers.end_of(PARTITIONS).await;
}
