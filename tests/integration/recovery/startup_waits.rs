//! A process that starts while a store is down: it listens, reports what it waits for, and starts once the store is up.

use std::time::Duration;

use firstcome::dev::free_port;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::{
    process::binary::{Running, Servers, get, post, put, run},
    support::{
        files::copy_dir,
        harness::{self, until},
    },
};

/// Servers with the schema and the demo data.
pub async fn servers() -> Servers {
    let servers = Servers::start().await;
    for role in ["migrate", "seed"] {
        let (status, output) = run(&mut servers.role(&[role])).await;
        assert!(status.success(), "{output}");
    }
    servers
}

/// Starts a role on a port that the test knows before the process listens.
fn start(servers: &Servers, role: &str, name: &str) -> (Running, String) {
    start_with(servers, role, name, &[])
}

/// Starts a role, with these variables besides, on a port that the test knows before the process listens.
pub fn start_with(servers: &Servers, role: &str, name: &str, variables: &[(&str, &str)]) -> (Running, String) {
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let variable = if role == "serve" { "BIND_ADDR" } else { "OPS_BIND_ADDR" };
    let variables = [&[(variable, address.as_str()), ("DATABASE_TIMEOUT_MS", "2000")], variables].concat();
    let running = servers.start_with(&[role], &variables, name);
    (running, format!("http://{address}"))
}

/// Waits until the process reports exactly these reasons for its wait, and checks its replies meanwhile.
pub async fn waits_for(running: &mut Running, base: &str, expected: &[&str]) {
    until("/readyz reports what the process waits for", async || {
        running.assert_alive();
        let ready = harness::client().get(format!("{base}/readyz")).send().await.ok()?;
        assert_eq!(ready.status(), 503);
        assert_eq!(ready.headers()["retry-after"], "1");
        let body: Value = ready.json().await.unwrap();
        assert_eq!(body["errorCode"], "SERVICE_UNAVAILABLE", "{body}");
        let reasons = body["reasons"].to_string();
        let all = body["reasons"].as_array().unwrap().len() == expected.len();
        (all && expected.iter().all(|reason| reasons.contains(reason))).then_some(())
    })
    .await;
    get(base, "/healthz").await.ok();
    for path in ["/api/v1/products", "/admin/v1/projection", "/nowhere", "/metrics", "/ops"] {
        let reply = get(base, path).await;
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(reply.headers.contains_key("retry-after") && reply.headers.contains_key("x-request-id"), "{reply:?}");
    }
    put(base, "/api/v1/balances/1", json!({"amount": 1})).await.refused(503, "SERVICE_UNAVAILABLE");
    running.assert_alive();
}

