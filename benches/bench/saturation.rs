//! The highest rate of arrivals that the service keeps up with: an open load is raised until its p99 passes a limit, or requests are
//! dropped. Afterwards the audit compares both stores.

use std::time::Duration;

use anyhow::{Result, ensure};
use firstcome::dev::ScratchDir;
use serde_json::Value;

use crate::{
    Options, cpu,
    loads::{self, RICH, Users},
    open_loop::{self, Arrivals},
    replica,
    report::Report,
    servers::{Process, SERVE, Servers},
};

const USERS: u64 = 400_000;
const CONNECTIONS: usize = 1000;
/// The rate of a step, × that of the one before.
const STEP: f64 = 1.25;
const MAX_STEPS: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Issue,
    Order,
}

/// The loads: name, kind, and `ACK`.
const LOADS: [(&str, Kind, &str); 3] = [
    ("coupon issue, not replicated", Kind::Issue, "redis"),
    ("order of one product, not replicated", Kind::Order, "redis"),
    ("coupon issue, replicated", Kind::Issue, "replica"),
];

/// Arrivals at one rate.
struct RateStep {
    rate: f64,
    arrivals: Arrivals,
    /// Decisions that PostgreSQL did not have yet at the end.
    lag: i64,
    /// CPU of the load generator, in cores.
    generator: f64,
}

impl RateStep {
    fn ms(&self, share: f64) -> f64 {
        self.arrivals.latencies.value_at_quantile(share) as f64 / 1e3
    }

    fn kept_up(&self, max_p99_ms: u64) -> bool {
        self.ms(0.99) <= max_p99_ms as f64 && self.arrivals.dropped + self.arrivals.shed == 0
    }
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report) -> Result<()> {
    let dir = ScratchDir::new()?;
    let mut replica = None;
    let users = {
        let service = servers.process(SERVE, &[])?;
        let users = Users { first: service.users(USERS, RICH).await?, count: USERS };
        servers.drain().await?;
        users
    };
    report.heading("Saturation");
    report.text(&format!(
        "An open load: requests arrive at random at a fixed average rate on {CONNECTIONS} connections, whatever became of earlier ones, and \
         their latency counts from the moment that they should have been sent (corrected for coordinated omission; the generator's timer \
         adds up to 1 ms). Each step is {STEP} × the one before, until p99 passes {} ms or a request is dropped: not sent within a second, \
         or answered 429 or 503. Every reply is durable: `appendfsync always`, one machine; the replicated ones are also in the memory of a \
         replica (`ACK=replica`). The generator shares the cores.",
        options.max_p99_ms
    ));
    for (name, kind, ack) in LOADS {
        if ack == "replica" {
            replica = Some(replica::replica_of(servers, &dir).await?);
        }
        let service = servers.process_with(SERVE, &[], &[("ACK", ack)])?;
        let steps = step_up(servers, &service, users, kind, options).await?;
        servers.drain().await?;
        let audit = service.operate("GET", "/admin/v1/audit", Value::Null).await?;
        ensure!(audit["balanced"] == true, "the audit after the load: {audit}");
        table(name, &steps, options, report);
    }
    drop(replica);
    report.text("The audit of both stores after each load: 0 findings.");
    Ok(())
}

/// Raises the rate until the service does not keep up.
async fn step_up(
    servers: &Servers,
    service: &Process,
    users: Users,
    kind: Kind,
    options: &Options,
) -> Result<Vec<RateStep>> {
    let products = [service.product(1_000_000_000).await?];
    let duration = Duration::from_secs(if options.quick { 1 } else { 5 });
    let (mut rate, mut steps, mut turn) = (options.rate as f64, Vec::new(), 0);
    let mut warm = false;
    loop {
        let campaign = service.campaign(USERS).await?;
        let load = match kind {
            Kind::Issue => loads::issue(campaign, move |n| users.nth(n), 200),
            Kind::Order => loads::order(move |n| users.nth(turn + n), &products, 1, None, None),
        };
        servers.drain().await?;
        servers.tidy().await?;
        let spent = cpu::of(std::process::id());
        let arrivals = open_loop::offer(service.address, CONNECTIONS, &load, rate, duration).await?;
        let generator = (cpu::of(std::process::id()) - spent) / arrivals.seconds;
        let lag = servers.lag().await?;
        turn += arrivals.answered + arrivals.dropped + arrivals.shed;
        // The first step is repeated.
        if !std::mem::replace(&mut warm, true) {
            continue;
        }
        steps.push(RateStep { rate, arrivals, lag, generator });
        eprintln!("saturation: {rate:.0} per second done");
        let kept_up = steps.last().is_some_and(|step| step.kept_up(options.max_p99_ms));
        // Every issue needs its own user.
        let users_end = kind == Kind::Issue && rate * STEP * duration.as_secs_f64() > 0.9 * USERS as f64;
        if !kept_up || users_end || steps.len() == MAX_STEPS {
            return Ok(steps);
        }
        rate *= STEP;
    }
}

fn table(name: &str, steps: &[RateStep], options: &Options, report: &mut Report) {
    let highest = steps.iter().rev().find(|step| step.kept_up(options.max_p99_ms));
    report.text(&match highest {
        Some(step) => format!(
            "**{name}**: {:.0} per second with p50 {:.1}, p95 {:.1} and p99 {:.1} ms, 0 drops.",
            step.rate,
            step.ms(0.5),
            step.ms(0.95),
            step.ms(0.99)
        ),
        None => format!("**{name}**: not even {} per second.", options.rate),
    });
    let lines: Vec<Vec<String>> = steps
        .iter()
        .map(|step| {
            vec![
                format!("{:.0}", step.rate),
                format!("{:.0}", step.arrivals.answered as f64 / step.arrivals.seconds),
                format!("{:.1}", step.ms(0.5)),
                format!("{:.1}", step.ms(0.95)),
                format!("{:.1}", step.ms(0.99)),
                format!("{:.1}", step.ms(1.0)),
                (step.arrivals.dropped + step.arrivals.shed).to_string(),
                step.lag.to_string(),
                format!("{:.0} %", step.generator * 100.0),
            ]
        })
        .collect();
    let head = [
        "arrivals per second",
        "answered per second",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "max ms",
        "drops",
        "lag at the end",
        "generator, of a core",
    ];
    report.table(&head, &lines);
}
