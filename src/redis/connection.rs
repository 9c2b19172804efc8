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
//! dropped, and the next request discovers the servers again. See [`Means`].

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use redis::{ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};

use super::{
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
    /// Held by the request that discovers the servers; the time and the reason of the last failure.
    discovery: tokio::sync::Mutex<Option<(Instant, String)>>,
    next: AtomicUsize,
    /// Called after every new connection and every discovery: the data behind them may be other data.
    changed: Box<dyn Fn() + Send + Sync>,
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
        if self.outdated.load(Ordering::Acquire) {
            let found: BoxFuture<'_, _> = Box::pin(self.find_servers());
            found.await?;
        }
        self.current().owner(partition).cloned().ok_or_else(no_owner)
    }

    async fn find_servers(&self) -> Result<(), Error> {
        let mut failed = self.discovery.lock().await;
        if !self.outdated.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some((at, why)) = failed.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_SHARED_FOR) {
            tracing::trace!(since = ?at.elapsed(), "the last discovery failed");
            return Err(Error::unavailable(why.clone()));
        }
        let before = self.current();
        match self.connecting.discover(Some(&before)).await {
            Ok(found) => {
                *self.topology.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
                (self.changed)();
                self.outdated.store(false, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "no Redis server can be used");
                let why = error.downcast_ref::<NotMaster>().map_or(NO_CONNECTION.to_owned(), NotMaster::to_string);
                *failed = Some((Instant::now(), why.clone()));
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
            self.outdated.store(true, Ordering::Release);
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
    pub async fn blocking(&self, partition: Partition) -> Result<deadpool_redis::Connection, Error> {
        let node = self.node(partition).await?;
        node.blocking.get().await.map_err(|_| {
            self.outdated.store(true, Ordering::Release);
            Error::unavailable(NO_CONNECTION)
        })
    }

    /// Opens a connection to a server that belongs to no pool and has no response timeout.
    pub(super) async fn open_detached(&self, node: &Node) -> Result<MultiplexedConnection, Error> {
        let opened = node.blocking.get().await.map_err(|_| {
            self.outdated.store(true, Ordering::Release);
            Error::unavailable(NO_CONNECTION)
        })?;
        Ok(deadpool_redis::Connection::take(opened))
    }

    /// How long Redis may take to reply.
    pub(super) fn timeout(&self) -> Duration {
        self.connecting.timeout()
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
                for node in self.current().nodes().iter().filter(|node| *node.address() != master) {
                    self.mark_stale(node);
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
            match Means::of(&error) {
                Means::BrokenConnection => {
                    // The idle ones are probably broken as well.
                    let Some(shared) = handle.node.shared.get(handle.index) else {
                        handle.node.dedicated.clear();
                        return self.translate(error);
                    };
                    let mut current = shared.current.write().unwrap_or_else(PoisonError::into_inner);
                    // A connection that timed out may be alive, but a dead one would never answer again.
                    if current.0 == handle.generation && current.1.take().is_some() {
                        metrics::REDIS_BROKEN.inc();
                    }
                }
                Means::OtherServer => self.mark_stale(&handle.node),
                Means::PerhapsOtherServer => self.mark_stale_if_older(&handle.node, MIN_AGE_WHEN_AMBIGUOUS),
                _ => {}
            }
            self.translate(error)
        })
    }

    /// Translates an error: Redis is unavailable (503), or the command was wrong (500).
    pub(super) fn translate(&self, error: RedisError) -> Error {
        let means = Means::of(&error);
        match means {
            Means::OtherPlace => self.outdated.store(true, Ordering::Release),
            // The next command checks the permissions first.
            Means::Forbidden => (self.changed)(),
            _ => {}
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

/// The meaning of an error for the connection and the server. No command is ever resent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Means {
    /// The command was wrong, or the data has an unexpected type.
    Wrong,
    /// The right server can't run commands now. The command did not run.
    NotNow,
    /// The user lacks a permission. A script may have run in part.
    Forbidden,
    /// The partition is on another server of the cluster, or on none at the moment: discover again, keep the connections.
    OtherPlace,
    /// The server refuses writes, or all commands, for now; another one may have become master. Reconnect, but not too often.
    PerhapsOtherServer,
    /// The server is no master, or does not accept the credentials. Reconnect.
    OtherServer,
    /// The connection is broken. The command may have run.
    BrokenConnection,
}

/// The error codes that concern the server rather than the command (docs/operations.md, "Redis's error codes").
const REFUSALS: &[(&str, Means)] = &[
    // The slot is, or is about to be, on another node; or the cluster has no owner for it.
    ("ASK", Means::OtherPlace),
    ("CLUSTERDOWN", Means::OtherPlace),
    ("MOVED", Means::OtherPlace),
    ("TRYAGAIN", Means::OtherPlace),
    // A replica: demoted, or never a master.
    ("READONLY", Means::OtherServer),
    ("MASTERDOWN", Means::OtherServer),
    // A blocking read on a server that was demoted meanwhile.
    ("UNBLOCKED", Means::OtherServer),
    // The connection is not authenticated: a new one will be.
    ("NOAUTH", Means::OtherServer),
    // The server is cut off from its replicas.
    ("NOREPLICAS", Means::PerhapsOtherServer),
    // The server can't write to its disk.
    ("MISCONF", Means::PerhapsOtherServer),
    // The server has restarted and loads its data.
    ("LOADING", Means::PerhapsOtherServer),
    ("NOPERM", Means::Forbidden),
    ("BUSY", Means::NotNow),
    ("OOM", Means::NotNow),
    ("UNKILLABLE", Means::NotNow),
    // The script was flushed between its loading and the call.
    ("NOSCRIPT", Means::NotNow),
];

impl Means {
    pub(super) fn of(error: &RedisError) -> Means {
        // The error of a pipeline has no code; the errors of its commands have.
        if let Some(errors) = error.clone().into_server_errors() {
            let means = errors.iter().map(|(_, error)| Means::of_code(error.code()));
            return means.max().unwrap_or(Means::Wrong);
        }
        match error.kind() {
            ErrorKind::Io => Means::BrokenConnection,
            ErrorKind::AuthenticationFailed => Means::OtherServer,
            _ if error.is_unrecoverable_error() || error.is_connection_dropped() => Means::BrokenConnection,
            _ => Means::Wrong,
        }
    }

    fn of_code(code: &str) -> Means {
        REFUSALS.iter().find(|(refusal, _)| *refusal == code).map_or(Means::Wrong, |(_, means)| *means)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_codes_of_client_classified() {
        // Codes that do not concern the server: the command was wrong, or they belong to features that are not used.
        let of_commands = ["ERR", "EXECABORT", "CROSSSLOT", "NOTBUSY", "NOSUB"];
        for code in of_commands {
            assert_eq!(Means::of_code(code), Means::Wrong, "{code}");
        }
        let mut codes: Vec<_> = REFUSALS.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), REFUSALS.len(), "a code is there twice");
    }
}
