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
        harness::{self, Options, World, until},
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
pub async fn rebuilder(world: &World) -> Rebuild {
    let store = Store::connect(&world.redis_config()).await.unwrap();
    let db =
        firstcome::postgres::connect(&harness::postgres_config(&harness::postgres_url(&world.database))).await.unwrap();
    let patience = std::time::Duration::from_secs(600);
    let (clock, zone, keep) = (world.clock.clone(), world.engine.zone(), world.options.retention.keep());
    let projector = Projector::new(store.clone(), db.clone(), clock.clone(), &Default::default(), patience, keep);
    Rebuild { store, db, projector, clock, zone, keep, allow_unsafe_redis: false }
}

pub async fn rebuilt(world: &World, options: rebuild::Options) -> Summary {
    let rebuild = rebuilder(world).await;
    let summary = rebuild.clone().run(options).await.unwrap();
    rebuild.db.close().await.unwrap();
    summary
}

pub async fn refused(world: &World, options: rebuild::Options) -> String {
    let rebuild = rebuilder(world).await;
    let error = rebuild.clone().run(options).await.expect_err("it was rebuilt");
    rebuild.db.close().await.unwrap();
    format!("{error:#}")
}

pub async fn flush(world: &World) {
    let _: () = redis::cmd("FLUSHALL").query_async(&mut world.raw().await).await.unwrap();
}

pub async fn ready(world: &World) {
    until("the service goes on", async || (world.get("/readyz").await.status == 200).then_some(())).await;
}

/// Waits until Postgres has everything, without the outbox being read by the test.
pub async fn projected(world: &World) {
    until("Postgres has everything", async || {
        let status = world.get("/admin/v1/projection").await.ok();
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
        let world =
            World::with(Options { partitions, gateway: harness::gateways(&[("TOSS", gateway.url())]), ..careful() })
                .await;
        gateway.next(Behaviour::Approve);
        gateway.next(Behaviour::Decline);
        busy_day(&world).await;
        let (rich, product) = (world.user(10_000_000).await, world.product(1_000, 50).await);
        // Through a gateway: paid; declined; not known yet; paid and refunded, the money still to go back.
        let toss = async |behaviour| {
            gateway.next(behaviour);
            let order = world.order(rich, product, 1).await.ok()["orderId"].as_i64().unwrap();
            let body = json!({"orderId": order, "userId": rich, "paymentType": "TOSS", "amount": 1_000});
            world.send(Method::POST, "/api/v1/payments", Some(&body), Some(&format!("toss-{order}"))).await;
            order
        };
        toss(Behaviour::Approve).await;
        toss(Behaviour::Decline).await;
        toss(Behaviour::Garbage).await;
        let back = toss(Behaviour::Approve).await;
        world.cancel(back, rich).await.ok();
        // Under keys.
        let body = json!({"amount": 77});
        world.send(Method::PUT, &format!("/api/v1/balances/{rich}"), Some(&body), Some("charge")).await.ok();
        let body = json!({"userName": "키", "balance": 5});
        let made = world.send(Method::POST, "/admin/v1/users", Some(&body), Some("user")).await.created();
        let lines = json!([{"productId": product, "quantity": 2}]);
        let order = json!({"userId": rich, "orderProducts": lines});
        let placed = world.send(Method::POST, "/api/v1/orders", Some(&order), Some("order")).await.ok();
        projected(&world).await;

        let before = comparable(world.snapshot().await);
        flush(&world).await;
        let summary = rebuilt(&world, rebuild::Options::default()).await;
        assert_eq!((summary.epoch, summary.doubtful.len(), summary.lost_at_least, summary.discarded), (2, 0, 0, 0));
        assert_eq!(summary.withheld_units + summary.withheld_coupons, 0, "{summary:?}");
        let after = comparable(world.snapshot().await);
        for (key, value) in &before {
            assert_eq!(after.get(key), Some(value), "{key}, of {partitions}");
        }
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());

        // Repeats are still recognised, and ids are not given out again.
        ready(&world).await;
        let again = world.send(Method::POST, "/api/v1/orders", Some(&order), Some("order")).await;
        assert!(again.replayed(), "{}", again.text);
        assert_eq!(again.ok(), placed);
        let again = world.send(Method::POST, "/admin/v1/users", Some(&body), Some("user")).await;
        assert!(again.replayed());
        assert_eq!(again.created(), made);
        let other = json!({"amount": 78});
        let other = world.send(Method::PUT, &format!("/api/v1/balances/{rich}"), Some(&other), Some("charge")).await;
        other.refused(422, "IDEMPOTENCY_KEY_REUSED");
        let new = world.user(1).await;
        assert_eq!(new, made["userId"].as_i64().unwrap() + 1, "no id is lost or used twice");
        world.order(rich, product, 1).await.ok();
        world.finish().await;
    }
}

