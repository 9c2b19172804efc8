//! Operations over several partitions take a step in each. These tests stop between two steps, as a crash does; the relay or
//! the sweeper completes or releases the rest, exactly once.

use chrono::Days;
use firstcome::{
    model::{Partition, *},
    redis::commands::{
        CloseOrder, Closing, HoldStock, OwnSequence, PayOrder, PlaceOrder, RemoteEnd, SettleStock, Settled,
    },
};

use crate::support::harness::{Options, TestApp, call};

/// A user in partition 0, a product and a campaign in partition 1.
struct TwoPartitions {
    test: TestApp,
    user: UserId,
    product: ProductId,
    coupon: CouponId,
}

impl TwoPartitions {
    async fn start() -> TwoPartitions {
        let test = TestApp::with(Options { partitions: 2, ..Options::default() }).await;
        // For the ids that these tests choose.
        test.store.numbers_reserve(Partition(0), OwnSequence::Orders, 1_000_000).await.unwrap();
        let (mut user, mut product, mut coupon) = (1, 0, 0);
        while user % 2 == 1 {
            user = test.user(10_000).await;
        }
        while product % 2 == 0 {
            product = test.product(1_000, 5).await;
        }
        while coupon % 2 == 0 {
            coupon = test.campaign("FIXED", 300, 2).await;
        }
        let (user, product) = (UserId::new(user).unwrap(), ProductId::new(product).unwrap());
        TwoPartitions { user, product, coupon: CouponId::new(coupon).unwrap(), test }
    }

    async fn stock(&self) -> i64 {
        self.test.engine.product(self.product).await.unwrap().stock
    }

    fn new_order(&self) -> NewOrder {
        NewOrder { user_id: self.user, lines: vec![(self.product, 2)], coupon_id: None }
    }

    fn new_hold(&self, order_id: OrderId) -> HoldStock {
        HoldStock { order_id, user_id: self.user, check_in_ms: 660_000, lines: vec![(self.product, 2)] }
    }

    async fn hold(&self, order: OrderId) -> String {
        let call = call(None);
        self.test.store.stock_hold(&call, Partition(1), &self.new_hold(order)).await.unwrap()
    }

    async fn place(&self, order_id: OrderId, remote_lines: &str) -> Result<PlacedOrder, Error> {
        let call = call(None);
        let place = PlaceOrder {
            order_id,
            user_id: self.user,
            hold_ms: 600_000,
            max_open: 20,
            must_afford: true,
            coupon: None,
            lines: Vec::new(),
            remote_lines: remote_lines.to_owned(),
            validate: None,
        };
        self.test.store.order_place(&call, place).await.map(|placed| placed.value)
    }
}

#[tokio::test]
async fn coupon_issued_reaches_user_through_relay() {
    let shop = TwoPartitions::start().await;
    let call = call(None);
    shop.test.store.coupon_issue(&call, shop.user, shop.coupon).await.unwrap();
    assert!(shop.test.engine.user_coupons(shop.user).await.unwrap().is_empty());
    shop.test.drain().await;
    let coupons = shop.test.engine.user_coupons(shop.user).await.unwrap();
    assert_eq!((coupons.len(), coupons[0].issue_no), (1, 1));
    shop.test.finish().await;
}

#[tokio::test]
async fn remote_hold_without_order_released_when_due() {
    let shop = TwoPartitions::start().await;
    let order = OrderId::new(1_000_000).unwrap();
    let remote_lines = shop.hold(order).await;
    assert_eq!(shop.stock().await, 3);
    shop.test.clock.advance(659_999);
    shop.test.engine.sweep().await.unwrap();
    assert_eq!(shop.stock().await, 3, "not due yet");
    shop.test.clock.advance(1);
    shop.test.engine.sweep().await.unwrap();
    shop.test.engine.sweep().await.unwrap();
    assert_eq!(shop.stock().await, 5);
    // A late order finds its hold released.
    let late = shop.place(order, &remote_lines).await;
    assert!(matches!(late, Err(Error::Unavailable { .. })), "{late:?}");
    assert_eq!(shop.stock().await, 5);
    shop.test.finish().await;
}

#[tokio::test]
async fn remote_hold_after_release_holds_nothing() {
    let shop = TwoPartitions::start().await;
    let order = OrderId::new(1_000_000).unwrap();
    let call = call(None);
    let store = &shop.test.store;
    let released = SettleStock { order_id: order, user_id: shop.user, end: RemoteEnd::Released, day: None };
    store.stock_settle(&call, Partition(1), released).await.unwrap();
    let late = store.stock_hold(&call, Partition(1), &shop.new_hold(order)).await;
    assert!(matches!(late, Err(Error::Unavailable { .. })), "{late:?}");
    assert_eq!(shop.stock().await, 5);
    shop.test.finish().await;
}

