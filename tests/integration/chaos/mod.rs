//! Crash tests: real processes, clients that record every reply, and a nemesis that breaks each part in turn.
//!
//! Afterwards the test restarts everything, repeats operations with an unknown outcome under their keys, drains the outbox, and
//! compares the record with the stores: each acknowledged effect is stored exactly once, a refusal has no effect, the
//! invariants hold, and the history of each object is linearizable.
//!
//! `make test` has short runs, `make chaos` long ones. The seed decides the requests, the faults and their moments, counted
//! in attempts of the clients; the machine decides the interleaving. Of one run the seed also draws the settings and the kinds of
//! faults ([`swarm`]). A failed run prints the command that repeats it, `CHAOS_SEED=… CHAOS_FAULTS=… make chaos`, and leaves
//! [`evidence`]. `CHAOS_CLIENTS` is the number of clients, unless the seed draws it. With `BASE_PROGRAM`, the path of another version
//! of the program, every second start of a service in that run is one of it.
//!
//! [`proxy`] is on every connection and breaks it; [`shop`] has the processes, [`clients`] the load, [`nemesis`] the [`faults`];
//! [`gateway`] takes some of the payments, [`windows`] has its customers; [`elsewhere`] is what operators bring in; [`feed`] reads the events,
//! and receives them by webhook; [`history`] is the record; [`facts`] compares it with the stores; [`losses`] is what a run
//! may lose; [`objects`] and [`linear`] check single objects; [`situations`] has what a long run must have met; [`mutations`] tests
//! the checks: each mutation breaks the program in one place.

pub mod clients;
mod corruption;
mod elsewhere;
mod evidence;
pub mod facts;
mod faults;
mod feed;
mod gateway;
pub mod history;
mod linear;
mod logs;
mod long;
mod losses;
mod machines;
mod mutations;
mod nemesis;
mod objects;
mod options;
mod proxy;
mod requests;
mod results;
pub mod shop;
mod situations;
mod swarm;
mod windows;

use std::{collections::BTreeMap, time::Instant};

use sea_orm::DatabaseConnection;

use self::{
    clients::Market,
    evidence::Evidence,
    facts::Facts,
    history::{Operation, Outcome, Random, Request},
    losses::Losses,
    nemesis::Chronicle,
    objects::CheckResults,
    results::Results,
    shop::{Options, Shop},
    situations::Observed,
    swarm::Draw,
};
use crate::support::{fake_gateway::Protocol, harness::until, invariants};

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
    /// How often the run had each situation.
    situations: BTreeMap<&'static str, usize>,
    findings: Vec<Finding>,
}

/// The number that a variable has.
fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")),
        Err(_) => default,
    }
}

fn seed() -> u64 {
    number("CHAOS_SEED", 20_260_302)
}

/// A run that draws no settings, with so many faults unless the environment says how many.
fn fixed(partitions: u16, faults: u64) -> Draw {
    let options = Options { partitions, services: 2, hold_seconds: 3, ..Options::default() };
    Draw::fixed(seed(), options, number("CHAOS_FAULTS", faults) as usize, number("CHAOS_CLIENTS", 8))
}

#[tokio::test]
async fn acknowledged_decisions_survive_faults() {
    survive_faults(fixed(1, 10)).await;
}

#[tokio::test]
async fn acknowledged_decisions_survive_faults_across_partitions() {
    survive_faults(fixed(3, 5)).await;
}

/// The seed draws the settings and the kinds of faults.
#[tokio::test]
async fn acknowledged_decisions_survive_drawn_faults() {
    let mut draw = Draw::of(seed(), number("CHAOS_FAULTS", 6) as usize);
    draw.options.base_program = std::env::var_os("BASE_PROGRAM").map(Into::into);
    // Earlier versions know no terms of sale, no providers, no webhooks, and nothing from elsewhere.
    draw.options.terms &= draw.options.base_program.is_none();
    draw.options.doors &= draw.options.base_program.is_none();
    if draw.options.base_program.is_some() {
        draw.options.gateway = draw.options.gateway.map(|_| Protocol::Http);
    }
    survive_faults(draw).await;
}

/// A connection to PostgreSQL stops passing bytes within a transaction, as when a firewall drops its state: the projection
/// continues over another connection, although the server considers the first one alive.
#[tokio::test]
async fn projection_reconnects_when_connection_silent() {
    let options = Options { users: 1, products: 0, campaigns: 0, ..Options::default() };
    let mut shop = Shop::open(options, None).await;
    shop.caught_up().await;
    let market = Market::of(&shop, 0);
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
    let conclusion = conclude(&mut shop, &market, &Chronicle::default()).await;
    assert!(conclusion.findings.is_empty(), "{:?}", conclusion.findings);
}

