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
    faults::*,
    gateway,
    history::{Random, now},
    machines,
    proxy::{Mode, Proxy},
    shop::Shop,
    swarm::Draw,
};
use crate::support::harness::until;

/// What the nemesis did. Times are nanoseconds since 1970.
#[derive(Default)]
pub struct Chronicle {
    /// By kind.
    pub faults: BTreeMap<String, FaultCount>,
    /// When services or servers were killed.
    pub kills: Vec<u64>,
    /// The times in which a replica lacked decisions, each until it was promoted.
    pub lags: Vec<(u64, u64)>,
    pub rebuilds: Vec<HandRebuild>,
    /// Bytes of the append-only file that each power loss took.
    pub power_losses: Vec<u64>,
    /// The times in which a service's clock was off.
    pub skews: Vec<(u64, u64)>,
}

/// The faults of a kind, and how long the recoveries took.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultCount {
    pub times: usize,
    pub longest: Duration,
    pub total: Duration,
}

/// A rebuild of a partition by hand, while the others sell.
pub struct HandRebuild {
    pub partition: u16,
    pub began: u64,
    pub ended: u64,
    /// Whether a first one was killed in the middle.
    pub killed: bool,
}

/// A fault that is not repaired yet.
struct Injected {
    fault: Fault,
    /// The number of the affected service.
    service: usize,
    /// The call of the busy script.
    script: Option<tokio::task::JoinHandle<()>>,
    began: u64,
    /// Whether the recovery that the fault needs is broken off.
    interrupted: bool,
    rebuild: Option<HandRebuild>,
}

/// Injects and repairs the faults of a run.
pub async fn run(shop: &mut Shop, market: &Market, draw: &Draw) -> Chronicle {
    let mut random = Random::new(draw.seed);
    // Of its own, so that a seed draws the same faults with and without a webhook.
    let mut operator = Random::new(!draw.seed);
    let mut chronicle = Chronicle::default();
    for fault in draw.weights.plan(draw.faults, &mut random) {
        market.permits.add_permits(random.within(5, 30) as usize);
        if fault == PostgresFailover {
            shop.have_standby().await;
        }
        let mut injected = vec![inject(shop, fault, &mut chronicle, &mut random).await];
        tokio::join!(hold(market, draw.load, &mut random), operate(shop, &mut operator));
        // One fault in four comes with a second one on another target.
        let second = draw.weights.pick(&mut random);
        let is_possible = second.goes_with(fault) && (second != PostgresFailover || shop.standby.is_some());
        if random.percent(25) && is_possible {
            injected.push(inject(shop, second, &mut chronicle, &mut random).await);
            hold(market, draw.load, &mut random).await;
        }
        // Services are killed in the recovery: the repair of another fault would start them.
        injected[0].interrupted = random.percent(50) && injected.len() == 1 && shop.services.len() > 1;
        let names: Vec<String> = injected.iter().map(|injected| injected.fault.name()).collect();
        println!("{}", names.join(" and "));
        injected.sort_by_key(|injected| injected.fault.target());
        for injected in injected {
            repair(shop, injected, &mut chronicle, &mut random).await;
        }
        let took = recovered(shop, market).await;
        for name in names {
            let count = chronicle.faults.entry(name).or_default();
            *count = FaultCount { times: count.times + 1, longest: took.max(count.longest), total: took + count.total };
        }
    }
    chronicle
}

/// An operator changes the webhook, at a service that may be the one with the fault.
async fn operate(shop: &Shop, random: &mut Random) {
    if let Some(hook) = &shop.hook {
        hook.change(random.pick::<String>(&shop.bases()), random).await;
    }
}

/// Keeps the fault for 0.1 to 2.2 seconds under load.
async fn hold(market: &Market, load: usize, random: &mut Random) {
    let until = Instant::now() + Duration::from_millis(random.within(100, 2200) as u64);
    while Instant::now() < until {
        market.permits.add_permits(load);
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

async fn inject(shop: &mut Shop, fault: Fault, chronicle: &mut Chronicle, random: &mut Random) -> Injected {
    let service = random.within(0, shop.services.len() as i64 - 1) as usize;
    let (mut script, mut rebuild, mut began) = (None, None, now());
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
        Failover => began = machines::begin_lag(shop, random).await,
        SentinelSwitch => machines::lose_master(shop, chronicle).await,
        PostgresFailover => machines::begin_postgres_lag(shop).await,
        PowerLoss => machines::disk(&shop.redis.data_dir()).stall(),
        WrongClock => machines::skew(shop, service, random).await,
        LyingGateway => gateway::lie(shop.gateway.as_ref().unwrap(), random),
        BrokenRebuild => rebuild = Some(machines::break_rebuild(shop, random).await),
    }
    if matches!(fault, Kill(_) | WrongClock) {
        chronicle.kills.push(now());
    }
    Injected { fault, service, script, began, interrupted: false, rebuild }
}

async fn repair(shop: &mut Shop, injected: Injected, chronicle: &mut Chronicle, random: &mut Random) {
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
        Failover => {
            machines::fail_over(shop, injected.began, chronicle).await;
            if injected.interrupted {
                machines::interrupt_recovery(shop, chronicle, random).await;
            }
        }
        SentinelSwitch => machines::await_switch(shop, chronicle).await,
        PostgresFailover => machines::fail_over_postgres(shop, chronicle).await,
        PowerLoss => {
            let kept = |flushed: u64, length: u64| random.within(flushed as i64, length as i64) as u64;
            chronicle.power_losses.push(machines::lose_power(&mut shop.redis, kept).await);
            chronicle.kills.push(now());
            shop.redis.restart().await.unwrap();
        }
        WrongClock => {
            chronicle.skews.push((injected.began, now()));
            shop.kill(service).await;
            shop.services[service].clock_offset_ms = 0;
            start(shop, service).await;
        }
        LyingGateway => gateway::be_honest(shop.gateway.as_ref().unwrap()),
        BrokenRebuild => machines::finish_rebuild(shop, injected.rebuild.unwrap(), chronicle).await,
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
