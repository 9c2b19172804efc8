//! The ids of orders and payments come from the partition that owns them: the loss of one stops no other, and no id is given twice,
//! beside processes of earlier versions, after a rebuild, or on a replica that lacks a reservation.

use std::{collections::BTreeSet, sync::Arc};

use firstcome::{
    app::App,
    model::{Call, CouponId, NewOrder, NewPayment, OrderId, Partition, PaymentType, ProductId, UserId},
    recovery::rebuild::RebuildOptions,
    redis::{
        commands::{PlaceOrder, Placement, SHARED_IDS_FROM},
        partition_state::FreezeCause,
    },
};

use crate::{
    redis::failover::{in_sync, port, replicated},
    support::harness::{Options, TestApp, call, open, postgres_url, raw_redis, until},
};

const PARTITIONS: u16 = 3;
/// More than a block of numbers.
const MANY: i64 = 1_100;

fn options() -> Options {
    Options { partitions: PARTITIONS, max_open_orders: 10_000, ..Options::default() }
}

/// A user and a product of each partition.
async fn of_each_partition(test: &TestApp) -> Vec<(UserId, ProductId)> {
    let mut found = Vec::new();
    for _ in 0..PARTITIONS {
        let (user, product) = (test.user(1_000_000).await, test.product(1, 1_000_000).await);
        assert_eq!(user % i64::from(PARTITIONS), product % i64::from(PARTITIONS));
        found.push((UserId::new(user).unwrap(), ProductId::new(product).unwrap()));
    }
    found.sort_by_key(|(user, _)| user.get() % i64::from(PARTITIONS));
    found
}

async fn place(app: &App, buyer: (UserId, ProductId)) -> OrderId {
    OrderId::new(place_one(app, buyer).await.expect("an order is placed")).unwrap()
}

/// The id of an order, if it can be placed.
async fn place_one(app: &App, (user, product): (UserId, ProductId)) -> Option<i64> {
    let order = NewOrder { user_id: user, lines: vec![(product, 1)], coupon_id: None, payment_type: None };
    app.engine.place_order(&call(None), order).await.ok().map(|placed| placed.value.order_id.get())
}

/// Places an order and pays it; returns the id of the payment.
async fn sell(app: &App, buyer: (UserId, ProductId)) -> i64 {
    let order_id = place(app, buyer).await;
    let payment = NewPayment { order_id, user_id: buyer.0, payment_type: PaymentType::Card, amount: 1 };
    app.engine.pay_order(&call(None), payment, None).await.unwrap().value.payment_id.get()
}

/// The ids of orders that these processes place in every partition.
async fn orders(apps: &[&App], buyers: &[(UserId, ProductId)]) -> Vec<i64> {
    let mut placed = Vec::new();
    for app in apps {
        for buyer in buyers {
            placed.push(place(app, *buyer).await.get());
        }
    }
    placed
}

