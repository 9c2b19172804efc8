//! The projection: exactly once whatever is read twice, the same whatever the batches are, past what can't be applied,
//! never past what is missing, and with Postgres away.

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
};

const OUTBOX: &str = "{p0}:outbox";
const META: &str = "{p0}:meta";

type Entry = (String, Vec<(String, String)>);

pub async fn entries(redis: &mut MultiplexedConnection) -> Vec<Entry> {
    redis::cmd("XRANGE").arg(OUTBOX).arg("-").arg("+").query_async(redis).await.unwrap()
}

/// Makes the outbox hold exactly these entries, under their own ids: as it was when nothing had been trimmed yet.
async fn put_back(redis: &mut MultiplexedConnection, entries: &[Entry]) {
    let _: i64 = redis::cmd("DEL").arg(OUTBOX).query_async(redis).await.unwrap();
    for (id, fields) in entries {
        let mut add = redis::cmd("XADD");
        add.arg(OUTBOX).arg(id);
        for (name, value) in fields {
            add.arg(name).arg(value);
        }
        let added: String = add.query_async(redis).await.unwrap();
        assert_eq!(&added, id);
    }
}

/// Every row of every table, without the times at which they were written.
async fn tables(db: &DatabaseConnection) -> BTreeMap<&'static str, Vec<String>> {
    let mut all = BTreeMap::new();
    for table in [
        "balance_entries",
        "campaigns",
        "dead_letters",
        "order_lines",
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

/// The parts of another process, on the same stores.
async fn another(test: &TestApp, options: &Options) -> App {
    let (redis, postgres) = (test.redis.url(), harness::postgres_url(&test.database));
    harness::open(options, &redis, &postgres, test.clock.clone()).await.unwrap()
}

fn ids(reply: &Value) -> i64 {
    reply["orderId"].as_i64().unwrap()
}

/// One of everything that a shop sees in a day: every kind of event, and every end of an order.
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
    let order = |lines: Value, coupon: Option<i64>| {
        test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines, "userCouponId": coupon}))
    };
    let one = |product: i64, quantity: i64| json!([{"productId": product, "quantity": quantity}]);
    // Paid with a coupon, and kept; paid and refunded with the other; cancelled; failed; free; left to the clock.
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
    let patch = json!({"stockDelta": -4});
    test.send(Method::PATCH, &format!("/admin/v1/products/{shirt}"), Some(&patch), None).await.ok();
    // Closed early, and open for longer again, but not as long as at first.
    for closes_in in [0, 3_600_000] {
        let closes_at = test.clock.now().plus(closes_in).local(test.engine.zone());
        let patch = json!({"closesAt": closes_at});
        test.send(Method::PATCH, &format!("/admin/v1/coupons/{percent}"), Some(&patch), None).await.ok();
    }
}

#[tokio::test]
async fn batch_size_leaves_tables_unchanged() {
    let test = TestApp::start().await;
    busy_day(&test).await;
    let mut redis = test.raw().await;
    let stream = entries(&mut redis).await;
    let kind = |fields: &[(String, String)]| {
        event::fields_of(fields, 0).into_iter().find(|(name, _)| name == "kind").unwrap().1
    };
    let kinds: std::collections::BTreeSet<String> = stream.iter().map(|(_, fields)| kind(fields)).collect();
    assert_eq!(kinds.len(), 10, "{kinds:?}");
    test.drain().await;
    let expected = tables(&test.db).await;
    assert!(expected.iter().all(|(table, rows)| rows.is_empty() == (*table == "dead_letters")), "{expected:?}");
    let store: String = redis::cmd("HGET").arg(META).arg("store").query_async(&mut redis).await.unwrap();
    for batch in [1, 2, 7] {
        put_back(&mut redis, &stream).await;
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
        assert!(entries(&mut redis).await.is_empty());
        assert_eq!(expected, tables(&db).await, "batches of {batch}");
        app.db.close().await.unwrap();
        db.close().await.unwrap();
        harness::drop_database(&database).await;
    }
    test.finish().await;
}

