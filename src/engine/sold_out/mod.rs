//! Refuses coupons of sold-out campaigns without a call to Redis. In a flash sale this is the reply to nearly all requests.
//!
//! **The cache.** After the script has replied "out of stock", the process reads the holders of the campaign's coupons. Then
//! one read confirms that the partition is open, that all coupons are issued, that no release is announced, and that the number
//! of holders is the number read. Holders are never removed, so the process has all of them. This holds for a lease that begins
//! before the confirming read is sent.
//!
//! **A local refusal** needs a valid lease, a user who exists (see below) and holds no coupon of the campaign, an
//! open window, and both partitions open. The script would then make the same checks and give the same reply. In every other
//! case Redis decides; also for a request with an idempotency key, whose record may have another reply.
//!
//! **A moved window.** A closed campaign has another reply than "out of stock". The process that moves a window drops the
//! campaign from its cache at once. Another process uses the window that it read with the holders, and so may reply "out of
//! stock" for a closed campaign until its lease ends. A widened window is harmless: outside the window that it knows, a process
//! calls Redis.
//!
//! **Returning stock.** Coupons return only when an operator releases those that a rebuild withheld. The release is announced
//! first (`coupon_release_prepare.lua`), which stops every renewal; it happens after [`LEASE_EXPIRES_AFTER`], when no lease is
//! left. A rebuild opens its new epoch no sooner than that after it closed the old one, and a cache entry is valid in its epoch
//! only.
//!
//! **A forgotten user.** Each process checks every partition twice a second, and so learns that a user was forgotten: its cache of the
//! partition's users is then another generation's. It uses the cache only if that was read no longer ago than the longest lease, and
//! the reply to the request to forget waits for [`LEASE_EXPIRES_AFTER`].
//!
//! **Cost.** While requests for a campaign arrive, one background read renews its lease at half time, whatever their number.
//! Users are read in blocks, and only around a user whom Redis has just confirmed, so that invented ids cause no reads.

mod campaigns;
mod users;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::task::TaskTracker;

use self::{
    campaigns::{Campaigns, ClearOnDrop, Holders, SoldOutCampaign},
    users::Users,
};
use crate::{
    config::MAX_LEASE_MS,
    model::{CampaignTerms, Clock, CouponId, Error, UserId},
    redis::Store,
};

/// The time after which every lease has ended: the maximum lease and a tenth, because clocks run at different rates.
pub const LEASE_EXPIRES_AFTER: Duration = Duration::from_millis(MAX_LEASE_MS + MAX_LEASE_MS / 10);

/// The maximum number of cached holders of one campaign: 40 MB.
const MAX_HOLDERS: usize = 5_000_000;
/// The time until the next read of a campaign with too many holders, or with another number of holders than were read.
const RETRY_INTERVAL_US: u64 = 1_000_000;
/// The maximum number of consecutive blocks of users to read after one request.
const BLOCKS_AHEAD: i64 = 8;

/// A cache of sold-out campaigns.
pub struct SoldOutCache {
    store: Store,
    clock: Clock,
    lease_us: u64,
    campaigns: Campaigns,
    /// A read of holders is in progress; there is one at a time.
    reading: AtomicBool,
    users: Users,
    /// A read of a generation of users is in progress; there is one at a time.
    asking: AtomicBool,
    tasks: TaskTracker,
    refused: AtomicU64,
    renewed: AtomicU64,
    read: AtomicU64,
    learned: AtomicU64,
}

/// Counters since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests refused without a call to Redis.
    pub refused: u64,
    /// Leases that began or were renewed.
    pub renewed: u64,
    /// Reads of a campaign's holders.
    pub read: u64,
    /// Reads of a block of users.
    pub learned: u64,
}

