//! Payments through a gateway that approves, declines, hangs, replies late or replies with garbage: the gateway never
//! takes money twice, and never keeps it for an unpaid order.

use firstcome::config::GatewayConfig;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::support::{
    fake_gateway::{Behaviour, FakeGateway, Protocol, QueryBehaviour, over_each_protocol},
    harness::{Options, Reply, TestApp, gateways, open, postgres_url, until},
};

/// A test app that pays KAKAO_PAY through a fake gateway, with a pending order of 5,000 won.
pub struct GatewayShop {
    pub test: TestApp,
    pub gateway: FakeGateway,
    pub user: i64,
    pub product: i64,
    pub coupon: i64,
    pub order: i64,
    /// What the customer brought back from the provider.
    token: OnceCell<Option<String>>,
}

/// Timeout for gateways that reply, in milliseconds: longer than any stall of the machine.
pub const LONG_TIMEOUT_MS: u64 = 60_000;
/// Timeout for gateways that never reply, in milliseconds.
pub const SHORT_TIMEOUT_MS: u64 = 3_000;

impl GatewayShop {
    pub async fn start(protocol: Protocol, timeout_ms: u64) -> GatewayShop {
        let gateway = FakeGateway::speaking(protocol).await;
        let config = gateway.config();
        GatewayShop::with(gateway, config, timeout_ms).await
    }

    /// The gateway is at `url`, not the fake one.
    pub async fn at(url: &str, timeout_ms: u64) -> GatewayShop {
        GatewayShop::with(FakeGateway::start().await, gateways(&[("KAKAO_PAY", url)]), timeout_ms).await
    }

    pub async fn with(gateway: FakeGateway, mut config: GatewayConfig, timeout_ms: u64) -> GatewayShop {
        config.payment_gateway_timeout_ms = timeout_ms;
        config.payment_gateway_give_up_seconds = 300;
        let test = TestApp::with(Options { gateway: config, ..Options::default() }).await;
        // A balance of 0 proves that the money does not come from the balance.
        let (user, product) = (test.user(0).await, test.product(2_500, 10).await);
        let coupon = test.campaign("FIXED", 1_000, 5).await;
        test.issue(coupon, user).await.ok();
        let order = json!({"userId": user, "orderProducts": [{"productId": product, "quantity": 2}]});
        let order = test.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap();
        GatewayShop { test, gateway, user, product, coupon, order, token: OnceCell::new() }
    }

    /// Pays the order, once its customer has approved the payment at the provider.
    pub async fn pay(&self, key: Option<&str>) -> Reply {
        let token = self.token.get_or_init(|| self.approve(self.order)).await;
        self.pay_with(token.as_deref(), key).await
    }

    pub async fn pay_with(&self, token: Option<&str>, key: Option<&str>) -> Reply {
        let mut body = json!({"orderId": self.order, "userId": self.user, "paymentType": "KAKAO_PAY", "amount": 5_000});
        if let Some(token) = token {
            body["gatewayToken"] = token.into();
        }
        self.test.send(Method::POST, "/api/v1/payments", Some(&body), key).await
    }

    /// Prepares the payment of an order.
    pub async fn prepare(&self, order: i64, key: Option<&str>) -> Reply {
        let url = "https://shop.example/paid?x=1";
        let body = json!({"orderId": order, "userId": self.user, "paymentType": "KAKAO_PAY", "returnUrl": url});
        self.test.send(Method::POST, "/api/v1/payments/prepare", Some(&body), key).await
    }

    /// The customer approves the payment of an order at the provider; `None`: the gateway has no window.
    pub async fn approve(&self, order: i64) -> Option<String> {
        match self.gateway.protocol {
            Protocol::Http => None,
            _ => Some(self.gateway.approve_in_window(&self.prepare(order, None).await.ok())),
        }
    }

    /// The name of the only payment at the gateway.
    pub fn uid(&self) -> String {
        self.gateway.only_uid()
    }

    pub async fn status(&self) -> (String, Option<String>) {
        let order = self.test.get(&format!("/api/v1/orders/{}", self.order)).await.ok();
        (order["orderStatus"].as_str().unwrap().into(), order["closeReason"].as_str().map(str::to_owned))
    }

    pub async fn stock(&self) -> i64 {
        let product = self.test.get(&format!("/api/v1/products/{}", self.product)).await.ok();
        product["stockQuantity"].as_i64().unwrap()
    }

