//! The configuration: one file and one struct per concern. Each field names its environment variable; start-up reads it once.
//!
//! The first paragraph of a field's comment is the help text of its option. [`environment`] defines how settings are read;
//! secrets are [`Secret`]s, which print as `***`. Depends on `model` only.

mod auth;
mod browsers;
mod durability;
pub mod environment;
mod gateway;
mod http;
mod limits;
mod oidc;
mod postgres;
mod projector;
mod redis;
mod retention;
mod secrets;
mod shop;
mod telemetry;
mod webhooks;

use clap::Args;

pub use self::{
    auth::{Auth, AuthConfig, OperatorsConfig},
    browsers::{BrowserConfig, CorsOrigins},
    durability::{Ack, DurabilityConfig, RecoveryMode, ReplicaAck},
    gateway::{GatewayConfig, GatewayProtocol},
    http::{HttpConfig, MetricsConfig},
    limits::{GUESSES_PER_MINUTE, LimitsConfig, TrustedProxies},
    oidc::OidcConfig,
    postgres::PostgresConfig,
    projector::ProjectorConfig,
    redis::{RedisConfig, RedisDurability},
    retention::{Retention, RetentionConfig},
    secrets::{PUBLIC_POSTGRES_PARAMETERS, Redacting, Secret, hide, redact, url_of},
    shop::{MAX_LEASE_MS, ShopConfig},
    telemetry::{LogFormat, TelemetryConfig},
    webhooks::WebhookConfig,
};

/// The settings of every command that opens both stores.
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
    #[command(flatten)]
    pub webhooks: WebhookConfig,
}

impl EngineConfig {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The settings that contradict each other, and the reason.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.redis.redis_durability != RedisDurability::None || self.durability.ack == Ack::Postgres,
            "REDIS_DURABILITY=none needs ACK=postgres: a Redis that keeps nothing loses what was acknowledged before PostgreSQL \
             had it"
        );
        Ok(())
    }
}

/// The items of a comma-separated list.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}
