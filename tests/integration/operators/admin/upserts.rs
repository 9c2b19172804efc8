//! Users, products and campaigns brought in under the ids that they have elsewhere.

use firstcome::recovery::rebuild::{LossBounds, RebuildOptions};

use super::*;
use crate::recovery::rebuild::rebuilt;

#[tokio::test]
async fn user_put_is_created_renamed_or_left() {
    on_1_and_3(async |test| {
        let (own, foreign) = (test.user(0).await, 70_001);
        let path = format!("/admin/v1/users/{foreign}");
        let body = json!({"userName": "이다은", "balance": 12_000_000});
        let shown = json!({"userId": foreign, "userName": "이다은", "balance": 12_000_000});
        assert_eq!(put(test, &path, body.clone()).await.created(), shown);
        // The opening balance is the first entry of the history.
        let history = get(test, &format!("/api/v1/balances/{foreign}/history")).await.ok();
        assert_eq!((history[0]["transactionType"].as_str(), &history[0]["entryNo"]), (Some("CHARGE"), &json!(1)));
        assert_eq!((&history[0]["before_balance"], &history[0]["after_balance"]), (&json!(0), &json!(12_000_000)));
        let done = effects(test).await;
        assert_eq!(put(test, &path, body).await.ok(), shown);
        assert_eq!(effects(test).await, done);
        // A history that has begun keeps its balance.
        test.put_charge(foreign, 500).await.ok();
        let renamed = put(test, &path, json!({"userName": "이하늘", "balance": 9})).await.ok();
        assert_eq!(renamed, json!({"userId": foreign, "userName": "이하늘", "balance": 12_000_500}));
        assert_eq!(get(test, &format!("/api/v1/balances/{foreign}")).await.ok()["userName"], "이하늘");
        // One that has not begins with the opening balance.
        let opened = put(test, &format!("/admin/v1/users/{own}"), json!({"userName": "u", "balance": 7})).await.ok();
        assert_eq!(opened["balance"], 7);
        // New ids are above it.
        assert_eq!(test.user(0).await, foreign + 1);
        put(test, "/admin/v1/users/60000", json!({"userName": "x"})).await.created();
        assert_eq!(test.user(0).await, foreign + 2);
        test.drain().await;
        let names = sqlx::query_scalar::<_, String>("SELECT name FROM users WHERE id = 70001");
        assert_eq!(names.fetch_one(test.db.get_postgres_connection_pool()).await.unwrap(), "이하늘");
    })
    .await;
}

#[tokio::test]
async fn product_put_changes_all_but_units() {
    on_1_and_3(async |test| {
        let path = "/admin/v1/products/70002";
        let body = json!({"productName": "에어포스", "price": 990, "stockQuantity": 5, "category": "SHOES"});
        let created = put(test, path, body.clone()).await.created();
        let mut shown = with_terms(body.clone());
        shown["productId"] = json!(70_002);
        assert_eq!(created, shown);
        let user = test.user(10_000).await;
        bought(test, user, 70_002, 2).await;
        let done = effects(test).await;
        shown["stockQuantity"] = json!(3);
        assert_eq!(put(test, path, body).await.ok(), shown);
        assert_eq!(effects(test).await, done);
        let changed = json!({"productName": "에어포스 2", "price": 1_000, "stockQuantity": 50, "category": "TOP",
            "opensAt": after(test, -60_000), "limitPerUser": 2, "limitGroup": "G-1"});
        let changed = put(test, path, changed).await.ok();
        assert_eq!((&changed["productName"], &changed["price"]), (&json!("에어포스 2"), &json!(1_000)));
        assert_eq!((&changed["stockQuantity"], &changed["limitPerUser"]), (&json!(3), &json!(2)));
        // Terms that are left out stay.
        let done = effects(test).await;
        let mut plain = json!({"productName": "에어포스 2", "price": 1_000, "stockQuantity": 0, "category": "TOP"});
        assert_eq!(put(test, path, plain.clone()).await.ok(), changed);
        assert_eq!(effects(test).await, done);
        plain["limitPerUser"] = json!(null);
        put(test, path, plain.clone()).await.refused(400, "INVALID_REQUEST");
        assert_eq!(effects(test).await, done);
        plain["limitGroup"] = json!(null);
        let plain = put(test, path, plain).await.ok();
        assert!(plain["limitPerUser"].is_null() && plain["opensAt"] == changed["opensAt"], "{plain}");
        assert_eq!(test.product(1, 1).await, 70_003);
        let done = effects(test).await;
        let other_limit = json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP",
            "limitPerUser": 3, "limitGroup": "G-1"});
        put(test, "/admin/v1/products/80000", other_limit).await.refused(400, "INVALID_REQUEST");
        assert_eq!(effects(test).await, done);
    })
    .await;
}

