//! Durability of acknowledged decisions: settings of Redis are checked, losses are detected, replies wait for
//! PostgreSQL, and the backlog is bounded.

use std::time::Duration;

use firstcome::{
    app::App,
    config::{Ack, DurabilityConfig, EngineConfig, ProjectorConfig, RedisDurability},
    dev::{self, AppendFsync, RedisServer, ScratchDir},
    model::Clock,
};
use reqwest::Method;
use serde_json::json;

use crate::support::{
    fake_gateway::FakeGateway,
    files::copy_dir,
    harness::{self, Options, START, TestApp, until},
};

pub async fn reopen(config: &EngineConfig) -> anyhow::Result<App> {
    App::open(config, &ProjectorConfig::default(), Clock::standing(START)).await
}

async fn frozen(test: &TestApp) -> Option<String> {
    redis::cmd("HGET").arg("{p0}:meta").arg("frozen").query_async(&mut test.raw().await).await.unwrap()
}

/// Every reason why the service is not ready.
async fn reasons(test: &TestApp) -> String {
    let reply = test.get("/readyz").await;
    reply.refused(503, "SERVICE_UNAVAILABLE");
    reply.json()["reasons"].to_string()
}

// --- settings --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn start_refused_when_redis_may_lose_data_unless_accepted() {
    for (fsync, extra, reason) in [
        (AppendFsync::EverySecond, &[][..], "appendfsync is everysec and must be always"),
        (AppendFsync::Always, &["--appendonly", "no"], "appendonly is no and must be yes"),
        (AppendFsync::Always, &["--no-appendfsync-on-rewrite", "yes"], "no-appendfsync-on-rewrite is yes"),
        (AppendFsync::Always, &["--rename-command", "CONFIG", ""], "its settings can't be read"),
    ] {
        let dir = ScratchDir::new().unwrap();
        let mut config = dev::RedisServerConfig::new(dir.path().join("redis"));
        config.append_fsync = fsync;
        config.extra_args = extra.iter().map(|arg| (*arg).to_owned()).collect();
        let mut redis = RedisServer::start(config).await.unwrap();
        let database = harness::fresh_database().await;
        let mut config = harness::engine_config(&Options::default(), &redis.url(), &harness::postgres_url(&database));
        let Err(error) = reopen(&config).await else { panic!("{reason}: it was opened") };
        let error = format!("{error:#}");
        assert!(error.contains(reason) && error.contains("REDIS_DURABILITY"), "{error}");
        let keys: i64 = redis::cmd("DBSIZE").query_async(&mut harness::raw_redis(&redis.url()).await).await.unwrap();
        assert_eq!(keys, 0, "the refused start wrote nothing");
        config.redis.redis_durability = RedisDurability::Asserted;
        let app = reopen(&config).await.unwrap();
        app.engine.ready().await.unwrap();
        app.db.close().await.unwrap();
        redis.kill().await.unwrap();
        harness::drop_database(&database).await;
    }
}

#[tokio::test]
async fn start_refused_when_redis_is_replica() {
    let dir = ScratchDir::new().unwrap();
    let mut config = dev::RedisServerConfig::new(dir.path().join("redis"));
    config.extra_args = ["--replicaof", "127.0.0.1", "1"].map(str::to_owned).into();
    let mut redis = RedisServer::start(config).await.unwrap();
    let database = harness::fresh_database().await;
    let config = harness::engine_config(&Options::default(), &redis.url(), &harness::postgres_url(&database));
    let Err(error) = reopen(&config).await else { panic!("it was opened") };
    assert!(format!("{error:#}").contains("can't be written to"), "{error:#}");
    redis.kill().await.unwrap();
    harness::drop_database(&database).await;
}

/// The settings of Redis change, and the service's connections break.
#[tokio::test]
async fn redis_settings_checked_again_after_reconnect() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    let mut redis = test.raw().await;
    let set = async |redis: &mut redis::aio::MultiplexedConnection, value: &str| {
        let _: () =
            redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg(value).query_async(&mut *redis).await.unwrap();
        let _: i64 = redis::cmd("CLIENT")
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .arg("SKIPME")
            .arg("yes")
            .query_async(redis)
            .await
            .unwrap();
    };
    set(&mut redis, "everysec").await;
    until("the service detects the setting", async || {
        let reply = test.put_charge(user, 1).await;
        let ready = test.get("/readyz").await;
        let closed = ready.text.contains("appendfsync is everysec");
        assert!(reply.status == 503 || !closed, "{}", reply.text);
        closed.then_some(())
    })
    .await;
    set(&mut redis, "always").await;
    until("the service is ready", async || (test.get("/readyz").await.status == 200).then_some(())).await;
    test.put_charge(user, 1).await.ok();
    test.finish().await;
}

