//! What is over leaves Redis once Postgres has it, so that memory does not grow with every sale; and comes back where a
//! decision needs it.

use super::{
    Store,
    keys::Keys,
    reply_code::ReplyCode,
    script::{self, Invocation},
};
use crate::model::{Error, OrderId, Partition};

/// Keys in one call of the script: a millisecond at most in which Redis does nothing else.
const EVICT_BATCH: usize = 200;

/// A hash of one partition that may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EvictionCandidate {
    Order(OrderId),
    /// The stock held for an order at home elsewhere.
    Hold(OrderId),
}

impl EvictionCandidate {
    fn key(self, here: Partition) -> String {
        match self {
            EvictionCandidate::Order(order) => Keys(here).order(order),
            EvictionCandidate::Hold(order) => Keys(here).hold(order),
        }
    }
}

/// As Postgres has it, and how much longer it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The order's status, or CLOSED for one that is either FAILED or CANCELLED; the hold's state.
    pub was: &'static str,
    pub ttl_ms: i64,
}

impl Store {
    /// `order_evict.lua`, in one round trip. As the trim of the outbox, also where a partition is closed: Postgres has it all
    /// the same.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; all of it may be said again.
    pub async fn evict(&self, here: Partition, over: &[(EvictionCandidate, Eviction)]) -> Result<(), Error> {
        if over.is_empty() {
            return Ok(());
        }
        let mut calls = redis::pipe();
        for some in over.chunks(EVICT_BATCH) {
            let mut invocation = Invocation::new(&script::ORDER_EVICT);
            for (what, leave) in some {
                invocation.key(what.key(here)).arg(leave.was).arg(leave.ttl_ms);
            }
            // By source, because a pipeline can't load a forgotten script and go on.
            calls.add_command(invocation.by_source()).ignore();
        }
        self.pipe_unchecked(here, &calls).await
    }

    /// `order_restore.lua`: true if it was not here.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn order_restore(
        &self,
        here: Partition,
        what: EvictionCandidate,
        fields: &[(&'static str, String)],
        ttl_ms: i64,
    ) -> Result<bool, Error> {
        let mut invocation = Invocation::new(&script::ORDER_RESTORE);
        invocation.key(Keys(here).meta()).key(what.key(here)).arg(ttl_ms);
        for (field, value) in fields {
            invocation.arg(*field).arg(value);
        }
        let reply = self.run_script(here, &invocation).await?;
        match reply.code {
            ReplyCode::Restored => Ok(true),
            ReplyCode::AlreadyPresent => Ok(false),
            _ => Err(reply.unexpected()),
        }
    }
}
