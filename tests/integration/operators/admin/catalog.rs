//! Users, products and campaigns.

use super::*;

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
        let mut shown = with_terms(new);
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
            shown["saleStatus"] = json!(if shown["stockQuantity"] == 0 { "SOLD_OUT" } else { "ON_SALE" });
            assert_eq!(patch(test, &path, change).await.ok(), shown);
            assert_eq!(get(test, &format!("/api/v1/products/{product}")).await.ok(), shown);
        }
        let all = json!({"productName": "a", "price": 1, "category": "TOP", "stockDelta": -999_999_990});
        let changed =
            json!({"productId": product, "productName": "a", "price": 1, "category": "TOP", "stockQuantity": 10});
        let changed = with_terms(changed);
        assert_eq!(patch(test, &path, all).await.ok(), changed);
        for (category, total) in [("SHOES", 0), ("LIMITED_2", 0), ("TOP", 1)] {
            let listed = get(test, &format!("/api/v1/products?category={category}")).await.ok();
            assert_eq!(listed["totalElements"], total, "{category}");
        }

        // A change that would make the stock negative or exceed its bound is refused as a whole.
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
            let mut shown = with_conditions(new.clone());
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

        // A campaign without a window opens at once and closes when its coupons expire.
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
        // The operator's page sends whole seconds, so the time is 700 ms ago.
        test.clock.advance(700);
        let opened = patch(test, &path, json!({"opensAt": after(test, -700)})).await.ok();
        assert_eq!(
            (&opened["opensAt"], &opened["closesAt"]),
            (&json!(after(test, -700)), &json!(after(test, 899_300)))
        );
        issue(test, coupon, users[0]).await.ok();
        // Closes the campaign twice; a repeat without effect succeeds.
        for _ in 0..2 {
            let closed = patch(test, &path, json!({"closesAt": after(test, -700)})).await.ok();
            assert_eq!((&closed["closesAt"], &closed["issuedQuantity"]), (&json!(now(test)), &json!(1)));
            issue(test, coupon, users[1]).await.refused(400, "INVALID_COUPON");
        }
        let open = get(test, "/api/v1/campaigns").await.ok();
        assert_eq!(open, json!([]), "a closed campaign is listed");
        // An issued coupon stays available.
        assert_eq!(crate::support::api_kit::coupon(test, users[0], coupon).await["couponStatus"], "AVAILABLE");
        // Reopens the campaign, then postpones it.
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

/// Withheld units are listed, and return to sale once an operator releases them.
#[tokio::test]
async fn withheld_units_shown_and_released() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(10_000).await, test.product(10, 100).await);
        let coupon = test.campaign("FIXED", 1, 50).await;
        test.drain().await;
        let nothing = json!({"products": [], "coupons": []});
        assert_eq!(get(test, "/admin/v1/withheld").await.ok(), nothing);
        // Both stores have withheld units, as after a rebuild.
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
            // The reply waits until PostgreSQL has the releases.
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
