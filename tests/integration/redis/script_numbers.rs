//! Numbers near their bounds in the real scripts: Lua has only doubles, and several formats to print them.

use firstcome::{
    model::{
        CouponId, Discount, DiscountType, Error, MAX_SAFE_INTEGER, NewProduct, OrderConditions, OrderId, Partition,
        ProductId, ProductPatch, SaleTerms, UserId,
        event::{self, Body, Event},
        share_of,
    },
    redis::{
        commands::{CloseOrder, Closing, CouponTerms, PlaceOrder, Placement, UserBatch},
        keys::Keys,
    },
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use serde_json::json;

use crate::support::harness::{Options, START, TestApp, call};

fn user(id: i64) -> UserId {
    UserId::new(id).unwrap()
}

fn product(id: i64) -> ProductId {
    ProductId::new(id).unwrap()
}

async fn rich_user(test: &TestApp, id: i64, balance: i64) {
    let batch = UserBatch { first: user(id), step: 1, count: 1, name: "부자".to_owned(), prefixed: false, balance };
    let call = call(None);
    test.store.users_create(&call, Partition(0), &batch).await.unwrap();
    test.skip_chosen_ids().await;
}

async fn last_event(test: &TestApp) -> Event {
    let mut last = redis::cmd("XREVRANGE");
    last.arg(Keys(Partition(0)).outbox()).arg("+").arg("-").arg("COUNT").arg(1);
    let last: Vec<(String, Vec<(String, String)>)> = last.query_async(&mut test.raw().await).await.unwrap();
    event::decode(&last[0].1).pop().unwrap().event.unwrap()
}

#[tokio::test]
async fn balance_exact_up_to_largest_integer() {
    let test = TestApp::start().await;
    rich_user(&test, 1, MAX_SAFE_INTEGER - 100_003).await;
    let first = test.put("/api/v1/balances/1", json!({"amount": 100_000})).await.ok();
    assert_eq!(first["balance"], MAX_SAFE_INTEGER - 3);
    test.put("/api/v1/balances/1", json!({"amount": 4})).await.refused(400, "INVALID_AMOUNT");
    let key = ("last", "body");
    let mine = call(Some(key));
    for replayed in [false, true] {
        let charged = test.store.balance_charge(&mine, user(1), 3, MAX_SAFE_INTEGER).await.unwrap();
        assert_eq!((charged.value.1, charged.replayed), (MAX_SAFE_INTEGER, replayed));
    }
    test.put("/api/v1/balances/1", json!({"amount": 1})).await.refused(400, "INVALID_AMOUNT");
    assert_eq!(test.get("/api/v1/balances/1").await.ok()["balance"], MAX_SAFE_INTEGER);
    let Body::BalanceCharged(entry) = last_event(&test).await.body else { panic!() };
    assert_eq!((entry.before, entry.after), (MAX_SAFE_INTEGER - 3, MAX_SAFE_INTEGER));
    for _ in 0..2 {
        let history = test.get("/api/v1/balances/1/history").await.ok();
        assert_eq!(history[2]["after_balance"], MAX_SAFE_INTEGER);
        assert_eq!(history[1]["before_balance"], MAX_SAFE_INTEGER - 100_003);
        test.drain().await;
    }
    test.finish().await;
}

#[tokio::test]
async fn charge_accepted_up_to_configured_cap() {
    let test = TestApp::with(Options { max_balance: Some(1_000), ..Options::default() }).await;
    let user = test.user(999).await;
    let path = format!("/api/v1/balances/{user}");
    test.put(&path, json!({"amount": 2})).await.refused(400, "INVALID_AMOUNT");
    assert_eq!(test.put(&path, json!({"amount": 1})).await.ok()["balance"], 1_000);
    test.put(&path, json!({"amount": 1})).await.refused(400, "INVALID_AMOUNT");
    test.finish().await;
}

#[tokio::test]
async fn order_total_exact_up_to_largest_integer() {
    let test = TestApp::start().await;
    rich_user(&test, 1, MAX_SAFE_INTEGER).await;
    // 9007 × 10^12 + 199,254,740,991 = 2^53 − 1.
    let (dear, rest) = (test.product(1_000_000_000_000, 10_000).await, test.product(199_254_740_991, 10).await);
    let won = test.product(1, 10).await;
    let order = |lines: &[(i64, i64)]| {
        let lines: Vec<_> = lines.iter().map(|(id, n)| json!({"productId": id, "quantity": n})).collect();
        test.post("/api/v1/orders", json!({"userId": 1, "orderProducts": lines}))
    };
    // Ids of orders are reserved in blocks: this order reserves one before the snapshot.
    order(&[(dear, 10_000)]).await.refused(400, "INVALID_ORDER");
    let before = test.snapshot().await;
    order(&[(dear, 9_007), (rest, 1), (won, 1)]).await.refused(400, "INVALID_ORDER");
    order(&[(dear, 10_000)]).await.refused(400, "INVALID_ORDER");
    order(&[(won, 1), (dear, 10_000), (rest, 9)]).await.refused(400, "INVALID_ORDER");
    assert!(before == test.snapshot().await, "a refused order changed the state");
    let placed = order(&[(dear, 9_007), (rest, 1)]).await.ok();
    assert_eq!(placed["finalPrice"], MAX_SAFE_INTEGER);
    let Body::OrderPlaced(event) = last_event(&test).await.body else { panic!() };
    assert_eq!((event.total, event.final_price), (MAX_SAFE_INTEGER, MAX_SAFE_INTEGER));
    let id = placed["orderId"].as_i64().unwrap();
    test.pay(id, 1, "CARD", MAX_SAFE_INTEGER - 1).await.refused(400, "INVALID_PAYMENT_REQUEST");
    let paid = test.pay(id, 1, "CARD", MAX_SAFE_INTEGER).await.ok();
    assert_eq!(paid["amount"], MAX_SAFE_INTEGER);
    assert_eq!(test.get("/api/v1/balances/1").await.ok()["balance"], 0);
    let popular = test.get("/api/v1/products/popular").await.ok();
    assert_eq!(popular[0]["totalSalesPrice"].as_i64(), Some(9_007_000_000_000_000));
    assert_eq!(popular[1]["totalSalesPrice"].as_i64(), Some(199_254_740_991));
    test.drain().await;
    assert_eq!(test.cancel(id, 1).await.ok()["closeReason"], "REFUNDED");
    assert_eq!(test.get("/api/v1/balances/1").await.ok()["balance"], MAX_SAFE_INTEGER);
    let history = test.get("/api/v1/balances/1/history").await.ok();
    let amounts: Vec<_> = history.as_array().unwrap().iter().map(|entry| entry["amount"].as_i64().unwrap()).collect();
    assert_eq!(amounts, [MAX_SAFE_INTEGER; 3]);
    test.finish().await;
}

#[tokio::test]
async fn order_of_hundred_lines_exact() {
    let test = TestApp::start().await;
    let user = test.user(1_000_000_000_000).await;
    let mut products = Vec::new();
    for n in 0..100 {
        products.push(test.product(1_000_000 + n, 10_000).await);
    }
    let lines = |count: usize, quantity: i64| -> Vec<_> {
        let line = |n: usize| json!({"productId": products[n % 100], "quantity": quantity});
        (0..count).map(line).collect()
    };
    let order = |lines: Vec<_>| test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines}));
    order(lines(101, 1)).await.refused(400, "INVALID_ORDER");
    let placed = order(lines(100, 9_000)).await.ok();
    let total: i64 = (0..100).map(|n| (1_000_000 + n) * 9_000).sum();
    assert_eq!(placed["finalPrice"], total);
    let id = placed["orderId"].as_i64().unwrap();
    order(lines(100, 1_001)).await.refused(409, "INSUFFICIENT_STOCK");
    let second = order(lines(100, 1_000)).await.ok()["orderId"].as_i64().unwrap();
    test.pay(id, user, "CARD", total).await.ok();
    let shown = test.get(&format!("/api/v1/orders/{id}?userId={user}")).await.ok();
    assert_eq!(shown["orderProducts"].as_array().unwrap().len(), 100);
    assert_eq!(test.get("/api/v1/products/popular?limit=100").await.ok().as_array().unwrap().len(), 100);
    test.drain().await;
    test.cancel(id, user).await.ok();
    test.cancel(second, user).await.ok();
    assert_eq!(test.get("/api/v1/products/popular").await.ok(), json!([]));
    test.finish().await;
}

