//! The audit: recomputes every invariant within Redis, within PostgreSQL and between the two, while the service runs.
//!
//! There are no false alarms, because only consistent reads are compared. The audit blocks the projection of a
//! partition for a few milliseconds and reads a page of records from PostgreSQL. Then it reads the same records from
//! Redis, in one step with the decisions that PostgreSQL lacks, which are in the outbox. The rows of PostgreSQL with
//! these decisions applied must equal the records of Redis. Two partitions can't be read in one step: there only a
//! difference counts that repeated checks find again.
//!
//! Memory is bounded: records are compared page by page (`compare`), PostgreSQL evaluates the invariants over many rows
//! (`invariants`), and only the first discrepancies are named.

mod auditor;
mod compare;
mod delta;
mod expected;
mod invariants;
mod report;

use std::{collections::BTreeSet, time::Duration};

use chrono_tz::Tz;

pub use auditor::{Auditor, Finished};
pub use report::{AuditReport, Check, PartitionPositions};

use self::report::Findings;
use crate::{
    model::{Clock, Partition},
    postgres::{
        self, progress,
        queries::page::{RecordKind, RecordPage},
        snapshot::Snapshot,
    },
    redis::{Store, queries::audit::sort_keys},
};

/// Records in one comparison.
const PAGE: i64 = 500;
/// Checks of a difference between two partitions, and the interval between them.
const MAX_CHECKS: usize = 20;
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The age (ms) from which an unprojected decision is overdue, and how long the projection then has to advance.
const OVERDUE_MS: i64 = 10_000;
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval between two reads of the projected positions meanwhile.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The dependencies of an audit. Clones share the connections.
#[derive(Clone)]
pub struct Audit {
    pub store: Store,
    pub db: postgres::Connection,
    pub clock: Clock,
    pub zone: Tz,
}

impl Audit {
    /// Runs the audit. The report has the discrepancies.
    ///
    /// # Errors
    /// Redis or PostgreSQL can't answer, or PostgreSQL is too far behind to be compared.
    pub async fn run(mut self) -> anyhow::Result<AuditReport> {
        let mut report = AuditReport::begin(self.clock.now());
        let Some((name, partitions)) = progress::identity(&self.db).await? else {
            anyhow::bail!("this PostgreSQL database has no store");
        };
        self.store = self.store.with_partitions(partitions);
        let partitions_open = self.partitions_open(&name).await?;
        let comparable = partitions_open.is_ok();
        report.add(partitions_open);
        invariants::check(&self, &mut report).await?;
        report.add(self.projection_advances().await?);
        // The state of another store, or of a frozen partition, can't be compared.
        if comparable {
            self.compare_all(&mut report).await?;
        }
        report.positions = self.positions().await?;
        Ok(report.end())
    }

    /// Checks that every partition belongs to the store `name`, and is open.
    async fn partitions_open(&self, name: &str) -> anyhow::Result<Findings> {
        let mut findings = Findings::new("stores belong together", "partitions");
        for here in self.store.all() {
            let state = self.store.partition_state(here).await?;
            findings.count_one();
            match (&state.store, &state.frozen) {
                (None, _) => findings.add(format!("partition {}: Redis has lost its state", here.0)),
                (Some(other), _) if other != name => {
                    findings.add(format!("partition {}: Redis has store {other}, PostgreSQL has {name}", here.0));
                }
                (_, Some(reason)) => findings.add(format!("partition {} is frozen: {reason}", here.0)),
                _ => {}
            }
        }
        Ok(findings)
    }

    /// Checks that the projection advances wherever a decision is overdue. A backlog alone is no discrepancy.
    async fn projection_advances(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new("projection: PostgreSQL gets what is decided", "partitions");
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
        for (here, position, age_ms) in overdue {
            let decided = self.store.partition_state(here).await?.position.unwrap_or(position).seq;
            findings.add(format!(
                "partition {}: PostgreSQL stands still at ({}, {}) behind {decided}, and the oldest decision waits for {} s: no \
                 process projects this partition, or its log says why the projection waits",
                here.0,
                position.epoch,
                position.seq,
                age_ms / 1000
            ));
        }
        Ok(findings)
    }

