//! [`TestApp`]: the whole service in this process, with a Redis server, a database and a clock of its own for each test.
//!
//! One PostgreSQL server is shared by all tests of a run (a database each, copied from a migrated template); it is started
//! by the first that needs it and ends with the process.

mod databases;

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use firstcome::{
    app::App,
    config::*,
    dev::{self, PostgresServer, RedisServer, ScratchDir},
    engine::Engine,
    model::{Call, Clock, IdempotencyKey, KeyOwner, Millis},
    postgres,
    redis::Store,
};
use reqwest::{Method, StatusCode};
use sea_orm::DatabaseConnection;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{redis::proxy::Proxy, support::invariants};
pub use databases::{admin_sql, drop_database, fresh_database, postgres_url};

/// The operators' token of every test.
pub const ADMIN: &str = "a-token-for-tests";
/// Where a standing clock starts: 2026-03-02 14:00 in Seoul, a Monday.
pub const START: Millis = Millis(1_772_427_600_000);

/// The settings of a [`TestApp`].
#[derive(Clone)]
pub struct Options {
    pub partitions: u16,
    /// `None`: the system's clock.
    pub clock: Option<Millis>,
    /// How wrong the system's clock is.
    pub clock_skew_ms: i64,
    /// Project in the background, rather than when the test drains.
    pub project: bool,
    /// Sweep in the background, rather than when the test sweeps.
    pub sweep: bool,
    pub hold_seconds: i64,
    pub max_open_orders: u32,
    pub max_balance: Option<i64>,
    pub sold_out_lease_ms: u64,
    pub gateway: GatewayConfig,
    pub durability: DurabilityConfig,
    pub retention: RetentionConfig,
    pub batch: u32,
    pub request_timeout: Duration,
    pub body_limit: u64,
    pub operators: OperatorsConfig,
    pub limits: LimitsConfig,
    pub auth: AuthConfig,
    /// The service's patience with Redis; a test that shortens it must bear with a 503 that only a stall explains.
    pub redis_timeout_ms: u64,
    /// The service reaches Redis through [`TestApp::proxy`].
    pub proxied: bool,
    /// How the service reaches Redis, where that is not [`redis_config`] of the server's own address.
    pub redis: Option<RedisConfig>,
    /// How the test itself reaches it, where that is not the server's own address.
    pub raw_url: Option<String>,
    /// How many dead letters [`TestApp::finish`] accepts.
    pub dead_letters: i64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            partitions: 1,
            clock: Some(START),
            clock_skew_ms: 0,
            project: false,
            sweep: false,
            hold_seconds: 600,
            max_open_orders: 20,
            max_balance: None,
            sold_out_lease_ms: 200,
            gateway: gateways(&[]),
            durability: DurabilityConfig::default(),
            retention: RetentionConfig::default(),
            batch: 1000,
            request_timeout: Duration::from_secs(300),
            body_limit: 65_536,
            operators: OperatorsConfig::admin(ADMIN),
            limits: LimitsConfig::off(),
            auth: AuthConfig::default(),
            redis_timeout_ms: 300_000,
            proxied: false,
            redis: None,
            raw_url: None,
            dead_letters: 0,
        }
    }
}

/// Gateways for these payment types (`CARD`, `KAKAO_PAY`, `TOSS`), with a timeout that suits a stalled machine.
pub fn gateways(urls: &[(&str, &str)]) -> GatewayConfig {
    let url = |kind: &str| urls.iter().find(|(k, _)| *k == kind).map(|(_, url)| Secret::new(*url));
    GatewayConfig {
        payment_gateway_card_url: url("CARD"),
        payment_gateway_kakao_pay_url: url("KAKAO_PAY"),
        payment_gateway_toss_url: url("TOSS"),
        payment_gateway_timeout_ms: 30_000,
        payment_gateway_token: None,
        payment_gateway_give_up_seconds: 60,
        payment_gateway_watch_seconds: 3600,
    }
}

/// The service and its servers, for one test.
pub struct TestApp {
    pub app: App,
    pub engine: Arc<Engine>,
    pub store: Store,
    pub db: DatabaseConnection,
    pub clock: Clock,
    pub base: String,
    pub client: reqwest::Client,
    pub options: Options,
    pub database: String,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    finished: bool,
    /// Between the service and Redis, where a test asked for it.
    pub proxy: Option<Proxy>,
    // Last, and in this order: the servers are ended before their directory goes.
    pub redis: RedisServer,
    /// The other nodes of a cluster.
    pub others: Vec<RedisServer>,
    _dir: ScratchDir,
}

/// A reply, read whole.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {} {}", self.status, self.text))
    }

    /// The reply, which must be a 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// The reply, which must be a 201.
    #[track_caller]
    pub fn created(self) -> Value {
        assert_eq!(self.status, 201, "{}", self.text);
        self.json()
    }

    /// Must be this status and errorCode, in the contract's envelope.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        let body = self.json();
        assert_eq!((self.status.as_u16(), body["errorCode"].as_str()), (status, Some(code)), "{}", self.text);
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.text);
    }

    pub fn replayed(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }
}

