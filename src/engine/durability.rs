//! Durability: checks that no partition has lost acknowledged decisions, follows PostgreSQL's progress, delays replies until
//! `ACK` is met, and sheds writes while the backlog is too long.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::Engine;
use crate::{
    config::{Ack, DurabilityConfig},
    model::{AcknowledgedPositions, Error, Partition, Position, Replication},
    postgres,
    telemetry::metrics,
    worker::{Worker, Workers},
};

/// The interval of the checks of the partitions and of PostgreSQL's progress.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The interval of the queries for PostgreSQL's progress while replies wait for it and another process projects.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The interval of the queries to the Sentinels, if there are any.
const SENTINEL_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of a query for PostgreSQL's progress.
const POSTGRES_TIMEOUT: Duration = Duration::from_secs(5);
/// The time without progress after which `/readyz` reports the projection of a partition as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// The retry hint for a write whose decision is a dead letter: an operator has to resolve that first.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(30);
/// The retry hint for a shed write.
const SHED_RETRY: Duration = Duration::from_secs(2);

/// The required durability, the limit of the backlog, and PostgreSQL's progress.
pub(super) struct Durability {
    ack: Ack,
    /// Replicas that must have a decision before its reply; 0 unless `ACK=replica`.
    replicas: usize,
    pub(super) max_backlog: i64,
    shedding: AtomicBool,
    progress: Mutex<HashMap<Partition, LaggingProgress>>,
    /// Whether PostgreSQL was unavailable to the last check.
    postgres_away: AtomicBool,
    /// Cancelled once PostgreSQL has confirmed the start; `None` for a start with PostgreSQL.
    confirmed: Option<CancellationToken>,
}

/// The last known projected position of a partition that lags, and the time since when it is unchanged.
#[derive(Clone, Copy)]
struct LaggingProgress {
    projected: Position,
    since_us: u64,
}

impl Durability {
    pub(super) fn new(config: &DurabilityConfig) -> Self {
        Durability {
            ack: config.ack,
            replicas: config.replica_ack().map_or(0, |ack| ack.replicas),
            max_backlog: config.max_backlog,
            shedding: AtomicBool::new(false),
            progress: Mutex::default(),
            postgres_away: AtomicBool::new(false),
            confirmed: None,
        }
    }

    pub(super) fn replicas(&self) -> usize {
        self.replicas
    }

    /// Whether to shed a write at this backlog. Hysteresis: shedding ends only when the backlog is 10% below the limit.
    fn sheds(&self, backlog: i64) -> bool {
        let Durability { max_backlog, shedding, .. } = self;
        let limit = if shedding.load(Ordering::Relaxed) { max_backlog - max_backlog / 10 } else { *max_backlog };
        let full = backlog >= limit;
        if shedding.swap(full, Ordering::Relaxed) != full {
            match full {
                true => tracing::error!(backlog, max_backlog, "PostgreSQL is too far behind: shedding writes"),
                false => tracing::info!(backlog, "PostgreSQL has caught up: admitting writes again"),
            }
        }
        full
    }

    /// Records the acknowledged and the projected position of each partition at `now_us`, by the clock's uptime.
    fn record_progress(&self, partitions: &[(Partition, Position, Position)], now_us: u64) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.retain(|here, _| partitions.iter().any(|(partition, ..)| partition == here));
        for &(here, acknowledged, projected) in partitions {
            if projected >= acknowledged {
                progress.remove(&here);
                continue;
            }
            let lagging = progress.entry(here).or_insert(LaggingProgress { projected, since_us: now_us });
            if lagging.projected != projected {
                *lagging = LaggingProgress { projected, since_us: now_us };
            }
        }
    }

    /// The partitions whose decisions wait and whose projection has made no progress for [`STALLED_AFTER`] or longer, and for how long.
    fn stalls(&self, now_us: u64) -> Vec<(Partition, Duration)> {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |lagging: &LaggingProgress| Duration::from_micros(now_us.saturating_sub(lagging.since_us));
        let mut stalls: Vec<_> = progress.iter().map(|(here, lagging)| (*here, since(lagging))).collect();
        stalls.retain(|(_, stalled)| *stalled >= STALLED_AFTER);
        stalls.sort_unstable_by_key(|(here, _)| here.0);
        stalls
    }
}

