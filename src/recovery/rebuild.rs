//! Putting Redis back together from Postgres, after its data are lost or no longer to be believed.
//!
//! In this order, each step safe to be the last one that is taken:
//!
//! 1. every partition is frozen, and what its outbox still has goes to Postgres;
//! 2. what can't go there would be discarded: refused, unless the operator says so;
//! 3. every partition is marked as being rebuilt, in a new epoch, and emptied;
//! 4. everything is written back, as Postgres has it ([`load`]), but for what was over and would have left Redis; and what stood
//!    between two partitions is finished ([`repair`]);
//! 5. what lost decisions may have taken is kept off sale ([`withhold`]);
//! 6. what the rebuild itself decided goes to Postgres, and the partitions are opened.
//!
//! A rebuild that is interrupted after 3 is begun again, by the next start or by hand. One runs at a time.
//!
//! **What may be lost.** Decisions that Redis took and Postgres does not have: orders that were placed or paid, coupons that
//! were issued. How many there were, nobody can say for certain once Redis is gone; so everything that was on sale stays off
//! sale until an operator releases it, unless the operator knows a bound (`lost_at_most`), or everything that anybody was ever
//! told waited for Postgres (`ACK=postgres`). Orders that are still PENDING may have been paid: when they expire, what they
//! held stays off sale as well. Undersold for a while, never oversold.
//!
//! **What is known to be lost** is withheld for whatever the replies waited: a Postgres that was put back to an earlier state
//! has lost what it once had, and replies that waited for it were given. Known are the decisions that are discarded, dead letters
//! among them, and those that some process was told of. No bound may be below them.
//!
//! **It must not be forgotten.** That a rebuild withholds is noted in Postgres before Redis is emptied ([`postgres::loss`]): one that is
//! interrupted, or followed by another one, knows it too.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chrono_tz::Tz;

use super::{load::Loading, progress::Progress, repair::Repair, withhold::Withhold};
use crate::{
    config::Retention,
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

/// Why a partition is frozen meanwhile.
const REASON: &str = "a rebuild from PostgreSQL is under way";
/// How long nobody may be heard of before an empty Redis is taken for a lost one, and how long whoever is at work gets to
/// see that a partition is frozen: four times as long as the pause between two looks.
const QUIET_PERIOD: Duration = Duration::from_secs(2);

/// What an operator decides about a rebuild.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Go on where decisions would be discarded that Redis has and Postgres does not.
    pub discard: bool,
    /// The most decisions that were lost, where somebody knows; in each partition, beside those that are discarded.
    pub lost_at_most: Option<i64>,
}

/// What a rebuild did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The epoch that has begun.
    pub epoch: i64,
    /// Rows of Postgres that were written back.
    pub rows: i64,
    pub seconds: f64,
    /// Decisions that Redis had, and that are gone now.
    pub discarded: i64,
    /// Decisions that somebody was told of, and that neither Redis nor Postgres has.
    pub lost_at_least: i64,
    /// Partitions that may have lost decisions.
    pub possible_losses: Vec<u16>,
    /// Steps between partitions that were finished.
    pub repaired: i64,
    /// Kept off sale, by this rebuild.
    pub withheld_units: i64,
    pub withheld_coupons: i64,
}

/// What a rebuild needs.
#[derive(Clone)]
pub struct Rebuild {
    pub store: Store,
    pub db: postgres::Connection,
    pub projector: Projector,
    pub clock: Clock,
    pub zone: Tz,
    /// How long what is over stays in Redis.
    pub keep: Retention,
    pub allow_unsafe_redis: bool,
}

/// A partition before its rebuild.
struct PartitionFinding {
    here: Partition,
    state: PartitionState,
    /// How far Postgres is.
    projected: Position,
    /// How far Redis had decided, as far as anybody knows.
    decided: Position,
    /// Decisions that only Redis has.
    unprojected: i64,
    /// Decisions that Postgres refused, and that stand in Redis alone, if there.
    dead_letters: i64,
    /// Decisions that somebody was told of, and that neither has.
    lost: i64,
    /// An earlier rebuild was to withhold here, and did not come to its end.
    suspected: bool,
}

/// Decisions that a partition lost at most; `None`: nobody knows.
pub(super) type Bound = Option<i64>;

/// What may be missing, by partition.
pub(super) struct PossibleLosses {
    /// `None`: nothing.
    bounds: Vec<Option<Bound>>,
    losses: Vec<Loss>,
}

