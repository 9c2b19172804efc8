//! The projection: each event is applied once, in batches of any size; invalid events become dead letters, gaps stop the
//! projection, and PostgreSQL may be down.

mod batches;
mod faults;
mod history;
mod outages;

use std::{collections::BTreeMap, time::Duration};

use firstcome::{
    app::App,
    config::*,
    dev::{self, PostgresServer, RedisServer, ScratchDir},
    model::{Clock, event},
    postgres,
    projector::Projector,
};
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use sea_orm::DatabaseConnection;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;

use crate::support::{
    harness::{self, ADMIN, Options, Reply, TestApp, until},
    invariants,
    outbox::{self, entries},
};

const OUTBOX: &str = "{p0}:outbox";
const META: &str = "{p0}:meta";

/// Every row of every table, without the times at which they were written.
async fn tables(db: &DatabaseConnection) -> BTreeMap<&'static str, Vec<String>> {
    let mut all = BTreeMap::new();
    for table in [
        "balance_entries",
        "campaigns",
        "dead_letters",
        "events",
        "order_lines",
        "order_refunds",
        "order_totals",
        "orders",
        "payments",
        "products",
        "projection_positions",
        "user_coupons",
        "users",
    ] {
        let sql = format!("SELECT (to_jsonb(t) - 'updated_at' - 'recorded_at')::text FROM {table} AS t ORDER BY 1");
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(db.get_postgres_connection_pool()).await.unwrap();
        all.insert(table, rows);
    }
    all
}

async fn count(db: &DatabaseConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(db.get_postgres_connection_pool()).await.unwrap()
}

fn ids(reply: &Value) -> i64 {
    reply["orderId"].as_i64().unwrap()
}

