//! Redis lost, and put back together from Postgres: nothing that Postgres has is missing afterwards, nothing is sold that may
//! have been sold, and nothing is thrown away that nobody said may be.

use std::collections::{BTreeMap, BTreeSet};

use firstcome::{
    config::{Ack, DurabilityConfig},
    projector::Projector,
    recovery::rebuild::{self, Rebuild, Summary},
    redis::Store,
};
use reqwest::Method;
use serde_json::json;

use crate::{
    projector::projection::busy_day,
    support::{
        fake_gateway::{Behaviour, FakeGateway},
        harness::{self, Options, TestApp, until},
    },
};

/// What every process of this store waits for before it answers; so nothing that anybody was told can be lost.
pub fn careful() -> Options {
    Options { durability: DurabilityConfig { ack: Ack::Postgres, ..DurabilityConfig::default() }, ..projecting() }
}

pub fn projecting() -> Options {
    Options { project: true, ..Options::default() }
}

/// A rebuild by a process of its own.
pub async fn rebuilder(test: &TestApp) -> Rebuild {
    let store = Store::connect(&test.redis_config()).await.unwrap();
    let db =
        firstcome::postgres::connect(&harness::postgres_config(&harness::postgres_url(&test.database))).await.unwrap();
    let patience = std::time::Duration::from_secs(600);
    let (clock, zone, keep) = (test.clock.clone(), test.engine.zone(), test.options.retention.retention());
    let projector = Projector::new(store.clone(), db.clone(), clock.clone(), &Default::default(), patience, keep);
    Rebuild { store, db, projector, clock, zone, keep, allow_unsafe_redis: false }
}

pub async fn rebuilt(test: &TestApp, options: rebuild::Options) -> Summary {
    let rebuild = rebuilder(test).await;
    let summary = rebuild.clone().run(options).await.unwrap();
    rebuild.db.close().await.unwrap();
    summary
}

pub async fn refused(test: &TestApp, options: rebuild::Options) -> String {
    let rebuild = rebuilder(test).await;
    let error = rebuild.clone().run(options).await.expect_err("it was rebuilt");
    rebuild.db.close().await.unwrap();
    format!("{error:#}")
}

pub async fn flush(test: &TestApp) {
    let _: () = redis::cmd("FLUSHALL").query_async(&mut test.raw().await).await.unwrap();
}

pub async fn ready(test: &TestApp) {
    until("the service goes on", async || (test.get("/readyz").await.status == 200).then_some(())).await;
}

/// Waits until Postgres has everything, without the outbox being read by the test.
pub async fn projected(test: &TestApp) {
    until("Postgres has everything", async || {
        let status = test.get("/admin/v1/projection").await.ok();
        (status["lagEvents"] == 0).then_some(())
    })
    .await;
}

