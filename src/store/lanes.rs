//! The connections to Redis.
//!
//! deadpool-redis makes them. The hot path shares a few of them, the *lanes* of each server: multiplexed connections on which
//! concurrent requests pipeline by themselves (a checkout from the pool costs a PING each time; see `docs/decisions.md` for
//! the measurement). Blocking reads take a connection of their own from the pool.
//!
//! Making a connection is a large future, and every request contains it: so it is in a box of its own, which only the one in
//! a million that makes a connection has to allocate (docs/decisions.md, "What a request weighs").
//!
//! A lane that broke is replaced by the next request that needs it; the request that found it broken is answered
//! "unavailable", never sent again: it may have run.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};

use super::{
    keys::Partition,
    topology::{Connecting, Node, Topology},
};
use crate::{config::RedisConfig, domain::Error, metrics};

/// How long a failed attempt to connect stands for those that come after it.
const FAILURE_SHARED: Duration = Duration::from_millis(200);

/// The shared connections.
pub struct Lanes {
    connecting: Connecting,
    topology: RwLock<Arc<Topology>>,
    /// A server was not where it was thought to be: look again before the next command.
    astray: AtomicBool,
    /// Held by the one request that looks; when the last look found nothing.
    looking: tokio::sync::Mutex<Option<Instant>>,
    next: AtomicUsize,
    /// Called when there is a new connection, or another server: what is behind it may not be what was there before.
    changed: Box<dyn Fn() + Send + Sync>,
}

/// One shared connection of a server.
#[derive(Default)]
pub(super) struct Lane {
    /// The connection, and how many there were up to it.
    current: RwLock<(u64, Option<MultiplexedConnection>)>,
    /// Held by the one request that makes the new connection; when the last attempt failed.
    connecting: tokio::sync::Mutex<Option<Instant>>,
}

/// Which connection a command went over, to report how it went. As long as there is one, its command counts as under way.
pub struct Ticket {
    node: Arc<Node>,
    lane: usize,
    generation: u64,
}

impl Ticket {
    fn new(node: Arc<Node>, lane: usize, generation: u64) -> Self {
        metrics::REDIS_CALLS.inc();
        Ticket { node, lane, generation }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        metrics::REDIS_CALLS.dec();
    }
}

/// Connections of a kind: how many there are, and may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    pub there: usize,
    pub most: usize,
}

impl std::iter::Sum for Connections {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Connections::default(), |sum, one| Connections {
            there: sum.there + one.there,
            most: sum.most + one.most,
        })
    }
}

impl Lanes {
    /// Finds the servers and connects to them.
    ///
    /// # Errors
    /// A URL that is none; Redis that can't be reached.
    pub async fn connect(config: &RedisConfig, changed: impl Fn() + Send + Sync + 'static) -> anyhow::Result<Self> {
        let connecting = Connecting::new(config)?;
        let topology = connecting.discover(None).await?;
        Ok(Lanes {
            connecting,
            topology: RwLock::new(Arc::new(topology)),
            astray: AtomicBool::new(false),
            looking: tokio::sync::Mutex::new(None),
            next: AtomicUsize::new(0),
            changed: Box::new(changed),
        })
    }

    /// The server that `partition` is on.
    async fn node(&self, partition: Partition) -> Result<Arc<Node>, Error> {
        if self.astray.load(Ordering::Acquire) {
            Box::pin(self.find_servers()).await?;
        }
        self.current().home(partition).cloned().ok_or_else(nowhere)
    }

