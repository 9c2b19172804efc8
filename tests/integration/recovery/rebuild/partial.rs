//! A rebuild of some partitions, while the others decide.

use std::{future::Future, pin::pin, sync::Arc};

use firstcome::{
    model::{CouponId, Partition, ProductId, UserId},
    recovery::rebuild::LossBounds,
    redis::commands::ReturnedUnits,
};
use tokio::sync::oneshot;

use super::*;
use crate::process::binary::{Servers, get, post, run};

const PARTITIONS: u16 = 3;

fn partitioned() -> Options {
    Options { partitions: PARTITIONS, ..Options::default() }
}

fn of(here: u16) -> rebuild::RebuildOptions {
    rebuild::RebuildOptions { partitions: Some([Partition(here)].into()), ..rebuild::RebuildOptions::default() }
}

/// As if the partition's server had come back empty.
async fn wipe(test: &TestApp, here: u16) {
    let mut redis = test.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{{p{here}}}:*")).query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("DEL").arg(&keys).query_async(&mut redis).await.unwrap();
    test.engine.check().await;
    assert!(!test.store.is_open(Partition(here)));
}

async fn all_open(test: &TestApp) {
    until("every partition is open", async || {
        test.engine.check().await;
        test.store.all().all(|here| test.store.is_open(here)).then_some(())
    })
    .await;
}

async fn epochs(test: &TestApp) -> Vec<i64> {
    let projected = firstcome::postgres::progress::projected(&test.db).await.unwrap();
    projected.iter().map(|projected| projected.position.epoch).collect()
}

/// A user, a product of 50 at 100 won, and a campaign of 50, of each partition.
struct Shop {
    users: [i64; 3],
    products: [i64; 3],
    campaigns: [i64; 3],
}

impl Shop {
    async fn new(test: &TestApp) -> Shop {
        let mut shop = Shop { users: [0; 3], products: [0; 3], campaigns: [0; 3] };
        for _ in 0..PARTITIONS {
            let ids = (test.user(100_000).await, test.product(100, 50).await, test.campaign("FIXED", 10, 50).await);
            for (slots, id) in [(&mut shop.users, ids.0), (&mut shop.products, ids.1), (&mut shop.campaigns, ids.2)] {
                slots[(id % i64::from(PARTITIONS)) as usize] = id;
            }
        }
        shop
    }

    /// An order of this partition's user for two units of that partition's product.
    async fn order(&self, test: &TestApp, user: u16, product: u16) -> i64 {
        test.place(self.users[usize::from(user)], self.products[usize::from(product)], 2).await
    }
}

/// Runs `rebuilding`, and takes `step` after step meanwhile. Returns how many of them ended.
async fn meanwhile<T>(rebuilding: impl Future<Output = T>, step: impl AsyncFn()) -> (T, usize) {
    let (mut rebuilding, mut steps) = (pin!(rebuilding), 0);
    loop {
        tokio::select! {
            biased;
            done = &mut rebuilding => return (done, steps),
            () = step() => steps += 1,
        }
    }
}

