//! Replies to clients while Redis is out of memory, has flushed its scripts, or has a frozen or lost partition state.

use serde_json::{Value, json};

use crate::support::harness::{Options, Reply, TestApp, until};

/// One of each write, with the state that lets all of them succeed.
pub struct Writes {
    pub test: TestApp,
    pub user: i64,
    pub product: i64,
    pub coupon: i64,
    pub pending: i64,
    pub payable: i64,
}

impl Writes {
    async fn ready() -> Writes {
        Writes::on(TestApp::start().await).await
    }

    pub async fn on(test: TestApp) -> Writes {
        let (user, product) = (test.user(100_000).await, test.product(1_000, 100).await);
        let coupon = test.campaign("FIXED", 100, 10).await;
        let pending = test.place(user, product, 1).await;
        let payable = test.place(user, product, 2).await;
        // Ids of payments are reserved in blocks: this payment reserves one before the snapshot.
        let paid = test.place(user, product, 1).await;
        test.pay(paid, user, "CARD", 1_000).await.ok();
        Writes { test, user, product, coupon, pending, payable }
    }

    pub fn all(&self) -> Vec<(&'static str, String, Value)> {
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

    /// Asserts that reads that need Redis only succeed.
    pub async fn assert_reads_served(&self) {
        let Writes { user, product, .. } = self;
        for path in [
            format!("/api/v1/balances/{user}"),
            format!("/api/v1/balances/{user}/history"),
            format!("/api/v1/products/{product}"),
            "/api/v1/products/popular".to_owned(),
        ] {
            self.test.get(&path).await.ok();
        }
    }

    /// Asserts that every read from Redis gets a 503 with `Retry-After`, for existing and for missing objects.
    pub async fn assert_reads_unavailable(&self) {
        let Writes { user, product, coupon, pending, .. } = self;
        self.assert_unavailable([
            format!("/api/v1/balances/{user}"),
            format!("/api/v1/balances/{user}/history"),
            format!("/api/v1/coupons/{user}"),
            format!("/api/v1/products/{product}"),
            format!("/api/v1/orders/{pending}"),
            format!("/admin/v1/coupons/{coupon}"),
            "/api/v1/products".to_owned(),
            "/api/v1/campaigns".to_owned(),
            "/api/v1/products/popular?sortBy=MONTHLY".to_owned(),
            "/admin/v1/projection".to_owned(),
            "/admin/v1/orders".to_owned(),
        ])
        .await;
        self.assert_missing_unavailable().await;
        self.test.get("/healthz").await.ok();
    }

    /// Asserts that missing objects, which Redis may have lost, get a 503: no 404, and no empty list.
    pub async fn assert_missing_unavailable(&self) {
        self.assert_unavailable(
            [
                "/api/v1/balances/999",
                "/api/v1/balances/999/history",
                "/api/v1/coupons/999",
                "/api/v1/products/999",
                "/api/v1/orders/999?userId=1",
                "/admin/v1/coupons/999",
                "/api/v1/products?category=NONE",
                "/readyz",
            ]
            .map(str::to_owned),
        )
        .await;
    }

    async fn assert_unavailable(&self, paths: impl IntoIterator<Item = String>) {
        for path in paths {
            let reply = self.test.get(&path).await;
            assert_eq!(reply.status, 503, "{path}: {}", reply.text);
            reply.refused(503, "SERVICE_UNAVAILABLE");
            assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1, "{path}");
        }
    }

    pub async fn send(&self, (method, path, body): &(&'static str, String, Value), key: Option<&str>) -> Reply {
        self.test.send(method.parse().unwrap(), path, Some(body), key).await
    }

    /// Asserts that every write gets a 503 with `Retry-After` while Redis is degraded, and that after the repair the state is
    /// unchanged and every write succeeds.
    pub async fn assert_writes_unavailable(&self, degrade: impl AsyncFnOnce(), restore: impl AsyncFnOnce()) {
        let before = self.test.snapshot().await;
        degrade().await;
        let writes = self.all();
        for (n, write) in writes.iter().enumerate() {
            for key in [None, Some(format!("key-{n}"))] {
                let reply = self.send(write, key.as_deref()).await;
                reply.refused(503, "SERVICE_UNAVAILABLE");
                assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1, "{write:?}");
            }
        }
        restore().await;
        assert!(before == self.test.snapshot().await, "a refused write changed the state");
        until("the service is ready", async || {
            self.test.engine.check().await;
            (self.test.get("/readyz").await.status == 200).then_some(())
        })
        .await;
        // The refusals consumed no key: the same requests under the same keys succeed.
        for (n, write) in writes.iter().enumerate() {
            let reply = self.send(write, Some(&format!("key-{n}"))).await;
            assert!(reply.status.is_success() && !reply.replayed(), "{write:?}: {}", reply.text);
            let again = self.send(write, Some(&format!("key-{n}"))).await;
            assert!(again.replayed(), "{write:?}");
            assert_eq!((reply.status, reply.text), (again.status, again.text), "{write:?}");
        }
    }
}

