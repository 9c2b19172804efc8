//! The positions that this process knows, by partition: what Redis has acknowledged, what clients may have been told, and what
//! PostgreSQL has.

use super::{Store, progress::Watermark};
use crate::{
    config::Ack,
    model::{Error, Partition, Position, Projection},
};

impl Store {
    pub(super) fn watermark(&self, here: Partition) -> &Watermark {
        &self.shared.watermarks[usize::from(here.0) % self.shared.watermarks.len()]
    }

    /// The acknowledged positions of the open partitions, as this process knows them.
    pub fn acknowledged(&self) -> Vec<(Partition, Position)> {
        let open = self.all().filter(|here| self.watermark(*here).is_open());
        open.map(|here| (here, self.watermark(here).acknowledged())).collect()
    }

    /// The epoch of a partition, as far as this process knows. Of an open partition it is the current one.
    pub fn epoch(&self, here: Partition) -> i64 {
        self.watermark(here).epoch()
    }

    /// Counts the servers on which this process has used the partition. What a server did without a decision, the next one may lack
    /// unnoticed.
    pub fn histories(&self, here: Partition) -> u64 {
        self.watermark(here).histories()
    }

    /// The last decision that a client may have been told, by this process (as durable as `ACK` asks) or by another, also one that
    /// has ended since. No later decision was acknowledged.
    pub fn confirmed(&self, here: Partition) -> Position {
        let watermark = self.watermark(here);
        let own = match self.shared.guard.get().map(|guard| guard.ack).unwrap_or_default() {
            Ack::Redis => watermark.acknowledged(),
            Ack::Replica => watermark.replicated(),
            Ack::Postgres => watermark.furthest_projected(),
        };
        own.max(watermark.confirmed_by_others())
    }

    /// [`Store::confirmed`] of the open partitions.
    pub fn confirmed_positions(&self) -> Vec<(Partition, Position)> {
        let open = self.all().filter(|here| self.watermark(*here).is_open());
        open.map(|here| (here, self.confirmed(here))).collect()
    }

    /// Records PostgreSQL's progress, as read from there. `before` are the [`Store::projected_positions`] from before the reading: a
    /// lower position is believed, and waiting replies then wait for it to rise again.
    pub fn observe_projection(&self, here: Partition, read: Projection, before: &[Position]) {
        let before = before.get(usize::from(here.0)).copied().unwrap_or_default();
        self.watermark(here).observe_projection(read, before);
    }

    /// PostgreSQL's last known positions, indexed by partition.
    pub fn projected_positions(&self) -> Vec<Position> {
        self.all().map(|here| self.projected_position(here)).collect()
    }

    /// PostgreSQL's last known position.
    pub fn projected_position(&self, here: Partition) -> Position {
        self.watermark(here).projected_position()
    }

    /// Records the progress of this process's projector: its position, and the seq of the last dead letter (0 if there is none).
    pub fn record_projected(&self, here: Partition, position: Position, last_dead_letter: i64) {
        self.watermark(here).record_projected(position, last_dead_letter);
    }

    /// Waits until PostgreSQL has passed all these decisions. Returns those that may be dead letters.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if a rebuild ended the epoch of a decision: the new epoch may lack it.
    pub async fn wait_projected(&self, decided: &[(Partition, Position)]) -> Result<Vec<(Partition, Position)>, Error> {
        let mut refused = Vec::new();
        for (here, position) in decided {
            let mut projection = self.watermark(*here).projection();
            let passed = projection.wait_for(|projected| projected.position >= *position).await;
            // Never fails: the sender lives as long as the store.
            let Projection { position: at, last_dead_letter } =
                *passed.map_err(|error| Error::Internal(error.into()))?;
            if at.epoch > position.epoch {
                return Err(Error::unavailable("Redis was rebuilt meanwhile, with or without the decision"));
            }
            if position.seq <= last_dead_letter {
                refused.push((*here, *position));
            }
        }
        Ok(refused)
    }

    /// Whether PostgreSQL has dead letters, as far as this process knows.
    pub fn has_dead_letters(&self) -> bool {
        self.all().any(|here| self.watermark(here).projection().borrow().last_dead_letter > 0)
    }

    /// The number of a partition's decisions that are not in PostgreSQL yet, as far as this process knows.
    pub fn partition_backlog(&self, here: Partition) -> i64 {
        self.watermark(here).backlog()
    }

    /// The number of decisions that are not in PostgreSQL yet, as far as this process knows.
    pub fn backlog(&self) -> i64 {
        self.all().map(|here| self.watermark(here).backlog()).sum()
    }
}
