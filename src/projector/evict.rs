//! Evicts closed orders and settled remote holds from Redis, after the commit and the relay and before the trim.
//!
//! **Invariant: an order that is missing in Redis is in PostgreSQL, in its last state.** Only this module, and a rebuild
//! in its place, set a TTL on an order, and only once the event that closed the order is committed. The script compares
//! the state: an order that was refunded meanwhile stays until the refund's own event is committed. Every later decision
//! about the order or the hold removes the TTL in the same step. A dead letter is not in PostgreSQL, so its order stays.
//!
//! The relay comes first, because a remote hold that has not heard the end of its order asks for the order
//! (`order_resolve.lua`), and takes a missing order for one that was never placed.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::DatabaseConnection;

use crate::{
    config::Retention,
    model::{
        Error, Partition,
        event::{Body, Event, HoldState, PaymentOutcome},
        *,
    },
    postgres::queries::archived_orders,
    redis::{
        Store,
        retention::{Eviction, EvictionCandidate},
    },
};

/// Evicts the orders and holds that committed events ended.
///
/// # Errors
/// Redis or PostgreSQL can't answer; a retry is safe.
pub async fn evict(
    store: &Store,
    (db, timeout): (&DatabaseConnection, Duration),
    retention: Retention,
    here: Partition,
    events: &[&Event],
) -> Result<(), Error> {
    // A map, because of several events about an order only the last counts.
    let mut evictions: BTreeMap<_, _> = events.iter().filter_map(|event| eviction(&event.body, retention)).collect();
    if evictions.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = evictions
        .keys()
        .map(|(EvictionCandidate::Order(order) | EvictionCandidate::Hold(order))| order.get())
        .collect();
    let dead_letters = archived_orders::orders_in_dead_letters(db, here.0, &ids);
    let dead_letters = tokio::time::timeout(timeout, dead_letters).await;
    let dead_letters = dead_letters.map_err(|_| Error::unavailable("PostgreSQL does not answer"))??;
    evictions.retain(|(EvictionCandidate::Order(order) | EvictionCandidate::Hold(order)), _| {
        !dead_letters.contains(&order.get())
    });
    store.evict(here, &evictions.into_iter().collect::<Vec<_>>()).await
}

/// Evicts an order and its hold in the state that PostgreSQL has now, after a dead letter about the order was applied:
/// later events could not evict them because of it. They stay while another dead letter is about the order.
///
/// # Errors
/// Redis or PostgreSQL can't answer; a retry is safe.
pub async fn evict_late(
    store: &Store,
    (db, timeout): (&DatabaseConnection, Duration),
    retention: Retention,
    here: Partition,
    order: OrderId,
) -> Result<(), Error> {
    let reading = async {
        if archived_orders::orders_in_dead_letters(db, here.0, &[order.get()]).await?.is_empty() {
            archived_orders::ended(db, here.0, order).await
        } else {
            Ok(Default::default())
        }
    };
    let read = tokio::time::timeout(timeout, reading).await;
    let (ended, hold) = read.map_err(|_| Error::unavailable("PostgreSQL does not answer"))??;
    let ttl_ms = |refunded: bool| if refunded { retention.refunded_ms() } else { retention.closed_ms() };
    let mut evictions = Vec::new();
    if let Some((status, refunded)) = ended.filter(|_| store.owner(order.get()) == here) {
        evictions.push((EvictionCandidate::Order(order), Eviction { was: status.as_str(), ttl_ms: ttl_ms(refunded) }));
    }
    for (state, refunded) in [(HoldState::Settled, false), (HoldState::Refunded, true)] {
        if hold.as_deref() == Some(state.as_str()) {
            let eviction = Eviction { was: state.as_str(), ttl_ms: ttl_ms(refunded) };
            evictions.push((EvictionCandidate::Hold(order), eviction));
        }
    }
    // The script keeps an order whose gateway payment is still open.
    store.evict(here, &evictions).await
}

/// The eviction that follows from an event.
fn eviction(body: &Body, retention: Retention) -> Option<(EvictionCandidate, Eviction)> {
    let (closed, refunded) = (retention.closed_ms(), retention.refunded_ms());
    let (candidate, was, ttl_ms) = match body {
        Body::OrderPaid(paid) => (EvictionCandidate::Order(paid.order), OrderStatus::Paid.as_str(), closed),
        // The gateway payment is still open: its end is an event of its own.
        Body::OrderClosed(order) if order.watched => return None,
        Body::OrderClosed(order) if order.reason == CloseReason::Refunded && order.by_gateway => return None,
        Body::OrderClosed(order) => {
            let ttl_ms = if order.reason == CloseReason::Refunded { refunded } else { closed };
            (EvictionCandidate::Order(order.order), order.status.as_str(), ttl_ms)
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
        // A released hold has its TTL from stock_settle.lua already: no decision revives it.
        _ => return None,
    };
    Some((candidate, Eviction { was, ttl_ms }))
}