    /// The status in PostgreSQL of the shop's payment.
    pub async fn payment(&self) -> String {
        self.test.drain().await;
        let pool = self.test.db.get_postgres_connection_pool();
        sqlx::query_scalar("SELECT status FROM payments WHERE order_id = $1")
            .bind(self.order)
            .fetch_one(pool)
            .await
            .unwrap()
    }

    /// The receipt in PostgreSQL of the shop's payment.
    pub async fn receipt(&self) -> String {
        self.test.drain().await;
        let query = sqlx::query_scalar("SELECT receipt FROM payments WHERE order_id = $1");
        query.bind(self.order).fetch_one(self.test.db.get_postgres_connection_pool()).await.unwrap()
    }

    /// Advances the clock and runs the sweeper.
    pub async fn later(&self, seconds: i64) {
        self.test.clock.advance(seconds * 1000);
        self.test.engine.sweep().await.unwrap();
    }

    pub async fn finish(self, kept: i64) {
        assert_eq!(self.gateway.total_kept(), kept, "money kept by the gateway");
        assert!(self.gateway.faults().is_empty(), "{:?}", self.gateway.faults());
        for uid in self.gateway.uids() {
            assert_eq!(self.gateway.posts(&uid), 1, "payment {uid} was posted more than once");
        }
        self.test.finish().await;
    }
}

#[tokio::test]
async fn approved_payment_pays_order_without_balance() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let paid = shop.pay(None).await.ok();
        assert_eq!((paid["orderStatus"].as_str(), paid["amount"].as_i64()), (Some("PAID"), Some(5_000)));
        assert_eq!(shop.gateway.taken(&shop.uid()), Some(5_000));
        assert_eq!(shop.gateway.order_of(&shop.uid()), Some(shop.order));
        assert_eq!(shop.test.get(&format!("/api/v1/balances/{}/history", shop.user)).await.ok(), json!([]));
        shop.pay(None).await.refused(409, "ORDER_ALREADY_PAID");
        assert_eq!(shop.payment().await, "PAID");
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn declined_payment_fails_order_and_releases_holds() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        shop.gateway.always(Behaviour::Decline);
        shop.pay(Some("k")).await.refused(402, "INSUFFICIENT_BALANCE");
        assert_eq!(shop.status().await, ("FAILED".into(), Some("PAYMENT_DECLINED".into())));
        assert_eq!(shop.stock().await, 10);
        let again = shop.pay(Some("k")).await;
        again.refused(402, "INSUFFICIENT_BALANCE");
        assert!(again.replayed());
        shop.pay(None).await.refused(400, "INVALID_PAYMENT_REQUEST");
        // At a provider that takes money first the customer may pay yet.
        let is_watched = protocol == Protocol::PortOne;
        assert_eq!(shop.payment().await, if is_watched { "WATCHED" } else { "DECLINED" });
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn refund_retried_through_gateway_until_done() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        shop.pay(None).await.ok();
        let uid = shop.uid();
        let cancelled = shop.test.cancel(shop.order, shop.user).await.ok();
        assert_eq!(
            (cancelled["orderStatus"].as_str(), cancelled["closeReason"].as_str()),
            (Some("CANCELLED"), Some("REFUNDED"))
        );
        assert_eq!(shop.stock().await, 10);
        assert_eq!(shop.payment().await, "REFUND_DUE");
        shop.gateway.cancels_are(QueryBehaviour::ServerError);
        shop.later(0).await;
        assert!(!shop.gateway.cancelled(&uid));
        shop.gateway.cancels_are(QueryBehaviour::ThenServerError);
        shop.later(10).await;
        shop.gateway.cancels_are(QueryBehaviour::Truthful);
        shop.later(10).await;
        assert!(shop.gateway.cancelled(&uid));
        assert_eq!(shop.payment().await, "REFUNDED");
        let cancels = shop.gateway.cancels(&uid);
        shop.later(3_600).await;
        assert_eq!(shop.gateway.cancels(&uid), cancels, "a finished refund is repeated");
        assert_eq!(shop.test.get(&format!("/api/v1/balances/{}", shop.user)).await.ok()["balance"], 0);
        shop.finish(0).await;
    })
    .await;
}

