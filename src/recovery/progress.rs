//! Follows a rebuild: for the log, and for operators.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{
    model::RecoveryProgress,
    postgres::{self, recoveries},
    telemetry::metrics,
};

/// The interval between two lines of the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// The interval in which PostgreSQL gets the progress, and the time limit of a write.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Counts the rows that are written back.
pub(super) struct Progress(Mutex<RowCounts>);

struct RowCounts {
    step: &'static str,
    /// Since the beginning of the step.
    began: Instant,
    reported_at: Instant,
    expected: Option<i64>,
    done: i64,
}

impl Progress {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Progress(Mutex::new(RowCounts { step: "prepare", began: now, reported_at: now, expected: None, done: 0 }))
    }

    /// Begins a step.
    pub(super) fn begin(&self, step: &'static str) {
        let mut counts = self.0.lock();
        (counts.step, counts.began) = (step, Instant::now());
    }

    /// The number of rows that the rebuild will write back.
    pub(super) fn expect(&self, rows: i64) {
        self.0.lock().expected = Some(rows);
    }

    pub(super) fn done(&self) -> i64 {
        self.0.lock().done
    }

    /// Counts one row of this kind.
    pub(super) fn row(&self, kind: &'static str) {
        let mut counts = self.0.lock();
        counts.done += 1;
        // Reads the clock once in 1024 rows.
        if counts.done % 1024 == 0 && counts.reported_at.elapsed() >= REPORT_INTERVAL {
            counts.reported_at = Instant::now();
            let (done, total) = (counts.done, counts.expected.unwrap_or(0));
            let (per_second, eta_seconds) = (counts.per_second() as i64, counts.eta_seconds().ceil() as i64);
            tracing::info!(kind, done, total, per_second, eta_seconds, "rebuilding");
        }
    }

    pub(super) fn progress(&self) -> RecoveryProgress {
        let counts = self.0.lock();
        let expected = counts.expected.map(|expected| expected.max(counts.done));
        let eta_seconds = (counts.step == LOAD && counts.done > 0).then(|| counts.eta_seconds());
        let ratio = counts.done as f64 / expected.unwrap_or(0).max(1) as f64;
        metrics::REBUILD_PROGRESS.set(ratio);
        RecoveryProgress {
            step: Some(counts.step.to_owned()),
            rows_done: counts.done,
            rows_expected: expected,
            eta_seconds,
        }
    }

    /// Writes the progress of these recoveries to PostgreSQL until it is dropped. No rebuild depends on it.
    pub(super) async fn keep_writing(&self, db: &postgres::Connection, ids: &[String]) {
        let mut ticks = tokio::time::interval(WRITE_INTERVAL);
        let mut written = RecoveryProgress::default();
        loop {
            ticks.tick().await;
            let progress = self.progress();
            if progress == written {
                continue;
            }
            if write(db, ids, &progress).await {
                written = progress;
            }
        }
    }

    /// Writes the progress of these recoveries once.
    pub(super) async fn write(&self, db: &postgres::Connection, ids: &[String]) {
        write(db, ids, &self.progress()).await;
    }
}

async fn write(db: &postgres::Connection, ids: &[String], progress: &RecoveryProgress) -> bool {
    match tokio::time::timeout(WRITE_TIMEOUT, recoveries::write_progress(db, ids, progress)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::debug!(%error, "the progress of a rebuild is not written"),
        Err(_) => tracing::debug!("the progress of a rebuild is not written: PostgreSQL does not answer"),
    }
    false
}

impl Drop for Progress {
    fn drop(&mut self) {
        metrics::REBUILD_PROGRESS.set(0.0);
    }
}

/// The step that writes rows back.
pub(super) const LOAD: &str = "load";

impl RowCounts {
    fn per_second(&self) -> f64 {
        self.done as f64 / self.began.elapsed().as_secs_f64()
    }

    fn eta_seconds(&self) -> f64 {
        (self.expected.unwrap_or(0) - self.done).max(0) as f64 / self.per_second().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_beyond_expected_rows() {
        let progress = Progress::new();
        assert_eq!(progress.progress().step.as_deref(), Some("prepare"));
        progress.begin(LOAD);
        progress.expect(2);
        (0..3).for_each(|_| progress.row("users"));
        let RecoveryProgress { rows_done, rows_expected, eta_seconds, .. } = progress.progress();
        assert_eq!((rows_done, rows_expected, eta_seconds), (3, Some(3), Some(0.0)));
        progress.begin("finish");
        assert_eq!(progress.progress().eta_seconds, None);
    }
}
