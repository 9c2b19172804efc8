//! Tests of the server over real sockets.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{ServerLimits, serve};

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
                    axum::body::to_bytes(request.into_body(), 1024).await.map(drop).map_err(|error| error.to_string())
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
    assert_eq!(server.task.await.unwrap().unwrap(), 1, "the stuck request is counted");
    // The stuck request had the time of the drain: it never ends by itself.
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
