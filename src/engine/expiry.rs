//! The sweeper: ends the holds of orders that expire, and gateway payments with an unknown outcome.
//!
//! Every kind of work has a loop of its own in every partition, so that a gateway that hangs, or an unavailable partition,
//! delays nothing else. A step that fails does not stop the next ones. Any number of processes may sweep at once, and a step
//! may be dropped half way: a script decides each one, and checks that it is still due.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};

use super::*;
use crate::{
    model::Partition,
    redis::commands::Closing,
    telemetry::metrics,
    worker::{Worker, Workers},
};

/// The pause between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// The maximum number of due items that one query returns, per partition and kind.
const MAX_PER_SWEEP: usize = 500;
/// The maximum number of concurrent steps of a sweep.
const CONCURRENCY: usize = 32;

/// A kind of due work.
#[derive(Clone, Copy)]
enum Due {
    Orders,
    Payments,
}

impl Due {
    /// The label in the metrics.
    fn kind(self) -> &'static str {
        match self {
            Due::Orders => "order",
            Due::Payments => "payment",
        }
    }
}

impl Engine {
    /// Starts the sweeps in the background, with a worker per partition and kind.
    pub fn keep_sweeping(self: &Arc<Self>, workers: &Workers) {
        for (here, due) in self.sweeps() {
            let this = self.clone();
            workers.every(Worker::Expiry, SWEEP_INTERVAL, move || {
                let this = this.clone();
                async move {
                    if let Err(error) = this.sweep_one(here, due).await {
                        tracing::warn!(partition = here.0, %error, "a sweep failed: the next one retries");
                    }
                }
            });
        }
    }

    /// Sweeps everything once. Returns the number of expired orders.
    ///
    /// # Errors
    /// The first error, after all other steps were tried. A failed step stays due.
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

    /// Every partition with every kind of due thing.
    fn sweeps(&self) -> impl Iterator<Item = (Partition, Due)> + use<> {
        self.store.all().flat_map(|here| [Due::Orders, Due::Payments].map(|due| (here, due)))
    }

    /// Sweeps one kind in one partition. Returns the number of expired orders.
    async fn sweep_one(&self, here: Partition, due: Due) -> Result<usize, Error> {
        let sweeping = async {
            match due {
                Due::Orders => self.sweep_orders(here).await,
                Due::Payments => {
                    let orders = self.store.due_payments(here, MAX_PER_SWEEP).await?;
                    all(due, orders, |payment| async move { self.check_payment(payment).await.map(|()| true) }).await
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
            // A full page of which nothing ended would be the same again.
            if found < MAX_PER_SWEEP || ended == 0 {
                return Ok(expired);
            }
        }
    }

    async fn expire(&self, order: OrderId) -> Result<bool, Error> {
        let call = Call::new(format!("expire-{order}"), None);
        let Some(record) = self.store.order(order).await? else { return Ok(false) };
        match self.close(&call, &record, Closing::Expire).await {
            Ok(closed) => Ok(closed.is_some()),
            // Another sweeper, or the user, has closed the order.
            Err(Error::OrderAlreadyClosed | Error::OrderNotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Runs `step` for all items, [`CONCURRENCY`] at a time. Returns the number of steps that returned true; or, after all were
/// tried, the first error.
async fn all<I, F: Future<Output = Result<bool, Error>>>(
    due: Due,
    items: Vec<I>,
    step: impl Fn(I) -> F,
) -> Result<usize, Error> {
    let outcomes: Vec<Result<bool, Error>> =
        stream::iter(items).map(step).buffer_unordered(CONCURRENCY).collect().await;
    let done = outcomes.iter().filter(|outcome| matches!(outcome, Ok(true))).count();
    metrics::EXPIRED.with_label_values(&[due.kind()]).inc_by(done as u64);
    outcomes.into_iter().find_map(Result::err).map_or(Ok(done), Err)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn every_due_item_tried_when_one_fails() {
        let tried = AtomicUsize::new(0);
        let step = |item: usize| {
            tried.fetch_add(1, Ordering::Relaxed);
            async move {
                match item {
                    3 => Err(Error::unavailable("the first")),
                    other => Ok(other.is_multiple_of(2)),
                }
            }
        };
        let failed = all(Due::Orders, (0..100).collect(), step).await;
        assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
        assert_eq!(tried.load(Ordering::Relaxed), 100);
    }

    #[tokio::test]
    async fn due_items_counted_when_step_did_something() {
        let done =
            all(Due::Payments, (0..100).collect(), |item: usize| async move { Ok(item.is_multiple_of(4)) }).await;
        assert_eq!(done.unwrap(), 25);
        assert_eq!(all(Due::Payments, Vec::new(), |(): ()| async { Ok(true) }).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn steps_bounded_when_many_are_due() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let step = |_: usize| async {
            most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::Relaxed);
            Ok(true)
        };
        all(Due::Orders, (0..500).collect(), step).await.unwrap();
        assert_eq!(most.load(Ordering::Relaxed), CONCURRENCY);
    }
}
