//! A short version of the README's tour.

use serde_json::json;

use crate::support::harness::TestApp;

#[tokio::test]
async fn order_charged_paid_and_refunded_end_to_end() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(0).await, test.product(49_900, 10).await);
    let coupon = test.campaign("FIXED", 1_000, 5).await;
    test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 100_000})).await.ok();
    test.issue(coupon, user).await.ok();
    let order =
        json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 2}], "userCouponId": coupon});
    let order = test.post("/api/v1/orders", order).await.ok();
    assert_eq!(order["finalPrice"], 98_800);
    let paid = test.pay(order["orderId"].as_i64().unwrap(), user, "KAKAO_PAY", 98_800).await.ok();
    assert_eq!(paid["orderStatus"], "PAID");
    let popular = test.get("/api/v1/products/popular").await.ok();
    assert_eq!(popular[0]["productId"], product);
    assert_eq!((popular[0]["salesCount"].as_i64(), popular[0]["totalSalesPrice"].as_i64()), (Some(2), Some(99_800)));
    let cancelled = test.cancel(order["orderId"].as_i64().unwrap(), user).await.ok();
    assert_eq!(cancelled["closeReason"], "REFUNDED");
    test.finish().await;
}