/// A case of a discount: two prices, the units of the first, the discount and its conditions.
type Case = (i64, i64, i64, Discount, OrderConditions);

fn cases() -> Vec<Case> {
    let percent = |amount| Discount { kind: DiscountType::Percentage, amount };
    let fixed = |amount| Discount { kind: DiscountType::Fixed, amount };
    let mut cases: Vec<Case> = Vec::new();
    // Numbers that are inexact as a double or in fourteen digits.
    for total in [
        (1, 1, 0),
        (0, 1, 0),
        (99, 1, 0),
        (101, 1, 0),
        (1_000_000_000_000, 100, 1),
        (999_999_999_999, 100, 99),
        (1_000_000_000_000, 9_007, 199_254_740_991),
        (1_000_000_000_000, 9_007, 199_254_740_990),
        (900_719_925_474, 10_000, 991),
        (123_456_789_012, 9_999, 345),
    ] {
        for discount in
            [1, 7, 29, 33, 50, 57, 58, 99, 100].map(percent).into_iter().chain([1, 1_000_000_000_000].map(fixed))
        {
            cases.push((total.0, total.1, total.2, discount, OrderConditions::default()));
        }
    }
    let price = 0..=1_000_000_000_000_i64;
    let amount = proptest::prop_oneof![(1..=100_i64).prop_map(percent), (1..=1_000_000_000_000_i64).prop_map(fixed)];
    let won = || proptest::option::of(proptest::prop_oneof![1..=2_000_i64, 1..=1_000_000_000_000_i64]);
    let lines = proptest::option::of(proptest::collection::vec(proptest::bool::ANY, 2));
    let conditions = (won(), won(), lines).prop_map(|(min_order_price, max_discount_price, qualifying)| {
        OrderConditions { min_order_price, max_discount_price, qualifying }
    });
    let price = proptest::prop_oneof![0..=2_000_i64, price];
    let random = (price.clone(), 1..=9_000_i64, price, amount, conditions);
    let mut runner = TestRunner::deterministic();
    cases.extend((0..400).map(|_| random.new_tree(&mut runner).unwrap().current()));
    cases
}

