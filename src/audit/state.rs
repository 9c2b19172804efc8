//! The state of each partition, its progress, the sequences of ids, and what the processes say in Redis.

use std::time::Instant;

use uuid::Uuid;

use super::{
    Audit, CLOCK_TOLERANCE_MS, OVERDUE_MS, PROGRESS_INTERVAL, PROGRESS_TIMEOUT,
    coverage::{IDS, PROCESSES, PROJECTION, STATE},
    fields::{counter, field, number, unknown_fields},
    report::{Findings, PartitionPositions},
};
use crate::{
    model::{MAX_SAFE_INTEGER, Partition, Position, Word},
    postgres::{progress, snapshot::Snapshot},
    redis::{
        LAYOUT,
        commands::{OwnSequence, SHARED_IDS_FROM},
        partition_state::FreezeCause,
        queries::audit::FixedKeys,
    },
};

const FIELDS: &[&str] =
    &["store", "partitions", "layout", "epoch", "seq", "frozen", "cause", "rebuilding", "relayed", "forgotten"];
/// Digits of a server's run id, and of its replication id.
const ID_DIGITS: usize = 40;

/// The last decision in a partition's state; `None` if it has none.
fn position(fixed: &FixedKeys) -> Option<Position> {
    let number = |name: &str| number(field(&fixed.meta, name)).filter(|number| *number >= 0);
    Some(Position { epoch: number("epoch")?, seq: number("seq")? })
}

impl Audit {
    /// Checks that every partition belongs to the store `name`, and is open. Returns also whether its records can be compared: not
    /// those of another store, or of a frozen partition.
    pub(super) async fn partitions_open(&self, name: &str) -> anyhow::Result<(Findings, bool)> {
        let (mut findings, mut comparable) = (Findings::new(STATE, "partitions"), true);
        let mut ahead = Vec::new();
        for here in self.store.all() {
            let fixed = self.store.fixed_keys(here).await?;
            findings.count_one();
            let (meta, decided) = (&fixed.meta, position(&fixed));
            let prefix = format!("partition {}", here.0);
            comparable &= match (meta.get("store"), decided, meta.get("frozen")) {
                (None, ..) => {
                    findings.add(format!("{prefix}: Redis has lost its state"));
                    false
                }
                (Some(other), ..) if other != name => {
                    findings.add(format!("{prefix}: Redis has store {other}, PostgreSQL has {name}"));
                    false
                }
                (_, None, _) => {
                    let (epoch, seq) = (field(meta, "epoch"), field(meta, "seq"));
                    findings.add(format!("{prefix}: ({epoch:?}, {seq:?}) is no position"));
                    false
                }
                (.., Some(reason)) => {
                    findings.add(format!("{prefix} is frozen: {reason}"));
                    false
                }
                _ => true,
            };
            if meta.is_empty() {
                continue;
            }
            for (what, expected) in [("partitions", i64::from(self.store.partitions())), ("layout", LAYOUT)] {
                if number(field(meta, what)) != Some(expected) {
                    findings.add(format!("{prefix}: its {what} is {:?}, and not {expected}", field(meta, what)));
                }
            }
            // A gap that is no more closes nothing.
            let closes = |mark: &&str| meta.get(mark).is_some_and(|text| text != FreezeCause::Gap.as_str());
            for mark in ["cause", "rebuilding"].into_iter().filter(closes).filter(|_| !meta.contains_key("frozen")) {
                findings.add(format!("{prefix}: it is not frozen, and has the mark {mark}"));
            }
            if let Some(text) = meta.get("forgotten").filter(|text| number(text).is_none_or(|count| count < 1)) {
                findings.add(format!("{prefix}: {text:?} is no count of users that were forgotten"));
            }
            unknown_fields(meta, FIELDS).flatten().for_each(|wrong| findings.add(format!("{prefix}: {wrong}")));
            match fixed.relayed() {
                Some(None) => findings.add(format!("{prefix}: {:?} is no mark of the relay", field(meta, "relayed"))),
                Some(Some(mark)) if Some(mark.position) > decided => {
                    findings.add(format!("{prefix}: it has relayed {:?}, and decided less", mark.position));
                }
                Some(Some(mark)) => ahead.push((here, mark)),
                None => {}
            }
        }
        // A PostgreSQL that has gone back gets what was relayed again.
        let began = Instant::now();
        loop {
            let projected = progress::projected(&self.db).await?;
            ahead.retain(|(here, mark)| {
                projected.iter().filter(|at| at.partition == *here).any(|at| {
                    let beyond = at.stream_id.parse().is_ok_and(|entry| mark.entry > entry);
                    at.position < mark.position || (at.position.epoch == mark.position.epoch && beyond)
                })
            });
            if ahead.is_empty() || began.elapsed() >= PROGRESS_TIMEOUT {
                break;
            }
            tokio::time::sleep(PROGRESS_INTERVAL).await;
        }
        for (here, mark) in ahead {
            findings.add(format!("partition {}: it has relayed {mark}, which PostgreSQL does not have", here.0));
        }
        Ok((findings, comparable))
    }

