//! Scripts and the state of their Redis: out of memory, scripts forgotten, books frozen or gone, as a client sees it.

use serde_json::{Value, json};

use crate::harness::{Reply, World};

/// One of each write, with the state that lets all of them succeed.
struct Writes {
    world: World,
    user: i64,
    product: i64,
    coupon: i64,
    pending: i64,
    payable: i64,
}

impl Writes {
    async fn ready() -> Writes {
        let world = World::start().await;
        let (user, product) = (world.user(100_000).await, world.product(1_000, 100).await);
        let coupon = world.campaign("FIXED", 100, 10).await;
        let pending = world.order(user, product, 1).await.ok()["orderId"].as_i64().unwrap();
        let payable = world.order(user, product, 2).await.ok()["orderId"].as_i64().unwrap();
        // Ids of payments are reserved in blocks: so that there are some at hand.
        let paid = world.order(user, product, 1).await.ok()["orderId"].as_i64().unwrap();
        world.pay(paid, user, "CARD", 1_000).await.ok();
        Writes { world, user, product, coupon, pending, payable }
    }

    fn all(&self) -> Vec<(&'static str, String, Value)> {
        let Writes { user, product, coupon, pending, payable, .. } = self;
        let lines = json!([{"productId": product, "quantity": 1}]);
        vec![
            ("PUT", format!("/api/v1/balances/{user}"), json!({"amount": 1_000})),
            ("POST", "/api/v1/coupons/issue".into(), json!({"couponId": coupon, "userId": user})),
            ("POST", "/api/v1/orders".into(), json!({"userId": user, "orderProducts": lines})),
            (
                "POST",
                "/api/v1/payments".into(),
                json!({"orderId": payable, "userId": user, "paymentType": "TOSS", "amount": 2_000}),
            ),
            ("POST", format!("/api/v1/orders/{pending}/cancel"), json!({"userId": user})),
            ("POST", "/admin/v1/users".into(), json!({"userName": "A", "balance": 5})),
            ("POST", "/admin/v1/users/bulk".into(), json!({"count": 3})),
            (
                "POST",
                "/admin/v1/products".into(),
                json!({"productName": "A", "price": 5, "stockQuantity": 5, "category": "TOP"}),
            ),
            ("PATCH", format!("/admin/v1/products/{product}"), json!({"stockDelta": 1})),
            (
                "POST",
                "/admin/v1/coupons".into(),
                json!({"couponCode": "A", "discountType": "FIXED", "discountAmount": 5, "totalQuantity": 5,
                    "expiredAt": "2030-01-01T00:00:00"}),
            ),
        ]
    }

    async fn send(&self, (method, path, body): &(&'static str, String, Value), key: Option<&str>) -> Reply {
        self.world.send(method.parse().unwrap(), path, Some(body), key).await
    }

    /// Every write answers 503 and says when to come back, and leaves everything as it is.
    async fn all_are_turned_away(&self, restore: impl AsyncFn()) {
        let before = self.world.snapshot().await;
        let writes = self.all();
        for (n, write) in writes.iter().enumerate() {
            for key in [None, Some(format!("key-{n}"))] {
                let reply = self.send(write, key.as_deref()).await;
                reply.refused(503, "SERVICE_UNAVAILABLE");
                assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1, "{write:?}");
            }
        }
        assert!(before == self.world.snapshot().await, "a write that was turned away changed something");
        restore().await;
        self.world.engine.look().await;
        // Nothing was used up: the same requests under the same keys are now carried out.
        for (n, write) in writes.iter().enumerate() {
            let reply = self.send(write, Some(&format!("key-{n}"))).await;
            assert!(reply.status.is_success() && !reply.replayed(), "{write:?}: {}", reply.text);
            let again = self.send(write, Some(&format!("key-{n}"))).await;
            assert!(again.replayed(), "{write:?}");
            assert_eq!((reply.status, reply.text), (again.status, again.text), "{write:?}");
        }
    }
}

