//! `Idempotency-Key`: a repeat replays the first reply and has no effect; a key belongs to one request.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    api::writes::{Write, writes},
    support::{
        api_kit::*,
        fake_gateway::{Behaviour, FakeGateway},
        harness::{Options, Reply, TestApp, gateways},
    },
};

/// Asserts that `again` replays `first`.
#[track_caller]
fn assert_replays(first: &Reply, again: &Reply) {
    assert_eq!((again.status, &again.text), (first.status, &first.text));
    assert!(again.replayed() && !first.replayed(), "{}", again.text);
}

#[tokio::test]
async fn repeat_gets_first_reply_without_effect() {
    on_1_and_3(async |test| {
        for (index, write) in writes(test).await.iter().enumerate() {
            let key = format!("key {index}");
            let first = keyed(test, &write.method, &write.path, &write.body, &key).await;
            assert!(first.status.is_success(), "{}: {}", write.path, first.text);
            let done = effects(test).await;
            // Repeats at later times.
            for _ in 0..3 {
                test.clock.advance(1_500);
                let again = keyed(test, &write.method, &write.path, &write.body, &key).await;
                assert_replays(&first, &again);
            }
            // The fingerprint covers the decoded request, so the order of fields, blanks and unknown fields do not
            // matter.
            let fields = write.body.as_object().unwrap();
            let mut spelled: Vec<String> = fields
                .iter()
                .map(|(name, value)| {
                    let dot = if value.is_i64() { ".0" } else { "" };
                    format!("\n  \"{name}\" : {value}{dot}")
                })
                .collect();
            spelled.reverse();
            // The operators' API refuses unknown fields.
            let unknown = if write.path.starts_with("/admin/") { "" } else { "\"unknown\": [null], " };
            let spelled = format!("{{{unknown}{}}}\r\n", spelled.join(","));
            let headers = [("content-type", &b"application/vnd.x+json"[..]), ("idempotency-key", key.as_bytes())];
            let again = headed(test, &write.method, &write.path, &headers, spelled).await;
            assert_replays(&first, &again);

            // Another request under the same key is refused: another body, path or endpoint.
            let (other_path, other) = &write.other;
            let mut others = vec![(write.method.clone(), other_path.clone(), other.clone())];
            others.extend(match write.user {
                Some(user) => {
                    let coupon = json!({"couponId": 77, "userId": user});
                    [
                        (Method::PUT, format!("/api/v1/balances/{user}"), json!({"amount": 9})),
                        (Method::POST, "/api/v1/coupons/issue".to_owned(), coupon),
                        (Method::POST, format!("/api/v1/orders/{}/cancel", 1_000_001), json!({"userId": user})),
                    ]
                }
                None => {
                    let campaign = json!({"couponCode": "Y", "discountType": "FIXED", "discountAmount": 3,
                        "totalQuantity": 1, "expiredAt": "2030-01-01T00:00:00"});
                    [
                        (Method::POST, "/admin/v1/users".to_owned(), json!({"userName": "somebody else"})),
                        (Method::POST, "/admin/v1/coupons".to_owned(), campaign),
                        (Method::PATCH, "/admin/v1/products/1".to_owned(), json!({"stockDelta": 77})),
                    ]
                }
            });
            for (method, path, body) in &others {
                let reused = keyed(test, method, path, body, &key).await;
                reused.refused(422, "IDEMPOTENCY_KEY_REUSED");
                assert!(!reused.replayed());
            }
            // The body is validated before the key.
            let headers = [("content-type", &b"application/json"[..]), ("idempotency-key", key.as_bytes())];
            assert_eq!(headed(test, &write.method, &write.path, &headers, "{").await.status, 400);
            assert_eq!(effects(test).await, done, "{}", write.path);
            // Keys are case-sensitive.
            let other_key = keyed(test, &write.method, &write.path, &write.body, &key.to_uppercase()).await;
            assert!(!other_key.replayed(), "{}", other_key.text);
        }
    })
    .await;
}

