//! Holds expire when due and not before; their stock, their coupon and their open order are released exactly once, by
//! any number of sweepers and under any race.

use std::collections::BTreeMap;

use firstcome::{
    app::App,
    model::{
        CloseReason,
        event::{self, Body},
    },
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{
    harness::{Options, TestApp, until},
    outbox,
};

async fn order(test: &TestApp, order: i64, user: i64) -> Value {
    test.get(&format!("/api/v1/orders/{order}?userId={user}")).await.ok()
}

/// The reasons of every closing of each order, from the events of the outbox.
async fn closed(test: &TestApp) -> BTreeMap<i64, Vec<CloseReason>> {
    let mut closed: BTreeMap<i64, Vec<CloseReason>> = BTreeMap::new();
    for (_, fields) in outbox::entries(&mut test.raw().await, 0).await {
        for decoded in event::decode(&fields) {
            if let Body::OrderClosed(event) = decoded.event.unwrap().body {
                closed.entry(event.order.get()).or_default().push(event.reason);
            }
        }
    }
    closed
}

#[tokio::test]
async fn hold_expires_when_due_and_not_before() {
    let test = TestApp::with(Options { hold_seconds: 600, max_open_orders: 2, ..Options::default() }).await;
    let (user, product) = (test.user(10_000).await, test.product(100, 5).await);
    let coupon = test.campaign("FIXED", 10, 5).await;
    test.issue(coupon, user).await.ok();
    let lines = json!([{"productId": product, "quantity": 3}]);
    let place = json!({"userId": user, "orderProducts": lines, "userCouponId": coupon});
    let first = test.post("/api/v1/orders", place.clone()).await.ok()["orderId"].as_i64().unwrap();
    test.clock.advance(1_000);
    let second = test.place(user, product, 1).await;
    test.order(user, product, 1).await.refused(429, "TOO_MANY_REQUESTS");
    let shown = order(&test, first, user).await;
    assert_eq!((&shown["orderStatus"], &shown["expiresAt"]), (&json!("PENDING"), &json!("2026-03-02T14:10:00")));

    // One millisecond before it is due.
    test.clock.advance(598_999);
    let before = test.snapshot().await;
    for _ in 0..3 {
        assert_eq!(test.engine.sweep().await.unwrap(), 0);
    }
    assert!(before == test.snapshot().await, "a sweep changed the state before the order was due");

    test.clock.advance(1);
    assert_eq!(test.engine.sweep().await.unwrap(), 1);
    let shown = order(&test, first, user).await;
    assert_eq!((&shown["orderStatus"], &shown["closeReason"]), (&json!("CANCELLED"), &json!("EXPIRED")));
    assert_eq!(shown["closedAt"], "2026-03-02T14:10:00");
    assert_eq!(order(&test, second, user).await["orderStatus"], "PENDING");
    // The stock, the coupon and the open order are released once.
    assert_eq!(test.stock(product).await, 4);
    let coupons = test.get(&format!("/api/v1/coupons/{user}")).await.ok();
    assert_eq!((&coupons[0]["couponStatus"], &coupons[0]["heldByOrderId"]), (&json!("AVAILABLE"), &Value::Null));
    let before = test.snapshot().await;
    assert_eq!(test.engine.sweep().await.unwrap(), 0);
    assert!(before == test.snapshot().await, "a second sweep changed the state");
    // The expired order can't be paid or cancelled; its stock and its coupon are available again.
    test.pay(first, user, "CARD", 290).await.refused(400, "INVALID_PAYMENT_REQUEST");
    test.cancel(first, user).await.refused(409, "ORDER_ALREADY_CLOSED");
    let third = test.post("/api/v1/orders", place).await.ok()["orderId"].as_i64().unwrap();
    test.order(user, product, 1).await.refused(429, "TOO_MANY_REQUESTS");
    test.pay(third, user, "CARD", 290).await.ok();
    test.clock.advance(600_000);
    assert_eq!(test.engine.sweep().await.unwrap(), 1, "the second order expires and the paid third does not");
    assert_eq!(test.stock(product).await, 2);
    test.finish().await;
}

#[tokio::test]
async fn order_due_but_unswept_can_be_paid() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(10_000).await, test.product(100, 5).await);
    let placed = test.place(user, product, 1).await;
    test.clock.advance(700_000);
    test.pay(placed, user, "CARD", 100).await.ok();
    assert_eq!(test.engine.sweep().await.unwrap(), 0);
    assert_eq!(order(&test, placed, user).await["orderStatus"], "PAID");
    test.finish().await;
}

