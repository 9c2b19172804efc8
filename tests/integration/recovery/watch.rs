//! Partitions whose data Redis lost, recovered by running processes: a replica is promoted that lacks what they acknowledged.

use std::time::Duration;

use firstcome::{
    app::App,
    config::{DurabilityConfig, RecoveryMode},
    dev::RedisServer,
    model::{RecoveryOutcome, UserId},
    postgres::recoveries,
    telemetry::metrics,
};
use serde_json::json;

use crate::{
    redis::failover::{in_sync, port, replicated},
    support::harness::{Options, TestApp, call, open, postgres_url, raw_redis, until},
};

/// Two processes on the same stores; the replica gets nothing from then on.
struct Lagging {
    test: TestApp,
    second: App,
    replica: RedisServer,
    user: i64,
    product: i64,
}

impl Lagging {
    async fn start(durability: DurabilityConfig, project: bool) -> Lagging {
        let options = Options { durability, project, partitions: 3, ..Options::default() };
        let (test, replica) = replicated(options).await;
        let url = test.proxy.as_ref().unwrap().url();
        let second = open(&test.options, &url, &postgres_url(&test.database), test.clock.clone()).await.unwrap();
        let (user, product) = (test.user(1_000).await, test.product(10, 100).await);
        in_sync(&test.redis, &replica).await;
        test.drain().await;
        replica_of(&replica, "NO", "ONE").await;
        Lagging { test, second, replica, user, product }
    }

    /// As [`Lagging::start`], with decisions that only PostgreSQL has, which can't take the log of recoveries.
    async fn start_without_log() -> Lagging {
        let lagging = Lagging::start(DurabilityConfig::default(), true).await;
        lagging.decide(2).await;
        lagging.test.drain().await;
        lagging.test.sql("ALTER TABLE recoveries RENAME TO away").await;
        lagging
    }

    /// Decisions that the replica does not get.
    async fn decide(&self, decisions: i64) {
        for _ in 0..decisions {
            self.test.put_charge(self.user, 1).await.ok();
            let order = self.test.order(self.user, self.product, 1).await.ok()["orderId"].as_i64().unwrap();
            self.test.pay(order, self.user, "CARD", 10).await.ok();
        }
    }

    /// The replica becomes the master that new connections reach; both processes watch.
    async fn fail_over(self) -> (TestApp, App, i64, i64) {
        let Lagging { mut test, second, replica, user, product } = self;
        test.proxy.as_ref().unwrap().lead_to(replica.socket_path());
        replica_of(&test.redis, "127.0.0.1", &port(&replica)).await;
        test.redis = replica;
        test.app.watch(test.options.project);
        second.watch(false);
        (test, second, user, product)
    }
}

async fn replica_of(server: &RedisServer, host: &str, port: &str) {
    redis::cmd("REPLICAOF").arg(host).arg(port).exec_async(&mut raw_redis(&server.url()).await).await.unwrap();
}

