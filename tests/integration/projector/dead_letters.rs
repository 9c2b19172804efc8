//! Dead letters and their second try: applied once, whoever tries, in any order, and as if it had been in time; or refused,
//! with the reason, and nothing changed.

use std::collections::{BTreeMap, BTreeSet};

use firstcome::{model::event, recovery::rebuild};
use futures_util::future::join_all;
use proptest::{prelude::*, test_runner::TestRunner};
use redis::aio::MultiplexedConnection;
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
        harness::{Options, Reply, World},
        invariants,
    },
};

type Entry = (String, Vec<(String, String)>);

/// What an event's kind is called that this program does not know.
const STRANGE: &str = "a_kind_of_a_newer_program";

async fn entries(redis: &mut MultiplexedConnection, partition: u16) -> Vec<Entry> {
    let outbox = format!("{{p{partition}}}:outbox");
    redis::cmd("XRANGE").arg(outbox).arg("-").arg("+").query_async(redis).await.unwrap()
}

/// Makes the chosen entries of the outbox ones that can't be understood, and what they are called is told in another field.
async fn estrange(world: &World, chosen: impl Fn(usize, &str) -> bool) -> usize {
    let (mut redis, mut place, mut estranged) = (world.raw().await, 0, 0);
    for partition in 0..world.options.partitions {
        let outbox = format!("{{p{partition}}}:outbox");
        let all = entries(&mut redis, partition).await;
        let _: i64 = redis::cmd("DEL").arg(&outbox).query_async(&mut redis).await.unwrap();
        for (id, fields) in all {
            let mut fields = event::fields_of(&fields, 0);
            let kind = fields.iter_mut().find(|(name, _)| name == "kind").unwrap();
            if chosen(place, &kind.1) {
                let was = std::mem::replace(&mut kind.1, STRANGE.to_owned());
                fields.push(("was".to_owned(), was));
                estranged += 1;
            }
            place += 1;
            let mut add = redis::cmd("XADD");
            add.arg(&outbox).arg(&id);
            for (name, value) in &fields {
                add.arg(name).arg(value);
            }
            let _: String = add.query_async(&mut redis).await.unwrap();
        }
    }
    estranged
}

/// What a newer program would understand, this one does from now on.
async fn understand(world: &World) {
    sql(
        world,
        "UPDATE dead_letters SET fields = fields || jsonb_build_object('kind', fields->>'was') WHERE fields ? 'was'",
    )
    .await;
}

async fn sql(world: &World, sql: &str) {
    sqlx::query(AssertSqlSafe(sql.to_owned())).execute(world.db.get_postgres_connection_pool()).await.unwrap();
}

async fn one<T: Send + Unpin>(world: &World, sql: &'static str) -> T
where
    (T,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
{
    let row: (T,) = sqlx::query_as(sql).fetch_one(world.db.get_postgres_connection_pool()).await.unwrap();
    row.0
}

/// All dead letters, as they are shown.
async fn letters(world: &World) -> Vec<Value> {
    let page = get(world, "/admin/v1/dead-letters?size=100").await.ok();
    let letters = page["content"].as_array().unwrap().clone();
    assert_eq!(page["totalElements"].as_i64().unwrap(), letters.len() as i64, "{page}");
    letters
}

async fn retry(world: &World, letter: &Value) -> Reply {
    let body = json!({"partition": letter["partition"], "streamId": letter["streamId"], "seq": letter["seq"]});
    post(world, "/admin/v1/dead-letters/retry", body).await
}

/// Every table but for the letters' own and what is written beside the projection.
async fn tables(world: &World) -> BTreeMap<&'static str, Vec<String>> {
    let mut all = BTreeMap::new();
    for table in [
        "balance_entries",
        "campaigns",
        "far_coupons",
        "idempotency_records",
        "id_sequences",
        "order_lines",
        "orders",
        "payments",
        "products",
        "projection_positions",
        "stock_holds",
        "user_coupons",
        "users",
    ] {
        let sql = format!("SELECT (to_jsonb(t) - 'updated_at')::text FROM {table} AS t ORDER BY 1");
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(world.db.get_postgres_connection_pool());
        all.insert(table, rows.await.unwrap());
    }
    all
}

/// Retries all in rounds, each in another order, until none is left; every round must get some in.
async fn retry_all(world: &World, mut seed: u64) {
    for _ in 0..1_000 {
        let mut left = letters(world).await;
        if left.is_empty() {
            return;
        }
        // Any order will do, as long as it is another one each time.
        left.sort_by_cached_key(|letter| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33, letter["seq"].as_i64())
        });
        let mut applied = 0;
        for letter in &left {
            let reply = retry(world, letter).await;
            if reply.status == 204 {
                applied += 1;
            } else {
                reply.refused(409, "DEAD_LETTER_REFUSED");
            }
        }
        assert!(applied > 0, "{:#?}", letters(world).await);
    }
    panic!("there is no end to it");
}

