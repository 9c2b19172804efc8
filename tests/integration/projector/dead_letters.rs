//! Dead letters and their retries: any number of retries, in any order, applies each once, with the result of a timely
//! projection; a refused retry changes only the reason.

use std::collections::{BTreeMap, BTreeSet};

use firstcome::{model::event, recovery::rebuild};
use futures_util::future::join_all;
use proptest::{prelude::*, test_runner::TestRunner};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::{
    projector::{
        fuzz_events::config,
        projection::{busy_day, poison},
    },
    recovery::rebuild::rebuilt,
    support::{
        api_kit::{get, post},
        harness::{Options, Reply, TestApp},
        invariants, outbox,
    },
};

/// A kind of event that this program does not know.
const UNKNOWN_KIND: &str = "a_kind_of_a_newer_program";

/// Gives the chosen entries of the outbox an unknown kind, so that they become dead letters, and keeps their kind in the field
/// `was`.
pub async fn make_dead_letters(test: &TestApp, chosen: impl Fn(usize, &str) -> bool) -> usize {
    let (mut redis, mut place, mut made) = (test.raw().await, 0, 0);
    for partition in 0..test.options.partitions {
        let mut all = outbox::entries(&mut redis, partition).await;
        for (_, fields) in &mut all {
            *fields = event::fields_of(fields, 0);
            let kind = fields.iter_mut().find(|(name, _)| name == "kind").unwrap();
            if chosen(place, &kind.1) {
                let was = std::mem::replace(&mut kind.1, UNKNOWN_KIND.to_owned());
                fields.push(("was".to_owned(), was));
                made += 1;
            }
            place += 1;
        }
        outbox::replace(&mut redis, partition, &all).await;
    }
    made
}

/// Restores the kind of the dead letters, in the outbox too, so that a retry can apply them: as to a newer program.
pub async fn make_applicable(test: &TestApp) {
    let mut redis = test.raw().await;
    for partition in 0..test.options.partitions {
        let mut all = outbox::entries(&mut redis, partition).await;
        for (_, fields) in &mut all {
            let Some(was) = fields.iter().position(|(name, _)| name == "was") else { continue };
            let (_, was) = fields.remove(was);
            fields.iter_mut().find(|(name, _)| name == "kind").unwrap().1 = was;
        }
        outbox::replace(&mut redis, partition, &all).await;
    }
    test.sql(
        "UPDATE dead_letters SET fields = fields || jsonb_build_object('kind', fields->>'was') WHERE fields ? 'was'",
    )
    .await;
}

async fn one<T: Send + Unpin>(test: &TestApp, sql: &'static str) -> T
where
    (T,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
{
    let row: (T,) = sqlx::query_as(sql).fetch_one(test.db.get_postgres_connection_pool()).await.unwrap();
    row.0
}

/// All dead letters, as the operators' API shows them.
pub async fn all_dead_letters(test: &TestApp) -> Vec<Value> {
    let page = get(test, "/admin/v1/dead-letters?size=100").await.ok();
    let all_dead_letters = page["content"].as_array().unwrap().clone();
    assert_eq!(page["totalElements"].as_i64().unwrap(), all_dead_letters.len() as i64, "{page}");
    all_dead_letters
}

pub async fn retry(test: &TestApp, dead_letter: &Value) -> Reply {
    let body =
        json!({"partition": dead_letter["partition"], "streamId": dead_letter["streamId"], "seq": dead_letter["seq"]});
    post(test, "/admin/v1/dead-letters/retry", body).await
}

/// The rows of every table that the projection writes, without `dead_letters`.
async fn tables(test: &TestApp) -> BTreeMap<&'static str, Vec<String>> {
    let mut all = BTreeMap::new();
    for table in [
        "balance_entries",
        "campaigns",
        "idempotency_records",
        "id_sequences",
        "order_lines",
        "orders",
        "payments",
        "products",
        "projection_positions",
        "remote_coupons",
        "stock_holds",
        "user_coupons",
        "users",
    ] {
        let sql = format!("SELECT (to_jsonb(t) - 'updated_at' - 'events_late')::text FROM {table} AS t ORDER BY 1");
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(test.db.get_postgres_connection_pool());
        all.insert(table, rows.await.unwrap());
    }
    all
}

/// Retries all dead letters in rounds of different orders, until none is left. Every round must apply at least one.
async fn retry_all(test: &TestApp, mut seed: u64) {
    for _ in 0..1_000 {
        let mut left = all_dead_letters(test).await;
        if left.is_empty() {
            return;
        }
        // A different order in each round.
        left.sort_by_cached_key(|dead_letter| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33, dead_letter["seq"].as_i64())
        });
        let mut applied = 0;
        for dead_letter in &left {
            let reply = retry(test, dead_letter).await;
            if reply.status == 204 {
                applied += 1;
            } else {
                reply.refused(409, "DEAD_LETTER_REFUSED");
            }
        }
        assert!(applied > 0, "{:#?}", all_dead_letters(test).await);
    }
    panic!("dead letters are left after 1,000 rounds");
}