/// What PostgreSQL has of the partition comes back key by key; the others sell, and stay in their epoch.
#[tokio::test]
async fn lost_partition_restored_while_others_sell() {
    for lost in 0..PARTITIONS {
        let test = TestApp::with(Options { project: true, ..partitioned() }).await;
        for _ in 0..PARTITIONS {
            busy_day(&test).await;
        }
        let shop = Shop::new(&test).await;
        projected(&test).await;
        let before = comparable(test.snapshot().await);
        wipe(&test, lost).await;
        let (a, b) = ((lost + 1) % PARTITIONS, (lost + 2) % PARTITIONS);
        let sells = async || {
            test.put_charge(shop.users[usize::from(a)], 100).await.ok();
            let order = shop.order(&test, a, b).await;
            test.pay(order, shop.users[usize::from(a)], "CARD", 200).await.ok();
            test.cancel(order, shop.users[usize::from(a)]).await.ok();
            // What touches the lost one is refused as a whole.
            let (user, product) = (shop.users[usize::from(a)], shop.products[usize::from(lost)]);
            test.order(user, product, 1).await.refused(503, "SERVICE_UNAVAILABLE");
        };
        sells().await;
        // No acknowledged decision is missing.
        let bound = LossBounds::ByPartition([(Partition(lost), 0)].into());
        // Not while the partition opens: then the last of these is no longer refused.
        let (frozen, is_frozen) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel();
        let stops = std::sync::Mutex::new(Some((frozen, may_go_on)));
        let mut rebuild = test.rebuild().await;
        rebuild.barrier = Some(Arc::new(move |_| {
            let stops = stops.lock().unwrap().take();
            Box::pin(async {
                let (frozen, may_go_on) = stops.expect("the scope does not grow");
                frozen.send(()).unwrap();
                Ok(may_go_on.await?)
            })
        }));
        let options = rebuild::RebuildOptions { lost_at_most: bound, ..of(lost) };
        let stopped = async {
            is_frozen.await.unwrap();
            sells().await;
            sells().await;
            go_on.send(()).unwrap();
        };
        let (summary, ()) = tokio::join!(rebuild.clone().run(options), stopped);
        let summary = summary.unwrap();
        rebuild.db.close().await.unwrap();
        assert_eq!((&summary.partitions, &summary.possible_losses), (&vec![lost], &vec![]));
        assert_eq!((summary.epoch, summary.withheld_units, summary.withheld_coupons), (2, 0, 0), "{summary:?}");
        let expected: Vec<i64> = (0..PARTITIONS).map(|here| if here == lost { 2 } else { 1 }).collect();
        assert_eq!(epochs(&test).await, expected);
        let tag = format!("{{p{lost}}}:");
        let of_lost = |all: BTreeMap<String, String>| -> BTreeMap<String, String> {
            all.into_iter().filter(|(key, _)| key.starts_with(&tag)).collect()
        };
        // Not the claims of keys, which only the lost partition had.
        let (before, after) = (of_lost(before), of_lost(comparable(test.snapshot().await)));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (key, value) in &before {
            assert_eq!(after.get(key), Some(value), "{key}");
        }
        all_open(&test).await;
        // The ids go on, wherever the sequences are.
        let again = Shop::new(&test).await;
        assert!(again.users.iter().all(|user| !shop.users.contains(user)));
        busy_day(&test).await;
        test.finish().await;
    }
}

/// Replies of the others do not wait for the rebuild, from its first step to its last.
#[tokio::test]
async fn live_partitions_serve_throughout_rebuild() {
    let test = TestApp::with(Options { project: true, ..partitioned() }).await;
    let shop = Shop::new(&test).await;
    projected(&test).await;
    wipe(&test, 1).await;
    let step = async || {
        test.put_charge(shop.users[0], 1).await.ok();
        let order = shop.order(&test, 0, 2).await;
        test.cancel(order, shop.users[0]).await.ok();
    };
    let (summary, served) = meanwhile(rebuilt(&test, of(1)), step).await;
    assert_eq!(summary.partitions, [1]);
    assert!(served > 10, "{served}");
    all_open(&test).await;
    test.clock.advance(700_000);
    test.engine.sweep().await.unwrap();
    test.finish().await;
}

