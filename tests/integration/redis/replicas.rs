//! `ACK=replica`: no reply before replicas have the decision, and none is lost when one of them takes over.

use firstcome::{
    app::App,
    config::{Ack, DurabilityConfig, RedisConfig, RedisDurability},
    dev::{self, RedisServer, ScratchDir},
    model::{AcknowledgedPositions, Call, Clock, Partition, UserId},
};
use reqwest::Method;
use serde_json::json;

use crate::{
    redis::{
        failover::{in_sync, info, port, server},
        script_failures::Writes,
    },
    support::harness::{self, Options, Reply, START, TestApp, fresh_database, postgres_url, raw_redis, until},
};

/// Replies wait for one replica, this long.
fn waiting(ack_replica_timeout_ms: u64) -> DurabilityConfig {
    DurabilityConfig { ack: Ack::Replica, ack_replica_timeout_ms, ..DurabilityConfig::default() }
}

/// Longer than a machine stalls.
const PATIENT_MS: u64 = 300_000;

/// A server that refuses writes without a replica. A paused replica stays one.
pub async fn guarded(dir: &ScratchDir, name: &str, master: Option<&RedisServer>) -> RedisServer {
    let mut config = dev::RedisServerConfig::new(dir.path().join(name));
    config.port = Some(dev::free_port().unwrap());
    let (never, at_once) = ("3600", "0");
    let own = ["--min-replicas-to-write", "1", "--min-replicas-max-lag", never, "--repl-timeout", never];
    config.extra_args = own.into_iter().chain(["--repl-diskless-sync-delay", at_once]).map(str::to_owned).collect();
    if let Some(master) = master {
        config.extra_args.extend(["--replicaof".to_owned(), "127.0.0.1".to_owned(), port(master)]);
    }
    RedisServer::start(config).await.unwrap()
}

/// Until the master counts so many replicas.
pub async fn until_online(master: &RedisServer, replicas: usize) {
    let mut link = raw_redis(&master.url()).await;
    until("the replicas are online", async || {
        (info(&mut link, "replication").await.matches("state=online").count() == replicas).then_some(())
    })
    .await;
}

/// A test app on a master with this many replicas.
pub async fn replicated(options: Options, replicas: usize) -> (TestApp, Vec<RedisServer>) {
    let dir = ScratchDir::new().unwrap();
    let master = guarded(&dir, "master", None).await;
    let mut others = Vec::new();
    for n in 0..replicas {
        others.push(guarded(&dir, &format!("replica-{n}"), Some(&master)).await);
    }
    for replica in &others {
        in_sync(&master, replica).await;
    }
    until_online(&master, replicas).await;
    (TestApp::on(options, dir, master, fresh_database().await).await, others)
}

async fn charge(test: &TestApp, user: i64, key: &str) -> Reply {
    test.send(Method::PUT, &format!("/api/v1/balances/{user}"), Some(&json!({"amount": 1})), Some(key)).await
}

