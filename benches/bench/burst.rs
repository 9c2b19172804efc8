//! A burst: thousands of clients connect at once and send one request each.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    Options,
    client::{self, Round},
    loads::{self, RICH, Users},
    report::{Report, median, spread},
    servers::{SERVE, Servers},
    targets::{Target, Targets},
};

/// File descriptors of this process and of the service that are not connections.
const OTHER_FILES: u64 = 200;

/// Raises the limit of open files of this process and its children to the hard limit.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    // `run` reads the limit that results.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Connections since the start of the kernel that did not fit a listener's backlog.
fn listen_overflows() -> Result<u64> {
    let counters = std::fs::read_to_string("/proc/net/netstat")?;
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("/proc/net/netstat has no TcpExt")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, overflows) = pairs.find(|(name, _)| *name == "ListenOverflows").context("no ListenOverflows")?;
    Ok(overflows.parse()?)
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    report.heading("A burst");
    let allowed =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files.saturating_sub(OTHER_FILES) as usize);
    let people = options.crowd.min(allowed);
    if people < options.crowd {
        report.text(&format!(
            "**Scaled down**: {people} connections instead of {}: this process may not have more files open \
             (`ulimit -n`).",
            options.crowd
        ));
    }
    let service = servers.process(SERVE, &[])?;
    let users = Users { first: service.users(people as u64, RICH).await?, count: people as u64 };
    let products = [service.product(1_000_000_000).await?];
    let kinds = ["baseline: POST", "coupon issue", "order, 1 line"];
    let rounds: [RefCell<Vec<Round>>; 3] = Default::default();
    let (mut from, overflows) = (Ipv4Addr::new(127, 0, 1, 0), listen_overflows()?);
    for round in 0..=options.rounds() {
        let campaign = service.campaign(people as u64).await?;
        let loads = [
            loads::baseline_post(move |n| users.nth(n)),
            loads::issue(campaign, move |n| users.nth(n), 200),
            loads::order(move |n| users.nth(n), &products, 1, None, None),
        ];
        for (load, rounds) in loads.iter().zip(&rounds) {
            servers.drain().await?;
            servers.tidy().await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            from = Ipv4Addr::from_bits(from.to_bits() + 1);
            let all = client::rush(service.address, IpAddr::V4(from), people, load).await?;
            if round > 0 {
                rounds.borrow_mut().push(all);
            }
        }
    }
    servers.drain().await?;
    report.text(&format!(
        "{people} clients connect at once and send one request each, as fast as one thread can. Milliseconds from the start of \
         a client's connect to the last byte of its reply; medians of {} bursts. Connections that found the listener's backlog \
         full (each waits for a second): {}.",
        options.rounds(),
        listen_overflows()? - overflows
    ));
    let mut lines = Vec::new();
    for (name, rounds) in kinds.into_iter().zip(&rounds) {
        let rounds = rounds.borrow();
        let ms = |share: f64| median(rounds.iter().map(|round| round.percentile(share) / 1e3));
        let tails: Vec<f64> = rounds.iter().map(|round| round.percentile(0.99) / round.percentile(0.5)).collect();
        lines.push(vec![
            name.to_owned(),
            format!("{:.0}", ms(0.5)),
            format!("{:.0}", ms(0.9)),
            format!("{:.0}", ms(0.99)),
            format!("{:.0}", ms(1.0)),
            spread(&tails),
            format!("{:.0}", median(rounds.iter().map(|round| round.seconds * 1e3))),
        ]);
        if name == "coupon issue" {
            targets.measured(Target::BurstTail, median(tails), format!("{people} connections"));
        }
    }
    report.table(&["request", "p50 ms", "p90 ms", "p99 ms", "max ms", "p99 ÷ p50", "all answered, ms"], &lines);
    Ok(())
}
