//! Tests of the checks: each mutation breaks the program or a store in one place, and a check must detect it. The same run
//! without a mutation must pass.
//!
//! The program has no hooks for mutations. The proxy replaces scripts by mutants on the way to Redis; PostgreSQL gets a
//! trigger; Redis's disk is restored to an earlier state.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use firstcome::{
    dev::{PostgresServer, PostgresServerConfig, ScratchDir},
    redis::script::{self, Script},
};

use super::{
    clients::Market,
    conclude,
    history::{Outcome, Request},
    machines,
    nemesis::Chronicle,
    proxy::Mode,
    shop::{self, Options, Shop, outbox},
};
use crate::support::{files::copy_dir, harness::until};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mutation {
    Nothing,
    NoEvent,
    TrimBeforeCommit,
    PositionKept,
    DiskRestored,
    DiskRestoredUnderNewService,
    PowerLost,
    ReleasesTwice,
    FailsBelowTheLine,
}

use Mutation::*;

/// Each mutation, with the checks that must detect it.
const TABLE: [(Mutation, &str, &[&str]); 9] = [
    (Nothing, "nothing", &[]),
    (NoEvent, "balance_charge.lua without its XADD", &["the service", "the effects", "the invariants", "the audit"]),
    (
        TrimBeforeCommit,
        "the outbox is trimmed before PostgreSQL commits",
        &["the service", "the effects", "the invariants", "the audit"],
    ),
    (PositionKept, "the transaction does not advance the position", &["the service", "the invariants", "the audit"]),
    (
        DiskRestored,
        "appendfsync no, and Redis comes back with an older disk",
        &["the service", "the invariants", "the audit"],
    ),
    // The service that acknowledged the decisions is dead: the clients alone know them.
    (
        DiskRestoredUnderNewService,
        "the same, unknown to the service and to PostgreSQL",
        &["the effects", "linearizability"],
    ),
    // By the service if it had told PostgreSQL what it acknowledged, else by the clients' replies.
    (PowerLost, "appendfsync everysec, and Redis's machine loses its power", &[]),
    (ReleasesTwice, "order_close.lua releases a hold twice", &["the invariants", "the audit", "linearizability"]),
    // Half a decision: the outbox has the event, and the state lacks the effect.
    (
        FailsBelowTheLine,
        "a command of order_pay.lua fails below the line",
        &["the replies", "the invariants", "the audit"],
    ),
];

#[tokio::test]
async fn mutations_of_the_program_are_detected() {
    let dir = ScratchDir::new().unwrap();
    let mut template = PostgresServer::start(PostgresServerConfig::new(dir.path().join("postgres"))).await.unwrap();
    template.stop().await.unwrap();
    println!("(The findings of the invariants are also printed as panics.)");
    for (mutation, what, expected) in TABLE {
        let detected_by = run(mutation, template.data_dir().to_owned()).await;
        println!("{what:<66}detected by {detected_by:?}");
        let missing: Vec<_> = expected.iter().filter(|by| !detected_by.contains(**by)).collect();
        assert!(missing.is_empty(), "{what}: not detected by {missing:?}");
        assert_eq!(detected_by.is_empty(), mutation == Nothing, "{what}: detected by {detected_by:?}");
    }
}