/// With an unknown bound everything on sale in that partition is withheld, and nothing elsewhere; the units of its open orders do not go
/// on sale again either.
#[tokio::test]
async fn unknown_loss_withheld_in_lost_partition_only() {
    let test = TestApp::with(partitioned()).await;
    let shop = Shop::new(&test).await;
    let open = shop.order(&test, 1, 2).await;
    test.drain().await;
    // Paid and lost.
    let lost = shop.order(&test, 1, 2).await;
    test.pay(lost, shop.users[1], "CARD", 200).await.ok();
    let (elsewhere, there) = (on_sale(&test, 2, shop.products[2]).await, on_sale(&test, 1, shop.products[2]).await);
    assert_eq!(elsewhere + there, 46);
    wipe(&test, 1).await;
    let summary = rebuilt(&test, of(1)).await;
    assert_eq!((summary.partitions, summary.possible_losses), (vec![1], vec![1]));
    // Its own product, and the units of the other one that it had, with those that the lost order sold.
    assert_eq!((summary.withheld_units, summary.withheld_coupons), (50 + there + 2, 50));
    all_open(&test).await;
    assert_eq!(test.stock(shop.products[1]).await, 0);
    assert_eq!(test.stock(shop.products[0]).await, 50);
    assert_eq!(test.stock(shop.products[2]).await, elsewhere);
    test.get(&format!("/api/v1/orders/{lost}")).await.refused(404, "ORDER_NOT_FOUND");
    test.issue(shop.campaigns[0], shop.users[1]).await.ok();
    test.issue(shop.campaigns[1], shop.users[0]).await.refused(409, "COUPON_OUT_OF_STOCK");
    test.clock.advance(700_000);
    test.engine.sweep().await.unwrap();
    assert_eq!(test.get(&format!("/api/v1/orders/{open}")).await.ok()["orderStatus"], "CANCELLED");
    test.drain().await;
    let withheld = test.get("/admin/v1/withheld").await.ok();
    let products: BTreeMap<i64, i64> = withheld["products"]
        .as_array()
        .unwrap()
        .iter()
        .map(|product| (product["productId"].as_i64().unwrap(), product["withheldQuantity"].as_i64().unwrap()))
        .collect();
    assert_eq!(products, [(shop.products[1], 50), (shop.products[2], there + 4)].into());
    // The owner partition releases what the other one withholds.
    let path = format!("/admin/v1/products/{}/release", shop.products[2]);
    let left = test.post(&path, json!({"quantity": there + 4})).await.ok();
    assert_eq!(left["withheldQuantity"], 0);
    assert_eq!(test.stock(shop.products[2]).await, 50);
    test.finish().await;
}

/// The units that a partition has on sale.
async fn on_sale(test: &TestApp, here: u16, product: i64) -> i64 {
    let stock = format!("{{p{here}}}:stock");
    redis::cmd("HGET").arg(stock).arg(product).query_async(&mut test.raw().await).await.unwrap()
}

/// Steps that the relay could not take before the loss are taken: in the rebuilt partition, and by the scripts of live ones.
#[tokio::test]
async fn pending_steps_taken_by_rebuild() {
    let test = TestApp::with(partitioned()).await;
    let shop = Shop::new(&test).await;
    let call = harness::call(None);
    let [zero, one, two] = shop.products.map(|product| ProductId::new(product).unwrap());
    // To and from the lost partition, of which the second steps are missing.
    for (product, other) in [(one, 0), (two, 1)] {
        test.store.stock_allot(&call, product, Partition(other), 5).await.unwrap();
    }
    shop.order(&test, 1, 0).await;
    let given_back = test.store.stock_return(&call, Partition(1), zero, ReturnedUnits::OnSale).await.unwrap();
    assert!(given_back > 0);
    let coupon = CouponId::new(shop.campaigns[1]).unwrap();
    test.store.coupon_issue(&call, UserId::new(shop.users[2]).unwrap(), coupon).await.unwrap();
    // The relay finds the partitions closed.
    let mut redis = test.raw().await;
    let freeze = async |command: &str, here: u16| {
        let mut set = redis::cmd(command);
        set.arg(format!("{{p{here}}}:meta")).arg("frozen");
        if command == "HSET" {
            set.arg("a test");
        }
        let _: i64 = set.query_async(&mut test.raw().await).await.unwrap();
    };
    for (projected, closed) in [(1, [0, 2]), (2, [0, 1])] {
        for here in closed {
            freeze("HSET", here).await;
        }
        let _ = test.app.projector.project(Partition(projected)).await;
        for here in closed {
            freeze("HDEL", here).await;
        }
    }
    let _: () = redis::cmd("PING").query_async::<String>(&mut redis).await.map(drop).unwrap();
    wipe(&test, 1).await;
    let bound = LossBounds::ByPartition([(Partition(1), 0)].into());
    let summary = rebuilt(&test, rebuild::RebuildOptions { lost_at_most: bound, ..of(1) }).await;
    assert_eq!((summary.partitions, summary.repaired), (vec![1], 3));
    all_open(&test).await;
    for (product, units) in shop.products.into_iter().zip([48, 50, 50]) {
        assert_eq!(test.stock(product).await, units);
    }
    let coupons = test.get(&format!("/api/v1/coupons/{}", shop.users[2])).await.ok();
    assert_eq!(coupons[0]["couponId"], shop.campaigns[1]);
    test.finish().await;
}

