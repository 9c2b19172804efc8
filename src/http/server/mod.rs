//! The accept loop: TCP connections in, requests to the router.
//!
//! Owns sockets and their limits, which `axum::serve` has none of: the connections at a time, in all and of one client, the
//! time and the size a request's head may take (and its 100 headers, which is hyper's own bound), the time a client may let its
//! reply wait, `TCP_NODELAY`, and an orderly end. Limits on a request once it has a head are left to
//! [`edge`](super::middleware::edge).

pub mod listener;

use std::{
    convert::Infallible,
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, header::CONNECTION},
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::limits::{
    address,
    connections::{Patient, PerClient},
};
use crate::{
    config::TrustedProxies,
    telemetry::metrics::{self, http::Connected},
};

/// The limits on connections.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections at a time; more wait in the listener's backlog.
    pub max_connections: usize,
    /// Those of one client, which is whoever is at the other end; more are closed at once. 0: no limit.
    pub max_connections_per_client: usize,
    /// Whose connections are those of many clients, and not limited.
    pub proxies: TrustedProxies,
    /// From a connection's start, or the end of the reply before, to the end of a request's head: also how long an idle
    /// connection is kept.
    pub header_read_timeout: Duration,
    /// How long a client may take nothing of what it is sent.
    pub write_timeout: Duration,
    /// Bytes of a request's head, and of what is buffered of its body. Every connection may take as much memory.
    pub max_buffer: usize,
    /// How long connections are still accepted once a stop is asked for: a balancer needs a while to notice.
    pub drain_delay: Duration,
    /// How long a stop may take in all, from when it is asked for; what has begun and not ended by then is cut.
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

