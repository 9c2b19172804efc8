//! One reading of an outbox committed to Postgres: as few transactions as it takes, each of which moves the position along;
//! around what can't be applied, a dead letter.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, TransactionTrait};

use super::{
    Failure, Projector,
    apply::{ApplyError, apply},
    batch::Batch,
};
use crate::{
    model::{
        Partition, Position,
        event::{self, Decoded, Event},
    },
    postgres::{self, queries::resources::ProjectedPosition},
    redis::outbox::Entry,
    telemetry::{metrics, traces},
};

impl Projector {
    /// Commits events in as few transactions as it takes: as many at once as one may have, or, where one of them can't be
    /// applied, the good ones around it and a dead letter for it. What came in one entry goes in one transaction.
    pub(super) async fn commit(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        read: &mut [Read<'_>],
        patience: Duration,
    ) -> Result<(), Failure> {
        // What is before a gap is sound, and a rebuild from Postgres will need it.
        let (sound, gap) = match check_gapless(from, read) {
            Ok(()) => (read.len(), None),
            Err((at, gap)) => (start_of_entry(read, at), Some(gap)),
        };
        let mut from = from.clone();
        // What is still to be committed, the next part last.
        let mut parts: Vec<&[Read<'_>]> = if sound == 0 { Vec::new() } else { vec![&read[..sound]] };
        while let Some(part) = parts.pop() {
            let halves = halves(part);
            if let Some((first, second)) = halves.filter(|_| part.len() > self.batch) {
                parts.extend([second, first]);
                continue;
            }
            match (self.commit_part(here, &from, part, patience, ApplyMode::Together).await, halves) {
                (Ok(to), _) => from = to,
                (Err(CommitError::Bad(_)), Some((first, second))) => parts.extend([second, first]),
                (Err(CommitError::Bad(_)), None) => {
                    let mut committed = self.commit_part(here, &from, part, patience, ApplyMode::OneByOne).await;
                    if let Err(CommitError::Bad(reason)) = &committed {
                        tracing::error!(partition = here.0, reason, "a dead letter can't be filed as it is");
                        committed = self.commit_part(here, &from, part, patience, ApplyMode::Skip).await;
                    }
                    match committed {
                        Ok(to) => from = to,
                        Err(CommitError::Failed(failure)) => return Err(failure),
                        Err(CommitError::Bad(reason)) => {
                            return Err(Failure::Unavailable(format!("a dead letter can't be filed: {reason}")));
                        }
                    }
                }
                (Err(CommitError::Failed(failure)), _) => return Err(failure),
            }
        }
        gap.map_or(Ok(()), Err)
    }

    /// One transaction, if it is over within `patience`. Where it is not, nobody knows whether it was committed: the position
    /// tells.
    async fn commit_part(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        part: &[Read<'_>],
        patience: Duration,
        care: ApplyMode,
    ) -> Result<ProjectedPosition, CommitError> {
        let requests = part.iter().filter_map(|read| read.event.as_ref().ok()).map(|event| event.request_id.as_str());
        let mut work = traces::projection(here.0, part.len(), requests);
        let committing = tokio::time::timeout(patience, self.transact(here, from, part, care)).await;
        let committed = committing.unwrap_or(Err(CommitError::Failed(Failure::Timeout(patience))));
        match &committed {
            Ok(_) => {}
            Err(CommitError::Bad(reason)) => work.failed(|| reason.clone()),
            Err(CommitError::Failed(failure)) => work.failed(|| failure.to_string()),
        }
        committed
    }

    /// One transaction: the position, the effects, the dead letters. Returns the new position.
    async fn transact(
        &self,
        here: Partition,
        from: &ProjectedPosition,
        part: &[Read<'_>],
        care: ApplyMode,
    ) -> Result<ProjectedPosition, CommitError> {
        let mut to = from.clone();
        for read in part {
            to.stream_id = read.entry.id.to_string();
            if let Some((epoch, seq)) = read.position {
                (to.epoch, to.seq) = (epoch, seq);
            }
        }
        let began = Instant::now();
        let transaction = self.db.begin().await?;
        // If nobody hears of us any more, the server must not keep the position locked for us.
        let limit = format!("SET LOCAL idle_in_transaction_session_timeout = {}", self.timeout.as_millis());
        transaction.execute_unprepared(&limit).await?;
        // First the position: it locks the row, so that a second projector waits here and then finds itself overtaken.
        let moved = transaction
            .execute_raw(Statement::from_sql_and_values(
                DbBackend::Postgres,
                "UPDATE projection_positions SET epoch = $1, seq = $2, stream_id = $3, updated_at = now()
                 WHERE partition = $4 AND stream_id = $5 AND epoch = $6 AND seq = $7",
                [
                    to.epoch.into(),
                    to.seq.into(),
                    to.stream_id.as_str().into(),
                    i32::from(here.0).into(),
                    from.stream_id.as_str().into(),
                    from.epoch.into(),
                    from.seq.into(),
                ],
            ))
            .await?;
        if moved.rows_affected() != 1 {
            return Err(CommitError::Failed(Failure::Superseded));
        }
        let (mut letters, mut last_letter) = (0, 0);
        let mut filed = |read: &Read<'_>| {
            letters += 1;
            last_letter = read.position.map_or(last_letter, |(_, seq)| seq.max(last_letter));
        };
        match care {
            ApplyMode::Together => {
                let events = part.iter().filter_map(|read| read.event.as_ref().ok());
                apply(&transaction, here, &Batch::fold(events)).await?;
                for read in part {
                    if let Err(reason) = &read.event {
                        dead_letter(&transaction, here, read, reason, care).await?;
                        filed(read);
                    }
                }
            }
            ApplyMode::OneByOne | ApplyMode::Skip => {
                for read in part {
                    if !apply_in_mode(&transaction, here, read, care).await? {
                        filed(read);
                    }
                }
            }
        }
        transaction.commit().await?;
        metrics::PROJECTOR_SECONDS.observe(began.elapsed().as_secs_f64());
        metrics::PROJECTOR_BATCH.observe(part.len() as f64);
        metrics::PROJECTOR_EVENTS.inc_by(part.len() as u64);
        metrics::DEAD_LETTERS_FILED.inc_by(letters);
        let (epoch, seq) = to.at();
        self.store.record_projected(here, Position { epoch, seq }, last_letter);
        Ok(to)
    }
}

/// One decision of an entry, read: an event or the reason why it is none.
pub(super) struct Read<'a> {
    entry: &'a Entry,
    /// Which of the entry's decisions it is, from 0.
    nth: usize,
    position: Option<(i64, i64)>,
    pub(super) event: Result<Event, String>,
}

impl<'a> Read<'a> {
    pub(super) fn all(entries: &'a [Entry]) -> Vec<Self> {
        let mut read = Vec::with_capacity(entries.len());
        for entry in entries {
            for (nth, Decoded { position, event }) in event::decode(&entry.fields).into_iter().enumerate() {
                read.push(Read { entry, nth, position, event: event.map_err(|bad| bad.0) });
            }
        }
        read
    }
}

/// The index of the first of those that came in one entry with `at`.
fn start_of_entry(read: &[Read<'_>], at: usize) -> usize {
    let here = read[at].entry.id;
    read[..at].iter().rposition(|before| before.entry.id != here).map_or(0, |before| before + 1)
}

/// Two parts of about the same size, none of them with a part of an entry; nothing where there is but one entry.
fn halves<'a, 'b>(part: &'a [Read<'b>]) -> Option<(&'a [Read<'b>], &'a [Read<'b>])> {
    let middle = start_of_entry(part, part.len() / 2);
    let first = part.first()?.entry.id;
    let at = if middle > 0 { middle } else { part.iter().position(|read| read.entry.id != first)? };
    Some(part.split_at(at))
}