/// What is in Redis, without what may differ: where the epoch and the sequences of ids are, in which order an order has its
/// lines, where the newest history is found, and what has ended in other partitions.
fn comparable(snapshot: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in snapshot {
        let kind = key.split(':').nth(1).unwrap().to_owned();
        if matches!(kind.as_str(), "meta" | "ids" | "outbox" | "claim")
            || ["\"RELEASED\"", "\"REFUNDED\""].iter().any(|end| kind == "hold" && value.contains(end))
        {
            continue;
        }
        let fields = value.trim_matches(['{', '}']);
        let value = match (kind.as_str(), key.matches(':').count()) {
            ("user", 2) => {
                let tail = fields.split(", ").find(|field| field.starts_with("\"tail\"")).unwrap().to_owned();
                value.replace(&tail, "\"tail\": \"\"")
            }
            ("order" | "hold", _) => {
                let lines = |name: &str| {
                    let start = format!("\"{name}\": \"");
                    let lines = value.split_once(&start).map_or("", |(_, rest)| rest.split('"').next().unwrap());
                    let mut sorted: Vec<&str> = lines.split(',').collect();
                    sorted.sort_unstable();
                    (lines.to_owned(), sorted.join(","))
                };
                let mut value = value.clone();
                for (lines, sorted) in [lines("lines"), lines("far")] {
                    value = value.replace(&format!("\"{lines}\""), &format!("\"{sorted}\""));
                }
                value
            }
            // Counters that came back to nothing.
            ("held" | "sold" | "withheld", _) => {
                let mut counters: Vec<&str> = fields.split(", ").filter(|field| !field.ends_with(": \"0\"")).collect();
                counters.sort_unstable();
                counters.join(", ")
            }
            // When they are looked at next.
            ("gateway", _) => {
                let orders: BTreeSet<&str> =
                    value.split("(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
                format!("{orders:?}")
            }
            // What was given away is worth nothing, in the set or not.
            ("rank", _) => {
                let mut ranked: Vec<&str> =
                    value.split("(\"").skip(1).filter(|rest| !rest.contains(", 0.0)")).collect();
                ranked.sort_unstable();
                ranked.join("")
            }
            _ => value,
        };
        if !value.is_empty() {
            all.insert(key, value);
        }
    }
    all
}

// --- what comes back -------------------------------------------------------------------------------------------------

/// Every kind of thing in every state, key by key.
#[tokio::test]
async fn rebuild_restores_state_of_postgres() {
    for partitions in [1, 3] {
        let gateway = FakeGateway::start().await;
        let test =
            TestApp::with(Options { partitions, gateway: harness::gateways(&[("TOSS", gateway.url())]), ..careful() })
                .await;
        gateway.next(Behaviour::Approve);
        gateway.next(Behaviour::Decline);
        busy_day(&test).await;
        let (rich, product) = (test.user(10_000_000).await, test.product(1_000, 50).await);
        // Through a gateway: paid; declined; not known yet; paid and refunded, the money still to go back.
        let toss = async |behaviour| {
            gateway.next(behaviour);
            let order = test.order(rich, product, 1).await.ok()["orderId"].as_i64().unwrap();
            let body = json!({"orderId": order, "userId": rich, "paymentType": "TOSS", "amount": 1_000});
            test.send(Method::POST, "/api/v1/payments", Some(&body), Some(&format!("toss-{order}"))).await;
            order
        };
        toss(Behaviour::Approve).await;
        toss(Behaviour::Decline).await;
        toss(Behaviour::Garbage).await;
        let back = toss(Behaviour::Approve).await;
        test.cancel(back, rich).await.ok();
        // Under keys.
        let body = json!({"amount": 77});
        test.send(Method::PUT, &format!("/api/v1/balances/{rich}"), Some(&body), Some("charge")).await.ok();
        let body = json!({"userName": "키", "balance": 5});
        let made = test.send(Method::POST, "/admin/v1/users", Some(&body), Some("user")).await.created();
        let lines = json!([{"productId": product, "quantity": 2}]);
        let order = json!({"userId": rich, "orderProducts": lines});
        let placed = test.send(Method::POST, "/api/v1/orders", Some(&order), Some("order")).await.ok();
        projected(&test).await;

        let before = comparable(test.snapshot().await);
        flush(&test).await;
        let summary = rebuilt(&test, rebuild::Options::default()).await;
        assert_eq!(
            (summary.epoch, summary.possible_losses.len(), summary.lost_at_least, summary.discarded),
            (2, 0, 0, 0)
        );
        assert_eq!(summary.withheld_units + summary.withheld_coupons, 0, "{summary:?}");
        let after = comparable(test.snapshot().await);
        for (key, value) in &before {
            assert_eq!(after.get(key), Some(value), "{key}, of {partitions}");
        }
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());

        // Repeats are still recognised, and ids are not given out again.
        ready(&test).await;
        let again = test.send(Method::POST, "/api/v1/orders", Some(&order), Some("order")).await;
        assert!(again.replayed(), "{}", again.text);
        assert_eq!(again.ok(), placed);
        let again = test.send(Method::POST, "/admin/v1/users", Some(&body), Some("user")).await;
        assert!(again.replayed());
        assert_eq!(again.created(), made);
        let other = json!({"amount": 78});
        let other = test.send(Method::PUT, &format!("/api/v1/balances/{rich}"), Some(&other), Some("charge")).await;
        other.refused(422, "IDEMPOTENCY_KEY_REUSED");
        let new = test.user(1).await;
        assert_eq!(new, made["userId"].as_i64().unwrap() + 1, "no id is lost or used twice");
        test.order(rich, product, 1).await.ok();
        test.finish().await;
    }
}

/// Sequences of ids go on after what was reserved under a key and not created yet.
#[tokio::test]
async fn rebuild_keeps_reserved_ids() {
    let test = TestApp::with(careful()).await;
    let call = harness::call(Some(("bulk", "request")));
    let first = test.store.ids_reserve(&call, "user", 1_000).await.unwrap().value;
    projected(&test).await;
    flush(&test).await;
    rebuilt(&test, rebuild::Options::default()).await;
    ready(&test).await;
    assert_eq!(test.user(0).await, first + 1_000);
    assert_eq!(test.store.ids_reserve(&call, "user", 1_000).await.unwrap().value, first);
    test.finish().await;
}