async fn until_ready(test: &TestApp) {
    until("every partition decides again", async || {
        let reply = test.get("/readyz").await;
        (reply.status == 200 && reply.json() == json!({"status": "UP"})).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lagging_replica_recovered_without_loss_when_postgres_has_everything() {
    let lagging = Lagging::start(DurabilityConfig::default(), true).await;
    lagging.decide(5).await;
    lagging.test.drain().await;
    let balance = lagging.test.get(&format!("/api/v1/balances/{}", lagging.user)).await.ok();
    let stock = lagging.test.get(&format!("/api/v1/products/{}", lagging.product)).await.ok();
    let (test, second, user, product) = lagging.fail_over().await;
    until_ready(&test).await;
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok(), balance);
    assert_eq!(test.get(&format!("/api/v1/products/{product}")).await.ok(), stock);
    assert_eq!(test.get("/admin/v1/withheld").await.ok()["products"], json!([]));
    let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
    assert!(!log.is_empty() && log.iter().all(|one| one.outcome == RecoveryOutcome::Complete), "{log:?}");
    assert!(log.iter().all(|one| one.silent.is_empty() && one.missing().is_none()), "{log:?}");
    for step in metrics::REBUILD_STEPS {
        assert!(metrics::REBUILD_STEP_SECONDS.with_label_values(&[step]).get() > 0.0, "{step} took no time");
    }
    // Both processes decide again.
    test.put_charge(user, 1).await.ok();
    until("the second process decides", async || {
        second.engine.charge(&call(None), UserId::new(user).unwrap(), 1).await.ok().map(drop)
    })
    .await;
    second.stop(None).await;
    test.finish().await;
}

/// PostgreSQL can't take the log while the recovery ends: the processes write it afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_recorded_later_when_log_unavailable() {
    let lagging = Lagging::start_without_log().await;
    let (test, second, user, _) = lagging.fail_over().await;
    until_ready(&test).await;
    test.put_charge(user, 1).await.ok();
    test.sql("ALTER TABLE away RENAME TO recoveries").await;
    let log = until("the log has the recovery", async || {
        let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
        (!log.is_empty()).then_some(log)
    })
    .await;
    assert!(log.iter().all(|one| one.outcome == RecoveryOutcome::Complete && one.ended_at.is_some()), "{log:?}");
    until("the operator log has every recovery", async || {
        let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
        let entries = test.get("/admin/v1/operator-log?operator=firstcome").await.ok();
        (entries["totalElements"].as_u64() == Some(log.len() as u64)).then_some(())
    })
    .await;
    second.stop(None).await;
    test.finish().await;
}

/// What PostgreSQL could not take until the end of the process is written by its stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_recorded_by_stop_when_log_unavailable_before() {
    let lagging = Lagging::start_without_log().await;
    let (test, second, ..) = lagging.fail_over().await;
    until_ready(&test).await;
    let back = test.sql("ALTER TABLE away RENAME TO recoveries");
    let (first, other, ()) = tokio::join!(second.stop(None), test.app.stop(None), back);
    assert!(first && other);
    let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
    assert!(!log.is_empty() && log.iter().all(|one| one.outcome == RecoveryOutcome::Complete), "{log:?}");
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lagging_replica_recovered_with_missing_decisions_withheld() {
    let durability = DurabilityConfig { recovery_wait_seconds: 0, ..DurabilityConfig::default() };
    let lagging = Lagging::start(durability, false).await;
    lagging.decide(2).await;
    let (test, second, _, product) = lagging.fail_over().await;
    until_ready(&test).await;
    let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
    assert!(!log.is_empty() && log.iter().all(|one| one.outcome == RecoveryOutcome::Withheld), "{log:?}");
    for recovery in &log {
        let missing = (recovery.projected_seq + 1, Some(recovery.acknowledged_seq));
        assert_eq!(recovery.missing(), Some(missing), "{recovery:?}");
    }
    // The others lost nothing, and withhold nothing.
    let recovered: Vec<i64> = log.iter().map(|one| i64::from(one.partition.0)).collect();
    let withheld = test.get("/admin/v1/withheld").await.ok();
    let products = withheld["products"].as_array().unwrap();
    assert!(products.iter().all(|one| recovered.contains(&(one["productId"].as_i64().unwrap() % 3))), "{withheld}");
    assert!(products.iter().any(|one| one["productId"] == product) == recovered.contains(&(product % 3)));
    second.stop(None).await;
    test.app.projector.drain().await.unwrap();
    test.finish().await;
}

/// A process of an earlier version reports its requests, and never gives a word: PostgreSQL and the words may lack what it
/// acknowledged last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lagging_replica_recovered_with_units_withheld_when_a_process_gives_no_word() {
    let durability = DurabilityConfig { recovery_wait_seconds: 0, ..DurabilityConfig::default() };
    let lagging = Lagging::start(durability, true).await;
    lagging.decide(2).await;
    lagging.test.drain().await;
    let report =
        "INSERT INTO instance_requests VALUES (gen_random_uuid(), clock_timestamp(), '{}') RETURNING instance::text";
    let pool = lagging.test.db.get_postgres_connection_pool();
    let earlier: String = sqlx::query_scalar(report).fetch_one(pool).await.unwrap();
    let (test, second, _, product) = lagging.fail_over().await;
    until_ready(&test).await;
    let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
    assert!(!log.is_empty() && log.iter().all(|one| one.outcome == RecoveryOutcome::Withheld), "{log:?}");
    assert!(log.iter().all(|one| one.silent == [earlier.as_str()] && one.missing_last_seq.is_none()), "{log:?}");
    let withheld = test.get("/admin/v1/withheld").await.ok();
    let is_withheld = withheld["products"].as_array().unwrap().iter().any(|one| one["productId"] == product);
    assert_eq!(is_withheld, log.iter().any(|one| i64::from(one.partition.0) == product % 3), "{withheld}");
    second.stop(None).await;
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lagging_replica_left_to_operator_when_recovery_lossless() {
    let durability =
        DurabilityConfig { recovery: RecoveryMode::Lossless, recovery_wait_seconds: 0, ..DurabilityConfig::default() };
    let lagging = Lagging::start(durability, false).await;
    lagging.decide(2).await;
    let (test, second, user, _) = lagging.fail_over().await;
    until("the loss is known", async || {
        test.get("/readyz").await.text.contains("acknowledged decisions are lost").then_some(())
    })
    .await;
    // Two more looks of the watch.
    for _ in 0..2 {
        test.engine.check().await;
        assert_eq!(test.app.recovery.step().await.unwrap(), None);
    }
    test.put_charge(user, 1).await.refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!(recoveries::page(&test.db, 0, 100).await.unwrap().total, 0);
    second.stop(Some(Duration::from_secs(1))).await;
    test.finish_unchecked().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_started_beside_lost_partition_decides_in_the_others_and_recovers_nothing_that_others_know() {
    for lost in 0..3 {
        let durability = DurabilityConfig { recovery_wait_seconds: 0, ..DurabilityConfig::default() };
        let test = TestApp::with(Options { durability, partitions: 3, ..Options::default() }).await;
        let users = [test.user(0).await, test.user(0).await, test.user(0).await];
        test.drain().await;
        let mut redis = test.raw().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{{p{lost}}}:*")).query_async(&mut redis).await.unwrap();
        redis::cmd("DEL").arg(&keys).exec_async(&mut redis).await.unwrap();
        // The first process notices the loss, and reports the partitions that decide.
        test.engine.check().await;
        let second = test.open_instance(&test.options).await.unwrap();
        assert_eq!(second.engine.ready().await.map(|reasons| reasons.len()), Ok(1));
        for user in users {
            let charged = second.engine.charge(&call(None), UserId::new(user).unwrap(), 1).await;
            assert_eq!(charged.is_ok(), user % 3 != lost, "{charged:?} in partition {} of {lost}", user % 3);
        }
        assert_eq!(
            second.recovery.step().await.unwrap(),
            None,
            "the second process does not know who acknowledged what"
        );
        until("the first process recovers", async || {
            test.engine.check().await;
            test.app.recovery.step().await.unwrap()
        })
        .await;
        let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
        assert!(log.len() == 1 && log[0].outcome == RecoveryOutcome::Complete, "{log:?}");
        for user in users {
            until("the second process decides", async || {
                second.engine.charge(&call(None), UserId::new(user).unwrap(), 1).await.ok().map(drop)
            })
            .await;
        }
        second.stop(None).await;
        test.finish().await;
    }
}
