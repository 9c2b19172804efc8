//! The index of gateway payments under way: the next check of each, and which of them are stuck.

use redis::Value;

use crate::{
    model::{Error, Millis, OrderId, Partition},
    redis::{
        Store,
        keys::Keys,
        records::OrderRecord,
        reply_code::ReplyCode,
        script::{self, Invocation},
    },
};

/// The score of a stuck payment is the time of its next check (ms) plus this, so that one index says whether a payment is under
/// way and whether it is stuck. The sum is exact in a double.
pub const STUCK_OFFSET: i64 = 1 << 52;

/// A gateway payment whose check is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuePayment {
    pub order: OrderId,
    pub stuck: bool,
}

/// The ranges of scores of checks due by `now`: of payments that are not stuck, and of those that are.
pub(super) fn due_ranges(now: Millis) -> [(i64, i64); 2] {
    [(0, now.0), (STUCK_OFFSET, STUCK_OFFSET + now.0)]
}

/// The range of scores of stuck payments.
pub(super) fn stuck_range() -> (i64, &'static str) {
    (STUCK_OFFSET, "+inf")
}

fn score(at: Millis, stuck: bool) -> i64 {
    if stuck { STUCK_OFFSET + at.0 } else { at.0 }
}

impl Store {
    /// Gateway payments whose check is due: at most `max` that are stuck, and as many others.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as for all the following methods.
    pub async fn due_payments(&self, here: Partition, max: usize) -> Result<Vec<DuePayment>, Error> {
        let index = Keys(here).gateway();
        let mut read = redis::pipe();
        for (first, last) in due_ranges(self.now(here)) {
            read.cmd("ZRANGE").arg(&index).arg(first).arg(last).arg("BYSCORE").arg("LIMIT").arg(0).arg(max);
        }
        let (others, stuck): (Vec<i64>, Vec<i64>) = self.pipe(here, &read).await?;
        let due = |ids: Vec<i64>, stuck| {
            ids.into_iter().filter_map(OrderId::new).map(move |order| DuePayment { order, stuck })
        };
        Ok(due(others, false).chain(due(stuck, true)).collect())
    }

    /// Orders of a partition whose gateway payment is stuck, in the order of their next check, at most `max`; and their number.
    pub async fn stuck_payments(&self, here: Partition, max: usize) -> Result<(Vec<OrderRecord>, i64), Error> {
        let index = Keys(here).gateway();
        let (first, last) = stuck_range();
        let mut read = redis::pipe();
        read.cmd("ZRANGE").arg(&index).arg(first).arg(last).arg("BYSCORE").arg("LIMIT").arg(0).arg(max);
        read.cmd("ZCOUNT").arg(&index).arg(first).arg(last);
        let (ids, count): (Vec<i64>, i64) = self.pipe(here, &read).await?;
        let mut orders = Vec::with_capacity(ids.len());
        for id in ids.into_iter().filter_map(OrderId::new) {
            // A payment that ended since is gone, or shows that it ended.
            orders.extend(self.order(id).await?);
        }
        Ok((orders, count))
    }

    /// Postpones the check of a gateway payment, if the payment is still in the index.
    pub async fn postpone_payment(&self, payment: DuePayment, until: Millis) -> Result<(), Error> {
        let DuePayment { order, stuck } = payment;
        let owner = self.owner(order.get());
        let mut postpone = redis::cmd("ZADD");
        postpone.arg(Keys(owner).gateway()).arg("XX").arg(score(until, stuck)).arg(order.get());
        self.query::<Value>(owner, postpone).await.map(drop)
    }

    /// Makes the check of a gateway payment due now, if the payment is still in the index.
    pub async fn hasten_payment(&self, order: OrderId) -> Result<(), Error> {
        let owner = self.owner(order.get());
        let mut read = redis::cmd("ZSCORE");
        read.arg(Keys(owner).gateway()).arg(order.get());
        let Some(due) = self.query::<Option<f64>>(owner, read).await? else { return Ok(()) };
        let payment = DuePayment { order, stuck: due >= STUCK_OFFSET as f64 };
        self.postpone_payment(payment, self.now(owner)).await
    }

    /// `payment_postpone.lua`: schedules the next query to the gateway at `until`. `last_answer` is the gateway's last answer,
    /// for operators.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn payment_postpone(
        &self,
        order: OrderId,
        receipt: &str,
        until: Millis,
        stuck: bool,
        last_answer: &str,
    ) -> Result<(), Error> {
        let owner = self.owner(order.get());
        let mut invocation = Invocation::new(&script::PAYMENT_POSTPONE);
        invocation
            .key(Keys(owner).meta())
            .key(Keys(owner).order(order))
            .key(Keys(owner).gateway())
            .arg(order.get())
            .arg(receipt)
            .arg(score(until, stuck))
            .arg(last_answer);
        let reply = self.run_script(owner, &invocation).await?;
        match reply.code {
            ReplyCode::Postponed | ReplyCode::NotOpen => Ok(()),
            _ => Err(reply.unexpected()),
        }
    }
}
