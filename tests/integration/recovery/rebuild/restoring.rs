//! A rebuild restores what PostgreSQL has.

use super::*;

/// Compares every key of Redis before and after a rebuild, with orders and payments in every state.
#[tokio::test]
async fn rebuild_restores_state_of_postgres() {
    for partitions in [1, 3] {
        let gateway = FakeGateway::start().await;
        let test = TestApp::with(Options {
            partitions,
            gateway: harness::gateways(&[("TOSS", gateway.url())]),
            ..ack_postgres()
        })
        .await;
        gateway.next(Behaviour::Approve);
        gateway.next(Behaviour::Decline);
        busy_day(&test).await;
        let (rich, product) = (test.user(10_000_000).await, test.product(1_000, 50).await);
        // Through a gateway: paid; declined; without an outcome yet; paid and cancelled, with the refund under way.
        let toss = async |behaviour| {
            gateway.next(behaviour);
            let order = test.place(rich, product, 1).await;
            let body = json!({"orderId": order, "userId": rich, "paymentType": "TOSS", "amount": 1_000});
            test.send(Method::POST, "/api/v1/payments", Some(&body), Some(&format!("toss-{order}"))).await;
            order
        };
        toss(Behaviour::Approve).await;
        toss(Behaviour::Decline).await;
        toss(Behaviour::Garbage).await;
        let refunded = toss(Behaviour::Approve).await;
        test.cancel(refunded, rich).await.ok();
        // Requests with idempotency keys.
        let body = json!({"amount": 77});
        test.send(Method::PUT, &format!("/api/v1/balances/{rich}"), Some(&body), Some("charge")).await.ok();
        let body = json!({"userName": "키", "balance": 5});
        let made = test.send(Method::POST, "/admin/v1/users", Some(&body), Some("user")).await.created();
        let lines = json!([{"productId": product, "quantity": 2}]);
        let order = json!({"userId": rich, "orderProducts": lines});
        let placed = test.send(Method::POST, "/api/v1/orders", Some(&order), Some("order")).await.ok();
        projected(&test).await;

        let before = comparable(test.snapshot().await);
        test.flush_redis().await;
        let summary = rebuilt(&test, rebuild::RebuildOptions::default()).await;
        assert_eq!(
            (summary.epoch, summary.possible_losses.len(), summary.lost_at_least, summary.discarded),
            (2, 0, 0, 0)
        );
        assert_eq!(summary.withheld_units + summary.withheld_coupons, 0, "{summary:?}");
        let after = comparable(test.snapshot().await);
        for (key, value) in &before {
            assert_eq!(after.get(key), Some(value), "{key}, {partitions} partitions");
        }
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());

        // Repeats are replayed, and new ids do not repeat old ones.
        ready(&test).await;
        let again = test.send(Method::POST, "/api/v1/orders", Some(&order), Some("order")).await;
        assert!(again.replayed(), "{}", again.text);
        assert_eq!(again.ok(), placed);
        let again = test.send(Method::POST, "/admin/v1/users", Some(&body), Some("user")).await;
        assert!(again.replayed());
        assert_eq!(again.created(), made);
        let other_body = json!({"amount": 78});
        let path = format!("/api/v1/balances/{rich}");
        let reused = test.send(Method::PUT, &path, Some(&other_body), Some("charge")).await;
        reused.refused(422, "IDEMPOTENCY_KEY_REUSED");
        let new = test.user(1).await;
        assert_eq!(new, made["userId"].as_i64().unwrap() + 1, "ids continue without a gap or a repeat");
        test.order(rich, product, 1).await.ok();
        test.finish().await;
    }
}

/// Sequences of ids continue after ids that are reserved under a key and not used yet.
#[tokio::test]
async fn rebuild_keeps_reserved_ids() {
    let test = TestApp::with(ack_postgres()).await;
    let call = harness::call(Some(("bulk", "request")));
    let first = test.store.ids_reserve(&call, "user", 1_000).await.unwrap().value.first;
    projected(&test).await;
    test.flush_redis().await;
    rebuilt(&test, rebuild::RebuildOptions::default()).await;
    ready(&test).await;
    assert_eq!(test.user(0).await, first + 1_000);
    assert_eq!(test.store.ids_reserve(&call, "user", 1_000).await.unwrap().value.first, first);
    test.finish().await;
}