impl PossibleLosses {
    /// What this rebuild withholds for, if it withholds.
    pub(super) fn bound(&self, here: Partition) -> Option<Bound> {
        self.bounds.get(usize::from(here.0)).copied().flatten()
    }

    /// Whether an order may have been paid that is at home here, was placed at this time (ms) and is PENDING, as Postgres has it;
    /// or is not there at all.
    pub(super) fn of_order(&self, home: Partition, placed_at: Option<i64>) -> bool {
        let loss = self.losses.iter().find(|loss| loss.partition == home.0);
        placed_at.map_or(self.bound(home).is_some(), |placed_at| loss.is_some_and(|loss| loss.covers(placed_at)))
    }

    /// Whether anything was ever lost, or may have been.
    pub(super) fn ever(&self) -> bool {
        self.bounds.iter().any(Option::is_some) || self.losses.iter().any(|loss| loss.suspected_at.is_some())
    }
}

impl Rebuild {
    /// Rebuilds a Redis that is empty beside a Postgres that is not, or that an earlier rebuild left half done.
    ///
    /// # Errors
    /// Somebody else is at work on this store, with another Redis; and as [`Rebuild::run`].
    pub async fn run_if_needed(mut self) -> anyhow::Result<Option<Summary>> {
        postgres::check_schema(&self.db).await?;
        let Some(there) = progress::identity(&self.db).await? else { return Ok(None) };
        self.of_partitions(there.1);
        if !self.is_needed(&there.0).await? {
            return Ok(None);
        }
        let _one = progress::Lock::take(&self.db).await?;
        // Somebody else may have done it while we waited.
        if !self.is_needed(&there.0).await? {
            return Ok(None);
        }
        tracing::warn!(store = there.0, "Redis is empty, and is rebuilt from PostgreSQL");
        self.check_no_process_writes().await?;
        self.run_locked(there, Options::default()).await.map(Some)
    }

    /// Rebuilds Redis, whatever is in it.
    ///
    /// # Errors
    /// What would be discarded, unless the options allow it; a Redis that is another store's, or a Postgres that is none's;
    /// either of them being away. What was frozen is let go again unless it is too late for that: then the partitions stay
    /// marked, and the next start, or the next rebuild, begins again.
    pub async fn run(mut self, options: Options) -> anyhow::Result<Summary> {
        postgres::check_schema(&self.db).await?;
        let there = progress::identity(&self.db).await?;
        let there = there.context("this PostgreSQL database has no store: there is nothing to rebuild Redis from")?;
        self.of_partitions(there.1);
        let _one = progress::Lock::take(&self.db).await?;
        self.run_locked(there, options).await
    }

    fn of_partitions(&mut self, partitions: u16) {
        self.store = self.store.clone().with_partitions(partitions);
        self.projector = self.projector.clone().on(self.store.clone());
    }

    async fn is_needed(&self, store: &str) -> anyhow::Result<bool> {
        let decided = postgres::queries::resources::positions(&self.db).await?.iter().any(|position| position.seq > 0)
            || progress::acknowledged(&self.db).await?.iter().any(|told| told.seq > 0);
        let (mut empty, mut begun) = (true, false);
        for here in self.store.all() {
            let books = self.store.partition_state(here).await?;
            // A part of the books is something else: somebody has to look at that.
            empty &= books == PartitionState::default();
            begun |= books.rebuilding && books.store.as_deref() == Some(store);
        }
        Ok(decided && (empty || begun))
    }

    /// An empty Redis beside somebody who is at work is not lost: it is the wrong one.
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

    async fn run_locked(&self, (name, partitions): (String, u16), options: Options) -> anyhow::Result<Summary> {
        self.store.check_settings(self.allow_unsafe_redis).await?;
        let began = Instant::now();
        let identity = Identity { store: name, partitions, epoch: 0 };
        let mut frozen = Vec::new();
        let found = match self.prepare(&identity, options, &mut frozen).await {
            Ok(found) => found,
            Err(error) => {
                // Nothing has happened yet.
                for here in frozen {
                    self.store.reopen(here).await?;
                }
                return Err(error);
            }
        };
        let mut summary = self.replace(&identity, &found, options).await?;
        summary.seconds = began.elapsed().as_secs_f64();
        tracing::warn!(?summary, "Redis is rebuilt from PostgreSQL");
        Ok(summary)
    }