/// How long accepting pauses when the process is out of file descriptors or memory: some connection has to end first.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `shutdown`, and for `limits.drain_delay` more, in which each reply ends its
/// connection; then finishes what has begun. Returns how many requests were cut, since they did not end within
/// `limits.drain`.
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
) -> io::Result<usize> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        // A client may shut its sending side once it has sent its request, and still wants the answer.
        .half_close(true)
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(limits.max_buffer.max(8 * 1024));
    let slots = Arc::new(Semaphore::new(limits.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let clients = PerClient::new(limits.max_connections_per_client);
    let open = GracefulShutdown::new();
    let connections = TaskTracker::new();
    // Set once a stop is asked for: clients are told to come back on another connection, to whoever is left.
    let closing = Arc::new(AtomicBool::new(false));
    // Ends the connections that outlast the drain; how many of them had a request under way.
    let (cut, unanswered) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let last_call = async {
        shutdown.cancelled().await;
        closing.store(true, Ordering::Relaxed);
        let end = Instant::now() + limits.drain;
        sleep(limits.drain_delay.min(limits.drain)).await;
        end
    };
    tokio::pin!(last_call);

    let end = loop {
        let accepted = tokio::select! {
            biased;
            end = &mut last_call => break end,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, peer, slot)) = accepted else { break Instant::now() };
        let limited = clients.as_ref().filter(|_| !limits.proxies.contains(peer.ip().to_canonical()));
        let seat = limited.map(|clients| clients.seat(address::key(peer.ip())));
        if let Some(None) = seat {
            metrics::HTTP_CONNECTIONS_REFUSED.inc();
            tracing::debug!(%peer, "connection closed: its client has too many");
            continue;
        }
        let (router, closing) = (router.clone(), closing.clone());
        let busy = Arc::new(AtomicBool::new(false));
        let is_busy = busy.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            let answer = router.clone().oneshot(request.map(Body::new));
            let (closing, busy) = (closing.clone(), busy.clone());
            async move {
                busy.store(true, Ordering::Relaxed);
                let mut response = answer.await?;
                busy.store(false, Ordering::Relaxed);
                if closing.load(Ordering::Relaxed) {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let stream = TokioIo::new(Patient::new(stream, limits.write_timeout));
        let connection = open.watch(http.serve_connection(stream, service));
        let (cut, unanswered) = (cut.clone(), unanswered.clone());
        connections.spawn(async move {
            let _held = (slot, seat, Connected::accept());
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection ended");
                },
                () = cut.cancelled() => {
                    unanswered.fetch_add(usize::from(is_busy.load(Ordering::Relaxed)), Ordering::Relaxed);
                    tracing::debug!(%peer, "connection cut");
                }
            }
        });
    };

    // Closed before the rest is waited for: whoever connects now has to be refused, not kept waiting.
    drop(listener);
    if timeout_at(end, open.shutdown()).await.is_err() {
        let left = connections.len();
        cut.cancel();
        connections.close();
        connections.wait().await;
        let requests = unanswered.load(Ordering::Relaxed);
        tracing::warn!(connections = left, requests, after = ?limits.drain, "connections cut at shutdown");
    }
    Ok(unanswered.load(Ordering::Relaxed))
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
        time::timeout,
    };

    use super::*;

    struct Server {
        address: SocketAddr,
        shutdown: CancellationToken,
        task: JoinHandle<io::Result<usize>>,
        /// A permit for each request to `/slow` and `/stuck` that has begun.
        begun: Arc<Semaphore>,
        /// Lets `/slow` go on; `/stuck` never does.
        go: CancellationToken,
    }

    /// More than the kernel takes for a client.
    const LARGE: usize = 64 * 1024 * 1024;

    /// Says one thing at once, and another when told to go on.
    fn events(go: CancellationToken) -> Body {
        let first = futures_util::stream::iter([Ok::<_, io::Error>("first")]);
        let second = futures_util::stream::once(async move {
            go.cancelled().await;
            Ok("second")
        });
        Body::from_stream(futures_util::StreamExt::chain(first, second))
    }

    async fn connect_from(client: &str, server: SocketAddr) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(client.parse().unwrap(), 0)).unwrap();
        socket.connect(server).await.unwrap()
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
            .route("/large", get(async || vec![b'x'; LARGE]))
            .route(
                "/events",
                get({
                    let go = go.clone();
                    async move || events(go.clone())
                }),
            )
            .route(
                "/body",
                axum::routing::post({
                    let begun = begun.clone();
                    async move |request: axum::extract::Request| {
                        begun.add_permits(1);
                        axum::body::to_bytes(request.into_body(), 1024)
                            .await
                            .map(drop)
                            .map_err(|error| error.to_string())
                    }
                }),
            )
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
    async fn connection_kept_alive_with_peer_address() {
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
    async fn connection_waits_when_limit_reached() {
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
    async fn client_connections_bounded_apart_from_others() {
        let limits = ServerLimits { max_connections_per_client: 1, ..ServerLimits::default() };
        let served = async |stream: &mut TcpStream| {
            send(stream, "/peer").await;
            read(stream).await.unwrap().starts_with("HTTP/1.1 200")
        };
        let server = start(limits.clone()).await;
        let mut first = TcpStream::connect(server.address).await.unwrap();
        assert!(served(&mut first).await);
        let mut second = TcpStream::connect(server.address).await.unwrap();
        assert_eq!(read(&mut second).await.unwrap(), "", "closed without a word");
        let mut other = connect_from("127.0.0.2", server.address).await;
        assert!(served(&mut other).await);

        let server = start(ServerLimits { proxies: "127.0.0.0/8".parse().unwrap(), ..limits }).await;
        for stream in
            &mut [connect_from("127.0.0.2", server.address).await, connect_from("127.0.0.2", server.address).await]
        {
            assert!(served(stream).await, "a proxy's connections are many clients'");
        }
    }

    #[tokio::test]
    async fn connection_cut_when_client_stops_reading() {
        let limits =
            ServerLimits { max_connections: 1, write_timeout: Duration::from_millis(200), ..ServerLimits::default() };
        let server = start(limits).await;
        let mut stubborn = TcpStream::connect(server.address).await.unwrap();
        send(&mut stubborn, "/large").await;
        // It has the one slot until it is cut.
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        send(&mut slow, "/large").await;
        let mut bytes = vec![0; 1024 * 1024];
        let mut left = LARGE;
        while left > 0 {
            let read = timeout(Duration::from_secs(300), slow.read(&mut bytes)).await.unwrap().unwrap();
            assert!(read > 0, "it was cut {left} bytes before the end");
            left = left.saturating_sub(read);
        }
    }

    #[tokio::test]
    async fn idle_stream_not_cut() {
        let limits = ServerLimits {
            header_read_timeout: Duration::from_millis(50),
            write_timeout: Duration::from_millis(1),
            ..ServerLimits::default()
        };
        let server = start(limits).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        send(&mut stream, "/events").await;
        let mut heard = String::new();
        while !heard.contains("second") {
            let more = read(&mut stream).await.unwrap();
            assert!(!more.is_empty(), "cut after {heard}");
            heard.push_str(&more);
            if heard.contains("first") && !server.go.is_cancelled() {
                // Long after both bounds.
                sleep(Duration::from_millis(300)).await;
                server.go.cancel();
            }
        }
    }

    #[tokio::test]
    async fn request_answered_when_client_shuts_sending_side() {
        let server = start(ServerLimits::default()).await;
        for path in ["/peer", "/slow"] {
            for _ in 0..20 {
                let mut stream = TcpStream::connect(server.address).await.unwrap();
                send(&mut stream, path).await;
                stream.shutdown().await.unwrap();
                if path == "/slow" {
                    // Long after the service may have seen the end of what is sent.
                    server.begun.acquire().await.unwrap().forget();
                    server.go.cancel();
                }
                let reply = read(&mut stream).await.unwrap();
                assert!(reply.starts_with("HTTP/1.1 200"), "{path}: {reply}");
                assert_eq!(read(&mut stream).await.unwrap(), "", "the connection ends with the reply");
            }
        }
    }

    /// A connection that is gone looks like one whose sending side is shut until something is written to it.
    #[tokio::test]
    async fn connection_freed_when_client_gone() {
        for path in ["/slow", "/events"] {
            let server = start(ServerLimits { max_connections: 1, ..ServerLimits::default() }).await;
            let mut gone = TcpStream::connect(server.address).await.unwrap();
            send(&mut gone, path).await;
            match path {
                "/slow" => server.begun.acquire().await.unwrap().forget(),
                _ => assert!(read(&mut gone).await.unwrap().contains("first")),
            }
            drop(gone);
            server.go.cancel();
            let mut next = TcpStream::connect(server.address).await.unwrap();
            send(&mut next, "/peer").await;
            assert!(read(&mut next).await.unwrap().starts_with("HTTP/1.1 200"), "{path}");
        }
    }

    #[tokio::test]
    async fn request_ended_when_client_gone_before_body() {
        let server = start(ServerLimits { max_connections: 1, ..ServerLimits::default() }).await;
        let mut gone = TcpStream::connect(server.address).await.unwrap();
        gone.write_all(b"POST /body HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\nx").await.unwrap();
        server.begun.acquire().await.unwrap().forget();
        drop(gone);
        let mut next = TcpStream::connect(server.address).await.unwrap();
        send(&mut next, "/peer").await;
        assert!(read(&mut next).await.unwrap().starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn head_refused_when_too_large() {
        let server = start(ServerLimits::default()).await;
        for (bytes, status) in [(8 * 1024, "HTTP/1.1 200"), (20 * 1024, "HTTP/1.1 431")] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let head = format!("GET /peer HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n", "x".repeat(bytes));
            stream.write_all(head.as_bytes()).await.unwrap();
            let reply = read(&mut stream).await.unwrap();
            assert!(reply.starts_with(status), "{reply}");
        }
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("GET /peer HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(read(&mut stream).await.unwrap().starts_with("HTTP/1.1 431"));
    }

    #[tokio::test]
    async fn head_refused_when_too_slow() {
        let limits = ServerLimits { header_read_timeout: Duration::from_millis(100), ..ServerLimits::default() };
        let server = start(limits).await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /peer HTTP/1.1\r\nhost: te").await.unwrap();
        let reply = read(&mut stream).await.unwrap();
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 408"), "{reply}");
    }

    #[tokio::test]
    async fn shutdown_finishes_running_requests_only() {
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
        let reply = read(&mut slow).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("connection: close\r\n"), "{reply}");
        assert_eq!(server.task.await.unwrap().unwrap(), 1, "the stuck one is told of");
        // The stuck one was given its time, and no more: it would never have ended by itself.
        assert!(began.elapsed() >= drain, "{:?}", began.elapsed());
        assert_eq!(read(&mut stuck).await.unwrap(), "");
        assert!(TcpStream::connect(server.address).await.is_err());
    }

    #[tokio::test]
    async fn shutdown_serves_and_closes_connections_during_delay() {
        let limits = ServerLimits {
            drain_delay: Duration::from_secs(900),
            drain: Duration::from_secs(1800),
            ..ServerLimits::default()
        };
        let server = start(limits).await;
        let mut kept = TcpStream::connect(server.address).await.unwrap();
        send(&mut kept, "/peer").await;
        assert!(!read(&mut kept).await.unwrap().contains("connection: close"));
        let mut slow = TcpStream::connect(server.address).await.unwrap();
        send(&mut slow, "/slow").await;
        drop(server.begun.acquire().await.unwrap());
        server.shutdown.cancel();
        // The first may be answered before the loop has heard of it.
        loop {
            let mut new = TcpStream::connect(server.address).await.unwrap();
            send(&mut new, "/peer").await;
            let reply = read(&mut new).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
            if reply.contains("connection: close\r\n") {
                assert_eq!(read(&mut new).await.unwrap(), "", "it is closed after that");
                break;
            }
        }
        send(&mut kept, "/peer").await;
        server.go.cancel();
        for mut stream in [kept, slow] {
            let reply = read(&mut stream).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("connection: close\r\n"), "{reply}");
            assert_eq!(read(&mut stream).await.unwrap(), "");
        }
        server.task.abort();
    }

    #[tokio::test]
    async fn shutdown_closes_idle_connections_after_delay() {
        let (drain_delay, drain) = (Duration::from_secs(1), Duration::from_secs(3));
        let server = start(ServerLimits { drain_delay, drain, ..ServerLimits::default() }).await;
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        let mut answered = TcpStream::connect(server.address).await.unwrap();
        send(&mut answered, "/peer").await;
        assert!(read(&mut answered).await.unwrap().starts_with("HTTP/1.1 200"));
        let began = Instant::now();
        server.shutdown.cancel();
        assert_eq!(server.task.await.unwrap().unwrap(), 0, "no request was cut");
        assert!(began.elapsed() >= drain_delay, "{:?}", began.elapsed());
        assert!(TcpStream::connect(server.address).await.is_err());
        for stream in [&mut silent, &mut answered] {
            assert_eq!(read(stream).await.unwrap(), "");
        }
    }
}
