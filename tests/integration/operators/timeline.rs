//! The timeline of a user or an order, including events that PostgreSQL does not have yet.

use serde_json::{Value, json};

use crate::support::{
    api_kit::{bought, get, id, on_1_and_3, order_of, pay, placed, post},
    harness::TestApp,
};

fn events(timeline_of: &Value) -> Vec<&str> {
    timeline_of["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect()
}

async fn timeline_of(test: &TestApp, of: &str, id: i64) -> Value {
    get(test, &format!("/admin/v1/{of}/{id}/timeline")).await.ok()
}

#[tokio::test]
async fn user_timeline_complete() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(1_000).await, test.product(100, 90).await);
        let coupon = test.campaign("FIXED", 10, 5).await;
        test.issue(coupon, user).await.ok();
        bought(test, user, product, 2).await;
        let open = placed(test, user, &[(product, 1)], Some(coupon)).await;
        test.drain().await;
        let timeline = timeline_of(test, "users", user).await;
        assert_eq!(timeline["user"], json!({"userId": user, "userName": "이다은", "balance": 800}));
        assert_eq!(timeline["coupons"][0]["heldByOrderId"], open);
        let kinds: Vec<&Value> =
            timeline["entries"].as_array().unwrap().iter().map(|e| &e["transactionType"]).collect();
        assert_eq!(kinds, ["CHARGE", "PAYMENT"]);
        assert_eq!((&timeline["openOrdersInAll"], &timeline["openOrders"][0]["orderId"]), (&json!(1), &json!(open)));
        assert_eq!((&timeline["ordersInAll"], timeline["orders"].as_array().unwrap().len()), (&json!(2), 2));
        assert_eq!(timeline["deadLetters"], json!([]));
        let shown = get(test, &format!("/admin/v1/users/{user}")).await.ok();
        assert_eq!(shown, timeline["user"]);
        for path in ["/admin/v1/users/999999/timeline", "/admin/v1/users/999999", "/admin/v1/users/x/timeline"] {
            get(test, path).await.refused(404, "USER_NOT_FOUND");
        }
    })
    .await;
}

#[tokio::test]
async fn timeline_lists_bounded() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(100_000).await, test.product(1, 900).await);
    for _ in 0..25 {
        bought(&test, user, product, 1).await;
    }
    test.drain().await;
    let timeline = timeline_of(&test, "users", user).await;
    assert_eq!((timeline["orders"].as_array().unwrap().len(), &timeline["ordersInAll"]), (20, &json!(25)));
    assert_eq!(timeline["entries"].as_array().unwrap().len(), 20);
    assert_eq!(timeline["entries"][19]["entryNo"], 26);
    test.finish().await;
}

#[tokio::test]
async fn order_timeline_dates_every_step() {
    on_1_and_3(async |test| {
        let (user, own) = (test.user(1_000).await, test.product(100, 90).await);
        let remote = test.product(50, 9).await;
        let order = post(test, "/api/v1/orders", order_of(user, &[(own, 1), (remote, 1)], None)).await.ok();
        let order_id = id(&order, "orderId");
        // PostgreSQL does not have the order yet, so the timeline shows the state in Redis.
        let timeline = timeline_of(test, "orders", order_id).await;
        assert_eq!((&timeline["redisStatus"], &timeline["postgresStatus"]), (&json!("PENDING"), &Value::Null));
        assert_eq!((events(&timeline), &timeline["payment"]), (vec!["ORDER_PLACED"], &Value::Null));
        test.clock.advance(5_000);
        pay(test, order_id, user, 150).await.ok();
        test.clock.advance(5_000);
        crate::support::api_kit::cancel(test, order_id, user).await.ok();
        test.drain().await;
        let timeline = timeline_of(test, "orders", order_id).await;
        assert_eq!((&timeline["redisStatus"], &timeline["postgresStatus"]), (&json!("CANCELLED"), &json!("CANCELLED")));
        let all = ["ORDER_PLACED", "BALANCE_CHANGED", "ORDER_PAID", "PAYMENT_ENDED", "BALANCE_CHANGED", "ORDER_CLOSED"];
        assert_eq!(events(&timeline), all);
        let details: Vec<&Value> =
            timeline["events"].as_array().unwrap().iter().map(|event| &event["detail"]).collect();
        assert_eq!(json!(details), json!([null, "PAYMENT 150", null, "REFUNDED", "REFUND 150", "REFUNDED"]));
        assert_eq!(
            (&timeline["payment"]["status"], &timeline["payment"]["method"]),
            (&json!("REFUNDED"), &json!("BALANCE"))
        );
        // The timeline stays after the order's eviction.
        test.expire_evicted().await;
        let later = timeline_of(test, "orders", order_id).await;
        assert_eq!((&later["redisStatus"], &later["order"]), (&Value::Null, &timeline["order"]));
        assert_eq!(later["events"], timeline["events"]);
        get(test, "/admin/v1/orders/999999/timeline").await.refused(404, "ORDER_NOT_FOUND");
    })
    .await;
}

/// While PostgreSQL is down, the timeline has the part that is in Redis.
#[tokio::test]
async fn timeline_served_when_postgres_down() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(1_000).await, test.product(100, 90).await);
    let order = placed(&test, user, &[(product, 1)], None).await;
    test.db.clone().close().await.unwrap();
    let timeline = timeline_of(&test, "users", user).await;
    assert_eq!(
        (&timeline["user"]["balance"], &timeline["orders"], &timeline["entries"]),
        (&json!(1_000), &Value::Null, &Value::Null)
    );
    let timeline = timeline_of(&test, "orders", order).await;
    assert_eq!((&timeline["redisStatus"], &timeline["deadLetters"]), (&json!("PENDING"), &Value::Null));
    test.finish_unchecked().await;
}
