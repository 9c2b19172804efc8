//! The report of an audit, as a table and as JSON.

use std::{fmt, time::Instant};

use super::tracker::AuditTracker;
use crate::model::Millis;

/// Discrepancies that each check names.
const MAX_NAMED: usize = 20;

/// The end of a discrepancy of something that this version does not know.
pub(super) const UNKNOWN: &str = "is nothing of ours";

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    /// The number of checked records, and the discrepancies with their ids.
    pub detail: String,
}

/// The decided and the projected position of a partition at the end of the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionPositions {
    pub partition: u16,
    pub epoch: i64,
    pub decided_seq: i64,
    pub projected_seq: i64,
}

/// The report of an audit.
#[derive(Clone, Debug)]
pub struct AuditReport {
    /// Whether every check is ok.
    pub balanced: bool,
    pub checks: Vec<Check>,
    pub positions: Vec<PartitionPositions>,
    /// The start of the audit.
    pub at: Millis,
    pub seconds: f64,
    began: Instant,
    /// Whether what this version does not know is no discrepancy.
    ignores_unknown: bool,
    tracker: AuditTracker,
}

impl AuditReport {
    pub(super) fn begin(at: Millis, ignores_unknown: bool, tracker: AuditTracker) -> Self {
        let (checks, positions) = (Vec::new(), Vec::new());
        let (balanced, seconds, began) = (true, 0.0, Instant::now());
        AuditReport { balanced, checks, positions, at, seconds, began, ignores_unknown, tracker }
    }

    pub(super) fn add(&mut self, findings: Findings) {
        let check = findings.check(self.ignores_unknown);
        self.balanced &= check.ok;
        self.checks.push(check);
        self.tracker.end();
    }

    pub(super) fn end(mut self) -> Self {
        self.seconds = self.began.elapsed().as_secs_f64();
        self
    }

    /// The report in the shape of the operators' API.
    pub fn json(&self) -> serde_json::Value {
        let check = |check: &Check| serde_json::json!({"name": check.name, "ok": check.ok, "detail": check.detail});
        let position = |at: &PartitionPositions| {
            serde_json::json!({"partition": at.partition, "epoch": at.epoch, "decidedSeq": at.decided_seq,
                "projectedSeq": at.projected_seq})
        };
        serde_json::json!({
            "balanced": self.balanced,
            "checks": self.checks.iter().map(check).collect::<Vec<_>>(),
            "partitions": self.positions.iter().map(position).collect::<Vec<_>>(),
            "seconds": (self.seconds * 1000.0).round() / 1000.0,
        })
    }
}

/// A table for people.
impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
        for check in &self.checks {
            let word = if check.ok { "ok   " } else { "WRONG" };
            writeln!(f, "{word}  {:width$}  {}", check.name, check.detail)?;
        }
        for at in &self.positions {
            let PartitionPositions { partition, epoch, decided_seq, projected_seq } = at;
            writeln!(f, "partition {partition}: epoch {epoch}, decided {decided_seq}, in PostgreSQL {projected_seq}")?;
        }
        let word = if self.balanced { "The books balance" } else { "THE BOOKS DO NOT BALANCE" };
        write!(f, "{word} ({:.1} s).", self.seconds)
    }
}

/// The result of a check so far.
pub(super) struct Findings {
    name: &'static str,
    noun: &'static str,
    checked: i64,
    found: usize,
    named: Vec<String>,
    /// Those of keys and fields that this version does not know, which end with [`UNKNOWN`].
    unknown: usize,
    unknown_named: Vec<String>,
}

impl Findings {
    pub(super) fn new(name: &'static str, noun: &'static str) -> Self {
        Findings { name, noun, checked: 0, found: 0, named: Vec::new(), unknown: 0, unknown_named: Vec::new() }
    }

    pub(super) fn count_one(&mut self) {
        self.checked += 1;
    }

    pub(super) fn count(&mut self, more: i64) {
        self.checked += more;
    }

    pub(super) fn add(&mut self, what: String) {
        let (count, named) = match what.ends_with(UNKNOWN) {
            true => (&mut self.unknown, &mut self.unknown_named),
            false => (&mut self.found, &mut self.named),
        };
        *count += 1;
        if named.len() < MAX_NAMED {
            named.push(what);
        }
    }

    /// Adds `found` discrepancies, of which the first are `named`.
    pub(super) fn add_all(&mut self, found: i64, named: Vec<String>) {
        let before = self.found;
        named.into_iter().for_each(|what| self.add(what));
        self.found = self.found.max(before + found as usize);
    }

    /// Adds the discrepancies of another check, but not its count of records.
    pub(super) fn take(&mut self, other: Findings) {
        self.add_all(other.found as i64, other.named);
        let before = self.unknown;
        other.unknown_named.into_iter().for_each(|what| self.add(what));
        self.unknown = before + other.unknown;
    }

    fn check(mut self, ignores_unknown: bool) -> Check {
        if !ignores_unknown {
            self.found += self.unknown;
            self.named.append(&mut self.unknown_named);
            self.named.truncate(MAX_NAMED);
        }
        let Findings { name, noun, checked, found, named, .. } = self;
        let more = found.saturating_sub(named.len());
        let detail = match (found, more) {
            (0, _) => format!("{checked} {noun}"),
            (_, 0) => format!("{checked} {noun}, {found} wrong: {}", named.join("; ")),
            _ => format!("{checked} {noun}, {found} wrong: {}; and {more} more", named.join("; ")),
        };
        Check { name, ok: found == 0, detail }
    }
}
