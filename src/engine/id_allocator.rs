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
                        self.put(first + 1, first + BLOCK);
                        first
                    }
                }
            }
        };
        id_of(n, store.partitions(), owner)
    }

    /// Replaces a used-up block by the numbers from `next` to `end`, without `end`.
    fn put(&self, next: i64, end: i64) {
        *self.remaining.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = (next, end);
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

/// The id that number `n` of a sequence becomes in the partition `owner`.
fn id_of(n: i64, partitions: u16, owner: Partition) -> Result<i64, Error> {
    let id = n.checked_mul(i64::from(partitions)).and_then(|id| id.checked_add(i64::from(owner.0)));
    id.filter(|id| *id <= MAX_SAFE_INTEGER).ok_or_else(|| Error::Internal(anyhow::anyhow!("ids are used up")))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, thread};

    use super::*;

    #[test]
    fn number_taken_once_when_threads_share_a_block() {
        let sequence = Sequence::new("order");
        assert_eq!(sequence.take(), None);
        sequence.put(1, 1 + BLOCK);
        let take_all = || std::iter::from_fn(|| sequence.take()).collect::<Vec<_>>();
        let taken: Vec<i64> = thread::scope(|scope| {
            let takers: Vec<_> = (0..4).map(|_| scope.spawn(take_all)).collect();
            takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), BLOCK as usize);
        assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), (1..=BLOCK).collect());
        assert_eq!(sequence.take(), None);
    }

    #[test]
    fn id_tells_its_partition() {
        let ids: BTreeSet<i64> =
            (1..=50).flat_map(|n| (0..7).map(move |owner| id_of(n, 7, Partition(owner)).unwrap())).collect();
        assert_eq!(ids.len(), 350);
        for owner in 0..7 {
            assert_eq!(id_of(12, 7, Partition(owner)).unwrap() % 7, i64::from(owner));
        }
        assert_eq!(id_of(12, 1, Partition(0)).unwrap(), 12);
    }

    #[test]
    fn id_refused_beyond_safe_integers() {
        assert_eq!(id_of(MAX_SAFE_INTEGER, 1, Partition(0)).unwrap(), MAX_SAFE_INTEGER);
        for (n, partitions, owner) in [(MAX_SAFE_INTEGER, 2, 0), (MAX_SAFE_INTEGER, 1, 1), (i64::MAX, 256, 255)] {
            assert!(matches!(id_of(n, partitions, Partition(owner)), Err(Error::Internal(_))), "{n}");
        }
    }
}
