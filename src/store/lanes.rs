//! The connections to Redis.
//!
//! deadpool-redis makes them. The hot path shares a few of them, the *lanes*: multiplexed connections on which concurrent
//! requests pipeline by themselves (a checkout from the pool costs a PING each time; see `docs/decisions.md` for the
//! measurement). Blocking reads take a connection of their own from the pool.
//!
//! A lane that broke is replaced by the next request that needs it; the request that found it broken is answered
//! "unavailable", never sent again: it may have run.

use std::{
    sync::{
        RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use deadpool_redis::{Manager, Pool, Timeouts};
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, RedisResult, ServerErrorKind,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};

use super::keys::Partition;
use crate::{config::RedisConfig, domain::Error};

/// Commands that may wait on one lane to be written; beyond it requests wait their turn.
const PIPELINE_BUFFER: usize = 4096;
/// Connections beside the lanes: for blocking reads and administrative work.
const SPARE_CONNECTIONS: usize = 8;

/// The shared connections.
pub struct Lanes {
    lanes: Vec<Lane>,
    next: AtomicUsize,
    pool: Pool,
    blocking: Pool,
}

struct Lane {
    /// The connection, and how many there were before it.
    current: RwLock<(u64, Option<MultiplexedConnection>)>,
    /// Held by the one request that makes the new connection.
    connecting: tokio::sync::Mutex<()>,
}

/// Which connection a command went over, to report how it went.
pub struct Ticket {
    lane: usize,
    generation: u64,
}

impl Lanes {
    /// Makes the lanes' connections.
    ///
    /// # Errors
    /// A URL that is none; Redis that can't be reached.
    pub async fn connect(config: &RedisConfig) -> anyhow::Result<Self> {
        let info = config.redis_url.expose().into_connection_info().context("REDIS_URL is not a Redis URL")?;
        // Off by default in redis 1.x, and worth 40 % and more of the throughput on a real network.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let timeout = Duration::from_millis(config.redis_timeout_ms);
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        let lanes = usize::from(config.redis_lanes.max(1));
        let pool = |settings: AsyncConnectionConfig, size: usize| -> anyhow::Result<Pool> {
            let limits = Timeouts { wait: Some(timeout), create: Some(timeout), recycle: Some(timeout) };
            Ok(Pool::builder(Manager::new_with_config(info.clone(), settings)?)
                .max_size(size)
                .timeouts(limits)
                .runtime(deadpool_redis::Runtime::Tokio1)
                .build()?)
        };
        let this = Lanes {
            lanes: (0..lanes)
                .map(|_| Lane { current: RwLock::new((0, None)), connecting: tokio::sync::Mutex::new(()) })
                .collect(),
            next: AtomicUsize::new(0),
            pool: pool(settings.clone(), lanes + SPARE_CONNECTIONS)?,
            // A blocking read answers when there is something, or after its own BLOCK time.
            blocking: pool(
                settings.set_response_timeout(None),
                usize::from(super::MAX_PARTITIONS) + SPARE_CONNECTIONS,
            )?,
        };
        let (_, mut link) = this.get(Partition(0)).await?;
        redis::cmd("PING").query_async::<String>(&mut link).await?;
        Ok(this)
    }

    /// A connection that leads to `partition`. (All do while there is one server.)
    pub async fn get(&self, _partition: Partition) -> Result<(Ticket, MultiplexedConnection), Error> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        let lane = &self.lanes[index];
        if let Some((generation, link)) = lane.link() {
            return Ok((Ticket { lane: index, generation }, link));
        }
        let _connecting = lane.connecting.lock().await;
        if let Some((generation, link)) = lane.link() {
            return Ok((Ticket { lane: index, generation }, link));
        }
        let fresh = self.pool.get().await.map_err(|error| {
            tracing::warn!(%error, "no connection to Redis");
            Error::unavailable("no connection to Redis")
        })?;
        let link = deadpool_redis::Connection::take(fresh);
        let mut current = lane.current.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *current = (current.0 + 1, Some(link.clone()));
        Ok((Ticket { lane: index, generation: current.0 }, link))
    }

    /// A connection of one's own, without a response timeout, for blocking reads.
    pub async fn blocking(&self) -> Result<deadpool_redis::Connection, Error> {
        self.blocking.get().await.map_err(|_| Error::unavailable("no connection to Redis"))
    }

    /// Takes note of how a command went: a lane that broke is given up, and the error becomes the domain's.
    pub fn settle<T: FromRedisValue>(&self, ticket: &Ticket, result: RedisResult<T>) -> Result<T, Error> {
        result.map_err(|error| {
            if error.is_unrecoverable_error() || error.is_connection_dropped() || error.is_io_error() {
                let lane = &self.lanes[ticket.lane];
                let mut current = lane.current.write().unwrap_or_else(|poisoned| poisoned.into_inner());
                // A timeout is no proof that the connection is dead, but one that is never answers again.
                if current.0 == ticket.generation {
                    current.1 = None;
                }
            }
            translate(error)
        })
    }
}

impl Lane {
    fn link(&self) -> Option<(u64, MultiplexedConnection)> {
        let current = self.current.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        current.1.clone().map(|link| (current.0, link))
    }
}

/// Whether Redis can't answer now (503), or we asked for something wrong (500).
pub(super) fn translate(error: RedisError) -> Error {
    let unavailable = match error.kind() {
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
        ),
        ErrorKind::Extension => matches!(error.code(), Some("OOM" | "MISCONF" | "BUSY" | "NOREPLICAS" | "UNKILLABLE")),
        _ => error.is_unrecoverable_error() || error.is_timeout(),
    };
    if unavailable {
        tracing::warn!(%error, "Redis can't answer");
        Error::unavailable("Redis can't answer")
    } else {
        Error::Internal(anyhow::Error::new(error).context("Redis refused a command"))
    }
}
