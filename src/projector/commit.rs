//! Commits one read of an outbox to PostgreSQL, in as few transactions as possible. Each transaction advances the
//! position. An event that can't be applied becomes a dead letter.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, TransactionTrait};

use super::{
    Projector, StepError,
    apply::{ApplyError, apply, remove_names},
    batch::Batch,
    events::EventSink,
};
use crate::{
    model::{
        Partition, Position,
        event::{self, Decoded, Event},
    },
    postgres::{self, progress::ProjectedPosition},
    redis::outbox::Entry,
    telemetry::{metrics, traces},
};

impl Projector {
    /// Moves the positions of these partitions, each to the start of a new outbox. For a rebuild, which has emptied the
    /// outboxes: the ids of the new entries may be lower than earlier ones.
    ///
    /// # Errors
    /// PostgreSQL is unavailable.
    pub async fn rewind(&self, positions: &[(Partition, Position)]) -> Result<(), DbErr> {
        let sql = "UPDATE projection_positions AS p SET stream_id = '0-0', epoch = new.epoch, seq = new.seq,
                       (events_epoch, events_seq, events_late) = (SELECT
                           CASE WHEN kept THEN new.epoch ELSE p.events_epoch END,
                           CASE WHEN kept THEN new.seq ELSE p.events_seq END,
                           CASE WHEN kept THEN 0 ELSE p.events_late END
                           FROM (SELECT coalesce(p.events_epoch = p.epoch AND p.events_seq = p.seq, false) AS kept) AS run)
                   FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (partition, epoch, seq)
                   WHERE p.partition = new.partition";
        let column =
            |value: fn(&(Partition, Position)) -> i64| positions.iter().map(value).collect::<Vec<i64>>().into();
        let values = [column(|(here, _)| here.0.into()), column(|(_, at)| at.epoch), column(|(_, at)| at.seq)];
        self.db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await.map(drop)
    }

