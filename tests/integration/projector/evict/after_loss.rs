//! Archived orders in a rebuild, in the audit, and under load.

use super::*;

/// Rebuilds Redis, and says that no decision is missing.
async fn rebuild_without_loss(test: &TestApp) -> rebuild::Summary {
    let summary =
        rebuilt(test, rebuild::RebuildOptions { lost_at_most: rebuild::LossBounds::Each(0), ..Default::default() })
            .await;
    ready(test).await;
    summary
}

#[tokio::test]
async fn rebuild_restores_orders_not_archived() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let old = ClosedOrders::of(&mut shop).await;
        let replies_before = replies_of(&shop, &old).await;
        // The retention of the old orders has ended, except of the refunded ones.
        shop.test.clock.advance(KEEP_MS + 1);
        let young = shop.paid().await;
        shop.test.cancel(old.pending, shop.user).await.ok();
        let pending = shop.place(None).await;
        shop.test.clock.advance(60_000);
        shop.test.drain().await;
        shop.test.flush_redis().await;
        let summary = rebuild_without_loss(&shop.test).await;
        assert_eq!((summary.withheld_units, summary.lost_at_least), (0, 0));
        let ttls = shop.ttls().await;
        let orders: BTreeSet<&String> = ttls.keys().filter(|key| key.contains(":order:")).collect();
        let expected = [old.refunded, old.pending, young, pending].map(|order| shop.key(order));
        assert_eq!(orders, expected.iter().collect());
        let ttl = |order: i64| ttls[&shop.key(order)];
        assert_eq!(ttl(pending), -1);
        // By the service's clock, a minute of the TTL has passed.
        assert!((KEEP_MS - 360_000..=KEEP_MS - 60_000).contains(&ttl(young)), "{}", ttl(young));
        assert!(ttl(old.pending) <= KEEP_MS - 60_000);
        let passed = KEEP_MS + 60_001;
        let rest = REFUNDED_KEEP_MS - passed;
        assert!((rest - 300_000..=rest).contains(&ttl(old.refunded)), "{}", ttl(old.refunded));
        // The replies are the same for restored and for archived orders, and both can be refunded.
        let replies_after = replies_of(&shop, &old).await;
        let of = |replies_of: &[String]| -> Vec<String> {
            let pending = format!("{}:", old.pending);
            replies_of.iter().filter(|line| !line.starts_with(&pending)).cloned().collect()
        };
        assert_eq!(of(&replies_before), of(&replies_after));
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        for order in [old.paid, young] {
            assert_eq!(shop.test.cancel(order, shop.user).await.ok()["closeReason"], "REFUNDED");
        }
        assert_eq!(shop.balance().await, balance + 2 * 2_460);
        assert_eq!(shop.stock().await, stock.iter().map(|units| units + 4).collect::<Vec<_>>());
        // New ids do not repeat those of restored or archived orders.
        let last = [old.pending, young, pending].into_iter().chain(old.closed()).max().unwrap();
        for _ in 0..5 {
            assert!(shop.paid().await > last);
        }
        shop.finish().await;
    }
}

/// A replica that takes the place of its master may have every decision and lack evictions: they are repeated.
#[tokio::test]
async fn eviction_repeated_when_redis_lacks_it() {
    let shop = Fixture::start(1).await;
    shop.test.drain().await;
    let mut redis = shop.test.raw().await;
    let meta = Keys(Partition(0)).meta();
    let mark: String = redis::cmd("HGET").arg(&meta).arg("relayed").query_async(&mut redis).await.unwrap();
    let order = shop.paid().await;
    shop.test.drain().await;
    let key = shop.key(order);
    assert!(shop.ttls().await[&key] > 0);
    let mut lose = redis::pipe();
    lose.cmd("PERSIST").arg(&key).cmd("HSET").arg(&meta).arg("relayed").arg(mark);
    lose.query_async::<(i64, i64)>(&mut redis).await.unwrap();
    shop.test.drain().await;
    assert_eq!(shop.ttls().await[&key], -1);
    shop.paid().await;
    shop.test.drain().await;
    assert!(shop.ttls().await[&key] > 0);
    shop.finish().await;
}

async fn failed_checks(test: &TestApp) -> Vec<String> {
    let report = test.app.audit().run().await.unwrap();
    report.checks.iter().filter(|check| !check.ok).map(|check| check.detail.clone()).collect()
}