/// Sequences of ids go on after what was reserved under a key and not created yet.
#[tokio::test]
async fn rebuild_keeps_reserved_ids() {
    let world = World::with(careful()).await;
    let call = harness::call(Some(("bulk", "request")));
    let first = world.store.ids_reserve(&call, "user", 1_000).await.unwrap().value;
    projected(&world).await;
    flush(&world).await;
    rebuilt(&world, rebuild::Options::default()).await;
    ready(&world).await;
    assert_eq!(world.user(0).await, first + 1_000);
    assert_eq!(world.store.ids_reserve(&call, "user", 1_000).await.unwrap().value, first);
    world.finish().await;
}

// --- what may be lost ------------------------------------------------------------------------------------------------

pub async fn pending(world: &World, user: i64, product: i64, quantity: i64) -> i64 {
    world.order(user, product, quantity).await.ok()["orderId"].as_i64().unwrap()
}

pub async fn stock(world: &World, product: i64) -> i64 {
    world.get(&format!("/api/v1/products/{product}")).await.ok()["stockQuantity"].as_i64().unwrap()
}

/// Whoever was told of an order that nobody remembers may have the units: they are not sold again until somebody says so.
#[tokio::test]
async fn rebuild_withholds_units_of_lost_decisions() {
    for partitions in [1, 3] {
        let world = World::with(Options { partitions, ..Options::default() }).await;
        let (user, product) = (world.user(100_000).await, world.product(100, 20).await);
        let coupon = world.campaign("FIXED", 10, 5).await;
        world.issue(coupon, user).await.ok();
        let order = pending(&world, user, product, 3).await;
        let cancelled = pending(&world, user, product, 2).await;
        world.drain().await;
        // Told, and lost.
        world.pay(order, user, "CARD", 300).await.ok();
        let lost = pending(&world, user, product, 4).await;
        let other = world.user(0).await;
        world.issue(coupon, other).await.ok();
        world.engine.look().await;
        flush(&world).await;

        let summary = rebuilt(&world, rebuild::Options::default()).await;
        assert_eq!(summary.doubtful, (0..partitions).collect::<Vec<_>>());
        assert!(summary.lost_at_least >= 4, "{summary:?}");
        assert_eq!((summary.withheld_units, summary.withheld_coupons), (15, 4));
        ready(&world).await;
        assert_eq!(stock(&world, product).await, 0);
        world.order(user, product, 1).await.refused(409, "SOLD_OUT");
        world.issue(coupon, user + i64::from(partitions)).await.refused(404, "USER_NOT_FOUND");
        let late = world.user(0).await;
        assert!(late > other + 1_000_000, "an id that somebody was told is given out again: {late}");
        world.issue(coupon, late).await.refused(409, "COUPON_OUT_OF_STOCK");
        world.get(&format!("/api/v1/orders/{lost}")).await.refused(404, "ORDER_NOT_FOUND");
        // What its user gives up goes back on sale; what only the clock ends may have been paid. (An order of another
        // partition's stock is not told apart.)
        world.cancel(cancelled, user).await.ok();
        let back = if partitions == 1 { 2 } else { stock(&world, product).await };
        assert_eq!(stock(&world, product).await, back);
        world.clock.advance(700_000);
        assert_eq!(world.engine.sweep().await.unwrap(), 1);
        assert_eq!(stock(&world, product).await, back);
        world.drain().await;
        let kept = world.get("/admin/v1/withheld").await.ok();
        assert_eq!(kept["products"], json!([{"productId": product, "withheldQuantity": 20 - back}]));
        assert_eq!(kept["coupons"], json!([{"couponId": coupon, "withheldQuantity": 4}]));
        // The operator knows that one coupon and seven units are really gone, and keeps them back.
        let release = async |path: String, quantity: i64| {
            world.post(&path, json!({"quantity": quantity})).await.ok();
        };
        release(format!("/admin/v1/products/{product}/release"), 13 - back).await;
        release(format!("/admin/v1/coupons/{coupon}/release"), 3).await;
        assert_eq!(stock(&world, product).await, 13);
        let issued = world.issue(coupon, late).await.ok();
        assert!(issued["issueNo"].as_i64().unwrap() > 2, "a place that somebody was told is given out again: {issued}");
        world.order(user, product, 14).await.refused(409, "INSUFFICIENT_STOCK");
        pending(&world, user, product, 13).await;
        world.finish().await;
    }
}

