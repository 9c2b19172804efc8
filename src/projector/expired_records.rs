//! Removes idempotency records that have expired from PostgreSQL.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};

use super::Projector;
use crate::worker::{Worker, Workers};

/// How often expired idempotency records are removed, and how many at a time.
const RECORD_CLEANUP_INTERVAL: Duration = Duration::from_secs(1);
const RECORD_CLEANUP_BATCH: i64 = 20_000;

impl Projector {
    /// Starts the worker that removes them.
    pub(super) fn keep_removing_expired_records(&self, workers: &Workers) {
        let this = self.clone();
        workers.every(Worker::RecordCleanup, RECORD_CLEANUP_INTERVAL, move || {
            let this = this.clone();
            async move {
                match tokio::time::timeout(this.timeout, this.remove_expired_records()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "expired idempotency records are not removed yet"),
                    Err(_) => tracing::debug!("expired idempotency records are not removed yet: no answer"),
                }
            }
        });
    }

    /// Removes expired idempotency records, a bounded number. Returns the number.
    ///
    /// # Errors
    /// PostgreSQL is unavailable.
    pub async fn remove_expired_records(&self) -> Result<u64, DbErr> {
        let sql = "DELETE FROM idempotency_records WHERE (partition, digest) IN (
                       SELECT partition, digest FROM idempotency_records
                       WHERE expires_at <= to_timestamp($1 / 1000.0) LIMIT $2)";
        let values = [self.clock.now().0.into(), RECORD_CLEANUP_BATCH.into()];
        Ok(self.db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?.rows_affected())
    }
}