#[tokio::test]
async fn crash_between_commit_and_trim_applies_events_once() {
    let test = TestApp::with(Options { batch: 5, ..Options::default() }).await;
    busy_day(&test).await;
    let mut redis = test.raw().await;
    let stream = entries(&mut redis).await;
    test.drain().await;
    let expected = tables(&test.db).await;
    // Nothing of it was trimmed; all but some of it; and some of it with new events behind.
    for left in [stream.len(), 7, 1] {
        put_back(&mut redis, &stream[stream.len() - left..]).await;
        test.drain().await;
        assert!(entries(&mut redis).await.is_empty());
        assert_eq!(expected, tables(&test.db).await);
    }
    put_back(&mut redis, &stream).await;
    test.put("/api/v1/balances/1", json!({"amount": 11})).await.ok();
    assert_eq!(entries(&mut redis).await.len(), stream.len() + 1);
    let projection = test.get("/admin/v1/projection").await.ok();
    assert_eq!(projection["lagEvents"], 1, "what is committed is not behind: {projection}");
    test.drain().await;
    let rows = tables(&test.db).await;
    assert_eq!(rows["balance_entries"].len(), expected["balance_entries"].len() + 1);
    assert_eq!(rows["orders"], expected["orders"]);
    test.finish().await;
}

