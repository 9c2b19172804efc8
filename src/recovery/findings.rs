//! What a rebuild knows of its partitions before it empties them: their positions, and what they may have lost.

use std::collections::{BTreeMap, BTreeSet};

use super::rebuild::RebuildOptions;
use crate::{
    model::{Partition, Position, Scope},
    postgres::loss::Loss,
    redis::bulk::PartitionState,
};

/// Upper bounds of the decisions that partitions lost, besides the discarded ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LossBounds {
    #[default]
    Unknown,
    /// The same bound for each partition.
    Each(i64),
    /// By partition, and unknown for the others. 0: nothing that was acknowledged can be missing.
    ByPartition(BTreeMap<Partition, i64>),
    /// Every process has said what it acknowledged in these partitions: they lost what the stores lack, and nothing else. Unknown
    /// for the others.
    Counted(BTreeSet<Partition>),
}

impl LossBounds {
    /// The bound of a partition; `None` if unknown.
    pub fn of(&self, here: Partition) -> Option<i64> {
        match self {
            LossBounds::Unknown => None,
            LossBounds::Each(bound) => Some(*bound),
            LossBounds::ByPartition(bounds) => bounds.get(&here).copied(),
            LossBounds::Counted(_) => None,
        }
    }

    fn is_counted(&self, here: Partition) -> bool {
        matches!(self, LossBounds::Counted(partitions) if partitions.contains(&here))
    }
}

/// The state of a partition before its rebuild.
pub(super) struct PartitionFinding {
    pub(super) here: Partition,
    pub(super) state: PartitionState,
    pub(super) projected: Position,
    /// What the processes acknowledged, as far as PostgreSQL knows.
    pub(super) acknowledged: Position,
    /// The highest known position: of Redis, acknowledged or projected.
    pub(super) decided: Position,
    /// Decisions that only Redis has.
    pub(super) unprojected: i64,
    /// Decisions that PostgreSQL refused.
    pub(super) dead_letters: i64,
    /// Acknowledged decisions that neither store has.
    pub(super) lost: i64,
    /// An earlier rebuild that had to withhold was interrupted.
    pub(super) suspected: bool,
}

impl PartitionFinding {
    /// Decisions that Redis or a dead letter has, and that a rebuild discards.
    pub(super) fn discarded(&self) -> i64 {
        self.unprojected + self.dead_letters
    }

    /// The last decision that may be missing, if it is known; that of PostgreSQL if none is.
    pub(super) fn missing_last(&self, options: &RebuildOptions) -> Option<i64> {
        (options.lost_at_most.is_counted(self.here) && !self.suspected).then_some(self.decided.seq)
    }

    /// The bound of the acknowledged decisions that may be lost; `None` if none is. `replies_waited`: every reply of
    /// this store waited for PostgreSQL, so that only PostgreSQL can have lost an acknowledged decision.
    pub(super) fn possible_loss(&self, replies_waited: bool, options: &RebuildOptions) -> Option<Bound> {
        if self.suspected {
            // The interrupted rebuild has emptied Redis: its bound is no longer known.
            return Some(None);
        }
        let known = self.discarded() + self.lost;
        if options.lost_at_most.is_counted(self.here) {
            return (known > 0).then_some(Some(known));
        }
        let sound =
            self.state.position == Some(self.projected) && self.state.frozen.is_none() && !self.state.rebuilding;
        let bound = options.lost_at_most.of(self.here).map(|bound| bound + self.discarded());
        (known > 0 || !replies_waited && !sound && bound != Some(0)).then_some(bound)
    }
}

/// The number of decisions from one position to a later one; a rebuild continues the numbers.
pub(super) fn beyond(ahead: Position, of: Position) -> i64 {
    if ahead > of { (ahead.seq - of.seq).max(1) } else { 0 }
}

/// An upper bound of the decisions that a partition lost; `None` if unknown.
pub(super) type Bound = Option<i64>;

/// The possible losses of the partitions of a rebuild.
pub(super) struct PossibleLosses {
    pub(super) scope: Scope,
    /// By partition of the scope; none for one that lost nothing.
    pub(super) bounds: BTreeMap<Partition, Bound>,
    /// Of every partition, also from earlier rebuilds.
    pub(super) losses: Vec<Loss>,
}

impl PossibleLosses {
    /// The bound of the losses that this rebuild withholds for; `None` if it does not withhold in this partition.
    pub(super) fn bound(&self, here: Partition) -> Option<Bound> {
        self.bounds.get(&here).copied()
    }

    /// Whether a lost decision may have paid an order of partition `owner` that is PENDING in PostgreSQL since
    /// `placed_at` (ms), or is missing there (`None`).
    pub(super) fn may_be_paid(&self, owner: Partition, placed_at: Option<i64>) -> bool {
        let loss = self.losses.iter().find(|loss| loss.partition == owner.0);
        match placed_at {
            Some(placed_at) => loss.is_some_and(|loss| loss.covers(placed_at)),
            None if self.scope.contains(owner) => self.bound(owner).is_some(),
            // The owner partition may have lost the order before an earlier rebuild of its own.
            None => loss.is_some_and(|loss| loss.suspected_at.is_some()),
        }
    }

    /// Whether any partition may ever have lost a decision.
    pub(super) fn ever(&self) -> bool {
        !self.bounds.is_empty() || self.losses.iter().any(|loss| loss.suspected_at.is_some())
    }
}
