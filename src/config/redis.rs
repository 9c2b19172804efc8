//! Settings of Redis.

use std::path::PathBuf;

use clap::Args;

use super::Secret;

/// Redis, whose scripts make every decision.
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
    /// Serve, with a warning, from a Redis whose settings may lose acknowledged decisions (no AOF, an appendfsync other
    /// than always, an evicting maxmemory-policy)
    #[arg(long, env = "ALLOW_UNSAFE_REDIS")]
    pub allow_unsafe_redis: bool,
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
            allow_unsafe_redis: false,
            redis_tls_ca: None,
            redis_tls_cert: None,
            redis_tls_key: None,
        }
    }
}
