//! Recovers partitions whose data Redis lost, by itself, while the other partitions decide.
//!
//! The checks of a partition find the loss, and each process then gives its last word: what it acknowledged, and that it
//! acknowledges nothing more (`redis::roll_call`). A partition is rebuilt from PostgreSQL at once if nothing
//! acknowledged can be missing: every process has spoken and PostgreSQL has everything up to the highest position, or every reply
//! of this store waited for PostgreSQL. Otherwise the lost data may come back (the old master, its disk), so that the recovery
//! waits first; then it withholds what may have been sold, in that partition alone. One process recovers at a time.
//!
//! A process of an earlier version gives no word, and may have acknowledged decisions that no word covers. It is known by its
//! report of requests in PostgreSQL, and counts as silent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use chrono_tz::Tz;
use parking_lot::Mutex;

use super::{
    log::{NoticedLoss, RebuildCause, RecoveryLog},
    open::reported_progress,
    rebuild::{Barrier, LossBounds, QUIET_PERIOD, Rebuild, RebuildOptions, Summary},
    sequences,
};
use crate::{
    config::{ProjectorConfig, RecoveryMode, RedisConfig, Retention},
    model::{BegunBy, Clock, Partition, Scope},
    postgres::{self, instance_requests, progress},
    projector::Projector,
    redis::{Store, progress::PartitionLoss},
    worker::{Worker, Workers},
};

/// The interval in which a process looks for lost partitions.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How much longer a process waits that has not used the partition before the loss: one that has withholds less.
const NEWCOMER_DELAY: Duration = Duration::from_secs(10);
/// The pause after a recovery that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// The time limit of the queries for what PostgreSQL has.
const POSTGRES_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval of the checks while operations drain, and how long they may take.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Watches the partitions, and recovers those that are lost.
pub struct Watch {
    /// The store of the running process, whose checks find the losses.
    pub store: Store,
    pub redis: RedisConfig,
    pub db: postgres::Connection,
    pub clock: Clock,
    pub zone: Tz,
    pub projector: ProjectorConfig,
    /// The time limit of a transaction of the projector.
    pub timeout: Duration,
    pub retention: Retention,
    pub mode: RecoveryMode,
    /// How long lost data may come back before what they may have sold is withheld.
    pub wait: Duration,
    pub noticed: Mutex<HashMap<Partition, Noticed>>,
    pub log: RecoveryLog,
}

/// When this process noticed a loss, and when a recovery of it failed last.
#[derive(Clone, Debug)]
pub struct Noticed {
    at: Instant,
    failed: Option<Instant>,
    /// The processes that served when the loss was noticed, once PostgreSQL has said so.
    serving: Option<Vec<String>>,
}

/// Lost partitions, and what is known of each loss.
type Losses = BTreeMap<Partition, PartitionLoss>;

impl Watch {
    /// Writes in the background what the log of recoveries lacks, and watches, unless operators recover by hand.
    pub fn keep_watching(self: Arc<Self>, workers: &Workers) {
        workers.every(Worker::Recovery, WATCH_INTERVAL, move || {
            let this = self.clone();
            async move {
                if let Err(reason) = this.log.write(&this.db).await {
                    tracing::debug!(reason, "the log of recoveries still waits for PostgreSQL");
                }
                if this.store.lacks_sequences()
                    && let Err(error) = sequences::complete(&this.store, &this.db).await
                {
                    tracing::warn!(error = format!("{error:#}"), "the sequences of ids are not complete yet");
                }
                if this.mode == RecoveryMode::Manual {
                    return;
                }
                if let Err(error) = Box::pin(this.step()).await {
                    tracing::error!(error = format!("{error:#}"), "lost partitions are not recovered yet");
                }
            }
        });
    }

    /// Recovers the partitions that can be recovered now. Returns what was done, if anything was.
    ///
    /// # Errors
    /// PostgreSQL or Redis is unavailable, or the rebuild is refused.
    pub async fn step(&self) -> anyhow::Result<Option<Summary>> {
        let store = &self.store;
        let losses: Losses = store.all().filter_map(|here| Some((here, store.loss(here)?))).collect();
        self.notice(&losses);
        // A hanging connection must not stop the watch.
        let due = tokio::time::timeout(POSTGRES_TIMEOUT, self.due(losses)).await;
        let mut due = due.context("PostgreSQL does not answer")??;
        if due.is_empty() {
            return Ok(None);
        }
        let Some(lock) = progress::Lock::try_take(&self.db).await? else { return Ok(None) };
        // Another process may have recovered some meanwhile.
        for here in due.keys() {
            let _closed = store.check(*here).await;
        }
        due.retain(|here, _| store.loss(*here).is_some());
        if due.is_empty() {
            return Ok(None);
        }
        let result = self.recover(&due, &lock).await;
        lock.release().await;
        result.map(Some)
    }

    /// Remembers new losses, and forgets those that have ended.
    fn notice(&self, losses: &Losses) {
        let mut noticed = self.noticed.lock();
        noticed.retain(|here, _| losses.contains_key(here));
        for (here, loss) in losses {
            noticed.entry(*here).or_insert_with(|| {
                tracing::error!(
                    partition = here.0,
                    reason = loss.reason,
                    "Redis has lost decisions: a recovery is due"
                );
                Noticed { at: Instant::now(), failed: None, serving: None }
            });
        }
    }