#[tokio::test]
async fn key_expires_after_24_hours() {
    on_1_and_3(async |test| {
        let mut redis = test.raw().await;
        let ttls = async |redis: &mut redis::aio::MultiplexedConnection| -> BTreeMap<String, i64> {
            let mut ttls = BTreeMap::new();
            let found: Vec<String> = redis::cmd("KEYS").arg("*:idem:*").query_async(redis).await.unwrap();
            for key in found {
                ttls.insert(key.clone(), redis::cmd("PTTL").arg(&key).query_async(redis).await.unwrap());
            }
            ttls
        };
        for (index, write) in writes(test).await.iter().enumerate() {
            let before = ttls(&mut redis).await;
            let key = format!("key {index}");
            assert!(keyed(test, &write.method, &write.path, &write.body, &key).await.status.is_success());
            let after = ttls(&mut redis).await;
            let new: Vec<_> = after.iter().filter(|(key, _)| !before.contains_key(*key)).collect();
            assert!(!new.is_empty(), "{}", write.path);
            for (key, life) in new {
                assert!(
                    (86_400_000 - 600_000..=86_400_000).contains(life),
                    "{}: the TTL of {key} is {life} ms",
                    write.path
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn refusal_not_recorded() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(0).await, test.product(1_000, 0).await);
        let order = order_of(user, &[(product, 1)], None);
        let place = async || keyed(test, &Method::POST, "/api/v1/orders", &order, "one key").await;
        place().await.refused(409, "SOLD_OUT");
        patch(test, &format!("/admin/v1/products/{product}"), json!({"stockDelta": 1})).await.ok();
        place().await.refused(402, "INSUFFICIENT_BALANCE");
        put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1_000})).await.ok();
        let placed = place().await;
        assert!(placed.status.is_success() && !placed.replayed());
        assert_replays(&placed, &place().await);

        let pay = async |amount: i64, key: &str| {
            let order = placed.json()["orderId"].clone();
            let body = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": amount});
            keyed(test, &Method::POST, "/api/v1/payments", &body, key).await
        };
        pay(999, "wrong amount").await.refused(400, "INVALID_PAYMENT_REQUEST");
        pay(999, "wrong amount").await.refused(400, "INVALID_PAYMENT_REQUEST");
        let paid = pay(1_000, "paid").await;
        assert_replays(&paid, &pay(1_000, "paid").await);
        pay(1_000, "paid again").await.refused(409, "ORDER_ALREADY_PAID");

        // Retries of a refused request under its key: the user now exists, the window is now open.
        let next = json!({"amount": 5});
        let path = format!("/api/v1/balances/{}", user + 1);
        keyed(test, &Method::PUT, &path, &next, "soon").await.refused(404, "USER_NOT_FOUND");
        test.user(0).await;
        assert_eq!(keyed(test, &Method::PUT, &path, &next, "soon").await.ok()["balance"], 5);
        let campaign = campaign_with(test, json!({"opensAt": after(test, 1_000)})).await;
        let body = json!({"couponId": campaign, "userId": user});
        keyed(test, &Method::POST, "/api/v1/coupons/issue", &body, "early").await.refused(400, "INVALID_COUPON");
        test.clock.advance(1_000);
        keyed(test, &Method::POST, "/api/v1/coupons/issue", &body, "early").await.ok();
    })
    .await;
}

#[tokio::test]
async fn repeat_of_declined_payment_is_declined() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(1_000).await, test.product(1_000, 5).await);
        let first = placed(test, user, &[(product, 1)], None).await;
        let second = placed(test, user, &[(product, 1)], None).await;
        pay(test, first, user, 1_000).await.ok();
        let body = json!({"orderId": second, "userId": user, "paymentType": "CARD", "amount": 1_000});
        let declined = keyed(test, &Method::POST, "/api/v1/payments", &body, "k").await;
        declined.refused(402, "INSUFFICIENT_BALANCE");
        // A declined payment closes the order, so its reply is recorded and later charges do not change it.
        put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 100_000})).await.ok();
        let done = effects(test).await;
        let again = keyed(test, &Method::POST, "/api/v1/payments", &body, "k").await;
        assert_replays(&declined, &again);
        let without = keyed(test, &Method::POST, "/api/v1/payments", &body, "another").await;
        without.refused(400, "INVALID_PAYMENT_REQUEST");
        if test.options.partitions == 1 {
            assert_eq!(effects(test).await, done);
        }
    })
    .await;
}

