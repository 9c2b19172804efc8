//! The request counts of each process, for the dashboards of the other processes.

use std::time::Duration;

use super::{Connection, translate_sqlx};
use crate::model::Error;

/// Seconds after which a report counts as that of an ended process.
const FRESH_SECONDS: f64 = 5.0;
/// Seconds after which the report of an ended process is removed.
const STALE_SECONDS: f64 = 60.0;
/// Reports in one read, and bytes in one report.
const MAX_REPORTS: i64 = 64;
const MAX_REPORT_LEN: i32 = 256 * 1024;

/// Replaces the report of a process.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn write(db: &Connection, instance: &str, report: &str) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO instance_requests (instance, reported_at, report) VALUES ($1::text::uuid, clock_timestamp(), $2)
         ON CONFLICT (instance) DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report",
    )
    .bind(instance)
    .bind(report)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(translate_sqlx)
}

/// The fresh reports of the other processes, newest process first.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn others(db: &Connection, instance: &str) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "SELECT report FROM instance_requests
         WHERE instance <> $1::text::uuid AND reported_at > clock_timestamp() - make_interval(secs => $2)
             AND octet_length(report) <= $3
         ORDER BY instance DESC LIMIT $4",
    )
    .bind(instance)
    .bind(FRESH_SECONDS)
    .bind(MAX_REPORT_LEN)
    .bind(MAX_REPORTS)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)
}

/// The processes that serve, or did so within this time.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn serving_within(db: &Connection, time: Duration) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "SELECT instance::text FROM instance_requests
         WHERE reported_at > clock_timestamp() - make_interval(secs => $1) ORDER BY instance",
    )
    .bind(time.as_secs_f64() + FRESH_SECONDS)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)
}

/// Removes the report of `instance`, if given, and the stale reports of processes that did not remove their own.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn remove(db: &Connection, instance: Option<&str>) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM instance_requests
         WHERE instance = $1::text::uuid OR reported_at < clock_timestamp() - make_interval(secs => $2)",
    )
    .bind(instance)
    .bind(STALE_SECONDS)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(translate_sqlx)
}
