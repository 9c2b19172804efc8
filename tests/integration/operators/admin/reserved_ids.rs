//! Ids that a creation has reserved when a resource is brought in under them.

use std::collections::HashSet;

use firstcome::{
    model::{
        Call, CouponConditions, Discount, DiscountType, Error, NewCampaign, NewProduct, NewUser, NewUsers, Partition,
        RECORD_TTL_MS, SaleTerms,
    },
    redis::{keys::Keys, script},
};

use super::*;

/// The first step of a creation: reserves its ids.
async fn reserve(test: &TestApp, call: &Call, sequence: &str, count: i64) -> i64 {
    test.store.ids_reserve(call, sequence, count).await.unwrap().value.first
}

#[tokio::test]
async fn user_gets_another_id_when_its_own_is_put() {
    on_1_and_3(async |test| {
        let call = call(Some(("user", "request")));
        let own = NewUser { name: "own".to_owned(), balance: 5 };
        let taken = reserve(test, &call, "user", 1).await;
        let put_body = json!({"userName": "put", "balance": 70});
        put(test, &format!("/admin/v1/users/{taken}"), put_body).await.created();
        let mut ids = HashSet::from([taken]);
        let first = test.engine.create_user(&call, own.clone()).await.unwrap();
        assert!(first.replayed && ids.insert(first.value.user_id.get()), "{first:?}");
        let done = effects(test).await;
        let again = test.engine.create_user(&call, own.clone()).await.unwrap();
        assert_eq!((again.value.user_id, again.replayed), (first.value.user_id, true));
        assert_eq!(effects(test).await, done);
        assert!(ids.insert(test.user(0).await));
        let shown = get(test, &format!("/api/v1/balances/{taken}")).await.ok();
        assert_eq!((&shown["userName"], &shown["balance"]), (&json!("put"), &json!(70)));
        let shown = get(test, &format!("/api/v1/balances/{}", first.value.user_id)).await.ok();
        assert_eq!((&shown["userName"], &shown["balance"]), (&json!("own"), &json!(5)));
    })
    .await;
}

/// The same without an idempotency key, and of every kind: the record is there when the creation's script comes.
#[tokio::test]
async fn creation_without_key_leaves_what_has_its_id() {
    on_1_and_3(async |test| {
        let user = test.user(0).await + 1;
        let put_user = NewUser { name: "put".to_owned(), balance: 70 };
        let id = UserId::new(user).unwrap();
        test.store.users_put(&call(None), test.store.owner(user), &[(id, &put_user)]).await.unwrap();
        assert_eq!(test.user(9).await, user + 1);
        assert_eq!(get(test, &format!("/api/v1/balances/{user}")).await.ok()["userName"], "put");

        let product = test.product(10, 1).await + 1;
        let new = NewProduct { name: "put".to_owned(), ..new_product() };
        let id = ProductId::new(product).unwrap();
        test.store.product_create(&call(None), id, &new).await.unwrap();
        assert_eq!(test.product(10, 1).await, product + 1);
        assert_eq!(get(test, &format!("/api/v1/products/{product}")).await.ok()["productName"], "put");
    })
    .await;
}

#[tokio::test]
async fn product_and_campaign_get_another_id_when_theirs_is_put() {
    on_1_and_3(async |test| {
        let call_of = |kind: &str| call(Some((kind, "request")));
        let taken = reserve(test, &call_of("product"), "product", 1).await;
        let body = json!({"productName": "put", "price": 7, "stockQuantity": 1, "category": "TOP"});
        put(test, &format!("/admin/v1/products/{taken}"), body).await.created();
        let own = test.engine.create_product(&call_of("product"), new_product()).await.unwrap().value.product_id;
        assert!(own.get() > taken);
        let again = test.engine.create_product(&call_of("product"), new_product()).await.unwrap();
        assert_eq!((again.value.product_id, again.replayed), (own, true));
        assert_eq!(get(test, &format!("/api/v1/products/{taken}")).await.ok()["productName"], "put");
        assert_eq!(get(test, &format!("/api/v1/products/{own}")).await.ok()["stockQuantity"], 3);

        let taken = reserve(test, &call_of("coupon"), "coupon", 1).await;
        let body = json!({"couponCode": "PUT", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
            "expiredAt": after(test, 60_000)});
        put(test, &format!("/admin/v1/coupons/{taken}"), body).await.created();
        let new = new_campaign(test);
        let first = test.engine.create_campaign(&call_of("coupon"), new.clone()).await.unwrap().value;
        assert!(first.terms.coupon_id.get() > taken);
        let again = test.engine.create_campaign(&call_of("coupon"), new).await.unwrap();
        assert_eq!((again.value.terms.coupon_id, again.replayed), (first.terms.coupon_id, true));
        // The repeat has the first reply's beginning, which the request left to the store.
        assert_eq!(again.value.terms.opens_at, first.terms.opens_at);
        assert_eq!(get(test, &format!("/admin/v1/coupons/{taken}")).await.ok()["couponCode"], "PUT");
    })
    .await;
}

