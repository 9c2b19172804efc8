//! What the clock brings about: holds that end, far holds whose order never came, gateway payments that are not known yet.
//!
//! Any number of processes may sweep at once: each step is decided by a script that checks whether it is still due.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::store::{
    decisions::{Closing, FarEnd},
    keys::Partition,
};

/// How often is looked for what is due.
const EVERY: Duration = Duration::from_millis(500);
/// What one look takes on at most, per partition and kind.
const MOST: usize = 500;
/// Steps taken at once.
const AT_ONCE: usize = 32;
/// How much later a far hold is looked at again whose order is still open.
const FAR_AGAIN_MS: i64 = 60_000;

impl Engine {
    /// Sweeps until `stop`.
    pub fn keep_sweeping(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        let (this, stop) = (self.clone(), stop.clone());
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = stop.cancelled() => return,
                }
                if let Err(error) = this.sweep().await {
                    tracing::warn!(%error, "sweeping waits");
                }
            }
        });
    }

    /// Ends everything that is due now. Returns how many orders expired.
    ///
    /// # Errors
    /// Redis can't answer; what is due stays due.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let mut expired = 0;
        for here in self.store.all() {
            expired += self.sweep_orders(here).await?;
            self.sweep_payments(here).await?;
            if self.store.partitions() > 1 {
                self.sweep_far_holds(here).await?;
            }
        }
        Ok(expired)
    }

    async fn sweep_orders(&self, here: Partition) -> Result<usize, Error> {
        let mut expired = 0;
        loop {
            let due = self.store.due_orders(here, self.clock.now(), MOST).await?;
            let found = due.len();
            let outcomes: Vec<Result<bool, Error>> =
                stream::iter(due).map(|(order, _)| self.expire(order)).buffer_unordered(AT_ONCE).collect().await;
            let mut ended = 0;
            for outcome in outcomes {
                ended += usize::from(outcome?);
            }
            expired += ended;
            // A full look that ended nothing would find the same again.
            if found < MOST || ended == 0 {
                return Ok(expired);
            }
        }
    }

    async fn expire(&self, order: OrderId) -> Result<bool, Error> {
        let call = Call { request_id: format!("expire-{order}"), key: None };
        let Some(record) = self.store.order(order).await? else { return Ok(false) };
        match self.close(&call, &record, Closing::Expire).await {
            Ok(closed) => Ok(closed.is_some()),
            // Another sweeper, or its user, was first.
            Err(Error::OrderAlreadyClosed) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn sweep_payments(&self, here: Partition) -> Result<(), Error> {
        let due = self.store.due_payments(here, self.clock.now(), MOST).await?;
        let looks: Vec<Result<(), Error>> =
            stream::iter(due).map(|order| self.look_at_payment(order)).buffer_unordered(AT_ONCE).collect().await;
        looks.into_iter().collect()
    }

    async fn sweep_far_holds(&self, here: Partition) -> Result<(), Error> {
        let now = self.clock.now();
        for (order, user) in self.store.due_holds(here, now, MOST).await? {
            let call = Call { request_id: format!("expire-{order}"), key: None };
            let verdict = self.store.order_verdict(order).await?;
            let end = match verdict.status {
                Some(OrderStatus::Pending) => {
                    self.store.postpone_hold(here, order, user, now.plus(FAR_AGAIN_MS)).await?;
                    continue;
                }
                Some(OrderStatus::Paid) => FarEnd::Settled,
                _ if verdict.refunded => FarEnd::Refunded,
                _ => FarEnd::Released,
            };
            let day = NaiveDate::parse_from_str(&verdict.day, crate::store::decisions::DAY_FORMAT).ok();
            let day = day.map(|day| (day, crate::store::ranking::ranked_until(day))).filter(|(_, until)| *until > now);
            self.store.stock_settle(self.context(&call), here, order, user, end, day).await?;
        }
        Ok(())
    }
}
