//! The log of recoveries. The process that recovers a partition writes it.

use sea_orm::DbErr;
use sqlx::{Row, postgres::PgRow};

use super::{Connection, statement_error, translate_sqlx};
use crate::model::{BegunBy, Error, Millis, Page, Partition, Recovery, RecoveryOutcome, RecoveryProgress};

/// Writes a recovery, or replaces what an earlier call wrote about it, but for its progress.
///
/// # Errors
/// PostgreSQL is unavailable, or refuses a text (see [`super::is_data_fault`]).
pub async fn write(db: &Connection, recovery: &Recovery) -> Result<(), DbErr> {
    sqlx::query(
        "INSERT INTO recoveries (id, partition, begun_by, attempts, reason, found_seq, acknowledged_seq, projected_seq,
             missing_last_seq, silent, outcome, detail, epoch, withheld_units, withheld_coupons, noticed_at, began_at, ended_at)
         VALUES ($1::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, to_timestamp($16 / 1000.0),
             to_timestamp($17 / 1000.0), to_timestamp($18 / 1000.0))
         ON CONFLICT (id) DO UPDATE SET attempts = excluded.attempts, reason = excluded.reason, found_seq = excluded.found_seq,
             acknowledged_seq = excluded.acknowledged_seq, projected_seq = excluded.projected_seq,
             missing_last_seq = excluded.missing_last_seq, silent = excluded.silent, outcome = excluded.outcome,
             detail = excluded.detail, epoch = excluded.epoch, withheld_units = excluded.withheld_units,
             withheld_coupons = excluded.withheld_coupons, ended_at = excluded.ended_at",
    )
    .bind(&recovery.id)
    .bind(i32::from(recovery.partition.0))
    .bind(recovery.begun_by.as_str())
    .bind(recovery.attempts)
    .bind(&recovery.reason)
    .bind(recovery.found_seq)
    .bind(recovery.acknowledged_seq)
    .bind(recovery.projected_seq)
    .bind(recovery.missing_last_seq)
    .bind(recovery.silent.join(","))
    .bind(recovery.outcome.as_str())
    .bind(&recovery.detail)
    .bind(recovery.epoch)
    .bind(recovery.withheld_units)
    .bind(recovery.withheld_coupons)
    .bind(recovery.noticed_at.0)
    .bind(recovery.began_at.0)
    .bind(recovery.ended_at.map(|at| at.0))
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(statement_error)
}

/// Writes how far a rebuild of these recoveries is.
///
/// # Errors
/// PostgreSQL is unavailable.
pub async fn write_progress(db: &Connection, ids: &[String], progress: &RecoveryProgress) -> Result<(), DbErr> {
    let RecoveryProgress { step, rows_done, rows_expected, eta_seconds } = progress;
    sqlx::query(
        "UPDATE recoveries SET step = $2, rows_done = $3, rows_expected = $4, eta_seconds = $5
         WHERE id = ANY($1::text[]::uuid[])",
    )
    .bind(ids)
    .bind(step)
    .bind(rows_done)
    .bind(rows_expected)
    .bind(eta_seconds)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(statement_error)
}

/// The columns that [`recovery`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id::text, partition, begun_by, attempts, reason, found_seq, acknowledged_seq, projected_seq,
                 missing_last_seq, silent, outcome, detail, epoch, withheld_units, withheld_coupons,
                 step, rows_done, rows_expected, eta_seconds,
                 (extract(epoch FROM noticed_at) * 1000)::bigint AS noticed_ms,
                 (extract(epoch FROM began_at) * 1000)::bigint AS began_ms,
                 (extract(epoch FROM ended_at) * 1000)::bigint AS ended_ms
             FROM recoveries ",
            $rest
        )
    };
}

/// A page of recoveries, newest first. `page`: from 0.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn page(db: &Connection, page: i64, size: i64) -> Result<Page<Recovery>, Error> {
    let pool = db.get_postgres_connection_pool();
    let total: i64 =
        sqlx::query_scalar("SELECT count(*) FROM recoveries").fetch_one(pool).await.map_err(translate_sqlx)?;
    let rows = sqlx::query(select!("ORDER BY recoveries.began_at DESC, recoveries.id DESC OFFSET $1 LIMIT $2"))
        .bind(page * size)
        .bind(size)
        .fetch_all(pool)
        .await
        .map_err(translate_sqlx)?;
    let items = rows.iter().map(recovery).collect::<sqlx::Result<_>>().map_err(translate_sqlx)?;
    Ok(Page { items, page, size, total })
}

/// The last recovery of a partition.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn last(db: &Connection, partition: Partition) -> Result<Option<Recovery>, Error> {
    let row = sqlx::query(select!(
        "WHERE recoveries.partition = $1 ORDER BY recoveries.began_at DESC, recoveries.id DESC LIMIT 1"
    ))
    .bind(i32::from(partition.0))
    .fetch_optional(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    row.as_ref().map(recovery).transpose().map_err(translate_sqlx)
}

/// Ends the recoveries in progress, but for `ids`, as failed for this reason: the process of each has ended. Only for the
/// holder of the lock of rebuilds.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn end_interrupted(db: &Connection, ids: &[String], reason: &str, at: Millis) -> Result<(), Error> {
    sqlx::query(
        "UPDATE recoveries SET outcome = 'FAILED', detail = $2, ended_at = to_timestamp($3 / 1000.0)
         WHERE outcome = 'RUNNING' AND id::text <> ALL($1::text[])",
    )
    .bind(ids)
    .bind(reason)
    .bind(at.0)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(translate_sqlx)
}

fn recovery(row: &PgRow) -> sqlx::Result<Recovery> {
    let unknown = |value: &str| sqlx::Error::Decode(format!("a recovery has the unknown value {value:?}").into());
    let (begun_by, outcome): (&str, &str) = (row.try_get("begun_by")?, row.try_get("outcome")?);
    let silent: &str = row.try_get("silent")?;
    Ok(Recovery {
        id: row.try_get("id")?,
        partition: Partition(row.try_get::<i32, _>("partition")? as u16),
        begun_by: BegunBy::from_name(begun_by).ok_or_else(|| unknown(begun_by))?,
        attempts: row.try_get("attempts")?,
        reason: row.try_get("reason")?,
        found_seq: row.try_get("found_seq")?,
        acknowledged_seq: row.try_get("acknowledged_seq")?,
        projected_seq: row.try_get("projected_seq")?,
        missing_last_seq: row.try_get("missing_last_seq")?,
        silent: silent.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect(),
        outcome: RecoveryOutcome::from_name(outcome).ok_or_else(|| unknown(outcome))?,
        detail: row.try_get("detail")?,
        epoch: row.try_get("epoch")?,
        withheld_units: row.try_get("withheld_units")?,
        withheld_coupons: row.try_get("withheld_coupons")?,
        progress: RecoveryProgress {
            step: row.try_get("step")?,
            rows_done: row.try_get("rows_done")?,
            rows_expected: row.try_get("rows_expected")?,
            eta_seconds: row.try_get("eta_seconds")?,
        },
        noticed_at: Millis(row.try_get("noticed_ms")?),
        began_at: Millis(row.try_get("began_ms")?),
        ended_at: row.try_get::<Option<i64>, _>("ended_ms")?.map(Millis),
    })
}