#[tokio::test]
async fn campaign_put_moves_only_the_window() {
    on_1_and_3(async |test| {
        let path = "/admin/v1/coupons/70003";
        let (opens, closes, expires) = (after(test, -1_000), after(test, 60_000), after(test, 120_000));
        let body = json!({"couponCode": "OLD", "discountType": "FIXED", "discountAmount": 1_000, "totalQuantity": 5,
            "opensAt": opens, "closesAt": closes, "expiredAt": expires, "minOrderPrice": 30});
        let created = put(test, path, body.clone()).await.created();
        assert_eq!((&created["couponId"], &created["remainingQuantity"]), (&json!(70_003), &json!(5)));
        let user = test.user(0).await;
        issue(test, 70_003, user).await.ok();
        let done = effects(test).await;
        assert_eq!(put(test, path, body.clone()).await.ok()["issuedQuantity"], 1);
        let mut open_ended = body.clone();
        open_ended.as_object_mut().unwrap().retain(|name, _| name != "opensAt" && name != "closesAt");
        assert_eq!(put(test, path, open_ended).await.ok()["closesAt"], json!(closes));
        for (field, value) in [("couponCode", json!("NEW")), ("totalQuantity", json!(6)), ("minOrderPrice", json!(31))]
        {
            let mut other = body.clone();
            other[field] = value;
            put(test, path, other).await.refused(400, "INVALID_REQUEST");
        }
        assert_eq!(effects(test).await, done);
        let mut later = body;
        later["closesAt"] = json!(after(test, 90_000));
        let moved = put(test, path, later).await.ok();
        assert_eq!((&moved["closesAt"], &moved["issuedQuantity"]), (&json!(after(test, 90_000)), &json!(1)));
        assert_eq!(test.campaign("FIXED", 1, 1).await, 70_004);
    })
    .await;
}

#[tokio::test]
async fn put_refused_when_id_leaves_no_room() {
    on_1_and_3(async |test| {
        let done = effects(test).await;
        let too_high = i64::pow(2, 53) - 1_000_000_000_000;
        let bodies = [
            ("users", json!({"userName": "x"}), "USER_NOT_FOUND"),
            (
                "products",
                json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP"}),
                "PRODUCT_NOT_FOUND",
            ),
            (
                "coupons",
                json!({"couponCode": "X", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
                    "expiredAt": after(test, 60_000)}),
                "COUPON_NOT_FOUND",
            ),
        ];
        for (kind, body, unknown) in bodies {
            put(test, &format!("/admin/v1/{kind}/{too_high}"), body.clone()).await.refused(400, "INVALID_REQUEST");
            for hostile in ["0", "-1", "x", "9007199254740992"] {
                put(test, &format!("/admin/v1/{kind}/{hostile}"), body.clone()).await.refused(404, unknown);
            }
            put(test, &format!("/admin/v1/{kind}/1"), json!({})).await.refused(400, "INVALID_REQUEST");
        }
        assert_eq!(effects(test).await, done);
        let highest = too_high - 1;
        put(test, &format!("/admin/v1/users/{highest}"), json!({"userName": "x", "balance": 1})).await.created();
        assert_eq!(test.user(0).await, too_high);
    })
    .await;
}

#[tokio::test]
async fn put_refused_leaves_new_ids_and_groups() {
    on_1_and_3(async |test| {
        let done = effects(test).await;
        let coupon = json!({"couponCode": "X", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
            "expiredAt": after(test, -60_000)});
        put(test, "/admin/v1/coupons/80000", coupon).await.refused(400, "INVALID_REQUEST");
        let mut product = json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP",
            "limitGroup": "NEW"});
        put(test, "/admin/v1/products/80000", product.clone()).await.refused(400, "INVALID_REQUEST");
        product["limitPerUser"] = json!(1);
        let too_high = i64::pow(2, 53) - 1_000_000_000_000;
        put(test, &format!("/admin/v1/products/{too_high}"), product.clone()).await.refused(400, "INVALID_REQUEST");
        assert_eq!(effects(test).await, done);
        assert!(test.campaign("FIXED", 1, 1).await < 80_000 && test.product(1, 1).await < 80_000);
        product["limitPerUser"] = json!(2);
        put(test, "/admin/v1/products/80000", product).await.created();
    })
    .await;
}

#[tokio::test]
async fn put_users_survive_rebuild_with_higher_new_ids() {
    on_1_and_3(async |test| {
        put(test, "/admin/v1/users/70001", json!({"userName": "a", "balance": 5})).await.created();
        put(test, "/admin/v1/users/70001", json!({"userName": "b", "balance": 6})).await.ok();
        test.drain().await;
        test.flush_redis().await;
        rebuilt(test, RebuildOptions { lost_at_most: LossBounds::Each(0), ..Default::default() }).await;
        let shown = get(test, "/api/v1/balances/70001").await.ok();
        assert_eq!((&shown["userName"], &shown["balance"]), (&json!("b"), &json!(5)));
        assert!(test.user(0).await > 70_001);
    })
    .await;
}