pub async fn config(test: &TestApp, name: &str, value: &str) {
    let _: () = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async(&mut test.raw().await).await.unwrap();
}

#[tokio::test]
async fn script_refused_before_write_when_out_of_memory() {
    let writes = Writes::ready().await;
    let test = &writes.test;
    // The projection continues, and frees memory.
    config(test, "maxmemory", "1").await;
    test.drain().await;
    config(test, "maxmemory", "0").await;
    let degrade = async || {
        config(test, "maxmemory", "1").await;
        writes.assert_reads_served().await;
    };
    writes.assert_writes_unavailable(degrade, async || config(test, "maxmemory", "0").await).await;
    writes.test.finish().await;
}

#[tokio::test]
async fn request_unavailable_when_partition_frozen() {
    let writes = Writes::ready().await;
    let (mut redis, mut again) = (writes.test.raw().await, writes.test.raw().await);
    let degrade = async || {
        let _: i64 = redis::cmd("HSET").arg("{p0}:meta").arg("frozen").arg(1).query_async(&mut redis).await.unwrap();
        writes.assert_reads_served().await;
    };
    let restore = async || {
        let _: i64 = redis::cmd("HDEL").arg("{p0}:meta").arg("frozen").query_async(&mut again).await.unwrap();
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    writes.test.finish().await;
}

#[tokio::test]
async fn request_unavailable_when_partition_state_gone() {
    let writes = Writes::ready().await;
    let (mut redis, mut again) = (writes.test.raw().await, writes.test.raw().await);
    let rename = |from: &str, to: &str| redis::cmd("RENAME").arg(from).arg(to).to_owned();
    let degrade = async || {
        let away = rename("{p0}:meta", "{p0}:idem:aside");
        let _: () = away.query_async(&mut redis).await.unwrap();
        writes.assert_missing_unavailable().await;
    };
    let restore = async || {
        let back = rename("{p0}:idem:aside", "{p0}:meta");
        let _: () = back.query_async(&mut again).await.unwrap();
    };
    writes.assert_writes_unavailable(degrade, restore).await;
    for path in ["/api/v1/balances/999", "/api/v1/balances/999/history", "/api/v1/coupons/999"] {
        writes.test.get(path).await.refused(404, "USER_NOT_FOUND");
    }
    writes.test.finish().await;
}

#[tokio::test]
async fn script_reloaded_when_redis_forgot_it() {
    let writes = Writes::ready().await;
    let mut redis = writes.test.raw().await;
    for write in writes.all() {
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
        let reply = writes.send(&write, None).await;
        assert!(reply.status.is_success(), "{write:?}: {}", reply.text);
    }
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
    writes.test.get(&format!("/api/v1/balances/{}/history", writes.user)).await.ok();
    // Concurrent requests, while the scripts are flushed repeatedly.
    let path = format!("/api/v1/balances/{}", writes.user);
    let charges = futures_util::future::join_all((0..100).map(|_| writes.test.put(&path, json!({"amount": 1}))));
    let forget = async {
        for _ in 0..20 {
            let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
        }
    };
    let before = writes.test.get(&path).await.ok()["balance"].as_i64().unwrap();
    let (replies, ()) = tokio::join!(charges, forget);
    let charged = replies.iter().filter(|reply| reply.status == 200).count() as i64;
    // A script that is flushed twice within one request is not executed, and the reply is a 503.
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        reply.refused(503, "SERVICE_UNAVAILABLE");
    }
    assert_eq!(writes.test.get(&path).await.ok()["balance"], before + charged);
    writes.test.finish().await;
}

/// Scripts are flushed between the steps of an operation over partitions: a repeat under the key settles it.
#[tokio::test]
async fn remote_operation_settled_when_scripts_forgotten_between_steps() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    // The user, the product and the campaign are in a partition each.
    test.user(0).await;
    for _ in 0..2 {
        test.product(0, 0).await;
    }
    let writes = Writes::on(test).await;
    let mut redis = writes.test.raw().await;
    let forget = async {
        loop {
            let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut redis).await.unwrap();
        }
    };
    let send = async {
        for (n, write) in writes.all().iter().enumerate() {
            let key = format!("key-{n}");
            let reply = until("it is carried out", async || {
                let reply = writes.send(write, Some(&key)).await;
                (reply.status != 503).then_some(reply)
            })
            .await;
            assert!(reply.status.is_success(), "{write:?}: {}", reply.text);
        }
    };
    tokio::select! {
        () = forget => unreachable!(),
        () = send => {}
    }
    let balance = writes.test.get(&format!("/api/v1/balances/{}", writes.user)).await.ok()["balance"].clone();
    assert_eq!(balance, 100_000 - 1_000 + 1_000 - 2_000);
    writes.test.clock.advance(700_000);
    writes.test.engine.sweep().await.unwrap();
    writes.test.finish().await;
}
