//! The snapshots are complete and exact, also while a store is down.

use firstcome::{model::Partition, recovery::rebuild::RebuildOptions};

use super::*;

fn part<'s>(snapshot: &'s Value, part: &str) -> &'s Value {
    snapshot["health"].as_array().unwrap().iter().find(|health| health["part"] == part).unwrap()
}

fn is_well(snapshot: &Value) -> bool {
    snapshot["health"].as_array().unwrap().iter().all(|part| part["ok"] == true)
}

fn product(snapshot: &Value, id: i64) -> Option<&Value> {
    snapshot["products"].as_array()?.iter().find(|product| product["productId"] == id)
}

#[tokio::test]
async fn first_snapshot_immediate_and_complete() {
    let test = TestApp::start().await;
    let mut watch = Watch::open(&test.base).await;
    let headers = watch.response.headers();
    for (name, value) in
        [("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no")]
    {
        assert_eq!(headers[name], value);
    }
    guarded(headers);
    assert_eq!(watch.block().await.unwrap(), "retry: 1000\n\n");
    let first = watch.next().await.unwrap();
    let parts = "at zone instance health rankings campaigns products orders stuckPayments requests projection redis partitions \
                 recoveries audit watchers instances historyUnavailable";
    fields(&first, parts);
    assert_eq!(first["zone"], "Asia/Seoul");
    assert_eq!(first["watchers"], 1);
    assert_eq!(first["audit"], json!({"last": null, "running": false, "progress": null}));
    fields(&first["instance"], "instanceId name version startedAt");
    assert_eq!(first["historyUnavailable"], "");
    let alone = watch.until("that there are no others", |snapshot| snapshot["instances"].is_array()).await;
    fields(&alone["instances"][0], "instanceId name version startedAt requests");
    assert_eq!(
        (alone["instances"].as_array().unwrap().len(), &alone["instances"][0]["name"]),
        (1, &first["instance"]["name"])
    );
    assert_eq!(first["instance"]["version"], env!("CARGO_PKG_VERSION"));
    let quiet = watch.until("a shop at rest", |snapshot| is_well(snapshot) && snapshot["requests"].is_object()).await;
    assert_eq!(quiet["at"], test.clock.now().0);
    assert_eq!(quiet["rankings"], json!({"TODAY": [], "THREE_DAYS": [], "WEEKLY": [], "MONTHLY": []}));
    assert_eq!((&quiet["campaigns"], &quiet["products"]), (&json!([]), &json!([])));
    assert_eq!(quiet["orders"], json!({"PENDING": 0, "PAID": 0, "CANCELLED": 0, "FAILED": 0}));
    assert_eq!(quiet["stuckPayments"], 0);
    assert_eq!(quiet["partitions"], json!({"count": 1, "closed": []}));
    assert_eq!(quiet["recoveries"], json!([]));
    let names: Vec<&Value> = quiet["health"].as_array().unwrap().iter().map(|part| &part["part"]).collect();
    assert_eq!(names, ["redis", "postgres", "projection", "decisions"]);
    fields(&quiet["projection"], "lagEvents lagSeconds deadLetters maxBacklog eventsPerSecond");
    fields(
        &quiet["requests"],
        "perSecond refusedPerSecond failedPerSecond limitedPerSecond shedPerSecond latency routes refusals",
    );
    let redis = &quiet["redis"];
    assert_eq!(
        (&redis["servers"], &redis["appendfsync"], &redis["maxmemoryPolicy"]),
        (&json!(1), &json!("always"), &json!("noeviction"))
    );
    assert_eq!((&redis["aofEnabled"], &redis["aofLastWriteOk"]), (&json!(true), &json!(true)));
    assert!(redis["usedMemoryBytes"].as_i64().unwrap() > 100_000 && redis["connectedClients"].as_i64().unwrap() > 0);
    assert!(!redis["version"].as_str().unwrap().is_empty());
    test.finish().await;
}

