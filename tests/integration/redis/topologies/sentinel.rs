//! A master behind Sentinels.

use firstcome::{
    config::{Ack, DurabilityConfig, RedisConfig},
    dev::{RedisServer, ScratchDir},
    model::RecoveryOutcome,
    postgres::recoveries,
};

use super::{load::Load, loaded, send};
use crate::{
    redis::{
        addresses::{elected, know_each_other, sentinel_url, sentinels},
        failover::{in_sync, port, server},
        replicas::{guarded, until_online},
    },
    support::harness::{self, Options, TestApp, fresh_database},
};

/// A master, its replicas, and the Sentinels that know them.
struct Watched {
    dir: ScratchDir,
    master: RedisServer,
    replicas: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

/// Loaded, at the address of the master that these Sentinels watch.
fn loaded_behind(sentinels: &[RedisServer], ack: Ack) -> Options {
    let options = loaded(ack);
    let at = harness::redis_config(&sentinel_url(sentinels));
    Options { redis: Some(RedisConfig { redis_timeout_ms: options.redis_timeout_ms, ..at }), ..options }
}

impl Watched {
    /// `is_guarded`: the servers refuse writes without a replica.
    async fn start(replicas: usize, is_guarded: bool) -> Watched {
        let dir = ScratchDir::new().unwrap();
        let new = async |name: &str, master: Option<&RedisServer>| match is_guarded {
            true => guarded(&dir, name, master).await,
            false => server(&dir, name, master).await,
        };
        let master = new("master", None).await;
        let mut others = Vec::new();
        for n in 0..replicas {
            let replica = new(&format!("replica-{n}"), Some(&master)).await;
            in_sync(&master, &replica).await;
            others.push(replica);
        }
        until_online(&master, replicas).await;
        let sentinels = sentinels(&dir, &port(&master)).await;
        know_each_other(&sentinels, replicas).await;
        Watched { dir, master, replicas: others, sentinels }
    }
}

/// With `ACK=replica`. The machine of the master also has one of the Sentinels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_kept_when_master_and_sentinel_killed_under_load() {
    let Watched { dir, master, mut replicas, mut sentinels } = Watched::start(2, true).await;
    let options = loaded_behind(&sentinels, Ack::Replica);
    let mut test = TestApp::on(options, dir, master, fresh_database().await).await;
    test.app.watch(true);
    let load = Load::new(&test, 6).await;
    let (redis, first) = (&mut test.redis, &mut sentinels[0]);
    let requests = load
        .during(async || {
            load.progress().await;
            redis.kill().await.unwrap();
            first.kill().await.unwrap();
            load.progress().await;
        })
        .await;
    let promoted = elected(&sentinels[1], &replicas).await;
    test.redis = replicas.swap_remove(promoted);
    load.assert_kept(&test, &requests).await;
    let withheld = test.get("/admin/v1/withheld").await.ok();
    assert_eq!(withheld["products"].as_array().unwrap().len(), 0, "{withheld}");
    test.finish().await;
}

/// The machine of the master hangs: its connections stay open, and nothing answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_kept_when_master_and_sentinel_hang_under_load() {
    let Watched { dir, master, mut replicas, mut sentinels } = Watched::start(2, true).await;
    let options = loaded_behind(&sentinels, Ack::Replica);
    let mut test = TestApp::on(options, dir, master, fresh_database().await).await;
    test.app.watch(true);
    let load = Load::new(&test, 6).await;
    let (redis, first) = (&mut test.redis, &mut sentinels[0]);
    let requests = load
        .during(async || {
            load.progress().await;
            redis.pause().unwrap();
            first.pause().unwrap();
            load.progress().await;
        })
        .await;
    let promoted = elected(&sentinels[1], &replicas).await;
    test.redis = replicas.swap_remove(promoted);
    load.assert_kept(&test, &requests).await;
    test.finish().await;
}

/// With `ACK=redis`, and a replica that lacks the last decisions: PostgreSQL has most of them, and the log of recoveries bounds the
/// others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losses_named_when_lagging_replica_elected_under_load() {
    let Watched { dir, master, mut replicas, sentinels } = Watched::start(1, false).await;
    let mut options = loaded_behind(&sentinels, Ack::Redis);
    options.durability = DurabilityConfig { recovery_wait_seconds: 0, ..options.durability };
    let mut test = TestApp::on(options, dir, master, fresh_database().await).await;
    test.app.watch(true);
    let load = Load::new(&test, 6).await;
    let requests = load
        .during(async || {
            load.progress().await;
            // The replica can't sign in again.
            send(&replicas[0], "CONFIG SET masterauth wrong").await;
            send(&replicas[0], "CLIENT KILL TYPE master").await;
            load.progress().await;
            test.redis.kill().await.unwrap();
            load.progress().await;
        })
        .await;
    test.redis = replicas.swap_remove(0);
    let lost = load.lost(&requests).await as i64;
    let log = recoveries::page(&test.db, 0, 100).await.unwrap().items;
    assert!(log.iter().any(|one| one.outcome != RecoveryOutcome::Failed), "{log:?}");
    let missing =
        log.iter().filter_map(|one| one.missing()).map(|(first, last)| last.unwrap() - first + 1).sum::<i64>();
    println!("{lost} requests are gone, {missing} decisions are missing");
    assert!(lost <= missing, "{lost} requests are gone, and the log names {missing} decisions: {log:?}");
    test.finish().await;
}
