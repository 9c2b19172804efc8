//! What it comes to as the shop grows: bytes of Redis per thing, and CPU per request, at ten thousand of everything, a hundred
//! thousand and a million. Nothing may grow faster than the logarithm of the shop.

use std::{cell::RefCell, time::Duration};

use anyhow::{Result, ensure};
use firstcome::{model::Partition, redis::keys::Keys};
use redis::FromRedisValue;

use crate::{
    Options,
    client::{self, Load},
    cpu::Cpu,
    loads::{self, RICH, Users},
    measure::{CONNECTIONS, Measured, measure},
    report::{Report, median},
    servers::{Process, SERVE, Servers},
    targets::{Target, Targets},
};

/// One product for so many users.
const USERS_PER_PRODUCT: u64 = 100;

/// What is kept, in the order of the table.
const THINGS: &[&str] =
    &["user", "issued coupon", "open order, 1 line", "closed (paid) order", "closed order that left Redis"];

/// What is asked, each after the floor of its method.
const KINDS: &[&str] =
    &["floor: POST", "coupon issue", "order, 1 line", "pay", "floor: GET", "product", "popular products"];

/// What was measured at one size.
struct Size {
    size: u64,
    /// Bytes of each of [`THINGS`].
    bytes: Vec<f64>,
    /// Rounds of each of [`KINDS`].
    rounds: Vec<Vec<Measured>>,
}

/// The shop as it grows.
struct Shop {
    users: Users,
    products: Vec<u64>,
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let service = servers.process(SERVE, &[])?;
    let mut shop = Shop { users: Users { first: 1, count: 0 }, products: Vec::new() };
    let mut sizes = Vec::new();
    for size in options.sizes() {
        let bytes = grow(servers, &service, &mut shop, size).await?;
        let mut rounds = vec![Vec::new(); KINDS.len()];
        let (count, duration) = (options.rounds().min(3), options.round().min(Duration::from_secs(1)));
        for _ in 0..count {
            ask(servers, &service, &shop, duration, &mut rounds).await?;
        }
        sizes.push(Size { size, bytes, rounds });
    }
    report.heading("Growth");
    memory(&sizes, report, targets);
    cpu(&sizes, report);
    Ok(())
}

/// Brings the shop to `size` users, each with one more coupon, and an order that is then paid; the bytes of each.
async fn grow(servers: &Servers, service: &Process, shop: &mut Shop, size: u64) -> Result<Vec<f64>> {
    let address = service.address;
    let more = (size / USERS_PER_PRODUCT).max(10).saturating_sub(shop.products.len() as u64);
    let made = RefCell::new(Vec::new());
    let new = Load {
        request: Box::new(move |_, request| service.write_product(request, 1_000_000_000)),
        status: 201,
        body: Some(Box::new(|_, body| made.borrow_mut().extend(loads::number(body, "\"productId\"")))),
    };
    client::run(address, 32, &new, 0..more, Duration::MAX).await?;
    drop(new);
    shop.products.extend(made.take());

    let before = settled(servers).await?;
    let joining = size - shop.users.count;
    let first = service.users(joining, RICH).await?;
    let after = settled(servers).await?;
    if shop.users.count == 0 {
        shop.users.first = first;
    }
    ensure!(first == shop.users.first + shop.users.count, "the new users' ids do not follow the others'");
    shop.users.count = size;
    let users = shop.users;
    eprintln!("growth: {size} users");
    let user_bytes = (after - before) / joining as f64;

    let campaign = service.campaign(size).await?;
    let before = settled(servers).await?;
    let load = loads::issue(campaign, move |n| users.scattered(n), 200);
    client::run(address, CONNECTIONS, &load, 0..size, Duration::MAX).await?;
    let after = settled(servers).await?;
    eprintln!("growth: {size} coupons");
    let coupon_bytes = (after - before) / size as f64;

    let placed = RefCell::default();
    let load = loads::order(move |n| users.scattered(n), &shop.products, 1, None, Some(&placed));
    client::run(address, CONNECTIONS, &load, 0..size, Duration::MAX).await?;
    let (before, after) = (after, settled(servers).await?);
    eprintln!("growth: {size} orders");
    let open_bytes = (after - before) / size as f64;

    let placed = placed.take();
    client::run(address, CONNECTIONS, &loads::pay(&placed), 0..size, Duration::MAX).await?;
    let after = settled(servers).await?;
    eprintln!("growth: {size} payments");
    let closed_bytes = (after - before) / size as f64;

    let_closed_leave(servers).await?;
    let left_bytes = (settled(servers).await? - before) / size as f64;
    Ok(vec![user_bytes, coupon_bytes, open_bytes, closed_bytes, left_bytes])
}

