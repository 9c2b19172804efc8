//! Coupon issues per second over HTTP compared with `redis-benchmark` and the same script, in the same Redis, equally durable; and
//! the effect of `appendfsync everysec`.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    Options,
    calls::{Aside, CouponIssue, DATABASE},
    client,
    loads::{self, RICH, Users},
    measure::CONNECTIONS,
    report::{Report, median, spread},
    servers::{PROJECT, Process, SERVE, Servers},
    targets::{Target, Targets},
};

const USERS: u64 = 400_000;
/// Concurrent clients, both of HTTP and of redis-benchmark.
const CLIENTS: &[usize] = &[50, 256];
/// Pipeline lengths of redis-benchmark. The closed loop over HTTP compares with the first.
const PIPELINES: &[usize] = &[1, 16];

/// Rates, and Redis's CPU-µs per call, round by round.
#[derive(Default)]
struct Rounds {
    rates: Vec<f64>,
    redis_us: Vec<f64>,
}

impl Rounds {
    fn ratios(&self, to: &Rounds) -> Vec<f64> {
        self.rates.iter().zip(&to.rates).map(|(a, b)| a / b).collect()
    }
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    report.heading("Scripts: HTTP and redis-benchmark");
    let Some(program) = redis_benchmark() else {
        report.text(
            "Not measured: `redis-benchmark` is neither beside the Redis server nor on the path (Debian: `redis-tools`).",
        );
        return Ok(());
    };
    let service = servers.process(SERVE, &["alone"])?;
    let projector = servers.process(PROJECT, &[])?;
    let users = Users { first: service.users(USERS, RICH).await?, count: USERS };
    let (mut aside, call) = Aside::open(servers).await?;
    let mut lines = Vec::new();
    for clients in CLIENTS {
        let (mut deciding, mut projecting) = (Rounds::default(), Rounds::default());
        let mut direct: Vec<(usize, Rounds)> = PIPELINES.iter().map(|p| (*p, Rounds::default())).collect();
        // Calls of a round, adjusted by the rate of the round before.
        let mut calls = vec![5_000; PIPELINES.len()];
        for round in 0..=options.rounds() {
            projector.pause()?;
            let decided = http(servers, &service, users, *clients, options.round()).await?;
            projector.resume()?;
            servers.drain().await?;
            let projected = http(servers, &service, users, *clients, options.round()).await?;
            servers.drain().await?;
            if round > 0 {
                deciding.push(decided);
                projecting.push(projected);
            }
            for (at, (pipeline, rounds)) in direct.iter_mut().enumerate() {
                aside.begin().await?;
                let measured = benchmark(servers, &program, &call, *clients, *pipeline, calls[at]).await?;
                aside.end(calls[at]).await?;
                calls[at] = ((measured.0 * options.round().as_secs_f64()) as u64).max(1000);
                if round > 0 {
                    rounds.push(measured);
                }
            }
        }
        eprintln!("scripts: {clients} clients done");
        let unpipelined = &direct[0].1;
        let mut line = |name: &str, rounds: &Rounds, what: &str| {
            lines.push(vec![
                format!("{name}, {clients} {what}"),
                format!("{:.0}", median(rounds.rates.iter().copied())),
                spread(&rounds.ratios(unpipelined)),
                format!("{:.1}", median(rounds.redis_us.iter().copied())),
            ]);
        };
        line("HTTP", &deciding, "connections");
        line("HTTP while projecting", &projecting, "connections");
        for (pipeline, rounds) in &direct {
            line(&format!("redis-benchmark -P {pipeline}"), rounds, "clients");
        }
        if *clients == CONNECTIONS {
            let note = format!(
                "{clients} clients each; {} while projecting on the same cores",
                spread(&projecting.ratios(unpipelined))
            );
            targets.measured(Target::IssueRate, median(deciding.ratios(unpipelined)), note);
        }
    }
    report.text(
        "Coupon issues, durable (`appendfsync always`), one per user. `redis-benchmark` calls the script of `lua/coupon_issue.lua` \
         over the same Unix socket, in another database of the same Redis. No projector reads its decisions, so the comparison is \
         with HTTP while the projector is paused; the row with the projector running is for information.",
    );
    report.table(&["issues", "per second", "rate × unpipelined", "Redis µs per issue"], &lines);
    Ok(())
}

impl Rounds {
    fn push(&mut self, (rate, redis_us): (f64, f64)) {
        self.rates.push(rate);
        self.redis_us.push(redis_us);
    }
}

