//! A degraded Redis: paused, read-only, busy, loading, with a failing disk, killed and restarted under load. The service replies
//! 503 with `Retry-After`, has no partial effects, and recovers by itself.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use reqwest::Method;
use serde_json::json;

use crate::{
    redis::{
        proxy::Fault,
        script_failures::{Writes, config},
    },
    support::harness::{Options, TestApp, until},
};

/// The errors with which Redis refuses every command for a time; each makes a 503.
const REFUSALS: &[&str] = &[
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "UNKILLABLE Sorry the script already executed write commands against the dataset.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "READONLY You can't write against a read only replica.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOREPLICAS Not enough good replicas to write.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOAUTH Authentication required.",
    "NOPERM this user has no permissions to run the 'evalsha' command",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
];

fn proxied() -> Options {
    Options { proxied: true, ..Options::default() }
}

#[tokio::test]
async fn request_unavailable_when_redis_refuses() {
    let writes = Writes::on(TestApp::with(proxied()).await).await;
    let proxy = writes.test.proxy.as_ref().unwrap();
    let before = writes.test.snapshot().await;
    for refusal in REFUSALS {
        println!("{refusal}");
        proxy.set(Fault::Answer((*refusal).to_owned()));
        writes.assert_reads_unavailable().await;
        for write in writes.all() {
            let reply = writes.send(&write, None).await;
            assert_eq!(reply.status, 503, "{refusal}: {write:?}: {}", reply.text);
        }
        proxy.set(Fault::None);
        until("the service is ready", async || (writes.test.get("/readyz").await.status == 200).then_some(())).await;
    }
    assert!(before == writes.test.snapshot().await);
    let refusal = Fault::Answer(REFUSALS[0].to_owned());
    // The same on new connections, as after a restart.
    let degrade = async || {
        proxy.set(refusal);
        proxy.cut();
        writes.assert_reads_unavailable().await;
    };
    writes.assert_writes_unavailable(degrade, async || proxy.set(Fault::None)).await;
    writes.test.finish().await;
}

/// A lost reply of Redis makes the outcome unknown, and a repeat under the key settles it. The test loses each reply of a request
/// in turn; with several partitions that is between any two steps.
#[tokio::test]
async fn lost_reply_settled_by_repeat() {
    for partitions in [1, 3] {
        for after in 0.. {
            let turned_away = lose_replies(Options { partitions, ..proxied() }, after).await;
            println!("{partitions} partitions, {after} replies: {turned_away} turned away");
            if turned_away == 0 {
                break;
            }
        }
    }
}

/// Returns the number of writes with a 503.
async fn lose_replies(options: Options, after: usize) -> usize {
    let test = TestApp::with(options).await;
    // With three partitions, the user, the product and the campaign are in a partition each.
    test.user(0).await;
    for _ in 0..2 {
        test.product(0, 0).await;
    }
    let writes = Writes::on(test).await;
    let (test, proxy) = (&writes.test, writes.test.proxy.as_ref().unwrap());
    let mut turned_away = 0;
    for (n, write) in writes.all().iter().enumerate() {
        let key = format!("key-{n}");
        proxy.set(Fault::LoseReplies { after });
        let first = writes.send(write, Some(&key)).await;
        if !first.status.is_success() {
            turned_away += 1;
            first.refused(503, "SERVICE_UNAVAILABLE");
            assert!(first.headers.contains_key("retry-after"), "{write:?}");
        }
        proxy.set(Fault::None);
        let settled = until("the request is settled", async || {
            let reply = writes.send(write, Some(&key)).await;
            (reply.status != 503).then_some(reply)
        })
        .await;
        assert!(settled.status.is_success(), "{write:?}: {}", settled.text);
        let again = writes.send(write, Some(&key)).await;
        assert!(again.replayed(), "{write:?}");
        assert_eq!((again.status, &again.text), (settled.status, &settled.text), "{write:?}");
        if first.status.is_success() {
            assert_eq!((first.status, first.text), (settled.status, settled.text), "{write:?}");
        }
    }
    // Each effect once: the first balance and the charge, less two payments.
    let balance = test.get(&format!("/api/v1/balances/{}", writes.user)).await.ok()["balance"].clone();
    assert_eq!(balance, 100_000 - 1_000 + 1_000 - 2_000);
    // The holds of orders that were not placed expire. Of 100 units three are sold, and one unit was added.
    test.clock.advance(700_000);
    until("all holds have ended", async || {
        test.engine.sweep().await.unwrap();
        let stock = test.get(&format!("/api/v1/products/{}", writes.product)).await.ok()["stockQuantity"].clone();
        (stock == 100 - 3 + 1).then_some(())
    })
    .await;
    writes.test.finish().await;
    turned_away
}

