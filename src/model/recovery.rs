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
    /// The rebuild failed. One that a process began by itself is tried again.
    Failed,
}

impl RecoveryOutcome {
    pub const ALL: [RecoveryOutcome; 4] =
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

/// Who began a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BegunBy {
    /// A process, by itself.
    Service,
    /// An operator, with `firstcome rebuild`.
    Operator,
}

impl BegunBy {
    pub const ALL: [BegunBy; 2] = [BegunBy::Service, BegunBy::Operator];

    /// The name in PostgreSQL and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            BegunBy::Service => "SERVICE",
            BegunBy::Operator => "OPERATOR",
        }
    }

    pub fn from_name(name: &str) -> Option<BegunBy> {
        BegunBy::ALL.into_iter().find(|by| by.as_str() == name)
    }
}

/// How far a rebuild is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecoveryProgress {
    /// `prepare`, `empty`, `load` or `finish`; `None` before the first.
    pub step: Option<String>,
    /// Rows of PostgreSQL that are written back.
    pub rows_done: i64,
    /// About how many rows will be; `None` while that is unknown.
    pub rows_expected: Option<i64>,
    /// The expected rest of the step `load`.
    pub eta_seconds: Option<f64>,
}

/// The recovery of a partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// A UUID.
    pub id: String,
    pub partition: Partition,
    pub begun_by: BegunBy,
    /// From 1. An attempt that follows a failed one has the same id.
    pub attempts: i32,
    /// Why the partition was closed, or is rebuilt.
    pub reason: String,
    /// The last decision that Redis had; `None` if it had lost the partition's state.
    pub found_seq: Option<i64>,
    /// The last decision that any process had acknowledged, as far as known.
    pub acknowledged_seq: i64,
    /// The last decision that PostgreSQL had, with what Redis could still give.
    pub projected_seq: i64,
    /// The last decision that may be missing; `None` if it is unknown. None is missing up to `projected_seq`.
    pub missing_last_seq: Option<i64>,
    /// Processes that may have acknowledged more, and ended before they could say so.
    pub silent: Vec<String>,
    pub outcome: RecoveryOutcome,
    /// Why the recovery failed; otherwise empty.
    pub detail: String,
    /// The epoch in which the partition decides again.
    pub epoch: Option<i64>,
    /// What the recovery withheld in this partition.
    pub withheld_units: i64,
    pub withheld_coupons: i64,
    /// Of the rebuild, or of its last attempt. All partitions of a rebuild share it.
    pub progress: RecoveryProgress,
    /// When the process noticed the loss, when the first rebuild began, and when the last one ended.
    pub noticed_at: Millis,
    pub began_at: Millis,
    pub ended_at: Option<Millis>,
}

impl Recovery {
    /// The first and the last seq of the decisions that may be missing, the last if it is known; `None` if none is missing.
    pub fn missing(&self) -> Option<(i64, Option<i64>)> {
        let some = self.missing_last_seq.is_none_or(|last| last > self.projected_seq);
        let withheld = self.outcome == RecoveryOutcome::Withheld;
        (withheld && some).then_some((self.projected_seq + 1, self.missing_last_seq))
    }

    /// From the moment that the loss was noticed to the end, in seconds; `None` while the rebuild is in progress.
    pub fn seconds(&self) -> Option<f64> {
        self.ended_at.map(|ended_at| (ended_at.0 - self.noticed_at.0).max(0) as f64 / 1000.0)
    }
}
