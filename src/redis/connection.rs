//! The connections to Redis.
//!
//! deadpool-redis opens them. The hot path uses a few *shared connections* per server: multiplexed connections on which
//! concurrent requests pipeline (a checkout from a pool costs a PING each time; `docs/decisions.md` has the measurement).
//! Blocking reads check out a connection of their own.
//!
//! The future that opens a connection is large, and the future of every request would contain it. It is boxed, so that only
//! the rare request that opens a connection allocates it (docs/decisions.md, "The size of a request").
//!
//! The next request replaces a broken connection. The request that found it broken gets "unavailable" and is never resent: its
//! command may have run.
//!
//! A server that reports that it is not the right one, a demoted master for example, becomes *stale*: all its connections are
//! dropped, and the next request discovers the servers again. A node of a cluster that does not answer, or no longer has a
//! partition, is *suspect*: requests of its partitions wait for a discovery, those of other nodes do not. See [`Means`].

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use redis::{RedisError, RedisResult, aio::MultiplexedConnection};

use super::{
    server_error::Means,
    settings::NotMaster,
    topology::{Connecting, Node, Topology},
};
use crate::{
    config::RedisConfig,
    model::{Error, Partition},
    telemetry::metrics,
};

/// The time for which concurrent requests share the failure of an attempt to connect.
const FAILURE_SHARED_FOR: Duration = Duration::from_millis(200);
/// The minimum interval between discoveries: a cluster takes seconds to elect a master.
const DISCOVERY_INTERVAL: Duration = Duration::from_millis(100);
/// The minimum age of a server's connections before the server may become stale. Bounds how often connections are replaced
/// while a server keeps refusing.
const MIN_AGE: Duration = Duration::from_millis(500);
/// The same, after an error that the right server may also return.
const MIN_AGE_WHEN_AMBIGUOUS: Duration = Duration::from_secs(5);
/// The index of a connection that is not shared.
const NOT_SHARED: usize = usize::MAX;
/// The error of a request without a connection.
const NO_CONNECTION: &str = "no connection to Redis";

/// The shared connections.
pub struct SharedConnections {
    connecting: Connecting,
    topology: RwLock<Arc<Topology>>,
    /// The topology is outdated: discover the servers before the next command.
    outdated: AtomicBool,
    /// Held by the request that discovers the servers: the last discovery, if there was one since the start.
    discovery: tokio::sync::Mutex<Option<Discovery>>,
    next: AtomicUsize,
    /// Called after every new connection and every change of the servers: the data behind them may be other data.
    changed: Box<dyn Fn() + Send + Sync>,
}

/// A discovery that has ended.
struct Discovery {
    at: Instant,
    failure: Option<String>,
}

/// One shared connection of a server.
#[derive(Default)]
pub(super) struct SharedConnection {
    /// The generation and the connection.
    current: RwLock<(u64, Option<MultiplexedConnection>)>,
    /// Held by the request that opens a connection; the time of the last failure.
    connecting: tokio::sync::Mutex<Option<Instant>>,
}

/// The connection of a command, to which the command's result is reported. The command counts as running while the handle
/// exists.
pub struct ConnectionHandle {
    pub(super) node: Arc<Node>,
    index: usize,
    generation: u64,
}

impl ConnectionHandle {
    fn new(node: Arc<Node>, index: usize, generation: u64) -> Self {
        metrics::REDIS_CALLS.inc();
        ConnectionHandle { node, index, generation }
    }

    /// Of a connection that is not shared.
    pub(super) fn dedicated(node: Arc<Node>) -> Self {
        ConnectionHandle::new(node, NOT_SHARED, 0)
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        metrics::REDIS_CALLS.dec();
    }
}

/// The number of open connections of a kind, and its maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCount {
    pub open: usize,
    pub max: usize,
}

impl std::iter::Sum for ConnectionCount {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(ConnectionCount::default(), |sum, one| ConnectionCount {
            open: sum.open + one.open,
            max: sum.max + one.max,
        })
    }
}

impl SharedConnections {
    /// Discovers the servers, also by those that `running` knows, and connects to them.
    ///
    /// # Errors
    /// The URL is invalid, or Redis can't be reached.
    pub async fn connect(
        config: &RedisConfig,
        running: Option<&SharedConnections>,
        changed: impl Fn() + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let connecting = Connecting::new(config)?;
        let known = running.map(|running| connecting.unconnected(&running.current())).transpose()?;
        let topology = connecting.discover(known.as_ref()).await?;
        Ok(SharedConnections {
            connecting,
            topology: RwLock::new(Arc::new(topology)),
            outdated: AtomicBool::new(false),
            discovery: tokio::sync::Mutex::new(None),
            next: AtomicUsize::new(0),
            changed: Box::new(changed),
        })
    }

