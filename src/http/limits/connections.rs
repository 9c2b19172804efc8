//! Limits on a connection: how many one client may have, and how long one may take nothing of what it is sent.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// The connections of each client. Their number bounds this.
#[derive(Clone)]
pub struct PerClient {
    open: Arc<Mutex<HashMap<u64, usize>>>,
    most: usize,
}

/// One connection of a client, until dropped.
pub struct Seat {
    open: Arc<Mutex<HashMap<u64, usize>>>,
    client: u64,
}

impl PerClient {
    /// `None` for 0: no limit.
    pub fn new(most: usize) -> Option<Self> {
        (most > 0).then(|| PerClient { open: Arc::default(), most })
    }

    /// One more connection of this client, unless it has too many.
    pub fn seat(&self, client: u64) -> Option<Seat> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Seat { open: self.open.clone(), client })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// A connection that fails when its client has taken nothing for too long of what it is sent. A reply may take as long as it
/// gets on; a stream that has nothing to send is not waiting.
pub struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while the client is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    pub fn new(stream: TcpStream, patience: Duration) -> Self {
        Patient { stream, patience, waiting: None }
    }

    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        ready!(self.waiting.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client does not take its reply")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
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

    // Neither waits for the client: what was written is the kernel's.
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
        let clients = PerClient::new(2).unwrap();
        let first = clients.seat(1).unwrap();
        let second = clients.seat(1).unwrap();
        assert!(clients.seat(1).is_none());
        let other = clients.seat(2).unwrap();
        drop(first);
        let third = clients.seat(1).unwrap();
        drop((second, third, other));
        assert!(clients.open.lock().unwrap().is_empty(), "who is gone is forgotten");
        assert!(PerClient::new(0).is_none());
    }
}
