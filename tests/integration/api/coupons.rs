//! 쿠폰: first come, first served; the order of the checks; the states of a coupon; discounts.

use serde_json::{Value, json};

use crate::support::{api_kit::*, harness::TestApp};

const DAY_MS: i64 = 86_400_000;

#[tokio::test]
async fn coupon_issued_is_listed() {
    on_1_and_3(async |test| {
        let (first, second) = (test.user(0).await, test.user(0).await);
        let fixed = campaign_with(test, json!({})).await;
        let percent = campaign_with(
            test,
            json!({"couponCode": "SPARTA1000", "discountType": "PERCENTAGE", "discountAmount": 20}),
        )
        .await;
        let expires = after(test, DAY_MS);
        test.clock.advance(1_000);
        let issued = issue(test, fixed, first).await.ok();
        let expected = json!({"couponId": fixed, "couponCode": "HANGHAE8888", "couponStatus": "AVAILABLE",
            "discountType": "FIXED", "discountAmount": 1_000, "expiredAt": expires, "createdAt": now(test),
            "userCouponId": fixed, "issueNo": 1});
        assert_eq!(issued, expected);
        assert_eq!(issue(test, fixed, second).await.ok()["issueNo"], 2);

        let mut one = expected.as_object().unwrap().clone();
        one.extend(json!({"usedAt": null, "heldByOrderId": null}).as_object().unwrap().clone());
        test.clock.advance(1_000);
        issue(test, percent, first).await.ok();
        let other = json!({"couponId": percent, "couponCode": "SPARTA1000", "couponStatus": "AVAILABLE",
            "discountType": "PERCENTAGE", "discountAmount": 20, "createdAt": now(test), "usedAt": null,
            "expiredAt": expires, "userCouponId": percent, "heldByOrderId": null, "issueNo": 1});
        let listed = get(test, &format!("/api/v1/coupons/{first}")).await.ok();
        let expected = json!([with_conditions(one.into()), with_conditions(other)]);
        assert_eq!(listed, expected, "in the order of issue");
        let without_coupons = test.user(0).await;
        assert_eq!(get(test, &format!("/api/v1/coupons/{without_coupons}")).await.ok(), json!([]));
        get(test, &format!("/api/v1/coupons/{}", without_coupons + 1)).await.refused(404, "USER_NOT_FOUND");
    })
    .await;
}

#[tokio::test]
async fn issue_refused_in_order_of_contract() {
    on_1_and_3(async |test| {
        let (winner, late, unknown_user) = (test.user(0).await, test.user(0).await, 1_000_000);
        let open = campaign_with(test, json!({"totalQuantity": 1})).await;
        let early = campaign_with(test, json!({"opensAt": after(test, 1_000), "closesAt": after(test, 2_000)})).await;
        let unknown = 1_000_000;

        // Body, then user, then campaign.
        for (coupon, user) in [(json!("1"), json!(unknown_user)), (json!(open), json!(0)), (json!(null), json!(winner))]
        {
            let body = json!({"couponId": coupon, "userId": user});
            post(test, "/api/v1/coupons/issue", body).await.refused(400, "INVALID_COUPON");
        }
        for coupon in [open, early, unknown] {
            issue(test, coupon, unknown_user).await.refused(404, "USER_NOT_FOUND");
        }
        issue(test, unknown, late).await.refused(400, "INVALID_COUPON");
        issue(test, early, late).await.refused(400, "INVALID_COUPON");

        // A repeat by a holder is INVALID_COUPON; only users without a coupon get "out of stock".
        issue(test, open, winner).await.ok();
        let before = effects(test).await;
        for _ in 0..2 {
            issue(test, open, winner).await.refused(400, "INVALID_COUPON");
            issue(test, open, late).await.refused(409, "COUPON_OUT_OF_STOCK");
            issue(test, open, unknown_user).await.refused(404, "USER_NOT_FOUND");
        }
        assert_eq!(effects(test).await, before);
        // A campaign that is closed and sold out is reported as closed.
        test.clock.advance(DAY_MS);
        for user in [winner, late] {
            issue(test, open, user).await.refused(400, "INVALID_COUPON");
        }
    })
    .await;
}