    /// The server of `partition`.
    pub(super) async fn node(&self, partition: Partition) -> Result<Arc<Node>, Error> {
        if self.outdated.load(Ordering::Acquire) && self.current().owner(partition).is_none_or(|node| node.is_suspect())
        {
            let found: BoxFuture<'_, _> = Box::pin(self.find_servers());
            found.await?;
        }
        self.current().owner(partition).cloned().ok_or_else(|| {
            self.outdated.store(true, Ordering::Release);
            no_owner()
        })
    }

    async fn find_servers(&self) -> Result<(), Error> {
        let mut last = self.discovery.lock().await;
        if !self.outdated.load(Ordering::Acquire) {
            return Ok(());
        }
        let before = self.current();
        match last.as_ref() {
            Some(Discovery { at, failure: Some(why) }) if at.elapsed() < FAILURE_SHARED_FOR => {
                return Err(Error::unavailable(why.clone()));
            }
            // A server that is left at once does not wait.
            Some(Discovery { at, failure: None }) if at.elapsed() < DISCOVERY_INTERVAL && !before.has_stale() => {
                return Ok(());
            }
            _ => {}
        }
        match self.connecting.discover(Some(&before)).await {
            Ok(found) => {
                let moved = !found.is_same(&before);
                found.nodes().iter().for_each(|node| node.clear_suspicion());
                *self.topology.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
                if moved {
                    (self.changed)();
                }
                self.outdated.store(false, Ordering::Release);
                *last = Some(Discovery { at: Instant::now(), failure: None });
                Ok(())
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "no Redis server can be used");
                let why = error.downcast_ref::<NotMaster>().map_or(NO_CONNECTION.to_owned(), NotMaster::to_string);
                *last = Some(Discovery { at: Instant::now(), failure: Some(why.clone()) });
                Err(Error::unavailable(why))
            }
        }
    }

    fn current(&self) -> Arc<Topology> {
        self.topology.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The index of the server of `partition` in the current topology.
    pub(super) fn server_of(&self, partition: Partition) -> Result<usize, Error> {
        self.current().place(partition).ok_or_else(no_owner)
    }

    /// A shared connection to the server of `partition`.
    pub async fn get(&self, partition: Partition) -> Result<(ConnectionHandle, MultiplexedConnection), Error> {
        let node = self.node(partition).await?;
        let index = self.next.fetch_add(1, Ordering::Relaxed) % node.shared.len();
        let (generation, link) = match node.shared[index].link() {
            Some(found) => found,
            None => {
                let opened: BoxFuture<'_, _> = Box::pin(self.open(&node, &node.shared[index]));
                opened.await?
            }
        };
        Ok((ConnectionHandle::new(node, index, generation), link))
    }

    async fn open(&self, node: &Node, shared: &SharedConnection) -> Result<(u64, MultiplexedConnection), Error> {
        let mut failed = shared.connecting.lock().await;
        if let Some(found) = shared.link() {
            return Ok(found);
        }
        fail_fast(*failed)?;
        let fresh = node.pool.get().await.map_err(|error| {
            tracing::warn!(%error, "no connection to Redis");
            metrics::REDIS_CONNECT_FAILURES.inc();
            *failed = Some(Instant::now());
            self.suspect(node);
            Error::unavailable(NO_CONNECTION)
        })?;
        let link = deadpool_redis::Connection::take(fresh);
        metrics::REDIS_CONNECTED.inc();
        // Before any request can use it.
        (self.changed)();
        let mut current = shared.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = (current.0 + 1, Some(link.clone()));
        Ok((current.0, link))
    }

    /// Checks out a connection to the server of `partition` without a response timeout, for blocking reads.
    pub(super) async fn blocking(
        &self,
        partition: Partition,
    ) -> Result<(Arc<Node>, deadpool_redis::Connection), Error> {
        let node = self.node(partition).await?;
        let link = node.blocking.get().await.map_err(|_| {
            self.suspect(&node);
            Error::unavailable(NO_CONNECTION)
        })?;
        Ok((node, link))
    }

    /// Opens a connection to a server that belongs to no pool and has no response timeout.
    pub(super) async fn open_detached(&self, node: &Node) -> Result<MultiplexedConnection, Error> {
        let opened = node.blocking.get().await.map_err(|_| {
            self.suspect(node);
            Error::unavailable(NO_CONNECTION)
        })?;
        Ok(deadpool_redis::Connection::take(opened))
    }

    /// How long Redis may take to reply.
    pub(super) fn timeout(&self) -> Duration {
        self.connecting.timeout()
    }

    /// Makes the next request of this server's partitions discover the servers. Its connections stay.
    fn suspect(&self, node: &Node) {
        node.suspect();
        self.outdated.store(true, Ordering::Release);
    }

    /// Marks a server as stale and drops its connections: the next request discovers the servers again. Running commands keep
    /// their connection, and are not resent. Does nothing if the connections are new.
    pub(super) fn mark_stale(&self, node: &Node) {
        self.mark_stale_if_older(node, MIN_AGE);
    }

    fn mark_stale_if_older(&self, node: &Node, age: Duration) {
        if node.age() >= age && node.mark_stale() {
            tracing::warn!(server = %node.address(), "dropped a Redis server: discovering the servers again");
            metrics::REDIS_SERVERS_LEFT.inc();
            self.outdated.store(true, Ordering::Release);
        }
    }

    /// Asks the Sentinels, if there are any, for the master, and marks every other server as stale.
    pub(super) async fn follow_sentinels(&self) {
        match self.connecting.master_of_sentinels().await {
            None => {}
            Some(Err(error)) => tracing::warn!(error = format!("{error:#}"), "the Sentinels name no master"),
            Some(Ok(master)) => {
                let topology = self.current();
                let others = topology.nodes().iter().filter(|node| *node.address() != master);
                let others: Vec<_> = others.filter(|node| !node.is_stale()).collect();
                if others.is_empty() {
                    return;
                }
                match self.connecting.check_named(&master).await {
                    Ok(()) => others.into_iter().for_each(|node| self.mark_stale(node)),
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "the Sentinels name no master"),
                }
            }
        }
    }

    /// Whether Sentinels name the server.
    pub(super) fn has_sentinels(&self) -> bool {
        self.connecting.has_sentinels()
    }

    /// The numbers of shared connections, of connections of the pool, and of connections for blocking reads.
    pub(super) fn connections(&self) -> [(&'static str, ConnectionCount); 3] {
        let topology = self.current();
        let of = |count: fn(&Node) -> ConnectionCount| topology.nodes().iter().map(|node| count(node)).sum();
        [
            ("shared", of(Node::open_connections)),
            ("pool", of(|node| status(&node.pool))),
            ("blocking", of(|node| status(&node.blocking))),
        ]
    }

    /// Handles the result of a command: drops a broken connection, marks a wrong server as stale, and translates the error.
    pub fn settle<T>(&self, handle: &ConnectionHandle, result: RedisResult<T>) -> Result<T, Error> {
        result.map_err(|error| {
            let means = Means::of(&error);
            self.react(&handle.node, means);
            if means == Means::BrokenConnection {
                match handle.node.shared.get(handle.index) {
                    // The idle ones are probably broken as well.
                    None => handle.node.dedicated.clear(),
                    Some(shared) => {
                        let mut current = shared.current.write().unwrap_or_else(PoisonError::into_inner);
                        // A connection that timed out may be alive, but a dead one would never answer again.
                        if current.0 == handle.generation && current.1.take().is_some() {
                            metrics::REDIS_BROKEN.inc();
                        }
                    }
                }
            }
            self.translate(error)
        })
    }

    /// Handles an error of a blocking read.
    pub(super) fn settle_blocking(&self, node: &Node, error: RedisError) -> Error {
        self.react(node, Means::of(&error));
        self.translate(error)
    }

    /// What an error means for its server.
    fn react(&self, node: &Node, means: Means) {
        match means {
            // The cluster may elect another master. Outside of a cluster, the address leads to it.
            Means::BrokenConnection if self.current().is_cluster() => self.suspect(node),
            Means::OtherPlace => self.suspect(node),
            Means::OtherServer => self.mark_stale(node),
            Means::PerhapsOtherServer => self.mark_stale_if_older(node, MIN_AGE_WHEN_AMBIGUOUS),
            _ => {}
        }
    }

    /// Translates an error: Redis is unavailable (503), or the command was wrong (500).
    pub(super) fn translate(&self, error: RedisError) -> Error {
        let means = Means::of(&error);
        if means == Means::Forbidden {
            // The next command checks the permissions first.
            (self.changed)();
        }
        let unavailable = means != Means::Wrong;
        metrics::REDIS_ERRORS.with_label_values(&[if unavailable { "unavailable" } else { "refused" }]).inc();
        if unavailable {
            tracing::warn!(%error, "Redis is unavailable");
            Error::unavailable("Redis is unavailable")
        } else {
            Error::Internal(anyhow::Error::new(error).context("Redis refused a command"))
        }
    }
}

fn no_owner() -> Error {
    Error::unavailable("no server has this partition")
}

/// Fails at once after a recent failure, so that waiting requests share it instead of each waiting for an attempt of its own.
fn fail_fast(failed: Option<Instant>) -> Result<(), Error> {
    match failed {
        Some(at) if at.elapsed() < FAILURE_SHARED_FOR => Err(Error::unavailable(NO_CONNECTION)),
        _ => Ok(()),
    }
}

impl Node {
    fn open_connections(&self) -> ConnectionCount {
        let open = self.shared.iter().filter(|shared| shared.link().is_some()).count();
        ConnectionCount { open, max: self.shared.len() }
    }
}

fn status(pool: &deadpool_redis::Pool) -> ConnectionCount {
    let status = pool.status();
    ConnectionCount { open: status.size, max: status.max_size }
}

impl SharedConnection {
    fn link(&self) -> Option<(u64, MultiplexedConnection)> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.1.clone().map(|link| (current.0, link))
    }
}
