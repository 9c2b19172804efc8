//! Gateways that violate the contract: other ids and amounts, refused cancels, errors instead of replies. Each payment
//! ends in a defined state or is reported to operators, and the service asks a failing gateway with growing pauses.

use serde_json::json;

use crate::{
    gateway::flow::{GatewayShop, LONG_TIMEOUT_MS, SHORT_TIMEOUT_MS},
    support::{
        fake_gateway::{Behaviour, Protocol, QueryBehaviour, over_each_protocol},
        harness::{open, postgres_url, until},
    },
};

/// The transaction id in PostgreSQL of the shop's payment.
async fn transaction(shop: &GatewayShop) -> Option<String> {
    shop.test.drain().await;
    let query = sqlx::query_scalar("SELECT transaction_id FROM payments WHERE order_id = $1");
    query.bind(shop.order).fetch_one(shop.test.db.get_postgres_connection_pool()).await.unwrap()
}

/// The number of stuck payments.
async fn stuck_payments(shop: &GatewayShop) -> u64 {
    shop.test.engine.observe().await.partitions.iter().map(|partition| partition.stuck_payments).sum()
}

fn failed() -> (String, Option<String>) {
    ("FAILED".into(), Some("PAYMENT_DECLINED".into()))
}

#[tokio::test]
async fn payment_paid_when_transaction_id_number_or_long_string() {
    for (id, kept) in [
        (json!(12345), "12345".to_owned()),
        (json!("가".repeat(255)), "가".repeat(255)),
        (json!("a\u{1f}b\0c"), "a\\u001fb\\u0000c".to_owned()),
    ] {
        let shop = GatewayShop::start(Protocol::Http, LONG_TIMEOUT_MS).await;
        shop.gateway.transaction_ids_are(id);
        assert_eq!(shop.pay(None).await.ok()["orderStatus"], "PAID");
        assert_eq!(transaction(&shop).await, Some(kept));
        shop.finish(5_000).await;
    }
}

#[tokio::test]
async fn payment_paid_by_sweeper_when_transaction_id_number() {
    let shop = GatewayShop::start(Protocol::Http, LONG_TIMEOUT_MS).await;
    shop.gateway.transaction_ids_are(json!(12345));
    shop.gateway.next(Behaviour::ServerErrorAfterApproval);
    shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
    shop.later(100).await;
    assert_eq!(shop.status().await, ("PAID".into(), None));
    assert_eq!(transaction(&shop).await, Some("12345".to_owned()));
    shop.finish(5_000).await;
}

#[tokio::test]
async fn payment_refunded_when_transaction_id_unusable() {
    for id in [json!("x".repeat(256)), json!(""), json!(null), json!({"id": "tx"}), json!(true)] {
        let shop = GatewayShop::start(Protocol::Http, LONG_TIMEOUT_MS).await;
        shop.gateway.transaction_ids_are(id.clone());
        shop.pay(None).await.refused(402, "INSUFFICIENT_BALANCE");
        assert_eq!(shop.status().await, failed(), "{id}");
        assert_eq!(shop.stock().await, 10, "{id}");
        shop.later(0).await;
        assert_eq!(shop.payment().await, "REFUNDED", "{id}");
        shop.finish(0).await;
    }
}

/// A payment with another amount is refunded. `hangs`: the sweeper learns the amount, not the request.
async fn other_amount_refunded(protocol: Protocol, amount: i64, hangs: bool) {
    let shop = GatewayShop::start(protocol, if hangs { SHORT_TIMEOUT_MS } else { LONG_TIMEOUT_MS }).await;
    if hangs {
        shop.gateway.next(Behaviour::ApproveAmountThenHang(amount));
        shop.pay(Some("k")).await.refused(503, "SERVICE_UNAVAILABLE");
        shop.later(10).await;
    } else {
        shop.gateway.next(Behaviour::ApproveAmount(amount));
        shop.pay(Some("k")).await.refused(402, "INSUFFICIENT_BALANCE");
    }
    assert_eq!(shop.status().await, failed());
    assert_eq!(shop.stock().await, 10);
    let again = shop.pay(Some("k")).await;
    again.refused(402, "INSUFFICIENT_BALANCE");
    assert!(again.replayed());
    shop.later(0).await;
    assert_eq!(shop.payment().await, "REFUNDED");
    let [uid] = &shop.gateway.uids()[..] else { panic!("one payment was tried") };
    let calls = (shop.gateway.cancels(uid), shop.gateway.status_queries(uid));
    shop.later(100_000).await;
    assert_eq!(
        (shop.gateway.cancels(uid), shop.gateway.status_queries(uid)),
        calls,
        "a finished payment is queried again"
    );
    shop.finish(0).await;
}

