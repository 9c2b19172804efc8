//! 운영 and 상태: what operators do, that nobody else does it, and whether the service is well.

use reqwest::Method;
use serde_json::{Value, json};

use firstcome::model::{NewOrder, ProductId, UserId};

use crate::support::{
    api_kit::*,
    harness::{ADMIN, Options, TestApp, call, open, postgres_url, read},
};

#[tokio::test]
async fn admin_request_refused_without_token() {
    let test = TestApp::start().await;
    let product = test.product(10, 10).await;
    let one = format!("/admin/v1/products/{product}");
    let user = json!({"userName": "x"});
    let new = json!({"productName": "x", "price": 1, "stockQuantity": 1, "category": "TOP"});
    let coupon = json!({"couponCode": "x", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
        "expiredAt": "2030-01-01T00:00:00"});
    let before = test.snapshot().await;
    for (method, path, body) in [
        (Method::POST, "/admin/v1/users", &user),
        (Method::POST, "/admin/v1/users/bulk", &json!({"count": 1})),
        (Method::POST, "/admin/v1/products", &new),
        (Method::PATCH, &one, &json!({"stockDelta": 1})),
        (Method::POST, "/admin/v1/coupons", &coupon),
        (Method::GET, "/admin/v1/coupons/1", &Value::Null),
        (Method::PATCH, "/admin/v1/coupons/1", &json!({})),
        (Method::GET, "/admin/v1/operator-log", &Value::Null),
        (Method::GET, "/admin/v1/dead-letters", &Value::Null),
        (Method::POST, "/admin/v1/dead-letters/retry", &json!({"partition": 0, "streamId": "1-1", "seq": 1})),
        (Method::GET, "/admin/v1/users/1", &Value::Null),
        (Method::GET, "/admin/v1/users/1/timeline", &Value::Null),
        (Method::GET, "/admin/v1/orders/1/timeline", &Value::Null),
        (Method::GET, "/admin/v1/orders", &Value::Null),
        (Method::GET, "/admin/v1/projection", &Value::Null),
        (Method::GET, "/admin/v1/withheld", &Value::Null),
        (Method::POST, "/admin/v1/withheld/release", &json!({})),
        (Method::POST, "/admin/v1/products/1/release", &json!({"quantity": 1})),
        (Method::POST, "/admin/v1/coupons/1/release", &json!({"quantity": 1})),
        // What does not exist is no business of theirs either, nor is what is wrong with their request.
        (Method::GET, "/admin/v1/nothing", &Value::Null),
        (Method::GET, "/admin", &Value::Null),
        (Method::DELETE, "/admin/v1/users", &Value::Null),
        (Method::POST, "/admin/v1/users", &json!({"userName": 1})),
    ] {
        let wrong = [None, Some("Bearer"), Some("Bearer "), Some("Bearer wrong"), Some("Basic YTpi"), Some(ADMIN)];
        let longer = format!("Bearer {ADMIN}x");
        for authorization in wrong.into_iter().chain([Some(longer.as_str()), Some(&longer[..longer.len() - 2])]) {
            let mut request = test.client.request(method.clone(), format!("{}{path}", test.base)).json(body);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let reply = read(request).await;
            reply.refused(401, "UNAUTHORIZED");
            in_contract(path, &reply);
            document(&test).await.check_reply(method.as_str(), path, &reply);
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
    }
    assert_eq!(test.snapshot().await, before);
    test.send(Method::GET, "/admin/v1/nothing", None, None).await.refused(404, "NOT_FOUND");
    // The shop's own paths need no token and mind none.
    let request = test.client.get(format!("{}/api/v1/products/{product}", test.base)).bearer_auth("wrong");
    read(request).await.ok();
    test.finish().await;
}

#[tokio::test]
async fn user_created_with_opening_balance() {
    on_1_and_3(async |test| {
        let rich = post(test, "/admin/v1/users", json!({"userName": "이다은", "balance": 1_000_000_000_000_i64})).await;
        let rich = rich.created();
        let user = id(&rich, "userId");
        assert_eq!(rich, json!({"userId": user, "userName": "이다은", "balance": 1_000_000_000_000_i64}));
        let history = get(test, &format!("/api/v1/balances/{user}/history")).await.ok();
        let entry = json!({"userId": user, "transactionType": "CHARGE", "amount": 1_000_000_000_000_i64,
            "before_balance": 0, "after_balance": 1_000_000_000_000_i64, "createdAt": now(test), "entryNo": 1,
            "orderId": null});
        assert_eq!(history, json!([entry]));
        let poor = post(test, "/admin/v1/users", json!({"userName": "x".repeat(100)})).await.created();
        assert_eq!(poor, json!({"userId": user + 1, "userName": "x".repeat(100), "balance": 0}));
        assert_eq!(get(test, &format!("/api/v1/balances/{}/history", user + 1)).await.ok(), json!([]));
        let shown = get(test, &format!("/api/v1/balances/{}", user + 1)).await.ok();
        assert_eq!(shown["userName"], "x".repeat(100));
    })
    .await;
}

#[tokio::test]
async fn users_created_in_bulk_have_consecutive_ids() {
    on_1_and_3(async |test| {
        let mut next = test.user(0).await + 1;
        for (count, prefix, balance_of_each) in
            [(1, Some("한"), 0), (2, None, 5), (251, Some(""), 7), (1_000, Some("u "), 0)]
        {
            let mut body = json!({"count": count, "balance": balance_of_each});
            if let Some(prefix) = prefix {
                body["namePrefix"] = json!(prefix);
            }
            let created = post(test, "/admin/v1/users/bulk", body).await.created();
            assert_eq!(created, json!({"firstUserId": next, "count": count}));
            for user in [next, next + count / 2, next + count - 1] {
                let shown = get(test, &format!("/api/v1/balances/{user}")).await.ok();
                assert_eq!(shown["userName"], format!("{}{user}", prefix.unwrap_or("user-")));
                assert_eq!(shown["balance"], balance_of_each);
                let history = get(test, &format!("/api/v1/balances/{user}/history")).await.ok();
                assert_eq!(history.as_array().unwrap().len(), usize::from(balance_of_each > 0));
            }
            next += count;
            get(test, &format!("/api/v1/balances/{next}")).await.refused(404, "USER_NOT_FOUND");
        }
        assert_eq!(test.user(0).await, next);
    })
    .await;
}

#[tokio::test]
async fn product_created_and_updated() {
    on_1_and_3(async |test| {
        let new = json!({"productName": "나이키 에어포스", "price": 990_000, "stockQuantity": 50, "category": "SHOES"});
        let created = post(test, "/admin/v1/products", new.clone()).await.created();
        let product = id(&created, "productId");
        let mut shown = new;
        shown["productId"] = json!(product);
        assert_eq!(created, shown);
        let path = format!("/admin/v1/products/{product}");
        for (change, field, value) in [
            (json!({"productName": "에어포스 1"}), "productName", json!("에어포스 1")),
            (json!({"price": 0}), "price", json!(0)),
            (json!({"price": 1_000_000_000_000_i64}), "price", json!(1_000_000_000_000_i64)),
            (json!({"category": "LIMITED_2"}), "category", json!("LIMITED_2")),
            (json!({"stockDelta": 5}), "stockQuantity", json!(55)),
            (json!({"stockDelta": -55}), "stockQuantity", json!(0)),
            (json!({"stockDelta": 0}), "stockQuantity", json!(0)),
            (json!({"stockDelta": 1_000_000_000}), "stockQuantity", json!(1_000_000_000)),
        ] {
            shown[field] = value;
            assert_eq!(patch(test, &path, change).await.ok(), shown);
            assert_eq!(get(test, &format!("/api/v1/products/{product}")).await.ok(), shown);
        }
        let all = json!({"productName": "a", "price": 1, "category": "TOP", "stockDelta": -999_999_990});
        let changed =
            json!({"productId": product, "productName": "a", "price": 1, "category": "TOP", "stockQuantity": 10});
        assert_eq!(patch(test, &path, all).await.ok(), changed);
        for (category, total) in [("SHOES", 0), ("LIMITED_2", 0), ("TOP", 1)] {
            let listed = get(test, &format!("/api/v1/products?category={category}")).await.ok();
            assert_eq!(listed["totalElements"], total, "{category}");
        }

        // Never below zero on sale, never more than there may be; then nothing of the change is made.
        let user = test.user(100).await;
        placed(test, user, &[(product, 4)], None).await;
        let before = effects(test).await;
        let too_many = json!({"stockDelta": -7, "price": 5, "productName": "b", "category": "OUTER"});
        patch(test, &path, too_many).await.refused(409, "INSUFFICIENT_STOCK");
        patch(test, &path, json!({"stockDelta": 999_999_991, "price": 5})).await.refused(400, "INVALID_REQUEST");
        patch(test, "/admin/v1/products/1000000", json!({"price": 1})).await.refused(404, "PRODUCT_NOT_FOUND");
        assert_eq!(effects(test).await, before);
        assert_eq!(patch(test, &path, json!({"stockDelta": -6})).await.ok()["stockQuantity"], 0);
        let sold_out = post(test, "/api/v1/orders", order_of(user, &[(product, 1)], None)).await;
        sold_out.refused(409, "SOLD_OUT");
    })
    .await;
}

#[tokio::test]
async fn campaign_created_shows_issued_and_left() {
    on_1_and_3(async |test| {
        let new = json!({"couponCode": "HANGHAE8888", "discountType": "PERCENTAGE", "discountAmount": 100,
            "totalQuantity": 2, "opensAt": after(test, 0), "closesAt": after(test, 60_000),
            "expiredAt": after(test, 90_000)});
        let created = post(test, "/admin/v1/coupons", new.clone()).await.created();
        let coupon = id(&created, "couponId");
        let shown = |issued: i64| {
            let mut shown = new.clone();
            shown["couponId"] = json!(coupon);
            shown["issuedQuantity"] = json!(issued);
            shown["remainingQuantity"] = json!(2 - issued);
            shown
        };
        assert_eq!(created, shown(0));
        let path = format!("/admin/v1/coupons/{coupon}");
        for issued in 0..=2 {
            assert_eq!(get(test, &path).await.ok(), shown(issued));
            if issued < 2 {
                let user = test.user(0).await;
                issue(test, coupon, user).await.ok();
            }
        }
        get(test, &format!("/admin/v1/coupons/{}", coupon + 1)).await.refused(404, "COUPON_NOT_FOUND");

        // Open at once and until its coupons expire, where the window is left out.
        let open = json!({"couponCode": "OPEN", "discountType": "FIXED", "discountAmount": 1_000_000_000_000_i64,
            "totalQuantity": 1_000_000_000, "expiredAt": "2030-12-31T23:59:59"});
        let open = post(test, "/admin/v1/coupons", open).await.created();
        assert_eq!(
            json!([open["opensAt"], open["closesAt"], open["expiredAt"]]),
            json!([now(test), "2030-12-31T23:59:59", "2030-12-31T23:59:59"])
        );
    })
    .await;
}

#[tokio::test]
async fn campaign_window_updated() {
    on_1_and_3(async |test| {
        let users = [test.user(0).await, test.user(0).await, test.user(0).await, test.user(0).await];
        let new = json!({"couponCode": "X", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 9,
            "opensAt": after(test, 600_000), "closesAt": after(test, 900_000), "expiredAt": after(test, 1_200_000)});
        let coupon = id(&post(test, "/admin/v1/coupons", new).await.created(), "couponId");
        let path = format!("/admin/v1/coupons/{coupon}");
        issue(test, coupon, users[0]).await.refused(400, "INVALID_COUPON");
        // Opened now: by a page whose clock shows whole seconds.
        test.clock.advance(700);
        let opened = patch(test, &path, json!({"opensAt": after(test, -700)})).await.ok();
        assert_eq!(
            (&opened["opensAt"], &opened["closesAt"]),
            (&json!(after(test, -700)), &json!(after(test, 899_300)))
        );
        issue(test, coupon, users[0]).await.ok();
        // Closed now, and once more: an act that changes nothing is none the worse.
        for _ in 0..2 {
            let closed = patch(test, &path, json!({"closesAt": after(test, -700)})).await.ok();
            assert_eq!((&closed["closesAt"], &closed["issuedQuantity"]), (&json!(now(test)), &json!(1)));
            issue(test, coupon, users[1]).await.refused(400, "INVALID_COUPON");
        }
        let open = get(test, "/api/v1/campaigns").await.ok();
        assert_eq!(open, json!([]), "and is shown to nobody");
        // The coupon that was given out is as good as ever.
        assert_eq!(crate::support::api_kit::coupon(test, users[0], coupon).await["couponStatus"], "AVAILABLE");
        // Reopened, and put off again.
        patch(test, &path, json!({"closesAt": after(test, 100_000)})).await.ok();
        issue(test, coupon, users[1]).await.ok();
        assert_eq!(get(test, "/api/v1/campaigns").await.ok()[0]["couponId"], coupon);
        patch(test, &path, json!({"opensAt": after(test, 50_000), "closesAt": after(test, 60_000)})).await.ok();
        issue(test, coupon, users[2]).await.refused(400, "INVALID_COUPON");
        test.clock.advance(50_000);
        issue(test, coupon, users[2]).await.ok();
        let shown = get(test, &path).await.ok();
        for refused in [
            json!({"closesAt": after(test, -61_000)}),
            json!({"closesAt": after(test, 1_200_000)}),
            json!({"opensAt": after(test, 11_000)}),
            json!({"opensAt": after(test, 5_000), "closesAt": after(test, 4_000)}),
        ] {
            patch(test, &path, refused.clone()).await.refused(400, "INVALID_REQUEST");
            assert_eq!(get(test, &path).await.ok(), shown, "{refused}");
        }
        let change = json!({"closesAt": after(test, 1_000)});
        let unknown = patch(test, &format!("/admin/v1/coupons/{}", coupon + 1), change).await;
        unknown.refused(404, "COUPON_NOT_FOUND");
    })
    .await;
}

#[tokio::test]
async fn orders_listed_newest_first() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, project: true, ..Options::default() }).await;
        let (buyer, other) = (test.user(100_000).await, test.user(100_000).await);
        let product = test.product(1_000, 100).await;
        let listed = async |query: &str| -> (Vec<i64>, Value) {
            let mut page = get(&test, &format!("/admin/v1/orders{query}")).await.ok();
            fields(&page, "content page size totalElements");
            let content = page.as_object_mut().unwrap().remove("content").unwrap();
            (content.as_array().unwrap().iter().map(|order| id(order, "orderId")).collect(), page)
        };
        let about = |page: i64, size: i64, total: i64| json!({"page": page, "size": size, "totalElements": total});
        assert_eq!(listed("").await, (vec![], about(0, 20, 0)));
        let pending = placed(&test, buyer, &[(product, 1)], None).await;
        let paid = bought(&test, buyer, product, 2).await;
        let cancelled = placed(&test, buyer, &[(product, 1)], None).await;
        cancel(&test, cancelled, buyer).await.ok();
        let refunded = bought(&test, other, product, 1).await;
        cancel(&test, refunded, other).await.ok();
        let mut all = vec![pending, paid, cancelled, refunded];
        all.sort_by_key(|order| -order);
        let both = |a: i64, b: i64| if a > b { vec![a, b] } else { vec![b, a] };
        assert_eq!(listed("").await, (all.clone(), about(0, 20, 4)), "what was answered before is in it");
        assert_eq!(listed("?status=PENDING").await, (vec![pending], about(0, 20, 1)));
        assert_eq!(listed("?status=PAID").await, (vec![paid], about(0, 20, 1)));
        assert_eq!(listed("?status=CANCELLED").await, (both(cancelled, refunded), about(0, 20, 2)));
        assert_eq!(listed("?status=FAILED").await, (vec![], about(0, 20, 0)));
        assert_eq!(listed(&format!("?userId={other}")).await, (vec![refunded], about(0, 20, 1)));
        assert_eq!(listed(&format!("?userId={other}&status=PAID")).await, (vec![], about(0, 20, 0)));
        assert_eq!(listed("?userId=1000000").await, (vec![], about(0, 20, 0)));
        assert_eq!(listed("?size=3").await, (all[..3].to_vec(), about(0, 3, 4)));
        assert_eq!(listed("?size=3&page=1").await, (all[3..].to_vec(), about(1, 3, 4)));
        assert_eq!(listed("?size=3&page=2").await, (vec![], about(2, 3, 4)));
        // What is listed is what is shown to the buyer.
        for order in get(&test, "/admin/v1/orders").await.ok()["content"].as_array().unwrap() {
            assert_eq!(*order, detail(&test, id(order, "orderId")).await);
        }
        for query in [
            "status=",
            "status=paid",
            "status=HELD",
            "userId=0",
            "userId=x",
            "page=-1",
            "size=0",
            "size=101",
            "page=10001&size=1",
            "status=PAID&status=PAID",
        ] {
            get(&test, &format!("/admin/v1/orders?{query}")).await.refused(400, "INVALID_REQUEST");
        }
        test.finish().await;
    }
}

