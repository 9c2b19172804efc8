//! Users and their balances.

use super::{Millis, OrderId, TransactionType, UserId, Won};

/// The largest opening balance of a user.
pub const MAX_OPENING_BALANCE: Won = 1_000_000_000_000;
/// The most that one charge may add.
pub const MAX_CHARGE: Won = 100_000;

/// A user's balance.
#[derive(Clone, Debug)]
pub struct Balance {
    pub user_id: UserId,
    pub user_name: String,
    pub balance: Won,
}

/// One change of a balance. `entry_no` counts a user's entries from 1 without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalanceEntry {
    pub user_id: UserId,
    pub entry_no: i64,
    pub kind: TransactionType,
    pub amount: Won,
    pub before: Won,
    pub after: Won,
    /// The order paid or refunded.
    pub order_id: Option<OrderId>,
    pub at: Millis,
}

/// A user to create.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// 1–100 characters.
    pub name: String,
    /// 0–[`MAX_OPENING_BALANCE`]; more than 0 is the first entry of the history.
    pub balance: Won,
}

/// Users to create: `count` of them, named `prefix` and their id, each with `balance`.
#[derive(Clone, Debug)]
pub struct NewUsers {
    /// 1–1,000,000.
    pub count: i64,
    /// 0–80 characters.
    pub prefix: String,
    pub balance: Won,
}

/// Users created, with consecutive ids.
#[derive(Clone, Copy, Debug)]
pub struct CreatedUsers {
    pub first: UserId,
    pub count: i64,
}
