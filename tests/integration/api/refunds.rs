//! Refunds in parts, by users and operators, and every refusal.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    api_kit::*,
    harness::{Reply, TestApp},
    invariants,
};

/// How long a user may refund an order, ms.
const REFUND_WINDOW_MS: i64 = 604_800_000;

async fn refund_lines(test: &TestApp, order: i64, user: i64, lines: &[(i64, i64)]) -> Reply {
    let line = |(product, quantity): &(i64, i64)| json!({"productId": product, "quantity": quantity});
    let lines: Vec<Value> = lines.iter().map(line).collect();
    post(test, &format!("/api/v1/orders/{order}/cancel"), json!({"userId": user, "lines": lines})).await
}

async fn refund(test: &TestApp, order: i64, body: Value) -> Reply {
    post(test, &format!("/admin/v1/orders/{order}/refund"), body).await
}

/// A paid order of 3 and 2 units at 10,001 and 333 won, with a coupon of 1,000 won.
struct Bought {
    user: i64,
    order: i64,
    dear: i64,
    cheap: i64,
    coupon: i64,
    paid: i64,
}

async fn bought(test: &TestApp) -> Bought {
    let (user, dear, cheap) = (test.user(100_000).await, test.product(10_001, 10).await, test.product(333, 10).await);
    let coupon = test.campaign("FIXED", 1_000, 5).await;
    test.issue(coupon, user).await.ok();
    let lines = json!([{"productId": dear, "quantity": 3}, {"productId": cheap, "quantity": 2}]);
    let order = json!({"userId": user, "orderProducts": lines, "userCouponId": coupon});
    let placed = post(test, "/api/v1/orders", order).await.ok();
    let (order, paid) = (placed["orderId"].as_i64().unwrap(), placed["finalPrice"].as_i64().unwrap());
    test.pay(order, user, "CARD", paid).await.ok();
    Bought { user, order, dear, cheap, coupon, paid }
}

async fn coupon_status(test: &TestApp, user: i64) -> Value {
    get(test, &format!("/api/v1/coupons/{user}")).await.ok()[0]["couponStatus"].clone()
}

fn refunded(order: &Value) -> (Value, Vec<i64>, i64) {
    let lines = order["orderProducts"].as_array().unwrap();
    let units = lines.iter().map(|line| line["refundedQuantity"].as_i64().unwrap()).collect();
    (order["orderStatus"].clone(), units, order["refundedPrice"].as_i64().unwrap())
}

#[tokio::test]
async fn order_refunded_in_parts_until_nothing_left() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, cheap, paid, .. } = bought(test).await;
        assert_eq!(paid, 29_669);
        let (total, mut given_back) = (30_669, 0);
        // The share of the cumulative value, rounded down.
        for (lines, value, units) in [
            (vec![(cheap, 1)], 333, vec![0, 1]),
            (vec![(dear, 1), (cheap, 1)], 10_667, vec![1, 2]),
            (vec![(dear, 1)], 20_668, vec![2, 2]),
        ] {
            let shown = refund_lines(test, order, user, &lines).await.ok();
            given_back = paid * value / total;
            assert_eq!(refunded(&shown), (json!("PAID"), units, given_back));
            assert_eq!(get(test, &format!("/api/v1/orders/{order}")).await.ok(), shown);
            assert_eq!(balance(test, user).await, 100_000 - paid + given_back);
            assert_eq!(coupon_status(test, user).await, "USED");
        }
        assert_eq!((test.stock(dear).await, test.stock(cheap).await), (9, 10));
        let popular = get(test, "/api/v1/products/popular").await.ok();
        assert_eq!(popular[0]["salesCount"], 1);
        assert_eq!((popular[0]["totalSalesPrice"].clone(), popular.as_array().unwrap().len()), (json!(10_001), 1));
        // The last part closes the order, and the coupon comes back.
        let shown = refund_lines(test, order, user, &[(dear, 1)]).await.ok();
        assert_eq!(refunded(&shown), (json!("CANCELLED"), vec![3, 2], paid));
        assert_eq!(shown["closeReason"], "REFUNDED");
        assert_eq!((balance(test, user).await, coupon_status(test, user).await), (100_000, json!("AVAILABLE")));
        let history = get(test, &format!("/api/v1/balances/{user}/history")).await.ok();
        let refunds: Vec<i64> = history
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| entry["transactionType"] == "REFUND")
            .map(|entry| entry["amount"].as_i64().unwrap())
            .collect();
        assert_eq!((refunds.len(), refunds.iter().sum::<i64>()), (4, paid));
        assert!(given_back < paid);
        refund_lines(test, order, user, &[(dear, 1)]).await.refused(409, "ORDER_ALREADY_CLOSED");
        test.drain().await;
        let listed = get(test, "/admin/v1/orders?status=CANCELLED").await.ok();
        assert_eq!(refunded(&listed["content"][0]), (json!("CANCELLED"), vec![3, 2], paid));
    })
    .await;
}

