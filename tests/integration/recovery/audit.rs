//! The audit names each fault, and reports none in a sound store, also under load.

use std::sync::atomic::{AtomicBool, Ordering};

use firstcome::{audit::AuditReport, model::Clock};
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use serde_json::json;

use crate::{
    projector::projection::busy_day,
    support::harness::{Options, TestApp},
};

async fn audit(test: &TestApp) -> AuditReport {
    test.app.audit().run().await.unwrap()
}

/// The failed checks, a line each.
fn failed_checks(report: &AuditReport) -> Vec<String> {
    assert_eq!(report.balanced, report.checks.iter().all(|check| check.ok));
    report.checks.iter().filter(|check| !check.ok).map(|check| format!("{}: {}", check.name, check.detail)).collect()
}

/// Clients write on every partition, and the projection lags behind them.
#[tokio::test(flavor = "multi_thread")]
async fn audit_clean_under_load() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options {
            partitions,
            project: true,
            batch: 50,
            max_open_orders: 1_000,
            hold_seconds: 1,
            clock: None,
            sweep: true,
            ..Options::default()
        })
        .await;
        let users: Vec<i64> = join_all((0..4).map(|_| test.user(50_000))).await;
        let products: Vec<i64> = join_all((0..4).map(|_| test.product(300, 100_000))).await;
        let coupons: Vec<i64> = join_all((0..3).map(|_| test.campaign("FIXED", 10, 1_000_000))).await;
        let done = AtomicBool::new(false);
        let shopping = async |n: usize| {
            let user = users[n];
            let mut round = n;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                test.put_charge(user, 1_000).await.ok();
                test.issue(coupons[round % coupons.len()], user).await;
                let lines = json!([{"productId": products[round % 4], "quantity": 1}, {"productId": products[(round + 1) % 4], "quantity": 2}]);
                let coupon = round.is_multiple_of(3).then_some(coupons[0]);
                let order = json!({"userId": user, "orderProducts": lines, "userCouponId": coupon});
                let placed = test.post("/api/v1/orders", order).await;
                if placed.status != 200 {
                    continue;
                }
                let placed = placed.ok();
                let (order, price) = (placed["orderId"].as_i64().unwrap(), placed["finalPrice"].as_i64().unwrap());
                if !round.is_multiple_of(5) {
                    test.pay(order, user, "CARD", price).await;
                }
                if round.is_multiple_of(3) {
                    test.cancel(order, user).await;
                }
            }
        };
        let auditing = async {
            let mut decided = 0;
            for _ in 0..2 {
                let report = audit(&test).await;
                assert_eq!(failed_checks(&report), Vec::<String>::new(), "{partitions} partitions");
                let now = report.positions.iter().map(|at| at.decided_seq).sum();
                assert!(now > decided, "no decision between two audits");
                decided = now;
            }
            done.store(true, Ordering::Relaxed);
        };
        tokio::join!(join_all((0..users.len()).map(shopping)), auditing);
        test.finish().await;
    }
}

/// With nothing projected, the audit takes the backlog into account.
#[tokio::test]
async fn audit_clean_with_backlog() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        busy_day(&test).await;
        let report = audit(&test).await;
        assert_eq!(failed_checks(&report), Vec::<String>::new());
        assert!(report.positions.iter().any(|at| at.projected_seq == 0 && at.decided_seq > 0));
        test.drain().await;
        busy_day(&test).await;
        assert_eq!(failed_checks(&audit(&test).await), Vec::<String>::new());
        test.finish().await;
    }
}

/// An old backlog is a discrepancy when no projector runs, and none when one does.
#[tokio::test]
async fn audit_names_partition_whose_projection_stalled() {
    // A clock a minute ahead makes every decision a minute old.
    let ahead = Clock::system().now().plus(60_000);
    let test = TestApp::with(Options { clock: Some(ahead), partitions: 3, ..Options::default() }).await;
    let (_, user) = (test.user(0).await, test.user(100).await);
    let (report, ()) = tokio::join!(audit(&test), async { test.drain().await });
    assert_eq!(failed_checks(&report), Vec::<String>::new());
    test.put_charge(user, 5).await.ok();
    let report = audit(&test).await;
    assert!(!report.balanced);
    let found = failed_checks(&report).join("\n");
    assert!(found.contains("partition 2: PostgreSQL stands still at (1, 1) behind 2"), "{found}");
    assert_eq!(failed_checks(&report).len(), 1, "{found}");
    test.drain().await;
    assert_eq!(failed_checks(&audit(&test).await), Vec::<String>::new());
    test.finish().await;
}

// --- faults ----------------------------------------------------------------------------------------------------------