#[tokio::test]
async fn repeat_gets_first_reply_when_state_has_changed() {
    on_1_and_3(async |test| {
        let user = test.user(10_000).await;
        let new = json!({"productName": "x", "price": 1_000, "stockQuantity": 3, "category": "TOP"});
        let product = async || keyed(test, &Method::POST, "/admin/v1/products", &new, "product").await;
        let created = product().await;
        let product_id = id(&created.json(), "productId");
        let new = json!({"couponCode": "X", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
            "opensAt": after(test, 0), "expiredAt": after(test, 3_600_000)});
        let campaign = async || keyed(test, &Method::POST, "/admin/v1/coupons", &new, "campaign").await;
        let opened = campaign().await;
        let coupon = id(&opened.json(), "couponId");
        let body = json!({"couponId": coupon, "userId": user});
        let issue = async || keyed(test, &Method::POST, "/api/v1/coupons/issue", &body, "issue").await;
        let issued = issue().await;
        let order = order_of(user, &[(product_id, 3)], Some(coupon));
        let place = async || keyed(test, &Method::POST, "/api/v1/orders", &order, "order").await;
        let placed = place().await;
        let order_id = id(&placed.json(), "orderId");
        let payment = json!({"orderId": order_id, "userId": user, "paymentType": "CARD", "amount": 2_999});
        let pay = async || keyed(test, &Method::POST, "/api/v1/payments", &payment, "pay").await;
        let paid = pay().await;
        let charge = async || {
            keyed(test, &Method::PUT, &format!("/api/v1/balances/{user}"), &json!({"amount": 5}), "charge").await
        };
        let charged = charge().await;
        let path = format!("/api/v1/orders/{order_id}/cancel");
        let cancel = async || keyed(test, &Method::POST, &path, &json!({"userId": user}), "cancel").await;
        let cancelled = cancel().await;
        patch(test, &format!("/admin/v1/products/{product_id}"), json!({"price": 7, "productName": "y"})).await.ok();

        // One second before the keys expire: the campaign is closed, the product repriced, the order refunded.
        test.clock.advance(86_399_000);
        test.engine.sweep().await.unwrap();
        let done = effects(test).await;
        assert_replays(&created, &product().await);
        assert_replays(&opened, &campaign().await);
        assert_replays(&issued, &issue().await);
        assert_replays(&placed, &place().await);
        assert_replays(&paid, &pay().await);
        assert_replays(&charged, &charge().await);
        assert_replays(&cancelled, &cancel().await);
        assert_eq!(effects(test).await, done);
    })
    .await;
}

/// The request has no `opensAt`, so its validity depends on the time.
#[tokio::test]
async fn repeat_gets_created_campaign_after_its_end() {
    on_1_and_3(async |test| {
        let new = json!({"couponCode": "X", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
            "expiredAt": after(test, 3_600_000)});
        let create = async || keyed(test, &Method::POST, "/admin/v1/coupons", &new, "k").await;
        let first = create().await;
        first.created();
        test.clock.advance(3_600_000);
        let again = create().await;
        assert!(again.replayed(), "{}", again.text);
        again.created();
        // Without the key, the request describes a campaign that ends before it opens.
        post(test, "/admin/v1/coupons", new.clone()).await.refused(400, "INVALID_REQUEST");
    })
    .await;
}