#[tokio::test]
async fn rest_of_order_refunded_after_part() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, paid, .. } = bought(test).await;
        refund_lines(test, order, user, &[(dear, 2)]).await.ok();
        test.drain().await;
        test.expire_evicted().await;
        // It is in PostgreSQL only.
        let shown = get(test, &format!("/api/v1/orders/{order}")).await.ok();
        assert_eq!(refunded(&shown), (json!("PAID"), vec![2, 0], paid * 20_002 / 30_669));
        let shown = cancel(test, order, user).await.ok();
        assert_eq!(refunded(&shown), (json!("CANCELLED"), vec![3, 2], paid));
        assert_eq!((balance(test, user).await, test.stock(dear).await), (100_000, 10));
    })
    .await;
}

#[tokio::test]
async fn part_of_archived_order_refunded_from_postgres() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, cheap, paid, .. } = bought(test).await;
        for (product, units) in [(dear, vec![1, 0]), (cheap, vec![1, 1])] {
            test.drain().await;
            assert!(test.expire_evicted().await.iter().any(|key| key.ends_with(&format!(":order:{order}"))));
            let shown = refund_lines(test, order, user, &[(product, 1)]).await.ok();
            assert_eq!(refunded(&shown).1, units);
        }
        let shown = get(test, &format!("/api/v1/orders/{order}")).await.ok();
        assert_eq!(refunded(&shown).2, paid * 10_334 / 30_669);
        test.drain().await;
        test.expire_evicted().await;
        let listed = get(test, "/admin/v1/orders?status=PAID").await.ok();
        assert_eq!(listed["content"][0], shown);
    })
    .await;
}

