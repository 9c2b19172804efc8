//! Scripts of remote holds, eviction and restoring.

use super::*;

/// The state without the position and the event, which every decision changes.
fn without_positions(mut all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    all.retain(|key, _| !key.ends_with(":outbox") && !key.ends_with(":meta"));
    all
}

/// The steps of an order across two partitions, one by one: the user is in the first, the product in the second.
#[tokio::test]
async fn hold_scripts_match_headers() {
    let mut bench = Bench::start(2).await;
    for raw in [
        bench.users_create(2, 1, 100_000),
        bench.product_create(1, 1_000, 5),
        bench.product_create(3, 10, 0),
        bench.product_create(5, 10, 9),
    ] {
        bench.run(&raw).await;
    }
    let hold = bench.hold(10, 2, &[(1, 2), (5, 3)]);
    bench.needs_open_partition(&hold).await;
    for (lines, word, product) in [
        (&[(1, 1), (77, 1)][..], "PRODUCT_NOT_FOUND", "77"),
        (&[(1, 1), (3, 1)], "SOLD_OUT", "3"),
        (&[(1, 6)], "INSUFFICIENT_STOCK", "1"),
    ] {
        let raw = bench.hold(10, 2, lines);
        assert_eq!(bench.leaves_all(word, &raw).await[1], product);
    }
    let (reply, event) = bench.decides("HELD", &hold).await;
    assert_eq!(reply[3], "1:2:1000,5:3:10");
    assert!(matches!(&event.body, Body::StockHeld { lines, .. } if lines.len() == 2), "{event:?}");
    let again = bench.leaves_all("ALREADY_HELD", &hold).await;
    assert_eq!(again[1], reply[3], "a repeat holds nothing");
    let place = bench.place(10, 2, &[], "1:2:1000,5:3:10");
    let (placed, event) = bench.decides_once("PLACED", &place).await;
    assert_eq!(placed[4], "2030");
    assert!(matches!(&event.body, Body::OrderPlaced(placed) if placed.remote.len() == 2), "{event:?}");
    let resolve = bench.order_resolve(10);
    bench.needs_open_partition(&resolve).await;
    assert_eq!(bench.leaves_all("ORDER_STATUS", &resolve).await, ["ORDER_STATUS", "PENDING", "", ""]);

    bench.decides("PAID", &bench.pay(10, 2, 2_030)).await;
    assert_eq!(bench.leaves_all("ORDER_STATUS", &resolve).await, ["ORDER_STATUS", "PAID", "", DAY]);
    let settle = bench.settle(1, 10, 2, "SETTLED");
    bench.needs_open_partition(&settle).await;
    let (_, event) = bench.decides("MOVED", &settle).await;
    let Body::StockSettled { lines, from, to, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((lines.len(), *from, *to), (2, HoldState::Held, HoldState::Settled));
    bench.leaves_all("UNCHANGED", &settle).await;
    bench.leaves_all("UNCHANGED", &bench.settle(1, 10, 2, "RELEASED")).await;
    bench.leaves_all("RELEASED", &hold).await;

    bench.decides("CLOSED", &bench.close(10, 2, "CANCEL", DAY)).await;
    assert_eq!(bench.leaves_all("ORDER_STATUS", &resolve).await, ["ORDER_STATUS", "CANCELLED", "REFUNDED", DAY]);
    let refund = bench.settle(1, 10, 2, "REFUNDED");
    let (_, event) = bench.decides("MOVED", &refund).await;
    let Body::StockSettled { from, to, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((*from, *to), (HoldState::Settled, HoldState::Refunded));
    bench.leaves_all("UNCHANGED", &refund).await;
    bench.leaves_all("UNCHANGED", &settle).await;

    // Without an order the hold is released, once.
    let stray = bench.hold(12, 2, &[(1, 5)]);
    bench.decides("HELD", &stray).await;
    assert_eq!(bench.run(&bench.order_resolve(12)).await[1], "ABANDONED");
    bench.leaves_all("ORDER_STATUS", &bench.order_resolve(12)).await;
    bench.decides("MOVED", &bench.settle(1, 12, 2, "RELEASED")).await;
    bench.leaves_all("UNCHANGED", &bench.settle(1, 12, 2, "RELEASED")).await;
    bench.leaves_all("RELEASED", &stray).await;

    // A release by the request itself leaves no trace.
    let undone = bench.hold(18, 2, &[(1, 3)]);
    let before = bench.test.snapshot().await;
    bench.decides("HELD", &undone).await;
    let (_, event) = bench.decides("MOVED", &bench.settle(1, 18, 2, "RELEASED").with(8, 0)).await;
    assert!(matches!(event.body, Body::StockSettled { forgotten: true, .. }), "{event:?}");
    let (before, after) = (without_positions(before), without_positions(bench.test.snapshot().await));
    assert!(before == after, "{before:?} {after:?}");
    bench.test.drain().await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM stock_holds WHERE order_id = 18")
        .fetch_one(bench.test.db.get_postgres_connection_pool())
        .await
        .unwrap();
    assert_eq!(rows, 0);

    // A release before the hold leaves a tombstone, which is no decision and prevents the hold.
    let decided = bench.position(Partition(1)).await;
    for end in ["SETTLED", "REFUNDED"] {
        bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 14, 2, end)).await;
    }
    // A release of an existing hold leaves no tombstone.
    bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 14, 2, "RELEASED").with(8, 0)).await;
    assert_eq!(bench.run(&bench.settle(1, 14, 2, "RELEASED")).await, ["TOMBSTONED"]);
    assert_eq!(bench.position(Partition(1)).await, decided);
    bench.leaves_all("RELEASED", &bench.hold(14, 2, &[(1, 1)])).await;

    // A refund that arrives before its settlement.
    let superseded = bench.hold(16, 2, &[(5, 1)]);
    bench.decides("HELD", &superseded).await;
    for raw in [bench.place(16, 2, &[], "5:1:10"), bench.pay(16, 2, 10), bench.close(16, 2, "CANCEL", DAY)] {
        bench.run(&raw).await;
    }
    bench.decides("MOVED", &bench.settle(5, 16, 2, "REFUNDED")).await;
    bench.leaves_all("UNCHANGED", &bench.settle(5, 16, 2, "SETTLED")).await;
    bench.covers(&[&script::ORDER_RESOLVE, &script::STOCK_HOLD, &script::STOCK_SETTLE]);
    bench.finish().await;
}

