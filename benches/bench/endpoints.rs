//! Each kind of request over HTTP, in alternation with the baseline and the lock-based designs.
//!
//! The CPU time of a round ends when PostgreSQL has every decision; the rate counts only the time until the last reply.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    time::Duration,
};

use anyhow::Result;

use crate::{
    Options,
    client::{self, Load},
    cpu::Cpu,
    loads::{self, RICH, Users},
    lock_based,
    measure::{CONNECTIONS, Measured, measure},
    report::{Report, median, spread},
    servers::{LOCK_BASED, Process, SERVE, Servers},
    targets::{Target, Targets},
};

/// Distinct users, and the maximum of requests in a round where each needs its own user.
const USERS: u64 = 400_000;

/// The kinds of request, in the order of the table.
const KINDS: &[(&str, Kind)] = &[
    ("baseline: POST", Kind::BaselinePost),
    ("coupon issue", Kind::Issue),
    ("coupon issue, sold out", Kind::SoldOut),
    ("coupon issue, holds one", Kind::HoldsOne),
    ("balance charge", Kind::Charge),
    ("order, 1 line", Kind::Order { lines: 1, coupon: false }),
    ("order, window and limit", Kind::OrderWithTerms),
    ("pay", Kind::Pay),
    ("order paid in one step", Kind::Checkout),
    ("order, 1 line with coupon", Kind::Order { lines: 1, coupon: true }),
    ("order, 5 lines", Kind::Order { lines: 5, coupon: false }),
    ("baseline: GET", Kind::BaselineGet),
    ("product", Kind::Product),
    ("popular products", Kind::Popular),
    ("balance", Kind::Balance),
    ("coupons of a user", Kind::Coupons),
    ("PG lock: coupon issue", Kind::LockedIssue { redis: false }),
    ("PG lock: balance charge", Kind::LockedCharge { redis: false }),
    ("PG lock: order, 1 line", Kind::LockedOrder { redis: false }),
    ("PG lock: pay", Kind::LockedPay { redis: false }),
    ("Redis lock: coupon issue", Kind::LockedIssue { redis: true }),
    ("Redis lock: balance charge", Kind::LockedCharge { redis: true }),
    ("Redis lock: order, 1 line", Kind::LockedOrder { redis: true }),
    ("Redis lock: pay", Kind::LockedPay { redis: true }),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    BaselinePost,
    BaselineGet,
    Issue,
    SoldOut,
    HoldsOne,
    Charge,
    Order { lines: u64, coupon: bool },
    OrderWithTerms,
    Pay,
    Checkout,
    Product,
    Popular,
    Balance,
    Coupons,
    LockedIssue { redis: bool },
    LockedCharge { redis: bool },
    LockedOrder { redis: bool },
    LockedPay { redis: bool },
}

/// The rounds of one kind of request.
pub struct Row {
    pub name: &'static str,
    rounds: Vec<Measured>,
}

impl Row {
    pub fn rate(&self) -> f64 {
        median(self.rounds.iter().map(|m| m.round.rate()))
    }

    /// CPU-µs per request.
    pub fn us(&self, of: fn(Cpu) -> f64) -> f64 {
        median(self.rounds.iter().map(|m| m.per_request(of)))
    }

    fn ms(&self, share: f64) -> f64 {
        median(self.rounds.iter().map(|m| m.round.percentile(share) / 1e3))
    }

    /// The ratio of two kinds, round by round.
    pub fn ratio(&self, to: &Row, of: fn(&Measured) -> f64) -> Vec<f64> {
        self.rounds.iter().zip(&to.rounds).map(|(a, b)| of(a) / of(b)).collect()
    }
}

/// The data that the requests refer to.
struct Shop {
    users: Users,
    products: Vec<u64>,
    /// As many products, with a window and a limit of their group.
    products_with_terms: Vec<u64>,
    /// The products of the lock-based designs.
    lock_based_products: Vec<u64>,
    /// A sold-out campaign, issued to the first `GIVEN` users.
    sold_out: u64,
    /// Orders to be paid; key: whether they belong to a lock-based design.
    unpaid: HashMap<bool, loads::Unpaid>,
    /// The next user to order or to be charged.
    turn: Cell<u64>,
}

