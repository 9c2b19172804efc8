//! The only code that writes to Postgres: it carries each partition's outbox there, in order, exactly once.
//!
//! A batch is one transaction, which also moves the partition's position with `WHERE` it stands where this projector read
//! from. A projector that was overtaken changes nothing and starts over from the new position. Only what is committed is
//! trimmed from the stream. An event that can't be applied becomes a dead letter ([`dead_letters`]); Postgres being away is waited out.
//!
//! After the commit and before the trim, so that a crash between two steps is made good by the next reading: with many
//! partitions, an order's end is carried to stock that it held in other partitions ([`relay`]); and Redis lets go what is over
//! ([`evict`]).

pub mod apply;
pub mod batch;
mod commit;
pub mod dead_letters;
mod drain;
pub mod evict;
pub mod relay;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::anyhow;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};

use self::commit::Read;
use crate::{
    config::{ProjectorConfig, Retention},
    model::{
        Clock, Error, Partition, Position,
        event::{self, Event},
    },
    postgres::{self, queries::resources::ProjectedPosition},
    redis::{Store, outbox::StreamId},
    telemetry::metrics,
    worker::Workers,
};

/// How long one reading of an idle outbox waits.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// The first and the longest pause after a failure.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How many times longer than at first a transaction is waited for at most.
const MAX_TIMEOUT_FACTOR: u32 = 64;
/// How often idempotency records whose life is over are removed, and how many at most.
const RECORD_CLEANUP_INTERVAL: Duration = Duration::from_secs(1);
const RECORD_CLEANUP_BATCH: i64 = 20_000;

/// Carries outboxes to Postgres.
#[derive(Clone)]
pub struct Projector {
    store: Store,
    db: DatabaseConnection,
    clock: Clock,
    /// Events per transaction.
    batch: usize,
    /// How many events there were in an entry lately, on average.
    per_entry: Arc<AtomicUsize>,
    /// What passes after a transaction that had room left, before the next.
    linger: Duration,
    /// How long a transaction may take before its connection counts as dead, if no longer one was needed before.
    timeout: Duration,
    /// How long what is over stays in Redis.
    retention: Retention,
}

/// A partition that is followed, as long as it is.
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

/// What a batch came to.
struct Step {
    /// Entries committed.
    projected: usize,
    /// Whether there may have been more of them.
    more: bool,
    /// Whether everything committed was relayed, let go where it is over, and trimmed.
    relayed: Result<(), Failure>,
}

/// Why a batch was not committed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Another projector moved the position meanwhile.
    #[error("overtaken by another projector")]
    Superseded,
    /// The outbox lacks decisions that were taken: Redis lost them. Nothing more is projected from this partition.
    #[error(
        "the outbox of partition {partition} goes from ({epoch}, {seq}) to ({found_epoch}, {found_seq}): decisions are lost, \
         from Redis or from a PostgreSQL that was restored to an earlier state"
    )]
    Gap {
        partition: u16,
        epoch: i64,
        seq: i64,
        found_epoch: i64,
        found_seq: i64,
        /// Of what was found.
        request_id: String,
    },
    /// What comes next was written by a newer program, and waits for one.
    #[error("the next event was written by a newer version of this program")]
    NewerVersion,
    /// Redis or Postgres is away.
    #[error("{0}")]
    Unavailable(String),
    /// A connection that nobody answers on any more, and that nobody closes: where the other machine is gone, or a firewall
    /// has forgotten it. Or a Postgres that needs longer.
    #[error("PostgreSQL has not answered for {0:?}")]
    Timeout(Duration),
}

impl Failure {
    /// As a label of the metrics.
    fn kind(&self) -> &'static str {
        match self {
            Failure::Superseded => "superseded",
            Failure::Gap { .. } => "gap",
            Failure::NewerVersion => "newer_version",
            Failure::Unavailable(_) => "unavailable",
            Failure::Timeout(_) => "timeout",
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Unavailable(error.to_string())
    }
}

impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        Failure::Unavailable(error.to_string())
    }
}

