//! Reads the rest of a refused request's body before the reply goes out.
//!
//! A client that is still sending when the server answers and closes often loses the reply with the connection. So the rest of
//! a refused body is read and discarded, up to a bound. Small bodies are in the socket's buffers already and stay there.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{body::Body, extract::Request, http::header::EXPECT};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Bytes, Frame, SizeHint};
use parking_lot::Mutex;

/// Bodies of at least so many bytes, or of unknown length, are read to their end.
const MIN_LEN: u64 = 16 * 1024;
/// The most bytes that are read of a refused body; a client that sends more is cut off.
const MAX_LEN: usize = 32 * 1024 * 1024;

/// The part of a body that its handler has not read.
pub struct UnreadBody(Arc<Mutex<Body>>);

/// The body that the handler gets.
struct Lent(Arc<Mutex<Body>>);

/// Lends a handler the body of its request. Returns the hold on it, if the body is large.
pub fn lend(request: Request) -> (Request, Option<UnreadBody>) {
    let length = request.body().size_hint();
    let small = length.exact().is_some_and(|length| length < MIN_LEN);
    // A client that sends `Expect: 100-continue` waits for the permission to send, which reading would give.
    if small || request.headers().contains_key(EXPECT) {
        return (request, None);
    }
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    (Request::from_parts(parts, Body::new(Lent(body.clone()))), Some(UnreadBody(body)))
}

impl UnreadBody {
    /// Reads to the end, or to the bound.
    pub async fn discard(self) {
        let mut read = 0;
        let mut rest = Lent(self.0);
        while let Some(Ok(frame)) = rest.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > MAX_LEN {
                return;
            }
        }
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}
