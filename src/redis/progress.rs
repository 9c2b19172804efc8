//! What this process was told of each partition: how far it has decided, how far Postgres is, and whether it may be
//! believed.
//!
//! Decisions are numbered, `(epoch, seq)`, and a process remembers the highest number that it was told of each partition: by
//! a script's answer, by a look at the books, or by Postgres's position. Redis answering below it has lost decisions that
//! were acknowledged. The partition is then *closed* here, and frozen in Redis so that nobody decides on what is left of it;
//! a rebuild, which starts a new epoch, opens it again.
//!
//! A partition is looked at before its first use, after every new connection (it may lead to another server, or to the same
//! one with less in it), when Redis has forgotten its scripts, when a script finds the books closed, and twice a second.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU8, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;

use crate::model::{Millis, Position, Projection};

/// Whether a partition may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// To be looked at first.
    Unchecked,
    /// Closed, for this reason.
    Closed(String),
}

const OPEN: u8 = 0;
const UNCHECKED: u8 = 1;
const CLOSED: u8 = 2;

pub(super) struct Watermark {
    /// One of the three above; the reason is in `reason`.
    state: AtomicU8,
    reason: Mutex<String>,
    /// Why Redis refuses every write now, though the partition is open; as the last look found.
    no_writes: Mutex<Option<String>>,
    /// The highest decision that this process was told of.
    acknowledged: Mutex<Position>,
    /// How far Postgres is, as far as this process knows.
    projected: watch::Sender<Projection>,
    /// How far its server's clock is ahead of this process's, ms.
    clock_offset_ms: AtomicI64,
    /// Held by the one that looks.
    pub(super) checking: tokio::sync::Mutex<Checked>,
}

/// How the last look went, which those share that waited for it.
#[derive(Default)]
pub(super) struct Checked {
    pub found_closed: Option<Instant>,
    /// Redis did not answer.
    pub failed: Option<Instant>,
    /// When the user's rights were tried last, and none was missing.
    pub permissions_checked: Option<Instant>,
}

impl Default for Watermark {
    fn default() -> Self {
        Watermark {
            state: AtomicU8::new(UNCHECKED),
            reason: Mutex::default(),
            no_writes: Mutex::default(),
            acknowledged: Mutex::default(),
            projected: watch::Sender::default(),
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
            _ => State::Closed(self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// Returns the state before.
    pub(super) fn set(&self, state: State) -> State {
        let before = self.state();
        let number = match state {
            State::Open => OPEN,
            State::Unchecked => UNCHECKED,
            State::Closed(reason) => {
                *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
                CLOSED
            }
        };
        self.state.store(number, Ordering::Release);
        before
    }

    pub(super) fn no_writes(&self) -> Option<String> {
        self.no_writes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_no_writes(&self, why: Option<String>) {
        *self.no_writes.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// What was believed has to be looked at again; what was closed stays so until then.
    pub(super) fn invalidate(&self) {
        let _ = self.state.compare_exchange(OPEN, UNCHECKED, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn acknowledged(&self) -> Position {
        *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn advance(&self, position: Position) {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        *acknowledged = position.max(*acknowledged);
    }

    /// As Postgres said at one moment. What it has was decided.
    pub(super) fn observe_projection(&self, read: Projection) {
        self.advance(read.position);
        self.projected.send_if_modified(|known| {
            if read.position < known.position {
                // An older reading: its letters may have been applied since, or not.
                known.last_dead_letter = known.last_dead_letter.max(read.last_dead_letter);
                return false;
            }
            std::mem::replace(known, read).position < read.position
        });
    }

    /// This process carried everything up to here, and filed a letter at the latest at `last_letter`, or none (0).
    pub(super) fn record_projected(&self, position: Position, last_letter: i64) {
        self.advance(position);
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

    /// Takes a reading of the server's clock: it said `server` some time between `asked` and `answered` of this process's
    /// clock. What was known before stays as long as the reading does not contradict it.
    pub(super) fn read_clock(&self, server: Millis, asked: Millis, answered: Millis) {
        let (least, most) = (server.0 - answered.0, server.0 - asked.0);
        if !(least..=most).contains(&self.clock_offset_ms()) {
            self.clock_offset_ms.store(least + (most - least) / 2, Ordering::Relaxed);
        }
    }

    /// How far Postgres is, as far as this process knows.
    pub(super) fn projected_position(&self) -> Position {
        self.projected.borrow().position
    }

    /// Decisions that Postgres does not have yet.
    pub(super) fn backlog(&self) -> i64 {
        // seq goes on over a rebuild.
        (self.acknowledged().seq - self.projected.borrow().position.seq).max(0)
    }
}
