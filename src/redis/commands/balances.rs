//! Balances of users.

use crate::{
    model::{Call, Error, Reply, UserId, Won},
    redis::{
        Store,
        batchable::Batchable,
        keys::Keys,
        reply_code::ReplyCode,
        script::{self, Invocation, Script},
    },
};

/// Adds money to a user's balance.
struct ChargeBalance {
    user_id: UserId,
    amount: Won,
    /// The maximum of a balance.
    limit: Won,
}

impl Batchable for ChargeBalance {
    fn script(&self) -> &'static Script {
        &script::BALANCE_CHARGE
    }

    fn write_shared(&self, _: Keys, invocation: &mut Invocation) {
        invocation.arg(self.limit);
    }

    fn write_own(&self, keys: Keys, invocation: &mut Invocation) {
        invocation.key(keys.user(self.user_id)).arg(self.user_id.get()).arg(self.amount);
    }
}

impl Store {
    /// `balance_charge.lua`: the user's name and new balance.
    ///
    /// # Errors
    /// [`Error::UserNotFound`], [`Error::InvalidAmount`] where the balance would pass `limit`,
    /// and the [shared refusals](super#shared-refusals).
    pub async fn balance_charge(
        &self,
        call: &Call,
        user: UserId,
        amount: Won,
        limit: Won,
    ) -> Result<Reply<(String, Won)>, Error> {
        let charge = ChargeBalance { user_id: user, amount, limit };
        let reply = self.run_batched(call, self.owner(user.get()), charge).await?;
        match reply.code {
            ReplyCode::Charged => Ok(reply.with((reply.get(0)?, reply.get(1)?))),
            ReplyCode::UserNotFound => Err(Error::UserNotFound),
            ReplyCode::LimitExceeded => Err(Error::InvalidAmount),
            _ => Err(reply.unexpected()),
        }
    }
}
