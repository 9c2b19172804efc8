//! The last thing that a process does: what was decided before it ends is carried to Postgres.
//!
//! Up to where Redis is by then, and no further: others may go on deciding, and their outbox is never empty for long.

use std::time::Duration;

use anyhow::{anyhow, bail};
use futures_util::FutureExt;

use super::{Failure, MAX_TIMEOUT_FACTOR, Projector, Step};
use crate::model::{Partition, Position};

/// How many readings may find nothing where there has to be something. One does where another projector has just carried it
/// away; its commit is seen by the next.
const EMPTY_READINGS: usize = 3;

impl Projector {
    /// Projects everything that was decided until now, by whomever, together with whoever else projects. What was decided is
    /// then in Postgres and no longer in the outbox.
    ///
    /// # Errors
    /// Redis or Postgres is away, or decisions are lost.
    pub async fn project_decided(&self) -> anyhow::Result<()> {
        // Twice: an order's end that is carried to stock in another partition is a decision there.
        let rounds = if self.store.partitions() > 1 { 2 } else { 1 };
        for _ in 0..rounds {
            for here in self.store.all() {
                self.store.check(here).await?;
            }
            for (here, decided) in self.store.acknowledged() {
                self.project_until(here, decided).await?;
            }
        }
        Ok(())
    }

    async fn project_until(&self, here: Partition, decided: Position) -> anyhow::Result<()> {
        let mut empty = 0;
        loop {
            match self.step(here, Duration::ZERO, self.timeout * MAX_TIMEOUT_FACTOR).await {
                Ok(Step { projected: carried, relayed, .. }) => {
                    let is_there = self.store.wait_projected(&[(here, decided)]).now_or_never().is_some();
                    match relayed {
                        Ok(()) if is_there => return Ok(()),
                        Err(failure) if carried == 0 => return Err(anyhow!(failure)),
                        _ => {}
                    }
                    empty = if carried == 0 { empty + 1 } else { 0 };
                    if empty == EMPTY_READINGS {
                        bail!("the outbox of partition {} does not have all that was decided", here.0);
                    }
                }
                Err(Failure::Superseded) => {}
                Err(failure) => return Err(anyhow!(failure)),
            }
        }
    }
}
