//! How long closed orders stay in Redis.

use clap::Args;

/// How long the tombstone of an ended remote hold, or of an order that never was, is kept: a week, longer than any relay lags.
pub const TOMBSTONE_TTL_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// How long what is over stays in Redis, from when Postgres has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    closed_ms: i64,
}

impl Retention {
    pub fn seconds(closed: i64) -> Self {
        Retention { closed_ms: closed.saturating_mul(1000) }
    }

    /// A paid order, and what it sold elsewhere; one that failed or was cancelled.
    pub fn closed_ms(self) -> i64 {
        self.closed_ms
    }

    /// What was refunded stays a week at least: whoever read in Postgres before that it was paid, and brings it back (see
    /// `order_restore.lua`), must find it.
    pub fn refunded_ms(self) -> i64 {
        self.closed_ms.max(TOMBSTONE_TTL_MS)
    }
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
