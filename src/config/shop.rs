//! Settings of the shop.

use clap::Args;

use crate::model::{MAX_SAFE_INTEGER, Won};

/// The maximum of `SOLD_OUT_LEASE_MS`.
pub const MAX_LEASE_MS: u64 = 1000;

/// The rules of the shop.
#[derive(Args, Clone, Debug)]
pub struct ShopConfig {
    /// The zone of the API's times and of the rankings' days
    #[arg(long, env = "TIME_ZONE", default_value = "Asia/Seoul")]
    pub time_zone: chrono_tz::Tz,
    /// Seconds that an unpaid order holds its stock and coupon
    #[arg(long, env = "ORDER_HOLD_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(i64).range(1..=31_536_000))]
    pub order_hold_seconds: i64,
    /// Seconds from its payment in which a user may refund an order; operators may at any time
    #[arg(long, env = "REFUND_WINDOW_SECONDS", default_value_t = 604_800, value_parser = clap::value_parser!(i64).range(0..=315_360_000))]
    pub refund_window_seconds: i64,
    /// The maximum number of PENDING orders of one user
    #[arg(long, env = "MAX_OPEN_ORDERS_PER_USER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_open_orders_per_user: u32,
    /// The maximum balance in won that a charge may reach
    #[arg(long, env = "MAX_BALANCE", default_value_t = MAX_SAFE_INTEGER, hide_default_value = true, value_parser = clap::value_parser!(i64).range(1..=MAX_SAFE_INTEGER))]
    pub max_balance: Won,
    /// Milliseconds for which this process may refuse coupons of a sold-out campaign by itself, after Redis has reported it
    /// sold out; 0: it always asks Redis
    #[arg(long, env = "SOLD_OUT_LEASE_MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=MAX_LEASE_MS))]
    pub sold_out_lease_ms: u64,
    /// Partitions of a new deployment, fixed at its first start; with an existing one, another number is refused
    /// [default: 1, or what the store has]
    #[arg(long, env = "PARTITIONS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub partitions: Option<u16>,
}
