//! Fencing: checks a partition before it is used, and freezes it if Redis has lost acknowledged decisions.
//!
//! The check covers the identity of the deployment, the server's settings and permissions, the layout of the data, and the
//! partition's position, which must not be behind any position that this process or PostgreSQL knows as acknowledged.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::future::{BoxFuture, join_all};
use redis::{RedisError, RedisResult, Value, aio::MultiplexedConnection};

use super::{
    LAYOUT, Store, aof_rewrite,
    connection::ConnectionHandle,
    keys::Keys,
    partition_state::{FreezeCause, Meta, behind, meta_fields, read_meta, state_lost},
    permissions,
    progress::{Checked, PartitionLoss, State, Watermark},
    roll_call::{self, RECENT, RollCall, VERIFIED_FOR},
    server_error::Means,
    settings::{Replicas, ServerInfo, ServerSettings},
};
use crate::{
    config::{Ack, RedisDurability, ReplicaAck},
    model::{Error, Millis, Partition, Position, Projection},
    telemetry::metrics,
};

/// The time for which concurrent requests share the result of a check that failed or found the partition closed.
const CHECK_SHARED_FOR: Duration = Duration::from_millis(200);

/// PostgreSQL's knowledge of a partition: its own progress, and the position that any process has reported as acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct ReportedProgress {
    pub partition: Partition,
    pub projected: Projection,
    pub acknowledged: Position,
}

/// Reads the progress of all partitions from PostgreSQL; empty if PostgreSQL is unavailable.
pub type ProgressSource = Box<dyn Fn() -> BoxFuture<'static, Vec<ReportedProgress>> + Send + Sync>;

/// The start of the reason why a partition waits for a roll call.
const WAITS_FOR_WORDS: &str =
    "the partition has moved to another server, and waits for what these processes acknowledged";

/// The requirements of the checks.
pub(super) struct Guard {
    /// The id of the deployment.
    store: String,
    durability: RedisDurability,
    pub ack: Ack,
    progress_source: ProgressSource,
}

/// The servers checked since the last new connection: run id, and number of accepted settings that may lose decisions.
#[derive(Default)]
pub(super) struct KnownServers(Mutex<HashMap<String, usize>>);

impl KnownServers {
    pub(super) fn has(&self, run_id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(run_id)
    }

    fn add(&self, run_id: String, problems: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(run_id, problems);
    }

