//! The durability of a write before its reply, and the limit of the backlog.

use clap::{Args, ValueEnum};

use crate::model::MAX_SAFE_INTEGER;

/// The durability that a decision must reach before its reply.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// Redis has it on disk.
    #[default]
    Redis,
    /// PostgreSQL has committed it too: acknowledged decisions survive the loss of Redis's disk.
    Postgres,
}

/// Durability and backlog.
#[derive(Args, Clone, Debug)]
pub struct DurabilityConfig {
    /// What a write's reply waits for: Redis's disk, or also PostgreSQL's commit (acknowledged decisions then survive the
    /// loss of Redis's disk)
    #[arg(long, env = "ACK", value_enum, default_value_t)]
    pub ack: Ack,
    /// Decisions that PostgreSQL may lag before writes are answered 503
    #[arg(long, env = "MAX_BACKLOG", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..=MAX_SAFE_INTEGER))]
    pub max_backlog: i64,
}

impl Default for DurabilityConfig {
    fn default() -> Self {
        DurabilityConfig { ack: Ack::default(), max_backlog: 1_000_000 }
    }
}
