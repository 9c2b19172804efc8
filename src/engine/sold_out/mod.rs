//! Refusing coupons of a campaign that is given out without asking Redis: what everybody gets who comes too late, and they
//! are nearly all.
//!
//! **What is known.** Once the script has said "out of stock", the process reads who holds the campaign's coupons, and then,
//! at one moment, that the partition decides, that all coupons are given out, that none is about to be released, and that
//! there are exactly as many holders as were read. Holders only ever become more, so it has them all. That stands for a
//! lease, counted from before the question was sent. A refusal without asking also needs that the user is known to exist
//! (users are never deleted), does not hold one, that the campaign's window is open and that both partitions are believed to
//! be: then the script would say the same, after the same checks. Whatever is not known is asked for, as ever. So is
//! everything under an idempotency key, whose record may say something else.
//!
//! **What could make it wrong** is a window that is moved: a campaign that is closed answers something else than "out of stock".
//! The process that moves it forgets at once what it knows of the campaign; another one knows the window that it read with all
//! the rest, and so says "out of stock" for no longer than its lease where the campaign is closed by then. (A window that is
//! widened makes nothing wrong: outside of the one that it knows, a process asks.)
//!
//! And stock that comes back. Coupons come back in one way: an operator releases what a rebuild
//! kept. The release is announced first (`coupon_release_prepare.lua`), which ends every renewal, then waited with for longer than any
//! lease ([`OUTLIVED`]), then done. A rebuild itself opens its new epoch no sooner than that after it closed the old one, and
//! what was read in one epoch counts for nothing in another.
//!
//! **Cost.** While a campaign is asked for, its lease is renewed halfway through, by one read in the background, however many
//! ask. Users are learned in blocks, and only around one that Redis has just confirmed, so that made-up ids lead to nothing.

mod users;

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio_util::task::TaskTracker;

use self::users::Users;
use crate::{
    config::MAX_LEASE_MS,
    model::{CampaignTerms, Clock, CouponId, Error, Millis, UserId},
    redis::Store,
};

/// After this no lease stands that began before: a tenth longer, for clocks that do not run alike.
pub const LEASE_EXPIRES_AFTER: Duration = Duration::from_millis(MAX_LEASE_MS + MAX_LEASE_MS / 10);

/// The most holders of one campaign that are kept: 40 MB.
const MAX_HOLDERS: usize = 5_000_000;
/// The most of all campaigns.
const MAX_TOTAL_HOLDERS: usize = 10_000_000;
const MAX_CAMPAIGNS: usize = 10_000;
/// How long a campaign is left alone whose holders are too many, or were not as many as they should be.
const RETRY_INTERVAL_US: u64 = 1_000_000;
/// Blocks learned one after the other from the first that is asked about.
const BLOCKS_AHEAD: i64 = 8;

/// What this process knows of campaigns that are given out.
pub struct SoldOut {
    store: Store,
    clock: Clock,
    lease_us: u64,
    campaigns: RwLock<HashMap<CouponId, Arc<Campaign>>>,
    /// Holders kept, in all.
    cached_holders: AtomicUsize,
    /// Some campaign's holders are being read: one at a time.
    reading: AtomicBool,
    users: Users,
    tasks: TaskTracker,
    refused: AtomicU64,
    renewed: AtomicU64,
    read: AtomicU64,
    learned: AtomicU64,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests refused without asking.
    pub refused: u64,
    /// Leases that began or went on.
    pub renewed: u64,
    /// Times that a campaign's holders were read.
    pub read: u64,
    /// Times that Redis was asked which users exist.
    pub learned: u64,
}

/// A campaign of which Redis once said that nothing is left.
struct Campaign {
    /// The first instant at which it is open, and the first at which it is no more. A moved one is of another `Campaign`.
    window: (Millis, Millis),
    /// Known once they were read; what was found to be otherwise since is another `Campaign`.
    holders: OnceLock<Holders>,
    /// All of the above holds up to here, by the clock's uptime.
    until_us: AtomicU64,
    /// Somebody is asking Redis how it stands.
    asking: AtomicBool,
    /// Nobody asks before.
    retry_at_us: AtomicU64,
}

struct Holders {
    epoch: i64,
    /// Ascending.
    users: Box<[i64]>,
}

impl Campaign {
    fn new(window: (Millis, Millis)) -> Self {
        Campaign {
            window,
            holders: OnceLock::new(),
            until_us: AtomicU64::default(),
            asking: AtomicBool::default(),
            retry_at_us: AtomicU64::default(),
        }
    }