/// The mark never goes back, a lost one is not passed over, and a lost partition stays lost.
#[tokio::test]
async fn outbox_mark_matches_header() {
    let mut bench = Bench::start(1).await;
    let meta = Keys(Partition(0)).meta();
    for (epoch, seq, entry, known, code) in [
        (1, 9, "5-1", 0, "MARKED"),
        (1, 9, "5-1", 9, "STALE"),
        (1, 8, "9-0", 0, "STALE"),
        (1, 10, "6-0", 9, "MARKED"),
        (1, 12, "8-0", 11, "BEHIND"),
        (2, 1, "2-0", 0, "MARKED"),
        (1, 99, "9-0", 98, "STALE"),
        (3, 2, "9-0", 1, "BEHIND"),
    ] {
        let raw = bench.outbox_mark(epoch, seq, entry, known);
        if code == "MARKED" {
            assert_eq!(bench.run(&raw).await, ["MARKED"]);
            let found = firstcome::redis::outbox::Relayed {
                position: firstcome::model::Position { epoch, seq },
                entry: entry.parse().unwrap(),
            };
            assert_eq!(bench.test.store.relayed(Partition(0)).await.unwrap(), Some(found));
        } else {
            bench.leaves_all(code, &raw).await;
        }
    }
    let state: Vec<(String, String)> = redis::cmd("HGETALL").arg(&meta).query_async(&mut bench.redis).await.unwrap();
    let _: i64 = redis::cmd("DEL").arg(&meta).query_async(&mut bench.redis).await.unwrap();
    let raw = bench.outbox_mark(3, 1, "7-0", 0);
    bench.leaves_all("STALE", &raw).await;
    let fields = state.iter().filter(|(field, _)| field != "relayed");
    let mut put_back = redis::cmd("HSET");
    put_back.arg(&meta);
    for (field, value) in fields {
        put_back.arg(field).arg(value);
    }
    let _: i64 = put_back.query_async(&mut bench.redis).await.unwrap();
    bench.covers(&[&script::OUTBOX_MARK]);
    bench.finish().await;
}

