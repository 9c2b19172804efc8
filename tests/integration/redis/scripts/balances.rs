//! Scripts of ids, idempotency keys and balances.

use super::*;

#[tokio::test]
async fn id_and_idempotency_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let reserve = bench.ids_reserve("user", 10);
    bench.needs_open_partition(&reserve).await;
    // Its records are never of a request that runs.
    bench.needs_its_own_key(&reserve, false).await;
    assert_eq!(bench.run(&reserve).await, ["ALLOCATED", "1"]);
    assert_eq!(bench.position(Partition(0)).await, (0, 0), "without a key it is no decision");
    let (reply, event) = bench.decides_once("RESERVED", &reserve).await;
    assert_eq!(reply[3], "11");
    assert!(matches!(event.body, Body::IdsReserved { .. }), "{event:?}");
    assert_eq!(bench.run(&reserve.with(6, 1)).await, ["ALLOCATED", "21"]);
    bench.leaves_all("NO_SEQUENCE", &bench.ids_reserve("own_order", 10).with(7, 0)).await;

    let decided = bench.position(Partition(0)).await;
    let claim = bench.idempotency_claim("digest", "mine");
    bench.needs_open_partition(&claim).await;
    let record = claim.keys[1].clone();
    let other = bench.idempotency_claim("digest", "another");
    let (refused, kept) =
        (bench.idempotency_settle("digest", "mine", 0), bench.idempotency_settle("digest", "mine", 1));
    // A refusal leaves nothing, once every request that claimed the key is refused.
    let before = bench.test.snapshot().await;
    for claims in 1..=2 {
        assert_eq!(bench.run(&claim).await, ["CLAIMED", &claims.to_string()]);
        assert!((1..=60_000).contains(&bench.life(&record).await));
        bench.leaves_all("KEY_REUSED", &other).await;
    }
    bench.needs_open_partition(&refused).await;
    bench.leaves_all("SETTLED", &bench.idempotency_settle("digest", "another", 0)).await;
    assert_eq!(bench.run(&refused).await, ["SETTLED"]);
    bench.leaves_all("KEY_REUSED", &other).await;
    assert_eq!(bench.run(&refused).await, ["SETTLED"]);
    assert!(before == bench.test.snapshot().await);
    bench.leaves_all("SETTLED", &refused).await;
    // A decision keeps it, whatever else claims it or is refused.
    bench.run(&claim).await;
    assert_eq!(bench.run(&kept).await, ["SETTLED"]);
    assert!((60_001..=86_400_000).contains(&bench.life(&record).await));
    for raw in [&claim, &refused, &kept] {
        bench.leaves_all(if raw.script.name == "idempotency_claim" { "CLAIMED" } else { "SETTLED" }, raw).await;
    }
    bench.leaves_all("KEY_REUSED", &other).await;
    bench.covers(&[&script::IDS_RESERVE, &script::IDEMPOTENCY_CLAIM, &script::IDEMPOTENCY_SETTLE]);
    assert_eq!(bench.position(Partition(0)).await, decided, "a claim is no decision");
    bench.finish().await;
}

#[tokio::test]
async fn id_sequence_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let (shared, own) = (bench.ids_reserve("order", 1), bench.ids_reserve("own_order", 1).with(7, 0));
    assert_eq!(bench.run(&shared.with(6, 40)).await, ["ALLOCATED", "1"]);
    let split = bench.ids_split(0);
    bench.needs_open_partition(&split).await;
    assert_eq!(bench.run(&split).await, ["SPLIT", "40", "1"]);
    // The two continue apart.
    assert_eq!((bench.run(&own).await, bench.run(&shared).await), numbers(41, 1001));
    bench.leaves_all("SPLIT", &split).await;
    // A sequence for all that has jumped does not tell what the own ones were.
    let _: i64 = redis::cmd("HDEL").arg(&split.keys[1]).arg("own_order").query_async(&mut bench.redis).await.unwrap();
    assert_eq!(bench.run(&bench.ids_split(60)).await, ["SPLIT", "60", "1"]);
    assert_eq!((bench.run(&own).await, bench.run(&shared).await), numbers(61, 1002));

    let raise = bench.ids_raise(70);
    bench.needs_open_partition(&raise).await;
    assert_eq!(bench.run(&raise).await, ["RAISED"]);
    bench.leaves_all("RAISED", &raise).await;
    bench.leaves_all("RAISED", &bench.ids_raise(69)).await;
    assert_eq!(bench.run(&own).await, ["ALLOCATED", "71"]);
    bench.covers(&[&script::IDS_SPLIT, &script::IDS_RAISE]);
    assert_eq!(bench.position(Partition(0)).await, (0, 0), "no decisions");
    // The audit knows no such sequence of a single partition.
    let _: i64 = redis::cmd("HDEL").arg(&split.keys[1]).arg("own_order").query_async(&mut bench.redis).await.unwrap();
    bench.finish().await;
}

fn numbers(own: i64, shared: i64) -> (Vec<String>, Vec<String>) {
    let allocated = |number: i64| vec!["ALLOCATED".to_owned(), number.to_string()];
    (allocated(own), allocated(shared))
}

#[tokio::test]
async fn balance_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let user = bench.users_create(1, 1, 50);
    bench.run(&user).await;
    let charge = bench.charge(1, 100);
    bench.needs_open_partition(&charge).await;
    bench.needs_its_own_key(&charge, true).await;
    bench.leaves_all("LIMIT_EXCEEDED", &charge.with_shared(3, 149)).await;
    bench.leaves_all("LIMIT_EXCEEDED", &charge.with_shared(3, 149).keyed("k", "mine")).await;
    let unknown_user = bench.charge(2, 100);
    bench.leaves_all("USER_NOT_FOUND", &unknown_user).await;
    bench.leaves_all("USER_NOT_FOUND", &unknown_user.keyed("k", "mine")).await;
    let (reply, event) = bench.decides_once("CHARGED", &charge.with_shared(3, 150)).await;
    assert_eq!(reply[3..], ["u1", "150"]);
    let Body::BalanceCharged(entry) = &event.body else { panic!("{event:?}") };
    assert_eq!((entry.user_id.get(), entry.entry_no), (1, 2));
    assert_eq!((entry.before, entry.amount, entry.after, entry.order_id), (50, 100, 150, None));

    let tail = bench.history_read(1, 10);
    let reply = bench.leaves_all("ENTRIES", &tail).await;
    assert_eq!((reply.len(), reply[1].as_str()), (4, "0"));
    assert!(reply[2].contains("events balance_charged") && reply[3].contains("kind users_created"), "{reply:?}");
    let cut = bench.leaves_all("ENTRIES", &tail.with(1, 1)).await;
    assert_eq!((cut.len(), cut[1].as_str()), (3, "1"));
    let unknown_user = bench.history_read(2, 10);
    bench.leaves_all("USER_NOT_FOUND", &unknown_user).await;
    bench.covers(&[&script::BALANCE_CHARGE, &script::HISTORY_READ]);
    bench.finish().await;
}