/// An owner partition forgets that it gave units, a selling partition that it gave them back: no unit is sold twice.
#[tokio::test]
async fn lost_transfers_found_again() {
    for lost in [1, 2] {
        let test = TestApp::with(partitioned()).await;
        let shop = Shop::new(&test).await;
        let product = ProductId::new(shop.products[2]).unwrap();
        let first = shop.order(&test, 1, 2).await;
        test.drain().await;
        // Everything is given to partition 1, and the last order there is closed and given back.
        let kept = test.place(shop.users[1], shop.products[2], 40).await;
        test.cancel(first, shop.users[1]).await.ok();
        if lost == 1 {
            test.cancel(kept, shop.users[1]).await.ok();
            test.place(shop.users[0], shop.products[2], 50).await;
            // PostgreSQL has what the others decided.
            for here in [0, 2] {
                let _ = test.app.projector.project(Partition(here)).await;
            }
        } else {
            let _ = test.app.projector.project(Partition(1)).await;
        }
        wipe(&test, lost).await;
        let summary = rebuilt(&test, of(lost)).await;
        assert_eq!(summary.partitions, [lost]);
        all_open(&test).await;
        let mut redis = test.raw().await;
        let mut units = 0;
        for here in 0..PARTITIONS {
            for counter in ["stock", "held", "sold", "withheld"] {
                let mut read = redis::cmd("HGET");
                read.arg(format!("{{p{here}}}:{counter}")).arg(product.get());
                units += read.query_async::<Option<i64>>(&mut redis).await.unwrap().unwrap_or(0);
            }
        }
        assert_eq!(units, 50, "{lost}");
        test.clock.advance(700_000);
        test.engine.sweep().await.unwrap();
        test.finish().await;
    }
}

/// PostgreSQL has none of the decisions, which are of every kind. The books balance without them.
#[tokio::test]
async fn books_balance_when_unprojected_partition_lost() {
    for lost in 0..PARTITIONS {
        let test = TestApp::with(partitioned()).await;
        let shop = Shop::new(&test).await;
        let lines = json!(shop.products.map(|product| json!({"productId": product, "quantity": 2})));
        let all = async |user: i64| {
            let body = json!({"userId": user, "orderProducts": lines});
            test.post("/api/v1/orders", body).await.ok()["orderId"].as_i64().unwrap()
        };
        let mut orders = Vec::new();
        for user in shop.users {
            for _ in 0..3 {
                orders.push((all(user).await, user));
            }
        }
        test.drain().await;
        for (n, (order, user)) in orders.iter().enumerate() {
            match n % 3 {
                0 => drop(test.pay(*order, *user, "CARD", 600).await.ok()),
                1 => drop(test.cancel(*order, *user).await.ok()),
                _ => {}
            }
        }
        for user in shop.users {
            all(user).await;
            for campaign in shop.campaigns {
                test.issue(campaign, user).await.ok();
            }
        }
        wipe(&test, lost).await;
        let summary = rebuilt(&test, of(lost)).await;
        assert_eq!(summary.possible_losses, [lost]);
        all_open(&test).await;
        for _ in 0..2 {
            test.clock.advance(700_000);
            test.engine.sweep().await.unwrap();
        }
        test.finish().await;
    }
}

/// Makes the reports of the processes as old as if they had ended: a start leaves lost partitions to those that have not.
async fn others_ended(test: &TestApp) {
    test.sql("UPDATE acknowledged_positions SET acknowledged_at = acknowledged_at - interval '1 hour'").await;
}

