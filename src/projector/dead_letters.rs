//! Retries dead letters. An operator retries one when the cause is gone: a newer program understands the event, or a
//! missing row is there.
//!
//! A retry applies the event as the projection would ([`apply`]), in one transaction that also removes the dead letter:
//! the event is applied once, whatever the number of retries. The lock of the partition's position keeps the projection
//! and other retries out.
//!
//! **The event is late.** Its additions (units, entries, rows) still hold. A value that it sets (a balance, a name, a
//! window, the state of a coupon) may have been set again since. So the retry takes the latest value from its source:
//! from the entries and orders in PostgreSQL, and from Redis for products and campaigns. Dead letters about one record
//! can be retried in any sequence that the constraints allow.
//!
//! **The event must still hold.** A rebuild starts a new epoch from the rows of PostgreSQL, without the event. A dead
//! letter of an earlier epoch is refused.
//!
//! **The event comes after every reader.** Its place is after the newest decision in PostgreSQL. A reader may be past that if a standby
//! took over that lacks decisions: the retry waits until the projection has brought those of Redis again.
//!
//! The relay to other partitions comes before the commit, because the entry is no longer in the outbox: after a crash,
//! nothing else would relay it. A repeated relay changes nothing. The eviction comes after the commit.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, QueryResult, Statement, TransactionTrait, Value,
};

use super::{
    Projector,
    apply::{ApplyError, apply},
    batch::Batch,
    evict, relay,
};
use crate::{
    model::{
        CouponId, DeadLetterId, Error, Partition, Position, RECORD_TTL_MS, UserId,
        event::{self, Body, Event},
        public_event::PublicEvent,
    },
    postgres::{self, progress},
};

/// The pause before a retry looks again whether the projection has caught up.
const PROJECTION_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The outcome of a retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// The event is applied, and the dead letter is gone.
    Applied,
    /// The event can't be applied, for this reason, which the dead letter now carries.
    Refused(String),
    /// There is no such dead letter: another retry may have applied it.
    NotFound,
}

/// A dead letter as it was filed.
struct StoredEvent {
    epoch: Option<i64>,
    fields: Vec<(String, String)>,
}

/// Why a retry did not apply the event.
enum NotApplied {
    /// PostgreSQL lacks decisions that it may have had, before a standby took over.
    Behind,
    /// The event is the cause: see [`Retried::Refused`].
    Refused(String),
    /// A store is the cause: another retry may succeed.
    Failed(Error),
}

impl From<Error> for NotApplied {
    fn from(error: Error) -> Self {
        NotApplied::Failed(error)
    }
}

impl From<DbErr> for NotApplied {
    fn from(error: DbErr) -> Self {
        if postgres::is_data_fault(&error) {
            NotApplied::Refused(error.to_string())
        } else {
            NotApplied::Failed(postgres::translate(error))
        }
    }
}

impl From<ApplyError> for NotApplied {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Db(error) => error.into(),
            missing @ ApplyError::Missing { .. } => NotApplied::Refused(missing.to_string()),
        }
    }
}

/// The error of a read of the latest value in Redis.
fn latest_value_error(error: Error) -> NotApplied {
    match error {
        Error::ProductNotFound | Error::CampaignNotFound => refused("Redis does not know what it is about"),
        other => NotApplied::Failed(other),
    }
}

fn refused(reason: &str) -> NotApplied {
    NotApplied::Refused(reason.to_owned())
}

