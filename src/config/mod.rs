//! The configuration: one struct per concern, each field naming its environment variable, read once at start.
//!
//! [`environment`] has the rules by which every setting is read; secrets are [`Secret`]s, which print as `***`.

mod edge;
pub mod environment;
mod retention;
mod secrets;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

pub use self::{
    edge::{BrowserConfig, CorsOrigins, GUESSES_PER_MINUTE, LimitsConfig, TrustedProxies},
    retention::{Retention, TOMBSTONE_TTL_MS},
    secrets::{Redacting, Secret, hide, redact, url_of},
};
use crate::model::{MAX_SAFE_INTEGER, PaymentType, Won};

/// The longest lease that a process may be given, ms.
pub const MAX_LEASE_MS: u64 = 1000;

/// Redis, which decides.
#[derive(Args, Clone, Debug)]
pub struct RedisConfig {
    /// Redis: redis://, rediss:// or redis+unix://; or its Sentinels: redis+sentinel://host:port,host:port/master
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Secret,
    /// Connections that all requests share; concurrent requests pipeline on each
    #[arg(long, env = "REDIS_CONNECTIONS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub redis_connections: u8,
    /// Milliseconds to wait for Redis before answering 503
    #[arg(long, env = "REDIS_TIMEOUT_MS", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub redis_timeout_ms: u64,
    /// Serve from a Redis whose settings may lose what was acknowledged (no AOF, another appendfsync than always, an
    /// evicting maxmemory-policy), with a warning rather than not at all
    #[arg(long, env = "ALLOW_UNSAFE_REDIS")]
    pub allow_unsafe_redis: bool,
    /// A file (PEM) with the authorities whose certificates Redis may have [default: the system's]
    #[arg(long, env = "REDIS_TLS_CA")]
    pub redis_tls_ca: Option<PathBuf>,
    /// A file (PEM) with the certificate to show to Redis, and those that lead to its authority
    #[arg(long, env = "REDIS_TLS_CERT")]
    pub redis_tls_cert: Option<PathBuf>,
    /// A file (PEM) with the key of that certificate
    #[arg(long, env = "REDIS_TLS_KEY")]
    pub redis_tls_key: Option<PathBuf>,
}

impl RedisConfig {
    /// Redis at this address, everything else as it is by default.
    pub fn at(url: impl Into<String>) -> Self {
        RedisConfig {
            redis_url: Secret::new(url),
            redis_connections: 4,
            redis_timeout_ms: 3000,
            allow_unsafe_redis: false,
            redis_tls_ca: None,
            redis_tls_cert: None,
            redis_tls_key: None,
        }
    }
}

/// What must have happened before a write is answered.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// Redis has it on its disk.
    #[default]
    Redis,
    /// Postgres has it too: what was acknowledged survives the loss of Redis's disk.
    Postgres,
}

/// How much may be lost, and how much may be under way.
#[derive(Args, Clone, Debug)]
pub struct DurabilityConfig {
    /// What a write's reply waits for: Redis's disk, or also PostgreSQL's commit (what was acknowledged then survives the
    /// loss of Redis's disk)
    #[arg(long, env = "ACK", value_enum, default_value_t)]
    pub ack: Ack,
    /// Decisions that PostgreSQL may be behind before writes are answered 503
    #[arg(long, env = "MAX_BACKLOG", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..=MAX_SAFE_INTEGER))]
    pub max_backlog: i64,
}

impl Default for DurabilityConfig {
    fn default() -> Self {
        DurabilityConfig { ack: Ack::default(), max_backlog: 1_000_000 }
    }
}

/// Postgres, which remembers.
#[derive(Args, Clone, Debug)]
pub struct PostgresConfig {
    /// PostgreSQL: postgres://user:password@host/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Secret,
    /// Connections to PostgreSQL at most
    #[arg(long, env = "DATABASE_CONNECTIONS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub database_connections: u32,
    /// Milliseconds to wait for a connection to PostgreSQL before answering 503
    #[arg(long, env = "DATABASE_TIMEOUT_MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub database_timeout_ms: u64,
}

