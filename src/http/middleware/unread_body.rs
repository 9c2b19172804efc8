//! Bodies that were refused unread.
//!
//! A server that answers and closes while the client is still sending has its answer thrown away with the connection, as often
//! as not. So what is left of a refused body is read and forgotten, up to a bound, before the answer goes out. Small bodies,
//! which are in the socket's buffers anyway, are left alone.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{body::Body, extract::Request, http::header::EXPECT};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Frame, SizeHint};

/// Bodies at least this long, or of unknown length, are worth the trouble.
const SMALLEST: u64 = 16 * 1024;
/// What is read of a refused body at most; a client that sends more is cut off.
const MOST: usize = 32 * 1024 * 1024;

/// What a handler may not have read.
pub struct Leftover(Arc<Mutex<Body>>);

/// The body as the handler sees it.
struct Lent(Arc<Mutex<Body>>);

/// Keeps hold of a request's body if it is large.
pub fn keep(request: Request) -> (Request, Option<Leftover>) {
    let length = request.body().size_hint();
    let small = length.exact().is_some_and(|length| length < SMALLEST);
    // A client that asked whether to go on has not sent anything yet, and reading would tell it to.
    if small || request.headers().contains_key(EXPECT) {
        return (request, None);
    }
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    (Request::from_parts(parts, Body::new(Lent(body.clone()))), Some(Leftover(body)))
}

impl Leftover {
    /// Reads on to the end, or to the bound.
    pub async fn forget(self) {
        let mut read = 0;
        let mut rest = Lent(self.0);
        while let Some(Ok(frame)) = rest.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > MOST {
                return;
            }
        }
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
