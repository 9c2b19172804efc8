//! A partition that moves to another server decides again only when every process has said what it acknowledged.

use std::{sync::Arc, time::Duration};

use firstcome::{
    app::App,
    model::{Error, Partition, UserId},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::failover::{in_sync, port, replicated};
use crate::support::harness::{Options, TestApp, call, open, postgres_url, raw_redis, until};

/// A test app, a second process on the same stores, and a user of both.
struct Processes {
    test: TestApp,
    second: App,
    user: UserId,
}

impl Processes {
    async fn start() -> (Processes, firstcome::dev::RedisServer) {
        let (test, replica) = replicated(Options::default()).await;
        let url = test.proxy.as_ref().unwrap().url();
        let second = open(&test.options, &url, &postgres_url(&test.database), test.clock.clone()).await.unwrap();
        let user = UserId::new(test.user(0).await).unwrap();
        in_sync(&test.redis, &replica).await;
        (Processes { test, second, user }, replica)
    }

    /// A decision of the second process.
    async fn charge(&self) -> Result<i64, Error> {
        self.second.engine.charge(&call(None), self.user, 1).await.map(|charged| charged.value.balance)
    }

    /// Makes the replica the master that new connections reach, with what it had at `until_then`'s begin.
    async fn fail_over(&mut self, replica: firstcome::dev::RedisServer, until_then: impl AsyncFn(&TestApp)) {
        let replica_of = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).to_owned();
        replica_of("NO", "ONE").exec_async(&mut raw_redis(&replica.url()).await).await.unwrap();
        until_then(&self.test).await;
        self.test.proxy.as_ref().unwrap().lead_to(replica.socket_path());
        let mut old = raw_redis(&self.test.redis.url()).await;
        replica_of("127.0.0.1", &port(&replica)).exec_async(&mut old).await.unwrap();
        self.test.redis = replica;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decision_refused_when_another_process_acknowledged_more_than_new_master_has() {
    let (mut processes, replica) = Processes::start().await;
    let user = processes.user.get();
    processes
        .fail_over(replica, async |test| {
            for _ in 0..3 {
                test.put_charge(user, 1).await.ok();
            }
        })
        .await;
    // The second process does not know of the three charges, and PostgreSQL does not either.
    let refused = processes.charge().await;
    assert!(matches!(&refused, Err(Error::Unavailable { .. })), "{refused:?}");
    processes.test.engine.check().await;
    until("the partition is frozen", async || {
        let reply = processes.test.get("/readyz").await;
        reply.text.contains("acknowledged decisions are lost").then_some(())
    })
    .await;
    let refused = processes.charge().await;
    assert!(matches!(&refused, Err(Error::Unavailable { .. })), "{refused:?}");
    let mut redis = raw_redis(&processes.test.redis.url()).await;
    let state: (String, i64) =
        redis::cmd("HMGET").arg("{p0}:meta").arg("cause").arg("seq").query_async(&mut redis).await.unwrap();
    assert_eq!(state, ("LOSS".to_owned(), 1), "nothing was decided in the place of the lost decisions");
    processes.test.finish_unchecked().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_continue_when_every_process_gave_its_word() {
    let (mut processes, replica) = Processes::start().await;
    processes.fail_over(replica, async |_| {}).await;
    until("both processes decide", async || {
        processes.test.engine.check().await;
        processes.charge().await.ok()
    })
    .await;
    until("the first process decides too", async || {
        (processes.test.put_charge(processes.user.get(), 1).await.status == 200).then_some(())
    })
    .await;
    processes.second.stop(Some(Duration::from_secs(60))).await;
    processes.test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_continue_without_word_of_process_that_has_ended() {
    let (mut processes, replica) = Processes::start().await;
    // The first process never checks again.
    processes.fail_over(replica, async |_| {}).await;
    until("the second process waits", async || match processes.charge().await {
        Err(Error::Unavailable { reason, .. }) => reason.contains("waits for what these processes").then_some(()),
        decided => panic!("{decided:?} without the word of the first process"),
    })
    .await;
    until("the second process decides alone", async || processes.charge().await.ok()).await;
    until("the first process is back", async || processes.test.store.check(Partition(0)).await.ok()).await;
    processes.second.stop(Some(Duration::from_secs(60))).await;
    processes.test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_starts_after_those_of_the_server_before_had_time_to_give_their_words() {
    let (mut processes, replica) = Processes::start().await;
    // Neither process checks again.
    processes.fail_over(replica, async |_| {}).await;
    let url = processes.test.proxy.as_ref().unwrap().url();
    let database = postgres_url(&processes.test.database);
    let third = open(&processes.test.options, &url, &database, processes.test.clock.clone()).await.unwrap();
    third.engine.charge(&call(None), processes.user, 1).await.unwrap();
    until("the first process is back", async || processes.test.store.check(Partition(0)).await.ok()).await;
    for app in [processes.second, third] {
        app.stop(Some(Duration::from_secs(60))).await;
    }
    processes.test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partition_stays_open_when_checked_amid_acknowledgements() {
    let test = Arc::new(TestApp::with(Options::default()).await);
    let user = UserId::new(test.user(0).await).unwrap();
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    for _ in 0..8 {
        let (test, stop) = (test.clone(), stop.clone());
        writers.spawn(async move {
            while !stop.is_cancelled() {
                test.engine.charge(&call(None), user, 1).await.unwrap();
            }
        });
    }
    for _ in 0..500 {
        test.store.check(Partition(0)).await.unwrap();
    }
    stop.cancel();
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    Arc::into_inner(test).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn word_withdrawn_when_process_stops() {
    let (processes, _replica) = Processes::start().await;
    let words = async || {
        let mut redis = processes.test.raw().await;
        redis::cmd("HLEN").arg("{p0}:instances").query_async::<i64>(&mut redis).await.unwrap()
    };
    assert_eq!(words().await, 2);
    processes.charge().await.unwrap();
    // The drain checks the partition, and gives the word once more.
    assert!(processes.second.stop(Some(Duration::from_secs(60))).await);
    assert_eq!(words().await, 1);
    processes.test.finish().await;
}
