//! What the clock brings about: holds that end, far holds whose order never came, gateway payments that are not known yet.
//!
//! Each of these goes its own way in each partition, so that a gateway that hangs, or a partition that is away, holds up
//! nothing else; and one that can't be ended now does not keep the next from ending. Any number of processes may sweep at
//! once: each step is decided by a script that checks whether it is still due, so that a step may also be dropped half way.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::{
    model::Partition,
    redis::commands::{Closing, RemoteEnd},
    telemetry::metrics,
};

/// How often is looked for what is due.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// What one look takes on at most, per partition and kind.
const MAX_PER_SWEEP: usize = 500;
/// Steps taken at once.
const CONCURRENCY: usize = 32;
/// How much later a far hold is looked at again whose order is still open.
const REMOTE_RETRY_MS: i64 = 60_000;

/// A kind of thing that comes due.
#[derive(Clone, Copy)]
enum Due {
    Orders,
    Payments,
    RemoteHolds,
}

impl Due {
    /// As a label of the metrics.
    fn kind(self) -> &'static str {
        match self {
            Due::Orders => "order",
            Due::Payments => "payment",
            Due::RemoteHolds => "remote_hold",
        }
    }
}

impl Engine {
    /// Sweeps until `stop`.
    pub fn keep_sweeping(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        for (here, due) in self.sweeps() {
            let (this, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                let sweeping = async {
                    loop {
                        ticks.tick().await;
                        if let Err(error) = this.sweep_one(here, due).await {
                            tracing::warn!(partition = here.0, %error, "something due waits");
                        }
                    }
                };
                tokio::select! {
                    () = sweeping => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// Ends everything that is due now, once. Returns how many orders expired.
    ///
    /// # Errors
    /// The first thing that can't be ended now, after everything else was tried; it stays due.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let mut outcome = Ok(0);
        for (here, due) in self.sweeps() {
            outcome = match (outcome, self.sweep_one(here, due).await) {
                (Ok(before), Ok(ended)) => Ok(before + ended),
                (Err(first), _) | (_, Err(first)) => Err(first),
            };
        }
        outcome
    }

    fn sweeps(&self) -> impl Iterator<Item = (Partition, Due)> + use<> {
        let far = self.store.partitions() > 1;
        let kinds =
            if far { &[Due::Orders, Due::Payments, Due::RemoteHolds][..] } else { &[Due::Orders, Due::Payments] };
        self.store.all().flat_map(move |here| kinds.iter().map(move |due| (here, *due)))
    }

    /// Returns how many orders expired.
    async fn sweep_one(&self, here: Partition, due: Due) -> Result<usize, Error> {
        let sweeping = async {
            match due {
                Due::Orders => self.sweep_orders(here).await,
                Due::Payments => {
                    let orders = self.store.due_payments(here, MAX_PER_SWEEP).await?;
                    all(due, orders, |payment| async move { self.check_payment(payment).await.map(|()| true) }).await
                }
                Due::RemoteHolds => {
                    let holds = self.store.due_holds(here, MAX_PER_SWEEP).await?;
                    let look =
                        |(order, user)| async move { self.check_remote_hold(here, order, user).await.map(|()| true) };
                    all(due, holds, look).await
                }
            }
        };
        let swept = sweeping.await.inspect_err(|_| {
            metrics::SWEEP_FAILURES.with_label_values(&[due.kind()]).inc();
        })?;
        Ok(if matches!(due, Due::Orders) { swept } else { 0 })
    }

    async fn sweep_orders(&self, here: Partition) -> Result<usize, Error> {
        let mut expired = 0;
        loop {
            let due = self.store.due_orders(here, MAX_PER_SWEEP).await?;
            let found = due.len();
            let ended = all(Due::Orders, due, |order| self.expire(order)).await?;
            expired += ended;
            // A full look that ended nothing would find the same again.
            if found < MAX_PER_SWEEP || ended == 0 {
                return Ok(expired);
            }
        }
    }

    async fn expire(&self, order: OrderId) -> Result<bool, Error> {
        let call = Call { request_id: format!("expire-{order}"), key: None };
        let Some(record) = self.store.order(order).await? else { return Ok(false) };
        match self.close(&call, &record, Closing::Expire).await {
            Ok(closed) => Ok(closed.is_some()),
            // Another sweeper, or its user, was first; perhaps long ago.
            Err(Error::OrderAlreadyClosed | Error::OrderNotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn check_remote_hold(&self, here: Partition, order: OrderId, user: UserId) -> Result<(), Error> {
        let call = Call { request_id: format!("expire-{order}"), key: None };
        let verdict = self.store.order_resolve(order).await?;
        let end = match verdict.status {
            Some(OrderStatus::Pending) => {
                return self.store.postpone_hold(here, order, user, self.store.now(here).plus(REMOTE_RETRY_MS)).await;
            }
            Some(OrderStatus::Paid) => RemoteEnd::Settled,
            _ if verdict.refunded => RemoteEnd::Refunded,
            // It was held when we looked. If we were held up since, for so long that both have left, it is sold, and stays so.
            _ => RemoteEnd::Abandoned,
        };
        let day = NaiveDate::parse_from_str(&verdict.day, crate::redis::commands::DAY_FORMAT).ok();
        self.store.stock_settle(&call, here, order, user, end, day).await.map(drop)
    }
}

/// Does all of these, some at once: how many steps say that they did something. The first error is returned after all were
/// tried.
async fn all<I, F: Future<Output = Result<bool, Error>>>(
    due: Due,
    items: Vec<I>,
    step: impl Fn(I) -> F,
) -> Result<usize, Error> {
    let outcomes: Vec<Result<bool, Error>> =
        stream::iter(items).map(step).buffer_unordered(CONCURRENCY).collect().await;
    let done = outcomes.iter().filter(|outcome| matches!(outcome, Ok(true))).count();
    metrics::SWEPT.with_label_values(&[due.kind()]).inc_by(done as u64);
    outcomes.into_iter().find_map(Result::err).map_or(Ok(done), Err)
}
