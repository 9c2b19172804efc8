//! Balances: charge, balance and history.

use super::Engine;
use crate::{
    model::{Balance, BalanceEntry, Call, Error, Outcome, Reply, UserId, Won},
    postgres,
};

/// The maximum number of entries of the outbox that a page before another reads.
const MAX_TAIL: usize = 2000;

impl Engine {
    /// Adds `amount` won to a user's balance.
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::InvalidAmount`] if the balance would exceed `MAX_BALANCE`.
    pub async fn charge(&self, call: &Call, user: UserId, amount: Won) -> Outcome<Balance> {
        let charged = self.store.balance_charge(call, user, amount, self.max_balance).await?;
        let (user_name, balance) = charged.value;
        Ok(Reply { value: Balance { user_id: user, user_name, balance }, replayed: charged.replayed })
    }

    /// A user's balance.
    ///
    /// # Errors
    /// [`Error::UserNotFound`].
    pub async fn balance(&self, user: UserId) -> Result<Balance, Error> {
        self.store.balance(user).await
    }

    /// A user's balance changes, oldest first: the newest `limit`, or the `limit` before entry `before`. Includes every change
    /// acknowledged before the call: an entry is in the outbox until PostgreSQL has it.
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::Unavailable`] if the outbox lacks some of the entries while PostgreSQL is
    /// unavailable, or if the projection lags by more entries of the user than one read covers.
    pub async fn history(&self, user: UserId, limit: i64, before: Option<i64>) -> Result<Vec<BalanceEntry>, Error> {
        // The outbox first, then PostgreSQL. In the other order, a commit and a trim in between would hide an entry.
        let wanted = limit.max(0) as usize;
        let max = if before.is_none() { wanted } else { MAX_TAIL };
        let (mut entries, more) = self.store.history_read(user, max).await?;
        entries.retain(|entry| before.is_none_or(|before| entry.entry_no < before));
        let oldest = entries.last().map_or(before.unwrap_or(i64::MAX), |entry| entry.entry_no);
        if entries.len() < wanted && oldest > 1 {
            let written = postgres::queries::resources::history(&self.db, user, limit.max(0) as u64, before).await?;
            // The walk through the outbox was cut before the entries that it shares with PostgreSQL.
            if more && written.iter().all(|entry| entry.entry_no + 1 != oldest) {
                return Err(Error::unavailable("the projection lags behind the user's history"));
            }
            entries.extend(written.into_iter().filter(|entry| entry.entry_no < oldest));
        }
        entries.truncate(wanted);
        entries.reverse();
        Ok(entries)
    }
}
