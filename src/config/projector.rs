//! Settings of the projector.

use std::time::Duration;

use clap::Args;

/// The projector, which applies the outbox to PostgreSQL.
#[derive(Args, Clone, Debug)]
pub struct ProjectorConfig {
    /// The maximum number of events per transaction
    #[arg(long, env = "PROJECTOR_BATCH", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub projector_batch: u32,
    /// Milliseconds that the projector waits at least after a transaction, so that the next one holds more events; ignored where
    /// replies wait for PostgreSQL
    #[arg(long, env = "PROJECTOR_LINGER_MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub projector_linger_ms: u64,
    /// Seconds that events stay in the outbox after PostgreSQL has committed them, so that a standby that is promoted without
    /// its primary's last commits gets them again by itself. 0: no longer than the commit
    #[arg(long, env = "OUTBOX_KEEP_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub outbox_keep_seconds: u64,
    /// Bytes, about, of committed events that stay in the outboxes of all partitions together; beyond it the oldest leave
    /// before their time
    #[arg(long, env = "OUTBOX_KEEP_BYTES", default_value_t = 268_435_456, value_parser = clap::value_parser!(u64).range(1_048_576..=1_099_511_627_776))]
    pub outbox_keep_bytes: u64,
    /// Days that the events of other systems are kept in PostgreSQL, and at most six more. 0: none are written, and webhooks send nothing
    #[arg(long, env = "EVENTS_KEEP_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=98))]
    pub events_keep_days: u32,
}

impl ProjectorConfig {
    /// How long events stay in the outbox after their commit.
    pub fn outbox_keep(&self) -> Duration {
        Duration::from_secs(self.outbox_keep_seconds)
    }
}

impl Default for ProjectorConfig {
    fn default() -> Self {
        ProjectorConfig {
            projector_batch: 1000,
            projector_linger_ms: 50,
            outbox_keep_seconds: 60,
            outbox_keep_bytes: 268_435_456,
            events_keep_days: 30,
        }
    }
}
