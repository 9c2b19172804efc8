//! Keeps committed entries in the outbox for a while, and notices that PostgreSQL has gone back.
//!
//! A standby that is promoted may lack the last commits of its primary. The position is part of the same commits, so the
//! projector reads it as it is now, and goes on from there: the outbox still has the entries. What has been trimmed is a
//! gap, and the partition is frozen.
//!
//! The steps after a commit are not repeated for an entry that is committed again: the *mark* in Redis says how far they
//! are done. The orders that they evicted may have left Redis, which is why a PostgreSQL behind the mark is not asked for
//! them (`archive`). Only the eviction is repeated, because a dead letter may be applied this time; it sets a TTL, and
//! leaves an order alone that has changed since.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{
    config::ProjectorConfig,
    model::{Partition, Position},
    postgres::progress::ProjectedPosition,
    redis::outbox::{Entry, Relayed, StreamId},
    telemetry::metrics,
};

/// Into how many parts the time is divided in which entries are kept: the outbox is trimmed by one part at a time.
const PARTS: u64 = 64;

/// How long, and how many, committed entries stay in the outbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutboxRetention {
    us: u64,
    /// Of one partition, about.
    bytes: u64,
}

impl OutboxRetention {
    pub(super) fn new(config: &ProjectorConfig, partitions: u16) -> Self {
        let us = config.outbox_keep().as_micros() as u64;
        OutboxRetention { us, bytes: config.outbox_keep_bytes / u64::from(partitions.max(1)) }
    }
}

/// What this process knows of each partition's outbox.
#[derive(Default)]
pub(super) struct Tails(Mutex<HashMap<Partition, Tail>>);

impl Tails {
    /// Calls `f` with the partition's tail.
    pub(super) fn of<T>(&self, here: Partition, f: impl FnOnce(&mut Tail) -> T) -> T {
        let mut tails: MutexGuard<'_, _> = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(tails.entry(here).or_default())
    }
}

/// What this process knows of a partition's outbox.
#[derive(Default)]
pub(super) struct Tail {
    /// PostgreSQL's position at the last step.
    seen: Option<Position>,
    /// The mark, as this process knows it.
    relayed: Option<Relayed>,
    committed: Committed,
    /// The position that PostgreSQL had before it went back, and when that was noticed.
    lost: Option<(Position, Instant)>,
    /// About the bytes of an entry, by the last read.
    bytes_per_entry: u64,
}

impl Tail {
    /// PostgreSQL's position at the last step; the mark before the first one.
    pub(super) fn known(&self) -> Option<Position> {
        self.seen.or(self.relayed.map(|mark| mark.position))
    }

    /// Whether the mark is unknown.
    pub(super) fn is_unmarked(&self) -> bool {
        self.relayed.is_none()
    }

    /// Records the mark, as read or written.
    pub(super) fn record_relayed(&mut self, mark: Relayed) {
        let is_later = |old: Relayed| (mark.position, mark.entry) > (old.position, old.entry);
        if self.relayed.is_none_or(is_later) {
            self.relayed = Some(mark);
        }
    }

    /// The mark, as this process knows it.
    pub(super) fn relayed(&self) -> Option<Relayed> {
        self.relayed
    }

    /// Forgets the mark, which Redis has lost: the next step reads it.
    pub(super) fn forget_relayed(&mut self) {
        self.relayed = None;
    }

    /// Whether the steps after the commit are done for everything up to `at` and its entry.
    pub(super) fn is_relayed(&self, at: Position, entry: StreamId) -> bool {
        self.relayed.is_some_and(|mark| {
            mark.position.epoch > at.epoch || mark.position.epoch == at.epoch && mark.entry >= entry
        })
    }

    /// Records PostgreSQL's position, read while `before` was known, and logs that PostgreSQL has gone back or has again
    /// what it had.
    pub(super) fn observe(&mut self, read: &ProjectedPosition, last: StreamId, before: Option<Position>, now_us: u64) {
        let (here, position) = (read.partition, read.position);
        self.seen = Some(position);
        self.committed.observe(last, now_us);
        if let Some(before) = before.filter(|before| position < *before) {
            metrics::PROJECTION_REWINDS.inc();
            let lost = self.lost.map_or(before, |(lost, _)| lost.max(before));
            self.lost = Some((lost, Instant::now()));
            let (epoch, seq, had_epoch, had_seq) = (position.epoch, position.seq, before.epoch, before.seq);
            tracing::warn!(
                partition = here.0,
                epoch,
                seq,
                had_epoch,
                had_seq,
                "PostgreSQL has gone back: a standby was promoted without the last commits, or a backup restored. The outbox is \
                 projected again from there"
            );
        } else if let Some((lost, since)) = self.lost.filter(|(lost, _)| position >= *lost) {
            self.lost = None;
            let (seq, seconds) = (lost.seq, since.elapsed().as_secs_f64());
            tracing::info!(partition = here.0, seq, seconds, "PostgreSQL has again what it had before it went back");
        }
    }

    /// Measures the entries of a read.
    pub(super) fn measure(&mut self, entries: &[Entry]) {
        let bytes: usize = entries.iter().map(Entry::bytes).sum();
        self.bytes_per_entry = (bytes as u64).div_ceil(entries.len().max(1) as u64);
    }

