//! The drain at the end of a process: projects every decision made until then.
//!
//! It stops at the positions of that time, because other processes may go on deciding: the outbox need not become
//! empty.

use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use futures_util::FutureExt;

use super::{MAX_TIMEOUT_FACTOR, MIN_BACKOFF, Projector, Step, StepError};
use crate::model::{Error, Partition, Position};

/// Consecutive empty reads after which a decision counts as missing from the outbox. One empty read is normal: another
/// projector has just trimmed the decision, and the next read sees its commit.
const MAX_EMPTY_READS: usize = 3;

/// Whether what stopped [`Projector::project_decided`] may pass: a store that is unavailable or slow, or a newer process that has the
/// next decision in hand.
pub fn is_transient(error: &anyhow::Error) -> bool {
    let step = error.downcast_ref::<StepError>();
    step.is_some_and(|step| !matches!(step, StepError::Gap { .. }))
        || error.downcast_ref::<Error>().is_some_and(|error| matches!(error, Error::Unavailable { .. }))
}

impl Projector {
    /// Projects every decision of every process until now, beside any other projector. The decisions are then in
    /// PostgreSQL, and no longer in the outbox.
    ///
    /// # Errors
    /// Redis or PostgreSQL is unavailable, or decisions are lost.
    pub async fn project_decided(&self) -> anyhow::Result<()> {
        // A second round, because the relay of a transfer is a decision in another partition.
        let rounds = if self.store.partitions() > 1 { 2 } else { 1 };
        for _ in 0..rounds {
            for (_, checked) in self.store.check_patiently(self.store.all()).await {
                checked?;
            }
            for (here, decided) in self.store.acknowledged() {
                self.project_until(here, decided).await?;
            }
        }
        Ok(())
    }

    /// Projects one partition, beside any other projector, until PostgreSQL has this decision. A relay to a partition that
    /// is unavailable stays undone, and does not stop it.
    ///
    /// # Errors
    /// Redis or PostgreSQL is unavailable, decisions are lost, or the projection makes no progress for `timeout`.
    pub async fn project_up_to(&self, here: Partition, decided: Position, timeout: Duration) -> anyhow::Result<()> {
        let mut progress = (Position::default(), Instant::now());
        loop {
            let projected = self.position(here).await.map_err(|failure| anyhow!(failure))?.position;
            if projected >= decided {
                return Ok(());
            }
            if projected > progress.0 {
                progress = (projected, Instant::now());
            } else if progress.1.elapsed() >= timeout {
                bail!(
                    "the projection of partition {} makes no progress from ({}, {}) to ({}, {})",
                    here.0,
                    projected.epoch,
                    projected.seq,
                    decided.epoch,
                    decided.seq
                );
            }
            match self.step(here, Duration::ZERO, self.timeout * MAX_TIMEOUT_FACTOR).await {
                // Another projector has the decision in hand: one that trimmed it, or the newer version that wrote it.
                Ok(Step { projected: 0, .. }) | Err(StepError::NewerVersion) => tokio::time::sleep(MIN_BACKOFF).await,
                Ok(_) | Err(StepError::Superseded) => {}
                Err(failure) => return Err(anyhow!(failure)),
            }
        }
    }

    async fn project_until(&self, here: Partition, decided: Position) -> anyhow::Result<()> {
        let mut empty = 0;
        loop {
            match self.step(here, Duration::ZERO, self.timeout * MAX_TIMEOUT_FACTOR).await {
                Ok(Step { projected, relayed, .. }) => {
                    let is_projected = self.store.wait_projected(&[(here, decided)]).now_or_never().is_some();
                    match relayed {
                        Ok(()) if is_projected => return Ok(()),
                        Err(failure) if projected == 0 => return Err(anyhow!(failure)),
                        _ => {}
                    }
                    empty = if projected == 0 { empty + 1 } else { 0 };
                    if empty == MAX_EMPTY_READS {
                        bail!("the outbox of partition {} does not have all that was decided", here.0);
                    }
                }
                Err(StepError::Superseded) => {}
                Err(failure) => return Err(anyhow!(failure)),
            }
        }
    }
}