/// How a transaction goes about its events.
#[derive(Clone, Copy)]
enum ApplyMode {
    /// All at once; one that can't be applied fails it.
    Together,
    /// Each by itself; one that can't be applied becomes a dead letter.
    OneByOne,
    /// The same, with dead letters in ASCII alone: for a database that refuses what is in them as well. Such a letter is there to
    /// be read, and can't be tried again.
    Skip,
}

/// Whether it was applied; else it is a dead letter now.
async fn apply_in_mode(
    transaction: &DatabaseTransaction,
    here: Partition,
    read: &Read<'_>,
    care: ApplyMode,
) -> Result<bool, CommitError> {
    let reason = match &read.event {
        Ok(event) => {
            let step = transaction.begin().await?;
            match apply(&step, here, &Batch::fold([event])).await.map_err(CommitError::from) {
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
    dead_letter(transaction, here, read, &reason, care).await.map(|()| false)
}

enum CommitError {
    /// The data does not fit.
    Bad(String),
    Failed(Failure),
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

/// Decisions are numbered without gaps. (A rebuild begins a new epoch in Postgres as well: nothing leads from one epoch to the
/// next.) An error is the index of the first entry that does not follow. An entry that is no event counts where its number is
/// the next, and nowhere else: what a decision wrote may be unreadable, but it has its place, and what none wrote has none.
fn check_gapless(from: &ProjectedPosition, read: &mut [Read<'_>]) -> Result<(), (usize, Failure)> {
    let (epoch, mut seq) = from.at();
    for (at, read) in read.iter_mut().enumerate() {
        let Some((found_epoch, found_seq)) = read.position else { continue };
        let next = found_epoch == epoch && found_seq == seq + 1;
        if !next && read.event.is_err() {
            read.position = None;
            continue;
        }
        if !next {
            let request_id = read.event.as_ref().map_or_else(|_| String::new(), |event| event.request_id.clone());
            let gap = Failure::Gap { partition: from.partition, epoch, seq, found_epoch, found_seq, request_id };
            return Err((at, gap));
        }
        seq = found_seq;
    }
    Ok(())
}

async fn dead_letter(
    transaction: &DatabaseTransaction,
    here: Partition,
    read: &Read<'_>,
    reason: &str,
    care: ApplyMode,
) -> Result<(), CommitError> {
    let fields = event::fields_of(&read.entry.fields, read.nth);
    let request_id = event::request_id(&fields);
    tracing::error!(partition = here.0, id = %read.entry.id, request_id, reason, "an event can't be applied");
    // Postgres can't keep a NUL in text or JSON.
    let clean = |text: &str| match care {
        ApplyMode::Skip => text.escape_default().to_string(),
        _ => text.replace('\0', "\u{fffd}"),
    };
    let mut fields: serde_json::Map<String, serde_json::Value> =
        fields.iter().map(|(name, value)| (clean(name), clean(value).into())).collect();
    if let ApplyMode::Skip = care {
        // Not as fields: what reads like an event again might be applied, with another name than was given.
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
                read.position.map(|(epoch, _)| epoch).into(),
                read.position.map(|(_, seq)| seq).into(),
                clean(reason).into(),
                serde_json::Value::Object(fields).into(),
            ],
        ))
        .await?;
    Ok(())
}