/// A short run with a mutation in the middle. Returns the checks that detect it.
async fn run(mutation: Mutation, template: PathBuf) -> BTreeSet<&'static str> {
    let safe = !matches!(mutation, DiskRestored | DiskRestoredUnderNewService | PowerLost);
    // The projector notices a kept position when the outbox lacks the next event.
    let outbox_keep_seconds = if mutation == PositionKept { 0 } else { 60 };
    let options = Options { outbox_keep_seconds, safe, power_losses: mutation == PowerLost, ..Options::default() };
    let mut shop = Shop::open(options, Some(template)).await;
    let market = Market::of(&shop, 0);
    trade(&shop, &market, 0).await;
    shop.caught_up().await;
    match mutation {
        Nothing => trade(&shop, &market, 1).await,
        NoEvent => {
            // Replaces the call by one that takes the same arguments and does nothing.
            mutate(&shop, &script::BALANCE_CHARGE, "local id = emit(", "local id = (function() return '' end)(").await;
            trade(&shop, &market, 1).await;
        }
        ReleasesTwice => {
            let release = "move_units(ids, units, from_units, to_units)";
            mutate(&shop, &script::ORDER_CLOSE, release, &format!("{release} {release}")).await;
            trade(&shop, &market, 1).await;
        }
        FailsBelowTheLine => {
            // Fails as a missing right or an argument list that is too long does.
            let written = "local id = emit(outbox, epoch, events)\n";
            mutate(&shop, &script::ORDER_PAY, written, &format!("{written}redis.call('HSET', meta)\n")).await;
            trade(&shop, &market, 1).await;
        }
        TrimBeforeCommit => {
            shop.to_postgres.set(Mode::Stall);
            trade(&shop, &market, 1).await;
            let mut redis = shop.raw().await;
            let mut trim = redis::cmd("XTRIM");
            let trimmed: i64 = trim.arg(outbox(0)).arg("MAXLEN").arg(0).query_async(&mut redis).await.unwrap();
            assert!(trimmed > 0);
            shop.kill(0).await;
            shop.to_postgres.set(Mode::Pass);
            // The service refuses to start; the conclusion reports it.
            let _ = shop.start(0).await;
        }
        PositionKept => {
            let db = shop.db().await;
            let keep_position = "CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
                        CREATE TRIGGER stay BEFORE UPDATE ON projection_positions FOR EACH ROW EXECUTE FUNCTION stay()";
            sqlx::raw_sql(keep_position).execute(db.get_postgres_connection_pool()).await.unwrap();
            let before = outbox_size(&shop).await;
            trade(&shop, &market, 1).await;
            db.close().await.unwrap();
            // The projector then misses the next event in the outbox.
            until("an event of that day is committed and trimmed", async || {
                let now = outbox_size(&shop).await;
                (now.left < now.added - before.added).then_some(())
            })
            .await;
        }
        PowerLost => {
            machines::disk(&shop.redis.data_dir()).stall();
            trade(&shop, &market, 1).await;
            let before = decisions(&shop).await;
            machines::lose_power(&mut shop.redis, |flushed, _| flushed).await;
            shop.redis.restart().await.unwrap();
            assert!(decisions(&shop).await < before);
        }
        DiskRestored | DiskRestoredUnderNewService => {
            let (data, old) = (shop.redis.data_dir(), ScratchDir::new().unwrap());
            copy_dir(&data, old.path());
            if mutation == DiskRestoredUnderNewService {
                shop.to_postgres.set(Mode::Stall);
            }
            trade(&shop, &market, 1).await;
            match mutation {
                DiskRestoredUnderNewService => shop.kill(0).await,
                // PostgreSQL keeps the positions, also if the service is replaced at once.
                _ => shop.caught_up().await,
            }
            restore_disk(&mut shop, old.path()).await;
            if mutation == DiskRestoredUnderNewService {
                shop.to_postgres.set(Mode::Pass);
                shop.start(0).await.unwrap();
            }
        }
    }
    trade(&shop, &market, 2).await;
    let conclusion = conclude(&mut shop, &market, &Chronicle::default()).await;
    let findings = conclusion.findings.into_iter();
    if mutation == Nothing {
        findings.clone().for_each(|finding| println!("{}: {}", finding.by, finding.what));
    }
    findings.map(|finding| finding.by).collect()
}

/// Sends every kind of write, and reads, for the same few objects.
pub async fn trade(shop: &Shop, market: &Market, day: i64) {
    let http = shop::client();
    let goods = &shop.goods;
    let (user, other, product) = (goods.users[0], goods.users[1], goods.products[0]);
    let send = async |request: Request| market.send(&http, request).await;
    send(Request::Charge { user, amount: 10 + day }).await;
    let taker = if day == 0 { user } else { other };
    send(Request::Issue { campaign: goods.campaigns[0], user: taker }).await;
    for end in ["pay", "cancel"] {
        let placing =
            Request::Place { user, lines: vec![(product, 2), (goods.products[1], 1)], coupon: None, pays: false };
        let Outcome::Done { body, .. } = send(placing).await else { continue };
        let (order, price) = (body["orderId"].as_i64().unwrap(), body["finalPrice"].as_i64().unwrap());
        send(Request::Product { product }).await;
        match end {
            "pay" => send(Request::Pay { order, user, price, amount: price }).await,
            _ => send(Request::Cancel { order, user }).await,
        };
        send(Request::Order { order, user }).await;
    }
    send(Request::Product { product }).await;
    send(Request::Balance { user }).await;
}

/// The number of the partition's decisions.
async fn decisions(shop: &Shop) -> i64 {
    let mut read = redis::cmd("HGET");
    read.arg("{p0}:meta").arg("seq").query_async(&mut shop.raw().await).await.unwrap()
}

/// The number of entries that an outbox has ever had, and that it has now.
struct OutboxSize {
    added: i64,
    left: i64,
}

async fn outbox_size(shop: &Shop) -> OutboxSize {
    let mut info = redis::cmd("XINFO");
    let info: HashMap<String, redis::Value> =
        info.arg("STREAM").arg(outbox(0)).query_async(&mut shop.raw().await).await.unwrap();
    let number = |name: &str| redis::from_redis_value_ref(&info[name]).unwrap();
    OutboxSize { added: number("entries-added"), left: number("length") }
}

/// Replaces this script by a mutant in every call from now on.
async fn mutate(shop: &Shop, script: &Script, from: &str, to: &str) {
    let source = script.source();
    let mutant = source.replace(from, to);
    assert_ne!(source, mutant, "{} has no {from}", script.name);
    let mut redis = shop.raw().await;
    let mut load = async |source: &str| -> String {
        redis::cmd("SCRIPT").arg("LOAD").arg(source).query_async(&mut redis).await.unwrap()
    };
    let (sha, mutant_sha) = (load(&source).await, load(&mutant).await);
    shop.to_redis.exchange(&sha, &mutant_sha);
    shop.to_redis.cut();
    shop.ready().await.unwrap();
}

/// Kills Redis, and restarts it with an earlier copy of its data.
async fn restore_disk(shop: &mut Shop, old: &Path) {
    let data = shop.redis.data_dir();
    shop.redis.kill().await.unwrap();
    copy_dir(old, &data);
    shop.redis.restart().await.unwrap();
}