#[tokio::test]
async fn orders_of_two_instances_listed_newest_first() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let (user, product) = (test.user(1_000_000).await, test.product(10, 1_000).await);
        // Another process, which gives out ids of a block of its own.
        let (redis, postgres) = (test.redis.url(), postgres_url(&test.database));
        let other = open(&test.options, &redis, &postgres, test.clock.clone()).await.unwrap();
        let order = || NewOrder {
            user_id: UserId::new(user).unwrap(),
            lines: vec![(ProductId::new(product).unwrap(), 1)],
            coupon_id: None,
        };
        let (mut newest, mut rises) = (Vec::new(), 0);
        for n in 0..12 {
            test.clock.advance(1_000);
            let engine = if n % 2 == 0 { &test.engine } else { &other.engine };
            let placed = engine.place_order(&call(None), order()).await.unwrap().value.order_id.get();
            rises += i64::from(newest.first().is_some_and(|last| *last > placed));
            newest.insert(0, placed);
        }
        assert!(rises > 2, "the ids of the two are not interleaved: {newest:?}");
        cancel(&test, newest[3], user).await.ok();
        pay(&test, newest[8], user, 10).await.ok();
        test.drain().await;
        let listed = async |query: String| -> Vec<i64> {
            let page = get(&test, &format!("/admin/v1/orders?{query}")).await.ok();
            page["content"].as_array().unwrap().iter().map(|order| id(order, "orderId")).collect()
        };
        let pending: Vec<i64> = newest.iter().copied().filter(|id| ![newest[3], newest[8]].contains(id)).collect();
        for (filter, expected) in [
            (String::new(), &newest),
            (format!("&userId={user}"), &newest),
            ("&status=PENDING".to_owned(), &pending),
            (format!("&userId={user}&status=PENDING"), &pending),
        ] {
            for size in [1, 5, 100] {
                let mut paged = Vec::new();
                for page in 0..=(expected.len() / size) {
                    paged.extend(listed(format!("size={size}&page={page}{filter}")).await);
                }
                assert_eq!(paged, *expected, "{filter} by {size}");
            }
        }
        let story = get(&test, &format!("/admin/v1/users/{user}/timeline")).await.ok();
        let told = |field: &str| -> Vec<i64> {
            story[field].as_array().unwrap().iter().map(|order| id(order, "orderId")).collect()
        };
        assert_eq!((told("orders"), told("openOrders")), (newest.clone(), pending));
        other.stop(None).await;
        other.db.clone().close().await.unwrap();
        test.finish().await;
    }
}

