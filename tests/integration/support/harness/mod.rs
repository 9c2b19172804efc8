//! [`TestApp`]: the whole service in this process, with a Redis server, a database and a clock of its own for each test.
//!
//! All tests of a run share one PostgreSQL server, with a database each, copied from a migrated template. The first test that
//! needs the server starts it; it ends with the process.

mod databases;
mod requests;

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
    model::{Call, Clock, IdempotencyKey, KeyOwner, Millis, Partition},
    postgres,
    projector::Projector,
    recovery::rebuild::Rebuild,
    redis::{Store, commands::OwnSequence, keys::Keys},
};
use sea_orm::DatabaseConnection;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{redis::proxy::Proxy, support::invariants};
pub use databases::{admin_sql, drop_database, fresh_database, postgres_url};
pub use requests::{Reply, browser, client, client_at, read};

/// The operators' token of every test.
pub const ADMIN: &str = "a-token-for-tests";
/// Where a standing clock starts: 2026-03-02 14:00 in Seoul, a Monday.
pub const START: Millis = Millis(1_772_427_600_000);
const ZONE: chrono_tz::Tz = chrono_tz::Asia::Seoul;

/// The settings of a [`TestApp`].
#[derive(Clone)]
pub struct Options {
    pub partitions: u16,
    /// `None`: the system's clock.
    pub clock: Option<Millis>,
    /// The error of the system's clock.
    pub clock_skew_ms: i64,
    /// Whether the service projects in the background; otherwise only [`TestApp::drain`] projects.
    pub project: bool,
    /// Whether the service sweeps in the background; otherwise only the test does.
    pub sweep: bool,
    pub hold_seconds: i64,
    pub max_open_orders: u32,
    pub max_balance: Option<i64>,
    pub sold_out_lease_ms: u64,
    pub gateway: GatewayConfig,
    pub durability: DurabilityConfig,
    pub retention: RetentionConfig,
    pub batch: u32,
    /// How long the outbox keeps what PostgreSQL has, by the clock of the test.
    pub outbox_keep_seconds: u64,
    pub events_keep_days: u32,
    pub webhooks: WebhookConfig,
    pub request_timeout: Duration,
    pub body_limit: u64,
    pub operators: OperatorsConfig,
    pub limits: LimitsConfig,
    pub auth: AuthConfig,
    /// The service's timeout of Redis. With a short one, a stalled machine may cause a 503.
    pub redis_timeout_ms: u64,
    /// Whether the service reaches Redis through [`TestApp::proxy`].
    pub proxied: bool,
    /// The service's settings of Redis; `None`: [`redis_config`] of the server's address.
    pub redis: Option<RedisConfig>,
    /// The URL of the test's own connections to Redis; `None`: the server's address.
    pub raw_url: Option<String>,
    /// The number of dead letters that [`TestApp::finish`] expects.
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
            outbox_keep_seconds: 60,
            events_keep_days: 30,
            webhooks: WebhookConfig { webhook_allow_private: true },
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
        ..GatewayConfig::default()
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
    /// Between the service and Redis, with [`Options::proxied`].
    pub proxy: Option<Proxy>,
    // Last, in this order: the servers end before their directory is removed.
    pub redis: RedisServer,
    /// The other nodes of a cluster.
    pub others: Vec<RedisServer>,
    _dir: ScratchDir,
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

    /// Opens another process on the same stores, with the same clock.
    pub async fn open_instance(&self, options: &Options) -> anyhow::Result<App> {
        open(options, &self.redis.url(), &postgres_url(&self.database), self.clock.clone()).await
    }

    /// A rebuild in a process of its own.
    pub async fn rebuild(&self) -> Rebuild {
        let retention = self.options.retention.retention();
        rebuild(&self.redis_config(), &self.database, self.clock.clone(), retention).await
    }

    /// Deletes everything in Redis.
    pub async fn flush_redis(&self) {
        let _: () = redis::cmd("FLUSHALL").query_async(&mut self.raw().await).await.unwrap();
    }