/// The audit names a missing key that Redis must have, and not an evicted one.
#[tokio::test]
async fn audit_tells_archived_from_missing() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let ends = ClosedOrders::of(&mut shop).await;
        let cancelled = shop.place(None).await;
        shop.test.drain().await;
        // Decided since; PostgreSQL has the earlier state.
        for order in [ends.paid, cancelled] {
            shop.test.cancel(order, shop.user).await.ok();
        }
        assert_eq!(failed_checks(&shop.test).await, Vec::<String>::new());
        let mut redis = shop.test.raw().await;
        for key in &[shop.key(ends.pending), shop.key(ends.paid), shop.key(cancelled)] {
            let aside = format!("{key}:aside");
            let _: () = redis::cmd("RENAME").arg(key).arg(&aside).query_async(&mut redis).await.unwrap();
            let found = failed_checks(&shop.test).await.join("\n");
            let id = key.rsplit(':').next().unwrap();
            let says = format!("order {id}: it is in PostgreSQL and not in Redis");
            assert!(found.contains(&says), "{says:?} is not in\n{found}");
            let _: () = redis::cmd("RENAME").arg(&aside).arg(key).query_async(&mut redis).await.unwrap();
            // An open order must have no TTL either.
            let _: i64 = redis::cmd("PEXPIRE").arg(key).arg(KEEP_MS).query_async(&mut redis).await.unwrap();
            let found = failed_checks(&shop.test).await.join("\n");
            assert!(
                found.contains(&format!("order {id}: it is about to be evicted from Redis, and is not closed")),
                "{found}"
            );
            let _: i64 = redis::cmd("PERSIST").arg(key).query_async(&mut redis).await.unwrap();
            assert_eq!(failed_checks(&shop.test).await, Vec::<String>::new());
        }
        // Without all evicted keys. A key that still exists is compared.
        for order in [ends.cancelled, ends.expired, ends.failed] {
            shop.delete([shop.key(order)]).await;
        }
        assert_eq!(failed_checks(&shop.test).await, Vec::<String>::new());
        let refunded = shop.key(ends.refunded);
        let set = |value: i64| redis::cmd("HSET").arg(&refunded).arg("total").arg(value).to_owned();
        let _: i64 = set(1).query_async(&mut redis).await.unwrap();
        let found = failed_checks(&shop.test).await.join("\n");
        assert!(found.contains(&format!("order {}: the total", ends.refunded)), "{found}");
        let _: i64 = set(2_460).query_async(&mut redis).await.unwrap();
        // The rows that refer to an order reveal its loss in PostgreSQL.
        shop.test.drain().await;
        shop.test.expire_evicted().await;
        assert_eq!(failed_checks(&shop.test).await, Vec::<String>::new());
        shop.finish().await;
    }
}

/// Orders are evicted as soon as PostgreSQL has them, during orders, refunds and audits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_keeps_invariants_when_retention_zero() {
    for partitions in [1, 3] {
        let retention = RetentionConfig { closed_order_keep_seconds: 0 };
        let options = Options { partitions, retention, project: true, max_open_orders: 1000, ..Options::default() };
        let shop = Fixture::with(options).await;
        let (test, products) = (&shop.test, &shop.products);
        let shopping = (0..4).map(|n| async move {
            let user = test.user(100_000).await;
            for round in n..n + 12 {
                let balance = test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"].clone();
                let lines: Vec<Value> = products.iter().map(|id| json!({"productId": id, "quantity": 1})).collect();
                let order = test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await;
                let order = order.ok()["orderId"].as_i64().unwrap();
                let path = format!("/api/v1/orders/{order}?userId={user}");
                if round % 3 == 0 {
                    test.cancel(order, user).await.ok();
                    assert_eq!(test.get(&path).await.ok()["closeReason"], "CANCELLED_BY_USER");
                    continue;
                }
                test.pay(order, user, "CARD", 1_230).await.ok();
                assert_eq!(test.get(&path).await.ok()["orderStatus"], "PAID", "the user got a 200");
                test.pay(order, user, "CARD", 1_230).await.refused(409, "ORDER_ALREADY_PAID");
                let replies = join_all((0..3).map(|_| test.cancel(order, user))).await;
                assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{replies:?}");
                assert_eq!(test.get(&path).await.ok()["closeReason"], "REFUNDED");
                let after = test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"].clone();
                assert_eq!(balance, after);
            }
        });
        let auditing = async {
            for _ in 0..2 {
                assert_eq!(failed_checks(test).await, Vec::<String>::new(), "{partitions} partitions");
            }
        };
        tokio::join!(join_all(shopping), auditing);
        busy_day(test).await;
        shop.finish().await;
    }
}

/// The retention setting has a minimum of a minute.
#[tokio::test]
async fn retention_refused_when_below_minute() {
    let retention = Retention::seconds(60);
    assert_eq!((retention.closed_ms(), retention.refunded_ms()), (60_000, REFUNDED_KEEP_MS));
    let retention = Retention::seconds(31_536_000);
    assert_eq!(retention.closed_ms(), retention.refunded_ms());
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_firstcome"));
    for (seconds, ok) in [("59", false), ("60", true), ("0", false)] {
        let output = program()
            .args(["rebuild", "--redis-url", "redis://127.0.0.1:1", "--database-url", "postgres://127.0.0.1:1/x"])
            .env("CLOSED_ORDER_KEEP_SECONDS", seconds)
            .env("DATABASE_TIMEOUT_MS", "100")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("invalid value"), !ok, "{seconds}: {said}");
    }
    let test = TestApp::start().await;
    let payment = NewPayment {
        order_id: OrderId::new(7).unwrap(),
        user_id: UserId::new(1).unwrap(),
        payment_type: PaymentType::Card,
        amount: 5,
    };
    let unknown = test.engine.pay_order(&call(None), payment, None).await;
    assert!(matches!(unknown, Err(Error::OrderNotFound)), "{unknown:?}");
    test.finish().await;
}
