//! The audit: every conservation law recomputed, Redis against itself, Postgres against itself, and the two against each
//! other, while traffic runs.
//!
//! There is no false alarm, because nothing is ever compared across a moment: the projection of a partition is kept where it
//! is for the few milliseconds in which some things are read from Postgres; then the same things are read from Redis, in one
//! step with every decision that Redis has taken since (they are in the outbox); and what Postgres has, with those decisions
//! applied, must be exactly what Redis has. Only what is between two partitions can't be read at one moment: there a
//! difference counts that stays the same while it is looked at again and again.
//!
//! Memory is bounded: things are taken a page at a time ([`compare`]), laws about many rows are left to Postgres ([`laws`]),
//! and of many discrepancies the first few are named.

mod auditor;
mod compare;
mod delta;
mod expected;
mod laws;
mod report;

use std::{collections::BTreeSet, time::Duration};

use chrono_tz::Tz;

pub use auditor::{Auditor, Finished};
pub use report::{Check, Position, Report};

use self::report::Findings;
use crate::{
    model::{Clock, Partition},
    postgres::{
        self, progress,
        queries::page::{Kind, Page},
        snapshot::Snapshot,
    },
    redis::{Store, queries::audit::sort_keys},
};

/// Things compared at once.
const PAGE: i64 = 500;
/// How often what is between two partitions is looked at, and how long is waited in between.
const MAX_CHECKS: usize = 20;
const RECHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How old a decision is that PostgreSQL should have long since (ms), and how long is waited for it to get on then.
const OVERDUE_MS: i64 = 10_000;
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(5);
/// How often is looked meanwhile.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What an audit needs. Clones share the connections.
#[derive(Clone)]
pub struct Audit {
    pub store: Store,
    pub db: postgres::Connection,
    pub clock: Clock,
    pub zone: Tz,
}

impl Audit {
    /// Recomputes everything. Discrepancies are in the report.
    ///
    /// # Errors
    /// Redis or Postgres can't answer, or Postgres is so far behind that the two can't be compared.
    pub async fn run(mut self) -> anyhow::Result<Report> {
        let mut report = Report::begin(self.clock.now());
        let Some((name, partitions)) = progress::identity(&self.db).await? else {
            anyhow::bail!("this PostgreSQL database has no store");
        };
        self.store = self.store.with_partitions(partitions);
        let belong = self.belong_together(&name).await?;
        let sound = belong.is_ok();
        report.add(belong);
        laws::check(&self, &mut report).await?;
        report.add(self.makes_progress().await?);
        // What is not ours, or not whole, can't be compared with anything.
        if sound {
            self.compare_all(&mut report).await?;
        }
        report.positions = self.positions().await?;
        Ok(report.end())
    }

    /// The two stores are the same one, and every partition is open.
    async fn belong_together(&self, name: &str) -> anyhow::Result<Findings> {
        let mut findings = Findings::new("stores belong together", "partitions");
        for here in self.store.all() {
            let books = self.store.partition_state(here).await?;
            findings.count_one();
            match (&books.store, &books.frozen) {
                (None, _) => findings.add(format!("partition {}: Redis has lost its books", here.0)),
                (Some(other), _) if other != name => {
                    findings.add(format!("partition {}: Redis has store {other}, PostgreSQL has {name}", here.0));
                }
                (_, Some(reason)) => findings.add(format!("partition {} is frozen: {reason}", here.0)),
                _ => {}
            }
        }
        Ok(findings)
    }

    /// Where PostgreSQL is behind it gets on. A backlog is no discrepancy, one that nobody carries is.
    async fn makes_progress(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new("projection: PostgreSQL gets what is decided", "partitions");
        let mut still = Vec::new();
        for at in postgres::queries::resources::positions(&self.db).await? {
            findings.count_one();
            let here = Partition(at.partition);
            let oldest = self.store.outbox_oldest_after(here, at.stream_id.parse()?).await?;
            let age_ms = oldest.map_or(0, |oldest| self.clock.now().0 - oldest.0);
            if age_ms >= OVERDUE_MS {
                still.push((at, age_ms));
            }
        }
        let began = tokio::time::Instant::now();
        while !still.is_empty() && began.elapsed() < PROGRESS_TIMEOUT {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let now = postgres::queries::resources::positions(&self.db).await?;
            still.retain(|(was, _)| now.iter().any(|now| (now.partition, now.at()) == (was.partition, was.at())));
        }
        for (at, age_ms) in still {
            let decided = self
                .store
                .partition_state(Partition(at.partition))
                .await?
                .position
                .map_or(at.seq, |decided| decided.seq);
            findings.add(format!(
                "partition {}: PostgreSQL stands still at ({}, {}) behind {decided}, and the oldest decision waits for {} s: no \
                 process carries them, or its log says why the projection waits",
                at.partition,
                at.epoch,
                at.seq,
                age_ms / 1000
            ));
        }
        Ok(findings)
    }

