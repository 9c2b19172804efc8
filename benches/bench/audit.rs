//! The rebuild and the audit of a large store, by the program's own code in processes of their own: seconds, and the CPU of each
//! process. Then what an audit costs the clients of a service meanwhile.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use firstcome::{
    audit::{Audit, AuditTracker},
    config::{ProjectorConfig, RedisDurability, RetentionConfig},
    model::Clock,
    postgres,
    projector::Projector,
    recovery::rebuild::{Rebuild, RebuildOptions},
    redis::Store,
};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::{
    Options, cpu,
    loads::{self, Users},
    measure::{Measured, measure_with},
    report::{Report, median, spread},
    servers::{self, AUDIT, REBUILD, SERVE, Servers},
};

/// Concurrent clients beside the audit.
const CLIENTS: usize = 64;
const BALANCE: i64 = 1_000_000;

/// Seconds, of the wall clock and of CPU, and the peak of the memory in MiB.
struct Run {
    seconds: f64,
    program: f64,
    redis: f64,
    postgres: f64,
    peak_mib: f64,
    rows: i64,
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report) -> Result<()> {
    let (users, entries) = options.large_store();
    fill(servers, users, entries).await?;
    eprintln!("audit: {users} users and {entries} balance entries are in PostgreSQL");
    let rebuild = role(servers, REBUILD).await?;
    let mut audits = Vec::new();
    for _ in 0..options.rounds().min(3) {
        audits.push(role(servers, AUDIT).await?);
    }
    report.heading("Rebuild and audit of a large store");
    report.text(&format!(
        "{users} users and {entries} balance entries, one partition, no other load. Seconds; medians of {} audits.",
        audits.len()
    ));
    let line = |name: &str, runs: &[Run]| {
        let of = |value: fn(&Run) -> f64| median(runs.iter().map(value));
        let cpu = of(|run| run.program + run.redis + run.postgres);
        vec![
            name.to_owned(),
            format!("{}", runs.first().map_or(0, |run| run.rows)),
            format!("{:.1}", of(|run| run.seconds)),
            format!("{cpu:.1}"),
            format!("{:.1}, {:.1}, {:.1}", of(|run| run.program), of(|run| run.redis), of(|run| run.postgres)),
            format!("{:.0}", of(|run| run.peak_mib)),
        ]
    };
    let lines = [line("rebuild", std::slice::from_ref(&rebuild)), line("audit", &audits)];
    let head = [
        "",
        "rows, or users",
        "seconds",
        "CPU seconds",
        "of the program, Redis, PostgreSQL",
        "peak of the program, MiB",
    ];
    report.table(&head, &lines);
    beside_clients(servers, options, users, report).await
}

/// Writes the rows of the store as the projector does.
async fn fill(servers: &Servers, users: u64, entries: u64) -> Result<()> {
    let statements = [
        "INSERT INTO store (store, partitions, ack) VALUES ('large', 1, 'postgres')".to_owned(),
        "INSERT INTO projection_positions (partition, epoch, seq, stream_id) VALUES (0, 1, 5000000, '1772427600000-0')"
            .into(),
        format!(
            "INSERT INTO users SELECT n, '손님' || n, CASE WHEN n <= {entries} THEN {BALANCE} ELSE 0 END, now()
             FROM generate_series(1, {users}) AS n"
        ),
        format!(
            "INSERT INTO balance_entries SELECT n, 1, 'CHARGE', {BALANCE}, 0, {BALANCE}, NULL, now()
             FROM generate_series(1, {entries}) AS n"
        ),
        "ANALYZE".into(),
    ];
    for statement in statements {
        sqlx::query(AssertSqlSafe(statement)).execute(servers.db.get_postgres_connection_pool()).await?;
    }
    Ok(())
}

