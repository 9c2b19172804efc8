//! The identity of a deployment, and how far a partition is.

/// The identity of a deployment: kept in Redis and in PostgreSQL, and compared at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Minted when the deployment is first initialised.
    pub store: String,
    /// Fixed from then on.
    pub partitions: u16,
    /// Raised by every rebuild.
    pub epoch: i64,
}

/// The position of a partition: its epoch and the number of its last decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    pub epoch: i64,
    pub seq: i64,
}

/// How far PostgreSQL is with a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Projection {
    /// The last decision that was projected.
    pub position: Position,
    /// The seq of the last dead letter up to there; 0 if there is none.
    pub last_dead_letter: i64,
}
