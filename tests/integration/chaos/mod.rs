//! Crash tests: real processes, clients that record every reply, and a nemesis that breaks each part in turn.
//!
//! Afterwards the test restarts everything, repeats operations with an unknown outcome under their keys, drains the outbox, and
//! compares the record with the stores: each acknowledged effect is stored exactly once, a refusal has no effect, the
//! invariants hold, and the history of each object is linearizable.
//!
//! `make test` has a short run, `make chaos` a long one. The seed decides the requests, the faults and their moments, counted
//! in attempts of the clients; the machine decides the interleaving. A failed run prints the command that repeats it:
//! `CHAOS_SEED=… CHAOS_FAULTS=… make chaos`. `CHAOS_CLIENTS` is the number of clients.
//!
//! [`proxy`] is on every connection and breaks it; [`shop`] has the processes, [`clients`] the load, [`nemesis`] the faults;
//! [`history`] is the record; [`facts`] compares it with the stores; [`objects`] and [`linear`] check single objects;
//! [`mutations`] tests the checks: each mutation breaks the program in one place.

pub mod clients;
pub mod facts;
pub mod history;
mod linear;
mod mutations;
mod nemesis;
mod objects;
mod proxy;
pub mod shop;

use std::time::Instant;

use sea_orm::DatabaseConnection;

use self::{
    clients::Market,
    facts::Facts,
    history::{Counts, Operation, Outcome, Random, Request},
    nemesis::FaultCounts,
    objects::CheckResults,
    shop::{Options, Shop},
};
use crate::support::{harness::until, invariants};

/// A broken promise, and the check that found it.
#[derive(Clone, Debug)]
pub struct Finding {
    pub by: &'static str,
    pub what: String,
}

/// The end of a run.
struct Conclusion {
    operations: Vec<Operation>,
    check_results: CheckResults,
    findings: Vec<Finding>,
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")),
        Err(_) => default,
    }
}

/// Prints the command that repeats the run, unless the run ends without findings.
struct Replay {
    seed: u64,
    faults: u64,
    clients: u64,
    clean: bool,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if !self.clean {
            let Replay { seed, faults, clients, .. } = self;
            println!("repeat with: CHAOS_SEED={seed} CHAOS_FAULTS={faults} CHAOS_CLIENTS={clients} make chaos");
        }
    }
}

#[tokio::test]
async fn acknowledged_decisions_survive_faults() {
    survive_faults(1, number("CHAOS_FAULTS", 10)).await;
}

#[tokio::test]
async fn acknowledged_decisions_survive_faults_across_partitions() {
    survive_faults(3, number("CHAOS_FAULTS", 10).div_ceil(2)).await;
}

/// A connection to PostgreSQL stops passing bytes within a transaction, as when a firewall drops its state: the projection
/// continues over another connection, although the server considers the first one alive.
#[tokio::test]
async fn projection_reconnects_when_connection_silent() {
    let options = Options {
        partitions: 1,
        services: 1,
        hold_seconds: 600,
        outbox_keep_seconds: 60,
        safe: true,
        users: 1,
        products: 0,
        campaigns: 0,
    };
    let mut shop = Shop::open(options, None).await;
    shop.caught_up().await;
    let market = Market::new(&shop.goods, shop.bases(), 0);
    let db = shop.db().await;
    let pool = db.get_postgres_connection_pool();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM projection_positions FOR UPDATE").execute(&mut *lock).await.unwrap();
    market.send(&shop::client(), Request::Charge { user: shop.goods.users[0], amount: 1 }).await;
    until("the projection waits for the lock", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap();
        (waiting > 0).then_some(())
    })
    .await;
    shop.to_postgres.silence();
    lock.rollback().await.unwrap();
    db.close().await.unwrap();
    shop.caught_up().await;
    let conclusion = conclude(&mut shop, &market).await;
    assert!(conclusion.findings.is_empty(), "{:?}", conclusion.findings);
}

