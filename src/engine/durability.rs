//! The watch over both stores while a process runs: whether each partition still knows all that was told of it, how far
//! Postgres is, and when there is more for Postgres to catch up with than there may be.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Engine;
use crate::{
    config::Ack,
    model::{Error, OrderId, Partition, Position},
    postgres,
    telemetry::metrics,
};

/// How often the partitions are looked at, and Postgres is asked how far it is.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How often Postgres is asked while replies wait for it, where another process carries the decisions there.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// How often the Sentinels, where there are any, are asked for the master.
const SENTINEL_INTERVAL: Duration = Duration::from_secs(1);
/// How long Postgres is waited for when it is asked.
const POSTGRES_TIMEOUT: Duration = Duration::from_secs(5);
/// How long PostgreSQL may get nothing more, though there is more, before `/readyz` says so.
const STALLED: Duration = Duration::from_secs(60);
/// When a write may be repeated whose decision is a dead letter: an operator has to look at it first.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(30);
/// When a write that was shed may try again.
const SHED_RETRY: Duration = Duration::from_secs(2);

/// What must have happened before a write is answered, and how many may be under way.
pub(super) struct Durability {
    ack: Ack,
    pub(super) max_backlog: i64,
    shedding: AtomicBool,
    progress: Mutex<HashMap<Partition, Seen>>,
}

/// How far PostgreSQL was with a partition, and since when it has been there with more to come.
#[derive(Clone, Copy)]
struct Seen {
    projected: Position,
    since_us: u64,
}

impl Durability {
    pub(super) fn new(ack: Ack, max_backlog: i64) -> Self {
        Durability { ack, max_backlog, shedding: AtomicBool::new(false), progress: Mutex::default() }
    }
}

fn refused_by_postgres() -> Error {
    let reason = "PostgreSQL refused the decision: it is a dead letter".to_owned();
    Error::Unavailable { reason, retry_after: DEAD_LETTER_RETRY }
}

impl Engine {
    /// Lets a write begin, unless Postgres has too much to catch up with.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; nothing has happened.
    pub fn admit_write(&self) -> Result<(), Error> {
        let Durability { max_backlog, shedding, .. } = &self.durability;
        let backlog = self.store.backlog();
        // Once it sheds it goes on until there is room worth the name, not for one write at a time.
        let room = if shedding.load(Ordering::Relaxed) { max_backlog - max_backlog / 10 } else { *max_backlog };
        let full = backlog >= room;
        if shedding.swap(full, Ordering::Relaxed) != full {
            match full {
                true => tracing::error!(backlog, max_backlog, "PostgreSQL is too far behind: writes are shed"),
                false => tracing::info!(backlog, "PostgreSQL has caught up: writes are let in again"),
            }
        }
        if full {
            metrics::SHED.with_label_values(&["backlog"]).inc();
            let reason = format!("PostgreSQL is {backlog} decisions behind");
            return Err(Error::Unavailable { reason, retry_after: SHED_RETRY });
        }
        Ok(())
    }

    /// Waits for what has to happen before these decisions are told to whoever asked for them: with `ACK=postgres`, that
    /// Postgres has them. Has no end of its own: the request's time limit is one, and its outcome then unknown.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where Postgres has passed a decision and not got it: it refused it, until its dead letter is applied;
    /// or Redis was rebuilt meanwhile. The outcome is unknown, and a repeat under the request's key tells it.
    pub async fn acknowledge(&self, decided: &[(Partition, Position)]) -> Result<(), Error> {
        if self.durability.ack != Ack::Postgres {
            return Ok(());
        }
        let refused = self.store.wait_projected(decided).await?;
        if !refused.is_empty() && postgres::queries::dead_letters::is_any_dead(&self.db, &refused).await? {
            return Err(refused_by_postgres());
        }
        Ok(())
    }

    /// The same for an order that was placed before, and all that was decided about it in any partition.
    ///
    /// # Errors
    /// As [`Engine::acknowledge`].
    pub(super) async fn acknowledge_order(&self, order: OrderId) -> Result<(), Error> {
        if self.durability.ack == Ack::Postgres
            && self.store.has_dead_letters()
            && postgres::queries::dead_letters::is_about_order(&self.db, order).await?
        {
            return Err(refused_by_postgres());
        }
        Ok(())
    }

