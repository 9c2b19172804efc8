//! The state of the projection, and its dead letters.

use super::Millis;

/// How far the projection is behind the decisions.
#[derive(Clone, Debug)]
pub struct ProjectionStatus {
    /// Decisions not yet in Postgres.
    pub lag_events: i64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// How many decisions Postgres may be behind before writes are turned away.
    pub max_backlog: i64,
    pub dead_letters: i64,
    pub partitions: Vec<PartitionStatus>,
}

/// Which dead letter: an entry of a partition's outbox, and which of its decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterId {
    pub partition: u16,
    /// `milliseconds-number`
    pub stream_id: String,
    /// The decision's number; `None` of an entry that is none.
    pub seq: Option<i64>,
}

/// An event that could not be applied to Postgres.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    /// Why not, the last time that it was tried.
    pub reason: String,
    /// The event: names and texts.
    pub fields: serde_json::Value,
    pub recorded_at: Millis,
}

/// A page of dead letters, newest first.
#[derive(Clone, Debug)]
pub struct DeadLetterPage {
    pub dead_letters: Vec<DeadLetter>,
    pub page: i64,
    pub size: i64,
    pub total: i64,
}

/// The same for one partition.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    pub partition: u16,
    pub epoch: i64,
    /// The last decision taken in Redis.
    pub decided_seq: i64,
    /// The last decision committed to Postgres.
    pub projected_seq: i64,
    pub lag_seconds: f64,
    pub dead_letters: i64,
}
