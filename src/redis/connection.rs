//! The connections to Redis.
//!
//! deadpool-redis makes them. The hot path shares a few of them, the *lanes* of each server: multiplexed connections on which
//! concurrent requests pipeline by themselves (a checkout from the pool costs a PING each time; see `docs/decisions.md` for
//! the measurement). Blocking reads take a connection of their own from the pool.
//!
//! Making a connection is a large future, and every request contains it: so it is in a box of its own, which only the one in
//! a million that makes a connection has to allocate (docs/decisions.md, "The size of a request").
//!
//! A lane that broke is replaced by the next request that needs it; the request that found it broken is answered
//! "unavailable", never sent again: it may have run.
//!
//! A server that says it is not the right one (a demoted master, for one) is *left*: all its connections are given up and
//! the next request looks for the servers again, over new connections. See [`Means`].

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

/// How long a failed attempt to connect stands for those that come after it.
const FAILURE_SHARED: Duration = Duration::from_millis(200);
/// The age of its connections below which a server is not left: new ones lead to whatever is there now. Bounds how often they
/// are replaced while a server goes on refusing.
const MIN_AGE: Duration = Duration::from_millis(500);
/// The same for a server that may be the right one all the same.
const MIN_AGE_WHEN_AMBIGUOUS: Duration = Duration::from_secs(5);
/// Why a request is refused that finds no connection.
const NO_CONNECTION: &str = "no connection to Redis";

/// The shared connections.
pub struct SharedConnections {
    connecting: Connecting,
    topology: RwLock<Arc<Topology>>,
    /// A server was not where it was thought to be: look again before the next command.
    outdated: AtomicBool,
    /// Held by the one request that looks; when the last look found nothing, and why.
    discovery: tokio::sync::Mutex<Option<(Instant, String)>>,
    next: AtomicUsize,
    /// Called when there is a new connection, or another server: what is behind it may not be what was there before.
    changed: Box<dyn Fn() + Send + Sync>,
}

/// One shared connection of a server.
#[derive(Default)]
pub(super) struct SharedConnection {
    /// The connection, and how many there were up to it.
    current: RwLock<(u64, Option<MultiplexedConnection>)>,
    /// Held by the one request that makes the new connection; when the last attempt failed.
    connecting: tokio::sync::Mutex<Option<Instant>>,
}

/// Which connection a command went over, to report how it went. As long as there is one, its command counts as under way.
pub struct ConnectionHandle {
    pub(super) node: Arc<Node>,
    index: usize,
    generation: u64,
}

impl ConnectionHandle {
    fn new(node: Arc<Node>, lane: usize, generation: u64) -> Self {
        metrics::REDIS_CALLS.inc();
        ConnectionHandle { node, index: lane, generation }
    }
}

impl Drop for ConnectionHandle {
    fn drop(&mut self) {
        metrics::REDIS_CALLS.dec();
    }
}

/// Connections of a kind: how many there are, and may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub open: usize,
    pub max: usize,
}

impl std::iter::Sum for Connections {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Connections::default(), |sum, one| Connections { open: sum.open + one.open, max: sum.max + one.max })
    }
}

impl SharedConnections {
    /// Finds the servers and connects to them.
    ///
    /// # Errors
    /// A URL that is none; Redis that can't be reached.
    pub async fn connect(config: &RedisConfig, changed: impl Fn() + Send + Sync + 'static) -> anyhow::Result<Self> {
        let connecting = Connecting::new(config)?;
        let topology = connecting.discover(None).await?;
        Ok(SharedConnections {
            connecting,
            topology: RwLock::new(Arc::new(topology)),
            outdated: AtomicBool::new(false),
            discovery: tokio::sync::Mutex::new(None),
            next: AtomicUsize::new(0),
            changed: Box::new(changed),
        })
    }

    /// The server that `partition` is on.
    async fn node(&self, partition: Partition) -> Result<Arc<Node>, Error> {
        if self.outdated.load(Ordering::Acquire) {
            let found: BoxFuture<'_, _> = Box::pin(self.find_servers());
            found.await?;
        }
        self.current().owner(partition).cloned().ok_or_else(nowhere)
    }

