//! The accept loop: TCP connections in, requests to the router.
//!
//! Owns sockets and their limits, which `axum::serve` has none of: the connections at a time, the time a request's head
//! may take, `TCP_NODELAY`, and an orderly end. Limits on a request once it has a head are left to
//! [`edge`](super::edge).

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// The limits on connections.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at a time; more wait in the listener's backlog.
    pub max_connections: usize,
    /// From a connection's start, or the end of the reply before, to the end of a request's head: also how long an idle
    /// connection is kept.
    pub header_read_timeout: Duration,
    /// Bytes of a request's head, and of what is buffered of its body.
    pub max_buffer: usize,
    /// How long a shutdown waits for requests that have begun.
    pub drain: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            max_connections: 16_384,
            header_read_timeout: Duration::from_secs(30),
            max_buffer: 64 * 1024,
            drain: Duration::from_secs(10),
        }
    }
}

/// How long accepting pauses when the process is out of file descriptors or memory: some connection has to end first.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown`, then finishes what has begun within `limits.drain`.
///
/// Each request carries its peer's address as `ConnectInfo<SocketAddr>`.
///
/// # Errors
/// None today: a failure to accept is waited out.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(limits.max_buffer.max(8 * 1024));
    let slots = Arc::new(Semaphore::new(limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let open = GracefulShutdown::new();
    // Ends the connections that outlast the drain.
    let cut = CancellationToken::new();

    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, peer, slot)) = accepted else { break };
        let router = router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            router.clone().oneshot(request.map(Body::new))
        });
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        let cut = cut.clone();
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection ended");
                },
                () = cut.cancelled() => tracing::debug!(%peer, "connection cut"),
            }
        });
    }

    // Closed before the drain, so that a balancer sees at once that this process takes no more.
    drop(listener);
    let draining = open.count();
    if timeout(limits.drain, open.shutdown()).await.is_err() {
        tracing::warn!(draining, drain = ?limits.drain, "connections cut at shutdown");
        cut.cancel();
    }
    Ok(())
}

/// The next connection, once there is a slot for it; `None` only if the slots are gone.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "TCP_NODELAY not set");
                }
                return Some((stream, peer, slot));
            }
            // The connection was gone before we took it.
            Err(error) if is_of_connection(&error) => tracing::debug!(%error, "connection not accepted"),
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                sleep(BACK_OFF).await;
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
    )
}
