//! Orders that are over leave Redis once Postgres has them, and nobody can tell: they are shown, refused and refunded as
//! before, whichever part of them has left, whatever is done twice, and whoever comes late.
//!
//! Redis ends lives by its own clock; here they end when the test says so ([`TestApp::leave`]).
//!
//! One long file, because it is one invariant, seen from every side: what is not in Redis is in Postgres, as it last was.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firstcome::{
    config::{Retention, RetentionConfig, TOMBSTONE_TTL_MS},
    model::{
        Error, NewPayment, OrderId, Partition, PaymentType, UserId,
        event::{self, Event},
    },
    projector,
    recovery::rebuild::{self, Rebuild},
    redis::{
        Store,
        commands::Closing,
        keys::Keys,
        outbox::{Entry, StreamId},
        retention::EvictionCandidate,
    },
};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    projector::projection::{Shop, busy_day},
    support::{
        fake_gateway::{Behaviour, FakeGateway, Manner},
        harness::{self, Options, TestApp, call, gateways, until},
        invariants,
    },
};

const KEEP_MS: i64 = 3_600_000;

/// A shop whose users, products and orders are spread over its partitions.
struct Fixture {
    test: TestApp,
    user: i64,
    /// At home in partitions 0, 1, 2 where there are three; the second one first, so that no list is in its order by chance.
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
        let of = |product| async move {
            let product = self.test.get(&format!("/api/v1/products/{product}")).await.ok();
            product["stockQuantity"].as_i64().unwrap()
        };
        join_all(self.products.iter().copied().map(of)).await
    }

    fn key(&self, order: i64) -> String {
        Keys(self.test.store.owner(order)).order(OrderId::new(order).unwrap())
    }

    /// The far holds' keys.
    fn holds(&self, order: i64) -> Vec<String> {
        let home = self.test.store.owner(order);
        let far = self.products.iter().map(|product| self.test.store.owner(*product)).filter(|here| *here != home);
        far.collect::<BTreeSet<_>>().into_iter().map(|here| Keys(here).hold(OrderId::new(order).unwrap())).collect()
    }

    async fn lives(&self) -> BTreeMap<String, i64> {
        invariants::lives(&mut self.test.raw().await).await
    }

    async fn life(&self, order: i64) -> Option<i64> {
        self.lives().await.get(&self.key(order)).copied()
    }

    async fn delete(&self, keys: impl IntoIterator<Item = String>) {
        for key in keys {
            let gone: i64 = redis::cmd("DEL").arg(&key).query_async(&mut self.test.raw().await).await.unwrap();
            assert_eq!(gone, 1, "{key} was not there");
        }
    }

    async fn finish(self) {
        self.test.finish().await;
    }
}

/// A life that began a moment ago.
#[track_caller]
fn begun(life: Option<i64>, whole: i64) {
    assert!(life.is_some_and(|life| (whole - 300_000..=whole).contains(&life)), "{life:?} of {whole}");
}

/// An order for each end, and its user. What is PENDING stays so.
struct Ends {
    pending: i64,
    paid: i64,
    cancelled: i64,
    expired: i64,
    failed: i64,
    refunded: i64,
    /// Whose order failed.
    poor: i64,
}

impl Ends {
    async fn of(shop: &mut Fixture) -> Ends {
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
        Ends { pending, paid, cancelled, expired, failed, refunded, poor }
    }

    fn over(&self) -> [i64; 5] {
        [self.paid, self.cancelled, self.expired, self.failed, self.refunded]
    }
}

/// The events of these entries.
fn events(entries: &[Entry]) -> Vec<Event> {
    entries.iter().flat_map(|entry| event::decode(&entry.fields)).filter_map(|decoded| decoded.event.ok()).collect()
}

// --- when it leaves --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn order_evicted_when_projected() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let ends = Ends::of(&mut shop).await;
        for (key, life) in shop.lives().await {
            // Stock that was given back elsewhere is a mark, with a life from the beginning.
            let mark = key.contains(":hold:") && life > KEEP_MS;
            assert!(life == -1 || mark, "{key} leaves in {life}, and Postgres has nothing of it");
        }
        shop.test.drain().await;
        let lives = shop.lives().await;
        let life = |key: &String| Some(lives[key]);
        assert_eq!(life(&shop.key(ends.pending)), Some(-1));
        begun(life(&shop.key(ends.refunded)), TOMBSTONE_TTL_MS);
        for order in [ends.paid, ends.cancelled, ends.expired, ends.failed] {
            begun(life(&shop.key(order)), KEEP_MS);
        }
        assert_eq!(shop.holds(ends.paid).len(), if partitions == 3 { 2 } else { 0 });
        shop.holds(ends.pending).iter().for_each(|hold| assert_eq!(life(hold), Some(-1)));
        shop.holds(ends.paid).iter().for_each(|hold| begun(life(hold), KEEP_MS));
        for order in [ends.refunded, ends.cancelled, ends.expired, ends.failed] {
            shop.holds(order).iter().for_each(|hold| begun(life(hold), TOMBSTONE_TTL_MS));
        }
        shop.test.leave().await;
        let left: BTreeSet<String> = shop.lives().await.into_keys().collect();
        let pending = shop.holds(ends.pending).into_iter().chain([shop.key(ends.pending)]);
        assert_eq!(left, pending.collect());
        shop.finish().await;
    }
}

