//! The connections of a server: serving their requests, and ending them in order.

use std::{
    convert::Infallible,
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
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use super::ServerLimits;
use crate::telemetry::metrics::http::Connected;

/// The open connections of a server.
pub struct Connections {
    http: http1::Builder,
    router: Router,
    write_timeout: Duration,
    graceful: GracefulShutdown,
    tasks: TaskTracker,
    /// Set once a stop is asked for: each reply then ends its connection, so that clients come back to another process.
    closing: Arc<AtomicBool>,
    /// Cuts the connections that outlast the drain.
    cut: CancellationToken,
    /// Cut connections that had a request in progress.
    unanswered: Arc<AtomicUsize>,
}

impl Connections {
    pub fn new(router: Router, limits: &ServerLimits) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            // A client may shut its sending side after its request, and still wait for the reply.
            .half_close(true)
            .header_read_timeout(limits.header_read_timeout)
            .max_buf_size(limits.max_buffer.max(8 * 1024));
        Connections {
            http,
            router,
            write_timeout: limits.write_timeout,
            graceful: GracefulShutdown::new(),
            tasks: TaskTracker::new(),
            closing: Arc::default(),
            cut: CancellationToken::new(),
            unanswered: Arc::default(),
        }
    }

    /// Makes each reply from now on end its connection.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Serves a connection. Each request carries its peer's address as `ConnectInfo<SocketAddr>`. Drops `permits` when the
    /// connection ends.
    pub fn serve(&self, stream: TcpStream, peer: SocketAddr, permits: impl Send + 'static) {
        let (router, closing) = (self.router.clone(), self.closing.clone());
        let busy = Arc::new(AtomicBool::new(false));
        let is_busy = busy.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            let reply = router.clone().oneshot(request.map(Body::new));
            let (closing, busy) = (closing.clone(), busy.clone());
            async move {
                busy.store(true, Ordering::Relaxed);
                let mut response = reply.await?;
                busy.store(false, Ordering::Relaxed);
                if closing.load(Ordering::Relaxed) {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut stream = TimeoutWriter::new(stream);
        // Ends a connection whose client takes no part of what it is sent. A reply that makes progress may take any time.
        stream.set_timeout(Some(self.write_timeout));
        let stream = TokioIo::new(Box::pin(stream));
        let connection = self.graceful.watch(self.http.serve_connection(stream, service));
        let (cut, unanswered) = (self.cut.clone(), self.unanswered.clone());
        self.tasks.spawn(async move {
            let _held = (permits, Connected::accept());
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
    }

    /// Finishes the requests in progress until `end`, then cuts the rest. Returns how many requests were cut. `drain` is for
    /// the log: the time that they had.
    pub async fn finish(self, end: Instant, drain: Duration) -> usize {
        if timeout_at(end, self.graceful.shutdown()).await.is_err() {
            let left = self.tasks.len();
            self.cut.cancel();
            self.tasks.close();
            self.tasks.wait().await;
            let requests = self.unanswered.load(Ordering::Relaxed);
            tracing::warn!(connections = left, requests, after = ?drain, "connections cut at shutdown");
        }
        self.unanswered.load(Ordering::Relaxed)
    }
}