async fn survive_faults(partitions: u16, faults: u64) {
    let (seed, clients) = (number("CHAOS_SEED", 20_260_302), number("CHAOS_CLIENTS", 8));
    let begun = Instant::now();
    let mut replay = Replay { seed, faults: number("CHAOS_FAULTS", 10), clients, clean: false };
    println!("seed {seed}, {partitions} partition(s), {faults} faults, {clients} clients");
    let each = 12 + faults as i64;
    let (services, safe, hold_seconds) = (2, true, 3);
    let options = Options {
        partitions,
        services,
        hold_seconds,
        outbox_keep_seconds: 60,
        safe,
        users: 2 * each,
        products: each,
        campaigns: each,
    };
    let mut shop = Shop::open(options, None).await;
    let market = Market::new(&shop.goods, shop.bases(), seed);
    let clients = market.start(clients);
    let fault_counts = nemesis::run(&mut shop, &market, faults as usize, seed).await;
    market.permits.close();
    for client in clients {
        client.await.unwrap();
    }
    let conclusion = conclude(&mut shop, &market).await;
    report(seed, partitions, &fault_counts, &conclusion, begun);
    if !conclusion.findings.is_empty() {
        println!("{}", shop.logs());
        for Finding { by, what } in &conclusion.findings {
            println!("{by}: {what}");
        }
    }
    assert!(conclusion.findings.is_empty(), "{} violations", conclusion.findings.len());
    replay.clean = true;
}

/// Restarts everything, settles the open operations, drains, and checks.
async fn conclude(shop: &mut Shop, market: &Market) -> Conclusion {
    let mut findings = Vec::new();
    let mut found = |by: &'static str, what: String| findings.push(Finding { by, what });
    if let Err(loss) = settle(shop, market).await {
        found("the service", loss);
    }
    shop.drain().await.into_iter().for_each(|what| found("the drain", what));
    let operations = market.history.all();
    let db = shop.db().await;
    let facts = Facts::read(db.get_postgres_connection_pool()).await;
    operations.iter().flat_map(Operation::contradictions).for_each(|what| found("the replies", what));
    facts::compare(&operations, &facts, &shop.goods).into_iter().for_each(|what| found("the effects", what));
    recompute(shop, &db).await.into_iter().for_each(|what| found("the invariants", what));
    shop.audit().await.into_iter().for_each(|what| found("the audit", what));
    let check_results = objects::check_all(&operations, &facts, shop.options.partitions);
    check_results.violations.iter().for_each(|what| found("linearizability", what.clone()));
    db.close().await.unwrap();
    Conclusion { operations, check_results, findings }
}

async fn settle(shop: &mut Shop, market: &Market) -> Result<(), String> {
    shop.start_anew().await?;
    let http = shop::client();
    for number in market.history.open() {
        while let Outcome::Unknown(_) = market.attempt(&http, number, &mut Random::new(0)).await {
            shop.ready().await?;
        }
        market.history.settle(number);
    }
    shop.stray_holds_ended().await;
    Ok(())
}

/// Checks every invariant in the raw stores, apart from `firstcome audit`, which is part of the product.
async fn recompute(shop: &Shop, db: &DatabaseConnection) -> Vec<String> {
    let (mut servers, db, partitions) = (vec![shop.raw().await], db.clone(), shop.options.partitions);
    let checked = tokio::spawn(async move { invariants::check(&mut servers, &db, partitions, 0).await }).await;
    let message = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => (*panic.downcast::<&str>().map_or("?", |text| *text)).to_owned(),
    };
    checked.err().map(|error| message(error.into_panic())).into_iter().collect()
}

fn report(seed: u64, partitions: u16, fault_counts: &FaultCounts, conclusion: &Conclusion, begun: Instant) {
    let counts = Counts::of(&conclusion.operations);
    let check_results = &conclusion.check_results;
    let total: usize = fault_counts.faults.values().map(|(times, _)| times).sum();
    println!("\n--- seed {seed}, {partitions} partition(s), {:.0} s ---", begun.elapsed().as_secs_f64());
    for (name, count) in [
        ("operations", counts.operations),
        ("  attempts at them", counts.attempts),
        ("writes", counts.writes),
        ("  2xx", counts.done),
        ("  declined payments", counts.declined),
        ("  refused", counts.refused),
        ("  with an unknown outcome at first", counts.unknown),
        ("    settled: with the effect", counts.settled_done),
        ("    settled: refused", counts.settled_refused),
        ("    never settled", counts.open),
        ("  replayed replies", counts.replays),
        ("objects checked for linearizability", check_results.checked.values().sum()),
        ("  the longest history", check_results.longest),
        ("  undecided", check_results.undecided),
        ("faults", total),
    ] {
        println!("{name:<40}{count:>8}");
    }
    for (name, (times, longest)) in &fault_counts.faults {
        println!("  {name:<38}{times:>8}   recovered within {:.1} s", longest.as_secs_f64());
    }
    println!("{:<40}{:>8}", "violations", conclusion.findings.len());
    println!("by verb {:?}; by object {:?}", counts.verbs, check_results.checked);
}
