//! Cost by size of the shop: bytes of Redis per record and CPU per request, at 10,000, 100,000 and 1,000,000 users. No cost may
//! grow faster than the logarithm of the size.

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

/// Users per product.
const USERS_PER_PRODUCT: u64 = 100;

/// The kinds of records, in the order of the table.
const RECORDS: &[&str] = &["user", "issued coupon", "open order, 1 line", "closed (paid) order", "evicted order"];

/// The kinds of requests, each after the baseline of its method.
const KINDS: &[&str] =
    &["baseline: POST", "coupon issue", "order, 1 line", "pay", "baseline: GET", "product", "popular products"];

/// The measurements at one size.
struct Size {
    size: u64,
    /// Bytes of each of [`RECORDS`].
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
    cpu(&sizes, report, targets);
    Ok(())
}

/// Grows the shop to `size` users; each gets one more coupon and places and pays an order. Returns the bytes of each of [`RECORDS`].
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

    evict_closed_orders(servers).await?;
    let left_bytes = (settled(servers).await? - before) / size as f64;
    Ok(vec![user_bytes, coupon_bytes, open_bytes, closed_bytes, left_bytes])
}

/// Removes the closed orders, as their TTL would. Fails where a closed order has none.
async fn evict_closed_orders(servers: &Servers) -> Result<()> {
    let (mut link, mut cursor) = (servers.redis_link().await?, 0u64);
    let all = Keys(Partition(0)).meta().replace("meta", "order:*");
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&all).arg("COUNT").arg(10_000);
        let (next, keys): (u64, Vec<String>) = scan.query_async(&mut link).await?;
        let mut reads = redis::pipe();
        for key in &keys {
            reads.cmd("HGET").arg(key).arg("status");
            reads.cmd("PTTL").arg(key);
        }
        let replies: Vec<redis::Value> =
            if keys.is_empty() { Vec::new() } else { reads.query_async(&mut link).await? };
        let mut closed = Vec::new();
        for (key, reply) in keys.into_iter().zip(replies.chunks(2)) {
            let (status, ttl) = (String::from_redis_value_ref(&reply[0])?, i64::from_redis_value_ref(&reply[1])?);
            if status != "PENDING" {
                ensure!(ttl > 0, "a closed order has no TTL");
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

/// Bytes of the data in Redis, with every decision in PostgreSQL and the outbox empty.
async fn settled(servers: &Servers) -> Result<f64> {
    servers.drain().await?;
    servers.tidy().await?;
    let mut link = servers.redis_link().await?;
    // What is kept after its commit is measured by the section of the projector.
    let mut trim = redis::cmd("XTRIM");
    trim.arg(Keys(Partition(0)).outbox()).arg("MAXLEN").arg(0).exec_async(&mut link).await?;
    // During an incremental rehash Redis has both the old and the new table.
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
            "baseline: POST" => loads::baseline_post(move |n| users.scattered(n)),
            "coupon issue" => {
                numbers = 0..users.count;
                loads::issue(campaign, move |n| users.scattered(n), 200)
            }
            "order, 1 line" => loads::order(move |n| users.scattered(n), products, 1, None, Some(&placed)),
            "pay" => {
                numbers = 0..due.len() as u64;
                loads::pay(&due)
            }
            "baseline: GET" => loads::gets(move |n| format!("/baseline/products/{}", n % 10 + 1)),
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
        "At each size: that many users, coupons of one campaign, orders placed and orders paid; one product per {USERS_PER_PRODUCT} \
         users. Bytes are the growth of `used_memory` without the buffers of connections, with every decision in PostgreSQL and \
         the outbox empty; those of a closed order are what remains of the order."
    ));
    let mut lines = Vec::new();
    for (at, thing) in RECORDS.iter().enumerate() {
        let bytes: Vec<f64> = sizes.iter().map(|size| size.bytes[at]).collect();
        let mut line = vec![(*thing).to_owned()];
        line.extend(bytes.iter().map(|bytes| format!("{bytes:.0}")));
        let rounds: Vec<Vec<f64>> = bytes.iter().map(|bytes| vec![*bytes]).collect();
        line.extend(growth_of(sizes, &rounds));
        lines.push(line);
        let max = sizes.iter().zip(&bytes).map(|(size, bytes)| (size.size, *bytes));
        if let Some((size, max)) = max.max_by(|a, b| a.1.total_cmp(&b.1)) {
            match *thing {
                "issued coupon" => targets.measured(Target::CouponBytes, max, format!("maximum, at {size}")),
                "open order, 1 line" => targets.measured(Target::OrderBytes, max, format!("maximum, at {size}")),
                _ => {}
            }
        }
    }
    table("bytes per", sizes, &lines, report);
}