    /// The last entry that is to be trimmed now, if there is one.
    pub(super) fn due(&mut self, retention: OutboxRetention, now_us: u64) -> Option<StreamId> {
        self.committed.due(retention, now_us)
    }

    /// Drops the oldest entries before their time if the `kept` committed ones need more than their share of memory; the
    /// next step trims them.
    pub(super) fn limit(&mut self, retention: OutboxRetention, kept: usize) {
        let bytes = kept as u64 * self.bytes_per_entry;
        self.committed.drop_oldest(bytes.saturating_sub(retention.bytes), bytes);
    }
}

/// The ends of committed entries, with the times since when they are known to be committed.
#[derive(Default)]
struct Committed {
    /// In the order of both.
    ends: VecDeque<End>,
    /// How many of the oldest are due before their time.
    excess: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    last: StreamId,
    at_us: u64,
}

impl Committed {
    /// Records that PostgreSQL has everything up to `last`, and nothing more. Later ends are no longer committed if it has
    /// gone back.
    fn observe(&mut self, last: StreamId, now_us: u64) {
        while self.ends.back().is_some_and(|end| end.last > last) {
            self.ends.pop_back();
        }
        if last > self.ends.back().map_or(StreamId::ZERO, |end| end.last) {
            self.ends.push_back(End { last, at_us: now_us });
        }
    }

    /// Removes the ends that are due, and merges those that are close together. Returns the last due one.
    fn due(&mut self, retention: OutboxRetention, now_us: u64) -> Option<StreamId> {
        let mut due = None;
        while let Some(end) = self.ends.front().copied()
            && (self.excess > 0 || end.at_us.saturating_add(retention.us) <= now_us)
        {
            self.excess = self.excess.saturating_sub(1);
            self.ends.pop_front();
            due = Some(end.last);
        }
        self.excess = 0;
        // Entries leave late rather than early.
        if let [.., first, _, last] = *self.ends.make_contiguous()
            && last.at_us - first.at_us < retention.us / PARTS
        {
            let middle = self.ends.len() - 2;
            self.ends.remove(middle);
        }
        due
    }

    /// Makes the part `excess` of `all` due.
    fn drop_oldest(&mut self, excess: u64, all: u64) {
        let ends = self.ends.len() as u64;
        self.excess = (ends * excess).div_ceil(all.max(1)) as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETENTION: OutboxRetention = OutboxRetention { us: 64_000, bytes: 1000 };

    fn id(ms: u64) -> StreamId {
        StreamId { ms, no: 0 }
    }

    #[test]
    fn entry_due_when_committed_long_enough() {
        let mut committed = Committed::default();
        committed.observe(id(5), 0);
        committed.observe(id(9), 10_000);
        // Seen again, it is not younger.
        committed.observe(id(9), 20_000);
        assert_eq!(committed.due(RETENTION, 63_999), None);
        assert_eq!(committed.due(RETENTION, 64_000), Some(id(5)));
        assert_eq!(committed.due(RETENTION, 64_000), None);
        assert_eq!(committed.due(RETENTION, 100_000), Some(id(9)));
    }

    #[test]
    fn entry_due_at_once_when_nothing_kept() {
        let mut committed = Committed::default();
        committed.observe(id(5), 7);
        assert_eq!(committed.due(OutboxRetention { us: 0, bytes: 0 }, 7), Some(id(5)));
    }

    #[test]
    fn entry_kept_anew_when_postgres_goes_back() {
        let mut committed = Committed::default();
        committed.observe(id(5), 0);
        committed.observe(id(9), 10_000);
        committed.observe(id(5), 60_000);
        committed.observe(id(9), 61_000);
        assert_eq!(committed.due(RETENTION, 80_000), Some(id(5)), "9 was lost, and committed again later");
        assert_eq!(committed.due(RETENTION, 124_999), None);
        assert_eq!(committed.due(RETENTION, 125_000), Some(id(9)));
    }

    #[test]
    fn ends_bounded_when_commits_follow_closely() {
        let mut committed = Committed::default();
        let mut trimmed = Vec::new();
        for at in 0..64_000 {
            committed.observe(id(at + 1), at * 10);
            trimmed.extend(committed.due(RETENTION, at * 10));
            assert!(committed.ends.len() <= 2 * PARTS as usize + 3, "{}", committed.ends.len());
        }
        // Nothing leaves early, and nothing much later than it should.
        assert!(trimmed.iter().all(|end| (end.ms - 1) * 10 + RETENTION.us <= 640_000));
        assert!(trimmed.last().is_some_and(|end| end.ms * 10 + RETENTION.us + 3_000 > 640_000), "{:?}", trimmed.last());
    }

    #[test]
    fn oldest_due_when_bytes_exceeded() {
        let mut tail = Tail { bytes_per_entry: 100, ..Tail::default() };
        for at in 0..10 {
            tail.committed.observe(id(at + 1), at * 2_000);
        }
        tail.limit(RETENTION, 10);
        assert_eq!(tail.due(RETENTION, 20_000), None);
        tail.limit(RETENTION, 20);
        assert_eq!(tail.due(RETENTION, 20_000), Some(id(5)));
        assert_eq!(tail.due(RETENTION, 20_000), None);
    }
}
