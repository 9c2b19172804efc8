//! 주문: placement (all lines or none), prices, holds, detail, cancel, refund and expiry.

use serde_json::{Value, json};

use crate::support::{
    api_kit::*,
    fake_gateway::FakeGateway,
    harness::{Options, TestApp, gateways},
};

const HOLD_MS: i64 = 600_000;

async fn refused(test: &TestApp, order: Value, status: u16, code: &str) {
    post(test, "/api/v1/orders", order).await.refused(status, code);
}

#[tokio::test]
async fn order_placed_holds_stock() {
    on_1_and_3(async |test| {
        let user = test.user(1_000_000).await;
        let (shoes, top, outer) =
            (test.product(49_900, 10).await, test.product(10, 5).await, test.product(1_000, 1).await);
        let lines = [(shoes, 2), (outer, 1), (top, 1), (shoes, 1), (top, 4)];
        let order = post(test, "/api/v1/orders", order_of(user, &lines, None)).await.ok();
        let placed_at = now(test);
        fields(&order, "orderId finalPrice orderedAt");
        assert_eq!((&order["finalPrice"], &order["orderedAt"]), (&json!(150_750), &json!(placed_at)));
        assert_eq!((stock(test, shoes).await, stock(test, top).await, stock(test, outer).await), (7, 0, 0));
        assert_eq!(balance(test, user).await, 1_000_000, "held, not paid");

        let order = id(&order, "orderId");
        let mut shown = detail(test, order).await;
        let mut lines = shown["orderProducts"].take();
        lines.as_array_mut().unwrap().sort_by_key(|line| id(line, "productId"));
        let line =
            |product: i64, quantity: i64, price: i64| json!({"productId": product, "quantity": quantity, "price": price, "refundedQuantity": 0});
        assert_eq!(lines, json!([line(shoes, 3, 49_900), line(top, 5, 10), line(outer, 1, 1_000)]), "lines of one product are summed");
        let expected = json!({"orderId": order, "userId": user, "orderStatus": "PENDING", "orderProducts": null,
            "totalPrice": 150_750, "discountPrice": 0, "finalPrice": 150_750, "refundedPrice": 0, "userCouponId": null,
            "orderedAt": placed_at, "expiresAt": after(test, HOLD_MS), "paidAt": null, "paymentId": null,
            "paymentType": null, "receipt": null, "closedAt": null, "closeReason": null});
        assert_eq!(shown, expected);

        // `userId` restricts the read to the orders of this user.
        let path = format!("/api/v1/orders/{order}");
        assert_eq!(get(test, &format!("{path}?userId={user}")).await.ok()["orderId"], order);
        get(test, &format!("{path}?userId={}", user + 1)).await.refused(404, "ORDER_NOT_FOUND");
        get(test, &format!("/api/v1/orders/{}?userId={user}", order + 3)).await.refused(404, "ORDER_NOT_FOUND");
        for query in ["userId=0", "userId=abc", "userId=", "userId=-1", "userId=9007199254740992"] {
            get(test, &format!("{path}?{query}")).await.refused(400, "INVALID_REQUEST");
        }
        let null_coupon = json!({"userId": user, "orderProducts": [line(shoes, 1, 7)], "userCouponId": null});
        assert_eq!(test.post("/api/v1/orders", null_coupon).await.ok()["finalPrice"], 49_900, "the client's price is ignored");
    })
    .await;
}

