//! A rebuild withholds the units that lost decisions may have taken.

use super::*;

/// A client may have a 200 for a lost order: its units stay withheld until an operator releases them.
#[tokio::test]
async fn rebuild_withholds_units_of_lost_decisions() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let (user, product) = (test.user(100_000).await, test.product(100, 20).await);
        let coupon = test.campaign("FIXED", 10, 5).await;
        test.issue(coupon, user).await.ok();
        let order = test.place(user, product, 3).await;
        let cancelled = test.place(user, product, 2).await;
        test.drain().await;
        // Acknowledged decisions that are lost.
        test.pay(order, user, "CARD", 300).await.ok();
        let lost = test.place(user, product, 4).await;
        let other = test.user(0).await;
        test.issue(coupon, other).await.ok();
        test.engine.check().await;
        test.flush_redis().await;

        let summary = rebuilt(&test, rebuild::RebuildOptions::default()).await;
        assert_eq!(summary.possible_losses, (0..partitions).collect::<Vec<_>>());
        assert!(summary.lost_at_least >= 4, "{summary:?}");
        assert_eq!((summary.withheld_units, summary.withheld_coupons), (15, 4));
        ready(&test).await;
        assert_eq!(test.stock(product).await, 0);
        test.order(user, product, 1).await.refused(409, "SOLD_OUT");
        test.issue(coupon, user + i64::from(partitions)).await.refused(404, "USER_NOT_FOUND");
        let late = test.user(0).await;
        assert!(late > other + 1_000_000, "an acknowledged id is used again: {late}");
        test.issue(coupon, late).await.refused(409, "COUPON_OUT_OF_STOCK");
        test.get(&format!("/api/v1/orders/{lost}")).await.refused(404, "ORDER_NOT_FOUND");
        // A user's cancel proves that the order was not paid before the loss: its units go on sale. An expiry does not prove it.
        // An order with stock in another partition counts as an expired one.
        test.cancel(cancelled, user).await.ok();
        let back = if partitions == 1 { 2 } else { test.stock(product).await };
        assert_eq!(test.stock(product).await, back);
        test.clock.advance(700_000);
        assert_eq!(test.engine.sweep().await.unwrap(), 1);
        assert_eq!(test.stock(product).await, back);
        test.drain().await;
        let kept = test.get("/admin/v1/withheld").await.ok();
        assert_eq!(kept["products"], json!([{"productId": product, "withheldQuantity": 20 - back}]));
        assert_eq!(kept["coupons"], json!([{"couponId": coupon, "withheldQuantity": 4}]));
        // The operator knows that one coupon and seven units are lost, and leaves them withheld.
        let release = async |path: String, quantity: i64| {
            test.post(&path, json!({"quantity": quantity})).await.ok();
        };
        release(format!("/admin/v1/products/{product}/release"), 13 - back).await;
        release(format!("/admin/v1/coupons/{coupon}/release"), 3).await;
        assert_eq!(test.stock(product).await, 13);
        let issued = test.issue(coupon, late).await.ok();
        assert!(issued["issueNo"].as_i64().unwrap() > 2, "an acknowledged number is used again: {issued}");
        test.order(user, product, 14).await.refused(409, "INSUFFICIENT_STOCK");
        test.place(user, product, 13).await;
        test.finish().await;
    }
}

/// A declined payment, like an expiry, does not prove that the order was not paid before the loss.
#[tokio::test]
async fn withheld_units_stay_when_possibly_paid_order_declined() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(500).await, test.product(100, 20).await);
    let order = test.place(user, product, 5).await;
    test.drain().await;
    let spent = test.place(user, product, 3).await;
    test.drain().await;
    test.flush_redis().await;
    rebuilt(&test, rebuild::RebuildOptions::default()).await;
    ready(&test).await;
    test.pay(spent, user, "CARD", 300).await.ok();
    test.pay(order, user, "CARD", 500).await.refused(402, "INSUFFICIENT_BALANCE");
    assert_eq!(test.stock(product).await, 0);
    test.drain().await;
    assert_eq!(test.get("/admin/v1/withheld").await.ok()["products"][0]["withheldQuantity"], 17);
    test.post("/admin/v1/withheld/release", json!({})).await.ok();
    assert_eq!(test.stock(product).await, 17);
    test.finish().await;
}

/// `--lost-at-most` bounds what a rebuild withholds.
#[tokio::test]
async fn rebuild_withholds_no_more_than_loss_bound() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(0).await, test.product(100, 50_000).await);
    let coupon = test.campaign("FIXED", 10, 500).await;
    test.drain().await;
    test.flush_redis().await;
    let summary =
        rebuilt(&test, rebuild::RebuildOptions { lost_at_most: rebuild::LossBounds::Each(3), ..Default::default() })
            .await;
    assert_eq!((summary.withheld_units, summary.withheld_coupons), (30_000, 3));
    ready(&test).await;
    assert_eq!(test.stock(product).await, 20_000);
    assert_eq!(test.issue(coupon, user).await.ok()["issueNo"], 4);
    test.drain().await;
    test.flush_redis().await;
    let summary =
        rebuilt(&test, rebuild::RebuildOptions { lost_at_most: rebuild::LossBounds::Each(0), ..Default::default() })
            .await;
    assert_eq!((summary.epoch, summary.withheld_units, summary.withheld_coupons), (3, 0, 0));
    assert!(summary.possible_losses.is_empty());
    ready(&test).await;
    assert_eq!(test.stock(product).await, 20_000);
    test.finish().await;
}

/// A rebuild first drains a sound Redis, and then withholds nothing.
#[tokio::test]
async fn rebuild_of_sound_redis_withholds_nothing() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        busy_day(&test).await;
        // The outbox still has events, which the rebuild projects.
        let summary = rebuilt(&test, rebuild::RebuildOptions::default()).await;
        assert_eq!(
            (summary.possible_losses.len(), summary.withheld_units, summary.discarded),
            (0, 0, 0),
            "{summary:?}"
        );
        ready(&test).await;
        busy_day(&test).await;
        test.finish().await;
    }
}
