//! The feed of the page: `GET /ops/feed`, server-sent events: the `history` of the last fifteen minutes, and one `snapshot` per second.
//!
//! Requires a session and ends with it. One reader serves all watchers, and runs only while there are some. A watcher gets the latest
//! snapshot once it has taken the one before: a slow watcher skips snapshots, and none are queued. The history comes once, with the
//! first snapshot after it is known.

use std::{future::ready, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header::COOKIE},
    response::Response,
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{Dashboard, history::HistoryEvent, reader::Reader};
use crate::{
    engine::request_history::RequestHistory,
    http::{
        error::{ApiError, Code},
        event_stream::{event, event_stream},
    },
};

/// The interval between snapshots.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// The most watchers at a time.
const MAX_WATCHERS: usize = 100;
/// For how many snapshots the reader goes on without watchers: a page that is loaded again then has rates at once.
const MAX_IDLE_SNAPSHOTS: u32 = 10;
/// The start of every stream: the milliseconds after which a browser connects again.
const RETRY: &str = "retry: 1000\n\n";

/// The requests of the last fifteen minutes, which the reader keeps; none before its first read.
pub type SharedHistory = Arc<Mutex<Option<RequestHistory>>>;

/// The state that all watchers share.
pub struct Feed {
    /// The latest snapshot, as an event; none before the first.
    latest: watch::Sender<Option<Bytes>>,
    permits: Arc<Semaphore>,
    /// The reader's task, if it runs.
    reading: Mutex<Option<JoinHandle<()>>>,
    history: SharedHistory,
}

impl Default for Feed {
    fn default() -> Self {
        Feed {
            latest: watch::Sender::default(),
            permits: Arc::new(Semaphore::new(MAX_WATCHERS)),
            reading: Mutex::default(),
            history: SharedHistory::default(),
        }
    }
}

/// One connected page.
struct Watcher {
    latest: watch::Receiver<Option<Bytes>>,
    /// Until it is sent.
    history: Option<SharedHistory>,
    _permit: OwnedSemaphorePermit,
}

impl Feed {
    /// Adds a watcher, if there is room, and starts the reader if it does not run. The reader ends with `stopping`.
    fn watch(
        self: &Arc<Self>,
        reader: impl FnOnce(SharedHistory) -> Reader,
        stopping: &CancellationToken,
    ) -> Option<Watcher> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let mut reading = self.reading.lock();
        let mut latest = self.latest.subscribe();
        if reading.as_ref().is_none_or(JoinHandle::is_finished) {
            self.latest.send_replace(None);
            *self.history.lock() = None;
            let this = self.clone();
            let reader = reader(self.history.clone());
            let read = stopping.clone().run_until_cancelled_owned(this.read(reader));
            *reading = Some(tokio::spawn(async move {
                let _ = read.await;
            }));
        }
        // The current snapshot is new to this watcher.
        latest.mark_changed();
        Some(Watcher { latest, history: Some(self.history.clone()), _permit: permit })
    }

    async fn read(self: Arc<Self>, mut reader: Reader) {
        let mut ticks = interval(SNAPSHOT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle = 0;
        loop {
            ticks.tick().await;
            let watchers = self.latest.receiver_count();
            idle = if watchers == 0 { idle + 1 } else { 0 };
            if idle > MAX_IDLE_SNAPSHOTS && self.is_over() {
                return;
            }
            match reader.read(watchers).await {
                Ok(snapshot) => drop(self.latest.send_replace(Some(event("snapshot", &snapshot)))),
                Err(error) => tracing::error!(%error, "a snapshot of the dashboard can't be written"),
            }
        }
    }

    /// Whether the reader is to end, because there are no watchers; the next watcher starts another one.
    fn is_over(&self) -> bool {
        let mut reading = self.reading.lock();
        let over = self.latest.receiver_count() == 0;
        if over {
            *reading = None;
        }
        over
    }
}

