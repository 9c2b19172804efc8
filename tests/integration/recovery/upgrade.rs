//! Upgrades: this program on the stores that earlier releases left behind.
//!
//! `release/` has them as the program of each release wrote them, in a folder named after the version of the schema:
//! `postgres.sql` by `pg_dump --inserts`, `redis.txt` by `DUMP` (a key, its TTL in ms or 0, the payload in hex; a line
//! each), and `facts.json` with ids, the replies to reads, and requests under an idempotency key with their first
//! replies. Each store has two partitions, orders in every state, a payment that a gateway has not answered, and events
//! that are not projected yet. (Schema 8 has no such requests: its release did not bind a key to its owner, and this
//! program does not find the records of unbound keys.)

use std::fs;

use firstcome::{
    dev::{self, RedisServer, ScratchDir},
    model::{Clock, Millis, Partition},
    postgres,
    recovery::rebuild::{LossBounds, RebuildOptions},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    fake_gateway::FakeGateway,
    harness::{self, Options, TestApp, gateways, postgres_config, postgres_url},
};

const PARTITIONS: u16 = 2;
/// How long an open payment may stay without a reply.
const GIVE_UP_SECONDS: i64 = 300;

fn file(schema: u32, name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/recovery/release");
    fs::read_to_string(format!("{folder}/schema_{schema}/{name}")).unwrap()
}

fn decode_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Starts a Redis with the keys of the release.
async fn restored_redis(schema: u32, dir: &ScratchDir) -> RedisServer {
    let server = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
    let mut redis = harness::raw_redis(&server.url()).await;
    for line in file(schema, "redis.txt").lines() {
        let [key, ttl_ms, payload] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let payload = decode_hex(payload);
        let _: () = redis::cmd("RESTORE").arg(key).arg(ttl_ms).arg(payload).query_async(&mut redis).await.unwrap();
    }
    server
}

/// A database with the schema and the rows of the release.
async fn restored_postgres(schema: u32, name: &str) {
    postgres::create_database(&postgres_config(&postgres_url("postgres")), name).await.unwrap();
    let db = postgres::connect(&postgres_config(&postgres_url(name))).await.unwrap();
    let pool = db.get_postgres_connection_pool();
    sqlx::raw_sql(sqlx::AssertSqlSafe(file(schema, "postgres.sql"))).execute(pool).await.unwrap();
    db.close().await.unwrap();
}

async fn order_status(test: &TestApp, order: &Value) -> String {
    let order = test.get(&format!("/api/v1/orders/{order}")).await.ok();
    order["orderStatus"].as_str().unwrap().to_owned()
}

/// Whether a reply has everything that the release replied. Later versions add fields.
fn has(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            then.iter().all(|(name, then)| now.get(name).is_some_and(|now| has(now, then)))
        }
        (Value::Array(now), Value::Array(then)) => {
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| has(now, then))
        }
        _ => now == then,
    }
}

