//! Proof that the checks can fail: the program, or a store under it, is broken in one place at a time, and a check must
//! detect it. The same run without a mutation must pass.
//!
//! The program has no hooks for this. Scripts are replaced by mutants on their way to Redis; PostgreSQL gets a trigger;
//! a disk is set back to an earlier state.

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
    history::{Ask, Outcome},
    proxy::Mode,
    shop::{self, Options, Shop, outbox},
};
use crate::support::{files::copy_dir, harness::until};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mutation {
    Nothing,
    NoEvent,
    TrimBeforeCommit,
    PositionStays,
    DiskPutBack,
    DiskPutBackUnderNewService,
    GiveBackTwice,
    FailsBelowTheLine,
}

use Mutation::*;

/// Each mutation, with the checks that must detect it.
const TABLE: [(Mutation, &str, &[&str]); 8] = [
    (Nothing, "nothing", &[]),
    (NoEvent, "balance_charge.lua without its XADD", &["the service", "the effects", "the books", "the audit"]),
    (
        TrimBeforeCommit,
        "the outbox is trimmed before PostgreSQL commits",
        &["the service", "the effects", "the books", "the audit"],
    ),
    (PositionStays, "the position is not moved in the transaction", &["the service", "the books", "the audit"]),
    (
        DiskPutBack,
        "appendfsync no, and Redis comes back with an older disk",
        &["the service", "the books", "the audit"],
    ),
    // No process is left that acknowledged it: only the clients know.
    (
        DiskPutBackUnderNewService,
        "the same, the service and PostgreSQL knowing nothing",
        &["the effects", "linearizability"],
    ),
    (GiveBackTwice, "order_close.lua gives a hold back twice", &["the books", "the audit", "linearizability"]),
    // Half a decision: its event is there, and nothing else of it.
    (FailsBelowTheLine, "a command of order_pay.lua fails below the line", &["the replies", "the books", "the audit"]),
];

#[tokio::test]
async fn mutations_of_the_program_are_detected() {
    let dir = ScratchDir::new().unwrap();
    let mut template = PostgresServer::start(PostgresServerConfig::new(dir.path().join("postgres"))).await.unwrap();
    template.stop().await.unwrap();
    println!("(What the books find is also printed as a panic.)");
    for (mutation, what, expected) in TABLE {
        let caught = run(mutation, template.data_dir().to_owned()).await;
        println!("{what:<66}caught by {caught:?}");
        let missing: Vec<_> = expected.iter().filter(|by| !caught.contains(**by)).collect();
        assert!(missing.is_empty(), "{what}: not caught by {missing:?}");
        assert_eq!(caught.is_empty(), mutation == Nothing, "{what}: caught by {caught:?}");
    }
}

/// A short run with a mutation in the middle. Returns the checks that detect it.
async fn run(mutation: Mutation, template: PathBuf) -> BTreeSet<&'static str> {
    let safe = !matches!(mutation, DiskPutBack | DiskPutBackUnderNewService);
    let options = Options { partitions: 1, services: 1, hold_seconds: 600, safe, users: 2, products: 2, campaigns: 1 };
    let mut shop = Shop::open(options, Some(template)).await;
    let market = Market::new(&shop.goods, shop.bases(), 0);
    trade(&shop, &market, 0).await;
    shop.caught_up().await;
    match mutation {
        Nothing => trade(&shop, &market, 1).await,
        NoEvent => {
            // The call is replaced by one that does nothing with the same arguments.
            mutate(&shop, &script::BALANCE_CHARGE, "local id = emit(", "local id = (function() return '' end)(").await;
            trade(&shop, &market, 1).await;
        }
        GiveBackTwice => {
            let back = "move_units(ids, units, from_units, to_units)";
            mutate(&shop, &script::ORDER_CLOSE, back, &format!("{back} {back}")).await;
            trade(&shop, &market, 1).await;
        }
        FailsBelowTheLine => {
            // As where a right is missing, or a list is too long.
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
            // Which it refuses to do, as it should.
            let _ = shop.start(0).await;
        }
        PositionStays => {
            let db = shop.db().await;
            let stay = "CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
                        CREATE TRIGGER stay BEFORE UPDATE ON projection_positions FOR EACH ROW EXECUTE FUNCTION stay()";
            sqlx::raw_sql(stay).execute(db.get_postgres_connection_pool()).await.unwrap();
            let before = outbox_size(&shop).await;
            trade(&shop, &market, 1).await;
            db.close().await.unwrap();
            // The projector detects it: the next event is missing from the outbox.
            until("something of that day is committed and trimmed", async || {
                let now = outbox_size(&shop).await;
                (now.left < now.added - before.added).then_some(())
            })
            .await;
        }
        DiskPutBack | DiskPutBackUnderNewService => {
            let (data, old) = (shop.redis.data_dir(), ScratchDir::new().unwrap());
            copy_dir(&data, old.path());
            if mutation == DiskPutBackUnderNewService {
                shop.to_postgres.set(Mode::Stall);
            }
            trade(&shop, &market, 1).await;
            match mutation {
                DiskPutBackUnderNewService => shop.kill(0).await,
                // The positions in PostgreSQL survive, however soon the service is replaced.
                _ => shop.caught_up().await,
            }
            put_back(&mut shop, old.path()).await;
            if mutation == DiskPutBackUnderNewService {
                shop.to_postgres.set(Mode::Pass);
                shop.start(0).await.unwrap();
            }
        }
    }
    trade(&shop, &market, 2).await;
    let conclusion = conclude(&mut shop, &market).await;
    let findings = conclusion.findings.into_iter();
    if mutation == Nothing {
        findings.clone().for_each(|finding| println!("{}: {}", finding.by, finding.what));
    }
    findings.map(|finding| finding.by).collect()
}

/// Every verb once or more; each time on the same few objects.
async fn trade(shop: &Shop, market: &Market, day: i64) {
    let http = shop::client();
    let goods = &shop.goods;
    let (user, other, product) = (goods.users[0], goods.users[1], goods.products[0]);
    let ask = async |ask: Ask| market.ask(&http, ask).await;
    ask(Ask::Charge { user, amount: 10 + day }).await;
    let taker = if day == 0 { user } else { other };
    ask(Ask::Issue { campaign: goods.campaigns[0], user: taker }).await;
    for end in ["pay", "cancel"] {
        let placing = Ask::Place { user, lines: vec![(product, 2), (goods.products[1], 1)], coupon: None };
        let Outcome::Done { body, .. } = ask(placing).await else { continue };
        let (order, price) = (body["orderId"].as_i64().unwrap(), body["finalPrice"].as_i64().unwrap());
        ask(Ask::Product { product }).await;
        match end {
            "pay" => ask(Ask::Pay { order, user, price, amount: price }).await,
            _ => ask(Ask::Cancel { order, user }).await,
        };
        ask(Ask::Order { order, user }).await;
    }
    ask(Ask::Product { product }).await;
    ask(Ask::Balance { user }).await;
}

/// How many decisions an outbox has ever had, and has now.
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

/// From now on this script is another one, wherever it is called.
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

/// Redis is killed, and comes back with what it had written then.
async fn put_back(shop: &mut Shop, old: &Path) {
    let data = shop.redis.data_dir();
    shop.redis.kill().await.unwrap();
    copy_dir(old, &data);
    shop.redis.restart().await.unwrap();
}
