//! One changed byte in Redis, in whichever key: the audit names it, unless it means nothing.

mod places;

use std::collections::{BTreeMap, BTreeSet};

use firstcome::{
    audit::coverage::checks_of,
    model::Partition,
    redis::{keys::Keys, leases::ServingLease, outbox::StreamId},
};
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::json;

use self::places::{Part, Place, all_places, change, get, restore};
use crate::{
    chaos::history::Random,
    projector::projection::busy_day,
    support::{
        fake_gateway::{Behaviour, FakeGateway, QueryBehaviour},
        harness::{Options, TestApp, gateways},
    },
};

/// Changes in each group of places (`AUDIT_CHANGES` for more).
const CHANGES: usize = 1;
const SEED: u64 = 20_260_302;

/// Events whose time no row of PostgreSQL has.
const UNTIMED: &[&str] = &[
    "product_updated",
    "campaign_updated",
    "payment_ended",
    "payment_resolved",
    "stock_allotted",
    "stock_received",
    "stock_returned",
    "stock_regained",
    "ids_reserved",
    "users_put",
    "user_forgotten",
];

/// Parts of projected events, of which PostgreSQL has the sum, the last or the highest one only.
const SUMS: &[&str] = &[
    "Outbox product_created units",
    "Outbox product_created name",
    "Outbox product_created price",
    "Outbox product_created category",
    "Outbox product_created terms",
    "Outbox product_updated delta",
    "Outbox product_updated name",
    "Outbox product_updated price",
    "Outbox product_updated category",
    "Outbox product_updated terms",
    "Outbox campaign_created opens_at",
    "Outbox campaign_created closes_at",
    "Outbox campaign_updated opens_at",
    "Outbox campaign_updated closes_at",
    "Outbox ids_reserved first",
    "Outbox ids_reserved count",
    "Outbox order_closed watch",
    "Outbox order_closed withheld",
    "Outbox order_closed quarantined",
    "Outbox order_refunded left",
    "Outbox product_updated version",
    "Outbox stock_allotted units",
    "Outbox stock_allotted total",
    "Outbox stock_allotted price",
    "Outbox stock_allotted version",
    "Outbox stock_allotted terms",
    "Outbox stock_received units",
    "Outbox stock_received total",
    "Outbox stock_returned units",
    "Outbox stock_returned total",
    "Outbox stock_regained units",
    "Outbox stock_regained total",
    "Outbox users_put users",
];

/// Parts of events that nothing reads: those of a balance entry where the balance did not change, a user who is the order's, and the
/// step to the next user where there is one.
const UNREAD: &[&str] = &[
    "Outbox order_closed before",
    "Outbox order_closed after",
    "Outbox order_closed entry_no",
    "Outbox order_closed prev",
    "Outbox order_paid before",
    "Outbox order_paid after",
    "Outbox order_paid entry_no",
    "Outbox order_paid prev",
    "Outbox payment_ended user",
    "Outbox users_created prev",
    "Outbox users_created step",
    "Outbox user_forgotten before",
    "Outbox user_forgotten after",
    "Outbox user_forgotten entry_no",
    "Outbox user_forgotten prev",
];