async fn wait_until_replicated(replications: Vec<Replication>) -> Result<(), Error> {
    for replication in replications {
        if !replication.reached().await {
            return Err(Error::unavailable("too few replicas of Redis have the decision"));
        }
    }
    Ok(())
}

fn refused_by_postgres() -> Error {
    let reason = "PostgreSQL refused the decision: it is a dead letter".to_owned();
    Error::Unavailable { reason, retry_after: DEAD_LETTER_RETRY }
}

impl Engine {
    /// The same engine of a process that started without PostgreSQL, which has yet to cancel `confirmed`.
    pub fn joined(mut self, confirmed: CancellationToken) -> Self {
        self.durability.postgres_away.store(true, Ordering::Relaxed);
        self.durability.confirmed = Some(confirmed);
        self
    }

    /// Whether PostgreSQL was unavailable to the last check of its progress.
    pub fn is_postgres_away(&self) -> bool {
        self.durability.postgres_away.load(Ordering::Relaxed)
    }

    /// Whether this process started without PostgreSQL, which has not confirmed the start yet.
    pub fn is_unconfirmed(&self) -> bool {
        self.durability.confirmed.as_ref().is_some_and(|confirmed| !confirmed.is_cancelled())
    }

    /// Admits a write, unless the backlog of PostgreSQL is too long. Returns the list, still empty, of the decisions that its
    /// reply waits for: the write's [`Call`](crate::model::Call) carries it, and [`Engine::wait_until_durable`] waits.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; nothing was decided.
    pub fn admit_write(&self) -> Result<AcknowledgedPositions, Error> {
        let backlog = self.store.backlog();
        if self.durability.sheds(backlog) {
            metrics::SHED.with_label_values(&["backlog"]).inc();
            let reason = format!("PostgreSQL is {backlog} decisions behind");
            return Err(Error::Unavailable { reason, retry_after: SHED_RETRY });
        }
        Ok(match self.durability.ack {
            Ack::Redis => AcknowledgedPositions::default(),
            Ack::Replica | Ack::Postgres => AcknowledgedPositions::collecting(),
        })
    }

    /// Waits until these decisions are as durable as `ACK` asks: with `ACK=replica`, until replicas have them, at most
    /// `ACK_REPLICA_TIMEOUT_MS`; with `ACK=postgres`, until PostgreSQL has them, without a time limit of its own: the request's
    /// limit leaves its outcome unknown.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if too few replicas have a decision in time, or PostgreSQL has passed it without applying it: the
    /// decision is a dead letter that is not applied yet, or Redis was rebuilt meanwhile. The outcome is unknown; a repeat under
    /// the request's key returns it.
    pub async fn wait_until_durable(&self, acknowledged: &AcknowledgedPositions) -> Result<(), Error> {
        match self.durability.ack {
            Ack::Redis => return Ok(()),
            Ack::Replica => return wait_until_replicated(acknowledged.replications()).await,
            Ack::Postgres => {}
        }
        let refused = self.store.wait_projected(&acknowledged.positions()).await?;
        if !refused.is_empty() && postgres::queries::dead_letters::is_any_dead(&self.db, &refused).await? {
            return Err(refused_by_postgres());
        }
        Ok(())
    }