/// Two projectors that both read before either committed: the second finds itself overtaken.
#[tokio::test(flavor = "multi_thread")]
async fn superseded_projector_changes_nothing() {
    for batch in [3, 1000] {
        let test = TestApp::with(Options { batch, ..Options::default() }).await;
        busy_day(&test).await;
        let others = [another(&test, &test.options).await, another(&test, &test.options).await];
        // The position is locked, so that each has read all and waits with its first commit.
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

/// Between its two reads, of the position and of the outbox, another may have committed and trimmed: that is no loss.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_projector_progress_is_no_loss() {
    let test = TestApp::with(Options { batch: 1, ..Options::default() }).await;
    let user = test.user(0).await;
    let others = join_all((0..4).map(|_| another(&test, &test.options))).await;
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
    let test = TestApp::with(Options { max_open_orders: 1000, ..Options::default() }).await;
    let first = another(&test, &Options { batch: 7, ..test.options.clone() }).await;
    let second = another(&test, &Options { batch: 3, ..test.options.clone() }).await;
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
            assert_eq!(history[0]["after_balance"], charged["balance"], "a reader sees what it was told");
            let order = shop.order(user, product, 2).await.ok()["orderId"].as_i64().unwrap();
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
    // They drain by themselves.
    until("the outbox is empty", async || entries(&mut test.raw().await).await.is_empty().then_some(())).await;
    first.stop(None).await;
    second.stop(Some(Duration::from_secs(300))).await;
    test.finish().await;
}

// --- what can't be applied -------------------------------------------------------------------------------------------

/// Adds an entry as if a script had decided it: with the next number, unless `position` is false.
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

/// The outbox's last event again, as if it had been decided twice.
async fn again(redis: &mut MultiplexedConnection) -> String {
    let (_, fields) = entries(redis).await.pop().unwrap();
    let fields = event::fields_of(&fields, 0);
    let fields: Vec<(&str, &[u8])> = fields
        .iter()
        .filter(|(name, _)| name != "epoch" && name != "seq")
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    poison(redis, true, &fields).await
}

#[tokio::test]
async fn invalid_event_becomes_dead_letter_and_projection_continues() {
    for batch in [1, 4, 1000] {
        let test = TestApp::with(Options { batch, dead_letters: 12, ..Options::default() }).await;
        let mut redis = test.raw().await;
        // By the id of the entry: a part of the reason.
        let mut bad: BTreeMap<String, &str> = BTreeMap::new();
        bad.insert(poison(&mut redis, false, &[("garbage", b"yes")]).await, "field v is missing");
        let user = test.user(1_000).await;
        bad.insert(again(&mut redis).await, "users_pk");
        let coupon = test.campaign("FIXED", 10, 5).await;
        test.issue(coupon, user).await.ok();
        bad.insert(again(&mut redis).await, "user_coupons_");
        let product = test.product(100, 10).await;
        let order = test.order(user, product, 3).await.ok()["orderId"].as_i64().unwrap();
        bad.insert(again(&mut redis).await, "orders_pk");
        bad.insert(
            poison(&mut redis, true, &[("v", b"1"), ("at", b"1"), ("kind", b"no_such_kind")]).await,
            "no_such_kind",
        );
        bad.insert(
            poison(&mut redis, true, &[("v", b"0"), ("at", b"1"), ("kind", b"users_created")]).await,
            "version 0",
        );
        test.pay(order, user, "CARD", 300).await.ok();
        // Of an order that is not there: none of its units must have moved either.
        let mut paid = event::fields_of(&entries(&mut redis).await.pop().unwrap().1, 0);
        for (name, value) in &mut paid {
            match name.as_str() {
                "order" => *value = "999999".into(),
                "payment" => *value = "999999".into(),
                "receipt" => *value = "nobody's".into(),
                _ => {}
            }
        }
        let paid: Vec<(&str, &[u8])> = paid
            .iter()
            .filter(|(name, _)| name != "epoch" && name != "seq")
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        bad.insert(poison(&mut redis, true, &paid).await, "");
        test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 50})).await.ok();
        bad.insert(again(&mut redis).await, "balance_entries_pk");
        // Bytes that are no text, a name with a NUL in it, a number beyond all bounds, more units than there are.
        bad.insert(poison(&mut redis, true, &[("v", b"1"), (("kind"), b"\xff\xfe\0\x80")]).await, "at is missing");
        let created: [(&str, &[u8]); 9] = [
            ("v", b"1"),
            ("kind", b"users_created"),
            ("at", b"1772427600000"),
            ("first", b"777"),
            ("step", b"1"),
            ("count", b"1"),
            ("balance", b"0"),
            ("prefixed", b"0"),
            ("name", b"a\0b"),
        ];
        bad.insert(poison(&mut redis, true, &created).await, "0x00");
        let mut huge = created;
        (huge[6].1, huge[8].1) = (b"99999999999999999999", b"c");
        bad.insert(poison(&mut redis, true, &huge).await, "field balance");
        let product_text = product.to_string();
        let oversold: [(&str, &[u8]); 8] = [
            ("v", b"1"),
            ("kind", b"product_updated"),
            ("at", b"1772427600000"),
            ("product", product_text.as_bytes()),
            ("name", "나이키 에어포스".as_bytes()),
            ("price", b"100"),
            ("category", b"SHOES"),
            ("delta", b"-8"),
        ];
        bad.insert(poison(&mut redis, true, &oversold).await, "products_units_not_negative");
        let last = test.user(5).await;
        assert_eq!(bad.len(), 12);

        test.drain().await;
        let letters: Vec<(String, Option<i64>, Option<i64>, String, String)> =
            sqlx::query_as("SELECT stream_id, epoch, seq, reason, fields::text FROM dead_letters ORDER BY stream_id")
                .fetch_all(test.db.get_postgres_connection_pool())
                .await
                .unwrap();
        assert_eq!(letters.len(), 12, "batches of {batch}: {letters:#?}");
        for (id, epoch, seq, reason, fields) in &letters {
            let part = bad.remove(id).unwrap_or_else(|| panic!("a good event is a dead letter: {reason} {fields}"));
            assert!(reason.contains(part) && !reason.is_empty(), "{reason:?} does not say {part:?}");
            let fields: Value = serde_json::from_str(fields).unwrap();
            assert_eq!(epoch.is_some(), fields.get("epoch").is_some());
            assert_eq!(seq.map(|seq| seq.to_string()), fields.get("seq").map(|seq| seq.as_str().unwrap().to_owned()));
            if reason.contains("0x00") {
                assert_eq!(fields["name"], "a\u{fffd}b");
            }
        }
        let projection = test.get("/admin/v1/projection").await.ok();
        assert_eq!((projection["deadLetters"].as_i64(), projection["lagEvents"].as_i64()), (Some(12), Some(0)));
        assert_eq!(projection["partitions"][0]["deadLetters"], 12);
        // The good ones around them are in, to the last.
        assert_eq!(count(&test.db, "SELECT max(id) FROM users").await, last);
        assert_eq!(count(&test.db, "SELECT sold FROM products").await, 3);
        assert_eq!(count(&test.db, "SELECT count(*) FROM orders WHERE status = 'PAID'").await, 1);
        test.finish().await;
    }
}

