//! What a write's reply waits for.

use clap::{Args, ValueEnum};

use crate::model::MAX_SAFE_INTEGER;

/// What must have happened before a write is answered.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// Redis has it on its disk.
    #[default]
    Redis,
    /// Postgres has it too: what was acknowledged survives the loss of Redis's disk.
    Postgres,
}

/// How much may be lost, and how much may be under way.
#[derive(Args, Clone, Debug)]
pub struct DurabilityConfig {
    /// What a write's reply waits for: Redis's disk, or also PostgreSQL's commit (what was acknowledged then survives the
    /// loss of Redis's disk)
    #[arg(long, env = "ACK", value_enum, default_value_t)]
    pub ack: Ack,
    /// Decisions that PostgreSQL may be behind before writes are answered 503
    #[arg(long, env = "MAX_BACKLOG", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..=MAX_SAFE_INTEGER))]
    pub max_backlog: i64,
}

impl Default for DurabilityConfig {
    fn default() -> Self {
        DurabilityConfig { ack: Ack::default(), max_backlog: 1_000_000 }
    }
}
