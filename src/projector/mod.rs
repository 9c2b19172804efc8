//! The projector: applies each partition's outbox to PostgreSQL, in sequence, exactly once. It alone writes decisions
//! to PostgreSQL.
//!
//! A batch is one transaction, which also moves the partition's position, on the condition that the position is still
//! the one that this projector read from. A superseded projector changes nothing, and starts over from the new
//! position. Only committed entries are trimmed from the outbox, and only some time after the commit ([`outbox_retention`]), so that
//! a PostgreSQL that has lost its last commits gets them again. An event that can't be applied becomes a dead letter
//! ([`dead_letters`]). While PostgreSQL is unavailable, the projector retries.
//!
//! After the commit it relays effects to other partitions ([`relay`]), evicts closed orders from Redis ([`evict`]), and
//! marks in Redis how far it has. All are idempotent, so that after a crash the next step repeats them.

pub mod apply;
pub mod batch;
mod commit;
pub mod dead_letters;
mod drain;
mod events;
pub mod evict;
mod expired_records;
mod outbox_retention;
pub mod relay;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::anyhow;
use sea_orm::{DatabaseConnection, DbErr};

pub use self::drain::is_transient;
use self::{
    commit::DecodedDecision,
    events::EventSink,
    outbox_retention::{OutboxRetention, Tails},
};
use crate::{
    config::{ProjectorConfig, Retention},
    model::{
        Clock, Error, Partition, Position,
        event::{self, Event},
    },
    postgres::progress::{self, ProjectedPosition},
    redis::{
        Store,
        outbox::{Relayed, StreamId},
        partition_state::FreezeCause,
    },
    telemetry::metrics,
    worker::{Worker, Workers},
};

/// How long one read of an idle outbox blocks.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// The first and the longest pause after a failure.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The longest pause after a transaction that was not full, unless the linger is longer.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// How many times the configured timeout a transaction may take at most, after earlier timeouts.
const MAX_TIMEOUT_FACTOR: u32 = 64;
/// Projects outboxes to PostgreSQL.
#[derive(Clone)]
pub struct Projector {
    store: Store,
    db: DatabaseConnection,
    clock: Clock,
    /// Events per transaction, at most.
    batch: usize,
    /// The average number of events per entry in the last read.
    per_entry: Arc<AtomicUsize>,
    /// The shortest pause after a transaction that was not full.
    linger: Duration,
    /// How long a transaction may take before its connection counts as dead. Doubles after each timeout.
    timeout: Duration,
    /// How long closed orders stay in Redis.
    retention: Retention,
    /// How long committed entries stay in the outbox, by the configuration.
    config: ProjectorConfig,
    tails: Arc<Tails>,
    /// The events of other systems.
    events: EventSink,
}

/// Counts a followed partition in the metrics until it is dropped.
struct Following(());

impl Following {
    fn begin() -> Self {
        metrics::PROJECTOR_PARTITIONS.inc();
        Following(())
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        metrics::PROJECTOR_PARTITIONS.dec();
    }
}

/// The result of a step.
struct Step {
    /// Entries committed.
    projected: usize,
    /// Whether the outbox may have more entries.
    more: bool,
    /// How long the transactions took.
    took: Duration,
    /// Whether the relay and the eviction of every committed entry, and the trim, succeeded.
    relayed: Result<(), StepError>,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    /// Another projector moved the position meanwhile.
    #[error("superseded by another projector")]
    Superseded,
    /// The outbox lacks decisions: one of the stores lost them. The partition is frozen.
    #[error(
        "the outbox of partition {} goes from ({}, {}) to ({}, {}): decisions are lost, from Redis or from a PostgreSQL that was \
         restored to an earlier state",
        .partition.0, .last.epoch, .last.seq, .found.epoch, .found.seq
    )]
    Gap {
        partition: Partition,
        last: Position,
        found: Position,
        /// The request that decided `found`; empty if unknown.
        request_id: String,
    },
    /// A newer version of the program wrote the next event, and has to project it.
    #[error("the next event was written by a newer version of this program")]
    NewerVersion,
    /// Redis or PostgreSQL is unavailable.
    #[error("{0}")]
    Unavailable(String),
    /// The connection is dead without being closed (a lost machine, a firewall that dropped it), or PostgreSQL is slow.
    #[error("PostgreSQL has not answered for {0:?}")]
    Timeout(Duration),
}

impl StepError {
    /// The label of the metric.
    fn kind(&self) -> &'static str {
        match self {
            StepError::Superseded => "superseded",
            StepError::Gap { .. } => "gap",
            StepError::NewerVersion => "newer_version",
            StepError::Unavailable(_) => "unavailable",
            StepError::Timeout(_) => "timeout",
        }
    }
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        StepError::Unavailable(error.to_string())
    }
}

