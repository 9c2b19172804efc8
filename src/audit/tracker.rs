//! The progress of a running audit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{model::Millis, telemetry::metrics};

/// How far an audit is. A record of both stores and a key of a scan count as one item each.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditProgress {
    /// The check in progress; empty before the first.
    pub check: &'static str,
    /// Finished checks.
    pub checks: usize,
    /// Compared items.
    pub items: i64,
    /// The expected number of them; `None` while the checks within PostgreSQL run, before it is known.
    pub expected_items: Option<i64>,
    /// The part of the expected work that is done, from 0 to 1.
    pub share: f64,
    pub began_at: Millis,
    pub seconds: f64,
    /// The expected remaining time, at the speed so far; `None` while that is unknown.
    pub eta_seconds: Option<f64>,
}

/// What an item costs in time, relative to a key of a scan.
const RECORD_COST: i64 = 6;
const KEY_COST: i64 = 1;

/// Follows an audit. Clones share it.
#[derive(Clone, Debug)]
pub struct AuditTracker(Arc<Mutex<Tracked>>);

#[derive(Debug)]
struct Tracked {
    check: &'static str,
    checks: usize,
    items: i64,
    work: i64,
    /// The expected items and their work, and the time since which they are counted.
    expected: Option<(i64, i64, Instant)>,
    began_at: Millis,
    began: Instant,
}

impl AuditTracker {
    /// Of an audit that begins now.
    pub fn new(began_at: Millis) -> Self {
        let tracked =
            Tracked { check: "", checks: 0, items: 0, work: 0, expected: None, began_at, began: Instant::now() };
        AuditTracker(Arc::new(Mutex::new(tracked)))
    }

    /// Begins a check.
    pub(super) fn begin(&self, check: &'static str) {
        self.0.lock().check = check;
    }

    /// Ends a check.
    pub(super) fn end(&self) {
        self.0.lock().checks += 1;
    }

    /// The numbers of records and of keys that will be compared, from now on.
    pub(super) fn expect(&self, records: i64, keys: i64) {
        let work = records * RECORD_COST + keys * KEY_COST;
        self.0.lock().expected = Some((records + keys, work, Instant::now()));
    }

    /// Counts compared records.
    pub(super) fn records(&self, more: usize) {
        self.count(more, RECORD_COST);
    }

    /// Counts scanned keys.
    pub(super) fn keys(&self, more: usize) {
        self.count(more, KEY_COST);
    }

    fn count(&self, more: usize, cost: i64) {
        let mut tracked = self.0.lock();
        tracked.items += more as i64;
        tracked.work += more as i64 * cost;
        metrics::AUDIT_PROGRESS.set(tracked.share());
    }

    /// How far the audit is now.
    pub fn progress(&self) -> AuditProgress {
        let tracked = self.0.lock();
        let share = tracked.share();
        let remaining = |since: Instant| {
            let done = since.elapsed().as_secs_f64();
            (share > 0.0).then(|| done / share - done)
        };
        AuditProgress {
            check: tracked.check,
            checks: tracked.checks,
            items: tracked.items,
            expected_items: tracked.expected.map(|(items, ..)| items.max(tracked.items)),
            share,
            began_at: tracked.began_at,
            seconds: tracked.began.elapsed().as_secs_f64(),
            eta_seconds: tracked.expected.and_then(|(.., since)| remaining(since)),
        }
    }
}

impl Tracked {
    /// What comes up meanwhile may exceed what was expected.
    fn share(&self) -> f64 {
        self.expected.map_or(0.0, |(_, work, _)| self.work as f64 / work.max(self.work).max(1) as f64)
    }
}

impl std::fmt::Display for AuditProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AuditProgress { check, items, expected_items, share, eta_seconds, .. } = self;
        match (expected_items, eta_seconds) {
            (Some(expected), Some(eta)) => {
                let eta = Duration::from_secs(eta.ceil() as u64).as_secs();
                write!(f, "{:3.0} %, {items} of {expected} items, {eta} s left: {check}", share * 100.0)
            }
            _ => write!(f, "{check}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_grows_with_work_and_ends_at_one() {
        let tracker = AuditTracker::new(Millis(5));
        tracker.begin("a");
        tracker.records(10);
        let before = tracker.progress();
        assert_eq!((before.share, before.expected_items, before.eta_seconds), (0.0, None, None));
        tracker.expect(20, 60);
        tracker.end();
        assert_eq!(tracker.progress().share, 60.0 / 180.0);
        tracker.records(10);
        tracker.keys(60);
        let after = tracker.progress();
        assert_eq!((after.share, after.items, after.expected_items, after.checks), (1.0, 80, Some(80), 1));
        tracker.keys(1);
        let beyond = tracker.progress();
        assert_eq!((beyond.share, beyond.expected_items, beyond.eta_seconds), (1.0, Some(81), Some(0.0)));
    }
}
