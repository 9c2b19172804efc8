//! Products and campaigns of other partitions than the user's: units move to where they are bought, coupons to where they are used.

use std::collections::BTreeMap;

use chrono::Days;
use firstcome::{
    model::{Partition, *},
    redis::commands::OwnSequence,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

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
        NewOrder { user_id: self.user, lines: vec![(self.product, 2)], coupon_id: None, payment_type: None }
    }
}

#[tokio::test]
async fn coupon_of_other_partition_used_and_given_back() {
    let shop = TwoPartitions::start().await;
    let engine = &shop.test.engine;
    let coupons = async || {
        let coupons = engine.user_coupons(shop.user).await.unwrap();
        coupons.iter().map(|coupon| (coupon.issue_no, coupon.status)).collect::<Vec<_>>()
    };
    let order = NewOrder { coupon_id: Some(shop.coupon), ..shop.new_order() };
    let without = engine.place_order(&call(None), order.clone()).await;
    assert!(matches!(without, Err(Error::InvalidCoupon)), "{without:?}");
    engine.issue_coupon(&call(None), shop.user, shop.coupon).await.unwrap();
    assert_eq!(coupons().await, [(1, CouponStatus::Available)]);
    let placed = engine.place_order(&call(None), order.clone()).await.unwrap().value;
    assert_eq!(placed.final_price, 1_700);
    let twice = engine.place_order(&call(None), order.clone()).await;
    assert!(matches!(twice, Err(Error::InvalidCoupon)), "{twice:?}");
    assert_eq!(shop.stock().await, 3);
    engine.cancel_order(&call(None), placed.order_id, shop.user, None).await.unwrap();
    assert_eq!(coupons().await, [(1, CouponStatus::Available)]);
    let placed = engine.place_order(&call(None), order).await.unwrap().value;
    let payment = NewPayment {
        order_id: placed.order_id,
        user_id: shop.user,
        payment_type: PaymentType::Card,
        amount: placed.final_price,
    };
    engine.pay_order(&call(None), payment, None).await.unwrap();
    assert_eq!(coupons().await, [(1, CouponStatus::Used)]);
    shop.test.finish().await;
}

#[tokio::test]
async fn order_with_coupon_of_other_partition_placed_once_per_key() {
    let shop = TwoPartitions::start().await;
    let engine = &shop.test.engine;
    engine.issue_coupon(&call(None), shop.user, shop.coupon).await.unwrap();
    let order = NewOrder { coupon_id: Some(shop.coupon), ..shop.new_order() };
    let keyed = call(Some(("k", "order")));
    let first = engine.place_order(&keyed, order.clone()).await.unwrap();
    let again = engine.place_order(&keyed, order).await.unwrap();
    assert!(!first.replayed && again.replayed);
    assert_eq!(first.value.order_id, again.value.order_id);
    assert_eq!(shop.stock().await, 3);
    shop.test.finish().await;
}

/// Units are somewhere else: with the owner partition, on their way, or on sale in a third partition.
#[tokio::test]
async fn last_units_found_wherever_they_are() {
    for partitions in [2, 3, 16] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let product = test.product(1_000, 10).await;
        let id = ProductId::new(product).unwrap();
        let owner = test.store.owner(product);
        let mut users: BTreeMap<Partition, i64> = BTreeMap::new();
        while users.len() < usize::from(partitions) {
            let user = test.user(100_000).await;
            users.entry(test.store.owner(user)).or_insert(user);
        }
        let call = call(None);
        let others: Vec<Partition> = test.store.all().filter(|here| *here != owner).collect();
        // Begun and not completed.
        test.store.stock_allot(&call, id, others[0], 3).await.unwrap();
        let first = test.place(users[&others[others.len() - 1]], product, 2).await;
        if partitions > 2 {
            assert!(test.stock(product).await < 8, "some are on their way");
        }
        // Every unit that is left, in a partition that has none.
        let all = test.place(users[&owner], product, 8).await;
        for user in users.values() {
            test.order(*user, product, 1).await.refused(409, "SOLD_OUT");
        }
        test.cancel(first, users[&others[others.len() - 1]]).await.ok();
        for user in users.values() {
            test.order(*user, product, 3).await.refused(409, "INSUFFICIENT_STOCK");
        }
        test.cancel(all, users[&owner]).await.ok();
        assert_eq!(test.stock(product).await, 10);
        for user in users.values() {
            let order = test.place(*user, product, 10).await;
            test.order(*user, product, 1).await.refused(409, "SOLD_OUT");
            test.cancel(order, *user).await.ok();
        }
        test.finish().await;
    }
}