    /// Holders that are kept.
    fn holder_count(&self) -> usize {
        self.holders.get().map_or(0, |holders| holders.users.len())
    }

    /// Takes it upon the caller to ask, unless somebody does.
    fn takes_turn(&self, now_us: u64) -> bool {
        now_us >= self.retry_at_us.load(Ordering::Relaxed) && !self.asking.swap(true, Ordering::Acquire)
    }

    fn retry_at(&self, until_us: u64) {
        self.retry_at_us.store(until_us, Ordering::Relaxed);
    }
}

/// Takes a turn back, however it ends.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl SoldOut {
    pub(super) fn new(store: Store, clock: Clock, lease_ms: u64) -> Self {
        let tasks = TaskTracker::new();
        // It can be waited for at any time.
        tasks.close();
        SoldOut {
            users: Users::new(store.partitions()),
            store,
            clock,
            lease_us: lease_ms.min(MAX_LEASE_MS) * 1000,
            campaigns: RwLock::default(),
            cached_holders: AtomicUsize::default(),
            reading: AtomicBool::default(),
            tasks,
            refused: AtomicU64::default(),
            renewed: AtomicU64::default(),
            read: AtomicU64::default(),
            learned: AtomicU64::default(),
        }
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            refused: count(&self.refused),
            renewed: count(&self.renewed),
            read: count(&self.read),
            learned: count(&self.learned),
        }
    }

    /// Waits until nothing is being asked in the background.
    pub async fn settled(&self) {
        self.tasks.wait().await;
    }

    /// Whether this user is certain to be told, now, that the campaign has no coupons left. `false` says nothing.
    pub(super) fn refuses(self: &Arc<Self>, user: UserId, coupon: CouponId) -> bool {
        if self.lease_us == 0 || !self.store.is_open(self.store.owner(coupon.get())) {
            return false;
        }
        let campaigns = self.campaigns.read().unwrap_or_else(PoisonError::into_inner);
        let Some(campaign) = campaigns.get(&coupon) else { return false };
        let (now_us, until_us) = (self.clock.uptime_us(), campaign.until_us.load(Ordering::Acquire));
        let (opens_at, closes_at) = campaign.window;
        // Near either end of the window only the store's own clock can tell.
        let (earliest, latest) = self.store.now_within(self.store.owner(coupon.get()));
        if now_us >= until_us || earliest < opens_at || latest >= closes_at {
            return false;
        }
        let Some(holders) = campaign.holders.get() else { return false };
        let known = self.users.exists(user, holders.epoch)
            && self.store.is_open(self.store.owner(user.get()))
            && holders.users.binary_search(&user.get()).is_err();
        let renewing = until_us - now_us <= self.lease_us / 2 && campaign.takes_turn(now_us);
        let renewing = renewing.then(|| campaign.clone());
        drop(campaigns);
        if let Some(campaign) = renewing {
            self.ask(coupon, campaign);
        }
        if known {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        known
    }

    /// The script has said that the campaign has no coupons left, to a user who exists and holds none.
    pub(super) fn refused_by_redis(self: &Arc<Self>, user: UserId, terms: &CampaignTerms) {
        if self.lease_us == 0 {
            return;
        }
        let campaign = self.campaign(terms);
        let now_us = self.clock.uptime_us();
        if now_us < campaign.until_us.load(Ordering::Acquire) {
            if let Some(holders) = campaign.holders.get() {
                self.learn(user, holders.epoch);
            }
        } else if campaign.takes_turn(now_us) {
            self.ask(terms.coupon_id, campaign);
        }
    }

    fn campaign(&self, terms: &CampaignTerms) -> Arc<Campaign> {
        let known = self.campaigns.read().unwrap_or_else(PoisonError::into_inner).get(&terms.coupon_id).cloned();
        known.unwrap_or_else(|| {
            let fresh = Arc::new(Campaign::new((terms.opens_at, terms.closes_at)));
            let mut campaigns = self.campaigns.write().unwrap_or_else(PoisonError::into_inner);
            if campaigns.len() >= MAX_CAMPAIGNS {
                self.forget(&mut campaigns);
            }
            campaigns.entry(terms.coupon_id).or_insert(fresh).clone()
        })
    }

    /// The campaign's window was moved.
    pub(super) fn moved(&self, coupon: CouponId) {
        let mut campaigns = self.campaigns.write().unwrap_or_else(PoisonError::into_inner);
        let before = campaigns.remove(&coupon);
        self.cached_holders.fetch_sub(before.map_or(0, |before| before.holder_count()), Ordering::Relaxed);
    }

    fn forget(&self, campaigns: &mut HashMap<CouponId, Arc<Campaign>>) {
        campaigns.clear();
        self.cached_holders.store(0, Ordering::Relaxed);
    }

    /// Asks Redis in the background how the campaign stands. The caller has taken the turn.
    fn ask(self: &Arc<Self>, coupon: CouponId, campaign: Arc<Campaign>) {
        let this = self.clone();
        self.tasks.spawn(async move {
            let _turn = Turn(&campaign.asking);
            if let Err(error) = this.verify(coupon, &campaign).await {
                // What is known stands for as long as it stands.
                tracing::debug!(%coupon, %error, "nobody knows whether coupons are left");
                campaign.retry_at(this.clock.uptime_us() + this.lease_us / 4);
            }
        });
    }

    async fn verify(&self, coupon: CouponId, campaign: &Arc<Campaign>) -> Result<(), Error> {
        let asked_us = self.clock.uptime_us();
        let stands = self.store.campaign_status(coupon).await?;
        if !stands.given_out {
            campaign.until_us.store(0, Ordering::Release);
            campaign.retry_at(asked_us + self.lease_us / 4);
            return Ok(());
        }
        if stands.window != campaign.window {
            // Another time it is asked for as if nothing were known.
            campaign.until_us.store(0, Ordering::Release);
            self.cache(coupon, Campaign::new(stands.window), 0);
            return Ok(());
        }
        let as_known = |holders: &Holders| (holders.epoch, holders.users.len()) == (stands.epoch, stands.holders);
        if campaign.holders.get().is_some_and(as_known) {
            campaign.until_us.store(asked_us + self.lease_us, Ordering::Release);
            self.renewed.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        // There are others now.
        campaign.until_us.store(0, Ordering::Release);
        if stands.holders > MAX_HOLDERS {
            campaign.retry_at(asked_us + RETRY_INTERVAL_US);
            return Ok(());
        }
        if self.reading.swap(true, Ordering::Acquire) {
            campaign.retry_at(asked_us + self.lease_us / 4);
            return Ok(());
        }
        let _turn = Turn(&self.reading);
        campaign.retry_at(asked_us + RETRY_INTERVAL_US);
        let Some(users) = self.store.holders(coupon, MAX_HOLDERS).await? else { return Ok(()) };
        self.read.fetch_add(1, Ordering::Relaxed);
        let asked_us = self.clock.uptime_us();
        let now = self.store.campaign_status(coupon).await?;
        if !now.given_out || now.epoch != stands.epoch || now.holders != users.len() {
            return Ok(());
        }
        let known = Campaign::new(now.window);
        known.until_us.store(asked_us + self.lease_us, Ordering::Release);
        let (kept, epoch) = (users.len(), stands.epoch);
        let _ = known.holders.set(Holders { epoch, users });
        self.cache(coupon, known, kept);
        self.renewed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn cache(&self, coupon: CouponId, known: Campaign, holders: usize) {
        let mut campaigns = self.campaigns.write().unwrap_or_else(PoisonError::into_inner);
        if self.cached_holders.load(Ordering::Relaxed) + holders > MAX_TOTAL_HOLDERS {
            self.forget(&mut campaigns);
        }
        let before = campaigns.insert(coupon, Arc::new(known));
        self.cached_holders.fetch_add(holders, Ordering::Relaxed);
        self.cached_holders.fetch_sub(before.map_or(0, |before| before.holder_count()), Ordering::Relaxed);
    }

    /// A user who exists is not known to: his block is learned, and some that follow it while they are full; or where it was,
    /// he alone.
    fn learn(self: &Arc<Self>, user: UserId, epoch: i64) {
        let (first, _) = self.users.place(user);
        let Some((mut turn, mut users)) = self.users.to_learn(first, Some(user), epoch) else { return };
        let this = self.clone();
        self.tasks.spawn(async move {
            for ahead in 1..=BLOCKS_AHEAD {
                this.learned.fetch_add(1, Ordering::Relaxed);
                let (epoch, exist) = match this.store.users_exist(turn.block.0, &users).await {
                    Ok(found) => found,
                    Err(error) => return tracing::debug!(%error, "nobody knows which users exist"),
                };
                let all = exist.iter().all(|exists| *exists) && users.len() > 1;
                let exist = users.iter().zip(exist).filter(|(_, exists)| *exists).map(|(user, _)| *user);
                this.users.learned(turn.block, epoch, exist);
                if !all {
                    return;
                }
                match this.users.to_learn((first.0, first.1 + ahead), None, epoch) {
                    Some(next) => (turn, users) = next,
                    None => return,
                }
            }
        });
    }
}
