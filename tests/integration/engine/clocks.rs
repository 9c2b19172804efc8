//! Redis's clock decides: a process with a wrong clock opens and closes campaigns, expires orders and dates decisions correctly.

use std::sync::atomic::{AtomicUsize, Ordering};

use firstcome::{
    app::App,
    model::{
        CalendarDay, Clock, CouponId, Error, Millis, NewCampaign, NewOrder, NewPayment, NewProduct, OrderId, Partition,
        PaymentId, PaymentType, ProductId, SaleStatus, SaleTerms, UserId,
    },
    redis::commands::{OwnSequence, PayOrder, Settled},
};

use crate::support::harness::{Options, TestApp, call, open, postgres_url};

const SKEW_MS: i64 = 45_000;
/// Longer than a reply takes, shorter than the skew.
const SLACK_MS: i64 = 10_000;

/// Three processes on the same stores: one has the right clock, one is fast and one is slow.
struct Clocks {
    test: TestApp,
    fast: App,
    slow: App,
}

impl Clocks {
    async fn start(options: Options) -> Clocks {
        let test = TestApp::with(Options { clock: None, ..options }).await;
        let other = async |skew_ms: i64| {
            let postgres = postgres_url(&test.database);
            open(&test.options, &test.redis.url(), &postgres, Clock::skewed(skew_ms)).await.unwrap()
        };
        let (fast, slow) = (other(SKEW_MS).await, other(-SKEW_MS).await);
        Clocks { test, fast, slow }
    }

    /// The time of Redis's clock.
    async fn now(&self) -> Millis {
        let (seconds, microseconds): (i64, i64) =
            redis::cmd("TIME").query_async(&mut self.test.raw().await).await.unwrap();
        Millis(seconds * 1000 + microseconds / 1000)
    }

    fn all(&self) -> [&App; 3] {
        [&self.test.app, &self.fast, &self.slow]
    }

    async fn finish(self) {
        for app in [self.fast, self.slow] {
            app.stop(None).await;
            app.db.close().await.unwrap();
        }
        self.test.finish().await;
    }
}

fn campaign(opens_at: Option<Millis>, closes_at: Option<Millis>, expires_at: Millis) -> NewCampaign {
    NewCampaign {
        code: "CODE".into(),
        discount: firstcome::model::Discount { kind: "FIXED".parse().unwrap(), amount: 10 },
        conditions: firstcome::model::CouponConditions::default(),
        total: 100,
        opens_at,
        closes_at,
        expires_at,
    }
}

#[tokio::test]
async fn coupon_issued_by_skewed_process_keeps_window_and_dates() {
    let clocks = Clocks::start(Options::default()).await;
    let now = clocks.now().await;
    let engine = &clocks.test.engine;
    let day = now.plus(86_400_000);
    let coming = engine.create_campaign(&call(None), campaign(Some(now.plus(30_000)), None, day)).await.unwrap();
    let over = engine.create_campaign(&call(None), campaign(None, Some(now.plus(SLACK_MS)), day)).await.unwrap();
    // Closed now, by Redis's clock.
    let patch =
        firstcome::model::CampaignPatch { opens_at: Some(now.plus(-1000)), closes_at: Some(clocks.now().await) };
    engine.update_campaign(&call(None), over.value.terms.coupon_id, patch).await.unwrap();
    for app in clocks.all() {
        let user = UserId::new(clocks.test.user(0).await).unwrap();
        for shut in [coming.value.terms.coupon_id, over.value.terms.coupon_id] {
            let issued = app.engine.issue_coupon(&call(None), user, shut).await;
            assert!(matches!(issued, Err(Error::InvalidCoupon)), "{issued:?}");
        }
        // A campaign that opens now is open at once, whichever process creates it, and in every process.
        let before = clocks.now().await;
        let created = app.engine.create_campaign(&call(None), campaign(None, None, day)).await.unwrap().value;
        let after = clocks.now().await;
        assert!((before..=after).contains(&created.terms.opens_at), "{:?}", created.terms);
        let id: CouponId = created.terms.coupon_id;
        for issuer in clocks.all() {
            let user = UserId::new(clocks.test.user(0).await).unwrap();
            let issued = issuer.engine.issue_coupon(&call(None), user, id).await.unwrap().value;
            assert!(issued.issued_at >= after && issued.issued_at <= clocks.now().await);
            let shown = issuer.engine.user_coupons(user).await.unwrap();
            assert_eq!(shown[0].issued_at, issued.issued_at);
            let open = issuer.engine.open_campaigns(0, 10).await.unwrap();
            let open: Vec<CouponId> = open.iter().map(|campaign| campaign.terms.coupon_id).collect();
            assert!(open.contains(&id) && !open.contains(&coming.value.terms.coupon_id), "{open:?}");
            assert!(!open.contains(&over.value.terms.coupon_id), "{open:?}");
        }
    }
    clocks.finish().await;
}

