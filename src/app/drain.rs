//! Projects what was decided, before a process ends.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{App, MAX_BACKOFF};
use crate::projector;

impl App {
    /// Projects every decision made before the call, within `timeout`, beside the background work and through the outages of a store.
    /// Returns whether PostgreSQL has all of them: not if the process is to stop.
    pub async fn project_decided(&self, timeout: Duration) -> bool {
        let (end, mut is_reported) = (Instant::now() + timeout, false);
        loop {
            // Boxed: the future is large.
            let projecting = timeout_at(end, Box::pin(self.projector.project_decided()));
            let projected = tokio::select! {
                () = self.stopping.cancelled() => return false,
                projected = projecting => projected,
            };
            match projected {
                Ok(Ok(())) => return true,
                Ok(Err(error)) if projector::is_transient(&error) => {
                    if !std::mem::replace(&mut is_reported, true) {
                        tracing::warn!(%error, "PostgreSQL does not have every decision yet: waiting");
                    }
                    tokio::time::sleep(MAX_BACKOFF).await;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "decisions can't be projected");
                    return false;
                }
                Err(_) => return false,
            }
        }
    }

    /// Projects every decision made before the call, until `end`. Returns whether PostgreSQL has all of them.
    pub(super) async fn drain(&self, end: Instant) -> bool {
        let why = match timeout_at(end, self.projector.project_decided()).await {
            Ok(Ok(())) => {
                tracing::info!("the outbox is drained");
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the time is over".to_owned(),
        };
        let events = self.store.backlog();
        tracing::warn!(why, events, "the outbox keeps what is not in PostgreSQL yet");
        false
    }
}