#[tokio::test]
async fn paid_order_reaches_remote_stock_and_ranking_through_relay() {
    let shop = TwoPartitions::start().await;
    let order = OrderId::new(1_000_000).unwrap();
    let remote_lines = shop.hold(order).await;
    let placed = shop.place(order, &remote_lines).await.unwrap();
    let call = call(None);
    let payment =
        NewPayment { order_id: order, user_id: shop.user, payment_type: PaymentType::Card, amount: placed.final_price };
    let payment_id = PaymentId::new(1).unwrap();
    let pay_at = |now| PayOrder {
        payment: payment.clone(),
        payment_id,
        receipt: "r-1".to_owned(),
        transaction: None,
        day: CalendarDay::of(now, chrono_tz::Asia::Seoul),
    };
    let settled = shop.test.store.order_pay(&call, Partition(0), &pay_at).await.unwrap();
    assert!(matches!(settled.value, Settled::Paid { .. }));
    assert!(shop.test.engine.popular(RankingScope::Today, 5).await.unwrap().is_empty());
    shop.test.drain().await;
    // The merged ranking of a scope is cached for a moment; this scope is read for the first time.
    let ranked = shop.test.engine.popular(RankingScope::Weekly, 5).await.unwrap();
    assert_eq!((ranked[0].product_id, ranked[0].units, ranked[0].won), (shop.product, 2, 2_000));
    shop.test.finish().await;
}

#[tokio::test]
async fn order_end_reaches_remote_stock_by_expiry() {
    let shop = TwoPartitions::start().await;
    let (engine, store) = (shop.test.engine.clone(), shop.test.store.clone());
    let call = call(None);
    // Orders that are paid, cancelled and pending when their holds are due; the relay does not run.
    let mut orders = Vec::new();
    for id in [1_000_000, 1_000_002] {
        let order = OrderId::new(id).unwrap();
        let remote_lines = shop.hold(order).await;
        shop.place(order, &remote_lines).await.unwrap();
        orders.push(order);
    }
    let closing = Closing::Cancel { paid_on: None };
    let close = CloseOrder { order_id: orders[1], user_id: shop.user, closing };
    store.order_close(&call, &close).await.unwrap().unwrap();
    assert_eq!(shop.stock().await, 1);
    shop.test.clock.advance(660_000);
    engine.sweep().await.unwrap();
    engine.sweep().await.unwrap();
    assert_eq!(shop.stock().await, 5);
    assert_eq!(engine.order(orders[0], None).await.unwrap().close_reason, Some(CloseReason::Expired));
    shop.test.finish().await;
}

#[tokio::test]
async fn refund_after_midnight_subtracted_from_day_of_sale_across_partitions() {
    let shop = TwoPartitions::start().await;
    let engine = shop.test.engine.clone();
    let call = call(None);
    let placed = engine.place_order(&call, shop.new_order()).await.unwrap().value;
    let payment = NewPayment {
        order_id: placed.order_id,
        user_id: shop.user,
        payment_type: PaymentType::KakaoPay,
        amount: placed.final_price,
    };
    engine.pay_order(&call, payment).await.unwrap();
    let sold_on = shop.test.clock.now().day(chrono_tz::Asia::Seoul);
    shop.test.clock.advance(86_400_000);
    assert_eq!(shop.test.clock.now().day(chrono_tz::Asia::Seoul), sold_on + Days::new(1));
    assert_eq!(engine.popular(RankingScope::ThreeDays, 5).await.unwrap().len(), 1);
    assert!(engine.popular(RankingScope::Today, 5).await.unwrap().is_empty());
    engine.cancel_order(&call, placed.order_id, shop.user).await.unwrap();
    assert!(engine.popular(RankingScope::ThreeDays, 5).await.unwrap().is_empty());
    assert_eq!(shop.stock().await, 5);
    shop.test.finish().await;
}

#[tokio::test]
async fn repeat_of_order_holds_nothing_in_other_partitions() {
    let shop = TwoPartitions::start().await;
    let engine = shop.test.engine.clone();
    let all = NewOrder { lines: vec![(shop.product, 5)], ..shop.new_order() };
    let keyed = call(Some(("k", "all of it")));
    let first = engine.place_order(&keyed, all.clone()).await.unwrap();
    let again = engine.place_order(&keyed, all).await.unwrap();
    assert_eq!((again.replayed, again.value.order_id), (true, first.value.order_id), "a repeat is not SOLD_OUT");
    assert_eq!(shop.stock().await, 0);
    shop.test.finish().await;
}