/// A payment that is declined is the same as one that the clock ends: the order may have been paid before.
#[tokio::test]
async fn withheld_units_stay_when_order_in_doubt_declined() {
    let world = World::start().await;
    let (user, product) = (world.user(500).await, world.product(100, 20).await);
    let order = pending(&world, user, product, 5).await;
    world.drain().await;
    let spent = pending(&world, user, product, 3).await;
    world.drain().await;
    flush(&world).await;
    rebuilt(&world, rebuild::Options::default()).await;
    ready(&world).await;
    world.pay(spent, user, "CARD", 300).await.ok();
    world.pay(order, user, "CARD", 500).await.refused(402, "INSUFFICIENT_BALANCE");
    assert_eq!(stock(&world, product).await, 0);
    world.drain().await;
    assert_eq!(world.get("/admin/v1/withheld").await.ok()["products"][0]["withheldQuantity"], 17);
    world.post("/admin/v1/withheld/release", json!({})).await.ok();
    assert_eq!(stock(&world, product).await, 17);
    world.finish().await;
}

/// An operator who knows how much was lost keeps no more back than that.
#[tokio::test]
async fn rebuild_withholds_no_more_than_loss_bound() {
    let world = World::start().await;
    let (user, product) = (world.user(0).await, world.product(100, 50_000).await);
    let coupon = world.campaign("FIXED", 10, 500).await;
    world.drain().await;
    flush(&world).await;
    let summary = rebuilt(&world, rebuild::Options { lost_at_most: Some(3), discard: false }).await;
    assert_eq!((summary.withheld_units, summary.withheld_coupons), (30_000, 3));
    ready(&world).await;
    assert_eq!(stock(&world, product).await, 20_000);
    assert_eq!(world.issue(coupon, user).await.ok()["issueNo"], 4);
    world.drain().await;
    flush(&world).await;
    let summary = rebuilt(&world, rebuild::Options { lost_at_most: Some(0), discard: false }).await;
    assert_eq!((summary.epoch, summary.withheld_units, summary.withheld_coupons), (3, 0, 0));
    assert!(summary.doubtful.is_empty());
    ready(&world).await;
    assert_eq!(stock(&world, product).await, 20_000);
    world.finish().await;
}

/// A Redis that is sound, and drained first, has lost nothing.
#[tokio::test]
async fn rebuild_of_sound_redis_withholds_nothing() {
    for partitions in [1, 3] {
        let world = World::with(Options { partitions, ..Options::default() }).await;
        busy_day(&world).await;
        // Not everything is in Postgres yet: the rebuild carries it there.
        let summary = rebuilt(&world, rebuild::Options::default()).await;
        assert_eq!((summary.doubtful.len(), summary.withheld_units, summary.discarded), (0, 0, 0), "{summary:?}");
        ready(&world).await;
        busy_day(&world).await;
        world.finish().await;
    }
}

// --- what is refused -------------------------------------------------------------------------------------------------

/// Decisions that only Redis has are not thrown away unasked, and until then it goes on as before.
#[tokio::test]
async fn rebuild_refused_when_redis_holds_unprojected_events() {
    let world = World::start().await;
    let user = world.user(0).await;
    world.put_charge(user, 1).await.ok();
    world.put_charge(user, 2).await.ok();
    world.put_charge(user, 4).await.ok();
    // The second is gone from the outbox: what comes after it can't be applied.
    let mut redis = world.raw().await;
    let entries: Vec<(String, Vec<String>)> =
        redis::cmd("XRANGE").arg("{p0}:outbox").arg("-").arg("+").query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("XDEL").arg("{p0}:outbox").arg(&entries[2].0).query_async(&mut redis).await.unwrap();
    let before = world.snapshot().await;
    let error = refused(&world, rebuild::Options::default()).await;
    assert!(error.contains("discard 2 decisions") && error.contains("--discard"), "{error}");
    let after = world.snapshot().await;
    assert_eq!(before["{p0}:user:1"], after["{p0}:user:1"]);
    // The gap froze it, not the rebuild.
    assert!(after["{p0}:meta"].contains("decisions are lost"), "{}", after["{p0}:meta"]);
    let summary = rebuilt(&world, rebuild::Options { discard: true, lost_at_most: None }).await;
    assert_eq!((summary.discarded, summary.doubtful), (2, vec![0]));
    ready(&world).await;
    assert_eq!(world.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1);
    world.put_charge(user, 8).await.ok();
    world.finish().await;
}