/// Why a change means nothing, or nothing for long; `None` if the audit must name it.
fn meaningless(place: &Place, text: &[u8]) -> Option<&'static str> {
    let (text, group) = (String::from_utf8_lossy(text), place.group.as_str());
    let is_number = text.parse::<i64>().is_ok();
    let entry = |text: &str| text.parse::<StreamId>().ok().filter(|entry| entry.to_string() == text);
    let is_earlier = entry(&text).is_some_and(|now| entry(&String::from_utf8_lossy(&place.text)) > Some(now));
    Some(match group {
        "Instances id" | "Serving id" => "it is renewed within seconds or ends, and is still a word or a lease",
        "Instances field id" | "Serving field id" => "no process renews it, and it ends by itself",
        "Instances key" | "Serving key" => "the processes write it again",
        _ if group.starts_with("Requests ") && group != "Requests life" => {
            "a sample of requests is no part of the shop's state"
        }
        "Order gateway_asks" | "Order gateway_said" => "what operators see of a gateway's answers",
        "Campaign reopening" => "the next attempt reads the token",
        "Campaign skipped" | "Ids order" | "Ids payment" | "Ids user" | "Ids product" | "Ids coupon" if is_number => {
            "a higher number leaves a gap"
        }
        "Freed id" | "Freed field id" if is_number => "only its changes count",
        "Meta forgotten" if is_number => "only its changes count",
        "Outbox users_created forgotten name" => "PostgreSQL does not have the name any more",
        "User tail" if is_earlier => "so is that of a change whose entry was trimmed",
        "Gateway score" => "the next check comes within its longest pause",
        "Meta relayed" => "a lower mark: the steps are taken again, and change nothing",
        _ if group.starts_with("Outbox ") && group.ends_with(" rid") => "for the log only",
        _ if group.ends_with(" at") && UNTIMED.iter().any(|kind| group == format!("Outbox {kind} at")) => {
            "no row has the time"
        }
        "Outbox order_paid transaction" => {
            "where an operator has resolved the payment, the gateway may name another one"
        }
        "Outbox product_created product" if is_number => "another product of the same moment",
        _ if SUMS.contains(&group) => "PostgreSQL has the sum, the last or the highest one",
        _ if UNREAD.contains(&group) => "nothing reads it",
        _ => return None,
    })
}

async fn audit(test: &TestApp) -> Result<Vec<String>, String> {
    let report = test.app.audit().run().await.map_err(|error| format!("{error:#}"))?;
    Ok(report
        .checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect())
}

/// A store with one partition and every kind of key that such a one has. Its service has stopped.
async fn full_shop() -> (TestApp, FakeGateway) {
    let gateway = FakeGateway::start().await;
    let options = Options { gateway: gateways(&[("KAKAO_PAY", gateway.url())]), ..Options::default() };
    let test = TestApp::with(options).await;
    busy_day(&test).await;
    let user = test.user(50_000).await;
    let product = test.product(1_000, 100).await;
    let keyed = |path: &'static str, body: serde_json::Value, key: &'static str| {
        let test = &test;
        async move { test.send(Method::POST, path, Some(&body), Some(key)).await }
    };
    let order = async |key| {
        let body = json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 1}]});
        keyed("/api/v1/orders", body, key).await.ok()["orderId"].as_i64().unwrap()
    };
    let pay = async |order: i64, kind: &str, key| {
        let body = json!({"orderId": order, "userId": user, "paymentType": kind, "amount": 1_000});
        keyed("/api/v1/payments", body, key).await
    };
    // Paid by both methods; then refunds that the gateway owes, payments that it does not settle, and those that an operator
    // decides.
    pay(order("order-1").await, "CARD", "payment-1").await.ok();
    pay(order("order-2").await, "KAKAO_PAY", "payment-2").await.ok();
    let refunded = order("order-3").await;
    pay(refunded, "KAKAO_PAY", "payment-3").await.ok();
    gateway.always(Behaviour::ServerError);
    gateway.status_queries_are(QueryBehaviour::ServerError);
    let unsettled = [order("order-4").await, order("order-5").await, order("order-6").await];
    for (order, key) in unsettled.into_iter().zip(["payment-4", "payment-5", "payment-6"]) {
        pay(order, "KAKAO_PAY", key).await;
    }
    test.clock.advance(60_000);
    test.engine.sweep().await.unwrap();
    let outcomes = [
        json!({"outcome": "APPROVED", "transactionId": "t-1", "reason": "tested"}),
        json!({"outcome": "DECLINED", "reason": "tested"}),
    ];
    for (order, body) in unsettled[1..].iter().zip(outcomes) {
        test.send(Method::POST, &format!("/admin/v1/orders/{order}/payment-outcome"), Some(&body), None).await.ok();
    }
    test.cancel(refunded, user).await.ok();
    let product = json!({"productName": "양말", "price": 5, "stockQuantity": 7, "category": "SOCKS"});
    keyed("/admin/v1/products", product, "product").await.created();
    test.drain().await;
    // PostgreSQL does not have the last decisions.
    test.put_charge(user, 7).await.ok();
    pay(order("order-7").await, "CARD", "payment-7").await.ok();
    (test, gateway)
}

