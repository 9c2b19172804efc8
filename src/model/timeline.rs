//! The history of one user or one order, from both stores.

use super::{Balance, BalanceEntry, DeadLetter, Millis, Order, OrderLine, OrderStatus, Page, UserCoupon, Won};

/// A user's timeline.
#[derive(Clone, Debug)]
pub struct UserTimeline {
    pub balance: Balance,
    /// The newest first, up to a bound.
    pub coupons: Vec<UserCoupon>,
    /// The number of all the user's coupons.
    pub coupons_in_all: i64,
    /// `None` while PostgreSQL is unavailable.
    pub written: Option<UserTrace>,
}

/// PostgreSQL's part of a user's timeline.
#[derive(Clone, Debug)]
pub struct UserTrace {
    /// The newest balance changes, oldest first.
    pub entries: Vec<BalanceEntry>,
    /// PENDING orders, newest first.
    pub open: Page<Order>,
    /// Orders, newest first.
    pub last: Page<Order>,
    /// Dead letters about the user.
    pub dead_letters: Vec<DeadLetter>,
}

/// An order's timeline.
#[derive(Clone, Debug)]
pub struct OrderTimeline {
    pub order: Order,
    /// Its status in Redis; `None` if it is archived.
    pub in_redis: Option<OrderStatus>,
    /// `None` while PostgreSQL is unavailable or does not have the order.
    pub trace: Option<OrderTrace>,
    /// Dead letters about the order; `None` while PostgreSQL is unavailable.
    pub dead_letters: Option<Vec<DeadLetter>>,
}

/// The history of an order as PostgreSQL has it; statuses and reasons are the columns' texts.
#[derive(Clone, Debug)]
pub struct OrderTrace {
    pub status: String,
    pub placed_at: Millis,
    pub expires_at: Millis,
    pub paid_at: Option<Millis>,
    pub closed_at: Option<Millis>,
    pub close_reason: Option<String>,
    /// The operator who refunded what was left, and the reason.
    pub refunded_by: Option<(String, String)>,
    pub payment: Option<PaymentTrace>,
    /// The refunded parts, the newest first, up to a bound.
    pub refunds: Vec<RefundTrace>,
    /// The order's changes of its user's balance: `entry_no`, kind, amount and time.
    pub entries: Vec<(i64, String, Won, Millis)>,
}

/// A refunded part of an order.
#[derive(Clone, Debug)]
pub struct RefundTrace {
    /// Its number, from 1.
    pub part: i32,
    pub amount: Won,
    pub lines: Vec<OrderLine>,
    /// The units stay off sale.
    pub quarantined: bool,
    /// The operator who refunded it, and the reason; `None` if its user did.
    pub operator: Option<(String, String)>,
    pub status: String,
    pub refunded_at: Millis,
    pub ended_at: Option<Millis>,
}

/// The history of an order's payment.
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
    /// The operator who resolved it, and the reason.
    pub resolved: Option<(String, String)>,
}
