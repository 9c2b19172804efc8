//! Limits on connections: how many one client may have, and how long a client may take no part of what it is sent.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// Counts the connections of each client; the open connections bound its size.
#[derive(Clone)]
pub struct ConnectionsPerClient {
    open: Arc<Mutex<HashMap<u64, usize>>>,
    max: usize,
}

/// Counts one connection of a client until it is dropped.
pub struct ConnectionPermit {
    open: Arc<Mutex<HashMap<u64, usize>>>,
    client: u64,
}

impl ConnectionsPerClient {
    /// `None` for 0: no limit.
    pub fn new(max: usize) -> Option<Self> {
        (max > 0).then(|| ConnectionsPerClient { open: Arc::default(), max })
    }

    /// A permit for one more connection of this client; `None` if it has too many.
    pub fn acquire(&self, client: u64) -> Option<ConnectionPermit> {
        let mut open = self.open.lock();
        let count = open.entry(client).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { open: self.open.clone(), client })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// A connection that fails once its client has taken no part of what it is sent for `timeout`. A reply that makes progress may
/// take any time, and a stream without anything to send does not wait.
pub struct WriteTimeout {
    stream: TcpStream,
    timeout: Duration,
    /// Runs while a write waits for the client.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    pub fn new(stream: TcpStream, timeout: Duration) -> Self {
        WriteTimeout { stream, timeout, waiting: None }
    }

    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let timeout = self.timeout;
        ready!(self.waiting.get_or_insert_with(|| Box::pin(sleep(timeout))).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client does not take its reply")))
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Flush and shutdown do not wait for the client: the kernel has what was written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_client_bounded() {
        let clients = ConnectionsPerClient::new(2).unwrap();
        let first = clients.acquire(1).unwrap();
        let second = clients.acquire(1).unwrap();
        assert!(clients.acquire(1).is_none());
        let other = clients.acquire(2).unwrap();
        drop(first);
        let third = clients.acquire(1).unwrap();
        drop((second, third, other));
        assert!(clients.open.lock().is_empty(), "who is gone is forgotten");
        assert!(ConnectionsPerClient::new(0).is_none());
    }
}