/// As if the process had died between the commit and this; and as if another one did it once more, much later.
#[tokio::test]
async fn batch_repeated_evicts_the_same_orders() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let order = shop.paid().await;
        let home = shop.test.store.owner(order);
        let mut batches = Vec::new();
        for here in shop.test.store.all() {
            batches.push((here, shop.test.store.outbox_page(here, StreamId::ZERO, 1000).await.unwrap()));
        }
        shop.test.drain().await;
        let mut redis = shop.test.raw().await;
        let again = async || {
            for (here, entries) in &batches {
                let postgres = (&shop.test.db, Duration::from_secs(600));
                let keep = shop.test.options.retention.retention();
                let events = events(entries);
                let events: Vec<_> = events.iter().collect();
                projector::evict::evict(&shop.test.store, postgres, keep, *here, &events).await.unwrap();
            }
        };
        // It never came to that.
        for key in shop.holds(order).into_iter().chain([shop.key(order)]) {
            let had: i64 = redis::cmd("PERSIST").arg(&key).query_async(&mut redis).await.unwrap();
            assert_eq!(had, 1, "{key}");
        }
        for _ in 0..2 {
            again().await;
            let lives = shop.lives().await;
            begun(lives.get(&shop.key(order)).copied(), KEEP_MS);
            shop.holds(order).iter().for_each(|hold| begun(lives.get(hold).copied(), KEEP_MS));
        }
        // It was refunded meanwhile, and Postgres does not know: it must not leave as what it was.
        shop.test.cancel(order, shop.user).await.ok();
        again().await;
        let lives = shop.lives().await;
        assert_eq!(lives[&shop.key(order)], -1);
        shop.holds(order).iter().for_each(|hold| assert_eq!(lives[hold], -1));
        shop.test.app.projector.project(home).await.unwrap();
        again().await;
        begun(shop.life(order).await, TOMBSTONE_TTL_MS);
        shop.test.drain().await;
        again().await;
        shop.holds(order).iter().for_each(|hold| assert!(lives.contains_key(hold)));
        // And what has left does not come back by it.
        shop.test.leave().await;
        again().await;
        assert!(shop.lives().await.is_empty());
        shop.finish().await;
    }
}

/// What the projection could not apply is not in Postgres: Redis alone knows how the order ended.
#[tokio::test]
async fn order_kept_when_event_is_dead_letter() {
    let shop = Fixture::with(Options { dead_letters: 1, ..Options::default() }).await;
    let (order, other) = (shop.place(None).await, shop.place(None).await);
    shop.test.drain().await;
    let pool = shop.test.db.get_postgres_connection_pool();
    let constrain = format!("ALTER TABLE orders ADD CONSTRAINT tested CHECK (id <> {order} OR status = 'PENDING')");
    sqlx::query(sqlx::AssertSqlSafe(constrain)).execute(pool).await.unwrap();
    for order in [order, other] {
        shop.test.cancel(order, shop.user).await.ok();
    }
    shop.test.drain().await;
    assert_eq!(shop.life(order).await, Some(-1));
    begun(shop.life(other).await, KEEP_MS);
    shop.test.leave().await;
    assert!(shop.show(order).await.contains("CANCELLED"));
    assert!(shop.show(other).await.contains("CANCELLED"));
    shop.test.finish_unchecked().await;
}

/// Somebody in a shop whose Postgres can be paused.
struct Customer {
    shop: Shop,
    user: i64,
    product: i64,
}

impl Customer {
    async fn start() -> Customer {
        let shop = Shop::open().await;
        let user = json!({"userName": "A", "balance": 10_000});
        let user = shop.post("/admin/v1/users", user).await.created()["userId"].as_i64().unwrap();
        let product = json!({"productName": "B", "price": 100, "stockQuantity": 50, "category": "TOP"});
        let product = shop.post("/admin/v1/products", product).await.created()["productId"].as_i64().unwrap();
        Customer { shop, user, product }
    }

    async fn place(&self) -> i64 {
        let lines = json!([{"productId": self.product, "quantity": 1}]);
        let order = json!({"userId": self.user, "orderProducts": lines});
        self.shop.post("/api/v1/orders", order).await.ok()["orderId"].as_i64().unwrap()
    }

    async fn show(&self, order: i64) -> harness::Reply {
        self.shop.get(&format!("/api/v1/orders/{order}")).await
    }

    async fn pay(&self, order: i64) -> harness::Reply {
        let payment = json!({"orderId": order, "userId": self.user, "paymentType": "CARD", "amount": 100});
        self.shop.post("/api/v1/payments", payment).await
    }

    async fn cancel(&self, order: i64) -> harness::Reply {
        self.shop.post(&format!("/api/v1/orders/{order}/cancel"), json!({"userId": self.user})).await
    }

    async fn of_order(&self, command: &str, order: i64) -> i64 {
        let key = Keys(Partition(0)).order(OrderId::new(order).unwrap());
        let mut redis = harness::raw_redis(&self.shop.redis.url()).await;
        redis::cmd(command).arg(key).query_async(&mut redis).await.unwrap()
    }

