//! A load generator for HTTP/1.1 on one thread: each connection sends its next request after the last reply (a closed loop). It
//! checks every reply with as little work as possible. Its CPU time is reported apart from the servers'.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// Writes the request with a number.
pub type Write<'a> = Box<dyn Fn(u64, &mut Vec<u8>) + 'a>;
/// Reads the body of the reply to the request with a number.
pub type Read<'a> = Box<dyn Fn(u64, &[u8]) + 'a>;

/// One kind of request, and the reply that it expects.
pub struct Load<'a> {
    pub request: Write<'a>,
    /// The status that every reply must have.
    pub status: u16,
    pub body: Option<Read<'a>>,
}

/// The result of a round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub requests: u64,
    pub seconds: f64,
    /// Microseconds from sending to the last byte of the reply, sorted.
    pub latencies: Vec<u32>,
}

impl Round {
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Microseconds; `share` from 0 to 1.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share).round() as usize).map_or(0.0, |us| f64::from(*us))
    }
}

pub fn get(path: &str, request: &mut Vec<u8>) {
    request.extend_from_slice(format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").as_bytes());
}

pub fn send(method: &str, path: &str, body: &str, request: &mut Vec<u8>) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    request.extend_from_slice(head.as_bytes());
    request.extend_from_slice(body.as_bytes());
}

/// A keep-alive connection.
pub struct Connection {
    stream: TcpStream,
    pub request: Vec<u8>,
    pub reply: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("the service does not accept")?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, request: Vec::with_capacity(512), reply: Vec::with_capacity(4096) })
    }

    /// Sends `request`. Returns the status, and the offset of the body in `reply`.
    pub async fn ask(&mut self) -> Result<(u16, usize)> {
        self.stream.write_all(&self.request).await?;
        self.reply.clear();
        loop {
            if self.stream.read_buf(&mut self.reply).await? == 0 {
                bail!("the service closed the connection");
            }
            if let Some((status, body, end)) = parse(&self.reply)?
                && self.reply.len() >= end
            {
                return Ok((status, body));
            }
        }
    }
}

impl Connection {
    /// Fails unless the reply has the status that `load` expects; passes its body on.
    pub fn check(&self, load: &Load<'_>, number: u64, status: u16, body: usize) -> Result<()> {
        if status != load.status {
            let (request, reply) = (&self.request, &self.reply[body..]);
            let (request, reply) = (String::from_utf8_lossy(request), String::from_utf8_lossy(reply));
            bail!("{status} instead of {}: {reply} to {request}", load.status);
        }
        if let Some(read) = &load.body {
            read(number, &self.reply[body..]);
        }
        Ok(())
    }
}

/// Status, start and end of the body; `None` before the head is complete.
fn parse(reply: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let Some(head) = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&reply[..head])?;
    let status = text.get(9..12).and_then(|code| code.parse().ok()).context("no status")?;
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("a reply of no known length")?.parse()?;
    Ok(Some((status, head + 4, head + 4 + length)))
}

/// Sends the requests with `numbers` over `connections` connections until `duration` or the numbers end, and waits for every reply.
pub async fn run(
    address: SocketAddr,
    connections: usize,
    load: &Load<'_>,
    numbers: std::ops::Range<u64>,
    duration: Duration,
) -> Result<Round> {
    let open = try_join_all((0..connections).map(|_| Connection::open(address))).await?;
    let next = RefCell::new(numbers);
    let started = Instant::now();
    let rounds = try_join_all(open.into_iter().map(async |mut connection| -> Result<Vec<u32>> {
        let mut latencies = Vec::with_capacity(4096);
        while started.elapsed() < duration {
            let Some(number) = next.borrow_mut().next() else { break };
            connection.request.clear();
            (load.request)(number, &mut connection.request);
            let sent = Instant::now();
            let (status, body) = connection.ask().await?;
            latencies.push(sent.elapsed().as_micros() as u32);
            connection.check(load, number, status, body)?;
        }
        Ok(latencies)
    }))
    .await?;
    let seconds = started.elapsed().as_secs_f64();
    let mut latencies: Vec<u32> = rounds.into_iter().flatten().collect();
    latencies.sort_unstable();
    Ok(Round { requests: latencies.len() as u64, seconds, latencies })
}

/// Sends one request on a connection of its own. Returns the status of the reply, whatever it is; `None` without a reply in time.
pub async fn ask_once(address: SocketAddr, load: &Load<'_>, number: u64, timeout: Duration) -> Option<u16> {
    let asking = async {
        let mut connection = Connection::open(address).await?;
        (load.request)(number, &mut connection.request);
        connection.ask().await
    };
    tokio::time::timeout(timeout, asking).await.ok()?.ok().map(|(status, _)| status)
}

/// The body of the reply to a GET, as text.
pub async fn read(address: SocketAddr, path: &str) -> Result<String> {
    let mut connection = Connection::open(address).await?;
    get(path, &mut connection.request);
    let (status, body) = connection.ask().await?;
    let reply = String::from_utf8_lossy(&connection.reply[body..]).into_owned();
    if status != 200 {
        bail!("GET {path}: {status} {reply}");
    }
    Ok(reply)
}

/// One request from each of `people`, all at once, on a connection of its own that is made for it. Latencies run from the
/// first packet of the connection. `from` has to be another address each time: ports of closed connections are not free yet.
pub async fn rush(address: SocketAddr, from: IpAddr, people: usize, load: &Load<'_>) -> Result<Round> {
    let started = Instant::now();
    let mut latencies: Vec<u32> = try_join_all((0..people as u64).map(async |number| {
        let mut request = Vec::with_capacity(512);
        (load.request)(number, &mut request);
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let began = Instant::now();
        let stream = socket.connect(address).await.context("the service does not accept")?;
        stream.set_nodelay(true)?;
        let mut connection = Connection { stream, request, reply: Vec::with_capacity(1024) };
        let (status, body) = connection.ask().await?;
        let latency = began.elapsed().as_micros() as u32;
        connection.check(load, number, status, body)?;
        anyhow::Ok(latency)
    }))
    .await?;
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Ok(Round { requests: latencies.len() as u64, seconds, latencies })
}

/// Writes a request to the operators' API.
pub fn write_operation(request: &mut Vec<u8>, token: &str, method: &str, path: &str, body: &str) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    request.extend_from_slice(head.as_bytes());
}

/// Sends one request to the operators' API, and returns the body of the reply.
pub async fn operate(address: SocketAddr, token: &str, method: &str, path: &str, body: &Value) -> Result<Value> {
    let mut connection = Connection::open(address).await?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    write_operation(&mut connection.request, token, method, path, &body);
    let (status, start) = connection.ask().await?;
    let reply = String::from_utf8_lossy(&connection.reply[start..]);
    if !(200..300).contains(&status) {
        bail!("{method} {path}: {status} {reply}");
    }
    Ok(serde_json::from_str(&reply)?)
}
