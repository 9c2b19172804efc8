//! What an event of one partition does in another: an issued coupon goes to its user, an order's end to the stock that
//! other partitions held for it.
//!
//! The request that decided has taken these steps itself, as a rule; here they are taken again, and change nothing then.
//! With one partition there is nothing to relay.

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
/// A partition that can't answer; everything may be relayed again.
pub async fn relay(
    store: &Store,
    (db, patience): (&DatabaseConnection, Duration),
    here: Partition,
    events: &[&Event],
) -> Result<(), Error> {
    if store.partitions() == 1 {
        return Ok(());
    }
    let end_far = async |call: &Call, of, far: &[OrderLine], end, day: &str| {
        let ending = archive::end_remote((store, db), call, of, far, end, day);
        // What was sold long ago is asked for in Postgres.
        let ended = tokio::time::timeout(patience, ending).await;
        ended.unwrap_or_else(|_| Err(Error::unavailable("an order's end is not carried on in time")))
    };
    for event in events {
        // What follows elsewhere is of the same request.
        let call = Call::new(&event.request_id, None);
        let relayed = match &event.body {
            Body::CouponIssued { coupon, user, issue_no, at_home: false } => {
                let issued = Issued { issue_no: *issue_no, issued_at: event.at };
                store.coupon_grant(&call, *user, *coupon, issued).await.map(drop)
            }
            Body::OrderPaid(paid) => {
                end_far(&call, (paid.order, paid.user), &paid.remote, RemoteEnd::Settled, &paid.day).await.map(drop)
            }
            Body::OrderClosed(closed) => {
                let end = if closed.from == OrderStatus::Paid { RemoteEnd::Refunded } else { RemoteEnd::Released };
                end_far(&call, (closed.order, closed.user), &closed.remote, end, &closed.day).await.map(drop)
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
