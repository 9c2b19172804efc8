//! Reads the events of other systems, and removes those of past weeks. The projector writes them.

use sqlx::{AssertSqlSafe, Row, postgres::PgRow};

use super::{Connection, translate_sqlx};
use crate::model::{
    Error, Millis, Partition,
    public_event::{EventPlace, KeptEvent},
};

/// The parts of the table: each has the events of a week, in turn.
pub const SLOTS: i16 = 16;

/// How far the events of a partition go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventRange {
    pub partition: Partition,
    /// None is missing after this place.
    pub after: EventPlace,
    /// The newest.
    pub last: EventPlace,
}

/// The events that are there, by partition; a partition that has none, or whose events are off, ends at its position.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is, or while it is a standby.
pub async fn ranges(db: &Connection) -> Result<Vec<EventRange>, Error> {
    let rows = sqlx::query(
        "SELECT partition, coalesce(events_after_epoch, epoch) AS after_epoch, coalesce(events_after_seq, seq) AS after_seq,
             events_after_late AS after_late, coalesce(events_epoch, epoch) AS last_epoch, coalesce(events_seq, seq) AS last_seq,
             events_late AS last_late, pg_is_in_recovery() AS is_standby
         FROM projection_positions ORDER BY partition",
    )
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    let mut ranges = Vec::with_capacity(rows.len());
    for row in &rows {
        if row.try_get("is_standby").map_err(translate_sqlx)? {
            return Err(Error::unavailable("PostgreSQL is a standby"));
        }
        ranges.push(range(row).map_err(translate_sqlx)?);
    }
    Ok(ranges)
}

fn range(row: &PgRow) -> sqlx::Result<EventRange> {
    let place = |epoch: &str, seq: &str, late: &str| -> sqlx::Result<EventPlace> {
        let late: i32 = row.try_get(late)?;
        Ok(EventPlace { epoch: row.try_get(epoch)?, seq: row.try_get(seq)?, late: late.into() })
    };
    Ok(EventRange {
        partition: Partition(row.try_get::<i32, _>("partition")? as u16),
        after: place("after_epoch", "after_seq", "after_late")?,
        last: place("last_epoch", "last_seq", "last_late")?,
    })
}

/// The next places of a partition after a place, in their order, each with its event if it is of `kinds`, or if there are none.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn after(
    db: &Connection,
    here: Partition,
    place: EventPlace,
    kinds: &[String],
    limit: i64,
) -> Result<Vec<(EventPlace, Option<KeptEvent>)>, Error> {
    let rows = sqlx::query(
        "SELECT epoch, seq, late, coalesce(late_seq, seq) AS decided_seq, type, subject,
             (extract(epoch FROM at) * 1000)::bigint AS at_ms,
             CASE WHEN cardinality($5::text[]) = 0 OR type = ANY($5) THEN data END AS data
         FROM events WHERE partition = $1 AND (epoch, seq, late) > ($2, $3, $4)
         ORDER BY events.epoch, events.seq, events.late LIMIT $6",
    )
    .bind(i32::from(here.0))
    .bind(place.epoch)
    .bind(place.seq)
    .bind(place.late as i32)
    .bind(kinds)
    .bind(limit)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    rows.iter().map(|row| event(row, here)).collect::<sqlx::Result<_>>().map_err(translate_sqlx)
}

/// The event of a decision.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn find(db: &Connection, here: Partition, epoch: i64, seq: i64) -> Result<Option<KeptEvent>, Error> {
    let row = sqlx::query(
        "SELECT epoch, seq, late, coalesce(late_seq, seq) AS decided_seq, type, subject,
             (extract(epoch FROM at) * 1000)::bigint AS at_ms, data AS data
         FROM events WHERE partition = $1 AND epoch = $2 AND (seq = $3 AND late = 0 OR late_seq = $3) LIMIT 1",
    )
    .bind(i32::from(here.0))
    .bind(epoch)
    .bind(seq)
    .fetch_optional(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    row.map_or(Ok(None), |row| event(&row, here).map(|(_, event)| event)).map_err(translate_sqlx)
}

/// The place of an event, and the event unless its type is not wanted.
fn event(row: &PgRow, partition: Partition) -> sqlx::Result<(EventPlace, Option<KeptEvent>)> {
    let late: i32 = row.try_get("late")?;
    let place = EventPlace { epoch: row.try_get("epoch")?, seq: row.try_get("seq")?, late: late.into() };
    let Some(data) = row.try_get::<Option<String>, _>("data")? else { return Ok((place, None)) };
    let event = KeptEvent {
        partition,
        place,
        seq: row.try_get("decided_seq")?,
        kind: row.try_get("type")?,
        subject: row.try_get("subject")?,
        at: Millis(row.try_get("at_ms")?),
        data,
    };
    Ok((place, Some(event)))
}

/// The time by PostgreSQL's clock.
///
/// # Errors
/// PostgreSQL is unavailable.
pub async fn now(db: &Connection) -> sqlx::Result<Millis> {
    let sql = "SELECT (extract(epoch FROM now()) * 1000)::bigint";
    sqlx::query_scalar(sql).fetch_one(db.get_postgres_connection_pool()).await.map(Millis)
}

/// Empties a slot, and records that its events are missing. Does nothing to an empty one, or to one whose newest decision of a
/// partition was made at `kept_from` or later: a clock was wrong when it was written, or is now.
///
/// # Errors
/// PostgreSQL is unavailable, or a reader holds the slot.
pub async fn purge(db: &Connection, slot: i16, kept_from: Option<Millis>) -> sqlx::Result<()> {
    let table = format!("events_{slot}");
    let pool = db.get_postgres_connection_pool();
    let sql = format!(
        "SELECT EXISTS (SELECT FROM {table}) AND NOT EXISTS (
             SELECT FROM projection_positions AS p CROSS JOIN LATERAL (
                 SELECT at FROM {table} AS e WHERE e.partition = p.partition AND e.late = 0
                 ORDER BY e.epoch DESC, e.seq DESC, e.late DESC LIMIT 1) AS e
             WHERE e.at >= to_timestamp($1::float8 / 1000))"
    );
    let is_past: bool = sqlx::query_scalar(AssertSqlSafe(sql)).bind(kept_from.map(|at| at.0)).fetch_one(pool).await?;
    if !is_past {
        return Ok(());
    }
    let mut transaction = pool.begin().await?;
    // Readers wait behind the lock, so it must not wait long for one of them.
    sqlx::query("SET LOCAL lock_timeout = '2s'").execute(&mut *transaction).await?;
    sqlx::query(AssertSqlSafe(format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")))
        .execute(&mut *transaction)
        .await?;
    let sql = format!(
        "UPDATE projection_positions AS p SET events_after_epoch = gone.epoch, events_after_seq = gone.seq,
             events_after_late = gone.late
         FROM (SELECT n.partition, e.epoch, e.seq, e.late FROM projection_positions AS n CROSS JOIN LATERAL (
                   SELECT epoch, seq, late FROM {table} AS e WHERE e.partition = n.partition
                   ORDER BY e.epoch DESC, e.seq DESC, e.late DESC LIMIT 1) AS e) AS gone
         WHERE p.partition = gone.partition
             AND (p.events_after_epoch, p.events_after_seq, p.events_after_late) < (gone.epoch, gone.seq, gone.late)"
    );
    sqlx::query(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    sqlx::query(AssertSqlSafe(format!("TRUNCATE {table}"))).execute(&mut *transaction).await?;
    transaction.commit().await
}