#[tokio::test]
async fn refund_refused_leaves_everything() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, cheap, .. } = bought(test).await;
        let (other, pending) = (test.user(0).await, test.place(user, dear, 1).await);
        refund_lines(test, order, user, &[(dear, 1)]).await.ok();
        let mut redis = test.raw().await;
        let before = invariants::snapshot(&mut redis).await;
        let path = format!("/api/v1/orders/{order}/cancel");
        // More than is left, alone and in two lines of one product; a product that is not in the order; quantities out of bounds.
        for lines in [
            json!([{"productId": dear, "quantity": 3}]),
            json!([{"productId": dear, "quantity": 1}, {"productId": dear, "quantity": 2}]),
            json!([{"productId": cheap, "quantity": 1}, {"productId": dear, "quantity": 3}]),
            json!([{"productId": cheap + 1_000, "quantity": 1}]),
            json!([{"productId": cheap, "quantity": 1}, {"productId": cheap + 1_000, "quantity": 1}]),
            json!([{"productId": cheap, "quantity": 0}]),
            json!([{"productId": cheap, "quantity": -1}]),
            json!([{"productId": cheap, "quantity": 10_001}]),
            json!([{"productId": cheap, "quantity": 0.5}]),
            json!([{"productId": cheap}]),
            json!([]),
            json!({}),
            json!("all"),
            Value::Null,
        ] {
            let body = json!({"userId": user, "lines": lines});
            post(test, &path, body).await.refused(400, "INVALID_ORDER");
            refund(test, order, json!({"lines": lines})).await.refused(400, "INVALID_ORDER");
        }
        post(test, &path, json!({"userId": other, "lines": [{"productId": dear, "quantity": 1}]}))
            .await
            .refused(404, "ORDER_NOT_FOUND");
        // A PENDING order has nothing to refund.
        refund_lines(test, pending, user, &[(dear, 1)]).await.refused(400, "INVALID_ORDER");
        for body in [json!({}), json!({"lines": [{"productId": dear, "quantity": 1}]})] {
            refund(test, pending, body.clone()).await.refused(400, "INVALID_ORDER");
            refund(test, 999_999, body).await.refused(404, "ORDER_NOT_FOUND");
        }
        for body in [json!({"restock": null}), json!({"restock": "no"}), json!({"lines": null}), json!({"reason": ""})]
        {
            refund(test, order, body).await.refused(400, "INVALID_ORDER");
        }
        refund(test, order, json!({"restok": false})).await.refused(400, "INVALID_REQUEST");
        assert_eq!(invariants::snapshot(&mut redis).await, before);
    })
    .await;
}

#[tokio::test]
async fn refund_refused_to_user_when_window_over() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, .. } = bought(test).await;
        refund_lines(test, order, user, &[(dear, 1)]).await.ok();
        test.clock.advance(REFUND_WINDOW_MS);
        let (mut redis, path) = (test.raw().await, format!("/api/v1/orders/{order}/cancel"));
        let before = invariants::snapshot(&mut redis).await;
        for units in [None, Some(1), Some(2), Some(9)] {
            let body = match units {
                None => json!({"userId": user}),
                Some(units) => json!({"userId": user, "lines": [{"productId": dear, "quantity": units}]}),
            };
            let refused = post(test, &path, body).await;
            assert_eq!(refused.json()["message"], "환불 가능 기간이 지났습니다.");
            refused.refused(409, "REFUND_WINDOW_CLOSED");
        }
        assert_eq!(invariants::snapshot(&mut redis).await, before);
        // An operator may at any time.
        refund(test, order, json!({"lines": [{"productId": dear, "quantity": 1}]})).await.ok();
        refund(test, order, json!({})).await.ok();
        refund(test, order, json!({})).await.refused(409, "ORDER_ALREADY_CLOSED");
        refund_lines(test, order, user, &[(dear, 1)]).await.refused(409, "ORDER_ALREADY_CLOSED");
    })
    .await;
}

#[tokio::test]
async fn refund_allowed_until_window_ends() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, .. } = bought(test).await;
        test.clock.advance(REFUND_WINDOW_MS - 1);
        refund_lines(test, order, user, &[(dear, 1)]).await.ok();
        cancel(test, order, user).await.ok();
    })
    .await;
}

#[tokio::test]
async fn refunded_units_stay_off_sale_without_restock() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, cheap, coupon, paid } = bought(test).await;
        let body = json!({"lines": [{"productId": dear, "quantity": 1}], "restock": false, "reason": "착용 흔적"});
        let shown = refund(test, order, body).await.ok();
        assert_eq!(refunded(&shown).1, [1, 0]);
        assert_eq!((test.stock(dear).await, test.stock(cheap).await), (7, 8));
        refund(test, order, json!({"lines": [{"productId": cheap, "quantity": 2}], "restock": true})).await.ok();
        assert_eq!((test.stock(dear).await, test.stock(cheap).await), (7, 10));
        // The rest as a whole, off sale too.
        let shown = refund(test, order, json!({"restock": false})).await.ok();
        assert_eq!(refunded(&shown), (json!("CANCELLED"), vec![3, 2], paid));
        assert_eq!((test.stock(dear).await, balance(test, user).await), (7, 100_000));
        // The coupon is free again.
        let lines = json!([{"productId": cheap, "quantity": 5}]);
        post(test, "/api/v1/orders", json!({"userId": user, "orderProducts": lines, "userCouponId": coupon}))
            .await
            .ok();
        test.drain().await;
        let report = test.app.audit().run().await.unwrap();
        assert!(report.balanced, "{report}");
        let log = get(test, "/admin/v1/operator-log").await.ok();
        let refunds = log["content"].as_array().unwrap().iter();
        let refunds = refunds.filter(|entry| entry["action"] == "POST /admin/v1/orders/{orderId}/refund");
        assert_eq!(refunds.count(), 3);
    })
    .await;
}

