//! Recoveries: what happened to partitions whose data Redis lost.

use super::{Millis, Partition};

/// What a recovery came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryOutcome {
    /// The rebuild is in progress.
    Running,
    /// The partition decides again, and nothing that was acknowledged is missing.
    Complete,
    /// The partition decides again, and what lost decisions may have sold is withheld.
    Withheld,
    /// The rebuild failed; it is tried again.
    Failed,
}

impl RecoveryOutcome {
    const ALL: [RecoveryOutcome; 4] =
        [RecoveryOutcome::Running, RecoveryOutcome::Complete, RecoveryOutcome::Withheld, RecoveryOutcome::Failed];

    /// The name in PostgreSQL, in the API and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            RecoveryOutcome::Running => "RUNNING",
            RecoveryOutcome::Complete => "COMPLETE",
            RecoveryOutcome::Withheld => "WITHHELD",
            RecoveryOutcome::Failed => "FAILED",
        }
    }

    pub fn from_name(name: &str) -> Option<RecoveryOutcome> {
        RecoveryOutcome::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// The recovery of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// A UUID.
    pub id: String,
    pub partition: Partition,
    /// Why the partition was closed.
    pub reason: String,
    /// The last decision that Redis had; `None` if it had lost the partition's state.
    pub found_seq: Option<i64>,
    /// The last decision that any process had acknowledged, as far as known.
    pub acknowledged_seq: i64,
    /// The last decision that PostgreSQL had.
    pub projected_seq: i64,
    /// Processes that may have acknowledged more, and ended before they could say so.
    pub silent: Vec<String>,
    pub outcome: RecoveryOutcome,
    /// Why the recovery failed; otherwise empty.
    pub detail: String,
    /// The epoch in which the partition decides again.
    pub epoch: Option<i64>,
    /// When this process noticed the loss, when the rebuild began, and when it ended.
    pub noticed_at: Millis,
    pub began_at: Millis,
    pub ended_at: Option<Millis>,
}

impl Recovery {
    /// The first and the last seq of the decisions that may be missing; `None` if none is, or if their number is unknown.
    pub fn missing(&self) -> Option<(i64, i64)> {
        let known = self.silent.is_empty() && self.acknowledged_seq > self.projected_seq;
        known.then_some((self.projected_seq + 1, self.acknowledged_seq))
    }
}