    /// Watches until `stop`. `projects`: this process carries the decisions to Postgres itself, and knows how far it is.
    pub fn keep_watch(self: &Arc<Self>, projects: bool, tasks: &TaskTracker, stop: &CancellationToken) {
        // Each store by itself: one that hangs must not keep the other from being looked at.
        let this = self.clone();
        let asks = !projects && this.durability.ack == Ack::Postgres;
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut told = tokio::time::Instant::now();
            loop {
                if asks && this.store.backlog() > 0 {
                    tokio::time::sleep(POLL_INTERVAL).await;
                } else {
                    tokio::time::sleep_until(told + CHECK_INTERVAL).await;
                }
                this.check_postgres().await;
                if told.elapsed() >= CHECK_INTERVAL {
                    told = tokio::time::Instant::now();
                    this.report_to_postgres().await;
                }
            }
        }));
        let this = self.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(CHECK_INTERVAL).await;
                this.check_redis().await;
            }
        }));
        // By itself: Sentinels that do not answer must not keep the master from being looked at.
        let store = self.store.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(SENTINEL_INTERVAL).await;
                store.follow_sentinels().await;
            }
        }));
    }

    /// One look at everything.
    pub async fn check(&self) {
        self.check_postgres().await;
        self.check_redis().await;
        self.report_to_postgres().await;
    }

    /// The partitions of which PostgreSQL has got nothing more for so long, though there is more, that it is no mere delay: whether
    /// it is away, or refuses what it is given, or nobody carries it there. Each as a reason.
    pub fn projection_stalls(&self) -> Vec<String> {
        let progress = self.durability.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.uptime_us();
        let mut stalls: Vec<_> = progress
            .iter()
            .map(|(here, seen)| (here.0, Duration::from_micros(now.saturating_sub(seen.since_us))))
            .filter(|(_, still)| *still >= STALLED)
            .collect();
        stalls.sort_unstable();
        let say = |(here, still): (u16, Duration)| {
            format!(
                "partition {here}: nothing has come to PostgreSQL for {} s, and decisions wait: the projector's log says why",
                still.as_secs()
            )
        };
        stalls.into_iter().map(say).collect()
    }

    /// Takes note of where PostgreSQL is, as far as is known.
    fn record_progress(&self) {
        let now = self.clock.uptime_us();
        let mut progress = self.durability.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.store.acknowledged();
        progress.retain(|here, _| all.iter().any(|(told, _)| told == here));
        for (here, told) in all {
            let projected = self.store.projected_position(here);
            if projected >= told {
                progress.remove(&here);
                continue;
            }
            let seen = progress.entry(here).or_insert(Seen { projected, since_us: now });
            if seen.projected != projected {
                *seen = Seen { projected, since_us: now };
            }
        }
    }

    async fn check_postgres(&self) {
        // A connection that fell silent must not end the watch.
        let reading = tokio::time::timeout(POSTGRES_TIMEOUT, postgres::queries::resources::positions(&self.db)).await;
        match reading.unwrap_or_else(|_| Err(Error::unavailable("PostgreSQL does not answer"))) {
            Ok(positions) => {
                for projected in positions {
                    self.store.observe_projection(Partition(projected.partition), projected.projection());
                }
            }
            Err(error) => tracing::debug!(%error, "nobody knows how far PostgreSQL is"),
        }
        self.record_progress();
    }

    /// For whoever finds a Redis that knows less when nobody is left who was told.
    async fn report_to_postgres(&self) {
        if let Err(error) = postgres::progress::record_acknowledged(&self.db, &self.store.acknowledged()).await {
            tracing::debug!(%error, "how far Redis had decided is not written down");
        }
        // A Postgres that was restored may not know it any more.
        if self.durability.ack == Ack::Redis
            && let Err(error) = postgres::progress::acknowledges_before_postgres(&self.db).await
        {
            tracing::debug!(%error, "what replies wait for is not written down");
        }
    }

    async fn check_redis(&self) {
        for here in self.store.all() {
            // What it finds is logged where it is found.
            if let Err(error) = self.store.check(here).await {
                tracing::debug!(partition = here.0, %error, "a partition can't be used");
            }
        }
    }
}
