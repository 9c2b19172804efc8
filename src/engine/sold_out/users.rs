//! A cache of existing users: one bit per user, in blocks of consecutive ids. A rebuild may lose users, and a
//! user may be forgotten, so a block is valid in its generation only.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{
    model::{Partition, UserId},
    redis::queries::sold_out::UserGeneration,
};

/// The number of users in a block; they are consecutive ids of one partition.
const BLOCK: i64 = 1024;
/// The number of locks over which the blocks are spread.
const SHARDS: usize = 16;
/// The maximum number of blocks per lock: 64 million users in all, in some 10 MB.
const MAX_BLOCKS: usize = 4096;
/// The maximum number of blocks that are read at a time.
const MAX_LEARNING: usize = 16;

/// A partition, and the index of a block in it. Partition p of N has the users p, p + N, p + 2N, …
pub(super) type BlockId = (Partition, i64);

/// The cache of existing users.
pub(super) struct Users {
    partitions: i64,
    shards: Box<[RwLock<HashMap<BlockId, UserBlock>>]>,
    learning: Arc<Mutex<HashSet<BlockId>>>,
}

#[derive(Clone, Copy)]
struct UserBlock {
    generation: UserGeneration,
    exist: [u64; BLOCK as usize / 64],
}

impl UserBlock {
    fn has(&self, place: usize) -> bool {
        self.exist[place / 64] >> (place % 64) & 1 == 1
    }
}

/// A block whose users are being read, until this is dropped.
pub(super) struct Learning {
    pub(super) block: BlockId,
    in_progress: Arc<Mutex<HashSet<BlockId>>>,
}

impl Drop for Learning {
    fn drop(&mut self) {
        self.in_progress.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.block);
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

    /// The user's block, and the index of the user in it.
    pub(super) fn place(&self, user: UserId) -> (BlockId, usize) {
        let (owner, nth) = (user.get() % self.partitions, user.get() / self.partitions);
        ((Partition(owner as u16), nth / BLOCK), (nth % BLOCK) as usize)
    }

    fn shard(&self, block: BlockId) -> &RwLock<HashMap<BlockId, UserBlock>> {
        &self.shards[(block.1 as usize).wrapping_add(usize::from(block.0.0)) % SHARDS]
    }

    fn block(&self, id: BlockId, generation: UserGeneration) -> Option<UserBlock> {
        let blocks = self.shard(id).read().unwrap_or_else(PoisonError::into_inner);
        blocks.get(&id).filter(|block| block.generation == generation).copied()
    }

    /// Whether the cache has the user in this generation.
    pub(super) fn exists(&self, user: UserId, generation: UserGeneration) -> bool {
        let (id, place) = self.place(user);
        let blocks = self.shard(id).read().unwrap_or_else(PoisonError::into_inner);
        blocks.get(&id).is_some_and(|block| block.generation == generation && block.has(place))
    }

    /// The users to read for a block: all of them or, if the cache has the block without `user`, only that one. `None` if there
    /// is nothing to read, or if too many reads are in progress.
    pub(super) fn to_learn(
        &self,
        block: BlockId,
        user: Option<UserId>,
        generation: UserGeneration,
    ) -> Option<(Learning, Vec<UserId>)> {
        let users = match (self.block(block, generation), user) {
            // The user was created after the read of the block. Others may have been too; their own requests add them.
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
        free.then(|| (Learning { block, in_progress: self.learning.clone() }, users))
    }

    /// Adds users that exist to a block.
    pub(super) fn learned(&self, id: BlockId, generation: UserGeneration, exist: impl Iterator<Item = UserId>) {
        let mut blocks = self.shard(id).write().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() >= MAX_BLOCKS && !blocks.contains_key(&id) {
            blocks.clear();
        }
        let fresh = UserBlock { generation, exist: [0; BLOCK as usize / 64] };
        let block = blocks.entry(id).or_insert(fresh);
        if block.generation != generation {
            *block = fresh;
        }
        for user in exist {
            let (_, place) = self.place(user);
            block.exist[place / 64] |= 1 << (place % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generation of an epoch in which nobody was forgotten.
    fn of(epoch: i64) -> UserGeneration {
        UserGeneration { epoch, forgotten: 0 }
    }

    fn user(id: i64) -> UserId {
        UserId::new(id).unwrap()
    }

    #[test]
    fn neighbours_of_a_partition_share_a_block() {
        let users = Users::new(3);
        assert_eq!(users.place(user(5)), ((Partition(2), 0), 1));
        assert_eq!(users.place(user(3 * BLOCK + 1)), ((Partition(1), 1), 0));
        let (block, _) = users.place(user(7));
        let (_learning, asked) = users.to_learn(block, Some(user(7)), of(1)).unwrap();
        assert_eq!(asked.len(), BLOCK as usize);
        assert!(asked.iter().all(|user| users.place(*user).0 == block));
    }

    #[test]
    fn block_learned_by_one_task_at_a_time() {
        let users = Users::new(1);
        let block = users.place(user(1)).0;
        let (learning, _) = users.to_learn(block, Some(user(1)), of(1)).unwrap();
        assert!(users.to_learn(block, Some(user(1)), of(1)).is_none());
        drop(learning);
        assert!(users.to_learn(block, Some(user(1)), of(1)).is_some());
        // The number of blocks at once is limited, too.
        let block = |n: i64| (Partition(0), n);
        let learning: Vec<_> =
            (0..MAX_LEARNING as i64).map(|n| users.to_learn(block(n), None, of(1)).unwrap()).collect();
        assert!(users.to_learn(block(99), None, of(1)).is_none());
        drop(learning);
        assert!(users.to_learn(block(99), None, of(1)).is_some());
    }

    #[test]
    fn user_known_in_the_generation_that_was_read_only() {
        let users = Users::new(1);
        let (block, _) = users.place(user(7));
        assert!(!users.exists(user(7), of(1)));
        users.learned(block, of(1), [user(7), user(9)].into_iter());
        assert!(users.exists(user(7), of(1)) && users.exists(user(9), of(1)) && !users.exists(user(8), of(1)));
        assert!(!users.exists(user(7), of(2)));
        assert!(!users.exists(user(7), UserGeneration { epoch: 1, forgotten: 1 }));
        // A read of another epoch replaces the block.
        users.learned(block, of(2), [user(8)].into_iter());
        assert!(users.exists(user(8), of(2)) && !users.exists(user(7), of(2)) && !users.exists(user(7), of(1)));
    }

    #[test]
    fn newcomer_of_known_block_asked_about_alone() {
        let users = Users::new(1);
        let (block, _) = users.place(user(7));
        users.learned(block, of(1), [user(7)].into_iter());
        assert!(users.to_learn(block, Some(user(7)), of(1)).is_none());
        assert!(users.to_learn(block, None, of(1)).is_none());
        let (_learning, asked) = users.to_learn(block, Some(user(8)), of(1)).unwrap();
        assert_eq!(asked, [user(8)]);
        users.learned(block, of(1), [user(8)].into_iter());
        assert!(users.exists(user(7), of(1)) && users.exists(user(8), of(1)));
    }
}