    /// Commits events in as few transactions as possible. A transaction that contains an event that can't be applied is
    /// halved until the event is alone, and becomes a dead letter. The events of one entry stay in one transaction.
    /// Returns the new position.
    pub(super) async fn commit(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        read: &mut [DecodedDecision<'_>],
        timeout: Duration,
    ) -> Result<ProjectedPosition, StepError> {
        // The events before a gap are sound, and a rebuild from PostgreSQL needs them.
        let (sound, gap) = match check_gapless(from, read) {
            Ok(()) => (read.len(), None),
            Err((at, gap)) => (start_of_entry(read, at), Some(gap)),
        };
        let mut from = from.clone();
        // A stack of the parts that remain: the next part is the last one.
        let mut parts: Vec<&[DecodedDecision<'_>]> = if sound == 0 { Vec::new() } else { vec![&read[..sound]] };
        while let Some(part) = parts.pop() {
            let halves = halves(part);
            if let Some((first, second)) = halves.filter(|_| part.len() > self.batch) {
                parts.extend([second, first]);
                continue;
            }
            match (self.commit_part(here, &from, part, timeout, ApplyMode::Together).await, halves) {
                (Ok(to), _) => from = to,
                (Err(CommitError::Bad(_)), Some((first, second))) => parts.extend([second, first]),
                (Err(CommitError::Bad(_)), None) => {
                    let mut committed = self.commit_part(here, &from, part, timeout, ApplyMode::OneByOne).await;
                    if let Err(CommitError::Bad(reason)) = &committed {
                        tracing::error!(partition = here.0, reason, "a dead letter can't be filed as it is");
                        committed = self.commit_part(here, &from, part, timeout, ApplyMode::Skip).await;
                    }
                    match committed {
                        Ok(to) => from = to,
                        Err(CommitError::Failed(failure)) => return Err(failure),
                        Err(CommitError::Bad(reason)) => {
                            return Err(StepError::Unavailable(format!("a dead letter can't be filed: {reason}")));
                        }
                    }
                }
                (Err(CommitError::Failed(failure)), _) => return Err(failure),
            }
        }
        gap.map_or(Ok(from), Err)
    }

    /// Runs one transaction for at most `timeout`. After a timeout its outcome is unknown: the next read of the
    /// position tells.
    async fn commit_part(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        part: &[DecodedDecision<'_>],
        timeout: Duration,
        mode: ApplyMode,
    ) -> Result<ProjectedPosition, CommitError> {
        let requests = part.iter().filter_map(|read| read.event.as_ref().ok()).map(|event| event.request_id.as_str());
        let mut work = traces::projection(here.0, part.len(), requests);
        let committing = tokio::time::timeout(timeout, self.transact(here, from, part, mode)).await;
        let committed = committing.unwrap_or(Err(CommitError::Failed(StepError::Timeout(timeout))));
        match &committed {
            Ok(_) => {}
            Err(CommitError::Bad(reason)) => work.failed(|| reason.clone()),
            Err(CommitError::Failed(failure)) => work.failed(|| failure.to_string()),
        }
        committed
    }

    /// Runs one transaction: the position, the changes, the dead letters. Returns the new position.
    async fn transact(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        part: &[DecodedDecision<'_>],
        mode: ApplyMode,
    ) -> Result<ProjectedPosition, CommitError> {
        let mut to = from.clone();
        for read in part {
            to.stream_id = read.entry.id.to_string();
            if let Some(position) = read.position {
                to.position = position;
            }
        }
        let began = Instant::now();
        let transaction = self.db.begin().await?;
        // The position comes first, because its update locks the row: a second projector waits here, and is superseded. If this
        // process disappears, the server must not keep it locked.
        let moved = transaction
            .execute_raw(Statement::from_sql_and_values(
                DbBackend::Postgres,
                "UPDATE projection_positions SET epoch = $1, seq = $2, stream_id = $3, updated_at = now(),
                     events_epoch = CASE WHEN $9 THEN $1 END, events_seq = CASE WHEN $9 THEN $2 END, events_late = 0,
                     (events_after_epoch, events_after_seq, events_after_late) = (SELECT
                         CASE WHEN $9 THEN CASE WHEN kept THEN events_after_epoch ELSE epoch END END,
                         CASE WHEN $9 THEN CASE WHEN kept THEN events_after_seq ELSE seq END END,
                         CASE WHEN $9 THEN CASE WHEN kept THEN events_after_late ELSE events_late END ELSE 0 END
                         FROM (SELECT coalesce(events_epoch = epoch AND events_seq = seq, false) AS kept) AS run)
                 WHERE partition = $4 AND stream_id = $5 AND epoch = $6 AND seq = $7
                     AND set_config('idle_in_transaction_session_timeout', $8, true) IS NOT NULL",
                [
                    to.position.epoch.into(),
                    to.position.seq.into(),
                    to.stream_id.as_str().into(),
                    i32::from(here.0).into(),
                    from.stream_id.as_str().into(),
                    from.position.epoch.into(),
                    from.position.seq.into(),
                    self.timeout.as_millis().to_string().into(),
                    self.events.is_on().into(),
                ],
            ))
            .await?;
        if moved.rows_affected() != 1 {
            return Err(CommitError::Failed(StepError::Superseded));
        }
        let (mut filed, mut last_dead_letter) = (0, 0);
        let mut count_filed = |read: &DecodedDecision<'_>| {
            filed += 1;
            last_dead_letter = read.position.map_or(last_dead_letter, |position| position.seq.max(last_dead_letter));
        };
        match mode {
            ApplyMode::Together => {
                for read in part {
                    if let Err(reason) = &read.event {
                        file_dead_letter(&transaction, here, read, reason, mode).await?;
                        count_filed(read);
                    }
                }
                let events = || part.iter().filter_map(|read| read.event.as_ref().ok());
                apply(&transaction, (here, self.store.partitions()), &Batch::fold(events())).await?;
                self.events.write(&transaction, here, events()).await?;
                remove_names(&transaction, here, events()).await?;
            }
            ApplyMode::OneByOne | ApplyMode::Skip => {
                for read in part {
                    if !apply_or_file(&transaction, &self.events, (here, self.store.partitions()), read, mode).await? {
                        count_filed(read);
                    }
                    // Also if the event itself can't be applied.
                    remove_names(&transaction, here, read.event.iter()).await?;
                }
            }
        }
        transaction.commit().await?;
        metrics::PROJECTOR_SECONDS.observe(began.elapsed().as_secs_f64());
        metrics::PROJECTOR_BATCH.observe(part.len() as f64);
        metrics::PROJECTOR_EVENTS.inc_by(part.len() as u64);
        metrics::DEAD_LETTERS_FILED.inc_by(filed);
        self.store.record_projected(here, to.position, last_dead_letter);
        Ok(to)
    }
}

/// A decoded decision of an entry: its event, or the reason why it can't be read.
pub(super) struct DecodedDecision<'a> {
    entry: &'a Entry,
    /// The index of the decision within its entry.
    nth: usize,
    position: Option<Position>,
    pub(super) event: Result<Event, String>,
}

impl<'a> DecodedDecision<'a> {
    pub(super) fn all(entries: &'a [Entry]) -> Vec<Self> {
        let mut read = Vec::with_capacity(entries.len());
        for entry in entries {
            for (nth, Decoded { position, event }) in event::decode(&entry.fields).into_iter().enumerate() {
                let position = position.map(|(epoch, seq)| Position { epoch, seq });
                read.push(DecodedDecision { entry, nth, position, event: event.map_err(|bad| bad.0) });
            }
        }
        read
    }
}

/// The index of the first decision of the entry that contains decision `at`.
fn start_of_entry(read: &[DecodedDecision<'_>], at: usize) -> usize {
    let entry = read[at].entry.id;
    read[..at].iter().rposition(|before| before.entry.id != entry).map_or(0, |before| before + 1)
}

/// Splits a part between two entries, near the middle; `None` if it has only one entry.
fn halves<'a, 'b>(part: &'a [DecodedDecision<'b>]) -> Option<(&'a [DecodedDecision<'b>], &'a [DecodedDecision<'b>])> {
    let middle = start_of_entry(part, part.len() / 2);
    let first = part.first()?.entry.id;
    let at = if middle > 0 { middle } else { part.iter().position(|read| read.entry.id != first)? };
    Some(part.split_at(at))
}