#[tokio::test]
async fn orders_listed_through_index() {
    let test = TestApp::start().await;
    let pool = test.db.get_postgres_connection_pool();
    sqlx::query(
        "INSERT INTO orders (id, user_id, status, total, discount, final_price, placed_at, expires_at, paid_at)
         SELECT n, 1 + n % 50, 'PAID', 1, 0, 1, now() - n * interval '1 second', now(), now() FROM generate_series(1, 20000) AS n",
    )
    .execute(pool)
    .await
    .unwrap();
    sqlx::query("ANALYZE orders").execute(pool).await.unwrap();
    for listing in [
        firstcome::postgres::queries::resources::NEWEST_ORDERS.replace("$1", "0").replace("$2", "20"),
        "SELECT * FROM orders WHERE status = 'PAID' ORDER BY placed_at DESC, id DESC LIMIT 20".to_owned(),
        "SELECT * FROM orders WHERE user_id = 7 ORDER BY placed_at DESC, id DESC LIMIT 20".to_owned(),
    ] {
        let plan: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("EXPLAIN {listing}"))).fetch_all(pool).await.unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains("orders_of_") && !plan.contains("Seq Scan"), "{plan}");
    }
    test.finish_unchecked().await;
}

#[tokio::test]
async fn projection_status_shows_position_and_lag() {
    on_1_and_3(async |test| {
        test.drain().await;
        let projection = async || get(test, "/admin/v1/projection").await.ok();
        let start = projection().await;
        fields(&start, "lagEvents lagSeconds maxBacklog deadLetters partitions");
        assert_eq!(json!([start["lagEvents"], start["lagSeconds"], start["deadLetters"]]), json!([0, 0.0, 0]));
        let partitions = start["partitions"].as_array().unwrap();
        assert_eq!(partitions.len(), usize::from(test.options.partitions));
        for (number, partition) in partitions.iter().enumerate() {
            fields(partition, "partition epoch decidedSeq projectedSeq lagSeconds deadLetters");
            assert_eq!(partition["partition"], number);
        }
        let user = test.user(0).await;
        for _ in 0..2 {
            put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
        }
        let behind = projection().await;
        assert_eq!(behind["lagEvents"], 3);
        let home = &behind["partitions"][(user % i64::from(test.options.partitions)) as usize];
        assert_eq!(id(home, "decidedSeq") - id(home, "projectedSeq"), 3);
        test.drain().await;
        assert_eq!(projection().await["lagEvents"], 0);
    })
    .await;
}