    async fn is_about_to_leave(&self, order: i64) {
        until("it is about to leave", async || (self.of_order("PTTL", order).await > 0).then_some(())).await;
    }
}

/// Nothing leaves that Postgres does not have, and what has left is not taken for something that never was.
#[tokio::test]
async fn order_kept_and_request_unavailable_when_postgres_down() {
    let mut me = Customer::start().await;
    let (gone, closed) = (me.place().await, me.place().await);
    me.pay(gone).await.ok();
    me.cancel(closed).await.ok();
    for order in [gone, closed] {
        me.is_about_to_leave(order).await;
        assert_eq!(me.of_order("DEL", order).await, 1);
        me.show(order).await.ok();
    }
    me.shop.postgres.pause().unwrap();
    let (paid, open) = (me.place().await, me.place().await);
    me.pay(paid).await.ok();
    // What is here goes on; of what is not, nobody says that it is nowhere.
    for order in [paid, open] {
        me.show(order).await.ok();
        let path = format!("/api/v1/orders/{order}?userId={}", me.user + 1);
        me.shop.get(&path).await.refused(404, "ORDER_NOT_FOUND");
    }
    me.pay(paid).await.refused(409, "ORDER_ALREADY_PAID");
    let shown = [me.show(gone), me.show(closed), me.show(999)];
    let (shown, paid_again, cancelled) = tokio::join!(join_all(shown), me.pay(gone), me.cancel(gone));
    for reply in shown.into_iter().chain([paid_again, cancelled]) {
        reply.refused(503, "SERVICE_UNAVAILABLE");
        assert!(reply.headers.contains_key("retry-after"));
    }
    me.cancel(paid).await.ok();
    assert_eq!((me.of_order("PTTL", paid).await, me.of_order("PTTL", open).await), (-1, -1));
    me.shop.postgres.resume().unwrap();
    me.is_about_to_leave(paid).await;
    until("Postgres answers", async || (me.show(gone).await.status == 200).then_some(())).await;
    me.pay(gone).await.refused(409, "ORDER_ALREADY_PAID");
    me.cancel(closed).await.refused(409, "ORDER_ALREADY_CLOSED");
    assert_eq!(me.cancel(gone).await.ok()["closeReason"], "REFUNDED");
    me.show(999).await.refused(404, "ORDER_NOT_FOUND");
    assert_eq!(me.of_order("PTTL", open).await, -1);
    me.shop.finish().await;
}

// --- what it is like after that --------------------------------------------------------------------------------------

/// Every question about every order, and what is answered.
async fn told(shop: &Fixture, ends: &Ends) -> Vec<String> {
    let mut told = Vec::new();
    for order in [ends.pending].into_iter().chain(ends.over()) {
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
        told.extend(replies.into_iter().map(|reply| format!("{order}: {} {}", reply.status, reply.text)));
    }
    told.push(shop.test.get("/api/v1/orders/999999").await.text);
    told
}

#[tokio::test]
async fn archived_order_shown_and_refused_as_before() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let ends = Ends::of(&mut shop).await;
        let before = told(&shop, &ends).await;
        let all = before.join("\n");
        for code in ["ORDER_ALREADY_PAID", "INVALID_PAYMENT_REQUEST", "ORDER_ALREADY_CLOSED", "ORDER_NOT_FOUND"] {
            assert!(all.contains(code), "{code} is not in\n{all}");
        }
        shop.test.drain().await;
        shop.test.leave().await;
        let seqs = shop.test.get("/admin/v1/projection").await.text;
        assert_eq!(before, told(&shop, &ends).await);
        assert_eq!(seqs, shop.test.get("/admin/v1/projection").await.text, "a refusal decided something");
        shop.finish().await;
    }
}

/// A repeat gets the same bytes, whether or not its order has left since; and the key is nobody else's.
#[tokio::test]
async fn archived_order_repeats_get_first_reply() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let (test, user) = (&shop.test, shop.user);
        let (order, other) = (shop.place(Some(shop.coupon)).await, shop.place(None).await);
        let pay = json!({"orderId": order, "userId": user, "paymentType": "CARD", "amount": 2_360});
        let cancel = json!({"userId": user});
        let requests = [
            ("/api/v1/payments".to_owned(), &pay, "pay"),
            (format!("/api/v1/orders/{order}/cancel"), &cancel, "refund"),
            (format!("/api/v1/orders/{other}/cancel"), &cancel, "cancel"),
        ];
        let mut first = Vec::new();
        for (path, body, key) in &requests {
            let reply = test.send(Method::POST, path, Some(body), Some(key)).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            first.push(reply.text);
        }
        test.drain().await;
        test.leave().await;
        let balance = shop.balance().await;
        for ((path, body, key), first) in requests.iter().zip(&first) {
            let again = test.send(Method::POST, path, Some(body), Some(key)).await;
            assert!(again.replayed(), "{}", again.text);
            assert_eq!(&again.text, first);
            // Another request of this user.
            let charge = format!("/api/v1/balances/{user}");
            let reused = test.send(Method::PUT, &charge, Some(&json!({"amount": 1})), Some(key)).await;
            reused.refused(422, "IDEMPOTENCY_KEY_REUSED");
        }
        assert_eq!(shop.balance().await, balance);
        // Another request under a key of its own is judged anew.
        let late = test.send(Method::POST, &requests[1].0, Some(&cancel), Some("another")).await;
        late.refused(409, "ORDER_ALREADY_CLOSED");
        shop.finish().await;
    }
}