impl Watcher {
    /// The history as an event, once it is known; then no more.
    fn history(&mut self) -> Option<Bytes> {
        let text = serde_json::to_vec(&HistoryEvent::from(self.history.as_ref()?.lock().as_ref()?));
        self.history = None;
        text.inspect_err(|error| tracing::error!(%error, "the history of the dashboard can't be written"))
            .ok()
            .map(|text| event("history", &text))
    }

    /// The latest snapshot each time the stream is polled, never the same twice. The history precedes the first one.
    fn events(self) -> impl Stream<Item = Bytes> {
        stream::unfold(self, |mut watcher| async move {
            loop {
                watcher.latest.changed().await.ok()?;
                let latest = watcher.latest.borrow_and_update().clone();
                if let Some(snapshot) = latest {
                    let events = match watcher.history() {
                        Some(history) => [history, snapshot].concat().into(),
                        None => snapshot,
                    };
                    return Some((events, watcher));
                }
            }
        })
    }
}

/// The route.
pub fn router() -> Router<Dashboard> {
    Router::new().route("/ops/feed", get(feed))
}

async fn feed(State(dashboard): State<Dashboard>, headers: HeaderMap) -> Result<Response, ApiError> {
    if dashboard.stopping.is_cancelled() {
        return Err(Code::Unavailable.into());
    }
    let Dashboard { engine, auditor, instance, .. } = dashboard.clone();
    let reader = |history| Reader::new(engine, auditor, instance, history);
    let watcher = dashboard.feed.watch(reader, &dashboard.stopping).ok_or(Code::Unavailable)?;
    let events = stream::once(ready(Bytes::from_static(RETRY.as_bytes()))).chain(watcher.events());
    // Ends with the session, which expires or is signed out.
    let mut cookies = HeaderMap::new();
    for cookie in headers.get_all(COOKIE) {
        cookies.append(COOKIE, cookie.clone());
    }
    let sessions = dashboard.sessions.clone();
    let events = events.take_while(move |_| ready(sessions.session(&cookies).is_some()));
    // Ends with the process: a feed must not delay a shutdown.
    let events = events.take_until(dashboard.stopping.clone().cancelled_owned());
    Ok(event_stream(events))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn slow_watcher_gets_latest_snapshot_once() {
        let feed = Feed::default();
        let permit = feed.permits.clone().try_acquire_owned().unwrap();
        let watcher = Watcher { latest: feed.latest.subscribe(), history: Some(feed.history.clone()), _permit: permit };
        let mut snapshots = Box::pin(watcher.events());
        for n in 0..5 {
            feed.latest.send_replace(Some(event("snapshot", format!("{{\"n\":{n}}}").as_bytes())));
        }
        assert_eq!(snapshots.next().await.unwrap(), "event: snapshot\ndata: {\"n\":4}\n\n");
        assert!(snapshots.next().now_or_never().is_none());
        // Between two readers there is no snapshot.
        feed.latest.send_replace(None);
        assert!(snapshots.next().now_or_never().is_none());
        feed.latest.send_replace(Some(event("snapshot", b"{}")));
        assert_eq!(snapshots.next().await.unwrap(), "event: snapshot\ndata: {}\n\n");
        // The history comes once, as soon as it is known.
        *feed.history.lock() = Some(RequestHistory::default());
        let mut next = async || {
            feed.latest.send_replace(Some(event("snapshot", b"{}")));
            String::from_utf8(snapshots.next().await.unwrap().to_vec()).unwrap()
        };
        let with_history = next().await;
        assert!(with_history.starts_with("event: history\ndata: {\"periodMs\":5000,\"all\":{"), "{with_history}");
        assert!(with_history.ends_with("}\n\nevent: snapshot\ndata: {}\n\n"), "{with_history}");
        assert_eq!(next().await, "event: snapshot\ndata: {}\n\n");
        drop(snapshots);
        assert_eq!((feed.permits.available_permits(), feed.latest.receiver_count()), (MAX_WATCHERS, 0));
    }
}