/// `order_place.lua` computes discounts in Lua, [`OrderConditions::discount`] in Rust.
#[tokio::test]
async fn discount_equal_in_lua_and_rust() {
    let test = TestApp::start().await;
    rich_user(&test, 1, MAX_SAFE_INTEGER).await;
    let plain = call(None);
    for id in [1, 2] {
        let new = NewProduct {
            name: "A".into(),
            price: 1,
            stock: 10_000,
            category: "TOP".parse().unwrap(),
            terms: SaleTerms::default(),
        };
        test.store.product_create(&plain, product(id), &new).await.unwrap();
    }
    let coupon = test.campaign("FIXED", 1, 10).await;
    test.issue(coupon, 1).await.ok();
    let coupon_id = CouponId::new(coupon).unwrap();
    for (n, (price, units, rest, discount, conditions)) in cases().into_iter().enumerate() {
        let case = format!("{price} × {units} + {rest}, {discount:?}, {conditions:?}");
        for (id, price) in [(1, price), (2, rest)] {
            let patch = ProductPatch { price: Some(price), ..ProductPatch::default() };
            let had = test.store.product(product(id)).await.unwrap();
            test.store.product_update(&plain, &had, &patch, 0).await.unwrap().unwrap();
        }
        // The terms are arguments of the script, so that each case has its own.
        let terms = CouponTerms { discount, conditions: conditions.clone(), expires_at: START.plus(1) };
        let order_id = OrderId::new(1_000 + n as i64).unwrap();
        let place = PlaceOrder {
            order_id,
            user_id: user(1),
            hold_ms: 600_000,
            max_open: 20,
            must_afford: true,
            coupon: Some((coupon_id, Some(terms))),
            lines: vec![(product(1), units), (product(2), 1)],
            checkout: None,
        };
        let total = price * units + rest;
        let placed = test.store.order_place(&plain, place).await;
        if total > MAX_SAFE_INTEGER && conditions.have_line() {
            assert!(matches!(placed, Err(Error::InvalidOrder)), "{case}: {placed:?}");
            continue;
        }
        let Some(discount) = conditions.discount(discount, &[price * units, rest]) else {
            assert!(matches!(placed, Err(Error::InvalidCoupon)), "{case}: {placed:?}");
            continue;
        };
        let final_price = total - discount;
        let Placement::Placed(placed) = placed.unwrap() else { panic!("{case}: too few units") };
        assert_eq!(placed.value.final_price, final_price, "{case}");
        let Body::OrderPlaced(event) = last_event(&test).await.body else { panic!("{case}") };
        assert_eq!((event.total, event.discount, event.final_price), (total, discount, final_price), "{case}");
        let record = test.store.order(order_id).await.unwrap().unwrap().order;
        assert_eq!((record.total, record.discount, record.final_price), (total, discount, final_price), "{case}");
        let close = CloseOrder {
            order_id,
            user_id: user(1),
            closing: Closing::Cancel { paid_on: None, within_ms: 604_800_000 },
        };
        test.store.order_close(&plain, &close).await.unwrap().unwrap();
    }
    test.finish().await;
}