/// Garbage can't tell where the books are: neither forward, nor back, nor into another epoch.
#[tokio::test]
async fn invalid_event_leaves_position_unchanged() {
    for batch in [1, 1000] {
        let test = TestApp::with(Options { batch, dead_letters: 4, ..Options::default() }).await;
        let mut redis = test.raw().await;
        let user = test.user(1_000).await;
        for (epoch, seq) in [("9", "1"), ("1", "77"), ("1", "0"), ("0", "3")] {
            let fields = [("epoch", epoch.as_bytes()), ("seq", seq.as_bytes()), ("garbage", b"yes")];
            poison(&mut redis, false, &fields).await;
            test.put_charge(user, 1).await.ok();
        }
        test.drain().await;
        let projection = test.get("/admin/v1/projection").await.ok();
        assert_eq!((&projection["lagEvents"], &projection["deadLetters"]), (&json!(0), &json!(4)), "{projection}");
        let here = &projection["partitions"][0];
        assert_eq!((&here["epoch"], &here["projectedSeq"]), (&json!(1), &json!(5)), "{projection}");
        assert_eq!(count(&test.db, "SELECT balance FROM users").await, 1_004);
        // And the next start does not mind.
        another(&test, &test.options).await.db.close().await.unwrap();
        test.finish().await;
    }
}

/// A decision that is missing was lost by Redis. Nothing is skipped over it: the projection stands still and says so.
#[tokio::test]
async fn projection_stops_at_gap() {
    for batch in [1, 1000] {
        let test = TestApp::with(Options { batch, ..Options::default() }).await;
        let mut redis = test.raw().await;
        let user = test.user(1_000).await;
        test.drain().await;
        let path = format!("/api/v1/balances/{user}");
        test.put(&path, json!({"amount": 1})).await.ok();
        let lost = entries(&mut redis).await.pop().unwrap();
        let _: i64 = redis::cmd("XDEL").arg(OUTBOX).arg(&lost.0).query_async(&mut redis).await.unwrap();
        test.put(&path, json!({"amount": 2})).await.ok();
        test.put(&path, json!({"amount": 4})).await.ok();
        let (before, stream) = (tables(&test.db).await, entries(&mut redis).await);
        for _ in 0..3 {
            let error = test.app.projector.drain().await.unwrap_err().to_string();
            assert!(error.contains("(1, 1) to (1, 3)") && error.contains("lost"), "{error}");
        }
        assert_eq!(before, tables(&test.db).await);
        assert_eq!(stream, entries(&mut redis).await, "what could not be projected was trimmed");
        let projection = test.get("/admin/v1/projection").await.ok();
        assert_eq!((projection["lagEvents"].as_i64(), projection["deadLetters"].as_i64()), (Some(3), Some(0)));
        // The lost one came back: it all goes on.
        let all: Vec<Entry> = std::iter::once(lost).chain(stream).collect();
        put_back(&mut redis, &all).await;
        let _: i64 = redis::cmd("HDEL").arg(META).arg("frozen").query_async(&mut redis).await.unwrap();
        test.drain().await;
        assert_eq!(count(&test.db, "SELECT balance FROM users").await, 1_007);
        test.finish().await;
    }
}