    /// Starts the checks in the background, with a worker per store: one that hangs must not delay the checks of the others.
    /// `projects`: this process runs the projector, which reports PostgreSQL's progress itself.
    pub fn keep_watch(self: &Arc<Self>, projects: bool, workers: &Workers) {
        let (this, polls) = (self.clone(), !projects && self.durability.ack == Ack::Postgres);
        workers.spawn(Worker::PostgresWatch, move || {
            let this = this.clone();
            async move { this.watch_postgres(polls).await }
        });
        let this = self.clone();
        workers.every(Worker::RedisWatch, CHECK_INTERVAL, move || {
            let this = this.clone();
            async move { this.check_redis().await }
        });
        let store = self.store.clone();
        workers.every(Worker::Sentinels, SENTINEL_INTERVAL, move || {
            let store = store.clone();
            async move { store.follow_sentinels().await }
        });
    }

    /// Checks PostgreSQL's progress without end; `polls`: at short intervals while replies wait for it.
    async fn watch_postgres(&self, polls: bool) {
        let mut reported = tokio::time::Instant::now();
        loop {
            if polls && self.store.backlog() > 0 {
                tokio::time::sleep(POLL_INTERVAL).await;
            } else {
                tokio::time::sleep_until(reported + CHECK_INTERVAL).await;
            }
            self.check_postgres().await;
            if reported.elapsed() >= CHECK_INTERVAL {
                reported = tokio::time::Instant::now();
                self.report_to_postgres().await;
            }
        }
    }

    /// Runs every check once.
    pub async fn check(&self) {
        self.check_postgres().await;
        self.check_redis().await;
        self.report_to_postgres().await;
    }

    /// A message for each partition whose projection has stalled: decisions wait, and PostgreSQL made no progress for
    /// [`STALLED_AFTER`]. PostgreSQL may be unavailable or reject decisions, or no projector runs. Also a message while
    /// PostgreSQL has not confirmed a start without it.
    pub fn projection_stalls(&self) -> Vec<String> {
        let message = |(here, stalled): (Partition, Duration)| {
            format!(
                "partition {}: the projection has made no progress for {} s, and decisions wait: see the projector's log",
                here.0,
                stalled.as_secs()
            )
        };
        let unconfirmed = "this process started without PostgreSQL, which has yet to confirm what it serves on";
        let stalls = self.durability.stalls(self.clock.uptime_us()).into_iter().map(message);
        self.is_unconfirmed().then(|| unconfirmed.to_owned()).into_iter().chain(stalls).collect()
    }

    /// A message for each partition whose server has too few replicas for `ACK=replica`.
    pub fn missing_replicas(&self) -> Vec<String> {
        self.store.missing_replicas()
    }

    /// Records the projected position of every partition that lags.
    fn record_progress(&self) {
        let now_us = self.clock.uptime_us();
        let projected = |(here, acknowledged)| (here, acknowledged, self.store.projected_position(here));
        let partitions: Vec<_> = self.store.acknowledged().into_iter().map(projected).collect();
        self.durability.record_progress(&partitions, now_us);
    }

    async fn check_postgres(&self) {
        let before = self.store.projected_positions();
        // A hanging connection must not stop the checks.
        let positions = tokio::time::timeout(POSTGRES_TIMEOUT, postgres::progress::projected(&self.db)).await;
        match positions.unwrap_or_else(|_| Err(Error::unavailable("PostgreSQL does not answer"))) {
            Ok(positions) => {
                self.durability.postgres_away.store(false, Ordering::Relaxed);
                for projected in positions {
                    self.store.observe_projection(projected.partition, projected.projection(), &before);
                }
            }
            Err(error) => {
                let away = matches!(error, Error::Unavailable { .. });
                self.durability.postgres_away.store(away, Ordering::Relaxed);
                tracing::debug!(%error, "can't read PostgreSQL's progress");
            }
        }
        self.record_progress();
    }

    /// Stores the acknowledged positions in PostgreSQL, where a later process finds them if Redis loses decisions.
    async fn report_to_postgres(&self) {
        if let Err(error) = postgres::progress::record_acknowledged(&self.db, &self.store.confirmed_positions()).await {
            tracing::debug!(%error, "can't store the acknowledged positions");
        }
        // Repeated, because a restored PostgreSQL may lack it.
        if self.durability.ack != Ack::Postgres
            && let Err(error) = postgres::progress::acknowledges_before_postgres(&self.db).await
        {
            tracing::debug!(%error, "can't store the acknowledgement mode");
        }
    }

