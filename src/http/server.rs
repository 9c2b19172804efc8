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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
        time::Instant,
    };

    use super::*;

    struct Server {
        address: SocketAddr,
        shutdown: CancellationToken,
        task: JoinHandle<io::Result<()>>,
        /// A permit for each request to `/slow` and `/stuck` that has begun.
        begun: Arc<Semaphore>,
        /// Lets `/slow` go on; `/stuck` never does.
        go: CancellationToken,
    }

    async fn start(limits: ServerLimits) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, go) = (Arc::new(Semaphore::new(0)), CancellationToken::new());
        let begins = |go: CancellationToken| {
            let begun = begun.clone();
            get(async move || {
                begun.add_permits(1);
                go.cancelled().await;
            })
        };
        let router = Router::new()
            .route("/peer", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }))
            .route("/slow", begins(go.clone()))
            .route("/stuck", begins(CancellationToken::new()));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, router, limits, shutdown.clone()));
        Server { address, shutdown, task, begun, go }
    }

    async fn send(stream: &mut TcpStream, path: &str) {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
    }

    /// Whatever comes, however long that takes on a stalled machine; empty if the connection is closed.
    async fn read(stream: &mut TcpStream) -> Option<String> {
        let mut bytes = vec![0; 4096];
        let read = timeout(Duration::from_secs(300), stream.read(&mut bytes)).await.ok()?.unwrap_or(0);
        Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    #[tokio::test]
    async fn connections_are_kept_and_know_their_peer() {
        let server = start(ServerLimits::default()).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        for _ in 0..2 {
            send(&mut stream, "/peer").await;
            let reply = read(&mut stream).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
            assert!(reply.ends_with(&stream.local_addr().unwrap().to_string()), "{reply}");
        }
        server.shutdown.cancel();
        server.task.await.unwrap().unwrap();
        assert_eq!(read(&mut stream).await.unwrap(), "", "idle connections end at once");
    }

    #[tokio::test]
    async fn a_connection_more_than_allowed_waits() {
        let server = start(ServerLimits { max_connections: 1, ..ServerLimits::default() }).await;
        let mut first = TcpStream::connect(server.address).await.unwrap();
        // Answered, and kept: it has the one slot.
        send(&mut first, "/peer").await;
        assert!(read(&mut first).await.unwrap().starts_with("HTTP/1.1 200"));
        let mut second = TcpStream::connect(server.address).await.unwrap();
        send(&mut second, "/peer").await;
        assert_eq!(timeout(Duration::from_millis(200), read(&mut second)).await.ok(), None);
        drop(first);
        assert!(read(&mut second).await.unwrap().starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_head_has_to_come_in_time() {
        let limits = ServerLimits { header_read_timeout: Duration::from_millis(100), ..ServerLimits::default() };
        let server = start(limits).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /peer HTTP/1.1\r\nhost: te").await.unwrap();
        let reply = read(&mut stream).await.unwrap();
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 408"), "{reply}");
    }

    #[tokio::test]
    async fn shutdown_finishes_what_has_begun_and_no_more() {
        let drain = Duration::from_secs(3);
        let limits = ServerLimits { drain, ..ServerLimits::default() };
        let server = start(limits).await;
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        let mut stuck = TcpStream::connect(server.address).await.unwrap();
        send(&mut slow, "/slow").await;
        send(&mut stuck, "/stuck").await;
        drop(server.begun.acquire_many(2).await.unwrap());
        let began = Instant::now();
        server.shutdown.cancel();
        server.go.cancel();
        assert!(read(&mut slow).await.unwrap().starts_with("HTTP/1.1 200"));
        server.task.await.unwrap().unwrap();
        // The stuck one was given its time, and no more: it would never have ended by itself.
        assert!(began.elapsed() >= drain, "{:?}", began.elapsed());
        assert_eq!(read(&mut stuck).await.unwrap(), "");
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
