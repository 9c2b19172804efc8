//! Rebuilds Redis from PostgreSQL, after the data of Redis are lost or no longer trusted.
//!
//! The steps, after each of which an interruption is safe:
//!
//! 1. Freeze every partition, and project the rest of its outbox.
//! 2. Refuse to continue if decisions can't be projected and would be discarded, unless the operator accepts that.
//! 3. Mark every partition as rebuilding, in a new epoch, and empty it.
//! 4. Write back the rows of PostgreSQL ([`load`](super::load)), except for orders that would be evicted by now; then
//!    complete the steps between partitions ([`repair`](super::repair)).
//! 5. Withhold the units that lost decisions may have sold ([`withhold`](super::withhold)).
//! 6. Project the rebuild's own decisions, and open the partitions.
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

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chrono_tz::Tz;

use super::{load::Loading, progress::Progress, repair::Repair, withhold::Withhold};
use crate::{
    config::{RedisDurability, Retention},
    engine::sold_out::LEASE_EXPIRES_AFTER,
    model::{Clock, Identity, Partition, Position},
    postgres::{
        self,
        loss::{self, Loss},
        progress,
        snapshot::Snapshot,
    },
    projector::Projector,
    redis::{
        Store,
        bulk::{Bulk, PartitionState},
    },
};

/// The reason with which partitions are frozen during a rebuild.
pub(super) const REASON: &str = "a rebuild from PostgreSQL is under way";
/// Without a sign of another process for this long, an empty Redis counts as lost. Also the time that running processes
/// get to notice a frozen partition. Four times the interval of their checks.
const QUIET_PERIOD: Duration = Duration::from_secs(2);

/// The operator's choices for a rebuild.
#[derive(Clone, Copy, Debug, Default)]
pub struct RebuildOptions {
    /// Discard decisions that Redis has and PostgreSQL lacks.
    pub discard: bool,
    /// An upper bound of the lost decisions of each partition, besides the discarded ones; `None` if unknown.
    pub lost_at_most: Option<i64>,
}

/// The result of a rebuild.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
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
}

/// The state of a partition before its rebuild.
struct PartitionFinding {
    here: Partition,
    state: PartitionState,
    projected: Position,
    /// The highest known position: of Redis, acknowledged or projected.
    decided: Position,
    /// Decisions that only Redis has.
    unprojected: i64,
    /// Decisions that PostgreSQL refused.
    dead_letters: i64,
    /// Acknowledged decisions that neither store has.
    lost: i64,
    /// An earlier rebuild that had to withhold was interrupted.
    suspected: bool,
}

/// An upper bound of the decisions that a partition lost; `None` if unknown.
pub(super) type Bound = Option<i64>;

/// The possible losses of the partitions.
pub(super) struct PossibleLosses {
    /// Indexed by partition; `None` for a partition that lost nothing.
    bounds: Vec<Option<Bound>>,
    losses: Vec<Loss>,
}

impl PossibleLosses {
    /// The bound of the losses that this rebuild withholds for; `None` if it does not withhold in this partition.
    pub(super) fn bound(&self, here: Partition) -> Option<Bound> {
        self.bounds.get(usize::from(here.0)).copied().flatten()
    }

    /// Whether a lost decision may have paid an order of partition `owner` that is PENDING in PostgreSQL since
    /// `placed_at` (ms), or is missing there (`None`).
    pub(super) fn may_be_paid(&self, owner: Partition, placed_at: Option<i64>) -> bool {
        let loss = self.losses.iter().find(|loss| loss.partition == owner.0);
        placed_at.map_or(self.bound(owner).is_some(), |placed_at| loss.is_some_and(|loss| loss.covers(placed_at)))
    }

    /// Whether any partition may ever have lost a decision.
    pub(super) fn ever(&self) -> bool {
        self.bounds.iter().any(Option::is_some) || self.losses.iter().any(|loss| loss.suspected_at.is_some())
    }
}

