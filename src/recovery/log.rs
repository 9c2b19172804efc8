//! The log of recoveries: what became of each partition that was rebuilt, for operators.
//!
//! Every rebuild writes it, by a process or by an operator: a row per partition in `recoveries`, and an entry in the operator log once the
//! rebuild has ended. No rebuild depends on it: PostgreSQL may be away when a rebuild ends, and what could not be written is
//! kept and written later.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::json;
use uuid::Uuid;

use super::{findings::PartitionFinding, rebuild::Summary};
use crate::{
    model::{
        BegunBy, COMMAND_LINE, Clock, Millis, OperatorAction, Partition, Position, Recovery, RecoveryOutcome,
        RecoveryProgress,
    },
    postgres::{self, operator_log, recoveries},
    redis::bulk::PartitionState,
    telemetry::metrics,
    worker::retry_within,
};

/// The time limit of a write: a connection may hang.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between two attempts of [`RecoveryLog::flush`].
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Who the operator log names for a recovery that a process began by itself.
const SERVICE: &str = "firstcome";

/// What PostgreSQL does not have yet. Clones share it. Without a bound: a rebuild begins only if PostgreSQL answers.
#[derive(Clone, Default)]
pub struct RecoveryLog(Arc<Mutex<VecDeque<RecoveryEntry>>>);

/// A recovery as it is to be written, and what the operator log gets.
#[derive(Clone, PartialEq)]
struct RecoveryEntry {
    recovery: Recovery,
    actions: Vec<OperatorAction>,
}

impl RecoveryLog {
    /// Writes recoveries, and keeps what can't be written now.
    async fn record(&self, db: &postgres::Connection, entries: Vec<RecoveryEntry>) {
        for entry in entries {
            self.enqueue(entry);
        }
        if let Err(reason) = self.write(db).await {
            tracing::warn!(reason, kept = self.0.lock().len(), "the log of recoveries waits for PostgreSQL");
        }
    }

    fn enqueue(&self, RecoveryEntry { recovery, actions }: RecoveryEntry) {
        let mut queue = self.0.lock();
        match queue.iter_mut().find(|entry| entry.recovery.id == recovery.id) {
            Some(entry) => {
                entry.recovery = recovery;
                entry.actions.extend(actions);
            }
            None => queue.push_back(RecoveryEntry { recovery, actions }),
        }
    }

    /// Writes what is kept.
    ///
    /// # Errors
    /// PostgreSQL can't answer: the rest is still kept.
    pub async fn write(&self, db: &postgres::Connection) -> Result<(), String> {
        loop {
            // An entry stays until it is written.
            let Some(entry) = self.0.lock().front().cloned() else { return Ok(()) };
            let writing = async {
                recoveries::write(db, &entry.recovery).await?;
                operator_log::write(db, &entry.actions).await
            };
            match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) if postgres::is_data_fault(&error) => {
                    tracing::error!(%error, recovery = ?entry.recovery, "PostgreSQL refuses an entry of the log of recoveries");
                }
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("timed out".to_owned()),
            }
            let mut queue = self.0.lock();
            if queue.front() == Some(&entry) {
                queue.pop_front();
            }
        }
    }

    /// Writes what is kept within `limit`, and drops the rest. Returns whether everything is written. Only for the end of the
    /// process, or of its only rebuild.
    pub async fn flush(&self, db: &postgres::Connection, limit: Duration) -> bool {
        let written = retry_within(limit, RETRY_INTERVAL, async || self.write(db).await).await;
        if !written {
            for RecoveryEntry { recovery, .. } in self.0.lock().drain(..) {
                tracing::error!(?recovery, "a recovery is not in the log of recoveries");
            }
        }
        written
    }
}

/// Why a rebuild began, and what is known of the losses.
#[derive(Clone, Debug)]
pub struct RebuildCause {
    pub begun_by: BegunBy,
    /// By partition: what the checks of a running process found.
    pub noticed: BTreeMap<Partition, NoticedLoss>,
}

impl RebuildCause {
    pub fn new(begun_by: BegunBy) -> Self {
        RebuildCause { begun_by, noticed: BTreeMap::new() }
    }
}