impl SoldOutCache {
    pub(super) fn new(store: Store, clock: Clock, lease_ms: u64) -> Self {
        let tasks = TaskTracker::new();
        // `TaskTracker::wait` needs a closed tracker.
        tasks.close();
        SoldOutCache {
            users: Users::new(store.partitions()),
            store,
            clock,
            lease_us: lease_ms.min(MAX_LEASE_MS) * 1000,
            campaigns: Campaigns::default(),
            reading: AtomicBool::default(),
            asking: AtomicBool::default(),
            tasks,
            refused: AtomicU64::default(),
            renewed: AtomicU64::default(),
            read: AtomicU64::default(),
            learned: AtomicU64::default(),
        }
    }

    /// The counters since the start of the process.
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            refused: count(&self.refused),
            renewed: count(&self.renewed),
            read: count(&self.read),
            learned: count(&self.learned),
        }
    }

    /// Waits until all background reads have ended.
    pub async fn settled(&self) {
        self.tasks.wait().await;
    }

    /// Whether Redis would certainly refuse this user now, because the campaign is sold out. `false` means unknown.
    pub(super) fn refuses(self: &Arc<Self>, user: UserId, coupon: CouponId) -> bool {
        if self.lease_us == 0 || !self.store.is_open(self.store.owner(coupon.get())) {
            return false;
        }
        let campaigns = self.campaigns.read();
        let Some(campaign) = campaigns.get(&coupon) else { return false };
        let (now_us, until_us) = (self.clock.uptime_us(), campaign.until_us.load(Ordering::Acquire));
        let (opens_at, closes_at) = campaign.window;
        // Near either end of the window only the store's own clock can decide.
        let (earliest, latest) = self.store.now_within(self.store.owner(coupon.get()));
        if now_us >= until_us || earliest < opens_at || latest >= closes_at {
            return false;
        }
        let Some(holders) = campaign.holders.get() else { return false };
        let known = self.knows(user) && holders.users.binary_search(&user.get()).is_err();
        let renewing = campaign.begin_renewal(now_us, until_us - now_us, self.lease_us);
        let renewing = renewing.then(|| campaign.clone());
        drop(campaigns);
        if let Some(campaign) = renewing {
            self.check_in_background(coupon, campaign);
        }
        if known {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        known
    }

    /// Whether this user certainly exists. `false` means unknown.
    pub(super) fn knows(&self, user: UserId) -> bool {
        let owner = self.store.owner(user.get());
        self.store.user_generation(owner).is_some_and(|generation| self.users.exists(user, generation))
    }

    /// Records that the script has refused a user, who exists and holds no coupon, because the campaign is sold out.
    pub(super) fn refused_by_redis(self: &Arc<Self>, user: UserId, terms: &CampaignTerms) {
        if self.lease_us == 0 {
            return;
        }
        let campaign = self.campaigns.get_or_insert(terms.coupon_id, (terms.opens_at, terms.closes_at));
        let now_us = self.clock.uptime_us();
        if now_us < campaign.until_us.load(Ordering::Acquire) {
            if campaign.holders.get().is_some() {
                self.learn(user);
            }
        } else if campaign.begin_check(now_us) {
            self.check_in_background(terms.coupon_id, campaign);
        }
    }

    /// Drops a campaign whose window was moved.
    pub(super) fn moved(&self, coupon: CouponId) {
        self.campaigns.remove(coupon);
    }

    /// Checks a campaign in the background. The caller has called [`SoldOutCampaign::begin_check`].
    fn check_in_background(self: &Arc<Self>, coupon: CouponId, campaign: Arc<SoldOutCampaign>) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let _checking = campaign.checking();
            if let Err(error) = this.check(coupon, &campaign).await {
                // A valid lease stays valid.
                tracing::debug!(%coupon, %error, "can't check whether a campaign is sold out");
                campaign.retry_at(this.clock.uptime_us() + this.lease_us / 4);
            }
        });
    }

    /// Reads the status of a campaign, and its holders if they changed, and renews or ends the lease.
    async fn check(&self, coupon: CouponId, campaign: &Arc<SoldOutCampaign>) -> Result<(), Error> {
        // A lease begins before the read is sent.
        let sent_us = self.clock.uptime_us();
        let status = self.store.campaign_status(coupon).await?;
        if !status.given_out {
            campaign.until_us.store(0, Ordering::Release);
            campaign.retry_at(sent_us + self.lease_us / 4);
            return Ok(());
        }
        if status.window != campaign.window {
            // Start over with the new window; the next request causes a check.
            campaign.until_us.store(0, Ordering::Release);
            self.campaigns.replace(coupon, campaign, SoldOutCampaign::new(status.window));
            return Ok(());
        }
        let unchanged = |holders: &Holders| (holders.epoch, holders.users.len()) == (status.epoch, status.holders);
        if campaign.holders.get().is_some_and(unchanged) {
            campaign.until_us.store(sent_us + self.lease_us, Ordering::Release);
            self.renewed.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        // The holders have changed, or are not read yet.
        campaign.until_us.store(0, Ordering::Release);
        if status.holders > MAX_HOLDERS {
            campaign.retry_at(sent_us + RETRY_INTERVAL_US);
            return Ok(());
        }
        if self.reading.swap(true, Ordering::Acquire) {
            campaign.retry_at(sent_us + self.lease_us / 4);
            return Ok(());
        }
        let _reading = ClearOnDrop(&self.reading);
        campaign.retry_at(sent_us + RETRY_INTERVAL_US);
        let Some(users) = self.store.holders(coupon, MAX_HOLDERS).await? else { return Ok(()) };
        self.read.fetch_add(1, Ordering::Relaxed);
        let sent_us = self.clock.uptime_us();
        let confirmed = self.store.campaign_status(coupon).await?;
        if !confirmed.given_out || confirmed.epoch != status.epoch || confirmed.holders != users.len() {
            return Ok(());
        }
        let entry = SoldOutCampaign::new(confirmed.window);
        entry.until_us.store(sent_us + self.lease_us, Ordering::Release);
        let _ = entry.holders.set(Holders { epoch: status.epoch, users });
        self.campaigns.replace(coupon, campaign, entry);
        self.renewed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Reads in the background which users exist, after Redis has confirmed a user whom the cache lacks: the user's block and,
    /// while the blocks are full, the following ones; or only the user, if the cache has the block.
    pub(super) fn learn(self: &Arc<Self>, user: UserId) {
        let owner = self.store.owner(user.get());
        let Some(generation) = self.store.user_generation(owner) else {
            if !self.asking.swap(true, Ordering::Acquire) {
                let this = self.clone();
                self.tasks.spawn(async move {
                    let _asking = ClearOnDrop(&this.asking);
                    if let Err(error) = this.store.read_user_generation(owner).await {
                        tracing::debug!(%error, "can't read whether users were forgotten");
                    }
                });
            }
            return;
        };
        let (first, _) = self.users.place(user);
        let Some((mut learning, mut users)) = self.users.to_learn(first, Some(user), generation) else { return };
        let this = self.clone();
        self.tasks.spawn(async move {
            for ahead in 1..=BLOCKS_AHEAD {
                this.learned.fetch_add(1, Ordering::Relaxed);
                let (generation, exist) = match this.store.users_exist(learning.block.0, &users).await {
                    Ok(found) => found,
                    Err(error) => return tracing::debug!(%error, "can't read which users exist"),
                };
                let all = exist.iter().all(|exists| *exists) && users.len() > 1;
                let exist = users.iter().zip(exist).filter(|(_, exists)| *exists).map(|(user, _)| *user);
                this.users.learned(learning.block, generation, exist);
                if !all {
                    return;
                }
                match this.users.to_learn((first.0, first.1 + ahead), None, generation) {
                    Some(next) => (learning, users) = next,
                    None => return,
                }
            }
        });
    }
}