#[tokio::test]
async fn issue_accepted_only_within_window() {
    let test = TestApp::start().await;
    let (a, b, c) = (test.user(0).await, test.user(0).await, test.user(0).await);
    let window = json!({"opensAt": after(&test, 10_000), "closesAt": after(&test, 20_000)});
    let coupon = campaign_with(&test, window).await;
    test.clock.advance(9_999);
    issue(&test, coupon, a).await.refused(400, "INVALID_COUPON");
    test.clock.advance(1);
    issue(&test, coupon, a).await.ok();
    test.clock.advance(9_999);
    issue(&test, coupon, b).await.ok();
    test.clock.advance(1);
    issue(&test, coupon, c).await.refused(400, "INVALID_COUPON");
    test.finish().await;
}

/// A coupon's status, usedAt and heldByOrderId.
async fn coupon_state(test: &TestApp, user: i64, campaign: i64) -> Value {
    let coupon = coupon(test, user, campaign).await;
    json!([coupon["couponStatus"], coupon["usedAt"], coupon["heldByOrderId"]])
}

#[tokio::test]
async fn coupon_status_follows_its_order_and_expiry() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(100_000).await, test.product(10_000, 10).await);
        let campaign = campaign_with(test, json!({})).await;
        issue(test, campaign, user).await.ok();
        assert_eq!(coupon_state(test, user, campaign).await, json!(["AVAILABLE", null, null]));
        // The order holds the coupon; its cancellation releases the coupon.
        let order = placed(test, user, &[(product, 1)], Some(campaign)).await;
        assert_eq!(coupon_state(test, user, campaign).await, json!(["USED", null, order]));
        cancel(test, order, user).await.ok();
        assert_eq!(coupon_state(test, user, campaign).await, json!(["AVAILABLE", null, null]));
        // The payment uses the coupon; the refund releases it.
        let order = placed(test, user, &[(product, 1)], Some(campaign)).await;
        test.clock.advance(5_000);
        pay(test, order, user, 9_000).await.ok();
        assert_eq!(coupon_state(test, user, campaign).await, json!(["USED", now(test), null]));
        cancel(test, order, user).await.ok();
        assert_eq!(coupon_state(test, user, campaign).await, json!(["AVAILABLE", null, null]));
        // A held coupon pays after its expiry. Once released, it is expired from the exact millisecond.
        let order = placed(test, user, &[(product, 1)], Some(campaign)).await;
        test.clock.advance(DAY_MS - 5_001);
        assert_eq!(coupon_state(test, user, campaign).await, json!(["USED", null, order]));
        cancel(test, order, user).await.ok();
        assert_eq!(coupon_state(test, user, campaign).await, json!(["AVAILABLE", null, null]));
        let order = placed(test, user, &[(product, 1)], Some(campaign)).await;
        test.clock.advance(1);
        assert_eq!(coupon_state(test, user, campaign).await, json!(["USED", null, order]));
        pay(test, order, user, 9_000).await.ok();
        cancel(test, order, user).await.ok();
        assert_eq!(coupon_state(test, user, campaign).await, json!(["EXPIRED", null, null]));
        let refused = post(test, "/api/v1/orders", order_of(user, &[(product, 1)], Some(campaign))).await;
        refused.refused(400, "INVALID_COUPON");
    })
    .await;
}

#[tokio::test]
async fn order_refused_when_coupon_unusable() {
    on_1_and_3(async |test| {
        let (user, other) = (test.user(100_000).await, test.user(100_000).await);
        let product = test.product(1_000, 10).await;
        let [foreign, used, reserved, expired, unissued] = {
            let mut campaigns = [0; 5];
            for (index, campaign) in campaigns.iter_mut().enumerate() {
                let life = if index == 3 { 1_000 } else { DAY_MS };
                *campaign = campaign_with(test, json!({"expiredAt": after(test, life)})).await;
            }
            campaigns
        };
        issue(test, foreign, other).await.ok();
        for campaign in [used, reserved, expired] {
            issue(test, campaign, user).await.ok();
        }
        let order = placed(test, user, &[(product, 1)], Some(used)).await;
        pay(test, order, user, 0).await.ok();
        placed(test, user, &[(product, 1)], Some(reserved)).await;
        test.clock.advance(1_000);
        let before = effects(test).await;
        for coupon in [foreign, used, reserved, expired, unissued, 1_000_000] {
            let refused = post(test, "/api/v1/orders", order_of(user, &[(product, 1)], Some(coupon))).await;
            refused.refused(400, "INVALID_COUPON");
        }
        assert_eq!(effects(test).await, before);
        assert_eq!(stock(test, product).await, 8);
    })
    .await;
}

