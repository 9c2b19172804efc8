//! Which users exist, as far as it is known: bits, in blocks of neighbours. Users are never deleted, but a rebuild may not
//! bring back everybody, so a block counts within the epoch that it was read in.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::model::{Partition, UserId};

/// Users in one block: neighbours in one partition.
const BLOCK: i64 = 1024;
/// Blocks are spread over so many locks.
const SHARDS: usize = 16;
/// The most blocks behind one lock: 64 million users in all, in some 10 MB.
const MAX_BLOCKS: usize = 4096;
/// Blocks that are learned at once, at most.
const MAX_LEARNING: usize = 16;

/// Users of partition p of N are p, p + N, p + 2N, …: a block is a partition, and where among these it begins.
pub(super) type BlockId = (Partition, i64);

/// Which users exist.
pub(super) struct Users {
    partitions: i64,
    shards: Box<[RwLock<HashMap<BlockId, Block>>]>,
    learning: Arc<Mutex<HashSet<BlockId>>>,
}

#[derive(Clone, Copy)]
struct Block {
    epoch: i64,
    exist: [u64; BLOCK as usize / 64],
}

impl Block {
    fn has(&self, place: usize) -> bool {
        self.exist[place / 64] >> (place % 64) & 1 == 1
    }
}

/// A block that is being learned, until this is dropped.
pub(super) struct Learning {
    pub(super) block: BlockId,
    of: Arc<Mutex<HashSet<BlockId>>>,
}

impl Drop for Learning {
    fn drop(&mut self) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.block);
    }
}

impl Users {
    pub(super) fn new(partitions: u16) -> Self {
        Users {
            partitions: i64::from(partitions),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            learning: Arc::default(),
        }
    }

    /// The user's block and place in it.
    pub(super) fn place(&self, user: UserId) -> (BlockId, usize) {
        let (home, nth) = (user.get() % self.partitions, user.get() / self.partitions);
        ((Partition(home as u16), nth / BLOCK), (nth % BLOCK) as usize)
    }

    fn shard(&self, block: BlockId) -> &RwLock<HashMap<BlockId, Block>> {
        &self.shards[(block.1 as usize).wrapping_add(usize::from(block.0.0)) % SHARDS]
    }

    fn block(&self, id: BlockId, epoch: i64) -> Option<Block> {
        let blocks = self.shard(id).read().unwrap_or_else(PoisonError::into_inner);
        blocks.get(&id).filter(|block| block.epoch == epoch).copied()
    }

    /// Whether a user is known to exist in this epoch.
    pub(super) fn exists(&self, user: UserId, epoch: i64) -> bool {
        let (id, place) = self.place(user);
        let blocks = self.shard(id).read().unwrap_or_else(PoisonError::into_inner);
        blocks.get(&id).is_some_and(|block| block.epoch == epoch && block.has(place))
    }

    /// Whom to ask about to learn of a block, or in one that was learned before, of this user. `None`: nobody, or not now.
    pub(super) fn to_learn(&self, block: BlockId, user: Option<UserId>, epoch: i64) -> Option<(Learning, Vec<UserId>)> {
        let users = match (self.block(block, epoch), user) {
            // He was not there when the block was learned. How many of the others have come since, they will show.
            (Some(known), Some(user)) if !known.has(self.place(user).1) => vec![user],
            (Some(_), _) => return None,
            (None, _) => {
                let nths = block.1 * BLOCK..(block.1 + 1) * BLOCK;
                let ids = nths.filter_map(|nth| nth.checked_mul(self.partitions)?.checked_add(i64::from(block.0.0)));
                ids.filter_map(UserId::new).collect::<Vec<_>>()
            }
        };
        let mut learning = self.learning.lock().unwrap_or_else(PoisonError::into_inner);
        let free = !users.is_empty() && learning.len() < MAX_LEARNING && learning.insert(block);
        free.then(|| (Learning { block, of: self.learning.clone() }, users))
    }

    pub(super) fn learned(&self, id: BlockId, epoch: i64, exist: impl Iterator<Item = UserId>) {
        let mut blocks = self.shard(id).write().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() >= MAX_BLOCKS && !blocks.contains_key(&id) {
            blocks.clear();
        }
        let fresh = Block { epoch, exist: [0; BLOCK as usize / 64] };
        let block = blocks.entry(id).or_insert(fresh);
        if block.epoch != epoch {
            *block = fresh;
        }
        for user in exist {
            let (_, place) = self.place(user);
            block.exist[place / 64] |= 1 << (place % 64);
        }
    }
}
