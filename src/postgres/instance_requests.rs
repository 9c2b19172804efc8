//! What each process of the service says of its requests, for the dashboards of the others.

use sea_orm::{DbErr, RuntimeErr};
use uuid::Uuid;

use super::{Connection, translate};
use crate::model::Error;

/// A report is told of for so long: a process that has not said anything since then is gone.
const FRESH_SECONDS: f64 = 5.0;
/// After which one that was left behind is removed.
const STALE_SECONDS: f64 = 60.0;
/// Reports that are read, and bytes of one.
const MAX_REPORTS: i64 = 64;
const MAX_REPORT_LEN: i32 = 256 * 1024;

/// Writes the report of a process, in place of the one before.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is; so all the following.
pub async fn write(db: &Connection, instance: Uuid, report: &str) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO instance_requests (instance, reported_at, report) VALUES ($1::text::uuid, clock_timestamp(), $2)
         ON CONFLICT (instance) DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report",
    )
    .bind(instance.to_string())
    .bind(report)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(untranslated)
}

/// The reports of the other processes that are at work, the newest process first.
pub async fn others(db: &Connection, instance: Uuid) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "SELECT report FROM instance_requests
         WHERE instance <> $1::text::uuid AND reported_at > clock_timestamp() - make_interval(secs => $2)
             AND octet_length(report) <= $3
         ORDER BY instance DESC LIMIT $4",
    )
    .bind(instance.to_string())
    .bind(FRESH_SECONDS)
    .bind(MAX_REPORT_LEN)
    .bind(MAX_REPORTS)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(untranslated)
}

/// Removes the report of a process that ends, if any is named, and those of processes that did not end in order.
pub async fn remove(db: &Connection, instance: Option<Uuid>) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM instance_requests
         WHERE instance = $1::text::uuid OR reported_at < clock_timestamp() - make_interval(secs => $2)",
    )
    .bind(instance.map(|instance| instance.to_string()))
    .bind(STALE_SECONDS)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(untranslated)
}

fn untranslated(error: sqlx::Error) -> Error {
    translate(DbErr::Query(RuntimeErr::SqlxError(error.into())))
}
