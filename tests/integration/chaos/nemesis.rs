//! The nemesis: injects every kind of fault, in an order and at moments that the seed decides, and repairs each.
//!
//! Moments are counted in attempts of the clients, not in time: the clients get a number of attempts before, during and after
//! a fault. After the repair, which restarts killed processes, the service must recover by itself: every instance is ready,
//! a write is acknowledged, and PostgreSQL catches up.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use redis::aio::MultiplexedConnection;
use rustix::process::Signal;

use super::{
    clients::Market,
    history::{Random, now},
    proxy::{Mode, Proxy},
    shop::Shop,
};
use crate::support::harness::until;

/// The part that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Redis,
    Postgres,
    /// The connections to either store, or the clients' connections to a service.
    RedisLink,
    PostgresLink,
    ClientLink,
    /// Repaired last: a service does not start without the stores.
    Service,
    All,
}

/// How a link is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Cut,
    Refuse,
    Delay,
    Stall,
    DropReplies,
    Silence,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// `kill -9`.
    Kill(Target),
    /// SIGSTOP, and SIGCONT as the repair.
    Freeze(Target),
    /// SIGTERM, and a new start as the repair.
    Replace,
    On(Target, Link),
    /// Every write beyond the current size fails.
    DiskFull(Target),
    /// `maxmemory` at one byte.
    OutOfMemory,
    /// A script that runs until SCRIPT KILL.
    BusyScript,
    ClientPause,
    /// Redis as a replica of a server that does not exist.
    ReadOnly,
    ClientKill,
    ScriptFlush,
}

use Fault::*;
use Link::*;
use Target::*;

impl Fault {
    const ALL: &[Fault] = &[
        Kill(Service),
        Kill(Redis),
        Kill(Postgres),
        Kill(All),
        Freeze(Service),
        Freeze(Redis),
        Freeze(Postgres),
        Replace,
        On(RedisLink, Cut),
        On(RedisLink, Refuse),
        On(RedisLink, Delay),
        On(RedisLink, Stall),
        On(RedisLink, DropReplies),
        On(RedisLink, Silence),
        On(PostgresLink, Cut),
        On(PostgresLink, Refuse),
        On(PostgresLink, Delay),
        On(PostgresLink, Stall),
        On(PostgresLink, DropReplies),
        On(PostgresLink, Silence),
        On(ClientLink, Cut),
        On(ClientLink, Delay),
        On(ClientLink, Stall),
        On(ClientLink, DropReplies),
        DiskFull(Redis),
        DiskFull(Postgres),
        OutOfMemory,
        BusyScript,
        ClientPause,
        ReadOnly,
        ClientKill,
        ScriptFlush,
    ];

    fn name(self) -> String {
        match self {
            Kill(target) => format!("kill -9 {target:?}"),
            Freeze(target) => format!("SIGSTOP {target:?}"),
            Replace => "SIGTERM Service".into(),
            On(target, link) => format!("{target:?}: {link:?}"),
            DiskFull(target) => format!("disk full: {target:?}"),
            other => format!("Redis: {other:?}"),
        }
    }

    fn target(self) -> Target {
        match self {
            Kill(target) | Freeze(target) | On(target, _) | DiskFull(target) => target,
            Replace => Service,
            OutOfMemory | BusyScript | ClientPause | ReadOnly | ClientKill | ScriptFlush => Redis,
        }
    }
}

/// The faults of a run.
#[derive(Default)]
pub struct FaultCounts {
    /// By kind: the number of faults, and the longest recovery.
    pub faults: BTreeMap<String, (usize, Duration)>,
}

/// A fault that is not repaired yet.
struct Injected {
    fault: Fault,
    /// The number of the affected service.
    service: usize,
    /// The call of the busy script.
    script: Option<tokio::task::JoinHandle<()>>,
}

/// The faults of a run: no kind repeats before every kind has occurred.
fn plan(faults: usize, random: &mut Random) -> Vec<Fault> {
    let mut plan: Vec<Fault> = Vec::new();
    while plan.len() < faults {
        let mut round = Fault::ALL.to_vec();
        random.shuffle(&mut round);
        plan.extend(round);
    }
    plan.truncate(faults);
    plan
}

