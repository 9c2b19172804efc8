//! The stream that the page listens to: `GET /ops/feed`, server-sent events, a `snapshot` a second.
//!
//! For whoever has a session, and as long as that is open. However many watch, one reader reads, and only while somebody
//! watches. Each watcher is sent the latest snapshot whenever it has taken the one before; what it is too slow for it never
//! sees, and nothing is kept for it.

use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE, COOKIE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::reader::Reader;
use crate::http::{
    error::{ApiError, Code},
    state::AppState,
};

/// How often there is a snapshot.
const EVERY: Duration = Duration::from_secs(1);
/// Who may watch at the same time.
const SEATS: usize = 100;
/// For how many snapshots reading goes on when nobody watches any more: who loads the page again finds what only time shows.
const DESERTED: u32 = 10;
/// First in every stream: after how many milliseconds a browser comes again when it has lost it.
const RETRY: &str = "retry: 1000\n\n";

/// What all watchers share.
pub struct Feed {
    /// The latest snapshot, as an event; none before the first.
    latest: watch::Sender<Option<Bytes>>,
    seats: Arc<Semaphore>,
    /// The reader's task, while there is one.
    reading: Mutex<Option<JoinHandle<()>>>,
}

impl Default for Feed {
    fn default() -> Self {
        Feed { latest: watch::Sender::default(), seats: Arc::new(Semaphore::new(SEATS)), reading: Mutex::default() }
    }
}

/// One who watches.
struct Watcher {
    latest: watch::Receiver<Option<Bytes>>,
    _seat: OwnedSemaphorePermit,
}

impl Feed {
    /// Takes a seat, if one is free, and sees to it that somebody reads until `stopping`.
    fn watch(self: &Arc<Self>, reader: impl FnOnce() -> Reader, stopping: &CancellationToken) -> Option<Watcher> {
        let seat = self.seats.clone().try_acquire_owned().ok()?;
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut latest = self.latest.subscribe();
        if reading.as_ref().is_none_or(JoinHandle::is_finished) {
            self.latest.send_replace(None);
            let this = self.clone();
            let read = stopping.clone().run_until_cancelled_owned(this.read(reader()));
            *reading = Some(tokio::spawn(async move {
                let _ = read.await;
            }));
        }
        // What was read before it came is new to it.
        latest.mark_changed();
        Some(Watcher { latest, _seat: seat })
    }

    async fn read(self: Arc<Self>, mut reader: Reader) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deserted = 0;
        loop {
            ticks.tick().await;
            let watchers = self.latest.receiver_count();
            deserted = if watchers == 0 { deserted + 1 } else { 0 };
            if deserted > DESERTED && self.is_over() {
                return;
            }
            match reader.read(watchers).await {
                Ok(snapshot) => drop(self.latest.send_replace(Some(event(&snapshot)))),
                Err(error) => tracing::error!(%error, "a snapshot of the dashboard can't be written"),
            }
        }
    }

    /// Whether nobody watches; then whoever comes next starts another reader.
    fn is_over(&self) -> bool {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let over = self.latest.receiver_count() == 0;
        if over {
            *reading = None;
        }
        over
    }
}

impl Watcher {
    /// Each snapshot that is there when it is asked for one, never the same twice.
    fn snapshots(self) -> impl Stream<Item = Bytes> {
        stream::unfold(self, |mut watcher| async move {
            loop {
                watcher.latest.changed().await.ok()?;
                let latest = watcher.latest.borrow_and_update().clone();
                if let Some(snapshot) = latest {
                    return Some((snapshot, watcher));
                }
            }
        })
    }
}

/// A `snapshot` event of JSON that is one line.
fn event(json: &[u8]) -> Bytes {
    [b"event: snapshot\ndata: ", json, b"\n\n"].concat().into()
}

/// The stream, for who has a session.
pub fn router() -> Router<AppState> {
    Router::new().route("/ops/feed", get(feed))
}

async fn feed(State(app): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    if app.stopping.is_cancelled() {
        return Err(Code::Unavailable.into());
    }
    let reader = || Reader::new(app.engine.clone(), app.auditor.clone(), app.instance.clone());
    let watcher = app.feed.watch(reader, &app.stopping).ok_or(Code::Unavailable)?;
    let events = stream::once(ready(Bytes::from_static(RETRY.as_bytes()))).chain(watcher.snapshots());
    // For as long as the session is open: it may be signed out of, and expires.
    let mut cookies = HeaderMap::new();
    for cookie in headers.get_all(COOKIE) {
        cookies.append(COOKIE, cookie.clone());
    }
    let sessions = app.sessions.clone();
    let events = events.take_while(move |_| ready(sessions.session(&cookies).is_some()));
    // At once, so that it holds up nobody's leaving.
    let events = events.take_until(app.stopping.clone().cancelled_owned());
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // A proxy that keeps back what it is sent would keep back all of it.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(events.map(Ok::<_, Infallible>))).into_response())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn slow_watcher_gets_latest_snapshot_once() {
        let feed = Feed::default();
        let seat = feed.seats.clone().try_acquire_owned().unwrap();
        let mut snapshots = Box::pin(Watcher { latest: feed.latest.subscribe(), _seat: seat }.snapshots());
        for n in 0..5 {
            feed.latest.send_replace(Some(event(format!("{{\"n\":{n}}}").as_bytes())));
        }
        assert_eq!(snapshots.next().await.unwrap(), "event: snapshot\ndata: {\"n\":4}\n\n");
        assert!(snapshots.next().now_or_never().is_none());
        // Between two readers there is nothing to see.
        feed.latest.send_replace(None);
        assert!(snapshots.next().now_or_never().is_none());
        feed.latest.send_replace(Some(event(b"{}")));
        assert_eq!(snapshots.next().await.unwrap(), "event: snapshot\ndata: {}\n\n");
        drop(snapshots);
        assert_eq!((feed.seats.available_permits(), feed.latest.receiver_count()), (SEATS, 0));
    }
}
