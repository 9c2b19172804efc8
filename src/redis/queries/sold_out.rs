//! Reads for the cache of sold-out campaigns: the status of a campaign, the holders of its coupons, the users that exist. Each
//! result is valid in its epoch only.

use std::time::{Duration, Instant};

use redis::FromRedisValue;

use crate::{
    config::MAX_LEASE_MS,
    model::{CouponId, Error, Millis, Partition, Position, UserId},
    redis::{Store, keys::Keys, partition_closed},
};

/// The page size of a scan: some hundred microseconds of Redis's time.
const HOLDERS_BATCH: usize = 1000;
/// The number of users per `EXISTS`, if not all users of a block exist.
const USERS_BATCH: usize = 32;

/// The status of a campaign at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CampaignStatus {
    pub epoch: i64,
    /// All coupons are issued or withheld, and no release is prepared.
    pub given_out: bool,
    pub holders: usize,
    /// The first instant of its window, and the first after it.
    pub window: (Millis, Millis),
}

/// `epoch`, `seq`, `frozen` and `forgotten` of a partition's `meta`.
type EpochFields = (Option<i64>, Option<i64>, Option<String>, Option<i64>);

/// What holds of users for as long as it is the same: the epoch of their partition, and what changes with each user that is
/// forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserGeneration {
    pub epoch: i64,
    pub forgotten: i64,
}

impl Store {
    /// Whether a partition is known to be open, so that commands need no check first.
    pub fn is_open(&self, here: Partition) -> bool {
        self.watermark(here).is_open()
    }

    /// Reads the status of a campaign. A campaign that does not exist is not given out.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also if the partition is frozen or behind its acknowledged position.
    pub async fn campaign_status(&self, id: CouponId) -> Result<CampaignStatus, Error> {
        let here = self.owner(id.get());
        let mut read = redis::pipe();
        let fields = ["total", "issued", "withheld", "reopening", "opens_at", "closes_at"];
        read.cmd("HMGET").arg(Keys(here).campaign(id)).arg(&fields);
        read.cmd("SCARD").arg(Keys(here).holders(id));
        type CampaignFields = (Option<i64>, Option<i64>, Option<i64>, Option<String>, Option<i64>, Option<i64>);
        let (UserGeneration { epoch, .. }, (campaign, holders)): (_, (CampaignFields, usize)) =
            self.in_epoch(here, &read).await?;
        let (total, issued, withheld, reopening, opens_at, closes_at) = campaign;
        let taken = issued.unwrap_or(0) + withheld.unwrap_or(0);
        let given_out = total.is_some_and(|total| taken >= total) && reopening.is_none();
        let window = (Millis(opens_at.unwrap_or(0)), Millis(closes_at.unwrap_or(0)));
        Ok(CampaignStatus { epoch, given_out, holders, window })
    }

