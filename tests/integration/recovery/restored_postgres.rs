//! PostgreSQL restored to an earlier state beside a Redis that is whole: nothing goes on silently, and what the decisions may have
//! sold that are discarded then is withheld, whatever `ACK` says.

use firstcome::{
    config::{Ack, DurabilityConfig},
    model::UserId,
    postgres::{loss, progress},
    recovery::rebuild,
};
use serde_json::json;

use crate::{
    recovery::rebuild::{careful, flush, pending, projected, projecting, ready, rebuilder, rebuilt, refused, stock},
    support::harness::{self, Options, World, admin_sql, until},
};

const DISCARD: rebuild::Options = rebuild::Options { discard: true, lost_at_most: None };

/// A copy of a world's database.
struct Backup(String);

/// Ends every connection to a database, and lets nobody in.
async fn close(database: &str) {
    admin_sql(format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS false")).await;
    admin_sql(format!("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{database}'"))
        .await;
}

async fn back_up(world: &World) -> Backup {
    let (database, copy) = (&world.database, format!("{}_backup", world.database));
    close(database).await;
    admin_sql(format!("CREATE DATABASE {copy} TEMPLATE {database}")).await;
    admin_sql(format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS true")).await;
    Backup(copy)
}

async fn restore(world: &World, Backup(copy): Backup) {
    let database = &world.database;
    close(database).await;
    admin_sql(format!("DROP DATABASE {database} WITH (FORCE)")).await;
    admin_sql(format!("ALTER DATABASE {copy} RENAME TO {database}")).await;
}

/// Waits until the partitions are closed for what PostgreSQL lacks.
async fn noticed(world: &World) {
    until("the loss is noticed", async || {
        let ready = world.get("/readyz").await.text;
        ready.contains("restored to an earlier state").then_some(())
    })
    .await;
}

/// The smallest input that oversold: 6 of 10 sold, PostgreSQL put back to before, everything discarded, 10 sold again.
#[tokio::test]
async fn rebuild_withholds_when_discarding_for_every_ack() {
    for (partitions, options) in [(1, careful()), (3, careful()), (1, projecting())] {
        let world = World::with(Options { partitions, ..options }).await;
        // At home in another partition than the product, where there are several.
        let (_, user, other) = (world.user(0).await, world.user(100_000).await, world.user(100_000).await);
        let (product, coupon) = (world.product(100, 10).await, world.campaign("FIXED", 10, 5).await);
        let small = world.product(100, 3).await;
        projected(&world).await;
        let backup = back_up(&world).await;
        for (product, units) in [(product, 4), (product, 2), (small, 3)] {
            let order = pending(&world, user, product, units).await;
            world.pay(order, user, "CARD", 100 * units).await.ok();
        }
        world.issue(coupon, user).await.ok();
        projected(&world).await;
        restore(&world, backup).await;
        // Nothing more is decided, and the operator is told what will help.
        noticed(&world).await;
        world.order(other, product, 1).await.refused(503, "SERVICE_UNAVAILABLE");
        let error = refused(&world, rebuild::Options::default()).await;
        assert!(error.contains("restored from a backup") && error.contains("`firstcome rebuild --discard`"), "{error}");
        let (redis, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
        let Err(error) = harness::open(&world.options, &redis, &postgres, world.clock.clone()).await else {
            panic!("it was opened")
        };
        let error = format!("{error:#}");
        assert!(error.contains("rebuild --discard") && error.contains("restored from a backup"), "{error}");

        let summary = rebuilt(&world, DISCARD).await;
        assert!(summary.discarded >= 7, "{summary:?}");
        assert_eq!((summary.withheld_units, summary.withheld_coupons), (13, 5), "{summary:?}");
        ready(&world).await;
        for product in [product, small] {
            assert_eq!(stock(&world, product).await, 0);
            world.order(other, product, 1).await.refused(409, "SOLD_OUT");
        }
        world.issue(coupon, other).await.refused(409, "COUPON_OUT_OF_STOCK");
        // Ids that somebody was told are not given out again.
        assert!(world.user(0).await > 1_000_000);
        projected(&world).await;
        world.finish().await;
    }
}

/// `--lost-at-most` is about what nobody can count; what is discarded is counted, and comes on top.
#[tokio::test]
async fn loss_bound_not_below_known_loss() {
    let world = World::with(careful()).await;
    let (user, product) = (world.user(0).await, world.product(100, 50_000).await);
    projected(&world).await;
    let backup = back_up(&world).await;
    world.put_charge(user, 1).await.ok();
    world.put_charge(user, 2).await.ok();
    projected(&world).await;
    world.engine.look().await;
    restore(&world, backup).await;
    noticed(&world).await;
    let none = rebuild::Options { discard: true, lost_at_most: Some(0) };
    let summary = rebuilt(&world, none).await;
    assert_eq!((summary.discarded, summary.withheld_units), (2, 20_000), "{summary:?}");
    ready(&world).await;
    assert_eq!(stock(&world, product).await, 30_000);

    // Lost from both, and somebody was told.
    world.put_charge(user, 4).await.ok();
    projected(&world).await;
    let backup = back_up(&world).await;
    world.put_charge(user, 8).await.ok();
    projected(&world).await;
    restore(&world, backup).await;
    world.engine.look().await;
    flush(&world).await;
    let error = refused(&world, rebuild::Options { discard: false, lost_at_most: Some(0) }).await;
    assert!(error.contains("known to have lost 1 decision") && error.contains("--lost-at-most 0"), "{error}");
    let summary = rebuilt(&world, rebuild::Options { discard: false, lost_at_most: Some(1) }).await;
    assert_eq!((summary.lost_at_least, summary.discarded, summary.withheld_units), (1, 0, 10_000), "{summary:?}");
    ready(&world).await;
    world.finish().await;
}

/// An order that is PENDING in PostgreSQL may have been paid: also after a second rebuild, which has lost nothing itself.
#[tokio::test]
async fn pending_order_of_lost_epoch_stays_in_doubt_after_rebuilds() {
    for partitions in [1, 3] {
        let world = World::with(Options { partitions, ..careful() }).await;
        let (_, user) = (world.user(0).await, world.user(100_000).await);
        let product = world.product(100, 10).await;
        let order = pending(&world, user, product, 6).await;
        projected(&world).await;
        let backup = back_up(&world).await;
        world.pay(order, user, "CARD", 600).await.ok();
        projected(&world).await;
        restore(&world, backup).await;
        noticed(&world).await;
        rebuilt(&world, DISCARD).await;
        ready(&world).await;
        world.post("/admin/v1/withheld/release", json!({})).await.ok();
        projected(&world).await;
        world.clock.advance(1);
        let later = pending(&world, user, product, 1).await;
        projected(&world).await;
        let summary = rebuilt(&world, rebuild::Options::default()).await;
        assert!(summary.doubtful.is_empty(), "{summary:?}");
        ready(&world).await;
        assert_eq!(stock(&world, product).await, 3);
        world.clock.advance(700_000);
        world.engine.sweep().await.unwrap();
        world.clock.advance(700_000);
        world.engine.sweep().await.unwrap();
        projected(&world).await;
        assert_eq!(stock(&world, product).await, 4, "the one of order {later}, and not the six");
        let kept = world.get("/admin/v1/withheld").await.ok();
        assert_eq!(kept["products"][0]["withheldQuantity"], 6, "{kept}");
        world.finish().await;
    }
}

/// What was discarded is known to nobody any more once Redis is emptied: but that it must be withheld is.
#[tokio::test]
async fn rebuild_withholds_when_interrupted() {
    let world = World::with(careful()).await;
    let (user, product) = (world.user(100_000).await, world.product(100, 10).await);
    projected(&world).await;
    let backup = back_up(&world).await;
    let order = pending(&world, user, product, 6).await;
    world.pay(order, user, "CARD", 600).await.ok();
    projected(&world).await;
    restore(&world, backup).await;
    noticed(&world).await;
    {
        let rebuild = rebuilder(&world).await;
        let mut lock = world.db.get_postgres_connection_pool().begin().await.unwrap();
        sqlx::query("LOCK TABLE users").execute(&mut *lock).await.unwrap();
        let begun = until("Redis is emptied", async || {
            let keys: i64 = redis::cmd("DBSIZE").query_async(&mut world.raw().await).await.unwrap();
            let in_doubt = loss::read(&rebuild.db).await.unwrap()[0].in_doubt;
            (keys == 1 && in_doubt).then_some(())
        });
        tokio::select! {
            done = rebuild.clone().run(DISCARD) => panic!("it came to its end: {done:?}"),
            () = begun => {}
        }
        lock.rollback().await.unwrap();
        rebuild.db.close().await.unwrap();
    }
    let (redis, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
    let next = harness::open(&world.options, &redis, &postgres, world.clock.clone()).await.unwrap();
    assert!(!loss::read(&next.db).await.unwrap()[0].in_doubt);
    ready(&world).await;
    assert_eq!(stock(&world, product).await, 0);
    world.order(user, product, 1).await.refused(409, "SOLD_OUT");
    projected(&world).await;
    assert_eq!(world.get("/admin/v1/withheld").await.ok()["products"][0]["withheldQuantity"], 10);
    next.db.close().await.unwrap();
    world.finish().await;
}

/// PostgreSQL restored to before a rebuild: the first event of a new epoch does not make up for what is missing before it.
#[tokio::test]
async fn start_refused_when_postgres_of_earlier_epoch() {
    let world = World::with(careful()).await;
    let (user, product) = (world.user(100_000).await, world.product(100, 10).await);
    projected(&world).await;
    let backup = back_up(&world).await;
    let order = pending(&world, user, product, 6).await;
    world.pay(order, user, "CARD", 600).await.ok();
    projected(&world).await;
    assert!(rebuilt(&world, rebuild::Options::default()).await.doubtful.is_empty());
    ready(&world).await;
    // The outbox has the new epoch from its beginning.
    world.app.stop(None).await;
    restore(&world, backup).await;
    world.engine.charge(&harness::call(None), UserId::new(user).unwrap(), 5).await.unwrap();
    let error = format!("{:#}", world.app.projector.drain().await.expect_err("it was carried"));
    assert!(error.contains("restored to an earlier state"), "{error}");
    let summary = rebuilt(&world, DISCARD).await;
    assert_eq!(summary.withheld_units, 10, "{summary:?}");
    assert_eq!(summary.epoch, 3);
    world.drain().await;
    world.finish().await;
}

/// What replies waited for is not taken from a PostgreSQL of a time when all of them waited for it.
#[tokio::test]
async fn ack_mode_restored_while_process_runs() {
    let world = World::with(careful()).await;
    world.user(5).await;
    projected(&world).await;
    let backup = back_up(&world).await;
    let options = Options {
        durability: DurabilityConfig { ack: Ack::Redis, ..DurabilityConfig::default() },
        ..world.options.clone()
    };
    let (redis, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
    let next = harness::open(&options, &redis, &postgres, world.clock.clone()).await.unwrap();
    next.watch(false);
    assert!(!progress::only_postgres_acknowledged(&world.db).await.unwrap());
    restore(&world, backup).await;
    until("it is noted again", async || {
        let only = progress::only_postgres_acknowledged(&world.db).await.ok()?;
        (!only).then_some(())
    })
    .await;
    next.stop(None).await;
    next.db.close().await.unwrap();
    world.finish().await;
}

/// Both stores lost at once, and nobody left who was told more: the operator says that something is missing.
#[tokio::test]
async fn rebuild_at_start_withholds_loss_named_by_operator() {
    for said in [false, true] {
        let world = World::with(careful()).await;
        let product = world.product(100, 10).await;
        projected(&world).await;
        world.app.stop(None).await;
        flush(&world).await;
        if said {
            let sql = "UPDATE store SET ack = 'redis'";
            sqlx::query(sql).execute(world.db.get_postgres_connection_pool()).await.unwrap();
        }
        let (redis, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
        let next = harness::open(&world.options, &redis, &postgres, world.clock.clone()).await.unwrap();
        ready(&world).await;
        assert_eq!(stock(&world, product).await, if said { 0 } else { 10 });
        next.db.close().await.unwrap();
        world.finish().await;
    }
}
