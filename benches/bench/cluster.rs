//! Several partitions, on one server and on a cluster: what each kind of request costs compared with one partition, and how evenly the
//! nodes share the work.
//!
//! Each layout has stores and a service of its own. Only the service that is measured runs; the others are paused.

use std::{cell::RefCell, time::Duration};

use anyhow::Result;

use crate::{
    Options,
    cpu::Cpu,
    loads::{self, RICH, Users},
    measure::{Measured, measure_with},
    nodes::Layout,
    report::{Report, median, spread},
    servers::{Process, SERVE, Servers},
    targets::{Target, Targets},
};

const CONNECTIONS: usize = 128;

/// The first is the one that the others are compared with.
const LAYOUTS: [Layout; 6] = [
    Layout::SMALLEST,
    Layout { partitions: 3, nodes: 1 },
    Layout { partitions: 16, nodes: 1 },
    Layout { partitions: 1, nodes: 3 },
    Layout { partitions: 3, nodes: 3 },
    Layout { partitions: 16, nodes: 3 },
];
const MANY: Layout = LAYOUTS[2];
const MANY_ON_CLUSTER: Layout = LAYOUTS[5];

/// Products of the load that is spread: each partition of each layout has as many as the others.
const PRODUCTS: u64 = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    HotOrder,
    Pay,
    Order,
    Issue,
    Charge,
}

/// Payments follow the orders that they pay.
const KINDS: [(&str, Kind); 5] = [
    ("order, one product", Kind::HotOrder),
    ("pay", Kind::Pay),
    ("order, 48 products", Kind::Order),
    ("coupon issue, one campaign", Kind::Issue),
    ("balance charge", Kind::Charge),
];

/// A store of one layout, with its service.
struct Shop {
    servers: Servers,
    service: Process,
    users: Users,
    products: Vec<u64>,
    unpaid: loads::Unpaid,
    /// The next user to order or to be charged.
    turn: u64,
    /// By kind.
    rounds: [Vec<Measured>; KINDS.len()],
    /// By kind: the share of the busiest node in the CPU of Redis, round by round.
    shares: [Vec<f64>; KINDS.len()],
}

pub async fn run(options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let mut shops = Vec::new();
    for layout in LAYOUTS {
        shops.push(Shop::open(layout, if options.quick { 20_000 } else { 100_000 }).await?);
    }
    let duration = options.round().min(Duration::from_secs(1));
    for round in 0..=options.rounds().min(3) {
        for at in 0..KINDS.len() {
            for shop in &mut shops {
                shop.service.resume()?;
                // What its timers missed.
                tokio::time::sleep(Duration::from_millis(300)).await;
                let (measured, share) = shop.ask(at, duration).await?;
                shop.service.pause()?;
                // The first round warms up.
                if round > 0 {
                    shop.rounds[at].push(measured);
                    shop.shares[at].push(share);
                }
            }
        }
        eprintln!("cluster: round {round} done");
    }
    table(&shops, report);
    record_targets(&shops, targets);
    Ok(())
}

impl Shop {
    /// With its service paused.
    async fn open(layout: Layout, count: u64) -> Result<Shop> {
        let servers = Servers::start(layout).await?;
        let service = servers.process(SERVE, &[])?;
        let users = Users { first: service.users(count, RICH).await?, count };
        let mut products = Vec::new();
        for _ in 0..PRODUCTS {
            products.push(service.product(1_000_000_000).await?);
        }
        servers.drain().await?;
        service.pause()?;
        let (rounds, shares) = Default::default();
        Ok(Shop { servers, service, users, products, unpaid: RefCell::default(), turn: 0, rounds, shares })
    }

    /// A round of a kind, and the share of the busiest node in the CPU of Redis.
    async fn ask(&mut self, at: usize, duration: Duration) -> Result<(Measured, f64)> {
        let (kind, users, turn) = (KINDS[at].1, self.users, self.turn);
        let next = move |n: u64| users.nth(turn + n);
        let mut numbers = 0..u64::MAX;
        let (mut campaign, mut due) = (0, Vec::new());
        match kind {
            Kind::Issue => {
                campaign = self.service.campaign(users.count).await?;
                numbers = 0..users.count;
            }
            Kind::Pay => {
                due = self.unpaid.take();
                numbers = 0..due.len() as u64;
            }
            _ => {}
        }
        let load = match kind {
            Kind::HotOrder => loads::order(next, &self.products[..1], 1, None, Some(&self.unpaid)),
            Kind::Pay => loads::pay(&due),
            Kind::Order => loads::order(next, &self.products, 1, None, None),
            Kind::Issue => loads::issue(campaign, move |n| users.nth(n), 200),
            Kind::Charge => loads::charge(next),
        };
        self.servers.drain().await?;
        self.servers.tidy().await?;
        let before = self.servers.cpu_of_nodes();
        let measured = measure_with(CONNECTIONS, &self.servers, &self.service, &load, numbers, duration).await?;
        let spent: Vec<f64> =
            self.servers.cpu_of_nodes().iter().zip(before).map(|(after, before)| after - before).collect();
        drop(load);
        self.turn += measured.round.requests;
        Ok((measured, spent.iter().copied().fold(0.0, f64::max) / spent.iter().sum::<f64>()))
    }