    /// All users that hold a coupon of this campaign, ascending; `None` if they are more than `max`. May lack users who get a
    /// coupon during the scan.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn holders(&self, id: CouponId, max: usize) -> Result<Option<Box<[i64]>>, Error> {
        let here = self.owner(id.get());
        let set = Keys(here).holders(id);
        let (mut holders, mut cursor) = (Vec::new(), 0u64);
        loop {
            let mut scan = redis::cmd("SSCAN");
            scan.arg(&set).arg(cursor).arg("COUNT").arg(HOLDERS_BATCH);
            let (next, page): (u64, Vec<i64>) = self.query(here, scan).await?;
            holders.extend(page);
            // A scan may return a member twice.
            if next == 0 || holders.len() > max {
                holders.sort_unstable();
                holders.dedup();
            }
            if holders.len() > max {
                return Ok(None);
            }
            if next == 0 {
                return Ok(Some(holders.into_boxed_slice()));
            }
            cursor = next;
        }
    }

    /// The generation of the users of a partition; `None` if the last read of it was so long ago that a user may have been forgotten.
    pub fn user_generation(&self, here: Partition) -> Option<UserGeneration> {
        let watermark = self.watermark(here);
        let epoch = watermark.epoch();
        let forgotten = watermark.forgotten(epoch, Duration::from_millis(MAX_LEASE_MS)).filter(|_| watermark.is_open());
        forgotten.map(|forgotten| UserGeneration { epoch, forgotten })
    }

    /// Reads the generation of the users of a partition.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn read_user_generation(&self, here: Partition) -> Result<(), Error> {
        self.in_epoch::<Vec<redis::Value>>(here, &redis::pipe()).await.map(drop)
    }

    /// The generation, and for each of these users of partition `here` whether the user exists.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also if a new generation began meanwhile.
    pub async fn users_exist(&self, here: Partition, users: &[UserId]) -> Result<(UserGeneration, Vec<bool>), Error> {
        let (epoch, found) = self.count_users(here, &[users]).await?;
        if epoch.forgotten > 0 {
            return self.users_named(here, users).await;
        }
        if found == [users.len()] {
            return Ok((epoch, vec![true; users.len()]));
        }
        // Usually the missing users are adjacent, because they are not created yet: most groups are all there or all missing.
        let groups: Vec<&[UserId]> = users.chunks(USERS_BATCH).collect();
        let (again, found) = self.count_users(here, &groups).await?;
        let is_mixed = |(group, found): &(&&[UserId], &usize)| **found != 0 && **found != group.len();
        let mixed = groups.iter().zip(&found).filter(is_mixed).flat_map(|(group, _)| group.chunks(1));
        let singles: Vec<&[UserId]> = mixed.collect();
        let (last, each) =
            if singles.is_empty() { (again, Vec::new()) } else { self.count_users(here, &singles).await? };
        if (again, last) != (epoch, epoch) {
            return Err(Error::unavailable("a new generation of users began"));
        }
        let mut each = each.into_iter();
        let mut exist = Vec::with_capacity(users.len());
        for (group, found) in groups.iter().zip(found) {
            match found {
                0 => exist.resize(exist.len() + group.len(), false),
                all if all == group.len() => exist.resize(exist.len() + group.len(), true),
                _ => exist.extend(each.by_ref().take(group.len()).map(|found| found == 1)),
            }
        }
        Ok((epoch, exist))
    }

    /// The generation, and for each of these users whether it has a name, which one that was forgotten has not.
    async fn users_named(&self, here: Partition, users: &[UserId]) -> Result<(UserGeneration, Vec<bool>), Error> {
        let mut read = redis::pipe();
        for user in users {
            read.cmd("HEXISTS").arg(Keys(here).user(*user)).arg("name");
        }
        self.in_epoch(here, &read).await
    }

    /// The number of existing users in each group.
    async fn count_users(&self, here: Partition, groups: &[&[UserId]]) -> Result<(UserGeneration, Vec<usize>), Error> {
        let mut read = redis::pipe();
        for group in groups {
            let exist = read.cmd("EXISTS");
            for user in *group {
                exist.arg(Keys(here).user(*user));
            }
        }
        self.in_epoch(here, &read).await
    }

    /// Runs these reads at one moment. Returns its generation and their results.
    async fn in_epoch<T: FromRedisValue>(
        &self,
        here: Partition,
        reads: &redis::Pipeline,
    ) -> Result<(UserGeneration, T), Error> {
        let watermark = self.watermark(here);
        // Load before the reads: the partition must have everything acknowledged so far.
        let (acknowledged, began) = (watermark.acknowledged(), Instant::now());
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("HMGET").arg(Keys(here).meta()).arg(&["epoch", "seq", "frozen", "forgotten"]);
        for command in reads.cmd_iter() {
            read.add_command(command.clone());
        }
        let mut values: Vec<redis::Value> = self.pipe(here, &read).await?;
        let unreadable = |error: redis::ParsingError| {
            Error::Internal(anyhow::anyhow!("an unexpected reply of partition {}: {error}", here.0))
        };
        let rest = redis::Value::Array(values.split_off(values.len().min(1)));
        let meta = values.pop().unwrap_or(redis::Value::Nil);
        let (Some(epoch), Some(seq), None, forgotten) = EpochFields::from_redis_value(meta).map_err(unreadable)? else {
            watermark.invalidate();
            return Err(partition_closed());
        };
        let position = Position { epoch, seq };
        if position < acknowledged {
            // The check before the next use freezes the partition.
            watermark.invalidate();
            return Err(partition_closed());
        }
        watermark.advance(position);
        let generation = UserGeneration { epoch, forgotten: forgotten.unwrap_or(0) };
        watermark.record_forgotten(epoch, generation.forgotten, began);
        Ok((generation, T::from_redis_value(rest).map_err(unreadable)?))
    }
}
