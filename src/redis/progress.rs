//! The positions that this process knows of each partition: the last decision that Redis acknowledged, the last one that Postgres
//! has, and whether the partition may be used.
//!
//! A process keeps the highest position of each partition that it has seen: in a script's reply, in a check of the partition, or in
//! Postgres. A Redis that is behind that position has lost acknowledged decisions. The partition is then *closed* in this process,
//! and frozen in Redis so that no process decides on an incomplete state. A rebuild, which starts a new epoch, opens it again.
//!
//! A partition is checked before its first use, after every new connection (which may lead to another server, or to the same one
//! with fewer data), when Redis has forgotten its scripts, when a script finds the partition closed, and twice a second.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    model::{Millis, Position, Projection, Word},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
};

/// Whether a partition may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// Not used before it is checked.
    Unchecked,
    /// Closed, for this reason.
    Closed(String),
}

const OPEN: u8 = 0;
const UNCHECKED: u8 = 1;
const CLOSED: u8 = 2;

pub(super) struct Watermark {
    /// `OPEN`, `UNCHECKED` or `CLOSED`; written under the lock of `changes`.
    state: AtomicU8,
    changes: Mutex<Changes>,
    /// Why Redis refused every write to the open partition at the last check.
    no_writes: Mutex<Option<String>>,
    acknowledged: Mutex<Acknowledgements>,
    /// The last decision that replicas are known to have, with `ACK=replica`.
    replicated: Mutex<Position>,
    /// The last decision that other processes may have confirmed to clients, as far as their words and their ends show.
    confirmed_by_others: Mutex<Position>,
    /// The replicas in sync at the last check.
    replicas: AtomicUsize,
    /// The epoch of the acknowledged position, without the lock.
    epoch: AtomicI64,
    /// The number of histories for which this process gave its word, without the lock.
    histories: AtomicU64,
    /// The loss that the last check found.
    loss: Mutex<Option<PartitionLoss>>,
    /// The latest known epoch, and in the lower half what changes in it with each user that is forgotten.
    forgotten: AtomicI64,
    /// When the last read of it began, in µs since `created`.
    forgotten_us: AtomicU64,
    /// When the last check that found the partition open began, in µs since `created`.
    verified_us: AtomicU64,
    created: Instant,
    /// The last decision that Postgres has, as far as this process knows.
    projected: watch::Sender<Projection>,
    /// The furthest that Postgres ever was, as far as this process knows: it may have been restored to an earlier state since.
    furthest_projected: Mutex<Position>,
    /// How far its server's clock is ahead of this process's, ms.
    clock_offset_ms: AtomicI64,
    /// Held during a check.
    pub(super) checking: tokio::sync::Mutex<Checked>,
}

/// The rest of a partition's state.
#[derive(Default)]
struct Changes {
    /// The reason why the partition is closed, or was closed last.
    reason: String,
    /// Incremented by each event that makes the result of a check in progress obsolete.
    generation: u64,
}

/// A partition whose server has lost decisions, as a check found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLoss {
    /// Why the partition is closed.
    pub reason: String,
    /// The last decision that the server has; `None` if the server has lost the partition's state.
    pub found: Option<Position>,
    /// The last decision that a client may have been told, as far as the processes have given their words.
    pub confirmed: Position,
    /// The processes that have not given their words yet, and may have acknowledged more.
    pub silent: Vec<String>,
    /// The processes that have ever given a word, as far as this process knows. Those of earlier versions give none.
    pub heard: BTreeSet<String>,
    /// Whether this process used the partition before the loss, and so knows who else did. The server may have lost the words.
    pub witnessed: bool,
    /// Whether operations are in progress that began before the loss.
    pub draining: bool,
    /// Whether the silent processes had the time to give their words.
    pub waited: bool,
}

impl PartitionLoss {
    /// Whether every process that may have acknowledged a decision has given its word.
    pub fn all_spoke(&self) -> bool {
        self.witnessed && self.silent.is_empty()
    }
}

/// What this process acknowledged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acknowledgements {
    /// The last decision that Redis acknowledged to this process.
    pub position: Position,
    /// The number of histories for which this process gave its word ([`roll_call`](super::roll_call)).
    words_given: u64,
}

/// The result of the last check, which the tasks share that waited for it.
#[derive(Default)]
pub(super) struct Checked {
    pub found_closed: Option<Instant>,
    /// Whether a check has found the partition open: this process has used it.
    pub used: bool,
    /// Redis did not reply.
    pub failed: Option<Instant>,
    /// When the user had all permissions.
    pub permissions_checked: Option<Instant>,
    /// The partition is closed for a moment: other processes may still give their words for the history, or the server rewrites its
    /// append-only file.
    pub opens_soon: bool,
    /// The history for which this process last gave its word, and since when.
    pub history: Option<(String, Instant)>,
    /// The words of the partition's processes: at the last check, and when the history changed.
    pub words: HashMap<String, Word>,
    pub words_before: HashMap<String, Word>,
    /// The processes that have ended without withdrawing their words: what they confirmed is known.
    pub ended: HashSet<String>,
    /// The processes whose words were missing when the partition opened last.
    pub opened_without: Vec<String>,
    /// Shared with the operations that had begun when the history changed.
    pub begun_before: Option<Arc<()>>,
}