/// Migrates the stores of the release with this schema, rebuilds Redis in its layout, audits them, reads what the release wrote, and takes orders on them.
async fn upgrade(schema: u32) {
    let facts: Value = serde_json::from_str(&file(schema, "facts.json")).unwrap();
    let dir = ScratchDir::new().unwrap();
    let redis = restored_redis(schema, &dir).await;
    let database = format!("fc_upgrade_{schema}");
    restored_postgres(schema, &database).await;

    let gateway = FakeGateway::start().await;
    let mut gateway_config = gateways(&[("KAKAO_PAY", gateway.url())]);
    gateway_config.payment_gateway_give_up_seconds = GIVE_UP_SECONDS;
    let clock = Millis(facts["now"].as_i64().unwrap());
    let options = Options { partitions: PARTITIONS, clock: Some(clock), gateway: gateway_config, ..Options::default() };

    let url = postgres_url(&database);
    let db = postgres::connect(&postgres_config(&url)).await.unwrap();
    postgres::migrate(&db).await.unwrap();
    db.close().await.unwrap();

    // The release has another layout of Redis.
    let refused = harness::open(&options, &redis.url(), &url, Clock::standing(clock)).await.err().unwrap();
    assert!(format!("{refused:#}").contains("as another version of this program keeps it"), "{refused:#}");
    let retention = options.retention.retention();
    let rebuild =
        harness::rebuild(&harness::redis_config(&redis.url()), &database, Clock::standing(clock), retention).await;
    let one = RebuildOptions { partitions: Some([Partition(1)].into()), ..RebuildOptions::default() };
    let refused = rebuild.clone().run(one).await.expect_err("one partition rebuilt alone");
    assert!(format!("{refused:#}").contains("all partitions at once"), "{refused:#}");
    let nothing_lost = RebuildOptions { lost_at_most: LossBounds::Each(0), ..RebuildOptions::default() };
    let summary = rebuild.clone().run(nothing_lost).await.unwrap();
    assert_eq!((summary.discarded, summary.withheld_units, summary.withheld_coupons), (0, 0, 0), "{summary:?}");
    rebuild.db.close().await.unwrap();

    let test = TestApp::on(options, dir, redis, database).await;
    let report = test.app.audit().run().await.unwrap();
    assert!(report.balanced, "{report}");
    for (path, reply) in facts["reads"].as_object().unwrap() {
        let now = test.get(path).await.ok();
        assert!(has(&now, reply), "{path}: {now} has not {reply}");
    }

    for repeat in facts["repeats"].as_array().into_iter().flatten() {
        let text = |name: &str| repeat[name].as_str().unwrap();
        let method: Method = text("method").parse().unwrap();
        let reply = test.send(method, text("path"), Some(&repeat["body"]), Some(text("key"))).await;
        assert_eq!((reply.replayed(), reply.text.as_str()), (true, text("reply")), "{repeat}");
    }

    // Ends what the release began: a hold, a sale, a payment without a reply.
    let id = |name: &str| facts[name].as_i64().unwrap();
    let user = id("user");
    test.pay(id("pending"), user, "CARD", 2_450).await.ok();
    test.cancel(id("paid"), user).await.ok();
    assert_eq!(order_status(&test, &facts["pending"]).await, "PAID");
    assert_eq!(order_status(&test, &facts["paid"]).await, "CANCELLED");
    assert_eq!(order_status(&test, &facts["asked"]).await, "PENDING");
    test.clock.advance(GIVE_UP_SECONDS * 1000);
    test.engine.sweep().await.unwrap();
    assert_eq!(order_status(&test, &facts["asked"]).await, "FAILED");
    assert_eq!(gateway.total_kept(), 0);

    // New ids do not repeat those of the release.
    let newcomer = test.user(10_000).await;
    assert!(newcomer > id("second"));
    test.issue(id("coupon"), newcomer).await.ok();
    let lines = json!([{"productId": id("shirt"), "quantity": 1}, {"productId": id("cap"), "quantity": 1}]);
    let order = json!({"userId": newcomer, "orderProducts": lines, "userCouponId": id("coupon")});
    let order = test.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap();
    test.pay(order, newcomer, "KAKAO_PAY", 950).await.ok();
    assert_eq!(gateway.total_kept(), 950);
    test.finish().await;
}

#[tokio::test]
async fn store_of_schema_8_migrated_audited_and_sold_from() {
    upgrade(8).await;
}

#[tokio::test]
async fn store_of_schema_14_migrated_audited_and_sold_from() {
    upgrade(14).await;
}

#[tokio::test]
async fn start_refused_when_schema_of_release() {
    let dir = ScratchDir::new().unwrap();
    let redis = restored_redis(8, &dir).await;
    let name = "fc_upgrade_refused";
    restored_postgres(8, name).await;
    let options = Options { partitions: PARTITIONS, ..Options::default() };
    let clock = Clock::standing(harness::START);
    let Err(refusal) = harness::open(&options, &redis.url(), &postgres_url(name), clock).await else {
        panic!("the start succeeded on the schema of the release")
    };
    assert!(format!("{refusal:#}").contains("`firstcome migrate`"), "{refusal:#}");
    harness::drop_database(name).await;
}