impl TestApp {
    pub async fn start() -> TestApp {
        TestApp::with(Options::default()).await
    }

    pub async fn with(options: Options) -> TestApp {
        let dir = ScratchDir::new().unwrap();
        let redis = RedisServer::start(dev::RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
        let database = fresh_database().await;
        Self::on(options, dir, redis, database).await
    }

    /// Starts on these servers and this database; also used to start again after a restart.
    pub async fn on(options: Options, dir: ScratchDir, redis: RedisServer, database: String) -> TestApp {
        let clock = options.clock.map_or_else(|| Clock::skewed(options.clock_skew_ms), Clock::standing);
        let proxy = if options.proxied { Some(Proxy::before(redis.socket_path()).await) } else { None };
        let redis_url = proxy.as_ref().map_or(redis.url(), Proxy::url);
        let app = open(&options, &redis_url, &postgres_url(&database), clock.clone()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let http = http_config(&options, address);
        if options.project {
            app.project();
        }
        if options.sweep {
            app.sweep();
        }
        let stop = CancellationToken::new();
        let router = app.router(&http).unwrap();
        let stopped = stop.clone();
        let serving = tokio::spawn(async move {
            firstcome::http::server::serve(listener, router, firstcome::http::server::ServerLimits::default(), stopped)
                .await
                .unwrap();
        });
        TestApp {
            engine: app.engine.clone(),
            store: app.store.clone(),
            db: app.db.clone(),
            app,
            clock,
            base: format!("http://{address}"),
            client: client(),
            options,
            database,
            stop,
            serving,
            finished: false,
            proxy,
            redis,
            others: Vec::new(),
            _dir: dir,
        }
    }

    /// How this test's API is served.
    pub fn http_config(&self) -> HttpConfig {
        http_config(&self.options, self.base.trim_start_matches("http://").parse().unwrap())
    }

    /// A request; `key` is its Idempotency-Key.
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>, key: Option<&str>) -> Reply {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if path.starts_with("/admin") {
            request = request.bearer_auth(ADMIN);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        read(request).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(&body), None).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PUT, path, Some(&body), None).await
    }

    /// A new user's id.
    pub async fn user(&self, balance: i64) -> i64 {
        let body = serde_json::json!({"userName": "이다은", "balance": balance});
        self.post("/admin/v1/users", body).await.created()["userId"].as_i64().unwrap()
    }

    /// A new product's id.
    pub async fn product(&self, price: i64, stock: i64) -> i64 {
        let body = serde_json::json!({"productName": "나이키 에어포스", "price": price, "stockQuantity": stock, "category": "SHOES"});
        self.post("/admin/v1/products", body).await.created()["productId"].as_i64().unwrap()
    }

    /// A new campaign's id: open now, its coupons good for a day.
    pub async fn campaign(&self, kind: &str, amount: i64, total: i64) -> i64 {
        let expires = self.clock.now().plus(86_400_000).local(self.engine.zone());
        let body = serde_json::json!({"couponCode": "HANGHAE8888", "discountType": kind, "discountAmount": amount,
            "totalQuantity": total, "expiredAt": expires});
        self.post("/admin/v1/coupons", body).await.created()["couponId"].as_i64().unwrap()
    }

    pub async fn issue(&self, coupon: i64, user: i64) -> Reply {
        self.post("/api/v1/coupons/issue", serde_json::json!({"couponId": coupon, "userId": user})).await
    }

    /// Orders one product, without a coupon.
    pub async fn order(&self, user: i64, product: i64, quantity: i64) -> Reply {
        let lines = serde_json::json!([{"productId": product, "quantity": quantity}]);
        self.post("/api/v1/orders", serde_json::json!({"userId": user, "orderProducts": lines})).await
    }

    pub async fn pay(&self, order: i64, user: i64, kind: &str, amount: i64) -> Reply {
        let body = serde_json::json!({"orderId": order, "userId": user, "paymentType": kind, "amount": amount});
        self.post("/api/v1/payments", body).await
    }

    pub async fn put_charge(&self, user: i64, amount: i64) -> Reply {
        self.put(&format!("/api/v1/balances/{user}"), serde_json::json!({"amount": amount})).await
    }

    pub async fn cancel(&self, order: i64, user: i64) -> Reply {
        self.post(&format!("/api/v1/orders/{order}/cancel"), serde_json::json!({"userId": user})).await
    }

    /// Carries the outbox to Postgres.
    pub async fn drain(&self) {
        self.app.projector.drain().await.unwrap();
    }

    /// Deletes every order and remote hold that has a TTL, as if it had expired. Returns their keys.
    pub async fn expire_evicted(&self) -> std::collections::BTreeSet<String> {
        let mut redis = self.raw().await;
        let ttls = invariants::ttls(&mut redis).await;
        let gone: std::collections::BTreeSet<String> =
            ttls.into_iter().filter(|(_, ttl)| *ttl > 0).map(|(key, _)| key).collect();
        for key in &gone {
            let _: i64 = redis::cmd("DEL").arg(key).query_async(&mut redis).await.unwrap();
        }
        gone
    }

