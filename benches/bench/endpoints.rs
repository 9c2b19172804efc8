//! Each kind of request over HTTP, against the floor and against the peers, in alternation.
//!
//! A round runs one kind of request for a while in a closed loop, then waits until PostgreSQL has everything, and takes the
//! CPU time that service, Redis and PostgreSQL have used from the first request to then: a request's whole cost, the durable
//! part of it included. The rate counts only the time in which requests were answered.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    time::Duration,
};

use anyhow::Result;

use crate::{
    Options,
    client::{self, Load, Round},
    cpu::Cpu,
    peer,
    report::{Report, median, spread},
    servers::{PEER, Process, SERVE, Servers},
};

/// Concurrent connections of the closed loop.
pub const CONNECTIONS: usize = 256;
const WON: u64 = 139_000;
/// Distinct users; also the most requests that one round may need distinct users for.
const USERS: u64 = 400_000;
const RICH: i64 = 1_000_000_000_000;

/// The kinds of request, in the order of the table.
const KINDS: &[(&str, Kind)] = &[
    ("floor: POST", Kind::FloorPost),
    ("coupon issue", Kind::Issue),
    ("coupon issue, sold out", Kind::SoldOut),
    ("coupon issue, holds one", Kind::HoldsOne),
    ("balance charge", Kind::Charge),
    ("order, 1 line", Kind::Order { lines: 1, coupon: false }),
    ("pay", Kind::Pay),
    ("order, 1 line with coupon", Kind::Order { lines: 1, coupon: true }),
    ("order, 5 lines", Kind::Order { lines: 5, coupon: false }),
    ("floor: GET", Kind::FloorGet),
    ("product", Kind::Product),
    ("popular products", Kind::Popular),
    ("balance", Kind::Balance),
    ("coupons of a user", Kind::Coupons),
    ("PG lock: coupon issue", Kind::PeerIssue { redis: false }),
    ("PG lock: balance charge", Kind::PeerCharge { redis: false }),
    ("PG lock: order, 1 line", Kind::PeerOrder { redis: false }),
    ("PG lock: pay", Kind::PeerPay { redis: false }),
    ("Redis lock: coupon issue", Kind::PeerIssue { redis: true }),
    ("Redis lock: balance charge", Kind::PeerCharge { redis: true }),
    ("Redis lock: order, 1 line", Kind::PeerOrder { redis: true }),
    ("Redis lock: pay", Kind::PeerPay { redis: true }),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    FloorPost,
    FloorGet,
    Issue,
    SoldOut,
    HoldsOne,
    Charge,
    Order { lines: u64, coupon: bool },
    Pay,
    Product,
    Popular,
    Balance,
    Coupons,
    PeerIssue { redis: bool },
    PeerCharge { redis: bool },
    PeerOrder { redis: bool },
    PeerPay { redis: bool },
}

/// A round of one kind.
#[derive(Clone, Debug)]
pub struct Measured {
    pub round: Round,
    pub cpu: Cpu,
    /// Decisions that PostgreSQL did not have yet when the last request was answered.
    pub lag: i64,
}

impl Measured {
    fn per_request(&self, of: fn(Cpu) -> f64) -> f64 {
        of(self.cpu) * 1e6 / self.round.requests as f64
    }
}

/// All rounds of one kind.
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

/// What the requests are about.
struct Shop {
    first_user: u64,
    products: Vec<u64>,
    /// A campaign that is given out, to the first `GIVEN` users.
    sold_out: u64,
    /// A campaign of which the users have one each, and no order has taken it yet: by how far orders have got.
    held: Cell<Option<u64>>,
    /// Orders that wait to be paid: id and user.
    unpaid: RefCell<HashMap<bool, Vec<(u64, u64)>>>,
    /// The next user to order something, or to be charged.
    turn: Cell<u64>,
}

const GIVEN: u64 = 1000;

pub async fn run(servers: &Servers, options: &Options, report: &mut Report) -> Result<Vec<Row>> {
    let service = servers.process(SERVE, &[])?;
    let shop = prepare(servers, &service).await?;
    let peer_url = servers.postgres.url("peer");
    let peers = if KINDS.iter().any(|(name, kind)| options.wants(name) && is_peer(*kind)) {
        let data = peer::prepare(&peer_url, USERS, RICH).await?;
        anyhow::ensure!(data.first_user == 1 && data.product == 1, "the peer's data start elsewhere");
        Some([servers.process(PEER, &["postgres"])?, servers.process(PEER, &["redis"])?])
    } else {
        None
    };
    let mut rows: Vec<Row> = KINDS
        .iter()
        .filter(|(name, _)| options.wants(name))
        .map(|(name, _)| Row { name, rounds: Vec::new() })
        .collect();
    let mut campaigns = 1_000_000;
    for round in 0..=options.rounds {
        for row in &mut rows {
            let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == row.name) else { continue };
            let process = match (kind, &peers) {
                (
                    Kind::PeerIssue { redis }
                    | Kind::PeerCharge { redis }
                    | Kind::PeerOrder { redis }
                    | Kind::PeerPay { redis },
                    Some(peers),
                ) => &peers[usize::from(*redis)],
                _ => &service,
            };
            campaigns += 1;
            if let Kind::PeerIssue { .. } = kind {
                peer::campaign(&peer_url, campaigns, USERS).await?;
            }
            let measured = measure(servers, process, &shop, *kind, campaigns, options).await?;
            // The first round warms up.
            if round > 0 {
                row.rounds.push(measured);
            }
        }
        eprintln!("endpoints: round {round} of {} done", options.rounds);
    }
    table(&rows, report);
    Ok(rows)
}