/// One partition is the reason why the service is not ready.
async fn not_ready(test: &TestApp) {
    let reply = get(test, "/readyz").await;
    reply.refused(503, "SERVICE_UNAVAILABLE");
    fields(&reply.json(), "errorCode message reasons");
    assert_eq!(reply.json()["reasons"].as_array().map(Vec::len), Some(1), "{}", reply.text);
}

#[tokio::test]
async fn readiness_fails_when_partition_state_lost() {
    on_1_and_3(async |test| {
        let user = test.user(0).await;
        for path in ["/healthz", "/readyz"] {
            assert_eq!(get(test, path).await.ok(), json!({"status": "UP"}));
        }
        // A partition whose books are lost: alive, but not ready, and it says so.
        let meta = format!("{{p{}}}:meta", user % i64::from(test.options.partitions));
        let away = format!("{meta}-away");
        let mut redis = test.raw().await;
        let _: () = redis::cmd("RENAME").arg(&meta).arg(&away).query_async(&mut redis).await.unwrap();
        assert_eq!(get(test, "/healthz").await.ok(), json!({"status": "UP"}));
        not_ready(test).await;
        let charge = put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await;
        charge.refused(503, "SERVICE_UNAVAILABLE");
        let _: () = redis::cmd("RENAME").arg(&away).arg(&meta).query_async(&mut redis).await.unwrap();
        get(test, "/readyz").await.ok();
        assert_eq!(put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok()["balance"], 1);
    })
    .await;
}

