//! Reads the same records from both stores, together with the decisions that PostgreSQL lacks.

use std::{collections::HashMap, time::Duration};

use anyhow::bail;

use super::Audit;
use crate::{
    model::{
        Error, OrderStatus, Partition, Position,
        event::{self, Body, Decoded, Event},
    },
    postgres::snapshot::{ReadResult, Snapshot},
    projector::batch::Batch,
    redis::{
        outbox::{Entry, StreamId},
        queries::audit::Inspected,
    },
};

/// Entries of the outbox in one read.
const MAX_EVENTS: usize = 20_000;
/// Attempts, and the pause between them, while the outbox has more entries than one read.
const ATTEMPTS: usize = 150;
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The same records in both stores.
pub(super) struct Moment<R, T> {
    /// The rows of PostgreSQL.
    pub(super) rows: R,
    /// The records of Redis.
    pub(super) seen: Vec<T>,
    /// The decisions in between.
    pub(super) since: Delta,
}

/// Decisions that Redis has made and the rows of PostgreSQL lack.
pub(super) struct Delta {
    pub(super) batch: Batch,
    pub(super) events: Vec<Event>,
}

impl Delta {
    fn new(events: Vec<Event>) -> Self {
        Delta { batch: Batch::fold(&events), events }
    }

    /// The change of the number of PENDING orders, by user.
    pub(super) fn open_orders(&self) -> HashMap<i64, i64> {
        let mut open = HashMap::new();
        for event in &self.events {
            let (user, change) = match &event.body {
                Body::OrderPlaced(placed) => (placed.user, 1),
                Body::OrderPaid(paid) => (paid.user, -1),
                Body::OrderClosed(closed) if closed.from == OrderStatus::Pending => (closed.user, -1),
                _ => continue,
            };
            *open.entry(user.get()).or_default() += change;
        }
        open
    }
}

/// The decisions between two positions.
enum Between {
    Complete(Vec<Event>),
    /// One read does not contain them all.
    TooMany,
    /// The outbox lacks some.
    Lost,
}

impl Audit {
    /// Reads rows of PostgreSQL with `rows`, and then the same records of Redis with `inspect`, while the projection is
    /// blocked.
    pub(super) async fn moment<R, T>(
        &self,
        here: Partition,
        rows: impl AsyncFn(&mut Snapshot) -> ReadResult<R>,
        inspect: impl AsyncFn((StreamId, usize)) -> Result<Inspected<T>, Error>,
    ) -> anyhow::Result<Moment<R, T>> {
        for _ in 0..ATTEMPTS {
            let (mut snapshot, projected) = Snapshot::with_projection_blocked(&self.db, here).await?;
            let rows = rows(&mut snapshot).await?;
            let last: StreamId = projected.stream_id.parse()?;
            let Inspected { position, entries, records } = inspect((last, MAX_EVENTS)).await?;
            snapshot.end().await?;
            let Some(decided) = position else { bail!("Redis has lost the state of partition {}", here.0) };
            let projected = projected.position;
            if decided < projected {
                bail!("partition {} of Redis is at {decided:?}, behind PostgreSQL's {projected:?}", here.0);
            }
            match between(projected, decided, &entries) {
                Between::Complete(events) => return Ok(Moment { rows, seen: records, since: Delta::new(events) }),
                Between::TooMany => tokio::time::sleep(RETRY_INTERVAL).await,
                Between::Lost => bail!(
                    "partition {}: the outbox does not lead from {projected:?}, where PostgreSQL is, to {decided:?}: decisions \
                     are lost",
                    here.0
                ),
            }
        }
        bail!("PostgreSQL is more than {MAX_EVENTS} decisions behind partition {}, too far to compare the two", here.0)
    }
}

fn between(projected: Position, decided: Position, entries: &[Entry]) -> Between {
    let (mut events, mut at) = (Vec::new(), projected);
    for Decoded { position, event } in entries.iter().flat_map(|entry| event::decode(&entry.fields)) {
        let Some((epoch, seq)) = position else { continue };
        let found = Position { epoch, seq };
        let next = Position { seq: at.seq + 1, ..at };
        if found == next {
            at = found;
            // An unreadable event is skipped: it becomes a dead letter, which is a finding of its own.
            events.extend(event);
        } else if found > at && event.is_ok() {
            return Between::Lost;
        }
    }
    match at == decided {
        true => Between::Complete(events),
        false if entries.len() >= MAX_EVENTS => Between::TooMany,
        false => Between::Lost,
    }
}
