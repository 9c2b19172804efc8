//! What it costs that the outbox keeps committed events: bytes of Redis, and CPU.
//!
//! One service at a time, as only one may trim; a new campaign each round.

use anyhow::Result;
use firstcome::{model::Partition, redis::keys::Keys};

use crate::{
    Options,
    cpu::Cpu,
    loads::{self, RICH, Users},
    measure::{CONNECTIONS, Measured, measure},
    report::{Report, median, spread},
    servers::{SERVE, Servers},
    targets::{Target, Targets},
};

const USERS: u64 = 400_000;
/// `OUTBOX_KEEP_SECONDS`: nothing is kept; the default; and so short that a round trims what it kept.
const KEPT: [&str; 3] = ["0", "60", "1"];

#[derive(Default)]
struct KeptRounds {
    measured: Vec<Measured>,
    /// Bytes of the outbox per decision, after the round.
    bytes: Vec<f64>,
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let users = {
        let service = servers.process(SERVE, &[])?;
        let users = Users { first: service.users(USERS, RICH).await?, count: USERS };
        servers.drain().await?;
        users
    };
    let mut rounds: [KeptRounds; KEPT.len()] = Default::default();
    let (mut link, outbox) = (servers.redis_link().await?, Keys(Partition(0)).outbox());
    for round in 0..=options.rounds() {
        for (seconds, rounds) in KEPT.into_iter().zip(&mut rounds) {
            redis::cmd("XTRIM").arg(&outbox).arg("MAXLEN").arg(0).exec_async(&mut link).await?;
            let service = servers.process_with(SERVE, &[], &[("OUTBOX_KEEP_SECONDS", seconds)])?;
            let load = loads::issue(service.campaign(USERS).await?, |n| users.nth(n), 200);
            servers.drain().await?;
            let measured = measure(servers, &service, &load, 0..USERS, options.round()).await?;
            let mut usage = redis::cmd("MEMORY");
            usage.arg("USAGE").arg(&outbox).arg("SAMPLES").arg(0);
            let bytes: Option<f64> = usage.query_async(&mut link).await?;
            // The first round warms up.
            if round > 0 {
                rounds.bytes.push(bytes.unwrap_or(0.0) / measured.round.requests as f64);
                rounds.measured.push(measured);
            }
        }
    }
    table(&rounds, report, targets);
    Ok(())
}

fn table(rounds: &[KeptRounds; KEPT.len()], report: &mut Report, targets: &mut Targets) {
    report.heading("The outbox kept");
    report.text(&format!(
        "Coupon issues of {CONNECTIONS} connections, with committed events kept in the outbox for 0, 60 and 1 s (`OUTBOX_KEEP_SECONDS`), in \
         alternation. A round is shorter than 60 s, and trims nothing that is kept so long; the last row trims within the round. Bytes are \
         those of the outbox after the round, per decision of the round."
    ));
    let costs = |of: &KeptRounds| -> Vec<f64> { of.measured.iter().map(|one| one.per_request(Cpu::servers)).collect() };
    let mut lines = Vec::new();
    for (seconds, of) in KEPT.iter().zip(rounds) {
        let us = |part: fn(Cpu) -> f64| format!("{:.1}", median(of.measured.iter().map(|one| one.per_request(part))));
        let ratios: Vec<f64> = costs(of).iter().zip(costs(&rounds[0])).map(|(a, b)| a / b).collect();
        lines.push(vec![
            format!("{seconds} s"),
            format!("{:.0}", median(of.measured.iter().map(|one| one.round.rate()))),
            us(|cpu| cpu.service),
            us(|cpu| cpu.redis),
            us(|cpu| cpu.postgres),
            us(Cpu::servers),
            spread(&ratios),
            format!("{:.0}", median(of.bytes.iter().copied())),
        ]);
        if *seconds == "60" {
            let note = format!("{}; {:.0} bytes per decision", spread(&ratios), median(of.bytes.iter().copied()));
            targets.measured(Target::KeptOutboxCpu, median(ratios), note);
        }
    }
    let head =
        ["kept", "per second", "service µs", "Redis µs", "PostgreSQL µs", "sum µs", "× not kept", "bytes per decision"];
    report.table(&head, &lines);
}
