//! The durability of a write before its reply, and the limit of the backlog.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::model::MAX_SAFE_INTEGER;

/// The durability that a decision must reach before its reply.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// Redis has it on disk.
    #[default]
    Redis,
    /// Replicas of Redis have it too: acknowledged decisions survive the loss of its machine, if a replica takes over.
    Replica,
    /// PostgreSQL has committed it too: acknowledged decisions survive the loss of Redis's disk.
    Postgres,
}

/// What a process does about partitions whose data Redis lost.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Rebuilds them from PostgreSQL, and withholds what lost decisions may have sold.
    #[default]
    Automatic,
    /// Rebuilds them if nothing acknowledged can be missing; otherwise an operator does.
    Lossless,
    /// Leaves them to an operator.
    Manual,
}

/// Durability and backlog.
#[derive(Args, Clone, Debug)]
pub struct DurabilityConfig {
    /// What a write's reply waits for: Redis's disk, or also replicas of Redis (acknowledged decisions then survive a
    /// failover), or also PostgreSQL's commit (they survive the loss of Redis's disk)
    #[arg(long, env = "ACK", value_enum, default_value_t)]
    pub ack: Ack,
    /// With ACK=replica: replicas that must have a decision before its reply
    #[arg(long, env = "ACK_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub ack_replicas: u8,
    /// With ACK=replica: they must have it on disk, not only in memory (Redis 7.2 or newer)
    #[arg(long, env = "ACK_REPLICA_DISK")]
    pub ack_replica_disk: bool,
    /// With ACK=replica: milliseconds that a reply waits for the replicas before it is 503
    #[arg(long, env = "ACK_REPLICA_TIMEOUT_MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub ack_replica_timeout_ms: u64,
    /// Decisions that PostgreSQL may lag before writes are answered 503
    #[arg(long, env = "MAX_BACKLOG", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..=MAX_SAFE_INTEGER))]
    pub max_backlog: i64,
    /// Who rebuilds partitions whose data Redis lost: this process, this process if nothing acknowledged can be missing, or an
    /// operator
    #[arg(long, env = "RECOVERY", value_enum, default_value_t)]
    pub recovery: RecoveryMode,
    /// With RECOVERY=automatic: seconds in which lost data may come back (the old master, its disk) before what they may have
    /// sold is kept off sale
    #[arg(long, env = "RECOVERY_WAIT_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub recovery_wait_seconds: u64,
}

impl Default for DurabilityConfig {
    fn default() -> Self {
        DurabilityConfig {
            ack: Ack::default(),
            ack_replicas: 1,
            ack_replica_disk: false,
            ack_replica_timeout_ms: 2000,
            max_backlog: 1_000_000,
            recovery: RecoveryMode::default(),
            recovery_wait_seconds: 10,
        }
    }
}

/// What `ACK=replica` asks of a server's replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaAck {
    /// How many must have a decision before its reply.
    pub replicas: usize,
    /// Whether on disk, rather than in memory.
    pub on_disk: bool,
    /// How long a reply waits for them.
    pub timeout: Duration,
}

impl DurabilityConfig {
    /// What replies ask of replicas; `None` unless `ACK=replica`.
    pub fn replica_ack(&self) -> Option<ReplicaAck> {
        (self.ack == Ack::Replica).then(|| ReplicaAck {
            replicas: usize::from(self.ack_replicas),
            on_disk: self.ack_replica_disk,
            timeout: Duration::from_millis(self.ack_replica_timeout_ms),
        })
    }
}