#[tokio::test]
async fn discount_in_percent_rounded_down() {
    let test = TestApp::start().await;
    for (kind, amount, price, quantity, discount) in [
        ("PERCENTAGE", 33_i64, 999_i64, 1, 329),
        ("PERCENTAGE", 1, 99, 1, 0),
        ("PERCENTAGE", 1, 101, 1, 1),
        ("PERCENTAGE", 15, 333, 3, 149),
        ("PERCENTAGE", 99, 1, 1, 0),
        ("PERCENTAGE", 100, 12_345, 2, 24_690),
        ("PERCENTAGE", 50, 0, 1, 0),
        ("PERCENTAGE", 99, 999_999_999_999, 1, 989_999_999_999),
        ("FIXED", 1_000, 49_900, 2, 1_000),
        ("FIXED", 1_000, 1_000, 1, 1_000),
        ("FIXED", 1_000_000_000_000, 999, 1, 999),
        ("FIXED", 1, 0, 1, 0),
    ] {
        let what = format!("{kind} {amount} of {price} × {quantity}");
        let total = price * quantity;
        let (user, product) = (test.user(total - discount).await, test.product(price, 10).await);
        let campaign = campaign_with(&test, json!({"discountType": kind, "discountAmount": amount})).await;
        issue(&test, campaign, user).await.ok();
        let order = order_of(user, &[(product, quantity)], Some(campaign));
        let order = post(&test, "/api/v1/orders", order).await.ok();
        assert_eq!(order["finalPrice"], total - discount, "{what}");
        let shown = detail(&test, id(&order, "orderId")).await;
        assert_eq!(
            json!([shown["totalPrice"], shown["discountPrice"], shown["finalPrice"], shown["userCouponId"]]),
            json!([total, discount, total - discount, campaign]),
            "{what}"
        );
        pay(&test, id(&order, "orderId"), user, total - discount).await.ok();
        assert_eq!(balance(&test, user).await, 0, "{what}");
    }
    test.finish().await;
}

#[tokio::test]
async fn campaigns_open_are_listed() {
    on_1_and_3(async |test| {
        let later = campaign_with(test, json!({"couponCode": "LATER", "expiredAt": after(test, 3 * DAY_MS)})).await;
        let sooner = json!({"couponCode": "SOONER", "opensAt": after(test, 1_000), "closesAt": after(test, DAY_MS),
            "expiredAt": after(test, 2 * DAY_MS), "discountType": "PERCENTAGE", "discountAmount": 7});
        let expected = json!({"couponCode": "SOONER", "opensAt": after(test, 1_000), "closesAt": after(test, DAY_MS),
            "expiredAt": after(test, 2 * DAY_MS), "discountType": "PERCENTAGE", "discountAmount": 7,
            "totalQuantity": 10, "issuedQuantity": 1, "remainingQuantity": 9});
        let sooner = campaign_with(test, sooner).await;
        let listed = async |query: &str| -> Vec<i64> {
            let campaigns = get(test, &format!("/api/v1/campaigns{query}")).await.ok();
            campaigns.as_array().unwrap().iter().map(|campaign| id(campaign, "couponId")).collect()
        };
        assert_eq!(listed("").await, [later], "one campaign has not opened");
        test.clock.advance(1_000);
        let user = test.user(0).await;
        issue(test, sooner, user).await.ok();
        assert_eq!(listed("").await, [sooner, later], "sorted by closing time");
        assert_eq!(listed("?size=1").await, [sooner]);
        assert_eq!(listed("?size=1&page=1").await, [later]);
        assert!(listed("?size=1&page=2").await.is_empty());
        let mut shown = get(test, "/api/v1/campaigns?size=1").await.ok()[0].clone();
        assert_eq!(shown.as_object_mut().unwrap().remove("couponId").unwrap(), sooner);
        assert_eq!(shown, with_conditions(expected));
        test.clock.advance(DAY_MS - 1_001);
        assert_eq!(listed("").await, [sooner, later]);
        test.clock.advance(1);
        assert_eq!(listed("").await, [later], "closed from the exact millisecond");
        for query in ["?page=-1", "?size=0", "?size=101", "?page=a", "?page=10001&size=1", "?page=&size="] {
            get(test, &format!("/api/v1/campaigns{query}")).await.refused(400, "INVALID_REQUEST");
        }
    })
    .await;
}