const GIVEN: u64 = 1000;

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let service = servers.process(SERVE, &[])?;
    let shop = prepare(servers, &service).await?;
    let lock_based_url = servers.postgres.url("lock_based");
    let lock_based = if KINDS.iter().any(|(name, kind)| options.wants(name) && is_lock_based(*kind)) {
        let data = lock_based::prepare(&lock_based_url, USERS, RICH).await?;
        anyhow::ensure!(data.first_user == 1 && data.product == 1, "the ids of the lock-based data do not start at 1");
        Some([servers.process(LOCK_BASED, &["postgres"])?, servers.process(LOCK_BASED, &["redis"])?])
    } else {
        None
    };
    let mut rows: Vec<Row> = KINDS
        .iter()
        .filter(|(name, _)| options.wants(name))
        .map(|(name, _)| Row { name, rounds: Vec::new() })
        .collect();
    let mut campaigns = 1_000_000;
    for round in 0..=options.rounds() {
        for row in &mut rows {
            let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == row.name) else { continue };
            let process = match (kind, &lock_based) {
                (
                    Kind::LockedIssue { redis }
                    | Kind::LockedCharge { redis }
                    | Kind::LockedOrder { redis }
                    | Kind::LockedPay { redis },
                    Some(lock_based),
                ) => &lock_based[usize::from(*redis)],
                _ => &service,
            };
            campaigns += 1;
            if let Kind::LockedIssue { .. } = kind {
                lock_based::campaign(&lock_based_url, campaigns, USERS).await?;
            }
            let measured = one(servers, process, &shop, *kind, campaigns, options).await?;
            // The first round warms up.
            if round > 0 {
                row.rounds.push(measured);
            }
        }
        eprintln!("endpoints: round {round} of {} done", options.rounds());
    }
    table(&rows, report);
    record_targets(&rows, targets);
    Ok(())
}

fn is_lock_based(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::LockedIssue { .. } | Kind::LockedCharge { .. } | Kind::LockedOrder { .. } | Kind::LockedPay { .. }
    )
}

async fn prepare(servers: &Servers, service: &Process) -> Result<Shop> {
    let users = Users { first: service.users(USERS, RICH).await?, count: USERS };
    let (mut products, mut products_with_terms) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        products.push(service.product(1_000_000_000).await?);
        products_with_terms.push(service.product_with_terms(1_000_000_000).await?);
    }
    let sold_out = service.campaign(GIVEN).await?;
    let winners = loads::issue(sold_out, |n| users.nth(n), 200);
    client::run(service.address, CONNECTIONS, &winners, 0..GIVEN, Duration::MAX).await?;
    servers.drain().await?;
    let unpaid = [(false, RefCell::default()), (true, RefCell::default())].into();
    let (lock_based_products, turn) = ((1..=10).collect(), Cell::new(0));
    Ok(Shop { users, products, products_with_terms, lock_based_products, sold_out, unpaid, turn })
}

/// A round of one kind. Creates the data that it needs before the clock starts.
async fn one(
    servers: &Servers,
    process: &Process,
    shop: &Shop,
    kind: Kind,
    campaign: u64,
    options: &Options,
) -> Result<Measured> {
    let users = if is_lock_based(kind) { Users { first: 1, ..shop.users } } else { shop.users };
    let products = if is_lock_based(kind) { &shop.lock_based_products } else { &shop.products };
    let unpaid = &shop.unpaid[&is_lock_based(kind)];
    let turn = shop.turn.get();
    let next = move |n: u64| users.nth(turn + n);
    let mut numbers = 0..u64::MAX;
    let mut campaign = campaign;
    let mut due = Vec::new();
    match kind {
        Kind::Issue => {
            campaign = process.campaign(USERS).await?;
            numbers = 0..USERS;
        }
        Kind::LockedIssue { .. } => numbers = 0..USERS,
        Kind::Order { coupon: true, .. } => {
            // The first users get a coupon of a new campaign.
            campaign = process.campaign(USERS).await?;
            let winners = loads::issue(campaign, |n| users.nth(n), 200);
            let given = client::run(process.address, CONNECTIONS, &winners, 0..USERS, options.round()).await?;
            numbers = 0..given.requests / 2;
        }
        Kind::Pay | Kind::LockedPay { .. } => {
            due = unpaid.take();
            anyhow::ensure!(!due.is_empty(), "no order to pay: include the row of orders with the row of payments");
            numbers = 0..due.len() as u64;
        }
        _ => {}
    }
    servers.drain().await?;
    let load = match kind {
        Kind::BaselinePost => loads::baseline_post(next),
        Kind::BaselineGet => loads::gets(move |n| format!("/baseline/products/{}", n % 10 + 1)),
        Kind::Product => loads::gets(|n| format!("/api/v1/products/{}", products[(n % 10) as usize])),
        Kind::Popular => loads::gets(|_| "/api/v1/products/popular?sortBy=THREE_DAYS".to_owned()),
        Kind::Balance => loads::gets(move |n| format!("/api/v1/balances/{}", next(n))),
        Kind::Coupons => loads::gets(move |n| format!("/api/v1/coupons/{}", next(n))),
        Kind::Issue | Kind::LockedIssue { .. } => loads::issue(campaign, move |n| users.nth(n), 200),
        Kind::SoldOut => loads::issue(shop.sold_out, move |n| users.first + GIVEN + n % (USERS - GIVEN), 409),
        Kind::HoldsOne => loads::issue(shop.sold_out, move |n| users.first + n % GIVEN, 400),
        Kind::Charge | Kind::LockedCharge { .. } => {
            let request = move |n, request: &mut Vec<u8>| {
                client::send("PUT", &format!("/api/v1/balances/{}", next(n)), "{\"amount\":1000}", request);
            };
            Load { request: Box::new(request), status: 200, body: None }
        }
        // The first users have the coupons.
        Kind::Order { lines, coupon: true } => {
            loads::order(move |n| users.nth(n), products, lines, Some(campaign), None)
        }
        Kind::Order { lines, coupon: false } => {
            loads::order(next, products, lines, None, (lines == 1).then_some(unpaid))
        }
        Kind::OrderWithTerms => loads::order(next, &shop.products_with_terms, 1, None, None),
        Kind::Checkout => loads::checkout(next, products),
        Kind::LockedOrder { .. } => loads::order(next, products, 1, None, Some(unpaid)),
        Kind::Pay | Kind::LockedPay { .. } => loads::pay(&due),
    };
    let measured = measure(servers, process, &load, numbers, options.round()).await?;
    shop.turn.set(turn + measured.round.requests);
    Ok(measured)
}

