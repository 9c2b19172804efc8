//! The events of other systems: every reader has a cursor of its own.

use std::time::Duration;

use super::Engine;
use crate::{
    model::{
        Error, Partition,
        public_event::{EventCursor, EventPage, EventQuery, EventStart},
    },
    postgres::{self, events},
};

/// How often a reader that waits is looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The events that one request reads at most, those of other types included.
const MAX_SCANNED: usize = 10_000;
/// The events that are read at once where only some types are asked for.
const SCAN_BATCH: usize = 1000;

impl Engine {
    /// The next events of a reader. Waits at most this long for the first one.
    ///
    /// # Errors
    /// [`Error::EventsExpired`] if events after the cursor are gone; [`Error::InvalidRequest`] for a cursor of another store;
    /// [`Error::Unavailable`] while PostgreSQL is.
    pub async fn events(&self, query: EventQuery, wait: Duration) -> Result<EventPage, Error> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut query = query;
        loop {
            let page = self.next_events(&query).await?;
            let pause = deadline.saturating_duration_since(tokio::time::Instant::now()).min(POLL_INTERVAL);
            if !page.events.is_empty() || page.has_more || pause.is_zero() {
                return Ok(page);
            }
            query.after = EventStart::At(page.next);
            tokio::time::sleep(pause).await;
        }
    }

    async fn next_events(&self, query: &EventQuery) -> Result<EventPage, Error> {
        let ranges = events::ranges(&self.db).await?;
        let mut next = match &query.after {
            EventStart::Oldest => EventCursor::new(ranges.iter().map(|range| range.after).collect()),
            EventStart::Latest => EventCursor::new(ranges.iter().map(|range| range.last).collect()),
            EventStart::At(cursor) if cursor.partitions() == ranges.len() => cursor.clone(),
            EventStart::At(_) => return Err(Error::InvalidRequest("after")),
        };
        if ranges.iter().any(|range| next.place(range.partition) < range.after) {
            return Err(Error::EventsExpired);
        }
        let limit = query.limit.max(1) as usize;
        let (mut found, mut scanned, mut last_read) = (Vec::new(), 0, None);
        for here in next.order() {
            let range = ranges.iter().find(|range| range.partition == here);
            let mut has_more = range.is_some_and(|range| range.last > next.place(here));
            while has_more && found.len() < limit && scanned < MAX_SCANNED {
                let batch = if query.kinds.is_empty() { limit - found.len() } else { SCAN_BATCH };
                let read = events::after(&self.db, here, next.place(here), &query.kinds, batch as i64).await?;
                (scanned, has_more) = (scanned + read.len(), read.len() == batch);
                for (place, event) in read {
                    if found.len() == limit {
                        break;
                    }
                    found.extend(event);
                    next.advance(here, place);
                    last_read = Some(here);
                }
            }
        }
        if let Some(last) = last_read {
            next.begin_with(Partition(last.0 + 1));
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