/// After every dead letter is applied, PostgreSQL equals Redis, for any choice of dead letters.
#[test]
fn dead_letters_retried_in_any_order_equal_timely_projection() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let chosen = (prop::collection::btree_set(0..90usize, 1..30), any::<u64>(), prop_oneof![Just(1u16), Just(3)]);
    TestRunner::new(ProptestConfig { max_shrink_iters: 30, ..config(12, 20) })
        .run(&chosen, |(chosen, seed, partitions): (BTreeSet<usize>, u64, u16)| {
            runtime.block_on(async {
                let test = TestApp::with(Options { partitions, ..Options::default() }).await;
                busy_day(&test).await;
                let made = make_dead_letters(&test, |place, _| chosen.contains(&place)).await;
                test.drain().await;
                assert!(all_dead_letters(&test).await.len() >= made);
                make_applicable(&test).await;
                retry_all(&test, seed).await;
                // PostgreSQL serves reads of evicted orders.
                test.expire_evicted().await;
                test.finish().await;
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn dead_letter_applied_once_when_retries_race() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    test.put_charge(user, 500).await.ok();
    test.put_charge(user, 7).await.ok();
    make_dead_letters(&test, |place, _| place == 1).await;
    test.drain().await;
    let dead_letter = all_dead_letters(&test).await.remove(0);
    assert!(dead_letter["reason"].as_str().unwrap().contains(UNKNOWN_KIND), "{dead_letter}");
    assert_eq!(
        (&dead_letter["fields"]["amount"], &dead_letter["partition"], &dead_letter["seq"]),
        (&json!("500"), &json!(0), &json!(2))
    );
    // Still of an unknown kind: the dead letter stays.
    let refused = retry(&test, &dead_letter).await;
    refused.refused(409, "DEAD_LETTER_REFUSED");
    assert!(refused.json()["message"].as_str().unwrap().contains(UNKNOWN_KIND), "{}", refused.text);
    make_applicable(&test).await;
    let tries = join_all((0..8).map(|_| retry(&test, &dead_letter))).await;
    let mut statuses: Vec<u16> = tries.iter().map(|reply| reply.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 404, 404, 404, 404, 404, 404, 404]);
    retry(&test, &dead_letter).await.refused(404, "DEAD_LETTER_NOT_FOUND");
    assert_eq!(one::<i64>(&test, "SELECT count(*) FROM balance_entries").await, 2);
    assert_eq!(one::<i64>(&test, "SELECT balance FROM users").await, 507, "the later charge decides the balance");
    test.finish().await;
}

#[tokio::test]
async fn dead_letter_refused_changes_only_its_reason() {
    let test = TestApp::start().await;
    let user = test.user(100).await;
    let product = test.product(10, 5).await;
    let order = test.place(user, product, 1).await;
    test.pay(order, user, "CARD", 10).await.ok();
    make_dead_letters(&test, |_, kind| kind == "order_placed").await;
    test.drain().await;
    make_applicable(&test).await;
    // Newest first: the payment of an order that PostgreSQL lacks.
    let both = all_dead_letters(&test).await;
    assert_eq!(both.len(), 2);
    test.sql("UPDATE dead_letters SET reason = 'not retried yet'").await;
    let (before, redis) = (tables(&test).await, test.snapshot().await);
    let paid = both.iter().find(|dead_letter| dead_letter["fields"]["kind"] == "order_paid").unwrap();
    let refused = retry(&test, paid).await;
    refused.refused(409, "DEAD_LETTER_REFUSED");
    assert_eq!((before, redis), (tables(&test).await, test.snapshot().await));
    let reasons: Vec<String> =
        all_dead_letters(&test).await.iter().map(|l| l["reason"].as_str().unwrap().to_owned()).collect();
    assert!(reasons.contains(&"not retried yet".to_owned()), "{reasons:?}");
    let reason = reasons.iter().find(|reason| *reason != "not retried yet").unwrap();
    assert!(refused.json()["message"].as_str().unwrap().contains(reason.as_str()), "{} {reason}", refused.text);

    // A body with a misnamed field lacks that field.
    for (partition, id, seq) in [
        (json!(0), paid["streamId"].clone(), json!(null)),
        (json!(0), paid["streamId"].clone(), json!(1)),
        (json!(0), json!("1-1"), paid["seq"].clone()),
        (json!(1), paid["streamId"].clone(), paid["seq"].clone()),
        (json!(255), paid["streamId"].clone(), paid["seq"].clone()),
    ] {
        let named = json!({"partition": partition, "streamId": id, "seq": seq});
        retry(&test, &named).await.refused(404, "DEAD_LETTER_NOT_FOUND");
    }
    for wrong in [json!({}), json!({"partition": 0, "streamId": "x", "seq": 1}), json!({"partition": 0, "seq": 1})] {
        post(&test, "/admin/v1/dead-letters/retry", wrong).await.refused(400, "INVALID_REQUEST");
    }
    retry_all(&test, 1).await;
    test.finish().await;
}

/// An order that a retried event closes is evicted only after its other dead letters are applied.
#[tokio::test]
async fn order_evicted_when_its_dead_letters_applied() {
    let test = TestApp::start().await;
    let user = test.user(100).await;
    let product = test.product(10, 5).await;
    let order = test.place(user, product, 1).await;
    test.pay(order, user, "CARD", 10).await.ok();
    test.cancel(order, user).await.ok();
    make_dead_letters(&test, |_, kind| kind == "order_placed").await;
    test.drain().await;
    make_applicable(&test).await;
    let key = format!("{{p0}}:order:{order}");
    let life = async || *invariants::ttls(&mut test.raw().await).await.get(&key).unwrap();
    let mut all = all_dead_letters(&test).await;
    all.sort_by_key(|dead_letter| dead_letter["seq"].as_i64());
    assert_eq!(all.len(), 3, "{all:#?}");
    for dead_letter in &all {
        assert_eq!(life().await, -1, "the order has a TTL, and PostgreSQL lacks it");
        assert_eq!(retry(&test, dead_letter).await.status, 204);
    }
    assert!(life().await > 0);
    test.expire_evicted().await;
    let found = get(&test, &format!("/api/v1/orders/{order}")).await.ok();
    assert_eq!((&found["orderStatus"], &found["closeReason"]), (&json!("CANCELLED"), &json!("REFUNDED")));
    test.finish().await;
}

/// A rebuild starts from PostgreSQL, and discards decisions that PostgreSQL lacks.
#[tokio::test]
async fn dead_letter_refused_when_rebuild_discarded_it() {
    let test = TestApp::with(Options { dead_letters: 1, ..Options::default() }).await;
    let user = test.user(0).await;
    test.put_charge(user, 500).await.ok();
    make_dead_letters(&test, |place, _| place == 1).await;
    test.drain().await;
    make_applicable(&test).await;
    let dead_letter = all_dead_letters(&test).await.remove(0);
    // During a rebuild the later state is not known yet.
    let lock = firstcome::postgres::progress::Lock::take(&test.db).await.unwrap();
    retry(&test, &dead_letter).await.refused(503, "SERVICE_UNAVAILABLE");
    lock.release().await;
    rebuilt(
        &test,
        rebuild::RebuildOptions { discard: true, lost_at_most: rebuild::LossBounds::Each(0), ..Default::default() },
    )
    .await;
    test.engine.ready().await.unwrap();
    for _ in 0..2 {
        // Before and after the new epoch is projected.
        let refused = retry(&test, &dead_letter).await;
        refused.refused(409, "DEAD_LETTER_REFUSED");
        assert!(refused.text.contains("rebuild"), "{}", refused.text);
        test.put_charge(user, 1).await.ok();
        test.drain().await;
    }
    assert_eq!(one::<i64>(&test, "SELECT balance FROM users").await, 2);
    test.finish().await;
}

/// An entry without a sequence number, and one with the number of another.
#[tokio::test]
async fn dead_letter_refused_when_never_decided() {
    let test = TestApp::with(Options { dead_letters: 2, ..Options::default() }).await;
    let user = test.user(0).await;
    let mut redis = test.raw().await;
    poison(&mut redis, false, &[("garbage", b"yes")]).await;
    let charge: [(&str, &[u8]); 11] = [
        ("v", b"1"),
        ("kind", b"strange"),
        ("at", b"1772427600000"),
        ("rid", b"x"),
        ("user", b"1"),
        ("entry_no", b"1"),
        ("amount", b"5"),
        ("before", b"0"),
        ("after", b"5"),
        ("epoch", b"1"),
        ("seq", b"1"),
    ];
    poison(&mut redis, false, &charge).await;
    test.put_charge(user, 9).await.ok();
    test.drain().await;
    test.sql(
        "UPDATE dead_letters SET fields = jsonb_set(fields, '{kind}', '\"balance_charged\"') WHERE fields ? 'kind'",
    )
    .await;
    let before = tables(&test).await;
    for dead_letter in all_dead_letters(&test).await {
        assert_eq!(dead_letter["seq"], Value::Null, "{dead_letter}");
        let refused = retry(&test, &dead_letter).await;
        refused.refused(409, "DEAD_LETTER_REFUSED");
        assert!(refused.text.contains("place"), "{}", refused.text);
    }
    // A forged sequence number is refused too.
    test.sql("UPDATE dead_letters SET epoch = 1, seq = 77 WHERE fields ? 'kind'").await;
    let dead_letter = all_dead_letters(&test).await.into_iter().find(|dead_letter| dead_letter["seq"] == 77).unwrap();
    retry(&test, &dead_letter).await.refused(409, "DEAD_LETTER_REFUSED");
    assert_eq!(before, tables(&test).await);
    // The decision that it claims to be is not without an event.
    test.sql("UPDATE dead_letters SET epoch = NULL, seq = NULL WHERE seq = 77").await;
    test.finish().await;
}

/// The description of a product or a campaign follows Redis, in any order of the retries.
#[tokio::test]
async fn dead_letter_of_update_yields_to_newer_state() {
    let test = TestApp::start().await;
    let product = test.product(100, 10).await;
    let coupon = test.campaign("FIXED", 10, 5).await;
    let at = |ms: i64| test.clock.now().plus(ms).local(test.engine.zone());
    for (price, closes_in) in [(200, 2_000_000), (300, 3_000_000), (400, 4_000_000)] {
        for (path, patch) in [
            (format!("/admin/v1/products/{product}"), json!({"price": price, "stockDelta": 1})),
            (format!("/admin/v1/coupons/{coupon}"), json!({"closesAt": at(closes_in)})),
        ] {
            test.send(Method::PATCH, &path, Some(&patch), None).await.ok();
        }
    }
    // The first and the last update of each are dead letters, and the last is retried first.
    make_dead_letters(&test, |place, kind| kind.ends_with("_updated") && ![4, 5].contains(&place)).await;
    test.drain().await;
    make_applicable(&test).await;
    let mut all = all_dead_letters(&test).await;
    all.sort_by_key(|dead_letter| -dead_letter["seq"].as_i64().unwrap());
    assert_eq!(all.len(), 4, "{all:#?}");
    for dead_letter in &all {
        assert_eq!(retry(&test, dead_letter).await.status, 204);
        let closes = "SELECT (extract(epoch FROM closes_at) * 1000)::bigint FROM campaigns";
        let priced: (i64, i64) = (one(&test, "SELECT price FROM products").await, one(&test, closes).await);
        // One of them is the other's yet.
        assert!([300, 400].contains(&priced.0) && priced.1 >= test.clock.now().0 + 3_000_000, "{priced:?}");
    }
    assert_eq!(one::<i64>(&test, "SELECT stocked FROM products").await, 13);
    test.finish().await;
}

/// A refund that a gateway has made is not due again when the event that requested it is applied late.
#[tokio::test]
async fn dead_letter_of_refund_leaves_finished_payment() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(0).await, test.product(100, 10).await);
    let mut redis = test.raw().await;
    let ids = format!("order 7 user {user}");
    let lines = format!("lines {product}:1:100");
    let mut decide = async |event: String| {
        let words: Vec<&str> = event.split(' ').collect();
        let pairs: Vec<(&str, &[u8])> = words.chunks(2).map(|pair| (pair[0], pair[1].as_bytes())).collect();
        poison(&mut redis, true, &[&[("v", &b"1"[..]), ("at", b"1772427600000"), ("rid", b"x")], &pairs[..]].concat())
            .await;
    };
    decide(format!("kind order_placed {ids} {lines} total 100 discount 0 final 100 coupon  expires_at 1772427700000"))
        .await;
    decide(format!("kind payment_started {ids} payment 9 type CARD amount 100 receipt r")).await;
    decide(format!(
        "kind order_paid {ids} payment 9 type CARD amount 100 receipt r transaction t {lines} coupon  debit 0 day 20260302"
    ))
    .await;
    decide(format!(
        "kind order_closed {ids} from PAID status CANCELLED reason REFUNDED {lines} coupon  receipt r method GATEWAY \
         credit 0 day 20260302"
    ))
    .await;
    decide("kind payment_ended order 7 receipt r outcome REFUNDED".to_owned()).await;
    make_dead_letters(&test, |_, kind| kind == "order_closed").await;
    test.drain().await;
    make_applicable(&test).await;
    let all = all_dead_letters(&test).await;
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(retry(&test, &all[0]).await.status, 204);
    assert_eq!(one::<String>(&test, "SELECT status FROM payments").await, "REFUNDED");
    assert_eq!(one::<String>(&test, "SELECT status FROM orders").await, "CANCELLED");
    // No script decided this.
    test.finish_unchecked().await;
}