/// A coupon is issued in the partition of its campaign and a charge in the partition of its user. Operators create in
/// partition 0.
#[tokio::test]
async fn key_reused_for_other_request_refused_across_partitions() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    let first = id(&post(&test, "/admin/v1/users/bulk", json!({"count": 3})).await.created(), "firstUserId");
    let product = test.product(10, 10).await;
    let charge = json!({"amount": 1});
    for user in first..first + 3 {
        for order in [[true, false], [false, true]] {
            let campaign = test.campaign("FIXED", 10, 10).await;
            let (key, path) = (format!("{user} {campaign}"), format!("/api/v1/balances/{user}"));
            let coupon = json!({"couponId": campaign, "userId": user});
            let mut replies = Vec::new();
            for charges in order {
                replies.push(match charges {
                    true => keyed(&test, &Method::PUT, &path, &charge, &key).await,
                    false => keyed(&test, &Method::POST, "/api/v1/coupons/issue", &coupon, &key).await,
                });
            }
            assert!(replies[0].status.is_success(), "{}", replies[0].text);
            replies[1].refused(422, "IDEMPOTENCY_KEY_REUSED");
            let mut replies = Vec::new();
            for creates in order {
                replies.push(match creates {
                    true => keyed(&test, &Method::POST, "/admin/v1/users", &json!({"userName": "x"}), &key).await,
                    false => {
                        let restock = json!({"stockDelta": 1});
                        let path = format!("/admin/v1/products/{product}");
                        keyed(&test, &Method::PATCH, &path, &restock, &key).await
                    }
                });
            }
            assert!(replies[0].status.is_success(), "{}", replies[0].text);
            replies[1].refused(422, "IDEMPOTENCY_KEY_REUSED");
        }
    }
    test.finish().await;
}

/// The first request runs until its gateway replies.
#[tokio::test]
async fn repeat_refused_while_first_runs() {
    for partitions in [1, 3] {
        let gateway = FakeGateway::start().await;
        gateway.next(Behaviour::ApproveLate);
        let gateway_of_toss = gateways(&[("TOSS", gateway.url())]);
        let test = TestApp::with(Options { partitions, gateway: gateway_of_toss, ..Options::default() }).await;
        let (user, product) = (test.user(0).await, test.product(1_000, 5).await);
        let order = placed(&test, user, &[(product, 1)], None).await;
        let payment = |amount: i64| json!({"orderId": order, "userId": user, "paymentType": "TOSS", "amount": amount});
        let body = payment(1_000);
        let pay = || keyed(&test, &Method::POST, "/api/v1/payments", &body, "k");
        let meanwhile = async {
            let receipt = gateway.any_posted().await;
            pay().await.refused(409, "REQUEST_IN_PROGRESS");
            let other = keyed(&test, &Method::POST, "/api/v1/payments", &payment(1), "k").await;
            other.refused(422, "IDEMPOTENCY_KEY_REUSED");
            // Neither another request nor a cancellation ends the order meanwhile.
            let without = post(&test, "/api/v1/payments", body.clone()).await;
            without.refused(409, "REQUEST_IN_PROGRESS");
            cancel(&test, order, user).await.refused(409, "REQUEST_IN_PROGRESS");
            gateway.release_late();
            receipt
        };
        let (first, receipt) = tokio::join!(pay(), meanwhile);
        assert_eq!(first.json()["receipt"], receipt);
        assert_replays(&first, &pay().await);
        assert_eq!((gateway.total_posts(), gateway.total_kept()), (1, 1_000));
        assert!(gateway.faults().is_empty());
        test.finish().await;
    }
}

