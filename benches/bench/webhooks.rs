//! Webhooks: how fast events go to a fast receiver, and what a dead one costs.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    Options, cpu,
    loads::{RICH, Users},
    projector,
    report::{Report, median, spread},
    servers::{PROJECT, Process, SERVE, Servers},
    targets::{Target, Targets},
};

const HEAD_END: &[u8] = b"\r\n\r\n";
const TAKEN: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// A receiver on a thread of its own, which takes everything at once.
struct Receiver {
    address: SocketAddr,
    /// The different events that it has taken.
    taken: Arc<AtomicU64>,
}

impl Receiver {
    fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let (address, taken) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let counter = taken.clone();
        std::thread::Builder::new().name("receiver".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(accept(listener, counter))
        })?;
        Ok(Receiver { address, taken })
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

async fn accept(listener: std::net::TcpListener, taken: Arc<AtomicU64>) -> std::io::Result<()> {
    let (listener, seen) = (TcpListener::from_std(listener)?, Arc::new(Mutex::new(HashSet::new())));
    loop {
        let (stream, _) = listener.accept().await?;
        let (seen, taken) = (seen.clone(), taken.clone());
        tokio::spawn(async move { take(stream, &seen, &taken).await });
    }
}

/// Takes the requests of a connection, until it ends or sends something else than a webhook.
async fn take(mut stream: TcpStream, seen: &Mutex<HashSet<String>>, taken: &AtomicU64) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut read = Vec::with_capacity(4096);
    loop {
        let head_end = loop {
            if let Some(at) = read.windows(HEAD_END.len()).position(|window| window == HEAD_END) {
                break at;
            }
            more(&mut stream, &mut read).await?;
        };
        let head = std::str::from_utf8(read.get(..head_end)?).ok()?;
        let id = header(head, "webhook-id")?.to_owned();
        let end = head_end + HEAD_END.len() + header(head, "content-length")?.parse::<usize>().ok()?;
        while read.len() < end {
            more(&mut stream, &mut read).await?;
        }
        read.drain(..end);
        if seen.lock().insert(id) {
            taken.fetch_add(1, Ordering::Relaxed);
        }
        stream.write_all(TAKEN).await.ok()?;
    }
}

async fn more(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<()> {
    stream.read_buf(read).await.ok().filter(|count| *count > 0).map(drop)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// An address where nothing listens: connections are refused.
fn dead_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn create(service: &Process, receiver: SocketAddr) -> Result<i64> {
    let webhook = json!({ "url": format!("http://{receiver}/events"), "types": ["coupon.issued"] });
    let created = service.operate("POST", "/admin/v1/webhooks", webhook).await?;
    created["webhookId"].as_i64().context("no webhookId")
}

async fn enable(service: &Process, webhook: i64, enabled: bool) -> Result<()> {
    let path = format!("/admin/v1/webhooks/{webhook}");
    service.operate("PATCH", &path, json!({ "enabled": enabled })).await.map(drop)
}

pub async fn run(servers: &Servers, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    let service = servers.process(SERVE, &["alone"])?;
    let wanted = options.decisions();
    let count = wanted.max(300_000);
    let users = Users { first: service.users(count, RICH).await?, count };
    {
        let _projector = servers.process(PROJECT, &[])?;
        servers.drain().await?;
    }
    let rounds = options.rounds();

    let receiver = Receiver::start()?;
    let webhook = create(&service, receiver.address).await?;
    let (mut rates, mut sender_us, mut postgres_us) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        enable(&service, webhook, false).await?;
        let sent = sent(servers, &service, &receiver, webhook, users, wanted).await?;
        rates.push(wanted as f64 / sent.seconds);
        sender_us.push(sent.sender * 1e6 / wanted as f64);
        postgres_us.push(sent.postgres * 1e6 / wanted as f64);
    }
    enable(&service, webhook, false).await?;

    let dead = create(&service, dead_address()?).await?;
    let (mut alone, mut beside_dead) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for (is_dead, costs) in projector::in_turn(round, vec![(false, &mut alone), (true, &mut beside_dead)]) {
            enable(&service, dead, is_dead).await?;
            let make = async || projector::make_issues(&service, users, wanted).await;
            let backlog = projector::backlog(servers, &service, make, &projector::KEEPING).await?;
            costs.push(backlog.us.iter().sum::<f64>());
        }
    }

    report.heading("Webhooks");
    report.text(&format!(
        "{wanted} coupon issues, projected before their webhook is switched on: one receiver, which takes every event at once, on a thread of \
         the load generator. CPU-µs are per webhook; the median of {rounds} rounds."
    ));
    report.table(
        &["webhooks per second", "sender µs", "PostgreSQL µs"],
        &[vec![
            spread(&rates),
            format!("{:.1}", median(sender_us.iter().copied())),
            format!("{:.1}", median(postgres_us.iter().copied())),
        ]],
    );
    let ratios: Vec<f64> = beside_dead.iter().zip(&alone).map(|(dead, alone)| dead / alone).collect();
    report.text(&format!(
        "Projecting {wanted} coupon issues beside a webhook whose receiver refuses connections costs {} of the CPU that it costs without, \
         in alternation.",
        spread(&ratios)
    ));
    targets.measured(Target::WebhookRate, median(rates.iter().copied()), spread(&rates));
    targets.measured(Target::DeadReceiverCpu, median(ratios.iter().copied()), spread(&ratios));
    Ok(())
}

/// What sending a backlog took: seconds, and seconds of CPU.
struct Sent {
    seconds: f64,
    sender: f64,
    postgres: f64,
}

async fn sent(
    servers: &Servers,
    service: &Process,
    receiver: &Receiver,
    webhook: i64,
    users: Users,
    wanted: u64,
) -> Result<Sent> {
    projector::make_issues(service, users, wanted).await?;
    let sender = servers.process(PROJECT, &[])?;
    servers.drain().await?;
    let (before, taken_before, since) =
        ((cpu::of(sender.pid()), servers.postgres_cpu()), receiver.taken(), Instant::now());
    enable(service, webhook, true).await?;
    let (mut taken, mut last) = (0, Instant::now());
    while taken < wanted {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = receiver.taken() - taken_before;
        if now > taken {
            (taken, last) = (now, Instant::now());
        }
        ensure!(last.elapsed() < Duration::from_secs(60), "no progress of webhooks: {taken} of {wanted}");
    }
    let seconds = since.elapsed().as_secs_f64();
    Ok(Sent { seconds, sender: cpu::of(sender.pid()) - before.0, postgres: servers.postgres_cpu() - before.1 })
}