#[tokio::test]
async fn payment_refunded_when_approved_amount_lower() {
    over_each_protocol(async |protocol| {
        other_amount_refunded(protocol, 100, false).await;
    })
    .await;
}

#[tokio::test]
async fn payment_refunded_when_approved_amount_higher() {
    over_each_protocol(async |protocol| {
        other_amount_refunded(protocol, 50_000, false).await;
    })
    .await;
}

#[tokio::test]
async fn payment_refunded_when_other_amount_found_later() {
    over_each_protocol(async |protocol| {
        other_amount_refunded(protocol, 100, true).await;
    })
    .await;
}

#[tokio::test]
async fn payment_refunded_when_gateway_reports_less_than_taken() {
    let shop = GatewayShop::start(Protocol::Http, LONG_TIMEOUT_MS).await;
    let understated = json!({"approved": true, "transactionId": "tx", "amount": 100}).to_string();
    shop.gateway.next(Behaviour::AnswerAfterApproval(200, understated.clone()));
    shop.gateway.status_queries_are(QueryBehaviour::Answer(200, understated));
    shop.pay(None).await.refused(402, "INSUFFICIENT_BALANCE");
    shop.later(0).await;
    assert_eq!(shop.payment().await, "REFUNDED");
    let [uid] = &shop.gateway.uids()[..] else { panic!("one payment was tried") };
    // The gateway refuses to cancel the reported amount of 100 and accepts the requested amount of 5,000.
    assert_eq!(shop.gateway.cancels(uid), 2);
    assert_eq!(shop.gateway.total_kept(), 0);
    shop.test.finish().await;
}