impl Projector {
    /// Retries a dead letter.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis or PostgreSQL is, or while a rebuild runs. After a timeout the outcome is
    /// unknown: another retry tells.
    pub async fn retry(&self, id: &DeadLetterId) -> Result<Retried, Error> {
        if id.partition >= self.store.partitions() {
            return Ok(Retried::NotFound);
        }
        let trying = async {
            let mut decided = None;
            loop {
                if let Some(tried) = self.retry_once(id, &mut decided).await? {
                    return Ok::<_, Error>(tried);
                }
                tokio::time::sleep(PROJECTION_POLL_INTERVAL).await;
            }
        };
        let tried = tokio::time::timeout(self.timeout, trying).await;
        let (retried, event) = tried.map_err(|_| Error::unavailable("PostgreSQL does not answer, or lags"))??;
        match &retried {
            Retried::Applied => {
                tracing::info!(partition = id.partition, id = id.stream_id, seq = id.seq, "a dead letter is applied");
            }
            Retried::Refused(reason) => {
                tracing::warn!(
                    partition = id.partition,
                    id = id.stream_id,
                    seq = id.seq,
                    reason,
                    "a dead letter stays one"
                );
            }
            Retried::NotFound => {}
        }
        if let Some(order) = event.and_then(|event| event.body.order()) {
            // A failed eviction only costs memory.
            let (here, postgres) = (Partition(id.partition), (&self.db, self.timeout));
            if let Err(error) = evict::evict_late(&self.store, postgres, self.retention, here, order).await {
                tracing::warn!(%error, "the order of a dead letter is not evicted from Redis");
            }
        }
        Ok(retried)
    }

    /// Runs the transaction of a retry. Returns also the event, if it was applied; `None` while PostgreSQL lacks decisions up to
    /// `decided`, the position of Redis when it was asked first.
    async fn retry_once(
        &self,
        id: &DeadLetterId,
        decided: &mut Option<Position>,
    ) -> Result<Option<(Retried, Option<Event>)>, Error> {
        let here = Partition(id.partition);
        let transaction = self.db.begin().await.map_err(postgres::translate)?;
        let limit = format!("SET LOCAL idle_in_transaction_session_timeout = {}", self.timeout.as_millis());
        transaction.execute_unprepared(&limit).await.map_err(postgres::translate)?;
        if !progress::no_rebuild_runs(&transaction).await? {
            return Err(Error::unavailable("a rebuild is under way"));
        }
        // The position is locked first, as in every commit of the projection.
        let projected = lock_position(&transaction, here).await.map_err(postgres::translate)?;
        let Some(stored) = stored_event(&transaction, id).await? else { return Ok(Some((Retried::NotFound, None))) };
        let event = match self.apply_late(&transaction, here, (id, stored), (projected, decided)).await {
            Ok(event) => event,
            Err(NotApplied::Behind) => {
                transaction.rollback().await.map_err(postgres::translate)?;
                return Ok(None);
            }
            Err(NotApplied::Failed(error)) => return Err(error),
            Err(NotApplied::Refused(reason)) => {
                let reason = reason.replace('\0', "\u{fffd}");
                let sql = "UPDATE dead_letters SET reason = $4
                           WHERE partition = $1 AND stream_id = $2 AND coalesce(seq, -1) = $3";
                let values = key_of(id).into_iter().chain([reason.as_str().into()]);
                run(&transaction, sql, values).await.map_err(postgres::translate)?;
                transaction.commit().await.map_err(postgres::translate)?;
                return Ok(Some((Retried::Refused(reason), None)));
            }
        };
        let sql = "DELETE FROM dead_letters WHERE partition = $1 AND stream_id = $2 AND coalesce(seq, -1) = $3";
        run(&transaction, sql, key_of(id)).await.map_err(postgres::translate)?;
        transaction.commit().await.map_err(postgres::translate)?;
        Ok(Some((Retried::Applied, Some(event))))
    }

