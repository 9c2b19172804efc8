//! Rebuilds Redis from PostgreSQL, after the data of Redis are lost or no longer trusted.
//!
//! The steps, after each of which an interruption is safe:
//!
//! 1. Freeze the partitions, and project the rest of their outboxes ([`prepare`](super::prepare)).
//! 2. Refuse to continue if decisions can't be projected and would be discarded, unless the operator accepts that.
//! 3. Mark the partitions as rebuilding, in a new epoch, and empty them.
//! 4. Write back the rows of PostgreSQL ([`load`](super::load)), except for orders that would be evicted by now; then
//!    complete the steps between partitions ([`repair`](super::repair)).
//! 5. Withhold the units that lost decisions may have sold ([`withhold`](super::withhold)).
//! 6. Project the rebuild's own decisions, and open the partitions.
//!
//! The other partitions decide meanwhile: nothing is written to them but by their scripts.
//!
//! A rebuild that is interrupted after step 3 starts again, at the next start or by hand. A lock in PostgreSQL lets one
//! run at a time.
//!
//! **Possible losses** are decisions that Redis made and PostgreSQL lacks: orders placed or paid, coupons issued. Their
//! number is unknown once Redis is gone. So every unit on sale is withheld until an operator releases it, unless the
//! operator knows a bound (`lost_at_most`), or every reply waited for PostgreSQL (`ACK=postgres`). An order that is
//! still PENDING may have been paid: when it expires, its units are withheld too. The shop undersells for a while, and
//! never oversells.
//!
//! **Known losses** are withheld in every ack mode: a PostgreSQL that was restored to an earlier state lost decisions,
//! although the replies had waited for it. Known are the discarded decisions, dead letters included, and the
//! acknowledged ones that both stores lack. No bound may be lower.
//!
//! **Suspected losses survive an interruption.** PostgreSQL records that a rebuild withholds before Redis is emptied
//! ([`postgres::loss`]), so that the next rebuild withholds too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use chrono_tz::Tz;
use futures_util::future::BoxFuture;

pub use super::findings::LossBounds;
use super::{
    convert::{convert_stock_holds, has_stock_holds},
    findings::{Bound, PartitionFinding, PossibleLosses},
    load::Loading,
    log::{OpenRecoveries, RebuildCause, RecoveryLog, end_interrupted},
    open::reported_progress,
    prepare::continuations,
    progress::{LOAD, Progress},
    repair::Repair,
    withhold::Withhold,
};
use crate::{
    config::{RedisDurability, Retention},
    engine::sold_out::LEASE_EXPIRES_AFTER,
    model::{BegunBy, Clock, Identity, Partition, Scope},
    postgres::{self, loss, progress, snapshot::Snapshot},
    projector::Projector,
    redis::{
        Store,
        bulk::{Bulk, PartitionState},
    },
    telemetry::metrics,
};

/// The reason with which partitions are frozen during a rebuild.
pub(super) const REASON: &str = "a rebuild from PostgreSQL is under way";
/// Without a sign of another process for this long, an empty Redis counts as lost. Also the time that running processes
/// get to notice a frozen partition. Four times the interval of their checks.
pub(super) const QUIET_PERIOD: Duration = Duration::from_secs(2);

/// How long a rebuild of its own process waits at its end for PostgreSQL to take the log of recoveries.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);

/// The choices for a rebuild.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebuildOptions {
    /// The partitions to rebuild; `None`: all.
    pub partitions: Option<BTreeSet<Partition>>,
    /// Discard decisions that Redis has and PostgreSQL lacks.
    pub discard: bool,
    pub lost_at_most: LossBounds,
}

/// Waits until no operation of a running process goes on with a reply that a partition of the scope gave before it was
/// frozen: its next step would be in a partition that is not rebuilt. Called while the scope is frozen, before the other
/// partitions are caught up, and again for a scope that has grown.
pub type Barrier = Arc<dyn Fn(Scope) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// The result of a rebuild.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The partitions that were rebuilt.
    pub partitions: Vec<u16>,
    /// The new epoch.
    pub epoch: i64,
    /// Rows of PostgreSQL that were written back.
    pub rows: i64,
    pub seconds: f64,
    /// Decisions that Redis had or a dead letter had, and that are gone.
    pub discarded: i64,
    /// Acknowledged decisions that neither Redis nor PostgreSQL has.
    pub lost_at_least: i64,
    /// Partitions that may have lost decisions.
    pub possible_losses: Vec<u16>,
    /// Steps between partitions that were completed.
    pub repaired: i64,
    /// Units that this rebuild withheld.
    pub withheld_units: i64,
    /// Coupons that this rebuild withheld.
    pub withheld_coupons: i64,
}