#[tokio::test]
async fn bulk_creation_overwrites_no_user() {
    on_1_and_3(async |test| {
        let new = NewUsers { count: 1_600, prefix: "own-".to_owned(), balance: 2 };
        let put_body = json!({"userName": "put", "balance": 70});
        // Of the first batch: the users get other ids.
        let call_of = |kind: &str| call(Some((kind, "request")));
        let range = reserve(test, &call_of("first"), "user", new.count).await;
        put(test, &format!("/admin/v1/users/{range}"), put_body.clone()).await.created();
        let created = test.engine.create_users(&call_of("first"), new.clone()).await.unwrap().value;
        assert_eq!(created.first.get(), range + new.count);
        let again = test.engine.create_users(&call_of("first"), new.clone()).await.unwrap();
        assert_eq!((again.value.first, again.replayed), (created.first, true));
        // Of a later one: what was created before stays, and so does the user that was put.
        let range = reserve(test, &call_of("later"), "user", new.count).await;
        let taken = range + 1_500;
        put(test, &format!("/admin/v1/users/{taken}"), put_body).await.created();
        for _ in 0..2 {
            let refused = test.engine.create_users(&call_of("later"), new.clone()).await.unwrap_err();
            assert!(matches!(refused, Error::InvalidRequest(_)), "{refused}");
        }
        let shown = get(test, &format!("/api/v1/balances/{taken}")).await.ok();
        assert_eq!((&shown["userName"], &shown["balance"]), (&json!("put"), &json!(70)));
        assert_eq!(get(test, &format!("/api/v1/balances/{range}")).await.ok()["balance"], 2);
    })
    .await;
}

/// Requests for the same id at once: what a PUT creates is no other request's.
#[tokio::test]
async fn put_and_creation_never_share_a_record() {
    on_1_and_3(async |test| {
        for round in 0..30 {
            let next = test.user(0).await + 1;
            let path = format!("/admin/v1/users/{next}");
            let (created, put) = tokio::join!(
                post(test, "/admin/v1/users", json!({"userName": format!("own-{round}"), "balance": 5})),
                put(test, &path, json!({"userName": format!("put-{round}"), "balance": 9})),
            );
            let (status, own) = (put.status, id(&created.created(), "userId"));
            assert!(status == 200 || own != next, "{round}: both created {next}");
            assert_eq!(balance(test, own).await, 5, "{round}");
        }
    })
    .await;
}

/// What an earlier version created has no record of its own: a repeat finds it by its id.
#[tokio::test]
async fn creation_of_earlier_version_found_by_repeat() {
    on_1_and_3(async |test| {
        let call = call(Some(("user", "request")));
        let new = NewUser { name: "own".to_owned(), balance: 5 };
        // The script of that version, whose record has no mark.
        let source = script::IDS_RESERVE.source();
        let earlier = source.replace("last - count + 1, '1' }", "last - count + 1 }");
        assert_ne!(earlier, source);
        let (keys, key) = (Keys(Partition(0)), call.key.as_ref().unwrap());
        let mut run = redis::cmd("EVAL");
        run.arg(earlier).arg(4).arg(keys.meta()).arg(keys.outbox()).arg(keys.record(&key.digest)).arg(keys.ids());
        run.arg(test.clock.now().0).arg(&key.fingerprint).arg(RECORD_TTL_MS).arg("test").arg("user").arg(1).arg(1);
        let reply: (String, i64, i64, i64) = run.query_async(&mut test.raw().await).await.unwrap();
        let reserved = reply.3;
        let id = UserId::new(reserved).unwrap();
        test.store.users_put(&call.without_key(), test.store.owner(reserved), &[(id, &new)]).await.unwrap();
        let again = test.engine.create_user(&call, new).await.unwrap();
        assert_eq!((again.value.user_id.get(), again.replayed), (reserved, true));
    })
    .await;
}

fn new_product() -> NewProduct {
    NewProduct {
        name: "own".to_owned(),
        price: 9,
        stock: 3,
        category: "TOP".parse().unwrap(),
        terms: SaleTerms { limit_per_user: Some(2), ..SaleTerms::default() },
    }
}

fn new_campaign(test: &TestApp) -> NewCampaign {
    NewCampaign {
        code: "OWN".to_owned(),
        discount: Discount { kind: DiscountType::Fixed, amount: 5 },
        conditions: CouponConditions::default(),
        total: 3,
        opens_at: None,
        closes_at: None,
        expires_at: test.clock.now().plus(60_000),
    }
}
