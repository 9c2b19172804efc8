//! A round: one kind of request for a while, then a wait until PostgreSQL has every decision. The CPU time of service, Redis and
//! PostgreSQL covers both, so that it is the whole cost of a request with its durable part.

use std::{ops::Range, time::Duration};

use anyhow::Result;

use crate::{
    client::{self, Load, Round},
    cpu::Cpu,
    servers::{Process, Servers},
};

/// Concurrent connections of the closed loop.
pub const CONNECTIONS: usize = 256;

/// The result of a round of one kind of request.
#[derive(Clone, Debug)]
pub struct Measured {
    pub round: Round,
    pub cpu: Cpu,
    /// Decisions that PostgreSQL did not have yet when the last request was answered.
    pub lag: i64,
}

impl Measured {
    /// CPU-µs.
    pub fn per_request(&self, of: fn(Cpu) -> f64) -> f64 {
        of(self.cpu) * 1e6 / self.round.requests as f64
    }
}

/// Runs a round. PostgreSQL must have every decision at its start.
pub async fn measure(
    servers: &Servers,
    process: &Process,
    load: &Load<'_>,
    numbers: Range<u64>,
    duration: Duration,
) -> Result<Measured> {
    measure_with(CONNECTIONS, servers, process, load, numbers, duration).await
}

/// The same with another number of connections.
pub async fn measure_with(
    connections: usize,
    servers: &Servers,
    process: &Process,
    load: &Load<'_>,
    numbers: Range<u64>,
    duration: Duration,
) -> Result<Measured> {
    servers.tidy().await?;
    let before = servers.cpu(process.pid());
    let round = client::run(process.address, connections, load, numbers, duration).await?;
    let generator = servers.cpu(process.pid()).generator;
    let lag = servers.lag().await?;
    servers.drain().await?;
    let mut cpu = servers.cpu(process.pid()) - before;
    cpu.generator = generator - before.generator;
    Ok(Measured { round, cpu, lag })
}
