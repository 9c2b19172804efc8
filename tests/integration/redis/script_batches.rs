//! A call with many requests equals one call for each, in the same order: the same replies, the same events with the same
//! positions, the same state. A second test app decides the same random, conflicting requests one by one.

use std::collections::BTreeMap;

use firstcome::{
    model::{Partition, event},
    redis::keys::Keys,
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRng, TestRunner},
};
use serde_json::json;

use crate::{
    redis::scripts::{Bench, HOUR_MS, Raw},
    support::{
        harness::{Options, START, TestApp},
        outbox,
    },
};

const USERS: i64 = 4;
const PRICE: i64 = 100;

/// The random part of a request.
#[derive(Clone, Debug)]
struct Ask {
    user: i64,
    thing: i64,
    amount: i64,
    quantity: i64,
    coupon: Option<i64>,
    /// An idempotency key and the request's fingerprint.
    key: Option<(u8, u8)>,
}

fn asks() -> impl Strategy<Value = (u8, Vec<Ask>)> {
    let key = prop::option::weighted(0.3, (0..6u8, 0..2u8));
    // Each range includes one unknown user, product and order.
    let ask = (1..=USERS + 1, 1..=4i64, prop::sample::select(&[0, 99, 100, 200, 290, 300][..]), 1..=3i64);
    let ask = (ask, prop::option::weighted(0.4, 1..=2i64), key)
        .prop_map(|((user, thing, amount, quantity), coupon, key)| Ask { user, thing, amount, quantity, coupon, key });
    (0..5u8, prop::collection::vec(ask, 1..9))
}

/// The requests of one kind, in one order for both test apps.
fn raws(bench: &Bench, kind: u8, asks: &[Ask], orders: &mut i64, placed: &[(i64, i64, i64)]) -> Vec<Raw> {
    let one = |ask: &Ask| {
        let raw = match kind {
            0 => bench.charge(ask.user, ask.amount / 20 + 1),
            // All requests of a call name one campaign.
            1 => bench.coupon_issue(1 + asks[0].thing % 2, ask.user),
            2 | 3 => {
                *orders += 1;
                let mut lines = vec![(ask.thing, ask.quantity)];
                if ask.amount == 200 {
                    lines.push((ask.thing % 3 + 1, 1));
                    lines.dedup_by_key(|line| line.0);
                }
                let raw = match kind {
                    2 => bench.place(*orders, ask.user, &lines),
                    _ => bench.checkout(*orders, ask.user, &lines),
                };
                match ask.coupon {
                    Some(coupon) => raw.with(6, coupon).with(7, "FIXED").with(8, 10).with(9, START.0 + 2 * HOUR_MS),
                    None => raw,
                }
            }
            // One of the newest orders, with its own user and price or with others.
            _ => match placed.iter().rev().nth(ask.thing as usize) {
                Some((order, user, price)) if ask.quantity > 1 => bench.pay(*order, *user, *price),
                _ => bench.pay((*orders - ask.thing * ask.quantity).max(1), ask.user, ask.amount),
            },
        };
        match ask.key {
            Some((key, fingerprint)) => raw.keyed(&format!("{key}"), &format!("{kind}-{fingerprint}")),
            None => raw,
        }
    };
    asks.iter().map(one).collect()
}

/// Combines the requests into one call.
pub fn together(raws: &[Raw]) -> Raw {
    let (keys, args) = raws[0].shared.unwrap();
    let mut whole = raws[0].clone();
    for raw in &raws[1..] {
        assert_eq!((&raw.keys[..keys], &raw.args[..args]), (&whole.keys[..keys], &whole.args[..args]));
        whole.keys.extend_from_slice(&raw.keys[keys..]);
        whole.args.extend_from_slice(&raw.args[args..]);
    }
    whole
}

pub async fn decide_together(bench: &mut Bench, raws: &[Raw]) -> Vec<Vec<String>> {
    let raw = together(raws);
    let mut command = redis::cmd("EVAL");
    command.arg(raw.script.source()).arg(raw.keys.len()).arg(&raw.keys).arg(&raw.args);
    let replies: Vec<String> = command.query_async(&mut bench.redis).await.unwrap();
    replies.iter().map(|reply| reply.split('\u{1f}').map(str::to_owned).collect()).collect()
}

/// The state without the positions of changes in the outbox.
async fn state(test: &TestApp) -> BTreeMap<String, String> {
    let mut all = test.snapshot().await;
    all.retain(|key, _| !key.ends_with(":outbox") && !key.ends_with(":meta"));
    for value in all.values_mut() {
        if let Some((before, rest)) = value.split_once("\"tail\": \"") {
            let (_, after) = rest.split_once('"').unwrap();
            *value = format!("{before}{after}");
        }
    }
    all
}

/// The events of the outbox, one per decision, without the links between changes.
async fn events(bench: &mut Bench) -> Vec<Vec<(String, String)>> {
    let mut events = Vec::new();
    for (_, fields) in outbox::entries(&mut bench.redis, 0).await {
        for nth in 0..event::decode(&fields).len() {
            let mut event = event::fields_of(&fields, nth);
            event.retain(|(name, _)| name != "prev");
            events.push(event);
        }
    }
    events
}

