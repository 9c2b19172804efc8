//! How long closed orders stay in Redis.

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
