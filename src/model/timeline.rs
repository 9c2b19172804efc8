//! The history of one user or one order, from both stores.

use super::{Balance, BalanceEntry, DeadLetter, Millis, Order, OrderPage, OrderStatus, UserCoupon, Won};

/// A user's story.
#[derive(Clone, Debug)]
pub struct UserTimeline {
    pub balance: Balance,
    /// The newest first, up to a bound.
    pub coupons: Vec<UserCoupon>,
    pub coupons_in_all: i64,
    /// `None` while Postgres is away.
    pub written: Option<UserTrace>,
}

/// What Postgres tells of a user.
#[derive(Clone, Debug)]
pub struct UserTrace {
    /// The newest balance changes, oldest first.
    pub entries: Vec<BalanceEntry>,
    /// PENDING orders, newest first.
    pub open: OrderPage,
    /// Orders, newest first.
    pub last: OrderPage,
    /// What could not be applied.
    pub dead_letters: Vec<DeadLetter>,
}

/// An order's story.
#[derive(Clone, Debug)]
pub struct OrderTimeline {
    pub order: Order,
    /// Its status there, if it has not left.
    pub in_redis: Option<OrderStatus>,
    /// `None` while Postgres is away, or does not have it.
    pub trace: Option<OrderTrace>,
    /// What could not be applied; `None` while Postgres is away.
    pub dead_letters: Option<Vec<DeadLetter>>,
}

/// What happened to an order, as Postgres has it, in its words.
#[derive(Clone, Debug)]
pub struct OrderTrace {
    pub status: String,
    pub placed_at: Millis,
    pub expires_at: Millis,
    pub paid_at: Option<Millis>,
    pub closed_at: Option<Millis>,
    pub close_reason: Option<String>,
    pub payment: Option<PaymentTrace>,
    /// Number, kind, won and time of what it did to its user's balance.
    pub entries: Vec<(i64, String, Won, Millis)>,
    /// Partition and state of stock held elsewhere.
    pub holds: Vec<(u16, String)>,
}

/// The same of its payment.
#[derive(Clone, Debug)]
pub struct PaymentTrace {
    pub payment_id: i64,
    pub payment_type: String,
    pub method: String,
    pub status: String,
    pub amount: Won,
    pub receipt: String,
    pub transaction_id: Option<String>,
    pub started_at: Millis,
    pub paid_at: Option<Millis>,
    pub ended_at: Option<Millis>,
    /// The operator who decided it, and why.
    pub resolved: Option<(String, String)>,
}
