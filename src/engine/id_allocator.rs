//! Allocates the ids of orders and payments. Reserves numbers from Redis in blocks, so that most requests need no call.
//!
//! Number `n` of a partition's own sequence becomes the id `n * partitions + owner`, which encodes the owner partition. Numbers that
//! a process reserves and does not use leave a gap.
//!
//! A block is of one server. The next one may be a replica that lacks the reservation, which is no decision, and reserves the same
//! numbers again: the rest of the block is then dropped.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    model::{Error, MAX_SAFE_INTEGER, Partition},
    redis::{Store, commands::OwnSequence},
};

/// The number of ids in a block.
const BLOCK: i64 = 1000;

/// A process's shares of a sequence, one of each partition.
pub(super) struct Allocator {
    sequence: OwnSequence,
    shares: Box<[Share]>,
}

/// The numbers that a process has of a partition.
#[derive(Default)]
struct Share {
    block: Mutex<Block>,
    /// Held by the request that reserves the next block.
    reserving: tokio::sync::Mutex<()>,
}

/// Reserved numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// The next number and the first that is not reserved.
    next: i64,
    end: i64,
    /// The server that reserved them, by [`Store::histories`].
    history: u64,
}

impl Allocator {
    pub(super) fn new(sequence: OwnSequence, partitions: u16) -> Self {
        Allocator { sequence, shares: (0..partitions).map(|_| Share::default()).collect() }
    }

    /// The next id whose owner partition is `owner`.
    ///
    /// # Errors
    /// The partition is unavailable in Redis.
    pub(super) async fn next(&self, store: &Store, owner: Partition) -> Result<i64, Error> {
        let share = &self.shares[usize::from(owner.0)];
        let n = match share.take(store.histories(owner)) {
            Some(n) => n,
            None => {
                let _reserving = share.reserving.lock().await;
                loop {
                    // Read before the reservation: it may be of a server that is replaced meanwhile.
                    let history = store.histories(owner);
                    if let Some(n) = share.take(history) {
                        break n;
                    }
                    let next = store.numbers_reserve(owner, self.sequence, BLOCK).await?;
                    share.put(Block { next, end: next + BLOCK, history });
                }
            }
        };
        id_of(n, store.partitions(), owner)
    }
}

impl Share {
    fn block(&self) -> MutexGuard<'_, Block> {
        self.block.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a used-up block.
    fn put(&self, block: Block) {
        *self.block() = block;
    }

    /// A number that the current server has reserved.
    fn take(&self, history: u64) -> Option<i64> {
        let mut block = self.block();
        (block.next < block.end && block.history == history).then(|| {
            block.next += 1;
            block.next - 1
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

    fn block(history: u64) -> Block {
        Block { next: 1, end: 1 + BLOCK, history }
    }

    #[test]
    fn number_taken_once_when_threads_share_a_block() {
        let share = Share::default();
        assert_eq!(share.take(0), None);
        share.put(block(0));
        let take_all = || std::iter::from_fn(|| share.take(0)).collect::<Vec<_>>();
        let taken: Vec<i64> = thread::scope(|scope| {
            let takers: Vec<_> = (0..4).map(|_| scope.spawn(take_all)).collect();
            takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), BLOCK as usize);
        assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), (1..=BLOCK).collect());
        assert_eq!(share.take(0), None);
    }

    #[test]
    fn block_dropped_when_another_server_has_the_partition() {
        let share = Share::default();
        share.put(block(1));
        assert_eq!((share.take(1), share.take(2)), (Some(1), None));
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