/// Whatever was a dead letter for a while, and whatever was applied meanwhile: once all are in, Postgres is as Redis is.
#[test]
fn dead_letters_retried_in_any_order_equal_timely_projection() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let chosen = (prop::collection::btree_set(0..90usize, 1..30), any::<u64>(), prop_oneof![Just(1u16), Just(3)]);
    TestRunner::new(ProptestConfig { max_shrink_iters: 30, ..config(12, 20) })
        .run(&chosen, |(chosen, seed, partitions): (BTreeSet<usize>, u64, u16)| {
            runtime.block_on(async {
                let world = World::with(Options { partitions, ..Options::default() }).await;
                busy_day(&world).await;
                let estranged = estrange(&world, |place, _| chosen.contains(&place)).await;
                world.drain().await;
                assert!(letters(&world).await.len() >= estranged);
                understand(&world).await;
                retry_all(&world, seed).await;
                // Where everything that is over may leave Redis, Postgres tells of it.
                world.leave().await;
                world.finish().await;
            });
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn dead_letter_applied_once_when_retries_race() {
    let world = World::start().await;
    let user = world.user(0).await;
    world.put_charge(user, 500).await.ok();
    world.put_charge(user, 7).await.ok();
    estrange(&world, |place, _| place == 1).await;
    world.drain().await;
    let letter = letters(&world).await.remove(0);
    assert!(letter["reason"].as_str().unwrap().contains(STRANGE), "{letter}");
    assert_eq!(
        (&letter["fields"]["amount"], &letter["partition"], &letter["seq"]),
        (&json!("500"), &json!(0), &json!(2))
    );
    // Not yet understood: it stays.
    let refused = retry(&world, &letter).await;
    refused.refused(409, "DEAD_LETTER_REFUSED");
    assert!(refused.json()["message"].as_str().unwrap().contains(STRANGE), "{}", refused.text);
    understand(&world).await;
    let tries = join_all((0..8).map(|_| retry(&world, &letter))).await;
    let mut statuses: Vec<u16> = tries.iter().map(|reply| reply.status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 404, 404, 404, 404, 404, 404, 404]);
    retry(&world, &letter).await.refused(404, "DEAD_LETTER_NOT_FOUND");
    assert_eq!(one::<i64>(&world, "SELECT count(*) FROM balance_entries").await, 2);
    assert_eq!(one::<i64>(&world, "SELECT balance FROM users").await, 507, "the last word is the later charge's");
    world.finish().await;
}

#[tokio::test]
async fn dead_letter_refused_changes_only_its_reason() {
    let world = World::start().await;
    let user = world.user(100).await;
    let product = world.product(10, 5).await;
    let order = world.order(user, product, 1).await.ok()["orderId"].as_i64().unwrap();
    world.pay(order, user, "CARD", 10).await.ok();
    estrange(&world, |_, kind| kind == "order_placed").await;
    world.drain().await;
    understand(&world).await;
    // Newest first: the payment of an order that is not there.
    let both = letters(&world).await;
    assert_eq!(both.len(), 2);
    sql(&world, "UPDATE dead_letters SET reason = 'nobody has looked'").await;
    let (before, redis) = (tables(&world).await, world.snapshot().await);
    let paid = both.iter().find(|letter| letter["fields"]["kind"] == "order_paid").unwrap();
    let refused = retry(&world, paid).await;
    refused.refused(409, "DEAD_LETTER_REFUSED");
    assert_eq!((before, redis), (tables(&world).await, world.snapshot().await));
    let reasons: Vec<String> = letters(&world).await.iter().map(|l| l["reason"].as_str().unwrap().to_owned()).collect();
    assert!(reasons.contains(&"nobody has looked".to_owned()), "{reasons:?}");
    let reason = reasons.iter().find(|reason| *reason != "nobody has looked").unwrap();
    assert!(refused.json()["message"].as_str().unwrap().contains(reason.as_str()), "{} {reason}", refused.text);

    // What is named wrongly is not there.
    for (partition, id, seq) in [
        (json!(0), paid["streamId"].clone(), json!(null)),
        (json!(0), paid["streamId"].clone(), json!(1)),
        (json!(0), json!("1-1"), paid["seq"].clone()),
        (json!(1), paid["streamId"].clone(), paid["seq"].clone()),
        (json!(255), paid["streamId"].clone(), paid["seq"].clone()),
    ] {
        let named = json!({"partition": partition, "streamId": id, "seq": seq});
        retry(&world, &named).await.refused(404, "DEAD_LETTER_NOT_FOUND");
    }
    for wrong in [json!({}), json!({"partition": 0, "streamId": "x", "seq": 1}), json!({"partition": 0, "seq": 1})] {
        post(&world, "/admin/v1/dead-letters/retry", wrong).await.refused(400, "INVALID_REQUEST");
    }
    retry_all(&world, 1).await;
    world.finish().await;
}

/// What a retried event ended leaves Redis as it would have, and not while another of its letters is there.
#[tokio::test]
async fn order_evicted_when_its_dead_letters_applied() {
    let world = World::start().await;
    let user = world.user(100).await;
    let product = world.product(10, 5).await;
    let order = world.order(user, product, 1).await.ok()["orderId"].as_i64().unwrap();
    world.pay(order, user, "CARD", 10).await.ok();
    world.cancel(order, user).await.ok();
    estrange(&world, |_, kind| kind == "order_placed").await;
    world.drain().await;
    understand(&world).await;
    let key = format!("{{p0}}:order:{order}");
    let life = async || *invariants::lives(&mut world.raw().await).await.get(&key).unwrap();
    let mut all = letters(&world).await;
    all.sort_by_key(|letter| letter["seq"].as_i64());
    assert_eq!(all.len(), 3, "{all:#?}");
    for letter in &all {
        assert_eq!(life().await, -1, "it would leave, and Postgres does not have it");
        assert_eq!(retry(&world, letter).await.status, 204);
    }
    assert!(life().await > 0);
    world.leave().await;
    let found = get(&world, &format!("/api/v1/orders/{order}")).await.ok();
    assert_eq!((&found["orderStatus"], &found["closeReason"]), (&json!("CANCELLED"), &json!("REFUNDED")));
    world.finish().await;
}

/// A rebuild goes on from what Postgres has: what it does not have then is no decision any more.
#[tokio::test]
async fn dead_letter_refused_when_rebuild_discarded_it() {
    let world = World::with(Options { dead_letters: 1, ..Options::default() }).await;
    let user = world.user(0).await;
    world.put_charge(user, 500).await.ok();
    estrange(&world, |place, _| place == 1).await;
    world.drain().await;
    understand(&world).await;
    let letter = letters(&world).await.remove(0);
    // While it goes on nobody can tell what will be true after.
    let lock = firstcome::postgres::progress::Lock::take(&world.db).await.unwrap();
    retry(&world, &letter).await.refused(503, "SERVICE_UNAVAILABLE");
    drop(lock);
    rebuilt(&world, rebuild::Options { discard: true, lost_at_most: Some(0) }).await;
    world.engine.ready().await.unwrap();
    for _ in 0..2 {
        // Before and after the new epoch is projected.
        let refused = retry(&world, &letter).await;
        refused.refused(409, "DEAD_LETTER_REFUSED");
        assert!(refused.text.contains("rebuild"), "{}", refused.text);
        world.put_charge(user, 1).await.ok();
        world.drain().await;
    }
    assert_eq!(one::<i64>(&world, "SELECT balance FROM users").await, 2);
    world.finish().await;
}

/// An entry without a place among the decisions, and one in the place of another.
#[tokio::test]
async fn dead_letter_refused_when_never_decided() {
    let world = World::with(Options { dead_letters: 2, ..Options::default() }).await;
    let user = world.user(0).await;
    let mut redis = world.raw().await;
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
    world.put_charge(user, 9).await.ok();
    world.drain().await;
    sql(
        &world,
        "UPDATE dead_letters SET fields = jsonb_set(fields, '{kind}', '\"balance_charged\"') WHERE fields ? 'kind'",
    )
    .await;
    let before = tables(&world).await;
    for letter in letters(&world).await {
        assert_eq!(letter["seq"], Value::Null, "{letter}");
        let refused = retry(&world, &letter).await;
        refused.refused(409, "DEAD_LETTER_REFUSED");
        assert!(refused.text.contains("place"), "{}", refused.text);
    }
    // Nor does a number that somebody gave it help.
    sql(&world, "UPDATE dead_letters SET epoch = 1, seq = 77 WHERE fields ? 'kind'").await;
    let letter = letters(&world).await.into_iter().find(|letter| letter["seq"] == 77).unwrap();
    retry(&world, &letter).await.refused(409, "DEAD_LETTER_REFUSED");
    assert_eq!(before, tables(&world).await);
    world.finish().await;
}

/// What a product or a campaign is like: Redis has the last word, whichever letter is retried last.
#[tokio::test]
async fn dead_letter_of_update_yields_to_newer_state() {
    let world = World::start().await;
    let product = world.product(100, 10).await;
    let coupon = world.campaign("FIXED", 10, 5).await;
    let at = |ms: i64| world.clock.now().plus(ms).local(world.engine.zone());
    for (price, closes_in) in [(200, 2_000_000), (300, 3_000_000), (400, 4_000_000)] {
        for (path, patch) in [
            (format!("/admin/v1/products/{product}"), json!({"price": price, "stockDelta": 1})),
            (format!("/admin/v1/coupons/{coupon}"), json!({"closesAt": at(closes_in)})),
        ] {
            world.send(Method::PATCH, &path, Some(&patch), None).await.ok();
        }
    }
    // Of each, the first and the last are letters; then the last is retried first.
    estrange(&world, |place, kind| kind.ends_with("_updated") && ![4, 5].contains(&place)).await;
    world.drain().await;
    understand(&world).await;
    let mut all = letters(&world).await;
    all.sort_by_key(|letter| -letter["seq"].as_i64().unwrap());
    assert_eq!(all.len(), 4, "{all:#?}");
    for letter in &all {
        assert_eq!(retry(&world, letter).await.status, 204);
        let closes = "SELECT (extract(epoch FROM closes_at) * 1000)::bigint FROM campaigns";
        let priced: (i64, i64) = (one(&world, "SELECT price FROM products").await, one(&world, closes).await);
        // One of them is the other's yet.
        assert!([300, 400].contains(&priced.0) && priced.1 >= world.clock.now().0 + 3_000_000, "{priced:?}");
    }
    assert_eq!(one::<i64>(&world, "SELECT stocked FROM products").await, 13);
    world.finish().await;
}

/// A refund that a gateway has carried out is not due again when the event that asked for it comes late.
#[tokio::test]
async fn dead_letter_of_refund_leaves_finished_payment() {
    let world = World::start().await;
    let (user, product) = (world.user(0).await, world.product(100, 10).await);
    let mut redis = world.raw().await;
    let ids = format!("order 7 user {user}");
    let lines = format!("lines {product}:1:100 far ");
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
    estrange(&world, |_, kind| kind == "order_closed").await;
    world.drain().await;
    understand(&world).await;
    let all = letters(&world).await;
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(retry(&world, &all[0]).await.status, 204);
    assert_eq!(one::<String>(&world, "SELECT status FROM payments").await, "REFUNDED");
    assert_eq!(one::<String>(&world, "SELECT status FROM orders").await, "CANCELLED");
    // No script decided this.
    world.end_in_disorder().await;
}
