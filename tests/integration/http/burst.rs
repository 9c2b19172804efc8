//! The first second of a sale: all clients connect at once.

use std::net::{Ipv4Addr, SocketAddr};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::{
    http::flood::Service,
    support::harness::{Options, TestApp, until},
};

/// Files that this process may have open beside the connections of the burst, for other tests.
const OTHER_FILES: u64 = 6_000;

/// Connections that found a full listen backlog, on the whole machine.
fn listen_overflows() -> u64 {
    let counters = std::fs::read_to_string("/proc/net/netstat").unwrap();
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(name, _)| *name == "ListenOverflows").unwrap().1.parse().unwrap()
}

/// Opens this many connections at once, each with a request. Returns the number without a reply, and the number of
/// backlog overflows.
async fn burst(address: SocketAddr, nth: u8, people: usize) -> (usize, u64) {
    let from = SocketAddr::new(Ipv4Addr::new(127, 0, 3, nth).into(), 0);
    let before = listen_overflows();
    let ask = async || -> std::io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(from)?;
        let mut stream = socket.connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        assert_eq!(&status, b"HTTP/1.1 200");
        Ok(())
    };
    let answers = join_all((0..people).map(|_| ask())).await;
    (answers.iter().filter(|answer| answer.is_err()).count(), listen_overflows() - before)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_of_connections_loses_none() {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: files.maximum, ..files },
    )
    .unwrap();
    let allowed = files.maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
    let people = allowed.min(10_000) as usize;
    assert!(people >= 1_000, "`ulimit -Hn` allows too few connections for this test");
    let test = TestApp::with(Options { clock: None, ..Options::default() }).await;
    let settings =
        [("MAX_CONNECTIONS_PER_CLIENT", "0"), ("RATE_LIMIT_CLIENT_PER_SECOND", "0"), ("HEADER_TIMEOUT_MS", "300000")];
    let short = [&settings[..], &[("LISTEN_BACKLOG", "16")]].concat();
    let mut service = Service::start(&test, &short).await;
    // A connection that overflows the backlog may retry for minutes, so the test waits for the counter only.
    let before = listen_overflows();
    tokio::select! {
        _ = burst(service.address, 100, 1_000) => {}
        () = until("some find the backlog full", async || (listen_overflows() > before).then_some(())) => {}
    }
    assert!(listen_overflows() > before, "a thousand connections did not overflow a backlog of 16");
    service.running.stop().await;

    let mut service = Service::start(&test, &settings).await;
    let mut lost = Vec::new();
    // The counter includes overflows of other tests' listeners, so a burst with overflows is repeated.
    for attempt in 1..=5_u8 {
        let (unanswered, full) = burst(service.address, attempt, people).await;
        assert_eq!(unanswered, 0);
        lost.push(full);
        if lost.last() == Some(&0) {
            break;
        }
    }
    assert_eq!(lost.last(), Some(&0), "connections found the backlog full in every burst: {lost:?}");
    service.running.stop().await;
    test.finish().await;
}
