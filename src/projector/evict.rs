//! What Postgres has as over is let go by Redis: after the commit and the relay, before the trim.
//!
//! **What is not in Redis is in Postgres, as it last was.** Only here does anything get a life that ends, and only once the
//! event which says so is committed. The script compares: an order that was refunded since, of which Postgres does not know
//! yet, stays until the refund's own event is here; and whatever is decided about an order or a hold that was about to leave
//! takes the end of its life away again, in the same step. An event that is a dead letter is not in Postgres, so its order
//! stays.
//!
//! After the relay, because a far hold of which nobody has heard the end asks for its order (`order_resolve.lua`), and takes
//! one that is not there for one that never was.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::DatabaseConnection;

use crate::{
    config::Retention,
    model::{
        Error, Partition,
        event::{Body, Event, HoldState, PaymentOutcome},
        *,
    },
    postgres,
    redis::{
        Store,
        retention::{Eviction, EvictionCandidate},
    },
};

/// Lets go what committed events ended.
///
/// # Errors
/// Redis or Postgres can't answer; everything may be done again.
pub async fn evict(
    store: &Store,
    (db, patience): (&DatabaseConnection, Duration),
    keep: Retention,
    here: Partition,
    events: &[&Event],
) -> Result<(), Error> {
    // The last word counts.
    let mut over: BTreeMap<_, _> = events.iter().filter_map(|event| ended(&event.body, keep)).collect();
    if over.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> =
        over.keys().map(|(EvictionCandidate::Order(order) | EvictionCandidate::Hold(order))| order.get()).collect();
    let letters =
        tokio::time::timeout(patience, postgres::queries::archived_orders::orders_in_dead_letters(db, here.0, &ids))
            .await;
    let letters = letters.map_err(|_| Error::unavailable("PostgreSQL does not answer"))??;
    over.retain(|(EvictionCandidate::Order(order) | EvictionCandidate::Hold(order)), _| {
        !letters.contains(&order.get())
    });
    store.evict(here, &over.into_iter().collect::<Vec<_>>()).await
}

/// Lets an order go, and stock held for one, as Postgres has them now: after a dead letter about them, because of which whatever
/// was said later stayed. As long as there is another one they stay.
///
/// # Errors
/// Redis or Postgres can't answer; everything may be done again.
pub async fn evict_late(
    store: &Store,
    (db, patience): (&DatabaseConnection, Duration),
    keep: Retention,
    here: Partition,
    order: OrderId,
) -> Result<(), Error> {
    let reading = async {
        let letters = postgres::queries::archived_orders::orders_in_dead_letters(db, here.0, &[order.get()]).await?;
        if letters.is_empty() {
            postgres::queries::archived_orders::ended(db, here.0, order).await
        } else {
            Ok(Default::default())
        }
    };
    let read = tokio::time::timeout(patience, reading).await;
    let (ended, hold) = read.map_err(|_| Error::unavailable("PostgreSQL does not answer"))??;
    let life_ms = |refunded: bool| if refunded { keep.refunded_ms() } else { keep.closed_ms() };
    let mut over = Vec::new();
    if let Some((status, refunded)) = ended.filter(|_| store.owner(order.get()) == here) {
        over.push((EvictionCandidate::Order(order), Eviction { was: status.as_str(), ttl_ms: life_ms(refunded) }));
    }
    for (state, refunded) in [(HoldState::Settled, false), (HoldState::Refunded, true)] {
        if hold.as_deref() == Some(state.as_str()) {
            over.push((EvictionCandidate::Hold(order), Eviction { was: state.as_str(), ttl_ms: life_ms(refunded) }));
        }
    }
    // A gateway that is still asked is the script's business.
    store.evict(here, &over).await
}

/// What an event ended, if anything.
fn ended(body: &Body, keep: Retention) -> Option<(EvictionCandidate, Eviction)> {
    let (closed, refunded) = (keep.closed_ms(), keep.refunded_ms());
    let (over, was, life_ms) = match body {
        Body::OrderPaid(paid) => (EvictionCandidate::Order(paid.order), OrderStatus::Paid.as_str(), closed),
        // A gateway is still asked: what comes of it has an event of its own.
        Body::OrderClosed(order) if order.watched => return None,
        Body::OrderClosed(order) if order.reason == CloseReason::Refunded && order.by_gateway => return None,
        Body::OrderClosed(order) => {
            let life_ms = if order.reason == CloseReason::Refunded { refunded } else { closed };
            (EvictionCandidate::Order(order.order), order.status.as_str(), life_ms)
        }
        Body::PaymentEnded { order, outcome: PaymentOutcome::Refunded, .. } => {
            (EvictionCandidate::Order(*order), "CLOSED", refunded)
        }
        Body::PaymentEnded { order, outcome: PaymentOutcome::Declined, .. } => {
            (EvictionCandidate::Order(*order), "CLOSED", closed)
        }
        Body::PaymentEnded { order, outcome: PaymentOutcome::Settled | PaymentOutcome::Disputed, .. } => {
            (EvictionCandidate::Order(*order), OrderStatus::Paid.as_str(), closed)
        }
        Body::StockSettled { order, to: HoldState::Settled, .. } => {
            (EvictionCandidate::Hold(*order), HoldState::Settled.as_str(), closed)
        }
        Body::StockSettled { order, to: HoldState::Refunded, .. } => {
            (EvictionCandidate::Hold(*order), HoldState::Refunded.as_str(), refunded)
        }
        // A hold that was given back has had its life since (stock_settle.lua): nothing brings it back.
        _ => return None,
    };
    Some((over, Eviction { was, ttl_ms: life_ms }))
}
