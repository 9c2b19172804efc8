//! `ACK=postgres` and a decision that PostgreSQL refuses: the reply is a 503 until the dead letter is applied.

use firstcome::recovery::rebuild;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    engine::durability::{acknowledged_by_postgres, lag_reached, send},
    recovery::rebuild::{ack_postgres, projected, rebuilt},
    support::{
        fake_gateway::FakeGateway,
        harness::{self, Options, Reply, TestApp, until},
    },
};

/// Asserts that the reply reports an unknown outcome.
fn assert_unknown(reply: &Reply) {
    reply.refused(503, "SERVICE_UNAVAILABLE");
    assert!(reply.headers.contains_key("retry-after"), "{:?}", reply.headers);
}

/// Applies every dead letter, oldest first. Returns their number.
async fn apply_all(test: &TestApp) -> usize {
    let dead_letters = test.get("/admin/v1/dead-letters?size=100").await.ok()["content"].as_array().unwrap().clone();
    for dead_letter in dead_letters.iter().rev() {
        let body = json!({"partition": dead_letter["partition"], "streamId": dead_letter["streamId"], "seq": dead_letter["seq"]});
        let reply = test.post("/admin/v1/dead-letters/retry", body).await;
        assert_eq!(reply.status, 204, "{}", reply.text);
    }
    dead_letters.len()
}

/// This process or another one projects; the refused decision is one of a batch.
#[tokio::test]
async fn reply_unknown_while_decision_is_dead_letter() {
    for elsewhere in [false, true] {
        let test = TestApp::with(if elsewhere { acknowledged_by_postgres() } else { ack_postgres() }).await;
        let projector = test.open_instance(&Options::default()).await.unwrap();
        if elsewhere {
            projector.project();
            test.app.watch(false);
        }
        let mut users = Vec::new();
        for _ in 0..12 {
            users.push(test.user(0).await);
        }
        test.sql("ALTER TABLE balance_entries ADD CONSTRAINT no_sevens CHECK (amount <> 7)").await;
        let charge = async |n: usize| {
            let (path, amount) = (format!("/api/v1/balances/{}", users[n]), if n == 5 { 7 } else { 10 });
            test.send(Method::PUT, &path, Some(&json!({"amount": amount})), Some(&format!("key-{n}"))).await
        };
        for _ in 0..2 {
            // The second round repeats every request.
            for (n, reply) in join_all((0..users.len()).map(charge)).await.into_iter().enumerate() {
                if n == 5 {
                    assert_unknown(&reply);
                } else {
                    assert_eq!(reply.ok()["balance"], 10, "only the dead letter's reply is a 503");
                }
            }
        }
        // Decisions after a dead letter are acknowledged. Redis decided the charge of 7 won once.
        test.put_charge(users[0], 1).await.ok();
        assert_eq!(test.get(&format!("/api/v1/balances/{}", users[5])).await.ok()["balance"], 7);
        test.sql("ALTER TABLE balance_entries DROP CONSTRAINT no_sevens").await;
        assert_eq!(apply_all(&test).await, 1);
        let reply = charge(5).await;
        assert!(reply.replayed(), "{}", reply.text);
        assert_eq!(reply.ok()["balance"], 7);
        projector.stop(None).await;
        projector.db.close().await.unwrap();
        test.finish().await;
    }
}

/// The dead letters are the units that the order's partition received, and the order.
#[tokio::test]
async fn order_reply_unknown_while_transfer_is_dead_letter() {
    let test = TestApp::with(Options { partitions: 3, ..ack_postgres() }).await;
    let (_, user) = (test.user(0).await, test.user(1_000).await);
    let product = test.product(100, 10).await;
    test.sql("ALTER TABLE partition_stock ADD CONSTRAINT none CHECK (false) NOT VALID").await;
    let order = json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 2}]});
    let place = async || test.send(Method::POST, "/api/v1/orders", Some(&order), Some("order")).await;
    assert_unknown(&place().await);
    assert_unknown(&place().await);
    test.sql("ALTER TABLE partition_stock DROP CONSTRAINT none").await;
    assert_eq!(apply_all(&test).await, 2);
    let reply = place().await;
    assert!(reply.replayed(), "{}", reply.text);
    let order = reply.ok()["orderId"].as_i64().unwrap();
    test.pay(order, user, "CARD", 200).await.ok();
    test.finish().await;
}

#[tokio::test]
async fn gateway_not_asked_when_payment_is_dead_letter() {
    let gateway = FakeGateway::start().await;
    let gateways = harness::gateways(&[("CARD", gateway.url())]);
    let test = TestApp::with(Options { gateway: gateways, ..ack_postgres() }).await;
    let (user, product) = (test.user(0).await, test.product(100, 10).await);
    let order = test.place(user, product, 1).await;
    test.sql("ALTER TABLE payments ADD CONSTRAINT none CHECK (false) NOT VALID").await;
    let body = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 100});
    let reply = test.send(Method::POST, "/api/v1/payments", Some(&body), Some("pay")).await;
    assert_unknown(&reply);
    assert_eq!(gateway.total_posts(), 0, "the gateway got a payment that PostgreSQL does not have");
    test.sql("ALTER TABLE payments DROP CONSTRAINT none").await;
    assert_eq!(apply_all(&test).await, 1);
    test.finish().await;
}

/// A rebuild ends the epoch while a reply waits, and discards its decision.
#[tokio::test]
async fn reply_unknown_when_rebuild_discards_decision() {
    let test = TestApp::with(acknowledged_by_postgres()).await;
    let creating = send(&test, Method::POST, "/admin/v1/users", json!({"userName": "A", "balance": 5}), "user");
    lag_reached(&test, 2).await;
    test.drain().await;
    let user = creating.await.unwrap().created()["userId"].as_i64().unwrap();
    let path = format!("/api/v1/balances/{user}");
    let charge = || send(&test, Method::PUT, &path, json!({"amount": 10}), "charge");
    let charging = charge();
    lag_reached(&test, 1).await;
    let _: i64 =
        redis::cmd("XTRIM").arg("{p0}:outbox").arg("MAXLEN").arg(0).query_async(&mut test.raw().await).await.unwrap();
    let summary = rebuilt(&test, rebuild::RebuildOptions { discard: true, ..Default::default() }).await;
    assert_eq!(summary.discarded, 1);
    until("the request has a reply", async || {
        test.engine.check().await;
        charging.is_finished().then_some(())
    })
    .await;
    assert_unknown(&charging.await.unwrap());
    assert_eq!(test.get(&path).await.ok()["balance"], 5);
    // The repeat is decided again, in the new epoch. A repeat of a projected request is replayed.
    test.app.project();
    let reply: Reply = charge().await.unwrap();
    assert!(!reply.replayed(), "{}", reply.text);
    assert_eq!(reply.ok()["balance"], 15);
    let again = send(&test, Method::POST, "/admin/v1/users", json!({"userName": "A", "balance": 5}), "user").await;
    let again = again.unwrap();
    assert!(again.replayed(), "{}", again.text);
    let made: Value = again.created();
    assert_eq!(made["userId"], user);
    projected(&test).await;
    test.finish().await;
}
