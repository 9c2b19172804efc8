//! Conditions of coupons: what an order must have, and what the discount is of.

use firstcome::recovery::rebuild::RebuildOptions;
use serde_json::{Value, json};

use crate::{
    recovery::rebuild::{ack_postgres, projected, ready, rebuilt},
    support::{
        api_kit::*,
        harness::{Options, Reply, TestApp},
    },
};

async fn ordered(test: &TestApp, user: i64, lines: &[(i64, i64)], coupon: i64) -> Reply {
    post(test, "/api/v1/orders", order_of(user, lines, Some(coupon))).await
}

/// A campaign with a percentage and these conditions; the user has its coupon.
async fn coupon_with(test: &TestApp, user: i64, percent: i64, conditions: Value) -> i64 {
    let mut body = json!({"discountType": "PERCENTAGE", "discountAmount": percent});
    body.as_object_mut().unwrap().extend(conditions.as_object().unwrap().clone());
    let campaign = campaign_with(test, body).await;
    issue(test, campaign, user).await.ok();
    campaign
}

#[tokio::test]
async fn conditions_shown_wherever_coupon_is() {
    on_1_and_3(async |test| {
        let user = test.user(0).await;
        let conditions = json!({"minOrderPrice": 30_000, "maxDiscountPrice": 5_000, "productIds": [3, 1, 1_000_000],
            "categories": ["SHOES", "LIMITED_2"]});
        let coupon = coupon_with(test, user, 10, conditions.clone()).await;
        let only = campaign_with(test, json!({"productIds": [7], "maxDiscountPrice": null})).await;
        issue(test, only, user).await.ok();
        let moved = json!({"closesAt": after(test, 60_000)});
        let shown = [
            self::coupon(test, user, coupon).await,
            get(test, &format!("/admin/v1/coupons/{coupon}")).await.ok(),
            patch(test, &format!("/admin/v1/coupons/{coupon}"), moved).await.ok(),
            get(test, "/api/v1/campaigns?size=1").await.ok()[0].clone(),
        ];
        for (place, shown) in shown.iter().enumerate() {
            for (name, value) in conditions.as_object().unwrap() {
                assert_eq!(&shown[name], value, "{place}: {name}");
            }
        }
        let only = self::coupon(test, user, only).await;
        let names = ["minOrderPrice", "maxDiscountPrice", "productIds", "categories"];
        assert_eq!(names.map(|name| only[name].clone()), [Value::Null, Value::Null, json!([7]), Value::Null]);
    })
    .await;
}

#[tokio::test]
async fn order_refused_when_conditions_unmet() {
    on_1_and_3(async |test| {
        let user = test.user(1_000_000).await;
        let shoes = product(test, "shoes", "SHOES", 10_000, 50).await;
        let (top, other) = (product(test, "top", "TOP", 1_000, 50).await, product(test, "other", "TOP", 1, 50).await);
        for (conditions, lines) in [
            (json!({"minOrderPrice": 10_001}), vec![(shoes, 1)]),
            (json!({"minOrderPrice": 12_001, "productIds": [top]}), vec![(shoes, 1), (top, 2)]),
            (json!({"productIds": [other]}), vec![(shoes, 1), (top, 1)]),
            (json!({"categories": ["SHOES"]}), vec![(top, 1), (other, 1)]),
            (json!({"categories": ["HATS"], "productIds": [1_000_000]}), vec![(shoes, 1), (top, 1)]),
        ] {
            let coupon = coupon_with(test, user, 10, conditions.clone()).await;
            let before = effects(test).await;
            ordered(test, user, &lines, coupon).await.refused(400, "INVALID_COUPON");
            assert_eq!(effects(test).await, before, "{conditions}");
            assert_eq!(self::coupon(test, user, coupon).await["couponStatus"], "AVAILABLE");
            // The checks before that of the coupon.
            ordered(test, user, &[(top, 51)], coupon).await.refused(409, "INSUFFICIENT_STOCK");
            ordered(test, user, &[(top, 1), (1_000_000, 1)], coupon).await.refused(404, "PRODUCT_NOT_FOUND");
        }
        // The balance comes after the coupon.
        let poor = test.user(0).await;
        let coupon = coupon_with(test, poor, 10, json!({"minOrderPrice": 20_000})).await;
        ordered(test, poor, &[(shoes, 1)], coupon).await.refused(400, "INVALID_COUPON");
        ordered(test, poor, &[(shoes, 2)], coupon).await.refused(402, "INSUFFICIENT_BALANCE");
    })
    .await;
}

