//! Rebuilds at the start, and the loss of one partition.

use super::*;

/// Redis lost its disk: the next start rebuilds it. A running process waits for the rebuild and serves again afterwards.
#[tokio::test]
async fn start_rebuilds_empty_redis() {
    for partitions in [1, 3] {
        let mut test = TestApp::with(Options { partitions, ..ack_postgres() }).await;
        busy_day(&test).await;
        projected(&test).await;
        test.redis.kill().await.unwrap();
        std::fs::remove_dir_all(test.redis.data_dir()).unwrap();
        test.redis.restart().await.unwrap();
        until("the loss is detected", async || (test.get("/readyz").await.status == 503).then_some(())).await;
        let next = test.open_instance(&test.options).await.unwrap();
        next.engine.ready().await.unwrap();
        ready(&test).await;
        busy_day(&test).await;
        next.db.close().await.unwrap();
        test.finish().await;
    }
}

/// Of several concurrent starts one rebuilds and the others wait.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_rebuild_once() {
    let test = TestApp::with(ack_postgres()).await;
    busy_day(&test).await;
    projected(&test).await;
    test.flush_redis().await;
    let opened = futures_util::future::join_all((0..4).map(|_| test.open_instance(&test.options)));
    for app in opened.await {
        let app = app.unwrap();
        assert_eq!(app.store.identity().await.unwrap().unwrap().epoch, 2);
        app.db.close().await.unwrap();
    }
    ready(&test).await;
    test.finish().await;
}

/// An interrupted rebuild leaves an invalid store: the next start rebuilds again.
#[tokio::test]
async fn rebuild_restarted_when_interrupted() {
    let test = TestApp::with(ack_postgres()).await;
    busy_day(&test).await;
    projected(&test).await;
    test.app.stop(None).await;
    let before = comparable(test.snapshot().await);
    let mut redis = test.raw().await;
    let store: String = redis::cmd("HGET").arg("{p0}:meta").arg("store").query_async(&mut redis).await.unwrap();
    test.flush_redis().await;
    // The state after an interrupted rebuild has written its first keys.
    let _: i64 = redis::cmd("HSET")
        .arg("{p0}:meta")
        .arg(&["store", &store, "partitions", "1", "epoch", "2", "seq", "30", "rebuilding", "1", "frozen", "a rebuild"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let _: i64 = redis::cmd("HSET").arg("{p0}:stock").arg(&["1", "999"]).query_async(&mut redis).await.unwrap();
    test.get("/api/v1/products/1").await.refused(503, "SERVICE_UNAVAILABLE");
    let next = test.open_instance(&test.options).await.unwrap();
    assert_eq!(before, comparable(test.snapshot().await));
    next.db.close().await.unwrap();
    ready(&test).await;
    test.finish().await;
}

/// An empty Redis while other processes use another Redis is a wrong `REDIS_URL`, not a loss.
#[tokio::test]
async fn start_refused_when_redis_empty_and_others_run() {
    let test = TestApp::with(ack_postgres()).await;
    test.app.watch(true);
    test.user(5).await;
    projected(&test).await;
    let wrong = TestApp::start().await;
    wrong.flush_redis().await;
    let (redis, postgres) = (wrong.redis.url(), harness::postgres_url(&test.database));
    until("a process has reported its acknowledged positions", async || {
        let acknowledged = firstcome::postgres::progress::acknowledged(&test.db).await.unwrap();
        (!acknowledged.is_empty()).then_some(())
    })
    .await;
    let Err(error) = harness::open(&test.options, &redis, &postgres, test.clock.clone()).await else {
        panic!("the start succeeded")
    };
    assert!(format!("{error:#}").contains("REDIS_URL leads to the wrong one"), "{error:#}");
    assert!(wrong.snapshot().await.is_empty());
    wrong.finish_unchecked().await;
    test.finish().await;
}

/// PostgreSQL keeps the acknowledged positions, so that a start detects a loss without help from other processes.
#[tokio::test]
async fn start_refused_when_redis_behind_acknowledged() {
    let test = TestApp::start().await;
    let user = test.user(100).await;
    test.put_charge(user, 1).await.ok();
    test.engine.check().await;
    let _: i64 =
        redis::cmd("HINCRBY").arg("{p0}:meta").arg("seq").arg(-1).query_async(&mut test.raw().await).await.unwrap();
    let Err(error) = test.open_instance(&test.options).await else { panic!("the start succeeded") };
    assert!(format!("{error:#}").contains("behind the acknowledged (1, 2)"), "{error:#}");
    test.finish_unchecked().await;
}

/// One partition is lost: the rebuild also completes transfers of units from and to the others.
#[tokio::test]
async fn rebuild_repairs_other_partitions_when_one_lost() {
    for lost in 0..3 {
        let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
        let users = [test.user(100_000).await, test.user(100_000).await, test.user(100_000).await];
        let products = [test.product(100, 50).await, test.product(200, 50).await, test.product(300, 50).await];
        let coupon = test.campaign("FIXED", 10, 50).await;
        let all = async |user: i64, quantity: i64| {
            let lines = json!(products.map(|product| json!({"productId": product, "quantity": quantity})));
            let body = json!({"userId": user, "orderProducts": lines});
            let placed = test.post("/api/v1/orders", body).await.ok();
            (placed["orderId"].as_i64().unwrap(), user)
        };
        let mut orders = Vec::new();
        for user in users {
            orders.extend([all(user, 2).await, all(user, 2).await, all(user, 2).await]);
        }
        test.drain().await;
        // Decisions of every partition that PostgreSQL does not have yet: payments, cancels, orders, transfers and coupons.
        for (n, (order, user)) in orders.iter().enumerate() {
            match n % 3 {
                0 => drop(test.pay(*order, *user, "CARD", 1_200).await.ok()),
                1 => drop(test.cancel(*order, *user).await.ok()),
                _ => {}
            }
        }
        for user in users {
            // More than its partition has: units come from the others.
            all(user, 8).await;
            test.issue(coupon, user).await.ok();
        }
        let mut redis = test.raw().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{{p{lost}}}:*")).query_async(&mut redis).await.unwrap();
        let _: i64 = redis::cmd("DEL").arg(&keys).query_async(&mut redis).await.unwrap();
        test.engine.check().await;
        let summary = rebuilt(&test, rebuild::RebuildOptions::default()).await;
        assert_eq!(summary.possible_losses, [lost]);
        assert!(summary.repaired > 0, "{summary:?}");
        ready(&test).await;
        // A user who kept the coupon gets no second one.
        for user in users {
            let held = test.get(&format!("/api/v1/coupons/{user}")).await.ok();
            if !held.as_array().unwrap().is_empty() {
                test.issue(coupon, user).await.refused(400, "INVALID_COUPON");
            }
        }
        test.clock.advance(700_000);
        test.engine.sweep().await.unwrap();
        test.clock.advance(700_000);
        test.engine.sweep().await.unwrap();
        test.finish().await;
    }
}