#[tokio::test]
async fn projection_stops_when_seq_decreases() {
    let test = TestApp::start().await;
    let mut redis = test.raw().await;
    let user = test.user(1_000).await;
    test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
    test.drain().await;
    // A replica that was behind took over, and decided the same number again for somebody who was not told before.
    let stamp = [("v", "1"), ("kind", "ids_reserved"), ("epoch", "1"), ("seq", "2"), ("at", "1")];
    let reserved = [("sequence", "user"), ("first", "2"), ("count", "1")];
    let _: String =
        redis::cmd("XADD").arg(OUTBOX).arg("*").arg(&stamp).arg(&reserved).query_async(&mut redis).await.unwrap();
    let before = tables(&test.db).await;
    let error = test.app.projector.drain().await.unwrap_err().to_string();
    assert!(error.contains("(1, 2) to (1, 2)"), "{error}");
    assert_eq!(before, tables(&test.db).await);
    // Nobody decides on what is left of it.
    let frozen: String = redis::cmd("HGET").arg(META).arg("frozen").query_async(&mut redis).await.unwrap();
    assert!(frozen.contains("decisions are lost"), "{frozen}");
    test.finish_unchecked().await;
}

/// What was decided before the gap is sound, and must be in Postgres when the store is rebuilt from there.
#[tokio::test]
async fn events_before_gap_projected() {
    for batch in [1, 2, 1000] {
        let test = TestApp::with(Options { batch, ..Options::default() }).await;
        let mut redis = test.raw().await;
        let user = test.user(1_000).await;
        let path = format!("/api/v1/balances/{user}");
        for amount in [1, 2, 4, 8, 16] {
            test.put(&path, json!({"amount": amount})).await.ok();
        }
        let stream = entries(&mut redis).await;
        let _: i64 = redis::cmd("XDEL").arg(OUTBOX).arg(&stream[4].0).query_async(&mut redis).await.unwrap();
        for _ in 0..2 {
            let error = test.app.projector.drain().await.unwrap_err().to_string();
            assert!(error.contains("(1, 4) to (1, 6)"), "{error}");
            assert_eq!(count(&test.db, "SELECT balance FROM users").await, 1_007);
        }
        assert_eq!(entries(&mut redis).await, stream[5..], "what is projected is trimmed, and nothing else");
        test.get(&path).await.refused(503, "SERVICE_UNAVAILABLE");
        put_back(&mut redis, &stream[4..]).await;
        let _: i64 = redis::cmd("HDEL").arg(META).arg("frozen").query_async(&mut redis).await.unwrap();
        test.engine.check().await;
        assert_eq!(test.get(&path).await.ok()["balance"], 1_031);
        test.drain().await;
        assert_eq!(count(&test.db, "SELECT balance FROM users").await, 1_031);
        test.finish().await;
    }
}

/// While servers are replaced one after the other, what the new ones write waits for a projector that understands it.
#[tokio::test]
async fn projection_stops_at_newer_event_version() {
    let test = TestApp::start().await;
    let mut redis = test.raw().await;
    test.user(1_000).await;
    poison(&mut redis, true, &[("v", b"3"), ("at", b"1"), ("kind", b"from_the_future")]).await;
    for _ in 0..2 {
        let error = test.app.projector.drain().await.unwrap_err().to_string();
        assert!(error.contains("newer"), "{error}");
        assert_eq!(count(&test.db, "SELECT count(*) FROM users").await, 1, "what is before it is projected");
        assert_eq!(count(&test.db, "SELECT count(*) FROM dead_letters").await, 0);
    }
    test.finish_unchecked().await;
}

/// What a request could not carry to another partition is carried by the projector, before it forgets the event.
#[tokio::test]
async fn order_end_relayed_to_other_partitions() {
    let test = TestApp::with(Options { partitions: 2, ..Options::default() }).await;
    let mut redis = test.raw().await;
    // The user is at home in the first partition, which also has the ids; the product is in the second.
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push((test.user(10_000).await, test.product(100, 10).await));
    }
    let user = ids.iter().map(|(user, _)| *user).find(|user| user % 2 == 0).unwrap();
    let far = ids.iter().map(|(_, product)| *product).find(|product| product % 2 == 1).unwrap();
    let mut orders = Vec::new();
    for _ in 0..4 {
        orders.push(test.order(user, far, 1).await.ok()["orderId"].as_i64().unwrap());
    }
    let _: i64 = redis::cmd("HSET").arg("{p1}:meta").arg("frozen").arg(1).query_async(&mut redis).await.unwrap();
    // The home partition decides, and says so.
    test.pay(orders[0], user, "CARD", 100).await.ok();
    test.cancel(orders[1], user).await.ok();
    test.clock.advance(600_000);
    for _ in 0..2 {
        assert!(test.app.projector.drain().await.is_err(), "nothing is forgotten that was not carried on");
    }
    // Postgres has heard of it all the same.
    assert_eq!(count(&test.db, "SELECT count(*) FROM orders WHERE status = 'PAID'").await, 1);
    let _: i64 = redis::cmd("HDEL").arg("{p1}:meta").arg("frozen").query_async(&mut redis).await.unwrap();
    test.engine.check().await;
    test.drain().await;
    let held: i64 = redis::cmd("HGET").arg("{p1}:held").arg(far).query_async(&mut redis).await.unwrap();
    assert_eq!(held, 2, "two of the four have ended");
    assert_eq!(test.engine.sweep().await.unwrap(), 2);
    test.finish().await;
}

