//! The cached campaigns, their leases, and the turn to check one.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use crate::{
    model::{CouponId, Millis},
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

/// The maximum number of cached holders of all campaigns.
const MAX_TOTAL_HOLDERS: usize = 10_000_000;
/// The maximum number of cached campaigns.
const MAX_CAMPAIGNS: usize = 10_000;

/// A campaign that Redis has reported as sold out. A change of the window or of the holders replaces the entry.
pub(super) struct SoldOutCampaign {
    /// The first instant at which the campaign is open, and the first at which it is closed.
    pub window: (Millis, Millis),
    /// Set once the holders are read.
    pub holders: OnceLock<Holders>,
    /// The end of the lease, by the clock's uptime.
    pub until_us: AtomicU64,
    /// A check is in progress.
    checking: AtomicBool,
    /// The earliest time of the next check, by the clock's uptime.
    retry_at_us: AtomicU64,
}

pub(super) struct Holders {
    pub epoch: i64,
    /// Ascending.
    pub users: Box<[i64]>,
}

impl SoldOutCampaign {
    pub fn new(window: (Millis, Millis)) -> Self {
        SoldOutCampaign {
            window,
            holders: OnceLock::new(),
            until_us: AtomicU64::new(0),
            checking: AtomicBool::new(false),
            retry_at_us: AtomicU64::new(0),
        }
    }

    /// The number of cached holders.
    fn holder_count(&self) -> usize {
        self.holders.get().map_or(0, |holders| holders.users.len())
    }

    /// Starts a check, unless one is in progress or it is too early. If true, the caller must run it, and hold a
    /// [`SoldOutCampaign::checking`] meanwhile.
    pub fn begin_check(&self, now_us: u64) -> bool {
        now_us >= self.retry_at_us.load(Ordering::Relaxed)
            && self.checking.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Starts the check that renews a lease, in the second half of its `lease_us`, of which `left_us` are left. As
    /// [`SoldOutCampaign::begin_check`].
    pub fn begin_renewal(&self, now_us: u64, left_us: u64, lease_us: u64) -> bool {
        left_us <= lease_us / 2 && self.begin_check(now_us)
    }

    /// Ends the check in progress when dropped.
    pub fn checking(&self) -> ClearOnDrop<'_> {
        ClearOnDrop(&self.checking)
    }

    pub fn retry_at(&self, until_us: u64) {
        self.retry_at_us.store(until_us, Ordering::Relaxed);
    }
}

/// Clears a flag when dropped.
pub(super) struct ClearOnDrop<'a>(pub &'a AtomicBool);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The cached campaigns by coupon.
pub(super) struct Campaigns {
    entries: RwLock<HashMap<CouponId, Arc<SoldOutCampaign>>>,
    /// The number of cached holders of all campaigns; written under the lock of `entries`.
    total_holders: AtomicUsize,
}

impl Default for Campaigns {
    fn default() -> Self {
        Campaigns { entries: RwLock::new(HashMap::new()), total_holders: AtomicUsize::new(0) }
    }
}

impl Campaigns {
    pub fn read(&self) -> RwLockReadGuard<'_, HashMap<CouponId, Arc<SoldOutCampaign>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<CouponId, Arc<SoldOutCampaign>>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a campaign, or a new one with this window.
    pub fn get_or_insert(&self, coupon: CouponId, window: (Millis, Millis)) -> Arc<SoldOutCampaign> {
        let known = self.read().get(&coupon).cloned();
        known.unwrap_or_else(|| {
            let mut entries = self.write();
            if entries.len() >= MAX_CAMPAIGNS {
                self.clear(&mut entries);
            }
            entries.entry(coupon).or_insert_with(|| Arc::new(SoldOutCampaign::new(window))).clone()
        })
    }

    /// Drops a campaign. The result of a check in progress is not cached either.
    pub fn remove(&self, coupon: CouponId) {
        let mut entries = self.write();
        let removed = entries.remove(&coupon).map_or(0, |campaign| campaign.holder_count());
        self.total_holders.fetch_sub(removed, Ordering::Relaxed);
    }

    /// Replaces the entry that a check began with by its result, unless the entry was dropped or replaced meanwhile.
    pub fn replace(&self, coupon: CouponId, checked: &Arc<SoldOutCampaign>, entry: SoldOutCampaign) {
        let mut entries = self.write();
        if !entries.get(&coupon).is_some_and(|known| Arc::ptr_eq(known, checked)) {
            return;
        }
        let count = entry.holder_count();
        if self.total_holders.load(Ordering::Relaxed) + count > MAX_TOTAL_HOLDERS {
            self.clear(&mut entries);
        }
        let before = entries.insert(coupon, Arc::new(entry)).map_or(0, |before| before.holder_count());
        self.total_holders.fetch_add(count, Ordering::Relaxed);
        self.total_holders.fetch_sub(before, Ordering::Relaxed);
    }

    fn clear(&self, entries: &mut HashMap<CouponId, Arc<SoldOutCampaign>>) {
        entries.clear();
        self.total_holders.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_renewal_begins_once_in_second_half() {
        const LEASE_US: u64 = 1000;
        let campaign = SoldOutCampaign::new((Millis(0), Millis(1)));
        // The lease ends at 1000.
        let begins = |now_us| campaign.begin_renewal(now_us, LEASE_US - now_us, LEASE_US);
        assert!(!begins(0));
        assert!(!begins(499));
        assert!(begins(500));
        // One check at a time.
        assert!(!begins(501));
        drop(campaign.checking());
        assert!(begins(502));
        // After a failed check the next one waits.
        campaign.retry_at(750);
        drop(campaign.checking());
        assert!(!begins(749));
        assert!(begins(750));
    }
}