/// A snapshot equals the API, and PostgreSQL once every event is projected.
#[tokio::test]
async fn snapshot_matches_api_and_postgres() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let mut watch = Watch::open(&test.base).await;
        watch.until("rankings", |snapshot| snapshot["rankings"].is_object()).await;
        busy_day(&test).await;
        // Units sold today, held and on sale, as in the API.
        let user = test.user(1_000_000).await;
        let shoes = test.product(10_000, 100).await;
        let coat = test.product(20_000, 30).await;
        for (product, quantity) in [(shoes, 7), (coat, 2), (shoes, 1)] {
            let order = test.order(user, product, quantity).await.ok();
            test.pay(order["orderId"].as_i64().unwrap(), user, "CARD", order["finalPrice"].as_i64().unwrap())
                .await
                .ok();
        }
        test.order(user, shoes, 5).await.ok();
        let dropped = test.order(user, coat, 3).await.ok()["orderId"].as_i64().unwrap();
        test.cancel(dropped, user).await.ok();
        let lag = test.get("/admin/v1/projection").await.ok()["lagEvents"].clone();
        let behind = watch.until("the lag", |snapshot| snapshot["projection"]["lagEvents"] == lag).await;
        assert!(lag.as_i64().unwrap() > 0 && behind["orders"]["PAID"] == 0);
        test.drain().await;
        let truth = watch
            .until("everything in Postgres", |snapshot| {
                snapshot["projection"]["lagEvents"] == 0
                    && snapshot["orders"]["PENDING"] != 0
                    && product(snapshot, shoes).is_some_and(|shoes| shoes["held"] == 5)
            })
            .await;
        assert!(is_well(&truth), "{truth:#}");
        let shelf = |id: i64| {
            let product = product(&truth, id).unwrap();
            ["onSale", "held", "sold", "withheld"].map(|units| product[units].as_i64().unwrap())
        };
        assert_eq!((shelf(shoes), shelf(coat)), ([87, 5, 8, 0], [28, 0, 2, 0]));
        let sale = product(&truth, shoes).unwrap();
        assert_eq!((&sale["saleStatus"], &sale["limitPerUser"]), (&json!("ON_SALE"), &Value::Null));
        for status in ["PENDING", "PAID", "CANCELLED", "FAILED"] {
            let listed = test.get(&format!("/admin/v1/orders?status={status}")).await.ok();
            assert_eq!(truth["orders"][status], listed["totalElements"], "{status}");
        }
        for scope in ["TODAY", "THREE_DAYS", "WEEKLY", "MONTHLY"] {
            let ranked = test.get(&format!("/api/v1/products/popular?sortBy={scope}&limit=10")).await.ok();
            let ranked = ranked.as_array().unwrap();
            let shown = truth["rankings"][scope].as_array().unwrap();
            assert!(!shown.is_empty());
            assert_eq!(shown.len(), ranked.len(), "{scope}");
            for (shown, ranked) in shown.iter().zip(ranked) {
                for field in ["productId", "salesCount", "totalSalesPrice", "rankPosition"] {
                    assert_eq!(shown[field], ranked[field], "{scope}: {field}");
                }
                let named = test.get(&format!("/api/v1/products/{}", shown["productId"])).await.ok();
                assert_eq!(shown["productName"], named["productName"]);
            }
        }
        let sold: i64 = truth["rankings"]["TODAY"]
            .as_array()
            .unwrap()
            .iter()
            .map(|place| place["salesCount"].as_i64().unwrap())
            .sum();
        let paid = "SELECT sum(quantity - order_lines.refunded)::bigint FROM order_lines JOIN orders ON id = order_id
                    WHERE status = 'PAID'";
        let paid: i64 = sqlx::query_scalar(paid).fetch_one(test.db.get_postgres_connection_pool()).await.unwrap();
        assert_eq!(sold, paid);
        let moved = &truth["rankings"]["TODAY"][0]["previousPosition"];
        assert!(moved.is_null(), "a product has a past position without past sales: {moved}");
        test.finish().await;
    }
}