// --- losses ----------------------------------------------------------------------------------------------------------

/// Redis restarts with older data: acknowledged decisions are lost, so the partition stays closed. With the right data restored,
/// the service opens it without help.
#[tokio::test]
async fn partition_closed_when_redis_returns_with_older_data_and_opened_when_restored() {
    let mut test = TestApp::start().await;
    let user = test.user(100).await;
    let scratch = ScratchDir::new().unwrap();
    let (data, old, new) = (test.redis.data_dir(), scratch.path().join("old"), scratch.path().join("new"));
    copy_dir(&data, &old);
    test.put_charge(user, 1).await.ok();
    test.put_charge(user, 2).await.ok();
    test.redis.kill().await.unwrap();
    copy_dir(&data, &new);
    copy_dir(&old, &data);
    test.redis.restart().await.unwrap();
    let reason = until("the loss is detected", async || {
        // No reply shows the older state.
        let reply = test.get(&format!("/api/v1/balances/{user}")).await;
        reply.refused(503, "SERVICE_UNAVAILABLE");
        let reason = test.get("/readyz").await.text;
        reason.contains("are lost").then_some(reason)
    })
    .await;
    assert!(reason.contains("(1, 1), behind the acknowledged (1, 3)"), "{reason}");
    assert!(frozen(&test).await.unwrap().contains("are lost"), "the freeze in Redis also stops other processes");
    test.put_charge(user, 4).await.refused(503, "SERVICE_UNAVAILABLE");
    let error = test.app.projector.drain().await;
    error.unwrap();
    // Restores the data with every decision.
    test.redis.kill().await.unwrap();
    copy_dir(&new, &data);
    test.redis.restart().await.unwrap();
    until("the service is ready", async || (test.get("/readyz").await.status == 200).then_some(())).await;
    assert_eq!(test.put_charge(user, 4).await.ok()["balance"], 107);
    test.finish().await;
}

/// Without a lost connection, the number of a new decision reveals the loss.
#[tokio::test]
async fn partition_closed_when_decision_reuses_acknowledged_seq() {
    let test = TestApp::start().await;
    let user = test.user(100).await;
    test.put_charge(user, 1).await.ok();
    let mut redis = test.raw().await;
    let _: i64 = redis::cmd("HINCRBY").arg("{p0}:meta").arg("seq").arg(-1).query_async(&mut redis).await.unwrap();
    test.put_charge(user, 2).await.refused(503, "SERVICE_UNAVAILABLE");
    assert!(reasons(&test).await.contains("behind the acknowledged (1, 2)"));
    assert!(frozen(&test).await.is_some());
    test.finish_unchecked().await;
}

/// Reads are refused when the partition state is missing or belongs to another store.
#[tokio::test]
async fn partition_closed_when_redis_emptied_or_swapped() {
    for swapped in [false, true] {
        let test = TestApp::start().await;
        let user = test.user(100).await;
        let mut redis = test.raw().await;
        if swapped {
            let _: i64 =
                redis::cmd("HSET").arg("{p0}:meta").arg("store").arg("another").query_async(&mut redis).await.unwrap();
        } else {
            let _: () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
        }
        test.engine.check().await;
        assert!(reasons(&test).await.contains(if swapped { "store another" } else { "lost the state" }));
        test.get(&format!("/api/v1/balances/{user}")).await.refused(503, "SERVICE_UNAVAILABLE");
        test.put_charge(user, 1).await.refused(503, "SERVICE_UNAVAILABLE");
        test.finish_unchecked().await;
    }
}