/// Times the steps of a rebuild. Since the beginning of the current one.
struct Steps(Instant);

impl Steps {
    /// Ends the current step.
    fn end(&mut self, name: &str) {
        self.end_parts(name, ("", Duration::ZERO));
    }

    /// The same, where another step took `part` of the time.
    fn end_parts(&mut self, name: &str, (other, part): (&str, Duration)) {
        let set = |name, took: Duration| {
            metrics::REBUILD_STEP_SECONDS.with_label_values(&[name]).set(took.as_secs_f64());
        };
        set(name, self.0.elapsed().saturating_sub(part));
        if !other.is_empty() {
            set(other, part);
        }
        self.0 = Instant::now();
    }
}

/// The dependencies and settings of a rebuild.
#[derive(Clone)]
pub struct Rebuild {
    pub store: Store,
    pub db: postgres::Connection,
    pub projector: Projector,
    pub clock: Clock,
    pub zone: Tz,
    /// How long closed orders stay in Redis.
    pub retention: Retention,
    pub durability: RedisDurability,
    /// For a rebuild beside running processes.
    pub barrier: Option<Barrier>,
    pub log: RecoveryLog,
}

impl Rebuild {
    /// Rebuilds the partitions that are empty beside a PostgreSQL that is not, and those whose rebuild was interrupted.
    ///
    /// # Errors
    /// Another process is at work on this store with another Redis; otherwise as [`Rebuild::run`].
    pub async fn run_if_needed(mut self) -> anyhow::Result<Option<Summary>> {
        postgres::check_schema(&self.db).await?;
        let Some(identity) = progress::identity(&self.db).await? else { return Ok(None) };
        self.set_partitions(identity.1);
        let needed = self.needed(&identity.0).await?;
        if needed.is_empty() {
            if let Some(_lock) = progress::Lock::try_take(&self.db).await? {
                end_interrupted(&self.db, &[], self.clock.now()).await;
            }
            return Ok(None);
        }
        if !needed.is_all() && !progress::reported_within(&self.db, QUIET_PERIOD).await?.is_empty() {
            tracing::warn!(?needed, "Redis has lost partitions: a process that used them before recovers them");
            return Ok(None);
        }
        let lock = progress::Lock::take(&self.db).await?;
        // Another process may have rebuilt while this one waited for the lock.
        let needed = self.needed(&identity.0).await?;
        if needed.is_empty() {
            return Ok(None);
        }
        let partitions: BTreeSet<Partition> = needed.iter().collect();
        tracing::warn!(store = identity.0, ?partitions, "Redis has lost partitions, which are rebuilt from PostgreSQL");
        if needed.is_all() {
            self.check_no_process_writes().await?;
        }
        let options = RebuildOptions { partitions: Some(partitions), ..RebuildOptions::default() };
        let result = self.run_alone(identity, options, BegunBy::Service).await;
        lock.release().await;
        result.map(Some)
    }

    /// Rebuilds partitions, whatever their state, and those that took steps which contradict them. An operator asked for it.
    ///
    /// # Errors
    /// Decisions would be discarded, and the options do not allow it; the stores do not belong together, or PostgreSQL
    /// has no store or no such partition; or one of them is unavailable. Before step 3 the partitions are opened again.
    /// Afterwards they stay marked, and the next start or the next rebuild begins anew.
    pub async fn run(mut self, options: RebuildOptions) -> anyhow::Result<Summary> {
        postgres::check_schema(&self.db).await?;
        let identity = progress::identity(&self.db).await?;
        let identity =
            identity.context("this PostgreSQL database has no store: there is nothing to rebuild Redis from")?;
        self.set_partitions(identity.1);
        let lock = progress::Lock::take(&self.db).await?;
        let result = self.run_alone(identity, options, BegunBy::Operator).await;
        lock.release().await;
        result
    }

    /// As [`Rebuild::run`], for a process that holds the lock and recovers by itself.
    ///
    /// # Errors
    /// As [`Rebuild::run`].
    pub async fn run_holding(
        mut self,
        _lock: &progress::Lock,
        options: RebuildOptions,
        cause: RebuildCause,
    ) -> anyhow::Result<Summary> {
        let identity = progress::identity(&self.db).await?.context("this PostgreSQL database has no store")?;
        self.set_partitions(identity.1);
        self.run_locked(identity, options, cause).await
    }

