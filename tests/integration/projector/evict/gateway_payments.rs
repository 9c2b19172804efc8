//! Eviction and payments through a gateway.

use super::*;

struct GatewayOrder {
    shop: Fixture,
    gateway: FakeGateway,
}

impl GatewayOrder {
    async fn start() -> GatewayOrder {
        let gateway = FakeGateway::start().await;
        let mut config = gateways(&[("KAKAO_PAY", gateway.url())]);
        config.payment_gateway_timeout_ms = 60_000;
        let shop = Fixture::with(Options { gateway: config, ..Options::default() }).await;
        GatewayOrder { shop, gateway }
    }

    async fn pay(&self, order: i64) -> harness::Reply {
        self.shop.test.pay(order, self.shop.user, "KAKAO_PAY", 2_460).await
    }

    /// Projects everything and expires evicted keys. Returns whether the order has left Redis.
    async fn expired(&self, order: i64) -> bool {
        self.shop.test.drain().await;
        self.shop.test.expire_evicted().await;
        self.shop.ttl(order).await.is_none()
    }

    async fn later(&self, seconds: i64) {
        self.shop.test.clock.advance(seconds * 1000);
        self.shop.test.engine.sweep().await.unwrap();
    }
}

#[tokio::test]
async fn order_kept_while_gateway_pending() {
    let by = GatewayOrder::start().await;
    let (shop, gateway) = (&by.shop, &by.gateway);
    // Paid and cancelled: kept until the gateway confirms the refund.
    let order = shop.place(None).await;
    let receipt = by.pay(order).await.ok()["receipt"].as_str().unwrap().to_owned();
    assert!(by.expired(order).await);
    by.pay(order).await.refused(409, "ORDER_ALREADY_PAID");
    assert_eq!(gateway.posts(&receipt), 1);
    gateway.cancels_are(QueryBehaviour::ServerError);
    assert_eq!(shop.test.cancel(order, shop.user).await.ok()["closeReason"], "REFUNDED");
    by.later(5).await;
    assert!(!by.expired(order).await, "the refund is not confirmed");
    assert!(!gateway.cancelled(&receipt));
    gateway.cancels_are(QueryBehaviour::Truthful);
    by.later(5).await;
    assert!(gateway.cancelled(&receipt));
    shop.test.drain().await;
    assert_ttl_fresh(shop.ttl(order).await, REFUNDED_KEEP_MS);
    assert!(by.expired(order).await);
    shop.test.cancel(order, shop.user).await.refused(409, "ORDER_ALREADY_CLOSED");

    // Without a reply: kept until no money can come any more.
    gateway.always(Behaviour::ServerError);
    let lost = shop.place(None).await;
    by.pay(lost).await.refused(503, "SERVICE_UNAVAILABLE");
    assert!(!by.expired(lost).await, "the payment has no outcome");
    by.later(100).await;
    assert!(shop.show(lost).await.contains("FAILED"));
    assert!(!by.expired(lost).await, "the payment is watched");
    by.later(7_200).await;
    assert!(by.expired(lost).await);
    assert!(shop.show(lost).await.contains("FAILED"));
    by.pay(lost).await.refused(400, "INVALID_PAYMENT_REQUEST");
    // Declined: evicted at once.
    gateway.always(Behaviour::Decline);
    let declined = shop.place(None).await;
    by.pay(declined).await.refused(402, "INSUFFICIENT_BALANCE");
    assert!(by.expired(declined).await);
    by.shop.finish().await;
}

/// The gateway replies after the order failed, was watched to the end, and was evicted: the money is refunded nevertheless.
#[tokio::test]
async fn late_payment_of_archived_order_refunded() {
    let by = GatewayOrder::start().await;
    let (shop, gateway) = (&by.shop, &by.gateway);
    let order = shop.place(None).await;
    gateway.next(Behaviour::ApproveLate);
    let meanwhile = async {
        let uid = gateway.any_posted().await;
        by.later(100).await;
        assert!(shop.show(order).await.contains("FAILED"));
        by.later(7_200).await;
        assert!(by.expired(order).await);
        gateway.release_late();
        uid
    };
    let (paid, uid) = tokio::join!(by.pay(order), meanwhile);
    paid.refused(400, "INVALID_PAYMENT_REQUEST");
    assert_eq!((gateway.taken(&uid), gateway.cancelled(&uid)), (Some(2_460), true));
    by.shop.finish().await;
}