/// The gateway takes the money, but its reply does not arrive.
async fn taken_without_reply(protocol: Protocol, behaviour: Behaviour, timeout_ms: u64) {
    let shop = GatewayShop::start(protocol, timeout_ms).await;
    shop.gateway.next(behaviour);
    let unknown = shop.pay(Some("k")).await;
    unknown.refused(503, "SERVICE_UNAVAILABLE");
    assert!(unknown.headers.contains_key("retry-after"));
    // While the outcome is unknown, neither the user, nor the expiry, nor a second payment ends the order.
    assert_eq!(shop.status().await, ("PENDING".into(), None));
    shop.pay(Some("k")).await.refused(409, "REQUEST_IN_PROGRESS");
    shop.pay(None).await.refused(409, "REQUEST_IN_PROGRESS");
    shop.test.cancel(shop.order, shop.user).await.refused(409, "REQUEST_IN_PROGRESS");
    shop.gateway.status_queries_are(QueryBehaviour::ServerError);
    shop.later(100_000).await;
    assert_eq!(shop.status().await, ("PENDING".into(), None));
    shop.gateway.status_queries_are(QueryBehaviour::Garbage);
    shop.later(100_000).await;
    assert_eq!(shop.status().await, ("PENDING".into(), None));
    shop.gateway.status_queries_are(QueryBehaviour::Truthful);
    shop.later(100_000).await;
    assert_eq!(shop.status().await, ("PAID".into(), None));
    // A repeat of the request gets the outcome.
    let repeated = shop.pay(Some("k")).await;
    assert!(repeated.replayed());
    assert_eq!(repeated.ok()["orderStatus"], "PAID");
    assert_eq!(shop.payment().await, "PAID");
    shop.finish(5_000).await;
}

#[tokio::test]
async fn order_paid_when_money_taken_without_reply() {
    over_each_protocol(async |protocol| {
        taken_without_reply(protocol, Behaviour::ApproveThenHang, SHORT_TIMEOUT_MS).await;
    })
    .await;
}

#[tokio::test]
async fn order_paid_when_money_taken_and_reply_garbage() {
    over_each_protocol(async |protocol| {
        taken_without_reply(protocol, Behaviour::GarbageAfterApproval, LONG_TIMEOUT_MS).await;
    })
    .await;
}

#[tokio::test]
async fn order_paid_when_money_taken_and_reply_error() {
    over_each_protocol(async |protocol| {
        taken_without_reply(protocol, Behaviour::ServerErrorAfterApproval, LONG_TIMEOUT_MS).await;
    })
    .await;
}

#[tokio::test]
async fn order_paid_when_money_taken_and_connection_cut() {
    over_each_protocol(async |protocol| {
        taken_without_reply(protocol, Behaviour::CutAfterApproval, LONG_TIMEOUT_MS).await;
    })
    .await;
}

/// The gateway takes no money, and its reply does not arrive.
async fn not_taken_without_reply(protocol: Protocol, behaviour: Behaviour, timeout_ms: u64) {
    let shop = GatewayShop::start(protocol, timeout_ms).await;
    shop.gateway.next(behaviour);
    shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
    shop.later(3 + timeout_ms as i64 / 1000).await;
    let [uid] = &shop.gateway.uids()[..] else { panic!("one payment was tried") };
    assert_eq!(shop.gateway.status_queries(uid), 1);
    assert_eq!(shop.status().await.0, "PENDING", "the payment may still arrive");
    shop.later(300).await;
    assert_eq!(shop.status().await, ("FAILED".into(), Some("PAYMENT_DECLINED".into())));
    assert_eq!(shop.stock().await, 10);
    // The sweeper queries the payment for an hour, in case the money is taken late.
    shop.later(100).await;
    shop.later(4_000).await;
    let queries = shop.gateway.status_queries(uid);
    shop.later(100_000).await;
    assert_eq!(shop.gateway.status_queries(uid), queries);
    assert_eq!(shop.payment().await, "DECLINED");
    shop.finish(0).await;
}

#[tokio::test]
async fn order_failed_when_gateway_hangs_without_taking_money() {
    over_each_protocol(async |protocol| {
        not_taken_without_reply(protocol, Behaviour::Hang, SHORT_TIMEOUT_MS).await;
    })
    .await;
}

#[tokio::test]
async fn order_failed_when_reply_garbage_and_no_money_taken() {
    over_each_protocol(async |protocol| {
        not_taken_without_reply(protocol, Behaviour::Garbage, LONG_TIMEOUT_MS).await;
    })
    .await;
}