/// The requests of a shop's day: they cause almost every kind of event, and every end of an order.
pub async fn busy_day(test: &TestApp) {
    let (user, poor) = (test.user(500_000).await, test.user(0).await);
    test.post("/admin/v1/users/bulk", json!({"count": 7, "namePrefix": "손님", "balance": 3_000})).await.created();
    let (shoes, shirt, free) =
        (test.product(49_900, 40).await, test.product(12_000, 9).await, test.product(0, 3).await);
    let (fixed, percent) = (test.campaign("FIXED", 1_000, 2).await, test.campaign("PERCENTAGE", 33, 9).await);
    for coupon in [fixed, percent] {
        for holder in [user, poor] {
            test.issue(coupon, holder).await.ok();
        }
    }
    test.issue(fixed, user + 2).await.refused(409, "COUPON_OUT_OF_STOCK");
    for amount in [1, 100_000, 20] {
        test.put(&format!("/api/v1/balances/{poor}"), json!({"amount": amount})).await.ok();
    }
    let local = |ms: i64| test.clock.now().plus(ms).local(test.engine.zone());
    let order = |lines: Value, coupon: Option<i64>| {
        test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines, "userCouponId": coupon}))
    };
    let one = |product: i64, quantity: i64| json!([{"productId": product, "quantity": quantity}]);
    // Paid with a coupon; paid with the other one and refunded; cancelled; failed; free of charge; expired.
    let both = json!([{"productId": shoes, "quantity": 2}, {"productId": shirt, "quantity": 3}]);
    let kept = order(both.clone(), Some(percent)).await.ok();
    test.pay(ids(&kept), user, "CARD", kept["finalPrice"].as_i64().unwrap()).await.ok();
    let refunded = order(both, Some(fixed)).await.ok();
    test.pay(ids(&refunded), user, "KAKAO_PAY", refunded["finalPrice"].as_i64().unwrap()).await.ok();
    test.cancel(ids(&refunded), user).await.ok();
    let cancelled = order(one(shoes, 1), Some(fixed)).await.ok();
    test.cancel(ids(&cancelled), user).await.ok();
    let (dear, failing) = (order(one(shoes, 8), None).await.ok(), order(one(shirt, 5), Some(fixed)).await.ok());
    test.pay(ids(&dear), user, "TOSS", 8 * 49_900).await.ok();
    test.pay(ids(&failing), user, "TOSS", failing["finalPrice"].as_i64().unwrap())
        .await
        .refused(402, "INSUFFICIENT_BALANCE");
    let nothing = order(one(free, 2), None).await.ok();
    test.pay(ids(&nothing), user, "CARD", 0).await.ok();
    test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 20_000})).await.ok();
    order(one(shirt, 1), Some(fixed)).await.ok();
    test.clock.advance(700_000);
    assert!(test.engine.sweep().await.unwrap() >= 1);
    order(one(free, 1), None).await.ok();
    let patch = json!({"productName": "새 이름", "price": 13_000, "category": "TOP", "stockDelta": 5});
    test.send(Method::PATCH, &format!("/admin/v1/products/{shirt}"), Some(&patch), None).await.ok();
    // Sold within a window and up to a limit: paid, cancelled, above the limit, and outside of the window.
    let (opens_at, closes_at) = (local(0), local(86_400_000));
    let limited = |group: Value, limit: i64| {
        json!({"productName": "한정판", "price": 3, "stockQuantity": 9, "category": "SHOES",
        "opensAt": opens_at, "closesAt": closes_at, "limitPerUser": limit, "limitGroup": group})
    };
    let rare =
        test.post("/admin/v1/products", limited(json!("RARE-1"), 2)).await.created()["productId"].as_i64().unwrap();
    let own = test.post("/admin/v1/products", limited(Value::Null, 3)).await.created()["productId"].as_i64().unwrap();
    for cancels in [false, true] {
        let bought =
            order(json!([{"productId": rare, "quantity": 1}, {"productId": own, "quantity": 1}]), None).await.ok();
        test.pay(ids(&bought), user, "CARD", 6).await.ok();
        if cancels {
            test.cancel(ids(&bought), user).await.ok();
        }
    }
    order(one(rare, 2), None).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
    for terms in [json!({"opensAt": local(60_000), "limitPerUser": 9}), json!({"closesAt": null, "limitPerUser": 5})] {
        test.send(Method::PATCH, &format!("/admin/v1/products/{own}"), Some(&terms), None).await.ok();
    }
    order(one(own, 1), None).await.refused(409, "NOT_ON_SALE");
    // Coupons with conditions: used, and not met.
    let conditional = |conditions: Value| {
        let mut new = json!({"couponCode": "IF", "discountType": "PERCENTAGE", "discountAmount": 50,
            "totalQuantity": 5, "expiredAt": local(86_400_000)});
        new.as_object_mut().unwrap().extend(conditions.as_object().unwrap().clone());
        async move {
            let coupon = test.post("/admin/v1/coupons", new).await.created()["couponId"].as_i64().unwrap();
            test.issue(coupon, user).await.ok();
            coupon
        }
    };
    let coat = test.product(13_000, 5).await;
    let of_coats = conditional(json!({"minOrderPrice": 13_000, "maxDiscountPrice": 3_000, "productIds": [coat]})).await;
    let of_shoes = conditional(json!({"minOrderPrice": 9_000_000, "categories": ["SHOES", "TOP"]})).await;
    assert_eq!(order(one(coat, 1), Some(of_coats)).await.ok()["finalPrice"], 10_000);
    order(one(coat, 1), Some(of_shoes)).await.refused(400, "INVALID_COUPON");
    let patch = json!({"stockDelta": -4});
    test.send(Method::PATCH, &format!("/admin/v1/products/{shirt}"), Some(&patch), None).await.ok();
    // Refunded in parts, of which one stays off sale, and then as a whole, which does too; and an order that is left in part.
    let (sock, gift) = (test.product(1_001, 20).await, test.product(0, 9).await);
    let parts = json!([{"productId": sock, "quantity": 3}, {"productId": gift, "quantity": 1}]);
    for is_left in [false, true] {
        let bought = order(parts.clone(), None).await.ok();
        test.pay(ids(&bought), user, "CARD", 3_003).await.ok();
        test.refund_lines(ids(&bought), user, &[(sock, 1)]).await.ok();
        let used = json!({"lines": [{"productId": sock, "quantity": 1}], "restock": false, "reason": "착용 흔적"});
        test.refund(ids(&bought), used).await.ok();
        if !is_left {
            test.refund(ids(&bought), json!({"restock": false, "reason": "반품"})).await.ok();
        }
    }
    // Closed early, and then opened again for less time than at first.
    for closes_in in [0, 3_600_000] {
        let closes_at = test.clock.now().plus(closes_in).local(test.engine.zone());
        let patch = json!({"closesAt": closes_at});
        test.send(Method::PATCH, &format!("/admin/v1/coupons/{percent}"), Some(&patch), None).await.ok();
    }
    // From elsewhere: new, renamed, and with an opening balance for one that has none yet.
    for (foreign, name, balance) in
        [(501, "가", 700), (502, "나", 0), (501, "다", 900), (502, "나", 30), (502, "라", 0)]
    {
        test.put(&format!("/admin/v1/users/{foreign}"), json!({"userName": name, "balance": balance})).await;
    }
    // Forgotten, with a balance and without.
    for gone in
        ["501?forfeit=true".to_owned(), (user + 2).to_string() + "?forfeit=true", test.user(0).await.to_string()]
    {
        test.send(Method::DELETE, &format!("/admin/v1/users/{gone}"), None, None).await;
    }
}

