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
mod compared;
pub mod coverage;
mod decided;
mod delta;
mod expected;
mod fields;
mod indexes;
mod invariants;
mod outbox;
mod report;
mod state;
mod tracker;

use std::{collections::BTreeSet, time::Duration};

use chrono_tz::Tz;

pub use auditor::{Auditor, Finished, RunningAudit};
pub use report::{AuditReport, Check, PartitionPositions};
pub use tracker::{AuditProgress, AuditTracker};

use self::{
    compared::ComparedIds,
    coverage::{
        BETWEEN, CAMPAIGNS, IDS, INDEXES, KEYS, LIMIT_GROUPS, ORDERS, OUTBOX, PARTITION_STOCK, PRICES, PROCESSES,
        PRODUCTS, PROJECTION, RANKINGS, RECORDS, REMOTE_COUPONS, STATE, USERS,
    },
    report::Findings,
};
use crate::{
    model::Clock,
    postgres::{
        self, progress,
        queries::page::{RecordKind, RecordPage},
        snapshot::Snapshot,
    },
    redis::Store,
};

/// Records in one read of both stores: Redis serves no other client meanwhile.
const PAGE: usize = 250;
/// Pages in one comparison: the projection of their partition is blocked meanwhile.
const PAGES: usize = 8;
/// Ids of records in one read of PostgreSQL.
const IDS_PAGE: usize = 10_000;
/// Checks of a difference between two partitions, and the interval between them.
const MAX_CHECKS: usize = 20;
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How much the clocks of a process and of a server may differ.
const CLOCK_TOLERANCE_MS: i64 = 5 * 60 * 1000;
/// The age (ms) from which an unprojected decision is overdue, and how long the projection then has to advance.
const OVERDUE_MS: i64 = 10_000;
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval between two reads of the projected positions meanwhile.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The kinds of records, each with its check and their noun, in the order of the report.
const KINDS: [(RecordKind, &str, &str); 6] = [
    (RecordKind::Users, USERS, "users"),
    (RecordKind::Products, PRODUCTS, "products"),
    (RecordKind::Campaigns, CAMPAIGNS, "campaigns"),
    (RecordKind::Orders, ORDERS, "orders"),
    (RecordKind::PartitionStock, PARTITION_STOCK, "products"),
    (RecordKind::RemoteCoupons, REMOTE_COUPONS, "users"),
];

/// The dependencies of an audit. Clones share the connections and the progress.
#[derive(Clone)]
pub struct Audit {
    pub store: Store,
    pub db: postgres::Connection,
    pub clock: Clock,
    pub zone: Tz,
    pub tracker: AuditTracker,
}

impl Audit {
    /// Runs the audit. The report has the discrepancies.
    ///
    /// # Errors
    /// Redis or PostgreSQL can't answer, or PostgreSQL is too far behind to be compared.
    pub async fn run(mut self) -> anyhow::Result<AuditReport> {
        // What this version does not know may then be of the newer one.
        let ignores_unknown = postgres::is_schema_newer(&self.db).await?;
        let mut report = AuditReport::begin(self.clock.now(), ignores_unknown, self.tracker.clone());
        let Some((name, partitions)) = progress::identity(&self.db).await? else {
            anyhow::bail!("this PostgreSQL database has no store");
        };
        self.store = self.store.with_partitions(partitions);
        self.tracker.begin(STATE);
        let (partitions_open, comparable) = self.partitions_open(&name).await?;
        report.add(partitions_open);
        invariants::check(&self, &mut report).await?;
        self.tracker.begin(PROJECTION);
        report.add(self.projection_advances().await?);
        if comparable {
            self.tracker.begin(PROCESSES);
            report.add(self.processes(&name).await?);
            self.tracker.begin(IDS);
            report.add(self.sequences().await?);
            self.compare_all(&mut report).await?;
            self.tracker.begin(OUTBOX);
            report.add(self.decided().await?);
        }
        report.positions = self.positions().await?;
        Ok(report.end())
    }

    async fn compare_all(&self, report: &mut AuditReport) -> anyhow::Result<()> {
        self.expect().await?;
        let mut compared = ComparedIds::new(self.store.partitions());
        for (kind, name, noun) in KINDS {
            if matches!(kind, RecordKind::PartitionStock | RecordKind::RemoteCoupons) && self.store.partitions() == 1 {
                continue;
            }
            self.tracker.begin(name);
            let mut findings = Findings::new(name, noun);
            let mut snapshot = Snapshot::begin(&self.db).await?;
            let until = snapshot.last_id(kind).await?;
            snapshot.end().await?;
            for here in self.store.all() {
                let mut page = RecordPage {
                    partition: here.0,
                    partitions: self.store.partitions(),
                    after: 0,
                    until,
                    size: IDS_PAGE as i64,
                };
                loop {
                    let mut snapshot = Snapshot::begin(&self.db).await?;
                    let ids = snapshot.ids(kind, page).await?;
                    snapshot.end().await?;
                    let Some(last) = ids.last() else { break };
                    page.after = *last;
                    for ids in ids.chunks(PAGE * PAGES) {
                        self.compare(kind, here, ids, &mut findings).await?;
                        self.tracker.records(ids.len());
                        compared.add((kind, here), ids);
                    }
                }
            }
            report.add(findings);
        }
        self.tracker.begin(RECORDS);
        report.add(self.recorded().await?);
        self.tracker.begin(INDEXES);
        report.add(self.indexed().await?);
        self.tracker.begin(KEYS);
        report.add(self.scanned(&compared).await?);
        report.add(self.repeat(LIMIT_GROUPS, "groups", async || self.limit_groups().await).await?);
        report.add(self.repeat(RANKINGS, "places", async || self.rankings().await).await?);
        if self.store.partitions() > 1 {
            let steps = async || invariants::between_partitions(self).await;
            report.add(self.repeat(BETWEEN, "steps", steps).await?);
            report.add(self.repeat(PRICES, "prices", async || self.prices().await).await?);
        }
        Ok(())
    }

    /// Counts what will be compared.
    async fn expect(&self) -> anyhow::Result<()> {
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let mut records = snapshot.count_digests().await?;
        for (kind, ..) in KINDS {
            records += snapshot.count_of(kind).await?;
        }
        snapshot.end().await?;
        self.tracker.expect(records, self.store.count_keys().await?);
        Ok(())
    }

    /// Runs a check. With several partitions, repeats it, and keeps only the discrepancies that every run finds.
    async fn repeat(
        &self,
        name: &'static str,
        noun: &'static str,
        check: impl AsyncFn() -> anyhow::Result<(i64, Vec<String>)>,
    ) -> anyhow::Result<Findings> {
        self.tracker.begin(name);
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
}
