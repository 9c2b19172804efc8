//! The conditions under which an order leaves Redis.

use super::*;

#[tokio::test]
async fn order_evicted_when_projected() {
    for partitions in [1, 3] {
        let mut shop = Fixture::start(partitions).await;
        let ends = ClosedOrders::of(&mut shop).await;
        for (key, ttl) in shop.ttls().await {
            assert_eq!(ttl, -1, "{key} has a TTL, and PostgreSQL does not have it");
        }
        shop.test.drain().await;
        let ttls = shop.ttls().await;
        let ttl = |key: &String| Some(ttls[key]);
        assert_eq!(ttl(&shop.key(ends.pending)), Some(-1));
        assert_ttl_fresh(ttl(&shop.key(ends.refunded)), REFUNDED_KEEP_MS);
        for order in [ends.paid, ends.cancelled, ends.expired, ends.failed] {
            assert_ttl_fresh(ttl(&shop.key(order)), KEEP_MS);
        }
        shop.test.expire_evicted().await;
        let left: BTreeSet<String> = shop.ttls().await.into_keys().collect();
        assert_eq!(left, [shop.key(ends.pending)].into());
        shop.finish().await;
    }
}

/// The process dies between the commit and the eviction, or another process repeats the batch much later.
#[tokio::test]
async fn batch_repeated_evicts_the_same_orders() {
    for partitions in [1, 3] {
        let shop = Fixture::start(partitions).await;
        let order = shop.paid().await;
        let owner = shop.test.store.owner(order);
        let mut batches = Vec::new();
        for here in shop.test.store.all() {
            batches.push((here, shop.test.store.outbox_page(here, StreamId::ZERO, 1000).await.unwrap()));
        }
        shop.test.drain().await;
        let mut redis = shop.test.raw().await;
        let again = async || {
            for (here, entries) in &batches {
                let postgres = (&shop.test.db, Duration::from_secs(600));
                let retention = shop.test.options.retention.retention();
                let events = events(entries);
                let events: Vec<_> = events.iter().collect();
                projector::evict::evict(&shop.test.store, postgres, retention, *here, &events).await.unwrap();
            }
        };
        // The state without an eviction.
        let key = shop.key(order);
        let had: i64 = redis::cmd("PERSIST").arg(&key).query_async(&mut redis).await.unwrap();
        assert_eq!(had, 1, "{key}");
        for _ in 0..2 {
            again().await;
            let ttls = shop.ttls().await;
            assert_ttl_fresh(ttls.get(&shop.key(order)).copied(), KEEP_MS);
        }
        // Refunded meanwhile, without the refund in PostgreSQL: the batch must not evict the order as PAID.
        shop.test.cancel(order, shop.user).await.ok();
        again().await;
        let ttls = shop.ttls().await;
        assert_eq!(ttls[&shop.key(order)], -1);
        shop.test.app.projector.project(owner).await.unwrap();
        again().await;
        assert_ttl_fresh(shop.ttl(order).await, REFUNDED_KEEP_MS);
        shop.test.drain().await;
        again().await;
        // The batch restores no evicted key.
        shop.test.expire_evicted().await;
        again().await;
        assert!(shop.ttls().await.is_empty());
        shop.finish().await;
    }
}

/// The end of an order is a dead letter, so that only Redis has it: the order stays.
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
    assert_eq!(shop.ttl(order).await, Some(-1));
    assert_ttl_fresh(shop.ttl(other).await, KEEP_MS);
    shop.test.expire_evicted().await;
    assert!(shop.show(order).await.contains("CANCELLED"));
    assert!(shop.show(other).await.contains("CANCELLED"));
    shop.test.finish_unchecked().await;
}

/// A customer of an app whose PostgreSQL can be paused.
struct Customer {
    shop: RestartableApp,
    user: i64,
    product: i64,
}

impl Customer {
    async fn start() -> Customer {
        let shop = RestartableApp::open().await;
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

    async fn assert_evicted(&self, order: i64) {
        until("the order has a TTL", async || (self.of_order("PTTL", order).await > 0).then_some(())).await;
    }
}

/// No order leaves Redis before PostgreSQL has it, and an evicted order is not reported as missing.
#[tokio::test]
async fn order_kept_and_request_unavailable_when_postgres_down() {
    let mut me = Customer::start().await;
    let (gone, closed) = (me.place().await, me.place().await);
    me.pay(gone).await.ok();
    me.cancel(closed).await.ok();
    for order in [gone, closed] {
        me.assert_evicted(order).await;
        assert_eq!(me.of_order("DEL", order).await, 1);
        me.show(order).await.ok();
    }
    me.shop.postgres.pause().unwrap();
    let (paid, open) = (me.place().await, me.place().await);
    me.pay(paid).await.ok();
    // Requests for orders in Redis are served; one for an evicted order is a 503, not a 404.
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
    me.assert_evicted(paid).await;
    until("Postgres answers", async || (me.show(gone).await.status == 200).then_some(())).await;
    me.pay(gone).await.refused(409, "ORDER_ALREADY_PAID");
    me.cancel(closed).await.refused(409, "ORDER_ALREADY_CLOSED");
    assert_eq!(me.cancel(gone).await.ok()["closeReason"], "REFUNDED");
    me.show(999).await.refused(404, "ORDER_NOT_FOUND");
    assert_eq!(me.of_order("PTTL", open).await, -1);
    me.shop.finish().await;
}