/// Adds what only a loss, a crash or an outage leaves in Redis.
async fn add_remains(test: &TestApp, redis: &mut MultiplexedConnection) {
    test.sql("UPDATE products SET on_sale = on_sale - 1, withheld = withheld + 1 WHERE id = 1").await;
    let (meta, id) = (
        get::<BTreeMap<String, String>>(redis, &[b"HGETALL", b"{p0}:meta"]).await,
        "0f8fad5b-d9cb-469f-a165-70867728950e",
    );
    let word = format!(
        "{0}:{0} {1} {2} {1} {2} {3} 1",
        "0123456789".repeat(4),
        meta["epoch"],
        meta["seq"],
        test.clock.now().0
    );
    let lease = ServingLease {
        store: meta["store"].clone(),
        database: "here".into(),
        serves: true,
        before_postgres: false,
        acknowledged: (1, 1),
        projected: (1, 1),
        last_dead_letter: 0,
        seen: BTreeSet::new(),
        beat: 1,
    };
    let lease = serde_json::to_string(&lease).unwrap();
    for words in [
        &["HINCRBY", "{p0}:stock", "1", "-1"][..],
        &["HSET", "{p0}:withheld", "1", "1"],
        &["HSET", "{p0}:coupon:1", "skipped", "2", "reopening", "a-token"],
        &["HSET", "{p0}:instances", id, &word],
        &["HSET", "{p0}:serving", id, &lease],
        &["PEXPIRE", "{p0}:serving", "86400000"],
        &["XADD", "{p0}:requests", "*", "ago", "0", "sample", "{}"],
        &["PEXPIRE", "{p0}:requests", "86400000"],
    ] {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        get::<redis::Value>(redis, &words).await;
    }
}

/// A store with two partitions, between which units went, and whose keys are claimed. Its service has stopped.
async fn partitioned_shop() -> TestApp {
    let test = TestApp::with(Options { partitions: 2, clock: None, ..Options::default() }).await;
    let user = test.user(50_000).await;
    let products = [test.product(1_000, 100).await, test.product(500, 100).await];
    let order = async |key| {
        let lines: Vec<_> = products.iter().map(|id| json!({"productId": id, "quantity": 2})).collect();
        let body = json!({"userId": user, "orderProducts": lines});
        test.send(Method::POST, "/api/v1/orders", Some(&body), Some(key)).await.ok()["orderId"].as_i64().unwrap()
    };
    for (at, key) in ["pending", "paid", "refunded", "cancelled"].into_iter().enumerate() {
        let order = order(key).await;
        if at == 1 || at == 2 {
            test.pay(order, user, "CARD", 3_000).await.ok();
        }
        if at >= 2 {
            test.cancel(order, user).await.ok();
        }
    }
    let coupons = [test.campaign("FIXED", 10, 5).await, test.campaign("FIXED", 10, 5).await];
    for (coupon, key) in coupons.into_iter().zip(["first", "second"]) {
        let body = json!({"couponId": coupon, "userId": user});
        test.send(Method::POST, "/api/v1/coupons/issue", Some(&body), Some(key)).await.ok();
    }
    test.drain().await;
    test
}

