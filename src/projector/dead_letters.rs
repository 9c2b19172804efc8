//! Dead letters, tried again: once whatever kept an event from Postgres is out of the way (a newer program that understands
//! it, a row that is there now), an operator has it applied after all.
//!
//! It goes the way of every event, by the projector's own [`apply`], in one transaction that also removes the letter: so it is
//! applied once, however many operators try. The partition's position is locked meanwhile, which keeps the projection and
//! every other try out.
//!
//! **It comes late.** What it adds (units, entries, rows) is as true as ever; what it says last (a balance, a name, a window,
//! where a coupon stands) may have been said anew since. So the last word is looked up where it is known: in the entries and
//! orders that Postgres has, and in Redis for what a product or a campaign is like. Several letters about one thing may so be
//! tried in any order that Postgres lets them in.
//!
//! **It must still be true.** A rebuild begins a new epoch from what Postgres has, and an event that was not there is no
//! decision any more: a letter of an earlier epoch is refused.
//!
//! Other partitions hear of the event before it is committed (they may have heard before; it changes nothing then): nobody
//! would tell them after a crash, since the entry is no longer in the outbox. What it ended leaves Redis after.

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
        CouponId, DeadLetterId, Error, OrderId, Partition, UserId,
        event::{self, Body, Event, HoldState},
    },
    postgres::{self, progress},
    redis::commands::RECORD_TTL_MS,
};

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It is in Postgres, and no letter any more.
    Applied,
    /// It can't be applied, for this reason, which the letter now has.
    Refused(String),
    /// There is no such letter; somebody may have been quicker.
    NotFound,
}

/// A letter as it was filed.
struct StoredEvent {
    epoch: Option<i64>,
    fields: Vec<(String, String)>,
}

/// Why a letter stays one.
enum NotApplied {
    Refused(String),
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

/// What Redis does not know has no last word there.
fn of_redis(error: Error) -> NotApplied {
    match error {
        Error::ProductNotFound | Error::CampaignNotFound => refused("Redis does not know what it is about"),
        other => NotApplied::Failed(other),
    }
}

fn refused(reason: &str) -> NotApplied {
    NotApplied::Refused(reason.to_owned())
}

impl Projector {
    /// Has another try at one dead letter.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis or Postgres is, or a rebuild is under way. Where Postgres fell silent nobody knows
    /// whether it was applied: another try tells.
    pub async fn retry(&self, id: &DeadLetterId) -> Result<Retried, Error> {
        if id.partition >= self.store.partitions() {
            return Ok(Retried::NotFound);
        }
        let trying = tokio::time::timeout(self.timeout, self.retry_within(id)).await;
        let (retried, event) = trying.map_err(|_| Error::unavailable("PostgreSQL does not answer"))??;
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
            // It only takes room where this fails.
            let (here, postgres) = (Partition(id.partition), (&self.db, self.timeout));
            if let Err(error) = evict::evict_late(&self.store, postgres, self.retention, here, order).await {
                tracing::warn!(%error, "what a dead letter ended stays in Redis");
            }
        }
        Ok(retried)
    }

    /// With the event, where it was applied.
    async fn retry_within(&self, id: &DeadLetterId) -> Result<(Retried, Option<Event>), Error> {
        let here = Partition(id.partition);
        let transaction = self.db.begin().await.map_err(postgres::translate)?;
        let limit = format!("SET LOCAL idle_in_transaction_session_timeout = {}", self.timeout.as_millis());
        transaction.execute_unprepared(&limit).await.map_err(postgres::translate)?;
        if !progress::no_rebuild_runs(&transaction).await? {
            return Err(Error::unavailable("a rebuild is under way"));
        }
        // First the position, as in every commit of the projection.
        let epoch = position(&transaction, here).await.map_err(postgres::translate)?;
        let Some(letter) = letter(&transaction, id).await? else { return Ok((Retried::NotFound, None)) };
        let event = match self.apply_late(&transaction, here, (id, letter), epoch).await {
            Ok(event) => event,
            Err(NotApplied::Failed(error)) => return Err(error),
            Err(NotApplied::Refused(reason)) => {
                let reason = reason.replace('\0', "\u{fffd}");
                let sql = "UPDATE dead_letters SET reason = $4
                           WHERE partition = $1 AND stream_id = $2 AND coalesce(seq, -1) = $3";
                let values = address(id).into_iter().chain([reason.as_str().into()]);
                run(&transaction, sql, values).await.map_err(postgres::translate)?;
                transaction.commit().await.map_err(postgres::translate)?;
                return Ok((Retried::Refused(reason), None));
            }
        };
        let sql = "DELETE FROM dead_letters WHERE partition = $1 AND stream_id = $2 AND coalesce(seq, -1) = $3";
        run(&transaction, sql, address(id)).await.map_err(postgres::translate)?;
        transaction.commit().await.map_err(postgres::translate)?;
        Ok((Retried::Applied, Some(event)))
    }