    fn set_partitions(&mut self, partitions: u16) {
        self.store = self.store.clone().with_partitions(partitions);
        self.projector = self.projector.clone().on(self.store.clone());
    }

    /// The partitions of this store that are empty, or whose rebuild was interrupted.
    async fn needed(&self, store: &str) -> anyhow::Result<Scope> {
        let decided = progress::projected(&self.db).await?.iter().any(|projected| projected.position.seq > 0)
            || progress::acknowledged(&self.db).await?.iter().any(|acknowledged| acknowledged.position.seq > 0);
        let mut needed = Vec::new();
        for here in self.store.all() {
            let state = self.store.partition_state(here).await?;
            if state == PartitionState::default() || state.rebuilding && state.store.as_deref() == Some(store) {
                needed.push(here);
            }
        }
        // Otherwise the first start did not finish: the first partition is initialised last.
        let needed = if decided || !needed.contains(&Partition(0)) { needed } else { Vec::new() };
        Ok(Scope::of(needed, self.store.partitions()))
    }

    /// Checks that no process is at work on this store: if one is, it uses another Redis, and the empty one is the
    /// wrong address.
    async fn check_no_process_writes(&self) -> anyhow::Result<()> {
        let before = progress::acknowledged(&self.db).await?;
        tokio::time::sleep(QUIET_PERIOD).await;
        let moved = progress::acknowledged(&self.db).await?.into_iter().any(|now| {
            let was = before.iter().find(|was| was.partition == now.partition);
            was.is_none_or(|was| was.acknowledged_at != now.acknowledged_at)
        });
        ensure!(
            !moved,
            "Redis is empty, but another process is at work on this store, with a Redis that is not: REDIS_URL leads to the \
             wrong one"
        );
        Ok(())
    }

    /// For a process that does nothing else: waits for its log.
    async fn run_alone(
        &self,
        identity: (String, u16),
        options: RebuildOptions,
        begun_by: BegunBy,
    ) -> anyhow::Result<Summary> {
        let rebuilt = self.run_locked(identity, options, RebuildCause::new(begun_by)).await;
        self.log.flush(&self.db, LOG_TIMEOUT).await;
        rebuilt
    }

    async fn run_locked(
        &self,
        (name, partitions): (String, u16),
        options: RebuildOptions,
        cause: RebuildCause,
    ) -> anyhow::Result<Summary> {
        let scope = match &options.partitions {
            None => Scope::all(partitions),
            Some(selected) => {
                if let Some(unknown) = selected.iter().find(|here| here.0 >= partitions) {
                    bail!("there is no partition {}: this store has {partitions}, from 0 on", unknown.0);
                }
                Scope::of(selected.iter().copied(), partitions)
            }
        };
        ensure!(!scope.is_empty(), "no partition is selected");
        self.store.check_settings(self.durability).await?;
        let identity = Identity { store: name, partitions, epoch: 0 };
        let mut log = self.open_recoveries(&scope, cause).await?;
        log.begin().await;
        let (progress, ids) = (Progress::new(), log.ids());
        let rebuilt = tokio::select! {
            biased;
            rebuilt = self.run_logged(&identity, scope, &options, (&mut log, &progress)) => rebuilt,
            () = progress.keep_writing(&self.db, &ids) => bail!("the progress of a rebuild has no end"),
        };
        progress.write(&self.db, &ids).await;
        log.end(&rebuilt).await;
        rebuilt
    }