/// Changes bytes of some of these places. Returns those that the audit does not name, by group.
async fn unnamed(test: &TestApp, redis: &mut MultiplexedConnection, places: Vec<Place>) -> BTreeMap<String, String> {
    let changes = std::env::var("AUDIT_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(CHANGES);
    let mut groups: BTreeMap<String, Vec<Place>> = BTreeMap::new();
    for place in places {
        if !place.range.is_empty() || place.part == Part::Life {
            groups.entry(place.group.clone()).or_default().push(place);
        }
    }
    let (mut random, mut unnamed) = (Random::new(SEED), BTreeMap::new());
    for (group, places) in groups {
        for _ in 0..changes {
            let place = random.pick(&places);
            let mut text = place.text.clone();
            if place.part != Part::Life {
                let at = random.within(place.range.start as i64, place.range.end as i64 - 1) as usize;
                text[at] = match (&place.part, text[at]) {
                    // A score is a number.
                    (Part::Score(_), digit) => b'0' + (digit - b'0' + random.within(1, 9) as u8) % 10,
                    (_, byte) => byte ^ (1 << random.within(0, 7)),
                };
            }
            let Some(saved) = change(redis, place, &text).await else { continue };
            let found = audit(test).await;
            restore(redis, saved).await;
            if found.as_ref().is_ok_and(Vec::is_empty) && meaningless(place, &text).is_none() {
                let (old, new) = (String::from_utf8_lossy(&place.text), String::from_utf8_lossy(&text));
                unnamed.insert(group.clone(), format!("{}: {old:?} became {new:?}", place.key));
            }
        }
    }
    unnamed
}

#[tokio::test]
async fn changed_byte_named_by_audit() {
    let (test, _gateway) = full_shop().await;
    let mut redis = test.raw().await;
    test.app.stop(None).await;
    add_remains(&test, &mut redis).await;
    assert_eq!(audit(&test).await, Ok(Vec::new()));
    let (before, places) = (test.snapshot().await, all_places(&mut redis).await);
    let kinds: BTreeSet<&str> = places.iter().filter_map(|place| place.group.split(' ').next()).collect();
    assert_eq!(kinds.len(), 28, "every kind but those between partitions: {kinds:?}");
    let found = unnamed(&test, &mut redis, places).await;
    assert_eq!(test.snapshot().await, before);
    assert_eq!(audit(&test).await, Ok(Vec::new()));
    test.finish_unchecked().await;
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn changed_byte_between_partitions_named_by_audit() {
    let test = partitioned_shop().await;
    let mut redis = test.raw().await;
    test.app.stop(None).await;
    assert_eq!(audit(&test).await, Ok(Vec::new()));
    let kinds = [
        "Allotted",
        "Regained",
        "Received",
        "Returned",
        "Issued",
        "Price",
        "PriceVersion",
        "Stock",
        "Held",
        "Sold",
        "Record",
        "Outbox",
    ];
    let events = [
        "Outbox stock_allotted",
        "Outbox stock_received",
        "Outbox stock_returned",
        "Outbox stock_regained",
        "Outbox coupon_granted",
        "Outbox coupon_issued",
    ];
    let places = all_places(&mut redis).await.into_iter().filter(|place| {
        let kind = place.group.split(' ').next().unwrap();
        kinds.contains(&kind) && (kind != "Outbox" || events.iter().any(|event| place.group.starts_with(event)))
    });
    let found = unnamed(&test, &mut redis, places.collect()).await;
    assert_eq!(audit(&test).await, Ok(Vec::new()));
    test.finish_unchecked().await;
    assert!(found.is_empty(), "{found:#?}");
}

/// Each kind of key has a check, which runs.
#[tokio::test]
async fn kind_of_key_covered_by_check_that_runs() {
    let test = TestApp::with(Options { partitions: 2, ..Options::default() }).await;
    let report = test.app.audit().run().await.unwrap();
    let ran: BTreeSet<&str> = report.checks.iter().map(|check| check.name).collect();
    for key in Keys(Partition(0)).samples() {
        let (_, kind) = Keys::parse(&key).unwrap();
        let checks = checks_of(&kind);
        assert!(!checks.is_empty() && checks.iter().all(|check| ran.contains(check)), "{key}: {checks:?}");
    }
    test.finish().await;
}
