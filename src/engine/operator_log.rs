//! The log of operators' acts on its way to Postgres.
//!
//! An act is noted when it is over and never waits for this: a bounded queue in memory, a task that writes it away, again and
//! again while Postgres is away. So the log is a record for people, not a promise: an act whose process dies within that moment
//! is missing, and so is one beyond the bound, which is counted and goes to the process's own log instead. At a shutdown what is
//! queued is written first.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Engine;
use crate::{
    model::{Error, *},
    postgres,
    telemetry::metrics,
};

/// Acts queued at most: some megabytes.
const MAX_QUEUED: usize = 4096;
/// Acts written at once.
const WRITE_BATCH: usize = 100;
/// Between two tries while Postgres is away.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a try may take: a connection may have fallen silent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a reader waits for what was done before.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Acts that are not in Postgres yet.
#[derive(Default)]
pub struct OperatorLog {
    queue: Mutex<VecDeque<OperatorAction>>,
    /// Something was queued.
    queued: Notify,
    /// Something was written.
    written: Notify,
    dropped: AtomicU64,
}

impl OperatorLog {
    /// Queues an act.
    pub fn record(&self, act: OperatorAction) {
        tracing::info!(
            operator = act.operator,
            action = act.action,
            target = act.target,
            status = act.status,
            "action of an operator"
        );
        let mut queue = self.queue();
        if queue.len() >= MAX_QUEUED {
            drop(queue);
            self.drop_one(&act, "too many wait for PostgreSQL");
            return;
        }
        queue.push_back(act);
        drop(queue);
        self.queued.notify_one();
    }

    /// Acts that will never be in Postgres.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is queued until `stop`.
    pub fn keep_writing(self: &Arc<Self>, db: postgres::Connection, tasks: &TaskTracker, stop: &CancellationToken) {
        let this = self.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                if let Err(reason) = this.write(&db).await {
                    tracing::warn!(reason, queued = this.queue().len(), "operators' acts wait for PostgreSQL");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                } else {
                    this.queued.notified().await;
                }
            }
        }));
    }

    /// Writes what is queued, for as long as `patience`. Nobody else may be writing. Returns whether all of it is written.
    pub async fn flush(&self, db: &postgres::Connection, patience: Duration) -> bool {
        let flushing = async {
            while self.write(db).await.is_err() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        let written = tokio::time::timeout(patience, flushing).await.is_ok();
        if !written {
            let left: Vec<OperatorAction> = self.queue().drain(..).collect();
            left.iter().for_each(|act| self.drop_one(act, "the process ends"));
        }
        written
    }

    /// Writes until nothing is queued.
    async fn write(&self, db: &postgres::Connection) -> Result<(), String> {
        loop {
            // They stay queued until they are there; only this end of the queue is ever taken from.
            let some: Vec<OperatorAction> = self.queue().iter().take(WRITE_BATCH).cloned().collect();
            if some.is_empty() {
                return Ok(());
            }
            match tokio::time::timeout(WRITE_TIMEOUT, postgres::operator_log::write(db, &some)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if postgres::is_data_fault(&error) => {
                    some.iter().for_each(|act| self.drop_one(act, &error.to_string()));
                }
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("no answer".to_owned()),
            }
            self.queue().drain(..some.len());
            self.written.notify_waiters();
        }
    }

    /// Waits until everything that is queued now is written, or for a while.
    async fn settled(&self) {
        let settling = async {
            loop {
                let mut written = std::pin::pin!(self.written.notified());
                // From here on nothing is missed.
                written.as_mut().enable();
                if self.queue().is_empty() {
                    return;
                }
                written.await;
            }
        };
        let _ = tokio::time::timeout(READ_TIMEOUT, settling).await;
    }

    fn drop_one(&self, act: &OperatorAction, reason: &str) {
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        metrics::ACTS_DROPPED.inc();
        let OperatorAction { operator, action, target, detail, status, request_id, .. } = act;
        tracing::error!(
            reason,
            operator,
            action,
            target,
            detail,
            status,
            request_id,
            dropped,
            "action of an operator not in the operator log"
        );
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<OperatorAction>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// A page of operators' acts, newest first, with those that were queued in this process before (or two seconds later).
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Postgres is.
    pub async fn operator_log(&self, log: &OperatorLog, filter: &OperatorLogFilter) -> Result<OperatorLogPage, Error> {
        log.settled().await;
        postgres::operator_log::page(&self.db, filter).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::model::Millis;

    #[test]
    fn operator_actions_counted_beyond_bound() {
        let log = OperatorLog::default();
        let act = OperatorAction {
            id: String::new(),
            operator: "kim".to_owned(),
            action: "POST /admin/v1/users".to_owned(),
            target: String::new(),
            detail: String::new(),
            status: 201,
            request_id: String::new(),
            at: Millis(0),
        };
        (0..MAX_QUEUED + 3).for_each(|_| log.record(act.clone()));
        assert_eq!((log.queue().len(), log.dropped()), (MAX_QUEUED, 3));
    }
}
