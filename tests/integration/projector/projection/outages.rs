//! PostgreSQL down, or with a broken schema.

use super::*;

#[tokio::test]
async fn projection_resumes_when_postgres_returns() {
    let mut shop = RestartableApp::open().await;
    let user = shop.post("/admin/v1/users", json!({"userName": "A", "balance": 10_000})).await.created();
    let user = user["userId"].as_i64().unwrap();
    let product = json!({"productName": "A", "price": 100, "stockQuantity": 50, "category": "TOP"});
    let product = shop.post("/admin/v1/products", product).await.created()["productId"].as_i64().unwrap();
    let coupon = json!({"couponCode": "A", "discountType": "FIXED", "discountAmount": 5, "totalQuantity": 5,
        "expiredAt": "2099-01-01T00:00:00"});
    let coupon = shop.post("/admin/v1/coupons", coupon).await.created()["couponId"].as_i64().unwrap();
    shop.charge(user, 7).await.ok();
    let history = format!("/api/v1/balances/{user}/history");
    until("the projection has caught up", async || {
        let lag = shop.get("/admin/v1/projection").await.json()["lagEvents"].as_i64();
        (lag == Some(0)).then_some(())
    })
    .await;
    assert_eq!(shop.get(&history).await.ok().as_array().unwrap().len(), 2);

    shop.postgres.kill().await.unwrap();
    // Writes are served.
    for n in 1..=5 {
        assert_eq!(shop.charge(user, 1).await.ok()["balance"], 10_007 + n);
    }
    shop.post("/api/v1/coupons/issue", json!({"couponId": coupon, "userId": user})).await.ok();
    let lines = json!([{"productId": product, "quantity": 2}]);
    let order = json!({"userId": user, "orderProducts": lines, "userCouponId": coupon});
    let order = shop.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap();
    let pay = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 195});
    shop.post("/api/v1/payments", pay.clone()).await.ok();
    shop.post("/api/v1/payments", pay).await.refused(409, "ORDER_ALREADY_PAID");
    // Reads are served, except of what only PostgreSQL has: those get a 503 in bounded time.
    assert_eq!(shop.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 10_012 - 195);
    assert_eq!(shop.get(&format!("/api/v1/products/{product}")).await.ok()["stockQuantity"], 48);
    assert_eq!(shop.get(&format!("/api/v1/coupons/{user}")).await.ok()[0]["couponStatus"], "USED");
    assert_eq!(shop.get("/api/v1/products/popular").await.ok()[0]["salesCount"], 2);
    assert_eq!(shop.get(&format!("/api/v1/orders/{order}?userId={user}")).await.ok()["orderStatus"], "PAID");
    shop.get("/readyz").await.ok();
    for path in [history.as_str(), "/admin/v1/projection", "/admin/v1/orders"] {
        let reply = shop.get(path).await;
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(reply.headers.contains_key("retry-after"), "{path}");
    }

    shop.postgres.restart().await.unwrap();
    until("the projection has caught up", async || {
        let reply = shop.get("/admin/v1/projection").await;
        (reply.status == 200 && reply.json()["lagEvents"] == 0).then_some(())
    })
    .await;
    let entries = until("the history answers", async || {
        let reply = shop.get(&history).await;
        (reply.status == 200).then(|| reply.json())
    })
    .await;
    assert_eq!(entries.as_array().unwrap().len(), 2 + 5 + 1);
    shop.finish().await;
}

/// An unexpected schema, as during a deployment, makes no dead letters: the events wait.
#[tokio::test]
async fn projection_waits_without_dead_letters_when_schema_broken() {
    let test = TestApp::start().await;
    let user = test.user(1_000).await;
    test.drain().await;
    let pool = test.db.get_postgres_connection_pool();
    let rename = |from: &str, to: &str| {
        let sql = format!("ALTER TABLE balance_entries RENAME COLUMN {from} TO {to}");
        async move { sqlx::query(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap() }
    };
    rename("amount", "sum").await;
    test.put_charge(user, 100).await.ok();
    test.put_charge(user, 200).await.ok();
    let failed = test.app.projector.drain().await.unwrap_err().to_string();
    assert!(failed.contains("amount"), "{failed}");
    let dead_letters: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(pool).await.unwrap();
    assert_eq!(dead_letters, 0);
    rename("sum", "amount").await;
    test.finish().await;
}