    /// Applies the event of a dead letter. If the event is refused, the transaction is unchanged.
    async fn apply_late(
        &self,
        transaction: &DatabaseTransaction,
        here: Partition,
        (id, stored): (&DeadLetterId, StoredEvent),
        (projected, decided): (Position, &mut Option<Position>),
    ) -> Result<Event, NotApplied> {
        let (Some(stored_epoch), Some(seq)) = (stored.epoch, id.seq) else {
            return Err(refused("it has no place among the decisions"));
        };
        // Both stores are asked: Redis is in the new epoch of a rebuild before PostgreSQL is.
        let state = self.store.partition_state(here).await?;
        let in_redis = state.position.ok_or_else(|| Error::unavailable("the partition has no state in Redis"))?;
        if (projected.epoch, in_redis.epoch) != (stored_epoch, stored_epoch) {
            return Err(refused("it was decided before a rebuild, which went on without it"));
        }
        // A frozen partition is not projected, and a rebuild would leave the event out.
        if projected < *decided.get_or_insert(in_redis) && state.frozen.is_none() {
            return Err(NotApplied::Behind);
        }
        let mut decoded = event::decode(&stored.fields);
        let mut event = match (decoded.pop(), decoded.is_empty()) {
            (Some(decoded), true) => decoded.event.map_err(|bad| NotApplied::Refused(bad.0))?,
            _ => return Err(refused("it is not one event")),
        };
        if (event.epoch, event.seq) != (stored_epoch, seq) {
            return Err(refused("it has the place of another decision"));
        }
        let public = PublicEvent::of(&event);
        relay::relay(&self.store, here, &[&event]).await?;
        self.take_latest_description(&mut event).await?;
        let savepoint = transaction.begin().await?;
        match apply_and_restore(&savepoint, (here, self.store.partitions()), event).await {
            Ok(event) => {
                self.events.write_late(&savepoint, here, (seq, public)).await?;
                savepoint.commit().await?;
                Ok(event)
            }
            Err(not_applied) => {
                savepoint.rollback().await?;
                Err(not_applied)
            }
        }
    }

