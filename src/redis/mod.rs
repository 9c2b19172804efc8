//! The only code that speaks Redis: keys, scripts, the outbox, the rankings.
//!
//! - `address` reads where Redis is, `sentinels` name the master, [`connection`] keeps the connections, `topology` follows a cluster,
//!   `settings` and [`permissions`] check the servers, `server_error` says what their errors mean;
//! - [`keys`] builds every key; [`script`] loads and runs the Lua scripts, [`script_reply`] parses their replies, whose codes are in
//!   [`reply_code`];
//! - [`commands`] has one typed function per script that decides; [`batchable`] runs a script for a batch of concurrent requests,
//!   which `batcher` collects;
//! - [`queries`] are the reads, each one round trip; [`records`] parses what they read;
//! - [`progress`] keeps the positions that this process knows of each partition, which `positions` gives to others; [`fencing`] checks
//!   that Redis still has them, [`partition_state`] freezes a partition that lost some, and `roll_call` asks every process for its
//!   positions when a partition has moved to another server;
//! - [`leases`] say which processes serve while PostgreSQL is away, and what they know;
//! - [`request_samples`] are the requests of each process, for every dashboard;
//! - [`replication`] waits for replicas, with `ACK=replica`;
//! - [`outbox`] is the stream that the projector follows; [`retention`] evicts what is final and in PostgreSQL; [`bulk`] writes a
//!   whole store back for a rebuild.
//!
//! It decides nothing itself: the scripts do. The engine knows what a decision means to a client. Depends on `model`, `config` and
//! `telemetry`.

mod address;
mod aof_rewrite;
mod availability;
pub mod batchable;
mod batcher;
pub mod bulk;
pub mod commands;
pub mod connection;
pub mod fencing;
pub mod keys;
pub mod leases;
pub mod outbox;
pub mod partition_state;
pub mod permissions;
mod positions;
pub mod progress;
pub mod queries;
pub mod records;
pub mod replication;
pub mod reply_code;
pub mod request_samples;
pub mod retention;
mod roll_call;
pub mod script;
pub mod script_reply;
mod sentinels;
mod server_error;
mod settings;
mod topology;

pub use availability::is_unavailable;

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use anyhow::{Context, bail};
use parking_lot::RwLock;
use redis::{FromRedisValue, RedisResult, aio::MultiplexedConnection};
use uuid::Uuid;

use self::{
    batchable::ScriptBatcher,
    batcher::Batcher,
    connection::{ConnectionHandle, SharedConnections},
    fencing::{Guard, KnownServers},
    keys::Keys,
    progress::Watermark,
};
use crate::{
    config::{RedisConfig, ReplicaAck},
    model::{Clock, Error, Identity, MAX_PARTITIONS, Millis, Partition, Position, Product, ProductId},
    telemetry::metrics,
};

/// The version of the data's layout in Redis. Every incompatible change increments it; a rebuild writes the current layout.
///
/// 2: a user's coupons are in the user's own hash (before: in a hash of their own).
/// 4: an order's payment is one field beside its receipt (before: five).
pub const LAYOUT: i64 = 4;

/// The error, in ms, with which a process knows a server's clock, which it reads twice a second.
const CLOCK_ERROR_MS: i64 = 1_000;

/// A handle to Redis; clones share the connections.
#[derive(Clone)]
pub struct Store {
    shared: Arc<StoreInner>,
    partitions: u16,
}

struct StoreInner {
    /// The id of this process.
    instance: Uuid,
    connections: SharedConnections,
    /// By partition, for the maximum number of partitions.
    watermarks: Arc<[Watermark]>,
    /// Set when the store is opened: from then on no unchecked partition is used.
    guard: OnceLock<Guard>,
    known_servers: Arc<KnownServers>,
    /// Set with `ACK=replica`: what replies ask of replicas.
    replica_ack: OnceLock<ReplicaAck>,
    /// The operations in progress that take steps in several partitions.
    operations: Operations,
    /// Whether a partition may lack its own sequences of ids.
    lacks_sequences: AtomicBool,
    /// This process's clock.
    clock: OnceLock<Clock>,
    /// Requests that wait for a batch: to decide, and to read.
    batcher: ScriptBatcher,
    commands: Batcher<Partition, redis::Cmd, redis::Value>,
    products: Batcher<Partition, ProductId, Option<Product>>,
}

