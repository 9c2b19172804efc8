//! PostgreSQL restored to an earlier state than Redis: the service closes its partitions, and a rebuild withholds the units
//! that discarded decisions may have sold, with every `ACK`.
//! (`step_back` has the states from which the outbox still leads on.)

use firstcome::{
    config::{Ack, DurabilityConfig},
    model::{Error, UserId},
    postgres::{loss, progress},
    recovery::rebuild,
};
use serde_json::json;

use crate::{
    recovery::rebuild::{self as rebuilds, projected, ready, rebuilt, refused},
    support::harness::{self, Options, TestApp, admin_sql, until},
};

const DISCARD: rebuild::RebuildOptions =
    rebuild::RebuildOptions { partitions: None, discard: true, lost_at_most: rebuild::LossBounds::Unknown };

/// The outbox keeps nothing that PostgreSQL has: the restored state is farther back than the outbox.
fn ack_postgres() -> Options {
    Options { outbox_keep_seconds: 0, ..rebuilds::ack_postgres() }
}

fn projecting() -> Options {
    Options { outbox_keep_seconds: 0, ..rebuilds::projecting() }
}

/// A copy of a test's database.
pub struct Backup(String);

/// Ends every connection to a database, and refuses new ones.
async fn close(database: &str) {
    admin_sql(format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS false")).await;
    admin_sql(format!("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{database}'"))
        .await;
}

pub async fn back_up(test: &TestApp) -> Backup {
    let (database, copy) = (&test.database, format!("{}_backup", test.database));
    close(database).await;
    admin_sql(format!("CREATE DATABASE {copy} TEMPLATE {database}")).await;
    admin_sql(format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS true")).await;
    Backup(copy)
}

pub async fn restore(test: &TestApp, Backup(copy): Backup) {
    let database = &test.database;
    close(database).await;
    admin_sql(format!("DROP DATABASE {database} WITH (FORCE)")).await;
    admin_sql(format!("ALTER DATABASE {copy} RENAME TO {database}")).await;
}

/// A user, a product with 10 units, a backup, and then 6 units sold and projected.
async fn backed_up_before_sale() -> (TestApp, i64, i64, Backup) {
    let test = TestApp::with(ack_postgres()).await;
    let (user, product) = (test.user(100_000).await, test.product(100, 10).await);
    projected(&test).await;
    let backup = back_up(&test).await;
    let order = test.place(user, product, 6).await;
    test.pay(order, user, "CARD", 600).await.ok();
    projected(&test).await;
    (test, user, product, backup)
}

/// Waits until the partitions are closed because PostgreSQL lacks decisions.
async fn loss_detected(test: &TestApp) {
    until("the loss is detected", async || {
        let ready = test.get("/readyz").await.text;
        ready.contains("restored to an earlier state").then_some(())
    })
    .await;
}

/// The smallest case that could oversell: 6 of 10 units sold, PostgreSQL restored to before the sale, a rebuild with `--discard`,
/// 10 units sold again.
#[tokio::test]
async fn rebuild_withholds_when_discarding_for_every_ack() {
    for (partitions, options) in [(1, ack_postgres()), (3, ack_postgres()), (1, projecting())] {
        let test = TestApp::with(Options { partitions, ..options }).await;
        // With three partitions, the user is in another partition than the product.
        let (_, user, other) = (test.user(0).await, test.user(100_000).await, test.user(100_000).await);
        let (product, coupon) = (test.product(100, 10).await, test.campaign("FIXED", 10, 5).await);
        let small = test.product(100, 3).await;
        projected(&test).await;
        let backup = back_up(&test).await;
        for (product, units) in [(product, 4), (product, 2), (small, 3)] {
            let order = test.place(user, product, units).await;
            test.pay(order, user, "CARD", 100 * units).await.ok();
        }
        test.issue(coupon, user).await.ok();
        projected(&test).await;
        restore(&test, backup).await;
        // The service decides nothing, and its errors name the remedy.
        loss_detected(&test).await;
        test.order(other, product, 1).await.refused(503, "SERVICE_UNAVAILABLE");
        let error = refused(&test, rebuild::RebuildOptions::default()).await;
        assert!(error.contains("restored from a backup") && error.contains("`firstcome rebuild --discard`"), "{error}");
        match test.open_instance(&test.options).await {
            Err(error) => {
                let error = format!("{error:#}");
                assert!(error.contains("rebuild --discard") && error.contains("restored from a backup"), "{error}");
            }
            // Another partition lost nothing, and decides.
            Ok(next) => {
                let closed = next.engine.ready().await.unwrap();
                assert!(partitions > 1 && !closed.is_empty(), "{closed:?}");
                let charged = next.engine.charge(&harness::call(None), UserId::new(user).unwrap(), 1).await;
                assert!(matches!(charged, Err(Error::Unavailable { .. })), "{charged:?}");
                next.db.close().await.unwrap();
            }
        }

        let summary = rebuilt(&test, DISCARD).await;
        assert!(summary.discarded >= 7, "{summary:?}");
        assert_eq!((summary.withheld_units, summary.withheld_coupons), (13, 5), "{summary:?}");
        ready(&test).await;
        for product in [product, small] {
            assert_eq!(test.stock(product).await, 0);
            test.order(other, product, 1).await.refused(409, "SOLD_OUT");
        }
        test.issue(coupon, other).await.refused(409, "COUPON_OUT_OF_STOCK");
        // New ids do not repeat acknowledged ones.
        assert!(test.user(0).await > 1_000_000);
        projected(&test).await;
        test.finish().await;
    }
}

/// `--lost-at-most` bounds the unknown loss only; discarded decisions are counted and added to it.
#[tokio::test]
async fn loss_bound_not_below_known_loss() {
    let test = TestApp::with(ack_postgres()).await;
    let (user, product) = (test.user(0).await, test.product(100, 50_000).await);
    projected(&test).await;
    let backup = back_up(&test).await;
    test.put_charge(user, 1).await.ok();
    test.put_charge(user, 2).await.ok();
    projected(&test).await;
    test.engine.check().await;
    restore(&test, backup).await;
    loss_detected(&test).await;
    let no_unknown_loss =
        rebuild::RebuildOptions { discard: true, lost_at_most: rebuild::LossBounds::Each(0), ..Default::default() };
    let summary = rebuilt(&test, no_unknown_loss).await;
    assert_eq!((summary.discarded, summary.withheld_units), (2, 20_000), "{summary:?}");
    ready(&test).await;
    assert_eq!(test.stock(product).await, 30_000);

    // An acknowledged charge, lost from both stores.
    test.put_charge(user, 4).await.ok();
    projected(&test).await;
    let backup = back_up(&test).await;
    test.put_charge(user, 8).await.ok();
    projected(&test).await;
    restore(&test, backup).await;
    test.engine.check().await;
    test.flush_redis().await;
    let error =
        refused(&test, rebuild::RebuildOptions { lost_at_most: rebuild::LossBounds::Each(0), ..Default::default() })
            .await;
    assert!(error.contains("known to have lost 1 decision") && error.contains("--lost-at-most 0"), "{error}");
    let summary =
        rebuilt(&test, rebuild::RebuildOptions { lost_at_most: rebuild::LossBounds::Each(1), ..Default::default() })
            .await;
    assert_eq!((summary.lost_at_least, summary.discarded, summary.withheld_units), (1, 0, 10_000), "{summary:?}");
    ready(&test).await;
    test.finish().await;
}

/// An order that is PENDING in PostgreSQL may have been paid before the loss; a second rebuild without a loss does not forget that.
#[tokio::test]
async fn pending_order_of_lost_epoch_stays_suspected_after_rebuilds() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..ack_postgres() }).await;
        let (_, user) = (test.user(0).await, test.user(100_000).await);
        let product = test.product(100, 10).await;
        let order = test.place(user, product, 6).await;
        projected(&test).await;
        let backup = back_up(&test).await;
        test.pay(order, user, "CARD", 600).await.ok();
        projected(&test).await;
        restore(&test, backup).await;
        loss_detected(&test).await;
        rebuilt(&test, DISCARD).await;
        ready(&test).await;
        test.post("/admin/v1/withheld/release", json!({})).await.ok();
        projected(&test).await;
        test.clock.advance(1);
        let later = test.place(user, product, 1).await;
        projected(&test).await;
        let summary = rebuilt(&test, rebuild::RebuildOptions::default()).await;
        assert!(summary.possible_losses.is_empty(), "{summary:?}");
        ready(&test).await;
        assert_eq!(test.stock(product).await, 3);
        test.clock.advance(700_000);
        test.engine.sweep().await.unwrap();
        test.clock.advance(700_000);
        test.engine.sweep().await.unwrap();
        projected(&test).await;
        assert_eq!(
            test.stock(product).await,
            4,
            "order {later} releases its unit; the older order's six stay withheld"
        );
        let kept = test.get("/admin/v1/withheld").await.ok();
        assert_eq!(kept["products"][0]["withheldQuantity"], 6, "{kept}");
        test.finish().await;
    }
}

