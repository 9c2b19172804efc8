//! Orders that are paid in the step that places them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{api_kit::*, harness::TestApp};

const ORDERS: &str = "/api/v1/orders";

async fn checkout(test: &TestApp, user: i64, lines: &[(i64, i64)]) -> Value {
    post(test, ORDERS, checkout_of(user, lines, "BALANCE")).await.ok()
}

#[tokio::test]
async fn order_paid_when_checkout_succeeds() {
    on_1_and_3(async |test| {
        let user = test.user(100_000).await;
        let (shoes, top) = (test.product(30_000, 3).await, test.product(5_000, 9).await);
        let campaign = test.campaign("FIXED", 3_000, 5).await;
        issue(test, campaign, user).await.ok();
        let mut body = checkout_of(user, &[(shoes, 1), (top, 2)], "KAKAO_PAY");
        body["userCouponId"] = json!(campaign);
        let bought = post(test, ORDERS, body).await.ok();
        fields(&bought, "orderId finalPrice orderedAt orderStatus paymentId receipt");
        assert_eq!((&bought["orderStatus"], &bought["finalPrice"]), (&json!("PAID"), &json!(37_000)));

        let order = detail(test, id(&bought, "orderId")).await;
        let paid = ["orderStatus", "paidAt", "paymentId", "paymentType", "receipt", "discountPrice", "userCouponId"];
        let expected = [
            json!("PAID"),
            bought["orderedAt"].clone(),
            bought["paymentId"].clone(),
            json!("KAKAO_PAY"),
            bought["receipt"].clone(),
            json!(3_000),
            json!(campaign),
        ];
        assert_eq!(paid.map(|name| order[name].clone()), expected);
        assert_eq!((balance(test, user).await, stock(test, shoes).await, stock(test, top).await), (63_000, 2, 7));
        let used = coupon(test, user, campaign).await;
        assert_eq!((&used["couponStatus"], &used["usedAt"]), (&json!("USED"), &bought["orderedAt"]));
        let history = get(test, &format!("/api/v1/balances/{user}/history")).await.ok();
        let last = history.as_array().unwrap().last().unwrap();
        assert_eq!((&last["transactionType"], &last["amount"]), (&json!("PAYMENT"), &json!(37_000)));
        let ranked = get(test, "/api/v1/products/popular?sortBy=TODAY").await.ok();
        assert_eq!((id(&ranked[0], "productId"), id(&ranked[0], "salesCount")), (top, 2));

        // It is an order as any other: paid once, and refunded on request.
        let pay = pay(test, id(&bought, "orderId"), user, 37_000).await;
        pay.refused(409, "ORDER_ALREADY_PAID");
        let refunded = cancel(test, id(&bought, "orderId"), user).await.ok();
        assert_eq!(refunded["closeReason"], "REFUNDED");
        assert_eq!((balance(test, user).await, stock(test, shoes).await), (100_000, 3));
        // A price of 0 is paid without an entry.
        let free = test.product(0, 1).await;
        assert_eq!(checkout(test, user, &[(free, 1)]).await["orderStatus"], "PAID");
        let entries = get(test, &format!("/api/v1/balances/{user}/history")).await.ok();
        assert_eq!(entries.as_array().unwrap().len(), history.as_array().unwrap().len() + 1);
    })
    .await;
}

#[tokio::test]
async fn nothing_held_when_checkout_refused() {
    on_1_and_3(async |test| {
        let (user, dear) = (test.user(1_000).await, test.product(1_001, 5).await);
        let none = test.product(10, 0).await;
        let scheduled = json!({"productName": "later", "price": 10, "stockQuantity": 5, "category": "TOP",
            "opensAt": after(test, 3_600_000)});
        let scheduled = id(&post(test, "/admin/v1/products", scheduled).await.created(), "productId");
        let limited =
            json!({"productName": "one each", "price": 10, "stockQuantity": 5, "category": "TOP", "limitPerUser": 1});
        let limited = id(&post(test, "/admin/v1/products", limited).await.created(), "productId");
        let before = effects(test).await;
        for (lines, status, code) in [
            (vec![(dear, 1)], 402, "INSUFFICIENT_BALANCE"),
            (vec![(dear, 6)], 409, "INSUFFICIENT_STOCK"),
            (vec![(none, 1)], 409, "SOLD_OUT"),
            (vec![(scheduled, 1)], 409, "NOT_ON_SALE"),
            (vec![(limited, 2)], 409, "PURCHASE_LIMIT_EXCEEDED"),
            (vec![(1_000_000, 1)], 404, "PRODUCT_NOT_FOUND"),
        ] {
            let body = checkout_of(user, &lines, "BALANCE");
            post(test, ORDERS, body.clone()).await.refused(status, code);
            keyed(test, &Method::POST, ORDERS, &body, "k").await.refused(status, code);
        }
        post(test, ORDERS, checkout_of(user + 1_000_000, &[(dear, 1)], "BALANCE")).await.refused(404, "USER_NOT_FOUND");
        for payment in
            [json!({}), json!({"paymentType": "CASH"}), json!({"paymentType": null}), json!([]), json!("CARD")]
        {
            let mut body = order_of(user, &[(dear, 1)], None);
            body["payment"] = payment;
            post(test, ORDERS, body).await.refused(400, "INVALID_ORDER");
        }
        if test.options.partitions == 1 {
            assert_eq!(effects(test).await, before);
        }
        assert_eq!((stock(test, dear).await, balance(test, user).await), (5, 1_000));
        // What a checkout bought counts against the limit, until it is refunded.
        let bought = checkout(test, user, &[(limited, 1)]).await;
        post(test, ORDERS, checkout_of(user, &[(limited, 1)], "BALANCE")).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        cancel(test, id(&bought, "orderId"), user).await.ok();
        checkout(test, user, &[(limited, 1)]).await;
    })
    .await;
}

/// A repeat on the next day gets the first reply, and a checkout of that day counts in its rankings.
#[tokio::test]
async fn checkout_counted_on_its_day_when_midnight_passes() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(10_000).await, test.product(1_000, 9).await);
        let body = checkout_of(user, &[(product, 1)], "BALANCE");
        let first = keyed(test, &Method::POST, ORDERS, &body, "k").await;
        test.clock.advance(20 * 3_600_000);
        let again = keyed(test, &Method::POST, ORDERS, &body, "k").await;
        assert!(again.replayed());
        assert_eq!(again.text, first.text);
        checkout(test, user, &[(product, 2)]).await;
        let today = get(test, "/api/v1/products/popular?sortBy=TODAY").await.ok();
        assert_eq!((id(&today[0], "productId"), id(&today[0], "salesCount")), (product, 2));
    })
    .await;
}