    /// How this test's service reaches Redis.
    pub fn redis_config(&self) -> RedisConfig {
        self.options.redis.clone().unwrap_or_else(|| redis_config(&self.redis.url()))
    }

    /// A raw connection to this test's Redis.
    pub async fn raw(&self) -> redis::aio::MultiplexedConnection {
        let own = self.redis.url();
        raw_redis(self.options.raw_url.as_ref().unwrap_or(&own)).await
    }

    /// Every key of Redis with its value, without TTLs.
    pub async fn snapshot(&self) -> std::collections::BTreeMap<String, String> {
        invariants::snapshot(&mut self.raw().await).await
    }

    /// Drains the outbox, checks the invariants, and stops. Every test ends with this.
    pub async fn finish(mut self) {
        // The invariants are read key by key: nothing may change meanwhile.
        self.app.stop(None).await;
        self.drain().await;
        let mut servers = vec![self.raw().await];
        for other in &self.others {
            servers.push(raw_redis(&other.url()).await);
        }
        invariants::check(&mut servers, &self.db, self.options.partitions, self.options.dead_letters).await;
        // The audit must come to the same result.
        let report = self.app.audit().run().await.unwrap();
        let wrong: Vec<_> = report.checks.iter().filter(|check| !check.ok).collect();
        let letters = wrong.iter().all(|check| check.name.starts_with("dead letters"));
        assert!(report.balanced || letters && self.options.dead_letters > 0, "{wrong:#?}");
        self.end().await;
    }

    /// Stops without a check of the invariants: for tests that break them on purpose.
    pub async fn finish_unchecked(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
        self.finished = true;
        self.stop.cancel();
        (&mut self.serving).await.unwrap();
        self.db.clone().close().await.unwrap();
        self.redis.kill().await.unwrap();
        drop_database(&self.database).await;
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        assert!(self.finished || std::thread::panicking(), "a test ended without test.finish()");
    }
}

/// The parts of a service on these stores.
pub async fn open(options: &Options, redis: &str, postgres: &str, clock: Clock) -> anyhow::Result<App> {
    let projector = ProjectorConfig { projector_batch: options.batch, projector_linger_ms: 0 };
    App::open(&engine_config(options, redis, postgres), &projector, clock).await
}

/// The settings of the engine, on these stores.
pub fn engine_config(options: &Options, redis: &str, postgres: &str) -> EngineConfig {
    EngineConfig {
        redis: options
            .redis
            .clone()
            .unwrap_or_else(|| RedisConfig { redis_timeout_ms: options.redis_timeout_ms, ..redis_config(redis) }),
        postgres: postgres_config(postgres),
        shop: ShopConfig {
            time_zone: chrono_tz::Asia::Seoul,
            order_hold_seconds: options.hold_seconds,
            max_open_orders_per_user: options.max_open_orders,
            max_balance: options.max_balance.unwrap_or(firstcome::model::MAX_SAFE_INTEGER),
            sold_out_lease_ms: options.sold_out_lease_ms,
            partitions: Some(options.partitions),
        },
        gateway: options.gateway.clone(),
        durability: options.durability.clone(),
        retention: options.retention.clone(),
    }
}

/// The settings of the API.
fn http_config(options: &Options, address: SocketAddr) -> HttpConfig {
    HttpConfig {
        bind_addr: address,
        ops_bind_addr: None,
        operators: options.operators.clone(),
        request_timeout_ms: options.request_timeout.as_millis() as u64,
        body_limit_bytes: options.body_limit,
        max_connections: 4096,
        listen_backlog: 16_384,
        header_timeout_ms: 300_000,
        drain_seconds: 300,
        drain_delay_seconds: Some(0),
        limits: options.limits.clone(),
        browsers: BrowserConfig::default(),
        metrics: MetricsConfig::default(),
        auth: options.auth.clone(),
    }
}

/// Timeouts that a stalled machine does not reach.
pub fn redis_config(url: &str) -> RedisConfig {
    RedisConfig { redis_connections: 2, redis_timeout_ms: 300_000, ..RedisConfig::at(url) }
}

/// Likewise.
pub fn postgres_config(url: &str) -> PostgresConfig {
    PostgresConfig { database_url: Secret::new(url), database_connections: 6, database_timeout_ms: 300_000 }
}

pub async fn raw_redis(url: &str) -> redis::aio::MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    redis::Client::open(url).unwrap().get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// Polls `look` until it returns a value: the only place in the tests that waits for time to pass. Fails after five
/// minutes.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "not in five minutes: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A client of its own connections.
pub fn client() -> reqwest::Client {
    // Already there in all tests but the first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Sends a request and reads the reply whole.
pub async fn read(request: reqwest::RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    Reply { status, headers, text: response.text().await.unwrap() }
}

/// A [`Call`] for tests that use the engine or the store directly.
pub fn call(key: Option<(&str, &str)>) -> Call {
    let owner = KeyOwner::Operator("test");
    let key = key.map(|(key, request)| IdempotencyKey::new(owner, key, request.as_bytes()));
    Call::new("test", key)
}
