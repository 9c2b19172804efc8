//! A cache of verified tokens. Verifying a token takes longer than issuing a coupon (see `docs/decisions.md`), and a client
//! sends the same token with every request.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::model::UserId;

/// The maximum number of cached tokens, about 10 MB. When the newer half is full, the older half is dropped.
const MAX_TOKENS: usize = 100_000;

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// The digest of a token: the key of the cache, which does not keep the token itself.
pub fn digest(token: &str) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
    digest
}

/// The cache.
#[derive(Default)]
pub struct Verified(Mutex<Halves>);

/// Two generations of entries. A hit in the older half moves the entry to the newer half.
#[derive(Default)]
struct Halves {
    /// The generation of the keys that verified these tokens. A new generation empties the cache.
    generation: u64,
    newer: HashMap<Digest, (UserId, i64)>,
    older: HashMap<Digest, (UserId, i64)>,
}

impl Verified {
    /// The user of a cached token, if the token is valid at `now` (ms).
    pub fn get(&self, digest: &Digest, generation: u64, now: i64) -> Option<UserId> {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if halves.generation != generation {
            return None;
        }
        let found = match halves.newer.get(digest) {
            Some(found) => *found,
            None => {
                let found = halves.older.remove(digest)?;
                halves.put(*digest, found);
                found
            }
        };
        let (user, until) = found;
        (now < until).then_some(user)
    }

    /// Caches a token that is valid until `until` (ms).
    pub fn put(&self, digest: Digest, generation: u64, user: UserId, until: i64) {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generation < halves.generation {
            return;
        }
        if generation > halves.generation {
            *halves = Halves { generation, ..Halves::default() };
        }
        halves.put(digest, (user, until));
    }
}

impl Halves {
    fn put(&mut self, digest: Digest, entry: (UserId, i64)) {
        if self.newer.len() >= MAX_TOKENS / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(digest, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verified_token_cached_while_valid_and_keys_unchanged() {
        let (verified, user) = (Verified::default(), UserId::new(7).unwrap());
        verified.put(digest("a"), 1, user, 1_000);
        assert_eq!(verified.get(&digest("a"), 1, 999), Some(user));
        assert_eq!(verified.get(&digest("a"), 1, 1_000), None);
        assert_eq!(verified.get(&digest("b"), 1, 0), None);
        assert_eq!(verified.get(&digest("a"), 2, 0), None);
        verified.put(digest("b"), 2, user, 1_000);
        verified.put(digest("c"), 1, user, 1_000);
        assert_eq!(verified.get(&digest("a"), 2, 0), None);
        assert_eq!(verified.get(&digest("c"), 2, 0), None, "verified with keys that are gone");
        assert_eq!(verified.get(&digest("b"), 2, 0), Some(user));
    }

    #[test]
    fn verified_tokens_bounded_and_recent_kept() {
        let (verified, user) = (Verified::default(), UserId::new(7).unwrap());
        let digest = |n: usize| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            digest
        };
        for n in 0..3 * MAX_TOKENS {
            verified.put(digest(n), 1, user, 1_000);
            assert!(verified.get(&digest(0), 1, 0).is_some());
        }
        let halves = verified.0.lock().unwrap();
        assert!(halves.newer.len() + halves.older.len() <= MAX_TOKENS);
        drop(halves);
        assert_eq!(verified.get(&digest(1), 1, 0), None);
    }
}
