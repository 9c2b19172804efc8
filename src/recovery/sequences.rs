//! The sequences of ids: where they continue after a rebuild, and each partition's own, which a store of an earlier version lacks.

use futures_util::future::join_all;

use crate::{
    model::Error,
    postgres::{self, loss, snapshot::Snapshot},
    redis::{
        Store,
        commands::{OwnSequence, SHARED_IDS_FROM, SequenceSplit},
    },
};

/// Skips the ids that running processes may have reserved and not used: each reserves blocks of a thousand.
const RESERVED_IDS: i64 = 100_000;
/// Skips the ids that lost decisions may have used.
const POSSIBLY_LOST_IDS: i64 = 10_000_000;

/// The last ids of a sequence that PostgreSQL knows, and how a sequence continues after them.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastIds {
    /// The last of all.
    pub(super) last: i64,
    /// The last of the partitions' own sequences.
    pub(super) own: i64,
    pub(super) partitions: u16,
    /// Whether a decision may ever have been lost: the ids of lost decisions are in no store.
    pub(super) lost: bool,
}

impl LastIds {
    fn skipped(self) -> i64 {
        if self.lost { POSSIBLY_LOST_IDS } else { 0 }
    }

    fn number_after(self, id: i64) -> i64 {
        id / i64::from(self.partitions) + RESERVED_IDS + self.skipped()
    }

    /// The last number of an own sequence.
    pub(super) fn own_number(self) -> i64 {
        self.number_after(self.own)
    }

    /// The last number of the sequence from which earlier versions take the numbers of all partitions.
    pub(super) fn shared_number(self) -> i64 {
        self.number_after(self.last.max(SHARED_IDS_FROM))
    }

    /// The last id of a sequence of consecutive ids.
    pub(super) fn consecutive(self) -> i64 {
        self.last + self.skipped()
    }
}

/// Begins the partitions' own sequences where they are missing, and notes whether a partition still lacks one, because it is closed.
///
/// # Errors
/// PostgreSQL is unavailable, or Redis replies with nonsense.
pub(super) async fn complete(store: &Store, db: &postgres::Connection) -> anyhow::Result<()> {
    let complete = store.partitions() == 1 || begin(store, db).await?;
    store.record_sequences(complete);
    Ok(())
}

async fn begin(store: &Store, db: &postgres::Connection) -> anyhow::Result<bool> {
    let mut snapshot = Snapshot::begin(db).await?;
    let known = snapshot.last_ids(SHARED_IDS_FROM).await?;
    snapshot.end().await?;
    let lost = loss::read(db).await?.iter().any(|loss| loss.suspected_at.is_some());
    let mut complete = true;
    for sequence in OwnSequence::ALL {
        let known = known.iter().find(|(name, ..)| name == sequence.shared_name());
        let (last, own) = known.map_or((0, 0), |(_, last, own)| (*last, *own));
        let ids = LastIds { last, own, partitions: store.partitions(), lost };
        complete &= succeeded(begin_everywhere(store, sequence, ids).await)?;
    }
    Ok(complete)
}

/// Begins a sequence in every partition.
async fn begin_everywhere(store: &Store, sequence: OwnSequence, ids: LastIds) -> Result<(), Error> {
    let SequenceSplit { last, began } = store.ids_split(sequence, ids.own_number()).await?;
    let begun = store.all().skip(1).map(async |here| {
        if began {
            // No own sequence has given a number yet.
            return store.ids_raise(here, sequence, last).await;
        }
        if store.has_sequence(here, sequence).await? {
            return Ok(());
        }
        // A rebuild by an earlier version may have removed one that gave numbers.
        store.ids_raise(here, sequence, last.max(ids.own_number())).await
    });
    join_all(begun).await.into_iter().collect()
}

/// Whether a step succeeded; not if a partition is closed.
fn succeeded(step: Result<(), Error>) -> Result<bool, Error> {
    match step {
        Ok(()) => Ok(true),
        Err(Error::Unavailable { reason, .. }) => {
            tracing::warn!(reason, "a partition does not begin its own sequences of ids yet");
            Ok(false)
        }
        Err(other) => Err(other),
    }
}