// --- what may be lost ------------------------------------------------------------------------------------------------

pub async fn pending(test: &TestApp, user: i64, product: i64, quantity: i64) -> i64 {
    test.order(user, product, quantity).await.ok()["orderId"].as_i64().unwrap()
}

pub async fn stock(test: &TestApp, product: i64) -> i64 {
    test.get(&format!("/api/v1/products/{product}")).await.ok()["stockQuantity"].as_i64().unwrap()
}

/// Whoever was told of an order that nobody remembers may have the units: they are not sold again until somebody says so.
#[tokio::test]
async fn rebuild_withholds_units_of_lost_decisions() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let (user, product) = (test.user(100_000).await, test.product(100, 20).await);
        let coupon = test.campaign("FIXED", 10, 5).await;
        test.issue(coupon, user).await.ok();
        let order = pending(&test, user, product, 3).await;
        let cancelled = pending(&test, user, product, 2).await;
        test.drain().await;
        // Told, and lost.
        test.pay(order, user, "CARD", 300).await.ok();
        let lost = pending(&test, user, product, 4).await;
        let other = test.user(0).await;
        test.issue(coupon, other).await.ok();
        test.engine.check().await;
        flush(&test).await;

        let summary = rebuilt(&test, rebuild::Options::default()).await;
        assert_eq!(summary.possible_losses, (0..partitions).collect::<Vec<_>>());
        assert!(summary.lost_at_least >= 4, "{summary:?}");
        assert_eq!((summary.withheld_units, summary.withheld_coupons), (15, 4));
        ready(&test).await;
        assert_eq!(stock(&test, product).await, 0);
        test.order(user, product, 1).await.refused(409, "SOLD_OUT");
        test.issue(coupon, user + i64::from(partitions)).await.refused(404, "USER_NOT_FOUND");
        let late = test.user(0).await;
        assert!(late > other + 1_000_000, "an id that somebody was told is given out again: {late}");
        test.issue(coupon, late).await.refused(409, "COUPON_OUT_OF_STOCK");
        test.get(&format!("/api/v1/orders/{lost}")).await.refused(404, "ORDER_NOT_FOUND");
        // What its user gives up goes back on sale; what only the clock ends may have been paid. (An order of another
        // partition's stock is not told apart.)
        test.cancel(cancelled, user).await.ok();
        let back = if partitions == 1 { 2 } else { stock(&test, product).await };
        assert_eq!(stock(&test, product).await, back);
        test.clock.advance(700_000);
        assert_eq!(test.engine.sweep().await.unwrap(), 1);
        assert_eq!(stock(&test, product).await, back);
        test.drain().await;
        let kept = test.get("/admin/v1/withheld").await.ok();
        assert_eq!(kept["products"], json!([{"productId": product, "withheldQuantity": 20 - back}]));
        assert_eq!(kept["coupons"], json!([{"couponId": coupon, "withheldQuantity": 4}]));
        // The operator knows that one coupon and seven units are really gone, and keeps them back.
        let release = async |path: String, quantity: i64| {
            test.post(&path, json!({"quantity": quantity})).await.ok();
        };
        release(format!("/admin/v1/products/{product}/release"), 13 - back).await;
        release(format!("/admin/v1/coupons/{coupon}/release"), 3).await;
        assert_eq!(stock(&test, product).await, 13);
        let issued = test.issue(coupon, late).await.ok();
        assert!(issued["issueNo"].as_i64().unwrap() > 2, "a place that somebody was told is given out again: {issued}");
        test.order(user, product, 14).await.refused(409, "INSUFFICIENT_STOCK");
        pending(&test, user, product, 13).await;
        test.finish().await;
    }
}