/// More buyers than units, in every partition at once, while orders are given up: every unit is sold, and none twice.
#[tokio::test(flavor = "multi_thread")]
async fn units_sold_exactly_when_partitions_compete() {
    for partitions in [3, 16] {
        let test = TestApp::with(Options { partitions, project: true, ..Options::default() }).await;
        let product = test.product(10, 200).await;
        let users = test.users(400, 1_000).await;
        let buying = users.iter().enumerate().map(async |(n, user)| {
            let reply = test.order(*user, product, 1).await;
            if reply.status != 200 {
                reply.refused(409, "SOLD_OUT");
                return 0;
            }
            let order = reply.ok()["orderId"].as_i64().unwrap();
            if n % 8 == 0 {
                test.cancel(order, *user).await.ok();
                return 0;
            }
            test.pay(order, *user, "CARD", 10).await.ok();
            1
        });
        let mut sold: i64 = join_all(buying).await.into_iter().sum();
        // What was given up is on sale for those who come later.
        for user in &users {
            if sold == 200 {
                break;
            }
            let order = test.place(*user, product, 1).await;
            test.pay(order, *user, "CARD", 10).await.ok();
            sold += 1;
        }
        test.order(users[0], product, 1).await.refused(409, "SOLD_OUT");
        assert_eq!(test.stock(product).await, 0);
        test.finish().await;
    }
}

/// Products that do not exist are reported before products that are sold out, in the order of the lines.
#[tokio::test]
async fn refusals_in_order_of_checks_across_partitions() {
    let shop = TwoPartitions::start().await;
    let user = shop.user.get();
    let own = loop {
        let product = shop.test.product(10, 0).await;
        if product % 2 == 0 {
            break product;
        }
    };
    let order = async |lines: &[(i64, i64)]| {
        let lines: Vec<Value> =
            lines.iter().map(|(product, quantity)| json!({"productId": product, "quantity": quantity})).collect();
        shop.test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await
    };
    let (remote, unknown) = (shop.product.get(), 1_000_001);
    order(&[(own, 1), (unknown, 1)]).await.refused(404, "PRODUCT_NOT_FOUND");
    order(&[(remote, 9), (own, 1)]).await.refused(409, "INSUFFICIENT_STOCK");
    order(&[(own, 1), (remote, 9)]).await.refused(409, "SOLD_OUT");
    assert_eq!(shop.stock().await, 5);
    shop.test.finish().await;
}

/// A changed price counts in every partition once its reply is there; so do removed units.
#[tokio::test]
async fn product_change_counts_in_every_partition() {
    let shop = TwoPartitions::start().await;
    let engine = shop.test.engine.clone();
    let placed = engine.place_order(&call(None), shop.new_order()).await.unwrap().value;
    assert_eq!(placed.final_price, 2_000);
    let cheaper = ProductPatch { price: Some(700), ..ProductPatch::default() };
    let keyed = call(Some(("k", "cheaper")));
    let updated = engine.update_product(&keyed, shop.product, cheaper.clone()).await.unwrap();
    assert_eq!((updated.value.price, updated.value.stock), (700, 3));
    let placed = engine.place_order(&call(None), shop.new_order()).await.unwrap().value;
    assert_eq!(placed.final_price, 1_400);
    let again = engine.update_product(&keyed, shop.product, cheaper).await.unwrap();
    assert_eq!((again.replayed, again.value.stock), (true, 3), "a repeat gets the first reply");
    // The units that are removed are on sale in the other partition.
    let fewer = |units: i64| ProductPatch { stock_delta: Some(-units), ..ProductPatch::default() };
    let too_many = engine.update_product(&call(None), shop.product, fewer(2)).await;
    assert!(matches!(too_many, Err(Error::InsufficientStock)), "{too_many:?}");
    let updated = engine.update_product(&call(None), shop.product, fewer(1)).await.unwrap().value;
    assert_eq!(updated.stock, 0);
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
    engine.pay_order(&call, payment, None).await.unwrap();
    let sold_on = shop.test.clock.now().day(chrono_tz::Asia::Seoul);
    shop.test.clock.advance(86_400_000);
    assert_eq!(shop.test.clock.now().day(chrono_tz::Asia::Seoul), sold_on + Days::new(1));
    assert_eq!(engine.popular(RankingScope::ThreeDays, 5).await.unwrap().len(), 1);
    assert!(engine.popular(RankingScope::Today, 5).await.unwrap().is_empty());
    engine.cancel_order(&call, placed.order_id, shop.user, None).await.unwrap();
    assert!(engine.popular(RankingScope::ThreeDays, 5).await.unwrap().is_empty());
    assert_eq!(shop.stock().await, 5);
    shop.test.finish().await;
}

