//! Tokens that were verified already: verifying one takes longer than issuing a coupon does (see `docs/decisions.md`), and a
//! client sends the same one with every request.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::model::UserId;

/// How many are remembered before half of them, the oldest, are forgotten: about 10 MB.
const MOST: usize = 100_000;

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// The digest that a token is remembered by; the token itself is kept nowhere.
pub fn digest(token: &str) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref());
    digest
}

/// The memory.
#[derive(Default)]
pub struct Verified(Mutex<Halves>);

/// What was put lately, and what before that. What is asked for in the older half moves to the newer one.
#[derive(Default)]
struct Halves {
    /// Of the keys that these were verified with: with others, they are not verified.
    generation: u64,
    newer: HashMap<Digest, (UserId, i64)>,
    older: HashMap<Digest, (UserId, i64)>,
}

impl Verified {
    /// Whose token this is, if it is still good at `now` (ms).
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

    /// Remembers it.
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
        if self.newer.len() >= MOST / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(digest, entry);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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
        for n in 0..3 * MOST {
            verified.put(digest(n), 1, user, 1_000);
            assert!(verified.get(&digest(0), 1, 0).is_some());
        }
        let halves = verified.0.lock().unwrap();
        assert!(halves.newer.len() + halves.older.len() <= MOST);
        drop(halves);
        assert_eq!(verified.get(&digest(1), 1, 0), None);
    }
}