#[tokio::test]
async fn order_refused_when_one_line_short() {
    on_1_and_3(async |test| {
        let user = test.user(10_000_000).await;
        let (many, few, none) = (test.product(10, 100).await, test.product(10, 4).await, test.product(10, 0).await);
        let before = effects(test).await;
        // With several partitions a refusal leaves tombstones of the holds that it released.
        let nothing_held = async || match test.options.partitions {
            1 => assert_eq!(effects(test).await, before),
            _ => assert_eq!((stock(test, many).await, stock(test, few).await), (100, 4)),
        };
        for (lines, status, code) in [
            (vec![(many, 1), (few, 5)], 409, "INSUFFICIENT_STOCK"),
            (vec![(few, 5), (many, 1)], 409, "INSUFFICIENT_STOCK"),
            (vec![(few, 2), (many, 1), (few, 3)], 409, "INSUFFICIENT_STOCK"),
            (vec![(many, 101)], 409, "INSUFFICIENT_STOCK"),
            (vec![(many, 1), (none, 1)], 409, "SOLD_OUT"),
            (vec![(none, 10_000)], 409, "SOLD_OUT"),
            (vec![(many, 1), (1_000_000, 1)], 404, "PRODUCT_NOT_FOUND"),
            (vec![(1_000_000, 1), (none, 1)], 404, "PRODUCT_NOT_FOUND"),
            (vec![(none, 1), (1_000_000, 1)], 404, "PRODUCT_NOT_FOUND"),
            (vec![], 400, "INVALID_ORDER"),
            (vec![(many, 0)], 400, "INVALID_ORDER"),
            (vec![(many, 1), (few, -1)], 400, "INVALID_ORDER"),
            (vec![(many, 10_001)], 400, "INVALID_ORDER"),
            (vec![(many, 10_000), (many, 1)], 400, "INVALID_ORDER"),
            (vec![(many, 1); 101], 400, "INVALID_ORDER"),
        ] {
            refused(test, order_of(user, &lines, None), status, code).await;
        }
        nothing_held().await;
        // The user is looked up before stock.
        for lines in [vec![(many, 1)], vec![(none, 1)], vec![(1_000_000, 1)]] {
            refused(test, order_of(1_000_000, &lines, None), 404, "USER_NOT_FOUND").await;
        }
        refused(test, order_of(1_000_000, &[], None), 400, "INVALID_ORDER").await;
        nothing_held().await;

        // A product whose last units are held is sold out.
        let order = placed(test, user, &[(few, 2); 2], None).await;
        refused(test, order_of(user, &[(many, 1), (few, 1)], None), 409, "SOLD_OUT").await;
        cancel(test, order, user).await.ok();
        placed(test, user, &[(few, 3)], None).await;
        refused(test, order_of(user, &[(few, 2)], None), 409, "INSUFFICIENT_STOCK").await;
        placed(test, user, &vec![(many, 1); 100], None).await;
        assert_eq!(stock(test, many).await, 0);
    })
    .await;
}

#[tokio::test]
async fn order_refused_when_balance_short() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(2_999).await, test.product(1_000, 10).await);
        let campaign = campaign_with(test, json!({"discountAmount": 1})).await;
        issue(test, campaign, user).await.ok();
        refused(test, order_of(user, &[(product, 3)], None), 402, "INSUFFICIENT_BALANCE").await;
        assert_eq!(stock(test, product).await, 10);
        test.drain().await;
        assert_eq!(get(test, "/admin/v1/orders").await.ok()["totalElements"], 0);
        // The balance has to cover the price after the discount.
        placed(test, user, &[(product, 3)], Some(campaign)).await;
        assert_eq!(stock(test, product).await, 7);
    })
    .await;
}

#[tokio::test]
async fn order_accepted_when_gateway_covers_short_balance() {
    let gateway = FakeGateway::start().await;
    let options = Options { gateway: gateways(&[("TOSS", gateway.url())]), ..Options::default() };
    let test = TestApp::with(options).await;
    let (user, product) = (test.user(0).await, test.product(1_000_000_000_000, 10_000).await);
    // The highest possible price, then one unit more.
    let order = order_of(user, &[(product, 9_007)], None);
    let order = post(&test, "/api/v1/orders", order).await.ok();
    assert_eq!(order["finalPrice"], 9_007_000_000_000_000_i64);
    cancel(&test, id(&order, "orderId"), user).await.ok();
    refused(&test, order_of(user, &[(product, 9_008)], None), 400, "INVALID_ORDER").await;

    let order = placed(&test, user, &[(product, 1)], None).await;
    let body = json!({"orderId": order, "userId": user, "paymentType": "TOSS", "amount": 1_000_000_000_000_i64});
    let paid = post(&test, "/api/v1/payments", body).await.ok();
    assert_eq!(gateway.taken(paid["receipt"].as_str().unwrap()), Some(1_000_000_000_000));
    assert_eq!(get(&test, &format!("/api/v1/balances/{user}/history")).await.ok(), json!([]));
    assert!(gateway.faults().is_empty());
    test.finish().await;
}