/// A list that would be empty is not served before a check of the partition.
#[tokio::test]
async fn list_unavailable_when_redis_emptied() {
    for path in ["/api/v1/products/popular", "/api/v1/campaigns", "/api/v1/products"] {
        let test = TestApp::start().await;
        test.campaign("FIXED", 1, 10).await;
        test.flush_redis().await;
        test.get(path).await.refused(503, "SERVICE_UNAVAILABLE");
        test.finish_unchecked().await;
    }
}

/// A process without decisions of its own learns from PostgreSQL that Redis lost decisions.
#[tokio::test]
async fn partition_closed_when_redis_returns_behind_postgres() {
    let mut test = TestApp::start().await;
    let user = test.user(100).await;
    let scratch = ScratchDir::new().unwrap();
    let (data, old) = (test.redis.data_dir(), scratch.path().join("old"));
    copy_dir(&data, &old);
    // Another process, which keeps running and decides nothing.
    let other = test.open_instance(&Options::default()).await.unwrap();
    test.put_charge(user, 1).await.ok();
    test.drain().await;
    test.redis.kill().await.unwrap();
    copy_dir(&old, &data);
    test.redis.restart().await.unwrap();
    let user = firstcome::model::UserId::new(user).unwrap();
    until("the other process detects the loss", async || match other.engine.balance(user).await {
        Ok(_) => panic!("the older state is served"),
        Err(error) => error.to_string().contains("are lost").then_some(()),
    })
    .await;
    other.db.close().await.unwrap();
    test.finish_unchecked().await;
}

// --- ACK=postgres ----------------------------------------------------------------------------------------------------

pub fn acknowledged_by_postgres() -> Options {
    Options { durability: DurabilityConfig { ack: Ack::Postgres, ..DurabilityConfig::default() }, ..Options::default() }
}

/// Sends a request in the background.
pub fn send(
    test: &TestApp,
    method: Method,
    path: &str,
    body: serde_json::Value,
    key: &str,
) -> tokio::task::JoinHandle<harness::Reply> {
    let mut request = test.client.request(method, format!("{}{path}", test.base)).json(&body);
    request = request.bearer_auth(harness::ADMIN).header("Idempotency-Key", key);
    tokio::spawn(harness::read(request))
}

/// Waits until Redis has this many decisions that PostgreSQL does not have.
pub async fn lag_reached(test: &TestApp, events: i64) {
    until("Redis has the decisions", async || {
        let lag = test.get("/admin/v1/projection").await.ok()["lagEvents"].as_i64().unwrap();
        (lag == events).then_some(())
    })
    .await;
}

#[tokio::test]
async fn reply_waits_for_commit_when_ack_postgres() {
    let test = TestApp::with(acknowledged_by_postgres()).await;
    let creating = send(&test, Method::POST, "/admin/v1/users", json!({"userName": "A", "balance": 5}), "a");
    lag_reached(&test, 2).await;
    assert!(!creating.is_finished(), "acknowledged before PostgreSQL has the decision");
    test.drain().await;
    let user = creating.await.unwrap().created()["userId"].as_i64().unwrap();
    let path = format!("/api/v1/balances/{user}");
    // Concurrent requests wait for one commit, and so does a repeat.
    let mut charges: Vec<_> =
        (0..20).map(|n| send(&test, Method::PUT, &path, json!({"amount": 1}), &format!("charge-{n}"))).collect();
    lag_reached(&test, 20).await;
    charges.push(send(&test, Method::PUT, &path, json!({"amount": 1}), "charge-0"));
    // Reads and refusals do not wait.
    assert_eq!(test.get(&path).await.ok()["balance"], 25);
    test.put_charge(user, 0).await.refused(400, "INVALID_AMOUNT");
    test.put_charge(user + 1, 1).await.refused(404, "USER_NOT_FOUND");
    assert!(charges.iter().all(|charge| !charge.is_finished()));
    test.drain().await;
    for charge in charges {
        charge.await.unwrap().ok();
    }
    test.finish().await;
}

/// A declined payment fails the order, which is an effect.
#[tokio::test]
async fn declined_payment_waits_for_commit_when_ack_postgres() {
    let test = TestApp::with(Options { project: true, ..acknowledged_by_postgres() }).await;
    let (user, product) = (test.user(100).await, test.product(60, 5).await);
    let orders = [test.place(user, product, 1).await, test.place(user, product, 1).await];
    test.pay(orders[0], user, "CARD", 60).await.ok();
    test.pay(orders[1], user, "CARD", 60).await.refused(402, "INSUFFICIENT_BALANCE");
    // The reply has waited for the commit.
    assert_eq!(test.get("/admin/v1/projection").await.ok()["lagEvents"], 0);
    test.finish().await;
}