/// Injects and repairs this many faults.
pub async fn run(shop: &mut Shop, market: &Market, faults: usize, seed: u64) -> FaultCounts {
    let mut random = Random::new(seed);
    let mut counts = FaultCounts::default();
    for fault in plan(faults, &mut random) {
        market.permits.add_permits(random.within(5, 30) as usize);
        let mut injected = vec![inject(shop, fault, &mut random).await];
        hold(market, &mut random).await;
        // One fault in four comes with a second one on another target.
        let second = *random.pick(Fault::ALL);
        if random.percent(25) && fault.target() != All && ![All, fault.target()].contains(&second.target()) {
            injected.push(inject(shop, second, &mut random).await);
            hold(market, &mut random).await;
        }
        let names: Vec<String> = injected.iter().map(|injected| injected.fault.name()).collect();
        println!("{}", names.join(" and "));
        injected.sort_by_key(|injected| injected.fault.target());
        for injected in injected {
            repair(shop, injected).await;
        }
        let took = recovered(shop, market).await;
        for name in names {
            let (times, longest) = counts.faults.entry(name).or_default();
            *times += 1;
            *longest = took.max(*longest);
        }
    }
    counts
}

/// Keeps the fault for 0.1 to 2.2 seconds under load.
async fn hold(market: &Market, random: &mut Random) {
    let until = Instant::now() + Duration::from_millis(random.within(100, 2200) as u64);
    while Instant::now() < until {
        market.permits.add_permits(3);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn recovered(shop: &Shop, market: &Market) -> Duration {
    let repaired = (Instant::now(), now());
    shop.ready().await.unwrap_or_else(|loss| panic!("acknowledged decisions are lost: {loss}"));
    until("a write is acknowledged again", async || {
        let written = market.history.wrote_since(repaired.1);
        if !written && market.permits.available_permits() < 20 {
            market.permits.add_permits(5);
        }
        written.then_some(())
    })
    .await;
    until("the clients have used their permits", async || (market.permits.available_permits() == 0).then_some(()))
        .await;
    shop.caught_up().await;
    repaired.0.elapsed()
}

async fn inject(shop: &mut Shop, fault: Fault, random: &mut Random) -> Injected {
    let service = random.within(0, shop.services.len() as i64 - 1) as usize;
    let mut script = None;
    match fault {
        Kill(Service) => shop.kill(service).await,
        Kill(Redis) => shop.redis.kill().await.unwrap(),
        Kill(Postgres) => shop.postgres.kill().await.unwrap(),
        Kill(_) => {
            let mut order = [Redis, Postgres, Service];
            random.shuffle(&mut order);
            for target in order {
                match target {
                    Redis => shop.redis.kill().await.unwrap(),
                    Postgres => shop.postgres.kill().await.unwrap(),
                    _ => {
                        for number in 0..shop.services.len() {
                            shop.kill(number).await;
                        }
                    }
                }
            }
        }
        Freeze(Redis) => shop.redis.pause().unwrap(),
        Freeze(Postgres) => shop.postgres.pause().unwrap(),
        Freeze(_) => shop.signal(service, Signal::STOP),
        Replace => shop.signal(service, Signal::TERM),
        On(target, link) => {
            let link_proxy = link_proxy(shop, target, service);
            let delay = |random: &mut Random| Duration::from_millis(random.within(0, 400) as u64);
            match link {
                Cut => link_proxy.cut(),
                Silence => link_proxy.silence(),
                Refuse => link_proxy.set(Mode::Refuse),
                Stall => link_proxy.set(Mode::Stall),
                DropReplies => link_proxy.set(Mode::DropReplies),
                Delay => link_proxy.set(Mode::Delay { up: delay(random), down: delay(random) }),
            }
        }
        DiskFull(Redis) => {
            let limit = longest_file(&shop.redis.data_dir()) + random.within(0, 4096) as u64;
            shop.redis.limit_file_size(Some(limit)).unwrap();
        }
        // PostgreSQL writes its log into files of their full length: only a limit below that length stops it.
        DiskFull(_) => shop.postgres.limit_file_size(Some(random.within(8 << 10, 512 << 10) as u64)).unwrap(),
        OutOfMemory => config(shop, "maxmemory", "1").await,
        BusyScript => {
            config(shop, "busy-reply-threshold", "50").await;
            let mut redis = shop.raw().await;
            script = Some(tokio::spawn(async move {
                let _ = command(&mut redis, &["EVAL", "while true do end", "0"]).await;
            }));
        }
        ClientPause => drop(command(&mut shop.raw().await, &["CLIENT", "PAUSE", "60000", "ALL"]).await.unwrap()),
        ReadOnly => drop(command(&mut shop.raw().await, &["REPLICAOF", "127.0.0.1", "1"]).await.unwrap()),
        ClientKill => {
            let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
            drop(command(&mut shop.raw().await, &kill).await.unwrap());
        }
        ScriptFlush => drop(command(&mut shop.raw().await, &["SCRIPT", "FLUSH", "SYNC"]).await.unwrap()),
    }
    Injected { fault, service, script }
}

async fn repair(shop: &mut Shop, injected: Injected) {
    let service = injected.service;
    match injected.fault {
        Kill(Redis) => shop.redis.restart().await.unwrap(),
        Kill(Postgres) => shop.postgres.restart().await.unwrap(),
        Kill(All) => {
            shop.redis.restart().await.unwrap();
            shop.postgres.restart().await.unwrap();
            for number in 0..shop.services.len() {
                start(shop, number).await;
            }
        }
        Freeze(Redis) => shop.redis.resume().unwrap(),
        Freeze(Postgres) => shop.postgres.resume().unwrap(),
        Kill(_) => start(shop, service).await,
        Freeze(_) => shop.signal(service, Signal::CONT),
        Replace => {
            shop.stop(service).await;
            start(shop, service).await;
        }
        On(target, _) => link_proxy(shop, target, service).set(Mode::Pass),
        // Lifts the limit, and starts the server if the full disk has ended it.
        DiskFull(Redis) => {
            println!("  Redis {}", if shop.redis.limit_file_size(None).is_err() { "ended" } else { "kept running" });
            shop.redis.restart().await.unwrap();
        }
        DiskFull(_) => {
            println!(
                "  PostgreSQL {}",
                if shop.postgres.limit_file_size(None).is_err() { "ended" } else { "kept running" }
            );
            shop.postgres.restart().await.unwrap();
        }
        OutOfMemory => config(shop, "maxmemory", "0").await,
        BusyScript => {
            let mut redis = shop.raw().await;
            until("the script is killed", async || command(&mut redis, &["SCRIPT", "KILL"]).await.ok()).await;
            injected.script.unwrap().await.unwrap();
        }
        ClientPause => drop(command(&mut shop.raw().await, &["CLIENT", "UNPAUSE"]).await.unwrap()),
        ReadOnly => drop(command(&mut shop.raw().await, &["REPLICAOF", "NO", "ONE"]).await.unwrap()),
        ClientKill | ScriptFlush => {}
    }
}

async fn start(shop: &mut Shop, number: usize) {
    shop.start(number).await.unwrap_or_else(|loss| panic!("acknowledged decisions are lost: {loss}"));
}

fn link_proxy(shop: &Shop, target: Target, service: usize) -> &Proxy {
    match target {
        RedisLink => &shop.to_redis,
        PostgresLink => &shop.to_postgres,
        _ => &shop.services[service].proxy,
    }
}

async fn command(redis: &mut MultiplexedConnection, words: &[&str]) -> redis::RedisResult<redis::Value> {
    redis::cmd(words[0]).arg(&words[1..]).query_async(redis).await
}

async fn config(shop: &Shop, name: &str, value: &str) {
    command(&mut shop.raw().await, &["CONFIG", "SET", name, value]).await.unwrap();
}

fn longest_file(dir: &Path) -> u64 {
    let length = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => longest_file(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    std::fs::read_dir(dir).unwrap().flatten().map(length).max().unwrap_or(0)
}