    /// The recoveries of these partitions, as the stores are now.
    async fn open_recoveries(&self, scope: &Scope, cause: RebuildCause) -> anyhow::Result<OpenRecoveries<'_>> {
        let reported = reported_progress(&self.db).await?;
        let mut log = OpenRecoveries::new(&self.log, &self.db, &self.clock, cause);
        for here in scope.iter() {
            let known = reported.iter().find(|reported| reported.partition == here);
            let (acknowledged, projected) =
                known.map(|known| (known.acknowledged, known.projected.position)).unwrap_or_default();
            log.add(here, &self.store.partition_state(here).await?, acknowledged, projected).await;
        }
        Ok(log)
    }

    async fn run_logged(
        &self,
        identity: &Identity,
        scope: Scope,
        options: &RebuildOptions,
        (log, progress): (&mut OpenRecoveries<'_>, &Progress),
    ) -> anyhow::Result<Summary> {
        let began = Instant::now();
        let mut frozen = Vec::new();
        let findings = match self.prepare(identity, options, &scope, &mut frozen).await {
            Ok(findings) => findings,
            Err(error) => {
                // Redis still has all its data.
                for here in frozen {
                    self.store.reopen(here).await?;
                }
                return Err(error);
            }
        };
        let mut steps = Steps(began);
        steps.end("prepare");
        for finding in &findings {
            log.update(finding, finding.missing_last(options)).await;
        }
        let mut summary = self.replace(identity, &scope, &findings, options, (log, progress, &mut steps)).await?;
        summary.seconds = began.elapsed().as_secs_f64();
        tracing::warn!(?summary, "Redis is rebuilt from PostgreSQL");
        Ok(summary)
    }

    /// Empties the partitions, fills them from PostgreSQL, and opens them: steps 3 to 6.
    async fn replace(
        &self,
        identity: &Identity,
        scope: &Scope,
        findings: &[PartitionFinding],
        options: &RebuildOptions,
        (log, progress, steps): (&mut OpenRecoveries<'_>, &Progress, &mut Steps),
    ) -> anyhow::Result<Summary> {
        progress.begin("empty");
        let replies_waited = progress::only_postgres_acknowledged(&self.db).await?;
        let bound = |finding: &PartitionFinding| Some((finding.here, finding.possible_loss(replies_waited, options)?));
        let bounds: BTreeMap<Partition, Bound> = findings.iter().filter_map(bound).collect();
        let positions = continuations(findings);
        let mut summary = Summary {
            partitions: scope.iter().map(|here| here.0).collect(),
            epoch: positions.first().map_or(0, |(_, position)| position.epoch),
            discarded: findings.iter().map(PartitionFinding::discarded).sum(),
            lost_at_least: findings.iter().map(|finding| finding.lost).sum(),
            possible_losses: bounds.keys().map(|here| here.0).collect(),
            ..Summary::default()
        };
        let now = self.clock.now();
        if !summary.possible_losses.is_empty() {
            loss::begin(&self.db, &summary.possible_losses, now).await?;
        }
        let losses = PossibleLosses { scope: scope.clone(), bounds, losses: loss::read(&self.db).await? };
        for (here, position) in &positions {
            self.store.mark_rebuilding(*here, identity, *position, REASON).await?;
        }
        let marked_us = self.clock.uptime_us();
        self.store.empty(scope).await?;
        self.projector.rewind(&positions).await?;
        if has_stock_holds(&self.db).await? {
            convert_stock_holds(&self.db, scope.partitions()).await?;
        }
        steps.end("empty");

        let mut snapshot = Snapshot::begin(&self.db).await?;
        let rows = snapshot.size(now.0, self.retention).await?;
        progress.expect(rows * i64::from(scope.len()) / i64::from(scope.partitions()));
        progress.begin(LOAD);
        let mut bulk = Bulk::new(&self.store, positions);
        let (store, zone, retention, losses) = (&self.store, self.zone, self.retention, &losses);
        let loading = Loading { store, scope, zone, now, retention, losses };
        loading.load(&mut snapshot, &mut bulk, progress).await?;
        bulk.flush().await?;
        steps.end_parts("read", ("write", bulk.writing()));
        progress.begin("finish");
        let repair = Repair { store, scope, zone, now };
        summary.repaired = repair.run(&mut snapshot, &mut bulk).await?;
        snapshot.end().await?;
        let withhold = Withhold { store, scope, now, losses };
        for (here, (units, coupons)) in withhold.run(&mut bulk).await? {
            summary.withheld_units += units;
            summary.withheld_coupons += coupons;
            log.withheld(here, (units, coupons));
        }
        bulk.flush().await?;
        summary.rows = progress.done();

        self.catch_up(scope).await?;
        // Wait until every process has dropped its sold-out leases of the previous epoch.
        let since = Duration::from_micros(self.clock.uptime_us() - marked_us);
        self.clock.sleep(LEASE_EXPIRES_AFTER.saturating_sub(since)).await;
        loss::end(&self.db, &summary.partitions).await?;
        for here in scope.iter() {
            self.store.reopen(here).await?;
        }
        steps.end("finish");
        Ok(summary)
    }

    /// Projects the decisions of the rebuild, before the partitions are opened for others.
    async fn catch_up(&self, scope: &Scope) -> anyhow::Result<()> {
        for here in scope.iter() {
            self.projector.project(here).await?;
        }
        let projected = progress::projected(&self.db).await?;
        for projected in projected.into_iter().filter(|projected| scope.contains(projected.partition)) {
            let decided = self.store.position(projected.partition).await?;
            ensure!(
                projected.position == decided,
                "PostgreSQL is at {:?} of partition {}, and not at {decided:?} where its rebuild ended",
                projected.position,
                projected.partition.0
            );
        }
        Ok(())
    }
}
