//! Ranges of ids.

use crate::{
    model::{Call, Error, Partition, Reply},
    redis::{Store, keys::Keys, reply_code::ReplyCode, script},
};

impl Store {
    /// `ids_reserve.lua`: the first of `count` consecutive ids, and whether they were reserved before under this key.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
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
    /// The [shared refusals](super#shared-refusals).
    pub async fn ids_reserved_before(&self, call: &Call) -> Result<Option<i64>, Error> {
        match self.recorded(call, Partition(0), &script::IDS_RESERVE).await? {
            Some(reply) if reply.code == ReplyCode::Reserved => reply.get(0).map(Some),
            Some(reply) => Err(reply.unexpected()),
            None => Ok(None),
        }
    }
}
