//! `ACK=replica` compared with `ACK=redis`, on a Redis with one replica.
//!
//! One service at a time, so that the other projects nothing; a new campaign each round. The replica's own CPU is not counted: it
//! is another machine's, and the same in both.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use firstcome::dev::{self, RedisServer, ScratchDir};

use crate::{
    Options,
    client::{self, Load},
    cpu::Cpu,
    loads::{self, RICH, Users},
    measure::{Measured, measure_with},
    report::{Report, median, spread},
    servers::{SERVE, Servers},
    targets::{Target, Targets},
};

/// The clients of the figures.
const CONCURRENT: usize = 64;
/// Distinct users: more than a round has requests.
const USERS: u64 = 400_000;
/// Requests of a client that is alone, and round trips to the replica.
const ALONE: u64 = 500;
const ACKS: [&str; 2] = ["redis", "replica"];

#[derive(Default)]
struct AckRounds {
    measured: Vec<Measured>,
    /// The p50 of one client alone, µs.
    alone: Vec<f64>,
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let dir = ScratchDir::new()?;
    let replica = replica_of(servers, &dir).await?;
    let users = {
        let service = servers.process(SERVE, &[])?;
        let users = Users { first: service.users(USERS, RICH).await?, count: USERS };
        servers.drain().await?;
        users
    };
    let mut rounds: [AckRounds; 2] = Default::default();
    let (mut trips, mut busy_trips) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds() {
        trips.push(round_trip(servers).await?);
        for (ack, rounds) in ACKS.into_iter().zip(&mut rounds) {
            let service = servers.process_with(SERVE, &[], &[("ACK", ack)])?;
            let load = |campaign| loads::issue(campaign, |n| users.nth(n), 200);
            let first: Load<'_> = load(service.campaign(USERS).await?);
            let alone = client::run(service.address, 1, &first, 0..ALONE, Duration::MAX).await?;
            let load = load(service.campaign(USERS).await?);
            servers.drain().await?;
            let measured = measure_with(CONCURRENT, servers, &service, &load, 0..USERS, options.round()).await?;
            if ack == "redis" {
                let load = loads::issue(service.campaign(USERS).await?, |n| users.nth(n), 200);
                let busy = client::run(service.address, CONCURRENT, &load, 0..USERS, options.round());
                let (busy, trip) = tokio::join!(busy, round_trip(servers));
                busy?;
                busy_trips.push(trip?);
                servers.drain().await?;
            }
            // The first round warms up.
            if round > 0 {
                rounds.alone.push(alone.percentile(0.5));
                rounds.measured.push(measured);
            }
        }
    }
    drop(replica);
    let (trip, busy_trip) = (median(trips), median(busy_trips));
    table(&rounds, (trip, busy_trip), report);
    let [redis, replica] = &rounds;
    let wait_of = |p50s: fn(&AckRounds) -> Vec<f64>, trip: f64| -> (f64, String) {
        let waits: Vec<f64> = p50s(replica).iter().zip(p50s(redis)).map(|(a, b)| a - b).collect();
        let ratios: Vec<f64> = waits.iter().map(|wait| wait / trip).collect();
        (median(ratios.iter().copied()), format!("{}; {:.0} µs of {trip:.0}", spread(&ratios), median(waits)))
    };
    let (wait, note) = wait_of(|of| of.alone.clone(), trip);
    targets.measured(Target::ReplicaWait, wait, note);
    let p50s = |of: &AckRounds| of.measured.iter().map(|one| one.round.percentile(0.5)).collect();
    let (wait, note) = wait_of(p50s, busy_trip);
    targets.measured(Target::ReplicaWaitOfMany, wait, note);
    let cpu = |of: &AckRounds| -> Vec<f64> { of.measured.iter().map(|one| one.per_request(Cpu::servers)).collect() };
    let ratios: Vec<f64> = cpu(replica).iter().zip(cpu(redis)).map(|(a, b)| a / b).collect();
    targets.measured(Target::ReplicaCpu, median(ratios.iter().copied()), spread(&ratios));
    Ok(())
}

fn table(rounds: &[AckRounds; 2], (trip, busy_trip): (f64, f64), report: &mut Report) {
    report.heading("Replies that wait for a replica");
    report.text(&format!(
        "Coupon issues of {CONCURRENT} clients, and of one alone, with a replica on this machine in both rows. A round trip to the \
         replica (`WAIT` after a write): {trip:.0} µs alone, {busy_trip:.0} µs while the {CONCURRENT} clients issue with `ACK=redis`."
    ));
    let mut lines = Vec::new();
    for (ack, rounds) in ACKS.iter().zip(rounds) {
        let of = |value: fn(&Measured) -> f64| median(rounds.measured.iter().map(value));
        lines.push(vec![
            format!("`ACK={ack}`"),
            format!("{:.0}", of(|one| one.round.rate())),
            format!("{:.2}", of(|one| one.round.percentile(0.5) / 1e3)),
            format!("{:.2}", of(|one| one.round.percentile(0.99) / 1e3)),
            format!("{:.1}", of(|one| one.per_request(|cpu| cpu.service))),
            format!("{:.1}", of(|one| one.per_request(|cpu| cpu.redis))),
            format!("{:.1}", of(|one| one.per_request(|cpu| cpu.postgres))),
            format!("{:.0}", median(rounds.alone.iter().copied())),
        ]);
    }
    report.table(
        &["", "per second", "p50 ms", "p99 ms", "service µs", "Redis µs", "PostgreSQL µs", "p50 alone, µs"],
        &lines,
    );
}

/// A replica that has everything.
pub async fn replica_of(servers: &Servers, dir: &ScratchDir) -> Result<RedisServer> {
    let port = dev::free_port()?;
    let mut link = servers.redis_link().await?;
    redis::cmd("CONFIG").arg("SET").arg("port").arg(port).exec_async(&mut link).await?;
    redis::cmd("CONFIG").arg("SET").arg("repl-diskless-sync-delay").arg(0).exec_async(&mut link).await?;
    redis::cmd("CONFIG").arg("SET").arg("min-replicas-max-lag").arg(3600).exec_async(&mut link).await?;
    let mut config = dev::RedisServerConfig::new(dir.path().join("replica"));
    config.extra_args = vec!["--replicaof".to_owned(), "127.0.0.1".to_owned(), port.to_string()];
    let replica = RedisServer::start(config).await?;
    let begun = Instant::now();
    loop {
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut link).await?;
        if info.contains("state=online") {
            // As ACK=replica asks.
            redis::cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(1).exec_async(&mut link).await?;
            return Ok(replica);
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "the replica does not come: {info}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The median time, in µs, of a `WAIT` for the replica after a write.
async fn round_trip(servers: &Servers) -> Result<f64> {
    let mut link = servers.redis_link().await?;
    let mut times = Vec::new();
    for _ in 0..ALONE {
        redis::cmd("SET").arg("round-trip").arg(1).exec_async(&mut link).await?;
        let begun = Instant::now();
        redis::cmd("WAIT").arg(1).arg(1000).exec_async(&mut link).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    redis::cmd("DEL").arg("round-trip").exec_async(&mut link).await?;
    Ok(median(times))
}