/// Which parts of a paid order have left when it is refunded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Away {
    Order,
    Holds,
    Both,
}

#[tokio::test]
async fn archived_order_refunded_once() {
    for (partitions, away) in [(1, Away::Both), (3, Away::Order), (3, Away::Holds), (3, Away::Both)] {
        let shop = Fixture::start(partitions).await;
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        let (order, kept) = (shop.paid().await, shop.paid().await);
        shop.test.drain().await;
        let (key, holds) = (shop.key(order), shop.holds(order));
        if away != Away::Holds {
            shop.delete([key.clone()]).await;
        }
        if away != Away::Order {
            shop.delete(holds.clone()).await;
        }
        let refund = json!({"userId": shop.user});
        let path = format!("/api/v1/orders/{order}/cancel");
        let reply = shop.test.send(Method::POST, &path, Some(&refund), Some("refund")).await;
        assert_eq!(reply.json()["closeReason"], "REFUNDED", "{away:?} {}", reply.text);
        assert!(shop.test.send(Method::POST, &path, Some(&refund), Some("refund")).await.replayed());
        shop.test.cancel(order, shop.user).await.refused(409, "ORDER_ALREADY_CLOSED");
        // At once, and not when it is relayed.
        assert_eq!(shop.balance().await, balance - 2_460);
        assert_eq!(shop.stock().await, stock.iter().map(|units| units - 2).collect::<Vec<_>>());
        let ranked = shop.test.get("/api/v1/products/popular?sortBy=MONTHLY").await.ok();
        assert!(ranked.as_array().unwrap().iter().all(|place| place["salesCount"] == 2), "{ranked}");
        // Postgres has not heard of it: nothing of it may leave.
        let lives = shop.lives().await;
        assert_eq!(lives[&key], -1, "{away:?}");
        holds.iter().for_each(|hold| assert_eq!(lives[hold], -1, "{away:?}"));
        shop.test.drain().await;
        begun(shop.life(order).await, TOMBSTONE_TTL_MS);
        shop.test.leave().await;
        shop.test.cancel(order, shop.user).await.refused(409, "ORDER_ALREADY_CLOSED");
        assert!(shop.show(kept).await.contains("PAID"));
        shop.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_order_refunded_once_when_refunds_race() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        for _ in 0..10 {
            let order = shop.paid().await;
            shop.test.drain().await;
            shop.test.leave().await;
            let replies = join_all((0..8).map(|_| shop.test.cancel(order, shop.user))).await;
            let (done, refused): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.status == 200);
            assert_eq!(done.len(), 1);
            refused.iter().for_each(|reply| reply.refused(409, "ORDER_ALREADY_CLOSED"));
        }
        assert_eq!((shop.balance().await, shop.stock().await), (balance, stock));
        shop.finish().await;
    }
}

/// Read in Postgres when it was PAID, and brought back after somebody else had it refunded: before Postgres knows, and after.
#[tokio::test]
async fn restore_of_stale_row_changes_nothing() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let (test, order) = (&shop.test, shop.paid().await);
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        test.drain().await;
        test.leave().await;
        let id = OrderId::new(order).unwrap();
        let read = firstcome::postgres::queries::archived_orders::order(&test.db, id, partitions, "Asia/Seoul")
            .await
            .unwrap()
            .unwrap();
        assert!(read.is_closed() && read.status == "PAID");
        let homes: Vec<Partition> =
            test.store.all().filter(|here| shop.holds(order).contains(&Keys(*here).hold(id))).collect();
        test.cancel(order, shop.user).await.ok();
        let late = async |when: &str| {
            let home = test.store.owner(order);
            let back =
                test.store.order_restore(home, EvictionCandidate::Order(id), &read.fields(), 60_000).await.unwrap();
            assert!(!back, "brought back {when}");
            for here in &homes {
                let sold = [("state", "SETTLED".to_owned()), ("lines", String::new()), ("user", "1".to_owned())];
                assert!(
                    !test.store.order_restore(*here, EvictionCandidate::Hold(id), &sold, 60_000).await.unwrap(),
                    "{when}"
                );
            }
            let call = call(None);
            let closing = Closing::Cancel { paid_on: None };
            let again = test.store.order_close(&call, id, UserId::new(shop.user).unwrap(), closing).await;
            assert!(matches!(again, Err(Error::OrderAlreadyClosed)), "{when}: {again:?}");
        };
        late("before Postgres knows").await;
        test.drain().await;
        late("after it does").await;
        assert_eq!(shop.balance().await, balance + 2_460);
        assert_eq!(shop.stock().await, stock.iter().map(|units| units + 2).collect::<Vec<_>>());
        shop.finish().await;
    }
}