impl PostgresConfig {
    /// How long a transaction of the projection may take before its connection counts as dead; if it was only slow, the next may
    /// take longer.
    pub fn transaction_patience(&self) -> Duration {
        Duration::from_millis(self.database_timeout_ms) * 6
    }
}

/// How the shop works.
#[derive(Args, Clone, Debug)]
pub struct ShopConfig {
    /// The zone of the API's times and of the rankings' days
    #[arg(long, env = "TIME_ZONE", default_value = "Asia/Seoul")]
    pub time_zone: chrono_tz::Tz,
    /// Seconds that an unpaid order holds its stock and coupon
    #[arg(long, env = "ORDER_HOLD_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(i64).range(1..=31_536_000))]
    pub order_hold_seconds: i64,
    /// The most PENDING orders of one user
    #[arg(long, env = "MAX_OPEN_ORDERS_PER_USER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_open_orders_per_user: u32,
    /// The most won that a charge may bring a balance to
    #[arg(long, env = "MAX_BALANCE", default_value_t = MAX_SAFE_INTEGER, hide_default_value = true, value_parser = clap::value_parser!(i64).range(1..=MAX_SAFE_INTEGER))]
    pub max_balance: Won,
    /// Milliseconds for which this process may say by itself that a campaign has no coupons left, once Redis has said so; 0:
    /// it always asks
    #[arg(long, env = "SOLD_OUT_LEASE_MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=MAX_LEASE_MS))]
    pub sold_out_lease_ms: u64,
    /// Partitions of a new store, fixed from its first start on; a number that an existing store does not have is refused
    /// [default: 1, or what the store has]
    #[arg(long, env = "PARTITIONS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub partitions: Option<u16>,
}

/// How long Redis keeps what is over.
#[derive(Args, Clone, Debug)]
pub struct RetentionConfig {
    /// Seconds that an order which is paid, failed or cancelled stays in Redis once PostgreSQL has it, and is then read there (a
    /// refunded one: a week at least)
    #[arg(long, env = "CLOSED_ORDER_KEEP_SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(i64).range(60..=31_536_000))]
    pub closed_order_keep_seconds: i64,
}

impl RetentionConfig {
    pub fn retention(&self) -> Retention {
        Retention::seconds(self.closed_order_keep_seconds)
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        RetentionConfig { closed_order_keep_seconds: 3600 }
    }
}

/// External payment gateways; a payment type without one is settled from the balance.
#[derive(Args, Clone, Debug, Default)]
pub struct GatewayConfig {
    /// The gateway for CARD payments
    #[arg(long, env = "PAYMENT_GATEWAY_CARD_URL", hide_env_values = true)]
    pub payment_gateway_card_url: Option<Secret>,
    /// The gateway for KAKAO_PAY payments
    #[arg(long, env = "PAYMENT_GATEWAY_KAKAO_PAY_URL", hide_env_values = true)]
    pub payment_gateway_kakao_pay_url: Option<Secret>,
    /// The gateway for TOSS payments
    #[arg(long, env = "PAYMENT_GATEWAY_TOSS_URL", hide_env_values = true)]
    pub payment_gateway_toss_url: Option<Secret>,
    /// Milliseconds to wait for a gateway before a payment's outcome counts as unknown
    #[arg(long, env = "PAYMENT_GATEWAY_TIMEOUT_MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub payment_gateway_timeout_ms: u64,
    /// A bearer token sent to the gateways
    #[arg(long, env = "PAYMENT_GATEWAY_TOKEN", hide_env_values = true)]
    pub payment_gateway_token: Option<Secret>,
    /// Seconds after which a payment that a gateway has never heard of counts as declined
    #[arg(long, env = "PAYMENT_GATEWAY_GIVE_UP_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(i64).range(0..=86_400))]
    pub payment_gateway_give_up_seconds: i64,
    /// Seconds for which such a gateway is still asked, to give back money that it took late
    #[arg(long, env = "PAYMENT_GATEWAY_WATCH_SECONDS", default_value_t = 86_400, value_parser = clap::value_parser!(i64).range(0..=2_592_000))]
    pub payment_gateway_watch_seconds: i64,
}