    /// Checks that the projection advances wherever a decision is overdue. A backlog alone is no discrepancy.
    pub(super) async fn projection_advances(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new(PROJECTION, "partitions");
        let mut overdue = Vec::new();
        for projected in progress::projected(&self.db).await? {
            findings.count_one();
            let oldest = self.store.outbox_oldest_after(projected.partition, projected.stream_id.parse()?).await?;
            let age_ms = oldest.map_or(0, |oldest| self.clock.now().0 - oldest.0);
            if age_ms >= OVERDUE_MS {
                overdue.push((projected.partition, projected.position, age_ms));
            }
        }
        let began = tokio::time::Instant::now();
        while !overdue.is_empty() && began.elapsed() < PROGRESS_TIMEOUT {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let now = progress::projected(&self.db).await?;
            overdue.retain(|(here, was, _)| now.iter().any(|now| (now.partition, now.position) == (*here, *was)));
        }
        for (here, at, age_ms) in overdue {
            let decided = position(&self.store.fixed_keys(here).await?).unwrap_or(at).seq;
            findings.add(format!(
                "partition {}: PostgreSQL stands still at ({}, {}) behind {decided}, and the oldest decision waits for {} s: no \
                 process projects this partition, or its log says why the projection waits",
                here.0,
                at.epoch,
                at.seq,
                age_ms / 1000
            ));
        }
        Ok(findings)
    }

    /// Checks that the next ids are above those in use.
    pub(super) async fn sequences(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new(IDS, "sequences");
        let partitions = self.store.partitions();
        // PostgreSQL first: an id is reserved in Redis before it is used.
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let used = snapshot.last_ids(SHARED_IDS_FROM).await?;
        let mut used_by_owner = Vec::new();
        for sequence in OwnSequence::ALL.into_iter().filter(|_| partitions > 1) {
            used_by_owner
                .push((sequence, snapshot.last_owned(sequence.shared_name(), partitions, SHARED_IDS_FROM).await?));
        }
        snapshot.end().await?;
        let own = OwnSequence::ALL.map(|sequence| sequence.name(partitions));
        for here in self.store.all() {
            let ids = self.store.fixed_keys(here).await?.ids;
            let mut check = |name: &str, used: i64, per_number: i64| {
                findings.count_one();
                let last = counter(&ids, name);
                if !number(last).is_some_and(|last| (used / per_number..=MAX_SAFE_INTEGER / per_number).contains(&last))
                {
                    let here = here.0;
                    findings.add(format!(
                        "partition {here}: the last number of sequence {name} is {last:?}, and id {used} is in use"
                    ));
                }
            };
            for (sequence, used) in &used_by_owner {
                let name = sequence.name(partitions);
                // A store of an earlier version has none yet.
                if ids.contains_key(name) {
                    check(name, used.get(&i32::from(here.0)).copied().unwrap_or(0), partitions.into());
                }
            }
            let mut known = own.to_vec();
            for (name, used, _) in used.iter().filter(|_| here == Partition(0)) {
                match OwnSequence::ALL.iter().any(|sequence| sequence.shared_name() == name) {
                    false => check(name, *used, 1),
                    true if partitions == 1 || ids.contains_key(name) => check(name, *used, partitions.into()),
                    true => {}
                }
                known.push(name);
            }
            let unknown: Vec<String> = unknown_fields(&ids, &known).flatten().collect();
            unknown.into_iter().for_each(|wrong| findings.add(format!("partition {}: sequences: {wrong}", here.0)));
        }
        Ok(findings)
    }

    /// Checks the words and the leases of processes.
    pub(super) async fn processes(&self, name: &str) -> anyhow::Result<Findings> {
        let mut findings = Findings::new(PROCESSES, "words and leases");
        for here in self.store.all() {
            let fixed = self.store.fixed_keys(here).await?;
            let decided = position(&fixed).unwrap_or_default();
            for (process, word) in &fixed.words {
                findings.count_one();
                let is_sound = word.as_ref().is_some_and(|word| {
                    let positions_known = word.acknowledged.max(word.confirmed) <= decided;
                    positions_known && word.at.0 <= fixed.at.0 + CLOCK_TOLERANCE_MS && is_of_history(word)
                });
                let is_process = Uuid::try_parse(process).is_ok_and(|id| id.to_string() == *process);
                if !is_sound || !is_process {
                    findings.add(format!("partition {}: process {process:?} gives the word {word:?}", here.0));
                }
            }
            for (process, lease) in &fixed.leases {
                findings.count_one();
                let is_sound =
                    lease.as_ref().is_some_and(|lease| lease.store == name && lease.acknowledged() <= decided);
                if !is_sound {
                    findings.add(format!("partition {}: process {process:?} has the lease {lease:?}", here.0));
                }
            }
            if fixed.leases_stay {
                findings.add(format!("partition {}: its leases do not expire", here.0));
            }
            if fixed.samples_stay {
                findings.add(format!("partition {}: its samples of requests do not expire", here.0));
            }
        }
        Ok(findings)
    }

    /// Whether this process and a partition's server have about the same time.
    pub(super) async fn clocks_agree(&self, here: Partition) -> anyhow::Result<bool> {
        let server = self.store.fixed_keys(here).await?.at;
        Ok((self.clock.now().0 - server.0).abs() < CLOCK_TOLERANCE_MS / 2)
    }

    pub(super) async fn positions(&self) -> anyhow::Result<Vec<PartitionPositions>> {
        let mut positions = Vec::new();
        for projected in progress::projected(&self.db).await? {
            let decided = position(&self.store.fixed_keys(projected.partition).await?).unwrap_or_default();
            positions.push(PartitionPositions {
                partition: projected.partition.0,
                epoch: decided.epoch,
                decided_seq: decided.seq,
                projected_seq: projected.position.seq,
            });
        }
        Ok(positions)
    }
}

/// Whether a word names a history: the run id and the replication id of a server, and a mark if it has lost decisions.
fn is_of_history(word: &Word) -> bool {
    let is_id = |id: &str| id.len() == ID_DIGITS && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let history = word.history.strip_suffix('!').unwrap_or(&word.history);
    history.split_once(':').is_some_and(|(run, replication)| is_id(run) && is_id(replication))
}
