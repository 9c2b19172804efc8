//! The look at a partition before it is used: is this Redis still the one, and does it still know all that it said?

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use redis::{RedisError, RedisResult, Value, aio::MultiplexedConnection};

use super::{
    LAYOUT, Store,
    connection::{ConnectionHandle, Means},
    keys::Keys,
    permissions,
    progress::{Checked, State, Watermark},
    script::{self, Invocation},
    settings::{self, Server},
};
use crate::{
    model::{Error, Millis, Partition, Position, Projection},
    telemetry::metrics,
};

/// How long a look that failed, or found the partition closed, stands for those that come after it.
const CHECK_SHARED_FOR: Duration = Duration::from_millis(200);

/// What Postgres knows of a partition: how far it is itself, and how far any process was told that Redis had decided.
#[derive(Clone, Copy, Debug)]
pub struct ReportedProgress {
    pub partition: Partition,
    pub projected: Projection,
    pub acknowledged: Position,
}

/// Asks whoever else knows how far the partitions had decided: Postgres. Nothing where it can't be asked.
pub type ProgressSource = Box<dyn Fn() -> BoxFuture<'static, Vec<ReportedProgress>> + Send + Sync>;

/// What an opened store must stay.
pub(super) struct Guard {
    /// The store's identity.
    store: String,
    /// Whether Redis may be set up in a way that loses what was acknowledged.
    allow_unsafe: bool,
    progress_source: ProgressSource,
}

/// Servers, by run id, whose settings were looked at since the last new connection, and how many of them may lose what was
/// acknowledged.
#[derive(Default)]
pub(super) struct KnownServers(Mutex<HashMap<String, usize>>);

impl KnownServers {
    fn has(&self, run_id: &str) -> bool {
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
    /// Looks at the settings of every server, before anything is written to any.
    ///
    /// # Errors
    /// What has to be changed; with `allow_unsafe` that is a warning, but for a server that can't be used at all.
    pub async fn check_settings(&self, allow_unsafe: bool) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        for here in self.all() {
            let (handle, mut link) = self.shared_connections().get(here).await?;
            let checked = check_server_settings(&mut link).await;
            let (server, role, problems) = self.shared_connections().settle(&handle, checked)?;
            if let Some(missing) =
                self.shared_connections().settle(&handle, missing_permissions(&mut link, here).await)?
            {
                anyhow::bail!(missing);
            }
            if !seen.insert(server.run_id.clone()) {
                continue;
            }
            if let Some(why) = server.unusable(&role) {
                anyhow::bail!(why);
            }
            for problem in &problems {
                tracing::warn!(problem, "Redis may lose what was acknowledged");
            }
            if !problems.is_empty() && !allow_unsafe {
                anyhow::bail!(
                    "Redis may lose what was acknowledged: {}. Change its settings, or accept that with \
                     ALLOW_UNSAFE_REDIS=true",
                    problems.join("; ")
                );
            }
        }
        Ok(())
    }

    /// From here on no partition is used that was not looked at. Once for a store.
    pub fn guard(&self, store: &str, allow_unsafe: bool, witness: ProgressSource) {
        let guard = Guard { store: store.to_owned(), allow_unsafe, progress_source: witness };
        let _ = self.shared.guard.set(guard);
    }

    /// Why Redis refuses every write of an open partition now, as the last look at it found.
    pub fn no_writes(&self, here: Partition) -> Option<String> {
        self.watermark(here).no_writes()
    }

    /// Asks the Sentinels for the master and leaves the one in use if it is another; without Sentinels, never ends.
    pub async fn follow_sentinels(&self) {
        match self.shared_connections().has_sentinels() {
            true => self.shared_connections().follow_sentinels().await,
            false => std::future::pending().await,
        }
    }

    /// Looks at a partition now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason why it may not be used.
    pub async fn check(&self, here: Partition) -> Result<(), Error> {
        let Some(guard) = self.shared.guard.get() else { return Ok(()) };
        let (handle, mut link) = self.shared_connections().get(here).await?;
        let mut checked = self.watermark(here).checking.lock().await;
        self.examine(guard, here, (&handle, &mut link), &mut checked).await
    }