/// A payment that is declined is the same as one that the clock ends: the order may have been paid before.
#[tokio::test]
async fn withheld_units_stay_when_order_in_doubt_declined() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(500).await, test.product(100, 20).await);
    let order = pending(&test, user, product, 5).await;
    test.drain().await;
    let spent = pending(&test, user, product, 3).await;
    test.drain().await;
    flush(&test).await;
    rebuilt(&test, rebuild::Options::default()).await;
    ready(&test).await;
    test.pay(spent, user, "CARD", 300).await.ok();
    test.pay(order, user, "CARD", 500).await.refused(402, "INSUFFICIENT_BALANCE");
    assert_eq!(stock(&test, product).await, 0);
    test.drain().await;
    assert_eq!(test.get("/admin/v1/withheld").await.ok()["products"][0]["withheldQuantity"], 17);
    test.post("/admin/v1/withheld/release", json!({})).await.ok();
    assert_eq!(stock(&test, product).await, 17);
    test.finish().await;
}

/// An operator who knows how much was lost keeps no more back than that.
#[tokio::test]
async fn rebuild_withholds_no_more_than_loss_bound() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(0).await, test.product(100, 50_000).await);
    let coupon = test.campaign("FIXED", 10, 500).await;
    test.drain().await;
    flush(&test).await;
    let summary = rebuilt(&test, rebuild::Options { lost_at_most: Some(3), discard: false }).await;
    assert_eq!((summary.withheld_units, summary.withheld_coupons), (30_000, 3));
    ready(&test).await;
    assert_eq!(stock(&test, product).await, 20_000);
    assert_eq!(test.issue(coupon, user).await.ok()["issueNo"], 4);
    test.drain().await;
    flush(&test).await;
    let summary = rebuilt(&test, rebuild::Options { lost_at_most: Some(0), discard: false }).await;
    assert_eq!((summary.epoch, summary.withheld_units, summary.withheld_coupons), (3, 0, 0));
    assert!(summary.possible_losses.is_empty());
    ready(&test).await;
    assert_eq!(stock(&test, product).await, 20_000);
    test.finish().await;
}

/// A Redis that is sound, and drained first, has lost nothing.
#[tokio::test]
async fn rebuild_of_sound_redis_withholds_nothing() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        busy_day(&test).await;
        // Not everything is in Postgres yet: the rebuild carries it there.
        let summary = rebuilt(&test, rebuild::Options::default()).await;
        assert_eq!(
            (summary.possible_losses.len(), summary.withheld_units, summary.discarded),
            (0, 0, 0),
            "{summary:?}"
        );
        ready(&test).await;
        busy_day(&test).await;
        test.finish().await;
    }
}

// --- what is refused -------------------------------------------------------------------------------------------------

/// Decisions that only Redis has are not thrown away unasked, and until then it goes on as before.
#[tokio::test]
async fn rebuild_refused_when_redis_holds_unprojected_events() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    test.put_charge(user, 1).await.ok();
    test.put_charge(user, 2).await.ok();
    test.put_charge(user, 4).await.ok();
    // The second is gone from the outbox: what comes after it can't be applied.
    let mut redis = test.raw().await;
    let entries: Vec<(String, Vec<String>)> =
        redis::cmd("XRANGE").arg("{p0}:outbox").arg("-").arg("+").query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("XDEL").arg("{p0}:outbox").arg(&entries[2].0).query_async(&mut redis).await.unwrap();
    let before = test.snapshot().await;
    let error = refused(&test, rebuild::Options::default()).await;
    assert!(error.contains("discard 2 decisions") && error.contains("--discard"), "{error}");
    let after = test.snapshot().await;
    assert_eq!(before["{p0}:user:1"], after["{p0}:user:1"]);
    // The gap froze it, not the rebuild.
    assert!(after["{p0}:meta"].contains("decisions are lost"), "{}", after["{p0}:meta"]);
    let summary = rebuilt(&test, rebuild::Options { discard: true, lost_at_most: None }).await;
    assert_eq!((summary.discarded, summary.possible_losses), (2, vec![0]));
    ready(&test).await;
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1);
    test.put_charge(user, 8).await.ok();
    test.finish().await;
}