    async fn compare_all(&self, report: &mut AuditReport) -> anyhow::Result<()> {
        for (kind, name, noun) in [
            (RecordKind::Users, "users: Redis = PostgreSQL", "users"),
            (
                RecordKind::Products,
                "products: Redis = PostgreSQL, stocked = on sale + held + sold + withheld",
                "products",
            ),
            (
                RecordKind::Campaigns,
                "campaigns: Redis = PostgreSQL, issued = holders, issued + withheld <= total",
                "campaigns",
            ),
            (RecordKind::Orders, "orders: Redis = PostgreSQL, total = lines, every hold has an end", "orders"),
            (RecordKind::Holds, "stock held for other partitions: Redis = PostgreSQL", "holds"),
        ] {
            if kind == RecordKind::Holds && self.store.partitions() == 1 {
                continue;
            }
            let mut findings = Findings::new(name, noun);
            let mut snapshot = Snapshot::begin(&self.db).await?;
            let until = snapshot.last_id(kind).await?;
            snapshot.end().await?;
            for here in self.store.all() {
                let mut page =
                    RecordPage { partition: here.0, partitions: self.store.partitions(), after: 0, until, size: PAGE };
                loop {
                    let mut snapshot = Snapshot::begin(&self.db).await?;
                    let ids = snapshot.ids(kind, page).await?;
                    snapshot.end().await?;
                    let Some(last) = ids.last() else { break };
                    page.after = *last;
                    self.compare(kind, here, &ids, &mut findings).await?;
                }
            }
            report.add(findings);
        }
        report.add(self.indexed().await?);
        report.add(self.scanned().await?);
        report.add(self.repeat("rankings = lines of paid orders", "places", async || self.rankings().await).await?);
        if self.store.partitions() > 1 {
            let steps = async || invariants::between_partitions(self).await;
            report.add(self.repeat("what is between partitions", "steps", steps).await?);
        }
        Ok(())
    }

    /// Runs a check. With several partitions, repeats it, and keeps only the discrepancies that every run finds.
    async fn repeat(
        &self,
        name: &'static str,
        noun: &'static str,
        check: impl AsyncFn() -> anyhow::Result<(i64, Vec<String>)>,
    ) -> anyhow::Result<Findings> {
        let (mut checked, first) = check().await?;
        let mut found: BTreeSet<String> = first.into_iter().collect();
        if self.store.partitions() > 1 {
            for _ in 1..MAX_CHECKS {
                if found.is_empty() {
                    break;
                }
                tokio::time::sleep(RECHECK_INTERVAL).await;
                let (count, again) = check().await?;
                checked = count;
                let again: BTreeSet<String> = again.into_iter().collect();
                found.retain(|what| again.contains(what));
            }
        }
        let mut findings = Findings::new(name, noun);
        findings.count(checked);
        found.into_iter().for_each(|what| findings.add(what));
        Ok(findings)
    }

    /// Compares the orders of the two indexes of due times: expiry, and gateway payments.
    async fn indexed(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new("what comes due: is an order that waits for it", "entries");
        for here in self.store.all() {
            for gateway in [false, true] {
                let size = self.store.index_size(here, gateway).await?;
                for offset in (0..size).step_by(PAGE as usize) {
                    let ids = self.store.index_page(here, gateway, offset, PAGE as usize).await?;
                    self.compare(RecordKind::Orders, here, &ids, &mut findings).await?;
                }
            }
        }
        Ok(findings)
    }

    /// Scans every key of Redis. Compares the records that PostgreSQL lacks, and reports keys in a wrong partition and unknown
    /// keys, unless the schema is newer than this program: they may then be those of the newer version.
    async fn scanned(&self) -> anyhow::Result<Findings> {
        let reports_unknown = !postgres::is_schema_newer(&self.db).await?;
        let mut findings = Findings::new("keys of Redis: each is of something in PostgreSQL", "keys");
        for server in self.store.servers().await? {
            let mut cursor = Some("0".to_owned());
            while let Some(from) = cursor {
                let (keys, next) = self.store.scan_page(server, &from).await?;
                cursor = next;
                findings.count(keys.len() as i64);
                for (partition, scanned) in sort_keys(&keys) {
                    for key in scanned.unknown.iter().filter(|_| reports_unknown) {
                        findings.add(format!("{key} is nothing of ours"));
                    }
                    let here = Partition(partition);
                    let kinds = [
                        (RecordKind::Users, scanned.users),
                        (RecordKind::Products, scanned.products),
                        (RecordKind::Campaigns, scanned.campaigns),
                        (RecordKind::Orders, scanned.orders),
                        (RecordKind::Holds, scanned.holds),
                    ];
                    for (kind, mut ids) in kinds {
                        ids.sort_unstable();
                        ids.dedup();
                        if kind != RecordKind::Holds {
                            for id in ids.extract_if(.., |id| self.store.owner(*id) != here) {
                                let owner = self.store.owner(id).0;
                                findings.add(format!("{kind:?} {id} is in partition {partition} instead of {owner}"));
                            }
                        }
                        let mut snapshot = Snapshot::begin(&self.db).await?;
                        let existing = snapshot.existing(kind, partition, &ids).await?;
                        snapshot.end().await?;
                        ids.retain(|id| existing.binary_search(id).is_err());
                        let mut unknown = Findings::new("", "");
                        self.compare(kind, here, &ids, &mut unknown).await?;
                        findings.take(unknown);
                    }
                }
            }
        }
        Ok(findings)
    }

    async fn positions(&self) -> anyhow::Result<Vec<report::PartitionPositions>> {
        let mut positions = Vec::new();
        for projected in progress::projected(&self.db).await? {
            let decided = self.store.partition_state(projected.partition).await?.position.unwrap_or_default();
            positions.push(report::PartitionPositions {
                partition: projected.partition.0,
                epoch: decided.epoch,
                decided_seq: decided.seq,
                projected_seq: projected.position.seq,
            });
        }
        Ok(positions)
    }
}