pub async fn becomes_ready(running: &mut Running, base: &str) {
    until("the process is ready", async || {
        running.assert_alive();
        let ready = harness::client().get(format!("{base}/readyz")).send().await.ok()?;
        (ready.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn start_waits_when_redis_or_postgres_stopped() {
    let mut servers = servers().await;
    for role in ["serve", "project"] {
        for (redis, postgres, words) in
            [(true, false, &["Redis"][..]), (false, true, &["PostgreSQL"]), (true, true, &["PostgreSQL", "Redis"])]
        {
            if redis {
                servers.redis.kill().await.unwrap();
            }
            if postgres {
                servers.postgres.kill().await.unwrap();
            }
            let (mut running, base) = start(&servers, role, &format!("{role}-{redis}-{postgres}"));
            waits_for(&mut running, &base, words).await;
            if redis {
                servers.redis.restart().await.unwrap();
            }
            if redis && postgres {
                waits_for(&mut running, &base, &["PostgreSQL"]).await;
            }
            if postgres {
                servers.postgres.restart().await.unwrap();
            }
            becomes_ready(&mut running, &base).await;
            if role == "serve" {
                put(&base, "/api/v1/balances/1", json!({"amount": 1})).await.ok();
            }
            running.stop().await;
        }
    }
    servers.end().await;
}

#[tokio::test]
async fn start_waits_when_postgres_silent() {
    let mut servers = servers().await;
    servers.postgres.pause().unwrap();
    let (mut running, base) = start(&servers, "serve", "silent");
    waits_for(&mut running, &base, &["no answer within 2s"]).await;
    servers.postgres.resume().unwrap();
    becomes_ready(&mut running, &base).await;
    running.stop().await;
    servers.end().await;
}

#[tokio::test]
async fn start_waits_when_redis_loading() {
    let mut servers = servers().await;
    // Twenty kilobytes that can't be compressed. Redis takes half a second to load each, and replies to clients in between.
    let mut redis = harness::raw_redis(&servers.redis_url).await;
    let names: Vec<String> = (0..100).map(|n| format!("filler-{n}")).collect();
    let mut fill = redis::pipe();
    for name in &names {
        let noise: String = (0..6).map(|_| uuid::Uuid::new_v4().to_string()).collect();
        fill.set(name, noise).ignore();
    }
    let before = redis::cmd("INFO").arg("persistence").query_async::<redis::InfoDict>(&mut redis).await.unwrap();
    let before: u64 = before.get("aof_rewrites").unwrap();
    let _: () = fill.cmd("BGREWRITEAOF").ignore().query_async(&mut redis).await.unwrap();
    until("the keys are in the base file", async || {
        let info: redis::InfoDict = redis::cmd("INFO").arg("persistence").query_async(&mut redis).await.unwrap();
        let number = |name: &str| info.get::<u64>(name).unwrap();
        let done = number("aof_rewrite_in_progress") == 0 && number("aof_rewrite_scheduled") == 0;
        (done && number("aof_rewrites") > before).then_some(())
    })
    .await;
    servers.redis.kill().await.unwrap();
    servers.redis.add_args(&["--key-load-delay", "500000", "--loading-process-events-interval-bytes", "1024"]);
    let (mut running, base) = {
        let restarting = servers.redis.restart();
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let mut command = crate::process::binary::program(&["serve"]);
        command.env("REDIS_URL", &servers.redis_url).env("DATABASE_URL", &servers.postgres_url);
        command.env("BIND_ADDR", &address).env("RUST_LOG", "info").env("DRAIN_DELAY_SECONDS", "0");
        let mut running = Running::start(&mut command, &servers.dir, "loading");
        let base = format!("http://{address}");
        let (restarted, ()) = tokio::join!(restarting, waits_for(&mut running, &base, &["Redis is loading its data"]));
        restarted.unwrap();
        (running, base)
    };
    becomes_ready(&mut running, &base).await;
    running.stop().await;
    let mut redis = harness::raw_redis(&servers.redis_url).await;
    let _: i64 = redis::cmd("DEL").arg(&names).query_async(&mut redis).await.unwrap();
    servers.end().await;
}

/// During a failover `DATABASE_URL` leads to a standby that is promoted later.
#[tokio::test]
async fn start_waits_when_postgres_is_standby() {
    let mut servers = servers().await;
    servers.postgres.stop().await.unwrap();
    std::fs::write(servers.postgres.data_dir().join("standby.signal"), "").unwrap();
    servers.postgres.restart().await.unwrap();
    let (mut running, base) = start(&servers, "serve", "standby");
    waits_for(&mut running, &base, &["it is a standby"]).await;
    let mut admin = sqlx::PgConnection::connect(&servers.postgres_url).await.unwrap();
    let promoted: bool = sqlx::query_scalar("SELECT pg_promote()").fetch_one(&mut admin).await.unwrap();
    assert!(promoted);
    admin.close().await.unwrap();
    becomes_ready(&mut running, &base).await;
    put(&base, "/api/v1/balances/1", json!({"amount": 1})).await.ok();
    running.stop().await;
    servers.end().await;
}

#[tokio::test]
async fn stop_ends_start_when_redis_stopped() {
    let mut servers = servers().await;
    servers.redis.kill().await.unwrap();
    for role in ["serve", "project"] {
        let (mut running, base) = start(&servers, role, role);
        waits_for(&mut running, &base, &["Redis"]).await;
        running.signal(Signal::TERM);
        let ended = tokio::time::timeout(Duration::from_secs(60), running.ended()).await.unwrap();
        assert!(ended.success(), "{}", running.err());
    }
    servers.redis.restart().await.unwrap();
    let (mut running, base) = start(&servers, "serve", "last");
    becomes_ready(&mut running, &base).await;
    running.stop().await;
    servers.end().await;
}

/// A wrong setting ends the start with an error, also while the other store is down.
#[tokio::test]
async fn wrong_setting_ends_start_when_other_store_stopped() {
    let mut servers = servers().await;
    servers.redis.kill().await.unwrap();
    let wrong = servers.postgres_url.replacen("firstcome:", "nobody:", 1);
    let (status, output) = run(servers.role(&["serve"]).env("DATABASE_URL", &wrong)).await;
    assert!(status.code() == Some(1) && output.contains("does not let us in"), "{output}");
    let missing = servers.postgres_url.replacen("/postgres?", "/missing?", 1);
    let (status, output) = run(servers.role(&["serve"]).env("DATABASE_URL", &missing)).await;
    assert!(status.code() == Some(1) && output.contains("no such database"), "{output}");
    servers.redis.restart().await.unwrap();
    servers.postgres.kill().await.unwrap();
    let (status, output) = run(servers.role(&["serve"]).env("REDIS_URL", servers.redis.url())).await;
    assert!(status.code() == Some(1) && output.contains("REDIS_URL"), "{output}");
    servers.postgres.restart().await.unwrap();
    let (mut running, base) = start(&servers, "serve", "last");
    becomes_ready(&mut running, &base).await;
    running.stop().await;
    servers.end().await;
}

/// Puts Redis back to what it was before a decision that PostgreSQL has, while no process runs.
async fn restored_redis(servers: &mut Servers, ack: &str) {
    let copy = servers.dir.path().join("copy");
    for moment in ["before", "after"] {
        let (mut serve, base) = start_with(servers, "serve", moment, &[("ACK", ack)]);
        becomes_ready(&mut serve, &base).await;
        post(&base, "/admin/v1/users", json!({"userName": "A"})).await.created();
        let product = json!({"productName": "P", "price": 5, "stockQuantity": 5, "category": "SHOES"});
        post(&base, "/admin/v1/products", product).await.created();
        serve.stop().await;
        servers.redis.stop().await.unwrap();
        if moment == "before" {
            copy_dir(&servers.redis.data_dir(), &copy);
        } else {
            copy_dir(&copy, &servers.redis.data_dir());
        }
        servers.redis.restart().await.unwrap();
    }
}

/// No process is left that used Redis before it lost decisions: one that starts recovers it, as a running one would.
#[tokio::test]
async fn start_waits_and_recovers_when_redis_lost_decisions() {
    for (role, ack, outcome) in [("serve", "redis", "WITHHELD"), ("project", "postgres", "COMPLETE")] {
        let mut servers = Servers::start().await;
        let (status, output) = run(&mut servers.role(&["migrate"])).await;
        assert!(status.success(), "{output}");
        restored_redis(&mut servers, ack).await;
        let mut manual = start_with(&servers, role, "manual", &[("ACK", ack), ("RECOVERY", "manual")]).0;
        assert_eq!(manual.ended().await.code(), Some(1));
        let refusal = "Redis lost decisions that were acknowledged, and serving on would contradict them";
        assert!(manual.err().contains(refusal) && manual.err().contains("firstcome rebuild"), "{}", manual.err());
        let frozen = redis::cmd("HEXISTS").arg("{p0}:meta").arg("frozen").to_owned();
        let frozen: bool = frozen.query_async(&mut harness::raw_redis(&servers.redis_url).await).await.unwrap();
        assert!(!frozen, "a start that is refused changes nothing");

        let (mut running, base) =
            start_with(&servers, role, "recovers", &[("ACK", ack), ("RECOVERY_WAIT_SECONDS", "0")]);
        if ack == "redis" {
            // It waits for processes that know more.
            until("it says why it is not ready", async || {
                running.assert_alive();
                let ready = harness::client().get(format!("{base}/readyz")).send().await.ok()?;
                let (status, text) = (ready.status(), ready.text().await.ok()?);
                (status == 503 && text.contains("acknowledged decisions are lost")).then_some(())
            })
            .await;
        }
        becomes_ready(&mut running, &base).await;
        running.stop().await;
        let (mut serve, base) = start_with(&servers, "serve", "afterwards", &[("ACK", ack)]);
        becomes_ready(&mut serve, &base).await;
        assert_eq!(get(&base, "/admin/v1/recoveries").await.ok()["content"][0]["outcome"], outcome);
        put(&base, "/api/v1/balances/1", json!({"amount": 1})).await.ok();
        serve.stop().await;
        servers.end().await;
    }
}
