//! Operators run audits over HTTP, and see how far they are.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::audit::{run, shop};
use crate::support::harness::{ADMIN, TestApp, client, read, until};

#[tokio::test]
async fn audit_run_by_operator() {
    let test = shop().await;
    let unauthenticated = read(client().get(format!("{}/admin/v1/audit", test.base))).await;
    unauthenticated.refused(401, "UNAUTHORIZED");
    let report = test.get("/admin/v1/audit").await.ok();
    assert_eq!(report["balanced"], true);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 15 && checks.iter().all(|check| check["ok"] == true), "{report}");
    assert!(checks.iter().all(|check| check["detail"].as_str().unwrap().starts_with(char::is_numeric)), "{report}");
    assert_eq!(report["auditedAt"], "2026-03-02T14:00:00");
    assert_eq!(report["partitions"][0]["decidedSeq"], report["partitions"][0]["projectedSeq"]);
    run(&mut test.raw().await, "HINCRBY {p0}:user:1 balance 1").await;
    let report = test.get("/admin/v1/audit").await.ok();
    assert_eq!(report["balanced"], false);
    run(&mut test.raw().await, "HINCRBY {p0}:user:1 balance -1").await;
    // One audit runs at a time.
    let request = || read(test.client.request(Method::GET, format!("{}/admin/v1/audit", test.base)).bearer_auth(ADMIN));
    let replies = join_all((0..4).map(|_| request())).await;
    assert!(replies.iter().any(|reply| reply.status == 200));
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        reply.refused(409, "REQUEST_IN_PROGRESS");
    }
    test.finish().await;
}

/// Keeps audits at their first comparison until the transaction ends.
async fn hold_comparisons(test: &TestApp) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut hold = test.db.get_postgres_connection_pool().begin().await.unwrap();
    sqlx::query("SELECT FROM projection_positions FOR UPDATE").execute(&mut *hold).await.unwrap();
    hold
}

/// The progress, once it is as wanted.
async fn progress(test: &TestApp, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(what, async || Some(test.get("/admin/v1/audit/progress").await.ok()).filter(|progress| wanted(progress)))
        .await
}

#[tokio::test]
async fn audit_shows_progress_and_stops_when_client_leaves() {
    let test = shop().await;
    let at_rest = progress(&test, "no audit runs", |progress| progress["running"] == false).await;
    let rest = json!({"running": false, "check": "", "checks": 0, "items": 0, "expectedItems": null, "share": 0.0,
        "seconds": 0.0, "etaSeconds": null, "beganAt": null});
    assert_eq!(at_rest, rest);
    for path in ["/admin/v1/audit", "/admin/v1/audit/events"] {
        let hold = hold_comparisons(&test).await;
        let request = test.client.request(Method::GET, format!("{}{path}", test.base)).bearer_auth(ADMIN);
        let leaving = tokio::spawn(async { request.send().await?.bytes().await });
        let running =
            progress(&test, "users are compared", |progress| progress["check"] == "users: Redis = PostgreSQL").await;
        assert_eq!((&running["running"], &running["items"]), (&json!(true), &json!(0)), "{running}");
        assert!(
            running["checks"].as_u64().unwrap() > 12 && running["expectedItems"].as_i64().unwrap() > 10,
            "{running}"
        );
        assert_eq!(running["beganAt"], "2026-03-02T14:00:00");
        // Another one is refused, and learns nothing of the first.
        for path in ["/admin/v1/audit", "/admin/v1/audit/events"] {
            test.get(path).await.refused(409, "REQUEST_IN_PROGRESS");
        }
        leaving.abort();
        progress(&test, "the audit has stopped", |progress| *progress == rest).await;
        hold.rollback().await.unwrap();
        assert_eq!(test.get("/admin/v1/audit").await.ok()["balanced"], true);
    }
    test.finish().await;
}

/// The events of a stream that has ended: name and data.
async fn events(test: &TestApp) -> Vec<(String, Value)> {
    let request = test.client.request(Method::GET, format!("{}/admin/v1/audit/events", test.base)).bearer_auth(ADMIN);
    let reply = request.send().await.unwrap();
    assert_eq!(
        (reply.status().as_u16(), reply.headers()["content-type"].to_str().unwrap()),
        (200, "text/event-stream")
    );
    let text = reply.text().await.unwrap();
    let event = |block: &str| {
        let (name, data) = block.split_once('\n').unwrap();
        let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), data)
    };
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn audit_events_end_with_report() {
    let test = shop().await;
    let hold = hold_comparisons(&test).await;
    let release = async {
        progress(&test, "an audit runs", |progress| progress["check"] == "users: Redis = PostgreSQL").await;
        hold.rollback().await.unwrap();
    };
    let (events_of_audit, ()) = tokio::join!(events(&test), release);
    let ((last, report), before) = events_of_audit.split_last().unwrap();
    assert!(!before.is_empty() && before.iter().all(|(name, _)| name == "progress"), "{events_of_audit:?}");
    assert_eq!(
        (before[0].1["running"].as_bool(), last.as_str(), &report["balanced"]),
        (Some(true), "report", &json!(true))
    );
    let checks = test.get("/admin/v1/audit").await.ok()["checks"].clone();
    assert_eq!(report["checks"], checks);
    // The gauge is the process's, and other tests run audits in it.
    until("no audit runs", async || {
        let metrics = read(client().get(format!("{}/metrics", test.base))).await.text;
        metrics.contains("firstcome_audit_progress_ratio 0\n").then_some(())
    })
    .await;

    run(&mut test.raw().await, "HSET {p0}:meta store other").await;
    let hindered = events(&test).await;
    assert_eq!(
        hindered.last().map(|(name, report)| (name.as_str(), &report["balanced"])),
        Some(("report", &json!(false)))
    );
    test.finish_unchecked().await;
}
