//! Each event is applied once: with every batch size, after a crash, and with several projectors.

use super::*;

#[tokio::test]
async fn batch_size_leaves_tables_unchanged() {
    let test = TestApp::with(Options { outbox_keep_seconds: 0, ..Options::default() }).await;
    busy_day(&test).await;
    let mut redis = test.raw().await;
    let stream = entries(&mut redis, 0).await;
    let kind = |fields: &[(String, String)]| {
        event::fields_of(fields, 0).into_iter().find(|(name, _)| name == "kind").unwrap().1
    };
    let kinds: std::collections::BTreeSet<String> = stream.iter().map(|(_, fields)| kind(fields)).collect();
    assert_eq!(kinds.len(), 14, "{kinds:?}");
    test.drain().await;
    let expected = tables(&test.db).await;
    assert!(expected.iter().all(|(table, rows)| rows.is_empty() == (*table == "dead_letters")), "{expected:?}");
    let store: String = redis::cmd("HGET").arg(META).arg("store").query_async(&mut redis).await.unwrap();
    for batch in [1, 2, 7] {
        outbox::replace(&mut redis, 0, &stream).await;
        let database = harness::fresh_database().await;
        let url = harness::postgres_url(&database);
        let db = postgres::connect(&harness::postgres_config(&url)).await.unwrap();
        let pool = db.get_postgres_connection_pool();
        sqlx::query("INSERT INTO store (store, partitions) VALUES ($1, 1)").bind(&store).execute(pool).await.unwrap();
        sqlx::query("INSERT INTO projection_positions (partition, epoch, seq, stream_id) VALUES (0, 1, 0, '0-0')")
            .execute(pool)
            .await
            .unwrap();
        let options = Options { batch, ..test.options.clone() };
        let app = harness::open(&options, &test.redis.url(), &url, test.clock.clone()).await.unwrap();
        app.projector.drain().await.unwrap();
        assert!(entries(&mut redis, 0).await.is_empty());
        assert_eq!(expected, tables(&db).await, "batches of {batch}");
        app.db.close().await.unwrap();
        db.close().await.unwrap();
        harness::drop_database(&database).await;
    }
    test.finish().await;
}

#[tokio::test]
async fn crash_between_commit_and_trim_applies_events_once() {
    let test = TestApp::with(Options { batch: 5, outbox_keep_seconds: 0, ..Options::default() }).await;
    busy_day(&test).await;
    let mut redis = test.raw().await;
    let stream = entries(&mut redis, 0).await;
    test.drain().await;
    let expected = tables(&test.db).await;
    // Nothing of it was trimmed; all but some of it; and some of it with new events behind.
    for left in [stream.len(), 7, 1] {
        outbox::replace(&mut redis, 0, &stream[stream.len() - left..]).await;
        test.drain().await;
        assert!(entries(&mut redis, 0).await.is_empty());
        assert_eq!(expected, tables(&test.db).await);
    }
    outbox::replace(&mut redis, 0, &stream).await;
    test.put("/api/v1/balances/1", json!({"amount": 11})).await.ok();
    assert_eq!(entries(&mut redis, 0).await.len(), stream.len() + 1);
    let projection = test.get("/admin/v1/projection").await.ok();
    assert_eq!(projection["lagEvents"], 1, "committed events count as lag: {projection}");
    test.drain().await;
    let rows = tables(&test.db).await;
    assert_eq!(rows["balance_entries"].len(), expected["balance_entries"].len() + 1);
    assert_eq!(rows["orders"], expected["orders"]);
    test.finish().await;
}

/// Two projectors read the same events before either commits: the second one is superseded.
#[tokio::test(flavor = "multi_thread")]
async fn superseded_projector_changes_nothing() {
    for batch in [3, 1000] {
        let test = TestApp::with(Options { batch, ..Options::default() }).await;
        busy_day(&test).await;
        let others =
            [test.open_instance(&test.options).await.unwrap(), test.open_instance(&test.options).await.unwrap()];
        // The lock on the position makes each projector wait at its first commit, after its reads.
        let pool = test.db.get_postgres_connection_pool();
        let mut lock = pool.begin().await.unwrap();
        sqlx::query("SELECT 1 FROM projection_positions FOR UPDATE").execute(&mut *lock).await.unwrap();
        let drain = |projector: &Projector| {
            let projector = projector.clone();
            tokio::spawn(async move { projector.drain().await })
        };
        let draining = others.each_ref().map(|app| drain(&app.projector));
        until("two projectors wait for the position", async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'UPDATE projection_positions%'";
            (count(&test.db, waiting).await == 2).then_some(())
        })
        .await;
        lock.rollback().await.unwrap();
        for drained in draining {
            drained.await.unwrap().unwrap();
        }
        for app in others {
            app.db.close().await.unwrap();
        }
        test.finish().await;
    }
}

/// Another projector commits and trims between this one's reads of the position and of the outbox: that is no loss.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_projector_progress_is_no_loss() {
    let test = TestApp::with(Options { batch: 1, ..Options::default() }).await;
    let user = test.user(0).await;
    let others = join_all((0..4).map(async |_| test.open_instance(&test.options).await.unwrap())).await;
    for _ in 0..10 {
        for _ in 0..20 {
            test.put_charge(user, 1).await.ok();
        }
        let drains = others.iter().map(|app| {
            let projector = app.projector.clone();
            tokio::spawn(async move { projector.drain().await })
        });
        for drained in drains.collect::<Vec<_>>() {
            drained.await.unwrap().unwrap();
        }
    }
    for app in others {
        app.db.close().await.unwrap();
    }
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projectors_apply_each_event_once_under_load() {
    let test = TestApp::with(Options { max_open_orders: 1000, outbox_keep_seconds: 0, ..Options::default() }).await;
    let first = test.open_instance(&Options { batch: 7, ..test.options.clone() }).await.unwrap();
    let second = test.open_instance(&Options { batch: 3, ..test.options.clone() }).await.unwrap();
    first.project();
    second.project();
    let product = test.product(10, 1_000).await;
    let coupon = test.campaign("FIXED", 1, 5).await;
    let shop = &test;
    let shoppers = (0..10).map(|_| async move {
        let user = shop.user(10_000).await;
        let coupon = shop.issue(coupon, user).await;
        for n in 0..6 {
            let charged = shop.put(&format!("/api/v1/balances/{user}"), json!({"amount": 5})).await.ok();
            let history = shop.get(&format!("/api/v1/balances/{user}/history?limit=1")).await.ok();
            assert_eq!(history[0]["after_balance"], charged["balance"], "a client reads its own write");
            let order = shop.place(user, product, 2).await;
            match n % 3 {
                0 => drop(shop.pay(order, user, "CARD", 20).await.ok()),
                1 => drop(shop.cancel(order, user).await.ok()),
                _ => {
                    shop.pay(order, user, "TOSS", 20).await.ok();
                    shop.cancel(order, user).await.ok();
                }
            }
            let history = shop.get(&format!("/api/v1/balances/{user}/history")).await.ok();
            let last = history.as_array().unwrap().last().unwrap()["after_balance"].clone();
            assert_eq!(last, shop.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"]);
        }
        coupon.status == 200
    });
    let issued = join_all(shoppers).await.into_iter().filter(|issued| *issued).count();
    assert_eq!(issued, 5);
    // The projectors drain the outbox without the test.
    until("the outbox is empty", async || entries(&mut test.raw().await, 0).await.is_empty().then_some(())).await;
    first.stop(None).await;
    second.stop(Some(Duration::from_secs(300))).await;
    test.finish().await;
}