/// A demoted server serves reads and refuses writes.
#[tokio::test]
async fn reads_served_when_redis_read_only() {
    let writes = Writes::on(TestApp::start().await).await;
    let (mut redis, mut again) = (writes.test.raw().await, writes.test.raw().await);
    // No process listens on port 1.
    let replica_of = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).to_owned();
    let (away, back) = (replica_of("127.0.0.1", "1"), replica_of("NO", "ONE"));
    let degrade = async || {
        let _: () = away.query_async(&mut redis).await.unwrap();
        writes.assert_reads_served().await;
    };
    let restore = async || {
        let _: () = back.query_async(&mut again).await.unwrap();
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    writes.test.finish().await;
}

/// A demoted server that refuses reads too, because of `replica-serve-stale-data no`.
#[tokio::test]
async fn reads_unavailable_when_replica_has_no_master() {
    let writes = Writes::on(TestApp::start().await).await;
    let (mut redis, mut again) = (writes.test.raw().await, writes.test.raw().await);
    let degrade = async || {
        config(&writes.test, "replica-serve-stale-data", "no").await;
        let _: () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async(&mut redis).await.unwrap();
        writes.assert_reads_unavailable().await;
    };
    let restore = async || {
        let _: () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut again).await.unwrap();
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    writes.test.finish().await;
}

/// Redis's disk fails: after a failed snapshot Redis refuses every write.
#[tokio::test]
async fn reads_served_when_redis_disk_fails() {
    let writes = Writes::on(TestApp::start().await).await;
    let test = &writes.test;
    let (mut redis, mut again) = (test.raw().await, test.raw().await);
    // The snapshot can't take the place of a directory.
    let in_the_way = test.redis.data_dir().join("dump.rdb");
    let degrade = async || {
        std::fs::create_dir(&in_the_way).unwrap();
        config(test, "save", "3600 1").await;
        let _: () = redis::cmd("BGSAVE").query_async(&mut redis).await.unwrap();
        until("the snapshot failed", async || {
            let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut redis).await.unwrap();
            info.contains("rdb_last_bgsave_status:err").then_some(())
        })
        .await;
        writes.assert_reads_served().await;
    };
    let restore = async || {
        let _: () = redis::cmd("CONFIG").arg("SET").arg("save").arg("").query_async(&mut again).await.unwrap();
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    writes.test.finish().await;
}

/// A script runs without end.
#[tokio::test]
async fn requests_unavailable_when_redis_busy() {
    let writes = Writes::on(TestApp::start().await).await;
    let test = &writes.test;
    config(test, "busy-reply-threshold", "20").await;
    let (mut running, mut ask, mut kill) = (test.raw().await, test.raw().await, test.raw().await);
    let mut script = None;
    let degrade = async || {
        script = Some(tokio::spawn(async move {
            let endless = redis::cmd("EVAL").arg("while true do end").arg(0).to_owned();
            endless.query_async::<()>(&mut running).await.unwrap_err().to_string()
        }));
        until("Redis is busy", async || {
            let pong: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut ask).await;
            pong.err().filter(|error| error.code() == Some("BUSY"))
        })
        .await;
        writes.assert_reads_unavailable().await;
    };
    let restore = async || {
        let _: () = redis::cmd("SCRIPT").arg("KILL").query_async(&mut kill).await.unwrap();
        // The script ends at its next step.
        until("Redis answers again", async || redis::cmd("PING").query_async::<String>(&mut kill).await.ok()).await;
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    let ended = script.unwrap().await.unwrap();
    assert!(ended.contains("killed"), "{ended}");
    writes.test.finish().await;
}

/// Redis is stopped with its connections open: no request waits longer than the timeout, and the requests take effect once when
/// Redis continues.
#[tokio::test]
async fn effects_applied_once_when_redis_hangs() {
    let mut writes = Writes::on(TestApp::with(Options { redis_timeout_ms: 2_000, ..Options::default() }).await).await;
    writes.test.redis.pause().unwrap();
    let all = writes.all();
    let asked = all.iter().enumerate().map(|(n, write)| {
        let writes = &writes;
        async move { writes.send(write, Some(&format!("key-{n}"))).await }
    });
    let replies = tokio::time::timeout(Duration::from_secs(200), futures_util::future::join_all(asked));
    for (reply, write) in replies.await.expect("a request hangs").into_iter().zip(&all) {
        assert_eq!(reply.status, 503, "{write:?}: {}", reply.text);
        assert!(reply.headers.contains_key("retry-after"), "{write:?}");
    }
    let reads = tokio::time::timeout(Duration::from_secs(200), writes.assert_reads_unavailable());
    reads.await.expect("a read hangs");
    writes.test.redis.resume().unwrap();
    for (n, write) in all.iter().enumerate() {
        let settle = async || {
            until("the request is settled", async || {
                let reply = writes.send(write, Some(&format!("key-{n}"))).await;
                (reply.status != 503).then_some(reply)
            })
            .await
        };
        let settled = settle().await;
        assert!(settled.status.is_success(), "{write:?}: {}", settled.text);
        let again = settle().await;
        assert!(again.replayed(), "{write:?}");
        assert_eq!((again.status, again.text), (settled.status, settled.text), "{write:?}");
    }
    let balance = until("it is read", async || {
        let reply = writes.test.get(&format!("/api/v1/balances/{}", writes.user)).await;
        (reply.status != 503).then(|| reply.ok()["balance"].clone())
    })
    .await;
    assert_eq!(balance, 100_000 - 1_000 + 1_000 - 2_000);
    writes.test.finish().await;
}

