//! What became of an import's rows, and its entries in the operator log: that it began, and how it ended.

use std::{sync::Arc, time::Instant};

use indicatif::HumanCount;
use serde_json::{Value, json};
use uuid::Uuid;

use super::rows::RowKind;
use crate::{
    engine::OperatorLog,
    model::{COMMAND_LINE, Clock, OperatorAction, PutOutcome},
};

/// The most characters of a file's name, and of a reason, that are recorded.
const MAX_TEXT_LEN: usize = 300;

/// How many rows had which outcome.
#[derive(Default)]
pub(super) struct ImportCounts {
    created: u64,
    changed: u64,
    unchanged: u64,
    pub rejected: u64,
}

impl ImportCounts {
    pub fn add(&mut self, outcome: PutOutcome) {
        match outcome {
            PutOutcome::Created => self.created += 1,
            PutOutcome::Changed => self.changed += 1,
            PutOutcome::Unchanged => self.unchanged += 1,
        }
    }

    pub fn all(&self) -> u64 {
        self.created + self.changed + self.unchanged + self.rejected
    }
}

impl std::fmt::Display for ImportCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [all, created, changed, unchanged, rejected] =
            [self.all(), self.created, self.changed, self.unchanged, self.rejected].map(HumanCount);
        write!(f, "{all} rows: {created} created, {changed} changed, {unchanged} unchanged, {rejected} rejected")
    }
}

/// Writes the entries of one import.
pub(super) struct ImportRecorder {
    log: Arc<OperatorLog>,
    clock: Clock,
    /// Of the entries, and of the decisions.
    pub request_id: String,
    /// What is imported, as the resource.
    kind: RowKind,
    file: String,
    began: Option<Instant>,
}

impl ImportRecorder {
    pub fn new(log: Arc<OperatorLog>, clock: Clock, kind: RowKind, file: &str) -> Self {
        // Short: every decision has it.
        let request_id = format!("import-{:08x}", Uuid::new_v4().as_fields().0);
        ImportRecorder { log, clock, request_id, kind, file: shortened(file), began: None }
    }

    /// The header is read: rows follow.
    pub fn begin(&mut self) {
        self.began = Some(Instant::now());
        self.record(202, json!({ "outcome": "BEGUN", "file": self.file }));
    }

    /// The end of an import that began. `is_projected`: PostgreSQL has what it decided.
    pub fn end(&self, counts: &ImportCounts, ended: &anyhow::Result<()>, is_stopped: bool, is_projected: bool) {
        let Some(began) = self.began else { return };
        let (outcome, status) = match ended {
            Ok(()) if is_projected => ("COMPLETE", 200),
            Ok(()) => ("NOT_PROJECTED", 503),
            Err(_) if is_stopped => ("STOPPED", 503),
            Err(_) => ("FAILED", 503),
        };
        let detail = json!({
            "outcome": outcome,
            "reason": ended.as_ref().err().map(|error| shortened(&format!("{error:#}"))),
            "file": self.file,
            "rows": counts.all(),
            "created": counts.created,
            "changed": counts.changed,
            "unchanged": counts.unchanged,
            "rejected": counts.rejected,
            "seconds": began.elapsed().as_secs(),
        });
        self.record(status, detail);
    }

    fn record(&self, status: u16, detail: Value) {
        self.log.record(OperatorAction {
            id: Uuid::now_v7().to_string(),
            operator: COMMAND_LINE.to_owned(),
            role: None,
            action: "firstcome import".to_owned(),
            target: self.kind.name().to_owned(),
            detail: detail.to_string(),
            status,
            request_id: self.request_id.clone(),
            at: self.clock.now(),
        });
    }
}

/// The end of a text that is too long: there a path has its file, and an error its cause.
fn shortened(text: &str) -> String {
    let text: Vec<char> = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    let beyond = text.len().saturating_sub(MAX_TEXT_LEN);
    let end: String = text.iter().skip(beyond).collect();
    if beyond > 0 { format!("…{end}") } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keeps_its_end_and_is_printable() {
        assert_eq!(shortened("a\nb"), "a\u{fffd}b");
        assert_eq!(shortened(&"가".repeat(MAX_TEXT_LEN)), "가".repeat(MAX_TEXT_LEN));
        assert_eq!(shortened(&format!("x{}", "가".repeat(MAX_TEXT_LEN))), format!("…{}", "가".repeat(MAX_TEXT_LEN)));
    }
}
