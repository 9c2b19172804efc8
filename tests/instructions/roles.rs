//! What the child processes do while callgrind counts.

use std::{env, hint::black_box, path::Path};

use anyhow::{Context, Result};
use firstcome::{
    model::{
        Partition,
        event::{self, Event},
    },
    projector::batch::Batch,
    redis::outbox::StreamId,
};
use futures_util::future::try_join_all;
use tokio::runtime::Runtime;

use crate::{
    shop::{Kind, Shop},
    stores,
};

/// Iterations of a count.
pub const ITERATIONS: u64 = 20;
/// Counts of a piece, of which the least is free of what the runtime does by the clock.
pub const COUNTS: usize = 8;
/// Before the counts, so that they have nothing that happens once.
const WARM_UP: u64 = 20;
/// Requests of a phase.
const REQUESTS: u64 = 100;
/// Concurrent requests of a phase: the first goes alone, the others as one batch.
const CONCURRENT: u64 = 16;
/// Batches of a phase. Lua collects garbage every few hundred calls: a phase is long enough to have its share.
const BATCHES: u64 = 32;

/// callgrind finds the function by its name.
#[inline(never)]
fn counted_iterations(piece: &dyn Fn(u64), numbers: std::ops::Range<u64>) {
    for number in black_box(numbers) {
        piece(number);
    }
}

/// Prints the name of each piece, after its counts.
pub fn service() -> Result<()> {
    let shop = Shop::open(env::var("REDIS_URL")?, env::var("DATABASE_URL")?)?;
    let count = |name: &str, piece: &dyn Fn(u64)| {
        (0..WARM_UP).for_each(piece);
        for count in 0..COUNTS as u64 {
            let from = WARM_UP + count * ITERATIONS;
            counted_iterations(piece, from..from + ITERATIONS);
        }
        println!("{name}");
    };
    for (kind, name) in Kind::ALL {
        count(name, &|n| shop.runtime.block_on(shop.ask(kind, n)).unwrap());
    }
    let entries = shop.runtime.block_on(shop.app.store.outbox_page(Partition(0), StreamId::ZERO, 10_000))?;
    for kind in ["coupon_issued", "order_placed", "order_paid"] {
        let of_kind = |fields: &[(String, String)]| {
            event::fields_of(fields, 0).iter().any(|(name, value)| name == "kind" && value == kind)
        };
        let entries: Vec<_> = entries.iter().filter(|entry| of_kind(&entry.fields)).take(ITERATIONS as usize).collect();
        let first = entries.first().with_context(|| format!("no {kind} in the outbox"))?;
        count(&format!("decode {kind}"), &|_| drop(black_box(event::decode(black_box(&first.fields)))));
        let decoded = entries.iter().flat_map(|entry| event::decode(&entry.fields));
        let events: Vec<Event> = decoded.filter_map(|decoded| decoded.event.ok()).collect();
        count(&format!("fold {} of {kind}", events.len()), &|_| drop(black_box(Batch::fold(black_box(&events)))));
    }
    Ok(())
}

/// Prints the number of requests and the name of each phase, after it. Each phase is between two ECHOs, at which callgrind dumps.
pub fn scripts() -> Result<()> {
    let dir = env::var_os("INSTRUCTIONS_DIR").context("INSTRUCTIONS_DIR is not set")?;
    let outer = Runtime::new()?;
    let (redis, _postgres, database) = outer.block_on(stores(Path::new(&dir)))?;
    let shop = Shop::open(redis.url(), database)?;
    let mut link = outer.block_on(redis::Client::open(redis.url())?.get_multiplexed_async_connection())?;
    let mut dump = || -> Result<()> {
        let _: String = outer.block_on(redis::cmd("ECHO").arg("dump").query_async(&mut link))?;
        Ok(())
    };
    for (kind, name) in Kind::ALL {
        let ask = |n| shop.runtime.block_on(shop.ask(kind, n));
        (0..WARM_UP).try_for_each(ask)?;
        dump()?;
        (WARM_UP..WARM_UP + REQUESTS).try_for_each(ask)?;
        dump()?;
        println!("{REQUESTS} {name}");
    }
    let first = WARM_UP + REQUESTS;
    for (kind, name) in [
        (Kind::Issue, "coupon issue"),
        (Kind::Order, "order"),
        (Kind::Charge, "balance charge"),
        (Kind::Checkout, "checkout"),
        (Kind::OrderWithTerms, "order with window and limit"),
    ] {
        let ask = |from| shop.runtime.block_on(try_join_all((from..from + CONCURRENT).map(|n| shop.ask(kind, n))));
        ask(first)?;
        dump()?;
        for batch in 1..=BATCHES {
            ask(first + batch * CONCURRENT)?;
        }
        dump()?;
        println!("{} {name}, {CONCURRENT} at once", BATCHES * CONCURRENT);
    }
    Ok(())
}