    /// Everything but what becomes of the letter. Where it is refused, the transaction is as it was before.
    async fn apply_late(
        &self,
        transaction: &DatabaseTransaction,
        here: Partition,
        (id, letter): (&DeadLetterId, StoredEvent),
        epoch: i64,
    ) -> Result<Event, NotApplied> {
        let (Some(letter_epoch), Some(seq)) = (letter.epoch, id.seq) else {
            return Err(refused("it has no place among the decisions"));
        };
        // Redis knows of a rebuild before Postgres does.
        if (epoch, self.store.position(here).await?.epoch) != (letter_epoch, letter_epoch) {
            return Err(refused("it was decided before a rebuild, which went on without it"));
        }
        let mut decoded = event::decode(&letter.fields);
        let mut event = match (decoded.pop(), decoded.is_empty()) {
            (Some(decoded), true) => decoded.event.map_err(|bad| NotApplied::Refused(bad.0))?,
            _ => return Err(refused("it is not one event")),
        };
        if (event.epoch, event.seq) != (letter_epoch, seq) {
            return Err(refused("it has the place of another decision"));
        }
        relay::relay(&self.store, (&self.db, self.timeout), here, &[&event]).await?;
        self.describe_as_now(&mut event).await?;
        let step = transaction.begin().await?;
        match in_order(&step, here, event).await {
            Ok(event) => {
                step.commit().await?;
                Ok(event)
            }
            Err(stays) => {
                step.rollback().await?;
                Err(stays)
            }
        }
    }

