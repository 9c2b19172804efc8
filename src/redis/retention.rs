//! Eviction: orders that are final leave Redis once PostgreSQL has them, so that memory does not grow with every sale. A decision
//! that needs one restores it.

use std::borrow::Cow;

use super::{
    Store,
    keys::Keys,
    reply_code::ReplyCode,
    script::{self, Invocation},
};
use crate::model::{Error, OrderId, Partition};

/// Keys of one call of the script, which keeps Redis busy for at most a millisecond.
const EVICT_BATCH: usize = 200;

/// The state that PostgreSQL has of an order, and how much longer the order stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The order's status, CLOSED for an order that is FAILED or CANCELLED; `PAID:n` for a PAID one of which n parts are refunded.
    pub was: Cow<'static, str>,
    pub ttl_ms: i64,
}

impl Store {
    /// `order_evict.lua`, in one round trip. Like the trim of the outbox it also runs in a closed partition, because PostgreSQL has
    /// the evicted data.
    ///
    /// # Errors
    /// [`Error::Unavailable`]. A repeat is safe.
    pub async fn evict(&self, here: Partition, evictions: &[(OrderId, Eviction)]) -> Result<(), Error> {
        if evictions.is_empty() {
            return Ok(());
        }
        let mut calls = redis::pipe();
        for batch in evictions.chunks(EVICT_BATCH) {
            let mut invocation = Invocation::new(&script::ORDER_EVICT);
            for (order, eviction) in batch {
                invocation.key(Keys(here).order(*order)).arg(&*eviction.was).arg(eviction.ttl_ms);
            }
            // By source, because a pipeline can't load a forgotten script and go on.
            calls.add_command(invocation.by_source()).ignore();
        }
        self.pipe_unchecked(here, &calls).await
    }

    /// For each order, whether it is in Redis and does not expire.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn stays(&self, here: Partition, orders: &[OrderId]) -> Result<Vec<bool>, Error> {
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        let mut read = redis::pipe();
        for order in orders {
            read.cmd("PTTL").arg(Keys(here).order(*order));
        }
        let ttls: Vec<i64> = self.pipe_unchecked(here, &read).await?;
        Ok(ttls.into_iter().map(|ttl| ttl == -1).collect())
    }

    /// `order_restore.lua`: true if Redis did not have the order.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn order_restore(
        &self,
        here: Partition,
        order: OrderId,
        fields: &[(&'static str, String)],
        ttl_ms: i64,
    ) -> Result<bool, Error> {
        let mut invocation = Invocation::new(&script::ORDER_RESTORE);
        invocation.key(Keys(here).meta()).key(Keys(here).order(order)).arg(ttl_ms);
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
