//! The plan of sales, the units of a product, and the users at its limit.

use super::*;

const HOUR_MS: i64 = 3_600_000;

async fn created(test: &TestApp, name: &str, more: Value) -> i64 {
    let mut body = json!({"productName": name, "price": 100, "stockQuantity": 50, "category": "SHOES"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    id(&post(test, "/admin/v1/products", body).await.created(), "productId")
}

async fn campaign(test: &TestApp, opens: i64, closes: i64) -> i64 {
    let body = json!({
        "couponCode": "PLAN", "discountType": "PERCENTAGE", "discountAmount": 10, "totalQuantity": 5, "maxDiscountPrice": 3_000,
        "opensAt": after(test, opens), "closesAt": after(test, closes), "expiredAt": after(test, closes),
    });
    id(&post(test, "/admin/v1/coupons", body).await.created(), "couponId")
}

/// The ids of the products and campaigns of a plan.
fn planned(plan: &Value) -> (Vec<i64>, Vec<i64>) {
    let ids = |list: &str, field: &str| plan[list].as_array().unwrap().iter().map(|it| id(it, field)).collect();
    (ids("products", "productId"), ids("campaigns", "couponId"))
}

async fn plan(test: &TestApp, from: i64, until: i64) -> (Vec<i64>, Vec<i64>) {
    let (from, until) = (after(test, from), after(test, until));
    test.drain().await;
    let plan = get(test, &format!("/admin/v1/sales?from={from}&until={until}")).await.ok();
    assert_eq!((&plan["from"], &plan["until"], &plan["complete"]), (&json!(from), &json!(until), &json!(true)));
    planned(&plan)
}

#[tokio::test]
async fn sales_plan_has_sales_of_its_range() {
    on_1_and_3(async |test| {
        let window = |opens: i64, closes: i64| json!({"opensAt": after(test, opens), "closesAt": after(test, closes)});
        created(test, "plain", json!({})).await;
        let past = created(test, "past", window(-80 * HOUR_MS, -50 * HOUR_MS)).await;
        let now = created(test, "now", window(-HOUR_MS, HOUR_MS)).await;
        let terms = json!({"opensAt": after(test, 2 * HOUR_MS), "limitPerUser": 1, "limitGroup": "AIR"});
        let soon = created(test, "soon", terms).await;
        let later = created(test, "later", window(900 * HOUR_MS, 901 * HOUR_MS)).await;
        let limited = created(test, "limited", json!({"limitPerUser": 2})).await;
        let (early, late) =
            (campaign(test, HOUR_MS, 2 * HOUR_MS).await, campaign(test, 900 * HOUR_MS, 902 * HOUR_MS).await);

        test.drain().await;
        let shown = get(test, "/admin/v1/sales").await.ok();
        assert_eq!(planned(&shown), (vec![soon, now, limited], vec![early]));
        assert_eq!(
            (&shown["from"], &shown["until"]),
            (&json!(after(test, -24 * HOUR_MS)), &json!(after(test, 168 * HOUR_MS)))
        );
        let product = &shown["products"][0];
        assert_eq!(
            (&product["saleStatus"], &product["limitPerUser"], &product["limitGroup"], &product["closesAt"]),
            (&json!("SCHEDULED"), &json!(1), &json!("AIR"), &Value::Null)
        );
        assert_eq!(shown["campaigns"][0]["maxDiscountPrice"], 3_000);

        // A window has its first moment, and not its last.
        assert_eq!(plan(test, HOUR_MS, 2 * HOUR_MS).await, (vec![limited], vec![early]));
        assert_eq!(plan(test, HOUR_MS - 1_000, 2 * HOUR_MS + 1_000).await, (vec![soon, now, limited], vec![early]));
        assert_eq!(plan(test, -60 * HOUR_MS, -55 * HOUR_MS).await, (vec![past, limited], vec![]));
        assert_eq!(plan(test, 899 * HOUR_MS, 999 * HOUR_MS).await, (vec![later, soon, limited], vec![late]));

        // A change is in the next plan.
        patch(test, &format!("/admin/v1/products/{soon}"), json!({"closesAt": after(test, 3 * HOUR_MS)})).await.ok();
        patch(test, &format!("/admin/v1/products/{limited}"), json!({"limitPerUser": null})).await.ok();
        assert_eq!(plan(test, 899 * HOUR_MS, 999 * HOUR_MS).await, (vec![later], vec![late]));

        let last = get(test, "/admin/v1/sales?from=9999-12-31T08:00:00").await.ok();
        assert_eq!(planned(&last), (vec![], vec![]));

        let (from, until) = (after(test, HOUR_MS), after(test, 0));
        for query in [
            format!("from={from}&until={until}"),
            format!("from={from}&until={from}"),
            "from=9999-12-31T23:59:59.999999999&until=9999-12-31T23:59:59".to_owned(),
            "from=2026-03-03".to_owned(),
            "from=".to_owned(),
            "until=9999-99-99T00:00:00".to_owned(),
            format!("from={from}&from={from}"),
            "page=1".to_owned(),
        ] {
            get(test, &format!("/admin/v1/sales?{query}")).await.refused(400, "INVALID_REQUEST");
        }
    })
    .await;
}

#[tokio::test]
async fn sales_plan_says_when_sales_are_left_out() {
    let test = TestApp::start().await;
    for number in 0..501 {
        created(&test, &format!("size {number}"), json!({"limitPerUser": 1})).await;
    }
    test.drain().await;
    let shown = get(&test, "/admin/v1/sales").await.ok();
    assert_eq!((planned(&shown).0.len(), &shown["complete"]), (500, &json!(false)));
    test.finish().await;
}

#[tokio::test]
async fn product_units_add_up_to_stocked_ones() {
    on_1_and_3(async |test| {
        let user = test.user(10_000).await;
        let product = created(test, "units", json!({"limitPerUser": 30})).await;
        let path = format!("/admin/v1/products/{product}");
        bought(test, user, product, 7).await;
        placed(test, user, &[(product, 3)], None).await;
        let refunded = bought(test, user, product, 4).await;
        let used = json!({"lines": [{"productId": product, "quantity": 1}], "restock": false});
        post(test, &format!("/admin/v1/orders/{refunded}/refund"), used).await.ok();
        cancel(test, refunded, user).await.ok();
        patch(test, &path, json!({"stockDelta": 10})).await.ok();
        let shown = get(test, &path).await.ok();
        let units = ["stocked", "stock", "held", "sold", "withheld", "quarantined"];
        assert_eq!(units.map(|name| id(&shown, &format!("{name}Quantity"))), [60, 49, 3, 7, 0, 1]);
        assert_eq!((&shown["saleStatus"], &shown["limitPerUser"]), (&json!("ON_SALE"), &json!(30)));
        for unknown in ["999999", "0", "x"] {
            get(test, &format!("/admin/v1/products/{unknown}")).await.refused(404, "PRODUCT_NOT_FOUND");
        }
    })
    .await;
}

/// A page of the users with units, as `(user, units)`, and the number of those at the limit.
async fn limited(test: &TestApp, product: i64, query: &str) -> (Vec<(i64, i64)>, i64, i64) {
    test.drain().await;
    let shown = get(test, &format!("/admin/v1/products/{product}/buyers{query}")).await.ok();
    assert_eq!(shown["complete"], true);
    let users = shown["content"].as_array().unwrap().iter();
    let users = users.map(|user| (id(user, "userId"), id(user, "quantity"))).collect();
    (users, id(&shown, "usersAtLimit"), id(&shown, "totalElements"))
}

#[tokio::test]
async fn limited_users_counted_by_product_or_group() {
    on_1_and_3(async |test| {
        let users =
            [test.user(10_000).await, test.user(10_000).await, test.user(10_000).await, test.user(10_000).await];
        let group = json!({"limitPerUser": 3, "limitGroup": "AIR"});
        let (one, two) = (created(test, "250", group.clone()).await, created(test, "260", group).await);
        let alone = created(test, "alone", json!({"limitPerUser": 2})).await;
        let free = created(test, "free", json!({})).await;
        bought(test, users[0], one, 1).await;
        placed(test, users[0], &[(two, 1), (alone, 1), (free, 9)], None).await;
        bought(test, users[1], two, 3).await;
        bought(test, users[2], alone, 2).await;
        let closed = bought(test, users[3], alone, 1).await;
        for product in [one, two] {
            assert_eq!(limited(test, product, "").await, (vec![(users[1], 3), (users[0], 2)], 1, 2));
        }
        assert_eq!(limited(test, alone, "").await, (vec![(users[2], 2), (users[0], 1), (users[3], 1)], 1, 3));
        cancel(test, closed, users[3]).await.ok();
        assert_eq!(limited(test, alone, "?page=1&size=1").await, (vec![(users[0], 1)], 1, 2));
        assert_eq!(limited(test, alone, "?page=9").await, (vec![], 1, 2));
        assert_eq!(limited(test, free, "").await, (vec![], 0, 0));
        let shown = get(test, &format!("/admin/v1/products/{two}/buyers")).await.ok();
        assert_eq!((&shown["limitPerUser"], &shown["limitGroup"]), (&json!(3), &json!("AIR")));
        assert_eq!(shown["content"][0]["userName"], "이다은");
        // Units that were ordered under a limit stay counted while there is none.
        patch(test, &format!("/admin/v1/products/{alone}"), json!({"limitPerUser": null})).await.ok();
        assert_eq!(limited(test, alone, "").await, (vec![(users[2], 2), (users[0], 1)], 0, 2));
        for query in ["?size=101", "?page=-1", "?since=1"] {
            get(test, &format!("/admin/v1/products/{one}/buyers{query}")).await.refused(400, "INVALID_REQUEST");
        }
        get(test, "/admin/v1/products/999999/buyers").await.refused(404, "PRODUCT_NOT_FOUND");
    })
    .await;
}

/// A request reads the lines of one product by their index.
#[tokio::test]
async fn limited_users_read_by_index() {
    let test = TestApp::start().await;
    let product = created(&test, "250", json!({"limitPerUser": 1, "limitGroup": "AIR"})).await;
    let user = test.user(10_000).await;
    bought(&test, user, product, 1).await;
    test.drain().await;
    let pool = test.db.get_postgres_connection_pool();
    for filter in ["limit_group = '' AND product_id = 1", "limit_group > '' AND limit_group = 'AIR'"] {
        let sql = format!(
            "EXPLAIN SELECT order_id, quantity FROM order_lines WHERE {filter} ORDER BY order_id DESC LIMIT 100001"
        );
        let mut transaction = pool.begin().await.unwrap();
        // The table is too small for the planner to need an index.
        for other in ["seqscan", "bitmapscan", "sort"] {
            let sql = format!("SET LOCAL enable_{other} = off");
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *transaction).await.unwrap();
        }
        let plan: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *transaction).await.unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains("order_lines_of_") && !plan.contains("Sort"), "{plan}");
    }
    test.finish().await;
}

#[tokio::test]
async fn refused_terms_name_their_reason() {
    let test = TestApp::start().await;
    let grouped = created(&test, "250", json!({"limitPerUser": 2, "limitGroup": "AIR"})).await;
    let other = json!({"productName": "260", "price": 1, "stockQuantity": 1, "category": "TOP", "limitPerUser": 1, "limitGroup": "AIR"});
    let reason = "요청 데이터가 유효하지 않습니다. (the products of the group have another limit per user)";
    for reply in [
        post(&test, "/admin/v1/products", other).await,
        patch(&test, &format!("/admin/v1/products/{grouped}"), json!({"limitPerUser": 1})).await,
    ] {
        assert_eq!((reply.status.as_u16(), &reply.json()["message"]), (400, &json!(reason)));
    }
    test.finish().await;
}
