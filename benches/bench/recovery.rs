//! A partition is lost while a service runs: how long until it sells again, step by step; and what the outbox costs that helps it.
//!
//! Three nodes of a cluster have a partition each. One node is killed and comes back without its data, as a machine whose disk is lost.
//! PostgreSQL has every decision, so that the service recovers the partition by itself (`RECOVERY=automatic`), and withholds nothing.

use std::{
    cell::{Cell, RefCell},
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use firstcome::{
    model::{Millis, Partition, Recovery, RecoveryOutcome},
    postgres::recoveries,
};
use sea_orm::DatabaseConnection;
use serde_json::Value;

use crate::{
    Options, client,
    loads::{self, RICH, Users},
    measure::CONNECTIONS,
    nodes::Layout,
    outbox,
    report::{Report, median, spread},
    servers::{self, Process, SERVE, Servers},
    targets::{Target, Targets},
};

const LAYOUT: Layout = Layout { partitions: 3, nodes: 3 };
const LOST: Partition = Partition(1);
const PARTITIONS: u64 = LAYOUT.partitions as u64;
const PRODUCTS: u64 = 48;
/// The pause between two attempts to order.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(20);
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// The steps, in their order, with what each is. Those of the rebuild are the service's own figures.
const STEPS: [(&str, &str); 8] = [
    ("detected", "the node is back, and a check of the service finds it empty"),
    ("words", "every process has said what it acknowledged, and PostgreSQL has it"),
    ("prepare", "the partitions are frozen and compared, with a pause in which every process notices"),
    ("empty", "what the partition has is removed"),
    ("read", "rows of PostgreSQL are read"),
    ("write", "they are written to Redis"),
    ("finish", "the rebuild projects its decisions, and opens the partition"),
    ("selling", "an order succeeds"),
];

/// The seconds of a loss.
struct Loss {
    steps: [f64; STEPS.len()],
    total: f64,
    /// The longest time without a success of an order in another partition.
    others_gap: f64,
}

pub async fn run(options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let size = if options.quick { 10_000 } else { 100_000 };
    let mut servers = Servers::start(LAYOUT).await?;
    let losses = if options.quick { 1 } else { options.rounds().min(3) };
    let mut measured = Vec::new();
    // As in production: the defaults of REDIS_TIMEOUT_MS.
    let service = servers.process_with(SERVE, &[], &[("REDIS_TIMEOUT_MS", "3000")])?;
    let shop = fill(&servers, &service, size).await?;
    for _ in 0..losses {
        measured.push(lose(&mut servers, &service, &shop).await?);
    }
    let audit = service.operate("GET", "/admin/v1/audit", Value::Null).await?;
    ensure!(audit["balanced"] == true, "the audit after the recoveries: {audit}");
    table(&measured, size, report);
    let totals: Vec<f64> = measured.iter().map(|loss| loss.total).collect();
    // A quick run has a smaller partition.
    if !options.quick {
        targets.measured(Target::RecoverySeconds, median(totals.iter().copied()), spread(&totals));
    }
    drop(service);
    drop(servers);
    outbox::run(&Servers::start(Layout::SMALLEST).await?, options, report, targets).await
}

struct Shop {
    users: Users,
    products: Vec<u64>,
}

/// Creates users, and an order of each, half of them paid: `size` of each in every partition.
async fn fill(servers: &Servers, service: &Process, size: u64) -> Result<Shop> {
    let count = size * PARTITIONS;
    let users = Users { first: service.users(count, RICH).await?, count };
    let mut products = Vec::new();
    for _ in 0..PRODUCTS {
        products.push(service.product(1_000_000_000).await?);
    }
    let placed = RefCell::default();
    let load = loads::order(move |n| users.nth(n), &products, 1, None, Some(&placed));
    client::run(service.address, CONNECTIONS, &load, 0..count, Duration::MAX).await?;
    eprintln!("recovery: {count} orders");
    drop(load);
    let due = placed.take();
    client::run(service.address, CONNECTIONS, &loads::pay(&due), 0..count / 2, Duration::MAX).await?;
    servers.drain().await?;
    servers.tidy().await?;
    Ok(Shop { users, products })
}

/// Loses the partition once, and waits until it sells again.
async fn lose(servers: &mut Servers, service: &Process, shop: &Shop) -> Result<Loss> {
    drain(servers).await?;
    let Servers { others, db, .. } = servers;
    let before = newest(db).await?.map(|recovery| recovery.id);
    let node = &mut others[LAYOUT.node_of(LOST) - 1];
    let (killed, killed_at) = (Instant::now(), servers::now());
    let longest_gap = Cell::new(Duration::ZERO);
    let lost = async {
        node.kill().await?;
        fs::remove_dir_all(node.data_dir().join("appendonlydir")).context("the node has no append-only file")?;
        node.restart().await?;
        until_selling(service, shop, LOST).await?;
        anyhow::Ok(killed.elapsed())
    };
    let others = async {
        let mut last = killed;
        loop {
            until_selling(service, shop, Partition(0)).await?;
            longest_gap.set(longest_gap.get().max(last.elapsed()));
            last = Instant::now();
            tokio::time::sleep(ATTEMPT_INTERVAL).await;
        }
        #[expect(unreachable_code, reason = "names the type of the error")]
        anyhow::Ok(Duration::ZERO)
    };
    let total = tokio::select! { total = lost => total?, failed = others => failed? };
    // Its end is written after the partition is open.
    let recovery = loop {
        let last = newest(db).await?.filter(|last| before.as_ref() != Some(&last.id));
        match last.filter(|last| last.ended_at.is_some()) {
            Some(recovery) => break recovery,
            None => tokio::time::sleep(ATTEMPT_INTERVAL).await,
        }
        ensure!(killed.elapsed() < RECOVERY_TIMEOUT, "the log has no recovery");
    };
    let withheld = recovery.withheld_units + recovery.withheld_coupons;
    ensure!(recovery.outcome == RecoveryOutcome::Complete && withheld == 0, "{recovery:?}");
    let metrics = client::read(service.address, "/metrics").await?;
    let step = |name: &str| -> Result<f64> {
        let series = format!("firstcome_rebuild_step_duration_seconds{{step=\"{name}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        Ok(value.with_context(|| format!("the service has no {series}"))?.parse()?)
    };
    let since = |from: Millis, to: Millis| (to.0 - from.0).max(0) as f64 / 1000.0;
    let mut steps = [0.0; STEPS.len()];
    for (seconds, (name, _)) in steps.iter_mut().zip(STEPS) {
        *seconds = match name {
            "detected" => since(killed_at, recovery.noticed_at),
            "words" => since(recovery.noticed_at, recovery.began_at),
            "selling" => {
                let until_end = since(killed_at, recovery.ended_at.unwrap_or(killed_at));
                (total.as_secs_f64() - until_end).max(0.0)
            }
            name => step(name)?,
        };
    }
    Ok(Loss { steps, total: total.as_secs_f64(), others_gap: longest_gap.get().as_secs_f64() })
}

/// Projects everything. After a loss, each connection of this process to the lost node fails at its next use.
async fn drain(servers: &Servers) -> Result<()> {
    let begun = Instant::now();
    while let Err(failure) = servers.drain().await {
        ensure!(begun.elapsed() < RECOVERY_TIMEOUT, "not drained: {failure}");
    }
    Ok(())
}

/// Orders until one succeeds: a product of this partition, by a user of it.
async fn until_selling(service: &Process, shop: &Shop, here: Partition) -> Result<()> {
    let (begun, wanted) = (Instant::now(), u64::from(here.0));
    let user = (shop.users.first..).find(|user| user % PARTITIONS == wanted).context("no user")?;
    let product = shop.products.iter().copied().find(|product| product % PARTITIONS == wanted).context("no product")?;
    let products = [product];
    let load = loads::order(|_| user, &products, 1, None, None);
    while client::ask_once(service.address, &load, 0, ATTEMPT_TIMEOUT).await != Some(200) {
        ensure!(begun.elapsed() < RECOVERY_TIMEOUT, "partition {} does not sell", here.0);
        tokio::time::sleep(ATTEMPT_INTERVAL).await;
    }
    Ok(())
}

async fn newest(db: &DatabaseConnection) -> Result<Option<Recovery>> {
    Ok(recoveries::page(db, 0, 1).await?.items.pop())
}

fn table(losses: &[Loss], size: u64, report: &mut Report) {
    report.heading("Recovery of a lost partition");
    report.text(&format!(
        "Three partitions, each on its node of a cluster, each with {size} users and {size} orders, half of them paid. One node is killed and \
         comes back empty, while clients order in its partition and in another one. Seconds from the kill; medians of {} losses.",
        losses.len()
    ));
    let seconds = |of: &dyn Fn(&Loss) -> f64| spread(&losses.iter().map(of).collect::<Vec<_>>());
    let mut lines = Vec::new();
    for (at, (name, meaning)) in STEPS.iter().enumerate() {
        lines.push(vec![format!("{name}: {meaning}"), seconds(&|loss| loss.steps[at])]);
    }
    lines.push(vec!["**until it sells again**".to_owned(), seconds(&|loss| loss.total)]);
    lines.push(vec!["longest time without a sale in another partition".to_owned(), seconds(&|loss| loss.others_gap)]);
    report.table(&["step", "seconds"], &lines);
}
