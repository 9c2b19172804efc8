//! Reads the same records from both stores, together with the decisions that PostgreSQL lacks.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};

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
/// Pages that are read from Redis ahead: it reads one while the reply before is decoded.
const INSPECTED_AHEAD: usize = 2;
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
    match body {
        Body::UsersCreated { first, step, count, balance, .. } if *balance > 0 => {
            (0..*count).map(|n| (first.get().saturating_add(n.saturating_mul(*step)), 1)).collect()
        }
        body => body.entry().map(|entry| (entry.user_id.get(), entry.entry_no)).into_iter().collect(),
    }
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
        let page = [()];
        let moments = self.moments(
            here,
            &page,
            async |snapshot, ()| rows(snapshot).await,
            async |outbox, ()| inspect(outbox).await,
        );
        moments.await?.pop().context("a page has no moment")
    }

    /// The same for several pages, while the projection is blocked once. PostgreSQL and Redis read at the same time: what PostgreSQL has
    /// of the partition does not change meanwhile.
    pub(super) async fn moments<P, R, T>(
        &self,
        here: Partition,
        pages: &[P],
        rows: impl AsyncFn(&mut Snapshot, &P) -> ReadResult<R>,
        inspect: impl AsyncFn((StreamId, usize), &P) -> Result<Inspected<T>, Error>,
    ) -> anyhow::Result<Vec<Moment<R, T>>> {
        'attempts: for _ in 0..ATTEMPTS {
            let (mut snapshot, projected) = Snapshot::with_projection_blocked(&self.db, here).await?;
            let last: StreamId = projected.stream_id.parse()?;
            let reading = async {
                let mut read = Vec::with_capacity(pages.len());
                for page in pages {
                    read.push(rows(&mut snapshot, page).await?);
                }
                Ok::<_, sqlx::Error>(read)
            };
            let inspecting =
                stream::iter(pages).map(|page| inspect((last, MAX_EVENTS), page)).buffered(INSPECTED_AHEAD);
            let (read, inspected) = tokio::join!(reading, inspecting.try_collect::<Vec<_>>());
            snapshot.end().await?;
            let mut moments = Vec::with_capacity(pages.len());
            for (rows, inspected) in read?.into_iter().zip(inspected?) {
                match moment_of(here, (projected.position, last), rows, inspected)? {
                    Some(moment) => moments.push(moment),
                    None => {
                        tokio::time::sleep(RETRY_INTERVAL).await;
                        continue 'attempts;
                    }
                }
            }
            return Ok(moments);
        }
        bail!("PostgreSQL is more than {MAX_EVENTS} decisions behind partition {}, too far to compare the two", here.0)
    }
}

/// What was read in both stores, if one read has all decisions since the projected position, which is at the entry `last`.
fn moment_of<R, T>(
    here: Partition,
    (projected, last): (Position, StreamId),
    rows: R,
    inspected: Inspected<T>,
) -> anyhow::Result<Option<Moment<R, T>>> {
    let Inspected { position, relayed, entries, records } = inspected;
    let Some(decided) = position else { bail!("Redis has lost the state of partition {}", here.0) };
    if decided < projected {
        bail!("partition {} of Redis is at {decided:?}, behind PostgreSQL's {projected:?}", here.0);
    }
    match between(projected, decided, &entries) {
        Between::Complete(events) => {
            let evicted = relayed.is_some_and(|mark| mark.position >= projected);
            let since = Delta::new(events);
            Ok(Some(Moment { rows, seen: records, since, projected_entry: last, evicted }))
        }
        Between::TooMany => Ok(None),
        Between::Lost => bail!(
            "partition {}: the outbox does not lead from {projected:?}, where PostgreSQL is, to {decided:?}: decisions are lost",
            here.0
        ),
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
