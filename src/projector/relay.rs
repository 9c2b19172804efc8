//! Relays the effects of events to other partitions: a coupon to its user, the end of an order to the stock that is
//! held for it.
//!
//! The request that decided has usually taken these steps itself; they are idempotent, so the relay then changes
//! nothing. With one partition there is nothing to relay.

use std::time::Duration;

use sea_orm::DatabaseConnection;

use crate::{
    archive,
    model::{
        Call, Error, OrderLine, Partition,
        event::{Body, Event},
        *,
    },
    redis::{
        Store,
        commands::{Issued, RemoteEnd},
    },
};

/// Relays committed events.
///
/// # Errors
/// A partition can't answer; a retry is safe.
pub async fn relay(
    store: &Store,
    (db, timeout): (&DatabaseConnection, Duration),
    here: Partition,
    events: &[&Event],
) -> Result<(), Error> {
    if store.partitions() == 1 {
        return Ok(());
    }
    let _operation = store.begin_operation();
    let end_remote = async |call: &Call, order, lines: &[OrderLine], end, day: &str| {
        let ending = archive::end_remote((store, db), call, order, lines, end, day);
        // A timeout, because a hold that was evicted is read from PostgreSQL.
        let ended = tokio::time::timeout(timeout, ending).await;
        ended.unwrap_or_else(|_| Err(Error::unavailable("the end of an order is not relayed in time")))
    };
    for event in events {
        // The relayed steps belong to the same request.
        let call = Call::new(&event.request_id, None);
        let relayed = match &event.body {
            Body::CouponIssued { coupon, user, issue_no, at_home: false } => {
                let issued = Issued { issue_no: *issue_no, issued_at: event.at };
                store.coupon_grant(&call, *user, *coupon, issued).await.map(drop)
            }
            Body::OrderPaid(paid) => {
                end_remote(&call, (paid.order, paid.user), &paid.remote, RemoteEnd::Settled, &paid.day).await.map(drop)
            }
            Body::OrderClosed(closed) => {
                let end = if closed.from == OrderStatus::Paid { RemoteEnd::Refunded } else { RemoteEnd::Released };
                end_remote(&call, (closed.order, closed.user), &closed.remote, end, &closed.day).await.map(drop)
            }
            _ => Ok(()),
        };
        if let Err(error) = relayed {
            tracing::warn!(partition = here.0, request_id = event.request_id, %error, "an event is relayed later");
            return Err(error);
        }
    }
    Ok(())
}