    /// Freezes everything, carries to Postgres what can be, and finds out what is left. `frozen`: what to let go again.
    async fn prepare(
        &self,
        identity: &Identity,
        options: Options,
        frozen: &mut Vec<Partition>,
    ) -> anyhow::Result<Vec<PartitionFinding>> {
        let mut all = Vec::new();
        for here in self.store.all() {
            let books = self.store.partition_state(here).await?;
            if let Some(other) = books.store.as_ref().filter(|store| **store != identity.store) {
                bail!(
                    "Redis has store {other}, and PostgreSQL has store {}: they do not belong together",
                    identity.store
                );
            }
            // Books that are not there, or not worth reading, let nobody decide anyway.
            if let Some(position) = books.position.filter(|_| books.store.is_some()) {
                self.store.close(here, identity, position, REASON).await?;
                if books.frozen.is_none() {
                    frozen.push(here);
                }
            }
            all.push((here, books));
        }
        if !frozen.is_empty() {
            // Nobody at work may read on while the data go: by then they have all looked.
            tokio::time::sleep(QUIET_PERIOD).await;
        }
        for (here, books) in &all {
            if !books.rebuilding
                && let Some(gap) = self.projector.project(*here).await?
            {
                // That is a loss, whatever becomes of the rebuild.
                self.store.keep_closed(*here, &gap).await?;
                frozen.retain(|frozen| frozen != here);
            }
        }
        let (projected, told) =
            (postgres::queries::resources::positions(&self.db).await?, progress::acknowledged(&self.db).await?);
        let letters = postgres::queries::resources::dead_letters_of_current_epoch(&self.db).await?;
        let losses = loss::read(&self.db).await?;
        let mut found = Vec::new();
        for (here, books) in all {
            let projected = projected.iter().find(|position| position.partition == here.0);
            let projected = projected.with_context(|| format!("PostgreSQL has no position of partition {}", here.0))?;
            let projected = Position { epoch: projected.epoch, seq: projected.seq };
            let told =
                told.iter().find(|told| told.partition == i32::from(here.0)).map(progress::Acknowledged::position);
            let told = told.unwrap_or_default();
            let (entries, highest) = self.store.unprojected(here, projected).await?;
            let mut decided = highest.max(told).max(projected);
            let (mut known, mut unprojected) = (beyond(told, projected), 0);
            // Else the books and the outbox are those of a rebuild that did not come to its end.
            if !books.rebuilding {
                decided = decided.max(books.position.unwrap_or_default());
                known = beyond(decided, projected);
                // What the books count and the outbox does not have is lost just the same.
                unprojected = beyond(books.position.unwrap_or_default(), projected).max(entries as i64);
            }
            let letters = letters.get(&here.0).copied().unwrap_or(0);
            let in_doubt = losses.iter().any(|loss| loss.partition == here.0 && loss.suspected);
            let lost = (known - unprojected).max(0);
            found.push(PartitionFinding {
                here,
                state: books,
                projected,
                decided,
                unprojected,
                dead_letters: letters,
                lost,
                suspected: in_doubt,
            });
        }
        let discarded: i64 = found.iter().map(PartitionFinding::discarded).sum();
        if discarded > 0 && !options.discard {
            let of = |found: &PartitionFinding| {
                let PartitionFinding { here, unprojected, dead_letters: letters, .. } = found;
                format!("{} in partition {}, dead letters {letters}", unprojected + letters, here.0)
            };
            let each: Vec<String> = found.iter().filter(|found| found.discarded() > 0).map(of).collect();
            bail!(
                "a rebuild would discard {discarded} decisions that PostgreSQL does not have ({}): look at the dead letters and at \
                 the projector's log first, and if PostgreSQL was restored from a backup, at whether a later one exists; \
                 `firstcome rebuild --discard` goes back to what PostgreSQL has, and keeps off sale what the discarded decisions \
                 may have sold",
                each.join("; ")
            );
        }
        if let Some(most) = options.lost_at_most
            && let Some(found) = found.iter().find(|found| found.lost > most)
        {
            bail!(
                "partition {} is known to have lost {} decisions that neither Redis nor PostgreSQL has: --lost-at-most {most} can't \
                 be right",
                found.here.0,
                found.lost
            );
        }
        Ok(found)
    }