#[tokio::test]
async fn order_failed_when_reply_error_and_no_money_taken() {
    over_each_protocol(async |protocol| {
        not_taken_without_reply(protocol, Behaviour::ServerError, LONG_TIMEOUT_MS).await;
    })
    .await;
}

#[tokio::test]
async fn payment_refunded_when_money_taken_after_order_failed() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::ApproveLate);
        shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
        shop.later(300).await;
        assert_eq!(shop.status().await.0, "FAILED");
        assert_eq!(shop.stock().await, 10);
        shop.gateway.release_late();
        assert_eq!(shop.gateway.total_kept(), 5_000);
        shop.later(120).await;
        assert_eq!(shop.gateway.total_kept(), 0);
        assert_eq!(shop.payment().await, "REFUNDED");
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_payments_take_money_once() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let replies = join_all((0..30).map(|_| shop.pay(None))).await;
        let paid = replies.iter().filter(|reply| reply.status == 200).count();
        assert_eq!(paid, 1);
        assert!(replies.iter().all(|reply| matches!(reply.status.as_u16(), 200 | 409)));
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_sweepers_settle_payment_once() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, SHORT_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::ApproveThenHang);
        shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
        shop.test.clock.advance(60_000);
        // Other processes, which know the payment only through the stores.
        let mut others = Vec::new();
        for _ in 0..4 {
            let (redis, postgres) = (shop.test.redis.url(), postgres_url(&shop.test.database));
            others.push(open(&shop.test.options, &redis, &postgres, shop.test.clock.clone()).await.unwrap());
        }
        for swept in join_all(others.iter().map(|other| other.engine.sweep())).await {
            swept.unwrap();
        }
        shop.later(60).await;
        assert_eq!(shop.status().await.0, "PAID");
        for other in others {
            other.db.close().await.unwrap();
        }
        shop.finish(5_000).await;
    })
    .await;
}

#[tokio::test]
async fn free_order_paid_without_gateway() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        let cheap = shop.test.product(1_000, 1).await;
        let order = json!({"userId": shop.user, "orderProducts": [{"productId": cheap, "quantity": 1}], "userCouponId": shop.coupon});
        let order = shop.test.post("/api/v1/orders", order).await.ok();
        assert_eq!(order["finalPrice"], 0);
        let id = order["orderId"].as_i64().unwrap();
        assert_eq!(shop.test.pay(id, shop.user, "KAKAO_PAY", 0).await.ok()["orderStatus"], "PAID");
        assert_eq!(shop.gateway.total_posts(), 0);
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test]
async fn payment_taken_from_balance_when_type_has_no_gateway() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        shop.test.put_charge(shop.user, 5_000).await.ok();
        assert_eq!(shop.test.pay(shop.order, shop.user, "CARD", 5_000).await.ok()["orderStatus"], "PAID");
        assert_eq!(shop.test.get(&format!("/api/v1/balances/{}", shop.user)).await.ok()["balance"], 0);
        assert_eq!(shop.gateway.total_posts(), 0);
        shop.finish(0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_of_other_orders_continues_when_gateway_hangs() {
    over_each_protocol(async |protocol| {
        let shop = GatewayShop::start(protocol, LONG_TIMEOUT_MS).await;
        shop.gateway.next(Behaviour::CutAfterApproval);
        shop.pay(None).await.refused(503, "SERVICE_UNAVAILABLE");
        let (buyer, cheap) = (shop.test.user(1_000).await, shop.test.product(100, 1).await);
        let order = shop.test.order(buyer, cheap, 1).await.ok()["orderId"].as_i64().unwrap();
        shop.gateway.status_queries_are(QueryBehaviour::Hang);
        shop.test.clock.advance(700_000);
        shop.test.app.sweep();
        let [uid] = &shop.gateway.uids()[..] else { panic!("one payment was tried") };
        shop.gateway.queried(uid, 1).await;
        let path = format!("/api/v1/orders/{order}");
        until("the other order expires", async || {
            (shop.test.get(&path).await.ok()["orderStatus"] == "CANCELLED").then_some(())
        })
        .await;
        assert_eq!(shop.gateway.status_queries(uid), 1, "the first query still hangs");
        assert_eq!(shop.status().await.0, "PENDING");
        shop.finish(5_000).await;
    })
    .await;
}