impl Rebuild {
    /// Rebuilds Redis if it is empty beside a PostgreSQL that is not, or if an earlier rebuild was interrupted.
    ///
    /// # Errors
    /// Another process is at work on this store with another Redis; otherwise as [`Rebuild::run`].
    pub async fn run_if_needed(mut self) -> anyhow::Result<Option<Summary>> {
        postgres::check_schema(&self.db).await?;
        let Some(identity) = progress::identity(&self.db).await? else { return Ok(None) };
        self.set_partitions(identity.1);
        if !self.is_needed(&identity.0).await? {
            return Ok(None);
        }
        let _lock = progress::Lock::take(&self.db).await?;
        // Another process may have rebuilt while this one waited for the lock.
        if !self.is_needed(&identity.0).await? {
            return Ok(None);
        }
        tracing::warn!(store = identity.0, "Redis is empty, and is rebuilt from PostgreSQL");
        self.check_no_process_writes().await?;
        self.run_locked(identity, RebuildOptions::default()).await.map(Some)
    }

    /// Rebuilds Redis, whatever its state.
    ///
    /// # Errors
    /// Decisions would be discarded, and the options do not allow it; the stores do not belong together, or PostgreSQL
    /// has no store; or one of them is unavailable. Before step 3 the partitions are opened again. Afterwards they stay
    /// marked, and the next start or the next rebuild begins anew.
    pub async fn run(mut self, options: RebuildOptions) -> anyhow::Result<Summary> {
        postgres::check_schema(&self.db).await?;
        let identity = progress::identity(&self.db).await?;
        let identity =
            identity.context("this PostgreSQL database has no store: there is nothing to rebuild Redis from")?;
        self.set_partitions(identity.1);
        let _lock = progress::Lock::take(&self.db).await?;
        self.run_locked(identity, options).await
    }

    fn set_partitions(&mut self, partitions: u16) {
        self.store = self.store.clone().with_partitions(partitions);
        self.projector = self.projector.clone().on(self.store.clone());
    }

