//! Users that are brought in from elsewhere, and those that are forgotten.

use std::{borrow::Borrow, time::Instant};

use crate::{
    model::{Call, Error, NewUser, Partition, PutOutcome, Reply, UserId, Won},
    redis::{Store, keys::Keys, reply_code::ReplyCode, script},
};

/// What `users_put.lua` did with a user, and the user's balance; `None` if the user was forgotten.
pub type PutUserOutcome = Option<(PutOutcome, Won)>;

impl Store {
    /// `users_put.lua`: creates users of one partition, each another, or changes their names.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn users_put(
        &self,
        call: &Call,
        owner: Partition,
        users: &[(UserId, impl Borrow<NewUser>)],
    ) -> Result<Reply<Vec<PutUserOutcome>>, Error> {
        let mut invocation = self.begin(call, &script::USERS_PUT, owner);
        for (id, new) in users {
            let NewUser { name, balance } = new.borrow();
            invocation.key(Keys(owner).user(*id)).arg(id.get()).arg(name).arg(*balance);
        }
        let reply = self.decide(call, owner, &invocation).await?;
        if !matches!(reply.code, ReplyCode::Updated | ReplyCode::Unchanged) {
            return Err(reply.unexpected());
        }
        let outcome = |n: usize| {
            let balance = reply.get(2 * n + 1)?;
            Ok(match reply.get::<String>(2 * n)?.as_str() {
                "created" => Some((PutOutcome::Created, balance)),
                "changed" => Some((PutOutcome::Changed, balance)),
                "unchanged" => Some((PutOutcome::Unchanged, balance)),
                "forgotten" => None,
                _ => return Err(reply.unexpected()),
            })
        };
        let outcomes = (0..users.len()).map(outcome).collect::<Result<_, Error>>()?;
        Ok(reply.with(outcomes))
    }

    /// `user_forget.lua`: forgets a user. `forfeits`: a balance is forfeited.
    ///
    /// # Errors
    /// [`Error::UserNotFound`], [`Error::OrdersOpen`], [`Error::BalanceLeft`], and the [shared refusals](super#shared-refusals).
    pub async fn user_forget(&self, call: &Call, user: UserId, forfeits: bool) -> Result<(), Error> {
        let owner = self.owner(user.get());
        let mut invocation = self.begin_unrecorded(call, &script::USER_FORGET, owner);
        invocation.key(Keys(owner).user(user)).arg(user.get()).arg(i64::from(forfeits));
        let began = Instant::now();
        let reply = self.decide(call, owner, &invocation).await?;
        match reply.code {
            ReplyCode::Forgotten => {
                if let Some(position) = reply.position {
                    self.watermark(owner).record_forgotten(position.epoch, reply.get(0)?, began);
                }
                Ok(())
            }
            ReplyCode::UserNotFound => Err(Error::UserNotFound),
            ReplyCode::OrdersOpen => Err(Error::OrdersOpen),
            ReplyCode::BalanceLeft => Err(Error::BalanceLeft),
            _ => Err(reply.unexpected()),
        }
    }
}
