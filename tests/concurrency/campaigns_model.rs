//! The cache of sold-out campaigns: one task at a time checks a campaign, and the result of a check that began before the
//! window moved is not cached.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
};

use crate::{
    Model,
    campaigns::{Campaigns, SoldOutCampaign},
    explore,
    model::{CouponId, Millis},
};

pub const MODELS: &[Model] = &[
    ("campaign_checked_by_one_task_at_a_time", one_task_checks),
    ("campaign_dropped_when_moved_during_check", moved_during_check),
];

fn one_task_checks() {
    explore(|| {
        let campaign = Arc::new(SoldOutCampaign::new((Millis(0), Millis(1))));
        let busy = Arc::new(AtomicBool::new(false));
        let check = || {
            let (campaign, busy) = (campaign.clone(), busy.clone());
            thread::spawn(move || {
                if campaign.begin_check(0) {
                    let _checking = campaign.checking();
                    assert!(!busy.swap(true, Ordering::SeqCst), "two checks at once");
                    thread::yield_now();
                    busy.store(false, Ordering::SeqCst);
                }
            })
        };
        let checking = [check(), check()];
        for thread in checking {
            thread.join().unwrap();
        }
        assert!(campaign.begin_check(0), "a check did not end");
    });
}

fn moved_during_check() {
    explore(|| {
        let coupon = CouponId::new(1).unwrap();
        let window = |closes_at| (Millis(0), Millis(closes_at));
        let campaigns = Arc::new(Campaigns::default());
        let campaign = campaigns.get_or_insert(coupon, window(1));
        // The end of the window in Redis.
        let closes_at = Arc::new(AtomicI64::new(1));
        let (moves, moved) = (campaigns.clone(), closes_at.clone());
        let moving = thread::spawn(move || {
            moved.store(2, Ordering::SeqCst);
            moves.remove(coupon);
        });
        let read = closes_at.load(Ordering::SeqCst);
        campaigns.replace(coupon, &campaign, SoldOutCampaign::new(window(read)));
        moving.join().unwrap();
        let known = campaigns.read().get(&coupon).map(|campaign| campaign.window);
        assert!(known.is_none(), "{known:?} is cached though the window moved");
    });
}
