//! A process that starts while PostgreSQL is unavailable joins the serving instances if they vouch for its Redis. PostgreSQL
//! confirms the join once it is back.

use std::collections::BTreeSet;

use firstcome::dev::free_port;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::startup_waits::{becomes_ready, servers, start_with, waits_for};
use crate::{
    process::binary::{Running, Servers, get, post, put, run},
    redis::failover::{in_sync, server},
    support::{
        files::copy_dir,
        harness::{self, until},
    },
};

const META: &str = "{p0}:meta";
const SERVING: &str = "{p0}:serving";

/// Starts an instance on these stores. Returns it, and its URL.
fn serve(servers: &Servers, name: &str, variables: &[(&str, &str)]) -> (Running, String) {
    start_with(servers, "serve", name, variables)
}

/// Waits until the instance serves without PostgreSQL.
async fn joins(running: &mut Running, base: &str) {
    until("the instance joins", async || {
        running.assert_alive();
        let ready = harness::client().get(format!("{base}/readyz")).send().await.ok()?;
        (ready.status() == 200).then_some(())
    })
    .await;
    assert!(running.logged("PostgreSQL is away: joined the instances that serve").is_some(), "{}", running.err());
    let ready = get(base, "/readyz").await.ok();
    assert!(ready["status"] == "DEGRADED" && ready["reasons"].to_string().contains("has yet to confirm"), "{ready}");
}

/// Waits until PostgreSQL has confirmed the join.
async fn confirmed(running: &mut Running, base: &str) {
    until("PostgreSQL confirms", async || {
        running.assert_alive();
        running.logged("PostgreSQL is there, and confirms what this process joined on")
    })
    .await;
    until("the instance is up", async || (get(base, "/readyz").await.ok()["status"] == "UP").then_some(())).await;
}

/// Orders one unit. Returns the order's id.
async fn order(base: &str, key: &str) -> i64 {
    let body = json!({"userId": 2, "orderProducts": [{"productId": 5, "quantity": 1}]});
    let reply = until("an order is placed", async || {
        let request = harness::client().post(format!("{base}/api/v1/orders")).header("Idempotency-Key", key);
        let reply = harness::read(request.json(&body)).await;
        (reply.status != 503).then_some(reply)
    })
    .await;
    reply.ok()["orderId"].as_i64().unwrap()
}

async fn redis(servers: &Servers) -> redis::aio::MultiplexedConnection {
    harness::raw_redis(&servers.redis_url).await
}

/// The reasons why an instance is not ready; `None` if it does not reply.
async fn reasons(base: &str) -> Option<String> {
    let ready = harness::client().get(format!("{base}/readyz")).send().await.ok()?;
    let body: Value = ready.json().await.ok()?;
    Some(body["reasons"].to_string())
}

#[tokio::test]
async fn third_instance_joins_and_sells_when_postgres_stopped() {
    let mut servers = servers().await;
    let (mut first, a) = serve(&servers, "first", &[]);
    let (mut second, b) = serve(&servers, "second", &[]);
    becomes_ready(&mut first, &a).await;
    becomes_ready(&mut second, &b).await;
    servers.postgres.kill().await.unwrap();
    let mut orders = BTreeSet::from([order(&a, "a").await, order(&b, "b").await]);
    let (mut third, c) = serve(&servers, "third", &[]);
    joins(&mut third, &c).await;
    let sold = order(&c, "c-1").await;
    orders.extend([sold, order(&c, "c-2").await, order(&a, "a-2").await]);
    // Reads from PostgreSQL are unavailable on both.
    for base in [&a, &c] {
        get(base, "/admin/v1/orders").await.refused(503, "SERVICE_UNAVAILABLE");
    }
    // PostgreSQL has no record of the third instance, which dies.
    third.child.kill().await.unwrap();
    assert_eq!(order(&b, "c-1").await, sold, "another instance replays the reply");
    let (mut fourth, d) = serve(&servers, "fourth", &[]);
    joins(&mut fourth, &d).await;
    orders.insert(order(&d, "d").await);
    assert_eq!(orders.len(), 6);
    servers.postgres.restart().await.unwrap();
    confirmed(&mut fourth, &d).await;
    orders.insert(order(&d, "d-2").await);
    until("the leases expire", async || {
        let leases: i64 = redis::cmd("EXISTS").arg(SERVING).query_async(&mut redis(&servers).await).await.unwrap();
        (leases == 0).then_some(())
    })
    .await;
    let listed = until("all are projected", async || {
        let listed = get(&d, "/admin/v1/orders").await.ok();
        (listed["totalElements"] == orders.len()).then_some(listed)
    })
    .await;
    let ids = listed["content"].as_array().unwrap().iter().map(|order| order["orderId"].as_i64().unwrap());
    assert_eq!(ids.collect::<BTreeSet<_>>(), orders);
    let (status, output) = run(&mut servers.role(&["audit"])).await;
    assert!(status.success(), "{output}");
    for running in [&mut first, &mut second, &mut fourth] {
        running.stop().await;
    }
    servers.end().await;
}

