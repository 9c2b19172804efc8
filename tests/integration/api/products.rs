//! 상품: the catalog, and the popular products by calendar day.

use serde_json::{Value, json};

use crate::support::{
    api_kit::*,
    harness::{Options, START, TestApp},
};

const DAY_MS: i64 = 86_400_000;
/// From [`START`], 14:00 in Seoul, to midnight there.
const TO_MIDNIGHT_MS: i64 = 10 * 3_600_000;

#[tokio::test]
async fn product_shows_stock_left() {
    on_1_and_3(async |test| {
        let user = test.user(10_000_000).await;
        let shoes = product(test, "나이키 에어포스", "SHOES", 990_000, 50).await;
        let shown = |left: i64| {
            with_terms(
                json!({"productId": shoes, "productName": "나이키 에어포스", "price": 990_000, "stockQuantity": left,
                "category": "SHOES"}),
            )
        };
        let path = format!("/api/v1/products/{shoes}");
        assert_eq!(get(test, &path).await.ok(), shown(50));
        let order = placed(test, user, &[(shoes, 3)], None).await;
        assert_eq!(get(test, &path).await.ok(), shown(47), "held");
        pay(test, order, user, 2_970_000).await.ok();
        assert_eq!(get(test, &path).await.ok(), shown(47), "sold");
        cancel(test, order, user).await.ok();
        assert_eq!(get(test, &path).await.ok(), shown(50), "refunded");
        get(test, &format!("/api/v1/products/{}", shoes + 1)).await.refused(404, "PRODUCT_NOT_FOUND");
    })
    .await;
}

#[tokio::test]
async fn catalog_pages_by_id_and_category() {
    on_1_and_3(async |test| {
        let mut ids = Vec::new();
        for index in 0..7 {
            let category = ["TOP", "SHOES", "X_9"][index % 3];
            ids.push(product(test, &format!("상품 {index}"), category, 100, index as i64).await);
        }
        let listed = async |query: &str| -> (Vec<i64>, Value) {
            let mut page = get(test, &format!("/api/v1/products{query}")).await.ok();
            fields(&page, "content page size totalElements");
            let content = page.as_object_mut().unwrap().remove("content").unwrap();
            (content.as_array().unwrap().iter().map(|product| id(product, "productId")).collect(), page)
        };
        let about = |page: i64, size: i64, total: i64| json!({"page": page, "size": size, "totalElements": total});
        assert_eq!(listed("").await, (ids.clone(), about(0, 20, 7)));
        assert_eq!(listed("?size=3").await, (ids[..3].to_vec(), about(0, 3, 7)));
        assert_eq!(listed("?page=1&size=3").await, (ids[3..6].to_vec(), about(1, 3, 7)));
        assert_eq!(listed("?page=2&size=3").await, (ids[6..].to_vec(), about(2, 3, 7)));
        assert_eq!(listed("?page=3&size=3").await, (vec![], about(3, 3, 7)));
        assert_eq!(listed("?page=10000&size=100").await, (vec![], about(10_000, 100, 7)));
        assert_eq!(listed("?category=SHOES").await, (vec![ids[1], ids[4]], about(0, 20, 2)));
        assert_eq!(listed("?category=TOP&size=2&page=1").await, (vec![ids[6]], about(1, 2, 3)));
        assert_eq!(listed("?category=X_9").await, (vec![ids[2], ids[5]], about(0, 20, 2)));
        assert_eq!(listed("?category=OUTER&other=1").await, (vec![], about(0, 20, 0)));
        let one = get(test, "/api/v1/products?size=1&page=4").await.ok()["content"][0].clone();
        assert_eq!(one, get(test, &format!("/api/v1/products/{}", ids[4])).await.ok());
        for query in [
            "?page=-1",
            "?page=1.0",
            "?page=",
            "?size=0",
            "?size=101",
            "?page=10001&size=1",
            "?category=",
            "?category=shoes",
            "?category=9X",
            "?page=1&page=2",
            "?size=%00",
            "?page=9223372036854775808",
        ] {
            get(test, &format!("/api/v1/products{query}")).await.refused(400, "INVALID_REQUEST");
        }
    })
    .await;
}

