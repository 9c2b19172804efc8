//! The server: TCP connections in, requests to the router.
//!
//! Owns what `axum::serve` has none of: limits on connections (their number, in all and of one client; the time and the size of a
//! request's head, of which hyper takes 100 headers; the time in which a client takes no part of its reply), `TCP_NODELAY`, and
//! an orderly shutdown. The [pipeline](super::middleware::pipeline) has the limits on a request.

mod connection;
pub mod listener;
#[cfg(test)]
mod tests;

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use self::connection::Connections;
use super::limits::{address, connections::ConnectionsPerClient};
use crate::{
    config::{HttpConfig, TrustedProxies},
    telemetry::metrics,
};

/// The limits on connections.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections at a time; more wait in the listener's backlog.
    pub max_connections: usize,
    /// Connections of one client, which is the peer; more are closed at once. 0: no limit.
    pub max_connections_per_client: usize,
    /// Peers with the connections of many clients: not limited.
    pub proxies: TrustedProxies,
    /// From the start of a connection, or the end of its last reply, to the end of a request's head. It bounds idle
    /// connections too.
    pub header_read_timeout: Duration,
    /// How long a client may take no part of what it is sent.
    pub write_timeout: Duration,
    /// Bytes of a request's head, and of the buffered part of its body: the memory of a connection.
    pub max_buffer: usize,
    /// From a stop signal to the end of new connections: a balancer needs a while to notice.
    pub drain_delay: Duration,
    /// From a stop signal to the end: requests in progress are cut then.
    pub drain: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            max_connections: 16_384,
            max_connections_per_client: 0,
            proxies: TrustedProxies::default(),
            header_read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            max_buffer: 16 * 1024,
            drain_delay: Duration::ZERO,
            drain: Duration::from_secs(10),
        }
    }
}

impl From<&HttpConfig> for ServerLimits {
    fn from(config: &HttpConfig) -> Self {
        ServerLimits {
            max_connections: config.max_connections as usize,
            max_connections_per_client: config.limits.max_connections_per_client as usize,
            proxies: config.limits.trusted_proxies.clone(),
            header_read_timeout: Duration::from_millis(config.header_timeout_ms),
            write_timeout: config.limits.write_timeout(),
            drain_delay: config.drain_delay(),
            drain: config.drain_requests(),
            ..ServerLimits::default()
        }
    }
}

/// The pause after a failed accept, when the process is out of file descriptors or memory: a connection must end first.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown`, and for `limits.drain_delay` more, in which each reply ends its connection.
/// Then finishes the requests in progress. Returns how many were cut because they did not end within `limits.drain`.
///
/// # Errors
/// None today: a failed accept is tried again.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    shutdown: CancellationToken,
) -> io::Result<usize> {
    let connections = Connections::new(router, &limits);
    let end = accept_until(&listener, &connections, &limits, &shutdown).await;
    // Closed before the rest is awaited: new clients are to be refused, not kept waiting.
    drop(listener);
    Ok(connections.finish(end, limits.drain).await)
}

/// Accepts connections until `shutdown` and the delay after it. Returns the time at which the requests in progress are cut.
async fn accept_until(
    listener: &TcpListener,
    connections: &Connections,
    limits: &ServerLimits,
    shutdown: &CancellationToken,
) -> Instant {
    let slots = Arc::new(Semaphore::new(limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let clients = ConnectionsPerClient::new(limits.max_connections_per_client);
    let last_call = async {
        shutdown.cancelled().await;
        connections.close();
        let end = Instant::now() + limits.drain;
        sleep(limits.drain_delay.min(limits.drain)).await;
        end
    };
    tokio::pin!(last_call);
    loop {
        let accepted = tokio::select! {
            biased;
            end = &mut last_call => return end,
            accepted = accept(listener, &slots) => accepted,
        };
        let Some((stream, peer, slot)) = accepted else { return Instant::now() };
        let limited = clients.as_ref().filter(|_| !limits.proxies.contains(peer.ip().to_canonical()));
        let permit = limited.map(|clients| clients.acquire(address::key(peer.ip())));
        if let Some(None) = permit {
            metrics::HTTP_CONNECTIONS_REFUSED.inc();
            tracing::debug!(%peer, "connection closed: its client has too many");
            continue;
        }
        connections.serve(stream, peer, (slot, permit));
    }
}

/// The next connection, once there is a slot for it; `None` only if the semaphore is closed.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "TCP_NODELAY not set");
                }
                return Some((stream, peer, slot));
            }
            // The client was gone before its connection was accepted.
            Err(error) if is_of_connection(&error) => tracing::debug!(%error, "connection not accepted"),
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Whether an accept failed for its connection alone.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
    )
}