    fn problems(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Store {
    /// Checks the settings and permissions of every server, before the first write.
    ///
    /// # Errors
    /// A server that can't be used, missing permissions, or settings that `durability` does not accept. Those that it accepts
    /// although they may lose acknowledged decisions cause a warning.
    pub async fn check_settings(&self, durability: RedisDurability) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        for here in self.all() {
            let (handle, mut link) = self.shared_connections().get(here).await?;
            let checked = check_server_settings(&mut link, self.replica_ack()).await;
            let (server, replicas, settings) = self.shared_connections().settle(&handle, checked)?;
            if let Some(missing) = self
                .shared_connections()
                .settle(&handle, permissions::lacking(&mut link, here, self.replica_ack()).await)?
            {
                anyhow::bail!(missing);
            }
            if !seen.insert(server.run_id.clone()) {
                continue;
            }
            if let Some(why) = server.unusable(&replicas.role) {
                anyhow::bail!(why);
            }
            if let Some(ack) = self.replica_ack() {
                replicas.check(&server, ack).with_context(|| handle.node.address().to_string())?;
            }
            settings.log(durability);
            if let Some(reason) = settings.refusal(durability) {
                anyhow::bail!("{reason}. {}", settings.remedy());
            }
        }
        Ok(())
    }

    /// Enables the checks: from then on no unchecked partition is used. Only the first call counts.
    pub fn guard(&self, store: &str, durability: RedisDurability, ack: Ack, progress_source: ProgressSource) {
        let guard = Guard { store: store.to_owned(), durability, ack, progress_source };
        let _ = self.shared.guard.set(guard);
    }

    /// The reason why Redis refuses all writes of an open partition, by the last check.
    pub fn no_writes(&self, here: Partition) -> Option<String> {
        self.watermark(here).no_writes()
    }

    /// Asks the Sentinels for the master, and marks any other server as stale. Without Sentinels, never returns.
    pub async fn follow_sentinels(&self) {
        match self.shared_connections().has_sentinels() {
            true => self.shared_connections().follow_sentinels().await,
            false => std::future::pending().await,
        }
    }

    /// Checks a partition now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason why the partition can't be used.
    pub async fn check(&self, here: Partition) -> Result<(), Error> {
        if self.shared.guard.get().is_none() {
            return Ok(());
        }
        let (handle, mut link) = self.shared_connections().get(here).await?;
        self.check_over(here, &handle, &mut link).await
    }

    /// Checks partitions at a start or a stop, all at once. Waits while other processes may still give their words, at most
    /// [`RECENT`], and while a server rewrites its append-only file. Returns the result of each, as [`Store::check`].
    pub async fn check_patiently(
        &self,
        partitions: impl Iterator<Item = Partition>,
    ) -> Vec<(Partition, Result<(), Error>)> {
        join_all(partitions.map(async |here| (here, self.check_until_heard(here).await))).await
    }

    async fn check_until_heard(&self, here: Partition) -> Result<(), Error> {
        loop {
            let checked = self.check(here).await;
            if checked.is_ok() || !self.watermark(here).checking.lock().await.opens_soon {
                return checked;
            }
            tokio::time::sleep(CHECK_SHARED_FOR).await;
        }
    }

    /// Checks a partition now, over this connection.
    ///
    /// # Errors
    /// As [`Store::check`].
    pub(super) async fn check_over(
        &self,
        here: Partition,
        handle: &ConnectionHandle,
        link: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        let Some(guard) = self.shared.guard.get() else { return Ok(()) };
        let mut checked = self.watermark(here).checking.lock().await;
        self.examine(guard, here, (handle, link), &mut checked).await
    }

    /// Checks a partition whose last check is too old for an acknowledgement.
    pub(super) async fn verify(&self, here: Partition) -> Result<(), Error> {
        match self.watermark(here).verified_for() > VERIFIED_FOR {
            true => Box::pin(self.check(here)).await,
            false => Ok(()),
        }
    }

    /// Admits a command to an open partition. Checks the partition first if it is not known to be open.
    pub(super) async fn admit(
        &self,
        here: Partition,
        handle: &ConnectionHandle,
        link: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        let Some(guard) = self.shared.guard.get() else { return Ok(()) };
        let watermark = self.watermark(here);
        if watermark.is_open() {
            return Ok(());
        }
        Box::pin(async {
            let mut checked = watermark.checking.lock().await;
            let is_recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < CHECK_SHARED_FOR);
            match watermark.state() {
                State::Open => Ok(()),
                State::Closed(reason) if is_recent(checked.found_closed) => Err(Error::unavailable(reason)),
                State::Unchecked if is_recent(checked.failed) => Err(Error::unavailable("Redis can't answer")),
                _ => self.examine(guard, here, (handle, link), &mut checked).await,
            }
        })
        .await
    }

    /// Runs a check and records its result.
    async fn examine(
        &self,
        guard: &Guard,
        here: Partition,
        (handle, link): (&ConnectionHandle, &mut MultiplexedConnection),
        checked: &mut Checked,
    ) -> Result<(), Error> {
        let (began, generation) = (Instant::now(), self.watermark(here).begin_check());
        checked.opens_soon = false;
        let due = !self.watermark(here).is_open()
            || checked.permissions_checked.is_none_or(|at| at.elapsed() >= permissions::CHECK_INTERVAL);
        let found = match due {
            true => permissions::lacking(link, here, self.replica_ack()).await,
            false => Ok(None),
        };
        checked.permissions_checked = if due { found.is_ok().then(Instant::now) } else { checked.permissions_checked };
        let found = match found {
            Ok(None) => self.find(guard, here, (handle, link), checked).await,
            Ok(Some(missing)) => Ok(State::Closed(missing)),
            Err(error) => Err(error),
        };
        let result = match &found {
            Err(_) => "failed",
            Ok(State::Closed(_)) => "closed",
            Ok(_) => "open",
        };
        metrics::PARTITION_CHECKS.with_label_values(&[result]).inc();
        checked.failed = found.is_err().then(Instant::now);
        let state = self.shared_connections().settle(handle, found)?;
        checked.found_closed = matches!(state, State::Closed(_)).then(Instant::now);
        let before = self.watermark(here).end_check(generation, state.clone());
        match state {
            State::Closed(reason) => {
                if before != State::Closed(reason.clone()) {
                    tracing::error!(partition = here.0, reason, "a partition is closed");
                }
                Err(Error::unavailable(reason))
            }
            _ => {
                if self.no_writes(here).is_none() {
                    self.watermark(here).verify(began);
                }
                if matches!(before, State::Closed(_)) && self.watermark(here).is_open() {
                    tracing::info!(partition = here.0, "a partition is open again");
                }
                Ok(())
            }
        }
    }