/// Four sweepers, and more due orders than one sweep ends.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_sweepers_expire_each_order_once() {
    const ORDERS: usize = 700;
    let test = TestApp::with(Options { max_open_orders: 1_000, ..Options::default() }).await;
    let product = test.product(10, ORDERS as i64).await;
    let mut users = Vec::new();
    for _ in 0..7 {
        users.push(test.user(1_000_000).await);
    }
    let shop = &test;
    for user in &users {
        let placed = join_all((0..ORDERS / 7).map(|_| shop.order(*user, product, 1))).await;
        placed.into_iter().for_each(|reply| drop(reply.ok()));
    }
    test.order(users[0], product, 1).await.refused(409, "SOLD_OUT");
    let others: Vec<App> =
        join_all((0..3).map(|_| shop.open_instance(&shop.options))).await.into_iter().map(Result::unwrap).collect();
    test.clock.advance(600_000);
    let engines = others.iter().map(|app| app.engine.clone()).chain([test.engine.clone()]);
    let sweeps = engines.map(|engine| tokio::spawn(async move { engine.sweep().await.unwrap() }));
    let mut expired: usize = 0;
    for sweep in sweeps.collect::<Vec<_>>() {
        expired += sweep.await.unwrap();
    }
    // Every sweeper may stop while another still ends orders; one more sweep ends the rest.
    expired += test.engine.sweep().await.unwrap();
    assert_eq!(expired, ORDERS, "each order is ended and counted by one sweeper");
    let closed = closed(&test).await;
    assert_eq!(closed.len(), ORDERS);
    assert!(closed.values().all(|reasons| *reasons == [CloseReason::Expired]), "{closed:?}");
    assert_eq!(test.stock(product).await, ORDERS as i64);
    for app in others {
        app.db.close().await.unwrap();
    }
    test.finish().await;
}