/// A rebuild that stops after it has emptied Redis: the next one reads from PostgreSQL how many units to withhold.
#[tokio::test]
async fn rebuild_withholds_when_interrupted() {
    let (test, user, product, backup) = backed_up_before_sale().await;
    restore(&test, backup).await;
    loss_detected(&test).await;
    {
        let rebuild = test.rebuild().await;
        let mut lock = test.db.get_postgres_connection_pool().begin().await.unwrap();
        sqlx::query("LOCK TABLE users").execute(&mut *lock).await.unwrap();
        let begun = until("Redis is emptied", async || {
            let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut test.raw().await).await.unwrap();
            // The running process still says what it acknowledged.
            keys.retain(|key| key != "{p0}:instances");
            let suspected = loss::read(&rebuild.db).await.unwrap()[0].suspected;
            (keys.len() == 1 && suspected).then_some(())
        });
        tokio::select! {
            done = rebuild.clone().run(DISCARD) => panic!("the rebuild ended: {done:?}"),
            () = begun => {}
        }
        lock.rollback().await.unwrap();
        rebuild.db.close().await.unwrap();
    }
    let next = test.open_instance(&test.options).await.unwrap();
    assert!(!loss::read(&next.db).await.unwrap()[0].suspected);
    ready(&test).await;
    assert_eq!(test.stock(product).await, 0);
    test.order(user, product, 1).await.refused(409, "SOLD_OUT");
    projected(&test).await;
    assert_eq!(test.get("/admin/v1/withheld").await.ok()["products"][0]["withheldQuantity"], 10);
    next.db.close().await.unwrap();
    test.finish().await;
}