/// Brought back, and then nothing: it leaves again, as what it was.
#[tokio::test]
async fn restored_order_evicted_again_when_unchanged() {
    let shop = Fixture::start(1).await;
    let order = shop.paid().await;
    shop.test.drain().await;
    let shown = shop.show(order).await;
    shop.test.leave().await;
    let id = OrderId::new(order).unwrap();
    let read = firstcome::postgres::queries::archived_orders::order(&shop.test.db, id, 1, "Asia/Seoul")
        .await
        .unwrap()
        .unwrap();
    assert!(
        shop.test
            .store
            .order_restore(Partition(0), EvictionCandidate::Order(id), &read.fields(), 60_000)
            .await
            .unwrap()
    );
    assert!(shop.life(order).await.is_some_and(|life| (1..=60_000).contains(&life)));
    assert_eq!(shop.show(order).await, shown);
    shop.test.leave().await;
    assert_eq!(shop.show(order).await, shown);
    shop.finish().await;
}

/// The request that refunds dies after the decision; the relay finds that what the order sold elsewhere has left.
#[tokio::test]
async fn relay_releases_archived_remote_hold() {
    for again in [false, true] {
        let shop = Fixture::start(3).await;
        let stock = shop.stock().await;
        let order = shop.paid().await;
        shop.test.drain().await;
        let call = call(None);
        let day = shop.test.clock.now().day(shop.test.engine.zone());
        let (id, user) = (OrderId::new(order).unwrap(), UserId::new(shop.user).unwrap());
        let closing = Closing::Cancel { paid_on: Some(day) };
        shop.test.store.order_close(&call, id, user, closing).await.unwrap().unwrap();
        shop.delete(shop.holds(order)).await;
        let home = shop.test.store.owner(order);
        let entries = shop.test.store.outbox_page(home, StreamId::ZERO, 1000).await.unwrap();
        shop.test.drain().await;
        assert_eq!(shop.stock().await, stock);
        if again {
            // Much later: the mark of the refund has left as well.
            shop.test.drain().await;
            shop.test.leave().await;
            assert!(shop.lives().await.is_empty());
            let postgres = (&shop.test.db, Duration::from_secs(600));
            let store = &shop.test.store;
            let events = events(&entries);
            let events: Vec<_> = events.iter().collect();
            projector::relay::relay(store, postgres, home, &events).await.unwrap();
            assert_eq!(shop.stock().await, stock, "given back twice");
        }
        shop.finish().await;
    }
}

/// A sweeper that was held up between its two steps for so long that order and hold have left takes neither for one that
/// never was.
#[tokio::test]
async fn delayed_sweeper_releases_nothing_of_archived_order() {
    let shop = Fixture::start(3).await;
    let order = shop.paid().await;
    let stock = shop.stock().await;
    shop.test.drain().await;
    shop.test.leave().await;
    let mut redis = shop.test.raw().await;
    let member = format!("{order}:{}", shop.user);
    let index = |hold: &String| format!("{}}}:holds", hold.split('}').next().unwrap());
    for hold in shop.holds(order) {
        let _: i64 = redis::cmd("ZADD").arg(index(&hold)).arg(0).arg(&member).query_async(&mut redis).await.unwrap();
    }
    shop.test.engine.sweep().await.unwrap();
    for hold in shop.holds(order) {
        let _: i64 = redis::cmd("ZREM").arg(index(&hold)).arg(&member).query_async(&mut redis).await.unwrap();
        let there: bool = redis::cmd("EXISTS").arg(&hold).query_async(&mut redis).await.unwrap();
        assert!(!there, "{hold} is marked as never held");
    }
    assert_eq!(shop.stock().await, stock);
    assert!(shop.show(order).await.contains("PAID"));
    shop.test.pay(order, shop.user, "CARD", 2_460).await.refused(409, "ORDER_ALREADY_PAID");
    assert_eq!(shop.test.cancel(order, shop.user).await.ok()["closeReason"], "REFUNDED");
    assert_eq!(shop.stock().await, stock.iter().map(|units| units + 2).collect::<Vec<_>>());
    shop.finish().await;
}

// --- gateways --------------------------------------------------------------------------------------------------------

struct ByGateway {
    shop: Fixture,
    gateway: FakeGateway,
}

impl ByGateway {
    async fn start() -> ByGateway {
        let gateway = FakeGateway::start().await;
        let mut config = gateways(&[("KAKAO_PAY", gateway.url())]);
        config.payment_gateway_timeout_ms = 60_000;
        let shop = Fixture::with(Options { gateway: config, ..Options::default() }).await;
        ByGateway { shop, gateway }
    }

    async fn pay(&self, order: i64) -> harness::Reply {
        self.shop.test.pay(order, self.shop.user, "KAKAO_PAY", 2_460).await
    }

    /// What is about to leave leaves, once Postgres has everything. Whether the order has.
    async fn has_left(&self, order: i64) -> bool {
        self.shop.test.drain().await;
        self.shop.test.leave().await;
        self.shop.life(order).await.is_none()
    }

    async fn later(&self, seconds: i64) {
        self.shop.test.clock.advance(seconds * 1000);
        self.shop.test.engine.sweep().await.unwrap();
    }
}