    /// The lost partitions that can be recovered now.
    async fn due(&self, mut losses: Losses) -> anyhow::Result<Losses> {
        losses.retain(|_, loss| loss.silent.is_empty() || loss.waited);
        if losses.is_empty() {
            return Ok(losses);
        }
        let replies_waited = progress::only_postgres_acknowledged(&self.db).await?;
        let reported = reported_progress(&self.db).await?;
        // A process that works with another Redis: REDIS_URL of this one leads to the wrong one.
        let elsewhere = progress::reported_within(&self.db, QUIET_PERIOD).await?;
        let longest = self.noticed.lock().values().map(|noticed| noticed.at.elapsed()).max().unwrap_or_default();
        let serving = instance_requests::serving_within(&self.db, longest).await?;
        let mut noticed = self.noticed.lock();
        let mut due = Losses::new();
        for (here, mut loss) in losses {
            let Some(Noticed { at, failed, serving: known_serving }) = noticed.get_mut(&here) else { continue };
            let serving = known_serving.get_or_insert_with(|| serving.clone());
            if failed.is_some_and(|failed| failed.elapsed() < RETRY_INTERVAL) || elsewhere.contains(&here) {
                continue;
            }
            let Some(known) = reported.iter().find(|reported| reported.partition == here) else { continue };
            if replies_waited {
                // No client was told of a decision that PostgreSQL lacked.
                (loss.confirmed, loss.silent, loss.witnessed) = (known.acknowledged, Vec::new(), true);
            } else {
                loss.confirmed = loss.confirmed.max(known.acknowledged);
                // Processes of an earlier version, which give no word.
                loss.silent.extend(serving.iter().filter(|process| !loss.heard.contains(*process)).cloned());
            }
            let complete = loss.all_spoke() && loss.confirmed <= known.projected.position;
            let wait = if loss.witnessed { self.wait } else { self.wait + NEWCOMER_DELAY };
            let waited = at.elapsed() >= wait && self.mode == RecoveryMode::Automatic;
            if complete || waited {
                due.insert(here, loss);
            }
        }
        Ok(due)
    }

    /// Rebuilds these partitions, and logs their recoveries.
    async fn recover(&self, due: &Losses, lock: &progress::Lock) -> anyhow::Result<Summary> {
        let acknowledged: Vec<_> = due.iter().map(|(here, loss)| (*here, loss.confirmed)).collect();
        progress::record_acknowledged(&self.db, &acknowledged).await?;
        let counted = due.iter().filter(|(_, loss)| loss.all_spoke()).map(|(here, _)| *here).collect();
        let partitions: BTreeSet<Partition> = due.keys().copied().collect();
        let options =
            RebuildOptions { partitions: Some(partitions), discard: false, lost_at_most: LossBounds::Counted(counted) };
        let noticed = due.iter().map(|(here, loss)| (*here, self.noticed_loss(*here, loss))).collect();
        let cause = RebuildCause { begun_by: BegunBy::Service, noticed };
        let recovered = async { self.rebuild().await?.run_holding(lock, options, cause).await }.await;
        if recovered.is_err() {
            let mut noticed = self.noticed.lock();
            for (_, noticed) in noticed.iter_mut().filter(|(here, _)| due.contains_key(here)) {
                noticed.failed = Some(Instant::now());
            }
        }
        recovered
    }

    /// The rebuild, over connections of its own: those of the process refuse a closed partition.
    async fn rebuild(&self) -> anyhow::Result<Rebuild> {
        let store = self.store.connect_again(&self.redis).await?;
        store.set_clock(&self.clock);
        let (db, clock, zone, retention) = (self.db.clone(), self.clock.clone(), self.zone, self.retention);
        let projector =
            Projector::new(store.clone(), db.clone(), clock.clone(), &self.projector, self.timeout, retention);
        let running = self.store.clone();
        let barrier: Barrier = Arc::new(move |scope| {
            let running = running.clone();
            Box::pin(async move { drained(&running, &scope).await })
        });
        let (durability, log) = (self.redis.redis_durability, self.log.clone());
        Ok(Rebuild { store, db, projector, clock, zone, retention, durability, barrier: Some(barrier), log })
    }

    fn noticed_loss(&self, here: Partition, loss: &PartitionLoss) -> NoticedLoss {
        let ago = self.noticed.lock().get(&here).map_or(Duration::ZERO, |noticed| noticed.at.elapsed());
        let at = self.clock.now().plus(-(ago.as_millis() as i64));
        NoticedLoss { reason: loss.reason.clone(), silent: loss.silent.clone(), at }
    }
}

/// Waits until no process has an operation in progress that began before the loss of a partition of the scope.
async fn drained(store: &Store, scope: &Scope) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        for here in scope.iter() {
            let _closed = store.check(here).await;
        }
        let draining: Vec<u16> = scope
            .iter()
            .filter(|here| store.loss(*here).is_some_and(|loss| loss.draining))
            .map(|here| here.0)
            .collect();
        if draining.is_empty() {
            return Ok(());
        }
        ensure!(
            began.elapsed() < DRAIN_TIMEOUT,
            "operations that began before the loss of partitions {draining:?} are still in progress"
        );
        tokio::time::sleep(DRAIN_INTERVAL).await;
    }
}