/// Repeats a charge under its key until it is acknowledged.
async fn charged(test: &TestApp, user: i64, key: &str) -> Reply {
    until("the charge is acknowledged", async || {
        let reply = charge(test, user, key).await;
        (reply.status != 503).then_some(reply)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_acknowledged_when_replica_has_it() {
    for partitions in [1, 3] {
        let options = Options { partitions, durability: waiting(PATIENT_MS), project: true, ..Options::default() };
        let (test, replicas) = replicated(options, 1).await;
        let writes = Writes::on(test).await;
        let mut there = raw_redis(&replicas[0].url()).await;
        for (method, path, body) in writes.all() {
            let method: Method = method.parse().unwrap();
            let first = writes.test.send(method.clone(), &path, Some(&body), Some(&path)).await;
            assert!(first.status.is_success(), "{path}: {}", first.text);
            // The reply was the wait: nothing else waits for the replica.
            for (here, confirmed) in writes.test.store.confirmed_positions() {
                let meta = format!("{{p{}}}:meta", here.0);
                let seq: Option<i64> = redis::cmd("HGET").arg(meta).arg("seq").query_async(&mut there).await.unwrap();
                assert!(seq.unwrap_or(0) >= confirmed.seq, "{path}: {seq:?} {confirmed:?}");
            }
            let again = writes.test.send(method, &path, Some(&body), Some(&path)).await;
            assert!(again.status.is_success() && again.replayed(), "{path}: {}", again.text);
        }
        let confirmed = writes.test.store.confirmed_positions();
        assert!(confirmed.iter().any(|(_, confirmed)| confirmed.seq > 0), "{confirmed:?}");
        writes.test.engine.check().await;
        assert_eq!(writes.test.get("/readyz").await.ok()["status"], "UP");
        writes.test.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcome_unknown_when_replica_paused_and_replayed_when_it_runs_on() {
    let (test, mut replicas) = replicated(Options { durability: waiting(500), ..Options::default() }, 1).await;
    let user = until("there is a user", async || {
        let reply = test.post("/admin/v1/users", json!({"userName": "이다은", "balance": 10})).await;
        (reply.status == 201).then(|| reply.json()["userId"].as_i64().unwrap())
    })
    .await;
    assert_eq!(charged(&test, user, "first").await.ok()["balance"], 11);
    replicas[0].pause().unwrap();
    charge(&test, user, "second").await.refused(503, "SERVICE_UNAVAILABLE");
    // A replay has no better reason to be believed, nor has the replay of what was acknowledged before.
    for key in ["second", "first"] {
        let reply = charge(&test, user, key).await;
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(reply.headers.contains_key("retry-after"), "{:?}", reply.headers);
    }
    // No other request waits: reads and refusals go on.
    test.get(&format!("/api/v1/balances/{user}")).await.ok();
    test.put_charge(user, 0).await.refused(400, "INVALID_AMOUNT");
    replicas[0].resume().unwrap();
    let reply = charged(&test, user, "second").await;
    assert!(reply.replayed());
    assert_eq!(reply.ok()["balance"], 12);
    let metrics = test.get("/metrics").await.text;
    let late = metrics.lines().find_map(|line| line.strip_prefix("firstcome_replica_waits_total{result=\"late\"} "));
    assert!(late.is_some_and(|late| late.parse::<f64>().unwrap() >= 3.0), "{late:?}");
    test.finish().await;
}

/// Why a service does not start with this Redis.
async fn refusal(redis: RedisConfig, durability: DurabilityConfig) -> String {
    refusal_of(&Options::default(), redis, durability).await
}

/// The same, with these options.
pub async fn refusal_of(options: &Options, redis: RedisConfig, durability: DurabilityConfig) -> String {
    let database = fresh_database().await;
    let mut config = harness::engine_config(options, "", &postgres_url(&database));
    (config.redis, config.durability) = (redis, durability);
    let opened = App::open(&config, &Default::default(), Clock::standing(START)).await;
    let Err(error) = opened else { panic!("it starts") };
    harness::drop_database(&database).await;
    format!("{error:#}")
}

#[tokio::test]
async fn start_refused_when_replicas_can_not_keep_the_promise() {
    let dir = ScratchDir::new().unwrap();
    let alone = server(&dir, "alone", None).await;
    let at = |server: &RedisServer| harness::redis_config(&server.url());
    let why = refusal(at(&alone), waiting(PATIENT_MS)).await;
    assert!(why.contains("this Redis has 0: start replicas of it, or choose ACK=redis or ACK=postgres"), "{why}");
    let replica = server(&dir, "replica", Some(&alone)).await;
    in_sync(&alone, &replica).await;
    until_online(&alone, 1).await;
    let why = refusal(at(&alone), waiting(PATIENT_MS)).await;
    assert!(why.contains("min-replicas-to-write is 0 and must be 1 or more"), "{why}");
    let two = DurabilityConfig { ack_replicas: 2, ..waiting(PATIENT_MS) };
    let why = refusal(at(&alone), two).await;
    assert!(why.contains("waits for 2 replicas (ACK_REPLICAS), and this Redis has 1"), "{why}");
    let why = refusal(at(&replica), waiting(PATIENT_MS)).await;
    assert!(why.contains("slave, which can't be written to"), "{why}");
    let mut link = raw_redis(&alone.url()).await;
    let user = redis::cmd("ACL").arg("SETUSER").arg(&["no-wait", "on", ">secret", "~*", "+@all", "-wait"]).clone();
    user.exec_async(&mut link).await.unwrap();
    redis::cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(1).exec_async(&mut link).await.unwrap();
    let without = harness::redis_config(&alone.url().replace("redis://", "redis://no-wait:secret@"));
    let why = refusal(without, waiting(PATIENT_MS)).await;
    assert!(why.contains("lacks permissions: +wait"), "{why}");
    let keys: i64 = redis::cmd("DBSIZE").query_async(&mut link).await.unwrap();
    assert_eq!(keys, 0, "nothing was written by any of them");
}

#[tokio::test]
async fn start_refused_when_replica_confirms_nothing() {
    let dir = ScratchDir::new().unwrap();
    let master = guarded(&dir, "master", None).await;
    let mut replica = guarded(&dir, "replica", Some(&master)).await;
    in_sync(&master, &replica).await;
    until_online(&master, 1).await;
    replica.pause().unwrap();
    let why = refusal(harness::redis_config(&master.url()), waiting(200)).await;
    assert!(
        why.contains("did not confirm a write within 200 ms, in 5 attempts: bring back ACK_REPLICAS=1 of them"),
        "{why}"
    );
    replica.resume().unwrap();
}

/// What a process confirmed survives it: in the word of another, which did not see the replies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmed_position_kept_by_another_process_when_one_ends() {
    let options = Options { durability: waiting(PATIENT_MS), ..Options::default() };
    let (test, _replicas) = replicated(options, 1).await;
    let user = UserId::new(test.user(0).await).unwrap();
    let second = test.open_instance(&test.options).await.unwrap();
    let charge = async || {
        let call = Call { acknowledged: AcknowledgedPositions::collecting(), ..harness::call(None) };
        second.engine.charge(&call, user, 1).await.unwrap();
        for replication in call.acknowledged.replications() {
            assert!(replication.reached().await);
        }
        second.store.confirmed(Partition(0))
    };
    let confirmed = charge().await;
    assert!(test.store.confirmed(Partition(0)) < confirmed);
    until("another process knows of it", async || {
        second.engine.check().await;
        test.engine.check().await;
        (test.store.confirmed(Partition(0)) == confirmed).then_some(())
    })
    .await;
    // It ends before its next check, as if it were killed.
    let confirmed = charge().await;
    assert!(test.store.confirmed(Partition(0)) < confirmed);
    drop(second);
    until("its end is noticed", async || {
        test.engine.check().await;
        (test.store.confirmed(Partition(0)) == confirmed).then_some(())
    })
    .await;
    test.finish().await;
}

/// Where an operator vouches for its settings, a master without replicas decides; no reply says so.
#[tokio::test]
async fn degraded_and_named_when_replica_lost_while_running() {
    let dir = ScratchDir::new().unwrap();
    let master = server(&dir, "master", None).await;
    let mut replica = server(&dir, "replica", Some(&master)).await;
    in_sync(&master, &replica).await;
    until_online(&master, 1).await;
    let redis = RedisConfig { redis_durability: RedisDurability::Asserted, ..harness::redis_config(&master.url()) };
    let options = Options { durability: waiting(200), redis: Some(redis), ..Options::default() };
    let test = TestApp::on(options, dir, master, fresh_database().await).await;
    assert_eq!(test.get("/readyz").await.ok()["status"], "UP");
    replica.kill().await.unwrap();
    until("the loss is noticed", async || {
        test.engine.check().await;
        let reply = test.get("/readyz").await.ok();
        let reasons = reply["reasons"].to_string();
        (reply["status"] == "DEGRADED" && reasons.contains("has 0 replicas in sync, and ACK_REPLICAS is 1"))
            .then_some(())
    })
    .await;
    test.post("/admin/v1/users", json!({"userName": "A"})).await.refused(503, "SERVICE_UNAVAILABLE");
    let metrics = test.get("/metrics").await.text;
    for line in ["firstcome_redis_replicas{partition=\"0\"} 0", "firstcome_redis_replicas_required 1"] {
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    replica.restart().await.unwrap();
    until("it is as before", async || {
        test.engine.check().await;
        (test.get("/readyz").await.ok()["status"] == "UP").then_some(())
    })
    .await;
    test.finish().await;
}
