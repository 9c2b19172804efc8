//! Coupons refused without a call to Redis: the refusals are right, and end with the lease. The clock stands still: a lease
//! lasts until the test advances it.

mod leases;
mod refusals;
mod releases;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use firstcome::{
    engine::{sold_out::Counts, *},
    model::{Partition, *},
    recovery::rebuild,
    redis::{commands::ReleasePreparation, partition_state::FreezeCause},
};
use futures_util::future::join_all;
use serde_json::json;

use crate::{
    recovery::rebuild::rebuilt,
    support::{
        api_kit::on_1_and_3,
        harness::{Options, TestApp, call, until},
    },
};

const LEASE_MS: i64 = 200;
/// An id that no user has.
pub const UNKNOWN_USER: i64 = 5_000_000;

pub async fn issue(engine: &Engine, coupon: i64, user: i64) -> Result<i64, Error> {
    let (user, coupon) = (UserId::new(user).unwrap(), CouponId::new(coupon).unwrap());
    engine.issue_coupon(&call(None), user, coupon).await.map(|issued| issued.value.issue_no)
}

/// A campaign whose coupons are all issued.
async fn sold_out_campaign(test: &TestApp, winners: &[i64]) -> i64 {
    let coupon = test.campaign("FIXED", 100, winners.len() as i64).await;
    for user in winners {
        test.issue(coupon, *user).await.ok();
    }
    coupon
}

/// Sends requests until the engine refuses these users without a call to Redis.
async fn assert_refused_without_redis(engine: &Engine, coupon: i64, late: &[i64]) {
    for user in late {
        for _ in 0..3 {
            let result = issue(engine, coupon, *user).await;
            assert!(matches!(result, Err(Error::CouponOutOfStock)), "{result:?}");
            engine.sold_out().settled().await;
        }
    }
    let before = engine.sold_out().counts();
    for user in late {
        issue(engine, coupon, *user).await.unwrap_err();
    }
    assert_eq!(engine.sold_out().counts().refused, before.refused + late.len() as u64);
}

/// The counts of the engine while `work` ran.
async fn counts_during<T>(engine: &Engine, work: impl Future<Output = T>) -> (T, Counts) {
    let before = engine.sold_out().counts();
    let done = work.await;
    engine.sold_out().settled().await;
    let now = engine.sold_out().counts();
    let counts = Counts {
        refused: now.refused - before.refused,
        renewed: now.renewed - before.renewed,
        read: now.read - before.read,
        learned: now.learned - before.learned,
    };
    (done, counts)
}
