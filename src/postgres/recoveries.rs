//! The log of recoveries. The process that recovers a partition writes it.

use super::{Connection, translate_sqlx};
use crate::model::{Error, Millis, Page, Partition, Recovery, RecoveryOutcome};

/// Writes a recovery, or replaces what an earlier call wrote about it.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn write(db: &Connection, recovery: &Recovery) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO recoveries (id, partition, reason, found_seq, acknowledged_seq, projected_seq, silent, outcome, detail,
             epoch, noticed_at, began_at, ended_at)
         VALUES ($1::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, to_timestamp($11 / 1000.0), to_timestamp($12 / 1000.0),
             to_timestamp($13 / 1000.0))
         ON CONFLICT (id) DO UPDATE SET outcome = excluded.outcome, detail = excluded.detail, epoch = excluded.epoch,
             ended_at = excluded.ended_at",
    )
    .bind(&recovery.id)
    .bind(i32::from(recovery.partition.0))
    .bind(&recovery.reason)
    .bind(recovery.found_seq)
    .bind(recovery.acknowledged_seq)
    .bind(recovery.projected_seq)
    .bind(recovery.silent.join(","))
    .bind(recovery.outcome.as_str())
    .bind(&recovery.detail)
    .bind(recovery.epoch)
    .bind(recovery.noticed_at.0)
    .bind(recovery.began_at.0)
    .bind(recovery.ended_at.map(|at| at.0))
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(translate_sqlx)
}

/// A row, in the sequence of its columns.
type RecoveryRow =
    (String, i32, String, Option<i64>, i64, i64, String, String, String, Option<i64>, i64, i64, Option<i64>);

/// A page of recoveries, newest first.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn page(db: &Connection, page: i64, size: i64) -> Result<Page<Recovery>, Error> {
    let pool = db.get_postgres_connection_pool();
    let total: i64 =
        sqlx::query_scalar("SELECT count(*) FROM recoveries").fetch_one(pool).await.map_err(translate_sqlx)?;
    let rows: Vec<RecoveryRow> = sqlx::query_as(
        "SELECT id::text, partition, reason, found_seq, acknowledged_seq, projected_seq, silent, outcome, detail, epoch,
             (extract(epoch FROM noticed_at) * 1000)::bigint, (extract(epoch FROM began_at) * 1000)::bigint,
             (extract(epoch FROM ended_at) * 1000)::bigint
         FROM recoveries ORDER BY recoveries.began_at DESC, recoveries.id DESC OFFSET $1 LIMIT $2",
    )
    .bind(page * size)
    .bind(size)
    .fetch_all(pool)
    .await
    .map_err(translate_sqlx)?;
    let items = rows.into_iter().map(recovery).collect::<Result<Vec<_>, Error>>()?;
    Ok(Page { items, page, size, total })
}

fn recovery(row: RecoveryRow) -> Result<Recovery, Error> {
    let (
        id,
        partition,
        reason,
        found_seq,
        acknowledged_seq,
        projected_seq,
        silent,
        outcome,
        detail,
        epoch,
        noticed_at,
        began_at,
        ended_at,
    ) = row;
    let outcome = RecoveryOutcome::from_name(&outcome)
        .ok_or_else(|| Error::Internal(anyhow::anyhow!("{outcome:?} in PostgreSQL is no outcome of a recovery")))?;
    Ok(Recovery {
        id,
        partition: Partition(partition as u16),
        reason,
        found_seq,
        acknowledged_seq,
        projected_seq,
        silent: silent.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
        outcome,
        detail,
        epoch,
        noticed_at: Millis(noticed_at),
        began_at: Millis(began_at),
        ended_at: ended_at.map(Millis),
    })
}
