//! Ranges of ids.
//!
//! Every partition has its own sequences of the ids that it owns and needs to sell: of orders and payments. So it sells while other
//! partitions don't. The ids of users, products and campaigns are consecutive over all partitions, and come from the first one.

use std::sync::atomic::Ordering;

use crate::{
    model::{Call, Error, Partition, Reply},
    redis::{
        Store,
        keys::Keys,
        reply_code::ReplyCode,
        script::{self, Invocation},
        script_reply::ScriptReply,
    },
};

/// From this id on, orders and payments are of processes of earlier versions, which take the numbers of all partitions from the
/// first one. No own sequence gets that far.
pub const SHARED_IDS_FROM: i64 = 1 << 52;

/// A sequence that every partition has of its own. Its number `n` is the id `n * partitions + partition`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnSequence {
    Orders,
    Payments,
}

impl OwnSequence {
    pub const ALL: [OwnSequence; 2] = [OwnSequence::Orders, OwnSequence::Payments];

    /// The name of the sequence that earlier versions have for all partitions.
    pub fn shared_name(self) -> &'static str {
        match self {
            OwnSequence::Orders => "order",
            OwnSequence::Payments => "payment",
        }
    }

    /// The name of a partition's own sequence. Of a single partition, that for all is its own.
    pub fn name(self, partitions: u16) -> &'static str {
        match (self, partitions) {
            (_, 1) => self.shared_name(),
            (OwnSequence::Orders, _) => "own_order",
            (OwnSequence::Payments, _) => "own_payment",
        }
    }
}

/// The first partition's own sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceSplit {
    pub last: i64,
    /// Whether no partition had such a sequence before.
    pub began: bool,
}

/// Consecutive ids that are for new records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedIds {
    pub first: i64,
    /// Whether a creation under these ids leaves a record of its own. One of an earlier version does not.
    pub creation_is_recorded: bool,
}

impl ReservedIds {
    fn of(reply: &ScriptReply) -> Result<Self, Error> {
        let creation_is_recorded = reply.code == ReplyCode::Allocated || reply.get::<String>(1).is_ok();
        Ok(ReservedIds { first: reply.get(0)?, creation_is_recorded })
    }
}

impl Store {
    /// `ids_reserve.lua`: `count` consecutive ids, and whether they were reserved before under this key.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn ids_reserve(&self, call: &Call, sequence: &str, count: i64) -> Result<Reply<ReservedIds>, Error> {
        self.reserve(call, Partition(0), (sequence, true), count).await
    }

    /// `ids_reserve.lua`: the first of `count` consecutive numbers of a partition's own sequence.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also while the partition has no such sequence yet.
    pub async fn numbers_reserve(&self, here: Partition, sequence: OwnSequence, count: i64) -> Result<i64, Error> {
        let name = sequence.name(self.partitions());
        // Where no other partition could have given the same ids before, the sequence begins by itself.
        let begins = self.partitions() == 1;
        self.reserve(&Call::default(), here, (name, begins), count).await.map(|reserved| reserved.value.first)
    }

    async fn reserve(
        &self,
        call: &Call,
        here: Partition,
        (sequence, begins): (&str, bool),
        count: i64,
    ) -> Result<Reply<ReservedIds>, Error> {
        let mut invocation = self.begin(call, &script::IDS_RESERVE, here);
        invocation.key(Keys(here).ids()).arg(sequence).arg(count).arg(i64::from(begins));
        let reply = self.decide(call, here, &invocation).await?;
        match reply.code {
            ReplyCode::Reserved | ReplyCode::Allocated => Ok(reply.with(ReservedIds::of(&reply)?)),
            ReplyCode::NoSequence => {
                self.shared.lacks_sequences.store(true, Ordering::Relaxed);
                Err(Error::unavailable(format!("partition {} has no sequence of ids yet", here.0)))
            }
            _ => Err(reply.unexpected()),
        }
    }

    /// The ids that an earlier `ids_reserve.lua` reserved under this idempotency key, if there are any.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn ids_reserved_before(&self, call: &Call) -> Result<Option<ReservedIds>, Error> {
        match self.recorded(call, Partition(0), &script::IDS_RESERVE).await? {
            Some(reply) if reply.code == ReplyCode::Reserved => ReservedIds::of(&reply).map(Some),
            Some(reply) => Err(reply.unexpected()),
            None => Ok(None),
        }
    }

    /// `ids_split.lua`: the first partition's own sequence, which begins now if it does not exist. `known`: the last number of an own
    /// sequence that PostgreSQL may know.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn ids_split(&self, sequence: OwnSequence, known: i64) -> Result<SequenceSplit, Error> {
        let (first, partitions) = (Partition(0), self.partitions());
        let mut invocation = Invocation::new(&script::IDS_SPLIT);
        invocation.key(Keys(first).meta()).key(Keys(first).ids());
        invocation.arg(sequence.name(partitions)).arg(sequence.shared_name());
        invocation.arg(shared_numbers_from(partitions)).arg(known);
        let reply = self.run_script(first, &invocation).await?;
        match reply.code {
            ReplyCode::Split => Ok(SequenceSplit { last: reply.get(0)?, began: reply.get::<u8>(1)? == 1 }),
            _ => Err(reply.unexpected()),
        }
    }

    /// `ids_skip.lua`: the next id of a sequence is above `id`.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals). A repeat is safe.
    pub async fn ids_skip(&self, call: &Call, sequence: &str, id: i64) -> Result<(), Error> {
        let first = Partition(0);
        let mut invocation = self.begin_unrecorded(call, &script::IDS_SKIP, first);
        invocation.key(Keys(first).ids()).arg(sequence).arg(id);
        let reply = self.decide(call, first, &invocation).await?;
        match reply.code {
            ReplyCode::Reserved | ReplyCode::Unchanged => Ok(()),
            _ => Err(reply.unexpected()),
        }
    }

    /// `ids_raise.lua`: the next number of a partition's own sequence is above `last`. Begins a sequence that does not exist.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn ids_raise(&self, here: Partition, sequence: OwnSequence, last: i64) -> Result<(), Error> {
        let mut invocation = Invocation::new(&script::IDS_RAISE);
        invocation.key(Keys(here).meta()).key(Keys(here).ids());
        invocation.arg(sequence.name(self.partitions())).arg(last);
        let reply = self.run_script(here, &invocation).await?;
        if reply.code == ReplyCode::Raised { Ok(()) } else { Err(reply.unexpected()) }
    }

    /// Whether a partition has this sequence.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn has_sequence(&self, here: Partition, sequence: OwnSequence) -> Result<bool, Error> {
        let mut read = redis::cmd("HEXISTS");
        read.arg(Keys(here).ids()).arg(sequence.name(self.partitions()));
        self.query(here, read).await
    }

    /// Whether a partition may lack its own sequences.
    pub fn lacks_sequences(&self) -> bool {
        self.shared.lacks_sequences.load(Ordering::Relaxed)
    }

    /// Records whether a partition may lack its own sequences.
    pub fn record_sequences(&self, complete: bool) {
        self.shared.lacks_sequences.store(!complete, Ordering::Relaxed);
    }
}

/// The first number whose ids, in every partition, are those of earlier versions.
pub fn shared_numbers_from(partitions: u16) -> i64 {
    SHARED_IDS_FROM / i64::from(partitions) + 1
}