impl GatewayConfig {
    /// The configured gateways' URLs.
    pub fn urls(&self) -> impl Iterator<Item = (PaymentType, &Secret)> {
        [
            (PaymentType::Card, &self.payment_gateway_card_url),
            (PaymentType::KakaoPay, &self.payment_gateway_kakao_pay_url),
            (PaymentType::Toss, &self.payment_gateway_toss_url),
        ]
        .into_iter()
        .filter_map(|(kind, url)| Some((kind, url.as_ref()?)))
    }
}

/// What every role that opens the store needs.
#[derive(Args, Clone, Debug)]
pub struct EngineConfig {
    #[command(flatten)]
    pub redis: RedisConfig,
    #[command(flatten)]
    pub postgres: PostgresConfig,
    #[command(flatten)]
    pub shop: ShopConfig,
    #[command(flatten)]
    pub gateway: GatewayConfig,
    #[command(flatten)]
    pub durability: DurabilityConfig,
    #[command(flatten)]
    pub retention: RetentionConfig,
}

/// Who operates.
#[derive(Args, Clone, Debug, Default)]
pub struct OperatorsConfig {
    /// The token of the operator named admin, of 16 or more printable characters; without any token the operators' API answers 401
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<Secret>,
    /// More operators, each with a token of its own: name:token,name:token. A name is 1 to 32 characters a-z 0-9 . _ -, a token
    /// 16 or more printable ones without a comma
    #[arg(long, env = "ADMIN_TOKENS", hide_env_values = true)]
    pub admin_tokens: Option<Secret>,
    /// Browsers send the cookie of the dashboard's session over https alone: for a service behind a TLS proxy
    #[arg(long, env = "OPS_COOKIE_SECURE")]
    pub ops_cookie_secure: bool,
}

impl OperatorsConfig {
    /// The one operator of this token.
    pub fn admin(token: impl Into<String>) -> Self {
        OperatorsConfig { admin_token: Some(Secret::new(token)), ..OperatorsConfig::default() }
    }
}

/// Whose word is taken for who a user is.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// The client's: something in front of the service sees to it.
    #[default]
    None,
    /// An issuer's, by a token.
    Jwt,
}

/// Users' tokens.
#[derive(Args, Clone, Debug)]
pub struct AuthConfig {
    /// Whether a request that acts for a user, or shows one, needs that user's token (Authorization: Bearer <JWT>)
    #[arg(long, env = "AUTH", value_enum, default_value_t)]
    pub auth: Auth,
    /// The secret, of 32 bytes or more, that tokens are signed with by HS256, HS384 or HS512
    #[arg(long, env = "AUTH_JWT_SECRET", hide_env_values = true)]
    pub auth_jwt_secret: Option<Secret>,
    /// Where the issuer has its public keys (a JWK set); https, or http on this machine
    #[arg(long, env = "AUTH_JWKS_URL", hide_env_values = true)]
    pub auth_jwks_url: Option<Secret>,
    /// The same in a file
    #[arg(long, env = "AUTH_JWKS_FILE")]
    pub auth_jwks_file: Option<PathBuf>,
    /// Seconds after which the issuer's keys are looked at again; when a token names an unknown one, that is done at once
    #[arg(long, env = "AUTH_JWKS_REFRESH_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    pub auth_jwks_refresh_seconds: u64,
    /// The issuer (iss) that a token must be of
    #[arg(long, env = "AUTH_JWT_ISSUER")]
    pub auth_jwt_issuer: Option<String>,
    /// The audience (aud) that a token must be for
    #[arg(long, env = "AUTH_JWT_AUDIENCE")]
    pub auth_jwt_audience: Option<String>,
    /// The claim that has the user's id: a whole number, or its digits
    #[arg(long, env = "AUTH_JWT_USER_CLAIM", default_value = "sub")]
    pub auth_jwt_user_claim: String,
}

impl Default for AuthConfig {
    fn default() -> Self {
        AuthConfig {
            auth: Auth::None,
            auth_jwt_secret: None,
            auth_jwks_url: None,
            auth_jwks_file: None,
            auth_jwks_refresh_seconds: 300,
            auth_jwt_issuer: None,
            auth_jwt_audience: None,
            auth_jwt_user_claim: "sub".to_owned(),
        }
    }
}

/// How the log is written.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people in a terminal, for programs elsewhere.
    #[default]
    Auto,
    /// A line for people.
    Text,
    /// A JSON object on a line.
    Json,
}

