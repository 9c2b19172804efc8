//! Runs one audit at a time per process, and keeps the last report.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Audit, AuditProgress, AuditReport, AuditTracker, Check};
use crate::{
    model::{Error, Millis},
    telemetry::metrics,
};

/// Runs the audits of a process.
pub struct Auditor {
    audit: Audit,
    running: Mutex<Option<AuditTracker>>,
    last: Mutex<Option<Arc<Finished>>>,
}

/// A finished audit.
#[derive(Debug)]
pub struct Finished {
    pub report: AuditReport,
    pub at: Millis,
}

/// An audit in progress. A drop stops it.
pub struct RunningAudit {
    tracker: AuditTracker,
    task: JoinHandle<anyhow::Result<Arc<Finished>>>,
    _stop: DropGuard,
}

impl RunningAudit {
    pub fn progress(&self) -> AuditProgress {
        self.tracker.progress()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the audit could not be finished.
    pub async fn finished(&mut self) -> Result<Arc<Finished>, Error> {
        let audited = (&mut self.task).await.map_err(|error| Error::Internal(error.into()))?;
        audited.map_err(|error| {
            tracing::warn!(%error, "the audit could not be finished");
            Error::unavailable("the audit could not be finished")
        })
    }
}

/// The turn of a running audit: a drop ends it.
struct Turn(Arc<Auditor>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.running.lock() = None;
        metrics::AUDIT_PROGRESS.set(0.0);
    }
}

impl Auditor {
    pub fn new(audit: Audit) -> Self {
        Auditor { audit, running: Mutex::default(), last: Mutex::default() }
    }

    /// Begins an audit.
    ///
    /// # Errors
    /// [`Error::InProgress`] while another audit runs, because each reads everything.
    pub fn begin(self: &Arc<Self>) -> Result<RunningAudit, Error> {
        let tracker = AuditTracker::new(self.audit.clock.now());
        let turn = {
            let mut running = self.running.lock();
            if running.is_some() {
                return Err(Error::InProgress);
            }
            *running = Some(tracker.clone());
            Turn(self.clone())
        };
        let audit = Audit { tracker: tracker.clone(), ..self.audit.clone() };
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        // On a blocking thread, because the future of an audit is not `Send`.
        let task = tokio::task::spawn_blocking(move || {
            let audited = tokio::runtime::Handle::current().block_on(stop.run_until_cancelled(audit.run()));
            let count = |outcome| metrics::AUDITS.with_label_values(&[outcome]).inc();
            let report = match audited {
                Some(Ok(report)) => report,
                Some(Err(error)) => {
                    count("failed");
                    return Err(error);
                }
                None => {
                    count("stopped");
                    tracing::info!("the client of an audit has gone, and the audit is stopped");
                    anyhow::bail!("stopped");
                }
            };
            count(if report.balanced { "balanced" } else { "unbalanced" });
            metrics::AUDIT_SECONDS.set(report.seconds);
            let Turn(auditor) = &turn;
            let finished = Arc::new(Finished { report, at: auditor.audit.clock.now() });
            if !finished.report.balanced {
                let wrong: Vec<&Check> = finished.report.checks.iter().filter(|check| !check.ok).collect();
                tracing::error!(?wrong, "the books do not balance");
            }
            *auditor.last.lock() = Some(finished.clone());
            Ok(finished)
        });
        Ok(RunningAudit { tracker, task, _stop: guard })
    }

    /// Runs an audit, and stops it if the caller stops waiting.
    ///
    /// # Errors
    /// As [`begin`](Self::begin) and [`RunningAudit::finished`].
    pub async fn run(self: &Arc<Self>) -> Result<Arc<Finished>, Error> {
        self.begin()?.finished().await
    }

    /// The last finished audit of this process.
    pub fn last(&self) -> Option<Arc<Finished>> {
        self.last.lock().clone()
    }

    /// How far the running audit is; `None` if none runs.
    pub fn progress(&self) -> Option<AuditProgress> {
        self.running.lock().as_ref().map(AuditTracker::progress)
    }
}
