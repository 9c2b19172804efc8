//! Faults of whole machines: one is lost and another one, which lags, takes its place; one loses its power; a clock is wrong.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use firstcome::dev::RedisServer;
use reqwest::Method;
use serde_json::json;

use super::{
    history::{Random, now},
    nemesis::{Chronicle, HandRebuild},
    proxy::{Mode, Upstream},
    shop::{self, Shop, replicate},
};
use crate::{
    redis::addresses::elected,
    support::{
        harness::{self, ADMIN, until},
        preload::Disk,
    },
};

/// How wrong a clock is, in milliseconds.
const SKEW_MS: i64 = 60_000;

/// How long before its end a master may not have sent its decisions to a replica that has no fault, in nanoseconds.
const MAX_UNSENT: u64 = 3_000_000_000;

/// How long a recovery is awaited: a promotion without a loss needs none.
const MAX_WAIT_FOR_RECOVERY: Duration = Duration::from_secs(8);

/// The disk of a server of Redis with [`Options::power_losses`](super::options::Options::power_losses), by its data directory.
pub fn disk(data: &Path) -> Disk {
    Disk::new(data.with_file_name("synced"))
}

/// From now on the replica gets nothing more. Half of the time PostgreSQL gets nothing more either.
pub async fn begin_lag(shop: &Shop, random: &mut Random) -> u64 {
    let began = now();
    let mut replica = harness::raw_redis(&shop.replica.as_ref().unwrap().url()).await;
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut replica).await.unwrap();
    if random.percent(50) {
        shop.to_postgres.set(Mode::Stall);
    }
    began
}

/// The master is gone, and the replica takes its place; then the old one comes back as its replica.
pub async fn fail_over(shop: &mut Shop, began: u64, chronicle: &mut Chronicle) {
    shop.redis.kill().await.unwrap();
    let ended = now();
    chronicle.lags.push((began, ended));
    chronicle.kills.push(ended);
    let replica = shop.replica.take().unwrap();
    shop.to_redis.set_upstream(Upstream::Unix(replica.socket_path()));
    shop.to_redis.cut();
    shop.to_postgres.set(Mode::Pass);
    let mut old = std::mem::replace(&mut shop.redis, replica);
    old.restart().await.unwrap();
    replicate(&old, &shop.redis).await;
    shop.replica = Some(old);
}

/// Kills all services but one as soon as one of them recovers a partition, and starts them again. (If all of them end while every
/// partition is lost, a start is refused: an operator decides.)
pub async fn interrupt_recovery(shop: &mut Shop, chronicle: &mut Chronicle, random: &mut Random) {
    let db = shop.db().await;
    let running = async || -> Vec<i32> {
        let sql = "SELECT partition FROM recoveries WHERE outcome = 'RUNNING'";
        sqlx::query_scalar(sql).fetch_all(db.get_postgres_connection_pool()).await.unwrap()
    };
    let survivor = random.within(0, shop.services.len() as i64 - 1) as usize;
    let victims: Vec<usize> = (0..shop.services.len()).filter(|number| *number != survivor).collect();
    let begun = Instant::now();
    while begun.elapsed() < MAX_WAIT_FOR_RECOVERY {
        if running().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        for number in &victims {
            shop.kill(*number).await;
        }
        chronicle.kills.push(now());
        println!("  services {victims:?} end while partitions {:?} are recovered", running().await);
        for number in &victims {
            shop.start(*number).await.unwrap();
        }
        break;
    }
    db.close().await.unwrap();
}

/// The master is gone. Its replica lacks what the master had not sent.
pub async fn lose_master(shop: &mut Shop, chronicle: &mut Chronicle) {
    shop.redis.kill().await.unwrap();
    let ended = now();
    chronicle.lags.push((ended - MAX_UNSENT, ended));
    chronicle.kills.push(ended);
}