/// A closed order is evicted if PostgreSQL has the same state; a later change cancels the eviction.
#[tokio::test]
async fn order_evict_and_restore_match_headers() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 2).await;
    for order in 11..=16 {
        let place = bench.place(order, 1, &[(product, 1)], "");
        bench.decides("PLACED", &place).await;
    }
    // PENDING, PAID, CANCELLED, FAILED; and with an open gateway request: a payment, late money, a refund.
    for raw in [
        bench.pay(11, 1, 1_000),
        bench.close(12, 1, "CANCEL", ""),
        bench.payment_begin(13, 1, 1_000),
        bench.decline(13, 1),
        bench.payment_begin(14, 1, 1_000),
        bench.payment_begin(15, 1, 1_000),
        bench.decline(15, 1).with(11, 5_000),
        bench.payment_begin(16, 1, 1_000),
        bench.pay_by_gateway(16, 1, 1_000),
        bench.close(16, 1, "CANCEL", DAY),
    ] {
        bench.run(&raw).await;
    }
    let keys = Keys(Partition(0));
    let key = |order: i64| order_key(keys, order);
    let states = ["PENDING", "PAID", "CANCELLED", "FAILED", "PENDING", "FAILED", "CANCELLED", ""];
    let may = [(11, "PAID"), (12, "CANCELLED"), (12, "CLOSED"), (13, "FAILED"), (13, "CLOSED")];
    for (order, status) in (10..=17).zip(states) {
        for was in ["PAID", "CANCELLED", "FAILED", "CLOSED", "SETTLED", "REFUNDED", "RELEASED", "ABANDONED"] {
            let raw = bench.evict(&[(key(order), was)]);
            let before = bench.test.snapshot().await;
            let evicted = usize::from(may.contains(&(order, was)));
            assert_eq!(bench.run(&raw).await, ["EVICTED".to_owned(), evicted.to_string()], "{status} as {was}");
            assert!(before == bench.test.snapshot().await);
            assert_eq!(bench.life(&key(order)).await > 0, evicted == 1, "{status} as {was}");
            if evicted == 1 {
                let _: i64 = redis::cmd("PERSIST").arg(key(order)).query_async(&mut bench.redis).await.unwrap();
            }
        }
    }
    // A call evicts each order on its own; a repeat changes nothing.
    let all: Vec<(String, &str)> = (10..=17).zip(states).map(|(order, was)| (key(order), was)).collect();
    for _ in 0..2 {
        let raw = bench.evict(&all[1..]);
        assert_eq!(bench.leaves_all("EVICTED", &raw).await[1], "3");
        assert_eq!(bench.life(&key(11)).await / 60_001, 0);
    }
    assert_eq!(bench.run(&bench.evict(&[])).await, ["EVICTED", "0"]);

    // A refund that PostgreSQL lacks keeps the order.
    assert!(bench.life(&key(11)).await > 0);
    bench.decides("CLOSED", &bench.close(11, 1, "CANCEL", DAY)).await;
    assert_eq!(bench.life(&key(11)).await, -1);
    assert_eq!(bench.leaves_all("EVICTED", &bench.evict(&[(key(11), "PAID")])).await[1], "0");
    assert_eq!(bench.life(&key(11)).await, -1);

    // Only an evicted order is restored: unchanged, and with a TTL.
    let whole: Vec<(String, String)> = redis::cmd("HGETALL").arg(key(13)).query_async(&mut bench.redis).await.unwrap();
    let whole: Vec<(&str, &str)> = whole.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
    let restore = bench.restore(keys, &key(13), &whole);
    bench.leaves_all("ALREADY_PRESENT", &restore).await;
    let before = bench.test.snapshot().await;
    let _: i64 = redis::cmd("DEL").arg(key(13)).query_async(&mut bench.redis).await.unwrap();
    bench.needs_open_partition(&restore).await;
    // A tombstone would mark the evicted order as never placed.
    for mark in [false, true] {
        if mark {
            let _: i64 = redis::cmd("DEL").arg(key(13)).query_async(&mut bench.redis).await.unwrap();
            assert_eq!(bench.run(&bench.order_resolve(13)).await[1], "ABANDONED");
        }
        let decided = bench.position(Partition(0)).await;
        assert_eq!(bench.run(&restore).await, ["RESTORED"]);
        assert_eq!(bench.position(Partition(0)).await, decided, "eviction and restore are no decisions");
        assert!(before == bench.test.snapshot().await);
        assert!((1..=60_000).contains(&bench.life(&key(13)).await));
        bench.leaves_all("ALREADY_PRESENT", &restore).await;
    }
    bench.covers(&[&script::ORDER_EVICT, &script::ORDER_RESTORE]);
    bench.finish().await;
}

