//! The projection and readiness.

use super::*;

#[tokio::test]
async fn projection_status_shows_position_and_lag() {
    on_1_and_3(async |test| {
        test.drain().await;
        let projection = async || get(test, "/admin/v1/projection").await.ok();
        let start = projection().await;
        fields(&start, "lagEvents lagSeconds maxBacklog deadLetters partitions");
        assert_eq!(json!([start["lagEvents"], start["lagSeconds"], start["deadLetters"]]), json!([0, 0.0, 0]));
        let partitions = start["partitions"].as_array().unwrap();
        assert_eq!(partitions.len(), usize::from(test.options.partitions));
        for (number, partition) in partitions.iter().enumerate() {
            fields(partition, "partition epoch decidedSeq projectedSeq lagSeconds deadLetters");
            assert_eq!(partition["partition"], number);
        }
        let user = test.user(0).await;
        for _ in 0..2 {
            put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
        }
        let behind = projection().await;
        assert_eq!(behind["lagEvents"], 3);
        let partition = &behind["partitions"][(user % i64::from(test.options.partitions)) as usize];
        assert_eq!(id(partition, "decidedSeq") - id(partition, "projectedSeq"), 3);
        test.drain().await;
        assert_eq!(projection().await["lagEvents"], 0);
    })
    .await;
}

/// Asserts that one partition does not decide: the service is degraded if others do, and not ready otherwise.
async fn one_partition_closed(test: &TestApp) {
    let reply = get(test, "/readyz").await;
    if test.options.partitions > 1 {
        assert_eq!((reply.status.as_u16(), &reply.json()["status"]), (200, &json!("DEGRADED")), "{}", reply.text);
    } else {
        reply.refused(503, "SERVICE_UNAVAILABLE");
        fields(&reply.json(), "errorCode message reasons");
    }
    assert_eq!(reply.json()["reasons"].as_array().map(Vec::len), Some(1), "{}", reply.text);
}

#[tokio::test]
async fn partition_reported_when_its_state_lost() {
    on_1_and_3(async |test| {
        let user = test.user(0).await;
        for path in ["/healthz", "/readyz"] {
            assert_eq!(get(test, path).await.ok(), json!({"status": "UP"}));
        }
        // The process is alive.
        let meta = format!("{{p{}}}:meta", user % i64::from(test.options.partitions));
        let moved = format!("{meta}-moved");
        let mut redis = test.raw().await;
        let _: () = redis::cmd("RENAME").arg(&meta).arg(&moved).query_async(&mut redis).await.unwrap();
        assert_eq!(get(test, "/healthz").await.ok(), json!({"status": "UP"}));
        one_partition_closed(test).await;
        let charge = put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await;
        charge.refused(503, "SERVICE_UNAVAILABLE");
        let _: () = redis::cmd("RENAME").arg(&moved).arg(&meta).query_async(&mut redis).await.unwrap();
        get(test, "/readyz").await.ok();
        assert_eq!(put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok()["balance"], 1);
    })
    .await;
}

#[tokio::test]
async fn partition_reported_when_frozen() {
    on_1_and_3(async |test| {
        let user = test.user(0).await;
        let meta = format!("{{p{}}}:meta", user % i64::from(test.options.partitions));
        let mut redis = test.raw().await;
        let _: i64 = redis::cmd("HSET").arg(&meta).arg("frozen").arg(1).query_async(&mut redis).await.unwrap();
        let charge = put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await;
        charge.refused(503, "SERVICE_UNAVAILABLE");
        one_partition_closed(test).await;
        let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut redis).await.unwrap();
        get(test, "/readyz").await.ok();
        assert_eq!(balance(test, user).await, 0);
    })
    .await;
}