/// So are decisions that Postgres could not take: they are dead letters, and their effect is in Redis alone.
#[tokio::test]
async fn rebuild_refused_when_dead_letters_exist() {
    let world = World::with(Options { dead_letters: 1, ..Options::default() }).await;
    let user = world.user(0).await;
    world.drain().await;
    let pool = world.db.get_postgres_connection_pool();
    sqlx::query("UPDATE users SET balance = 5").execute(pool).await.unwrap();
    sqlx::query("ALTER TABLE balance_entries ADD CONSTRAINT no_sevens CHECK (amount <> 7)")
        .execute(pool)
        .await
        .unwrap();
    world.put_charge(user, 7).await.ok();
    world.drain().await;
    sqlx::query("UPDATE users SET balance = 0").execute(pool).await.unwrap();
    let error = refused(&world, rebuild::Options::default()).await;
    assert!(error.contains("discard 1 decisions"), "{error}");
    // It was let go again.
    world.put_charge(user, 0).await.refused(400, "INVALID_AMOUNT");
    ready(&world).await;
    let summary = rebuilt(&world, rebuild::Options { discard: true, lost_at_most: None }).await;
    assert_eq!((summary.discarded, summary.doubtful), (1, vec![0]));
    ready(&world).await;
    // Once is enough: the letter is of an epoch that has ended.
    assert_eq!(rebuilt(&world, rebuild::Options::default()).await.discarded, 0);
    ready(&world).await;
    assert_eq!(world.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 0);
    world.finish().await;
}

#[tokio::test]
async fn rebuild_refused_when_redis_belongs_to_other_store() {
    let (world, other) = (World::start().await, World::start().await);
    world.user(0).await;
    let before = other.snapshot().await;
    let mut rebuild = rebuilder(&world).await;
    rebuild.store = Store::connect(&harness::redis_config(&other.redis.url())).await.unwrap();
    rebuild.projector = rebuild.projector.on(rebuild.store.clone());
    let error = rebuild.clone().run(rebuild::Options::default()).await.expect_err("it was rebuilt");
    assert!(format!("{error:#}").contains("do not belong together"), "{error:#}");
    assert_eq!(before, other.snapshot().await);
    rebuild.db.close().await.unwrap();
    world.finish().await;
    other.finish().await;
}

// --- by itself, at the start -----------------------------------------------------------------------------------------