    /// Lets a command through to a partition that may be used.
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
            let lately = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < CHECK_SHARED_FOR);
            match watermark.state() {
                State::Open => Ok(()),
                State::Closed(reason) if lately(checked.found_closed) => Err(Error::unavailable(reason)),
                State::Unchecked if lately(checked.failed) => Err(Error::unavailable("Redis can't answer")),
                _ => self.examine(guard, here, (handle, link), &mut checked).await,
            }
        })
        .await
    }

    async fn examine(
        &self,
        guard: &Guard,
        here: Partition,
        (handle, link): (&ConnectionHandle, &mut MultiplexedConnection),
        checked: &mut Checked,
    ) -> Result<(), Error> {
        let due = !self.watermark(here).is_open()
            || checked.permissions_checked.is_none_or(|tried| tried.elapsed() >= permissions::CHECK_INTERVAL);
        let found = match due {
            true => missing_permissions(link, here).await,
            false => Ok(None),
        };
        checked.permissions_checked = if due { found.is_ok().then(Instant::now) } else { checked.permissions_checked };
        let found = match found {
            Ok(None) => self.find(guard, here, (handle, link)).await,
            Ok(Some(missing)) => Ok(State::Closed(missing)),
            Err(error) => Err(error),
        };
        let result = match &found {
            Err(_) => "failed",
            Ok(State::Closed(_)) => "closed",
            Ok(_) => "open",
        };
        metrics::STORE_LOOKS.with_label_values(&[result]).inc();
        checked.failed = found.is_err().then(Instant::now);
        let state = self.shared_connections().settle(handle, found)?;
        checked.found_closed = matches!(state, State::Closed(_)).then(Instant::now);
        let before = self.watermark(here).set(state.clone());
        match state {
            State::Closed(reason) => {
                if before != State::Closed(reason.clone()) {
                    tracing::error!(partition = here.0, reason, "a partition is closed");
                }
                Err(Error::unavailable(reason))
            }
            _ => {
                if matches!(before, State::Closed(_)) {
                    tracing::info!(partition = here.0, "the partition is open again");
                }
                Ok(())
            }
        }
    }

    /// Whether the partition may be used, as Redis says now.
    async fn find(
        &self,
        guard: &Guard,
        here: Partition,
        (handle, link): (&ConnectionHandle, &mut MultiplexedConnection),
    ) -> Result<State, RedisError> {
        let watermark = self.watermark(here);
        // Before the books are read: they must know it all.
        let mut acknowledged = watermark.acknowledged();
        let mut read = redis::pipe();
        read.cmd("INFO").arg("server");
        read.cmd("INFO").arg("replication");
        read.cmd("TIME");
        read.add_command(read_meta(here));
        // Changes nothing, and is refused where every write is.
        read.cmd("ZADD").arg(Keys(here).never()).arg("XX").arg(0).arg("never");
        type Reply<T> = RedisResult<T>;
        type Replies = (Reply<String>, Reply<String>, Reply<(i64, i64)>, Reply<Value>, Reply<Value>);
        let asked = self.clock().own();
        let (info, replication, time, found, write): Replies = read.ignore_errors().query_async(link).await?;
        let answered = self.clock().own();
        let server = Server::read(&info?);
        if let Some(why) = server.unusable(&settings::role(&replication?)) {
            // New connections may lead to another one.
            self.shared_connections().mark_stale(&handle.node);
            return Ok(State::Closed(why));
        }
        let (seconds, microseconds) = time?;
        watermark.read_clock(Millis(seconds * 1000 + microseconds / 1000), asked, answered);
        if here == Partition(0) {
            self.clock().correct(watermark.clock_offset_ms());
        }
        let mut found: Meta = redis::from_redis_value(found?)?;
        let refused = write.err().map(|error| match Means::of(&error) {
            Means::NotNow | Means::PerhapsOtherServer => Ok(format!("Redis refuses every write: {error}")),
            _ => Err(error),
        });
        let refused = refused.transpose()?;
        if let Some(why) = &refused
            && watermark.no_writes().is_none()
        {
            tracing::error!(partition = here.0, why, "Redis refuses every write");
        }
        watermark.set_no_writes(refused);
        if !self.shared.known_servers.has(&server.run_id) {
            // Another server, another start of it, or the same one after a connection was lost.
            let problems = settings::problems(link).await?;
            if !problems.is_empty() && !guard.allow_unsafe {
                return Ok(State::Closed(format!("Redis may lose what is acknowledged: {}", problems.join("; "))));
            }
            for known in (guard.progress_source)().await {
                self.watermark(known.partition).observe_projection(known.projected);
                self.watermark(known.partition).advance(known.acknowledged);
            }
            acknowledged = watermark.acknowledged();
            found = read_meta(here).query_async(link).await?;
            self.shared.known_servers.add(server.run_id, problems.len());
        }
        let (store, epoch, seq, frozen, layout) = found;
        let (Some(store), Some(epoch), Some(seq)) = (store, epoch, seq) else {
            return Ok(State::Closed(format!("Redis has lost the books of partition {}", here.0)));
        };
        if store != guard.store {
            return Ok(State::Closed(format!("this Redis has store {store}, not {}", guard.store)));
        }
        if let Some(reason) = frozen {
            return Ok(State::Closed(reason));
        }
        if !watermark.is_open()
            && let Some(strangers) = permissions::foreign_keys(link, here).await?
        {
            return Ok(State::Closed(strangers));
        }
        if layout != Some(LAYOUT) {
            return Ok(State::Closed("Redis is as another version of this program keeps it".to_owned()));
        }
        let position = Position { epoch, seq };
        if position < acknowledged {
            let reason = self.freeze_over(here, link, &behind(here, position, acknowledged)).await?;
            return Ok(State::Closed(reason));
        }
        watermark.advance(position);
        Ok(State::Open)
    }

    /// A script decided under a number that was told before: decisions were lost between the two.
    pub(super) async fn lost(
        &self,
        here: Partition,
        link: &mut MultiplexedConnection,
        found: Position,
        acknowledged: Position,
    ) -> Error {
        let reason = behind(here, found, acknowledged);
        tracing::error!(partition = here.0, reason, "a partition is closed");
        self.watermark(here).set(State::Closed(reason.clone()));
        if let Err(error) = self.freeze_over(here, link, &reason).await {
            tracing::error!(partition = here.0, %error, "the partition can't be frozen for others");
        }
        Error::unavailable(reason)
    }

    /// Stops a partition from deciding, everywhere, until a rebuild.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn freeze(&self, here: Partition, reason: &str) -> Result<(), Error> {
        tracing::error!(partition = here.0, reason, "a partition is frozen");
        self.watermark(here).set(State::Closed(reason.to_owned()));
        let (handle, mut link) = self.shared_connections().get(here).await?;
        let frozen = self.freeze_over(here, &mut link, reason).await;
        self.shared_connections().settle(&handle, frozen).map(drop)
    }

    async fn freeze_over(
        &self,
        here: Partition,
        link: &mut MultiplexedConnection,
        reason: &str,
    ) -> Result<String, RedisError> {
        metrics::STORE_FREEZES.inc();
        let freeze = Invocation::new(&script::PARTITION_FREEZE).key(Keys(here).meta()).arg(reason);
        freeze.whole().query_async::<redis::Value>(link).await?;
        Ok(reason.to_owned())
    }

    pub(super) fn watermark(&self, here: Partition) -> &Watermark {
        &self.shared.watermarks[usize::from(here.0) % self.shared.watermarks.len()]
    }

    /// Every partition is to be looked at before it is used again, as after a new connection: rights, types and settings too.
    pub fn recheck_permissions(&self) {
        self.invalidate();
    }

    /// Every partition is to be looked at before it is used again.
    pub(super) fn invalidate(&self) {
        metrics::STORE_DOUBTS.inc();
        self.shared.known_servers.forget();
        self.shared.watermarks.iter().for_each(Watermark::invalidate);
    }

    /// What this process was told of each partition that may be used.
    pub fn acknowledged(&self) -> Vec<(Partition, Position)> {
        let open = self.all().filter(|here| self.watermark(*here).is_open());
        open.map(|here| (here, self.watermark(here).acknowledged())).collect()
    }

    /// Takes note of how far Postgres is.
    pub fn observe_projection(&self, here: Partition, read: Projection) {
        self.watermark(here).observe_projection(read);
    }

    /// How far Postgres is, as far as this process knows.
    pub fn projected_position(&self, here: Partition) -> Position {
        self.watermark(here).projected_position()
    }

    /// Takes note of how far this process carried decisions to Postgres, and of the last one that Postgres refused then (0: none).
    pub fn record_projected(&self, here: Partition, position: Position, last_letter: i64) {
        self.watermark(here).record_projected(position, last_letter);
    }

    /// Waits until all of these were carried to Postgres, as somebody in this process notes. Returns those that may be dead
    /// letters all the same.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where a rebuild ended the epoch of one of them: it may have gone on without it.
    pub async fn wait_projected(&self, decided: &[(Partition, Position)]) -> Result<Vec<(Partition, Position)>, Error> {
        let mut refused = Vec::new();
        for (here, position) in decided {
            let mut projection = self.watermark(*here).projection();
            let passed = projection.wait_for(|projected| projected.position >= *position).await;
            // The sender lives as long as the store.
            let Projection { position: at, last_dead_letter: last_letter } =
                *passed.map_err(|error| Error::Internal(error.into()))?;
            if at.epoch > position.epoch {
                return Err(Error::unavailable("Redis was rebuilt meanwhile, with the decision or without it"));
            }
            if position.seq <= last_letter {
                refused.push((*here, *position));
            }
        }
        Ok(refused)
    }

    /// Whether Postgres has dead letters, as far as this process knows.
    pub fn has_dead_letters(&self) -> bool {
        self.all().any(|here| self.watermark(here).projection().borrow().last_dead_letter > 0)
    }

    /// Settings of the servers looked at by which what was acknowledged may be lost.
    pub fn unsafe_settings(&self) -> usize {
        self.shared.known_servers.problems()
    }

    /// Decisions that Postgres does not have yet, as far as this process knows.
    pub fn backlog(&self) -> i64 {
        self.all().map(|here| self.watermark(here).backlog()).sum()
    }
}