    async fn find_servers(&self) -> Result<(), Error> {
        let mut failed = self.discovery.lock().await;
        if !self.outdated.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some((at, why)) = failed.as_ref().filter(|(at, _)| at.elapsed() < FAILURE_SHARED) {
            tracing::trace!(since = ?at.elapsed(), "no server was found lately");
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
                tracing::warn!(error = format!("{error:#}"), "no server of Redis can be used");
                let why = error.downcast_ref::<NotMaster>().map_or(NO_CONNECTION.to_owned(), NotMaster::to_string);
                *failed = Some((Instant::now(), why.clone()));
                Err(Error::unavailable(why))
            }
        }
    }

    fn current(&self) -> Arc<Topology> {
        self.topology.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A number for the server that `partition` is on, as far as is known now.
    pub(super) fn server_of(&self, partition: Partition) -> Result<usize, Error> {
        self.current().place(partition).ok_or_else(nowhere)
    }

    /// A connection that leads to `partition`.
    pub async fn get(&self, partition: Partition) -> Result<(ConnectionHandle, MultiplexedConnection), Error> {
        let node = self.node(partition).await?;
        let lane = self.next.fetch_add(1, Ordering::Relaxed) % node.shared.len();
        let (generation, link) = match node.shared[lane].link() {
            Some(found) => found,
            None => {
                let opened: BoxFuture<'_, _> = Box::pin(self.open(&node, &node.shared[lane]));
                opened.await?
            }
        };
        Ok((ConnectionHandle::new(node, lane, generation), link))
    }

    async fn open(&self, node: &Node, lane: &SharedConnection) -> Result<(u64, MultiplexedConnection), Error> {
        let mut failed = lane.connecting.lock().await;
        if let Some(found) = lane.link() {
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
        // Before anybody can use it.
        (self.changed)();
        let mut current = lane.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = (current.0 + 1, Some(link.clone()));
        Ok((current.0, link))
    }

    /// A connection of one's own to where `partition` is, without a response timeout, for blocking reads.
    pub async fn blocking(&self, partition: Partition) -> Result<deadpool_redis::Connection, Error> {
        let node = self.node(partition).await?;
        node.blocking.get().await.map_err(|_| {
            self.outdated.store(true, Ordering::Release);
            Error::unavailable(NO_CONNECTION)
        })
    }

    /// Gives up a server and all its connections: the next request looks for the servers again. Commands that are under way
    /// keep theirs, and are not sent again. Does nothing where the connections are new.
    pub(super) fn mark_stale(&self, node: &Node) {
        self.mark_stale_if_older(node, MIN_AGE);
    }

    fn mark_stale_if_older(&self, node: &Node, age: Duration) {
        if node.age() >= age && node.mark_stale() {
            tracing::warn!(server = %node.address(), "a server of Redis is left, and looked for again");
            metrics::REDIS_SERVERS_LEFT.inc();
            self.outdated.store(true, Ordering::Release);
        }
    }

    /// Asks the Sentinels, where there are any, which server is the master, and leaves the one in use if it is another.
    pub(super) async fn follow_sentinels(&self) {
        match self.connecting.master_of_sentinels().await {
            None => {}
            Some(Err(error)) => tracing::warn!(error = format!("{error:#}"), "the Sentinels can't say who is master"),
            Some(Ok(master)) => {
                for node in self.current().nodes().iter().filter(|node| *node.address() != master) {
                    self.mark_stale(node);
                }
            }
        }
    }

    /// Whether the servers are found through Sentinels.
    pub(super) fn has_sentinels(&self) -> bool {
        self.connecting.has_sentinels()
    }

    /// The connections that there are: the lanes, the spare ones, those for blocking reads.
    pub(super) fn connections(&self) -> [(&'static str, Connections); 3] {
        let topology = self.current();
        let of = |count: fn(&Node) -> Connections| topology.nodes().iter().map(|node| count(node)).sum();
        [
            ("shared", of(Node::open_connections)),
            ("pool", of(|node| status(&node.pool))),
            ("blocking", of(|node| status(&node.blocking))),
        ]
    }

    /// Takes note of how a command went: a lane that broke is given up, a server that is not the right one is left, and the
    /// error becomes the domain's.
    pub fn settle<T>(&self, handle: &ConnectionHandle, result: RedisResult<T>) -> Result<T, Error> {
        result.map_err(|error| {
            match Means::of(&error) {
                Means::BrokenConnection => {
                    let lane = &handle.node.shared[handle.index];
                    let mut current = lane.current.write().unwrap_or_else(PoisonError::into_inner);
                    // A timeout is no proof that the connection is dead, but one that is never answers again.
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

    /// Whether Redis can't answer now (503), or we asked for something wrong (500).
    pub(super) fn translate(&self, error: RedisError) -> Error {
        let means = Means::of(&error);
        match means {
            Means::OtherPlace => self.outdated.store(true, Ordering::Release),
            // Rights are tried again before the next command.
            Means::Forbidden => (self.changed)(),
            _ => {}
        }
        let unavailable = means != Means::Wrong;
        metrics::REDIS_ERRORS.with_label_values(&[if unavailable { "unavailable" } else { "refused" }]).inc();
        if unavailable {
            tracing::warn!(%error, "Redis can't answer");
            Error::unavailable("Redis can't answer")
        } else {
            Error::Internal(anyhow::Error::new(error).context("Redis refused a command"))
        }
    }
}

fn nowhere() -> Error {
    Error::unavailable("no server has this partition")
}

/// What an error says about the way to Redis. Whatever it is, the command is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Means {
    /// The command was wrong, or found something that should not be there.
    Wrong,
    /// The right server, which can't work now. Nothing was carried out.
    NotNow,
    /// The user lacks a right: where a script says so, a part of it may have been carried out.
    Forbidden,
    /// The partition is on another server of the cluster, or on none at the moment: look again, keep the connections.
    OtherPlace,
    /// A server that refuses writes, or everything, for a while: others may have elected another one. New connections, not too
    /// often.
    PerhapsOtherServer,
    /// This server is no master, or does not know us. New connections.
    OtherServer,
    /// The connection is of no use any more: the command may have been carried out.
    BrokenConnection,
}

/// Codes with which a server refuses whatever it is asked, and what they mean. (docs/operations.md, "Redis's error codes".)
const REFUSALS: &[(&str, Means)] = &[
    // The slot is, or is about to be, on another node; or the cluster has no owner for it.
    ("ASK", Means::OtherPlace),
    ("CLUSTERDOWN", Means::OtherPlace),
    ("MOVED", Means::OtherPlace),
    ("TRYAGAIN", Means::OtherPlace),
    // A replica: demoted, or never a master.
    ("READONLY", Means::OtherServer),
    ("MASTERDOWN", Means::OtherServer),
    // A blocking read of a server that was demoted meanwhile.
    ("UNBLOCKED", Means::OtherServer),
    // The connection belongs to nobody: a new one signs in.
    ("NOAUTH", Means::OtherServer),
    // Cut off from its replicas.
    ("NOREPLICAS", Means::PerhapsOtherServer),
    // Its disk fails.
    ("MISCONF", Means::PerhapsOtherServer),
    // Started again, and not ready.
    ("LOADING", Means::PerhapsOtherServer),
    ("NOPERM", Means::Forbidden),
    ("BUSY", Means::NotNow),
    ("OOM", Means::NotNow),
    ("UNKILLABLE", Means::NotNow),
    // Forgotten again between loading and calling.
    ("NOSCRIPT", Means::NotNow),
];

impl Means {
    pub(super) fn of(error: &RedisError) -> Means {
        // A pipeline's error has no code, only those of its commands.
        if let Some(refused) = error.clone().into_server_errors() {
            let means = refused.iter().map(|(_, error)| Means::of_code(error.code()));
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

/// Those that waited for an attempt which failed share its failure, rather than each waiting for one of their own.
fn fail_fast(failed: Option<Instant>) -> Result<(), Error> {
    match failed {
        Some(at) if at.elapsed() < FAILURE_SHARED => Err(Error::unavailable(NO_CONNECTION)),
        _ => Ok(()),
    }
}

impl Node {
    fn open_connections(&self) -> Connections {
        let there = self.shared.iter().filter(|lane| lane.link().is_some()).count();
        Connections { open: there, max: self.shared.len() }
    }
}

fn status(pool: &deadpool_redis::Pool) -> Connections {
    let status = pool.status();
    Connections { open: status.size, max: status.max_size }
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
        // Codes that say nothing about the server: an error of the command, or of a client that we are not.
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