/// What the checks of a running process found of a loss.
#[derive(Clone, Debug)]
pub struct NoticedLoss {
    pub reason: String,
    pub silent: Vec<String>,
    pub at: Millis,
}

/// The recoveries of a rebuild in progress.
pub(super) struct OpenRecoveries<'a> {
    log: &'a RecoveryLog,
    db: &'a postgres::Connection,
    clock: &'a Clock,
    cause: RebuildCause,
    recoveries: BTreeMap<Partition, Recovery>,
    /// What the attempts before came to.
    failures: BTreeMap<Partition, String>,
}

impl<'a> OpenRecoveries<'a> {
    pub(super) fn new(
        log: &'a RecoveryLog,
        db: &'a postgres::Connection,
        clock: &'a Clock,
        cause: RebuildCause,
    ) -> Self {
        let (recoveries, failures) = (BTreeMap::new(), BTreeMap::new());
        OpenRecoveries { log, db, clock, cause, recoveries, failures }
    }

    /// Adds the recovery of a partition, by its state before the rebuild.
    pub(super) async fn add(
        &mut self,
        here: Partition,
        state: &PartitionState,
        acknowledged: Position,
        projected: Position,
    ) {
        let now = self.clock.now();
        let noticed = self.cause.noticed.get(&here);
        let mut recovery = Recovery {
            id: Uuid::now_v7().to_string(),
            partition: here,
            begun_by: self.cause.begun_by,
            attempts: 1,
            reason: noticed.map_or_else(|| reason(state), |noticed| noticed.reason.clone()),
            found_seq: found(state),
            acknowledged_seq: acknowledged.seq,
            projected_seq: projected.seq,
            missing_last_seq: None,
            silent: noticed.map_or_else(Vec::new, |noticed| noticed.silent.clone()),
            outcome: RecoveryOutcome::Running,
            detail: String::new(),
            epoch: None,
            withheld_units: 0,
            withheld_coupons: 0,
            progress: RecoveryProgress::default(),
            noticed_at: noticed.map_or(now, |noticed| noticed.at),
            began_at: now,
            ended_at: None,
        };
        if let Some(failed) = self.failed_before(&recovery).await {
            recovery.attempts = failed.attempts.saturating_add(1);
            recovery.id = failed.id;
            (recovery.noticed_at, recovery.began_at) = (failed.noticed_at, failed.began_at);
            self.failures.insert(here, failed.detail);
        }
        self.recoveries.insert(here, recovery);
    }