/// The same for remote holds.
#[tokio::test]
async fn hold_evict_and_restore_match_headers() {
    let mut bench = Bench::start(2).await;
    for raw in [bench.users_create(2, 1, 100_000), bench.product_create(1, 1_000, 5)] {
        bench.run(&raw).await;
    }
    let keys = Keys(Partition(1));
    let (key, remote_lines) = (hold_key(keys, 10), "1:2:1000");
    for raw in [bench.hold(10, 2, &[(1, 2)]), bench.place(10, 2, &[], remote_lines), bench.pay(10, 2, 2_000)] {
        bench.run(&raw).await;
    }
    // A HELD one is not evicted, whatever state PostgreSQL is claimed to have.
    for was in ["SETTLED", "REFUNDED", "RELEASED", "PAID", "CLOSED"] {
        assert_eq!(bench.leaves_all("EVICTED", &bench.evict(&[(key.clone(), was)])).await[1], "0", "{was}");
    }
    bench.decides("MOVED", &bench.settle(1, 10, 2, "SETTLED")).await;
    assert_eq!(bench.life(&key).await, -1);
    assert_eq!(bench.leaves_all("EVICTED", &bench.evict(&[(key.clone(), "SETTLED")])).await[1], "1");
    let before = bench.test.snapshot().await;
    let _: i64 = redis::cmd("DEL").arg(&key).query_async(&mut bench.redis).await.unwrap();
    // Without the hold, a repeat changes nothing, and a refund reports the missing hold.
    for end in ["SETTLED", "REFUNDED"] {
        bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 10, 2, end)).await;
    }
    bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 10, 2, "RELEASED").with(8, 0)).await;
    let restore = bench.restore(keys, &key, &[("state", "SETTLED"), ("lines", remote_lines), ("user", "2")]);
    bench.needs_open_partition(&restore).await;
    assert_eq!(bench.run(&restore).await, ["RESTORED"]);
    assert!(before == bench.test.snapshot().await);
    assert!((1..=60_000).contains(&bench.life(&key).await));
    bench.decides("CLOSED", &bench.close(10, 2, "CANCEL", DAY)).await;
    // A refund that PostgreSQL lacks keeps the hold.
    bench.decides("MOVED", &bench.settle(1, 10, 2, "REFUNDED")).await;
    assert_eq!(bench.life(&key).await, -1);
    bench.leaves_all("ALREADY_PRESENT", &restore).await;
    assert_eq!(bench.leaves_all("EVICTED", &bench.evict(&[(key.clone(), "SETTLED")])).await[1], "0");
    assert_eq!(bench.leaves_all("EVICTED", &bench.evict(&[(key.clone(), "REFUNDED")])).await[1], "1");
    bench.finish().await;
}

/// What a suspected hold releases is withheld; a hold that has ended is not marked.
#[tokio::test]
async fn hold_suspect_matches_header() {
    let mut bench = Bench::start(2).await;
    for raw in [bench.users_create(2, 1, 100_000), bench.product_create(1, 1_000, 9)] {
        bench.run(&raw).await;
    }
    for order in [10, 12, 14] {
        let hold = bench.hold(order, 2, &[(1, 2)]);
        bench.decides("HELD", &hold).await;
    }
    bench.decides("MOVED", &bench.settle(1, 12, 2, "RELEASED")).await;
    let keys = Keys(Partition(1));
    // The second is released, and there is no third.
    let suspect = bench.suspect(keys, [10, 12, 16]);
    bench.needs_open_partition(&suspect).await;
    let decided = bench.position(Partition(1)).await;
    assert_eq!(bench.run(&suspect).await, ["SUSPECTED", "1"]);
    assert_eq!(bench.position(Partition(1)).await, decided, "it is no decision");
    bench.leaves_all("SUSPECTED", &suspect).await;
    for (order, withheld) in [(10, true), (14, false)] {
        let (_, event) = bench.decides("MOVED", &bench.settle(1, order, 2, "RELEASED")).await;
        assert!(matches!(event.body, Body::StockSettled { withheld: is, .. } if is == withheld), "{event:?}");
    }
    bench.covers(&[&script::HOLD_SUSPECT]);
    bench.finish().await;
}