/// The products of a ranking, in order.
async fn ranked(test: &TestApp, query: &str) -> Vec<i64> {
    let ranking = get(test, &format!("/api/v1/products/popular{query}")).await.ok();
    ranking.as_array().unwrap().iter().map(|place| id(place, "productId")).collect()
}

#[tokio::test]
async fn popular_products_ranked_by_units_then_won_then_id() {
    on_1_and_3(async |test| {
        let user = test.user(1_000_000_000).await;
        assert_eq!(get(test, "/api/v1/products/popular").await.ok(), json!([]));
        let mut products = Vec::new();
        for price in [10, 300, 200, 200, 5_000, 1, 0] {
            products.push(test.product(price, 100).await);
        }
        let [cheap, dear, same, twin, most, six, free] = products[..] else { unreachable!() };
        // Sorted by units, then by won, then by ascending id.
        for (product, quantity) in [(twin, 4), (same, 4), (cheap, 9), (dear, 4), (most, 10), (six, 2), (free, 1)] {
            bought(test, user, product, quantity).await;
        }
        let all = [most, cheap, dear, same, twin, six, free];
        assert_eq!(ranked(test, "?limit=100").await, all);
        assert_eq!(ranked(test, "").await, all[..5], "the default limit is 5");
        assert_eq!(ranked(test, "?limit=1").await, all[..1]);
        let place = |product: i64, units: i64, won: i64, scope: &str, position: i64| {
            json!({"productId": product,
            "salesCount": units, "totalSalesPrice": won, "rankingScope": scope, "rankPosition": position})
        };
        let first = get(test, "/api/v1/products/popular?limit=2").await.ok();
        let expected = [place(most, 10, 50_000, "THREE_DAYS", 1), place(cheap, 9, 90, "THREE_DAYS", 2)];
        assert_eq!(first, json!(expected));
        let last = get(test, "/api/v1/products/popular?limit=7").await.ok()[6].clone();
        assert_eq!(last, place(free, 1, 0, "THREE_DAYS", 7));
        // Unpaid and refunded orders do not count. Coupons do not reduce the total price.
        placed(test, user, &[(six, 50)], None).await;
        let refunded = bought(test, user, six, 30).await;
        cancel(test, refunded, user).await.ok();
        let campaign = test.campaign("PERCENTAGE", 100, 1).await;
        issue(test, campaign, user).await.ok();
        let order = placed(test, user, &[(dear, 1), (dear, 1), (free, 1)], Some(campaign)).await;
        pay(test, order, user, 0).await.ok();
        let listed = get(test, "/api/v1/products/popular?limit=3").await.ok();
        assert_eq!(listed[2], place(dear, 6, 1_800, "THREE_DAYS", 3));
        assert_eq!(ranked(test, "?limit=100").await, [most, cheap, dear, same, twin, six, free]);

        for (word, scope) in
            [("three_days", "THREE_DAYS"), ("Weekly", "WEEKLY"), ("today", "TODAY"), ("mOnThLy", "MONTHLY")]
        {
            for word in [word, scope] {
                let one = get(test, &format!("/api/v1/products/popular?sortBy={word}&limit=1")).await.ok();
                assert_eq!(one, json!([place(most, 10, 50_000, scope, 1)]), "{word}");
            }
        }
        for word in
            ["", "%20", "YEARLY", "THREE-DAYS", "THREE_DAYS,WEEKLY", "3", "null", "%EC%9D%BC", "%FF", "WEEKLY%00"]
        {
            let refused = get(test, &format!("/api/v1/products/popular?sortBy={word}")).await;
            refused.refused(400, "INVALID_SCOPE");
            let both = get(test, &format!("/api/v1/products/popular?limit=0&sortBy={word}")).await;
            both.refused(400, "INVALID_SCOPE");
        }
        for limit in ["0", "101", "-1", "", "a", "1.0", "1e1", "99999999999999999999"] {
            let refused = get(test, &format!("/api/v1/products/popular?limit={limit}")).await;
            refused.refused(400, "INVALID_REQUEST");
        }
    })
    .await;
}