type Meta = (Option<String>, Option<i64>, Option<i64>, Option<String>, Option<i64>);

fn read_meta(here: Partition) -> redis::Cmd {
    let mut read = redis::cmd("HMGET");
    read.arg(Keys(here).meta()).arg(&["store", "epoch", "seq", "frozen", "layout"]);
    read
}

fn behind(here: Partition, found: Position, acknowledged: Position) -> String {
    format!(
        "partition {} of Redis is at ({}, {}), behind ({}, {}) that was told before: decisions that were acknowledged are lost",
        here.0, found.epoch, found.seq, acknowledged.epoch, acknowledged.seq
    )
}

/// The server, its role, and what is wrong with its settings.
async fn check_server_settings(link: &mut MultiplexedConnection) -> Result<(Server, String, Vec<String>), RedisError> {
    let mut read = redis::pipe();
    read.cmd("INFO").arg("server");
    read.cmd("INFO").arg("replication");
    let (info, replication): (String, String) = read.query_async(link).await?;
    let role = settings::role(&replication);
    Ok((Server::read(&info), role, settings::problems(link).await?))
}

/// The sentence about the rights that the user lacks on a partition; `None` where it lacks none.
async fn missing_permissions(link: &mut MultiplexedConnection, here: Partition) -> Result<Option<String>, RedisError> {
    match permissions::missing(link, here).await {
        Ok(missing) => Ok(missing.map(|missing| permissions::reason(&missing))),
        // What it is tried with is itself not allowed: the error says so.
        Err(error) if Means::of(&error) == Means::Forbidden => Ok(Some(permissions::reason(&error.to_string()))),
        Err(error) => Err(error),
    }
}
