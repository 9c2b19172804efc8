//! The identity of a deployment, and positions in a partition's sequence of decisions.

use super::Millis;

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

/// The word of a process about a partition: see `redis::roll_call`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The history of the partition for which it was given: see `redis::roll_call`.
    pub history: String,
    /// The last decision that Redis had acknowledged to the process.
    pub acknowledged: Position,
    /// The last decision that the process may have acknowledged to a client: as durable as its `ACK` asks.
    pub confirmed: Position,
    /// The time of that server.
    pub at: Millis,
    /// Whether every operation has ended that the process had begun before it gave its first word for this history.
    pub drained: bool,
    /// Whether the process confirms decisions to clients that PostgreSQL may lack.
    pub before_postgres: bool,
}
