//! The context of a write, and its reply.

use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{Partition, Position, UserId};

/// Life of an idempotency record: 24 hours.
pub const RECORD_TTL_MS: i64 = 24 * 60 * 60 * 1000;

/// The context of a write: its request id, its idempotency key, and the decisions that its reply waits for.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `x-request-id`, at most 64 visible ASCII characters. The event carries it on.
    pub request_id: String,
    /// The idempotency key, if the request has one.
    pub key: Option<IdempotencyKey>,
    pub acknowledged: AcknowledgedPositions,
}

impl Call {
    /// The same call without its idempotency key.
    #[must_use]
    pub fn without_key(&self) -> Self {
        Call { key: None, ..self.clone() }
    }

    /// The call of the step that creates a record, under a key of its own in the partition of the record.
    #[must_use]
    pub fn of_creation(&self, id: i64) -> Self {
        Call { key: self.key.as_ref().map(|key| key.of_creation(id)), ..self.clone() }
    }

    /// The call of a further step of the request, under a key of its own.
    #[must_use]
    pub fn of_step(&self, step: &str) -> Self {
        Call { key: self.key.as_ref().map(|key| key.of_step(step)), ..self.clone() }
    }

    /// A call of this process itself: no reply waits for its decisions.
    pub fn new(request_id: impl Into<String>, key: Option<IdempotencyKey>) -> Self {
        Call { request_id: request_id.into(), key, acknowledged: AcknowledgedPositions::default() }
    }

    /// The digest and the fingerprint of the idempotency key, as scripts take them: empty without a key.
    pub fn key_parts(&self) -> (&str, &str) {
        match &self.key {
            Some(key) => (&key.digest, &key.fingerprint),
            None => ("", ""),
        }
    }
}

/// The decisions that Redis acknowledged to a call, replays included. All clones share one list; the default keeps none.
#[derive(Clone, Debug, Default)]
pub struct AcknowledgedPositions(Option<Arc<Mutex<CallDecisions>>>);

#[derive(Debug, Default)]
struct CallDecisions {
    positions: Vec<(Partition, Position)>,
    replications: Vec<Replication>,
}

/// Whether replicas have a decision, and everything before it in its partition. All clones share the answer.
#[derive(Clone, Debug)]
pub struct Replication(watch::Receiver<Option<bool>>);

impl Replication {
    /// One that is not known yet, and the sender of the answer.
    pub fn pending() -> (watch::Sender<Option<bool>>, Replication) {
        let (sender, receiver) = watch::channel(None);
        (sender, Replication(receiver))
    }

    /// Waits for the answer: whether enough replicas have it. False too if nothing is left that could find out.
    pub async fn reached(mut self) -> bool {
        self.0.wait_for(Option::is_some).await.is_ok_and(|reached| *reached == Some(true))
    }
}

impl AcknowledgedPositions {
    /// An empty list.
    pub fn collecting() -> Self {
        AcknowledgedPositions(Some(Arc::default()))
    }

    /// Whether a reply waits for the decisions: this is not the default.
    pub fn is_collecting(&self) -> bool {
        self.0.is_some()
    }

    /// Adds a decision, and whether replicas have it, unless this is the default.
    pub fn add(&self, here: Partition, position: Position, replication: Option<&Replication>) {
        if let Some(acknowledged) = &self.0 {
            let mut acknowledged = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
            acknowledged.positions.push((here, position));
            acknowledged.replications.extend(replication.cloned());
        }
    }

    /// Whether replicas have the decisions added so far.
    pub fn replications(&self) -> Vec<Replication> {
        let Some(acknowledged) = &self.0 else { return Vec::new() };
        acknowledged.lock().unwrap_or_else(PoisonError::into_inner).replications.clone()
    }

    /// The positions added so far.
    pub fn positions(&self) -> Vec<(Partition, Position)> {
        let Some(acknowledged) = &self.0 else { return Vec::new() };
        acknowledged.lock().unwrap_or_else(PoisonError::into_inner).positions.clone()
    }
}

/// An `Idempotency-Key`, bound to its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The name of the record: the owner (a user's id, a created record's, or "op"), "-", and the first 128 bits of the key's SHA-256 in hex.
    pub digest: String,
    /// The first 128 bits, in hex, of the SHA-256 of method, path and decoded body. A repeat must match it.
    pub fingerprint: String,
}

/// The owner of an idempotency key. Keys with the same text but different owners are different keys.
#[derive(Clone, Copy, Debug)]
pub enum KeyOwner<'a> {
    User(UserId),
    /// The operator's name.
    Operator(&'a str),
}

impl IdempotencyKey {
    /// `request` is a canonical form of the request: equal requests give equal bytes.
    pub fn new(owner: KeyOwner<'_>, key: &str, request: &[u8]) -> Self {
        let digest_of = match owner {
            KeyOwner::User(user) => format!("{user}-{}", digest(key.as_bytes())),
            KeyOwner::Operator(name) => format!("op-{}", digest(format!("{name}\n{key}").as_bytes())),
        };
        IdempotencyKey { digest: digest_of, fingerprint: digest(request) }
    }

    /// The key of the step that creates the record with this id. Its own partition is that of the record: what decides needs no claim.
    fn of_creation(&self, id: i64) -> Self {
        let digest = format!("{id}-{}", digest(format!("{}\ncreate", self.digest).as_bytes()));
        IdempotencyKey { digest, fingerprint: self.fingerprint.clone() }
    }

    /// The key of a request's second step, which repeats of the request find under its own record.
    #[must_use]
    pub fn of_step(&self, step: &str) -> Self {
        let (owner, key) = self.digest.split_once('-').unwrap_or(("", &self.digest));
        let digest = format!("{owner}-{}", digest(format!("{key}\n{step}").as_bytes()));
        IdempotencyKey { digest, fingerprint: self.fingerprint.clone() }
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A reply, and whether an idempotency record supplied it.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    pub value: T,
    pub replayed: bool,
}

impl<T> Reply<T> {
    /// The reply to a request that is no repeat.
    pub fn first(value: T) -> Self {
        Reply { value, replayed: false }
    }

    /// Maps the value; keeps `replayed`.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reply<U> {
        Reply { value: f(self.value), replayed: self.replayed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_shared_by_clones_of_a_call() {
        let mut call = Call::new("request", None);
        let position = Position { epoch: 1, seq: 7 };
        call.acknowledged.add(Partition(2), position, None);
        assert!(call.acknowledged.positions().is_empty(), "no reply waits for a call of this process itself");
        call.acknowledged = AcknowledgedPositions::collecting();
        call.clone().acknowledged.add(Partition(2), position, None);
        assert_eq!(call.acknowledged.positions(), [(Partition(2), position)]);
    }
}