/// A projected store with users 1 and 2, product 1, campaign 1, and the orders 1 (PAID), 2 (PENDING, with the coupon) and 3
/// (CANCELLED).
pub(super) async fn shop() -> TestApp {
    let test = TestApp::start().await;
    let (user, _) = (test.user(10_000).await, test.user(5).await);
    let product = test.product(100, 50).await;
    let coupon = test.campaign("FIXED", 10, 5).await;
    test.issue(coupon, user).await.ok();
    let paid = test.place(user, product, 3).await;
    test.pay(paid, user, "CARD", 300).await.ok();
    let order =
        json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 2}], "userCouponId": coupon});
    test.post("/api/v1/orders", order).await.ok();
    let cancelled = test.place(user, product, 4).await;
    test.cancel(cancelled, user).await.ok();
    test.drain().await;
    assert_eq!((user, product, coupon, paid, cancelled), (1, 1, 1, 1, 3));
    assert_eq!(failed_checks(&audit(&test).await), Vec::<String>::new());
    test
}

pub(super) async fn run(redis: &mut MultiplexedConnection, command: &str) {
    let mut words = command.split(' ');
    let mut corruption = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        corruption.arg(word);
    });
    let _: redis::Value = corruption.query_async(redis).await.unwrap();
}

/// Each row: a command that corrupts Redis, the command that undoes it, and parts of the audit's findings.
#[tokio::test]
async fn audit_names_faults_in_redis() {
    let test = shop().await;
    let mut redis = test.raw().await;
    for (corruption, undo, parts) in [
        ("HINCRBY {p0}:user:1 balance 1", "HINCRBY {p0}:user:1 balance -1", &["user 1: the balance is"][..]),
        ("HINCRBY {p0}:user:2 entries 1", "HINCRBY {p0}:user:2 entries -1", &["user 2: the number of balance entries"]),
        ("HINCRBY {p0}:user:1 open 1", "HINCRBY {p0}:user:1 open -1", &["user 1: the number of open orders"]),
        ("HSET {p0}:user:2 name X", "HSET {p0}:user:2 name 이다은", &["user 2: the name"]),
        (
            "RENAME {p0}:user:2 {p0}:user:3",
            "RENAME {p0}:user:3 {p0}:user:2",
            &["user 2: it is in PostgreSQL", "user 3: it is in Redis"],
        ),
        (
            "HINCRBY {p0}:stock 1 1",
            "HINCRBY {p0}:stock 1 -1",
            &["product 1: on sale is \"46\" in Redis and \"45\"", "stocked"],
        ),
        ("HINCRBY {p0}:held 1 -1", "HINCRBY {p0}:held 1 1", &["product 1: held is"]),
        ("HINCRBY {p0}:sold 1 1", "HINCRBY {p0}:sold 1 -1", &["product 1: sold is"]),
        ("HINCRBY {p0}:withheld 1 1", "HDEL {p0}:withheld 1", &["product 1: withheld is"]),
        ("HINCRBY {p0}:price 1 1", "HINCRBY {p0}:price 1 -1", &["product 1: the price"]),
        ("ZREM {p0}:catalogue 1", "ZADD {p0}:catalogue 1 1", &["product 1: it is not in the catalogue"]),
        (
            "HINCRBY {p0}:coupon:1 issued 1",
            "HINCRBY {p0}:coupon:1 issued -1",
            &["campaign 1: issued is", "2 coupons are issued to 1 holders"],
        ),
        (
            "SADD {p0}:coupon:1:holders 2",
            "SREM {p0}:coupon:1:holders 2",
            &["campaign 1: 1 coupons are issued to 2 holders"],
        ),
        (
            "SMOVE {p0}:coupon:1:holders {p0}:coupon:1:holders2 1",
            "RENAME {p0}:coupon:1:holders2 {p0}:coupon:1:holders",
            &["user 1: has coupon 1 and is not among its holders", "{p0}:coupon:1:holders2 is nothing of ours"],
        ),
        ("HSET {p0}:user:2 1 2|1772427600000|A||", "HDEL {p0}:user:2 1", &["user 2: coupon 1"]),
        (
            "HSET {p0}:order:1 status PENDING",
            "HSET {p0}:order:1 status PAID",
            &["order 1: the status", "the clock will not end it"],
        ),
        (
            "HINCRBY {p0}:order:2 total 1",
            "HINCRBY {p0}:order:2 total -1",
            &["order 2: the total", "its lines are worth 200"],
        ),
        ("HSET {p0}:order:2 lines 1:1:200", "HSET {p0}:order:2 lines 1:2:100", &["order 2: the lines"]),
        (
            "ZREM {p0}:expiry 2",
            "ZADD {p0}:expiry 1772428200000 2",
            &["order 2: it is PENDING, and the clock will not end it"],
        ),
        ("ZADD {p0}:expiry 5 3", "ZREM {p0}:expiry 3", &["order 3: the clock will end it, and must not"]),
        (
            "ZADD {p0}:gateway 5 77",
            "ZREM {p0}:gateway 77",
            &["order 77: something comes due, and there is no such order"],
        ),
        (
            "RENAME {p0}:order:2 {p0}:order:9",
            "RENAME {p0}:order:9 {p0}:order:2",
            &["order 2: it is in PostgreSQL", "order 9: it is in Redis"],
        ),
        (
            "ZINCRBY {p0}:rank:units:20260302 1 1",
            "ZINCRBY {p0}:rank:units:20260302 -1 1",
            &["product 1 on 20260302: units is \"4\""],
        ),
        ("ZINCRBY {p0}:rank:won:20260302 5 1", "ZINCRBY {p0}:rank:won:20260302 -5 1", &["product 1 on 20260302: won"]),
        ("ZADD {p0}:rank:units:20260301 1 1", "DEL {p0}:rank:units:20260301", &["product 1 on 20260301: units"]),
        ("SET {p0}:stray 1", "DEL {p0}:stray", &["{p0}:stray is nothing of ours"]),
        ("HSET {p0}:meta frozen tested", "HDEL {p0}:meta frozen", &["partition 0 is frozen: tested"]),
        ("HSET {p0}:meta store another", "", &["Redis has store another"]),
    ] {
        run(&mut redis, corruption).await;
        let report = audit(&test).await;
        assert!(!report.balanced, "not detected: {corruption}");
        let found = failed_checks(&report).join("\n");
        for part in parts {
            assert!(found.contains(part), "{corruption}: {part:?} is not in\n{found}");
        }
        if !undo.is_empty() {
            run(&mut redis, undo).await;
            assert_eq!(failed_checks(&audit(&test).await), Vec::<String>::new(), "after {undo}");
        }
    }
    test.finish_unchecked().await;
}