/// Redis's disk is gone: the next start puts it back together, while a process that stayed waits, and then goes on too.
#[tokio::test]
async fn start_rebuilds_empty_redis() {
    for partitions in [1, 3] {
        let mut world = World::with(Options { partitions, ..careful() }).await;
        busy_day(&world).await;
        projected(&world).await;
        world.redis.kill().await.unwrap();
        std::fs::remove_dir_all(world.redis.data_dir()).unwrap();
        world.redis.restart().await.unwrap();
        until("the loss is noticed", async || (world.get("/readyz").await.status == 503).then_some(())).await;
        let (redis, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
        let next = harness::open(&world.options, &redis, &postgres, world.clock.clone()).await.unwrap();
        next.engine.ready().await.unwrap();
        ready(&world).await;
        busy_day(&world).await;
        next.db.close().await.unwrap();
        world.finish().await;
    }
}

/// Several at once: one rebuilds, the others wait.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_starts_rebuild_once() {
    let world = World::with(careful()).await;
    busy_day(&world).await;
    projected(&world).await;
    flush(&world).await;
    let (redis, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
    let opened = futures_util::future::join_all(
        (0..4).map(|_| harness::open(&world.options, &redis, &postgres, world.clock.clone())),
    );
    for app in opened.await {
        let app = app.unwrap();
        assert_eq!(app.store.identity().await.unwrap().unwrap().epoch, 2);
        app.db.close().await.unwrap();
    }
    ready(&world).await;
    world.finish().await;
}

/// One that was interrupted is begun again: what it left is no store.
#[tokio::test]
async fn rebuild_restarted_when_interrupted() {
    let world = World::with(careful()).await;
    busy_day(&world).await;
    projected(&world).await;
    world.app.stop(None).await;
    let before = comparable(world.snapshot().await);
    let mut redis = world.raw().await;
    let store: String = redis::cmd("HGET").arg("{p0}:meta").arg("store").query_async(&mut redis).await.unwrap();
    flush(&world).await;
    // As it is a moment after its first keys are back.
    let _: i64 = redis::cmd("HSET")
        .arg("{p0}:meta")
        .arg(&["store", &store, "partitions", "1", "epoch", "2", "seq", "30", "rebuilding", "1", "frozen", "a rebuild"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let _: i64 = redis::cmd("HSET").arg("{p0}:stock").arg(&["1", "999"]).query_async(&mut redis).await.unwrap();
    world.get("/api/v1/products/1").await.refused(503, "SERVICE_UNAVAILABLE");
    let (url, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
    let next = harness::open(&world.options, &url, &postgres, world.clock.clone()).await.unwrap();
    assert_eq!(before, comparable(world.snapshot().await));
    next.db.close().await.unwrap();
    ready(&world).await;
    world.finish().await;
}

/// An empty Redis while somebody is at work on another one is a wrong address, not a loss.
#[tokio::test]
async fn start_refused_when_redis_empty_and_others_run() {
    let world = World::with(careful()).await;
    world.app.watch(true);
    world.user(5).await;
    projected(&world).await;
    let wrong = World::start().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut wrong.raw().await).await.unwrap();
    let (redis, postgres) = (wrong.redis.url(), harness::postgres_url(&world.database));
    until("somebody is heard of", async || {
        let told = firstcome::postgres::progress::told(&world.db).await.unwrap();
        (!told.is_empty()).then_some(())
    })
    .await;
    let Err(error) = harness::open(&world.options, &redis, &postgres, world.clock.clone()).await else {
        panic!("it was rebuilt")
    };
    assert!(format!("{error:#}").contains("REDIS_URL leads to the wrong one"), "{error:#}");
    assert!(wrong.snapshot().await.is_empty());
    wrong.end_in_disorder().await;
    world.finish().await;
}

/// How far Redis had decided is known even when nobody who was told is left.
#[tokio::test]
async fn running_process_detects_loss_unaided() {
    let world = World::start().await;
    let user = world.user(100).await;
    world.put_charge(user, 1).await.ok();
    world.engine.look().await;
    let _: i64 =
        redis::cmd("HINCRBY").arg("{p0}:meta").arg("seq").arg(-1).query_async(&mut world.raw().await).await.unwrap();
    let (redis, postgres) = (world.redis.url(), harness::postgres_url(&world.database));
    let Err(error) = harness::open(&world.options, &redis, &postgres, world.clock.clone()).await else {
        panic!("it was opened")
    };
    assert!(format!("{error:#}").contains("behind what was told: (1, 2)"), "{error:#}");
    world.end_in_disorder().await;
}

// --- one partition of several ----------------------------------------------------------------------------------------

/// A node of a cluster lost its disk. What the others know of it is put right.
#[tokio::test]
async fn rebuild_repairs_other_partitions_when_one_lost() {
    for lost in 0..3 {
        let world = World::with(Options { partitions: 3, ..Options::default() }).await;
        let users = [world.user(100_000).await, world.user(100_000).await, world.user(100_000).await];
        let products = [world.product(100, 50).await, world.product(200, 50).await, world.product(300, 50).await];
        let coupon = world.campaign("FIXED", 10, 50).await;
        let lines = json!(products.map(|product| json!({"productId": product, "quantity": 2})));
        let all = async |user: i64| {
            let body = json!({"userId": user, "orderProducts": lines});
            let placed = world.post("/api/v1/orders", body).await.ok();
            (placed["orderId"].as_i64().unwrap(), user)
        };
        let mut orders = Vec::new();
        for user in users {
            orders.extend([all(user).await, all(user).await, all(user).await]);
        }
        world.drain().await;
        // Not in Postgres yet, in any partition: some paid, some cancelled, some new, and coupons.
        for (n, (order, user)) in orders.iter().enumerate() {
            match n % 3 {
                0 => drop(world.pay(*order, *user, "CARD", 1_200).await.ok()),
                1 => drop(world.cancel(*order, *user).await.ok()),
                _ => {}
            }
        }
        for user in users {
            all(user).await;
            world.issue(coupon, user).await.ok();
        }
        let mut redis = world.raw().await;
        let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{{p{lost}}}:*")).query_async(&mut redis).await.unwrap();
        let _: i64 = redis::cmd("DEL").arg(&keys).query_async(&mut redis).await.unwrap();
        world.engine.look().await;
        let summary = rebuilt(&world, rebuild::Options::default()).await;
        assert_eq!(summary.doubtful, [lost]);
        assert!(summary.repaired > 0, "{summary:?}");
        ready(&world).await;
        // Whoever has a coupon in hand keeps it, and gets no second one.
        for user in users {
            let held = world.get(&format!("/api/v1/coupons/{user}")).await.ok();
            if !held.as_array().unwrap().is_empty() {
                world.issue(coupon, user).await.refused(400, "INVALID_COUPON");
            }
        }
        world.clock.advance(700_000);
        world.engine.sweep().await.unwrap();
        world.clock.advance(700_000);
        world.engine.sweep().await.unwrap();
        world.finish().await;
    }
}