/// How a transaction applies its events.
#[derive(Clone, Copy)]
enum ApplyMode {
    /// All events at once. An event that can't be applied fails the transaction.
    Together,
    /// Each event in a savepoint. An event that can't be applied becomes a dead letter.
    OneByOne,
    /// As `OneByOne`, with the text of dead letters escaped to ASCII, for a database that refuses the text itself. Such
    /// a dead letter is for reading only: it can't be retried.
    Skip,
}

/// Applies an event, or files it as a dead letter. Returns whether it was applied.
async fn apply_or_file(
    transaction: &DatabaseTransaction,
    events: &EventSink,
    (here, partitions): (Partition, u16),
    read: &DecodedDecision<'_>,
    mode: ApplyMode,
) -> Result<bool, CommitError> {
    let reason = match &read.event {
        Ok(event) => {
            let step = transaction.begin().await?;
            let applied = async {
                apply(&step, (here, partitions), &Batch::fold([event])).await?;
                events.write(&step, here, [event].into_iter()).await
            };
            match applied.await.map_err(CommitError::from) {
                Ok(()) => {
                    step.commit().await?;
                    return Ok(true);
                }
                Err(CommitError::Bad(reason)) => {
                    step.rollback().await?;
                    reason
                }
                Err(failed) => return Err(failed),
            }
        }
        Err(reason) => reason.clone(),
    };
    file_dead_letter(transaction, here, read, &reason, mode).await.map(|()| false)
}

enum CommitError {
    /// The data causes the error: a retry can't succeed.
    Bad(String),
    /// A retry may succeed.
    Failed(StepError),
}

impl From<DbErr> for CommitError {
    fn from(error: DbErr) -> Self {
        if postgres::is_data_fault(&error) {
            CommitError::Bad(error.to_string())
        } else {
            CommitError::Failed(error.into())
        }
    }
}

impl From<ApplyError> for CommitError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Db(error) => error.into(),
            missing @ ApplyError::Missing { .. } => CommitError::Bad(missing.to_string()),
        }
    }
}

/// Checks that the decisions follow `from` without a gap. The epoch never changes here: a rebuild also moves the
/// position in PostgreSQL to the new epoch. An entry that can't be read keeps its position only if that is the next
/// one: the entry of a decision may be unreadable, but an entry that no decision wrote has no position.
///
/// # Errors
/// The index of the first decision after a gap, and the gap.
fn check_gapless(from: &ProjectedPosition, read: &mut [DecodedDecision<'_>]) -> Result<(), (usize, StepError)> {
    let mut last = from.position;
    for (at, read) in read.iter_mut().enumerate() {
        let Some(found) = read.position else { continue };
        if found == (Position { seq: last.seq + 1, ..last }) {
            last = found;
        } else if let Ok(event) = &read.event {
            let request_id = event.request_id.clone();
            return Err((at, StepError::Gap { partition: from.partition, last, found, request_id }));
        } else {
            read.position = None;
        }
    }
    Ok(())
}

async fn file_dead_letter(
    transaction: &DatabaseTransaction,
    here: Partition,
    read: &DecodedDecision<'_>,
    reason: &str,
    mode: ApplyMode,
) -> Result<(), CommitError> {
    let fields = event::fields_of(&read.entry.fields, read.nth);
    let request_id = event::request_id(&fields);
    tracing::error!(partition = here.0, id = %read.entry.id, request_id, reason, "an event can't be applied");
    // PostgreSQL can't store a NUL in text or JSON.
    let clean = |text: &str| match mode {
        ApplyMode::Skip => text.escape_default().to_string(),
        _ => text.replace('\0', "\u{fffd}"),
    };
    let mut fields: serde_json::Map<String, serde_json::Value> =
        fields.iter().map(|(name, value)| (clean(name), clean(value).into())).collect();
    if let ApplyMode::Skip = mode {
        // One text instead of fields, so that a retry can't apply the event with escaped names.
        let text = serde_json::Value::Object(fields).to_string();
        fields = serde_json::Map::from_iter([("escaped".to_owned(), text.into())]);
    }
    transaction
        .execute_raw(Statement::from_sql_and_values(
            DbBackend::Postgres,
            "INSERT INTO dead_letters (partition, stream_id, epoch, seq, reason, fields) VALUES ($1, $2, $3, $4, $5, $6)",
            [
                i32::from(here.0).into(),
                read.entry.id.to_string().into(),
                read.position.map(|position| position.epoch).into(),
                read.position.map(|position| position.seq).into(),
                clean(reason).into(),
                serde_json::Value::Object(fields).into(),
            ],
        ))
        .await?;
    Ok(())
}