impl From<DbErr> for StepError {
    fn from(error: DbErr) -> Self {
        StepError::Unavailable(error.to_string())
    }
}

impl Projector {
    /// `timeout`: how long a transaction may take before its connection counts as dead. `retention`: how long closed
    /// orders stay in Redis.
    pub fn new(
        store: Store,
        db: DatabaseConnection,
        clock: Clock,
        config: &ProjectorConfig,
        timeout: Duration,
        retention: Retention,
    ) -> Self {
        let batch = config.projector_batch as usize;
        let linger = Duration::from_millis(config.projector_linger_ms);
        let events = EventSink::new(config.events_keep_days, clock.clone());
        let (config, tails) = (config.clone(), Arc::default());
        Projector {
            store,
            db,
            clock,
            batch,
            per_entry: Arc::new(AtomicUsize::new(1)),
            linger,
            timeout,
            retention,
            config,
            tails,
            events,
        }
    }

    /// Starts the projection: a worker per partition, and one that removes expired idempotency records.
    pub fn follow(&self, workers: &Workers) {
        for here in self.store.all() {
            let this = self.clone();
            workers.spawn(Worker::Projector, move || {
                let this = this.clone();
                async move { this.follow_one(here).await }
            });
        }
        self.keep_removing_expired_records(workers);
        self.keep_purging_events(workers);
    }