/// Records the targets that are ratios to the baseline.
fn record_targets(rows: &[Row], targets: &mut Targets) {
    let find = |name: &str| rows.iter().find(|row| row.name == name);
    let mut record = |target, ratios: Vec<f64>| {
        let (min, max) = ratios.iter().fold((f64::MAX, f64::MIN), |(a, b), ratio| (a.min(*ratio), b.max(*ratio)));
        targets.measured(target, median(ratios), format!("{min:.2}–{max:.2} by round"));
    };
    if let Some(baseline) = find("baseline: POST") {
        if let Some(issue) = find("coupon issue") {
            record(Target::IssueCpu, issue.ratio(baseline, |m| m.per_request(Cpu::servers)));
        }
        if let (Some(order), Some(pay)) = (find("order, 1 line"), find("pay")) {
            let cpu = |row: &Row| row.ratio(baseline, |m| m.per_request(Cpu::servers));
            record(Target::OrderPayCpu, cpu(order).iter().zip(cpu(pay)).map(|(order, pay)| order + pay).collect());
        }
        if let Some(checkout) = find("order paid in one step") {
            record(Target::CheckoutCpu, checkout.ratio(baseline, |m| m.per_request(Cpu::servers)));
        }
        if let Some(sold_out) = find("coupon issue, sold out") {
            record(Target::SoldOutRate, sold_out.ratio(baseline, |m| m.round.rate()));
        }
    }
    if let Some(order) = find("order, 1 line") {
        if let Some(checkout) = find("order paid in one step") {
            record(Target::CheckoutOfOrder, checkout.ratio(order, |m| m.per_request(Cpu::servers)));
        }
        if let Some(terms) = find("order, window and limit") {
            let redis = |row: &Row| row.rounds.iter().map(|m| m.per_request(|cpu| cpu.redis)).collect::<Vec<_>>();
            record(
                Target::TermsRedis,
                redis(terms).iter().zip(redis(order)).map(|(with, without)| with - without).collect(),
            );
        }
    }
    if let (Some(baseline), Some(product)) = (find("baseline: GET"), find("product")) {
        record(Target::ProductRate, product.ratio(baseline, |m| m.round.rate()));
    }
}

fn table(rows: &[Row], report: &mut Report) {
    report.heading("Requests over HTTP");
    report.text(&format!(
        "{CONNECTIONS} connections in a closed loop. CPU-µs are per request, until PostgreSQL has every decision; × \
         baseline compares their sum with the baseline's of the same method, round by round. The CPU of the load generator is not \
         included, but shares the machine."
    ));
    let baseline = |get: bool| rows.iter().find(|row| row.name == if get { "baseline: GET" } else { "baseline: POST" });
    let is_get =
        |name: &str| ["baseline: GET", "product", "popular products", "balance", "coupons of a user"].contains(&name);
    let mut lines = Vec::new();
    for row in rows {
        let (cpu, rate) = match baseline(is_get(row.name)) {
            Some(baseline) => (
                spread(&row.ratio(baseline, |m| m.per_request(Cpu::servers))),
                spread(&row.ratio(baseline, |m| m.round.rate())),
            ),
            None => ("–".to_owned(), "–".to_owned()),
        };
        let lag = median(row.rounds.iter().map(|m| m.lag as f64));
        lines.push(vec![
            row.name.to_owned(),
            format!("{:.0}", row.rate()),
            format!("{:.1}", row.ms(0.5)),
            format!("{:.1}", row.ms(0.99)),
            format!("{:.1}", row.us(|cpu| cpu.service)),
            format!("{:.1}", row.us(|cpu| cpu.redis)),
            format!("{:.1}", row.us(|cpu| cpu.postgres)),
            format!("{:.1}", row.us(Cpu::servers)),
            cpu,
            rate,
            format!("{:.1}", row.us(|cpu| cpu.generator)),
            format!("{lag:.0}"),
        ]);
    }
    report.table(
        &[
            "request",
            "per second",
            "p50 ms",
            "p99 ms",
            "service µs",
            "Redis µs",
            "PostgreSQL µs",
            "sum µs",
            "CPU × baseline",
            "rate × baseline",
            "generator µs",
            "lag at the end",
        ],
        &lines,
    );
}
