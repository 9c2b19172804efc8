//! The state of the projection, and its dead letters.

use super::Millis;

/// The lag of the projection behind the decisions.
#[derive(Clone, Debug)]
pub struct ProjectionStatus {
    /// The number of decisions that are not yet in PostgreSQL.
    pub lag_events: i64,
    /// The age of the oldest of them.
    pub lag_seconds: f64,
    /// The number of decisions that PostgreSQL may lag before the service rejects writes.
    pub max_backlog: i64,
    pub dead_letters: i64,
    pub partitions: Vec<PartitionStatus>,
}

/// The id of a dead letter: an entry of a partition's outbox, and a decision in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterId {
    pub partition: u16,
    /// `milliseconds-number`
    pub stream_id: String,
    /// The decision's seq; `None` if the entry could not be decoded so far.
    pub seq: Option<i64>,
}

/// An event that the projector could not apply to PostgreSQL.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    /// The error of the last attempt.
    pub reason: String,
    /// The event's fields: a map of names to texts.
    pub fields: serde_json::Value,
    pub recorded_at: Millis,
}

/// The lag of one partition.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    pub partition: u16,
    pub epoch: i64,
    /// The last decision in Redis.
    pub decided_seq: i64,
    /// The last decision in PostgreSQL.
    pub projected_seq: i64,
    pub lag_seconds: f64,
    pub dead_letters: i64,
}
