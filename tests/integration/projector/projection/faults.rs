//! Invalid events, which become dead letters; gaps and newer events, which stop the projection.

use firstcome::{
    model::{Partition, ProductId},
    redis::commands::ReturnedUnits,
};

use super::*;

#[tokio::test]
async fn invalid_event_becomes_dead_letter_and_projection_continues() {
    for batch in [1, 4, 1000] {
        let test = TestApp::with(Options { batch, dead_letters: 12, ..Options::default() }).await;
        let mut redis = test.raw().await;
        // Part of each dead letter's reason, by the id of the entry.
        let mut bad: BTreeMap<String, &str> = BTreeMap::new();
        bad.insert(poison(&mut redis, false, &[("garbage", b"yes")]).await, "field v is missing");
        let user = test.user(1_000).await;
        bad.insert(again(&mut redis).await, "users_pk");
        let coupon = test.campaign("FIXED", 10, 5).await;
        test.issue(coupon, user).await.ok();
        bad.insert(again(&mut redis).await, "user_coupons_");
        let product = test.product(100, 10).await;
        let order = test.place(user, product, 3).await;
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
        // Of an unknown order: its units must not change either.
        let mut paid = event::fields_of(&entries(&mut redis, 0).await.pop().unwrap().1, 0);
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
        // Invalid UTF-8, a name with a NUL, a number out of range, more units than the stock.
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
        let dead_letters: Vec<(String, Option<i64>, Option<i64>, String, String)> =
            sqlx::query_as("SELECT stream_id, epoch, seq, reason, fields::text FROM dead_letters ORDER BY stream_id")
                .fetch_all(test.db.get_postgres_connection_pool())
                .await
                .unwrap();
        assert_eq!(dead_letters.len(), 12, "batches of {batch}: {dead_letters:#?}");
        for (id, epoch, seq, reason, fields) in &dead_letters {
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
        // Every valid event around them is applied.
        assert_eq!(count(&test.db, "SELECT max(id) FROM users").await, last);
        assert_eq!(count(&test.db, "SELECT sold FROM products").await, 3);
        assert_eq!(count(&test.db, "SELECT count(*) FROM orders WHERE status = 'PAID'").await, 1);
        test.finish().await;
    }
}

/// An invalid event does not change the position or the epoch.
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
        // The next start succeeds.
        test.open_instance(&test.options).await.unwrap().db.close().await.unwrap();
        test.finish().await;
    }
}

