//! Idempotency keys whose own partition is not the one that decides: claimed before the decision, settled after it.

use crate::{
    model::{Call, Error, Partition, RECORD_TTL_MS},
    redis::{
        Store,
        keys::Keys,
        reply_code::ReplyCode,
        script::{self, Invocation},
    },
};

/// Life of a claim whose request is never settled: longer than any request takes.
const CLAIM_LEASE_MS: i64 = 15 * 60 * 1000;

impl Store {
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
        let owner = self.owner_of_key(&key.digest);
        let mut invocation = Invocation::new(&script::IDEMPOTENCY_CLAIM);
        invocation
            .key(Keys(owner).meta())
            .key(Keys(owner).record(&key.digest))
            .arg(&key.fingerprint)
            .arg(CLAIM_LEASE_MS);
        let reply = self.run_script(owner, &invocation).await?;
        if reply.code == ReplyCode::Claimed { Ok(()) } else { Err(reply.unexpected()) }
    }

    /// `idempotency_settle.lua`: keeps the claimed key bound, or frees it.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the claim then expires by itself.
    pub async fn idempotency_settle(&self, call: &Call, keeps: bool) -> Result<(), Error> {
        let Some(key) = &call.key else { return Ok(()) };
        let owner = self.owner_of_key(&key.digest);
        let mut invocation = Invocation::new(&script::IDEMPOTENCY_SETTLE);
        invocation
            .key(Keys(owner).meta())
            .key(Keys(owner).record(&key.digest))
            .arg(&key.fingerprint)
            .arg(if keeps { "1" } else { "0" })
            .arg(RECORD_TTL_MS)
            .arg(CLAIM_LEASE_MS);
        let reply = self.run_script(owner, &invocation).await?;
        if reply.code == ReplyCode::Settled { Ok(()) } else { Err(reply.unexpected()) }
    }

    /// Checks that an idempotency key is free, or bound to this request, before reads that come before the deciding script.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`]; [`Error::InProgress`].
    pub async fn check_key(&self, call: &Call, here: Partition) -> Result<(), Error> {
        self.recorded(call, here, &script::IDEMPOTENCY_CLAIM).await.map(drop)
    }
}
