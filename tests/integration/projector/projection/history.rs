//! The history of a balance, which is complete at every position of the projection, and the lag.

use super::*;

/// The history and its pages are the same, whether Redis or PostgreSQL has their entries.
#[tokio::test]
async fn history_complete_at_every_projected_position() {
    let test = TestApp::with(Options { batch: 3, ..Options::default() }).await;
    let mut redis = test.raw().await;
    let (user, other) = (test.user(100).await, test.user(0).await);
    assert!(history(&test, other, "").await.is_empty());
    let product = test.product(10, 100).await;
    for amount in 1..=5 {
        test.put(&format!("/api/v1/balances/{user}"), json!({"amount": amount})).await.ok();
        test.put(&format!("/api/v1/balances/{other}"), json!({"amount": amount})).await.ok();
        let order = test.place(user, product, amount).await;
        test.pay(order, user, "CARD", 10 * amount).await;
        test.cancel(order, user).await;
    }
    let stream = entries(&mut redis, 0).await;
    let whole = history(&test, user, "").await;
    let others = history(&test, other, "").await;
    assert!(whole.len() > 10, "{whole:?}");
    let numbers: Vec<i64> = whole.iter().map(|entry| entry["entryNo"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (1..=whole.len() as i64).collect::<Vec<_>>());
    let same = async |stage: &str| {
        assert_eq!(history(&test, user, "").await, whole, "{stage}");
        assert_eq!(history(&test, other, "").await, others, "{stage}");
        for limit in 1..=whole.len() {
            let newest = &whole[whole.len() - limit..];
            assert_eq!(history(&test, user, &format!("?limit={limit}")).await, newest, "{stage}");
            for before in [1, 2, 5, whole.len(), whole.len() + 1, whole.len() + 50] {
                let older = &whole[..before.saturating_sub(1).min(whole.len())];
                let page = &older[older.len().saturating_sub(limit)..];
                let query = format!("?limit={limit}&before={before}");
                assert_eq!(history(&test, user, &query).await, page, "{stage} {query}");
            }
        }
    };
    same("before").await;
    // Half of it projected, half still to come: the later entries are away while the earlier are projected.
    let half = stream.len() / 2;
    outbox::replace(&mut redis, 0, &stream[..half]).await;
    let missing = test.app.projector.drain().await.expect_err("nothing is missing").to_string();
    assert!(missing.contains("decisions are lost"), "{missing}");
    let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").query_async(&mut redis).await.unwrap();
    test.engine.check().await;
    outbox::replace(&mut redis, 0, &stream[half..]).await;
    same("half").await;
    outbox::replace(&mut redis, 0, &stream).await;
    same("half, and not trimmed").await;
    test.drain().await;
    same("after").await;
    outbox::replace(&mut redis, 0, &stream).await;
    same("after, and not trimmed").await;
    test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
    assert_eq!(history(&test, user, "").await[..whole.len()], whole);
    test.finish().await;
}

/// Unprojected entries are read up to a limit; the reply reports that it is truncated.
#[tokio::test]
async fn history_reports_truncated_tail() {
    let test = TestApp::start().await;
    let (user, quiet) = (test.user(1).await, test.user(1).await);
    let call = harness::call(None);
    let id = firstcome::model::UserId::new(user).unwrap();
    for _ in 0..2_100 {
        test.engine.charge(&call, id, 1).await.unwrap();
    }
    let newest = history(&test, user, "?limit=1000").await;
    assert_eq!((newest.len(), &newest[999]["after_balance"]), (1_000, &json!(2_101)));
    assert_eq!(history(&test, user, "?before=1102&limit=1000").await.len(), 1_000);
    let path = format!("/api/v1/balances/{user}/history");
    for query in ["?before=100", "?before=150&limit=200"] {
        test.get(&format!("{path}{query}")).await.refused(503, "SERVICE_UNAVAILABLE");
    }
    assert_eq!(history(&test, quiet, "").await.len(), 1);
    test.drain().await;
    assert_eq!(history(&test, user, "?before=100").await.len(), 99);
    assert_eq!(history(&test, user, "?before=150&limit=200").await.len(), 149);
    test.finish().await;
}

#[tokio::test]
async fn lag_counted_when_projection_stopped() {
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let projection = test.get("/admin/v1/projection").await.ok();
    assert_eq!((&projection["lagEvents"], &projection["lagSeconds"]), (&json!(0), &json!(0.0)));
    let user = test.user(0).await;
    for n in 1..=4 {
        test.put(&format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
        let projection = test.get("/admin/v1/projection").await.ok();
        assert_eq!(projection["lagEvents"], n + 1);
        let here = &projection["partitions"][0];
        assert_eq!((&here["partition"], &here["epoch"]), (&json!(0), &json!(1)));
        assert_eq!((&here["decidedSeq"], &here["projectedSeq"]), (&json!(n + 1), &json!(0)));
    }
    let lag = async || test.get("/admin/v1/projection").await.ok()["lagSeconds"].as_f64().unwrap();
    let old = until("the lag grows", async || Some(lag().await).filter(|lag| *lag > 0.0)).await;
    until("the lag grows", async || Some(lag().await).filter(|lag| *lag > old)).await;
    test.drain().await;
    let projection = test.get("/admin/v1/projection").await.ok();
    assert_eq!((&projection["lagEvents"], &projection["lagSeconds"]), (&json!(0), &json!(0.0)));
    assert_eq!(projection["partitions"][0]["projectedSeq"], 5);
    test.finish().await;
}
