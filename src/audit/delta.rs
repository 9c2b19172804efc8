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
    /// The entry of the outbox that PostgreSQL is at.
    pub(super) projected_entry: StreamId,
    /// Whether everything that may be evicted, because PostgreSQL has it, has been set to expire.
    pub(super) evicted: bool,
}

/// Decisions that Redis has made and the rows of PostgreSQL lack.
pub(super) struct Delta {
    pub(super) batch: Batch,
    pub(super) events: Vec<Event>,
    /// The entry with the last change of each balance that changed.
    pub(super) tails: HashMap<i64, StreamId>,
}

impl Delta {
    fn new(events: Vec<(StreamId, Event)>) -> Self {
        let mut tails = HashMap::new();
        for (entry, event) in &events {
            tails.extend(changed_balances(&event.body).into_iter().map(|(user, _)| (user, *entry)));
        }
        let events: Vec<Event> = events.into_iter().map(|(_, event)| event).collect();
        Delta { batch: Batch::fold(&events), events, tails }
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

/// The users whose balances a decision changed, each with the number of its new balance entry.
pub(super) fn changed_balances(body: &Body) -> Vec<(i64, i64)> {
    let entry = match body {
        Body::BalanceCharged(entry) => Some(entry),
        Body::OrderPaid(paid) => paid.entry.as_ref(),
        Body::OrderClosed(closed) => closed.entry.as_ref(),
        Body::UsersCreated { first, step, count, balance, .. } if *balance > 0 => {
            return (0..*count).map(|n| (first.get().saturating_add(n.saturating_mul(*step)), 1)).collect();
        }
        _ => None,
    };
    entry.map(|entry| (entry.user_id.get(), entry.entry_no)).into_iter().collect()
}

/// The decisions between two positions, each with its entry.
enum Between {
    Complete(Vec<(StreamId, Event)>),
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
            let Inspected { position, relayed, entries, records } = inspect((last, MAX_EVENTS)).await?;
            snapshot.end().await?;
            let Some(decided) = position else { bail!("Redis has lost the state of partition {}", here.0) };
            let projected = projected.position;
            if decided < projected {
                bail!("partition {} of Redis is at {decided:?}, behind PostgreSQL's {projected:?}", here.0);
            }
            match between(projected, decided, &entries) {
                Between::Complete(events) => {
                    let evicted = relayed.is_some_and(|mark| mark.position >= projected);
                    let since = Delta::new(events);
                    return Ok(Moment { rows, seen: records, since, projected_entry: last, evicted });
                }
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
    let decoded = |entry: &Entry| event::decode(&entry.fields).into_iter().zip(std::iter::repeat(entry.id));
    for (Decoded { position, event }, entry) in entries.iter().flat_map(decoded) {
        let Some((epoch, seq)) = position else { continue };
        let found = Position { epoch, seq };
        let next = Position { seq: at.seq + 1, ..at };
        if found == next {
            at = found;
            // An unreadable event is skipped: it becomes a dead letter, which is a finding of its own.
            events.extend(event.ok().map(|event| (entry, event)));
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