/// An operation in progress.
#[derive(Clone, Debug)]
pub struct OperationToken(#[expect(dead_code, reason = "held")] Arc<()>);

/// The operations in progress: each holds a clone of the current token.
#[derive(Debug, Default)]
struct Operations(RwLock<Arc<()>>);

impl Operations {
    fn begin(&self) -> OperationToken {
        OperationToken(self.0.read().clone())
    }

    /// Returns the token of the operations in progress; later ones hold another.
    fn replace(&self) -> Arc<()> {
        std::mem::take(&mut *self.0.write())
    }
}

impl Store {
    /// Connects to Redis. [`Store::identity`] reads which deployment it has.
    ///
    /// # Errors
    /// The URL is invalid, or Redis can't be reached.
    pub async fn connect(config: &RedisConfig) -> anyhow::Result<Self> {
        Self::connect_beside(config, None).await
    }

    /// Connects to the Redis of a running store, over connections of its own. The servers that the other one knows help to find
    /// the cluster: the configured one may be gone.
    ///
    /// # Errors
    /// As [`Store::connect`].
    pub async fn connect_again(&self, config: &RedisConfig) -> anyhow::Result<Self> {
        Self::connect_beside(config, Some(self.shared_connections())).await
    }

    async fn connect_beside(config: &RedisConfig, running: Option<&SharedConnections>) -> anyhow::Result<Self> {
        let watermarks: Arc<[Watermark]> = (0..MAX_PARTITIONS).map(|_| Watermark::default()).collect();
        let known = Arc::<KnownServers>::default();
        let (invalidated, forgotten) = (watermarks.clone(), known.clone());
        let connections = SharedConnections::connect(config, running, move || {
            metrics::PARTITION_INVALIDATIONS.inc();
            forgotten.forget();
            invalidated.iter().for_each(Watermark::invalidate);
        })
        .await;
        let connections = connections.context("can't reach Redis at REDIS_URL")?;
        let shared = StoreInner {
            // Newer processes have higher ids.
            instance: Uuid::now_v7(),
            connections,
            watermarks,
            guard: OnceLock::new(),
            known_servers: known,
            replica_ack: OnceLock::new(),
            operations: Operations::default(),
            lacks_sequences: AtomicBool::default(),
            clock: OnceLock::new(),
            batcher: ScriptBatcher::default(),
            commands: Batcher::default(),
            products: Batcher::default(),
        };
        Ok(Store { shared: Arc::new(shared), partitions: 1 })
    }

    /// Sets the process's clock, which is then corrected to the store's. Only the first call counts; the default is the
    /// system's clock.
    pub fn set_clock(&self, clock: &Clock) {
        let _ = self.shared.clock.set(clock.clone());
    }

    fn clock(&self) -> &Clock {
        self.shared.clock.get_or_init(Clock::system)
    }

    /// The time argument of the scripts: empty, because they read their server's clock; in tests, the time of a standing clock.
    fn test_clock(&self) -> String {
        self.clock().standing_at().map(|at| at.0.to_string()).unwrap_or_default()
    }

    /// The time of the partition's server, as far as this process knows: for replies and schedules. Decisions use the server's
    /// own clock.
    pub fn now(&self, here: Partition) -> Millis {
        let clock = self.clock();
        clock.standing_at().unwrap_or_else(|| clock.own().plus(self.watermark(here).clock_offset_ms()))
    }

    /// The earliest and the latest time that the partition's server may have.
    pub fn now_within(&self, here: Partition) -> (Millis, Millis) {
        let now = self.now(here);
        let error_ms = if self.clock().standing_at().is_some() { 0 } else { CLOCK_ERROR_MS };
        (now.plus(-error_ms), now.plus(error_ms))
    }

    /// This process's clock minus the store's in ms. Of several servers, the one with the largest difference counts.
    pub fn clock_offset_ms(&self) -> i64 {
        let offsets = self.all().map(|here| -self.watermark(here).clock_offset_ms());
        offsets.max_by_key(|offset| offset.abs()).unwrap_or(0)
    }

    /// The id of this process: in the roll calls, and where it reports its requests.
    pub fn instance(&self) -> Uuid {
        self.shared.instance
    }

    /// Sets the number of partitions.
    pub fn with_partitions(self, partitions: u16) -> Self {
        Store { partitions: partitions.max(1), ..self }
    }

    /// The number of partitions.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// Every partition.
    pub fn all(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.partitions).map(Partition)
    }

    /// Every partition but this one.
    pub fn all_but(&self, here: Partition) -> impl Iterator<Item = Partition> + use<> {
        self.all().filter(move |other| *other != here)
    }

    /// The owner partition of an id.
    pub fn owner(&self, id: i64) -> Partition {
        Partition((id % i64::from(self.partitions)) as u16)
    }

    /// The owner partition of an idempotency key, by its digest. A user's key has the user's owner partition.
    pub fn owner_of_key(&self, digest: &str) -> Partition {
        if let Some(user) = digest.split_once('-').and_then(|(user, _)| user.parse().ok()) {
            return self.owner(user);
        }
        let spread = digest.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Partition((spread % u64::from(self.partitions)) as u16)
    }

    /// The identity of the deployment in this Redis, which every partition has; `None` if none has a state. One that has lost its
    /// state is left to the check of the partition.
    ///
    /// # Errors
    /// Redis is unavailable, or the partitions contradict each other.
    pub async fn identity(&self) -> anyhow::Result<Option<Identity>> {
        let mut found = None;
        for here in self.all() {
            found = self.meta(here).await?.map(|identity| (here, identity));
            if found.is_some() {
                break;
            }
        }
        let Some((first, identity)) = found else { return Ok(None) };
        for other in (first.0 + 1..identity.partitions).map(Partition) {
            let here = self.meta(other).await?;
            if here.is_some_and(|here| (&here.store, here.partitions) != (&identity.store, identity.partitions)) {
                bail!("partition {} of Redis is not of the same store as partition {}", other.0, first.0);
            }
        }
        Ok(Some(identity))
    }

    /// The id of the deployment, as the first partition that has a state knows it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none can say.
    pub async fn deployment(&self) -> Result<String, Error> {
        for here in self.all() {
            if let Ok(Some(identity)) = self.meta(here).await {
                return Ok(identity.store);
            }
        }
        Err(Error::unavailable("no partition knows the deployment's id"))
    }

    async fn meta(&self, partition: Partition) -> anyhow::Result<Option<Identity>> {
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(partition).meta()).arg(&["store", "partitions", "epoch"]);
        let (store, partitions, epoch): (Option<String>, Option<u16>, Option<i64>) =
            self.query_unchecked(partition, &read).await?;
        match (store, partitions, epoch) {
            (None, None, None) => Ok(None),
            (Some(store), Some(partitions), Some(epoch)) => Ok(Some(Identity { store, partitions, epoch })),
            _ => bail!("{} in Redis is incomplete", Keys(partition).meta()),
        }
    }

    /// Creates the state of every partition that has none. The first partition comes last: its state implies that all exist.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn initialise(&self, identity: &Identity) -> anyhow::Result<()> {
        for partition in (0..identity.partitions).rev().map(Partition) {
            let meta = Keys(partition).meta();
            let mut open = redis::pipe();
            open.atomic();
            for (field, value) in [
                ("store", identity.store.clone()),
                ("partitions", identity.partitions.to_string()),
                ("seq", "0".to_owned()),
                ("layout", LAYOUT.to_string()),
                ("epoch", identity.epoch.to_string()),
            ] {
                open.cmd("HSETNX").arg(&meta).arg(field).arg(value).ignore();
            }
            self.pipe_unchecked::<()>(partition, &open).await?;
        }
        Ok(())
    }

    /// The last decision of a partition, also of a closed one.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also if the partition has no state.
    pub async fn position(&self, partition: Partition) -> Result<Position, Error> {
        let mut read = redis::cmd("HMGET");
        read.arg(Keys(partition).meta()).arg(&["epoch", "seq"]);
        match self.query_unchecked(partition, &read).await? {
            (Some(epoch), Some(seq)) => Ok(Position { epoch, seq }),
            _ => Err(partition_closed()),
        }
    }

    /// Registers an operation that takes steps in several partitions, until the returned token is dropped. A recovery waits for the
    /// operations that began before a loss, because their later steps build on decisions that may be lost. With one partition there
    /// are none.
    #[must_use]
    pub fn begin_operation(&self) -> Option<OperationToken> {
        (self.partitions > 1).then(|| self.shared.operations.begin())
    }

    fn shared_connections(&self) -> &SharedConnections {
        &self.shared.connections
    }

    /// A connection to the server of `partition`, once the partition is admitted.
    async fn connection(&self, partition: Partition) -> Result<(ConnectionHandle, MultiplexedConnection), Error> {
        let (handle, mut link) = self.shared_connections().get(partition).await?;
        self.admit(partition, &handle, &mut link).await?;
        Ok((handle, link))
    }

    /// Runs one command, in one pipeline with concurrent ones.
    async fn query<T: FromRedisValue>(&self, partition: Partition, command: redis::Cmd) -> Result<T, Error> {
        let (receiver, must_run) = self.shared.commands.submit(partition, command, 1);
        if must_run {
            let store = self.clone();
            tokio::spawn(async move {
                store.shared.commands.run(partition, |commands| store.run_commands(partition, commands)).await;
            });
        }
        let value = batcher::reply(receiver).await?;
        T::from_redis_value(value).map_err(|error| self.shared_connections().translate(error.into()))
    }

    async fn run_commands(
        &self,
        partition: Partition,
        commands: Vec<redis::Cmd>,
    ) -> Result<Vec<Result<redis::Value, Error>>, Error> {
        let (handle, mut link) = self.connection(partition).await?;
        metrics::REDIS_PIPELINE.observe(commands.len() as f64);
        let mut pipeline = redis::Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command);
        }
        let results: RedisResult<Vec<RedisResult<redis::Value>>> =
            pipeline.ignore_errors().query_async(&mut link).await;
        let results = self.shared_connections().settle(&handle, results)?;
        Ok(results.into_iter().map(|result| self.shared_connections().settle(&handle, result)).collect())
    }

    /// Runs a pipeline of commands of one partition in one round trip.
    async fn pipe<T: FromRedisValue>(&self, partition: Partition, pipeline: &redis::Pipeline) -> Result<T, Error> {
        let (handle, mut link) = self.connection(partition).await?;
        let result = pipeline.query_async(&mut link).await;
        self.shared_connections().settle(&handle, result)
    }

    /// Runs one command without a check of the partition: for the check itself, and for reads that are valid anyway.
    async fn query_unchecked<T: FromRedisValue>(&self, partition: Partition, command: &redis::Cmd) -> Result<T, Error> {
        let (handle, mut link) = self.shared_connections().get(partition).await?;
        let result = command.query_async(&mut link).await;
        self.shared_connections().settle(&handle, result)
    }

    /// Runs a pipeline without a check of the partition.
    async fn pipe_unchecked<T: FromRedisValue>(
        &self,
        partition: Partition,
        pipeline: &redis::Pipeline,
    ) -> Result<T, Error> {
        let (handle, mut link) = self.shared_connections().get(partition).await?;
        let result = pipeline.query_async(&mut link).await;
        self.shared_connections().settle(&handle, result)
    }
}

/// The partition must not decide: Redis was lost, or is another deployment's, or the partition is frozen.
fn partition_closed() -> Error {
    Error::unavailable("the partition is not open in Redis")
}