/// A round over HTTP: requests per second, and CPU-µs of Redis per request.
async fn http(
    servers: &Servers,
    service: &Process,
    users: Users,
    connections: usize,
    duration: Duration,
) -> Result<(f64, f64)> {
    let campaign = service.campaign(USERS).await?;
    let load = loads::issue(campaign, move |n| users.nth(n), 200);
    servers.tidy().await?;
    let before = servers.cpu(service.pid());
    let round = client::run(service.address, connections, &load, 0..USERS, duration).await?;
    let cpu = servers.cpu(service.pid()) - before;
    Ok((round.rate(), cpu.redis * 1e6 / round.requests as f64))
}

/// A round of redis-benchmark: calls per second, and CPU-µs of Redis per call.
async fn benchmark(
    servers: &Servers,
    program: &PathBuf,
    call: &CouponIssue,
    clients: usize,
    pipeline: usize,
    calls: u64,
) -> Result<(f64, f64)> {
    servers.tidy().await?;
    let before = servers.cpu(0).redis;
    let mut command = tokio::process::Command::new(program);
    command.arg("-s").arg(servers.redis.socket_path());
    for (name, value) in [("--dbnum", DATABASE as u64), ("-c", clients as u64), ("-P", pipeline as u64), ("-n", calls)]
    {
        command.arg(name).arg(value.to_string());
    }
    // The largest range of users that redis-benchmark accepts.
    command.args(["-r", "2000000000", "--csv"]).args(call.command_args());
    let output = command.output().await?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "redis-benchmark: {printed}{}", String::from_utf8_lossy(&output.stderr));
    // "test","rps","avg_latency_ms","min","p50","p95","p99","max"
    let rate = printed.lines().last().and_then(|line| line.rsplit("\",\"").nth(6)?.parse().ok());
    let rate = rate.with_context(|| format!("redis-benchmark printed {printed:?}"))?;
    Ok((rate, (servers.cpu(0).redis - before) * 1e6 / calls as f64))
}

/// The program beside the Redis server, or one on the path.
fn redis_benchmark() -> Option<PathBuf> {
    let server = firstcome::dev::redis_server().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = server.parent().map(PathBuf::from).into_iter().chain(std::env::split_paths(&path));
    dirs.flat_map(|dir| ["redis-benchmark", "valkey-benchmark"].map(|name| dir.join(name))).find(|path| path.is_file())
}

/// Compares `appendfsync everysec` with `always`: the cost of losing no acknowledged decision with the machine.
pub async fn everysec(servers: &Servers, options: &Options, report: &mut Report) -> Result<()> {
    let service = servers.process(SERVE, &[])?;
    let users = Users { first: service.users(USERS, RICH).await?, count: USERS };
    let products = [service.product(1_000_000_000).await?];
    let mut link = servers.redis_link().await?;
    let mut rates: [[Vec<f64>; 2]; 2] = Default::default();
    let mut turn = 0;
    for round in 0..=options.rounds() {
        for (at, policy) in ["always", "everysec"].into_iter().enumerate() {
            redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg(policy).exec_async(&mut link).await?;
            let campaign = service.campaign(USERS).await?;
            let issue = loads::issue(campaign, |n| users.nth(n), 200);
            let order = loads::order(move |n| users.nth(turn + n), &products, 1, None, None);
            for (kind, load, numbers) in [(0, &issue, 0..USERS), (1, &order, 0..u64::MAX)] {
                servers.drain().await?;
                servers.tidy().await?;
                let round_of = client::run(service.address, CONNECTIONS, load, numbers, options.round()).await?;
                if round > 0 {
                    rates[kind][at].push(round_of.rate());
                }
            }
            servers.drain().await?;
            turn += 50_000;
        }
    }
    redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg("always").exec_async(&mut link).await?;
    report.heading("The effect of `appendfsync everysec`");
    report.text(&format!(
        "{CONNECTIONS} connections in a closed loop, projecting. With `everysec` a crash of the machine (not of the process) loses up \
         to a second of acknowledged decisions; the service refuses such a Redis by default."
    ));
    let lines: Vec<Vec<String>> = ["coupon issue", "order, 1 line"]
        .into_iter()
        .zip(&rates)
        .map(|(name, [always, everysec])| {
            let ratios: Vec<f64> = everysec.iter().zip(always).map(|(a, b)| a / b).collect();
            let rate = |rates: &[f64]| format!("{:.0}", median(rates.iter().copied()));
            vec![name.to_owned(), rate(always), rate(everysec), spread(&ratios)]
        })
        .collect();
    report.table(&["request", "always, per second", "everysec, per second", "everysec ÷ always"], &lines);
    Ok(())
}
