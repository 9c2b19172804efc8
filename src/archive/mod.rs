//! Orders that have left Redis: over, and in Postgres (see `projector::retire`). They are read there; and what a refund needs
//! in Redis is brought back first.
//!
//! **What was read may be out of date when it is written back**: somebody else has brought the order back and refunded it
//! meanwhile. Then it is in Redis, and `order_restore.lua` leaves it alone: a refund keeps the order there until Postgres has
//! that, and for a week from then on. So whoever looked in Redis, then in Postgres, and comes with what was there within
//! [`FRESH_FOR`] can't bring back what was refunded; whoever was held up for longer looks again. The same is true of far
//! holds. And whoever brings an order back decides nothing by that: of two refunds, the second finds it closed.

use std::time::{Duration, Instant};

use chrono_tz::Tz;

use crate::{
    model::{Call, Error, OrderId, OrderLine, Partition, UserId},
    postgres::{self, queries::archived_orders, snapshot::OrderRow},
    redis::{
        Store,
        commands::RemoteEnd,
        records::{OrderRecord, order_record},
        retention::EvictionCandidate,
    },
};

/// For how long what was read in Postgres may be brought back: far less than refunded orders stay in Redis.
const MAX_READ_AGE: Duration = Duration::from_secs(60);
/// How long what was brought back stays where no decision follows.
const RESTORED_TTL_MS: i64 = 60_000;

/// An order, wherever it is.
pub struct LocatedOrder {
    pub record: OrderRecord,
    archived: Option<ArchivedOrder>,
}

/// One that is in Postgres alone.
struct ArchivedOrder {
    row: OrderRow,
    /// Before it was looked for in Redis.
    asked: Instant,
}

impl LocatedOrder {
    /// Whether it is in Postgres alone.
    pub fn is_archived(&self) -> bool {
        self.archived.is_some()
    }
}

/// Reads orders wherever they are, and brings back what a decision needs.
pub struct Archive {
    store: Store,
    db: postgres::Connection,
    /// Of the shop's days.
    zone: Tz,
}

impl Archive {
    pub fn new(store: Store, db: postgres::Connection, zone: Tz) -> Self {
        Archive { store, db, zone }
    }

    /// An order, from Redis, or, where that does not have it (any more), from Postgres.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also where the one does not have it and the other is away.
    pub async fn find(&self, order: OrderId) -> Result<Option<LocatedOrder>, Error> {
        let asked = Instant::now();
        if let Some(record) = self.store.order(order).await? {
            return Ok(Some(LocatedOrder { record, archived: None }));
        }
        let row = archived_orders::order(&self.db, order, self.store.partitions(), self.zone.name()).await?;
        // One that is not over has not left: it was placed after we looked.
        let Some(row) = row.filter(OrderRow::is_closed) else { return Ok(None) };
        let fields = row.fields().into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
        let record = order_record(order, &fields);
        let record = record.ok_or_else(|| Error::Internal(anyhow::anyhow!("order {order} in PostgreSQL")))?;
        Ok(Some(LocatedOrder { record, archived: Some(ArchivedOrder { row, asked }) }))
    }

    /// Brings an order back into Redis, if it has left. False if that took too long: then it is to be looked for again.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn restore(&self, found: &LocatedOrder) -> Result<bool, Error> {
        let Some(ArchivedOrder { row, asked }) = &found.archived else { return Ok(true) };
        if asked.elapsed() > MAX_READ_AGE {
            return Ok(false);
        }
        let order = found.record.order.order_id;
        let home = self.store.owner(order.get());
        self.store.order_restore(home, EvictionCandidate::Order(order), &row.fields(), RESTORED_TTL_MS).await?;
        Ok(true)
    }
}

/// Carries an order's end to every partition that holds some of its lines (see [`Store::end_far`]); also where what was sold
/// has left Redis, and comes back now.
///
/// # Errors
/// Redis or Postgres can't answer; every step may be taken again.
pub async fn end_remote(
    (store, db): (&Store, &postgres::Connection),
    call: &Call,
    (order, user): (OrderId, UserId),
    far: &[OrderLine],
    end: RemoteEnd,
    day: &str,
) -> Result<(), Error> {
    let asked = Instant::now();
    let gone = store.end_remote(call, order, user, far, end, day).await?;
    if end != RemoteEnd::Refunded {
        // Said again, after it has left.
        return Ok(());
    }
    let mut back = Vec::new();
    for here in gone {
        // What Postgres does not have as sold is given back, or was never held.
        let Some(lines) = archived_orders::sold_remote(db, here.0, order).await? else { continue };
        let fields = [("state", "SETTLED".to_owned()), ("lines", lines), ("user", user.to_string())];
        if asked.elapsed() > MAX_READ_AGE {
            return Err(Error::unavailable("it took too long to bring back what an order had sold"));
        }
        store.order_restore(here, EvictionCandidate::Hold(order), &fields, RESTORED_TTL_MS).await?;
        back.push(here);
    }
    let of = |line: &&OrderLine| back.contains(&store.owner(line.product_id.get()));
    let far: Vec<OrderLine> = far.iter().filter(of).copied().collect();
    let gone: Vec<Partition> = store.end_remote(call, order, user, &far, end, day).await?;
    if gone.is_empty() { Ok(()) } else { Err(Error::unavailable("what an order had sold has left again")) }
}
