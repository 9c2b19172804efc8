//! Random steps of two processes that refuse sold-out coupons without Redis, and of one that always calls the script: all must
//! give the same replies.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use firstcome::{
    engine::*,
    model::{Partition, *},
    redis::partition_state::FreezeCause,
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::{
    engine::sold_out::{UNKNOWN_USER, issue},
    support::harness::{Options, TestApp, call},
};

/// One step. Users and campaigns are named by index; an index past the last one names an unknown id.
#[derive(Clone, Debug)]
enum Step {
    User,
    Campaign {
        total: i64,
        opens_in: i64,
        lasts: i64,
    },
    /// `settle`: wait for the background work of the request.
    Issue {
        by: usize,
        user: usize,
        coupon: usize,
        keyed: bool,
        settle: bool,
    },
    Advance {
        ms: i64,
    },
    Withhold {
        coupon: usize,
        count: i64,
    },
    PrepareRelease {
        coupon: usize,
    },
    Release {
        by: usize,
        coupon: usize,
        count: i64,
    },
    /// The bounds of the campaign's window, from now; `None` leaves a bound unchanged.
    UpdateWindow {
        by: usize,
        coupon: usize,
        opens_in: Option<i64>,
        closes_in: Option<i64>,
    },
    Freeze {
        partition: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::User),
        1 => (1..4i64, prop_oneof![3 => Just(0), 1 => 1..300i64], prop_oneof![1 => 1..2_000i64, 3 => Just(1 << 40)])
            .prop_map(|(total, opens_in, lasts)| Step::Campaign { total, opens_in, lasts }),
        50 => (0..2usize, 0..7usize, 0..3usize, prop::bool::weighted(0.1), prop::bool::weighted(0.8))
            .prop_map(|(by, user, coupon, keyed, settle)| Step::Issue { by, user, coupon, keyed, settle }),
        6 => prop_oneof![1..60i64, Just(100), Just(200), 1..2_000i64].prop_map(|ms| Step::Advance { ms }),
        2 => (0..4usize, 1..3i64).prop_map(|(coupon, count)| Step::Withhold { coupon, count }),
        1 => (0..4usize).prop_map(|coupon| Step::PrepareRelease { coupon }),
        3 => (0..2usize, 0..4usize, 1..3i64).prop_map(|(by, coupon, count)| Step::Release { by, coupon, count }),
        4 => (0..2usize, 0..4usize, prop::option::of(-2_000..300i64), prop::option::of(prop_oneof![-50..300i64, Just(9_000)]))
            .prop_map(|(by, coupon, opens_in, closes_in)| Step::UpdateWindow { by, coupon, opens_in, closes_in }),
        1 => (0..3u16).prop_map(|partition| Step::Freeze { partition }),
    ]
}

/// Two processes with leases, and one without, whose replies are those of the script.
struct Comparison<'a> {
    test: &'a TestApp,
    engines: [&'a Engine; 2],
    script: &'a Engine,
    users: Vec<i64>,
    coupons: Vec<i64>,
    has: BTreeMap<(i64, i64), i64>,
    keys: usize,
}