    /// The attempt before, of any process, to recover from the same loss.
    async fn failed_before(&self, recovery: &Recovery) -> Option<Recovery> {
        if recovery.begun_by != BegunBy::Service {
            return None;
        }
        let last = recoveries::last(self.db, recovery.partition).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the log of recoveries can't be read");
            None
        })?;
        let open = matches!(last.outcome, RecoveryOutcome::Failed | RecoveryOutcome::Running);
        let same = last.ended_at.unwrap_or(last.began_at) >= recovery.noticed_at;
        (open && same && last.begun_by == BegunBy::Service).then_some(last)
    }

    /// The ids of the recoveries.
    pub(super) fn ids(&self) -> Vec<String> {
        self.recoveries.values().map(|recovery| recovery.id.clone()).collect()
    }

    /// Writes that the rebuild is in progress. The caller holds the lock of rebuilds.
    pub(super) async fn begin(&self) {
        end_interrupted(self.db, &self.ids(), self.clock.now()).await;
        let begun = |recovery: &Recovery| RecoveryEntry { recovery: recovery.clone(), actions: Vec::new() };
        self.log.record(self.db, self.recoveries.values().map(begun).collect()).await;
    }

    /// Adds what the rebuild found while the partitions were frozen. `missing_last`: the last decision that may be missing, if
    /// it is known.
    pub(super) async fn update(&mut self, finding: &PartitionFinding, missing_last: Option<i64>) {
        let PartitionFinding { here, state, projected, acknowledged, .. } = finding;
        // The scope has grown.
        let added = !self.recoveries.contains_key(here);
        if added {
            self.add(*here, state, *acknowledged, *projected).await;
        }
        let Some(recovery) = self.recoveries.get_mut(here) else { return };
        if added {
            "the partition took steps that PostgreSQL contradicts".clone_into(&mut recovery.reason);
        }
        recovery.found_seq = found(state);
        (recovery.acknowledged_seq, recovery.projected_seq) = (acknowledged.seq, projected.seq);
        recovery.missing_last_seq = missing_last;
    }

    /// Adds what the rebuild withheld in a partition.
    pub(super) fn withheld(&mut self, here: Partition, (units, coupons): (i64, i64)) {
        if let Some(recovery) = self.recoveries.get_mut(&here) {
            (recovery.withheld_units, recovery.withheld_coupons) = (units, coupons);
        }
    }

    /// Writes what the rebuild came to.
    pub(super) async fn end(mut self, rebuilt: &anyhow::Result<Summary>) {
        let ended_at = self.clock.now();
        let mut entries = Vec::new();
        for (here, mut recovery) in std::mem::take(&mut self.recoveries) {
            recovery.ended_at = Some(ended_at);
            match rebuilt {
                Ok(summary) => {
                    let withheld = summary.possible_losses.contains(&here.0);
                    recovery.outcome = if withheld { RecoveryOutcome::Withheld } else { RecoveryOutcome::Complete };
                    recovery.epoch = Some(summary.epoch);
                }
                Err(error) => {
                    (recovery.outcome, recovery.detail) = (RecoveryOutcome::Failed, format!("{error:#}"));
                }
            }
            let seconds = recovery.seconds().unwrap_or_default();
            metrics::RECOVERIES.with_label_values(&[recovery.outcome.as_str()]).inc();
            metrics::RECOVERY_SECONDS.observe(seconds);
            tracing::warn!(?recovery, seconds, "a recovery has ended");
            // An attempt that fails as the one before is no news.
            let news =
                recovery.outcome != RecoveryOutcome::Failed || self.failures.get(&here) != Some(&recovery.detail);
            let actions = if news { vec![action(&recovery, ended_at)] } else { Vec::new() };
            entries.push(RecoveryEntry { recovery, actions });
        }
        self.log.record(self.db, entries).await;
    }
}

/// Ends the recoveries whose process ended before them, but for `ids`. The caller holds the lock of rebuilds.
pub(super) async fn end_interrupted(db: &postgres::Connection, ids: &[String], now: Millis) {
    let reason = "the process that recovered the partition ended before";
    if let Err(error) = recoveries::end_interrupted(db, ids, reason, now).await {
        tracing::warn!(%error, "interrupted recoveries stay in progress in the log of recoveries");
    }
}

/// Why a partition is rebuilt, by its state.
fn reason(state: &PartitionState) -> String {
    match state {
        state if state.rebuilding => "an earlier rebuild did not end".to_owned(),
        PartitionState { frozen: Some(reason), .. } => reason.clone(),
        PartitionState { position: None, .. } => "Redis has lost the partition".to_owned(),
        _ => "an operator rebuilds the partition".to_owned(),
    }
}

/// The last decision that Redis has; `None` if it has lost the state, or if the state is an unfinished rebuild's.
fn found(state: &PartitionState) -> Option<i64> {
    state.position.filter(|_| !state.rebuilding).map(|position| position.seq)
}

/// The entry of the operator log for a recovery that has ended.
fn action(recovery: &Recovery, at: Millis) -> OperatorAction {
    let (operator, action) = match recovery.begun_by {
        BegunBy::Service => (SERVICE, "recovery"),
        BegunBy::Operator => (COMMAND_LINE, "firstcome rebuild"),
    };
    let detail = json!({
        "outcome": recovery.outcome.as_str(),
        "reason": recovery.reason,
        "detail": recovery.detail,
        "epoch": recovery.epoch,
        "withheldUnits": recovery.withheld_units,
        "withheldCoupons": recovery.withheld_coupons,
        "seconds": recovery.seconds(),
    });
    OperatorAction {
        id: Uuid::now_v7().to_string(),
        operator: operator.to_owned(),
        role: None,
        action: action.to_owned(),
        target: format!("partition={}", recovery.partition.0),
        detail: detail.to_string(),
        status: if recovery.outcome == RecoveryOutcome::Failed { 503 } else { 200 },
        request_id: String::new(),
        at,
    }
}
