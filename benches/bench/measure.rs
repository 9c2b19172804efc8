//! A round: one kind of request for a while, then a wait until PostgreSQL has everything, and the CPU time that service, Redis
//! and PostgreSQL have used from the first request to then. A request's whole cost, the durable part of it included.

use std::{ops::Range, time::Duration};

use anyhow::Result;

use crate::{
    client::{self, Load, Round},
    cpu::Cpu,
    servers::{Process, Servers},
};

/// Concurrent connections of the closed loop.
pub const CONNECTIONS: usize = 256;

/// A round of one kind.
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

/// A round, from a moment at which PostgreSQL had everything.
pub async fn measure(
    servers: &Servers,
    process: &Process,
    load: &Load<'_>,
    numbers: Range<u64>,
    duration: Duration,
) -> Result<Measured> {
    servers.tidy().await?;
    let before = servers.cpu(process.pid());
    let round = client::run(process.address, CONNECTIONS, load, numbers, duration).await?;
    let generator = servers.cpu(process.pid()).generator;
    let lag = servers.lag().await?;
    servers.drain().await?;
    let mut cpu = servers.cpu(process.pid()) - before;
    cpu.generator = generator - before.generator;
    Ok(Measured { round, cpu, lag })
}
