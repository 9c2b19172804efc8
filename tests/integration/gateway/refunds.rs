//! Parts of orders that a gateway refunds: each once, one after the other, whatever the gateway replies.

use serde_json::{Value, json};

use crate::{
    gateway::flow::{GatewayShop, LONG_TIMEOUT_MS},
    support::fake_gateway::{Behaviour, CancelledAmounts, Protocol, QueryBehaviour, over_each_protocol},
};

/// A shop whose order, of 2 units at 2,500 won, is paid; and the name of the payment at the gateway.
async fn paid_shop(protocol: Protocol) -> (GatewayShop, String) {
    let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
    shop.pay(None).await.ok();
    let uid = shop.uid();
    (shop, uid)
}

async fn refund_one(shop: &GatewayShop) -> Value {
    shop.test.refund_lines(shop.order, shop.user, &[(shop.product, 1)]).await.ok()
}

/// The parts in PostgreSQL: amount and status.
async fn parts(shop: &GatewayShop) -> Vec<(i64, String)> {
    shop.test.drain().await;
    let query = sqlx::query_as("SELECT amount, status FROM order_refunds WHERE order_id = $1 ORDER BY part");
    query.bind(shop.order).fetch_all(shop.test.db.get_postgres_connection_pool()).await.unwrap()
}

fn of(amount: i64, status: &str) -> (i64, String) {
    (amount, status.to_owned())
}