fn cpu(sizes: &[Size], report: &mut Report, targets: &mut Targets) {
    report.text(&format!(
        "CPU of a request (service, Redis and PostgreSQL, until PostgreSQL has every decision), × the baseline of the same method in \
         the same round; CPU-µs in brackets. {CONNECTIONS} connections; successive requests use distant users and products."
    ));
    let (mut lines, mut growths) = (Vec::new(), Vec::new());
    let mut baseline = 0;
    for (at, kind) in KINDS.iter().enumerate() {
        if kind.starts_with("baseline") {
            baseline = at;
        }
        // The cost relative to the baseline, round by round, at each size.
        let costs: Vec<Vec<f64>> = sizes
            .iter()
            .map(|size| {
                let cost = |measured: &Measured| measured.per_request(Cpu::servers);
                size.rounds[at]
                    .iter()
                    .zip(&size.rounds[baseline])
                    .map(|(round, baseline)| cost(round) / cost(baseline))
                    .collect()
            })
            .collect();
        let mut line = vec![(*kind).to_owned()];
        for (size, costs) in sizes.iter().zip(&costs) {
            let us = median(size.rounds[at].iter().map(|round| round.per_request(Cpu::servers)));
            line.push(format!("{:.2} ({us:.0})", median(costs.iter().copied())));
        }
        line.extend(growth_of(sizes, &costs));
        lines.push(line);
        if let [small, .., large] = &costs[..] {
            growths.push((median(large.iter().copied()) / median(small.iter().copied()), *kind));
        }
    }
    table("cost of", sizes, &lines, report);
    if let Some((growth, kind)) = growths.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)) {
        targets.measured(Target::GrowthCpu, growth, kind);
    }
}

/// The ratio of the costs at the largest and the smallest size, and whether it is within the ratio of the logarithms of the sizes.
/// The growth is certainly faster only where even the cheapest round at the largest size exceeds the bound over the dearest round at
/// the smallest.
fn growth_of(sizes: &[Size], costs: &[Vec<f64>]) -> [String; 2] {
    let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else { return Default::default() };
    let (Some(small), Some(large)) = (costs.first(), costs.last()) else { return Default::default() };
    if small.is_empty() || large.is_empty() {
        return ["–".to_owned(), "–".to_owned()];
    }
    let bound = (last.size as f64).ln() / (first.size as f64).ln();
    let ratio = median(large.iter().copied()) / median(small.iter().copied());
    let min_ratio = large.iter().copied().fold(f64::MAX, f64::min) / small.iter().copied().fold(f64::MIN, f64::max);
    let growth = if first.size == last.size {
        "one size only".to_owned()
    } else if ratio <= bound {
        format!("no faster than log (≤ {bound:.2})")
    } else if min_ratio <= bound {
        format!("perhaps faster than log (> {bound:.2}): within the noise")
    } else {
        format!("**faster than log** (> {bound:.2})")
    };
    [format!("{ratio:.2}"), growth]
}

fn table(name: &str, sizes: &[Size], lines: &[Vec<String>], report: &mut Report) {
    let mut head = vec![name.to_owned()];
    head.extend(sizes.iter().map(|size| format!("at {}", size.size)));
    head.extend(["last ÷ first".to_owned(), "grows".to_owned()]);
    report.table(&head.iter().map(String::as_str).collect::<Vec<_>>(), lines);
}