impl Comparison<'_> {
    fn coupon(&self, coupon: usize) -> i64 {
        self.coupons.get(coupon).copied().unwrap_or(UNKNOWN_USER)
    }

    fn key_of(&self, coupon: i64) -> String {
        format!("{{p{}}}:coupon:{coupon}", coupon % i64::from(self.test.options.partitions))
    }

    async fn run(&mut self, step: &Step) {
        match *step {
            Step::User => self.users.push(self.test.user(0).await),
            Step::Campaign { total, opens_in, lasts } => {
                let now = self.test.clock.now();
                let (opens, closes) = (now.plus(opens_in), now.plus(opens_in + lasts));
                let new = NewCampaign {
                    code: "RANDOM".into(),
                    discount: Discount { kind: DiscountType::Fixed, amount: 1 },
                    conditions: CouponConditions::default(),
                    total,
                    opens_at: Some(opens),
                    closes_at: Some(closes),
                    expires_at: closes.plus(10_000),
                };
                let campaign = self.test.engine.create_campaign(&call(None), new).await.unwrap();
                self.coupons.push(campaign.value.terms.coupon_id.get());
            }
            Step::Issue { by, user, coupon, keyed, settle } => {
                self.issue(by, user, coupon, keyed).await;
                if settle {
                    self.engines[by].sold_out().settled().await;
                }
            }
            Step::Advance { ms } => self.test.clock.advance(ms),
            Step::Withhold { coupon, count } => {
                let (key, mut redis) = (self.key_of(self.coupon(coupon)), self.test.raw().await);
                let mut read = redis::cmd("HMGET");
                read.arg(&key).arg(&["total", "issued", "withheld"]);
                let (total, issued, withheld): (Option<i64>, Option<i64>, Option<i64>) =
                    read.query_async(&mut redis).await.unwrap();
                let left = total.unwrap_or(0) - issued.unwrap_or(0) - withheld.unwrap_or(0);
                if left > 0 {
                    let mut withhold = redis::cmd("HINCRBY");
                    withhold.arg(&key).arg("withheld").arg(count.min(left));
                    let _: i64 = withhold.query_async(&mut redis).await.unwrap();
                }
            }
            Step::PrepareRelease { coupon } => {
                let id = CouponId::new(self.coupon(coupon)).unwrap();
                let _ = self.test.store.coupon_release_prepare(&call(None), id, 1).await;
            }
            Step::Release { by, coupon, count } => {
                let id = CouponId::new(self.coupon(coupon)).unwrap();
                match self.engines[by].release_coupons(&call(None), id, count).await {
                    Ok(_) | Err(Error::InsufficientStock | Error::CampaignNotFound) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::UpdateWindow { by, coupon, opens_in, closes_in } => {
                let (id, now) = (CouponId::new(self.coupon(coupon)).unwrap(), self.test.clock.now());
                let patch = CampaignPatch {
                    opens_at: opens_in.map(|ms| now.plus(ms)),
                    closes_at: closes_in.map(|ms| now.plus(ms)),
                };
                match self.engines[by].update_campaign(&call(None), id, patch).await {
                    Ok(_) => {}
                    Err(Error::InvalidRequest(_) | Error::CampaignNotFound) => return,
                    Err(error) => panic!("{error}"),
                }
                // The process that updates the window follows it at once, the others at the end of their lease.
                for user in 0..self.users.len() {
                    self.issue(by, user, coupon, false).await;
                }
                self.test.clock.advance(self.test.options.sold_out_lease_ms as i64);
            }
            Step::Freeze { partition } => {
                let here = Partition(partition % self.test.options.partitions);
                self.test.store.freeze(here, "a test", FreezeCause::Gap).await.unwrap();
                for engine in self.engines.iter().chain([&self.script]) {
                    engine.check().await;
                }
                for user in 0..self.users.len() {
                    self.issue(0, user, 0, false).await;
                }
                let mut thaw = redis::cmd("HDEL");
                thaw.arg(format!("{{p{}}}:meta", here.0)).arg("frozen");
                let _: i64 = thaw.query_async(&mut self.test.raw().await).await.unwrap();
                for engine in self.engines.iter().chain([&self.script]) {
                    engine.ready().await.unwrap();
                }
            }
        }
    }

    async fn issue(&mut self, by: usize, user: usize, coupon: usize, keyed: bool) {
        let (user, coupon) = (self.users.get(user).copied().unwrap_or(UNKNOWN_USER + user as i64), self.coupon(coupon));
        let ids = (UserId::new(user).unwrap(), CouponId::new(coupon).unwrap());
        self.keys += 1;
        let key = format!("{coupon}-{}", self.keys);
        let call = call(keyed.then_some((key.as_str(), "issue")));
        let result = self.engines[by].issue_coupon(&call, ids.0, ids.1).await.map(|issued| issued.value.issue_no);
        let script = issue(self.script, coupon, user).await;
        match (result, script) {
            (Ok(place), Err(Error::InvalidCoupon)) => {
                assert!(
                    self.has.insert((coupon, user), place).is_none(),
                    "user {user} gets a second coupon of {coupon}"
                );
            }
            (Err(result), Err(script)) => {
                let kinds = (std::mem::discriminant(&result), std::mem::discriminant(&script));
                assert!(kinds.0 == kinds.1, "user {user}, campaign {coupon}: {result:?}, the script: {script:?}");
            }
            other => panic!("user {user}, campaign {coupon}: {other:?}"),
        }
    }
}

fn compare_processes(partitions: u16, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = super::model_config(cases);
    let refused = AtomicU64::new(0);
    let steps = prop::collection::vec(step(), 80..240);
    TestRunner::new(config)
        .run(&steps, |steps| {
            runtime.block_on(async {
                let options = Options { partitions, ..Options::default() };
                let test = TestApp::with(options.clone()).await;
                let other = test.open_instance(&options).await.unwrap();
                let script = test.open_instance(&Options { sold_out_lease_ms: 0, ..options }).await.unwrap();
                let engines: [&Engine; 2] = [&test.engine, &other.engine];
                let (script_engine, none) = (&script.engine, (Vec::new(), Vec::new()));
                let mut comparison = Comparison {
                    test: &test,
                    engines,
                    script: script_engine,
                    users: none.0,
                    coupons: none.1,
                    has: BTreeMap::new(),
                    keys: 0,
                };
                for start in [Step::User, Step::User, Step::User, Step::User, Step::User] {
                    comparison.run(&start).await;
                }
                for total in [1, 2] {
                    comparison.run(&Step::Campaign { total, opens_in: 0, lasts: 1 << 40 }).await;
                }
                for step in &steps {
                    comparison.run(step).await;
                }
                let counts = engines.map(|engine| engine.sold_out().counts().refused);
                refused.fetch_add(counts[0] + counts[1], Ordering::SeqCst);
                for app in [other, script] {
                    app.db.close().await.unwrap();
                }
                // PostgreSQL lacks the units that `Withhold` writes to Redis only.
                test.finish_unchecked().await;
            });
            Ok(())
        })
        .unwrap();
    let refused = refused.into_inner();
    println!("{refused} requests refused without Redis");
    assert!(refused > 5 * u64::from(cases), "{refused} requests refused without Redis");
}

#[test]
fn random_steps_match_script() {
    compare_processes(1, 24);
}

#[test]
fn random_steps_match_script_across_partitions() {
    compare_processes(3, 24);
}