    /// Reads the server and the partition, and derives the partition's state.
    async fn find(
        &self,
        guard: &Guard,
        here: Partition,
        (handle, link): (&ConnectionHandle, &mut MultiplexedConnection),
        checked: &mut Checked,
    ) -> Result<State, RedisError> {
        let watermark = self.watermark(here);
        // Load before the read: the partition must have everything acknowledged so far.
        let mut acknowledged = watermark.acknowledged();
        let mut read = redis::pipe();
        read.cmd("INFO").arg("server");
        read.cmd("INFO").arg("replication");
        read.cmd("TIME");
        read.add_command(meta_fields(here));
        // A write that changes nothing: Redis refuses it if it refuses all writes.
        read.cmd("ZADD").arg(Keys(here).never()).arg("XX").arg(0).arg("never");
        let (sent_at, began) = (self.clock().own(), Instant::now());
        let (info, replication, time, found, write): CheckReplies = read.ignore_errors().query_async(link).await?;
        let received_at = self.clock().own();
        let server = ServerInfo::read(&info?);
        let replicas = Replicas::read(&replication?);
        self.record_replicas(here, replicas.in_sync);
        if let Some(why) = server.unusable(&replicas.role) {
            // New connections may lead to another server.
            self.shared_connections().mark_stale(&handle.node);
            return Ok(State::Closed(why));
        }
        let (seconds, microseconds) = time?;
        let at = Millis(seconds * 1000 + microseconds / 1000);
        watermark.read_clock(at, sent_at, received_at);
        if here == Partition(0) {
            self.clock().correct(watermark.clock_offset_ms());
        }
        let mut found = Meta::read(found?)?;
        self.record_refusal(here, write)?;
        if !self.shared.known_servers.has(&server.run_id) {
            // Another server, a restarted server, or the same one after a lost connection.
            let settings = ServerSettings::read(link, self.replica_ack()).await?;
            if let Some(reason) = settings.refusal(guard.durability) {
                return Ok(State::Closed(reason));
            }
            if guard.durability == RedisDurability::Checked
                && let Some(reason) = aof_rewrite::complete(link).await?
            {
                checked.opens_soon = true;
                return Ok(State::Closed(reason));
            }
            self.load_progress(guard).await;
            acknowledged = watermark.acknowledged();
            found = read_meta(here, link).await?;
            self.shared.known_servers.add(server.run_id.clone(), settings.accepted_risks(guard.durability));
        }
        if let Some(other) = found.store.as_ref().filter(|store| **store != guard.store) {
            return Ok(State::Closed(format!("this Redis belongs to store {other}, not to {}", guard.store)));
        }
        let history = roll_call::history(&server.run_id, &replicas.replication_id, found.is_lost());
        let writable = watermark.no_writes().is_none();
        let roll = match writable {
            true => self.call_roll(&self.instance().to_string(), here, link, (history, at), checked).await?,
            false if checked.history.as_ref().is_some_and(|(known, _)| *known == history) => RollCall::default(),
            false => return Ok(State::Closed("the partition is on a server that refuses every write".to_owned())),
        };
        acknowledged = acknowledged.max(roll.acknowledged);
        if found.position.is_some_and(|position| position < acknowledged) {
            // The words contain decisions of the time since the reading.
            found = read_meta(here, link).await?;
        }
        let waited = checked.history.as_ref().is_some_and(|(_, since)| since.elapsed() >= RECENT);
        let lost = found.is_lost();
        if let Some(position) = found.position {
            watermark.record_forgotten(position.epoch, found.forgotten, began);
        }
        let Meta { store, position, frozen, layout, .. } = found;
        if lost {
            let reason = frozen.unwrap_or_else(|| state_lost(here));
            let RollCall { confirmed, silent, draining, .. } = roll;
            let heard: BTreeSet<String> = checked.words_before.keys().chain(checked.words.keys()).cloned().collect();
            // The word of a process that has only just started says nothing of the time before.
            let witnessed = checked.used && checked.words_before.contains_key(&self.instance().to_string());
            let loss = PartitionLoss {
                reason: reason.clone(),
                found: position,
                confirmed,
                silent,
                heard,
                witnessed,
                draining,
                waited,
            };
            watermark.set_loss(Some(loss));
            return Ok(State::Closed(reason));
        }
        watermark.set_loss(None);
        let (Some(_), Some(position)) = (store, position) else {
            return Ok(State::Closed(format!("the state of partition {} in Redis is incomplete", here.0)));
        };
        if let Some(reason) = frozen {
            return Ok(State::Closed(reason));
        }
        if !watermark.is_open()
            && let Some(reason) = permissions::foreign_keys(link, here).await?
        {
            return Ok(State::Closed(reason));
        }
        if layout != Some(LAYOUT) {
            return Ok(State::Closed("Redis is as another version of this program keeps it".to_owned()));
        }
        if position < acknowledged {
            let reason = behind(here, position, acknowledged);
            self.freeze_over(here, link, &reason, FreezeCause::Loss).await?;
            return Ok(State::Closed(reason));
        }
        if !roll.silent.is_empty() {
            let silent = roll.silent.join(", ");
            checked.opens_soon = !waited;
            if !waited {
                return Ok(State::Closed(format!("{WAITS_FOR_WORDS}: {silent}")));
            }
            if !watermark.is_open() && checked.opened_without != roll.silent {
                checked.opened_without = roll.silent;
                tracing::warn!(
                    partition = here.0,
                    silent,
                    "a partition opens without the word of processes that have ended"
                );
            }
        }
        checked.words_before.clear();
        watermark.advance(position);
        self.cover_ended(here, position, checked);
        checked.used = true;
        Ok(State::Open)
    }

