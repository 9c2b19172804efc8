//! Balances: charging, reading, and the history.

use super::Engine;
use crate::{
    model::{Balance, BalanceEntry, Call, Error, Outcome, Reply, UserId, Won},
    postgres,
};

/// The longest tail of unprojected entries that paging back walks.
const MAX_TAIL: usize = 2000;

impl Engine {
    /// Adds `amount` won to a user's balance.
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::InvalidAmount`] where the balance would pass `MAX_BALANCE`.
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

    /// A user's balance changes, oldest first: the newest `limit`, or those just before entry `before`. Includes every
    /// change acknowledged before the call: what Postgres does not have yet is still in the outbox, and what has left the
    /// outbox is in Postgres.
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::Unavailable`] while Postgres is and the outbox does not have all that is asked for,
    /// or while it lags so far that the user's own entries can't be walked.
    pub async fn history(&self, user: UserId, limit: i64, before: Option<i64>) -> Result<Vec<BalanceEntry>, Error> {
        // First the outbox, then Postgres: the other way round, a commit and trim in between would hide an entry.
        let wanted = limit.max(0) as usize;
        let most = if before.is_none() { wanted } else { MAX_TAIL };
        let (mut entries, more) = self.store.history_read(user, most).await?;
        entries.retain(|entry| before.is_none_or(|before| entry.entry_no < before));
        if more && entries.len() < wanted {
            return Err(Error::unavailable("the history is still being written down"));
        }
        let oldest = entries.last().map_or(i64::MAX, |entry| entry.entry_no);
        if entries.len() < wanted && oldest > 1 {
            let written = postgres::queries::resources::history(&self.db, user, limit.max(0) as u64, before).await?;
            entries.extend(written.into_iter().filter(|entry| entry.entry_no < oldest));
        }
        entries.truncate(wanted);
        entries.reverse();
        Ok(entries)
    }
}