/// Runs this program in a role to its end.
async fn role(servers: &Servers, role: &str) -> Result<Run> {
    let (redis, postgres, children) = (servers.cpu_of_nodes(), servers.postgres_cpu(), cpu::of(std::process::id()));
    let began = Instant::now();
    let output = tokio::task::spawn_blocking({
        let mut command = Command::new(std::env::current_exe()?);
        servers.with_servers(command.arg(role), "firstcome").stdin(Stdio::null()).stderr(Stdio::inherit());
        move || command.output()
    });
    let output = output.await??;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{role} failed");
    let said: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| said[name].as_f64().with_context(|| format!("{role} says no {name}"));
    Ok(Run {
        seconds,
        // Of the reaped child. This process only waited.
        program: cpu::of(std::process::id()) - children,
        redis: servers.cpu_of_nodes().iter().sum::<f64>() - redis.iter().sum::<f64>(),
        postgres: servers.postgres_cpu() - postgres,
        peak_mib: number("peakMib")?,
        rows: number("rows")? as i64,
    })
}

/// A child that audits again and again, until it is dropped.
struct Auditing(Child);

impl Auditing {
    fn start(servers: &Servers) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        servers.with_servers(command.arg(AUDIT).arg("again"), "firstcome");
        Ok(Auditing(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }
}

impl Drop for Auditing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Charges by a closed loop of clients, with an audit and without one in alternation.
async fn beside_clients(servers: &Servers, options: &Options, count: u64, report: &mut Report) -> Result<()> {
    let service = servers.process(SERVE, &[])?;
    let users = Users { first: 1, count };
    let load = loads::charge(move |n| users.scattered(n));
    let mut rounds: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
    for round in 0..=options.rounds() {
        for (audited, rounds) in [false, true].into_iter().zip(&mut rounds) {
            servers.drain().await?;
            let auditing = if audited { Some(Auditing::start(servers)?) } else { None };
            let measured =
                measure_with(CLIENTS, servers, &service, &load, 0..u64::MAX, options.round() + Duration::from_secs(1))
                    .await?;
            drop(auditing);
            if round > 0 {
                rounds.push(measured);
            }
        }
    }
    let [alone, beside] = rounds;
    let ratios = |of: fn(&Measured) -> f64| {
        let ratios: Vec<f64> = beside.iter().zip(&alone).map(|(beside, alone)| of(beside) / of(alone)).collect();
        ratios
    };
    let p50 = ratios(|one| one.round.percentile(0.5));
    let p99 = ratios(|one| one.round.percentile(0.99));
    report.text(&format!(
        "{CLIENTS} clients charge balances meanwhile, with audits and without in alternation: latency with ÷ without is {} at p50 and {} \
         at p99, the rate {}. The audit takes a part of the same cores.",
        spread(&p50),
        spread(&p99),
        spread(&ratios(|one| one.round.rate()))
    ));
    Ok(())
}

/// The role that audits the stores of the environment: once, or `again` and again.
pub async fn audit_role(again: bool) -> Result<()> {
    loop {
        let (store, db) = connect().await?;
        let clock = Clock::system();
        let tracker = AuditTracker::new(clock.now());
        let audit = Audit { store, db, clock, zone: chrono_tz::Asia::Seoul, tracker: tracker.clone() };
        let report = audit.run().await?;
        ensure!(report.balanced || again, "the books do not balance:\n{report}");
        if !again {
            return say(tracker.progress().items);
        }
    }
}

/// The role that rebuilds Redis of the environment.
pub async fn rebuild_role() -> Result<()> {
    let (store, db) = connect().await?;
    let (clock, retention) = (Clock::system(), RetentionConfig::default().retention());
    let projector = Projector::new(
        store.clone(),
        db.clone(),
        clock.clone(),
        &ProjectorConfig::default(),
        Duration::from_secs(600),
        retention,
    );
    let rebuild = Rebuild {
        store,
        db,
        projector,
        clock,
        zone: chrono_tz::Asia::Seoul,
        retention,
        durability: RedisDurability::Asserted,
        barrier: None,
        log: Default::default(),
    };
    say(rebuild.run(RebuildOptions::default()).await?.rows)
}

async fn connect() -> Result<(Store, sea_orm::DatabaseConnection)> {
    let store = Store::connect(&servers::redis_config(std::env::var("REDIS_URL")?)).await?;
    Ok((store, postgres::connect(&servers::postgres_config(std::env::var("DATABASE_URL")?)).await?))
}

/// Tells the parent process what this one did.
fn say(rows: i64) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("{}", json!({ "rows": rows, "peakMib": kib / 1024.0 }));
    Ok(())
}