#[tokio::test]
async fn order_refused_when_total_overflows() {
    on_1_and_3(async |test| {
        let user = test.user(1_000_000_000_000).await;
        let mut products = Vec::new();
        for _ in 0..4 {
            products.push((test.product(1_000_000_000_000, 1_000_000).await, 10_000));
        }
        for lines in 1..=4 {
            refused(test, order_of(user, &products[..lines], None), 400, "INVALID_ORDER").await;
        }
        let halves: Vec<(i64, i64)> = products.iter().map(|(product, _)| (*product, 2_300)).collect();
        refused(test, order_of(user, &halves, None), 400, "INVALID_ORDER").await;
        // The total is within the bounds, but exceeds the balance.
        refused(test, order_of(user, &halves[..3], None), 402, "INSUFFICIENT_BALANCE").await;
        for (product, _) in products {
            assert_eq!(stock(test, product).await, 1_000_000);
        }
    })
    .await;
}

#[tokio::test]
async fn order_refused_when_user_has_too_many_open() {
    let test = TestApp::with(Options { max_open_orders: 2, ..Options::default() }).await;
    let (user, other, product) = (test.user(1_000).await, test.user(1_000).await, test.product(10, 10).await);
    let first = placed(&test, user, &[(product, 1)], None).await;
    let second = placed(&test, user, &[(product, 1)], None).await;
    let before = effects(&test).await;
    let one_more = post(&test, "/api/v1/orders", order_of(user, &[(product, 1)], None)).await;
    one_more.refused(429, "TOO_MANY_REQUESTS");
    assert!(one_more.headers.contains_key("retry-after"));
    assert_eq!(effects(&test).await, before);
    placed(&test, other, &[(product, 1)], None).await;
    // Paid, cancelled and expired orders are not open.
    pay(&test, first, user, 10).await.ok();
    let third = placed(&test, user, &[(product, 1)], None).await;
    cancel(&test, second, user).await.ok();
    placed(&test, user, &[(product, 1)], None).await;
    refused(&test, order_of(user, &[(product, 1)], None), 429, "TOO_MANY_REQUESTS").await;
    test.clock.advance(HOLD_MS);
    assert_eq!(test.engine.sweep().await.unwrap(), 3);
    assert_eq!(detail(&test, third).await["closeReason"], "EXPIRED");
    placed(&test, user, &[(product, 1)], None).await;
    test.finish().await;
}

#[tokio::test]
async fn order_keeps_price_when_product_changes() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(100_000).await, test.product(1_000, 10).await);
        let order = placed(test, user, &[(product, 2)], None).await;
        patch(test, &format!("/admin/v1/products/{product}"), json!({"price": 5_000})).await.ok();
        let shown = detail(test, order).await;
        assert_eq!(
            shown["orderProducts"],
            json!([{"productId": product, "quantity": 2, "price": 1_000, "refundedQuantity": 0}])
        );
        pay(test, order, user, 10_000).await.refused(400, "INVALID_PAYMENT_REQUEST");
        pay(test, order, user, 2_000).await.ok();
        assert_eq!(get(test, "/api/v1/products/popular").await.ok()[0]["totalSalesPrice"], 2_000);
        let dearer = post(test, "/api/v1/orders", order_of(user, &[(product, 2)], None)).await.ok();
        assert_eq!(dearer["finalPrice"], 10_000);
    })
    .await;
}

/// The fields of an order's detail that show its end.
fn end(order: &Value) -> Value {
    json!([order["orderStatus"], order["closeReason"], order["closedAt"], order["paidAt"]])
}