/// Redis killed and restarted repeatedly, while clients charge and order and repeat unanswered requests under their
/// keys: every reply is a decision or a 503, the service recovers by itself, and every effect happens once.
#[tokio::test]
async fn effects_applied_once_when_redis_killed_under_load() {
    const CLIENTS: usize = 6;
    const KILLS: u32 = 4;
    const BETWEEN: u32 = 30;
    let options = Options { project: true, max_open_orders: 1_000_000, ..Options::default() };
    let mut test = TestApp::with(options).await;
    let (user, product) = (test.user(0).await, test.product(0, 1_000_000).await);
    let (running, answered) = (AtomicBool::new(true), AtomicU32::new(0));
    let (client, base) = (test.client.clone(), test.base.clone());
    let charge = (Method::PUT, format!("{base}/api/v1/balances/{user}"), json!({"amount": 3}));
    let lines = json!([{"productId": product, "quantity": 1}]);
    let order = (Method::POST, format!("{base}/api/v1/orders"), json!({"userId": user, "orderProducts": lines}));
    let send = async |n: u32, key: &str| {
        let (method, path, body) = if n.is_multiple_of(2) { &charge } else { &order };
        let request = client.request(method.clone(), path).header("Idempotency-Key", key).json(body);
        let reply = crate::support::harness::read(request).await;
        match reply.status.as_u16() {
            503 => assert!(reply.headers.contains_key("retry-after")),
            status => assert_eq!(status, 200, "{path}: {}", reply.text),
        }
        reply
    };
    // The reply to each client, and how many attempts before it had none.
    let clients = (0..CLIENTS).map(|client| {
        let (send, running, answered) = (&send, &running, &answered);
        async move {
            let mut outcomes = Vec::new();
            for n in (0..).take_while(|_| running.load(Ordering::SeqCst)) {
                let (key, mut unknown) = (format!("{client}-{n}"), 0);
                let reply = until("it is answered", async || {
                    let reply = send(n, &key).await;
                    unknown += u32::from(reply.status == 503);
                    (reply.status == 200).then_some(reply)
                })
                .await;
                answered.fetch_add(1, Ordering::SeqCst);
                outcomes.push((n, key, reply, unknown));
            }
            outcomes
        }
    });
    let redis = &mut test.redis;
    let kills = async {
        for kill in 0..=KILLS {
            let before = answered.load(Ordering::SeqCst);
            let worked = async || (answered.load(Ordering::SeqCst) >= before + BETWEEN).then_some(());
            until("the service has recovered", worked).await;
            if kill < KILLS {
                redis.kill().await.unwrap();
                redis.restart().await.unwrap();
            }
        }
        running.store(false, Ordering::SeqCst);
    };
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(clients), kills);
    let (mut charges, mut orders, mut unknown) = (0, BTreeSet::new(), 0);
    for (n, key, reply, turned_away) in outcomes.into_iter().flatten() {
        unknown += turned_away;
        // A shared connection that was idle since the last kill is found broken by its next request.
        let again =
            until("it is repeated", async || Some(send(n, &key).await).filter(|reply| reply.status == 200)).await;
        assert!(again.replayed() && again.text == reply.text, "{key}: {} then {}", reply.text, again.text);
        if n.is_multiple_of(2) {
            charges += 1;
        } else {
            assert!(orders.insert(reply.ok()["orderId"].as_i64().unwrap()), "{key}");
        }
    }
    assert!(unknown > 0, "every request reached Redis");
    println!("{charges} charges and {} orders, {unknown} times 503", orders.len());
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 3 * charges);
    let left = test.get(&format!("/api/v1/products/{product}")).await.ok()["stockQuantity"].as_i64().unwrap();
    assert_eq!(left, 1_000_000 - orders.len() as i64);
    test.finish().await;
}