#[tokio::test]
async fn order_kept_while_gateway_pending() {
    let by = ByGateway::start().await;
    let (shop, gateway) = (&by.shop, &by.gateway);
    // Paid and refunded: until the money is back.
    let order = shop.place(None).await;
    let receipt = by.pay(order).await.ok()["receipt"].as_str().unwrap().to_owned();
    assert!(by.has_left(order).await);
    by.pay(order).await.refused(409, "ORDER_ALREADY_PAID");
    assert_eq!(gateway.posts(&receipt), 1);
    gateway.cancels_are(Manner::ServerError);
    assert_eq!(shop.test.cancel(order, shop.user).await.ok()["closeReason"], "REFUNDED");
    by.later(5).await;
    assert!(!by.has_left(order).await, "money is still to come back");
    assert!(!gateway.cancelled(&receipt));
    gateway.cancels_are(Manner::Truthful);
    by.later(5).await;
    assert!(gateway.cancelled(&receipt));
    shop.test.drain().await;
    begun(shop.life(order).await, TOMBSTONE_TTL_MS);
    assert!(by.has_left(order).await);
    shop.test.cancel(order, shop.user).await.refused(409, "ORDER_ALREADY_CLOSED");

    // Never heard of: until it is certain that no money comes.
    gateway.always(Behaviour::ServerError);
    let lost = shop.place(None).await;
    by.pay(lost).await.refused(503, "SERVICE_UNAVAILABLE");
    assert!(!by.has_left(lost).await, "it is being asked about");
    by.later(100).await;
    assert!(shop.show(lost).await.contains("FAILED"));
    assert!(!by.has_left(lost).await, "it is watched");
    by.later(7_200).await;
    assert!(by.has_left(lost).await);
    assert!(shop.show(lost).await.contains("FAILED"));
    by.pay(lost).await.refused(400, "INVALID_PAYMENT_REQUEST");
    // Declined for certain.
    gateway.always(Behaviour::Decline);
    let declined = shop.place(None).await;
    by.pay(declined).await.refused(402, "INSUFFICIENT_BALANCE");
    assert!(by.has_left(declined).await);
    by.shop.finish().await;
}

/// The gateway's word comes so late that the order was given up, watched for as long as it is, and has left: money that it took
/// goes back all the same.
#[tokio::test]
async fn late_payment_of_archived_order_refunded() {
    let by = ByGateway::start().await;
    let (shop, gateway) = (&by.shop, &by.gateway);
    let order = shop.place(None).await;
    gateway.next(Behaviour::ApproveLate);
    let meanwhile = async {
        let uid = gateway.any_posted().await;
        by.later(100).await;
        assert!(shop.show(order).await.contains("FAILED"));
        by.later(7_200).await;
        assert!(by.has_left(order).await);
        gateway.release_late();
        uid
    };
    let (paid, uid) = tokio::join!(by.pay(order), meanwhile);
    paid.refused(400, "INVALID_PAYMENT_REQUEST");
    assert_eq!((gateway.taken(&uid), gateway.cancelled(&uid)), (Some(2_460), true));
    by.shop.finish().await;
}

// --- the rebuild -----------------------------------------------------------------------------------------------------

async fn rebuilt(test: &TestApp) -> rebuild::Summary {
    let store = Store::connect(&harness::redis_config(&test.redis.url())).await.unwrap();
    let db =
        firstcome::postgres::connect(&harness::postgres_config(&harness::postgres_url(&test.database))).await.unwrap();
    let (clock, zone, keep) = (test.clock.clone(), test.engine.zone(), test.options.retention.retention());
    let patience = Duration::from_secs(600);
    let projector =
        projector::Projector::new(store.clone(), db.clone(), clock.clone(), &Default::default(), patience, keep);
    let rebuild = Rebuild { store, db: db.clone(), projector, clock, zone, keep, allow_unsafe_redis: false };
    let summary = rebuild.run(rebuild::Options { discard: false, lost_at_most: Some(0) }).await.unwrap();
    db.close().await.unwrap();
    until("the service goes on", async || (test.get("/readyz").await.status == 200).then_some(())).await;
    summary
}

