//! PostgreSQL goes back by less than the outbox keeps, as after a failover to a standby that is a moment behind: the outbox is
//! projected again, without an operator. `postgres::failover` does the same with a real standby under load.

use std::collections::BTreeSet;

use firstcome::{
    model::{Partition, Position},
    postgres::progress,
};
use futures_util::FutureExt;

use crate::{
    projector::projection::busy_day,
    recovery::{
        rebuild::ack_postgres,
        restored_postgres::{back_up, restore},
    },
    support::harness::{self, Options, TestApp, until},
};

async fn positions(test: &TestApp) -> Vec<Position> {
    let projected = until("PostgreSQL answers", async || progress::projected(&test.db).await.ok()).await;
    projected.into_iter().map(|projected| projected.position).collect()
}

/// The rows of both stores, and every key with its value, are the same after the loss as before it: what the relay and
/// the eviction did has no second effect.
#[tokio::test]
async fn lost_commits_projected_again_without_effect() {
    for (partitions, batch) in [(1, 1000), (3, 1000), (3, 4)] {
        let test = TestApp::with(Options { partitions, batch, ..Options::default() }).await;
        let early = test.user(5).await;
        test.drain().await;
        let backup = back_up(&test).await;
        busy_day(&test).await;
        test.put_charge(early, 5).await.ok();
        test.drain().await;
        let (before, redis) = (positions(&test).await, test.snapshot().await);
        restore(&test, backup).await;
        assert!(positions(&test).await < before);
        until("PostgreSQL is projected again", async || test.app.projector.drain().await.ok()).await;
        assert_eq!(positions(&test).await, before);
        assert!(test.snapshot().await == redis, "a second effect in Redis");
        test.finish().await;
    }
}

/// Orders that have left Redis are unknown, not missing, until PostgreSQL has their end again.
#[tokio::test]
async fn evicted_orders_unharmed_when_postgres_goes_back() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let user = test.user(1_000_000).await;
        let products = [test.product(100, 10).await, test.product(100, 10).await, test.product(100, 10).await];
        let mut orders = Vec::new();
        for product in products {
            orders.push(test.place(user, product, 2).await);
        }
        test.drain().await;
        let backup = back_up(&test).await;
        for order in &orders {
            test.pay(*order, user, "CARD", 200).await.ok();
        }
        test.drain().await;
        test.expire_evicted().await;
        restore(&test, backup).await;
        let path = |order: i64| format!("/api/v1/orders/{order}?userId={user}");
        for order in &orders {
            let reply = until("PostgreSQL answers", async || {
                let reply = test.get(&path(*order)).await;
                (!reply.text.contains("answer")).then_some(reply)
            })
            .await;
            reply.refused(503, "SERVICE_UNAVAILABLE");
            test.cancel(*order, user).await.refused(503, "SERVICE_UNAVAILABLE");
        }
        // Of the same partition, from which orders have left.
        test.get(&path(orders[2] + 999)).await.refused(503, "SERVICE_UNAVAILABLE");
        test.drain().await;
        for order in &orders {
            assert_eq!(test.get(&path(*order)).await.ok()["orderStatus"], "PAID");
        }
        test.get(&path(orders[2] + 999)).await.refused(404, "ORDER_NOT_FOUND");
        // A refund finds every unit.
        test.cancel(orders[0], user).await.ok();
        test.drain().await;
        assert_eq!(test.stock(products[0]).await, 10);
        test.finish().await;
    }
}

/// A reply that waits for PostgreSQL is not released by a position that PostgreSQL has lost.
#[tokio::test]
async fn reply_waits_again_when_postgres_goes_back() {
    let test = TestApp::with(Options { project: false, ..ack_postgres() }).await;
    let here = Partition(0);
    let creating = test.engine.check();
    creating.await;
    let user = {
        let (user, ()) = tokio::join!(test.user(0), async {
            until("the user is decided", async || (test.store.position(here).await.unwrap().seq > 0).then_some(()))
                .await;
            test.drain().await;
        });
        user
    };
    let backup = back_up(&test).await;
    let (reply, ()) = tokio::join!(test.put_charge(user, 7), async {
        until("the charge is decided", async || (test.store.backlog() > 0).then_some(())).await;
        test.drain().await;
    });
    reply.ok();
    let decided = test.store.position(here).await.unwrap();
    assert!(test.store.wait_projected(&[(here, decided)]).now_or_never().is_some());
    restore(&test, backup).await;
    until("it is noticed", async || {
        test.engine.check().await;
        (test.store.projected_position(here) < decided).then_some(())
    })
    .await;
    assert!(test.store.wait_projected(&[(here, decided)]).now_or_never().is_none(), "released by a lost position");
    assert_eq!(test.store.backlog(), 1);
    test.drain().await;
    assert!(test.store.wait_projected(&[(here, decided)]).now_or_never().is_some());
    // What this process acknowledged is in PostgreSQL again, though the report of it was lost, too.
    test.engine.check().await;
    assert_eq!(progress::acknowledged(&test.db).await.unwrap()[0].position, decided);
    test.finish().await;
}