/// Redis restarts without its last decisions: the serving instance fences it, and a new instance does not join. Once the serving
/// instance is dead, its lease in the restored data does not vouch for Redis either.
#[tokio::test]
async fn new_instance_waits_when_redis_lost_decisions_while_postgres_stopped() {
    let mut servers = servers().await;
    let (mut old, a) = serve(&servers, "old", &[]);
    becomes_ready(&mut old, &a).await;
    servers.postgres.kill().await.unwrap();
    let mut raw = redis(&servers).await;
    until("the old instance has a lease", async || {
        let leases: i64 = redis::cmd("EXISTS").arg(SERVING).query_async(&mut raw).await.unwrap();
        (leases == 1).then_some(())
    })
    .await;
    order(&a, "before").await;
    let data = servers.redis.data_dir();
    let copy = servers.dir.path().join("copy");
    copy_dir(&data, &copy);
    order(&a, "lost").await;
    servers.redis.kill().await.unwrap();
    copy_dir(&copy, &data);
    servers.redis.restart().await.unwrap();
    until("the loss is noticed", async || reasons(&a).await?.contains("behind the acknowledged").then_some(())).await;
    let (mut new, b) = serve(&servers, "new", &[]);
    waits_for(&mut new, &b, &["PostgreSQL"]).await;
    assert!(reasons(&b).await.unwrap().contains("no other instance serves"), "{}", new.err());
    old.child.kill().await.unwrap();
    // Restores Redis again, now that no process knows of the loss.
    servers.redis.kill().await.unwrap();
    copy_dir(&copy, &data);
    servers.redis.restart().await.unwrap();
    let frozen: Option<String> = until("Redis has loaded its data", async || {
        redis::cmd("HGET").arg(META).arg("frozen").query_async(&mut redis(&servers).await).await.ok()
    })
    .await;
    assert_eq!(frozen, None);
    waits_for(&mut new, &b, &["PostgreSQL"]).await;
    new.signal(Signal::TERM);
    assert!(new.ended().await.success(), "{}", new.err());
    servers.postgres.restart().await.unwrap();
    let (status, output) = run(&mut servers.role(&["rebuild"])).await;
    assert!(status.success(), "{output}");
    servers.end().await;
}

/// PostgreSQL returns with the identity of another store: the joined process ends, and has written nothing to it.
#[tokio::test]
async fn joined_instance_ends_when_postgres_contradicts() {
    let mut servers = servers().await;
    let (mut old, a) = serve(&servers, "old", &[("NO_PROJECTOR", "true")]);
    becomes_ready(&mut old, &a).await;
    servers.postgres.kill().await.unwrap();
    let (mut new, b) = serve(&servers, "new", &[("DRAIN_SECONDS", "5")]);
    joins(&mut new, &b).await;
    order(&b, "joined").await;
    old.child.kill().await.unwrap();
    // The joined instance stands still until the identity in PostgreSQL has changed.
    new.signal(Signal::STOP);
    servers.postgres.restart().await.unwrap();
    let db = servers.db().await;
    let pool = db.get_postgres_connection_pool();
    let store: String = sqlx::query_scalar("SELECT store FROM store").fetch_one(pool).await.unwrap();
    sqlx::query("UPDATE store SET store = 'another'").execute(pool).await.unwrap();
    new.signal(Signal::CONT);
    let ended = new.ended().await;
    assert!(ended.code() == Some(1) && new.err().contains("they do not belong together"), "{}", new.err());
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(pool).await.unwrap();
    assert_eq!(orders, 0, "the joined instance wrote orders to another store");
    sqlx::query("UPDATE store SET store = $1").bind(store).execute(pool).await.unwrap();
    db.close().await.unwrap();
    let (mut last, c) = serve(&servers, "last", &[]);
    becomes_ready(&mut last, &c).await;
    put(&c, "/api/v1/balances/1", json!({"amount": 1})).await.ok();
    last.stop().await;
    servers.end().await;
}