    /// CPU-µs per request of a kind, round by round.
    fn costs(&self, kind: Kind) -> Vec<f64> {
        let of = KINDS.iter().position(|(_, one)| *one == kind).unwrap_or_default();
        self.rounds[of].iter().map(|measured| measured.per_request(Cpu::servers)).collect()
    }
}

fn ratios(costs: &[f64], to: &[f64]) -> Vec<f64> {
    costs.iter().zip(to).map(|(a, b)| a / b).collect()
}

fn sums(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn table(shops: &[Shop], report: &mut Report) {
    report.heading("Many partitions, and a cluster");
    report.text(&format!(
        "{CONNECTIONS} connections in a closed loop. CPU-µs are per request, until PostgreSQL has every decision; × one partition compares \
         their sum with that of one partition on one server in the same round. The last column is the part of Redis's CPU that the busiest \
         node used: of three nodes, at least 33 %. All nodes share the cores of this machine."
    ));
    let mut lines = Vec::new();
    for (at, (name, kind)) in KINDS.iter().enumerate() {
        for shop in shops {
            let us = |of: fn(Cpu) -> f64| median(shop.rounds[at].iter().map(|measured| measured.per_request(of)));
            lines.push(vec![
                format!("{name}: {}", place(shop)),
                format!("{:.0}", median(shop.rounds[at].iter().map(|measured| measured.round.rate()))),
                format!("{:.1}", us(|cpu| cpu.service)),
                format!("{:.1}", us(|cpu| cpu.redis)),
                format!("{:.1}", us(|cpu| cpu.postgres)),
                format!("{:.1}", us(Cpu::servers)),
                spread(&ratios(&shop.costs(*kind), &shops[0].costs(*kind))),
                format!("{:.0} %", 100.0 * median(shop.shares[at].iter().copied())),
            ]);
        }
    }
    let both = |shop: &Shop| sums(&shop.costs(Kind::HotOrder), &shop.costs(Kind::Pay));
    for shop in shops {
        let mut line = vec![format!("order and its payment, one product: {}", place(shop))];
        line.extend(["–"; 4].map(str::to_owned));
        line.push(format!("{:.1}", median(both(shop))));
        line.push(spread(&ratios(&both(shop), &both(&shops[0]))));
        line.push("–".to_owned());
        lines.push(line);
    }
    let head = [
        "request",
        "per second",
        "service µs",
        "Redis µs",
        "PostgreSQL µs",
        "sum µs",
        "× one partition",
        "busiest node",
    ];
    report.table(&head, &lines);
}

fn place(shop: &Shop) -> String {
    let Layout { partitions, nodes } = shop.servers.layout;
    format!("{partitions} on {nodes} node{}", if nodes == 1 { "" } else { "s" })
}

fn record_targets(shops: &[Shop], targets: &mut Targets) {
    let of = |layout: Layout| shops.iter().find(|shop| shop.servers.layout == layout);
    if let Some(many) = of(MANY) {
        for (target, kind) in [
            (Target::PartitionsOrderCpu, Kind::HotOrder),
            (Target::PartitionsIssueCpu, Kind::Issue),
            (Target::PartitionsChargeCpu, Kind::Charge),
        ] {
            let ratios = ratios(&many.costs(kind), &shops[0].costs(kind));
            targets.measured(target, median(ratios.iter().copied()), spread(&ratios));
        }
    }
    if let Some(cluster) = of(MANY_ON_CLUSTER) {
        let shares: Vec<f64> = cluster.shares[0].iter().map(|share| 100.0 * share).collect();
        targets.measured(
            Target::NodeShare,
            median(shares.iter().copied()),
            format!("{}; 16 partitions", spread(&shares)),
        );
    }
}