// --- read your own writes, and the lag -------------------------------------------------------------------------------

async fn history(test: &TestApp, user: i64, query: &str) -> Vec<Value> {
    let reply = test.get(&format!("/api/v1/balances/{user}/history{query}")).await.ok();
    reply.as_array().unwrap().clone()
}

/// The history, its pages and its cuts are the same wherever its entries are.
#[tokio::test]
async fn history_complete_at_every_projected_position() {
    let test = TestApp::with(Options { batch: 3, ..Options::default() }).await;
    let mut redis = test.raw().await;
    let (user, other) = (test.user(100).await, test.user(0).await);
    assert!(history(&test, other, "").await.is_empty());
    let product = test.product(10, 100).await;
    for amount in 1..=5 {
        test.put(&format!("/api/v1/balances/{user}"), json!({"amount": amount})).await.ok();
        test.put(&format!("/api/v1/balances/{other}"), json!({"amount": amount})).await.ok();
        let order = test.order(user, product, amount).await.ok()["orderId"].as_i64().unwrap();
        test.pay(order, user, "CARD", 10 * amount).await;
        test.cancel(order, user).await;
    }
    let stream = entries(&mut redis).await;
    let whole = history(&test, user, "").await;
    let others = history(&test, other, "").await;
    assert!(whole.len() > 10, "{whole:?}");
    let numbers: Vec<i64> = whole.iter().map(|entry| entry["entryNo"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (1..=whole.len() as i64).collect::<Vec<_>>());
    let same = async |stage: &str| {
        assert_eq!(history(&test, user, "").await, whole, "{stage}");
        assert_eq!(history(&test, other, "").await, others, "{stage}");
        for limit in 1..=whole.len() {
            let newest = &whole[whole.len() - limit..];
            assert_eq!(history(&test, user, &format!("?limit={limit}")).await, newest, "{stage}");
            for before in [1, 2, 5, whole.len(), whole.len() + 1, whole.len() + 50] {
                let older = &whole[..before.saturating_sub(1).min(whole.len())];
                let page = &older[older.len().saturating_sub(limit)..];
                let query = format!("?limit={limit}&before={before}");
                assert_eq!(history(&test, user, &query).await, page, "{stage} {query}");
            }
        }
    };
    same("before").await;
    // Half of it projected, half still to come: the later entries are away while the earlier are projected.
    let half = stream.len() / 2;
    put_back(&mut redis, &stream[..half]).await;
    let missing = test.app.projector.drain().await.expect_err("nothing is missing").to_string();
    assert!(missing.contains("decisions are lost"), "{missing}");
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").query_async(&mut redis).await.unwrap();
    test.engine.check().await;
    put_back(&mut redis, &stream[half..]).await;
    same("half").await;
    put_back(&mut redis, &stream).await;
    same("half, and not trimmed").await;
    test.drain().await;
    same("after").await;
    put_back(&mut redis, &stream).await;
    same("after, and not trimmed").await;
    test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
    assert_eq!(history(&test, user, "").await[..whole.len()], whole);
    test.finish().await;
}

/// A tail of unprojected entries is walked to a limit; what is beyond it is not guessed at.
#[tokio::test]
async fn history_reports_truncated_tail() {
    let test = TestApp::start().await;
    let (user, quiet) = (test.user(1).await, test.user(1).await);
    let call = harness::call(None);
    let id = firstcome::model::UserId::new(user).unwrap();
    for _ in 0..2_100 {
        test.engine.charge(&call, id, 1).await.unwrap();
    }
    let newest = history(&test, user, "?limit=1000").await;
    assert_eq!((newest.len(), &newest[999]["after_balance"]), (1_000, &json!(2_101)));
    assert_eq!(history(&test, user, "?before=1102&limit=1000").await.len(), 1_000);
    let path = format!("/api/v1/balances/{user}/history");
    for query in ["?before=100", "?before=150&limit=200"] {
        test.get(&format!("{path}{query}")).await.refused(503, "SERVICE_UNAVAILABLE");
    }
    assert_eq!(history(&test, quiet, "").await.len(), 1);
    test.drain().await;
    assert_eq!(history(&test, user, "?before=100").await.len(), 99);
    assert_eq!(history(&test, user, "?before=150&limit=200").await.len(), 149);
    test.finish().await;
}

#[tokio::test]
async fn lag_counted_when_projection_stopped() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let projection = test.get("/admin/v1/projection").await.ok();
    assert_eq!((&projection["lagEvents"], &projection["lagSeconds"]), (&json!(0), &json!(0.0)));
    let user = test.user(0).await;
    for n in 1..=4 {
        test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
        let projection = test.get("/admin/v1/projection").await.ok();
        assert_eq!(projection["lagEvents"], n + 1);
        let here = &projection["partitions"][0];
        assert_eq!((&here["partition"], &here["epoch"]), (&json!(0), &json!(1)));
        assert_eq!((&here["decidedSeq"], &here["projectedSeq"]), (&json!(n + 1), &json!(0)));
    }
    let lag = async || test.get("/admin/v1/projection").await.ok()["lagSeconds"].as_f64().unwrap();
    let old = until("the lag grows", async || Some(lag().await).filter(|lag| *lag > 0.0)).await;
    until("the lag grows on", async || Some(lag().await).filter(|lag| *lag > old)).await;
    test.drain().await;
    let projection = test.get("/admin/v1/projection").await.ok();
    assert_eq!((&projection["lagEvents"], &projection["lagSeconds"]), (&json!(0), &json!(0.0)));
    assert_eq!(projection["partitions"][0]["projectedSeq"], 5);
    test.finish().await;
}

