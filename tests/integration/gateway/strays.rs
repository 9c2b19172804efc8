//! Money that PortOne takes for an order which another provider's payment decides: it goes back, however far that payment is.

use firstcome::config::{GatewayProtocol, Secret};
use reqwest::Method;
use serde_json::json;

use crate::{
    gateway::{
        flow::{GatewayShop, LONG_TIMEOUT_MS},
        providers::send,
    },
    support::{
        fake_gateway::{Behaviour, FakeGateway, Protocol, QueryBehaviour},
        harness::Reply,
    },
};

/// How far Toss's payment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Started,
    Watched,
    RefundDue,
    PartDue,
}

/// A shop that pays KAKAO_PAY through Toss, and CARD through PortOne.
async fn shop_of_two() -> (GatewayShop, FakeGateway) {
    let (toss, portone) = (FakeGateway::speaking(Protocol::Toss).await, FakeGateway::speaking(Protocol::PortOne).await);
    let mut config = toss.config();
    config.payment_gateway_card_url = Some(Secret::new(portone.url()));
    config.payment_provider_card = GatewayProtocol::PortOne;
    (GatewayShop::with(toss, config, LONG_TIMEOUT_MS).await, portone)
}

async fn reach(shop: &GatewayShop, stage: Stage) {
    match stage {
        Stage::Started => {
            shop.gateway.next(Behaviour::ServerErrorAfterApproval);
            shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
        }
        Stage::Watched => {
            shop.gateway.next(Behaviour::ServerError);
            shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
            shop.later(400).await;
            assert_eq!(shop.payment().await, "WATCHED");
        }
        Stage::RefundDue => {
            shop.pay(None).await.ok();
            shop.test.cancel(shop.order, shop.user).await.ok();
        }
        Stage::PartDue => {
            shop.pay(None).await.ok();
            shop.test.refund_lines(shop.order, shop.user, &[(shop.product, 1)]).await.ok();
        }
    }
}

#[tokio::test]
async fn stray_money_given_back_while_other_payment_open() {
    for (stage, by_message) in [Stage::Started, Stage::Watched, Stage::RefundDue, Stage::PartDue]
        .into_iter()
        .flat_map(|stage| [(stage, true), (stage, false)])
    {
        eprintln!("{stage:?}, by a message: {by_message}");
        let (shop, portone) = shop_of_two().await;
        let name = shop.prepare(shop.order, None).await.ok()["merchantOrderId"].as_str().unwrap().to_owned();
        reach(&shop, stage).await;
        portone.customer_pays(&name, 5_000);
        let ask = async || -> Reply {
            if by_message {
                let (headers, body) = portone.webhook(&name, shop.test.clock.now().0).unwrap();
                return send(&shop, "card", &headers, &body).await;
            }
            let body = json!({
                "orderId": shop.order, "userId": shop.user, "paymentType": "CARD", "amount": 5_000, "gatewayToken": name,
            });
            shop.test.send(Method::POST, "/api/v1/payments", Some(&body), Some("k")).await
        };
        portone.cancels_are(QueryBehaviour::ServerError);
        ask().await.refused(503, "SERVICE_UNAVAILABLE");
        portone.cancels_are(QueryBehaviour::Truthful);
        let reply = ask().await;
        match (by_message, stage) {
            (true, _) => assert_eq!(reply.ok(), json!({"received": true})),
            (false, Stage::Started) => reply.refused(409, "REQUEST_IN_PROGRESS"),
            (false, Stage::PartDue) => reply.refused(409, "ORDER_ALREADY_PAID"),
            (false, _) => reply.refused(400, "INVALID_PAYMENT_REQUEST"),
        }
        assert_eq!(portone.total_kept(), 0);
        // The order's own payment ends as ever.
        shop.later(400).await;
        let (status, kept) = match stage {
            Stage::Started => ("PAID", 5_000),
            Stage::Watched => ("FAILED", 0),
            Stage::RefundDue => ("CANCELLED", 0),
            Stage::PartDue => ("PAID", 2_500),
        };
        assert_eq!((shop.status().await.0.as_str(), shop.gateway.total_kept()), (status, kept));
        let cancels = portone.cancels(&name);
        ask().await;
        assert_eq!(portone.cancels(&name), cancels, "it is given back again");
        assert!(portone.faults().is_empty(), "{:?}", portone.faults());
        shop.finish(kept).await;
    }
}

/// The money that pays the order is no stray, whichever type a message names.
#[tokio::test]
async fn money_of_paid_order_kept_when_message_names_other_type() {
    let gateway = FakeGateway::speaking(Protocol::PortOne).await;
    let mut config = gateway.config();
    config.payment_gateway_card_url = Some(Secret::new(gateway.url()));
    config.payment_provider_card = GatewayProtocol::PortOne;
    let shop = GatewayShop::with(gateway, config, LONG_TIMEOUT_MS).await;
    shop.pay(None).await.ok();
    let (headers, body) = shop.gateway.webhook(&shop.uid(), shop.test.clock.now().0).unwrap();
    send(&shop, "card", &headers, &body).await.ok();
    assert_eq!((shop.status().await.0.as_str(), shop.gateway.cancels(&shop.uid())), ("PAID", 0));
    shop.finish(5_000).await;
}