#[tokio::test]
async fn product_sold_by_skewed_process_keeps_window() {
    for partitions in [1, 3] {
        let clocks = Clocks::start(Options { partitions, ..Options::default() }).await;
        let now = clocks.now().await;
        let window = |opens_in: Option<i64>, closes_in: Option<i64>| SaleTerms {
            opens_at: opens_in.map(|ms| now.plus(ms)),
            closes_at: closes_in.map(|ms| now.plus(ms)),
            ..SaleTerms::default()
        };
        for app in clocks.all() {
            for (terms, status) in [
                (window(Some(30_000), None), SaleStatus::Scheduled),
                (window(None, Some(-30_000)), SaleStatus::Ended),
                (window(Some(-SLACK_MS), Some(3_600_000)), SaleStatus::OnSale),
            ] {
                let new = NewProduct { name: "A".into(), price: 1, stock: 9, category: "TOP".parse().unwrap(), terms };
                let created = app.engine.create_product(&call(None), new).await.unwrap().value;
                assert_eq!(created.sale_status(), status);
                for seller in clocks.all() {
                    let user_id = UserId::new(clocks.test.user(100).await).unwrap();
                    let order =
                        NewOrder { user_id, lines: vec![(created.product_id, 1)], coupon_id: None, payment_type: None };
                    let placed = seller.engine.place_order(&call(None), order).await;
                    match status {
                        SaleStatus::OnSale => drop(placed.unwrap()),
                        _ => assert!(matches!(placed, Err(Error::NotOnSale)), "{placed:?}"),
                    }
                    assert_eq!(seller.engine.product(created.product_id).await.unwrap().sale_status(), status);
                }
            }
        }
        clocks.finish().await;
    }
}

#[tokio::test]
async fn order_expires_by_store_clock_when_processes_skewed() {
    let clocks = Clocks::start(Options { hold_seconds: 30, ..Options::default() }).await;
    let (user, product) = (clocks.test.user(100_000).await, clocks.test.product(100, 100).await);
    let (user, product) = (UserId::new(user).unwrap(), ProductId::new(product).unwrap());
    let order = || NewOrder { user_id: user, lines: vec![(product, 1)], coupon_id: None, payment_type: None };
    let mut orders = Vec::new();
    for app in clocks.all() {
        let before = clocks.now().await;
        let placed = app.engine.place_order(&call(None), order()).await.unwrap().value;
        let after = clocks.now().await;
        assert!((before..=after).contains(&placed.ordered_at));
        let shown = app.engine.order(placed.order_id, Some(user)).await.unwrap();
        assert_eq!(shown.expires_at, placed.ordered_at.plus(30_000));
        orders.push(placed.order_id);
    }
    // No order is due for half a minute, also in a process with a fast clock.
    for app in clocks.all() {
        assert_eq!(app.engine.sweep().await.unwrap(), 0);
    }
    // Due by Redis's clock: every process ends the order, also the slow one.
    let brief = Options { hold_seconds: 1, clock: None, ..Options::default() };
    let postgres = postgres_url(&clocks.test.database);
    let redis = clocks.test.redis.url();
    for skew_ms in [-SKEW_MS, SKEW_MS] {
        let app = open(&brief, &redis, &postgres, Clock::skewed(skew_ms)).await.unwrap();
        let placed = app.engine.place_order(&call(None), order()).await.unwrap().value;
        while app.engine.sweep().await.unwrap() == 0 {
            assert!(clocks.now().await.0 - placed.ordered_at.0 < 60_000, "the order does not expire");
            tokio::task::yield_now().await;
        }
        let over = app.engine.order(placed.order_id, None).await.unwrap();
        let (ended, due) = (over.closed_at.unwrap(), placed.ordered_at.plus(1_000));
        assert!(ended >= due && ended.0 - due.0 < SLACK_MS, "{over:?}");
        app.stop(None).await;
        app.db.close().await.unwrap();
    }
    clocks.finish().await;
}

#[tokio::test]
async fn clock_offset_measured_and_corrected() {
    let clocks = Clocks::start(Options { partitions: 3, ..Options::default() }).await;
    for (app, skew_ms) in clocks.all().into_iter().zip([0, SKEW_MS, -SKEW_MS]) {
        let offset = app.store.clock_offset_ms();
        assert!((offset - skew_ms).abs() < SLACK_MS, "{offset} for {skew_ms}");
        let now = clocks.now().await;
        for shown in [app.engine.clock().now(), app.store.now(Partition(2))] {
            assert!((shown.0 - now.0).abs() < SLACK_MS, "{shown:?} at {now:?}");
        }
        assert_eq!((app.engine.observe().await.clock_offset * 1000.0).round() as i64, app.store.clock_offset_ms());
    }
    clocks.finish().await;
}

/// Midnight is between the process's clock and Redis's: the payment belongs to the day of Redis's clock.
#[tokio::test]
async fn payment_dated_by_day_of_decision() {
    let test = TestApp::start().await;
    let (user, product) = (test.user(1_000).await, test.product(100, 5).await);
    let order = OrderId::new(test.place(user, product, 1).await).unwrap();
    let payment = NewPayment {
        order_id: order,
        user_id: UserId::new(user).unwrap(),
        payment_type: PaymentType::Card,
        amount: 100,
    };
    let calls = AtomicUsize::new(0);
    let day = |now: Millis| {
        let late = if calls.fetch_add(1, Ordering::SeqCst) == 0 { 86_400_000 } else { 0 };
        CalendarDay::of(now.plus(-late), test.engine.zone())
    };
    let number = test.store.numbers_reserve(Partition(0), OwnSequence::Payments, 1).await.unwrap();
    let payment_id = PaymentId::new(number).unwrap();
    let pay_at = |now| PayOrder {
        payment: payment.clone(),
        payment_id,
        receipt: "r".to_owned(),
        transaction: None,
        day: day(now),
    };
    let settled = test.store.order_pay(&call(None), Partition(0), &pay_at).await.unwrap();
    assert!(matches!(settled.value, Settled::Paid { .. }));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    let ranked = test.get("/api/v1/products/popular?sortBy=TODAY").await.ok();
    assert_eq!(ranked[0]["salesCount"], 1);
    test.finish().await;
}