    async fn is_needed(&self, store: &str) -> anyhow::Result<bool> {
        let decided = progress::projected(&self.db).await?.iter().any(|projected| projected.position.seq > 0)
            || progress::acknowledged(&self.db).await?.iter().any(|acknowledged| acknowledged.position.seq > 0);
        let (mut empty, mut begun) = (true, false);
        for here in self.store.all() {
            let state = self.store.partition_state(here).await?;
            // A partial state is no empty Redis: an operator has to decide.
            empty &= state == PartitionState::default();
            begun |= state.rebuilding && state.store.as_deref() == Some(store);
        }
        Ok(decided && (empty || begun))
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

    async fn run_locked(&self, (name, partitions): (String, u16), options: RebuildOptions) -> anyhow::Result<Summary> {
        self.store.check_settings(self.durability).await?;
        let began = Instant::now();
        let identity = Identity { store: name, partitions, epoch: 0 };
        let mut frozen = Vec::new();
        let findings = match self.prepare(&identity, options, &mut frozen).await {
            Ok(findings) => findings,
            Err(error) => {
                // Redis still has all its data.
                for here in frozen {
                    self.store.reopen(here).await?;
                }
                return Err(error);
            }
        };
        let mut summary = self.replace(&identity, &findings, options).await?;
        summary.seconds = began.elapsed().as_secs_f64();
        tracing::warn!(?summary, "Redis is rebuilt from PostgreSQL");
        Ok(summary)
    }

    /// Freezes every partition, projects its outbox, and finds out what is lost. Adds to `frozen` the partitions that
    /// have to be opened again if the rebuild ends here.
    async fn prepare(
        &self,
        identity: &Identity,
        options: RebuildOptions,
        frozen: &mut Vec<Partition>,
    ) -> anyhow::Result<Vec<PartitionFinding>> {
        let mut all = Vec::new();
        for here in self.store.all() {
            let state = self.store.partition_state(here).await?;
            if let Some(other) = state.store.as_ref().filter(|store| **store != identity.store) {
                bail!(
                    "Redis has store {other}, and PostgreSQL has store {}: they do not belong together",
                    identity.store
                );
            }
            // A partition without a readable state accepts no decision anyway.
            if let Some(position) = state.position.filter(|_| state.store.is_some()) {
                self.store.close(here, identity, position, REASON).await?;
                if state.frozen.is_none() {
                    frozen.push(here);
                }
            }
            all.push((here, state));
        }
        if !frozen.is_empty() {
            // Running processes must notice the freeze before their reads find emptied data.
            tokio::time::sleep(QUIET_PERIOD).await;
        }
        for (here, state) in &all {
            if !state.rebuilding
                && let Some(gap) = self.projector.project(*here).await?
            {
                // A gap is a loss: the partition stays frozen even if the rebuild is refused.
                self.store.keep_closed(*here, &gap).await?;
                frozen.retain(|frozen| frozen != here);
            }
        }
        let findings = self.findings(all).await?;
        let discarded: i64 = findings.iter().map(PartitionFinding::discarded).sum();
        if discarded > 0 && !options.discard {
            let describe = |finding: &PartitionFinding| {
                let PartitionFinding { here, unprojected, dead_letters, .. } = finding;
                format!("{} in partition {}, dead letters {dead_letters}", unprojected + dead_letters, here.0)
            };
            let each: Vec<String> = findings.iter().filter(|finding| finding.discarded() > 0).map(describe).collect();
            bail!(
                "a rebuild would discard {discarded} decisions that PostgreSQL does not have ({}): look at the dead letters and at \
                 the projector's log first, and if PostgreSQL was restored from a backup, at whether a later one exists; \
                 `firstcome rebuild --discard` goes back to what PostgreSQL has, and keeps off sale what the discarded decisions \
                 may have sold",
                each.join("; ")
            );
        }
        if let Some(bound) = options.lost_at_most
            && let Some(finding) = findings.iter().find(|finding| finding.lost > bound)
        {
            bail!(
                "partition {} is known to have lost {} decisions that neither Redis nor PostgreSQL has: --lost-at-most {bound} \
                 can't be right",
                finding.here.0,
                finding.lost
            );
        }
        Ok(findings)
    }

    /// Compares the state of each partition with the positions in PostgreSQL.
    async fn findings(&self, states: Vec<(Partition, PartitionState)>) -> anyhow::Result<Vec<PartitionFinding>> {
        let (projected, acknowledged) = (progress::projected(&self.db).await?, progress::acknowledged(&self.db).await?);
        let dead_letters = postgres::queries::dead_letters::counts_of_current_epoch(&self.db).await?;
        let losses = loss::read(&self.db).await?;
        let mut findings = Vec::new();
        for (here, state) in states {
            let projected = projected.iter().find(|projected| projected.partition == here);
            let projected =
                projected.with_context(|| format!("PostgreSQL has no position of partition {}", here.0))?.position;
            let acknowledged = acknowledged.iter().find(|acknowledged| acknowledged.partition == here);
            let acknowledged = acknowledged.map(|acknowledged| acknowledged.position).unwrap_or_default();
            let (entries, highest) = self.store.unprojected(here, projected).await?;
            let mut decided = highest.max(acknowledged).max(projected);
            let (mut known, mut unprojected) = (beyond(acknowledged, projected), 0);
            // A rebuilding partition has the state and the outbox of an interrupted rebuild: they count for nothing.
            if !state.rebuilding {
                decided = decided.max(state.position.unwrap_or_default());
                known = beyond(decided, projected);
                // A decision that the state counts and the outbox lacks is discarded too.
                unprojected = beyond(state.position.unwrap_or_default(), projected).max(entries as i64);
            }
            findings.push(PartitionFinding {
                here,
                state,
                projected,
                decided,
                unprojected,
                dead_letters: dead_letters.get(&here.0).copied().unwrap_or(0),
                lost: (known - unprojected).max(0),
                suspected: losses.iter().any(|loss| loss.partition == here.0 && loss.suspected),
            });
        }
        Ok(findings)
    }

    /// Empties Redis, fills it from PostgreSQL, and opens the partitions: steps 3 to 6.
    async fn replace(
        &self,
        identity: &Identity,
        findings: &[PartitionFinding],
        options: RebuildOptions,
    ) -> anyhow::Result<Summary> {
        let replies_waited = progress::only_postgres_acknowledged(&self.db).await?;
        let bounds: Vec<Option<Bound>> =
            findings.iter().map(|finding| finding.possible_loss(replies_waited, options)).collect();
        let epoch = findings.iter().map(|finding| finding.decided.epoch).max().unwrap_or(0) + 1;
        let positions: Vec<Position> =
            findings.iter().map(|finding| Position { epoch, seq: finding.decided.seq }).collect();
        let mut summary = Summary {
            epoch,
            discarded: findings.iter().map(PartitionFinding::discarded).sum(),
            lost_at_least: findings.iter().map(|finding| finding.lost).sum(),
            possible_losses: findings
                .iter()
                .zip(&bounds)
                .filter(|(_, bound)| bound.is_some())
                .map(|(finding, _)| finding.here.0)
                .collect(),
            ..Summary::default()
        };
        let now = self.clock.now();
        if !summary.possible_losses.is_empty() {
            loss::begin(&self.db, &summary.possible_losses, now).await?;
        }
        let losses = PossibleLosses { bounds, losses: loss::read(&self.db).await? };
        for (finding, position) in findings.iter().zip(&positions) {
            self.store.mark_rebuilding(finding.here, identity, *position, REASON).await?;
        }
        let marked_us = self.clock.uptime_us();
        self.store.empty().await?;
        self.projector.rewind(&positions).await?;

        let mut snapshot = Snapshot::begin(&self.db).await?;
        let mut progress = Progress::new(snapshot.size(now.0, self.retention).await?);
        let mut bulk = Bulk::new(&self.store, positions);
        let loading = Loading { store: &self.store, zone: self.zone, now, retention: self.retention, losses: &losses };
        loading.load(&mut snapshot, &mut bulk, &mut progress).await?;
        bulk.flush().await?;
        let repair = Repair { store: &self.store, now, losses: &losses };
        summary.repaired = repair.run(&mut snapshot, &mut bulk).await?;
        snapshot.end().await?;
        let withhold = Withhold { store: &self.store, now, losses: &losses };
        (summary.withheld_units, summary.withheld_coupons) = withhold.run(&mut bulk).await?;
        bulk.flush().await?;
        summary.rows = progress.done();

        self.catch_up().await?;
        // Wait until every process has dropped its sold-out leases of the previous epoch.
        let since = Duration::from_micros(self.clock.uptime_us() - marked_us);
        self.clock.pass(LEASE_EXPIRES_AFTER.saturating_sub(since)).await;
        loss::end(&self.db).await?;
        for here in self.store.all() {
            self.store.reopen(here).await?;
        }
        Ok(summary)
    }

    /// Projects the decisions of the rebuild, before the partitions are opened for others.
    async fn catch_up(&self) -> anyhow::Result<()> {
        for here in self.store.all() {
            self.projector.project(here).await?;
        }
        for projected in progress::projected(&self.db).await? {
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

impl PartitionFinding {
    /// Decisions that Redis or a dead letter has, and that a rebuild discards.
    fn discarded(&self) -> i64 {
        self.unprojected + self.dead_letters
    }

    /// The bound of the acknowledged decisions that may be lost; `None` if none is. `replies_waited`: every reply of
    /// this store waited for PostgreSQL, so that only PostgreSQL can have lost an acknowledged decision.
    fn possible_loss(&self, replies_waited: bool, options: RebuildOptions) -> Option<Bound> {
        if self.suspected {
            // The interrupted rebuild has emptied Redis: its bound is no longer known.
            return Some(None);
        }
        let known = self.discarded() + self.lost;
        let sound =
            self.state.position == Some(self.projected) && self.state.frozen.is_none() && !self.state.rebuilding;
        let bound = options.lost_at_most.map(|bound| bound + self.discarded());
        (known > 0 || !replies_waited && !sound && bound != Some(0)).then_some(bound)
    }
}

/// The number of decisions from one position to a later one; a rebuild continues the numbers.
fn beyond(ahead: Position, of: Position) -> i64 {
    if ahead > of { (ahead.seq - of.seq).max(1) } else { 0 }
}
