//! The context of a write: its request id and its idempotency key; and a reply that may be a replay.

use sha2::{Digest, Sha256};

use super::UserId;

/// What accompanies every write: who asked, and under which idempotency key.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `x-request-id`, at most 64 visible ASCII characters; carried into the event.
    pub request_id: String,
    /// The request's idempotency key, if it had one.
    pub key: Option<IdempotencyKey>,
}

/// An `Idempotency-Key` bound to the request that it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Whose key it is (a user's id, or "op"), "-", and the SHA-256 of the key, hex, shortened to 128 bits: what the record is
    /// filed under.
    pub digest: String,
    /// The same of the method, the path and the decoded body: what a repeat must match.
    pub fingerprint: String,
}

/// Whose an idempotency key is: another's of the same text is another key.
#[derive(Clone, Copy, Debug)]
pub enum KeyOwner<'a> {
    User(UserId),
    /// By name.
    Operator(&'a str),
}

impl IdempotencyKey {
    /// `request` is any canonical form of the request: equal requests give equal bytes.
    pub fn new(owner: KeyOwner<'_>, key: &str, request: &[u8]) -> Self {
        let digest_of = match owner {
            KeyOwner::User(user) => format!("{user}-{}", digest(key.as_bytes())),
            KeyOwner::Operator(name) => format!("op-{}", digest(format!("{name}\n{key}").as_bytes())),
        };
        IdempotencyKey { digest: digest_of, fingerprint: digest(request) }
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An answer, and whether it is the stored answer to an earlier request under the same idempotency key.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    pub value: T,
    pub replayed: bool,
}

impl<T> Reply<T> {
    /// The answer to a request seen for the first time.
    pub fn first(value: T) -> Self {
        Reply { value, replayed: false }
    }

    /// The same reply about something else.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reply<U> {
        Reply { value: f(self.value), replayed: self.replayed }
    }
}
