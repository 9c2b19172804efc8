//! Settings of the projector.

use clap::Args;

/// The projector, which applies the outbox to PostgreSQL.
#[derive(Args, Clone, Debug)]
pub struct ProjectorConfig {
    /// The maximum number of events per transaction
    #[arg(long, env = "PROJECTOR_BATCH", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub projector_batch: u32,
    /// Milliseconds that the projector waits after a transaction, so that the next one holds more events; ignored where
    /// replies wait for PostgreSQL
    #[arg(long, env = "PROJECTOR_LINGER_MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub projector_linger_ms: u64,
}

impl Default for ProjectorConfig {
    fn default() -> Self {
        ProjectorConfig { projector_batch: 1000, projector_linger_ms: 50 }
    }
}
