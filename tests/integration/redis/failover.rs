//! A Redis that its replica replaces while every connection stays open, and masters that refuse every write.

use std::time::{Duration, Instant};

use firstcome::dev::{self, RedisServer, ScratchDir};
use redis::aio::MultiplexedConnection;

use crate::{
    redis::script_failures::{Writes, config},
    support::harness::{Options, TestApp, fresh_database, raw_redis, until},
};

/// The bound of "within a second", for a machine that stalls.
const BOUND: Duration = Duration::from_secs(10);

/// A server with a port, which replicates from `master` if there is one.
pub async fn server(dir: &ScratchDir, name: &str, master: Option<&RedisServer>) -> RedisServer {
    let mut config = dev::RedisServerConfig::new(dir.path().join(name));
    config.port = Some(dev::free_port().unwrap());
    if let Some(master) = master {
        config.extra_args = vec!["--replicaof".to_owned(), "127.0.0.1".to_owned(), port(master)];
    }
    RedisServer::start(config).await.unwrap()
}

pub fn port(server: &RedisServer) -> String {
    server.url().trim_end_matches('/').rsplit(':').next().unwrap().to_owned()
}

pub async fn info(link: &mut MultiplexedConnection, section: &str) -> String {
    redis::cmd("INFO").arg(section).query_async(link).await.unwrap()
}

/// Waits until the replica has everything that its master has.
pub async fn in_sync(master: &RedisServer, replica: &RedisServer) {
    let (mut from, mut to) = (raw_redis(&master.url()).await, raw_redis(&replica.url()).await);
    let offset = |info: &str, name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<i64>().ok())
    };
    until("the replica is in sync", async || {
        let (there, here) = (info(&mut from, "replication").await, info(&mut to, "replication").await);
        let up = here.contains("master_link_status:up");
        let same = offset(&there, "master_repl_offset") <= offset(&here, "slave_repl_offset");
        (up && same).then_some(())
    })
    .await;
}

/// A test app that reaches its Redis through a proxy, and a replica in sync with it.
pub async fn replicated(options: Options) -> (TestApp, RedisServer) {
    let dir = ScratchDir::new().unwrap();
    let master = server(&dir, "master", None).await;
    let replica = server(&dir, "replica", Some(&master)).await;
    let test = TestApp::on(Options { proxied: true, ..options }, dir, master, fresh_database().await).await;
    (test, replica)
}

/// Exchanges the roles of the two without closing a connection: only new connections lead to the new master. Returns the old one.
async fn switch(test: &mut TestApp, replica: RedisServer) -> RedisServer {
    in_sync(&test.redis, &replica).await;
    test.proxy.as_ref().unwrap().lead_to(replica.socket_path());
    let (mut old, mut new) = (raw_redis(&test.redis.url()).await, raw_redis(&replica.url()).await);
    let replica_of = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).to_owned();
    replica_of("NO", "ONE").exec_async(&mut new).await.unwrap();
    replica_of("127.0.0.1", &port(&replica)).exec_async(&mut old).await.unwrap();
    std::mem::replace(&mut test.redis, replica)
}

/// The number of the service's connections at a server: without this one and those of replicas.
async fn connections(server: &RedisServer) -> usize {
    let list = redis::cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal").to_owned();
    let list: String = list.query_async(&mut raw_redis(&server.url()).await).await.unwrap();
    list.lines().count() - 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_master_left_within_second_when_connections_open() {
    let (mut test, replica) = replicated(Options { project: true, ..Options::default() }).await;
    let user = test.user(0).await;
    let path = format!("/api/v1/balances/{user}");
    for _ in 0..20 {
        test.put_charge(user, 1).await.ok();
    }
    let old = switch(&mut test, replica).await;
    let (demoted, mut refused) = (Instant::now(), 0);
    loop {
        let ready = test.get("/readyz").await.status == 200;
        let reply = test.put_charge(user, 1).await;
        if reply.status == 200 {
            break;
        }
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(!ready, "ready while it refuses writes");
        refused += 1;
        assert!(demoted.elapsed() < BOUND, "{refused} writes refused");
    }
    println!("{refused} writes refused in {:?}", demoted.elapsed());
    for _ in 0..20 {
        test.put_charge(user, 1).await.ok();
    }
    assert_eq!(test.get(&path).await.ok()["balance"], 41);
    test.get("/readyz").await.ok();
    until("the old connections are closed", async || (connections(&old).await == 0).then_some(())).await;
    test.finish().await;
}

/// Without requests, the watch detects the demotion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn demoted_master_left_when_process_idle() {
    let (mut test, replica) = replicated(Options::default()).await;
    let user = test.user(5).await;
    test.app.watch(false);
    let old = switch(&mut test, replica).await;
    let demoted = Instant::now();
    until("the old master is left", async || (connections(&old).await == 0).then_some(())).await;
    assert!(demoted.elapsed() < BOUND, "{:?}", demoted.elapsed());
    test.put_charge(user, 5).await.ok();
    test.finish().await;
}

/// A demoted master lacks the decisions of the new one: the service does not read from it either.
#[tokio::test]
async fn demoted_master_not_read_when_no_other_found() {
    let writes = Writes::on(TestApp::start().await).await;
    let (mut redis, mut again) = (writes.test.raw().await, writes.test.raw().await);
    let degrade = async || {
        let away = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).to_owned();
        let _: () = away.query_async(&mut redis).await.unwrap();
        writes.test.engine.check().await;
        writes.assert_missing_unavailable().await;
        writes.test.get(&format!("/api/v1/balances/{}", writes.user)).await.refused(503, "SERVICE_UNAVAILABLE");
        let reply = writes.test.get("/readyz").await;
        assert!(reply.text.contains("slave, which can't be written to"), "{}", reply.text);
    };
    let restore = async || {
        let _: () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut again).await.unwrap();
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    writes.test.finish().await;
}

/// A master that refuses writes is read; `/readyz` reports that its partitions can't decide.
#[tokio::test]
async fn readiness_names_reason_when_writes_refused() {
    for (setting, value, back, code) in
        [("min-replicas-to-write", "1", "0", "NOREPLICAS"), ("maxmemory", "1", "0", "OOM")]
    {
        let writes = Writes::on(TestApp::start().await).await;
        let degrade = async || {
            config(&writes.test, setting, value).await;
            writes.test.engine.check().await;
            writes.assert_reads_served().await;
            let reply = writes.test.get("/readyz").await;
            reply.refused(503, "SERVICE_UNAVAILABLE");
            assert!(reply.text.contains("refuses every write") && reply.text.contains(code), "{}", reply.text);
        };
        writes.assert_writes_unavailable(degrade, async || config(&writes.test, setting, back).await).await;
        writes.test.get("/readyz").await.ok();
        writes.test.finish().await;
    }
}