async fn survive_faults(draw: Draw) {
    let begun = Instant::now();
    println!("{draw}");
    let mut shop = Shop::open(draw.options.clone(), None).await;
    let market = Market::of(&shop, draw.seed);
    let mut evidence = Evidence::of(&draw, &shop, &market);
    let clients = market.start(draw.clients);
    let chronicle = nemesis::run(&mut shop, &market, &draw).await;
    market.permits.close();
    for client in clients {
        client.await.unwrap();
    }
    let conclusion = conclude(&mut shop, &market, &chronicle).await;
    let results = Results::of(&draw, &chronicle, &conclusion, begun.elapsed());
    println!("{results}");
    results.append();
    if !conclusion.findings.is_empty() {
        println!("{}", shop.logs());
        for Finding { by, what } in &conclusion.findings {
            println!("{by}: {what}");
        }
    }
    assert!(conclusion.findings.is_empty(), "{} violations", conclusion.findings.len());
    evidence.clean = true;
}

/// Restarts everything, settles the open operations, drains, and checks.
async fn conclude(shop: &mut Shop, market: &Market, chronicle: &Chronicle) -> Conclusion {
    let mut findings = Vec::new();
    let mut found = |by: &'static str, what: String| findings.push(Finding { by, what });
    if let Err(loss) = settle(shop, market).await {
        found("the service", loss);
    }
    let (mut events, mut decided) = (Vec::new(), BTreeMap::new());
    if let Some(hook) = &shop.hook {
        // The sweeper decides, too.
        shop.holds_ended().await;
        shop.caught_up().await;
        let db = shop.db().await;
        decided = feed::last_decisions(db.get_postgres_connection_pool()).await;
        events = feed::read(shop).await;
        hook.caught_up(&shop.bases()[0], db.get_postgres_connection_pool(), &events).await;
        db.close().await.unwrap();
    }
    shop.drain().await.into_iter().for_each(|what| found("the drain", what));
    let operations = market.history.all();
    let db = shop.db().await;
    let pool = db.get_postgres_connection_pool();
    let facts = Facts::read(pool).await;
    let losses = Losses::read(&db, &shop.options, chronicle).await;
    losses.contradictions(&operations).into_iter().for_each(|what| found("the replies", what));
    if let Some(hook) = &shop.hook {
        let contradictions = feed::contradictions(&events, &decided, &facts, &losses);
        contradictions.into_iter().for_each(|what| found("the feed", what));
        hook.contradictions(&events, &losses).into_iter().for_each(|what| found("the webhook", what));
        let names = elsewhere::names_left(pool, &operations, &facts.brought, &events, &losses).await;
        names.into_iter().for_each(|what| found("the names", what));
    }
    if let Some(gateway) = &shop.gateway {
        let contradictions = gateway::contradictions(gateway, &facts, &losses);
        contradictions.into_iter().for_each(|what| found("the gateway", what));
    }
    let differences = facts::compare(&operations, &facts, &shop.goods);
    losses.unexplained(differences).into_iter().for_each(|what| found("the effects", what));
    losses
        .findings(&operations, &mut shop.raw().await)
        .await
        .into_iter()
        .for_each(|what| found("the recoveries", what));
    recompute(shop, &db).await.into_iter().for_each(|what| found("the invariants", what));
    shop.audit().await.into_iter().for_each(|what| found("the audit", what));
    let check_results = objects::check_all(&operations, &facts, shop.options.partitions, &losses);
    check_results.violations.iter().for_each(|what| found("linearizability", what.clone()));
    db.close().await.unwrap();
    let (services, servers) = shop.whole_logs();
    let observed = Observed {
        options: &shop.options,
        operations: &operations,
        facts: &facts,
        chronicle,
        losses: &losses,
        services: &services,
        servers: &servers,
    };
    let situations = situations::count(&observed);
    Conclusion { operations, check_results, situations, findings }
}

async fn settle(shop: &mut Shop, market: &Market) -> Result<(), String> {
    shop.start_anew().await?;
    let http = shop::client();
    for number in market.history.open() {
        until("an operation is settled", async || match market.attempt(&http, number, &mut Random::new(0)).await {
            Outcome::Unknown(_) => shop.ready().await.err().map(Err),
            _ => Some(Ok(())),
        })
        .await?;
        market.history.settle(number);
    }
    if shop.gateway.is_some() {
        shop.caught_up().await;
        shop.payments_ended().await;
    }
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