#[tokio::test]
async fn rebuild_restores_orders_not_archived() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let old = Ends::of(&mut shop).await;
        let told_before = told(&shop, &old).await;
        // The old ones' keep is over, but for that of what was refunded.
        shop.test.clock.advance(KEEP_MS + 1);
        let young = shop.paid().await;
        shop.test.cancel(old.pending, shop.user).await.ok();
        let pending = shop.place(None).await;
        shop.test.clock.advance(60_000);
        shop.test.drain().await;
        let _: () = redis::cmd("FLUSHALL").query_async(&mut shop.test.raw().await).await.unwrap();
        let summary = rebuilt(&shop.test).await;
        assert_eq!((summary.withheld_units, summary.lost_at_least), (0, 0));
        let lives = shop.lives().await;
        let orders: BTreeSet<&String> = lives.keys().filter(|key| key.contains(":order:")).collect();
        let expected = [old.refunded, old.pending, young, pending].map(|order| shop.key(order));
        assert_eq!(orders, expected.iter().collect());
        let life = |order: i64| lives[&shop.key(order)];
        assert_eq!(life(pending), -1);
        // By the service's clock: a minute of it is over.
        assert!((KEEP_MS - 360_000..=KEEP_MS - 60_000).contains(&life(young)), "{}", life(young));
        assert!(life(old.pending) <= KEEP_MS - 60_000);
        let passed = KEEP_MS + 60_001;
        let rest = TOMBSTONE_TTL_MS - passed;
        assert!((rest - 300_000..=rest).contains(&life(old.refunded)), "{}", life(old.refunded));
        for (order, whole) in [(young, Some(KEEP_MS - 60_000)), (pending, None), (old.paid, Some(0))] {
            for hold in shop.holds(order) {
                match whole {
                    None => assert_eq!(lives[&hold], -1),
                    Some(0) => assert!(!lives.contains_key(&hold)),
                    Some(whole) => assert!((whole - 300_000..=whole).contains(&lives[&hold])),
                }
            }
        }
        // Whether or not they came back, the answers are the same; and the others, too, are refunded.
        let told_after = told(&shop, &old).await;
        let of = |told: &[String]| -> Vec<String> {
            let pending = format!("{}:", old.pending);
            told.iter().filter(|line| !line.starts_with(&pending)).cloned().collect()
        };
        assert_eq!(of(&told_before), of(&told_after));
        let (balance, stock) = (shop.balance().await, shop.stock().await);
        for order in [old.paid, young] {
            assert_eq!(shop.test.cancel(order, shop.user).await.ok()["closeReason"], "REFUNDED");
        }
        assert_eq!(shop.balance().await, balance + 2 * 2_460);
        assert_eq!(shop.stock().await, stock.iter().map(|units| units + 4).collect::<Vec<_>>());
        // No id is given out again, whether or not its order came back.
        let last = [old.pending, young, pending].into_iter().chain(old.over()).max().unwrap();
        for _ in 0..5 {
            assert!(shop.paid().await > last);
        }
        shop.finish().await;
    }
}

/// A rebuild that finds what an order sold elsewhere not given back yet does so, whether or not it has left.
#[tokio::test]
async fn rebuild_finishes_refund_of_archived_order() {
    let shop = Fixture::start(3).await;
    let stock = shop.stock().await;
    let order = shop.paid().await;
    shop.test.drain().await;
    shop.test.clock.advance(KEEP_MS + 1);
    let call = call(None);
    let day = START_DAY.with(|day| *day);
    let closing = Closing::Cancel { paid_on: Some(day) };
    let (id, user) = (OrderId::new(order).unwrap(), UserId::new(shop.user).unwrap());
    shop.test.store.order_close(&call, id, user, closing).await.unwrap().unwrap();
    // Postgres has the refund; nobody has told the others.
    let pool = shop.test.db.get_postgres_connection_pool();
    let home = shop.test.store.owner(order);
    shop.delete(shop.holds(order)).await;
    let mut redis = shop.test.raw().await;
    for hold in shop.holds(order) {
        // Not a hash: the relay can't take the step, and the projection goes on.
        let _: () = redis::cmd("SET").arg(&hold).arg("in the way").query_async(&mut redis).await.unwrap();
    }
    shop.test.app.projector.project(home).await.unwrap();
    let refunded: i64 = sqlx::query_scalar("SELECT count(*) FROM orders WHERE close_reason = 'REFUNDED'")
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(refunded, 1);
    let summary = rebuilt(&shop.test).await;
    assert_eq!(summary.repaired, 2);
    assert_eq!(shop.stock().await, stock);
    shop.finish().await;
}

thread_local! {
    /// The day on which the standing clock starts.
    static START_DAY: chrono::NaiveDate = harness::START.day(chrono_tz::Asia::Seoul);
}

// --- the audit -------------------------------------------------------------------------------------------------------

async fn wrong(test: &TestApp) -> Vec<String> {
    let report = test.app.audit().run().await.unwrap();
    report.checks.iter().filter(|check| !check.ok).map(|check| check.detail.clone()).collect()
}

