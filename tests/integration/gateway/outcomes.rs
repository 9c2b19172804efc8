//! Payments with an unknown outcome that an operator resolves, and replies of the gateway after that.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    gateway::flow::{GatewayShop, LONG_TIMEOUT_MS, SHORT_TIMEOUT_MS},
    support::{
        fake_gateway::{Behaviour, FakeGateway, Protocol, QueryBehaviour, over_each_protocol},
        harness::Reply,
    },
};

const GONE: &str = r#"{"error": "gone"}"#;

/// A stuck payment: its gateway took the money (or not, by `behaviour`), hung, and has been down since.
async fn stuck_shop(protocol: Protocol, behaviour: Behaviour) -> GatewayShop {
    let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
    shop.gateway.next(behaviour);
    shop.pay(Some("k")).await.refused(503, "SERVICE_UNAVAILABLE");
    gateway_down(&shop);
    for _ in 0..3 {
        shop.later(400).await;
    }
    shop
}

fn gateway_down(shop: &GatewayShop) {
    shop.gateway.status_queries_are(QueryBehaviour::Answer(410, GONE.to_owned()));
    shop.gateway.cancels_are(QueryBehaviour::Answer(410, GONE.to_owned()));
}

fn gateway_up(shop: &GatewayShop) {
    shop.gateway.status_queries_are(QueryBehaviour::Truthful);
    shop.gateway.cancels_are(QueryBehaviour::Truthful);
}

async fn resolve_order(shop: &GatewayShop, order: i64, body: &Value, key: Option<&str>) -> Reply {
    let path = format!("/admin/v1/orders/{order}/payment-outcome");
    shop.test.send(Method::POST, &path, Some(body), key).await
}

async fn resolve(shop: &GatewayShop, outcome: &str) -> Reply {
    resolve_order(shop, shop.order, &json!({"outcome": outcome, "reason": "the provider's console says so"}), None)
        .await
}

async fn listed_stuck(shop: &GatewayShop) -> Value {
    shop.test.get("/admin/v1/payments/stuck").await.ok()
}

/// The payment in PostgreSQL: status, transaction id, the operator who resolved it, the reason.
async fn payment(shop: &GatewayShop) -> (String, Option<String>, Option<String>, Option<String>) {
    shop.test.drain().await;
    let query = sqlx::query_as(
        "SELECT status, transaction_id, resolved_by, resolved_because FROM payments WHERE order_id = $1",
    );
    query.bind(shop.order).fetch_one(shop.test.db.get_postgres_connection_pool()).await.unwrap()
}