async fn open() -> Bench {
    let mut bench = Bench::start(1).await;
    let mut raws = vec![bench.users_create(1, USERS, 500)];
    raws.extend((1..=3).map(|product| bench.product_create(product, PRICE, 14)));
    raws.extend([bench.campaign_create(1, "FIXED", 10, 2), bench.campaign_create(2, "FIXED", 10, 100)]);
    for raw in &raws {
        bench.run(raw).await;
    }
    bench
}

#[tokio::test]
async fn batch_equals_single_calls() {
    let seed: u64 = std::env::var("BATCH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_125);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..3 {
        let (mut many, mut single) = (open().await, open().await);
        // The next order id; the order, user and price of placed orders.
        let (mut orders, mut placed) = (0, Vec::new());
        for round in 0..120 {
            let (kind, asks) = asks().new_tree(&mut runner).unwrap().current();
            let raws = raws(&many, kind, &asks, &mut orders, &placed);
            let answered = decide_together(&mut many, &raws).await;
            let mut one_by_one = Vec::new();
            for raw in &raws {
                one_by_one.push(single.run(raw).await);
            }
            assert_eq!(answered, one_by_one, "round {round}, BATCH_SEED={seed}: {kind} {asks:?}");
            for (ask, answer) in asks.iter().zip(answered) {
                if answer[0] == "PLACED" {
                    placed.push((answer[3].parse().unwrap(), ask.user, answer[4].parse().unwrap()));
                }
                *seen.entry(format!("{} {}", raws[0].script.name, answer[0])).or_default() += 1;
            }
        }
        assert_eq!(events(&mut many).await, events(&mut single).await, "BATCH_SEED={seed}");
        assert_eq!(state(&many.test).await, state(&single.test).await, "BATCH_SEED={seed}");
        // The chain of a user's changes is the same with both kinds of calls.
        for user in 1..=USERS {
            let path = format!("/api/v1/balances/{user}/history?limit=1000");
            let before = many.test.get(&path).await.ok();
            assert_eq!(before, single.test.get(&path).await.ok(), "BATCH_SEED={seed}");
            many.test.drain().await;
            assert_eq!(before, many.test.get(&path).await.ok(), "BATCH_SEED={seed}");
        }
        many.finish().await;
        single.finish().await;
    }
    for word in [
        "coupon_issue REPLAYED",
        "order_place SOLD_OUT",
        "order_place INVALID_COUPON",
        "order_checkout CHECKED_OUT",
        "order_checkout REPLAYED",
        "order_checkout INVALID_COUPON",
        "order_pay DECLINED",
    ] {
        assert!(seen.contains_key(word), "{word} did not occur: {seen:?}");
    }
    assert!(seen["order_pay PAID"] > 10 && seen["balance_charge REPLAYED"] > 3, "{seen:?}");
}

/// Concurrent requests share calls, and each gets its own reply.
#[tokio::test]
async fn concurrent_requests_share_outbox_entries() {
    let test = TestApp::start().await;
    let mut users = Vec::new();
    for _ in 0..60 {
        users.push(test.user(1_000).await);
    }
    let campaign = test.campaign("FIXED", 10, 40).await;
    test.drain().await;
    let issued = futures_util::future::join_all(users.iter().map(|user| test.issue(campaign, *user))).await;
    let (given, refused): (Vec<_>, Vec<_>) = issued.into_iter().partition(|reply| reply.status == 200);
    assert_eq!((given.len(), refused.len()), (40, 20));
    let mut numbers: Vec<i64> = given.into_iter().map(|reply| reply.ok()["issueNo"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
    refused.into_iter().for_each(|reply| reply.refused(409, "COUPON_OUT_OF_STOCK"));
    let charged = futures_util::future::join_all(
        users.iter().map(async |user| test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 500})).await),
    );
    for charged in charged.await {
        assert_eq!(charged.ok()["balance"], 1_500);
    }
    let entries: i64 =
        redis::cmd("XLEN").arg(Keys(Partition(0)).outbox()).query_async(&mut test.raw().await).await.unwrap();
    assert!(entries < 100, "100 decisions in {entries} entries");
    test.finish().await;
}

/// Invalid decisions of an entry become dead letters, and the entry's other decisions are applied.
#[tokio::test]
async fn poisoned_decision_leaves_rest_of_entry_applied() {
    let test = TestApp::with(Options { dead_letters: 2, ..Options::default() }).await;
    let users = [test.user(1_000).await, test.user(2_000).await];
    test.drain().await;
    let charged = futures_util::future::join_all(
        users.iter().map(async |user| test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 500})).await),
    );
    charged.await.into_iter().for_each(|reply| drop(reply.ok()));
    // Adds two decisions to the last entry: one without its fields, and one of an unknown user.
    let (mut redis, keys) = (test.raw().await, Keys(Partition(0)));
    let mut entries = outbox::entries(&mut redis, 0).await;
    let seq: i64 = redis::cmd("HINCRBY").arg(keys.meta()).arg("seq").arg(2).query_async(&mut redis).await.unwrap();
    let parts = ["balance_charged", &seq.to_string(), &START.0.to_string(), "rid", "999", "1", "5", "0", "5", ""];
    let (_, events) = entries.last_mut().unwrap().1.last_mut().unwrap();
    let broken = ["order_placed", &(seq - 1).to_string(), "of another version"].join("\u{1f}");
    *events = format!("{events}\u{1e}{broken}\u{1e}{}", parts.join("\u{1f}"));
    outbox::replace(&mut redis, 0, &entries).await;
    test.drain().await;
    test.finish().await;
}