/// One partition was farther behind than the outbox keeps. It is frozen, and the others go on.
#[tokio::test]
async fn partition_frozen_alone_when_behind_the_outbox() {
    let test = TestApp::with(Options { partitions: 3, outbox_keep_seconds: 60, ..Options::default() }).await;
    let users = [test.user(0).await, test.user(0).await, test.user(0).await];
    assert_eq!(users.iter().map(|user| user % 3).collect::<BTreeSet<_>>().len(), 3);
    test.drain().await;
    let backup = back_up(&test).await;
    test.put_charge(users[0], 1).await.ok();
    test.drain().await;
    // Its charge leaves the outbox; those of the others are younger.
    test.clock.advance(61_000);
    for user in &users[1..] {
        test.put_charge(*user, 1).await.ok();
    }
    test.drain().await;
    restore(&test, backup).await;
    let lost = Partition((users[0] % 3) as u16);
    for here in test.store.all() {
        let gap = until("PostgreSQL answers", async || test.app.projector.project(here).await.ok()).await;
        assert_eq!(gap.is_some(), here == lost, "{here:?}: {gap:?}");
    }
    test.put_charge(users[0], 1).await.refused(503, "SERVICE_UNAVAILABLE");
    for user in &users[1..] {
        test.put_charge(*user, 1).await.ok();
        assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 2);
    }
    let frozen = test.store.partition_state(lost).await.unwrap().frozen.unwrap();
    assert!(frozen.contains("restored to an earlier state"), "{frozen}");
    test.finish_unchecked().await;
}

/// A process that starts beside a PostgreSQL that went back while none ran goes on by itself, too.
#[tokio::test]
async fn start_goes_on_when_postgres_went_back_meanwhile() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    let user = test.user(0).await;
    test.drain().await;
    let backup = back_up(&test).await;
    let rewinds = firstcome::telemetry::metrics::PROJECTION_REWINDS.get();
    busy_day(&test).await;
    test.put_charge(user, 5).await.ok();
    test.drain().await;
    let before = positions(&test).await;
    test.app.stop(None).await;
    restore(&test, backup).await;
    let (redis, postgres) = (test.redis.url(), harness::postgres_url(&test.database));
    let next = until("PostgreSQL answers", async || {
        harness::open(&test.options, &redis, &postgres, test.clock.clone()).await.ok()
    })
    .await;
    next.projector.drain().await.unwrap();
    assert_eq!(positions(&test).await, before);
    // Other tests count here, too.
    assert!(firstcome::telemetry::metrics::PROJECTION_REWINDS.get() >= rewinds + 3, "the mark in Redis tells it");
    next.stop(None).await;
    next.db.close().await.unwrap();
    test.finish().await;
}

/// The operator log is no decision, and stands in no outbox: it is written twice.
#[tokio::test]
async fn operator_log_written_again() {
    let test = TestApp::with(Options { project: true, ..Options::default() }).await;
    test.drain().await;
    let backup = back_up(&test).await;
    test.user(1).await;
    let logged = async || {
        let page = test.get("/admin/v1/operator-log").await;
        (page.status == 200).then(|| page.json()["totalElements"].as_i64().unwrap())
    };
    let before = until("it is logged", async || logged().await.filter(|found| *found > 0)).await;
    restore(&test, backup).await;
    assert_eq!(until("PostgreSQL answers", logged).await, 0);
    test.app.operator_log.write_again(&test.db, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(until("PostgreSQL answers", logged).await, before);
    test.finish().await;
}

/// The outbox becomes empty when everything has been kept long enough, without a further decision.
#[tokio::test]
async fn outbox_trimmed_when_kept_long_enough() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    busy_day(&test).await;
    test.drain().await;
    let kept = async || {
        let mut kept = 0;
        for here in test.store.all() {
            kept +=
                test.store.outbox_page(here, firstcome::redis::outbox::StreamId::ZERO, 1_000_000).await.unwrap().len();
        }
        kept
    };
    assert!(kept().await > 0);
    test.clock.advance(59_000);
    test.drain().await;
    assert!(kept().await > 0);
    test.clock.advance(2_000);
    test.drain().await;
    assert_eq!(kept().await, 0);
    test.finish().await;
}