/// Adds an entry to the outbox as a script does, with the next position if `position` is set.
pub async fn poison(redis: &mut MultiplexedConnection, position: bool, fields: &[(&str, &[u8])]) -> String {
    let mut add = redis::cmd("XADD");
    add.arg(OUTBOX).arg("*");
    if position {
        let seq: i64 = redis::cmd("HINCRBY").arg(META).arg("seq").arg(1).query_async(redis).await.unwrap();
        add.arg("epoch").arg(1).arg("seq").arg(seq);
    }
    for (name, value) in fields {
        add.arg(*name).arg(*value);
    }
    add.query_async(redis).await.unwrap()
}

/// Adds the outbox's last event again, with the next position.
async fn again(redis: &mut MultiplexedConnection) -> String {
    let (_, fields) = entries(redis, 0).await.pop().unwrap();
    let fields = event::fields_of(&fields, 0);
    let fields: Vec<(&str, &[u8])> = fields
        .iter()
        .filter(|(name, _)| name != "epoch" && name != "seq")
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    poison(redis, true, &fields).await
}

async fn history(test: &TestApp, user: i64, query: &str) -> Vec<Value> {
    let reply = test.get(&format!("/api/v1/balances/{user}/history{query}")).await.ok();
    reply.as_array().unwrap().clone()
}

/// A service with a PostgreSQL server of its own, which the test may stop, and a short timeout of PostgreSQL.
pub struct RestartableApp {
    pub app: App,
    pub base: String,
    client: reqwest::Client,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    pub postgres: PostgresServer,
    pub redis: RedisServer,
    _dir: ScratchDir,
}

impl RestartableApp {
    pub async fn open() -> RestartableApp {
        let dir = ScratchDir::new().unwrap();
        let mut config = dev::PostgresServerConfig::new(dir.path().join("postgres"));
        config.fsync = false;
        let redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis")));
        let (postgres, redis) = tokio::join!(PostgresServer::start(config), redis);
        let (postgres, redis) = (postgres.unwrap(), redis.unwrap());
        let url = postgres.url("postgres");
        let migrating = postgres::connect(&harness::postgres_config(&url)).await.unwrap();
        postgres::migrate(&migrating).await.unwrap();
        migrating.close().await.unwrap();
        let mut config = harness::engine_config(&Options::default(), &redis.url(), &url);
        config.postgres.database_timeout_ms = 5_000;
        let app = App::open(
            &config,
            &ProjectorConfig {
                projector_batch: 3,
                projector_linger_ms: 0,
                outbox_keep_seconds: 0,
                ..ProjectorConfig::default()
            },
            Clock::system(),
        )
        .await
        .unwrap();
        app.project();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let http = HttpConfig {
            bind_addr: address,
            ops_bind_addr: None,
            operators: OperatorsConfig::admin(ADMIN),
            request_timeout_ms: 300_000,
            body_limit_bytes: 65_536,
            max_connections: 100,
            listen_backlog: 16_384,
            header_timeout_ms: 300_000,
            drain_seconds: 300,
            drain_delay_seconds: None,
            limits: LimitsConfig::off(),
            browsers: BrowserConfig::default(),
            metrics: MetricsConfig::default(),
            auth: AuthConfig::default(),
        };
        let (router, stop) = (app.router(&http).unwrap(), CancellationToken::new());
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            firstcome::http::server::serve(listener, router, firstcome::http::server::ServerLimits::default(), stopped)
                .await
                .unwrap();
        });
        let base = format!("http://{address}");
        RestartableApp { app, base, client: harness::client(), stop, serving, postgres, redis, _dir: dir }
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(ADMIN);
        if let Some(body) = &body {
            request = request.json(body);
        }
        harness::read(request).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body)).await
    }

    pub async fn charge(&self, user: i64, amount: i64) -> Reply {
        self.send(Method::PUT, &format!("/api/v1/balances/{user}"), Some(json!({"amount": amount}))).await
    }

    /// Drains the outbox, checks the invariants, and stops.
    pub async fn finish(self) {
        let RestartableApp { app, stop, serving, mut postgres, mut redis, .. } = self;
        stop.cancel();
        serving.await.unwrap();
        let (projector, db) = (app.projector.clone(), app.db.clone());
        app.stop(Some(Duration::from_secs(300))).await;
        until("the outbox is drained", async || projector.drain().await.ok()).await;
        invariants::check(&mut [harness::raw_redis(&redis.url()).await], &db, 1, 0).await;
        db.close().await.unwrap();
        redis.kill().await.unwrap();
        postgres.kill().await.unwrap();
    }
}
