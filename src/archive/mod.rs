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
        commands::FarEnd,
        records::{OrderRecord, order_record},
        retention::Over,
    },
};

/// For how long what was read in Postgres may be brought back: far less than refunded orders stay in Redis.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// How long what was brought back stays where no decision follows.
const BACK_FOR_MS: i64 = 60_000;

/// An order, wherever it is.
pub struct Found {
    pub record: OrderRecord,
    left: Option<Left>,
}

/// One that is in Postgres alone.
struct Left {
    row: OrderRow,
    /// Before it was looked for in Redis.
    asked: Instant,
}

impl Found {
    /// Whether it is in Postgres alone.
    pub fn has_left(&self) -> bool {
        self.left.is_some()
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
    pub async fn find(&self, order: OrderId) -> Result<Option<Found>, Error> {
        let asked = Instant::now();
        if let Some(record) = self.store.order(order).await? {
            return Ok(Some(Found { record, left: None }));
        }
        let row = archived_orders::order(&self.db, order, self.store.partitions(), self.zone.name()).await?;
        // One that is not over has not left: it was placed after we looked.
        let Some(row) = row.filter(OrderRow::is_over) else { return Ok(None) };
        let fields = row.fields().into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
        let record = order_record(order, &fields);
        let record = record.ok_or_else(|| Error::Internal(anyhow::anyhow!("order {order} in PostgreSQL")))?;
        Ok(Some(Found { record, left: Some(Left { row, asked }) }))
    }

    /// Brings an order back into Redis, if it has left. False if that took too long: then it is to be looked for again.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn bring_back(&self, found: &Found) -> Result<bool, Error> {
        let Some(Left { row, asked }) = &found.left else { return Ok(true) };
        if asked.elapsed() > FRESH_FOR {
            return Ok(false);
        }
        let order = found.record.order.order_id;
        let home = self.store.home(order.get());
        self.store.order_restore(home, Over::Order(order), &row.fields(), BACK_FOR_MS).await?;
        Ok(true)
    }
}

/// Carries an order's end to every partition that holds some of its lines (see [`Store::end_far`]); also where what was sold
/// has left Redis, and comes back now.
///
/// # Errors
/// Redis or Postgres can't answer; every step may be taken again.
pub async fn end_far(
    (store, db): (&Store, &postgres::Connection),
    call: &Call,
    (order, user): (OrderId, UserId),
    far: &[OrderLine],
    end: FarEnd,
    day: &str,
) -> Result<(), Error> {
    let asked = Instant::now();
    let gone = store.end_far(call, order, user, far, end, day).await?;
    if end != FarEnd::Refunded {
        // Said again, after it has left.
        return Ok(());
    }
    let mut back = Vec::new();
    for here in gone {
        // What Postgres does not have as sold is given back, or was never held.
        let Some(lines) = archived_orders::sold_far(db, here.0, order).await? else { continue };
        let fields = [("state", "SETTLED".to_owned()), ("lines", lines), ("user", user.to_string())];
        if asked.elapsed() > FRESH_FOR {
            return Err(Error::unavailable("it took too long to bring back what an order had sold"));
        }
        store.order_restore(here, Over::Hold(order), &fields, BACK_FOR_MS).await?;
        back.push(here);
    }
    let of = |line: &&OrderLine| back.contains(&store.home(line.product_id.get()));
    let far: Vec<OrderLine> = far.iter().filter(of).copied().collect();
    let gone: Vec<Partition> = store.end_far(call, order, user, &far, end, day).await?;
    if gone.is_empty() { Ok(()) } else { Err(Error::unavailable("what an order had sold has left again")) }
}