async fn config(world: &World, name: &str, value: &str) {
    let _: () = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async(&mut world.raw().await).await.unwrap();
}

#[tokio::test]
async fn out_of_memory_is_a_refusal_before_the_first_write() {
    let writes = Writes::ready().await;
    config(&writes.world, "maxmemory", "1").await;
    // Reads go on.
    let (user, product) = (writes.user, writes.product);
    writes.world.get(&format!("/api/v1/balances/{user}")).await.ok();
    writes.world.get(&format!("/api/v1/balances/{user}/history")).await.ok();
    writes.world.get(&format!("/api/v1/products/{product}")).await.ok();
    writes.world.get("/api/v1/products/popular").await.ok();
    // The projection does too: it is what makes room.
    writes.world.drain().await;
    writes.all_are_turned_away(async || config(&writes.world, "maxmemory", "0").await).await;
    writes.world.finish().await;
}

#[tokio::test]
async fn frozen_books_are_503() {
    let writes = Writes::ready().await;
    let mut redis = writes.world.raw().await;
    let _: i64 = redis::cmd("HSET").arg("{p0}:meta").arg("frozen").arg(1).query_async(&mut redis).await.unwrap();
    let user = writes.user;
    writes.world.get(&format!("/api/v1/balances/{user}")).await.ok();
    let redis = tokio::sync::Mutex::new(redis);
    writes
        .all_are_turned_away(async || {
            let mut redis = redis.lock().await;
            let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").query_async(&mut *redis).await.unwrap();
        })
        .await;
    writes.world.finish().await;
}

#[tokio::test]
async fn books_that_are_gone_are_503_and_never_no_such_thing() {
    let writes = Writes::ready().await;
    let mut redis = writes.world.raw().await;
    let _: () = redis::cmd("RENAME").arg("{p0}:meta").arg("{p0}:claim:aside").query_async(&mut redis).await.unwrap();
    for path in [
        "/api/v1/balances/999",
        "/api/v1/balances/999/history",
        "/api/v1/coupons/999",
        "/api/v1/products/999",
        "/api/v1/orders/999?userId=1",
        "/admin/v1/coupons/999",
        "/readyz",
    ] {
        writes.world.get(path).await.refused(503, "SERVICE_UNAVAILABLE");
    }
    let redis = tokio::sync::Mutex::new(redis);
    writes
        .all_are_turned_away(async || {
            let mut redis = redis.lock().await;
            let mut back = redis::cmd("RENAME");
            let _: () = back.arg("{p0}:claim:aside").arg("{p0}:meta").query_async(&mut *redis).await.unwrap();
        })
        .await;
    writes.world.engine.look().await;
    for path in ["/api/v1/balances/999", "/api/v1/balances/999/history", "/api/v1/coupons/999"] {
        writes.world.get(path).await.refused(404, "USER_NOT_FOUND");
    }
    writes.world.finish().await;
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_loaded_again() {
    let writes = Writes::ready().await;
    let mut redis = writes.world.raw().await;
    for write in writes.all() {
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
        let reply = writes.send(&write, None).await;
        assert!(reply.status.is_success(), "{write:?}: {}", reply.text);
    }
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
    writes.world.get(&format!("/api/v1/balances/{}/history", writes.user)).await.ok();
    // By many at once, while they are forgotten again and again.
    let path = format!("/api/v1/balances/{}", writes.user);
    let charges = futures_util::future::join_all((0..100).map(|_| writes.world.put(&path, json!({"amount": 1}))));
    let forget = async {
        for _ in 0..20 {
            let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
        }
    };
    let before = writes.world.get(&path).await.ok()["balance"].as_i64().unwrap();
    let (replies, ()) = tokio::join!(charges, forget);
    let charged = replies.iter().filter(|reply| reply.status == 200).count() as i64;
    // Forgotten twice within one request it is not carried out, and says so.
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        reply.refused(503, "SERVICE_UNAVAILABLE");
    }
    assert_eq!(writes.world.get(&path).await.ok()["balance"], before + charged);
    writes.world.finish().await;
}