    /// The loss of a partition, as the last check found it; `None` if the partition has lost nothing.
    pub fn loss(&self, here: Partition) -> Option<PartitionLoss> {
        self.watermark(here).loss()
    }

    /// Records whether Redis refuses all writes, by the result of the write that changes nothing.
    fn record_refusal(&self, here: Partition, write: RedisResult<Value>) -> Result<(), RedisError> {
        let refusal = match write {
            Ok(_) => None,
            Err(error) => match Means::of(&error) {
                Means::NotNow | Means::PerhapsOtherServer => Some(format!("Redis refuses every write: {error}")),
                _ => return Err(error),
            },
        };
        let watermark = self.watermark(here);
        if let Some(why) = &refusal
            && watermark.no_writes().is_none()
        {
            tracing::error!(partition = here.0, why, "Redis refuses every write");
        }
        watermark.set_no_writes(refusal);
        Ok(())
    }

    /// Reads the progress of all partitions from PostgreSQL, if it is available.
    async fn load_progress(&self, guard: &Guard) {
        let before = self.projected_positions();
        for reported in (guard.progress_source)().await {
            self.observe_projection(reported.partition, reported.projected, &before);
            self.watermark(reported.partition).advance(reported.acknowledged);
        }
    }

    /// Requires a full check of every partition before its next use, permissions, key types and settings included.
    pub fn recheck_permissions(&self) {
        self.invalidate();
    }

    /// Requires a check of every partition before its next use.
    pub(super) fn invalidate(&self) {
        metrics::PARTITION_INVALIDATIONS.inc();
        self.shared.known_servers.forget();
        self.shared.watermarks.iter().for_each(Watermark::invalidate);
    }

    /// The number of accepted settings of the checked servers that may lose acknowledged decisions.
    pub fn unsafe_settings(&self) -> usize {
        self.shared.known_servers.problems()
    }
}

/// The replies of a check: both sections of `INFO`, the time, `meta`, and the write that changes nothing.
type CheckReplies =
    (RedisResult<String>, RedisResult<String>, RedisResult<(i64, i64)>, RedisResult<Value>, RedisResult<Value>);

/// Reads the server, its role and its settings.
async fn check_server_settings(
    link: &mut MultiplexedConnection,
    ack: Option<ReplicaAck>,
) -> Result<(ServerInfo, Replicas, ServerSettings), RedisError> {
    let mut read = redis::pipe();
    read.cmd("INFO").arg("server");
    read.cmd("INFO").arg("replication");
    let (info, replication): (String, String) = read.query_async(link).await?;
    Ok((ServerInfo::read(&info), Replicas::read(&replication), ServerSettings::read(link, ack).await?))
}