#[tokio::test]
async fn snapshot_follows_campaign_to_its_end() {
    let test = TestApp::start().await;
    let mut watch = Watch::open(&test.base).await;
    let users: Vec<i64> = join_all((0..6).map(|_| test.user(0))).await;
    let (burning, small) = (test.campaign("FIXED", 100, 1_000).await, test.campaign("PERCENTAGE", 5, 2).await);
    let mut later = json!({"couponCode": "LATER", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 5,
        "opensAt": after(&test, 3_600_000), "expiredAt": after(&test, 86_400_000)});
    let later_id = test.post("/admin/v1/coupons", later.clone()).await.created()["couponId"].clone();
    later["opensAt"] = json!(now(&test));
    later["closesAt"] = json!(after(&test, 60_000));
    let short = test.post("/admin/v1/coupons", later).await.created()["couponId"].clone();
    watch.until("four campaigns", |snapshot| snapshot["campaigns"].as_array().is_some_and(|all| all.len() == 4)).await;
    test.clock.advance(60_000);
    for user in &users[..2] {
        test.issue(small, *user).await.ok();
    }
    for user in &users {
        test.issue(burning, *user).await.ok();
    }
    let campaign = |snapshot: &Value, id: &Value| {
        snapshot["campaigns"].as_array().unwrap().iter().find(|campaign| campaign["couponId"] == *id).unwrap().clone()
    };
    let seen = watch.until("six issued", |snapshot| campaign(snapshot, &json!(burning))["issuedQuantity"] == 6).await;
    let shown = campaign(&seen, &json!(burning));
    fields(
        &shown,
        "couponId couponCode discountType discountAmount minOrderPrice maxDiscountPrice productCount categories totalQuantity \
         issuedQuantity remainingQuantity withheldQuantity opensAt closesAt expiredAt state issuesPerSecond secondsToEmpty",
    );
    assert_eq!((&shown["remainingQuantity"], &shown["totalQuantity"]), (&json!(994), &json!(1_000)));
    let rate = shown["issuesPerSecond"].as_f64().unwrap();
    assert!(rate > 0.0, "{shown}");
    let empty = shown["secondsToEmpty"].as_f64().unwrap();
    assert!((empty - 994.0 / rate).abs() <= empty / 100.0 + 1.0, "{shown}");
    let states: Vec<&str> =
        seen["campaigns"].as_array().unwrap().iter().map(|campaign| campaign["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["OPEN", "SOLD_OUT", "SCHEDULED", "CLOSED"]);
    assert_eq!(campaign(&seen, &later_id)["state"], "SCHEDULED");
    assert_eq!(campaign(&seen, &short)["state"], "CLOSED");
    assert!(campaign(&seen, &json!(small))["secondsToEmpty"].is_null());
    // The rate falls to zero, and a closed campaign disappears after a while.
    test.clock.advance(3_600_000);
    let rest = watch
        .until("rest", |snapshot| {
            snapshot["campaigns"].as_array().is_some_and(|all| all.len() == 3)
                && campaign(snapshot, &json!(burning))["issuesPerSecond"] == 0.0
        })
        .await;
    assert!(campaign(&rest, &json!(burning))["secondsToEmpty"].is_null());
    assert_eq!(campaign(&rest, &later_id)["state"], "OPEN");
    test.finish().await;
}

/// Tests in this process share its counters, so the requests of this test are only a part of those shown.
#[tokio::test]
async fn snapshot_counts_requests_by_class_without_its_own() {
    let test = TestApp::start().await;
    let (coupon, first, late) = (test.campaign("FIXED", 1, 1).await, test.user(0).await, test.user(0).await);
    test.issue(coupon, first).await.ok();
    let mut watch = Watch::open(&test.base).await;
    let done = AtomicBool::new(false);
    let rush = async {
        while !done.load(Ordering::Relaxed) {
            test.issue(coupon, late).await.refused(409, "COUPON_OUT_OF_STOCK");
        }
    };
    let named = |list: &Value, field: &str, name: &str| {
        list.as_array().is_some_and(|list| list.iter().any(|one| one[field] == name && one["perSecond"] != 0.0))
    };
    let watching = async {
        let seen = watch
            .until("the rush", |seen| {
                let requests = &seen["requests"];
                named(&requests["routes"], "route", "/api/v1/coupons/issue")
                    && named(&requests["refusals"], "errorCode", "COUPON_OUT_OF_STOCK")
            })
            .await;
        done.store(true, Ordering::Relaxed);
        seen["requests"].clone()
    };
    let ((), requests) = tokio::join!(rush, watching);
    let number = |of: &Value, field: &str| of[field].as_f64().unwrap();
    assert!(number(&requests, "refusedPerSecond") > 0.0, "{requests:#}");
    let ordered = |latency: &Value| {
        let [p50, p95, p99] = ["p50Ms", "p95Ms", "p99Ms"].map(|share| number(latency, share));
        assert!(0.0 < p50 && p50 <= p95 && p95 <= p99, "{latency}");
    };
    ordered(&requests["latency"]);
    let routes = requests["routes"].as_array().unwrap();
    for route in routes {
        ordered(route);
        fields(route, "method route perSecond refusedPerSecond failedPerSecond p50Ms p95Ms p99Ms");
        assert!(!route["route"].as_str().unwrap().starts_with("/ops"), "{route}");
        assert!(number(route, "perSecond") <= number(&requests, "perSecond") + 0.01, "{route}");
    }
    assert!(routes.is_sorted_by_key(|route| std::cmp::Reverse((number(route, "perSecond") * 1000.0) as i64)));
    test.finish().await;
}

#[tokio::test]
async fn snapshot_shows_audit_of_any_process() {
    let test = TestApp::start().await;
    test.user(5).await;
    let mut watch = Watch::open(&test.base).await;
    assert!(watch.next().await.unwrap()["audit"]["last"].is_null());
    test.clock.advance(1_000);
    let answered = test.get("/admin/v1/audit").await.ok();
    let seen = watch.until("the audit", |snapshot| !snapshot["audit"]["last"].is_null()).await;
    let last = &seen["audit"]["last"];
    fields(last, "balanced checks finishedAt seconds");
    assert_eq!((&last["balanced"], &last["checks"]), (&json!(true), &answered["checks"]));
    assert_eq!((&last["finishedAt"], &seen["audit"]["running"]), (&json!(test.clock.now().0), &json!(false)));
    test.finish().await;
}

#[tokio::test]
async fn snapshot_shows_postgres_down_and_keeps_the_rest() {
    let mut shop = RestartableApp::open().await;
    let user = shop.post("/admin/v1/users", json!({"userName": "A", "balance": 1_000})).await.created();
    let user = user["userId"].as_i64().unwrap();
    let body = json!({"productName": "A", "price": 100, "stockQuantity": 50, "category": "TOP"});
    let shoes = shop.post("/admin/v1/products", body).await.created()["productId"].as_i64().unwrap();
    let order = json!({"userId": user, "orderProducts": [{"productId": shoes, "quantity": 2}]});
    shop.post("/api/v1/orders", order.clone()).await.ok();
    let mut watch = Watch::open(&shop.base).await;
    watch.until("one order", |seen| seen["orders"]["PENDING"] == 1 && is_well(seen)).await;
    for hangs in [true, false] {
        if hangs {
            shop.postgres.pause().unwrap();
        } else {
            shop.postgres.kill().await.unwrap();
        }
        shop.post("/api/v1/orders", order.clone()).await.ok();
        let held = if hangs { 4 } else { 6 };
        let down = watch
            .until("Postgres is down", |seen| {
                part(seen, "postgres")["ok"] == false
                    && seen["orders"].is_null()
                    && seen["projection"]["lagEvents"] == 1
                    && product(seen, shoes).is_some_and(|shoes| shoes["held"] == held)
            })
            .await;
        assert!(!part(&down, "postgres")["detail"].as_str().unwrap().is_empty());
        assert_eq!((&part(&down, "redis")["ok"], &part(&down, "decisions")["ok"]), (&json!(true), &json!(true)));
        assert!(down["rankings"].is_object() && down["campaigns"].is_array() && down["redis"].is_object());
        if hangs {
            shop.postgres.resume().unwrap();
        } else {
            shop.postgres.restart().await.unwrap();
        }
        watch.until("it is back", |seen| is_well(seen) && seen["orders"]["PENDING"] == held / 2).await;
    }
    drop(watch);
    shop.finish().await;
}

#[tokio::test]
async fn snapshot_shows_redis_down_and_keeps_the_rest() {
    let mut shop = RestartableApp::open().await;
    let mut watch = Watch::open(&shop.base).await;
    watch.until("all is well", is_well).await;
    shop.redis.kill().await.unwrap();
    let down = watch
        .until("Redis is down", |seen| {
            let not_well = ["redis", "decisions"].iter().all(|name| part(seen, name)["ok"] == false);
            let absent = ["rankings", "campaigns", "products", "redis", "projection"];
            not_well && absent.iter().all(|part| seen[part].is_null())
        })
        .await;
    assert_eq!(part(&down, "postgres")["ok"], true, "{down:#}");
    assert!(down["orders"].is_object());
    shop.redis.restart().await.unwrap();
    watch.until("it is back", |seen| is_well(seen) && seen["rankings"].is_object()).await;
    drop(watch);
    shop.finish().await;
}

/// One partition is closed, and the others decide; afterwards its recovery is shown as the API lists it.
#[tokio::test]
async fn snapshot_shows_closed_partition_and_its_recovery() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    test.drain().await;
    let mut watch = Watch::open(&test.base).await;
    watch.until("all partitions decide", |seen| seen["partitions"] == json!({"count": 3, "closed": []})).await;
    let mut redis = test.raw().await;
    let _: i64 =
        redis::cmd("HSET").arg("{p1}:meta").arg("frozen").arg("kept shut").query_async(&mut redis).await.unwrap();
    let closed = watch
        .until("partition 1 is closed", |seen| {
            seen["partitions"]["closed"].as_array().is_some_and(|all| !all.is_empty())
        })
        .await;
    let shut = &closed["partitions"]["closed"];
    assert_eq!((shut.as_array().unwrap().len(), &shut[0]["partition"]), (1, &json!(1)), "{shut}");
    let reason = shut[0]["reason"].as_str().unwrap();
    assert!(reason.contains("kept shut"), "{reason}");
    assert_eq!(part(&closed, "decisions")["detail"], format!("partition 1: {reason}"));
    let rebuild = test.rebuild().await;
    let only = RebuildOptions { partitions: Some([Partition(1)].into()), ..RebuildOptions::default() };
    rebuild.clone().run(only).await.unwrap();
    rebuild.db.close().await.unwrap();
    let open = watch
        .until("partition 1 is open, and its recovery is shown", |seen| {
            let ended = seen["recoveries"].as_array().is_some_and(|all| all.len() == 1 && !all[0]["seconds"].is_null());
            ended && seen["partitions"]["closed"] == json!([])
        })
        .await;
    let shown = &open["recoveries"][0];
    fields(
        shown,
        "recoveryId partition begunBy attempts outcome reason detail missingFirstSeq missingLastSeq withheldUnits withheldCoupons \
         step rowsDone rowsExpected etaSeconds noticedAt seconds",
    );
    let listed = &test.get("/admin/v1/recoveries").await.ok()["content"][0];
    for (field, value) in shown.as_object().unwrap().iter().filter(|(field, _)| *field != "noticedAt") {
        assert_eq!(*value, listed[field], "{field}");
    }
    assert_eq!(shown["reason"], "kept shut");
    assert_eq!((&shown["step"], &shown["rowsDone"], &shown["etaSeconds"]), (&json!("finish"), &json!(0), &json!(null)));
    test.finish().await;
}

/// The migration counts the existing orders; afterwards a trigger counts every change.
#[tokio::test]
async fn orders_counted_after_migration_of_existing_rows() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, batch: 4, ..Options::default() }).await;
        busy_day(&test).await;
        test.drain().await;
        let pool = test.db.get_postgres_connection_pool();
        let totals = async || {
            let sql = "SELECT partition, status, orders FROM order_totals WHERE orders <> 0 ORDER BY 1, 2";
            sqlx::query_as::<_, (i32, String, i64)>(sql).fetch_all(pool).await.unwrap()
        };
        let before = totals().await;
        assert_eq!(before.iter().map(|(.., orders)| orders).sum::<i64>(), 13, "{before:?}");
        let undo = "DROP TABLE order_totals; DROP FUNCTION count_orders CASCADE;
                    DELETE FROM _sqlx_migrations WHERE version = 8";
        sqlx::raw_sql(undo).execute(pool).await.unwrap();
        postgres::migrate(&test.db).await.unwrap();
        assert_eq!(totals().await, before);
        // A rolled back statement does not count.
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query("DELETE FROM orders").execute(&mut *transaction).await.unwrap();
        transaction.rollback().await.unwrap();
        busy_day(&test).await;
        test.drain().await;
        assert_ne!(totals().await, before);
        test.finish().await;
    }
}
