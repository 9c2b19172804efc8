//! PostgreSQL hangs or refuses connections: the API serves, and requests that need PostgreSQL get a 503 in bounded time.

use std::time::Duration;

use serde_json::json;
use sqlx::Connection;

use crate::{
    projector::projection::RestartableApp,
    support::harness::{TestApp, postgres_config, until},
};

/// PostgreSQL is stopped with its connections open. Redis may restart meanwhile.
#[tokio::test]
async fn api_served_when_postgres_hangs() {
    let mut shop = RestartableApp::open().await;
    let user = shop.post("/admin/v1/users", json!({"userName": "A", "balance": 1_000})).await.created();
    let user = user["userId"].as_i64().unwrap();
    let history = format!("/api/v1/balances/{user}/history");
    until("the projection has caught up", async || {
        let reply = shop.get("/admin/v1/projection").await;
        (reply.status == 200 && reply.json()["lagEvents"] == 0).then_some(())
    })
    .await;
    shop.postgres.pause().unwrap();
    for n in 1..=5 {
        assert_eq!(shop.charge(user, 1).await.ok()["balance"], 1_000 + n);
    }
    assert_eq!(shop.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1_005);
    shop.get("/readyz").await.ok();
    // The newest entries are in Redis, the first is not.
    assert_eq!(shop.get(&format!("{history}?limit=5")).await.ok().as_array().unwrap().len(), 5);
    for path in [history.as_str(), "/admin/v1/projection", "/admin/v1/orders"] {
        let reply = tokio::time::timeout(Duration::from_secs(200), shop.get(path)).await.expect("the request hangs");
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(reply.headers.contains_key("retry-after"), "{path}");
    }
    shop.redis.kill().await.unwrap();
    shop.redis.restart().await.unwrap();
    let charged = until("the service writes to the restarted Redis", async || {
        let reply = shop.charge(user, 1).await;
        (reply.status != 503).then_some(reply)
    });
    assert_eq!(charged.await.ok()["balance"], 1_006);
    shop.postgres.resume().unwrap();
    let entries = until("the history is readable", async || {
        let reply = shop.get(&history).await;
        (reply.status == 200).then(|| reply.json())
    })
    .await;
    let after: Vec<i64> =
        entries.as_array().unwrap().iter().map(|entry| entry["after_balance"].as_i64().unwrap()).collect();
    assert_eq!(after, [1_000, 1_001, 1_002, 1_003, 1_004, 1_005, 1_006]);
    shop.finish().await;
}

/// PostgreSQL refuses new connections: every request that needs it gets a 503, never a 4xx.
#[tokio::test]
async fn api_served_when_postgres_refuses_connections() {
    let shop = RestartableApp::open().await;
    let user = shop.post("/admin/v1/users", json!({"userName": "A", "balance": 1_000})).await.created();
    let user = user["userId"].as_i64().unwrap();
    let admin = firstcome::postgres::connect(&postgres_config(&shop.postgres.url("template1"))).await.unwrap();
    let mut admin = admin.get_postgres_connection_pool().acquire().await.unwrap();
    let role: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut *admin).await.unwrap();
    for (close, open) in [
        (format!("ALTER ROLE {role} NOLOGIN"), format!("ALTER ROLE {role} LOGIN")),
        (
            "ALTER DATABASE postgres ALLOW_CONNECTIONS false".to_owned(),
            "ALTER DATABASE postgres ALLOW_CONNECTIONS true".to_owned(),
        ),
        ("ALTER DATABASE postgres RENAME TO gone".to_owned(), "ALTER DATABASE gone RENAME TO postgres".to_owned()),
    ] {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres'";
        until("PostgreSQL refuses connections", async || {
            sqlx::query(others).execute(&mut *admin).await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(close.as_str())).execute(&mut *admin).await.ok()
        })
        .await;
        sqlx::query(others).execute(&mut *admin).await.unwrap();
        let before = shop.charge(user, 1).await.ok()["balance"].as_i64().unwrap();
        assert_eq!(shop.charge(user, 1).await.ok()["balance"], before + 1);
        shop.get("/readyz").await.ok();
        for path in ["/admin/v1/projection", "/admin/v1/orders"] {
            let reply = shop.get(path).await;
            assert_eq!(reply.status, 503, "{close}: {path}: {}", reply.text);
            assert!(reply.headers.contains_key("retry-after"), "{path}");
        }
        sqlx::query(sqlx::AssertSqlSafe(open.as_str())).execute(&mut *admin).await.unwrap();
        until("the projection has caught up", async || {
            let reply = shop.get("/admin/v1/projection").await;
            (reply.status == 200 && reply.json()["lagEvents"] == 0).then_some(())
        })
        .await;
    }
    drop(admin);
    shop.finish().await;
}

/// A task that stops waiting for BEGIN leaves a transaction open that the pool does not know: the pool does not reuse the
/// connection.
#[tokio::test]
async fn connection_dropped_when_transaction_abandoned() {
    let test = TestApp::start().await;
    let pool = test.db.get_postgres_connection_pool();
    let open = async |pids: i64| {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in %'";
        (sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await.unwrap() == pids).then_some(())
    };
    for statement in ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"] {
        let mut connection = pool.acquire().await.unwrap();
        until("BEGIN is sent and its reply not read", async || {
            // One poll sends BEGIN; the next attempt follows if the reply came at once.
            let beginning = connection.begin_with(statement);
            tokio::pin!(beginning);
            futures_util::poll!(beginning).is_pending().then_some(())
        })
        .await;
        until("the transaction is open", async || open(1).await).await;
        drop(connection);
        until("the transaction is gone", async || open(0).await).await;
        // Every connection of the pool is available, and none is in a transaction.
        let all: Vec<_> = futures_util::future::join_all((0..6).map(|_| pool.acquire())).await;
        for connection in all {
            let mut connection = connection.unwrap();
            let begun = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
            begun.rollback().await.unwrap();
        }
    }
    test.finish().await;
}