#[tokio::test]
async fn limit_given_back_by_refunded_units() {
    on_1_and_3(async |test| {
        let user = test.user(100_000).await;
        let product = json!({"productName": "한정판", "price": 100, "stockQuantity": 9, "category": "SHOES",
            "limitPerUser": 3, "limitGroup": "RARE"});
        let product = post(test, "/admin/v1/products", product).await.created()["productId"].as_i64().unwrap();
        let order = test.place(user, product, 3).await;
        test.pay(order, user, "CARD", 300).await.ok();
        test.order(user, product, 1).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        refund_lines(test, order, user, &[(product, 1)]).await.ok();
        refund(test, order, json!({"lines": [{"productId": product, "quantity": 1}], "restock": false})).await.ok();
        test.order(user, product, 3).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        let second = test.place(user, product, 2).await;
        cancel(test, order, user).await.ok();
        cancel(test, second, user).await.ok();
        test.place(user, product, 3).await;
    })
    .await;
}

#[tokio::test]
async fn refund_replayed_under_its_key() {
    on_1_and_3(async |test| {
        let Bought { user, order, dear, cheap, .. } = bought(test).await;
        let (by_user, by_operator) =
            (format!("/api/v1/orders/{order}/cancel"), format!("/admin/v1/orders/{order}/refund"));
        let part = |product: i64| json!([{"productId": product, "quantity": 1}]);
        let requests = [
            (&by_user, json!({"userId": user, "lines": part(dear)}), "part"),
            (&by_operator, json!({"lines": part(cheap), "restock": false}), "part of an operator"),
            (&by_user, json!({"userId": user}), "rest"),
        ];
        let mut replies = Vec::new();
        for (path, body, key) in &requests {
            let first = keyed(test, &Method::POST, path, body, key).await;
            assert!(!first.replayed(), "{}", first.text);
            first.ok();
            replies.push(keyed(test, &Method::POST, path, body, key).await.text);
        }
        test.drain().await;
        test.expire_evicted().await;
        // The first reply, though the order was refunded further since.
        for ((path, body, key), first) in requests.iter().zip(&replies) {
            let repeat = keyed(test, &Method::POST, path, body, key).await;
            assert_eq!((repeat.replayed(), &repeat.text), (true, first));
        }
        let other = json!({"userId": user, "lines": part(cheap)});
        keyed(test, &Method::POST, &by_user, &other, "part").await.refused(422, "IDEMPOTENCY_KEY_REUSED");
        assert_eq!(balance(test, user).await, 100_000);
    })
    .await;
}

#[tokio::test]
async fn free_order_refunded_in_parts_without_entries() {
    on_1_and_3(async |test| {
        let (user, free) = (test.user(0).await, test.product(0, 5).await);
        let order = test.place(user, free, 3).await;
        test.pay(order, user, "CARD", 0).await.ok();
        let shown = refund_lines(test, order, user, &[(free, 2)]).await.ok();
        assert_eq!(refunded(&shown), (json!("PAID"), vec![2], 0));
        refund_lines(test, order, user, &[(free, 1)]).await.ok();
        assert_eq!(get(test, &format!("/api/v1/balances/{user}/history")).await.ok(), json!([]));
        assert_eq!(test.stock(free).await, 5);
    })
    .await;
}
