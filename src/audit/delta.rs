//! From where Postgres is to where Redis is: the decisions in between, and the same things on both sides of them.

use std::{collections::HashMap, time::Duration};

use anyhow::bail;

use super::Audit;
use crate::{
    model::{
        Error, OrderStatus, Partition, Position,
        event::{self, Body, Decoded, Event},
    },
    postgres::snapshot::{Read, Snapshot},
    projector::batch::Batch,
    redis::{
        outbox::{Entry, StreamId},
        queries::audit::Inspected,
    },
};

/// Decisions between the two at most: what is read of the outbox at one moment.
const MAX_EVENTS: usize = 20_000;
/// How often is looked where Postgres is too far behind, before it is given up.
const ATTEMPTS: usize = 150;
const PAUSE: Duration = Duration::from_millis(200);

/// The same things as Postgres and as Redis have them, and the decisions that are between the two.
pub(super) struct Moment<R, T> {
    pub(super) rows: R,
    pub(super) seen: Vec<T>,
    pub(super) since: Delta,
}

/// Decisions that Redis has taken and the snapshot of Postgres does not have.
pub(super) struct Delta {
    pub(super) batch: Batch,
    pub(super) events: Vec<Event>,
}

impl Delta {
    fn new(events: Vec<Event>) -> Self {
        Delta { batch: Batch::fold(&events), events }
    }

    /// What the decisions do to the number of PENDING orders of each user.
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

enum Between {
    Are(Vec<Event>),
    /// More than is read at once.
    TooMany,
    AreGone,
}

impl Audit {
    /// Reads rows in a snapshot of Postgres, and the same things in Redis afterwards.
    pub(super) async fn moment<R, T>(
        &self,
        here: Partition,
        rows: impl AsyncFn(&mut Snapshot) -> Read<R>,
        look: impl AsyncFn((StreamId, usize)) -> Result<Inspected<T>, Error>,
    ) -> anyhow::Result<Moment<R, T>> {
        for _ in 0..ATTEMPTS {
            // Postgres stays where it is until Redis is read.
            let (mut snapshot, projected) = Snapshot::standing(&self.db, here.0).await?;
            let rows = rows(&mut snapshot).await?;
            let last: StreamId = projected.stream_id.parse()?;
            let Inspected { position, entries, records } = look((last, MAX_EVENTS)).await?;
            snapshot.end().await?;
            let Some(decided) = position else { bail!("Redis has lost the books of partition {}", here.0) };
            let projected = Position { epoch: projected.epoch, seq: projected.seq };
            if decided < projected {
                bail!("partition {} of Redis is at {decided:?}, behind PostgreSQL's {projected:?}", here.0);
            }
            match between(projected, decided, &entries) {
                Between::Are(events) => return Ok(Moment { rows, seen: records, since: Delta::new(events) }),
                Between::TooMany => tokio::time::sleep(PAUSE).await,
                Between::AreGone => bail!(
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
            // One that can't be read is going to be a dead letter, and a finding.
            events.extend(event);
        } else if found > at && event.is_ok() {
            return Between::AreGone;
        }
    }
    match at == decided {
        true => Between::Are(events),
        false if entries.len() >= MAX_EVENTS => Between::TooMany,
        false => Between::AreGone,
    }
}
