//! Users and their balances.

use super::{Millis, OrderId, TransactionType, UserId, Won};

/// The maximum opening balance of a user.
pub const MAX_OPENING_BALANCE: Won = 1_000_000_000_000;
/// The maximum amount of one charge.
pub const MAX_CHARGE: Won = 100_000;

/// The maximum length of a user's name, in characters.
pub const MAX_USER_NAME_LEN: usize = 100;

/// Whether a user can have this name.
pub fn is_user_name(name: &str) -> bool {
    let fits = name.chars().nth(MAX_USER_NAME_LEN).is_none();
    fits && !name.trim().is_empty() && !name.chars().any(char::is_control)
}

/// A user's balance.
#[derive(Clone, Debug)]
pub struct Balance {
    pub user_id: UserId,
    pub user_name: String,
    pub balance: Won,
}

/// One change of a balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalanceEntry {
    pub user_id: UserId,
    /// Counts the user's entries from 1, without gaps.
    pub entry_no: i64,
    pub kind: TransactionType,
    pub amount: Won,
    pub before: Won,
    pub after: Won,
    /// The paid or refunded order.
    pub order_id: Option<OrderId>,
    pub at: Millis,
}

/// A user to create.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// 1–100 characters.
    pub name: String,
    /// 0–[`MAX_OPENING_BALANCE`]. An amount above 0 becomes the first entry of the history.
    pub balance: Won,
}

/// What bringing something in from elsewhere, under its own id, did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    Created,
    Changed,
    Unchanged,
}

/// Something that was brought in from elsewhere.
#[derive(Clone, Debug)]
pub struct Put<T> {
    pub value: T,
    pub outcome: PutOutcome,
}

impl<T> Put<T> {
    /// Maps the value; keeps the outcome.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Put<U> {
        Put { value: f(self.value), outcome: self.outcome }
    }
}

/// A number of users to create. Each is named `prefix` followed by its id.
#[derive(Clone, Debug)]
pub struct NewUsers {
    /// 1–1,000,000.
    pub count: i64,
    /// 0–80 characters.
    pub prefix: String,
    pub balance: Won,
}

/// The created users; their ids are consecutive.
#[derive(Clone, Copy, Debug)]
pub struct CreatedUsers {
    pub first: UserId,
    pub count: i64,
}
