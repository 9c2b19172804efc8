//! The events of other systems: every reader has a cursor of its own.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep_until, timeout_at},
};

use super::Engine;
use crate::{
    model::{
        Error, Partition,
        public_event::{EventCursor, EventPage, EventQuery, EventStart},
    },
    postgres::{
        self,
        events::{self, EventRange},
    },
};

/// Bounds the readers of a process that wait; it is well below the bound of operators' requests. Further ones do not wait.
const MAX_WAITING: usize = 64;
/// How often the readers that wait are looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The events that one request reads at most, those of other types included.
const MAX_SCANNED: usize = 10_000;
/// The events that are read at once where only some types are asked for.
const SCAN_BATCH: usize = 1000;

/// The readers that wait. One of them asks PostgreSQL for all of them.
pub(super) struct WaitingReaders {
    room: Semaphore,
    latest: Mutex<Option<LatestRanges>>,
}

#[derive(Clone)]
struct LatestRanges {
    /// Before they were read.
    at: Instant,
    ranges: Arc<[EventRange]>,
}

impl Default for WaitingReaders {
    fn default() -> Self {
        WaitingReaders { room: Semaphore::new(MAX_WAITING), latest: Mutex::default() }
    }
}

impl WaitingReaders {
    /// The ranges that are read next, after `seen`.
    async fn ranges_after(&self, db: &postgres::Connection, seen: Instant) -> Result<LatestRanges, Error> {
        // The others wait for the lock, and find what this one reads.
        let mut latest = self.latest.lock().await;
        if let Some(latest) = latest.as_ref() {
            if latest.at > seen {
                return Ok(latest.clone());
            }
            sleep_until(latest.at + POLL_INTERVAL).await;
        }
        let at = Instant::now();
        let read = LatestRanges { at, ranges: events::ranges(db).await?.into() };
        *latest = Some(read.clone());
        Ok(read)
    }
}

impl Engine {
    /// The next events of a reader. Waits at most this long for the first one.
    ///
    /// # Errors
    /// [`Error::EventsExpired`] if events after the cursor are gone; [`Error::InvalidRequest`] for a cursor of another store;
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn events(&self, query: EventQuery, wait: Duration) -> Result<EventPage, Error> {
        self.await_events(query, wait).await.map(|(page, _)| page)
    }

    /// As [`Engine::events`], with the time that it waited. Does not wait while too many others do.
    ///
    /// # Errors
    /// As [`Engine::events`].
    pub async fn await_events(&self, mut query: EventQuery, wait: Duration) -> Result<(EventPage, Duration), Error> {
        let mut seen = Instant::now();
        let (deadline, mut waited) = (seen + wait, Duration::ZERO);
        let mut page = self.next_events(&query, &events::ranges(&self.db).await?).await?;
        if wait.is_zero() || !page.is_at_end() {
            return Ok((page, waited));
        }
        let Ok(_room) = self.waiting_readers.room.try_acquire() else { return Ok((page, waited)) };
        while page.is_at_end() {
            query.after = EventStart::At(page.next.clone());
            let began = Instant::now();
            let read = timeout_at(deadline, self.waiting_readers.ranges_after(&self.db, seen)).await;
            waited += began.elapsed();
            let Ok(read) = read else { break };
            let LatestRanges { at, ranges } = read?;
            seen = at;
            page = self.next_events(&query, &ranges).await?;
        }
        Ok((page, waited))
    }

    async fn next_events(&self, query: &EventQuery, ranges: &[EventRange]) -> Result<EventPage, Error> {
        let mut next = match &query.after {
            EventStart::Oldest => EventCursor::new(ranges.iter().map(|range| range.after).collect()),
            EventStart::Latest => EventCursor::new(ranges.iter().map(|range| range.last).collect()),
            EventStart::At(cursor) if cursor.partitions() == ranges.len() => cursor.clone(),
            EventStart::At(_) => return Err(Error::InvalidRequest("after")),
        };
        check_kept(&next, ranges)?;
        let start = next.clone();
        let limit = query.limit.max(1) as usize;
        let (mut found, mut scanned, mut last_read) = (Vec::new(), 0, None);
        for here in next.order() {
            let end = ranges.iter().find(|range| range.partition == here).map_or(next.place(here), |range| range.last);
            let mut is_read = end <= next.place(here);
            while !is_read && found.len() < limit && scanned < MAX_SCANNED {
                let batch = if query.kinds.is_empty() { limit - found.len() } else { SCAN_BATCH };
                let read = events::after(&self.db, here, next.place(here), &query.kinds, batch as i64).await?;
                (scanned, is_read) = (scanned + read.len(), read.len() < batch);
                for (place, event) in read {
                    if found.len() == limit {
                        is_read = false;
                        break;
                    }
                    found.extend(event);
                    next.advance(here, place);
                    last_read = Some(here);
                }
            }
            // The newest decision may be a dead letter, which has no event. The range was read first: nothing comes at or before it.
            if is_read {
                next.advance(here, end.max(next.place(here)));
            }
        }
        if let Some(last) = last_read {
            next.begin_with(Partition(last.0 + 1));
        }
        if next != start {
            // A purge may have come between the two reads.
            check_kept(&start, &events::ranges(&self.db).await?)?;
        }
        let has_more = ranges.iter().any(|range| range.last > next.place(range.partition));
        Ok(EventPage { events: found, next, has_more })
    }

    /// The cursor after the events that are kept no longer.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn skip_expired_events(&self, cursor: &EventCursor) -> Result<EventCursor, Error> {
        let mut cursor = cursor.clone();
        for range in events::ranges(&self.db).await? {
            cursor.advance(range.partition, range.after.max(cursor.place(range.partition)));
        }
        Ok(cursor)
    }

    /// The identity of the deployment, as events name it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn store_identity(&self) -> Result<&str, Error> {
        let read = async {
            let identity = postgres::progress::identity(&self.db).await;
            let identity = identity.map_err(|error| Error::unavailable(format!("{error:#}")))?;
            identity.map(|(store, _)| store).ok_or_else(|| Error::unavailable("PostgreSQL has no identity"))
        };
        self.identity.get_or_try_init(|| read).await.map(String::as_str)
    }
}

/// Checks that no event after a cursor is missing.
fn check_kept(cursor: &EventCursor, ranges: &[EventRange]) -> Result<(), Error> {
    let is_expired = ranges.iter().any(|range| cursor.place(range.partition) < range.after);
    if is_expired { Err(Error::EventsExpired) } else { Ok(()) }
}
