//! A few shared multiplexed connections compared with one pooled connection per request: the measurement behind the shared
//! connections of the engine (see docs/decisions.md).
//!
//! Both send the same durable script call (a coupon issue) to the same Redis, in alternation, from the same number of concurrent
//! tasks. The report has requests per second, CPU and commands of Redis per request, and the ratio of the rates within a round.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::try_join_all;

use crate::{
    Options,
    calls::{Aside, DATABASE},
    report::{Report, median, spread},
    servers::Servers,
};

const CONCURRENT: &[usize] = &[1, 8, 64, 512];
/// The default of `REDIS_CONNECTIONS`.
const SHARED_CONNECTIONS: usize = 4;
const POOL: usize = 64;
/// A longer round does not change the figures.
const MAX_ROUND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Rounds {
    rates: Vec<f64>,
    redis_us: Vec<f64>,
    commands: Vec<f64>,
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report) -> Result<()> {
    let (mut aside, call) = Aside::open(servers).await?;
    let mut shared_connections = Vec::new();
    for _ in 0..SHARED_CONNECTIONS {
        shared_connections.push(Aside::open(servers).await?.0.link);
    }
    let url = servers.redis.url();
    let pool =
        deadpool_redis::Config::from_url(format!("{url}{}db={DATABASE}", if url.contains('?') { '&' } else { '?' }))
            .builder()?
            .max_size(POOL)
            .runtime(deadpool_redis::Runtime::Tokio1)
            .build()?;
    let mut lines = Vec::new();
    for concurrent in CONCURRENT {
        let (mut shared, mut pooled) = (Rounds::default(), Rounds::default());
        for measured in 0..=options.rounds() {
            let mut one = Rounds::default();
            let over_shared = async |user: u64| -> Result<()> {
                let mut link = shared_connections[user as usize % SHARED_CONNECTIONS].clone();
                Ok(call.command(user).exec_async(&mut link).await?)
            };
            round(servers, &mut aside, options, *concurrent, &mut one, over_shared).await?;
            let mut other = Rounds::default();
            let over_pool = async |user: u64| -> Result<()> {
                let mut link = pool.get().await?;
                Ok(call.command(user).exec_async(&mut link).await?)
            };
            round(servers, &mut aside, options, *concurrent, &mut other, over_pool).await?;
            if measured > 0 {
                shared.take(one);
                pooled.take(other);
            }
        }
        let ratios: Vec<f64> = shared.rates.iter().zip(&pooled.rates).map(|(a, b)| a / b).collect();
        let middle = |of: &[f64]| median(of.iter().copied());
        lines.push(vec![
            concurrent.to_string(),
            format!("{:.0}", middle(&shared.rates)),
            format!("{:.0}", middle(&pooled.rates)),
            spread(&ratios),
            format!("{:.1}, {:.1}", middle(&shared.redis_us), middle(&pooled.redis_us)),
            format!("{:.2}, {:.2}", middle(&shared.commands), middle(&pooled.commands)),
        ]);
    }
    report.heading("Connections: shared and pooled");
    report.text(&format!(
        "The same durable script call over {SHARED_CONNECTIONS} shared multiplexed connections, and over one connection per request \
         from a pool of {POOL} (deadpool-redis, which sends `UNWATCH` and `PING` at each checkout). All clients share one thread."
    ));
    report.table(
        &[
            "concurrent",
            "shared/s",
            "pool/s",
            "shared ÷ pool",
            "Redis µs/request shared, pool",
            "commands/request shared, pool",
        ],
        &lines,
    );
    Ok(())
}

impl Rounds {
    fn take(&mut self, other: Rounds) {
        self.rates.extend(other.rates);
        self.redis_us.extend(other.redis_us);
        self.commands.extend(other.commands);
    }
}

/// Runs `request` from `concurrent` tasks for a round.
async fn round(
    servers: &Servers,
    aside: &mut Aside,
    options: &Options,
    concurrent: usize,
    rounds: &mut Rounds,
    request: impl AsyncFn(u64) -> Result<()>,
) -> Result<()> {
    servers.tidy().await?;
    aside.begin().await?;
    let (cpu, commands) = (servers.cpu(0).redis, wire(aside).await?);
    let next = Cell::new(0);
    let started = Instant::now();
    try_join_all((0..concurrent).map(async |_| -> Result<()> {
        while started.elapsed() < options.round().min(MAX_ROUND) {
            let user = next.replace(next.get() + 1);
            request(user).await?;
        }
        Ok(())
    }))
    .await?;
    let (seconds, done) = (started.elapsed().as_secs_f64(), next.get() as f64);
    rounds.rates.push(done / seconds);
    rounds.redis_us.push((servers.cpu(0).redis - cpu) * 1e6 / done);
    rounds.commands.push((wire(aside).await? - commands) / done);
    aside.end(next.get()).await
}

/// Commands that clients sent: INFO also counts the commands that scripts call.
async fn wire(aside: &mut Aside) -> Result<f64> {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut aside.link).await?;
    let calls = |name: &str| -> Option<f64> {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":calls=")?.split(',').next()?.parse().ok())
    };
    Ok(["cmdstat_evalsha", "cmdstat_ping", "cmdstat_unwatch"].into_iter().filter_map(calls).sum())
}