    /// What a product or a campaign is like has no history in Postgres: Redis has the last word. Nothing is projected
    /// meanwhile, and what is decided meanwhile is projected after.
    async fn describe_as_now(&self, event: &mut Event) -> Result<(), NotApplied> {
        match &mut event.body {
            Body::ProductUpdated { product, name, price, category, .. } => {
                let now = self.store.product(*product).await.map_err(of_redis)?;
                (*name, *price, *category) = (now.name, now.price, now.category);
            }
            Body::CampaignUpdated { coupon, opens_at, closes_at } => {
                let now = self.store.campaign(*coupon).await?.ok_or_else(|| of_redis(Error::CampaignNotFound))?;
                (*opens_at, *closes_at) = (now.terms.opens_at, now.terms.closes_at);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Applies an event, and says again after it what was said later.
async fn in_order(step: &DatabaseTransaction, here: Partition, mut event: Event) -> Result<Event, NotApplied> {
    if let Some(record) = &event.record {
        // The key may have been used again.
        let sql = "SELECT 1 FROM idempotency_records
                   WHERE partition = $1 AND digest = $2 AND expires_at > to_timestamp($3 / 1000.0)";
        let until = event.at.plus(RECORD_TTL_MS).0;
        let values = [i32::from(here.0).into(), record.digest.as_str().into(), until.into()];
        if one(step, sql, values).await?.is_some() {
            event.record = None;
        }
    }
    let ended = match &event.body {
        Body::OrderClosed(closed) => match &closed.receipt {
            Some(receipt) => ended_payment(step, receipt).await?,
            None => None,
        },
        _ => None,
    };
    let hold = match &event.body {
        Body::StockHeld { order, .. } => hold(step, here, *order).await?.map(|state| (*order, state, HoldState::Held)),
        Body::StockSettled { order, to, .. } => hold(step, here, *order).await?.map(|state| (*order, state, *to)),
        _ => None,
    };
    apply(step, here, &Batch::fold([&event])).await?;
    if let Some((receipt, status)) = ended {
        let sql = "UPDATE payments SET status = $2 WHERE receipt = $1";
        run(step, sql, [receipt.into(), status.into()]).await?;
    }
    if let Some((order, state, _)) = hold.filter(|(_, state, to)| stage(state) > stage(to.as_str())) {
        let sql = "UPDATE stock_holds SET state = $3 WHERE partition = $1 AND order_id = $2";
        run(step, sql, [i32::from(here.0).into(), order.get().into(), state.into()]).await?;
    }
    let (user, coupon, entry) = match &event.body {
        Body::BalanceCharged(entry) => (entry.user_id, None, true),
        Body::OrderPlaced(placed) => (placed.user, placed.coupon, false),
        Body::OrderPaid(paid) => (paid.user, paid.coupon, paid.entry.is_some()),
        Body::OrderClosed(closed) => (closed.user, closed.coupon, closed.entry.is_some()),
        _ => return Ok(event),
    };
    if entry {
        let sql = "UPDATE users SET balance = last.after_balance
                   FROM (SELECT after_balance FROM balance_entries WHERE user_id = $1 ORDER BY entry_no DESC LIMIT 1) AS last
                   WHERE id = $1";
        run(step, sql, [user.get().into()]).await?;
    }
    if let Some(coupon) = coupon {
        place_coupon(step, coupon, user).await?;
    }
    Ok(event)
}

/// A coupon is with the order that has it, of those that Postgres knows of: with the last one, if an earlier one's end is a dead
/// letter still.
async fn place_coupon(step: &DatabaseTransaction, coupon: CouponId, user: UserId) -> Result<(), NotApplied> {
    let sql = "UPDATE user_coupons SET
                   status = CASE o.status WHEN 'PENDING' THEN 'HELD' WHEN 'PAID' THEN 'USED' ELSE 'AVAILABLE' END,
                   order_id = o.id, used_at = o.paid_at
               FROM (SELECT) AS one LEFT JOIN (
                   SELECT id, status, paid_at FROM orders
                   WHERE user_id = $2 AND coupon_id = $1 AND status IN ('PENDING', 'PAID')
                   ORDER BY placed_at DESC, id DESC LIMIT 1) AS o ON true
               WHERE user_coupons.coupon_id = $1 AND user_coupons.user_id = $2";
    Ok(run(step, sql, [coupon.get().into(), user.get().into()]).await?)
}

/// How far a hold is: it only ever goes on.
fn stage(state: &str) -> u8 {
    match state {
        "HELD" => 0,
        "REFUNDED" => 2,
        _ => 1,
    }
}

/// The status of a payment of which nothing more will be heard.
async fn ended_payment(step: &DatabaseTransaction, receipt: &str) -> Result<Option<(String, String)>, DbErr> {
    let sql = "SELECT status FROM payments WHERE receipt = $1 AND status IN ('DECLINED', 'REFUNDED')";
    let row = one(step, sql, [receipt.into()]).await?;
    row.map(|row| Ok((receipt.to_owned(), row.try_get_by_index(0)?))).transpose()
}

/// Where stock held in a partition stands.
async fn hold(step: &DatabaseTransaction, here: Partition, order: OrderId) -> Result<Option<String>, DbErr> {
    let sql = "SELECT state FROM stock_holds WHERE partition = $1 AND order_id = $2";
    let row = one(step, sql, [i32::from(here.0).into(), order.get().into()]).await?;
    row.map(|row| row.try_get_by_index(0)).transpose()
}

/// Locks a partition's position, and reads its epoch.
async fn position(transaction: &DatabaseTransaction, here: Partition) -> Result<i64, DbErr> {
    let sql = "SELECT epoch FROM projection_positions WHERE partition = $1 FOR UPDATE";
    let row = one(transaction, sql, [i32::from(here.0).into()]).await?;
    row.ok_or_else(|| DbErr::RecordNotFound(format!("position of partition {}", here.0)))?.try_get_by_index(0)
}

async fn letter(transaction: &DatabaseTransaction, id: &DeadLetterId) -> Result<Option<StoredEvent>, Error> {
    let sql = "SELECT epoch, fields FROM dead_letters
               WHERE partition = $1 AND stream_id = $2 AND coalesce(seq, -1) = $3 FOR UPDATE";
    let Some(row) = one(transaction, sql, address(id)).await.map_err(postgres::translate)? else { return Ok(None) };
    let epoch = row.try_get_by_index(0).map_err(postgres::translate)?;
    let fields: serde_json::Value = row.try_get_by_index(1).map_err(postgres::translate)?;
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = fields.as_object().into_iter().flatten();
    Ok(Some(StoredEvent { epoch, fields: fields.map(|(name, value)| (name.clone(), text(value))).collect() }))
}

/// What a letter is found by.
fn address(id: &DeadLetterId) -> [Value; 3] {
    [i32::from(id.partition).into(), id.stream_id.as_str().into(), id.seq.unwrap_or(-1).into()]
}

async fn one(
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