/// So are decisions that Postgres could not take: they are dead letters, and their effect is in Redis alone.
#[tokio::test]
async fn rebuild_refused_when_dead_letters_exist() {
    let test = TestApp::with(Options { dead_letters: 1, ..Options::default() }).await;
    let user = test.user(0).await;
    test.drain().await;
    let pool = test.db.get_postgres_connection_pool();
    sqlx::query("UPDATE users SET balance = 5").execute(pool).await.unwrap();
    sqlx::query("ALTER TABLE balance_entries ADD CONSTRAINT no_sevens CHECK (amount <> 7)")
        .execute(pool)
        .await
        .unwrap();
    test.put_charge(user, 7).await.ok();
    test.drain().await;
    sqlx::query("UPDATE users SET balance = 0").execute(pool).await.unwrap();
    let error = refused(&test, rebuild::Options::default()).await;
    assert!(error.contains("discard 1 decisions"), "{error}");
    // It was let go again.
    test.put_charge(user, 0).await.refused(400, "INVALID_AMOUNT");
    ready(&test).await;
    let summary = rebuilt(&test, rebuild::Options { discard: true, lost_at_most: None }).await;
    assert_eq!((summary.discarded, summary.possible_losses), (1, vec![0]));
    ready(&test).await;
    // Once is enough: the letter is of an epoch that has ended.
    assert_eq!(rebuilt(&test, rebuild::Options::default()).await.discarded, 0);
    ready(&test).await;
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 0);
    test.finish().await;
}

#[tokio::test]
async fn rebuild_refused_when_redis_belongs_to_other_store() {
    let (test, other) = (TestApp::start().await, TestApp::start().await);
    test.user(0).await;
    let before = other.snapshot().await;
    let mut rebuild = rebuilder(&test).await;
    rebuild.store = Store::connect(&harness::redis_config(&other.redis.url())).await.unwrap();
    rebuild.projector = rebuild.projector.on(rebuild.store.clone());
    let error = rebuild.clone().run(rebuild::Options::default()).await.expect_err("it was rebuilt");
    assert!(format!("{error:#}").contains("do not belong together"), "{error:#}");
    assert_eq!(before, other.snapshot().await);
    rebuild.db.close().await.unwrap();
    test.finish().await;
    other.finish().await;
}

// --- by itself, at the start -----------------------------------------------------------------------------------------

/// Redis's disk is gone: the next start puts it back together, while a process that stayed waits, and then goes on too.
#[tokio::test]
async fn start_rebuilds_empty_redis() {
    for partitions in [1, 3] {
        let mut test = TestApp::with(Options { partitions, ..careful() }).await;
        busy_day(&test).await;
        projected(&test).await;
        test.redis.kill().await.unwrap();
        std::fs::remove_dir_all(test.redis.data_dir()).unwrap();
        test.redis.restart().await.unwrap();
        until("the loss is noticed", async || (test.get("/readyz").await.status == 503).then_some(())).await;
        let (redis, postgres) = (test.redis.url(), harness::postgres_url(&test.database));
        let next = harness::open(&test.options, &redis, &postgres, test.clock.clone()).await.unwrap();
        next.engine.ready().await.unwrap();
        ready(&test).await;
        busy_day(&test).await;
        next.db.close().await.unwrap();
        test.finish().await;
    }
}

/// Several at once: one rebuilds, the others wait.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_rebuild_once() {
    let test = TestApp::with(careful()).await;
    busy_day(&test).await;
    projected(&test).await;
    flush(&test).await;
    let (redis, postgres) = (test.redis.url(), harness::postgres_url(&test.database));
    let opened = futures_util::future::join_all(
        (0..4).map(|_| harness::open(&test.options, &redis, &postgres, test.clock.clone())),
    );
    for app in opened.await {
        let app = app.unwrap();
        assert_eq!(app.store.identity().await.unwrap().unwrap().epoch, 2);
        app.db.close().await.unwrap();
    }
    ready(&test).await;
    test.finish().await;
}