#[tokio::test]
async fn readiness_fails_when_partition_frozen() {
    on_1_and_3(async |test| {
        let user = test.user(0).await;
        let meta = format!("{{p{}}}:meta", user % i64::from(test.options.partitions));
        let mut redis = test.raw().await;
        let _: i64 = redis::cmd("HSET").arg(&meta).arg("frozen").arg(1).query_async(&mut redis).await.unwrap();
        let charge = put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await;
        charge.refused(503, "SERVICE_UNAVAILABLE");
        not_ready(test).await;
        let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut redis).await.unwrap();
        get(test, "/readyz").await.ok();
        assert_eq!(balance(test, user).await, 0);
    })
    .await;
}

/// What a rebuild kept off sale is shown, and sold again when an operator says so.
#[tokio::test]
async fn withheld_units_shown_and_released() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(10_000).await, test.product(10, 100).await);
        let coupon = test.campaign("FIXED", 1, 50).await;
        test.drain().await;
        let nothing = json!({"products": [], "coupons": []});
        assert_eq!(get(test, "/admin/v1/withheld").await.ok(), nothing);
        // As a rebuild leaves it, in both stores.
        let mut redis = test.raw().await;
        let here = product % i64::from(test.options.partitions);
        for (key, field, value) in [
            (format!("{{p{here}}}:stock"), product.to_string(), 60),
            (format!("{{p{here}}}:withheld"), product.to_string(), 40),
            (format!("{{p{}}}:coupon:{coupon}", coupon % i64::from(test.options.partitions)), "withheld".into(), 20),
        ] {
            let set = redis::cmd("HSET").arg(key).arg(field).arg(value).query_async(&mut redis).await;
            let _: i64 = set.unwrap();
        }
        for sql in ["UPDATE products SET on_sale = 60, withheld = 40", "UPDATE campaigns SET withheld = 20"] {
            sqlx::query(sql).execute(test.db.get_postgres_connection_pool()).await.unwrap();
        }
        let kept = |units: i64, coupons: i64| {
            json!({"products": [{"productId": product, "withheldQuantity": units}],
                "coupons": [{"couponId": coupon, "withheldQuantity": coupons}]})
        };
        assert_eq!(get(test, "/admin/v1/withheld").await.ok(), kept(40, 20));
        assert_eq!(get(test, &format!("/admin/v1/coupons/{coupon}")).await.ok()["remainingQuantity"], 30);
        assert_eq!(get(test, &format!("/api/v1/products/{product}")).await.ok()["stockQuantity"], 60);
        test.order(user, product, 61).await.refused(409, "INSUFFICIENT_STOCK");

        let of_product = format!("/admin/v1/products/{product}/release");
        let of_coupon = format!("/admin/v1/coupons/{coupon}/release");
        for path in [&of_product, &of_coupon] {
            for hostile in [json!({}), json!({"quantity": 0}), json!({"quantity": -1}), json!({"quantity": "1"})] {
                post(test, path, hostile).await.refused(400, "INVALID_REQUEST");
            }
            post(test, path, json!({"quantity": 41})).await.refused(409, "INSUFFICIENT_STOCK");
        }
        let one = json!({"quantity": 1});
        post(test, "/admin/v1/products/999/release", one.clone()).await.refused(404, "PRODUCT_NOT_FOUND");
        post(test, "/admin/v1/coupons/999/release", one.clone()).await.refused(404, "COUPON_NOT_FOUND");
        let send = async |path| test.send(Method::POST, path, Some(&json!({"quantity": 15})), Some("k")).await;
        let first = send(&of_product).await;
        let again = send(&of_product).await;
        assert!(again.replayed() && !first.replayed());
        assert_eq!(first.ok(), json!({"productId": product, "withheldQuantity": 25}));
        assert_eq!(again.ok(), json!({"productId": product, "withheldQuantity": 25}));
        let left = post(test, &of_coupon, one).await.ok();
        assert_eq!(left, json!({"couponId": coupon, "withheldQuantity": 19}));
        assert_eq!(get(test, &format!("/api/v1/products/{product}")).await.ok()["stockQuantity"], 75);
        test.drain().await;
        assert_eq!(get(test, "/admin/v1/withheld").await.ok(), kept(25, 19));
        let all = post(test, "/admin/v1/withheld/release", json!({}));
        let (all, ()) = tokio::join!(all, async {
            // The answer waits for what it released to be written down.
            crate::support::harness::until("it is all released", async || {
                test.drain().await;
                let shown = get(test, &format!("/admin/v1/coupons/{coupon}")).await.ok();
                (shown["remainingQuantity"] == 50).then_some(())
            })
            .await;
            test.drain().await;
        });
        assert_eq!(all.ok(), nothing);
        test.order(user, product, 100).await.ok();
    })
    .await;
}
