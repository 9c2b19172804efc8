//! Addresses that can't keep the promises, each refused at start with its reason.

use std::collections::HashMap;

use firstcome::{
    config::{Ack, DurabilityConfig, RedisConfig},
    dev::{RedisServer, ScratchDir},
};

use super::send;
use crate::{
    redis::{
        addresses::{name_another, refusal, sentinel, sentinel_url, signed_in},
        cluster::{cluster, replica_of},
        failover::{in_sync, port, server},
        replicas::{self, until_online},
    },
    support::harness::{self, Options, TestApp, fresh_database, raw_redis, until},
};

/// The settings of a service that asks these Sentinels.
fn asking(sentinels: &[RedisServer]) -> Options {
    let redis = RedisConfig { redis_timeout_ms: 5_000, ..harness::redis_config(&sentinel_url(sentinels)) };
    Options { redis: Some(redis), ..Options::default() }
}

/// A test app that asks the Sentinels, on a master of its own.
async fn served(dir: ScratchDir, master: RedisServer, sentinels: &[RedisServer]) -> TestApp {
    let test = TestApp::on(asking(sentinels), dir, master, fresh_database().await).await;
    test.app.watch(false);
    test
}

/// Why another process does not start beside the test app.
async fn refused(test: &TestApp) -> String {
    let Err(error) = test.open_instance(&test.options).await else { panic!("it starts") };
    format!("{error:#}")
}

async fn keys(server: &RedisServer) -> i64 {
    redis::cmd("DBSIZE").query_async(&mut raw_redis(&server.url()).await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_refused_when_sentinels_watch_two_masters_under_one_name() {
    let dir = ScratchDir::new().unwrap();
    let (one, other) = (server(&dir, "one", None).await, server(&dir, "other", None).await);
    let sentinels = [sentinel(&dir, 0, &port(&one)).await, sentinel(&dir, 1, &port(&other)).await];
    for sentinel in &sentinels {
        let mut link = signed_in(sentinel).await;
        until("the Sentinel has reached its master", async || {
            let ask = redis::cmd("SENTINEL").arg("MASTER").arg("mymaster").clone();
            let master: HashMap<String, String> = ask.query_async(&mut link).await.unwrap();
            (!master["runid"].is_empty()).then_some(())
        })
        .await;
    }
    let reason = refusal(asking(&sentinels).redis.unwrap()).await;
    assert!(reason.contains("do not agree on the master mymaster"), "{reason}");
    for server in [&one, &other] {
        assert!(reason.contains(&format!("127.0.0.1:{}", port(server))), "{reason}");
    }
}

/// The Sentinels fail over into another store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_store_refused_when_sentinels_name_its_master() {
    let dir = ScratchDir::new().unwrap();
    let theirs = TestApp::on(
        Options::default(),
        ScratchDir::new().unwrap(),
        server(&dir, "theirs", None).await,
        fresh_database().await,
    )
    .await;
    theirs.user(5).await;
    let before = theirs.snapshot().await;
    let ours = server(&dir, "ours", None).await;
    let sentinels = [sentinel(&dir, 0, &port(&ours)).await];
    let test = served(dir, ours, &sentinels).await;
    let user = test.user(0).await;
    test.put_charge(user, 1).await.ok();
    name_another(&sentinels, &theirs.redis).await;
    let reason = until("the other store is refused", async || {
        test.put_charge(user, 1).await;
        Some(test.get("/readyz").await.text).filter(|text| text.contains("belongs to store"))
    })
    .await;
    assert!(reason.contains("this Redis belongs to store"), "{reason}");
    test.put_charge(user, 1).await.refused(503, "SERVICE_UNAVAILABLE");
    let reason = refused(&test).await;
    assert!(reason.contains("they do not belong together"), "{reason}");
    assert!(before == theirs.snapshot().await, "nothing was written into the other store");
    name_another(&sentinels, &test.redis).await;
    until("the service is back", async || (test.put_charge(user, 1).await.status == 200).then_some(())).await;
    theirs.finish().await;
    test.finish().await;
}

/// A running service stays with its master, which still is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_refused_and_master_kept_when_sentinels_name_a_replica() {
    let dir = ScratchDir::new().unwrap();
    let master = server(&dir, "master", None).await;
    let replica = server(&dir, "replica", Some(&master)).await;
    in_sync(&master, &replica).await;
    let reason = refusal(harness::redis_config(&replica.url())).await;
    assert!(reason.contains("REDIS_URL leads to a slave, which can't be written to"), "{reason}");
    let sentinels = [sentinel(&dir, 0, &port(&master)).await];
    let test = served(dir, master, &sentinels).await;
    let user = test.user(0).await;
    name_another(&sentinels, &replica).await;
    let reason = refused(&test).await;
    let named = format!("the Sentinels name 127.0.0.1:{} as the master mymaster", port(&replica));
    assert!(reason.contains(&named) && reason.contains("leads to a slave"), "{reason}");
    for _ in 0..3 {
        test.store.follow_sentinels().await;
        test.put_charge(user, 1).await.ok();
    }
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_refused_when_no_sentinel_knows_the_name() {
    let dir = ScratchDir::new().unwrap();
    let master = server(&dir, "master", None).await;
    let sentinels = [sentinel(&dir, 0, &port(&master)).await];
    let url = sentinel_url(&sentinels).replace("/mymaster", "/shop");
    let reason = refusal(harness::redis_config(&url)).await;
    assert!(reason.contains("no Sentinel knows the master shop"), "{reason}");
    // A server in the place of a Sentinel.
    let reason =
        refusal(harness::redis_config(&format!("redis+sentinel://127.0.0.1:{}/mymaster", port(&master)))).await;
    assert!(reason.contains("no Sentinel names the master mymaster"), "{reason}");
    assert_eq!(keys(&master).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_refused_when_one_master_of_cluster_lacks_replicas() {
    let dir = ScratchDir::new().unwrap();
    let args = ["--repl-diskless-sync-delay", "0"];
    let nodes = cluster(&dir, &args).await;
    let mut others = Vec::new();
    for (n, node) in nodes.iter().enumerate().take(2) {
        others.push(replica_of(&dir, 3 + n, &args, node).await);
        until_online(node, 1).await;
        send(node, "CONFIG SET min-replicas-to-write 1").await;
    }
    let durability = DurabilityConfig { ack: Ack::Replica, ..DurabilityConfig::default() };
    let options = Options { partitions: 6, ..Options::default() };
    let reason = replicas::refusal_of(&options, harness::redis_config(&nodes[0].url()), durability).await;
    assert!(reason.contains("this Redis has 0: start replicas of it"), "{reason}");
    assert!(reason.contains(&format!("127.0.0.1:{}", port(&nodes[2]))), "it names the server: {reason}");
}