/// Paid, value and total of shares near the bounds, and at random.
fn shares() -> Vec<(i64, i64, i64)> {
    let mut shares = vec![(0, 0, 0), (0, 5, 5), (5, 5, 5), (1, 1, MAX_SAFE_INTEGER)];
    for total in [1, 2, 3, 7, 1 << 52, (1 << 52) + 1, MAX_SAFE_INTEGER - 1, MAX_SAFE_INTEGER] {
        for paid in [0, 1, total / 3, total / 2, total - 1, total] {
            shares.extend([0, 1, total / 3, total / 2, total - 1, total].map(|value| (paid, value, total)));
        }
    }
    let total = proptest::prop_oneof![1..=1_000_i64, 1..=MAX_SAFE_INTEGER];
    let share = (total, 0.0..=1.0_f64, 0.0..=1.0_f64).prop_map(|(total, paid, value)| {
        let part = |of: f64| ((total as f64 * of) as i64).clamp(0, total);
        (part(paid), part(value), total)
    });
    let mut runner = TestRunner::deterministic();
    shares.extend((0..2_000).map(|_| share.new_tree(&mut runner).unwrap().current()));
    shares
}

/// `lua/lib/shares.lua` divides in Lua, [`share_of`] in Rust.
#[tokio::test]
async fn share_equal_in_lua_and_rust() {
    let test = TestApp::start().await;
    let library = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/lua/lib/shares.lua")).unwrap();
    let script = format!(
        "{library}
         local shares = {{}}
         for i = 1, #ARGV, 3 do
           local share = share_of(tonumber(ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]))
           shares[#shares + 1] = string.format('%d', share)
         end
         return shares"
    );
    let (cases, mut redis) = (shares(), test.raw().await);
    for cases in cases.chunks(500) {
        let mut eval = redis::cmd("EVAL");
        eval.arg(&script).arg(0);
        for (paid, value, total) in cases {
            eval.arg(paid).arg(value).arg(total);
        }
        let lua: Vec<i64> = eval.query_async(&mut redis).await.unwrap();
        let rust: Vec<i64> = cases.iter().map(|(paid, value, total)| share_of(*paid, *value, *total)).collect();
        assert_eq!(lua, rust);
    }
    test.finish().await;
}

/// Any sequence of parts of any order gives back exactly what was paid, and no part is negative.
#[tokio::test]
async fn parts_sum_to_what_was_paid() {
    let price = || proptest::prop_oneof![0..=20_i64, 1..=2_000_i64, 900_000_000_000..=1_000_000_000_000_i64];
    let lines = proptest::collection::vec((price(), 1..=6_i64), 1..=4);
    let discount = proptest::prop_oneof![0..=3_i64, 0..=1_000_000_000_000_i64];
    let parts = proptest::collection::vec((0..4_usize, 1..=3_i64), 40);
    let sequence = (lines, discount, parts);
    let (mut runner, test) = (TestRunner::deterministic(), TestApp::start().await);
    rich_user(&test, 1, MAX_SAFE_INTEGER).await;
    for _ in 0..40 {
        let (lines, discount, parts) = sequence.new_tree(&mut runner).unwrap().current();
        let mut left = Vec::new();
        for (price, quantity) in lines {
            left.push((test.product(price, 10).await, quantity));
        }
        let order = left.iter().map(|(id, n)| json!({"productId": id, "quantity": n})).collect::<Vec<_>>();
        let coupon = test.campaign("FIXED", discount.max(1), 1).await;
        test.issue(coupon, 1).await.ok();
        let order = json!({"userId": 1, "orderProducts": order, "userCouponId": coupon});
        let placed = test.post("/api/v1/orders", order).await.ok();
        let (id, paid) = (placed["orderId"].as_i64().unwrap(), placed["finalPrice"].as_i64().unwrap());
        test.pay(id, 1, "CARD", paid).await.ok();
        let (mut refunded, mut closed) = (0, false);
        // At the end the rest.
        let rest = (0..left.len()).map(|line| (line, i64::MAX));
        for (line, units) in parts.into_iter().chain(rest) {
            let line = line % left.len();
            let units = units.min(left[line].1);
            if units == 0 {
                continue;
            }
            left[line].1 -= units;
            let shown = test.refund_lines(id, 1, &[(left[line].0, units)]).await.ok();
            let now = shown["refundedPrice"].as_i64().unwrap();
            assert!((refunded..=paid).contains(&now), "{refunded} and then {now} of {paid}");
            (refunded, closed) = (now, shown["orderStatus"] == "CANCELLED");
        }
        assert_eq!((refunded, closed), (paid, true));
        assert_eq!(test.get("/api/v1/balances/1").await.ok()["balance"], MAX_SAFE_INTEGER);
    }
    test.finish().await;
}