#[tokio::test]
async fn discount_of_lines_that_qualify() {
    on_1_and_3(async |test| {
        let user = test.user(10_000_000).await;
        let shoes = product(test, "shoes", "SHOES", 10_000, 50).await;
        let (top, other) = (product(test, "top", "TOP", 1_005, 50).await, product(test, "other", "HATS", 7, 50).await);
        let all = [(shoes, 1), (top, 2), (other, 3)];
        for (conditions, discount) in [
            (json!({}), 1_203),
            (json!({"minOrderPrice": 12_031}), 1_203),
            (json!({"maxDiscountPrice": 1_203}), 1_203),
            (json!({"maxDiscountPrice": 1_202}), 1_202),
            (json!({"productIds": [other, top]}), 203),
            (json!({"categories": ["HATS", "BAGS"]}), 2),
            (json!({"categories": ["SHOES"], "productIds": [top, shoes]}), 1_201),
            (json!({"categories": ["SHOES"], "maxDiscountPrice": 999, "minOrderPrice": 12_031}), 999),
        ] {
            let coupon = coupon_with(test, user, 10, conditions.clone()).await;
            let order = ordered(test, user, &all, coupon).await.ok();
            assert_eq!(order["finalPrice"], 12_031 - discount, "{conditions}");
            let detail = detail(test, id(&order, "orderId")).await;
            assert_eq!((&detail["totalPrice"], &detail["discountPrice"]), (&json!(12_031), &json!(discount)));
            pay(test, id(&order, "orderId"), user, 12_031 - discount).await.ok();
        }
        // At most the sum of the lines that qualify.
        let fixed = campaign_with(test, json!({"discountAmount": 50_000, "productIds": [top]})).await;
        issue(test, fixed, user).await.ok();
        assert_eq!(ordered(test, user, &all, fixed).await.ok()["finalPrice"], 12_031 - 2_010);
        // The category is that of the moment.
        let coupon = coupon_with(test, user, 50, json!({"categories": ["BAGS"]})).await;
        ordered(test, user, &[(top, 2)], coupon).await.refused(400, "INVALID_COUPON");
        patch(test, &format!("/admin/v1/products/{top}"), json!({"category": "BAGS"})).await.ok();
        assert_eq!(ordered(test, user, &[(top, 2)], coupon).await.ok()["finalPrice"], 1_005);
    })
    .await;
}

#[tokio::test]
async fn conditions_kept_across_rebuild() {
    for partitions in [1, 3] {
        let app = TestApp::with(Options { partitions, ..ack_postgres() }).await;
        let test = &app;
        let (user, product) = (test.user(100_000).await, test.product(1_000, 50).await);
        let conditions = json!({"minOrderPrice": 3_000, "maxDiscountPrice": 100, "productIds": [product, 9]});
        let coupon = coupon_with(test, user, 10, conditions).await;
        let shown = self::coupon(test, user, coupon).await;
        projected(test).await;
        test.flush_redis().await;
        rebuilt(test, RebuildOptions::default()).await;
        ready(test).await;
        assert_eq!(self::coupon(test, user, coupon).await, shown);
        ordered(test, user, &[(product, 2)], coupon).await.refused(400, "INVALID_COUPON");
        assert_eq!(ordered(test, user, &[(product, 3)], coupon).await.ok()["finalPrice"], 2_900);
        app.finish().await;
    }
}

#[tokio::test]
async fn conditions_refused_when_invalid() {
    on_1_and_3(async |test| {
        let before = effects(test).await;
        for bad in [
            json!({"minOrderPrice": 0}),
            json!({"minOrderPrice": -1}),
            json!({"minOrderPrice": 1.5}),
            json!({"minOrderPrice": "1"}),
            // Of a percentage only.
            json!({"maxDiscountPrice": 1}),
            json!({"discountType": "PERCENTAGE", "discountAmount": 5, "maxDiscountPrice": 0}),
            json!({"productIds": []}),
            json!({"productIds": [0]}),
            json!({"productIds": ["1"]}),
            json!({"productIds": {}}),
            json!({"productIds": vec![1; 101]}),
            json!({"categories": []}),
            json!({"categories": ["hats"]}),
            json!({"categories": "HATS"}),
            json!({"categories": vec!["HATS"; 21]}),
            json!({"minOrderPrise": 1}),
        ] {
            let mut body = json!({"couponCode": "IF", "discountType": "FIXED", "discountAmount": 1_000,
                "totalQuantity": 10, "expiredAt": after(test, 86_400_000)});
            body.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
            post(test, "/admin/v1/coupons", body).await.refused(400, "INVALID_REQUEST");
        }
        assert_eq!(effects(test).await, before);
    })
    .await;
}
