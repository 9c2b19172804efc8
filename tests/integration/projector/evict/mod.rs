//! Eviction of closed orders: an order leaves Redis once PostgreSQL has it, without a difference to clients. It is shown,
//! refused and refunded as before, with any of its keys missing, and under late or repeated requests.
//!
//! Redis expires keys by its own clock; here they expire when the test calls [`TestApp::expire_evicted`].

mod after_loss;
mod archived;
mod eviction;
mod gateway_payments;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firstcome::{
    config::{Retention, RetentionConfig},
    model::{
        Error, NewPayment, OrderId, Partition, PaymentType, UserId,
        event::{self, Event},
    },
    projector,
    recovery::rebuild,
    redis::{
        commands::{CloseOrder, Closing},
        keys::Keys,
        outbox::{Entry, StreamId},
    },
};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    projector::projection::{RestartableApp, busy_day},
    recovery::rebuild::{ready, rebuilt},
    support::{
        fake_gateway::{Behaviour, FakeGateway, QueryBehaviour},
        harness::{self, Options, TestApp, call, gateways, until},
        invariants,
    },
};

const KEEP_MS: i64 = 3_600_000;
/// A refunded order stays a week.
const REFUNDED_KEEP_MS: i64 = 7 * 24 * 3_600_000;

/// A user, products and a campaign, spread over the partitions.
struct Fixture {
    test: TestApp,
    user: i64,
    /// In partitions 0, 1 and 2 if there are three. The second one comes first, so that no list is sorted by chance.
    products: Vec<i64>,
    coupon: i64,
}

impl Fixture {
    async fn start(partitions: u16) -> Fixture {
        Self::with(Options { partitions, ..Options::default() }).await
    }

    async fn with(options: Options) -> Fixture {
        let test = TestApp::with(options).await;
        let user = test.user(100_000).await;
        let mut products = Vec::new();
        for price in [1_000, 200, 30] {
            products.push(test.product(price, 50).await);
        }
        products.swap(0, 1);
        let coupon = test.campaign("FIXED", 100, 5).await;
        test.issue(coupon, user).await.ok();
        Fixture { test, user, products, coupon }
    }

    /// Two of each product: 2,460 won.
    async fn place(&self, coupon: Option<i64>) -> i64 {
        let lines: Vec<Value> =
            self.products.iter().map(|product| json!({"productId": product, "quantity": 2})).collect();
        let order = json!({"userId": self.user, "orderProducts": lines, "userCouponId": coupon});
        self.test.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap()
    }

    async fn paid(&self) -> i64 {
        let order = self.place(None).await;
        self.test.pay(order, self.user, "CARD", 2_460).await.ok();
        order
    }

    async fn show(&self, order: i64) -> String {
        let reply = self.test.get(&format!("/api/v1/orders/{order}?userId={}", self.user)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.text
    }

    async fn balance(&self) -> i64 {
        self.test.get(&format!("/api/v1/balances/{}", self.user)).await.ok()["balance"].as_i64().unwrap()
    }

    async fn stock(&self) -> Vec<i64> {
        join_all(self.products.iter().map(|product| self.test.stock(*product))).await
    }

    fn key(&self, order: i64) -> String {
        Keys(self.test.store.owner(order)).order(OrderId::new(order).unwrap())
    }

    async fn ttls(&self) -> BTreeMap<String, i64> {
        invariants::ttls(&mut self.test.raw().await).await
    }

    async fn ttl(&self, order: i64) -> Option<i64> {
        self.ttls().await.get(&self.key(order)).copied()
    }

    async fn delete(&self, keys: impl IntoIterator<Item = String>) {
        for key in keys {
            let gone: i64 = redis::cmd("DEL").arg(&key).query_async(&mut self.test.raw().await).await.unwrap();
            assert_eq!(gone, 1, "{key} does not exist");
        }
    }

    async fn finish(self) {
        self.test.finish().await;
    }
}

/// Asserts that a TTL has just begun.
#[track_caller]
fn assert_ttl_fresh(ttl: Option<i64>, whole: i64) {
    assert!(ttl.is_some_and(|ttl| (whole - 300_000..=whole).contains(&ttl)), "{ttl:?} of {whole}");
}

/// An order in each final state, and a PENDING one.
struct ClosedOrders {
    pending: i64,
    paid: i64,
    cancelled: i64,
    expired: i64,
    failed: i64,
    refunded: i64,
    /// The user of the failed order.
    poor: i64,
}

impl ClosedOrders {
    async fn of(shop: &mut Fixture) -> ClosedOrders {
        let (rich, poor) = (shop.user, shop.test.user(2_460).await);
        let expired = shop.place(None).await;
        shop.test.clock.advance(700_000);
        assert_eq!(shop.test.engine.sweep().await.unwrap(), 1);
        let (pending, paid, refunded) = (shop.place(Some(shop.coupon)).await, shop.paid().await, shop.paid().await);
        shop.test.cancel(refunded, rich).await.ok();
        let cancelled = shop.place(None).await;
        shop.test.cancel(cancelled, rich).await.ok();
        shop.user = poor;
        let failed = shop.place(None).await;
        shop.paid().await;
        shop.test.pay(failed, poor, "CARD", 2_460).await.refused(402, "INSUFFICIENT_BALANCE");
        shop.user = rich;
        ClosedOrders { pending, paid, cancelled, expired, failed, refunded, poor }
    }

    fn closed(&self) -> [i64; 5] {
        [self.paid, self.cancelled, self.expired, self.failed, self.refunded]
    }
}

/// The events of these entries.
fn events(entries: &[Entry]) -> Vec<Event> {
    entries.iter().flat_map(|entry| event::decode(&entry.fields)).filter_map(|decoded| decoded.event.ok()).collect()
}

/// The replies to every read of every order.
async fn replies_of(shop: &Fixture, ends: &ClosedOrders) -> Vec<String> {
    let mut replies_of = Vec::new();
    for order in [ends.pending].into_iter().chain(ends.closed()) {
        let (user, other) = if order == ends.failed { (ends.poor, shop.user) } else { (shop.user, ends.poor) };
        let test = &shop.test;
        let path = format!("/api/v1/orders/{order}");
        let pays = [(user, 2_460), (user, 1), (other, 2_460)];
        let mut replies = vec![
            test.get(&path).await,
            test.get(&format!("{path}?userId={user}")).await,
            test.get(&format!("{path}?userId={other}")).await,
            test.cancel(order, other).await,
        ];
        if order != ends.pending {
            for (user, amount) in pays {
                replies.push(test.pay(order, user, "TOSS", amount).await);
            }
        }
        if order != ends.pending && order != ends.paid {
            replies.push(test.cancel(order, user).await);
        }
        replies_of.extend(replies.into_iter().map(|reply| format!("{order}: {} {}", reply.status, reply.text)));
    }
    replies_of.push(shop.test.get("/api/v1/orders/999999").await.text);
    replies_of
}