    /// Projects one partition for ever.
    async fn follow_one(&self, here: Partition) {
        let _following = Following::begin();
        let last_step = metrics::PROJECTOR_LAST_STEP.with_label_values(&[here.0.to_string().as_str()]);
        let mut backoff = MIN_BACKOFF;
        let mut timeout = self.timeout;
        // The time of the first failure of an outage, and the entries projected since its end.
        let mut outage: Option<(Instant, usize)> = None;
        loop {
            // A step may be cancelled at any point: an open transaction is rolled back, and committed entries are not
            // applied again.
            let step = self.step(here, IDLE_WAIT, timeout).await.and_then(|step| {
                if step.projected == 0 {
                    step.relayed?;
                }
                Ok((step.projected, (!step.more).then(|| self.pause(step.took))))
            });
            if let Err(failure) = &step {
                metrics::PROJECTOR_FAILURES.with_label_values(&[failure.kind()]).inc();
            }
            match step {
                Ok((projected, pause)) => {
                    last_step.set(metrics::now_seconds());
                    backoff = MIN_BACKOFF;
                    timeout = self.timeout;
                    if let Some(pause) = pause.filter(|_| projected > 0) {
                        tokio::time::sleep(pause).await;
                    }
                    if let Some((since, entries)) = &mut outage {
                        *entries += projected;
                        if pause.is_some() {
                            let seconds = since.elapsed().as_secs_f64();
                            tracing::info!(partition = here.0, entries, seconds, "the projection has caught up");
                            outage = None;
                        }
                    }
                }
                Err(failure @ StepError::Superseded) => tracing::debug!(partition = here.0, "{failure}"),
                Err(failure) => {
                    tracing::warn!(partition = here.0, %failure, "the projection waits");
                    if let StepError::Timeout(_) = failure {
                        // PostgreSQL may be slow, and not dead: a batch must not exceed every timeout.
                        timeout = (timeout * 2).min(self.timeout * MAX_TIMEOUT_FACTOR);
                    }
                    outage.get_or_insert((Instant::now(), 0));
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    /// Projects until PostgreSQL has every decision of every outbox.
    ///
    /// # Errors
    /// Redis or PostgreSQL is unavailable, or decisions are lost.
    pub async fn drain(&self) -> anyhow::Result<()> {
        for here in self.store.all() {
            loop {
                match self.step(here, Duration::ZERO, self.timeout * MAX_TIMEOUT_FACTOR).await {
                    Ok(Step { projected: 0, relayed, .. }) => break relayed.map_err(|failure| anyhow!(failure))?,
                    Ok(_) | Err(StepError::Superseded) => {}
                    Err(failure) => return Err(anyhow!(failure)),
                }
            }
        }
        Ok(())
    }

    /// The same projector with another linger.
    pub fn lingering(self, linger: Duration) -> Self {
        Projector { linger, ..self }
    }

    /// The same projector on another [`Store`], which has the number of partitions.
    pub fn on(self, store: Store) -> Self {
        Projector { store, tails: Arc::default(), ..self }
    }

    /// Projects the outbox of one partition, up to a gap. An unavailable partition does not stop it: the relay to that
    /// partition stays undone. Returns the description of the gap, if there is one.
    ///
    /// # Errors
    /// Redis or PostgreSQL is unavailable, or a newer version of the program wrote an event.
    pub async fn project(&self, here: Partition) -> anyhow::Result<Option<String>> {
        loop {
            match self.step(here, Duration::ZERO, self.timeout * MAX_TIMEOUT_FACTOR).await {
                Ok(Step { projected: 0, .. }) => return Ok(None),
                Err(gap @ StepError::Gap { .. }) => return Ok(Some(gap.to_string())),
                Ok(_) | Err(StepError::Superseded) => {}
                Err(failure) => return Err(anyhow!(failure)),
            }
        }
    }

    /// Processes one batch: read, commit, relay, evict, mark, trim. A relay that fails, because another partition is
    /// unavailable, keeps the events in the outbox; later events are still committed.
    async fn step(&self, here: Partition, wait: Duration, timeout: Duration) -> Result<Step, StepError> {
        if self.tails.of(here, |tail| tail.is_unmarked()) {
            let mark = self.store.relayed(here).await?.unwrap_or_default();
            self.tails.of(here, |tail| tail.record_relayed(mark));
        }
        let before = self.tails.of(here, |tail| tail.known());
        let from = self.position(here).await?;
        let last = entry_of(&from)?;
        self.tails.of(here, |tail| tail.observe(&from, last, before, self.clock.uptime_us()));
        let mut relayed = self.finish_committed(here, from.position, last).await;
        let count = self.entries_per_read();
        let mut entries = self.store.outbox_after(here, last, count, wait).await?;
        if let Some(newer) = entries.iter().position(|entry| event::is_newer(&entry.fields)) {
            entries.truncate(newer);
            if newer == 0 {
                return Err(StepError::NewerVersion);
            }
        }
        let Some(end) = entries.last().map(|entry| entry.id) else {
            if let Some(gap) = self.missing(here, &from, last).await? {
                return Err(self.stop_at(here, gap).await?);
            }
            if relayed.is_ok() {
                relayed = self.trim(here, None).await;
            }
            return Ok(Step { projected: 0, more: false, took: Duration::ZERO, relayed });
        };
        let mut read = DecodedDecision::all(&entries);
        self.per_entry.store(read.len().div_ceil(entries.len()), Ordering::Relaxed);
        self.tails.of(here, |tail| tail.measure(&entries));
        let began = Instant::now();
        let to = match self.commit(here, &from, &mut read, timeout).await {
            // Another projector may have committed and trimmed the missing decisions since this one read the position.
            Err(StepError::Gap { last, .. }) if self.position(here).await?.position != last => {
                return Err(StepError::Superseded);
            }
            Err(gap @ StepError::Gap { .. }) => return Err(self.stop_at(here, gap).await?),
            committed => committed?,
        };
        let took = began.elapsed();
        self.tails.of(here, |tail| tail.observe(&to, end, None, self.clock.uptime_us()));
        // Not after a failed relay: the mark and the trim are about every earlier entry.
        if relayed.is_ok() {
            relayed = self.after_commit(here, &read, Relayed { position: to.position, entry: end }).await;
        }
        Ok(Step { projected: entries.len(), more: entries.len() >= count, took, relayed })
    }

    /// The pause after transactions that were not full and took so long: those of all partitions together run for about a quarter of the
    /// time, so the busier PostgreSQL is, the more each one carries.
    fn pause(&self, took: Duration) -> Duration {
        if self.linger.is_zero() {
            return Duration::ZERO;
        }
        let others = u32::from(self.store.partitions()) - 1;
        self.linger.max((4 * took * others).min(MAX_PAUSE))
    }

    /// Freezes a partition at a gap. Returns the gap.
    async fn stop_at(&self, here: Partition, gap: StepError) -> Result<StepError, StepError> {
        if let StepError::Gap { request_id, .. } = &gap {
            tracing::error!(partition = here.0, request_id, %gap, "the projection stops here");
        }
        self.store.freeze(here, &gap.to_string(), FreezeCause::Gap).await?;
        Ok(gap)
    }

    /// The gap of an outbox that has no entry after `from` although the partition has decided more. So a PostgreSQL
    /// that was restored to an earlier state is noticed before the next decision.
    async fn missing(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        last: StreamId,
    ) -> Result<Option<StepError>, StepError> {
        let state = self.store.partition_state(here).await?;
        let open = state.frozen.is_none() && !state.rebuilding;
        let Some(decided) = state.position.filter(|decided| open && *decided > from.position) else {
            return Ok(None);
        };
        // The decision may be newer than the read of the outbox.
        if !self.store.outbox_after(here, last, 1, Duration::ZERO).await?.is_empty() {
            return Ok(None);
        }
        // Another projector may have committed and trimmed the decision.
        if self.position(here).await?.position != from.position {
            return Err(StepError::Superseded);
        }
        Ok(Some(StepError::Gap { partition: here, last: from.position, found: decided, request_id: String::new() }))
    }

    /// The number of entries that have about as many events as one transaction takes.
    fn entries_per_read(&self) -> usize {
        (self.batch / self.per_entry.load(Ordering::Relaxed).max(1)).max(1)
    }

    /// Relays and evicts the entries up to `last`, at `position`, that this projector or an earlier one only committed.
    async fn finish_committed(&self, here: Partition, position: Position, last: StreamId) -> Result<(), StepError> {
        if self.tails.of(here, |tail| tail.is_relayed(position, last)) {
            return Ok(());
        }
        let mark = self.store.relayed(here).await?.unwrap_or_default();
        self.tails.of(here, |tail| tail.record_relayed(mark));
        if self.tails.of(here, |tail| tail.is_relayed(position, last)) {
            return Ok(());
        }
        // The ids of the entries of another epoch tell nothing.
        let mut after = if mark.position.epoch == position.epoch { mark.entry } else { StreamId::ZERO };
        loop {
            let committed = self.store.outbox_between(here, (after, last), self.batch).await?;
            let Some(end) = committed.last().map(|entry| entry.id) else { break };
            self.relay_and_evict(here, &DecodedDecision::all(&committed), false).await?;
            after = end;
        }
        self.trim(here, Some(Relayed { position, entry: last })).await
    }

    /// Relays and evicts committed entries up to `to`, and marks that. Trims what was committed long enough ago.
    async fn after_commit(&self, here: Partition, read: &[DecodedDecision<'_>], to: Relayed) -> Result<(), StepError> {
        let again = self.tails.of(here, |tail| tail.is_relayed(to.position, to.entry));
        self.relay_and_evict(here, read, again).await?;
        self.trim(here, Some(to).filter(|_| !again)).await
    }

    /// `again`: an earlier commit of these entries, which PostgreSQL has lost, was followed by their relay.
    async fn relay_and_evict(
        &self,
        here: Partition,
        read: &[DecodedDecision<'_>],
        again: bool,
    ) -> Result<(), StepError> {
        let events: Vec<&Event> = read.iter().filter_map(|read| read.event.as_ref().ok()).collect();
        if !again {
            relay::relay(&self.store, here, &events).await?;
        }
        Ok(evict::evict(&self.store, (&self.db, self.timeout), self.retention, here, &events).await?)
    }

    /// Writes the mark, if there is one to write, and trims what was committed long enough ago or needs too much memory.
    async fn trim(&self, here: Partition, mark: Option<Relayed>) -> Result<(), StepError> {
        let retention = OutboxRetention::new(&self.config, self.store.partitions());
        let due = self.tails.of(here, |tail| tail.due(retention, self.clock.uptime_us()));
        if mark.is_none() && due.is_none() {
            return Ok(());
        }
        let known = self.tails.of(here, |tail| tail.relayed());
        let Some(entries) = self.store.outbox_mark_and_trim(here, mark, known, due).await? else {
            // A replica has taken the place of its master: it has every decision, but may lack evictions. The next step repeats them.
            self.tails.of(here, |tail| tail.forget_relayed());
            let reason = "Redis lacks what the projection did after its last commits";
            return Err(StepError::Unavailable(reason.to_owned()));
        };
        let unprojected = self.store.partition_backlog(here) as usize / self.per_entry.load(Ordering::Relaxed).max(1);
        self.tails.of(here, |tail| {
            mark.into_iter().for_each(|mark| tail.record_relayed(mark));
            tail.limit(retention, entries.saturating_sub(unprojected));
        });
        Ok(())
    }

    async fn position(&self, here: Partition) -> Result<ProjectedPosition, StepError> {
        let before = self.store.projected_positions();
        let reading = tokio::time::timeout(self.timeout, progress::projected(&self.db)).await;
        let positions = reading.map_err(|_| StepError::Timeout(self.timeout))??;
        let missing = || StepError::Unavailable(format!("PostgreSQL has no position of partition {}", here.0));
        let projected = positions.into_iter().find(|projected| projected.partition == here).ok_or_else(missing)?;
        self.store.observe_projection(here, projected.projection(), &before);
        Ok(projected)
    }
}

/// The entry of the outbox that PostgreSQL's position is at.
fn entry_of(position: &ProjectedPosition) -> Result<StreamId, StepError> {
    position.stream_id.parse().map_err(|error| StepError::Unavailable(format!("{error}")))
}