/// A rebuild that ended in the middle is begun anew by the next start, of that partition alone.
#[tokio::test]
async fn interrupted_rebuild_of_partition_restarted_at_start() {
    let test = TestApp::with(Options { partitions: PARTITIONS, ..ack_postgres() }).await;
    busy_day(&test).await;
    projected(&test).await;
    test.app.stop(None).await;
    let before = comparable(test.snapshot().await);
    let mut redis = test.raw().await;
    let store: String = redis::cmd("HGET").arg("{p1}:meta").arg("store").query_async(&mut redis).await.unwrap();
    wipe(&test, 1).await;
    let _: i64 = redis::cmd("HSET")
        .arg("{p1}:meta")
        .arg(&["store", &store, "partitions", "3", "epoch", "2", "seq", "90", "rebuilding", "1", "frozen", "a rebuild"])
        .query_async(&mut redis)
        .await
        .unwrap();
    let _: i64 = redis::cmd("HSET").arg("{p1}:stock").arg(&["1", "999"]).query_async(&mut redis).await.unwrap();
    others_ended(&test).await;
    let next = test.open_instance(&test.options).await.unwrap();
    assert_eq!(before, comparable(test.snapshot().await));
    assert_eq!(epochs(&test).await, [1, 2, 1]);
    next.db.close().await.unwrap();
    all_open(&test).await;
    test.finish().await;
}

/// A start with one lost partition rebuilds that one, whichever it is, if no other process decides.
#[tokio::test]
async fn start_rebuilds_lost_partition() {
    for lost in 0..PARTITIONS {
        let test = TestApp::with(Options { partitions: PARTITIONS, ..ack_postgres() }).await;
        let shop = Shop::new(&test).await;
        projected(&test).await;
        wipe(&test, lost).await;
        others_ended(&test).await;
        let next = test.open_instance(&test.options).await.unwrap();
        let expected: Vec<i64> = (0..PARTITIONS).map(|here| if here == lost { 2 } else { 1 }).collect();
        assert_eq!(epochs(&test).await, expected);
        next.db.close().await.unwrap();
        all_open(&test).await;
        assert_eq!(test.stock(shop.products[usize::from(lost)]).await, 50);
        test.finish().await;
    }
}

/// The users of a rebuilt partition are known in its epoch, and not in the one of the campaign's partition.
#[tokio::test]
async fn sold_out_state_kept_when_users_partition_rebuilt() {
    let test = TestApp::with(partitioned()).await;
    let shop = Shop::new(&test).await;
    let coupon = test.campaign("FIXED", 10, 1).await;
    let here = (coupon % i64::from(PARTITIONS)) as u16;
    let other = (here + 1) % PARTITIONS;
    test.issue(coupon, shop.users[usize::from(here)]).await.ok();
    rebuilt(&test, of(other)).await;
    all_open(&test).await;
    let refused = async || {
        test.issue(coupon, shop.users[usize::from(other)]).await.refused(409, "COUPON_OUT_OF_STOCK");
        test.engine.sold_out().settled().await;
        test.engine.sold_out().counts().refused
    };
    for _ in 0..3 {
        refused().await;
    }
    let before = refused().await;
    assert_eq!(refused().await, before + 1, "refused without Redis");
    test.finish().await;
}

#[tokio::test]
async fn partition_rebuilt_by_command() {
    let servers = Servers::start().await;
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "{said}");
    let mut serving = servers.start_with(&["serve"], &[("PARTITIONS", "3")], "serving");
    let base = serving.base().await;
    for balance in [1, 2, 3] {
        post(&base, "/admin/v1/users", json!({"userName": "A", "balance": balance})).await.created();
    }
    let (status, said) = run(&mut servers.role(&["rebuild", "--partition", "1", "--partition", "2"])).await;
    assert!(status.success() && said.contains("partitions [1, 2]"), "{said}");
    let (status, said) = run(&mut servers.role(&["rebuild", "--partition", "3"])).await;
    assert!(!status.success() && said.contains("no partition 3"), "{said}");
    until("it goes on", async || (get(&base, "/api/v1/balances/1").await.status == 200).then_some(())).await;
    serving.stop().await;
    servers.end_of(3).await;
}
