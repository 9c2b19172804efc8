//! Evicts closed orders from Redis, after the commit and before the trim.
//!
//! **Invariant: an order that is missing in Redis is in PostgreSQL, in its last state.** Only this module, and a rebuild
//! in its place, set a TTL on an order, and only once the event that closed the order is committed. The script compares
//! the state: an order that was refunded meanwhile stays until the refund's own event is committed. Every later decision
//! about the order removes the TTL in the same step. A dead letter is not in PostgreSQL, so its order stays.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::DatabaseConnection;

use crate::{
    config::Retention,
    model::{
        Error, Partition,
        event::{Body, Event, PaymentOutcome},
        *,
    },
    postgres::queries::archived_orders,
    redis::{Store, retention::Eviction},
};

/// Evicts the orders that committed events ended.
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
    let ids: Vec<i64> = evictions.keys().map(|order| order.get()).collect();
    let dead_letters = archived_orders::orders_in_dead_letters(db, here.0, &ids);
    let dead_letters = tokio::time::timeout(timeout, dead_letters).await;
    let dead_letters = dead_letters.map_err(|_| Error::unavailable("PostgreSQL does not answer"))??;
    evictions.retain(|order, _| !dead_letters.contains(&order.get()));
    store.evict(here, &evictions.into_iter().collect::<Vec<_>>()).await
}

/// Evicts an order in the state that PostgreSQL has now, after a dead letter about the order was applied:
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
            archived_orders::ended(db, order).await
        } else {
            Ok(None)
        }
    };
    let read = tokio::time::timeout(timeout, reading).await;
    let ended = read.map_err(|_| Error::unavailable("PostgreSQL does not answer"))??;
    let Some((status, refunded)) = ended.filter(|_| store.owner(order.get()) == here) else { return Ok(()) };
    let ttl_ms = if refunded { retention.refunded_ms() } else { retention.closed_ms() };
    // The script keeps an order whose gateway payment is still open.
    store.evict(here, &[(order, Eviction { was: status.into(), ttl_ms })]).await
}

/// The eviction that follows from an event.
fn eviction(body: &Body, retention: Retention) -> Option<(OrderId, Eviction)> {
    let (closed, refunded) = (retention.closed_ms(), retention.refunded_ms());
    let (order, was, ttl_ms) = match body {
        Body::OrderPaid(paid) => (paid.order, OrderStatus::Paid.as_str(), closed),
        // The gateway payment is still open: its end is an event of its own.
        Body::OrderClosed(order) if order.watched => return None,
        Body::OrderClosed(order) if order.reason == CloseReason::Refunded && order.by_gateway => return None,
        // A later part may be due at the gateway: the script keeps the order then.
        Body::OrderRefunded(part) => {
            let was = format!("{}:{}", OrderStatus::Paid.as_str(), part.part);
            return Some((part.order, Eviction { was: was.into(), ttl_ms: refunded }));
        }
        Body::RefundEnded { order, refunds, .. } => {
            let was = format!("{}:{refunds}", OrderStatus::Paid.as_str());
            return Some((*order, Eviction { was: was.into(), ttl_ms: refunded }));
        }
        Body::OrderClosed(order) => {
            let ttl_ms = if order.reason == CloseReason::Refunded { refunded } else { closed };
            (order.order, order.status.as_str(), ttl_ms)
        }
        Body::PaymentEnded { order, outcome: PaymentOutcome::Refunded, .. } => (*order, "CLOSED", refunded),
        Body::PaymentEnded { order, outcome: PaymentOutcome::Declined, .. } => (*order, "CLOSED", closed),
        Body::PaymentEnded { order, outcome: PaymentOutcome::Settled | PaymentOutcome::Disputed, .. } => {
            (*order, OrderStatus::Paid.as_str(), closed)
        }
        _ => return None,
    };
    Some((order, Eviction { was: was.into(), ttl_ms }))
}
