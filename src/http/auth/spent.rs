//! Ids that count no more, until they would have expired.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::model::Millis;

/// The most ids that are kept. Only valid ones get there, so that it takes as many sign-ins to fill it.
pub const MAX_SPENT: usize = 10_000;

/// A bounded set of ids of this process, each with the time at which it expires.
#[derive(Default)]
pub struct SpentIds(Mutex<HashMap<String, Millis>>);

impl SpentIds {
    /// Adds an id. Returns whether it is new.
    pub fn spend(&self, id: &str, expires_at: Millis, now: Millis) -> bool {
        let mut spent = self.0.lock();
        if spent.len() >= MAX_SPENT {
            spent.retain(|_, expires_at| *expires_at > now);
        }
        if spent.len() >= MAX_SPENT {
            // The one that expires first.
            let next = spent.iter().min_by_key(|(_, expires_at)| **expires_at).map(|(id, _)| id.clone());
            next.map(|id| spent.remove(&id));
        }
        spent.insert(id.to_owned(), expires_at).is_none()
    }

    pub fn has(&self, id: &str) -> bool {
        self.0.lock().contains_key(id)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
}
