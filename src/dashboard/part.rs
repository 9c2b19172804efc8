//! A part of the snapshot that is read repeatedly: one read at a time, awaited no longer than the page can wait. A slow part is
//! read less often.

use std::time::{Duration, Instant};

use tokio::time::timeout_at;
use tokio_util::task::AbortOnDropHandle;

use crate::model::Error;

/// How long a snapshot waits for a read that begins with it, and for an older one.
const READ_TIMEOUT: Duration = Duration::from_millis(900);
const LATE_READ_TIMEOUT: Duration = Duration::from_millis(20);
/// How long a part is shown after its read, if no later read ends.
const VALUE_TTL: Duration = Duration::from_secs(3);
/// The time after which a read is given up.
const MAX_READ: Duration = Duration::from_secs(10);
/// After a read, a part rests for so many times its duration, up to a bound: it may have been slow once.
const REST_FACTOR: u32 = 10;
const MAX_REST: Duration = Duration::from_secs(5);

/// A part and the state of its reads.
pub struct Part<T> {
    /// The last value, and the time until which it is shown.
    known: Option<(T, Instant)>,
    /// The read in progress, and its start.
    reading: Option<(Instant, AbortOnDropHandle<Result<T, Error>>)>,
    /// The time of the next read, at the earliest.
    rests: Option<Instant>,
    failed: Option<String>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Part { known: None, reading: None, rests: None, failed: None }
    }
}

impl<T: Send + 'static> Part<T> {
    /// Begins a read, unless one is in progress or the part rests.
    pub fn begin(&mut self, read: impl Future<Output = Result<T, Error>> + Send + 'static) {
        if self.reading.as_ref().is_some_and(|(began, _)| began.elapsed() >= MAX_READ) {
            self.reading = None;
        }
        if self.reading.is_none() && self.rests.is_none_or(|until| Instant::now() >= until) {
            self.reading = Some((Instant::now(), AbortOnDropHandle::new(tokio::spawn(read))));
        }
    }

    /// Waits for the read in progress: briefly if it began before `tick`, else as long as a snapshot waits. Returns a new value.
    pub async fn settle(&mut self, tick: Instant) -> Option<&T> {
        let (began, mut reading) = self.reading.take()?;
        let until = if began < tick { Instant::now() + LATE_READ_TIMEOUT } else { tick + READ_TIMEOUT };
        let Ok(read) = timeout_at(until.into(), &mut reading).await else {
            self.failed = Some("no answer yet".to_owned());
            self.reading = Some((began, reading));
            return None;
        };
        let rests = (began + began.elapsed() * REST_FACTOR).min(Instant::now() + MAX_REST);
        self.rests = Some(rests);
        match read.unwrap_or_else(|error| Err(Error::Internal(error.into()))) {
            Ok(read) => {
                self.failed = None;
                self.known = Some((read, rests.max(Instant::now()) + VALUE_TTL));
                self.get()
            }
            Err(error) => {
                let failed = match &error {
                    Error::Unavailable { reason, .. } => reason.clone(),
                    _ => "it can't be read: the log says why".to_owned(),
                };
                if !matches!(error, Error::Unavailable { .. }) && self.failed.as_ref() != Some(&failed) {
                    tracing::warn!(%error, "a part of the dashboard can't be read");
                }
                self.known = None;
                self.failed = Some(failed);
                None
            }
        }
    }

    /// The last value, if it is recent enough.
    pub fn get(&self) -> Option<&T> {
        self.known.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(known, _)| known)
    }

    /// Why the last read failed; empty if it did not.
    pub fn failure(&self) -> &str {
        self.failed.as_deref().unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn part_shows_reading_or_failure() {
        let mut part = Part::default();
        assert!(part.get().is_none() && part.settle(Instant::now()).await.is_none());
        let tick = Instant::now();
        part.begin(async { Ok(1) });
        assert_eq!(part.settle(tick).await, Some(&1));
        assert_eq!((part.get(), part.failure()), (Some(&1), ""));
        assert_eq!(part.settle(tick).await, None, "nothing is new");
        part.rests = None;
        part.begin(async { Err(Error::unavailable("it is away")) });
        assert_eq!(part.settle(tick).await, None);
        assert_eq!((part.get(), part.failure()), (None, "it is away"));
        part.rests = None;
        part.begin(async { Err(Error::Internal(anyhow::anyhow!("a password"))) });
        assert_eq!(part.settle(Instant::now()).await, None);
        assert!(!part.failure().is_empty() && !part.failure().contains("password"));
        part.rests = None;
        part.begin(async { panic!("tested") });
        assert_eq!(part.settle(Instant::now()).await, None);
        assert!(!part.failure().is_empty());
    }

    #[tokio::test]
    async fn part_abandons_hanging_reading() {
        let (mut part, begun) = (Part::default(), Arc::new(AtomicU32::new(0)));
        let read = |begun: &Arc<AtomicU32>| {
            let begun = begun.clone();
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                pending::<Result<(), Error>>().await
            }
        };
        part.begin(read(&begun));
        tokio::task::yield_now().await;
        for _ in 0..3 {
            part.begin(read(&begun));
            assert!(part.settle(Instant::now()).await.is_none());
        }
        assert_eq!((begun.load(Ordering::SeqCst), part.failure()), (1, "no answer yet"));
        part.reading.as_mut().unwrap().0 -= MAX_READ;
        part.begin(read(&begun));
        assert!(part.settle(Instant::now()).await.is_none());
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn part_shows_late_reading_with_next_snapshot() {
        let (mut part, go) = (Part::default(), Arc::new(Notify::new()));
        let waits = go.clone();
        part.begin(async move {
            waits.notified().await;
            Ok(7)
        });
        assert_eq!(part.settle(Instant::now()).await, None);
        go.notify_one();
        // Its task has to run first.
        while part.settle(Instant::now()).await.is_none() {}
        assert_eq!(part.get(), Some(&7));
    }

    #[tokio::test]
    async fn part_pauses_after_slow_reading() {
        let mut part = Part::default();
        part.begin(async { Ok(1) });
        part.reading.as_mut().unwrap().0 -= Duration::from_secs(5);
        assert_eq!(part.settle(Instant::now()).await, Some(&1));
        part.begin(async { Ok(2) });
        assert!(part.reading.is_none() && part.rests.unwrap() <= Instant::now() + MAX_REST, "it was slow");
        assert_eq!(part.get(), Some(&1), "shown until the next reading");
        part.rests = Some(Instant::now());
        part.begin(async { Ok(3) });
        assert!(part.reading.is_some());
    }
}
