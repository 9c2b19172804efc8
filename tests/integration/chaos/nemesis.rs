//! The nemesis: every kind of fault, in an order and at moments that follow from the seed, and the repair of each.
//!
//! A moment is counted in attempts of the clients, not in time: they get a number of attempts before, during and after
//! a fault. Afterwards the service must recover by itself (killed processes are restarted): every instance is ready, a
//! write is acknowledged, and PostgreSQL catches up.

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
    /// The way to either, or the clients' way to a service.
    RedisLink,
    PostgresLink,
    ClientLink,
    /// Mended last: it does not start without the others.
    Service,
    All,
}

/// How a way is broken.
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
    /// SIGSTOP, and SIGCONT after a while.
    Freeze(Target),
    /// SIGTERM, and a new start.
    Replace,
    On(Target, Link),
    /// Every write beyond the current size fails.
    DiskFull(Target),
    /// `maxmemory` at nothing.
    OutOfMemory,
    /// A script that does not end, until it is killed.
    BusyScript,
    ClientPause,
    /// A replica without a master, for a while.
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
pub struct Damage {
    /// By kind: how often, and the longest that the shop took to recover.
    pub faults: BTreeMap<String, (usize, Duration)>,
}

/// Something that is broken now.
struct Broken {
    fault: Fault,
    /// The service that it is about.
    service: usize,
    /// The repair, while it runs.
    script: Option<tokio::task::JoinHandle<()>>,
}

/// The faults of a run: every kind comes before any comes again.
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

/// Breaks and mends, so many times.
pub async fn rage(shop: &mut Shop, market: &Market, faults: usize, seed: u64) -> Damage {
    let mut random = Random::new(seed);
    let mut damage = Damage::default();
    for fault in plan(faults, &mut random) {
        market.permits.add_permits(random.within(5, 30) as usize);
        let mut broken = vec![inject(shop, fault, &mut random).await];
        hold(market, &mut random).await;
        // Now and then something else breaks as well.
        let second = *random.pick(Fault::ALL);
        if random.percent(25) && fault.target() != All && ![All, fault.target()].contains(&second.target()) {
            broken.push(inject(shop, second, &mut random).await);
            hold(market, &mut random).await;
        }
        let names: Vec<String> = broken.iter().map(|broken| broken.fault.name()).collect();
        println!("{}", names.join(" and "));
        broken.sort_by_key(|broken| broken.fault.target());
        for broken in broken {
            mend(shop, broken).await;
        }
        let took = recovered(shop, market).await;
        for name in names {
            let (times, longest) = damage.faults.entry(name).or_default();
            *times += 1;
            *longest = took.max(*longest);
        }
    }
    damage
}

/// Keeps the fault for a while under load.
async fn hold(market: &Market, random: &mut Random) {
    let until = Instant::now() + Duration::from_millis(random.within(100, 2200) as u64);
    while Instant::now() < until {
        market.permits.add_permits(3);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn recovered(shop: &Shop, market: &Market) -> Duration {
    let mended = (Instant::now(), now());
    shop.ready().await.unwrap_or_else(|loss| panic!("acknowledged decisions are lost: {loss}"));
    until("a write is acknowledged again", async || {
        let written = market.history.wrote_since(mended.1);
        if !written && market.permits.available_permits() < 20 {
            market.permits.add_permits(5);
        }
        written.then_some(())
    })
    .await;
    until("the clients are done", async || (market.permits.available_permits() == 0).then_some(())).await;
    shop.caught_up().await;
    mended.0.elapsed()
}

async fn inject(shop: &mut Shop, fault: Fault, random: &mut Random) -> Broken {
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
            let way = way(shop, target, service);
            let some = |random: &mut Random| Duration::from_millis(random.within(0, 400) as u64);
            match link {
                Cut => way.cut(),
                Silence => way.silence(),
                Refuse => way.set(Mode::Refuse),
                Stall => way.set(Mode::Stall),
                DropReplies => way.set(Mode::DropReplies),
                Delay => way.set(Mode::Delay { up: some(random), down: some(random) }),
            }
        }
        DiskFull(Redis) => {
            let limit = longest_file(&shop.redis.data_dir()) + random.within(0, 4096) as u64;
            shop.redis.limit_file_size(Some(limit)).unwrap();
        }
        // Its log is written into files that are there in their whole length: so the limit is below that.
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
    Broken { fault, service, script }
}

async fn mend(shop: &mut Shop, broken: Broken) {
    let service = broken.service;
    match broken.fault {
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
        On(target, _) => way(shop, target, service).set(Mode::Pass),
        // Room is made on the disk, and what ended of it is started.
        DiskFull(Redis) => {
            println!("  Redis {}", if shop.redis.limit_file_size(None).is_err() { "ended" } else { "went on" });
            shop.redis.restart().await.unwrap();
        }
        DiskFull(_) => {
            println!("  PostgreSQL {}", if shop.postgres.limit_file_size(None).is_err() { "ended" } else { "went on" });
            shop.postgres.restart().await.unwrap();
        }
        OutOfMemory => config(shop, "maxmemory", "0").await,
        BusyScript => {
            let mut redis = shop.raw().await;
            until("the script is killed", async || command(&mut redis, &["SCRIPT", "KILL"]).await.ok()).await;
            broken.script.unwrap().await.unwrap();
        }
        ClientPause => drop(command(&mut shop.raw().await, &["CLIENT", "UNPAUSE"]).await.unwrap()),
        ReadOnly => drop(command(&mut shop.raw().await, &["REPLICAOF", "NO", "ONE"]).await.unwrap()),
        ClientKill | ScriptFlush => {}
    }
}

async fn start(shop: &mut Shop, number: usize) {
    shop.start(number).await.unwrap_or_else(|loss| panic!("acknowledged decisions are lost: {loss}"));
}

fn way(shop: &Shop, target: Target, service: usize) -> &Proxy {
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