fn count_distinct(ids: &[i64]) -> usize {
    ids.iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_partitions_sell_beyond_a_block_when_first_fenced() {
    let test = Arc::new(TestApp::with(options()).await);
    let buyers = of_each_partition(&test).await;
    let mut coupon = 0;
    while coupon % 3 != 1 {
        coupon = test.campaign("FIXED", 1, 10).await;
    }
    test.store.freeze(Partition(0), "a test", FreezeCause::Gap).await.unwrap();
    // A process that had no block before.
    let second = Arc::new(test.open_instance(&test.options).await.unwrap());
    for app in [&second, &Arc::new(test.open_instance(&test.options).await.unwrap())] {
        for buyer in &buyers[1..] {
            let sold = (0..MANY).map(|_| {
                let (app, buyer) = (app.clone(), *buyer);
                tokio::spawn(async move { sell(&app, buyer).await })
            });
            let sold: Vec<i64> = futures_util::future::join_all(sold).await.into_iter().map(Result::unwrap).collect();
            assert_eq!(count_distinct(&sold), MANY as usize);
        }
        app.engine.issue_coupon(&call(None), buyers[1].0, CouponId::new(coupon).unwrap()).await.ok();
        app.stop(None).await;
    }
    let order = NewOrder { user_id: buyers[0].0, lines: vec![(buyers[0].1, 1)], coupon_id: None, payment_type: None };
    assert!(test.engine.place_order(&call(None), order).await.is_err(), "the first partition is fenced");
    let mut redis = test.raw().await;
    redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").arg("cause").exec_async(&mut redis).await.unwrap();
    drop(second);
    Arc::into_inner(test).unwrap().finish().await;
}

/// Makes the partitions' sequences those of a store of an earlier version, which has one for all partitions.
async fn forget_own_sequences(test: &TestApp, partitions: std::ops::Range<u16>) {
    let mut redis = test.raw().await;
    for here in partitions {
        let ids = format!("{{p{here}}}:ids");
        redis::cmd("HDEL").arg(ids).arg("own_order").arg("own_payment").exec_async(&mut redis).await.unwrap();
    }
}

/// An order in each partition, placed by a process of an earlier version.
async fn place_by_earlier_version(test: &TestApp, buyers: &[(UserId, ProductId)]) -> Vec<i64> {
    let number = test.store.ids_reserve(&Call::default(), "order", 1_000).await.unwrap().value.first;
    let mut placed = Vec::new();
    for (user, product) in buyers {
        let id = number * i64::from(PARTITIONS) + user.get() % i64::from(PARTITIONS);
        let place = PlaceOrder {
            order_id: OrderId::new(id).unwrap(),
            user_id: *user,
            hold_ms: 600_000,
            max_open: 10_000,
            must_afford: true,
            coupon: None,
            lines: vec![(*product, 1)],
            checkout: None,
        };
        let order = test.store.order_place(&call(None), place).await.unwrap();
        assert!(matches!(order, Placement::Placed(_)), "{order:?}");
        placed.push(id);
    }
    placed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_given_once_when_an_earlier_version_takes_them_from_the_first_partition() {
    let test = TestApp::with(options()).await;
    let buyers = of_each_partition(&test).await;
    forget_own_sequences(&test, 0..PARTITIONS).await;
    let mut redis = test.raw().await;
    redis::cmd("HSET")
        .arg("{p0}:ids")
        .arg("order")
        .arg(5_000)
        .arg("payment")
        .arg(9)
        .exec_async(&mut redis)
        .await
        .unwrap();
    let second = test.open_instance(&test.options).await.unwrap();
    let third = test.open_instance(&test.options).await.unwrap();
    let mut own = orders(&[&second, &third, &second], &buyers).await;
    assert!(own.iter().all(|id| (5_001 * 3..10_000 * 3).contains(id)), "{own:?}");
    let mut earlier = place_by_earlier_version(&test, &buyers).await;
    earlier.extend(place_by_earlier_version(&test, &buyers).await);

    // A rebuild continues both.
    test.drain().await;
    let summary = test.rebuild().await.run(RebuildOptions::default()).await.unwrap();
    assert_eq!((summary.lost_at_least, summary.discarded), (0, 0));
    until("the processes noticed the rebuild", async || {
        test.engine.check().await;
        second.engine.check().await;
        place_one(&second, buyers[0]).await
    })
    .await;
    own.extend(orders(&[&second, &test.app], &buyers).await);
    earlier.extend(place_by_earlier_version(&test, &buyers).await);
    assert!(own.iter().all(|id| *id < SHARED_IDS_FROM) && earlier.iter().all(|id| *id > SHARED_IDS_FROM));
    assert!(earlier.is_sorted(), "{earlier:?}");
    own.extend(earlier);
    assert_eq!(count_distinct(&own), own.len(), "{own:?}");
    second.stop(None).await;
    third.stop(None).await;
    test.finish().await;
}

/// An earlier version's rebuild of a partition leaves it no sequence of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_not_given_again_when_a_partition_lost_its_own_sequence() {
    let test = TestApp::with(options()).await;
    let buyers = of_each_partition(&test).await;
    let mut placed = orders(&[&test.app], &buyers).await;
    test.drain().await;
    forget_own_sequences(&test, 1..2).await;
    let second = test.open_instance(&test.options).await.unwrap();
    placed.extend(orders(&[&second, &test.app], &buyers).await);
    assert_eq!(count_distinct(&placed), placed.len(), "{placed:?}");
    second.stop(None).await;
    test.finish().await;
}

/// The partition is closed when the process starts; its sequences begin when it is open again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_begin_when_first_partition_opens() {
    let test = TestApp::with(options()).await;
    let buyers = of_each_partition(&test).await;
    forget_own_sequences(&test, 0..PARTITIONS).await;
    test.store.freeze(Partition(0), "a test", FreezeCause::Gap).await.unwrap();
    let second = test.open_instance(&test.options).await.unwrap();
    second.watch(false);
    assert_eq!(place_one(&second, buyers[1]).await, None);
    let mut redis = test.raw().await;
    redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").arg("cause").exec_async(&mut redis).await.unwrap();
    until("the second process sells", async || place_one(&second, buyers[1]).await).await;
    second.stop(None).await;
    test.finish().await;
}

/// A reservation is no decision: that a promoted replica lacks it is not noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_given_once_when_promoted_replica_lacks_a_reservation() {
    let (mut test, replica) = replicated(Options::default()).await;
    let url = test.proxy.as_ref().unwrap().url();
    let another = async |test: &TestApp| {
        open(&test.options, &url, &postgres_url(&test.database), test.clock.clone()).await.unwrap()
    };
    let second = another(&test).await;
    let buyer = (test.user(100).await, test.product(1, 100).await);
    let poor = test.user(0).await;
    let buyer = (UserId::new(buyer.0).unwrap(), ProductId::new(buyer.1).unwrap());
    in_sync(&test.redis, &replica).await;
    let replica_of = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).to_owned();
    replica_of("NO", "ONE").exec_async(&mut raw_redis(&replica.url()).await).await.unwrap();
    // It is refused, and needs an id.
    let refused = NewOrder {
        user_id: UserId::new(poor).unwrap(),
        lines: vec![(buyer.1, 1)],
        coupon_id: None,
        payment_type: None,
    };
    assert!(second.engine.place_order(&call(None), refused).await.is_err());
    test.proxy.as_ref().unwrap().lead_to(replica.socket_path());
    replica_of("127.0.0.1", &port(&replica)).exec_async(&mut raw_redis(&test.redis.url()).await).await.unwrap();
    test.redis = replica;
    let first = until("both processes sell again", async || {
        test.engine.check().await;
        place_one(&second, buyer).await
    })
    .await;
    let third = another(&test).await;
    let mut placed = vec![first];
    for app in [&third, &second, &third, &second] {
        placed.push(place(app, buyer).await.get());
    }
    assert_eq!(count_distinct(&placed), placed.len(), "{placed:?}");
    second.stop(None).await;
    third.stop(None).await;
    test.finish().await;
}
