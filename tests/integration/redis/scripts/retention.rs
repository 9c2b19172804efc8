//! Scripts of the outbox's mark, and of eviction and restoring.

use super::*;

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
        let place = bench.place(order, 1, &[(product, 1)]);
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
        for was in ["PAID", "CANCELLED", "FAILED", "CLOSED", "REFUNDED"] {
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
    let decided = bench.position(Partition(0)).await;
    assert_eq!(bench.run(&restore).await, ["RESTORED"]);
    assert_eq!(bench.position(Partition(0)).await, decided, "eviction and restore are no decisions");
    assert!(before == bench.test.snapshot().await);
    assert!((1..=60_000).contains(&bench.life(&key(13)).await));
    bench.leaves_all("ALREADY_PRESENT", &restore).await;
    bench.covers(&[&script::ORDER_EVICT, &script::ORDER_RESTORE]);
    bench.finish().await;
}
