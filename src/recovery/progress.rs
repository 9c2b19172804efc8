//! Logs the progress of a rebuild.

use std::time::{Duration, Instant};

/// The interval between two lines of the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Counts the rows that are written back.
pub(super) struct Progress {
    total: i64,
    done: i64,
    began: Instant,
    reported_at: Instant,
}

impl Progress {
    pub(super) fn new(total: i64) -> Self {
        let now = Instant::now();
        Progress { total, done: 0, began: now, reported_at: now }
    }

    pub(super) fn done(&self) -> i64 {
        self.done
    }

    /// Counts one row of this kind.
    pub(super) fn row(&mut self, kind: &'static str) {
        self.done += 1;
        // Reads the clock once in 1024 rows.
        if self.done % 1024 == 0 && self.reported_at.elapsed() >= REPORT_INTERVAL {
            self.reported_at = Instant::now();
            let per_second = self.done as f64 / self.began.elapsed().as_secs_f64();
            let eta_seconds = ((self.total - self.done).max(0) as f64 / per_second.max(1.0)).ceil() as i64;
            let (done, total) = (self.done, self.total);
            tracing::info!(kind, done, total, per_second = per_second as i64, eta_seconds, "rebuilding");
        }
    }
}
