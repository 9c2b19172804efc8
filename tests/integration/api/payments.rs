//! 결제: payments from the balance, and every refusal.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::api_kit::*;

#[tokio::test]
async fn payment_of_every_type_has_unique_receipt() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(100_000).await, test.product(4_990, 10).await);
        let mut unique = BTreeSet::new();
        for kind in ["CARD", "KAKAO_PAY", "TOSS", "BALANCE"] {
            let order = placed(test, user, &[(product, 1)], None).await;
            test.clock.advance(61_000);
            let body = json!({"orderId": order, "userId": user, "paymentType": kind, "amount": 4_990});
            let paid = post(test, "/api/v1/payments", body).await.ok();
            let (payment, receipt) = (id(&paid, "paymentId"), paid["receipt"].as_str().unwrap().to_owned());
            let expected = json!({"paymentId": payment, "orderId": order, "userId": user, "paymentType": kind,
                "amount": 4_990, "receipt": receipt, "createdAt": now(test), "orderStatus": "PAID"});
            assert_eq!(paid, expected);
            let shown = detail(test, order).await;
            assert_eq!(
                json!([
                    shown["orderStatus"],
                    shown["paymentId"],
                    shown["paymentType"],
                    shown["receipt"],
                    shown["paidAt"]
                ]),
                json!(["PAID", payment, kind, receipt, now(test)])
            );
            assert!(payment >= 1 && !receipt.is_empty());
            assert!(unique.insert(payment.to_string()) && unique.insert(receipt));
        }
        assert_eq!(balance(test, user).await, 100_000 - 4 * 4_990);
        let history = get(test, &format!("/api/v1/balances/{user}/history")).await.ok();
        let kinds: Vec<_> = history.as_array().unwrap().iter().map(|entry| entry["transactionType"].clone()).collect();
        assert_eq!(json!(kinds), json!(["CHARGE", "PAYMENT", "PAYMENT", "PAYMENT", "PAYMENT"]));
    })
    .await;
}

#[tokio::test]
async fn payment_refused_leaves_order_unchanged() {
    on_1_and_3(async |test| {
        let (user, other, product) = (test.user(10_000).await, test.user(10_000).await, test.product(1_000, 10).await);
        let order = placed(test, user, &[(product, 2)], None).await;
        let before = effects(test).await;
        for amount in [1_999, 2_001, 0, 1, 9_007_199_254_740_991] {
            pay(test, order, user, amount).await.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        for (order, user) in [(order, other), (order, 1_000_000), (order + 3, user), (1_000_000_000, user)] {
            for amount in [2_000, 1] {
                pay(test, order, user, amount).await.refused(404, "ORDER_NOT_FOUND");
            }
        }
        if test.options.partitions == 1 {
            assert_eq!(effects(test).await, before);
        }
        assert_eq!(detail(test, order).await["orderStatus"], "PENDING");
        pay(test, order, user, 2_000).await.ok();
        let before = effects(test).await;
        for amount in [2_000, 1] {
            pay(test, order, user, amount).await.refused(409, "ORDER_ALREADY_PAID");
        }
        pay(test, order, other, 2_000).await.refused(404, "ORDER_NOT_FOUND");
        assert_eq!(effects(test).await, before);
        assert_eq!(balance(test, user).await, 8_000);
    })
    .await;
}

#[tokio::test]
async fn payment_declined_fails_order_and_releases_holds() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(5_000).await, test.product(2_000, 5).await);
        let campaign = campaign_with(test, json!({"discountAmount": 100})).await;
        issue(test, campaign, user).await.ok();
        // The balance covers either order, but not both.
        let first = placed(test, user, &[(product, 2)], None).await;
        let second = placed(test, user, &[(product, 1)], Some(campaign)).await;
        pay(test, first, user, 4_000).await.ok();
        test.clock.advance(1_000);
        assert_eq!(stock(test, product).await, 2);
        pay(test, second, user, 1_900).await.refused(402, "INSUFFICIENT_BALANCE");
        let failed = detail(test, second).await;
        assert_eq!(
            json!([
                failed["orderStatus"],
                failed["closeReason"],
                failed["closedAt"],
                failed["paymentId"],
                failed["receipt"]
            ]),
            json!(["FAILED", "PAYMENT_DECLINED", now(test), null, null])
        );
        assert_eq!((stock(test, product).await, balance(test, user).await), (3, 1_000));
        let released = coupon(test, user, campaign).await;
        assert_eq!((&released["couponStatus"], &released["heldByOrderId"]), (&json!("AVAILABLE"), &json!(null)));
        // A failed order stays failed after a charge.
        put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 100_000})).await.ok();
        let before = effects(test).await;
        for amount in [1_900, 1] {
            pay(test, second, user, amount).await.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        cancel(test, second, user).await.refused(409, "ORDER_ALREADY_CLOSED");
        assert_eq!(effects(test).await, before);
        // A new order can hold the released coupon and stock.
        let third = placed(test, user, &[(product, 3)], Some(campaign)).await;
        pay(test, third, user, 5_900).await.ok();
        let history = get(test, &format!("/api/v1/balances/{user}/history")).await.ok();
        assert_eq!(history.as_array().unwrap().len(), 4, "a declined payment adds no entry: {history}");
    })
    .await;
}

#[tokio::test]
async fn payment_refused_when_order_closed() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(10_000).await, test.product(1_000, 10).await);
        let cancelled = placed(test, user, &[(product, 1)], None).await;
        cancel(test, cancelled, user).await.ok();
        let refunded = bought(test, user, product, 1).await;
        cancel(test, refunded, user).await.ok();
        let before = effects(test).await;
        for order in [cancelled, refunded] {
            pay(test, order, user, 1_000).await.refused(400, "INVALID_PAYMENT_REQUEST");
        }
        assert_eq!(effects(test).await, before);
        assert_eq!((stock(test, product).await, balance(test, user).await), (10, 10_000));
    })
    .await;
}

#[tokio::test]
async fn payment_of_zero_pays_free_order() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(0).await, test.product(1_000, 10).await);
        let campaign = campaign_with(test, json!({"discountType": "PERCENTAGE", "discountAmount": 100})).await;
        issue(test, campaign, user).await.ok();
        let order = post(test, "/api/v1/orders", order_of(user, &[(product, 2)], Some(campaign))).await.ok();
        assert_eq!(order["finalPrice"], 0);
        let order = id(&order, "orderId");
        pay(test, order, user, 2_000).await.refused(400, "INVALID_PAYMENT_REQUEST");
        let paid = pay(test, order, user, 0).await.ok();
        assert_eq!((&paid["amount"], &paid["orderStatus"]), (&json!(0), &json!("PAID")));
        assert_eq!(get(test, &format!("/api/v1/balances/{user}/history")).await.ok(), json!([]));
        assert_eq!(coupon(test, user, campaign).await["usedAt"], json!(now(test)));
        assert_eq!(get(test, "/api/v1/products/popular").await.ok()[0]["totalSalesPrice"], 2_000);
        // The refund returns stock and no money.
        cancel(test, order, user).await.ok();
        assert_eq!(get(test, &format!("/api/v1/balances/{user}/history")).await.ok(), json!([]));
        assert_eq!((stock(test, product).await, balance(test, user).await), (10, 0));
    })
    .await;
}
