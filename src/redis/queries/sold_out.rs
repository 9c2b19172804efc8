//! The reads by which a process comes to refuse coupons without asking: what stands of a campaign, who holds its coupons,
//! who exists. Each names the epoch that it was read in; nothing of it is worth anything in another.

use redis::FromRedisValue;

use crate::{
    model::{CouponId, Error, Millis, Partition, Position, UserId},
    redis::{Store, keys::Keys, partition_closed},
};

/// Members in one page of a scan: some hundred microseconds of Redis's time.
const HOLDERS_BATCH: usize = 1000;
/// Users asked about by one `EXISTS` where some of more do not exist.
const USERS_BATCH: usize = 32;

/// What a campaign's partition says of it at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CampaignStatus {
    pub epoch: i64,
    /// All coupons are given out or kept back, and none is about to be released.
    pub given_out: bool,
    pub holders: usize,
    /// The first instant of its window, and the first after it.
    pub window: (Millis, Millis),
}

type Meta = (Option<i64>, Option<i64>, Option<String>);

impl Store {
    /// Whether a partition is used without being looked at first.
    pub fn is_open(&self, here: Partition) -> bool {
        self.watermark(here).is_open()
    }

    /// How a campaign stands. One that does not exist is not given out.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; also where the books are closed, or know less than was told before.
    pub async fn campaign_status(&self, id: CouponId) -> Result<CampaignStatus, Error> {
        let here = self.owner(id.get());
        let mut read = redis::pipe();
        let fields = ["total", "issued", "withheld", "reopening", "opens_at", "closes_at"];
        read.cmd("HMGET").arg(Keys(here).campaign(id)).arg(&fields);
        read.cmd("SCARD").arg(Keys(here).holders(id));
        type Campaign = (Option<i64>, Option<i64>, Option<i64>, Option<String>, Option<i64>, Option<i64>);
        let (epoch, (campaign, holders)): (_, (Campaign, usize)) = self.in_epoch(here, &read).await?;
        let (total, issued, withheld, reopening, opens_at, closes_at) = campaign;
        let taken = issued.unwrap_or(0) + withheld.unwrap_or(0);
        let given_out = total.is_some_and(|total| taken >= total) && reopening.is_none();
        let window = (Millis(opens_at.unwrap_or(0)), Millis(closes_at.unwrap_or(0)));
        Ok(CampaignStatus { epoch, given_out, holders, window })
    }

    /// All users that hold a coupon of this campaign, ascending; `None` if they are more than `most`. Of those that get one
    /// meanwhile, some.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn holders(&self, id: CouponId, most: usize) -> Result<Option<Box<[i64]>>, Error> {
        let here = self.owner(id.get());
        let set = Keys(here).holders(id);
        let (mut holders, mut cursor) = (Vec::new(), 0u64);
        loop {
            let mut scan = redis::cmd("SSCAN");
            scan.arg(&set).arg(cursor).arg("COUNT").arg(HOLDERS_BATCH);
            let (next, page): (u64, Vec<i64>) = self.query(here, scan).await?;
            holders.extend(page);
            // Some may come twice.
            if next == 0 || holders.len() > most {
                holders.sort_unstable();
                holders.dedup();
            }
            if holders.len() > most {
                return Ok(None);
            }
            if next == 0 {
                return Ok(Some(holders.into_boxed_slice()));
            }
            cursor = next;
        }
    }

    /// Which of these users exist, all at home in `here`; and the epoch, which is one for all of them.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; also where a new epoch began meanwhile.
    pub async fn users_exist(&self, here: Partition, users: &[UserId]) -> Result<(i64, Vec<bool>), Error> {
        let (epoch, found) = self.count_users(here, &[users]).await?;
        if found == [users.len()] {
            return Ok((epoch, vec![true; users.len()]));
        }
        // As a rule those that do not exist are next to each other: they are not yet created.
        let groups: Vec<&[UserId]> = users.chunks(USERS_BATCH).collect();
        let (again, found) = self.count_users(here, &groups).await?;
        let is_mixed = |(group, found): &(&&[UserId], &usize)| **found != 0 && **found != group.len();
        let mixed = groups.iter().zip(&found).filter(is_mixed).flat_map(|(group, _)| group.chunks(1));
        let singles: Vec<&[UserId]> = mixed.collect();
        let (last, each) =
            if singles.is_empty() { (again, Vec::new()) } else { self.count_users(here, &singles).await? };
        if (again, last) != (epoch, epoch) {
            return Err(Error::unavailable("a new epoch began"));
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

    /// How many of each group exist.
    async fn count_users(&self, here: Partition, groups: &[&[UserId]]) -> Result<(i64, Vec<usize>), Error> {
        let mut read = redis::pipe();
        for group in groups {
            let exist = read.cmd("EXISTS");
            for user in *group {
                exist.arg(Keys(here).user(*user));
            }
        }
        self.in_epoch(here, &read).await
    }

    /// Runs these reads at one moment of an epoch.
    async fn in_epoch<T: FromRedisValue>(&self, here: Partition, reads: &redis::Pipeline) -> Result<(i64, T), Error> {
        let watermark = self.watermark(here);
        // Before the reads: the books must know it all.
        let acknowledged = watermark.acknowledged();
        let mut read = redis::pipe();
        read.atomic();
        read.cmd("HMGET").arg(Keys(here).meta()).arg(&["epoch", "seq", "frozen"]);
        for command in reads.cmd_iter() {
            read.add_command(command.clone());
        }
        let mut values: Vec<redis::Value> = self.pipe(here, &read).await?;
        let unreadable = |error: redis::ParsingError| {
            Error::Internal(anyhow::anyhow!("partition {} answered something else: {error}", here.0))
        };
        let rest = redis::Value::Array(values.split_off(values.len().min(1)));
        let books = values.pop().unwrap_or(redis::Value::Nil);
        let (Some(epoch), Some(seq), None) = Meta::from_redis_value(books).map_err(unreadable)? else {
            watermark.invalidate();
            return Err(partition_closed());
        };
        let position = Position { epoch, seq };
        if position < acknowledged {
            // Whoever uses the partition next looks, and freezes it.
            watermark.invalidate();
            return Err(partition_closed());
        }
        watermark.advance(position);
        Ok((epoch, T::from_redis_value(rest).map_err(unreadable)?))
    }
}
