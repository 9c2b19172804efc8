//! Runs one audit at a time per process, and keeps the last report.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::{Audit, AuditReport, Check};
use crate::model::{Error, Millis};

/// Runs the audits of a process.
pub struct Auditor {
    audit: Audit,
    /// The one permit, which a running audit holds.
    turn: Arc<Semaphore>,
    last: Mutex<Option<Arc<Finished>>>,
}

/// A finished audit.
#[derive(Debug)]
pub struct Finished {
    pub report: AuditReport,
    pub at: Millis,
}

impl Auditor {
    pub fn new(audit: Audit) -> Self {
        Auditor { audit, turn: Arc::new(Semaphore::new(1)), last: Mutex::default() }
    }

    /// Runs an audit to its end, even if the caller stops waiting.
    ///
    /// # Errors
    /// [`Error::InProgress`] while another audit runs, because each reads everything. [`Error::Unavailable`] if the
    /// audit could not be finished.
    pub async fn run(self: &Arc<Self>) -> Result<Arc<Finished>, Error> {
        let turn = self.turn.clone().try_acquire_owned().map_err(|_| Error::InProgress)?;
        let this = self.clone();
        // On a blocking thread, because the future of an audit is not `Send`.
        let audited = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let report = tokio::runtime::Handle::current().block_on(this.audit.clone().run())?;
            let finished = Arc::new(Finished { report, at: this.audit.clock.now() });
            if !finished.report.balanced {
                let wrong: Vec<&Check> = finished.report.checks.iter().filter(|check| !check.ok).collect();
                tracing::error!(?wrong, "the books do not balance");
            }
            *this.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(finished.clone());
            Ok(finished)
        });
        let audited: anyhow::Result<_> = audited.await.map_err(|error| Error::Internal(error.into()))?;
        audited.map_err(|error| {
            tracing::warn!(%error, "the audit could not be finished");
            Error::unavailable("the audit could not be finished")
        })
    }

    /// The last finished audit of this process.
    pub fn last(&self) -> Option<Arc<Finished>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether an audit runs now.
    pub fn is_running(&self) -> bool {
        self.turn.available_permits() == 0
    }
}
