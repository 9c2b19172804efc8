//! Many HTTP clients compete for scarce goods: exactly the stock is sold, every other request is refused with its error, and the
//! invariants hold.

use std::{collections::BTreeSet, sync::Arc};

use firstcome::model::MAX_PARTITIONS;
use futures_util::{StreamExt, future::join_all, stream};
use serde_json::{Value, json};

use crate::support::harness::{Options, Reply, TestApp};

/// Runs up to 256 requests at a time. Returns the replies in the order in which they come.
async fn concurrently<F: Future<Output = Reply>>(requests: impl IntoIterator<Item = F>) -> Vec<Reply> {
    stream::iter(requests).buffer_unordered(256).collect().await
}

/// Numbers of partitions: fewer than the users and products of a test, and more than its products.
const MANY: [u16; 2] = [3, 16];

fn count(replies: &[Reply], status: u16) -> usize {
    replies.iter().filter(|reply| reply.status == status).count()
}

async fn order_more_than_the_stock(options: Options) {
    let test = TestApp::with(options).await;
    let users = test.users(200, 10_000).await;
    let product = test.product(1_000, 30).await;
    let replies = concurrently(users.iter().map(|user| test.order(*user, product, 1))).await;
    assert_eq!((count(&replies, 200), count(&replies, 409)), (30, 170));
    replies.iter().filter(|reply| reply.status == 409).for_each(|reply| reply.refused(409, "SOLD_OUT"));
    let ids: BTreeSet<i64> =
        replies.iter().filter(|r| r.status == 200).map(|r| r.json()["orderId"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), 30, "two orders have one id");
    // The units of cancelled orders are sold again, once.
    let buyers: Vec<(i64, i64)> = join_all(
        ids.iter()
            .map(async |id| (*id, test.get(&format!("/api/v1/orders/{id}")).await.ok()["userId"].as_i64().unwrap())),
    )
    .await;
    let cancelled = concurrently(buyers.iter().take(10).map(|(order, user)| test.cancel(*order, *user))).await;
    assert_eq!(count(&cancelled, 200), 10);
    let again = concurrently(users.iter().map(|user| test.order(*user, product, 3))).await;
    assert_eq!(count(&again, 200), 3, "ten released units suffice for three orders of three");
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_orders_sell_exactly_the_stock() {
    order_more_than_the_stock(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_orders_sell_exactly_the_stock_across_partitions() {
    for partitions in MANY {
        order_more_than_the_stock(Options { partitions, ..Options::default() }).await;
    }
}

/// More partitions than units, so that each transfer moves one, and a transaction of the projector for each event.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_orders_sell_exactly_the_stock_at_extreme_settings() {
    order_more_than_the_stock(Options { partitions: MAX_PARTITIONS, batch: 1, ..Options::default() }).await;
}

/// Orders that are held first, and orders that are paid at once, of a product with too few units; a user has money for four.
async fn check_out_more_than_the_stock(partitions: u16) {
    let test = TestApp::with(Options { partitions, project: true, max_open_orders: 100, ..Options::default() }).await;
    let users = test.users(40, 4_000).await;
    let product = test.product(1_000, 100).await;
    let checkout = async |user: i64| {
        let lines = json!([{"productId": product, "quantity": 1}]);
        let body = json!({"userId": user, "orderProducts": lines, "payment": {"paymentType": "BALANCE"}});
        test.post("/api/v1/orders", body).await
    };
    let (checked_out, ordered) = tokio::join!(
        concurrently((0..6).flat_map(|_| &users).map(|user| checkout(*user))),
        concurrently(users.iter().map(|user| test.order(*user, product, 1)))
    );
    assert_eq!(count(&checked_out, 200) + count(&ordered, 200), 100);
    assert_eq!(count(&checked_out, 200) + count(&checked_out, 402) + count(&checked_out, 409), 240);
    assert_eq!(test.stock(product).await, 0);
    let balances = join_all(
        users
            .iter()
            .map(async |user| test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"].as_i64().unwrap()),
    );
    let left: i64 = balances.await.into_iter().inspect(|balance| assert!(*balance >= 0)).sum();
    assert_eq!(left, 160_000 - 1_000 * count(&checked_out, 200) as i64);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_checkouts_sell_exactly_the_stock() {
    check_out_more_than_the_stock(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_checkouts_sell_exactly_the_stock_across_partitions() {
    for partitions in MANY {
        check_out_more_than_the_stock(partitions).await;
    }
}

/// One user orders from many devices at once: of three sizes of a shoe, and never more than the limit of the group.
async fn order_more_than_the_limit(partitions: u16) {
    let options = Options { partitions, max_open_orders: 1000, ..Options::default() };
    let test = TestApp::with(options).await;
    let user = test.user(1_000_000).await;
    let mut sizes = Vec::new();
    for size in 0..3 {
        let new = json!({"productName": format!("size {size}"), "price": 10, "stockQuantity": 500, "category": "SHOES",
            "limitPerUser": 7, "limitGroup": "SHOE"});
        sizes.push(test.post("/admin/v1/products", new).await.created()["productId"].as_i64().unwrap());
    }
    let storm = || concurrently((0..300).map(|n| test.order(user, sizes[n % 3], 1)));
    let replies = storm().await;
    assert_eq!((count(&replies, 200), count(&replies, 409)), (7, 293));
    let refused = replies.iter().filter(|reply| reply.status == 409);
    refused.for_each(|reply| reply.refused(409, "PURCHASE_LIMIT_EXCEEDED"));
    // Payments keep the limit, and cancellations give back as many as they are, while new orders come.
    let orders: Vec<i64> =
        replies.iter().filter(|r| r.status == 200).map(|r| r.json()["orderId"].as_i64().unwrap()).collect();
    let paid = concurrently(orders.iter().take(4).map(|order| test.pay(*order, user, "CARD", 10))).await;
    assert_eq!(count(&paid, 200), 4);
    let (cancelled, again) = tokio::join!(
        concurrently(orders.iter().skip(2).map(|order| test.cancel(*order, user))),
        concurrently((0..100).map(|n| test.order(user, sizes[n % 3], 1)))
    );
    assert_eq!(count(&cancelled, 200), 5);
    let rest = storm().await;
    assert_eq!(count(&again, 200) + count(&rest, 200), 5);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_orders_of_a_user_keep_the_limit() {
    order_more_than_the_limit(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_orders_of_a_user_keep_the_limit_across_partitions() {
    order_more_than_the_limit(3).await;
}

async fn issue_more_than_the_coupons(partitions: u16) {
    let test = TestApp::with(Options { partitions, project: true, ..Options::default() }).await;
    let users = test.users(300, 0).await;
    let coupon = test.campaign("FIXED", 1_000, 50).await;
    // Every user sends two requests.
    let replies = concurrently(users.iter().chain(&users).map(|user| test.issue(coupon, *user))).await;
    let places: BTreeSet<i64> =
        replies.iter().filter(|r| r.status == 200).map(|r| r.json()["issueNo"].as_i64().unwrap()).collect();
    assert_eq!(count(&replies, 200), 50);
    assert_eq!(places, (1..=50).collect());
    // A user with a coupon gets INVALID_COUPON, not COUPON_OUT_OF_STOCK.
    let again = concurrently(users.iter().map(|user| test.issue(coupon, *user))).await;
    assert_eq!((count(&again, 400), count(&again, 409)), (50, 250));
    let campaign = test.get(&format!("/admin/v1/coupons/{coupon}")).await.ok();
    assert_eq!((&campaign["issuedQuantity"], &campaign["remainingQuantity"]), (&json!(50), &json!(0)));
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_issues_give_exactly_the_coupons() {
    issue_more_than_the_coupons(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_issues_give_exactly_the_coupons_across_partitions() {
    for partitions in MANY {
        issue_more_than_the_coupons(partitions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_payments_never_overdraw_balance() {
    let test = TestApp::with(Options { max_open_orders: 100, project: true, ..Options::default() }).await;
    let user = test.user(10_000).await;
    let product = test.product(1_000, 1_000).await;
    let mut orders = Vec::new();
    for _ in 0..40 {
        orders.push(test.place(user, product, 1).await);
    }
    let pays = orders.iter().map(|order| test.pay(*order, user, "CARD", 1_000));
    let paid = concurrently(pays).await;
    assert_eq!((count(&paid, 200), count(&paid, 402)), (10, 30), "a balance of 10,000 won pays ten orders of 1,000");
    let (charges, refunds) = tokio::join!(
        concurrently((0..50).map(|_| test.put_charge(user, 100))),
        concurrently(orders.iter().map(|order| test.cancel(*order, user)))
    );
    assert_eq!((count(&charges, 200), count(&refunds, 200)), (50, 10));
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 15_000);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_orders_use_coupon_once() {
    let test = TestApp::with(Options { max_open_orders: 100, ..Options::default() }).await;
    let user = test.user(1_000_000).await;
    let product = test.product(5_000, 1_000).await;
    let coupon = test.campaign("PERCENTAGE", 20, 10).await;
    test.issue(coupon, user).await.ok();
    let order =
        json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 1}], "userCouponId": coupon});
    let replies = concurrently((0..50).map(|_| test.post("/api/v1/orders", order.clone()))).await;
    assert_eq!((count(&replies, 200), count(&replies, 400)), (1, 49));
    test.finish().await;
}

/// Pay, cancel and expiry race for the same orders: the end of each order agrees with its replies.
async fn pay_against_cancel_against_expiry(partitions: u16) {
    let options = Options { partitions, max_open_orders: 1000, ..Options::default() };
    let test = Arc::new(TestApp::with(options).await);
    let user = test.user(1_000_000).await;
    let products = [test.product(100, 1_000).await, test.product(200, 1_000).await, test.product(300, 1_000).await];
    let mut orders = Vec::new();
    for _ in 0..60 {
        let lines: Vec<Value> = products.iter().map(|id| json!({"productId": id, "quantity": 1})).collect();
        let order = test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await.ok();
        orders.push(order["orderId"].as_i64().unwrap());
    }
    test.clock.advance(600_000);
    let sweeping = {
        let test = test.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                test.engine.sweep().await.unwrap();
            }
        })
    };
    let (paid, cancelled) = tokio::join!(
        join_all(orders.iter().map(|order| test.pay(*order, user, "TOSS", 600))),
        join_all(orders.iter().map(|order| test.cancel(*order, user))),
    );
    sweeping.await.unwrap();
    test.engine.sweep().await.unwrap();
    for ((order, paid), cancelled) in orders.iter().zip(paid).zip(cancelled) {
        let order = test.get(&format!("/api/v1/orders/{order}")).await.ok();
        let ended = (order["orderStatus"].as_str().unwrap(), order["closeReason"].as_str());
        match (paid.status.as_u16(), cancelled.status.as_u16()) {
            (200, 200) => assert_eq!(ended, ("CANCELLED", Some("REFUNDED"))),
            (200, 409) => assert_eq!(ended, ("PAID", None)),
            (400, 200) => assert_eq!(ended, ("CANCELLED", Some("CANCELLED_BY_USER"))),
            (400, 409) => assert_eq!(ended, ("CANCELLED", Some("EXPIRED"))),
            other => panic!("{other:?}: {} {}", paid.text, cancelled.text),
        }
    }
    Arc::into_inner(test).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_ends_once_when_closings_race() {
    pay_against_cancel_against_expiry(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_ends_once_when_closings_race_across_partitions() {
    for partitions in MANY {
        pay_against_cancel_against_expiry(partitions).await;
    }
}

/// All operations concurrently, with the projector and the sweeper: no reply is a 500, and the invariants hold.
async fn mixed_load(partitions: u16) {
    let options =
        Options { partitions, project: true, sweep: true, batch: 50, max_open_orders: 5, ..Options::default() };
    let test = Arc::new(TestApp::with(options).await);
    let users = test.users(20, 3_000).await;
    let mut products = Vec::new();
    for stock in [3, 10, 40, 1_000] {
        products.push(test.product(500, stock).await);
    }
    let coupons = [test.campaign("FIXED", 300, 7).await, test.campaign("PERCENTAGE", 50, 15).await];
    let clients = (0..8u64).map(|seed| {
        let (test, users, products) = (test.clone(), users.clone(), products.clone());
        tokio::spawn(async move {
            // xorshift: each client's load follows from its seed.
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = move |below: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % below as u64) as usize
            };
            let mut open: Vec<(i64, i64, i64)> = Vec::new();
            for _ in 0..120 {
                let user = users[random(users.len())];
                let reply = match random(10) {
                    0 => test.put_charge(user, 1 + random(1_000) as i64).await,
                    1 => test.issue(coupons[random(2)], user).await,
                    2..=5 => {
                        let lines: Vec<Value> = (0..=random(2))
                            .map(|_| json!({"productId": products[random(products.len())], "quantity": 1 + random(2)}))
                            .collect();
                        let coupon = if random(3) == 0 { json!(coupons[random(2)]) } else { Value::Null };
                        let mut order = json!({"userId": user, "orderProducts": lines, "userCouponId": coupon});
                        if random(3) == 0 {
                            order["payment"] = json!({"paymentType": "BALANCE"});
                        }
                        let reply = test.post("/api/v1/orders", order).await;
                        if reply.status == 200 {
                            let order = reply.json();
                            open.push((
                                order["orderId"].as_i64().unwrap(),
                                user,
                                order["finalPrice"].as_i64().unwrap(),
                            ));
                        }
                        reply
                    }
                    6..=7 if !open.is_empty() => {
                        let (order, user, price) = open[random(open.len())];
                        test.pay(order, user, "CARD", price).await
                    }
                    8 if !open.is_empty() => {
                        let (order, user, _) = open[random(open.len())];
                        test.cancel(order, user).await
                    }
                    _ => {
                        test.clock.advance(20_000);
                        test.get("/api/v1/products/popular?sortBy=weekly").await
                    }
                };
                assert!(reply.status.as_u16() < 500, "{} {}", reply.status, reply.text);
            }
        })
    });
    for client in join_all(clients).await {
        client.unwrap();
    }
    Arc::into_inner(test).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mixed_load_keeps_invariants() {
    mixed_load(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mixed_load_keeps_invariants_across_partitions() {
    for partitions in MANY {
        mixed_load(partitions).await;
    }
}

/// Many requests refund the last units of a line at once: as many win as there are units, and the money is exact.
async fn refund_more_than_the_units(partitions: u16) {
    let test = TestApp::with(Options { partitions, ..Options::default() }).await;
    let user = test.user(1_000_000).await;
    let (shoe, sock) = (test.product(10_007, 20).await, test.product(13, 20).await);
    let lines = json!([{"productId": shoe, "quantity": 5}, {"productId": sock, "quantity": 3}]);
    let placed = test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await.ok();
    let (order, price) = (placed["orderId"].as_i64().unwrap(), placed["finalPrice"].as_i64().unwrap());
    test.pay(order, user, "CARD", price).await.ok();
    let refunds = concurrently((0..40).map(async |_| test.refund_lines(order, user, &[(shoe, 1)]).await)).await;
    assert_eq!((count(&refunds, 200), count(&refunds, 400)), (5, 35));
    let shown = test.get(&format!("/api/v1/orders/{order}")).await.ok();
    assert_eq!((&shown["orderStatus"], &shown["refundedPrice"]), (&json!("PAID"), &json!(5 * 10_007)));
    // The rest as lines and as a whole: one closes the order.
    let (lines, wholes) = tokio::join!(
        concurrently((0..10).map(async |_| test.refund_lines(order, user, &[(sock, 3)]).await)),
        concurrently((0..10).map(|_| test.cancel(order, user)))
    );
    assert_eq!(count(&lines, 200) + count(&wholes, 200), 1);
    lines
        .iter()
        .chain(&wholes)
        .filter(|reply| reply.status != 200)
        .for_each(|r| r.refused(409, "ORDER_ALREADY_CLOSED"));
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1_000_000);
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_refunds_of_a_line_refund_its_units_once() {
    for partitions in [1, 3] {
        refund_more_than_the_units(partitions).await;
    }
}

/// Refunds of parts race payments, cancellations and the expiry of the same orders: each order ends in one way.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refunds_race_payment_and_expiry_without_half_effects() {
    for partitions in [1, 3] {
        let options = Options { partitions, max_open_orders: 1000, ..Options::default() };
        let test = TestApp::with(options).await;
        let (user, product) = (test.user(1_000_000).await, test.product(100, 1_000).await);
        let mut orders = Vec::new();
        for _ in 0..30 {
            orders.push(test.place(user, product, 3).await);
        }
        test.clock.advance(600_000);
        let (paid, refunds, cancelled, swept) = tokio::join!(
            concurrently(orders.iter().map(|order| test.pay(*order, user, "CARD", 300))),
            concurrently(orders.iter().map(async |order| test.refund_lines(*order, user, &[(product, 1)]).await)),
            concurrently(orders.iter().skip(20).map(|order| test.cancel(*order, user))),
            test.engine.sweep()
        );
        swept.unwrap();
        let statuses = |replies: &[Reply]| replies.iter().map(|reply| reply.status.as_u16()).collect::<BTreeSet<_>>();
        for replies in [&paid, &refunds, &cancelled] {
            assert!(statuses(replies).is_subset(&BTreeSet::from([200, 400, 409])), "{:?}", statuses(replies));
        }
        let mut sold = 0;
        for order in &orders {
            let shown = test.get(&format!("/api/v1/orders/{order}")).await.ok();
            let refunded = shown["orderProducts"][0]["refundedQuantity"].as_i64().unwrap();
            assert_eq!(shown["refundedPrice"], refunded * 100, "{shown}");
            sold += if shown["orderStatus"] == "PAID" { 3 - refunded } else { 0 };
        }
        assert_eq!(test.stock(product).await, 1_000 - sold);
        assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1_000_000 - sold * 100);
        test.finish().await;
    }
}