/// What is told of what happens inside. What is logged is set by RUST_LOG.
#[derive(Args, Clone, Debug, Default)]
pub struct TelemetryConfig {
    /// The log's lines: for people (text), for programs (json), or by whether it goes to a terminal
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
    /// Send traces to this OpenTelemetry collector by OTLP over HTTP: its base URL, without /v1/traces. Nothing is traced
    /// where neither this nor OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true, global = true)]
    pub otel_exporter_otlp_endpoint: Option<Secret>,
    /// The same, for traces alone and with the whole URL
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide_env_values = true, global = true)]
    pub otel_exporter_otlp_traces_endpoint: Option<Secret>,
}

/// The HTTP server.
#[derive(Args, Clone, Debug)]
pub struct HttpConfig {
    /// The address to serve on
    #[arg(long, env = "BIND_ADDR", default_value = "127.0.0.1:8080")]
    pub bind_addr: SocketAddr,
    /// A second address that serves health, metrics, /ops and /admin; the first then has no /metrics, /ops and /admin
    #[arg(long, env = "OPS_BIND_ADDR")]
    pub ops_bind_addr: Option<SocketAddr>,
    #[command(flatten)]
    pub operators: OperatorsConfig,
    /// Milliseconds for one request before it is answered 503
    #[arg(long, env = "REQUEST_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub request_timeout_ms: u64,
    /// The largest request body, in bytes
    #[arg(long, env = "BODY_LIMIT_BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1024..=16_777_216))]
    pub body_limit_bytes: u64,
    /// Connections served at once; more wait to be accepted
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Connections that may wait to be accepted, as far as the kernel (net.core.somaxconn) allows; beyond it clients try again
    /// after a second
    #[arg(long, env = "LISTEN_BACKLOG", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub listen_backlog: u32,
    /// Milliseconds for a client to send its request's head
    #[arg(long, env = "HEADER_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub header_timeout_ms: u64,
    /// Seconds from a stop signal to the end, whatever is left by then: requests have three quarters of them to finish, the
    /// outbox has the rest at least
    #[arg(long, env = "DRAIN_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_seconds: u64,
    /// Seconds of these in which a process that is to end still serves, while /readyz says that it is stopping: as long as the
    /// balancer in front of it needs to notice, and at most half of them [default: 3; dev: 0]
    #[arg(long, env = "DRAIN_DELAY_SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_delay_seconds: Option<u64>,
    #[command(flatten)]
    pub limits: LimitsConfig,
    #[command(flatten)]
    pub browsers: BrowserConfig,
    #[command(flatten)]
    pub metrics: MetricsConfig,
    #[command(flatten)]
    pub auth: AuthConfig,
}

impl HttpConfig {
    /// From the stop signal to the end.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// From the stop signal to the end of new connections.
    pub fn drain_delay(&self) -> Duration {
        Duration::from_secs(self.drain_delay_seconds.unwrap_or(3)).min(self.drain() / 2)
    }

    /// From the stop signal to when requests that are still under way are cut.
    pub fn drain_requests(&self) -> Duration {
        self.drain() * 3 / 4
    }
}

/// What is told to Prometheus.
#[derive(Args, Clone, Debug, Default)]
pub struct MetricsConfig {
    /// A bearer token, of 16 or more printable characters, that GET /metrics then asks for; without one anybody who reaches the service may scrape it
    #[arg(long, env = "METRICS_TOKEN", hide_env_values = true)]
    pub metrics_token: Option<Secret>,
}

/// The projector, which carries the outbox to Postgres.
#[derive(Args, Clone, Debug)]
pub struct ProjectorConfig {
    /// Events per transaction at most
    #[arg(long, env = "PROJECTOR_BATCH", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub projector_batch: u32,
    /// Milliseconds that the projector lets pass after a transaction, so that the next one has more in it; none where replies
    /// wait for PostgreSQL
    #[arg(long, env = "PROJECTOR_LINGER_MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub projector_linger_ms: u64,
}

impl Default for ProjectorConfig {
    fn default() -> Self {
        ProjectorConfig { projector_batch: 1000, projector_linger_ms: 50 }
    }
}
