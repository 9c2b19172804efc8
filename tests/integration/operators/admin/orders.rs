//! The list of orders.

use super::*;

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
        assert_eq!(listed("").await, (all.clone(), about(0, 20, 4)), "an acknowledged order is missing");
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
        // The list shows each order as its buyer sees it.
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
        // Another process, with ids from another block.
        let (redis, postgres) = (test.redis.url(), postgres_url(&test.database));
        let other = open(&test.options, &redis, &postgres, test.clock.clone()).await.unwrap();
        let order = || NewOrder {
            user_id: UserId::new(user).unwrap(),
            lines: vec![(ProductId::new(product).unwrap(), 1)],
            coupon_id: None,
            payment_type: None,
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
        let timeline = get(&test, &format!("/admin/v1/users/{user}/timeline")).await.ok();
        let ids = |field: &str| -> Vec<i64> {
            timeline[field].as_array().unwrap().iter().map(|order| id(order, "orderId")).collect()
        };
        assert_eq!((ids("orders"), ids("openOrders")), (newest.clone(), pending));
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
    for (condition, index) in [
        ("true", "orders_newest"),
        ("status = 'PAID'", "orders_newest"),
        ("status = 'CANCELLED' AND closed_at IS NOT NULL", "orders_closed_newest"),
        ("user_id = 7", "orders_newest_of_user"),
    ] {
        let listing =
            format!("EXPLAIN SELECT * FROM orders WHERE {condition} ORDER BY placed_at DESC, id DESC LIMIT 20");
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(listing)).fetch_all(pool).await.unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains(&format!("Index Scan Backward using {index} on")) && !plan.contains("Sort"), "{plan}");
    }
    test.finish_unchecked().await;
}

/// PostgreSQL updates a row in place (HOT) only if no index has a column that changed, in its key or in its predicate.
#[tokio::test]
async fn order_paid_touches_no_index() {
    let test = TestApp::start().await;
    let indexes: Vec<String> = sqlx::query_scalar("SELECT indexdef FROM pg_indexes WHERE tablename = 'orders'")
        .fetch_all(test.db.get_postgres_connection_pool())
        .await
        .unwrap();
    assert!(indexes.len() >= 3, "{indexes:?}");
    for index in indexes {
        for changed in ["status", "paid_at", "sold_on"] {
            assert!(!index.contains(changed), "{index}");
        }
    }
    test.finish().await;
}