/// A process with `ACK=redis` does not join instances with `ACK=postgres`: PostgreSQL would have no record that decisions can be
/// lost. A process with another database does not join either.
#[tokio::test]
async fn new_instance_waits_when_its_settings_differ_from_those_that_serve() {
    let mut servers = servers().await;
    let (mut old, a) = serve(&servers, "old", &[("ACK", "postgres")]);
    becomes_ready(&mut old, &a).await;
    servers.postgres.kill().await.unwrap();
    let (mut early, b) = serve(&servers, "early", &[]);
    let port = free_port().unwrap().to_string();
    let (user, place) = servers.postgres_url.split_once('@').unwrap();
    let (host, database) = (place.split(':').next().unwrap(), place.split_once('/').unwrap().1);
    let elsewhere = format!("{user}@{host}:{port}/{database}");
    let (mut other, c) = serve(&servers, "other", &[("DATABASE_URL", &elsewhere), ("ACK", "postgres")]);
    let (mut same, d) = serve(&servers, "same", &[("ACK", "postgres")]);
    joins(&mut same, &d).await;
    for (running, base, why) in
        [(&mut early, &b, "every instance that serves has ACK=postgres"), (&mut other, &c, "another DATABASE_URL")]
    {
        until("the instance reports why it does not join", async || {
            running.assert_alive();
            reasons(base).await?.contains(why).then_some(())
        })
        .await;
    }
    servers.postgres.restart().await.unwrap();
    for (running, base) in [(&mut old, &a), (&mut early, &b), (&mut same, &d)] {
        becomes_ready(running, base).await;
        post(base, "/admin/v1/users", json!({"userName": "A"})).await.created();
        running.stop().await;
    }
    other.child.kill().await.unwrap();
    servers.end().await;
}

/// A start without PostgreSQL promises what any start does: it does not begin where replicas can't keep `ACK=replica`.
#[tokio::test]
async fn new_instance_ends_when_replica_confirms_nothing_while_postgres_stopped() {
    let mut servers = Servers::start().await;
    let master = server(&servers.dir, "master", None).await;
    let mut replica = server(&servers.dir, "replica", Some(&master)).await;
    in_sync(&master, &replica).await;
    servers.redis_url = master.url();
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("min-replicas-to-write").arg(1).arg("min-replicas-max-lag").arg(3600);
    set.arg("repl-timeout").arg(3600).exec_async(&mut redis(&servers).await).await.unwrap();
    let (status, output) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "{output}");
    let (mut old, a) = serve(&servers, "old", &[]);
    becomes_ready(&mut old, &a).await;
    servers.postgres.kill().await.unwrap();
    replica.pause().unwrap();
    let variables = [("ACK", "replica"), ("ACK_REPLICA_TIMEOUT_MS", "200")];
    let (mut new, _) = serve(&servers, "new", &variables);
    let ended = new.ended().await;
    assert_eq!(ended.code(), Some(1));
    assert!(new.err().contains("did not confirm a write within 200 ms, in 5 attempts"), "{}", new.err());
    replica.resume().unwrap();
    let (mut again, b) = serve(&servers, "again", &[("ACK", "replica")]);
    joins(&mut again, &b).await;
    post(&b, "/admin/v1/users", json!({"userName": "A"})).await.created();
    servers.postgres.restart().await.unwrap();
    confirmed(&mut again, &b).await;
    for running in [&mut old, &mut again] {
        running.stop().await;
    }
    servers.end().await;
}