#[tokio::test]
async fn repeat_of_order_takes_no_more_units() {
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

/// Creates a product in partition 1, which no other one is told of: the first step of `create_product`.
async fn half_created(shop: &TwoPartitions, stock: i64, terms: SaleTerms) -> ProductId {
    let store = &shop.test.store;
    let mut id = 0;
    while id % 2 == 0 {
        id = store.ids_reserve(&call(None), "product", 1).await.unwrap().value.first;
    }
    let product = ProductId::new(id).unwrap();
    let new = NewProduct { name: "A".into(), price: 10, stock, category: "TOP".parse().unwrap(), terms };
    store.product_create(&call(None), product, &new).await.unwrap();
    product
}

/// The window and the limit of a product come before its stock, also where only the owner partition knows them.
#[tokio::test]
async fn terms_checked_before_stock_of_product_unknown_in_users_partition() {
    let shop = TwoPartitions::start().await;
    let engine = shop.test.engine.clone();
    let now = shop.test.clock.now();
    let scheduled = SaleTerms { opens_at: Some(now.plus(1)), ..SaleTerms::default() };
    let ended = SaleTerms { closes_at: Some(now), ..SaleTerms::default() };
    let limited = SaleTerms { limit_per_user: Some(2), ..SaleTerms::default() };
    for (terms, stock, units, expected) in [
        (scheduled, 0, 1, Err("NotOnSale")),
        (ended, 9, 1, Err("NotOnSale")),
        (limited, 0, 3, Err("PurchaseLimitExceeded")),
        (limited, 2, 3, Err("PurchaseLimitExceeded")),
        (limited, 0, 2, Err("SoldOut")),
        (limited, 1, 2, Err("InsufficientStock")),
        (limited, 2, 2, Ok(())),
    ] {
        let product = half_created(&shop, stock, terms).await;
        let order = NewOrder { lines: vec![(product, units)], ..shop.new_order() };
        let placed = engine.place_order(&call(None), order).await;
        let got = placed.as_ref().map(drop).map_err(|error| format!("{error:?}"));
        assert_eq!(got, expected.map_err(str::to_owned), "{units} of {stock}, {terms:?}");
    }
    shop.test.finish().await;
}

/// A change of terms whose process ended after its first step reaches the other partitions by the relay.
#[tokio::test]
async fn terms_of_half_done_change_relayed_to_other_partitions() {
    let shop = TwoPartitions::start().await;
    let engine = shop.test.engine.clone();
    engine.place_order(&call(None), shop.new_order()).await.unwrap();
    let group = "G-1".parse().unwrap();
    let terms =
        SaleTermsPatch { limit_per_user: Some(Some(1)), limit_group: Some(Some(group)), ..SaleTermsPatch::default() };
    let patch = ProductPatch { terms, ..ProductPatch::default() };
    let had = engine.product(shop.product).await.unwrap();
    shop.test.store.product_update(&call(None), &had, &patch, 0).await.unwrap().unwrap();
    shop.test.drain().await;
    let refused = engine.place_order(&call(None), shop.new_order()).await;
    assert!(matches!(refused, Err(Error::PurchaseLimitExceeded)), "{refused:?}");
    assert!(!shop.test.store.limit_group_set(group, 2).await.unwrap(), "the group has the limit of its product");
    shop.test.finish().await;
}
