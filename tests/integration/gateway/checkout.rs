//! Orders that are paid in the same request, through a gateway: each step happens once, whatever is repeated.

use firstcome::model::{Error, NewOrder, PaymentType, ProductId, Reply, UserId};
use reqwest::Method;
use serde_json::json;

use crate::{
    gateway::flow::{GatewayShop, LONG_TIMEOUT_MS, SHORT_TIMEOUT_MS},
    support::{
        api_kit::{checkout_of, detail, id, keyed},
        fake_gateway::{Behaviour, Protocol},
        harness::{self, call},
    },
};

impl GatewayShop {
    /// A checkout of one unit, 2,500 won, under this key.
    async fn checkout(&self, key: &str) -> harness::Reply {
        let body = checkout_of(self.user, &[(self.product, 1)], "KAKAO_PAY");
        keyed(&self.test, &Method::POST, "/api/v1/orders", &body, key).await
    }
}

#[tokio::test]
async fn order_paid_when_gateway_approves_checkout() {
    let shop = GatewayShop::start(Protocol::Http, LONG_TIMEOUT_MS).await;
    let first = shop.checkout("k").await;
    let bought = first.json();
    assert_eq!((bought["orderStatus"].as_str(), bought["finalPrice"].as_i64()), (Some("PAID"), Some(2_500)));
    assert_eq!(shop.gateway.order_of(bought["receipt"].as_str().unwrap()), Some(id(&bought, "orderId")));
    let again = shop.checkout("k").await;
    assert!(again.replayed() && !first.replayed());
    assert_eq!(again.text, first.text);
    assert_eq!(shop.stock().await, 7);
    let order = detail(&shop.test, id(&bought, "orderId")).await;
    assert_eq!((&order["orderStatus"], &order["paymentId"]), (&json!("PAID"), &bought["paymentId"]));
    shop.finish(2_500).await;
}

#[tokio::test]
async fn order_failed_when_gateway_declines_checkout() {
    let shop = GatewayShop::start(Protocol::Http, LONG_TIMEOUT_MS).await;
    shop.gateway.always(Behaviour::Decline);
    shop.checkout("k").await.refused(402, "INSUFFICIENT_BALANCE");
    let again = shop.checkout("k").await;
    again.refused(402, "INSUFFICIENT_BALANCE");
    assert!(again.replayed());
    assert_eq!((shop.stock().await, shop.gateway.total_posts()), (8, 1));
    shop.finish(0).await;
}

/// The outcome is unknown at first. Repeats wait for it, and the last one gets it.
#[tokio::test]
async fn repeat_gets_outcome_when_gateway_settles_later() {
    let shop = GatewayShop::start(Protocol::Http, SHORT_TIMEOUT_MS).await;
    shop.gateway.next(Behaviour::ApproveThenHang);
    shop.checkout("k").await.refused(503, "SERVICE_UNAVAILABLE");
    shop.checkout("k").await.refused(409, "REQUEST_IN_PROGRESS");
    shop.later(60).await;
    let settled = shop.checkout("k").await;
    assert!(settled.replayed());
    let bought = settled.ok();
    assert_eq!((&bought["orderStatus"], shop.stock().await), (&json!("PAID"), 7));
    shop.finish(2_500).await;
}

/// The process ended after it had placed the order. The repeat pays it; of an order that has expired meanwhile it pays nothing.
#[tokio::test]
async fn repeat_pays_order_that_was_only_placed() {
    let shop = GatewayShop::start(Protocol::Http, LONG_TIMEOUT_MS).await;
    let order = |payment_type| NewOrder {
        user_id: UserId::new(shop.user).unwrap(),
        lines: vec![(ProductId::new(shop.product).unwrap(), 1)],
        coupon_id: None,
        payment_type,
    };
    for (key, expires) in [("paid", false), ("late", true)] {
        let call = call(Some((key, key)));
        let placed = shop.test.engine.place_order(&call, order(None)).await.unwrap().value;
        assert!(placed.payment.is_none());
        if expires {
            shop.later(4_000).await;
        }
        let repeat = shop.test.engine.place_order(&call, order(Some(PaymentType::KakaoPay))).await;
        match repeat {
            Ok(Reply { value, .. }) => {
                assert_eq!((value.order_id, value.payment.is_some()), (placed.order_id, !expires))
            }
            Err(error) => assert!(expires && matches!(error, Error::InvalidOrder), "{error:?}"),
        }
    }
    assert_eq!((shop.stock().await, shop.gateway.total_posts()), (9, 1));
    shop.finish(2_500).await;
}