/// The gateway gets the payment request only after PostgreSQL has the payment.
#[tokio::test]
async fn gateway_called_after_commit_when_ack_postgres() {
    let gateway = FakeGateway::start().await;
    let gateways = harness::gateways(&[("CARD", gateway.url())]);
    let test = TestApp::with(Options { gateway: gateways, ..acknowledged_by_postgres() }).await;
    let creating = send(&test, Method::POST, "/admin/v1/users", json!({"userName": "A", "balance": 5}), "a");
    lag_reached(&test, 2).await;
    let product = json!({"productName": "A", "price": 60, "stockQuantity": 5, "category": "TOP"});
    let stocking = send(&test, Method::POST, "/admin/v1/products", product, "b");
    lag_reached(&test, 4).await;
    test.drain().await;
    let user = creating.await.unwrap().created()["userId"].as_i64().unwrap();
    let product = stocking.await.unwrap().created()["productId"].as_i64().unwrap();
    let order = json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 1}]});
    let ordering = send(&test, Method::POST, "/api/v1/orders", order, "c");
    lag_reached(&test, 1).await;
    test.drain().await;
    let order = ordering.await.unwrap().ok()["orderId"].as_i64().unwrap();
    let body = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 60});
    let paying = send(&test, Method::POST, "/api/v1/payments", body, "d");
    lag_reached(&test, 1).await;
    assert_eq!(gateway.total_posts(), 0, "requested before PostgreSQL has the payment");
    test.drain().await;
    gateway.any_posted().await;
    until("the payment is settled, and in PostgreSQL", async || {
        test.drain().await;
        paying.is_finished().then_some(())
    })
    .await;
    assert_eq!(paying.await.unwrap().ok()["orderStatus"], "PAID");
    test.finish().await;
}

/// Another process projects; this one reads the position from PostgreSQL.
#[tokio::test]
async fn reply_waits_for_other_process_projector_when_ack_postgres() {
    let test = TestApp::with(acknowledged_by_postgres()).await;
    test.app.watch(false);
    let projector = test.open_instance(&Options::default()).await.unwrap();
    projector.project();
    let user = test.user(100).await;
    for n in 1..=5 {
        assert_eq!(test.put_charge(user, 1).await.ok()["balance"], 100 + n);
    }
    projector.stop(None).await;
    projector.db.close().await.unwrap();
    test.finish().await;
}

/// PostgreSQL has every acknowledged decision, so that none is lost with Redis's disk.
#[tokio::test]
async fn acknowledged_decisions_survive_loss_of_redis_when_ack_postgres() {
    let test = TestApp::with(Options { project: true, ..acknowledged_by_postgres() }).await;
    let user = test.user(0).await;
    let mut acknowledged = 0;
    for _ in 0..10 {
        acknowledged = test.put_charge(user, 3).await.ok()["balance"].as_i64().unwrap();
        let pool = test.db.get_postgres_connection_pool();
        let balance: i64 = sqlx::query_scalar("SELECT balance FROM users").fetch_one(pool).await.unwrap();
        assert_eq!(balance, acknowledged);
    }
    assert_eq!(acknowledged, 30);
    test.finish().await;
}

// --- backpressure ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn writes_shed_and_reads_served_when_backlog_full() {
    let durability = DurabilityConfig { max_backlog: 10, ..DurabilityConfig::default() };
    let test = TestApp::with(Options { durability, ..Options::default() }).await;
    let (user, product) = (test.user(100).await, test.product(1, 5).await);
    for _ in 0..8 {
        test.put_charge(user, 1).await.ok();
    }
    let before = test.snapshot().await;
    for path in ["/api/v1/balances/1", "/api/v1/nothing"] {
        let body = json!({"amount": 1});
        let reply = test.send(Method::PUT, path, Some(&body), Some("k")).await;
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    }
    test.order(user, product, 1).await.refused(503, "SERVICE_UNAVAILABLE");
    test.post("/admin/v1/users", json!({"userName": "A"})).await.refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!(before, test.snapshot().await, "a shed request changed the state");
    // Reads are served, also the history, and the service stays ready for its load balancer.
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 108);
    assert_eq!(test.get(&format!("/api/v1/balances/{user}/history")).await.ok().as_array().unwrap().len(), 9);
    test.get("/readyz").await.ok();
    test.get("/admin/v1/projection").await.ok();
    test.drain().await;
    test.put_charge(user, 1).await.ok();
    test.finish().await;
}