/// Lets the time pass after which closed orders leave Redis; each must have been given an end by then.
async fn let_closed_leave(servers: &Servers) -> Result<()> {
    let (mut link, mut cursor) = (servers.redis_link().await?, 0u64);
    let all = Keys(Partition(0)).meta().replace("meta", "order:*");
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&all).arg("COUNT").arg(10_000);
        let (next, keys): (u64, Vec<String>) = scan.query_async(&mut link).await?;
        let mut looks = redis::pipe();
        for key in &keys {
            looks.cmd("HGET").arg(key).arg("status");
            looks.cmd("PTTL").arg(key);
        }
        let looks: Vec<redis::Value> = if keys.is_empty() { Vec::new() } else { looks.query_async(&mut link).await? };
        let mut closed = Vec::new();
        for (key, look) in keys.into_iter().zip(looks.chunks(2)) {
            let (status, life) = (String::from_redis_value_ref(&look[0])?, i64::from_redis_value_ref(&look[1])?);
            if status != "PENDING" {
                ensure!(life > 0, "a closed order stays for ever");
                closed.push(key);
            }
        }
        for keys in closed.chunks(1000) {
            redis::cmd("UNLINK").arg(keys).exec_async(&mut link).await?;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(());
        }
    }
}

/// Bytes that Redis uses for what is in it, once everything is in PostgreSQL and out of the outbox.
async fn settled(servers: &Servers) -> Result<f64> {
    servers.drain().await?;
    servers.tidy().await?;
    let mut link = servers.redis_link().await?;
    loop {
        let mut length = redis::cmd("XLEN");
        if length.arg(Keys(Partition(0)).outbox()).query_async::<u64>(&mut link).await? == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Tables that are being moved to larger ones are there twice.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let connections = servers.redis_info("mem_clients_normal").await? + servers.redis_info("mem_aof_buffer").await?;
    Ok(servers.redis_info("used_memory").await? - connections)
}

/// A round of each kind.
async fn ask(
    servers: &Servers,
    service: &Process,
    shop: &Shop,
    duration: Duration,
    rounds: &mut [Vec<Measured>],
) -> Result<()> {
    let (users, products) = (shop.users, &shop.products);
    let campaign = service.campaign(users.count).await?;
    let placed = RefCell::default();
    for (kind, rounds) in KINDS.iter().zip(rounds) {
        let due = if *kind == "pay" { placed.take() } else { Vec::new() };
        let mut numbers = 0..u64::MAX;
        let load = match *kind {
            "floor: POST" => loads::floor_post(move |n| users.scattered(n)),
            "coupon issue" => {
                numbers = 0..users.count;
                loads::issue(campaign, move |n| users.scattered(n), 200)
            }
            "order, 1 line" => loads::order(move |n| users.scattered(n), products, 1, None, Some(&placed)),
            "pay" => {
                numbers = 0..due.len() as u64;
                loads::pay(&due)
            }
            "floor: GET" => loads::gets(move |n| format!("/floor/products/{}", n % 10 + 1)),
            "product" => loads::gets(move |n| {
                let product = products[(n.wrapping_mul(7919) % products.len() as u64) as usize];
                format!("/api/v1/products/{product}")
            }),
            _ => loads::gets(|_| "/api/v1/products/popular?sortBy=THREE_DAYS".to_owned()),
        };
        servers.drain().await?;
        rounds.push(measure(servers, service, &load, numbers, duration).await?);
    }
    Ok(())
}

fn memory(sizes: &[Size], report: &mut Report, targets: &mut Targets) {
    report.text(&format!(
        "At each size: as many users, coupons issued of one campaign, orders placed, and the same orders paid; one product for \
         {USERS_PER_PRODUCT} users. Bytes are what Redis uses more (`used_memory` without its connections' buffers), with everything \
         in PostgreSQL and nothing left in the outbox; a closed order's are those that stay of it."
    ));
    let mut lines = Vec::new();
    for (at, thing) in THINGS.iter().enumerate() {
        let bytes: Vec<f64> = sizes.iter().map(|size| size.bytes[at]).collect();
        let mut line = vec![(*thing).to_owned()];
        line.extend(bytes.iter().map(|bytes| format!("{bytes:.0}")));
        let rounds: Vec<Vec<f64>> = bytes.iter().map(|bytes| vec![*bytes]).collect();
        line.extend(verdict(sizes, &rounds));
        lines.push(line);
        let most = sizes.iter().zip(&bytes).map(|(size, bytes)| (size.size, *bytes));
        if let Some((size, most)) = most.max_by(|a, b| a.1.total_cmp(&b.1)) {
            match *thing {
                "issued coupon" => targets.measured(Target::CouponBytes, most, format!("the most, at {size}")),
                "open order, 1 line" => targets.measured(Target::OrderBytes, most, format!("the most, at {size}")),
                _ => {}
            }
        }
    }
    grown("bytes per", sizes, &lines, report);
}

fn cpu(sizes: &[Size], report: &mut Report) {
    report.text(&format!(
        "CPU of a request (service, Redis and PostgreSQL, until PostgreSQL has everything), × that of the floor of the same \
         method in the same round; in brackets CPU-µs. {CONNECTIONS} connections; users and products far apart."
    ));
    let mut lines = Vec::new();
    let mut floor = 0;
    for (at, kind) in KINDS.iter().enumerate() {
        if kind.starts_with("floor") {
            floor = at;
        }
        // The cost by that of the floor, round by round, at each size.
        let costs: Vec<Vec<f64>> = sizes
            .iter()
            .map(|size| {
                let cost = |measured: &Measured| measured.per_request(Cpu::servers);
                size.rounds[at]
                    .iter()
                    .zip(&size.rounds[floor])
                    .map(|(round, floor)| cost(round) / cost(floor))
                    .collect()
            })
            .collect();
        let mut line = vec![(*kind).to_owned()];
        for (size, costs) in sizes.iter().zip(&costs) {
            let us = median(size.rounds[at].iter().map(|round| round.per_request(Cpu::servers)));
            line.push(format!("{:.2} ({us:.0})", median(costs.iter().copied())));
        }
        line.extend(verdict(sizes, &costs));
        lines.push(line);
    }
    grown("cost of", sizes, &lines, report);
}

/// The largest size's cost by the smallest's, and whether that is no more than the logarithms'. Only where the cheapest round at
/// the largest size is too dear for the dearest at the smallest is it sure that it is more.
fn verdict(sizes: &[Size], costs: &[Vec<f64>]) -> [String; 2] {
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else { return Default::default() };
    let (Some(small), Some(large)) = (costs.first(), costs.last()) else { return Default::default() };
    if small.is_empty() || large.is_empty() {
        return ["–".to_owned(), "–".to_owned()];
    }
    let bound = (last.size as f64).ln() / (first.size as f64).ln();
    let ratio = median(large.iter().copied()) / median(small.iter().copied());
    let least = large.iter().copied().fold(f64::MAX, f64::min) / small.iter().copied().fold(f64::MIN, f64::max);
    let said = if first.size == last.size {
        "one size only".to_owned()
    } else if ratio <= bound {
        format!("no faster than log (≤ {bound:.2})")
    } else if least <= bound {
        format!("perhaps faster than log (> {bound:.2}): within the noise")
    } else {
        format!("**faster than log** (> {bound:.2})")
    };
    [format!("{ratio:.2}"), said]
}

fn grown(what: &str, sizes: &[Size], lines: &[Vec<String>], report: &mut Report) {
    let mut head = vec![what.to_owned()];
    head.extend(sizes.iter().map(|size| format!("at {}", size.size)));
    head.extend(["last ÷ first".to_owned(), "grows".to_owned()]);
    report.table(&head.iter().map(String::as_str).collect::<Vec<_>>(), lines);
}