/// Waits until the Sentinels have promoted the replica; then the old master comes back, and they make it a replica. Where disks or
/// processors stand still for a second, they take the promoted one for dead, and switch back: what it decided is lost.
pub async fn await_switch(shop: &mut Shop, chronicle: &mut Chronicle) {
    let killed = now();
    let replica = shop.replica.take().unwrap();
    // A promotion that takes too long is undone, in favour of an old master that has come back too early.
    for sentinel in &shop.sentinels {
        elected(sentinel, std::slice::from_ref(&replica)).await;
    }
    let mut old = std::mem::replace(&mut shop.redis, replica);
    old.restart().await.unwrap();
    let undone = until("one of two servers replicates the other", async || {
        if replicates(&old).await {
            return Some(false);
        }
        replicates(&shop.redis).await.then_some(true)
    })
    .await;
    if undone {
        println!("  the Sentinels switch back");
        std::mem::swap(&mut shop.redis, &mut old);
        chronicle.lags.push((killed, now()));
    }
    shop.replica = Some(old);
}

/// Whether a server is the replica of one that it reaches.
async fn replicates(server: &RedisServer) -> bool {
    let client = redis::Client::open(server.url()).unwrap();
    let ask = async || -> redis::RedisResult<String> {
        let mut link = client.get_multiplexed_async_connection().await?;
        redis::cmd("INFO").arg("replication").query_async(&mut link).await
    };
    // An error is no reply: a Sentinel closes the connections of a server that it gives another role.
    ask().await.is_ok_and(|info| info.contains("master_link_status:up"))
}

/// The standby gets nothing more.
pub async fn begin_postgres_lag(shop: &Shop) {
    shop.standby.as_ref().unwrap().cut().await;
}

/// The primary is gone, and the standby takes its place.
pub async fn fail_over_postgres(shop: &mut Shop, chronicle: &mut Chronicle) {
    shop.postgres.kill().await.unwrap();
    chronicle.kills.push(now());
    let standby = shop.standby.take().unwrap().promote().await;
    shop.to_postgres.set_upstream(Upstream::Unix(standby.socket_dir().join(".s.PGSQL.5432")));
    shop.to_postgres.cut();
    shop.postgres = standby;
}

/// Redis's machine loses its power: `kept` says how much is left of a file, given the length that was flushed and the whole length.
/// Returns the lost bytes.
pub async fn lose_power(redis: &mut RedisServer, kept: impl FnMut(u64, u64) -> u64) -> u64 {
    redis.kill().await.unwrap();
    disk(&redis.data_dir()).lose_power(&redis.data_dir().join("appendonlydir"), kept)
}

/// Replaces a service by one whose clock is wrong.
pub async fn skew(shop: &mut Shop, service: usize, random: &mut Random) {
    shop.kill(service).await;
    shop.services[service].clock_offset_ms = *random.pick(&[-SKEW_MS, SKEW_MS]);
    shop.start(service).await.unwrap();
}

/// Rebuilds a partition by hand, and kills the rebuild in the middle.
pub async fn break_rebuild(shop: &Shop, random: &mut Random) -> HandRebuild {
    let partition = random.within(0, i64::from(shop.options.partitions) - 1) as u16;
    let began = now();
    let mut command = shop.rebuild(partition);
    let mut child = command.arg("--lost-at-most").arg("0").spawn().unwrap();
    // A rebuild takes about so long.
    tokio::time::sleep(Duration::from_millis(random.within(0, 1500) as u64)).await;
    let killed = child.try_wait().unwrap().is_none();
    child.kill().await.unwrap();
    HandRebuild { partition, began, ended: 0, killed }
}

/// Rebuilds the partition to the end, and puts back on sale what that withholds: nothing was lost.
pub async fn finish_rebuild(shop: &Shop, rebuild: HandRebuild, chronicle: &mut Chronicle) {
    until("the partition is rebuilt", async || {
        let output = shop.rebuild(rebuild.partition).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            println!("  a rebuild is refused: {}", said.lines().last().unwrap_or(""));
        }
        output.status.success().then_some(())
    })
    .await;
    chronicle.rebuilds.push(HandRebuild { ended: now(), ..rebuild });
    shop.up().await;
    let http = shop::client();
    until("nothing is withheld", async || {
        let url = format!("{}/admin/v1/withheld/release", shop.bases()[0]);
        let reply = http.request(Method::POST, url).bearer_auth(ADMIN).json(&json!({})).send().await.ok()?;
        let left: serde_json::Value = reply.json().await.ok()?;
        (left["products"] == json!([]) && left["coupons"] == json!([])).then_some(())
    })
    .await;
}
