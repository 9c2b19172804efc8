//! Settings of PostgreSQL.

use std::time::Duration;

use clap::Args;

use super::Secret;

/// PostgreSQL, the projection of the decisions.
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
    /// The time limit of a transaction of the projector. Beyond it the connection counts as dead; the next transaction gets
    /// more time, in case this one was only slow.
    pub fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.database_timeout_ms) * 6
    }
}
