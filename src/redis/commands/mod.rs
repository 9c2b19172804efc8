//! One typed function per script that decides: it writes keys and arguments, and turns the reply's code into an outcome.
//!
//! A code that the function does not expect is an error, never a default.

mod catalog;
mod coupons;
mod orders;
mod payments;
mod remote;

pub use catalog::*;
pub use coupons::*;
pub use orders::*;
pub use payments::*;
pub use remote::*;

use super::{
    Store,
    batchable::Batchable,
    keys::Keys,
    reply_code::ReplyCode,
    script::{self, Invocation, Script},
};
use crate::model::{Call, Error, Partition, Reply, UserId, Won};

/// Life of an idempotency record: 24 hours.
pub const RECORD_TTL_MS: i64 = 24 * 60 * 60 * 1000;
/// Life of a claim of an idempotency key whose request is never settled: longer than any request takes.
const CLAIM_LEASE_MS: i64 = 15 * 60 * 1000;
/// How long after its order a remote hold is checked: the end of the order has normally been relayed by then.
pub const REMOTE_HOLD_GRACE_MS: i64 = 60_000;

impl Store {
    /// Begins a call of a script with an idempotency record: writes the keys and arguments that all of them start with.
    fn begin(&self, call: &Call, script: &'static Script, partition: Partition) -> Invocation {
        let keys = Keys(partition);
        let (digest, fingerprint) = key_parts(call);
        let mut invocation = Invocation::new(script);
        invocation.key(keys.meta()).key(keys.outbox()).key(keys.record(digest));
        invocation.arg(self.test_clock()).arg(fingerprint).arg(RECORD_TTL_MS).arg(&call.request_id);
        invocation
    }

    /// The same for a script without one.
    fn begin_unrecorded(&self, call: &Call, script: &'static Script, partition: Partition) -> Invocation {
        let keys = Keys(partition);
        let mut invocation = Invocation::new(script);
        invocation.key(keys.meta()).key(keys.outbox()).arg(self.test_clock()).arg(&call.request_id);
        invocation
    }
}

/// The digest and the fingerprint of a call's idempotency key, empty for none: as scripts take them.
pub(super) fn key_parts(call: &Call) -> (&str, &str) {
    match &call.key {
        Some(key) => (&key.digest, &key.fingerprint),
        None => ("", ""),
    }
}

struct ChargeBalance {
    user_id: UserId,
    amount: Won,
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
    /// [`Error::UserNotFound`], [`Error::InvalidAmount`] where the balance would pass `limit`, and the shared refusals.
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

    /// Whether a call's idempotency key has to be claimed before partition `decides` decides. (In the key's own partition the
    /// record of the decision binds the key.)
    pub fn claims_key(&self, call: &Call, decides: Partition) -> bool {
        call.key.as_ref().is_some_and(|key| self.owner_of_key(&key.digest) != decides)
    }

    /// `idempotency_claim.lua`: binds the call's idempotency key in its own partition. [`Store::idempotency_settle`] must follow.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`].
    pub async fn idempotency_claim(&self, call: &Call) -> Result<(), Error> {
        let Some(key) = &call.key else { return Ok(()) };
        let home = self.owner_of_key(&key.digest);
        let mut invocation = Invocation::new(&script::IDEMPOTENCY_CLAIM);
        invocation.key(Keys(home).meta()).key(Keys(home).record(&key.digest)).arg(&key.fingerprint).arg(CLAIM_LEASE_MS);
        let reply = self.run_script(home, &invocation).await?;
        if reply.code == ReplyCode::Claimed { Ok(()) } else { Err(reply.unexpected()) }
    }

    /// `idempotency_settle.lua`: keeps the claimed key bound, or frees it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the claim then expires by itself.
    pub async fn idempotency_settle(&self, call: &Call, keeps: bool) -> Result<(), Error> {
        let Some(key) = &call.key else { return Ok(()) };
        let home = self.owner_of_key(&key.digest);
        let mut invocation = Invocation::new(&script::IDEMPOTENCY_SETTLE);
        invocation
            .key(Keys(home).meta())
            .key(Keys(home).record(&key.digest))
            .arg(&key.fingerprint)
            .arg(if keeps { "1" } else { "0" })
            .arg(RECORD_TTL_MS)
            .arg(CLAIM_LEASE_MS);
        let reply = self.run_script(home, &invocation).await?;
        if reply.code == ReplyCode::Settled { Ok(()) } else { Err(reply.unexpected()) }
    }

    /// Checks that an idempotency key is free, or bound to this request, before reads that come before the deciding script.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`]; [`Error::InProgress`].
    pub async fn check_key(&self, call: &Call, here: Partition) -> Result<(), Error> {
        self.recorded(call, here, &script::IDEMPOTENCY_CLAIM).await.map(drop)
    }

    /// `ids_reserve.lua`: the first of `count` consecutive ids, and whether they were reserved before under this key.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn ids_reserve(&self, call: &Call, sequence: &str, count: i64) -> Result<Reply<i64>, Error> {
        let first = Partition(0);
        let mut invocation = self.begin(call, &script::IDS_RESERVE, first);
        invocation.key(Keys(first).ids()).arg(sequence).arg(count);
        let reply = self.decide(call, first, &invocation).await?;
        match reply.code {
            ReplyCode::Reserved | ReplyCode::Allocated => Ok(reply.with(reply.get(0)?)),
            _ => Err(reply.unexpected()),
        }
    }

    /// The first of the ids that an earlier `ids_reserve.lua` reserved under this idempotency key, if there are any.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn ids_reserved_before(&self, call: &Call) -> Result<Option<i64>, Error> {
        match self.recorded(call, Partition(0), &script::IDS_RESERVE).await? {
            Some(reply) if reply.code == ReplyCode::Reserved => reply.get(0).map(Some),
            Some(reply) => Err(reply.unexpected()),
            None => Ok(None),
        }
    }
}