/// Redis lost a decision: the projection stops at the gap and reports it.
#[tokio::test]
async fn projection_stops_at_gap() {
    for batch in [1, 1000] {
        let test = TestApp::with(Options { batch, outbox_keep_seconds: 0, ..Options::default() }).await;
        let mut redis = test.raw().await;
        let user = test.user(1_000).await;
        test.drain().await;
        let path = format!("/api/v1/balances/{user}");
        test.put(&path, json!({"amount": 1})).await.ok();
        let lost = entries(&mut redis, 0).await.pop().unwrap();
        let _: i64 = redis::cmd("XDEL").arg(OUTBOX).arg(&lost.0).query_async(&mut redis).await.unwrap();
        test.put(&path, json!({"amount": 2})).await.ok();
        test.put(&path, json!({"amount": 4})).await.ok();
        let (before, stream) = (tables(&test.db).await, entries(&mut redis, 0).await);
        for _ in 0..3 {
            let error = test.app.projector.drain().await.unwrap_err().to_string();
            assert!(error.contains("(1, 1) to (1, 3)") && error.contains("lost"), "{error}");
        }
        assert_eq!(before, tables(&test.db).await);
        assert_eq!(stream, entries(&mut redis, 0).await, "unprojected events were trimmed");
        let projection = test.get("/admin/v1/projection").await.ok();
        assert_eq!((projection["lagEvents"].as_i64(), projection["deadLetters"].as_i64()), (Some(3), Some(0)));
        // With the lost event restored, the projection continues.
        let all: Vec<outbox::Entry> = std::iter::once(lost).chain(stream).collect();
        outbox::replace(&mut redis, 0, &all).await;
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
    // A lagging replica became the primary, and used a number again for another client.
    let stamp = [("v", "1"), ("kind", "ids_reserved"), ("epoch", "1"), ("seq", "2"), ("at", "1")];
    let reserved = [("sequence", "user"), ("first", "2"), ("count", "1")];
    let _: String =
        redis::cmd("XADD").arg(OUTBOX).arg("*").arg(&stamp).arg(&reserved).query_async(&mut redis).await.unwrap();
    let before = tables(&test.db).await;
    let error = test.app.projector.drain().await.unwrap_err().to_string();
    assert!(error.contains("(1, 2) to (1, 2)"), "{error}");
    assert_eq!(before, tables(&test.db).await);
    // The partition is frozen for every process.
    let frozen: String = redis::cmd("HGET").arg(META).arg("frozen").query_async(&mut redis).await.unwrap();
    assert!(frozen.contains("decisions are lost"), "{frozen}");
    test.finish_unchecked().await;
}

/// Events before a gap are projected: a rebuild needs them in PostgreSQL.
#[tokio::test]
async fn events_before_gap_projected() {
    for batch in [1, 2, 1000] {
        let test = TestApp::with(Options { batch, outbox_keep_seconds: 0, ..Options::default() }).await;
        let mut redis = test.raw().await;
        let user = test.user(1_000).await;
        let path = format!("/api/v1/balances/{user}");
        for amount in [1, 2, 4, 8, 16] {
            test.put(&path, json!({"amount": amount})).await.ok();
        }
        let stream = entries(&mut redis, 0).await;
        let _: i64 = redis::cmd("XDEL").arg(OUTBOX).arg(&stream[4].0).query_async(&mut redis).await.unwrap();
        for _ in 0..2 {
            let error = test.app.projector.drain().await.unwrap_err().to_string();
            assert!(error.contains("(1, 4) to (1, 6)"), "{error}");
            assert_eq!(count(&test.db, "SELECT balance FROM users").await, 1_007);
        }
        assert_eq!(entries(&mut redis, 0).await, stream[5..], "exactly the projected events are trimmed");
        test.get(&path).await.refused(503, "SERVICE_UNAVAILABLE");
        outbox::replace(&mut redis, 0, &stream[4..]).await;
        let _: i64 = redis::cmd("HDEL").arg(META).arg("frozen").query_async(&mut redis).await.unwrap();
        test.engine.check().await;
        assert_eq!(test.get(&path).await.ok()["balance"], 1_031);
        test.drain().await;
        assert_eq!(count(&test.db, "SELECT balance FROM users").await, 1_031);
        test.finish().await;
    }
}

/// In a rolling upgrade, events of new instances wait for a projector that knows their version.
#[tokio::test]
async fn projection_stops_at_newer_event_version() {
    let test = TestApp::start().await;
    let mut redis = test.raw().await;
    test.user(1_000).await;
    let newer = (event::BATCH_OF_CHECKOUTS + 1).to_string();
    poison(&mut redis, true, &[("v", newer.as_bytes()), ("at", b"1"), ("kind", b"from_the_future")]).await;
    for _ in 0..2 {
        let error = test.app.projector.drain().await.unwrap_err().to_string();
        assert!(error.contains("newer"), "{error}");
        assert_eq!(count(&test.db, "SELECT count(*) FROM users").await, 1, "the events before it are projected");
        assert_eq!(count(&test.db, "SELECT count(*) FROM dead_letters").await, 0);
    }
    test.finish_unchecked().await;
}

/// The projector relays a transfer of units before it trims the event, if the request did not complete it.
#[tokio::test]
async fn transfer_relayed_to_other_partition() {
    let test = TestApp::with(Options { partitions: 2, ..Options::default() }).await;
    let mut redis = test.raw().await;
    let mut product = test.product(100, 10).await;
    while product % 2 == 0 {
        product = test.product(100, 10).await;
    }
    let id = ProductId::new(product).unwrap();
    let call = harness::call(None);
    let given = test.store.stock_allot(&call, id, Partition(0), 4).await.unwrap();
    assert_eq!(given.unwrap().total, 4);
    assert_eq!(test.stock(product).await, 6, "four units are on their way");
    let _: i64 = redis::cmd("HSET").arg("{p0}:meta").arg("frozen").arg(1).query_async(&mut redis).await.unwrap();
    for _ in 0..2 {
        assert!(test.app.projector.drain().await.is_err(), "an event is trimmed before its relay");
    }
    // PostgreSQL has the decision nevertheless.
    assert_eq!(count(&test.db, "SELECT sum(allotted)::bigint FROM allotments").await, 4);
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").query_async(&mut redis).await.unwrap();
    test.engine.check().await;
    test.drain().await;
    assert_eq!(test.stock(product).await, 10);
    // The way back.
    test.store.stock_return(&call, Partition(0), id, ReturnedUnits::OnSale).await.unwrap();
    assert_eq!(test.stock(product).await, 6);
    test.drain().await;
    assert_eq!(test.stock(product).await, 10);
    let on_sale: i64 = redis::cmd("HGET").arg("{p1}:stock").arg(product).query_async(&mut redis).await.unwrap();
    assert_eq!(on_sale, 10);
    test.finish().await;
}
