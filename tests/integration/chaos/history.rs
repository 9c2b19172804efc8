//! The history of a run: every request, every reply, and their times.
//!
//! An operation is one request under one idempotency key; clients repeat it until its outcome is known. Times are nanoseconds
//! since 1970 that never decrease within a run, comparable with the times in the stores.

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

pub use super::requests::Request;

/// The current time, in nanoseconds since 1970.
pub fn now() -> u64 {
    static ORIGIN: OnceLock<(Instant, u64)> = OnceLock::new();
    let (begun, at) = ORIGIN.get_or_init(|| {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        (Instant::now(), at.as_nanos() as u64)
    });
    at + begun.elapsed().as_nanos() as u64
}

/// A pseudo-random generator (SplitMix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `least` to `most`, both included.
    pub fn within(&mut self, least: i64, most: i64) -> i64 {
        least + (self.next() % (most - least + 1) as u64) as i64
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[(self.next() % from.len() as u64) as usize]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for place in (1..items.len()).rev() {
            items.swap(place, self.within(0, place as i64) as usize);
        }
    }
}

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done {
        body: Value,
        replayed: bool,
    },
    /// A payment above the balance: the order failed, which is an effect.
    Declined {
        replayed: bool,
    },
    /// No effect.
    Refused {
        status: u16,
        code: String,
    },
    /// No reply, a 503 or a `REQUEST_IN_PROGRESS`: the effect may have happened.
    Unknown(String),
    /// A reply that no correct service sends.
    Wrong(String),
}

impl Outcome {
    /// The reply to this request.
    pub fn read(request: &Request, status: u16, body: &str, replayed: bool) -> Outcome {
        if let (Request::Forget { .. }, 204) = (request, status) {
            return Outcome::Done { body: Value::Null, replayed };
        }
        let Ok(json) = serde_json::from_str::<Value>(body) else { return Outcome::Wrong(format!("{status} {body}")) };
        let code = json["errorCode"].as_str().unwrap_or("").to_owned();
        match (status, code.as_str(), request) {
            (200, ..) | (201, _, Request::Create { .. } | Request::Bring { .. }) => {
                Outcome::Done { body: json, replayed }
            }
            // Somebody, perhaps an earlier attempt, has forgotten the user.
            (404, "USER_NOT_FOUND", Request::Forget { .. }) => Outcome::Done { body: Value::Null, replayed },
            // What an operator brings in may be there or not.
            (404, _, Request::Bring { .. } | Request::Brought { .. }) => Outcome::Refused { status, code },
            (402, "INSUFFICIENT_BALANCE", Request::Pay { .. }) => Outcome::Declined { replayed },
            (503, ..) | (409, "REQUEST_IN_PROGRESS", _) => Outcome::Unknown(format!("{status} {code}")),
            // Requests name only acknowledged objects, and no key serves two requests.
            (404 | 405 | 413 | 415 | 422 | 500.., ..) => Outcome::Wrong(format!("{status} {body}")),
            (400..500, ..) if !code.is_empty() => Outcome::Refused { status, code },
            _ => Outcome::Wrong(format!("{status} {body}")),
        }
    }

    /// Whether the reply acknowledges an effect.
    pub fn took_effect(&self) -> bool {
        matches!(self, Outcome::Done { .. } | Outcome::Declined { .. })
    }

    /// Whether both replies report the same effect.
    fn reports_the_same(&self, other: &Outcome) -> bool {
        match (self, other) {
            (Outcome::Done { body: a, .. }, Outcome::Done { body: b, .. }) => a == b,
            (Outcome::Declined { .. }, Outcome::Declined { .. }) => true,
            _ => false,
        }
    }

    pub fn is_known(&self) -> bool {
        self.took_effect() || matches!(self, Outcome::Refused { .. })
    }

    pub fn replayed(&self) -> bool {
        matches!(self, Outcome::Done { replayed: true, .. } | Outcome::Declined { replayed: true })
    }
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub began: u64,
    pub ended: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub request: Request,
    pub key: String,
    pub attempts: Vec<Attempt>,
    /// The last reply came after every earlier attempt had ended.
    pub settled: bool,
}

impl Operation {
    pub fn new(request: Request, key: String) -> Self {
        Operation { request, key, attempts: Vec::new(), settled: false }
    }

    /// The first attempt whose reply reports an effect.
    pub fn effect(&self) -> Option<&Attempt> {
        self.attempts.iter().find(|attempt| attempt.outcome.took_effect())
    }

    /// The attempts whose replies report an effect, without repeated reports of one effect. More than one is a contradiction, unless
    /// an effect was lost with Redis.
    pub fn effects(&self) -> Vec<&Attempt> {
        let mut effects: Vec<&Attempt> = Vec::new();
        for attempt in self.attempts.iter().filter(|attempt| attempt.outcome.took_effect()) {
            if effects.iter().all(|other| !other.outcome.reports_the_same(&attempt.outcome)) {
                effects.push(attempt);
            }
        }
        effects
    }

    /// The body of the 200.
    pub fn done(&self) -> Option<&Value> {
        self.attempts.iter().find_map(|attempt| match &attempt.outcome {
            Outcome::Done { body, .. } => Some(body),
            _ => None,
        })
    }

    pub fn declined(&self) -> bool {
        self.attempts.iter().any(|attempt| matches!(attempt.outcome, Outcome::Declined { .. }))
    }

