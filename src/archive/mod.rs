//! Archived orders: closed orders that the projector has evicted from Redis (see `projector::evict`). Reads go to PostgreSQL;
//! a refund first restores the order into Redis, where the script needs it.
//!
//! **A restore never undoes a refund.** Between the read from PostgreSQL and the restore, another process may restore and
//! refund the order. The refunded order is then in Redis, and `order_restore.lua` leaves it alone: Redis keeps a refunded order
//! until PostgreSQL has the refund, and for a week from then on. A restore is therefore safe if the read, first from Redis and
//! then from PostgreSQL, is at most [`MAX_READ_AGE`] old; after that the caller reads again. A restore
//! itself decides nothing: of two refunds, the second finds the order closed.
//!
//! **PostgreSQL may have gone back** behind the eviction of an order, by a failover to a standby that lacks the last commits. It is
//! then projected again, and until it is as far as the eviction, what it lacks is unknown and not missing.
//!
//! Depends on `redis` and `postgres`; the engine and the projector use it.

use std::time::{Duration, Instant};

use chrono_tz::Tz;

use crate::{
    model::{Error, OrderId, Partition},
    postgres::{self, progress::ProjectedPosition, queries::archived_orders, snapshot::OrderRow},
    redis::{
        Store,
        records::{OrderRecord, order_record},
    },
};

/// The maximum age of a read that may be restored: far less than the time that refunded orders stay in Redis.
const MAX_READ_AGE: Duration = Duration::from_secs(60);
/// The lifetime of a restored order if no decision follows.
const RESTORED_TTL_MS: i64 = 60_000;

/// An order, from either store.
pub struct LocatedOrder {
    pub record: OrderRecord,
    archived: Option<ArchivedOrder>,
}

/// An order that is in PostgreSQL only.
struct ArchivedOrder {
    row: OrderRow,
    /// The time before the read from Redis.
    read_at: Instant,
}

impl LocatedOrder {
    /// Whether the order is in PostgreSQL only.
    pub fn is_archived(&self) -> bool {
        self.archived.is_some()
    }
}

/// Reads orders from both stores, and restores archived ones.
pub struct Archive {
    store: Store,
    db: postgres::Connection,
    /// The time zone of the shop's days.
    zone: Tz,
}

impl Archive {
    pub fn new(store: Store, db: postgres::Connection, zone: Tz) -> Self {
        Archive { store, db, zone }
    }

    /// Reads an order from Redis or, if it is not there, from PostgreSQL.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also if Redis does not have the order while PostgreSQL is unavailable.
    pub async fn find(&self, order: OrderId) -> Result<Option<LocatedOrder>, Error> {
        let read_at = Instant::now();
        if let Some(record) = self.store.order(order).await? {
            return Ok(Some(LocatedOrder { record, archived: None }));
        }
        let read = async || {
            let row = archived_orders::order(&self.db, order, self.zone.name()).await?;
            // An open order is never evicted: this one was placed after the read from Redis.
            Ok::<_, Error>(row.filter(OrderRow::is_closed))
        };
        let mut row = read().await?;
        if row.is_none() {
            check_evictions(&self.store, &self.db, self.store.owner(order.get())).await?;
            row = read().await?;
        }
        let Some(row) = row else { return Ok(None) };
        let fields = row.fields().into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
        let record = order_record(order, &fields);
        let record = record.ok_or_else(|| Error::Internal(anyhow::anyhow!("order {order} in PostgreSQL")))?;
        Ok(Some(LocatedOrder { record, archived: Some(ArchivedOrder { row, read_at }) }))
    }

    /// Restores an archived order into Redis. Returns false if the read is too old: the caller must find the order again.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn restore(&self, found: &LocatedOrder) -> Result<bool, Error> {
        let Some(ArchivedOrder { row, read_at }) = &found.archived else { return Ok(true) };
        if read_at.elapsed() > MAX_READ_AGE {
            return Ok(false);
        }
        let order = found.record.order.order_id;
        let owner = self.store.owner(order.get());
        self.store.order_restore(owner, order, &row.fields(), RESTORED_TTL_MS).await?;
        Ok(true)
    }
}

/// Checks that PostgreSQL has everything that was evicted from a partition: it may have gone back. A read after this check finds
/// what Redis did not have before it.
///
/// # Errors
/// [`Error::Unavailable`] if it does not, or can't tell.
async fn check_evictions(store: &Store, db: &postgres::Connection, here: Partition) -> Result<(), Error> {
    let Some(evicted) = store.relayed(here).await? else { return Ok(()) };
    let projected = postgres::progress::projected(db).await?;
    let is_behind = |at: &ProjectedPosition| at.partition == here && at.position < evicted.position;
    match projected.iter().any(is_behind) {
        true => Err(Error::unavailable("PostgreSQL has gone back, and does not have every evicted order yet")),
        false => Ok(()),
    }
}
