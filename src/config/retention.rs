//! The time that closed orders stay in Redis.

use clap::Args;

/// The least time that a refunded order stays: a week, longer than the relay's lag ever is.
const REFUNDED_KEEP_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// The time that closed orders stay in Redis after PostgreSQL has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    closed_ms: i64,
}

impl Retention {
    pub fn seconds(closed: i64) -> Self {
        Retention { closed_ms: closed.saturating_mul(1000) }
    }

    /// The time for a paid, failed or cancelled order.
    pub fn closed_ms(self) -> i64 {
        self.closed_ms
    }

    /// The time for a refunded order: a week at least. A process that read the order as paid in PostgreSQL, and restores it
    /// later, must find the refunded order in Redis (see `order_restore.lua`).
    pub fn refunded_ms(self) -> i64 {
        self.closed_ms.max(REFUNDED_KEEP_MS)
    }
}

/// Retention in Redis.
#[derive(Args, Clone, Debug)]
pub struct RetentionConfig {
    /// Seconds that a paid, failed or cancelled order stays in Redis once PostgreSQL has it; reads then go to PostgreSQL (a
    /// refunded order stays a week at least)
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
