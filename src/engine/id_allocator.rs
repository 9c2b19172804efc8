//! Allocates the ids of orders and payments. Reserves numbers from Redis in blocks, so that most requests need no call.
//!
//! Number `n` of a sequence becomes the id `n * partitions + owner`, which encodes the owner partition. Numbers that a
//! process reserves and does not use leave a gap.

use std::sync::Mutex;

use crate::{
    model::{Call, Error, MAX_SAFE_INTEGER, Partition},
    redis::Store,
};

/// The number of ids in a block.
const BLOCK: i64 = 1000;

/// A process's share of a sequence.
pub(super) struct Sequence {
    name: &'static str,
    /// The next number and the first that is not reserved.
    remaining: Mutex<(i64, i64)>,
    /// Held by the request that reserves the next block.
    reserving: tokio::sync::Mutex<()>,
}

impl Sequence {
    pub(super) fn new(name: &'static str) -> Self {
        Sequence { name, remaining: Mutex::new((0, 0)), reserving: tokio::sync::Mutex::new(()) }
    }

    /// The next id whose owner partition is `owner`.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub(super) async fn next(&self, store: &Store, owner: Partition) -> Result<i64, Error> {
        let n = match self.take() {
            Some(n) => n,
            None => {
                let _reserving = self.reserving.lock().await;
                match self.take() {
                    Some(n) => n,
                    None => {
                        let first = store.ids_reserve(&Call::default(), self.name, BLOCK).await?.value;
                        *self.remaining.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
                            (first + 1, first + BLOCK);
                        first
                    }
                }
            }
        };
        let id = n.checked_mul(i64::from(store.partitions())).and_then(|id| id.checked_add(i64::from(owner.0)));
        id.filter(|id| *id <= MAX_SAFE_INTEGER).ok_or_else(|| Error::Internal(anyhow::anyhow!("ids are used up")))
    }

    fn take(&self) -> Option<i64> {
        let mut left = self.remaining.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (next, end) = *left;
        (next < end).then(|| {
            left.0 += 1;
            next
        })
    }
}