    /// Records in PostgreSQL what this process acknowledged last, also in closed partitions, and withdraws it from the roll calls:
    /// call it after the last reply. While PostgreSQL is unavailable the word stays in Redis. `last_work` runs meanwhile; the word is
    /// withdrawn after it, because every check of a partition gives it again.
    pub async fn end_acknowledging<T>(&self, last_work: impl Future<Output = T>) -> T {
        let last = self.store.all().map(|here| (here, self.store.confirmed(here)));
        let last: Vec<_> = last.filter(|(_, confirmed)| *confirmed > Position::default()).collect();
        let recording = postgres::progress::record_acknowledged(&self.db, &last);
        let (done, recorded) = tokio::join!(last_work, tokio::time::timeout(POSTGRES_TIMEOUT, recording));
        match recorded {
            Ok(Ok(())) => self.store.withdraw_word().await,
            Ok(Err(error)) => tracing::debug!(%error, "can't store the last acknowledged positions"),
            Err(_) => tracing::debug!("can't store the last acknowledged positions: PostgreSQL does not answer"),
        }
        done
    }

    async fn check_redis(&self) {
        // At once: a server that hangs must not delay the checks of the others.
        join_all(self.store.all().map(|here| async move {
            // `check` itself logs what it finds.
            if let Err(error) = self.store.check(here).await {
                tracing::debug!(partition = here.0, %error, "a partition is unavailable");
            }
        }))
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(max_backlog: i64) -> DurabilityConfig {
        DurabilityConfig { max_backlog, ..DurabilityConfig::default() }
    }

    fn at(seq: i64) -> Position {
        Position { epoch: 1, seq }
    }

    #[test]
    fn writes_shed_until_a_tenth_of_the_room_is_free() {
        let durability = Durability::new(&config(100));
        for (backlog, sheds) in
            [(0, false), (99, false), (100, true), (99, true), (90, true), (89, false), (99, false), (250, true)]
        {
            assert_eq!(durability.sheds(backlog), sheds, "{backlog}");
        }
    }

    #[test]
    fn smallest_backlog_sheds_and_recovers() {
        let durability = Durability::new(&config(1));
        assert!(durability.sheds(1));
        assert!(!durability.sheds(0));
    }

    #[test]
    fn projection_stalls_when_decisions_wait_and_nothing_comes() {
        let durability = Durability::new(&config(100));
        let (stalled, second) = (STALLED_AFTER.as_micros() as u64, 1_000_000);
        // Partition 0 has nothing to project, 1 makes progress, 2 does not.
        let record = |projected: i64, now_us| {
            let partitions =
                [(Partition(0), at(5), at(5)), (Partition(1), at(90), at(projected)), (Partition(2), at(9), at(8))];
            durability.record_progress(&partitions, now_us);
        };
        record(1, second);
        assert_eq!(durability.stalls(stalled), []);
        record(2, stalled);
        assert_eq!(durability.stalls(stalled + second), [(Partition(2), STALLED_AFTER)]);
        assert_eq!(
            durability.stalls(2 * stalled),
            [(Partition(1), STALLED_AFTER), (Partition(2), STALLED_AFTER * 2 - Duration::from_secs(1))]
        );
    }

    #[test]
    fn stall_ends_when_projected_or_partition_gone() {
        let durability = Durability::new(&config(100));
        durability.record_progress(&[(Partition(0), at(2), at(1)), (Partition(1), at(2), at(1))], 0);
        let later = 2 * STALLED_AFTER.as_micros() as u64;
        assert_eq!(durability.stalls(later).len(), 2);
        durability.record_progress(&[(Partition(0), at(2), at(2))], later);
        assert_eq!(durability.stalls(later), []);
    }
}