impl Default for Watermark {
    fn default() -> Self {
        Watermark {
            state: AtomicU8::new(UNCHECKED),
            changes: Mutex::default(),
            no_writes: Mutex::default(),
            acknowledged: Mutex::default(),
            replicated: Mutex::default(),
            confirmed_by_others: Mutex::default(),
            replicas: AtomicUsize::default(),
            epoch: AtomicI64::default(),
            histories: AtomicU64::default(),
            loss: Mutex::default(),
            verified_us: AtomicU64::default(),
            forgotten: AtomicI64::default(),
            forgotten_us: AtomicU64::default(),
            created: Instant::now(),
            projected: watch::Sender::default(),
            furthest_projected: Mutex::default(),
            clock_offset_ms: AtomicI64::default(),
            checking: tokio::sync::Mutex::default(),
        }
    }
}

impl Watermark {
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            OPEN => State::Open,
            UNCHECKED => State::Unchecked,
            _ => State::Closed(self.changes().reason.clone()),
        }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation in which a check begins. To be called before the check reads anything.
    pub(super) fn begin_check(&self) -> u64 {
        self.changes().generation
    }

    /// Records the result of a check that began in `generation`; returns the state before. The partition does not open if it was
    /// invalidated or closed meanwhile: the check may have read a server that is no longer in use.
    pub(super) fn end_check(&self, generation: u64, found: State) -> State {
        let before = self.state();
        let mut changes = self.changes();
        match found {
            State::Closed(reason) => {
                changes.reason = reason;
                self.state.store(CLOSED, Ordering::Release);
            }
            State::Open if changes.generation == generation => self.state.store(OPEN, Ordering::Release),
            State::Open | State::Unchecked => {}
        }
        before
    }

    /// Closes the partition, whatever the result of a check in progress.
    pub(super) fn close(&self, reason: String) {
        let mut changes = self.changes();
        changes.generation += 1;
        changes.reason = reason;
        self.state.store(CLOSED, Ordering::Release);
    }

    /// Requires a check before the next use of the partition. A closed partition stays closed until then.
    pub(super) fn invalidate(&self) {
        let mut changes = self.changes();
        changes.generation += 1;
        if self.is_open() {
            self.state.store(UNCHECKED, Ordering::Release);
        }
    }

    pub(super) fn no_writes(&self) -> Option<String> {
        self.no_writes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_no_writes(&self, why: Option<String>) {
        *self.no_writes.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(super) fn loss(&self) -> Option<PartitionLoss> {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_loss(&self, loss: Option<PartitionLoss>) {
        *self.loss.lock().unwrap_or_else(PoisonError::into_inner) = loss;
    }

    /// Records what changes in an epoch with each user that is forgotten, by a read that began at this time.
    pub(super) fn record_forgotten(&self, epoch: i64, forgotten: i64, began: Instant) {
        self.forgotten.fetch_max(epoch << 32 | forgotten, Ordering::Release);
        let began_us = began.saturating_duration_since(self.created).as_micros() as u64;
        self.forgotten_us.fetch_max(began_us, Ordering::Release);
    }

    /// What was recorded of this epoch, by a read no longer ago than `age`.
    pub(super) fn forgotten(&self, epoch: i64, age: Duration) -> Option<i64> {
        let began = Duration::from_micros(self.forgotten_us.load(Ordering::Acquire));
        let forgotten = self.forgotten.load(Ordering::Acquire);
        let is_current = forgotten >> 32 == epoch && self.created.elapsed().saturating_sub(began) < age;
        is_current.then_some(forgotten & 0xffff_ffff)
    }

    /// Records a check that began at this time and found the partition open.
    pub(super) fn verify(&self, began: Instant) {
        let began_us = began.saturating_duration_since(self.created).as_micros() as u64;
        self.verified_us.store(began_us, Ordering::Relaxed);
    }

    /// The time since the last check that found the partition open.
    pub(super) fn verified_for(&self) -> Duration {
        let verified = Duration::from_micros(self.verified_us.load(Ordering::Relaxed));
        self.created.elapsed().saturating_sub(verified)
    }

    fn acknowledgements(&self) -> MutexGuard<'_, Acknowledgements> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn acknowledged(&self) -> Position {
        self.acknowledgements().position
    }

    pub(super) fn advance(&self, position: Position) {
        self.advance_locked(&mut self.acknowledgements(), position);
    }

    fn advance_locked(&self, acknowledged: &mut Acknowledgements, position: Position) {
        acknowledged.position = position.max(acknowledged.position);
        self.epoch.store(acknowledged.position.epoch, Ordering::Relaxed);
    }

    /// What is acknowledged before a command is sent that decides.
    pub(super) fn before_call(&self) -> Acknowledgements {
        *self.acknowledgements()
    }

    /// Records the decision of a command that was sent after `before`. Returns false if this process gave its word for another
    /// history since: it must not acknowledge the decision.
    #[must_use]
    pub(super) fn acknowledge(&self, before: Acknowledgements, position: Position) -> bool {
        let mut acknowledged = self.acknowledgements();
        if acknowledged.words_given != before.words_given {
            return false;
        }
        self.advance_locked(&mut acknowledged, position);
        true
    }

    /// Ends the acknowledgement of what was asked before, and returns the last position: the word for a new history.
    pub(super) fn give_word(&self) -> Position {
        let mut acknowledged = self.acknowledgements();
        acknowledged.words_given += 1;
        self.histories.store(acknowledged.words_given, Ordering::Relaxed);
        acknowledged.position
    }

    /// The number of histories for which this process gave its word.
    pub(super) fn histories(&self) -> u64 {
        self.histories.load(Ordering::Relaxed)
    }

    /// The epoch of the last acknowledged decision.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn replicated(&self) -> Position {
        *self.replicated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record_replicated(&self, position: Position) {
        let mut replicated = self.replicated.lock().unwrap_or_else(PoisonError::into_inner);
        *replicated = position.max(*replicated);
    }

    pub(super) fn confirmed_by_others(&self) -> Position {
        *self.confirmed_by_others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record_confirmed_by_others(&self, position: Position) {
        let mut confirmed = self.confirmed_by_others.lock().unwrap_or_else(PoisonError::into_inner);
        *confirmed = position.max(*confirmed);
    }

    pub(super) fn replicas(&self) -> usize {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Records the replicas in sync; returns the number before.
    pub(super) fn set_replicas(&self, replicas: usize) -> usize {
        self.replicas.swap(replicas, Ordering::Relaxed)
    }

    fn record_furthest(&self, projected: Position) {
        self.advance(projected);
        let mut furthest = self.furthest_projected.lock().unwrap_or_else(PoisonError::into_inner);
        *furthest = projected.max(*furthest);
    }

    pub(super) fn furthest_projected(&self) -> Position {
        *self.furthest_projected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a reading of Postgres's progress. `before` is the position that this process knew when the reading began: a reading
    /// behind it is believed, because Postgres has then failed over to a standby that lacks its last commits, or was restored.
    pub(super) fn observe_projection(&self, read: Projection, before: Position) {
        self.record_furthest(read.position);
        self.projected.send_if_modified(|known| {
            if read.position < before {
                *known = read;
                return false;
            }
            if read.position < known.position {
                // An older reading: its dead letters may have been applied since.
                known.last_dead_letter = known.last_dead_letter.max(read.last_dead_letter);
                return false;
            }
            std::mem::replace(known, read).position < read.position
        });
    }

    /// Records that this process projected everything up to `position`, with its last dead letter at `last_letter` (0: none).
    pub(super) fn record_projected(&self, position: Position, last_letter: i64) {
        self.record_furthest(position);
        self.projected.send_if_modified(|known| {
            known.last_dead_letter = known.last_dead_letter.max(last_letter);
            let further = position > known.position;
            known.position = position.max(known.position);
            further
        });
    }

    pub(super) fn projection(&self) -> watch::Receiver<Projection> {
        self.projected.subscribe()
    }

    pub(super) fn clock_offset_ms(&self) -> i64 {
        self.clock_offset_ms.load(Ordering::Relaxed)
    }

    /// Records a reading of the server's clock: it was `server` between `asked` and `answered` of this process's clock. The known
    /// offset stays if the reading does not contradict it.
    pub(super) fn read_clock(&self, server: Millis, asked: Millis, answered: Millis) {
        let (least, most) = (server.0 - answered.0, server.0 - asked.0);
        if !(least..=most).contains(&self.clock_offset_ms()) {
            self.clock_offset_ms.store(least + (most - least) / 2, Ordering::Relaxed);
        }
    }

    /// The last decision that Postgres has, as far as this process knows.
    pub(super) fn projected_position(&self) -> Position {
        self.projected.borrow().position
    }

    /// Decisions that Postgres does not have yet.
    pub(super) fn backlog(&self) -> i64 {
        // A rebuild continues seq.
        (self.acknowledged().seq - self.projected.borrow().position.seq).max(0)
    }
}