/// Without PostgreSQL the service decides up to `MAX_BACKLOG`, and then sheds writes until the projection catches up.
#[tokio::test]
async fn writes_shed_when_postgres_down_and_resumed_when_back() {
    let dir = ScratchDir::new().unwrap();
    let mut postgres =
        dev::PostgresServer::start(dev::PostgresServerConfig::new(dir.path().join("postgres"))).await.unwrap();
    let redis_dir = ScratchDir::new().unwrap();
    let mut redis = RedisServer::start(dev::RedisServerConfig::new(redis_dir.path().join("redis"))).await.unwrap();
    firstcome::postgres::create_database(&harness::postgres_config(&postgres.url("postgres")), "shop").await.unwrap();
    let mut config = harness::engine_config(&Options::default(), &redis.url(), &postgres.url("shop"));
    config.postgres.database_timeout_ms = 500;
    config.durability.max_backlog = 30;
    let migrate = firstcome::postgres::connect(&config.postgres).await.unwrap();
    firstcome::postgres::migrate(&migrate).await.unwrap();
    migrate.close().await.unwrap();
    let app = reopen(&config).await.unwrap();
    app.project();
    app.watch(true);
    let new = firstcome::model::NewUser { name: "A".into(), balance: 0 };
    let user = app.engine.create_user(&harness::call(None), new).await.unwrap().value.user_id;
    until("the projection is idle", async || (app.store.backlog() == 0).then_some(())).await;
    postgres.kill().await.unwrap();
    let mut charged = 0;
    while app.engine.admit_write().is_ok() {
        app.engine.charge(&harness::call(None), user, 1).await.unwrap();
        charged += 1;
    }
    assert_eq!(charged, 30, "decisions up to MAX_BACKLOG");
    assert_eq!(app.engine.balance(user).await.unwrap().balance, 30);
    assert_eq!(app.engine.history(user, 10, None).await.unwrap().len(), 10, "the newest entries come from the outbox");
    app.engine.ready().await.unwrap();
    postgres.restart().await.unwrap();
    until("writes are admitted again", async || app.engine.admit_write().is_ok().then_some(())).await;
    until("the projection has caught up", async || (app.store.backlog() == 0).then_some(())).await;
    let pool = app.db.get_postgres_connection_pool();
    let balance: i64 = sqlx::query_scalar("SELECT balance FROM users").fetch_one(pool).await.unwrap();
    assert_eq!(balance, 30);
    app.stop(Some(Duration::from_secs(60))).await;
    app.db.close().await.unwrap();
    redis.kill().await.unwrap();
    postgres.kill().await.unwrap();
}

/// PostgreSQL keeps an idempotency record exactly as long as Redis does.
#[tokio::test]
async fn idempotency_records_kept_in_postgres_until_expiry() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    let body = json!({"amount": 5});
    let path = format!("/api/v1/balances/{user}");
    test.send(Method::PUT, &path, Some(&body), Some("mine")).await.ok();
    test.drain().await;
    let pool = test.db.get_postgres_connection_pool();
    let kept = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM idempotency_records").fetch_one(pool).await.unwrap()
    };
    assert_eq!(kept().await, 1);
    let reply: String = sqlx::query_scalar("SELECT reply FROM idempotency_records").fetch_one(pool).await.unwrap();
    let words = firstcome::model::event::unpack_reply(&reply).unwrap();
    assert_eq!((words[0], words[4]), ("CHARGED", "5"));
    test.clock.advance(86_400_000 - 1);
    assert_eq!(test.app.projector.remove_expired_records().await.unwrap(), 0);
    test.clock.advance(1);
    assert_eq!(test.app.projector.remove_expired_records().await.unwrap(), 1);
    assert_eq!(kept().await, 0);
    test.finish().await;
}