    /// The interval of the effect: it ends with the first reply that reports it, and begins with that attempt, or with the first
    /// attempt if the reply is a replay.
    pub fn effect_within(&self) -> Option<(u64, u64)> {
        let effect_attempt = self.effect()?;
        // Nothing tells which attempt forgot a user.
        let repeats = effect_attempt.outcome.replayed() || matches!(self.request, Request::Forget { .. });
        let first = if repeats { self.attempts.first()? } else { effect_attempt };
        Some((first.began, effect_attempt.ended))
    }

    /// Whether the outcome is still unknown. A refusal after an unknown outcome does not settle it: the earlier request
    /// may still be under way.
    pub fn is_open(&self) -> bool {
        !self.settled && self.effect().is_none() && self.attempts.iter().any(|attempt| !attempt.outcome.is_known())
    }

    /// The contradictions among the replies.
    pub fn contradictions(&self) -> Vec<String> {
        let mut contradictions = Vec::new();
        let mut report =
            |what: &str| contradictions.push(format!("{what}: {:?} {} {:#?}", self.request, self.key, self.attempts));
        let mut effect_attempt: Option<&Outcome> = None;
        let mut unknown = false;
        for attempt in &self.attempts {
            match (&attempt.outcome, effect_attempt) {
                (Outcome::Wrong(_), _) => report("a reply that no correct service sends"),
                (Outcome::Unknown(_), _) => {}
                (Outcome::Refused { .. }, Some(_)) if self.request.is_write() => {
                    report("refused after an acknowledged effect")
                }
                (Outcome::Refused { .. }, _) => {}
                (outcome, None) => {
                    if outcome.replayed() && !unknown {
                        report("the first reply with the effect claims to be a replay");
                    }
                    effect_attempt = Some(outcome);
                }
                (outcome, Some(first)) => {
                    if !first.reports_the_same(outcome) {
                        report("two replies under one key differ");
                    }
                    if !outcome.replayed() && !matches!(self.request, Request::Forget { .. }) {
                        report("a replay without Idempotent-Replayed");
                    }
                }
            }
            unknown |= !attempt.outcome.is_known();
        }
        contradictions
    }
}

/// All operations of a run.
#[derive(Default)]
pub struct History(Mutex<Vec<Operation>>);

impl History {
    /// Adds an operation. Returns its number.
    pub fn begin(&self, operation: Operation) -> usize {
        let mut all = self.0.lock().unwrap();
        all.push(operation);
        all.len() - 1
    }

    pub fn add(&self, number: usize, attempt: Attempt) {
        self.0.lock().unwrap()[number].attempts.push(attempt);
    }

    /// Makes the outcome final: no attempt is under way.
    pub fn settle(&self, number: usize) {
        self.0.lock().unwrap()[number].settled = true;
    }

    pub fn get(&self, number: usize) -> Operation {
        self.0.lock().unwrap()[number].clone()
    }

    pub fn all(&self) -> Vec<Operation> {
        self.0.lock().unwrap().clone()
    }

    /// The numbers of the operations with an unknown outcome.
    pub fn open(&self) -> Vec<usize> {
        let all = self.0.lock().unwrap();
        (0..all.len()).filter(|number| all[*number].request.is_write() && all[*number].is_open()).collect()
    }

    /// What `read` takes from the attempts that ended after `at`.
    pub fn since<T>(&self, at: u64, read: impl Fn(&Attempt) -> T) -> Vec<T> {
        let all = self.0.lock().unwrap();
        let attempts = all.iter().flat_map(|operation| &operation.attempts);
        attempts.filter(|attempt| attempt.ended > at).map(read).collect()
    }

    /// Whether a write that began after `at` was acknowledged.
    pub fn wrote_since(&self, at: u64) -> bool {
        let all = self.0.lock().unwrap();
        let new = |operation: &Operation| {
            operation.request.is_write() && operation.effect().is_some_and(|attempt| attempt.began > at)
        };
        all.iter().rev().take(2000).any(new)
    }
}

/// Counts of the operations by outcome.
#[derive(Default)]
pub struct Counts {
    pub operations: usize,
    pub writes: usize,
    pub attempts: usize,
    pub done: usize,
    pub declined: usize,
    pub refused: usize,
    pub unknown: usize,
    pub settled_done: usize,
    pub settled_refused: usize,
    pub replays: usize,
    pub open: usize,
    pub verbs: BTreeMap<&'static str, usize>,
}

impl Counts {
    pub fn of(operations: &[Operation]) -> Counts {
        let mut counts = Counts::default();
        for operation in operations {
            counts.operations += 1;
            counts.attempts += operation.attempts.len();
            *counts.verbs.entry(operation.request.verb()).or_default() += 1;
            if !operation.request.is_write() {
                continue;
            }
            counts.writes += 1;
            let unknown = operation.attempts.iter().any(|attempt| !attempt.outcome.is_known());
            let effect = operation.effect().is_some();
            counts.unknown += usize::from(unknown);
            counts.replays += operation.attempts.iter().filter(|attempt| attempt.outcome.replayed()).count();
            match (effect, operation.is_open()) {
                (true, _) if operation.declined() => counts.declined += 1,
                (true, _) => counts.done += 1,
                (false, true) => counts.open += 1,
                (false, false) => counts.refused += 1,
            }
            match (unknown, effect) {
                (true, true) => counts.settled_done += 1,
                (true, false) if operation.settled => counts.settled_refused += 1,
                _ => {}
            }
        }
        counts
    }
}