/// Sends the same request under the same key fifty times concurrently. Returns the first reply and the 49 replays.
async fn send_fifty(test: &TestApp, write: &Write, key: &str) -> (Reply, Vec<Reply>) {
    let mut requests = JoinSet::new();
    for _ in 0..50 {
        let mut request = test.client.request(write.method.clone(), format!("{}{}", test.base, write.path));
        request = request.json(&write.body).header("Idempotency-Key", key);
        if write.path.starts_with("/admin") {
            request = request.bearer_auth(crate::support::harness::ADMIN);
        }
        requests.spawn(crate::support::harness::read(request));
    }
    let replies = requests.join_all().await;
    for reply in &replies {
        in_contract(&write.path, reply);
        document(test).await.check_reply(write.method.as_str(), &write.path, reply);
    }
    let (first, again): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| !reply.replayed());
    let [first] = <[Reply; 1]>::try_from(first).unwrap_or_else(|many| panic!("{} firsts: {many:?}", many.len()));
    (first, again)
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_repeats_have_one_effect_and_one_reply() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        for (index, write) in writes(&test).await.iter().enumerate() {
            let before = test.get("/admin/v1/projection").await.ok()["lagEvents"].as_i64().unwrap();
            let (first, again) = send_fifty(&test, write, &format!("key {index}")).await;
            assert!(first.status.is_success(), "{}: {}", write.path, first.text);
            assert_eq!(again.len(), 49);
            for again in &again {
                assert_replays(&first, again);
            }
            // All repeats together decide as often as one request.
            let decided = test.get("/admin/v1/projection").await.ok()["lagEvents"].as_i64().unwrap() - before;
            if partitions == 1 {
                // Creating reserves ids first, in a decision of its own.
                let decisions = match (write.path.ends_with("/bulk"), write.method == Method::POST) {
                    (true, _) => 4,
                    (_, true) if write.path.starts_with("/admin") && !write.path.ends_with("/refund") => 2,
                    // What has an id from elsewhere is skipped first, and an opening balance is a decision of its own.
                    _ if write.path == "/admin/v1/users/70001" => 3,
                    _ if write.path.ends_with("/70001") => 2,
                    // Placed and paid.
                    _ if !write.body["payment"].is_null() => 2,
                    _ => 1,
                };
                assert_eq!(decided, decisions, "{}", write.path);
            }
        }
        test.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_repeats_of_declined_payment_decline_once() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(1_000).await, test.product(1_000, 5).await);
    let first = placed(&test, user, &[(product, 1)], None).await;
    let second = placed(&test, user, &[(product, 1)], None).await;
    pay(&test, first, user, 1_000).await.ok();
    let body = json!({"orderId": second, "userId": user, "paymentType": "CARD", "amount": 1_000});
    let path = "/api/v1/payments".to_owned();
    let write = Write { method: Method::POST, other: (path.clone(), body.clone()), path, body, user: Some(user) };
    let (declined, again) = send_fifty(&test, &write, "k").await;
    declined.refused(402, "INSUFFICIENT_BALANCE");
    again.iter().for_each(|again| assert_replays(&declined, again));
    assert_eq!(stock(&test, product).await, 4);
    test.finish().await;
}

/// A key is scoped to its caller: the same text is a different key for another user and for an operator.
#[tokio::test]
async fn key_of_one_user_free_for_others() {
    on_1_and_3(async |test| {
        let (first, second) = (test.user(0).await, test.user(0).await);
        let campaign = test.campaign("FIXED", 100, 10).await;
        for user in [first, second] {
            let amount = json!({"amount": user});
            let charged = keyed(test, &Method::PUT, &format!("/api/v1/balances/{user}"), &amount, "mine").await;
            assert!(!charged.replayed());
            assert_eq!(charged.ok()["balance"], user);
            let coupon = json!({"couponId": campaign, "userId": user});
            let issued = keyed(test, &Method::POST, "/api/v1/coupons/issue", &coupon, "coupon").await;
            assert!(!issued.replayed());
            issued.ok();
            // The key stays bound to this user's first request, in every partition.
            for key in ["mine", "coupon"] {
                let other = json!({"amount": 7});
                let other = keyed(test, &Method::PUT, &format!("/api/v1/balances/{user}"), &other, key).await;
                other.refused(422, "IDEMPOTENCY_KEY_REUSED");
                let other = json!({"couponId": campaign + 1, "userId": user});
                let other = keyed(test, &Method::POST, "/api/v1/coupons/issue", &other, key).await;
                other.refused(422, "IDEMPOTENCY_KEY_REUSED");
                let other = order_of(user, &[(1, 1)], None);
                keyed(test, &Method::POST, "/api/v1/orders", &other, key).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
            }
        }
        let created = keyed(test, &Method::POST, "/admin/v1/users", &json!({"userName": "x"}), "mine").await;
        assert!(!created.replayed());
        created.created();
    })
    .await;
}