/// PostgreSQL restored to a time before a rebuild: the projector does not apply the new epoch's events over the gap.
#[tokio::test]
async fn start_refused_when_postgres_of_earlier_epoch() {
    let (test, user, _, backup) = backed_up_before_sale().await;
    assert!(rebuilt(&test, rebuild::RebuildOptions::default()).await.possible_losses.is_empty());
    ready(&test).await;
    // The outbox has every event of the new epoch.
    test.app.stop(None).await;
    restore(&test, backup).await;
    test.engine.charge(&harness::call(None), UserId::new(user).unwrap(), 5).await.unwrap();
    let error = format!("{:#}", test.app.projector.drain().await.expect_err("the events were projected"));
    assert!(error.contains("restored to an earlier state"), "{error}");
    let summary = rebuilt(&test, DISCARD).await;
    assert_eq!(summary.withheld_units, 10, "{summary:?}");
    assert_eq!(summary.epoch, 3);
    test.drain().await;
    test.finish().await;
}

/// A restore of PostgreSQL brings back an older ack mode; a running process records its own again.
#[tokio::test]
async fn ack_mode_restored_while_process_runs() {
    let test = TestApp::with(ack_postgres()).await;
    test.user(5).await;
    projected(&test).await;
    let backup = back_up(&test).await;
    let options = Options {
        durability: DurabilityConfig { ack: Ack::Redis, ..DurabilityConfig::default() },
        ..test.options.clone()
    };
    let next = test.open_instance(&options).await.unwrap();
    next.watch(false);
    assert!(!progress::only_postgres_acknowledged(&test.db).await.unwrap());
    restore(&test, backup).await;
    until("the ack mode is recorded again", async || {
        let only = progress::only_postgres_acknowledged(&test.db).await.ok()?;
        (!only).then_some(())
    })
    .await;
    next.stop(None).await;
    next.db.close().await.unwrap();
    test.finish().await;
}

/// Both stores lost data, and no process knows how much: the start withholds every unit if an operator has set `store.ack` to
/// `redis`.
#[tokio::test]
async fn rebuild_at_start_withholds_loss_named_by_operator() {
    for redis_acknowledged in [false, true] {
        let test = TestApp::with(ack_postgres()).await;
        let product = test.product(100, 10).await;
        projected(&test).await;
        test.app.stop(None).await;
        test.flush_redis().await;
        if redis_acknowledged {
            let sql = "UPDATE store SET ack = 'redis'";
            sqlx::query(sql).execute(test.db.get_postgres_connection_pool()).await.unwrap();
        }
        let next = test.open_instance(&test.options).await.unwrap();
        ready(&test).await;
        assert_eq!(test.stock(product).await, if redis_acknowledged { 0 } else { 10 });
        next.db.close().await.unwrap();
        test.finish().await;
    }
}
