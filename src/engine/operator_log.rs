//! The operator log: records operators' actions and writes them to PostgreSQL.
//!
//! An action is recorded after its request, and the request never waits for PostgreSQL: a bounded queue holds the action until
//! a task has written it. The log is therefore best effort. It lacks an action whose process dies before the write, and an
//! action beyond the bound of the queue, which is counted and logged instead. A shutdown writes the queue first.
//!
//! An action is written again some time later, because PostgreSQL may have failed over to a standby that lacks the first write.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::Engine;
use crate::{
    model::{Error, *},
    postgres,
    telemetry::metrics,
    worker::{Worker, Workers, retry_within},
};

/// The capacity of the queue: some megabytes.
const MAX_QUEUED: usize = 4096;
/// The maximum number of actions per write.
const WRITE_BATCH: usize = 100;
/// The pause between two attempts while PostgreSQL is unavailable.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// The time limit of a write: a connection may hang.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time between the two writes of an action: a standby that is promoted lags by less.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// The maximum time that a reader waits for queued actions.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The queue of actions that are not in PostgreSQL yet.
#[derive(Default)]
pub struct OperatorLog {
    queue: Mutex<VecDeque<OperatorAction>>,
    /// Written once, at this time; at most as many as may be queued.
    written_once: Mutex<VecDeque<(Instant, OperatorAction)>>,
    queued: Notify,
    written: Notify,
    dropped: AtomicU64,
}

impl OperatorLog {
    /// Queues an action.
    pub fn record(&self, action: OperatorAction) {
        tracing::info!(
            operator = action.operator,
            role = action.role.map(Role::as_str),
            action = action.action,
            target = action.target,
            status = action.status,
            "action of an operator"
        );
        let mut queue = self.queue();
        if queue.len() >= MAX_QUEUED {
            drop(queue);
            self.drop_one(&action, "the queue is full");
            return;
        }
        queue.push_back(action);
        drop(queue);
        self.queued.notify_one();
    }

    /// The number of actions that never reach PostgreSQL.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Starts the worker that writes the queue.
    pub fn keep_writing(self: &Arc<Self>, db: postgres::Connection, workers: &Workers) {
        let this = self.clone();
        workers.spawn(Worker::OperatorLog, move || {
            let (this, db) = (this.clone(), db.clone());
            async move {
                loop {
                    let written = match this.write(&db).await {
                        Ok(()) => this.write_again(&db, REPEAT_AFTER).await,
                        failed => failed,
                    };
                    if let Err(reason) = written {
                        tracing::warn!(reason, queued = this.queue().len(), "operator actions wait for PostgreSQL");
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    } else {
                        let _ = tokio::time::timeout(this.next_repeat(), this.queued.notified()).await;
                    }
                }
            }
        });
    }

    /// Writes the queue within `limit`, and drops the rest. Call it only after [`OperatorLog::keep_writing`] has stopped.
    /// Returns whether everything is written.
    pub async fn flush(&self, db: &postgres::Connection, limit: Duration) -> bool {
        let written = retry_within(limit, RETRY_INTERVAL, async || self.write(db).await).await;
        if !written {
            let rest: Vec<OperatorAction> = self.queue().drain(..).collect();
            rest.iter().for_each(|action| self.drop_one(action, "the process ends"));
        }
        written
    }

    /// Writes until the queue is empty.
    async fn write(&self, db: &postgres::Connection) -> Result<(), String> {
        loop {
            // Actions stay queued until they are written. Only this method takes from the front of the queue.
            let batch: Vec<OperatorAction> = self.queue().iter().take(WRITE_BATCH).cloned().collect();
            if batch.is_empty() {
                return Ok(());
            }
            let writing = tokio::time::timeout(WRITE_TIMEOUT, postgres::operator_log::write(db, &batch));
            match writing.await {
                Ok(Ok(())) => self.written_once().extend(batch.iter().map(|action| (Instant::now(), action.clone()))),
                Ok(Err(error)) if postgres::is_data_fault(&error) => {
                    batch.iter().for_each(|action| self.drop_one(action, &error.to_string()));
                }
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("timed out".to_owned()),
            }
            self.queue().drain(..batch.len());
            self.written.notify_waiters();
            let mut written = self.written_once();
            let excess = written.len().saturating_sub(MAX_QUEUED);
            written.drain(..excess);
        }
    }

    /// Writes again what was written `after` this time or longer ago. What is there already stays as it is. A process of
    /// [`OperatorLog::keep_writing`] does so by itself.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn write_again(&self, db: &postgres::Connection, after: Duration) -> Result<(), String> {
        loop {
            let due: Vec<OperatorAction> = {
                let written = self.written_once();
                let due = written.iter().take_while(|(at, _)| at.elapsed() >= after).take(WRITE_BATCH);
                due.map(|(_, action)| action.clone()).collect()
            };
            if due.is_empty() {
                return Ok(());
            }
            match tokio::time::timeout(WRITE_TIMEOUT, postgres::operator_log::write(db, &due)).await {
                Ok(Err(error)) if !postgres::is_data_fault(&error) => return Err(error.to_string()),
                Ok(_) => {}
                Err(_) => return Err("timed out".to_owned()),
            }
            let mut written = self.written_once();
            let done = due.len().min(written.len());
            written.drain(..done);
        }
    }

    /// The time until an action is due to be written again.
    fn next_repeat(&self) -> Duration {
        self.written_once().front().map_or(REPEAT_AFTER, |(at, _)| REPEAT_AFTER.saturating_sub(at.elapsed()))
    }

    /// Waits until the queue is empty, at most [`READ_TIMEOUT`].
    async fn settled(&self) {
        let settling = async {
            loop {
                let mut written = std::pin::pin!(self.written.notified());
                // Register before the check, so that no notification is missed.
                written.as_mut().enable();
                if self.queue().is_empty() {
                    return;
                }
                written.await;
            }
        };
        let _ = tokio::time::timeout(READ_TIMEOUT, settling).await;
    }

    fn drop_one(&self, action: &OperatorAction, reason: &str) {
        let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
        metrics::OPERATOR_LOG_DROPPED.inc();
        let OperatorAction { operator, role, action, target, detail, status, request_id, .. } = action;
        tracing::error!(
            reason,
            operator,
            role = role.map(Role::as_str),
            action,
            target,
            detail,
            status,
            request_id,
            dropped,
            "action of an operator not in the operator log"
        );
    }

    fn written_once(&self) -> MutexGuard<'_, VecDeque<(Instant, OperatorAction)>> {
        self.written_once.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<OperatorAction>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// A page of the operator log, newest first. Waits for the actions queued in this process, at most [`READ_TIMEOUT`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn operator_log(
        &self,
        log: &OperatorLog,
        filter: &OperatorLogFilter,
    ) -> Result<Page<OperatorAction>, Error> {
        log.settled().await;
        postgres::operator_log::page(&self.db, filter).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Millis;

    #[test]
    fn operator_actions_counted_beyond_bound() {
        let log = OperatorLog::default();
        let action = OperatorAction {
            id: String::new(),
            operator: "kim".to_owned(),
            role: Some(Role::Admin),
            action: "POST /admin/v1/users".to_owned(),
            target: String::new(),
            detail: String::new(),
            status: 201,
            request_id: String::new(),
            at: Millis(0),
        };
        (0..MAX_QUEUED + 3).for_each(|_| log.record(action.clone()));
        assert_eq!((log.queue().len(), log.dropped()), (MAX_QUEUED, 3));
    }
}
