//! When products are on sale, and how many units a user may have.

use firstcome::recovery::rebuild::RebuildOptions;

use super::*;
use crate::{
    recovery::rebuild::{ack_postgres, projected, ready, rebuilt},
    support::harness::Reply,
};

const DAY_MS: i64 = 86_400_000;

fn product(more: Value) -> Value {
    let mut body = json!({"productName": "한정판", "price": 100, "stockQuantity": 50, "category": "SHOES"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn created(test: &TestApp, more: Value) -> i64 {
    id(&post(test, "/admin/v1/products", product(more)).await.created(), "productId")
}

async fn update(test: &TestApp, product: i64, body: Value) -> Reply {
    patch(test, &format!("/admin/v1/products/{product}"), body).await
}

async fn order(test: &TestApp, user: i64, lines: &[(i64, i64)]) -> Reply {
    post(test, "/api/v1/orders", order_of(user, lines, None)).await
}

/// The status in the reply of the product and in the list.
async fn status(test: &TestApp, product: i64) -> String {
    let shown = get(test, &format!("/api/v1/products/{product}")).await.ok();
    let listed = get(test, "/api/v1/products?size=100").await.ok();
    let mut listed = listed["content"].as_array().unwrap().iter();
    assert_eq!(listed.find(|listed| listed["productId"] == product), Some(&shown));
    shown["saleStatus"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn product_sold_within_window_only() {
    on_1_and_3(async |test| {
        let users = [test.user(10_000).await, test.user(10_000).await, test.user(10_000).await];
        let terms = json!({"opensAt": after(test, 60_000), "closesAt": after(test, 120_000), "limitPerUser": 2});
        let new = product(terms.clone());
        let shown = post(test, "/admin/v1/products", new.clone()).await.created();
        let product = id(&shown, "productId");
        for (name, value) in new.as_object().unwrap() {
            assert_eq!(&shown[name], value, "{name}");
        }
        assert_eq!((&shown["saleStatus"], &shown["limitGroup"]), (&json!("SCHEDULED"), &Value::Null));
        for user in users {
            order(test, user, &[(product, 1)]).await.refused(409, "NOT_ON_SALE");
        }
        test.clock.advance(59_999);
        assert_eq!(status(test, product).await, "SCHEDULED");
        order(test, users[0], &[(product, 1)]).await.refused(409, "NOT_ON_SALE");
        test.clock.advance(1);
        assert_eq!(status(test, product).await, "ON_SALE");
        for user in users {
            order(test, user, &[(product, 1)]).await.ok();
        }
        update(test, product, json!({"stockDelta": -47})).await.ok();
        assert_eq!(status(test, product).await, "SOLD_OUT");
        order(test, users[0], &[(product, 1)]).await.refused(409, "SOLD_OUT");
        test.clock.advance(60_000);
        assert_eq!(status(test, product).await, "ENDED");
        order(test, users[0], &[(product, 1)]).await.refused(409, "NOT_ON_SALE");
        // Open without an end.
        let open = update(test, product, json!({"closesAt": null, "stockDelta": 3})).await.ok();
        assert_eq!((&open["saleStatus"], &open["closesAt"]), (&json!("ON_SALE"), &Value::Null));
        for user in users {
            order(test, user, &[(product, 1)]).await.ok();
        }
    })
    .await;
}

#[tokio::test]
async fn limit_counts_held_and_paid_units_of_all_orders() {
    on_1_and_3(async |test| {
        let (user, other) = (test.user(100_000).await, test.user(100_000).await);
        let mut sizes = Vec::new();
        for _ in 0..3 {
            sizes.push(created(test, json!({"limitPerUser": 3, "limitGroup": "AIR-1"})).await);
        }
        let own = created(test, json!({"limitPerUser": 1})).await;
        order(test, user, &[(sizes[0], 2), (sizes[1], 2)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        let held = placed(test, user, &[(sizes[0], 1), (own, 1)], None).await;
        let paid = bought(test, user, sizes[1], 1).await;
        order(test, user, &[(sizes[2], 2)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        order(test, user, &[(own, 1)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        order(test, other, &[(sizes[2], 3), (own, 1)]).await.ok();
        let last = placed(test, user, &[(sizes[2], 1)], None).await;
        order(test, user, &[(sizes[0], 1)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        // Who has one already is not told that it is sold out.
        update(test, own, json!({"stockDelta": -48})).await.ok();
        order(test, user, &[(own, 1)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        order(test, test.user(0).await, &[(own, 1)]).await.refused(409, "SOLD_OUT");

        // A refund, a cancellation, an expiry and a declined payment give back.
        cancel(test, paid, user).await.ok();
        cancel(test, held, user).await.ok();
        order(test, user, &[(sizes[0], 3)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        let again = placed(test, user, &[(sizes[0], 2)], None).await;
        test.clock.advance(600_000);
        test.engine.sweep().await.unwrap();
        for closed in [again, last] {
            assert_eq!(detail(test, closed).await["closeReason"], "EXPIRED");
        }
        let (declined, spends) = (
            placed(test, user, &[(sizes[1], 3)], None).await,
            placed(test, user, &[(test.product(99_900, 1).await, 1)], None).await,
        );
        pay(test, spends, user, 99_900).await.ok();
        pay(test, declined, user, 300).await.refused(402, "INSUFFICIENT_BALANCE");
        order(test, user, &[(sizes[2], 1)]).await.ok();
    })
    .await;
}

#[tokio::test]
async fn limit_kept_across_eviction_and_rebuild() {
    for partitions in [1, 3] {
        let app = TestApp::with(Options { partitions, ..ack_postgres() }).await;
        let test = &app;
        let user = test.user(100_000).await;
        let terms = json!({"closesAt": after(test, DAY_MS * 30), "limitPerUser": 3, "limitGroup": "AIR_2"});
        let (one, two) = (created(test, terms.clone()).await, created(test, terms).await);
        let paid = bought(test, user, one, 1).await;
        placed(test, user, &[(two, 1)], None).await;
        projected(test).await;
        // The paid order leaves Redis, and what it counts stays.
        test.expire_evicted().await;
        order(test, user, &[(one, 2)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        test.flush_redis().await;
        rebuilt(test, RebuildOptions::default()).await;
        ready(test).await;
        order(test, user, &[(one, 2)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        let other_limit = product(json!({"limitPerUser": 2, "limitGroup": "AIR_2"}));
        post(test, "/admin/v1/products", other_limit).await.refused(400, "INVALID_REQUEST");
        cancel(test, paid, user).await.ok();
        order(test, user, &[(one, 2)]).await.ok();
        order(test, user, &[(two, 1)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        app.finish().await;
    }
}

#[tokio::test]
async fn terms_refused_as_a_whole_when_invalid() {
    on_1_and_3(async |test| {
        let (early, late) = (after(test, DAY_MS), after(test, 2 * DAY_MS));
        let grouped = created(test, json!({"limitPerUser": 2, "limitGroup": "G-1"})).await;
        let window = created(test, json!({"opensAt": early, "closesAt": late})).await;
        let plain = test.product(100, 1).await;
        let before = effects(test).await;
        for bad in [
            json!({"opensAt": late, "closesAt": early}),
            json!({"opensAt": early, "closesAt": early}),
            json!({"limitPerUser": 0}),
            json!({"limitPerUser": -1}),
            json!({"limitPerUser": 10_001}),
            json!({"limitPerUser": 1.5}),
            json!({"limitPerUser": "1"}),
            json!({"opensAt": "2026-03-03"}),
            json!({"limitGroup": "G-2"}),
            json!({"limitPerUser": 2, "limitGroup": ""}),
            json!({"limitPerUser": 2, "limitGroup": "g"}),
            json!({"limitPerUser": 2, "limitGroup": "A B"}),
            json!({"limitPerUser": 2, "limitGroup": "A".repeat(33)}),
            // The products of a group have one limit.
            json!({"limitPerUser": 3, "limitGroup": "G-1"}),
            json!({"limitPerUsr": 3}),
        ] {
            post(test, "/admin/v1/products", product(bad.clone())).await.refused(400, "INVALID_REQUEST");
            update(test, plain, bad.clone()).await.refused(400, "INVALID_REQUEST");
        }
        for (id, bad) in [
            (grouped, json!({"limitPerUser": 3, "price": 1})),
            (grouped, json!({"limitPerUser": null, "productName": "x"})),
            (window, json!({"opensAt": late, "stockDelta": 1})),
            (window, json!({"closesAt": early})),
        ] {
            update(test, id, bad.clone()).await.refused(400, "INVALID_REQUEST");
        }
        update(test, 1_000_000, json!({"limitPerUser": 1})).await.refused(404, "PRODUCT_NOT_FOUND");
        assert_eq!(effects(test).await, before);
    })
    .await;
}

#[tokio::test]
async fn terms_updated_and_repeated_under_key() {
    on_1_and_3(async |test| {
        let user = test.user(10_000).await;
        let product = created(test, json!({})).await;
        let path = format!("/admin/v1/products/{product}");
        let change = json!({"limitPerUser": 2, "limitGroup": "G-9", "closesAt": after(test, 60_000)});
        let first = keyed(test, &Method::PATCH, &path, &change, "a").await.ok();
        assert_eq!((&first["limitPerUser"], &first["limitGroup"]), (&json!(2), &json!("G-9")));
        placed(test, user, &[(product, 2)], None).await;
        // Units that were ordered under a limit stay with it.
        let alone = json!({"limitPerUser": 3, "limitGroup": null, "closesAt": null});
        let second = keyed(test, &Method::PATCH, &path, &alone, "b").await.ok();
        assert_eq!((&second["limitPerUser"], &second["limitGroup"]), (&json!(3), &Value::Null));
        for (key, change, reply) in [("a", &change, &first), ("b", &alone, &second)] {
            let again = keyed(test, &Method::PATCH, &path, change, key).await;
            assert!(again.replayed());
            assert_eq!(&again.ok(), reply);
        }
        order(test, user, &[(product, 4)]).await.refused(409, "PURCHASE_LIMIT_EXCEEDED");
        order(test, user, &[(product, 3)]).await.ok();
        let free = update(test, product, json!({"limitPerUser": null})).await.ok();
        assert_eq!(free["limitPerUser"], Value::Null);
        order(test, user, &[(product, 9)]).await.ok();
    })
    .await;
}
