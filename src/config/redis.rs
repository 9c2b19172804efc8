//! Settings of Redis.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Secret;

/// What is known of the durability of Redis.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisDurability {
    /// The service reads the settings of every server, and refuses those that may lose acknowledged decisions.
    #[default]
    Checked,
    /// An operator vouches for a managed server, whose settings can't be read or do not tell.
    Asserted,
    /// Redis may lose everything; PostgreSQL has every acknowledged decision (`ACK=postgres`), and an empty Redis is rebuilt.
    None,
}

/// Redis, whose scripts make every decision.
#[derive(Args, Clone, Debug)]
pub struct RedisConfig {
    /// Redis: redis://, rediss:// or redis+unix://; nodes of a cluster: redis://host:port,host:port; or its Sentinels:
    /// redis+sentinel://host:port,host:port/master
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Secret,
    /// Connections that all requests share; concurrent requests pipeline on each
    #[arg(long, env = "REDIS_CONNECTIONS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub redis_connections: u8,
    /// Milliseconds to wait for Redis before answering 503
    #[arg(long, env = "REDIS_TIMEOUT_MS", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub redis_timeout_ms: u64,
    /// How durable Redis is: its settings are checked; an operator asserts it, of a managed server; or none, where every
    /// reply waits for PostgreSQL (ACK=postgres) and an empty Redis is rebuilt from there
    #[arg(long, env = "REDIS_DURABILITY", value_enum, default_value_t, hide_possible_values = true)]
    pub redis_durability: RedisDurability,
    /// A PEM file with the authorities that may sign Redis's certificate [default: the system's]
    #[arg(long, env = "REDIS_TLS_CA")]
    pub redis_tls_ca: Option<PathBuf>,
    /// A PEM file with the client certificate for Redis, and its chain
    #[arg(long, env = "REDIS_TLS_CERT")]
    pub redis_tls_cert: Option<PathBuf>,
    /// A PEM file with the key of that certificate
    #[arg(long, env = "REDIS_TLS_KEY")]
    pub redis_tls_key: Option<PathBuf>,
}

impl RedisConfig {
    /// Redis at this address, with the default settings.
    pub fn at(url: impl Into<String>) -> Self {
        RedisConfig {
            redis_url: Secret::new(url),
            redis_connections: 4,
            redis_timeout_ms: 3000,
            redis_durability: RedisDurability::default(),
            redis_tls_ca: None,
            redis_tls_cert: None,
            redis_tls_key: None,
        }
    }
}