    async fn find_servers(&self) -> Result<(), Error> {
        let mut failed = self.looking.lock().await;
        if !self.astray.load(Ordering::Acquire) {
            return Ok(());
        }
        fail_fast(*failed)?;
        let before = self.current();
        match self.connecting.discover(Some(&before)).await {
            Ok(found) => {
                *self.topology.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
                (self.changed)();
                self.astray.store(false, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "no server of Redis can be reached");
                *failed = Some(Instant::now());
                Err(Error::unavailable("no connection to Redis"))
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
    pub async fn get(&self, partition: Partition) -> Result<(Ticket, MultiplexedConnection), Error> {
        let node = self.node(partition).await?;
        let lane = self.next.fetch_add(1, Ordering::Relaxed) % node.lanes.len();
        let (generation, link) = match node.lanes[lane].link() {
            Some(found) => found,
            None => Box::pin(self.open(&node, &node.lanes[lane])).await?,
        };
        Ok((Ticket::new(node, lane, generation), link))
    }

    async fn open(&self, node: &Node, lane: &Lane) -> Result<(u64, MultiplexedConnection), Error> {
        let mut failed = lane.connecting.lock().await;
        if let Some(found) = lane.link() {
            return Ok(found);
        }
        fail_fast(*failed)?;
        let fresh = node.pool.get().await.map_err(|error| {
            tracing::warn!(%error, "no connection to Redis");
            metrics::REDIS_CONNECT_FAILURES.inc();
            *failed = Some(Instant::now());
            self.astray.store(true, Ordering::Release);
            Error::unavailable("no connection to Redis")
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
            self.astray.store(true, Ordering::Release);
            Error::unavailable("no connection to Redis")
        })
    }

    /// The connections that there are: the lanes, the spare ones, those for blocking reads.
    pub(super) fn connections(&self) -> [(&'static str, Connections); 3] {
        let topology = self.current();
        let of = |count: fn(&Node) -> Connections| topology.nodes().iter().map(|node| count(node)).sum();
        [
            ("lane", of(Node::open_lanes)),
            ("pool", of(|node| status(&node.pool))),
            ("blocking", of(|node| status(&node.blocking))),
        ]
    }

    /// Takes note of how a command went: a lane that broke is given up, a server that is not where it was is looked for,
    /// and the error becomes the domain's.
    pub fn settle<T>(&self, ticket: &Ticket, result: RedisResult<T>) -> Result<T, Error> {
        result.map_err(|error| {
            if error.is_unrecoverable_error() || error.is_connection_dropped() || error.is_io_error() {
                let lane = &ticket.node.lanes[ticket.lane];
                let mut current = lane.current.write().unwrap_or_else(PoisonError::into_inner);
                // A timeout is no proof that the connection is dead, but one that is never answers again.
                if current.0 == ticket.generation && current.1.take().is_some() {
                    metrics::REDIS_BROKEN.inc();
                }
            }
            self.translate(error)
        })
    }

    /// Whether Redis can't answer now (503), or we asked for something wrong (500).
    pub(super) fn translate(&self, error: RedisError) -> Error {
        if error.is_cluster_error() {
            self.astray.store(true, Ordering::Release);
        }
        let unavailable = match error.kind() {
            ErrorKind::Io | ErrorKind::AuthenticationFailed => true,
            _ => is_not_now(&error) || error.is_unrecoverable_error() || error.is_timeout(),
        };
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

/// With what a server says that it can't work now, whatever it was asked: nothing has run. `NOSCRIPT`: forgotten again between
/// loading and calling.
const NOT_NOW: &[&str] = &[
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNKILLABLE",
];

/// Whether a server refused for a reason of its own. A pipeline's error has no code, only those of its commands.
pub(super) fn is_not_now(error: &RedisError) -> bool {
    let refused = error.clone().into_server_errors();
    refused.iter().flat_map(|errors| errors.iter()).any(|(_, error)| NOT_NOW.contains(&error.code()))
}

/// Those that waited for an attempt which failed share its failure, rather than each waiting for one of their own.
fn fail_fast(failed: Option<Instant>) -> Result<(), Error> {
    match failed {
        Some(at) if at.elapsed() < FAILURE_SHARED => Err(Error::unavailable("no connection to Redis")),
        _ => Ok(()),
    }
}

impl Node {
    fn open_lanes(&self) -> Connections {
        let there = self.lanes.iter().filter(|lane| lane.link().is_some()).count();
        Connections { there, most: self.lanes.len() }
    }
}

fn status(pool: &deadpool_redis::Pool) -> Connections {
    let status = pool.status();
    Connections { there: status.size, most: status.max_size }
}

impl Lane {
    fn link(&self) -> Option<(u64, MultiplexedConnection)> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.1.clone().map(|link| (current.0, link))
    }
}