    async fn replace(
        &self,
        identity: &Identity,
        found: &[PartitionFinding],
        options: Options,
    ) -> anyhow::Result<Summary> {
        let careful = progress::only_postgres_acknowledged(&self.db).await?;
        let bounds: Vec<Option<Bound>> = found.iter().map(|found| found.possible_loss(careful, options)).collect();
        let epoch = found.iter().map(|found| found.decided.epoch).max().unwrap_or(0) + 1;
        let positions: Vec<Position> = found.iter().map(|found| Position { epoch, seq: found.decided.seq }).collect();
        let mut summary = Summary {
            epoch,
            discarded: found.iter().map(PartitionFinding::discarded).sum(),
            lost_at_least: found.iter().map(|found| found.lost).sum(),
            possible_losses: found
                .iter()
                .zip(&bounds)
                .filter(|(_, doubt)| doubt.is_some())
                .map(|(found, _)| found.here.0)
                .collect(),
            ..Summary::default()
        };
        let now = self.clock.now();
        if !summary.possible_losses.is_empty() {
            loss::begin(&self.db, &summary.possible_losses, now).await?;
        }
        let doubts = PossibleLosses { bounds, losses: loss::read(&self.db).await? };
        for (found, position) in found.iter().zip(&positions) {
            self.store.mark_rebuilding(found.here, identity, *position, REASON).await?;
        }
        let marked_us = self.clock.uptime_us();
        self.store.empty().await?;
        self.projector.rewind(&positions).await?;

        let mut snapshot = Snapshot::begin(&self.db).await?;
        let mut progress = Progress::new(snapshot.size(now.0, self.keep).await?);
        let mut bulk = Bulk::new(&self.store, positions);
        let loading = Loading { store: &self.store, zone: self.zone, now, keep: self.keep, losses: &doubts };
        loading.load(&mut snapshot, &mut bulk, &mut progress).await?;
        bulk.flush().await?;
        let repair = Repair { store: &self.store, now, losses: &doubts };
        summary.repaired = repair.run(&mut snapshot, &mut bulk).await?;
        snapshot.end().await?;
        let withhold = Withhold { store: &self.store, now, losses: &doubts };
        (summary.withheld_units, summary.withheld_coupons) = withhold.run(&mut bulk).await?;
        bulk.flush().await?;
        summary.rows = progress.done();

        self.catch_up().await?;
        // Nobody may still go by what was sold out in the epoch before.
        let since = Duration::from_micros(self.clock.uptime_us() - marked_us);
        self.clock.pass(LEASE_EXPIRES_AFTER.saturating_sub(since)).await;
        loss::end(&self.db).await?;
        for here in self.store.all() {
            self.store.reopen(here).await?;
        }
        Ok(summary)
    }

    /// Postgres gets what the rebuild decided before anybody else decides anything.
    async fn catch_up(&self) -> anyhow::Result<()> {
        for here in self.store.all() {
            self.projector.project(here).await?;
        }
        for projected in postgres::queries::resources::positions(&self.db).await? {
            let decided = self.store.position(Partition(projected.partition)).await?;
            ensure!(
                projected.at() == (decided.epoch, decided.seq),
                "PostgreSQL is at {:?} of partition {}, and not at {decided:?} where its rebuild ended",
                projected.at(),
                projected.partition
            );
        }
        Ok(())
    }
}

impl PartitionFinding {
    /// Decisions that are gone after a rebuild, and that Redis or a dead letter had.
    fn discarded(&self) -> i64 {
        self.unprojected + self.dead_letters
    }

    /// Whether decisions may be lost that somebody was told of, and how many at most. `careful`: every reply of this store
    /// waited for Postgres, so that what was told is lost only where Postgres lost it, too.
    fn possible_loss(&self, careful: bool, options: Options) -> Option<Bound> {
        if self.suspected {
            // Whatever was known to be lost then can't be known any more.
            return Some(None);
        }
        let known = self.discarded() + self.lost;
        let sound =
            self.state.position == Some(self.projected) && self.state.frozen.is_none() && !self.state.rebuilding;
        let bound = options.lost_at_most.map(|most| most + self.discarded());
        (known > 0 || !careful && !sound && bound != Some(0)).then_some(bound)
    }
}

/// How many decisions one position is ahead of another; numbers go on over a rebuild.
fn beyond(ahead: Position, of: Position) -> i64 {
    if ahead > of { (ahead.seq - of.seq).max(1) } else { 0 }
}
