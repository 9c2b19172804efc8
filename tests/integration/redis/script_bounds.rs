//! Every script at the maximal size of the service's calls, one above it, and at random sizes: a call is decided whole or refused
//! whole.

use std::collections::BTreeMap;

use firstcome::{model::Partition, redis::keys::Keys};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRng, TestRunner},
};

use crate::redis::{
    script_batches::decide_together,
    scripts::{Bench, Raw},
};

/// The maximal number of requests in one call of the service.
const MAX_REQUESTS: i64 = 128;
const MAX_LINES: i64 = 100;
const PRICE: i64 = 3;
const UNITS: i64 = 1_000_000;

/// Runs calls of one request each, many in a pipeline.
async fn run_all(bench: &mut Bench, raws: &[Raw]) {
    for raws in raws.chunks(500) {
        let mut pipe = redis::pipe();
        for raw in raws {
            let call = pipe.cmd("EVAL").arg(raw.script.source()).arg(raw.keys.len());
            call.arg(&raw.keys).arg(&raw.args).ignore();
        }
        let _: () = pipe.query_async(&mut bench.redis).await.unwrap();
    }
}

async fn counters(bench: &mut Bench, key: String) -> BTreeMap<i64, i64> {
    let all: BTreeMap<i64, i64> = redis::cmd("HGETALL").arg(key).query_async(&mut bench.redis).await.unwrap();
    all.into_iter().filter(|(_, units)| *units != 0).collect()
}

/// A call that places orders, and the calls that follow.
#[derive(Clone, Copy, Debug)]
struct Shape {
    requests: i64,
    lines: i64,
    /// The number of distinct products in the orders.
    products: i64,
}

/// Places the orders of `shape` in one call, pays half of them in one, cancels the others, and compares Redis with the
/// expected state.
async fn decide(shape: Shape) {
    let Shape { requests, lines, products } = shape;
    let mut bench = Bench::start(1).await;
    let keys = Keys(Partition(0));
    let users = bench.users_create(1, requests, 1_000_000);
    assert_eq!(bench.run(&users).await[0], "CREATED");
    let create: Vec<Raw> = (1..=products).map(|id| bench.product_create(id, PRICE, UNITS)).collect();
    run_all(&mut bench, &create).await;

    let mut sold: BTreeMap<i64, i64> = BTreeMap::new();
    let mut wanted: BTreeMap<i64, i64> = BTreeMap::new();
    let (mut places, mut checkouts) = (Vec::new(), Vec::new());
    for request in 0..requests {
        let of: Vec<(i64, i64)> =
            (0..lines).map(|line| ((request * lines + line) % products + 1, 1 + line % 2)).collect();
        for (product, quantity) in &of {
            *wanted.entry(*product).or_default() += quantity;
            if request % 2 == 0 {
                *sold.entry(*product).or_default() += quantity;
            }
        }
        places.push(bench.place(1_000 + request, request + 1, &of).keyed(&format!("place-{request}"), "mine"));
        let checkout = bench.checkout(1_000 + requests + request, request + 1, &of);
        checkouts.push(checkout.keyed(&format!("checkout-{request}"), "mine"));
    }
    let final_price: i64 = (0..lines).map(|line| (1 + line % 2) * PRICE).sum();
    for round in ["PLACED", "REPLAYED"] {
        let replies = decide_together(&mut bench, &places).await;
        assert_eq!(replies.len() as i64, requests, "{shape:?}");
        assert!(replies.iter().all(|reply| reply[0] == round), "{shape:?}: {:?}", replies[0]);
        assert_eq!(counters(&mut bench, keys.held()).await, wanted, "{shape:?}");
        let on_sale = counters(&mut bench, keys.stock()).await;
        assert!(on_sale.iter().all(|(id, units)| UNITS - units == *wanted.get(id).unwrap_or(&0)), "{shape:?}");
    }

    // The next call continues after the requests that this one decided.
    for most in [1_000_000, 1_000, 1] {
        let pays = (0..requests).filter(|request| request % 2 == 0);
        let pays: Vec<Raw> = pays
            .map(|request| {
                let pay = bench.pay(1_000 + request, request + 1, final_price).keyed(&format!("pay-{request}"), "mine");
                pay.with_shared(7, most)
            })
            .collect();
        let mut left = &pays[..];
        while !left.is_empty() {
            let replies = decide_together(&mut bench, left).await;
            let settled = if most == 1_000_000 { "PAID" } else { "REPLAYED" };
            assert!(replies.iter().all(|reply| reply[0] == settled), "{shape:?}: {:?}", replies[0]);
            left = &left[replies.len()..];
        }
        assert_eq!(counters(&mut bench, keys.sold()).await, sold, "{shape:?}");
    }
    // As many orders again, each paid in the step that places it.
    for (product, units) in &wanted {
        *sold.entry(*product).or_default() += units;
    }
    for round in ["CHECKED_OUT", "REPLAYED"] {
        let replies = decide_together(&mut bench, &checkouts).await;
        assert!(replies.len() as i64 == requests && replies.iter().all(|reply| reply[0] == round), "{shape:?}");
        assert_eq!(counters(&mut bench, keys.sold()).await, sold, "{shape:?}");
    }
    let cancels = (0..requests).filter(|request| request % 2 == 1);
    let cancels: Vec<Raw> = cancels.map(|request| bench.close(1_000 + request, request + 1, "CANCEL", "")).collect();
    for cancel in &cancels {
        assert_eq!(bench.run(cancel).await[0], "CLOSED", "{shape:?}");
    }
    assert_eq!(counters(&mut bench, keys.held()).await, BTreeMap::new(), "{shape:?}");
    let on_sale = counters(&mut bench, keys.stock()).await;
    assert!(on_sale.iter().all(|(id, units)| UNITS - units == *sold.get(id).unwrap_or(&0)), "{shape:?}");
    bench.finish().await;
}