// --- Postgres away ---------------------------------------------------------------------------------------------------

/// A service on a Postgres of its own, which may be killed. Its patience with Postgres is short.
pub struct Shop {
    pub app: App,
    pub base: String,
    client: reqwest::Client,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    pub postgres: PostgresServer,
    pub redis: RedisServer,
    _dir: ScratchDir,
}

impl Shop {
    pub async fn open() -> Shop {
        let dir = ScratchDir::new().unwrap();
        let mut config = dev::PostgresConfig::new(dir.path().join("postgres"));
        config.fsync = false;
        let redis = RedisServer::start(dev::RedisConfig::new(dir.path().join("redis")));
        let (postgres, redis) = tokio::join!(PostgresServer::start(config), redis);
        let (postgres, redis) = (postgres.unwrap(), redis.unwrap());
        let url = postgres.url("postgres");
        let migrating = postgres::connect(&harness::postgres_config(&url)).await.unwrap();
        postgres::migrate(&migrating).await.unwrap();
        migrating.close().await.unwrap();
        let mut config = harness::engine_config(&Options::default(), &redis.url(), &url);
        config.postgres.database_timeout_ms = 5_000;
        let app = App::open(&config, &ProjectorConfig { projector_batch: 3, projector_linger_ms: 0 }, Clock::system())
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
        Shop { app, base, client: harness::client(), stop, serving, postgres, redis, _dir: dir }
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

    /// Drains the outbox, checks the books, and ends it all.
    pub async fn finish(self) {
        let Shop { app, stop, serving, mut postgres, mut redis, .. } = self;
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

#[tokio::test]
async fn projection_resumes_when_postgres_returns() {
    let mut shop = Shop::open().await;
    let user = shop.post("/admin/v1/users", json!({"userName": "A", "balance": 10_000})).await.created();
    let user = user["userId"].as_i64().unwrap();
    let product = json!({"productName": "A", "price": 100, "stockQuantity": 50, "category": "TOP"});
    let product = shop.post("/admin/v1/products", product).await.created()["productId"].as_i64().unwrap();
    let coupon = json!({"couponCode": "A", "discountType": "FIXED", "discountAmount": 5, "totalQuantity": 5,
        "expiredAt": "2099-01-01T00:00:00"});
    let coupon = shop.post("/admin/v1/coupons", coupon).await.created()["couponId"].as_i64().unwrap();
    shop.charge(user, 7).await.ok();
    let history = format!("/api/v1/balances/{user}/history");
    until("it is projected", async || {
        let lag = shop.get("/admin/v1/projection").await.json()["lagEvents"].as_i64();
        (lag == Some(0)).then_some(())
    })
    .await;
    assert_eq!(shop.get(&history).await.ok().as_array().unwrap().len(), 2);

    shop.postgres.kill().await.unwrap();
    // Every write goes on.
    for n in 1..=5 {
        assert_eq!(shop.charge(user, 1).await.ok()["balance"], 10_007 + n);
    }
    shop.post("/api/v1/coupons/issue", json!({"couponId": coupon, "userId": user})).await.ok();
    let lines = json!([{"productId": product, "quantity": 2}]);
    let order = json!({"userId": user, "orderProducts": lines, "userCouponId": coupon});
    let order = shop.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap();
    let pay = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 195});
    shop.post("/api/v1/payments", pay.clone()).await.ok();
    shop.post("/api/v1/payments", pay).await.refused(409, "ORDER_ALREADY_PAID");
    // And every read but of what only Postgres has: that says so, in bounded time, in the envelope.
    assert_eq!(shop.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 10_012 - 195);
    assert_eq!(shop.get(&format!("/api/v1/products/{product}")).await.ok()["stockQuantity"], 48);
    assert_eq!(shop.get(&format!("/api/v1/coupons/{user}")).await.ok()[0]["couponStatus"], "USED");
    assert_eq!(shop.get("/api/v1/products/popular").await.ok()[0]["salesCount"], 2);
    assert_eq!(shop.get(&format!("/api/v1/orders/{order}?userId={user}")).await.ok()["orderStatus"], "PAID");
    shop.get("/readyz").await.ok();
    for path in [history.as_str(), "/admin/v1/projection", "/admin/v1/orders"] {
        let reply = shop.get(path).await;
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(reply.headers.contains_key("retry-after"), "{path}");
    }

    shop.postgres.restart().await.unwrap();
    until("it is projected", async || {
        let reply = shop.get("/admin/v1/projection").await;
        (reply.status == 200 && reply.json()["lagEvents"] == 0).then_some(())
    })
    .await;
    let entries = until("the history answers", async || {
        let reply = shop.get(&history).await;
        (reply.status == 200).then(|| reply.json())
    })
    .await;
    assert_eq!(entries.as_array().unwrap().len(), 2 + 5 + 1);
    shop.finish().await;
}

/// A database that is not as this program knows it (a deploy half way, say) is no fault of the events: they wait.
#[tokio::test]
async fn projection_waits_without_dead_letters_when_schema_broken() {
    let test = TestApp::start().await;
    let user = test.user(1_000).await;
    test.drain().await;
    let pool = test.db.get_postgres_connection_pool();
    let rename = |from: &str, to: &str| {
        let sql = format!("ALTER TABLE balance_entries RENAME COLUMN {from} TO {to}");
        async move { sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap() }
    };
    rename("amount", "sum").await;
    test.put_charge(user, 100).await.ok();
    test.put_charge(user, 200).await.ok();
    let failed = test.app.projector.drain().await.unwrap_err().to_string();
    assert!(failed.contains("amount"), "{failed}");
    let letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(pool).await.unwrap();
    assert_eq!(letters, 0);
    rename("sum", "amount").await;
    test.finish().await;
}