/// One that was interrupted is begun again: what it left is no store.
#[tokio::test]
async fn rebuild_restarted_when_interrupted() {
    let test = TestApp::with(careful()).await;
    busy_day(&test).await;
    projected(&test).await;
    test.app.stop(None).await;
    let before = comparable(test.snapshot().await);
    let mut redis = test.raw().await;
    let store: String = redis::cmd("HGET").arg("{p0}:meta").arg("store").query_async(&mut redis).await.unwrap();
    flush(&test).await;
    // As it is a moment after its first keys are back.
    let _: i64 = redis::cmd("HSET")
        .arg("{p0}:meta")
        .arg(&["store", &store, "partitions", "1", "epoch", "2", "seq", "30", "rebuilding", "1", "frozen", "a rebuild"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let _: i64 = redis::cmd("HSET").arg("{p0}:stock").arg(&["1", "999"]).query_async(&mut redis).await.unwrap();
    test.get("/api/v1/products/1").await.refused(503, "SERVICE_UNAVAILABLE");
    let (url, postgres) = (test.redis.url(), harness::postgres_url(&test.database));
    let next = harness::open(&test.options, &url, &postgres, test.clock.clone()).await.unwrap();
    assert_eq!(before, comparable(test.snapshot().await));
    next.db.close().await.unwrap();
    ready(&test).await;
    test.finish().await;
}

/// An empty Redis while somebody is at work on another one is a wrong address, not a loss.
#[tokio::test]
async fn start_refused_when_redis_empty_and_others_run() {
    let test = TestApp::with(careful()).await;
    test.app.watch(true);
    test.user(5).await;
    projected(&test).await;
    let wrong = TestApp::start().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut wrong.raw().await).await.unwrap();
    let (redis, postgres) = (wrong.redis.url(), harness::postgres_url(&test.database));
    until("somebody is heard of", async || {
        let told = firstcome::postgres::progress::acknowledged(&test.db).await.unwrap();
        (!told.is_empty()).then_some(())
    })
    .await;
    let Err(error) = harness::open(&test.options, &redis, &postgres, test.clock.clone()).await else {
        panic!("it was rebuilt")
    };
    assert!(format!("{error:#}").contains("REDIS_URL leads to the wrong one"), "{error:#}");
    assert!(wrong.snapshot().await.is_empty());
    wrong.finish_unchecked().await;
    test.finish().await;
}

/// How far Redis had decided is known even when nobody who was told is left.
#[tokio::test]
async fn running_process_detects_loss_unaided() {
    let test = TestApp::start().await;
    let user = test.user(100).await;
    test.put_charge(user, 1).await.ok();
    test.engine.check().await;
    let _: i64 =
        redis::cmd("HINCRBY").arg("{p0}:meta").arg("seq").arg(-1).query_async(&mut test.raw().await).await.unwrap();
    let (redis, postgres) = (test.redis.url(), harness::postgres_url(&test.database));
    let Err(error) = harness::open(&test.options, &redis, &postgres, test.clock.clone()).await else {
        panic!("it was opened")
    };
    assert!(format!("{error:#}").contains("behind what was told: (1, 2)"), "{error:#}");
    test.finish_unchecked().await;
}

// --- one partition of several ----------------------------------------------------------------------------------------

/// A node of a cluster lost its disk. What the others know of it is put right.
#[tokio::test]
async fn rebuild_repairs_other_partitions_when_one_lost() {
    for lost in 0..3 {
        let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
        let users = [test.user(100_000).await, test.user(100_000).await, test.user(100_000).await];
        let products = [test.product(100, 50).await, test.product(200, 50).await, test.product(300, 50).await];
        let coupon = test.campaign("FIXED", 10, 50).await;
        let lines = json!(products.map(|product| json!({"productId": product, "quantity": 2})));
        let all = async |user: i64| {
            let body = json!({"userId": user, "orderProducts": lines});
            let placed = test.post("/api/v1/orders", body).await.ok();
            (placed["orderId"].as_i64().unwrap(), user)
        };
        let mut orders = Vec::new();
        for user in users {
            orders.extend([all(user).await, all(user).await, all(user).await]);
        }
        test.drain().await;
        // Not in Postgres yet, in any partition: some paid, some cancelled, some new, and coupons.
        for (n, (order, user)) in orders.iter().enumerate() {
            match n % 3 {
                0 => drop(test.pay(*order, *user, "CARD", 1_200).await.ok()),
                1 => drop(test.cancel(*order, *user).await.ok()),
                _ => {}
            }
        }
        for user in users {
            all(user).await;
            test.issue(coupon, user).await.ok();
        }
        let mut redis = test.raw().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{{p{lost}}}:*")).query_async(&mut redis).await.unwrap();
        let _: i64 = redis::cmd("DEL").arg(&keys).query_async(&mut redis).await.unwrap();
        test.engine.check().await;
        let summary = rebuilt(&test, rebuild::Options::default()).await;
        assert_eq!(summary.possible_losses, [lost]);
        assert!(summary.repaired > 0, "{summary:?}");
        ready(&test).await;
        // Whoever has a coupon in hand keeps it, and gets no second one.
        for user in users {
            let held = test.get(&format!("/api/v1/coupons/{user}")).await.ok();
            if !held.as_array().unwrap().is_empty() {
                test.issue(coupon, user).await.refused(400, "INVALID_COUPON");
            }
        }
        test.clock.advance(700_000);
        test.engine.sweep().await.unwrap();
        test.clock.advance(700_000);
        test.engine.sweep().await.unwrap();
        test.finish().await;
    }
}