#[tokio::test]
async fn payment_listed_with_last_gateway_reply_when_stuck() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
        assert_eq!(listed_stuck(&shop).await, json!({"content": [], "totalElements": 0}));
        shop.finish(0).await;
        let shop = stuck_shop(protocol, Behaviour::ApproveThenHang).await;
        let listed = listed_stuck(&shop).await;
        assert_eq!(listed["totalElements"], 1);
        let payment = &listed["content"][0];
        assert_eq!((&payment["orderId"], &payment["userId"]), (&json!(shop.order), &json!(shop.user)));
        assert_eq!((&payment["paymentType"], &payment["amount"]), (&json!("KAKAO_PAY"), &json!(5_000)));
        assert_eq!((&payment["receipt"], &payment["paymentStatus"]), (&json!(shop.receipt().await), &json!("STARTED")));
        assert_eq!(payment["lastAnswer"], "HTTP 410 is no decision");
        assert!(payment["askCount"].as_i64().unwrap() >= 2, "{payment}");
        gateway_up(&shop);
        shop.later(1_000).await;
        assert_eq!(listed_stuck(&shop).await["totalElements"], 0);
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn order_paid_when_operator_and_gateway_approve() {
    over_each_protocol(async |protocol| {
        let shop = stuck_shop(protocol, Behaviour::ApproveThenHang).await;
        let body = json!({"outcome": "APPROVED", "transactionId": "by-hand", "reason": "the customer's statement"});
        let resolved = resolve_order(&shop, shop.order, &body, Some("resolve")).await;
        assert!(!resolved.replayed());
        let resolved = resolved.ok();
        assert_eq!((&resolved["orderId"], &resolved["orderStatus"]), (&json!(shop.order), &json!("PAID")));
        assert!(resolved["resolvedAt"].is_string());
        assert_eq!(shop.status().await, ("PAID".into(), None));
        // A repeat by the client gets the outcome, and a repeat by the operator replays the resolution.
        let paid = shop.pay(Some("k")).await;
        assert!(paid.replayed());
        assert_eq!(paid.ok()["orderStatus"], "PAID");
        let again = resolve_order(&shop, shop.order, &body, Some("resolve")).await;
        assert!(again.replayed());
        assert_eq!(again.ok(), resolved);
        let other = json!({"outcome": "DECLINED", "reason": "on second thought"});
        resolve_order(&shop, shop.order, &other, Some("resolve")).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
        resolve_order(&shop, shop.order, &other, None).await.refused(409, "NO_PAYMENT_UNDER_WAY");
        let of = |text: &str| Some(text.to_owned());
        let why = of("the customer's statement");
        // A provider's own id is kept: the payment is asked about, and refunded, by it.
        let [by_hand, by_gateway] = match protocol {
            Protocol::Http => ["by-hand".to_owned(), format!("tx-{}", shop.uid())],
            _ => [shop.uid(), shop.uid()],
        };
        assert_eq!(payment(&shop).await, ("UNCONFIRMED".into(), of(&by_hand), of("admin"), why.clone()));
        // The gateway is back and confirms the payment.
        gateway_up(&shop);
        shop.later(1_000).await;
        assert_eq!(payment(&shop).await, ("PAID".into(), of(&by_gateway), of("admin"), why));
        let uid = shop.uid();
        let queries = shop.gateway.status_queries(&uid);
        shop.later(100_000).await;
        assert_eq!(shop.gateway.status_queries(&uid), queries, "a finished payment is queried again");
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn payment_stuck_and_order_paid_when_gateway_contradicts_operator() {
    over_each_protocol(async |protocol| {
        let shop = stuck_shop(protocol, Behaviour::Hang).await;
        assert_eq!(resolve(&shop, "APPROVED").await.ok()["orderStatus"], "PAID");
        // The gateway never received the payment, so it reports the payment as declined.
        shop.gateway.status_queries_are(QueryBehaviour::Denied);
        shop.later(10).await;
        assert_eq!(shop.status().await, ("PAID".into(), None));
        let listed = listed_stuck(&shop).await;
        assert_eq!(listed["content"][0]["paymentStatus"], "UNCONFIRMED");
        assert!(listed["content"][0]["lastAnswer"].as_str().unwrap().starts_with("declined: "), "{listed}");
        // The refund finds no money at the gateway, which is its end.
        shop.gateway.cancels_are(QueryBehaviour::Denied);
        assert_eq!(shop.test.cancel(shop.order, shop.user).await.ok()["closeReason"], "REFUNDED");
        shop.later(10).await;
        assert_eq!(
            (payment(&shop).await.0.as_str(), &listed_stuck(&shop).await["totalElements"]),
            ("REFUNDED", &json!(0))
        );
        assert_eq!(shop.stock().await, 10);
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn payment_disputed_when_gateway_never_confirms_approval() {
    over_each_protocol(async |protocol| {
        let shop = stuck_shop(protocol, Behaviour::Hang).await;
        assert_eq!(resolve(&shop, "APPROVED").await.ok()["orderStatus"], "PAID");
        shop.later(100_000).await;
        assert_eq!(payment(&shop).await.0, "DISPUTED");
        let [uid] = &shop.gateway.uids()[..] else { panic!("one payment was tried") };
        let queries = shop.gateway.status_queries(uid);
        shop.later(100_000).await;
        assert_eq!((shop.gateway.status_queries(uid), shop.status().await.0.as_str()), (queries, "PAID"));
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn order_failed_and_holds_released_when_operator_and_gateway_decline() {
    over_each_protocol(async |protocol| {
        let shop = stuck_shop(protocol, Behaviour::Hang).await;
        assert_eq!(shop.stock().await, 8);
        assert_eq!(resolve(&shop, "DECLINED").await.ok()["orderStatus"], "FAILED");
        assert_eq!(shop.status().await, ("FAILED".into(), Some("PAYMENT_DECLINED".into())));
        assert_eq!(shop.stock().await, 10);
        let repeat = shop.pay(Some("k")).await;
        repeat.refused(402, "INSUFFICIENT_BALANCE");
        assert!(repeat.replayed());
        assert_eq!(payment(&shop).await.0, "WATCHED");
        resolve(&shop, "DECLINED").await.refused(409, "NO_PAYMENT_UNDER_WAY");
        shop.gateway.status_queries_are(QueryBehaviour::Denied);
        shop.later(1_000).await;
        assert_eq!(payment(&shop).await.0, "DECLINED");
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn payment_refunded_when_gateway_took_money_that_operator_declined() {
    over_each_protocol(async |protocol| {
        let shop = stuck_shop(protocol, Behaviour::ApproveThenHang).await;
        assert_eq!(resolve(&shop, "DECLINED").await.ok()["orderStatus"], "FAILED");
        shop.later(1_000).await;
        assert_eq!((shop.gateway.total_kept(), payment(&shop).await.0.as_str()), (5_000, "WATCHED"));
        gateway_up(&shop);
        shop.later(2_000).await;
        assert_eq!(payment(&shop).await.0, "REFUNDED");
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn coupon_and_open_order_released_when_operator_declines() {
    let gateway = FakeGateway::start().await;
    let url = gateway.url().to_owned();
    drop(gateway);
    // The gateway refuses connections.
    let shop = GatewayShop::at(&url, LONG_TIMEOUT_MS).await;
    let lines = json!([{"productId": shop.product, "quantity": 1}]);
    let order = json!({"userId": shop.user, "orderProducts": lines, "userCouponId": shop.coupon});
    let order = shop.test.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap();
    shop.test.pay(order, shop.user, "KAKAO_PAY", 1_500).await.refused(503, "SERVICE_UNAVAILABLE");
    let coupons = format!("/api/v1/coupons/{}", shop.user);
    assert_eq!(shop.test.get(&coupons).await.ok()[0]["couponStatus"], "USED");
    let body = json!({"outcome": "DECLINED", "reason": "the provider is bankrupt"});
    assert_eq!(resolve_order(&shop, order, &body, Some("d")).await.ok()["orderStatus"], "FAILED");
    assert_eq!(shop.test.get(&coupons).await.ok()[0]["couponStatus"], "AVAILABLE");
    assert_eq!(shop.stock().await, 8);
    shop.test.finish().await;
}

#[tokio::test]
async fn resolve_refused_when_no_payment_open() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        // The order is PENDING and has no payment.
        resolve(&shop, "APPROVED").await.refused(409, "NO_PAYMENT_UNDER_WAY");
        let body = json!({"outcome": "APPROVED", "reason": "x"});
        resolve_order(&shop, 987_654_321, &body, None).await.refused(404, "ORDER_NOT_FOUND");
        shop.pay(None).await.ok();
        resolve(&shop, "DECLINED").await.refused(409, "NO_PAYMENT_UNDER_WAY");
        assert_eq!(shop.status().await, ("PAID".into(), None));
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn resolve_refused_when_body_invalid() {
    over_each_protocol(async |protocol| {
        let shop = stuck_shop(protocol, Behaviour::ApproveThenHang).await;
        let before = shop.test.snapshot().await;
        for body in [
            json!({}),
            json!([]),
            json!({"outcome": "APPROVED"}),
            json!({"reason": "x"}),
            json!({"outcome": "approved", "reason": "x"}),
            json!({"outcome": "PAID", "reason": "x"}),
            json!({"outcome": null, "reason": "x"}),
            json!({"outcome": "APPROVED", "reason": ""}),
            json!({"outcome": "APPROVED", "reason": " "}),
            json!({"outcome": "APPROVED", "reason": "a\u{0}b"}),
            json!({"outcome": "APPROVED", "reason": "x".repeat(501)}),
            json!({"outcome": "APPROVED", "reason": "x", "transactionId": ""}),
            json!({"outcome": "APPROVED", "reason": "x", "transactionId": null}),
            json!({"outcome": "APPROVED", "reason": "x", "transactionId": "t".repeat(256)}),
            json!({"outcome": "APPROVED", "reason": "x", "transactionId": "a\u{1f}b"}),
            json!({"outcome": "DECLINED", "reason": "x", "transactionId": "t"}),
            json!({"outcome": "APPROVED", "reason": "x", "transactionID": "t"}),
            json!({"outcome": "APPROVED", "reason": "x", "amount": 1}),
        ] {
            resolve_order(&shop, shop.order, &body, Some("wrong")).await.refused(400, "INVALID_REQUEST");
        }
        let misspelled = json!({"outcome": "APPROVED", "reason": "x", "transactionID": "t"});
        let refused = resolve_order(&shop, shop.order, &misspelled, None).await;
        assert!(refused.json()["message"].as_str().unwrap().contains("transactionID"), "{}", refused.text);
        assert!(before == shop.test.snapshot().await, "a refused request has an effect");
        gateway_up(&shop);
        shop.later(1_000).await;
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn resolve_recorded_in_operator_log() {
    over_each_protocol(async |protocol| {
        let shop = stuck_shop(protocol, Behaviour::Hang).await;
        resolve(&shop, "DECLINED").await.ok();
        let log = shop.test.get("/admin/v1/operator-log").await.ok();
        let entry = &log["content"][0];
        assert_eq!(entry["action"], "POST /admin/v1/orders/{orderId}/payment-outcome");
        assert_eq!((&entry["operator"], &entry["status"]), (&json!("admin"), &json!(200)));
        assert_eq!(entry["target"], format!("orderId={}", shop.order));
        assert!(entry["detail"].as_str().unwrap().contains("the provider's console says so"), "{entry}");
        shop.finish(0).await;
    })
    .await;
}