    /// Replaces the names of users, the description of a product, or the window of a campaign by those in Redis: PostgreSQL has no
    /// history of it. A decision made meanwhile is projected later.
    async fn take_latest_description(&self, event: &mut Event) -> Result<(), NotApplied> {
        match &mut event.body {
            Body::ProductUpdated { product, name, price, category, version, terms, .. } => {
                let latest = self.store.product(*product).await.map_err(latest_value_error)?;
                (*name, *category) = (latest.name, latest.category);
                let latest = self.store.price_of(*product).await.map_err(latest_value_error)?;
                (*price, *terms, *version) = (latest.price, latest.terms, latest.version);
            }
            Body::UsersPut(users) => {
                let ids: Vec<UserId> = users.iter().map(|put| put.user).collect();
                for (put, name) in users.iter_mut().zip(self.store.user_names(&ids).await?) {
                    // One without a name was forgotten.
                    put.name = name.unwrap_or_default();
                }
            }
            Body::CampaignUpdated { coupon, opens_at, closes_at } => {
                let latest = self.store.campaign(*coupon).await?;
                let latest = latest.ok_or_else(|| latest_value_error(Error::CampaignNotFound))?;
                (*opens_at, *closes_at) = (latest.terms.opens_at, latest.terms.closes_at);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Applies an event, and then restores the values that later events had set.
async fn apply_and_restore(
    savepoint: &DatabaseTransaction,
    (here, partitions): (Partition, u16),
    mut event: Event,
) -> Result<Event, NotApplied> {
    if let Some(record) = &event.record {
        // A later request may have used the key again.
        let sql = "SELECT 1 FROM idempotency_records
                   WHERE partition = $1 AND digest = $2 AND expires_at > to_timestamp($3 / 1000.0)";
        let until = event.at.plus(RECORD_TTL_MS).0;
        let values = [i32::from(here.0).into(), record.digest.as_str().into(), until.into()];
        if query_one(savepoint, sql, values).await?.is_some() {
            event.record = None;
        }
    }
    let ended = match &event.body {
        Body::OrderClosed(closed) => match &closed.receipt {
            Some(receipt) => ended_payment(savepoint, receipt).await?,
            None => None,
        },
        _ => None,
    };
    apply(savepoint, (here, partitions), &Batch::fold([&event])).await?;
    if let Some((receipt, status)) = ended {
        let sql = "UPDATE payments SET status = $2 WHERE receipt = $1";
        run(savepoint, sql, [receipt.into(), status.into()]).await?;
    }
    let (user, coupon, has_entry) = match &event.body {
        Body::BalanceCharged(entry) => (entry.user_id, None, true),
        Body::OrderPlaced(placed) => (placed.user, placed.coupon, false),
        Body::OrderPaid(paid) => (paid.user, paid.coupon, paid.entry.is_some()),
        Body::OrderClosed(closed) => (closed.user, closed.coupon, closed.entry.is_some()),
        Body::OrderRefunded(part) => (part.user, None, part.entry.is_some()),
        Body::UserForgotten { user, entry } => (*user, None, entry.is_some()),
        _ => return Ok(event),
    };
    if has_entry {
        let sql = "UPDATE users SET balance = last.after_balance
                   FROM (SELECT after_balance FROM balance_entries WHERE user_id = $1 ORDER BY entry_no DESC LIMIT 1) AS last
                   WHERE id = $1";
        run(savepoint, sql, [user.get().into()]).await?;
    }
    if let Some(coupon) = coupon {
        derive_coupon_state(savepoint, coupon, user).await?;
    }
    Ok(event)
}

/// Derives the state of a coupon from the latest order in PostgreSQL that holds or used it. There are two such orders
/// where the end of the earlier one is still a dead letter.
async fn derive_coupon_state(
    savepoint: &DatabaseTransaction,
    coupon: CouponId,
    user: UserId,
) -> Result<(), NotApplied> {
    let sql = "UPDATE user_coupons SET
                   status = CASE o.status WHEN 'PENDING' THEN 'HELD' WHEN 'PAID' THEN 'USED' ELSE 'AVAILABLE' END,
                   order_id = o.id, used_at = o.paid_at
               FROM (SELECT) AS one LEFT JOIN (
                   SELECT id, status, paid_at FROM orders
                   WHERE user_id = $2 AND coupon_id = $1 AND status IN ('PENDING', 'PAID')
                   ORDER BY placed_at DESC, id DESC LIMIT 1) AS o ON true
               WHERE user_coupons.coupon_id = $1 AND user_coupons.user_id = $2";
    Ok(run(savepoint, sql, [coupon.get().into(), user.get().into()]).await?)
}

/// The receipt and the status of a payment that is final.
async fn ended_payment(savepoint: &DatabaseTransaction, receipt: &str) -> Result<Option<(String, String)>, DbErr> {
    let sql = "SELECT status FROM payments WHERE receipt = $1 AND status IN ('DECLINED', 'REFUNDED')";
    let row = query_one(savepoint, sql, [receipt.into()]).await?;
    row.map(|row| Ok((receipt.to_owned(), row.try_get_by_index(0)?))).transpose()
}

/// Locks and reads the position of a partition.
async fn lock_position(transaction: &DatabaseTransaction, here: Partition) -> Result<Position, DbErr> {
    let sql = "SELECT epoch, seq FROM projection_positions WHERE partition = $1 FOR UPDATE";
    let row = query_one(transaction, sql, [i32::from(here.0).into()]).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound(format!("position of partition {}", here.0)))?;
    Ok(Position { epoch: row.try_get_by_index(0)?, seq: row.try_get_by_index(1)? })
}

/// Locks and reads a dead letter.
async fn stored_event(transaction: &DatabaseTransaction, id: &DeadLetterId) -> Result<Option<StoredEvent>, Error> {
    let sql = "SELECT epoch, fields FROM dead_letters
               WHERE partition = $1 AND stream_id = $2 AND coalesce(seq, -1) = $3 FOR UPDATE";
    let row = query_one(transaction, sql, key_of(id)).await.map_err(postgres::translate)?;
    let Some(row) = row else { return Ok(None) };
    let epoch = row.try_get_by_index(0).map_err(postgres::translate)?;
    let fields: serde_json::Value = row.try_get_by_index(1).map_err(postgres::translate)?;
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = fields.as_object().into_iter().flatten();
    Ok(Some(StoredEvent { epoch, fields: fields.map(|(name, value)| (name.clone(), text(value))).collect() }))
}

/// The key of a dead letter, as the statements bind it.
fn key_of(id: &DeadLetterId) -> [Value; 3] {
    [i32::from(id.partition).into(), id.stream_id.as_str().into(), id.seq.unwrap_or(-1).into()]
}

async fn query_one(
    transaction: &DatabaseTransaction,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Option<QueryResult>, DbErr> {
    transaction.query_one_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await
}

async fn run(
    transaction: &DatabaseTransaction,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<(), DbErr> {
    transaction.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await.map(drop)
}