#[tokio::test]
async fn payment_unknown_when_reply_names_other_order() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::ApproveOther);
        shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
        assert_eq!(shop.status().await, ("PENDING".into(), None));
        // The gateway replied about another order, so it never received this payment.
        shop.later(300).await;
        assert_eq!(shop.status().await, failed());
        shop.later(100_000).await;
        shop.later(100_000).await;
        assert_eq!(shop.payment().await, "DECLINED");
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn refund_finished_by_status_when_cancel_refused_as_done() {
    over_each_protocol(async |protocol| {
        for (code, body) in [
            (409, r#"{"error": "already cancelled"}"#),
            (400, r#"{"errorCode": "ALREADY_CANCELED_PAYMENT"}"#),
            (200, r#"{"errorCode": "ALREADY_CANCELED_PAYMENT"}"#),
            (404, "<html>no such page</html>"),
            (302, ""),
        ] {
            let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
            shop.pay(None).await.ok();
            let uid = shop.uid();
            shop.test.cancel(shop.order, shop.user).await.ok();
            shop.gateway.cancels_are(QueryBehaviour::ThenAnswer(code, body.to_owned()));
            shop.later(0).await;
            assert_eq!(shop.payment().await, "REFUNDED", "{code} {body}");
            assert_eq!((shop.gateway.cancels(&uid), shop.gateway.status_queries(&uid)), (1, 1), "{code} {body}");
            shop.later(100_000).await;
            assert_eq!(shop.gateway.cancels(&uid), 1, "{code} {body}");
            shop.finish(0).await;
        }
    })
    .await;
}

/// Sweeps every other second for this long.
async fn sweep_for(shop: &GatewayShop, seconds: i64) {
    for _ in 0..seconds / 2 {
        shop.later(2).await;
    }
}

#[tokio::test]
async fn refund_retried_with_backoff_when_gateway_refuses() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        shop.pay(None).await.ok();
        let uid = shop.uid();
        shop.test.cancel(shop.order, shop.user).await.ok();
        shop.gateway.cancels_are(QueryBehaviour::Answer(409, r#"{"error": "not now"}"#.to_owned()));
        sweep_for(&shop, 60).await;
        let first = shop.gateway.cancels(&uid);
        assert!((4..=9).contains(&first), "{first} in the first minute");
        sweep_for(&shop, 540).await;
        let cancels = shop.gateway.cancels(&uid);
        assert!((8..=16).contains(&cancels), "{cancels} in ten minutes");
        assert_eq!(stuck_payments(&shop).await, 1);
        assert_eq!(shop.payment().await, "REFUND_DUE");
        shop.gateway.cancels_are(QueryBehaviour::Truthful);
        shop.later(1_000).await;
        assert_eq!((shop.payment().await.as_str(), stuck_payments(&shop).await), ("REFUNDED", 0));
        shop.finish(0).await;
    })
    .await;
}

/// A payment stays PENDING and is stuck while its gateway, which took the money and hung, answers every query with
/// `status`.
async fn stuck_while_gateway_replies(protocol: Protocol, status: QueryBehaviour) {
    let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
    shop.gateway.next(Behaviour::ApproveThenHang);
    shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
    shop.gateway.status_queries_are(status.clone());
    let [uid] = &shop.gateway.uids()[..] else { panic!("one payment was tried") };
    assert_eq!(stuck_payments(&shop).await, 0, "{status:?}");
    sweep_for(&shop, 600).await;
    let queries = shop.gateway.status_queries(uid);
    assert!((6..=13).contains(&queries), "{status:?}: {queries} queries in ten minutes");
    assert_eq!((shop.status().await.0.as_str(), stuck_payments(&shop).await), ("PENDING", 1), "{status:?}");
    // Another process continues the backoff.
    let (redis, postgres) = (shop.test.redis.url(), postgres_url(&shop.test.database));
    let other = open(&shop.test.options, &redis, &postgres, shop.test.clock.clone()).await.unwrap();
    for _ in 0..10 {
        shop.test.clock.advance(2_000);
        other.engine.sweep().await.unwrap();
    }
    assert!(shop.gateway.status_queries(uid) <= queries + 1, "{status:?}");
    other.db.close().await.unwrap();
    shop.later(100_000).await;
    let day = shop.gateway.status_queries(uid);
    shop.later(10).await;
    assert_eq!((shop.gateway.status_queries(uid), stuck_payments(&shop).await), (day, 1), "{status:?}");
    shop.gateway.status_queries_are(QueryBehaviour::Truthful);
    shop.later(1_000).await;
    assert_eq!((shop.status().await.0.as_str(), stuck_payments(&shop).await), ("PAID", 0), "{status:?}");
    shop.finish(5_000).await;
}

#[tokio::test]
async fn payment_stuck_when_gateway_refuses_token() {
    over_each_protocol(async |protocol| {
        stuck_while_gateway_replies(protocol, QueryBehaviour::Answer(401, r#"{"error": "who are you"}"#.to_owned()))
            .await;
    })
    .await;
}

#[tokio::test]
async fn payment_stuck_when_gateway_answers_html() {
    over_each_protocol(async |protocol| {
        stuck_while_gateway_replies(protocol, QueryBehaviour::Answer(404, "<html>no such page</html>".to_owned()))
            .await;
    })
    .await;
}

#[tokio::test]
async fn payment_stuck_when_gateway_gone() {
    over_each_protocol(async |protocol| {
        stuck_while_gateway_replies(protocol, QueryBehaviour::Answer(410, r#"{"error": "gone"}"#.to_owned())).await;
    })
    .await;
}

#[tokio::test]
async fn payment_stuck_when_gateway_redirects() {
    over_each_protocol(async |protocol| {
        stuck_while_gateway_replies(protocol, QueryBehaviour::Answer(302, String::new())).await;
    })
    .await;
}

#[tokio::test]
async fn payment_stuck_when_connection_refused() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::ApproveThenHang);
        shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
        let GatewayShop { test, gateway, order, .. } = shop;
        drop(gateway);
        for _ in 0..300 {
            test.clock.advance(2_000);
            test.engine.sweep().await.unwrap();
        }
        let path = format!("/api/v1/orders/{order}");
        assert_eq!(test.get(&path).await.ok()["orderStatus"], "PENDING");
        let observed = test.engine.observe().await;
        assert_eq!(observed.partitions.iter().map(|partition| partition.stuck_payments).sum::<u64>(), 1);
        test.finish().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payment_answered_in_time_when_reply_endless_or_slow() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (head, piece, bounded) in [
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "1000\r\n".to_owned() + &" ".repeat(0x1000) + "\r\n",
            false,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", String::from(" "), true),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let piece = piece.clone();
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(head.as_bytes()).await;
                    // Sends the piece once and stalls, or repeats it without end.
                    while stream.write_all(piece.as_bytes()).await.is_ok() {
                        if bounded {
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        let shop = GatewayShop::at(&url, SHORT_TIMEOUT_MS).await;
        let reply = until("the payment is answered", async || Some(shop.pay(None).await)).await;
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert_eq!(shop.status().await, ("PENDING".into(), None));
        server.abort();
        shop.test.finish().await;
    }
}
