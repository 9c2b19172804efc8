//! One address that moves to another server, as that of a managed service.

use firstcome::{config::Ack, dev::RedisServer};

use super::{load::Load, loaded, send};
use crate::{
    redis::{
        failover::{info, port},
        replicas::{replicated, until_online},
    },
    support::harness::{Options, TestApp, raw_redis, until},
};

/// A master behind a proxy, with two replicas; every reply waits for one of them.
async fn managed() -> (TestApp, Vec<RedisServer>) {
    let (test, replicas) = replicated(Options { proxied: true, ..loaded(Ack::Replica) }, 2).await;
    test.app.watch(true);
    (test, replicas)
}

/// What the provider does: it promotes the replica that has more, and moves the address.
async fn promote(test: &TestApp, replicas: &[RedisServer]) -> usize {
    let mut offsets = Vec::new();
    for replica in replicas {
        let info = info(&mut raw_redis(&replica.url()).await, "replication").await;
        let offset = info.lines().find_map(|line| line.strip_prefix("slave_repl_offset:")?.trim().parse::<i64>().ok());
        offsets.push(offset.unwrap());
    }
    let promoted = usize::from(offsets[1] > offsets[0]);
    send(&replicas[promoted], "REPLICAOF NO ONE").await;
    send(&replicas[1 - promoted], &format!("REPLICAOF 127.0.0.1 {}", port(&replicas[promoted]))).await;
    until_online(&replicas[promoted], 1).await;
    test.proxy.as_ref().unwrap().lead_to(replicas[promoted].socket_path());
    promoted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_kept_when_master_killed_and_address_moved_under_load() {
    let (mut test, mut replicas) = managed().await;
    let (load, mut promoted) = (Load::new(&test, 6).await, 0);
    let requests = load
        .during(async || {
            load.progress().await;
            test.redis.kill().await.unwrap();
            for replica in &replicas {
                let mut link = raw_redis(&replica.url()).await;
                until("the replica has read everything", async || {
                    info(&mut link, "replication").await.contains("master_link_status:down").then_some(())
                })
                .await;
            }
            promoted = promote(&test, &replicas).await;
            load.progress().await;
        })
        .await;
    test.redis = replicas.swap_remove(promoted);
    load.assert_kept(&test, &requests).await;
    test.finish().await;
}

/// The master hangs with its connections open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_kept_when_master_hangs_and_address_moved_under_load() {
    let (mut test, mut replicas) = managed().await;
    let (load, mut promoted) = (Load::new(&test, 6).await, 0);
    let requests = load
        .during(async || {
            load.progress().await;
            test.redis.pause().unwrap();
            promoted = promote(&test, &replicas).await;
            load.progress().await;
        })
        .await;
    test.redis = replicas.swap_remove(promoted);
    load.assert_kept(&test, &requests).await;
    test.finish().await;
}