fn is_peer(kind: Kind) -> bool {
    matches!(kind, Kind::PeerIssue { .. } | Kind::PeerCharge { .. } | Kind::PeerOrder { .. } | Kind::PeerPay { .. })
}

async fn prepare(servers: &Servers, service: &Process) -> Result<Shop> {
    let first_user = service.users(USERS, RICH).await?;
    let mut products = Vec::new();
    for _ in 0..10 {
        products.push(service.product(1_000_000_000).await?);
    }
    let sold_out = service.campaign(GIVEN).await?;
    let winners = issue(sold_out, first_user, 200);
    client::run(service.address, CONNECTIONS, &winners, 0..GIVEN, Duration::MAX).await?;
    servers.drain().await?;
    Ok(Shop { first_user, products, sold_out, held: Cell::new(None), unpaid: RefCell::default(), turn: Cell::new(0) })
}

fn issue<'a>(campaign: u64, first_user: u64, status: u16) -> Load<'a> {
    Load {
        request: Box::new(move |n, request| {
            let user = first_user + n % USERS;
            client::send(
                "POST",
                "/api/v1/coupons/issue",
                &format!("{{\"couponId\":{campaign},\"userId\":{user}}}"),
                request,
            );
        }),
        status,
        body: None,
    }
}

/// The number after `"name":` in a reply.
fn number(body: &[u8], name: &str) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let rest = &text[text.find(name)? + name.len()..];
    let digits = rest.trim_start_matches(['"', ':']);
    digits[..digits.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

async fn measure(
    servers: &Servers,
    process: &Process,
    shop: &Shop,
    kind: Kind,
    campaign: u64,
    options: &Options,
) -> Result<Measured> {
    let first = if is_peer(kind) { 1 } else { shop.first_user };
    let turn = shop.turn.get();
    let user = move |n: u64| first + (turn + n) % USERS;
    let mut numbers = 0..u64::MAX;
    let mut campaign = campaign;
    // Made before the clock runs.
    match kind {
        Kind::Issue => {
            campaign = process.campaign(USERS).await?;
            shop.held.set(Some(campaign));
            numbers = 0..USERS;
        }
        Kind::PeerIssue { .. } => numbers = 0..USERS,
        Kind::Order { coupon: true, .. } => {
            // Those who were given a coupon of a new campaign, from the first user on.
            campaign = process.campaign(USERS).await?;
            let winners = issue(campaign, shop.first_user, 200);
            let given = client::run(process.address, CONNECTIONS, &winners, 0..USERS, options.round()).await?;
            numbers = 0..given.requests / 2;
        }
        Kind::Pay | Kind::PeerPay { .. } => {
            numbers = 0..shop.unpaid.borrow().get(&is_peer(kind)).map_or(0, Vec::len) as u64;
        }
        _ => {}
    }
    servers.drain().await?;
    let unpaid = if let Kind::Pay | Kind::PeerPay { .. } = kind {
        shop.unpaid.borrow_mut().remove(&is_peer(kind)).unwrap_or_default()
    } else {
        Vec::new()
    };
    let taken = Cell::new(0);
    let load = match kind {
        Kind::FloorPost => Load {
            request: Box::new(move |n, request| {
                let body = format!("{{\"couponId\":1,\"userId\":{}}}", user(n));
                client::send("POST", "/floor/coupons/issue", &body, request);
            }),
            status: 200,
            body: None,
        },
        Kind::FloorGet => gets(move |n| format!("/floor/products/{}", n % 10 + 1)),
        Kind::Product => gets(|n| format!("/api/v1/products/{}", shop.products[(n % 10) as usize])),
        Kind::Popular => gets(|_| "/api/v1/products/popular?sortBy=THREE_DAYS".to_owned()),
        Kind::Balance => gets(move |n| format!("/api/v1/balances/{}", user(n))),
        Kind::Coupons => gets(move |n| format!("/api/v1/coupons/{}", user(n))),
        Kind::Issue | Kind::PeerIssue { .. } => issue(campaign, first, 200),
        Kind::SoldOut => {
            let mut load = issue(shop.sold_out, first, 409);
            load.request = Box::new(move |n, request| {
                let user = first + GIVEN + n % (USERS - GIVEN);
                let body = format!("{{\"couponId\":{},\"userId\":{user}}}", shop.sold_out);
                client::send("POST", "/api/v1/coupons/issue", &body, request);
            });
            load
        }
        Kind::HoldsOne => {
            let mut load = issue(shop.sold_out, first, 400);
            load.request = Box::new(move |n, request| {
                let body = format!("{{\"couponId\":{},\"userId\":{}}}", shop.sold_out, first + n % GIVEN);
                client::send("POST", "/api/v1/coupons/issue", &body, request);
            });
            load
        }
        Kind::Charge | Kind::PeerCharge { .. } => Load {
            request: Box::new(move |n, request| {
                client::send("PUT", &format!("/api/v1/balances/{}", user(n)), "{\"amount\":1000}", request);
            }),
            status: 200,
            body: None,
        },
        Kind::Order { .. } | Kind::PeerOrder { .. } => {
            let (lines, coupon) = match kind {
                Kind::Order { lines, coupon } => (lines, coupon),
                _ => (1, false),
            };
            let buyer = move |n| if coupon { first + n } else { user(n) };
            let products: Vec<u64> = if is_peer(kind) { (1..=10).collect() } else { shop.products.clone() };
            let keep = lines == 1 && !coupon;
            Load {
                request: Box::new(move |n, request| {
                    let line = |i: u64| {
                        format!(
                            "{{\"productId\":{},\"quantity\":1}}",
                            products[((n + i) % products.len() as u64) as usize]
                        )
                    };
                    let lines = (0..lines).map(line).collect::<Vec<_>>().join(",");
                    let coupon = if coupon { format!(",\"userCouponId\":{campaign}") } else { String::new() };
                    let body = format!("{{\"userId\":{},\"orderProducts\":[{lines}]{coupon}}}", buyer(n));
                    client::send("POST", "/api/v1/orders", &body, request);
                }),
                status: 200,
                body: keep.then(|| -> Box<dyn Fn(u64, &[u8])> {
                    Box::new(move |n, body| {
                        if let Some(order) = number(body, "\"orderId\"") {
                            shop.unpaid.borrow_mut().entry(is_peer(kind)).or_default().push((order, buyer(n)));
                        }
                    })
                }),
            }
        }
        Kind::Pay | Kind::PeerPay { .. } => Load {
            request: Box::new(|n, request| {
                let (order, user) = unpaid[n as usize];
                let body =
                    format!("{{\"orderId\":{order},\"userId\":{user},\"paymentType\":\"KAKAO_PAY\",\"amount\":{WON}}}");
                client::send("POST", "/api/v1/payments", &body, request);
                taken.set(n + 1);
            }),
            status: 200,
            body: None,
        },
    };
    let before = servers.cpu(process.pid());
    let round = client::run(process.address, CONNECTIONS, &load, numbers, options.round()).await?;
    let generator = servers.cpu(process.pid()).generator;
    let lag = servers.lag().await?;
    servers.drain().await?;
    let mut cpu = servers.cpu(process.pid()) - before;
    cpu.generator = generator - before.generator;
    shop.turn.set(turn + round.requests);
    Ok(Measured { round, cpu, lag })
}

fn gets<'a>(path: impl Fn(u64) -> String + 'a) -> Load<'a> {
    Load { request: Box::new(move |n, request| client::get(&path(n), request)), status: 200, body: None }
}

fn table(rows: &[Row], report: &mut Report) {
    report.heading("Requests over HTTP");
    report.text(&format!(
        "{CONNECTIONS} connections in a closed loop. CPU-µs are per request, of all processes of each party, until PostgreSQL \
         has everything; × floor compares their sum with the floor's of the same method, round by round. The load \
         generator's CPU is not in it, and shares the machine."
    ));
    let floor = |get: bool| rows.iter().find(|row| row.name == if get { "floor: GET" } else { "floor: POST" });
    let is_get =
        |name: &str| ["floor: GET", "product", "popular products", "balance", "coupons of a user"].contains(&name);
    let mut lines = Vec::new();
    for row in rows {
        let (cpu, rate) = match floor(is_get(row.name)) {
            Some(floor) => (
                spread(&row.ratio(floor, |m| m.per_request(Cpu::servers))),
                spread(&row.ratio(floor, |m| m.round.rate())),
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
            "CPU × floor",
            "rate × floor",
            "generator µs",
            "lag at the end",
        ],
        &lines,
    );
}