/// What must be in Redis and is not is named; what may have left is not.
#[tokio::test]
async fn audit_tells_archived_from_missing() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let ends = Ends::of(&mut shop).await;
        let cancelled = shop.place(None).await;
        shop.test.drain().await;
        // Decided since, and in Postgres only as they were before.
        for order in [ends.paid, cancelled] {
            shop.test.cancel(order, shop.user).await.ok();
        }
        assert_eq!(wrong(&shop.test).await, Vec::<String>::new());
        let mut redis = shop.test.raw().await;
        let mut missing = vec![shop.key(ends.pending), shop.key(ends.paid), shop.key(cancelled)];
        missing.extend(shop.holds(ends.pending));
        for key in &missing {
            let aside = format!("{key}:aside");
            let _: () = redis::cmd("RENAME").arg(key).arg(&aside).query_async(&mut redis).await.unwrap();
            let found = wrong(&shop.test).await.join("\n");
            let id = key.rsplit(':').next().unwrap();
            let says = if key.contains(":hold:") {
                format!("stock held for order {id}: the hold is \"\"")
            } else {
                format!("order {id}: it is in PostgreSQL and not in Redis")
            };
            assert!(found.contains(&says), "{says:?} is not in\n{found}");
            let _: () = redis::cmd("RENAME").arg(&aside).arg(key).query_async(&mut redis).await.unwrap();
            // Nor may it be about to leave.
            let _: i64 = redis::cmd("PEXPIRE").arg(key).arg(KEEP_MS).query_async(&mut redis).await.unwrap();
            let found = wrong(&shop.test).await.join("\n");
            assert!(found.contains(&format!("order {id}: it is about to leave Redis, and is not over")), "{found}");
            let _: i64 = redis::cmd("PERSIST").arg(key).query_async(&mut redis).await.unwrap();
            assert_eq!(wrong(&shop.test).await, Vec::<String>::new());
        }
        // All that may leave has left; and something that is there and has left in Postgres' eyes is compared as ever.
        for order in [ends.cancelled, ends.expired, ends.failed] {
            shop.delete([shop.key(order)]).await;
        }
        assert_eq!(wrong(&shop.test).await, Vec::<String>::new());
        let refunded = shop.key(ends.refunded);
        let set = |value: i64| redis::cmd("HSET").arg(&refunded).arg("total").arg(value).to_owned();
        let _: i64 = set(1).query_async(&mut redis).await.unwrap();
        let found = wrong(&shop.test).await.join("\n");
        assert!(found.contains(&format!("order {}: the total", ends.refunded)), "{found}");
        let _: i64 = set(2_460).query_async(&mut redis).await.unwrap();
        // An order that Postgres has lost is found by what is left of it there.
        shop.test.drain().await;
        shop.test.leave().await;
        assert_eq!(wrong(&shop.test).await, Vec::<String>::new());
        shop.finish().await;
    }
}

/// Everything leaves the moment that Postgres has it, while everybody shops, refunds and is audited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_keeps_invariants_when_retention_zero() {
    for partitions in [1, 3] {
        let retention = RetentionConfig { closed_order_keep_seconds: 0 };
        let options = Options { partitions, retention, project: true, max_open_orders: 1000, ..Options::default() };
        let shop = Fixture::with(options).await;
        let (test, products) = (&shop.test, &shop.products);
        let shopping = (0..4).map(|n| async move {
            let user = test.user(100_000).await;
            for round in n..n + 12 {
                let balance = test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"].clone();
                let lines: Vec<Value> = products.iter().map(|id| json!({"productId": id, "quantity": 1})).collect();
                let order = test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await;
                let order = order.ok()["orderId"].as_i64().unwrap();
                let path = format!("/api/v1/orders/{order}?userId={user}");
                if round % 3 == 0 {
                    test.cancel(order, user).await.ok();
                    assert_eq!(test.get(&path).await.ok()["closeReason"], "CANCELLED_BY_USER");
                    continue;
                }
                test.pay(order, user, "CARD", 1_230).await.ok();
                assert_eq!(test.get(&path).await.ok()["orderStatus"], "PAID", "its user was told");
                test.pay(order, user, "CARD", 1_230).await.refused(409, "ORDER_ALREADY_PAID");
                let replies = join_all((0..3).map(|_| test.cancel(order, user))).await;
                assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{replies:?}");
                assert_eq!(test.get(&path).await.ok()["closeReason"], "REFUNDED");
                let after = test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"].clone();
                assert_eq!(balance, after);
            }
        });
        let auditing = async {
            for _ in 0..2 {
                assert_eq!(wrong(test).await, Vec::<String>::new(), "{partitions} partitions");
            }
        };
        tokio::join!(join_all(shopping), auditing);
        busy_day(test).await;
        shop.finish().await;
    }
}

/// The engine's own words for what has left, where HTTP has none.
#[tokio::test]
async fn retention_refused_when_below_minute() {
    let keep = Retention::seconds(60);
    assert_eq!((keep.closed_ms(), keep.refunded_ms()), (60_000, TOMBSTONE_TTL_MS));
    let keep = Retention::seconds(31_536_000);
    assert_eq!(keep.closed_ms(), keep.refunded_ms());
    let program = || std::process::Command::new(env!("CARGO_BIN_EXE_firstcome"));
    for (seconds, ok) in [("59", false), ("60", true), ("0", false)] {
        let output = program()
            .args(["rebuild", "--redis-url", "redis://127.0.0.1:1", "--database-url", "postgres://127.0.0.1:1/x"])
            .env("CLOSED_ORDER_KEEP_SECONDS", seconds)
            .env("DATABASE_TIMEOUT_MS", "100")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.contains("invalid value"), !ok, "{seconds}: {said}");
    }
    let test = TestApp::start().await;
    let payment = NewPayment {
        order_id: OrderId::new(7).unwrap(),
        user_id: UserId::new(1).unwrap(),
        payment_type: PaymentType::Card,
        amount: 5,
    };
    let unknown = test.engine.pay_order(&call(None), payment).await;
    assert!(matches!(unknown, Err(Error::OrderNotFound)), "{unknown:?}");
    test.finish().await;
}
