//! One audit at a time in a process, and what the last one found.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::{Audit, Check, Report};
use crate::model::{Error, Millis};

/// Runs audits of one store, for whoever asks.
pub struct Auditor {
    audit: Audit,
    /// Has one permit, held by the one that is under way.
    turn: Arc<Semaphore>,
    last: Mutex<Option<Arc<Finished>>>,
}

/// An audit that came to its end.
#[derive(Debug)]
pub struct Finished {
    pub report: Report,
    pub at: Millis,
}

impl Auditor {
    pub fn new(audit: Audit) -> Self {
        Auditor { audit, turn: Arc::new(Semaphore::new(1)), last: Mutex::default() }
    }

    /// Recomputes everything, to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// [`Error::InProgress`] while another one is under way: each looks at everything there is. [`Error::Unavailable`] where it
    /// could not be finished.
    pub async fn run(self: &Arc<Self>) -> Result<Arc<Finished>, Error> {
        let turn = self.turn.clone().try_acquire_owned().map_err(|_| Error::InProgress)?;
        let this = self.clone();
        // On a thread of its own: it is long, and its future is not one that may move between threads.
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

    /// The last one that this process finished.
    pub fn last(&self) -> Option<Arc<Finished>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether one is under way.
    pub fn is_running(&self) -> bool {
        self.turn.available_permits() == 0
    }
}