#[tokio::test]
async fn popular_products_counted_by_calendar_days_of_seoul() {
    for partitions in [1, 2] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let user = test.user(1_000_000).await;
        // One sale per day: in the first millisecond of even days, in the last one of odd days.
        let mut sold = Vec::new();
        test.clock.advance(TO_MIDNIGHT_MS - DAY_MS);
        let first_midnight = test.clock.now().0;
        let advance_to = |ms: i64| test.clock.advance(first_midnight + ms - test.clock.now().0);
        for day in 0..40 {
            advance_to(day * DAY_MS + if day % 2 == 0 { 0 } else { DAY_MS - 1 });
            let product = test.product(1, 1).await;
            bought(&test, user, product, 1).await;
            sold.push(product);
        }
        let windows = async |today: usize| {
            for (scope, days) in [("TODAY", 1), ("THREE_DAYS", 3), ("WEEKLY", 7), ("MONTHLY", 30)] {
                let listed = ranked(&test, &format!("?limit=100&sortBy={scope}")).await;
                let from = (today + 1 - days).min(sold.len());
                assert_eq!(listed, sold[from..], "{scope} on day {today}, {}", now(&test));
            }
        };
        windows(39).await;
        advance_to(40 * DAY_MS - 1);
        windows(39).await;
        advance_to(40 * DAY_MS);
        windows(40).await;
        for day in [41, 42, 43, 46, 47, 68, 69] {
            advance_to((day + 1) * DAY_MS - 1);
            windows(day as usize).await;
        }
        test.finish().await;
    }
}

#[tokio::test]
async fn refund_subtracted_from_day_of_sale() {
    let test = TestApp::start().await;
    let user = test.user(1_000_000).await;
    let (kept, returned) = (test.product(100, 100).await, test.product(200, 100).await);
    bought(&test, user, kept, 1).await;
    bought(&test, user, returned, 3).await;
    let order = bought(&test, user, returned, 2).await;
    // The price has changed since the sale; the refund subtracts the price of the sale.
    patch(&test, &format!("/admin/v1/products/{returned}"), json!({"price": 999})).await.ok();
    test.clock.advance(TO_MIDNIGHT_MS);
    let again = bought(&test, user, returned, 1).await;
    cancel(&test, order, user).await.ok();
    let sales = async |scope: &str| -> Vec<(i64, i64, i64)> {
        let ranking = get(&test, &format!("/api/v1/products/popular?sortBy={scope}")).await.ok();
        let place = |place: &Value| (id(place, "productId"), id(place, "salesCount"), id(place, "totalSalesPrice"));
        ranking.as_array().unwrap().iter().map(place).collect()
    };
    assert_eq!(sales("TODAY").await, [(returned, 1, 999)]);
    assert_eq!(sales("THREE_DAYS").await, [(returned, 4, 1_599), (kept, 1, 100)]);
    cancel(&test, again, user).await.ok();
    assert_eq!(sales("TODAY").await, []);
    assert_eq!(sales("THREE_DAYS").await, [(returned, 3, 600), (kept, 1, 100)]);
    test.finish().await;
}

#[tokio::test]
async fn refund_of_old_sale_leaves_rankings_unchanged() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(1_000).await, test.product(100, 5).await);
    let order = bought(&test, user, product, 5).await;
    test.clock.advance(40 * DAY_MS);
    // The rankings of that day expire by the clock of Redis, which the test can't move, so the test deletes them.
    let mut redis = test.raw().await;
    let day = START.day(test.engine.zone()).format("%Y%m%d");
    let keys = [format!("{{p0}}:rank:units:{day}"), format!("{{p0}}:rank:won:{day}")];
    let (life, gone): (i64, i64) =
        redis::pipe().cmd("TTL").arg(&keys[0]).cmd("DEL").arg(&keys).query_async(&mut redis).await.unwrap();
    assert!((31 * 86_400..34 * 86_400).contains(&life) && gone == 2, "{life} {gone}");
    post(&test, &format!("/admin/v1/orders/{order}/refund"), json!({})).await.ok();
    assert_eq!(detail(&test, order).await["closeReason"], "REFUNDED");
    assert_eq!((stock(&test, product).await, balance(&test, user).await), (5, 1_000));
    assert!(ranked(&test, "?sortBy=MONTHLY").await.is_empty());
    test.finish().await;
}