/// Concurrent expiry, payment and cancel of an order: its replies and its closings agree.
#[tokio::test(flavor = "multi_thread")]
async fn order_ends_once_when_expiry_races_pay_and_cancel() {
    const ORDERS: i64 = 120;
    let test = TestApp::with(Options { max_open_orders: 1_000, ..Options::default() }).await;
    let (user, product) = (test.user(1_000_000).await, test.product(10, ORDERS).await);
    let shop = &test;
    let placed = join_all((0..ORDERS).map(|_| shop.order(user, product, 1))).await;
    let orders: Vec<i64> = placed.into_iter().map(|reply| reply.ok()["orderId"].as_i64().unwrap()).collect();
    test.clock.advance(600_000);
    let sweeps = (0..3).map(|_| {
        let engine = test.engine.clone();
        tokio::spawn(async move { engine.sweep().await.unwrap() })
    });
    let sweeps: Vec<_> = sweeps.collect();
    let tries = join_all(orders.iter().enumerate().map(|(n, order)| async move {
        let order = *order;
        match n % 3 {
            0 => (order, Some(shop.pay(order, user, "CARD", 10).await), None),
            1 => (order, None, Some(shop.cancel(order, user).await)),
            _ => {
                let (paid, cancelled) = tokio::join!(shop.pay(order, user, "TOSS", 10), shop.cancel(order, user));
                (order, Some(paid), Some(cancelled))
            }
        }
    }))
    .await;
    for sweep in sweeps {
        sweep.await.unwrap();
    }
    test.engine.sweep().await.unwrap();
    let closed = closed(&test).await;
    let mut spent = 0;
    for (id, paid, cancelled) in &tries {
        let reasons = closed.get(id).map(Vec::as_slice).unwrap_or_default();
        assert!(reasons.len() <= 1, "order {id} was closed as {reasons:?}");
        let was_paid = paid.as_ref().is_some_and(|reply| reply.status == 200);
        let was_cancelled = cancelled.as_ref().is_some_and(|reply| reply.status == 200);
        let expected: &[CloseReason] = match (was_paid, was_cancelled) {
            (true, true) => &[CloseReason::Refunded],
            (true, false) => &[],
            (false, true) => &[CloseReason::CancelledByUser],
            (false, false) => &[CloseReason::Expired],
        };
        assert_eq!(reasons, expected, "order {id}: {paid:?} {cancelled:?}");
        spent += i64::from(was_paid && !was_cancelled);
        // A request that lost the race is refused.
        if let Some(reply) = paid.as_ref().filter(|reply| reply.status != 200) {
            reply.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        if let Some(reply) = cancelled.as_ref().filter(|reply| reply.status != 200) {
            reply.refused(409, "ORDER_ALREADY_CLOSED");
        }
        let status = order(&test, *id, user).await["orderStatus"].as_str().unwrap().to_owned();
        assert_eq!(status, if was_paid && !was_cancelled { "PAID" } else { "CANCELLED" });
    }
    assert_eq!(test.stock(product).await, ORDERS - spent);
    assert_eq!(
        test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"],
        1_000_000 - 10 * spent,
        "each paid order is debited once"
    );
    test.finish().await;
}

#[tokio::test]
async fn sweeper_expires_order_in_background() {
    let options = Options { clock: None, hold_seconds: 1, sweep: true, ..Options::default() };
    let test = TestApp::with(options).await;
    let (user, product) = (test.user(10_000).await, test.product(100, 5).await);
    let placed = test.place(user, product, 5).await;
    test.order(user, product, 1).await.refused(409, "SOLD_OUT");
    let shown = until("the order is CANCELLED", async || {
        let shown = order(&test, placed, user).await;
        (shown["orderStatus"] == "CANCELLED").then_some(shown)
    })
    .await;
    assert_eq!(shown["closeReason"], "EXPIRED");
    assert!(shown["closedAt"].as_str().unwrap() >= shown["expiresAt"].as_str().unwrap(), "{shown}");
    assert_eq!(test.stock(product).await, 5);
    test.finish().await;
}

/// Orders become due while Redis hangs: they stay due, and a later sweep ends them.
#[tokio::test]
async fn order_stays_due_when_sweep_fails() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(10_000).await, test.product(100, 5).await);
    let placed = test.place(user, product, 5).await;
    test.clock.advance(600_000);
    let mut redis = test.raw().await;
    let _: i64 = redis::cmd("HSET").arg("{p0}:meta").arg("frozen").arg(1).query_async(&mut redis).await.unwrap();
    let before = test.snapshot().await;
    for _ in 0..2 {
        assert!(test.engine.sweep().await.is_err());
    }
    assert!(before == test.snapshot().await, "a failed sweep changed the state");
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").query_async(&mut redis).await.unwrap();
    test.engine.check().await;
    assert_eq!(test.engine.sweep().await.unwrap(), 1);
    assert_eq!(order(&test, placed, user).await["closeReason"], "EXPIRED");
    test.finish().await;
}

/// With several partitions the units go back on sale in the partition that sold them.
#[tokio::test]
async fn units_of_other_partitions_back_on_sale_when_order_expires() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    let user = test.user(10_000).await;
    let products = [test.product(100, 5).await, test.product(10, 5).await, test.product(1, 5).await];
    let lines: Vec<Value> = products.iter().map(|id| json!({"productId": id, "quantity": 2})).collect();
    let place = json!({"userId": user, "orderProducts": lines});
    let placed = test.post("/api/v1/orders", place).await.ok()["orderId"].as_i64().unwrap();
    for product in products {
        assert_eq!(test.stock(product).await, 3);
    }
    test.clock.advance(599_999);
    assert_eq!(test.engine.sweep().await.unwrap(), 0);
    test.clock.advance(1);
    assert_eq!(test.engine.sweep().await.unwrap(), 1);
    for _ in 0..3 {
        for product in products {
            assert_eq!(test.stock(product).await, 5);
        }
        assert_eq!(order(&test, placed, user).await["closeReason"], "EXPIRED");
        test.clock.advance(120_000);
        assert_eq!(test.engine.sweep().await.unwrap(), 0);
        test.drain().await;
    }
    test.finish().await;
}