    async fn compare_all(&self, report: &mut Report) -> anyhow::Result<()> {
        for (kind, name, noun) in [
            (Kind::Users, "users: Redis = PostgreSQL", "users"),
            (Kind::Products, "products: Redis = PostgreSQL, stocked = on sale + held + sold + withheld", "products"),
            (
                Kind::Campaigns,
                "campaigns: Redis = PostgreSQL, issued = holders, issued + withheld <= total",
                "campaigns",
            ),
            (Kind::Orders, "orders: Redis = PostgreSQL, total = lines, every hold has an end", "orders"),
            (Kind::Holds, "stock held for other partitions: Redis = PostgreSQL", "holds"),
        ] {
            if kind == Kind::Holds && self.store.partitions() == 1 {
                continue;
            }
            let mut findings = Findings::new(name, noun);
            let mut snapshot = Snapshot::begin(&self.db).await?;
            let until = snapshot.last_id(kind).await?;
            snapshot.end().await?;
            for here in self.store.all() {
                let mut page =
                    Page { partition: here.0, partitions: self.store.partitions(), after: 0, until, size: PAGE };
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
        report.add(self.stays("rankings = lines of paid orders", "places", async || self.rankings().await).await?);
        if self.store.partitions() > 1 {
            report.add(self.stays("what is between partitions", "steps", async || laws::between(self).await).await?);
        }
        Ok(())
    }

    /// With one partition: what `look` finds. With several: what it finds again and again.
    async fn stays(
        &self,
        name: &'static str,
        noun: &'static str,
        look: impl AsyncFn() -> anyhow::Result<(i64, Vec<String>)>,
    ) -> anyhow::Result<Findings> {
        let (mut looked_at, first) = look().await?;
        let mut found: BTreeSet<String> = first.into_iter().collect();
        if self.store.partitions() > 1 {
            for _ in 1..MAX_CHECKS {
                if found.is_empty() {
                    break;
                }
                tokio::time::sleep(RECHECK_INTERVAL).await;
                let (again, now) = look().await?;
                looked_at = again;
                let now: BTreeSet<String> = now.into_iter().collect();
                found.retain(|what| now.contains(what));
            }
        }
        let mut findings = Findings::new(name, noun);
        findings.count(looked_at);
        found.into_iter().for_each(|what| findings.add(what));
        Ok(findings)
    }

    /// What the clock and the gateways' watch go by are orders, and these are as they say.
    async fn indexed(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new("what comes due: is an order that waits for it", "entries");
        for here in self.store.all() {
            for gateway in [false, true] {
                let size = self.store.index_size(here, gateway).await?;
                for offset in (0..size).step_by(PAGE as usize) {
                    let ids = self.store.index_page(here, gateway, offset, PAGE as usize).await?;
                    self.compare(Kind::Orders, here, &ids, &mut findings).await?;
                }
            }
        }
        Ok(findings)
    }

    /// Every key of Redis is of something that Postgres has, or is about to have.
    async fn scanned(&self) -> anyhow::Result<Findings> {
        let mut findings = Findings::new("keys of Redis: each is of something in PostgreSQL", "keys");
        for server in self.store.servers().await? {
            let mut cursor = Some("0".to_owned());
            while let Some(from) = cursor {
                let (keys, next) = self.store.scan_page(server, &from).await?;
                cursor = next;
                findings.count(keys.len() as i64);
                for (partition, scanned) in sort_keys(&keys) {
                    for key in scanned.unknown {
                        findings.add(format!("{key} is nothing of ours"));
                    }
                    let here = Partition(partition);
                    let kinds = [
                        (Kind::Users, scanned.users),
                        (Kind::Products, scanned.products),
                        (Kind::Campaigns, scanned.campaigns),
                        (Kind::Orders, scanned.orders),
                        (Kind::Holds, scanned.holds),
                    ];
                    for (kind, mut ids) in kinds {
                        ids.sort_unstable();
                        ids.dedup();
                        if kind != Kind::Holds {
                            for id in ids.extract_if(.., |id| self.store.owner(*id) != here) {
                                findings
                                    .add(format!("{kind:?} {id} is in partition {partition}, where it is not at home"));
                            }
                        }
                        let mut snapshot = Snapshot::begin(&self.db).await?;
                        let there = snapshot.existing(kind, partition, &ids).await?;
                        snapshot.end().await?;
                        ids.retain(|id| there.binary_search(id).is_err());
                        let mut strays = Findings::new("", "");
                        self.compare(kind, here, &ids, &mut strays).await?;
                        findings.take(strays);
                    }
                }
            }
        }
        Ok(findings)
    }

    async fn positions(&self) -> anyhow::Result<Vec<report::Position>> {
        let mut positions = Vec::new();
        for projected in postgres::queries::resources::positions(&self.db).await? {
            let decided =
                self.store.partition_state(Partition(projected.partition)).await?.position.unwrap_or_default();
            positions.push(report::Position {
                partition: projected.partition,
                epoch: decided.epoch,
                decided_seq: decided.seq,
                projected_seq: projected.seq,
            });
        }
        Ok(positions)
    }
}