impl Projector {
    /// `patience` is how long a transaction may take before its connection counts as dead; `keep` how long what is over stays in
    /// Redis.
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
        Projector { store, db, clock, batch, per_entry: Arc::new(AtomicUsize::new(1)), linger, timeout, retention }
    }

    /// Starts to project: a worker per partition, and one that removes ended idempotency records.
    pub fn follow(&self, workers: &Workers) {
        for here in self.store.all() {
            let this = self.clone();
            workers.spawn("projector", move || {
                let this = this.clone();
                async move { this.follow_one(here).await }
            });
        }
        let this = self.clone();
        workers.every("record_cleanup", RECORD_CLEANUP_INTERVAL, move || {
            let this = this.clone();
            async move {
                match tokio::time::timeout(this.timeout, this.forget_records()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "ended idempotency records stay a while"),
                    Err(_) => tracing::debug!("ended idempotency records stay a while: no answer"),
                }
            }
        });
    }

    /// Removes idempotency records whose life is over, a bounded number at a time.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn forget_records(&self) -> Result<u64, DbErr> {
        let sql = "DELETE FROM idempotency_records WHERE (partition, digest) IN (
                       SELECT partition, digest FROM idempotency_records
                       WHERE expires_at <= to_timestamp($1 / 1000.0) LIMIT $2)";
        let values = [self.clock.now().0.into(), RECORD_CLEANUP_BATCH.into()];
        Ok(self.db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?.rows_affected())
    }

    /// Projects one partition for ever.
    async fn follow_one(&self, here: Partition) {
        let _following = Following::begin();
        let last_step = metrics::PROJECTOR_LAST_STEP.with_label_values(&[here.0.to_string().as_str()]);
        let mut pause = MIN_BACKOFF;
        let mut patience = self.timeout;
        // Since when it waits for a store that is away, and what it has carried since that is back.
        let mut waiting: Option<(Instant, usize)> = None;
        loop {
            // Dropping a step half way is safe: what is not committed did not happen, and what is not trimmed is skipped.
            let step = self.step(here, IDLE_WAIT, patience).await.and_then(|step| {
                if step.projected > 0 { Ok((step.projected, step.more)) } else { step.relayed.map(|()| (0, false)) }
            });
            if let Err(failure) = &step {
                metrics::PROJECTOR_FAILURES.with_label_values(&[failure.kind()]).inc();
            }
            match step {
                Ok((carried, more)) => {
                    last_step.set(metrics::now_seconds());
                    pause = MIN_BACKOFF;
                    patience = self.timeout;
                    if carried > 0 && !more {
                        tokio::time::sleep(self.linger).await;
                    }
                    if let Some((since, entries)) = &mut waiting {
                        *entries += carried;
                        if !more {
                            let seconds = since.elapsed().as_secs_f64();
                            tracing::info!(partition = here.0, entries, seconds, "the projection has caught up");
                            waiting = None;
                        }
                    }
                }
                Err(Failure::Superseded) => tracing::debug!(partition = here.0, "overtaken by another projector"),
                Err(failure) => {
                    tracing::warn!(partition = here.0, %failure, "the projection waits");
                    if let Failure::Timeout(_) = failure {
                        // It may also be slow: no batch is ever too large.
                        patience = (patience * 2).min(self.timeout * MAX_TIMEOUT_FACTOR);
                    }
                    waiting.get_or_insert((Instant::now(), 0));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    /// Projects until every outbox is empty, with no waiting for more.
    ///
    /// # Errors
    /// Redis or Postgres is away, or decisions are lost.
    pub async fn drain(&self) -> anyhow::Result<()> {
        for here in self.store.all() {
            loop {
                match self.step(here, Duration::ZERO, self.timeout * MAX_TIMEOUT_FACTOR).await {
                    Ok(Step { projected: 0, relayed, .. }) => break relayed.map_err(|failure| anyhow!(failure))?,
                    Ok(_) | Err(Failure::Superseded) => {}
                    Err(failure) => return Err(anyhow!(failure)),
                }
            }
        }
        Ok(())
    }

    /// The same projector, letting this pass after a transaction that had room left.
    pub fn lingering(self, linger: Duration) -> Self {
        Projector { linger, ..self }
    }

    /// The same projector on the same store, whose partitions are known by now.
    pub fn on(self, store: Store) -> Self {
        Projector { store, ..self }
    }

    /// Projects what the outbox of one partition has, as far as that goes: up to a gap, and without relaying what other
    /// partitions can't take now. Returns what there is of a gap.
    ///
    /// # Errors
    /// Redis or Postgres is away, or a newer program has been here.
    pub async fn project(&self, here: Partition) -> anyhow::Result<Option<String>> {
        loop {
            match self.step(here, Duration::ZERO, self.timeout * MAX_TIMEOUT_FACTOR).await {
                Ok(Step { projected: 0, .. }) => return Ok(None),
                Err(gap @ Failure::Gap { .. }) => return Ok(Some(gap.to_string())),
                Ok(_) | Err(Failure::Superseded) => {}
                Err(failure) => return Err(anyhow!(failure)),
            }
        }
    }

    /// Takes the outboxes for new ones, whose entries' ids may be lower than any before, and which go on from these positions, by
    /// partition: for a rebuild, after it has emptied them.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn rewind(&self, positions: &[Position]) -> Result<(), DbErr> {
        let sql = "UPDATE projection_positions AS p SET stream_id = '0-0', epoch = new.epoch, seq = new.seq
                   FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS new (epoch, seq, nth)
                   WHERE p.partition = new.nth - 1";
        let column = |value: fn(&Position) -> i64| positions.iter().map(value).collect::<Vec<i64>>();
        let values = [column(|position| position.epoch).into(), column(|position| position.seq).into()];
        self.db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await.map(drop)
    }

    /// One batch: read, commit, relay, trim. A relay that fails (another partition is away) keeps its events in the outbox,
    /// and does not keep the next ones from Postgres.
    async fn step(&self, here: Partition, wait: Duration, patience: Duration) -> Result<Step, Failure> {
        let from = self.position(here).await?;
        let last: StreamId = from.stream_id.parse().map_err(|error| Failure::Unavailable(format!("{error}")))?;
        let mut relayed = self.finish_after_restart(here, last).await;
        let count = self.entries_per_read();
        let mut entries = self.store.outbox_after(here, last, count, wait).await?;
        if let Some(newer) = entries.iter().position(|entry| event::is_newer(&entry.fields)) {
            entries.truncate(newer);
            if newer == 0 {
                return Err(Failure::NewerVersion);
            }
        }
        let Some(end) = entries.last().map(|entry| entry.id) else {
            if let Some(gap) = self.missing(here, &from, last).await? {
                return Err(self.stop_at(here, gap).await?);
            }
            return Ok(Step { projected: 0, more: false, relayed });
        };
        let mut read = Read::all(&entries);
        self.per_entry.store(read.len().div_ceil(entries.len()), Ordering::Relaxed);
        match self.commit(here, &from, &mut read, patience).await {
            // What lacks may have been committed and trimmed by another projector since we read the position.
            Err(Failure::Gap { epoch, seq, .. }) if self.position(here).await?.at() != (epoch, seq) => {
                return Err(Failure::Superseded);
            }
            Err(gap @ Failure::Gap { .. }) => return Err(self.stop_at(here, gap).await?),
            done => done?,
        }
        // A trim takes everything before it along.
        if relayed.is_ok() {
            relayed = self.after_commit(here, &read, end).await;
        }
        Ok(Step { projected: entries.len(), more: entries.len() >= count, relayed })
    }

    /// Freezes a partition at a gap, which is returned.
    async fn stop_at(&self, here: Partition, gap: Failure) -> Result<Failure, Failure> {
        if let Failure::Gap { request_id, .. } = &gap {
            tracing::error!(partition = here.0, request_id, %gap, "the projection stops here");
        }
        self.store.freeze(here, &gap.to_string()).await?;
        Ok(gap)
    }

    /// What an outbox lacks that has nothing after `from`, where its partition has decided more: a Postgres that was restored to
    /// an earlier state shows so before anything else is decided.
    async fn missing(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        last: StreamId,
    ) -> Result<Option<Failure>, Failure> {
        let (epoch, seq) = from.at();
        let books = self.store.partition_state(here).await?;
        let open = books.frozen.is_none() && !books.rebuilding;
        let Some(decided) = books.position.filter(|decided| open && *decided > Position { epoch, seq }) else {
            return Ok(None);
        };
        // Decided since the outbox was read, or committed and trimmed by another projector.
        if !self.store.outbox_after(here, last, 1, Duration::ZERO).await?.is_empty() {
            return Ok(None);
        }
        if self.position(here).await?.at() != (epoch, seq) {
            return Err(Failure::Superseded);
        }
        let (found_epoch, found_seq, request_id) = (decided.epoch, decided.seq, String::new());
        Ok(Some(Failure::Gap { partition: here.0, epoch, seq, found_epoch, found_seq, request_id }))
    }

    /// As many as have about as many events as one transaction takes.
    fn entries_per_read(&self) -> usize {
        (self.batch / self.per_entry.load(Ordering::Relaxed).max(1)).max(1)
    }

    /// What was committed before but not relayed and trimmed, by an earlier projector or by this one.
    async fn finish_after_restart(&self, here: Partition, last: StreamId) -> Result<(), Failure> {
        loop {
            let left = self.store.outbox_until(here, last, self.batch).await?;
            let Some(end) = left.last().map(|entry| entry.id) else { return Ok(()) };
            self.after_commit(here, &Read::all(&left), end).await?;
        }
    }

    async fn after_commit(&self, here: Partition, read: &[Read<'_>], end: StreamId) -> Result<(), Failure> {
        let postgres = (&self.db, self.timeout);
        let events: Vec<&Event> = read.iter().filter_map(|read| read.event.as_ref().ok()).collect();
        relay::relay(&self.store, postgres, here, &events).await?;
        evict::evict(&self.store, postgres, self.retention, here, &events).await?;
        self.store.outbox_trim(here, end).await?;
        Ok(())
    }

    async fn position(&self, here: Partition) -> Result<ProjectedPosition, Failure> {
        let reading = tokio::time::timeout(self.timeout, postgres::queries::resources::positions(&self.db)).await;
        let positions = reading.map_err(|_| Failure::Timeout(self.timeout))??;
        let missing = || Failure::Unavailable(format!("PostgreSQL has no position of partition {}", here.0));
        let position = positions.into_iter().find(|position| position.partition == here.0).ok_or_else(missing)?;
        self.store.observe_projection(here, position.projection());
        Ok(position)
    }
}