/// The same for PostgreSQL.
#[tokio::test]
async fn audit_names_faults_in_postgres() {
    let test = shop().await;
    let pool = test.db.get_postgres_connection_pool();
    for (corruption, undo, parts) in [
        (
            "UPDATE users SET balance = balance + 1 WHERE id = 2",
            "UPDATE users SET balance = balance - 1 WHERE id = 2",
            &["user 2: balance 6, history 5", "user 2: the balance is \"5\" in Redis and \"6\""][..],
        ),
        (
            "UPDATE balance_entries SET entry_no = 9 WHERE user_id = 1 AND entry_no = 2",
            "UPDATE balance_entries SET entry_no = 2 WHERE user_id = 1 AND entry_no = 9",
            &["user 1, entry 9"],
        ),
        (
            "UPDATE balance_entries SET before_balance = 9999, after_balance = 9699 WHERE user_id = 1 AND entry_no = 2",
            "UPDATE balance_entries SET before_balance = 10000, after_balance = 9700 WHERE user_id = 1 AND entry_no = 2",
            &["user 1, entry 2: begins with 9999 after 10000"],
        ),
        (
            "UPDATE products SET on_sale = on_sale - 1, held = held + 1",
            "UPDATE products SET on_sale = on_sale + 1, held = held - 1",
            &["product 1: held 3 of 2", "product 1: on sale is \"45\" in Redis and \"44\""],
        ),
        (
            "UPDATE order_lines SET quantity = 2 WHERE order_id = 1",
            "UPDATE order_lines SET quantity = 3 WHERE order_id = 1",
            &["order 1: total 300, lines 200", "product 1: held 2 of 2, sold 3 of 2", "rankings"],
        ),
        (
            "UPDATE campaigns SET issued = 2",
            "UPDATE campaigns SET issued = 1",
            &["campaign 1: issued 2, coupons 1, of 5"],
        ),
        ("UPDATE payments SET amount = 299", "UPDATE payments SET amount = 300", &["order 1: PAID, payment PAID"]),
        (
            "UPDATE payments SET status = 'REFUNDED'",
            "UPDATE payments SET status = 'PAID'",
            &["order 1: PAID, payment REFUNDED"],
        ),
        (
            "UPDATE user_coupons SET status = 'AVAILABLE', order_id = NULL",
            "UPDATE user_coupons SET status = 'HELD', order_id = 2",
            &["order 2: its coupon 1 is not its own", "user 1: coupon 1"],
        ),
        (
            "UPDATE user_coupons SET order_id = 1",
            "UPDATE user_coupons SET order_id = 2",
            &["user 1, coupon 1: HELD by order 1, which is PAID"],
        ),
        (
            "UPDATE orders SET status = 'PENDING', closed_at = NULL, close_reason = NULL WHERE id = 3",
            "UPDATE orders SET status = 'CANCELLED', closed_at = placed_at, close_reason = 'CANCELLED_BY_USER' WHERE id = 3",
            &["order 3: the status", "product 1: held 2 of 6", "user 1: the number of open orders"],
        ),
        (
            "INSERT INTO order_lines (order_id, product_id, quantity, price) VALUES (999, 1, 1, 100)",
            "DELETE FROM order_lines WHERE order_id = 999",
            &["a line of order 999, which is not there"],
        ),
        (
            "INSERT INTO user_coupons (coupon_id, user_id, issue_no, status, issued_at) VALUES (1, 999, 5, 'AVAILABLE', now())",
            "DELETE FROM user_coupons WHERE user_id = 999",
            &["coupon 1: there is no user 999"],
        ),
        (
            "INSERT INTO balance_entries (user_id, entry_no, transaction_type, amount, before_balance, after_balance, created_at)
             VALUES (999, 1, 'CHARGE', 5, 0, 5, now())",
            "DELETE FROM balance_entries WHERE user_id = 999",
            &["entry 1: there is no user 999"],
        ),
        (
            "INSERT INTO payments (id, order_id, user_id, payment_type, method, status, amount, receipt, started_at)
             VALUES (999, 998, 1, 'CARD', 'BALANCE', 'STARTED', 5, 'r', now())",
            "DELETE FROM payments WHERE id = 999",
            &["payment 999: there is no order 998"],
        ),
        (
            "INSERT INTO orders (id, user_id, status, total, discount, final_price, placed_at, expires_at, closed_at, close_reason)
             VALUES (999, 997, 'CANCELLED', 0, 0, 0, now(), now(), now(), 'EXPIRED')",
            "DELETE FROM orders WHERE id = 999",
            &["order 999: there is no user 997"],
        ),
        (
            "UPDATE order_totals SET orders = orders + 1 WHERE status = 'PAID'",
            "UPDATE order_totals SET orders = orders - 1 WHERE status = 'PAID'",
            &["partition 0: 2 orders PAID, and 1 are there"],
        ),
        (
            "INSERT INTO dead_letters (partition, stream_id, epoch, seq, reason, fields) VALUES (0, '1-1', 1, 1, 'tested', '{}')",
            "DELETE FROM dead_letters",
            &["partition 0, entry 1-1: tested"],
        ),
        (
            "UPDATE events SET seq = seq + 1000 WHERE seq = 3",
            "UPDATE events SET seq = seq - 1000 WHERE seq = 1003",
            &["are events"],
        ),
        (
            "INSERT INTO events (slot, partition, epoch, seq, late, late_seq, type, subject, at, data)
             SELECT slot, partition, epoch, seq, 1, 2, type, subject, at, data FROM events WHERE seq = 3",
            "DELETE FROM events WHERE late = 1",
            &["are events"],
        ),
        ("UPDATE projection_positions SET seq = seq + 1", "UPDATE projection_positions SET seq = seq - 1", &[]),
    ] {
        sqlx::query(corruption).execute(pool).await.unwrap();
        if parts.is_empty() {
            // PostgreSQL is ahead of Redis: the audit refuses to compare them.
            let error = test.app.audit().run().await.expect_err("the audit succeeded");
            assert!(format!("{error:#}").contains("behind PostgreSQL"), "{error:#}");
        } else {
            let report = audit(&test).await;
            assert!(!report.balanced, "not detected: {corruption}");
            let found = failed_checks(&report).join("\n");
            for part in parts {
                assert!(found.contains(part), "{corruption}: {part:?} is not in\n{found}");
            }
        }
        sqlx::query(undo).execute(pool).await.unwrap();
        assert_eq!(failed_checks(&audit(&test).await), Vec::<String>::new(), "after {undo}");
    }
    test.finish().await;
}

/// Decisions that were trimmed from the outbox before PostgreSQL had them.
#[tokio::test]
async fn audit_names_trimmed_outbox() {
    let test = shop().await;
    test.put_charge(1, 5).await.ok();
    run(&mut test.raw().await, "XTRIM {p0}:outbox MAXLEN 0").await;
    let error = test.app.audit().run().await.expect_err("the audit succeeded");
    assert!(format!("{error:#}").contains("decisions are lost"), "{error:#}");
    test.finish_unchecked().await;
}

#[tokio::test]
async fn unknown_keys_are_no_fault_when_schema_newer() {
    let test = shop().await;
    run(&mut test.raw().await, "SET {p0}:from-a-newer-version 1").await;
    assert!(!audit(&test).await.balanced);
    test.sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'of a newer version', true, '', 0)",
    )
    .await;
    assert_eq!(failed_checks(&audit(&test).await), Vec::<String>::new());
    run(&mut test.raw().await, "DEL {p0}:from-a-newer-version").await;
    test.finish().await;
}