#[tokio::test]
async fn order_batch_decided_whole_at_max_size_and_one_above() {
    for requests in [MAX_REQUESTS, MAX_REQUESTS + 1] {
        decide(Shape { requests, lines: MAX_LINES, products: requests * MAX_LINES }).await;
    }
}

#[tokio::test]
async fn order_batch_decided_whole_at_any_size() {
    let seed: u64 = std::env::var("BATCH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_128);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let shapes = (1..=MAX_REQUESTS + 1, 1..=MAX_LINES, 1..=8_000i64);
    for _ in 0..4 {
        let (requests, lines, products) = shapes.new_tree(&mut runner).unwrap().current();
        decide(Shape { requests, lines, products: products.clamp(lines, requests * lines) }).await;
    }
}

/// A call decides payments up to a number of lines; the next calls decide the rest, in order.
#[tokio::test]
async fn payment_batch_stops_at_line_limit() {
    let mut bench = Bench::start(1).await;
    let setup = [bench.users_create(1, 4, 1_000_000)];
    run_all(&mut bench, &setup).await;
    let products: Vec<Raw> = (1..=10).map(|id| bench.product_create(id, PRICE, UNITS)).collect();
    run_all(&mut bench, &products).await;
    let lines: Vec<(i64, i64)> = (1..=10).map(|product| (product, 1)).collect();
    let places: Vec<Raw> = (1..=4).map(|user| bench.place(user, user, &lines)).collect();
    decide_together(&mut bench, &places).await;
    let pay = |bench: &Bench, user: i64| bench.pay(user, user, 10 * PRICE).with_shared(7, 15);
    let pays: Vec<Raw> = (1..=4).map(|user| pay(&bench, user)).collect();
    assert_eq!(decide_together(&mut bench, &pays).await.len(), 2);
    assert_eq!(decide_together(&mut bench, &pays[2..]).await.len(), 2);
    bench.finish().await;
}

#[tokio::test]
async fn charge_and_issue_batches_decided_whole_at_max_size() {
    for requests in [MAX_REQUESTS, MAX_REQUESTS + 1] {
        let mut bench = Bench::start(1).await;
        let setup = [bench.users_create(1, requests, 0), bench.campaign_create(1, "FIXED", 10, requests)];
        run_all(&mut bench, &setup).await;
        let charges: Vec<Raw> =
            (1..=requests).map(|user| bench.charge(user, user).keyed(&format!("charge-{user}"), "mine")).collect();
        let issues: Vec<Raw> =
            (1..=requests).map(|user| bench.coupon_issue(1, user).keyed(&format!("issue-{user}"), "mine")).collect();
        for (raws, word) in [(&charges, "CHARGED"), (&issues, "ISSUED")] {
            for word in [word, "REPLAYED"] {
                let replies = decide_together(&mut bench, raws).await;
                assert_eq!(replies.len() as i64, requests);
                assert!(replies.iter().all(|reply| reply[0] == word), "{replies:?}");
            }
        }
        bench.finish().await;
    }
}

/// Scripts that decide one request, with lists of maximal length.
#[tokio::test]
async fn single_scripts_decide_whole_at_max_lists() {
    let mut bench = Bench::start(2).await;
    let users = bench.users_create(2, 250, 1_000_000);
    assert_eq!(bench.run(&users).await[0], "CREATED");
    let products: Vec<i64> = (0..MAX_LINES).map(|n| 2 + 2 * n).collect();
    let create: Vec<Raw> = products.iter().map(|id| bench.product_create(*id, PRICE, UNITS)).collect();
    run_all(&mut bench, &create).await;
    let order = 10;
    let lines: Vec<(i64, i64)> = products.iter().map(|id| (*id, 2)).collect();
    let place = bench.place(order, 2, &lines);
    assert_eq!(bench.run(&place).await[0], "PLACED");
    let pay = bench.pay(order, 2, 2 * PRICE * MAX_LINES);
    assert_eq!(bench.run(&pay).await[0], "PAID");
    let refund = bench.close(order, 2, "CANCEL", "20260302");
    assert_eq!(bench.run(&refund).await[0], "CLOSED");
    // The order is evicted and restored with all of its lines.
    let key = bench.order_key(order);
    let fields: Vec<(String, String)> = redis::cmd("HGETALL").arg(&key).query_async(&mut bench.redis).await.unwrap();
    let fields: Vec<(&str, &str)> = fields.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
    let _: i64 = redis::cmd("DEL").arg(&key).query_async(&mut bench.redis).await.unwrap();
    let restore = bench.restore(Keys(Partition(0)), &key, &fields);
    assert_eq!(bench.run(&restore).await, ["RESTORED"]);
    assert_eq!(counters(&mut bench, Keys(Partition(0)).held()).await, BTreeMap::new());
    let orders: Vec<(String, &str)> = (0..20_000).map(|id| (bench.order_key(20_000 + 2 * id), "PAID")).collect();
    let evict = bench.evict(&orders);
    assert_eq!(bench.run(&evict).await, ["EVICTED", "0"]);
    bench.finish().await;
}
