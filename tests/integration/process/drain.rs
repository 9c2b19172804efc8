//! The program stops in order and within its deadline, and at once on a second signal.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::{
    process::binary::{Running, Servers, get, post, program, put, run},
    support::{
        fake_gateway::{Behaviour, FakeGateway},
        harness::{self, Options, TestApp, until},
    },
};

async fn migrated() -> Servers {
    let servers = Servers::start().await;
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "{said}");
    servers
}

/// Entries in the outbox of a store of one partition that PostgreSQL does not have.
async fn in_outbox(servers: &Servers) -> usize {
    let db = servers.db().await;
    let projected = firstcome::postgres::progress::projected(&db).await.unwrap();
    db.close().await.unwrap();
    let mut redis = harness::raw_redis(&servers.redis_url).await;
    let mut read = redis::cmd("XRANGE");
    read.arg("{p0}:outbox").arg(format!("({}", projected[0].stream_id)).arg("+");
    let entries: Vec<redis::Value> = read.query_async(&mut redis).await.unwrap();
    entries.len()
}

async fn user(base: &str) -> i64 {
    let body = json!({"userName": "A", "balance": 1_000_000});
    post(base, "/admin/v1/users", body).await.created()["userId"].as_i64().unwrap()
}

/// Starts a payment that waits until the gateway replies.
async fn paying(base: &str, gateway: &FakeGateway) -> tokio::task::JoinHandle<reqwest::Result<reqwest::Response>> {
    let product = json!({"productName": "P", "price": 500, "stockQuantity": 5, "category": "SHOES"});
    let product = post(base, "/admin/v1/products", product).await.created()["productId"].clone();
    let user = user(base).await;
    let lines = json!([{"productId": product, "quantity": 1}]);
    let order = post(base, "/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await.ok();
    let pay = json!({"orderId": order["orderId"], "userId": user, "paymentType": "CARD", "amount": 500});
    let before = gateway.total_posts();
    let paying = tokio::spawn(harness::client().post(format!("{base}/api/v1/payments")).json(&pay).send());
    until("the gateway was asked", async || (gateway.total_posts() > before).then_some(())).await;
    paying
}

fn with_gateway(servers: &Servers, gateway: &FakeGateway, variables: &[(&str, &str)], name: &str) -> Running {
    let gateway = [("PAYMENT_GATEWAY_CARD_URL", gateway.url()), ("PAYMENT_GATEWAY_TIMEOUT_MS", "60000")];
    servers.start_with(&["serve"], &[&gateway, variables].concat(), name)
}

/// Whether connections are refused.
async fn is_closed(base: &str) -> bool {
    let refused = harness::client().get(format!("{base}/healthz")).send().await;
    refused.is_err_and(|error| error.is_connect())
}

/// First readiness fails while requests are still served; then connections are refused; then running requests finish;
/// last, the outbox is projected.
#[tokio::test]
async fn stop_follows_order() {
    let servers = migrated().await;
    let gateway = FakeGateway::start().await;
    // A machine that stalls for the whole delay hides the first phase, so the test is repeated.
    for attempt in 1.. {
        assert!(attempt <= 5, "no client saw the failing readiness");
        gateway.next(Behaviour::ApproveLate);
        let mut serve = with_gateway(&servers, &gateway, &[("DRAIN_DELAY_SECONDS", "4")], &format!("serve-{attempt}"));
        let base = serve.base().await;
        get(&base, "/readyz").await.ok();
        let paying = paying(&base, &gateway).await;
        serve.signal(Signal::TERM);
        let (client, ready) = (harness::client(), format!("{base}/readyz"));
        let notified = until("it says so, or closes", async || match client.get(&ready).send().await {
            Ok(reply) if reply.status() == 200 => None,
            Ok(reply) => {
                assert_eq!((reply.status().as_u16(), &reply.headers()["connection"]), (503, &"close".parse().unwrap()));
                let body: Value = reply.json().await.unwrap();
                assert_eq!(
                    (&body["errorCode"], &body["reasons"]),
                    (&json!("SERVICE_UNAVAILABLE"), &json!(["stopping"]))
                );
                Some(true)
            }
            Err(_) => Some(false),
        })
        .await;
        // Writes are still served.
        let charge = client.put(format!("{base}/api/v1/balances/1")).json(&json!({"amount": 1})).send().await;
        let served = charge.is_ok_and(|reply| {
            assert_eq!((reply.status().as_u16(), &reply.headers()["connection"]), (200, &"close".parse().unwrap()));
            true
        });
        until("connections are refused", async || is_closed(&base).await.then_some(())).await;
        serve.assert_alive();
        gateway.release_late();
        let paid = paying.await.unwrap().unwrap();
        assert_eq!((paid.status().as_u16(), &paid.headers()["connection"]), (200, &"close".parse().unwrap()));
        let status = serve.ended().await;
        assert!(status.success(), "{status}\n{}", serve.err());
        assert!(serve.logged("the outbox is drained").is_some(), "{}", serve.err());
        assert_eq!(in_outbox(&servers).await, 0);
        if notified && served {
            break;
        }
    }
    servers.end().await;
}

/// A hanging request is cut after three quarters of the deadline; the rest is for the outbox.
#[tokio::test]
async fn stop_cuts_hanging_request_and_drains_outbox() {
    let servers = migrated().await;
    let gateway = FakeGateway::start().await;
    gateway.next(Behaviour::Hang);
    let mut serve = with_gateway(&servers, &gateway, &[("DRAIN_SECONDS", "8")], "serve");
    let base = serve.base().await;
    let paying = paying(&base, &gateway).await;
    let began = Instant::now();
    serve.signal(Signal::TERM);
    assert!(paying.await.unwrap().is_err(), "it was answered");
    let cut = began.elapsed();
    assert!((Duration::from_secs(6)..Duration::from_secs(60)).contains(&cut), "{cut:?}");
    let status = serve.ended().await;
    assert_eq!(status.code(), Some(1), "events were left: {}", serve.err());
    let said = serve.logged("connections cut at shutdown").unwrap();
    assert_eq!(said["fields"]["requests"], 1, "{said}");
    assert!(serve.logged("the outbox is drained").is_some(), "{}", serve.err());
    assert_eq!(in_outbox(&servers).await, 0);
    // The next process resolves the payment.
    with_gateway(&servers, &gateway, &[], "next").base().await;
    servers.end().await;
}

/// One deadline bounds the whole stop: events that PostgreSQL does not have by then wait for the next start, and the
/// log counts them.
#[tokio::test]
async fn stop_reports_events_left_at_deadline() {
    let servers = migrated().await;
    let mut serve = servers.start_with(&["serve"], &[("DRAIN_SECONDS", "2")], "first");
    let base = serve.base().await;
    let user = user(&base).await;
    // The projection waits while another transaction locks the row of the position.
    let db = servers.db().await;
    let mut lock = db.get_postgres_connection_pool().begin().await.unwrap();
    sqlx::query("SELECT 1 FROM projection_positions FOR UPDATE").execute(&mut *lock).await.unwrap();
    for _ in 0..3 {
        put(&base, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
    }
    let began = Instant::now();
    serve.signal(Signal::TERM);
    let status = serve.ended().await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(status.code(), Some(1), "{}", serve.err());
    let said = serve.logged("the outbox keeps what is not in PostgreSQL yet").unwrap();
    assert!(said["fields"]["events"].as_i64().unwrap() >= 3, "{said}");
    assert!(in_outbox(&servers).await >= 3);
    lock.rollback().await.unwrap();
    let mut serve = servers.start_role(&["serve"], "second");
    let base = serve.base().await;
    assert_eq!(get(&base, &format!("/api/v1/balances/{user}")).await.ok()["balance"], 1_000_003);
    serve.stop().await;
    assert_eq!(in_outbox(&servers).await, 0);
    db.close().await.unwrap();
    servers.end().await;
}

/// Unwritten entries of the operator log exist in the process only, so the stop writes them before its deadline.
#[tokio::test]
async fn stop_writes_operator_log() {
    let servers = migrated().await;
    let db = servers.db().await;
    let pool = db.get_postgres_connection_pool();
    for (drain, code, notified) in [("3600", 0, 1), ("2", 1, 0)] {
        sqlx::query("TRUNCATE operator_log").execute(pool).await.unwrap();
        let mut serve = servers.start_with(&["serve"], &[("DRAIN_SECONDS", drain)], &format!("serve-{drain}"));
        let base = serve.base().await;
        let mut lock = pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE operator_log IN EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
        user(&base).await;
        serve.signal(Signal::TERM);
        let status = if code == 0 {
            until("connections are refused", async || is_closed(&base).await.then_some(())).await;
            serve.assert_alive();
            lock.rollback().await.unwrap();
            serve.ended().await
        } else {
            let status = serve.ended().await;
            lock.rollback().await.unwrap();
            status
        };
        assert_eq!(status.code(), Some(code), "{}", serve.err());
        assert!(serve.logged("the outbox is drained").is_some(), "{}", serve.err());
        // An entry that was not written is in the log.
        let lost = serve.log().iter().any(|line| line["fields"]["reason"] == "the process ends");
        assert_eq!(lost, notified == 0, "{}", serve.err());
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM operator_log").fetch_one(pool).await.unwrap();
        assert_eq!(there, notified);
    }
    db.close().await.unwrap();
    servers.end().await;
}

/// A second signal ends the process without a drain.
#[tokio::test]
async fn second_signal_stops_at_once() {
    let servers = migrated().await;
    let gateway = FakeGateway::start().await;
    for (first, second, code) in [(Signal::TERM, Signal::TERM, 143), (Signal::INT, Signal::INT, 130)] {
        gateway.next(Behaviour::Hang);
        let name = format!("serve-{code}");
        let mut serve = with_gateway(&servers, &gateway, &[("DRAIN_SECONDS", "3600")], &name);
        let base = serve.base().await;
        let paying = paying(&base, &gateway).await;
        serve.signal(first);
        until("connections are refused", async || is_closed(&base).await.then_some(())).await;
        serve.assert_alive();
        serve.signal(second);
        // The limit of five minutes proves that the process does not wait for the deadline of an hour.
        assert_eq!(serve.ended().await.code(), Some(code), "{}", serve.err());
        assert!(serve.logged("stopping at once").is_some(), "{}", serve.err());
        assert!(paying.await.unwrap().is_err());
    }
    // The next process finds every decision.
    let mut serve = servers.start_role(&["serve"], "last");
    serve.base().await;
    serve.stop().await;
    servers.end().await;
}

/// A signal ends a start that waits for a store, even as process 1 of a container, where signals have no default
/// action.
#[tokio::test]
async fn stop_ends_start_when_redis_hangs() {
    let mut servers = migrated().await;
    servers.redis.pause().unwrap();
    let mut postgres = PgConnection::connect(&servers.postgres_url).await.unwrap();
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for role in ["serve", "project"] {
        let mut waiting = servers.start_role(&[role], role);
        // A start connects to PostgreSQL before Redis.
        until("it has come as far as PostgreSQL", async || {
            waiting.assert_alive();
            let others: i64 = sqlx::query_scalar(others).fetch_one(&mut postgres).await.unwrap();
            (others > 0).then_some(())
        })
        .await;
        waiting.stop().await;
        until("it is gone", async || {
            let others: i64 = sqlx::query_scalar(others).fetch_one(&mut postgres).await.unwrap();
            (others == 0).then_some(())
        })
        .await;
    }
    postgres.close().await.unwrap();
    servers.redis.resume().unwrap();
    servers.end().await;
}

/// A stop leaves later decisions of other instances to them; a stop that waits for an empty outbox never ends.
#[tokio::test(flavor = "multi_thread")]
async fn stop_ignores_later_decisions_of_others() {
    for partitions in [1, 2] {
        // One decision per transaction makes the projector slower than the writers.
        let test = TestApp::with(Options { partitions, batch: 1, ..Options::default() }).await;
        let users = [test.user(0).await, test.user(0).await];
        let stop = CancellationToken::new();
        let charging = (0..32).map(|nth: usize| {
            let (client, stop) = (test.client.clone(), stop.clone());
            let url = format!("{}/api/v1/balances/{}", test.base, users[nth % 2]);
            tokio::spawn(async move {
                let mut charged = 0;
                while !stop.is_cancelled() {
                    harness::read(client.put(&url).json(&json!({"amount": 1}))).await.ok();
                    charged += 1;
                }
                charged
            })
        });
        let charging: Vec<_> = charging.collect();
        until("PostgreSQL is behind", async || (test.store.backlog() > 200).then_some(())).await;
        let carrying = test.app.projector.project_decided();
        tokio::time::timeout(Duration::from_secs(300), carrying)
            .await
            .expect("the stop waits for other instances")
            .unwrap();
        let carried: i64 = sqlx::query_scalar("SELECT sum(balance)::bigint FROM users")
            .fetch_one(test.db.get_postgres_connection_pool())
            .await
            .unwrap();
        assert!(carried >= 190, "decisions from before the stop are missing: {carried}");
        stop.cancel();
        let mut charged = 0;
        for one in charging {
            charged += one.await.unwrap();
        }
        assert!(charged >= carried);
        test.finish().await;
    }
}

/// A stop reports an outbox with missing decisions as an error.
#[tokio::test]
async fn stop_reports_missing_decisions() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    test.drain().await;
    test.put_charge(user, 1).await.ok();
    let _: i64 = redis::cmd("DEL").arg("{p0}:outbox").query_async(&mut test.raw().await).await.unwrap();
    let error = test.app.projector.project_decided().await.unwrap_err().to_string();
    assert!(error.contains("from (1, 1) to (1, 2): decisions are lost"), "{error}");
    test.finish_unchecked().await;
}

/// A partition that moves to another server waits for the words of the processes that used it, not for one that stopped in order.
#[tokio::test]
async fn partition_decides_at_once_when_redis_restarts_after_a_stop_in_order() {
    const WAITS: &str = "waits for what these processes acknowledged";
    let mut servers = migrated().await;
    let mut staying = servers.start_role(&["serve"], "staying");
    let base = staying.base().await;
    let path = format!("/api/v1/balances/{}", user(&base).await);
    let charged = async |base: &str| {
        until("it decides", async || {
            let reply = put(base, &path, json!({"amount": 1})).await;
            (reply.status != 503).then(|| reply.ok())
        })
        .await;
    };
    let mut stopped = servers.start_role(&["serve"], "stopped");
    charged(&stopped.base().await).await;
    stopped.stop().await;
    // A check, which reads who is left.
    get(&base, "/readyz").await.ok();
    servers.redis.kill().await.unwrap();
    servers.redis.restart().await.unwrap();
    charged(&base).await;
    assert!(!staying.err().contains(WAITS), "{}", staying.err());

    let mut killed = servers.start_role(&["serve"], "killed");
    charged(&killed.base().await).await;
    killed.signal(Signal::KILL);
    servers.redis.kill().await.unwrap();
    killed.ended().await;
    servers.redis.restart().await.unwrap();
    until("it waits for the word of the other", async || staying.err().contains(WAITS).then_some(())).await;
    charged(&base).await;
    staying.stop().await;
    servers.end().await;
}

#[tokio::test]
async fn health_check_runs_without_shell() {
    let servers = migrated().await;
    let mut serve = servers.start_role(&["serve"], "serve");
    let base = serve.base().await;
    let address = base.strip_prefix("http://").unwrap();
    let ask = async |arguments: &[&str], bind: &str| {
        let (status, said) = run(program(arguments).env("BIND_ADDR", bind)).await;
        (status.code(), said)
    };
    let port = address.rsplit(':').next().unwrap();
    for bind in [address, &format!("0.0.0.0:{port}")] {
        assert_eq!(ask(&["health"], bind).await, (Some(0), "{\"status\":\"UP\"}\n".to_owned()));
    }
    let alive = format!("{base}/healthz");
    assert_eq!(ask(&["health", "--url", &alive], "127.0.0.1:1").await.0, Some(0));
    let (code, said) = ask(&["health", "--url", &format!("{base}/nothing")], address).await;
    assert!(code == Some(1) && said.contains("NOT_FOUND"), "{said}");
    serve.stop().await;
    let (code, said) = ask(&["health"], address).await;
    assert!(code == Some(1) && said.contains("does not answer"), "{said}");
    servers.end().await;
}