#[tokio::test]
async fn order_pending_cancelled_once() {
    on_1_and_3(async |test| {
        let (user, other, product) = (test.user(5_000).await, test.user(0).await, test.product(1_000, 3).await);
        let campaign = campaign_with(test, json!({"discountAmount": 1})).await;
        issue(test, campaign, user).await.ok();
        let order = placed(test, user, &[(product, 3)], Some(campaign)).await;
        test.clock.advance(1_000);
        for (order, user) in [(order, other), (order, 1_000_000), (order + 3, user)] {
            cancel(test, order, user).await.refused(404, "ORDER_NOT_FOUND");
        }
        assert_eq!(stock(test, product).await, 0);
        let cancelled = cancel(test, order, user).await.ok();
        assert_eq!(end(&cancelled), json!(["CANCELLED", "CANCELLED_BY_USER", now(test), null]));
        assert_eq!(cancelled, detail(test, order).await);
        assert_eq!((stock(test, product).await, balance(test, user).await), (3, 5_000));
        assert_eq!(coupon(test, user, campaign).await["couponStatus"], "AVAILABLE");
        let before = effects(test).await;
        cancel(test, order, user).await.refused(409, "ORDER_ALREADY_CLOSED");
        cancel(test, order, other).await.refused(404, "ORDER_NOT_FOUND");
        assert_eq!(effects(test).await, before);
    })
    .await;
}

#[tokio::test]
async fn order_paid_refunded_once() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(5_000).await, test.product(1_000, 3).await);
        let terms = json!({"discountAmount": 1, "expiredAt": after(test, 100_000_000)});
        let campaign = campaign_with(test, terms).await;
        issue(test, campaign, user).await.ok();
        let order = placed(test, user, &[(product, 3)], Some(campaign)).await;
        let paid = pay(test, order, user, 2_999).await.ok();
        let paid_at = now(test);
        assert_eq!(end(&detail(test, order).await), json!(["PAID", null, null, paid_at]));
        test.clock.advance(90_000_000);
        let refunded = cancel(test, order, user).await.ok();
        assert_eq!(end(&refunded), json!(["CANCELLED", "REFUNDED", now(test), paid_at]));
        assert_eq!(refunded, detail(test, order).await);
        for field in ["paymentId", "paymentType", "receipt"] {
            assert_eq!(refunded[field], paid[field], "a refunded order shows its payment");
        }
        assert_eq!((stock(test, product).await, balance(test, user).await), (3, 5_000));
        assert_eq!(coupon(test, user, campaign).await["couponStatus"], "AVAILABLE");
        let before = effects(test).await;
        cancel(test, order, user).await.refused(409, "ORDER_ALREADY_CLOSED");
        pay(test, order, user, 2_999).await.refused(400, "INVALID_PAYMENT_REQUEST");
        assert_eq!(effects(test).await, before);
    })
    .await;
}

#[tokio::test]
async fn order_unpaid_expires() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(5_000).await, test.product(1_000, 3).await);
        let campaign = campaign_with(test, json!({})).await;
        issue(test, campaign, user).await.ok();
        let order = placed(test, user, &[(product, 2)], Some(campaign)).await;
        test.clock.advance(HOLD_MS - 1);
        assert_eq!(test.engine.sweep().await.unwrap(), 0);
        assert_eq!(detail(test, order).await["orderStatus"], "PENDING");
        test.clock.advance(1);
        let (due, expires) = (now(test), detail(test, order).await["expiresAt"].clone());
        assert_eq!(expires, due);
        assert_eq!(test.engine.sweep().await.unwrap(), 1);
        assert_eq!(test.engine.sweep().await.unwrap(), 0);
        assert_eq!(end(&detail(test, order).await), json!(["CANCELLED", "EXPIRED", due, null]));
        assert_eq!(stock(test, product).await, 3);
        assert_eq!(coupon(test, user, campaign).await["couponStatus"], "AVAILABLE");
        pay(test, order, user, 1_000).await.refused(400, "INVALID_PAYMENT_REQUEST");
        cancel(test, order, user).await.refused(409, "ORDER_ALREADY_CLOSED");
        // A paid order does not expire.
        bought(test, user, product, 1).await;
        test.clock.advance(10 * HOLD_MS);
        assert_eq!(test.engine.sweep().await.unwrap(), 0);
        assert_eq!(stock(test, product).await, 2);
    })
    .await;
}
