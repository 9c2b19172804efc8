//! One typed function per deciding script: its keys and arguments in, its words turned into the domain's outcomes.
//!
//! A word that a script's header does not document is an error, never a default.

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

use redis::Cmd;

use super::{
    Store,
    batchable::Mergeable,
    keys::Keys,
    script::{self, Invocation, Script},
};
use crate::model::{Call, Error, Partition, Reply, UserId, Won};

/// How long an idempotency record lives: 24 hours.
pub const RECORD_TTL_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a key stays claimed by a request that nobody hears of any more: longer than any request takes.
const CLAIM_LEASE_MS: i64 = 15 * 60 * 1000;
/// How much later than its order a far hold is looked at: the order's end has been relayed by then, as a rule.
pub const REMOTE_HOLD_GRACE_MS: i64 = 60_000;

impl Store {
    /// A call with the keys and arguments that every script with an idempotency record starts with.
    fn begin(&self, call: &Call, script: &'static Script, partition: Partition) -> Invocation {
        let keys = Keys(partition);
        let (digest, fingerprint) = key_parts(call);
        Invocation::new(script)
            .key(keys.meta())
            .key(keys.outbox())
            .key(keys.record(digest))
            .arg(self.test_clock())
            .arg(fingerprint)
            .arg(RECORD_TTL_MS)
            .arg(&call.request_id)
    }

    /// The same for scripts without one.
    fn begin_unrecorded(&self, call: &Call, script: &'static Script, partition: Partition) -> Invocation {
        let keys = Keys(partition);
        Invocation::new(script).key(keys.meta()).key(keys.outbox()).arg(self.test_clock()).arg(&call.request_id)
    }
}

/// The digest and the fingerprint of a call's idempotency key, empty for none: as scripts take them.
fn key_parts(call: &Call) -> (&str, &str) {
    match &call.key {
        Some(key) => (&key.digest, &key.fingerprint),
        None => ("", ""),
    }
}

struct Charge {
    user: UserId,
    amount: Won,
    limit: Won,
}

impl Mergeable for Charge {
    fn script(&self) -> &'static Script {
        &script::BALANCE_CHARGE
    }

    fn key_counts(&self) -> (usize, usize) {
        (0, 1)
    }

    fn shared_keys(&self, _: Keys, _: &mut Cmd) {}

    fn keys(&self, keys: Keys, call: &mut Cmd) {
        call.arg(keys.user(self.user));
    }

    fn shared_args(&self, call: &mut Cmd) {
        call.arg(self.limit);
    }

    fn args(&self, call: &mut Cmd) {
        call.arg(self.user.get()).arg(self.amount);
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
        let answer = self.merged(call, self.owner(user.get()), Charge { user, amount, limit }).await?;
        match answer.word.as_str() {
            "CHARGED" => Ok(answer.reply((answer.get(2)?, answer.get(3)?))),
            "USER_NOT_FOUND" => Err(Error::UserNotFound),
            "LIMIT_EXCEEDED" => Err(Error::InvalidAmount),
            _ => Err(answer.unknown()),
        }
    }

    /// Whether a call's idempotency key has to be claimed before `decides` decides. (Where that is the key's own partition, the
    /// record of the decision says it all.)
    pub fn claims_key(&self, call: &Call, decides: Partition) -> bool {
        call.key.as_ref().is_some_and(|key| self.owner_of_key(&key.digest) != decides)
    }

    /// `idempotency_claim.lua`: binds the call's idempotency key in its own partition. [`Store::idempotency_settle`] has to follow.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`].
    pub async fn idempotency_claim(&self, call: &Call) -> Result<(), Error> {
        let Some(key) = &call.key else { return Ok(()) };
        let home = self.owner_of_key(&key.digest);
        let claim = Invocation::new(&script::IDEMPOTENCY_CLAIM)
            .key(Keys(home).meta())
            .key(Keys(home).record(&key.digest))
            .arg(&key.fingerprint)
            .arg(CLAIM_LEASE_MS);
        let answer = self.call(home, &claim).await?;
        if answer.word == "CLAIMED" { Ok(()) } else { Err(answer.unknown()) }
    }

    /// `idempotency_settle.lua`: the claimed key stays bound, or is free again.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the claim then ends by itself.
    pub async fn idempotency_settle(&self, call: &Call, keeps: bool) -> Result<(), Error> {
        let Some(key) = &call.key else { return Ok(()) };
        let home = self.owner_of_key(&key.digest);
        let settle = Invocation::new(&script::IDEMPOTENCY_SETTLE)
            .key(Keys(home).meta())
            .key(Keys(home).record(&key.digest))
            .arg(&key.fingerprint)
            .arg(if keeps { "1" } else { "0" })
            .arg(RECORD_TTL_MS)
            .arg(CLAIM_LEASE_MS);
        let answer = self.call(home, &settle).await?;
        if answer.word == "SETTLED" { Ok(()) } else { Err(answer.unknown()) }
    }

    /// Whether an idempotency key is free, or this very request's, where something has to be read before the script that
    /// says so can be called.
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
        let reserve = self.begin(call, &script::IDS_RESERVE, first).key(Keys(first).ids()).arg(sequence).arg(count);
        let answer = self.call(first, &reserve).await?;
        match answer.word.as_str() {
            "RESERVED" => Ok(answer.reply(answer.get(2)?)),
            "ALLOCATED" => Ok(answer.reply(answer.get(0)?)),
            _ => Err(answer.unknown()),
        }
    }

    /// The first of the ids that an earlier `ids_reserve.lua` reserved under this idempotency key, if there are any.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn ids_reserved_before(&self, call: &Call) -> Result<Option<i64>, Error> {
        match self.recorded(call, Partition(0), &script::IDS_RESERVE).await? {
            Some(answer) if answer.word == "RESERVED" => answer.get(2).map(Some),
            Some(answer) => Err(answer.unknown()),
            None => Ok(None),
        }
    }
}
