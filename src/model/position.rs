//! The identity of a deployment, and positions in a partition's sequence of decisions.

/// The identity of a deployment. Redis and PostgreSQL each hold a copy; start-up compares the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// A UUID, generated when the deployment is initialised.
    pub store: String,
    /// The number of partitions. It never changes.
    pub partitions: u16,
    /// Every rebuild increments it.
    pub epoch: i64,
}

/// The position of a partition: its epoch and the number of its last decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub epoch: i64,
    pub seq: i64,
}

/// PostgreSQL's progress in a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// The last projected decision.
    pub position: Position,
    /// The seq of the last dead letter up to `position`; 0 if there is none.
    pub last_dead_letter: i64,
}