#[tokio::test]
async fn part_refunded_through_gateway_once() {
    over_each_protocol(async |protocol| {
        let (shop, uid) = paid_shop(protocol).await;
        let order = refund_one(&shop).await;
        assert_eq!((&order["orderStatus"], &order["refundedPrice"]), (&json!("PAID"), &json!(2_500)));
        assert_eq!((shop.stock().await, parts(&shop).await), (9, vec![of(2_500, "REFUND_DUE")]));
        shop.later(0).await;
        assert_eq!((shop.gateway.kept(&uid), shop.gateway.cancels(&uid)), (2_500, 1));
        let key = format!("{}-2500", shop.receipt().await);
        let key = match protocol {
            Protocol::Http | Protocol::Toss => Some(key),
            Protocol::PortOne => Some(format!("\"{key}\"")),
            Protocol::KakaoPay => None,
        };
        assert_eq!(shop.gateway.header("idempotency-key"), key);
        assert_eq!((shop.payment().await, parts(&shop).await), ("PAID".to_owned(), vec![of(2_500, "REFUNDED")]));
        // The last part refunds the rest of the payment.
        let order = refund_one(&shop).await;
        assert_eq!((&order["closeReason"], &order["refundedPrice"]), (&json!("REFUNDED"), &json!(5_000)));
        assert_eq!(shop.payment().await, "REFUND_DUE");
        shop.later(0).await;
        assert_eq!((shop.payment().await, shop.gateway.cancels(&uid)), ("REFUNDED".to_owned(), 2));
        let queries = shop.gateway.status_queries(&uid);
        shop.later(100_000).await;
        assert_eq!(shop.gateway.status_queries(&uid), queries, "a refunded payment is queried again");
        let timeline = shop.test.get(&format!("/admin/v1/orders/{}/timeline", shop.order)).await.ok();
        let events: Vec<&str> =
            timeline["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert!(events.contains(&"ORDER_REFUNDED") && events.contains(&"REFUND_ENDED"), "{events:?}");
        shop.finish(0).await;
    })
    .await;
}

/// The reply to the first request is lost or wrong; the part is refunded once. `refunds`: the gateway has refunded it.
async fn refunded_once(protocol: Protocol, lost: QueryBehaviour, said: CancelledAmounts, refunds: bool) {
    if protocol == Protocol::KakaoPay && said == CancelledAmounts::Unnamed {
        // It has no keys, and always names what it has refunded.
        return;
    }
    let (shop, uid) = paid_shop(protocol).await;
    shop.gateway.cancelled_amounts_are(said);
    refund_one(&shop).await;
    shop.gateway.cancels_are(lost.clone());
    shop.later(0).await;
    assert_eq!(shop.gateway.kept(&uid), if refunds { 2_500 } else { 5_000 }, "{lost:?} {said:?}");
    shop.gateway.cancels_are(QueryBehaviour::Truthful);
    shop.later(100).await;
    assert_eq!(shop.gateway.kept(&uid), 2_500, "{lost:?} {said:?}");
    assert_eq!(parts(&shop).await, [of(2_500, "REFUNDED")], "{lost:?} {said:?}");
    let cancels = shop.gateway.cancels(&uid);
    shop.later(100_000).await;
    assert_eq!(shop.gateway.cancels(&uid), cancels, "a refunded part is repeated");
    shop.finish(2_500).await;
}

#[tokio::test]
async fn part_refunded_once_when_reply_lost() {
    over_each_protocol(async |protocol| {
        for said in [CancelledAmounts::Named, CancelledAmounts::Unnamed] {
            refunded_once(protocol, QueryBehaviour::ThenServerError, said, true).await;
            refunded_once(
                protocol,
                QueryBehaviour::ThenAnswer(409, r#"{"error": "already cancelled"}"#.to_owned()),
                said,
                true,
            )
            .await;
        }
    })
    .await;
}

#[tokio::test]
async fn part_refunded_once_when_gateway_did_nothing() {
    over_each_protocol(async |protocol| {
        for said in [CancelledAmounts::Named, CancelledAmounts::Unnamed, CancelledAmounts::Said(-1)] {
            refunded_once(protocol, QueryBehaviour::ServerError, said, false).await;
            refunded_once(protocol, QueryBehaviour::Garbage, said, false).await;
        }
    })
    .await;
}

#[tokio::test]
async fn part_not_refunded_again_when_gateway_says_done() {
    over_each_protocol(async |protocol| {
        // The gateway lies: it says that it has refunded the part, and has not. Its word counts.
        let (shop, uid) = paid_shop(protocol).await;
        shop.gateway.cancelled_amounts_are(CancelledAmounts::Said(2_500));
        refund_one(&shop).await;
        shop.later(0).await;
        assert_eq!((shop.gateway.cancels(&uid), parts(&shop).await), (0, vec![of(2_500, "REFUNDED")]));
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn parts_refunded_one_after_the_other() {
    over_each_protocol(async |protocol| {
        let (shop, uid) = paid_shop(protocol).await;
        shop.gateway.cancels_are(QueryBehaviour::ServerError);
        refund_one(&shop).await;
        shop.later(0).await;
        // The second part, and with it the whole order, while the first one is due.
        refund_one(&shop).await;
        shop.later(0).await;
        assert_eq!((shop.gateway.kept(&uid), shop.payment().await), (5_000, "REFUND_DUE".to_owned()));
        assert_eq!(parts(&shop).await, [of(2_500, "REFUND_DUE")]);
        shop.gateway.cancels_are(QueryBehaviour::Truthful);
        shop.later(1_000).await;
        assert_eq!((shop.gateway.kept(&uid), parts(&shop).await), (2_500, vec![of(2_500, "REFUNDED")]));
        shop.later(0).await;
        assert_eq!((shop.gateway.kept(&uid), shop.payment().await), (0, "REFUNDED".to_owned()));
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn part_listed_as_stuck_until_gateway_answers() {
    over_each_protocol(async |protocol| {
        let (shop, uid) = paid_shop(protocol).await;
        shop.gateway.status_queries_are(QueryBehaviour::Answer(410, "{}".to_owned()));
        refund_one(&shop).await;
        shop.later(0).await;
        for _ in 0..3 {
            shop.later(400).await;
        }
        let listed = shop.test.get("/admin/v1/payments/stuck").await.ok();
        let payment = &listed["content"][0];
        assert_eq!((&payment["paymentStatus"], &payment["amount"]), (&json!("REFUND_DUE"), &json!(2_500)));
        assert_eq!((&payment["receipt"], &listed["totalElements"]), (&json!(shop.receipt().await), &json!(1)));
        assert_eq!(shop.gateway.cancels(&uid), 0);
        shop.gateway.status_queries_are(QueryBehaviour::Truthful);
        shop.later(1_000).await;
        assert_eq!(shop.test.get("/admin/v1/payments/stuck").await.ok()["totalElements"], 0);
        assert_eq!(shop.gateway.kept(&uid), 2_500);
        shop.finish(2_500).await;
    })
    .await;
}

#[tokio::test]
async fn part_refused_while_payment_unconfirmed() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::ServerErrorAfterApproval);
        shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
        let outcome = json!({"outcome": "APPROVED", "reason": "seen at the provider"});
        shop.test.post(&format!("/admin/v1/orders/{}/payment-outcome", shop.order), outcome).await.ok();
        let refused = shop.test.refund_lines(shop.order, shop.user, &[(shop.product, 1)]).await;
        refused.refused(409, "REQUEST_IN_PROGRESS");
        shop.later(1_000).await;
        refund_one(&shop).await;
        shop.later(0).await;
        shop.finish(2_500).await;
    })
    .await;
}
