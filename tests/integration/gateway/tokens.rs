//! Tokens that customers choose, and pages that they open twice: none leaves an order without an outcome.

use firstcome::model::Partition;
use serde_json::Value;

use crate::{
    gateway::flow::{GatewayShop, LONG_TIMEOUT_MS},
    support::fake_gateway::{Protocol, QueryBehaviour},
};

/// Toss finds fault with the key, whatever it is asked about it; by the order's name it has no confirmed payment.
#[tokio::test]
async fn order_given_up_when_toss_key_is_none() {
    for opens_window in [false, true] {
        let shop = GatewayShop::start(Protocol::Toss, LONG_TIMEOUT_MS).await;
        if opens_window {
            shop.approve(shop.order).await.unwrap();
        }
        shop.pay_with(Some("no-key-of-toss"), Some("k")).await.refused(503, "SERVICE_UNAVAILABLE");
        shop.later(60).await;
        assert_eq!((shop.status().await.0.as_str(), shop.stock().await), ("PENDING", 8));
        shop.later(400).await;
        assert_eq!(shop.status().await, ("FAILED".into(), Some("PAYMENT_DECLINED".into())));
        assert_eq!((shop.stock().await, shop.payment().await.as_str()), (10, "WATCHED"));
        shop.later(4_000).await;
        assert_eq!((shop.gateway.total_taken(), shop.payment().await.as_str()), (0, "DECLINED"));
        shop.test.finish().await;
    }
}

#[tokio::test]
async fn payment_made_from_either_page_when_prepared_twice() {
    for page in [0, 1] {
        let shop = GatewayShop::start(Protocol::KakaoPay, LONG_TIMEOUT_MS).await;
        let pages: [Value; 2] =
            [shop.prepare(shop.order, None).await.ok(), shop.prepare(shop.order, Some("again")).await.ok()];
        let before = shop.test.store.position(Partition(0)).await.unwrap();
        shop.pay_with(Some("pg_of_none"), Some("k")).await.refused(400, "INVALID_PAYMENT_REQUEST");
        let token = shop.gateway.approve_in_window(&pages[page]);
        shop.gateway.status_queries_are(QueryBehaviour::ServerError);
        shop.pay_with(Some(&token), Some("k")).await.refused(503, "SERVICE_UNAVAILABLE");
        let position = shop.test.store.position(Partition(0)).await.unwrap();
        assert_eq!((position, shop.gateway.total_posts()), (before, 0), "a refused payment has an effect");
        shop.gateway.status_queries_are(QueryBehaviour::Truthful);
        assert_eq!(shop.pay_with(Some(&token), Some("k")).await.ok()["orderStatus"], "PAID");
        let tid = token.strip_prefix("pg_").unwrap();
        assert_eq!((shop.gateway.taken(tid), shop.gateway.total_kept()), (Some(5_000), 5_000));
        shop.test.cancel(shop.order, shop.user).await.ok();
        shop.later(0).await;
        assert_eq!((shop.gateway.total_kept(), shop.payment().await.as_str()), (0, "REFUNDED"));
        shop.test.finish().await;
    }
}

/// An order keeps a bounded number of them.
#[tokio::test]
async fn payment_refused_when_page_is_nine_preparations_old() {
    let shop = GatewayShop::start(Protocol::KakaoPay, LONG_TIMEOUT_MS).await;
    let mut pages = Vec::new();
    for _ in 0..9 {
        pages.push(shop.prepare(shop.order, None).await.ok());
    }
    let oldest = shop.gateway.approve_in_window(&pages[0]);
    shop.pay_with(Some(&oldest), None).await.refused(400, "INVALID_PAYMENT_REQUEST");
    let kept = shop.gateway.approve_in_window(&pages[1]);
    shop.pay_with(Some(&kept), None).await.ok();
    shop.test.finish().await;
}
