//! Windows and limits of products: what orders count, and what their ends give back.

use super::*;

/// What a user has of limits, in the order of the fields.
async fn limits(bench: &mut Bench, user: i64) -> Vec<(String, i64)> {
    let mut read = redis::cmd("HGETALL");
    read.arg(user_key(bench.keys(user), user));
    let fields: BTreeMap<String, String> = read.query_async(&mut bench.redis).await.unwrap();
    let is_limit = |name: &String| name.contains(':');
    fields.into_iter().filter(|(name, _)| is_limit(name)).map(|(name, units)| (name, units.parse().unwrap())).collect()
}

fn has(limits: &[(&str, i64)]) -> Vec<(String, i64)> {
    limits.iter().map(|(name, units)| ((*name).to_owned(), *units)).collect()
}

#[tokio::test]
async fn limits_counted_by_orders_and_given_back_by_their_ends() {
    let mut bench = Bench::start(1).await;
    bench.run(&bench.users_create(1, 1, 1_000)).await;
    for (id, terms) in [(1, ""), (2, "||5|"), (3, "||4|G"), (4, "||4|G")] {
        bench.run(&bench.product_create(id, 100, 50).with(10, terms)).await;
    }
    bench.run(&bench.limit_group_set("G", 4)).await;
    let (_, event) = bench.decides("PLACED", &bench.place(10, 1, &[(1, 1), (2, 2), (3, 1), (4, 1)])).await;
    let Body::OrderPlaced(placed) = &event.body else { panic!("{event:?}") };
    let counted: Vec<Option<String>> =
        placed.lines.iter().map(|line| line.limit.map(|limit| limit.field(line.product_id))).collect();
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(counted, [None, named("limit:2"), named("group:G"), named("group:G")]);
    assert_eq!(limits(&mut bench, 1).await, has(&[("group:G", 2), ("limit:2", 2)]));
    bench.leaves_all("PURCHASE_LIMIT_EXCEEDED", &bench.place(11, 1, &[(4, 3)])).await;
    bench.decides("PLACED", &bench.place(11, 1, &[(4, 2)])).await;
    bench.leaves_all("PURCHASE_LIMIT_EXCEEDED", &bench.place(12, 1, &[(3, 1)])).await;
    // A payment keeps what is counted, and a refund gives it back.
    bench.decides("PAID", &bench.pay(11, 1, 200)).await;
    assert_eq!(limits(&mut bench, 1).await, has(&[("group:G", 4), ("limit:2", 2)]));
    bench.decides("CLOSED", &bench.close(11, 1, "CANCEL", DAY)).await;
    assert_eq!(limits(&mut bench, 1).await, has(&[("group:G", 2), ("limit:2", 2)]));
    // The order says what it counted, also after the terms have changed.
    let ended = bench.product_update(2, "TOP").with(13, 1).with(14, "||5|").with(15, "");
    bench.decides("UPDATED", &ended).await;
    bench.decides("PLACED", &bench.place(12, 1, &[(2, 9)])).await;
    assert_eq!(limits(&mut bench, 1).await, has(&[("group:G", 2), ("limit:2", 2)]));
    bench.decides("CLOSED", &bench.close(10, 1, "EXPIRE", "").with(1, START.0 + HOUR_MS)).await;
    assert_eq!(limits(&mut bench, 1).await, []);
    bench.decides("CLOSED", &bench.close(12, 1, "CANCEL", "")).await;
    // Declined for lack of money.
    bench.run(&bench.place(13, 1, &[(3, 4)])).await;
    bench.run(&bench.place(14, 1, &[(1, 8)])).await;
    bench.decides("PAID", &bench.pay(14, 1, 800)).await;
    assert_eq!(limits(&mut bench, 1).await, has(&[("group:G", 4)]));
    bench.decides("DECLINED", &bench.pay(13, 1, 400)).await;
    assert_eq!(limits(&mut bench, 1).await, []);
    bench.finish().await;
}

#[tokio::test]
async fn limit_group_set_matches_header() {
    let mut bench = Bench::start(1).await;
    let set = bench.limit_group_set("G-1", 2);
    bench.needs_open_partition(&set).await;
    let decided = bench.position(Partition(0)).await;
    assert_eq!(bench.run(&set).await, ["GROUP_SET"]);
    assert_eq!(bench.position(Partition(0)).await, decided, "it is no decision");
    bench.leaves_all("UNCHANGED", &set).await;
    bench.leaves_all("OTHER_LIMIT", &bench.limit_group_set("G-1", 3)).await;
    bench.covers(&[&script::LIMIT_GROUP_SET]);
    bench.finish().await;
}