    /// Runs a statement in the database.
    pub async fn sql(&self, sql: &str) {
        let pool = self.db.get_postgres_connection_pool();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(pool).await.unwrap();
    }

    /// The HTTP settings of this test.
    pub fn http_config(&self) -> HttpConfig {
        http_config(&self.options, self.base.trim_start_matches("http://").parse().unwrap())
    }

    /// Carries the outbox to Postgres.
    pub async fn drain(&self) {
        self.app.projector.drain().await.unwrap();
    }

    /// Deletes every order that has a TTL, as if it had expired. Returns their keys.
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

    /// The service's settings of Redis.
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

    /// Makes the next ids higher than those that a test chose itself.
    pub async fn skip_chosen_ids(&self) {
        let mut redis = self.raw().await;
        for here in self.store.all() {
            let own = OwnSequence::ALL.map(|sequence| sequence.name(self.store.partitions()));
            let shared = ["user", "product", "coupon"].into_iter().filter(|_| here == Partition(0));
            let last = own.into_iter().chain(shared).map(|sequence| (sequence, 1_000_000));
            let mut skip = redis::cmd("HSET");
            skip.arg(Keys(here).ids()).arg(last.collect::<Vec<_>>());
            skip.exec_async(&mut redis).await.unwrap();
        }
    }

    /// Drains the outbox, checks the invariants, and stops. Every test ends with this.
    pub async fn finish(mut self) {
        // The check reads key by key: nothing may change meanwhile.
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
        let only_dead_letters = wrong.iter().all(|check| check.name.starts_with("dead letters"));
        assert!(report.balanced || only_dead_letters && self.options.dead_letters > 0, "{wrong:#?}");
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

/// Opens a process on these stores.
pub async fn open(options: &Options, redis: &str, postgres: &str, clock: Clock) -> anyhow::Result<App> {
    let projector = ProjectorConfig {
        projector_batch: options.batch,
        projector_linger_ms: 0,
        outbox_keep_seconds: options.outbox_keep_seconds,
        events_keep_days: options.events_keep_days,
        ..ProjectorConfig::default()
    };
    App::open(&engine_config(options, redis, postgres), &projector, clock).await
}

/// A rebuild of these stores, in a process of its own.
pub async fn rebuild(redis: &RedisConfig, database: &str, clock: Clock, retention: Retention) -> Rebuild {
    let store = Store::connect(redis).await.unwrap();
    let db = postgres::connect(&postgres_config(&postgres_url(database))).await.unwrap();
    let timeout = Duration::from_secs(600);
    let projector = Projector::new(store.clone(), db.clone(), clock.clone(), &Default::default(), timeout, retention);
    let (durability, log) = Default::default();
    Rebuild { store, db, projector, clock, zone: ZONE, retention, durability, barrier: None, log }
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
            time_zone: ZONE,
            order_hold_seconds: options.hold_seconds,
            refund_window_seconds: 604_800,
            max_open_orders_per_user: options.max_open_orders,
            max_balance: options.max_balance.unwrap_or(firstcome::model::MAX_SAFE_INTEGER),
            sold_out_lease_ms: options.sold_out_lease_ms,
            partitions: Some(options.partitions),
        },
        gateway: options.gateway.clone(),
        durability: options.durability.clone(),
        retention: options.retention.clone(),
        webhooks: options.webhooks.clone(),
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

/// Timeouts that a stalled machine does not reach.
pub fn postgres_config(url: &str) -> PostgresConfig {
    PostgresConfig { database_url: Secret::new(url), database_connections: 6, database_timeout_ms: 300_000 }
}

pub async fn raw_redis(url: &str) -> redis::aio::MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    redis::Client::open(url).unwrap().get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// Polls `condition` until it returns a value: the only place of the tests that waits by time. Panics after five minutes.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "not within five minutes: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A [`Call`] for tests that use the engine or the store directly.
pub fn call(key: Option<(&str, &str)>) -> Call {
    let owner = KeyOwner::Operator("test");
    let key = key.map(|(key, request)| IdempotencyKey::new(owner, key, request.as_bytes()));
    Call::new("test", key)
}
