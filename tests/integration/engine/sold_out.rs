//! Coupons refused without asking Redis: never a wrong answer, and no longer than the lease. The clock stands, so that a
//! lease lasts until the test says otherwise.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use firstcome::{
    app::App,
    engine::{sold_out::Counts, *},
    model::{Partition, *},
    postgres,
    projector::Projector,
    recovery::rebuild::{self, Rebuild},
    redis::{Store, commands::ReleasePreparation},
};
use futures_util::future::join_all;
use serde_json::json;

use crate::support::harness::{self, Options, TestApp, call, until};

const LEASE_MS: i64 = 200;
/// An id that nobody has.
pub const NOBODY: i64 = 5_000_000;

async fn on_1_and_3(body: impl AsyncFn(&TestApp)) {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        body(&test).await;
        test.finish().await;
    }
}

async fn users(test: &TestApp, count: i64) -> Vec<i64> {
    let made = test.post("/admin/v1/users/bulk", json!({"count": count})).await.created();
    let first = made["firstUserId"].as_i64().unwrap();
    (first..first + count).collect()
}

/// Another process on the same stores, by the same clock.
pub async fn another(test: &TestApp, options: Options) -> App {
    let (redis, postgres) = (test.redis.url(), harness::postgres_url(&test.database));
    harness::open(&options, &redis, &postgres, test.clock.clone()).await.unwrap()
}

pub async fn issue(engine: &Engine, coupon: i64, user: i64) -> Result<i64, Error> {
    let (user, coupon) = (UserId::new(user).unwrap(), CouponId::new(coupon).unwrap());
    engine.issue_coupon(&call(None), user, coupon).await.map(|issued| issued.value.issue_no)
}

/// A campaign, given out.
async fn given_out(test: &TestApp, winners: &[i64]) -> i64 {
    let coupon = test.campaign("FIXED", 100, winners.len() as i64).await;
    for user in winners {
        test.issue(coupon, *user).await.ok();
    }
    coupon
}

/// Asks until the engine refuses these by itself.
async fn refused_alone(engine: &Engine, coupon: i64, late: &[i64]) {
    for user in late {
        for _ in 0..3 {
            let told = issue(engine, coupon, *user).await;
            assert!(matches!(told, Err(Error::CouponOutOfStock)), "{told:?}");
            engine.sold_out().settled().await;
        }
    }
    let before = engine.sold_out().counts();
    for user in late {
        issue(engine, coupon, *user).await.unwrap_err();
    }
    assert_eq!(engine.sold_out().counts().refused, before.refused + late.len() as u64);
}

/// What the engine did while this ran.
async fn since<T>(engine: &Engine, work: impl Future<Output = T>) -> (T, Counts) {
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

/// Commands that Redis has carried out, but for the question.
async fn commands(test: &TestApp) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut test.raw().await).await.unwrap();
    let calls = |line: &str| {
        let (command, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let own = ["info", "client|setinfo", "hello", "select"].contains(&command);
        rest.split(',').next()?.parse::<u64>().ok().filter(|_| !own)
    };
    info.lines().filter_map(calls).sum()
}

/// Coupons kept back, as a rebuild leaves it, in both stores.
async fn keep_back(test: &TestApp, coupon: i64, count: i64) {
    test.drain().await;
    let campaign = format!("{{p{}}}:coupon:{coupon}", coupon % i64::from(test.options.partitions));
    let mut redis = test.raw().await;
    let _: i64 = redis::cmd("HSET").arg(campaign).arg("withheld").arg(count).query_async(&mut redis).await.unwrap();
    let update = "UPDATE campaigns SET withheld = $1 WHERE id = $2";
    let pool = test.db.get_postgres_connection_pool();
    sqlx::query(update).bind(count).bind(coupon).execute(pool).await.unwrap();
}

async fn release(test: &TestApp, coupon: i64, count: i64) {
    test.post(&format!("/admin/v1/coupons/{coupon}/release"), json!({"quantity": count})).await.ok();
}

// --- who is told what ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn issue_refused_without_redis_when_sold_out() {
    on_1_and_3(async |test| {
        let users = users(test, 60).await;
        let (winners, late) = users.split_at(4);
        let coupon = given_out(test, winners).await;
        refused_alone(&test.engine, coupon, late).await;
        let before = commands(test).await;
        let (_, counts) = since(&test.engine, async {
            for user in late.iter().cycle().take(200) {
                test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
            }
        })
        .await;
        assert_eq!(counts, Counts { refused: 200, ..Counts::default() });
        assert_eq!(commands(test).await, before, "Redis was asked");
    })
    .await;
}

/// The contract's order of checks: body, user, campaign, window, whether the user has one, and only then what is left.
#[tokio::test]
async fn issue_refused_for_other_reasons_when_sold_out() {
    on_1_and_3(async |test| {
        let users = users(test, 40).await;
        let (winners, late) = users.split_at(20);
        let coupon = given_out(test, winners).await;
        refused_alone(&test.engine, coupon, late).await;
        let (_, counts) = since(&test.engine, async {
            for winner in winners {
                for _ in 0..3 {
                    test.issue(coupon, *winner).await.refused(400, "INVALID_COUPON");
                }
            }
            for user in [NOBODY, users[39] + 1, users[39] + 2, users[39] + 3, MAX_SAFE_INTEGER] {
                test.issue(coupon, user).await.refused(404, "USER_NOT_FOUND");
            }
            test.issue(coupon + 1, late[0]).await.refused(400, "INVALID_COUPON");
            let body = json!({"couponId": coupon.to_string(), "userId": late[0]});
            test.post("/api/v1/coupons/issue", body).await.refused(400, "INVALID_COUPON");
        })
        .await;
        assert_eq!(counts, Counts::default(), "made-up ids lead to nothing");
        // Somebody who is new is asked about once.
        let new = test.user(0).await;
        let (_, counts) = since(&test.engine, test.issue(coupon, new)).await;
        assert_eq!(counts, Counts { learned: 1, ..Counts::default() });
        let (reply, counts) = since(&test.engine, test.issue(coupon, new)).await;
        reply.refused(409, "COUPON_OUT_OF_STOCK");
        assert_eq!(counts, Counts { refused: 1, ..Counts::default() });
    })
    .await;
}

/// A key's record may say something else than what is so now.
#[tokio::test]
async fn issue_with_key_asks_redis_when_sold_out() {
    on_1_and_3(async |test| {
        let users = users(test, 4).await;
        let coupon = test.campaign("FIXED", 100, 1).await;
        let body = |user: i64| json!({"couponId": coupon, "userId": user});
        let send = async |user: i64, key: &str| {
            test.send(reqwest::Method::POST, "/api/v1/coupons/issue", Some(&body(user)), Some(key)).await
        };
        let first = send(users[0], "first").await;
        assert_eq!(first.status, 200);
        refused_alone(&test.engine, coupon, &users[1..]).await;
        let (_, counts) = since(&test.engine, async {
            let again = send(users[0], "first").await;
            assert!(again.replayed() && again.text == first.text, "{}", again.text);
            // Another user's key of the same text is another key; all the same it is asked about.
            send(users[1], "first").await.refused(409, "COUPON_OUT_OF_STOCK");
            send(users[1], "second").await.refused(409, "COUPON_OUT_OF_STOCK");
        })
        .await;
        assert_eq!(counts.refused, 0);
    })
    .await;
}

/// Who moves a window knows at once; another process for no longer than its lease does not.
#[tokio::test]
async fn issue_follows_campaign_window_when_sold_out() {
    on_1_and_3(async |test| {
        let users = users(test, 20).await;
        let (winners, late) = users.split_at(4);
        let coupon = given_out(test, winners).await;
        let other = another(test, test.options.clone()).await;
        test.clock.advance(1_000);
        refused_alone(&test.engine, coupon, late).await;
        refused_alone(&other.engine, coupon, late).await;
        let here = async |user: i64| issue(&test.engine, coupon, user).await;
        let there = async |user: i64| issue(&other.engine, coupon, user).await;
        let moves = async |opens_in: Option<i64>, closes_in: i64| {
            let (id, now) = (CouponId::new(coupon).unwrap(), test.clock.now());
            let patch =
                CampaignPatch { opens_at: opens_in.map(|ms| now.plus(ms)), closes_at: Some(now.plus(closes_in)) };
            test.engine.update_campaign(&call(None), id, patch).await.unwrap();
        };
        // Closed.
        moves(None, 0).await;
        assert!(matches!(here(late[0]).await, Err(Error::InvalidCoupon)));
        assert!(matches!(there(late[0]).await, Err(Error::CouponOutOfStock)), "its lease is not over");
        test.clock.advance(LEASE_MS);
        for user in late {
            assert!(matches!(there(*user).await, Err(Error::InvalidCoupon)));
            assert!(matches!(here(*user).await, Err(Error::InvalidCoupon)));
        }
        // Open again, and given out as before.
        moves(None, 60_000).await;
        refused_alone(&test.engine, coupon, late).await;
        refused_alone(&other.engine, coupon, late).await;
        // Put off while the other process renews its lease: the next one knows.
        moves(Some(10_000), 60_000).await;
        test.clock.advance(LEASE_MS / 2 + 1);
        let _ = there(late[0]).await;
        other.engine.sold_out().settled().await;
        assert!(matches!(there(late[0]).await, Err(Error::InvalidCoupon)), "it has asked since");
        test.clock.advance(10_000);
        refused_alone(&other.engine, coupon, late).await;
        other.db.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn issue_asks_redis_without_lease() {
    let test = TestApp::with(Options { sold_out_lease_ms: 0, ..Options::default() }).await;
    let users = users(&test, 3).await;
    let coupon = given_out(&test, &users[..1]).await;
    let (_, counts) = since(&test.engine, async {
        for user in users[1..].iter().cycle().take(10) {
            test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
        }
    })
    .await;
    assert_eq!(counts, Counts::default());
    test.finish().await;
}

/// More holders than come in one page, and users of several blocks that do not all exist.
#[tokio::test]
async fn sold_out_refusal_knows_all_holders_and_users() {
    on_1_and_3(async |test| {
        let users = users(test, 7_000).await;
        let winners: Vec<i64> = users.iter().copied().filter(|user| user % 2 == 0).collect();
        let coupon = test.campaign("FIXED", 100, winners.len() as i64).await;
        for some in winners.chunks(256) {
            join_all(some.iter().map(async |user| issue(&test.engine, coupon, *user).await.unwrap())).await;
        }
        let mut known = 0;
        let (_, counts) = since(&test.engine, async {
            for user in users.iter().rev() {
                let refused = test.engine.sold_out().counts().refused;
                match issue(&test.engine, coupon, *user).await {
                    Err(Error::CouponOutOfStock) if user % 2 == 1 => {}
                    Err(Error::InvalidCoupon) if user % 2 == 0 => {}
                    other => panic!("user {user}: {other:?}"),
                }
                known += test.engine.sold_out().counts().refused - refused;
                test.engine.sold_out().settled().await;
            }
        })
        .await;
        // A block for each 1024 of a partition, each learned from one who was asked about.
        assert!((7..=10).contains(&counts.learned), "{counts:?}");
        assert_eq!((counts.read, known), (1, 3_500 - 1 - counts.learned), "{counts:?}");
    })
    .await;
}

// --- the lease -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn lease_renewed_once_and_expires() {
    on_1_and_3(async |test| {
        let engine = &test.engine;
        let users = users(test, 30).await;
        let coupon = given_out(test, &users[..1]).await;
        let late = &users[1..];
        refused_alone(engine, coupon, late).await;
        let all = async || {
            for told in join_all(late.iter().map(|user| issue(engine, coupon, *user))).await {
                assert!(matches!(told, Err(Error::CouponOutOfStock)), "{told:?}");
            }
        };
        test.clock.advance(LEASE_MS / 2 - 1);
        assert_eq!(since(engine, all()).await.1, Counts { refused: 29, ..Counts::default() });
        test.clock.advance(1);
        let (_, counts) = since(engine, all()).await;
        assert_eq!(counts, Counts { refused: 29, renewed: 1, ..Counts::default() });
        // From then on.
        test.clock.advance(LEASE_MS / 2 - 1);
        assert_eq!(since(engine, all()).await.1, Counts { refused: 29, ..Counts::default() });
        test.clock.advance(LEASE_MS / 2 + 1);
        let (_, counts) = since(engine, all()).await;
        // One asks how it stands; who holds the coupons is known.
        assert_eq!(counts, Counts { renewed: 1, ..Counts::default() });
        assert_eq!(since(engine, all()).await.1, Counts { refused: 29, ..Counts::default() });
    })
    .await;
}

#[tokio::test]
async fn sold_out_refusals_end_with_lease_when_redis_hangs() {
    let mut test = TestApp::with(Options { redis_timeout_ms: 1_000, ..Options::default() }).await;
    let users = users(&test, 5).await;
    let coupon = given_out(&test, &users[..1]).await;
    refused_alone(&test.engine, coupon, &users[1..]).await;
    test.redis.pause().unwrap();
    for user in &users[1..] {
        test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
    }
    test.clock.advance(LEASE_MS - 1);
    for user in &users[1..] {
        test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
    }
    for user in [users[0], NOBODY] {
        test.issue(coupon, user).await.refused(503, "SERVICE_UNAVAILABLE");
    }
    test.clock.advance(1);
    test.issue(coupon, users[1]).await.refused(503, "SERVICE_UNAVAILABLE");
    test.redis.resume().unwrap();
    until("it is refused again", async || {
        let reply = test.issue(coupon, users[1]).await;
        (reply.status != 503).then(|| reply.refused(409, "COUPON_OUT_OF_STOCK"))
    })
    .await;
    test.engine.sold_out().settled().await;
    // It was asked in vain, and is not again at once.
    test.clock.advance(LEASE_MS / 4);
    refused_alone(&test.engine, coupon, &users[1..]).await;
    test.finish().await;
}

#[tokio::test]
async fn campaign_closed_refuses_in_every_process() {
    on_1_and_3(async |test| {
        let users = users(test, 5).await;
        let start = test.clock.now();
        let (opens, closes) = (start.plus(10_000), start.plus(20_000));
        let zone = test.engine.zone();
        let body = json!({"couponCode": "HANGHAE8888", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 1,
            "opensAt": opens.local(zone), "closesAt": closes.local(zone), "expiredAt": closes.local(zone)});
        let coupon = test.post("/admin/v1/coupons", body).await.created()["couponId"].as_i64().unwrap();
        test.issue(coupon, users[1]).await.refused(400, "INVALID_COUPON");
        test.clock.advance(10_000);
        test.issue(coupon, users[0]).await.ok();
        test.clock.advance(9_999);
        refused_alone(&test.engine, coupon, &users[1..]).await;
        test.clock.advance(1);
        for user in &users {
            test.issue(coupon, *user).await.refused(400, "INVALID_COUPON");
        }
        // Its lease stands all the same: a clock that is set back shows it.
        test.clock.advance(-1);
        for user in &users[1..] {
            test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
        }
    })
    .await;
}

// --- partitions that must not decide ---------------------------------------------------------------------------------

#[tokio::test]
async fn issue_unavailable_when_partition_closed() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let users = users(&test, 6).await;
        let coupon = given_out(&test, &users[..1]).await;
        refused_alone(&test.engine, coupon, &users[1..]).await;
        let here = Partition((coupon % i64::from(partitions)) as u16);
        let meta = format!("{{p{}}}:meta", here.0);
        let mut redis = test.raw().await;
        test.store.freeze(here, "a test").await.unwrap();
        for user in &users {
            test.issue(coupon, *user).await.refused(503, "SERVICE_UNAVAILABLE");
        }
        let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut redis).await.unwrap();
        test.engine.ready().await.unwrap();
        // Nothing has changed meanwhile, and the lease still stands.
        refused_alone(&test.engine, coupon, &users[1..]).await;
        // Frozen by somebody else: known as soon as anybody asks, which is halfway through the lease.
        let _: i64 = redis::cmd("HSET").arg(&meta).arg("frozen").arg("x").query_async(&mut redis).await.unwrap();
        test.clock.advance(LEASE_MS / 2);
        test.issue(coupon, users[1]).await.refused(409, "COUPON_OUT_OF_STOCK");
        test.engine.sold_out().settled().await;
        for user in &users {
            test.issue(coupon, *user).await.refused(503, "SERVICE_UNAVAILABLE");
        }
        let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut redis).await.unwrap();
        test.engine.ready().await.unwrap();
        if partitions > 1 {
            // A user's own partition counts as well.
            let of = |home: u16| users.iter().copied().find(|user| *user > users[0] && user % 3 == i64::from(home));
            let away = Partition((here.0 + 1) % 3);
            test.store.freeze(away, "a test").await.unwrap();
            test.issue(coupon, of(away.0).unwrap()).await.refused(503, "SERVICE_UNAVAILABLE");
            test.issue(coupon, of((here.0 + 2) % 3).unwrap()).await.refused(409, "COUPON_OUT_OF_STOCK");
            let meta = format!("{{p{}}}:meta", away.0);
            let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut redis).await.unwrap();
            test.engine.ready().await.unwrap();
        }
        test.finish().await;
    }
}

/// Redis knows less than it said: whoever reads that asks for a look, and does not go by it.
#[tokio::test]
async fn lease_not_renewed_when_redis_lost_decisions() {
    let test = TestApp::start().await;
    let users = users(&test, 3).await;
    let coupon = given_out(&test, &users[..1]).await;
    refused_alone(&test.engine, coupon, &users[1..]).await;
    let mut redis = test.raw().await;
    let _: i64 = redis::cmd("HINCRBY").arg("{p0}:meta").arg("seq").arg(-1).query_async(&mut redis).await.unwrap();
    test.clock.advance(LEASE_MS / 2);
    let (reply, counts) = since(&test.engine, test.issue(coupon, users[1])).await;
    reply.refused(409, "COUPON_OUT_OF_STOCK");
    assert_eq!(counts.renewed, 0);
    for user in &users {
        test.issue(coupon, *user).await.refused(503, "SERVICE_UNAVAILABLE");
    }
    test.finish_unchecked().await;
}

/// What was lost is given out anew, and who was known to exist may not.
#[tokio::test]
async fn sold_out_state_dropped_when_epoch_changes() {
    on_1_and_3(async |test| {
        let (users, engine) = (users(test, 6).await, &test.engine);
        let coupon = test.campaign("FIXED", 100, 2).await;
        test.issue(coupon, users[0]).await.ok();
        test.drain().await;
        test.issue(coupon, users[1]).await.ok();
        let lost = test.user(0).await;
        refused_alone(engine, coupon, &users[2..]).await;
        refused_alone(engine, coupon, &[lost]).await;
        let _: () = redis::cmd("FLUSHALL").query_async(&mut test.raw().await).await.unwrap();
        let store = Store::connect(&harness::redis_config(&test.redis.url())).await.unwrap();
        let db = postgres::connect(&harness::postgres_config(&harness::postgres_url(&test.database))).await.unwrap();
        let patience = std::time::Duration::from_secs(600);
        let keep = test.options.retention.retention();
        let projector =
            Projector::new(store.clone(), db.clone(), test.clock.clone(), &Default::default(), patience, keep);
        let (clock, zone) = (test.clock.clone(), engine.zone());
        let rebuild = Rebuild { store, db: db.clone(), projector, clock, zone, keep, allow_unsafe_redis: false };
        // Somebody knows that nothing is missing, and is wrong.
        rebuild.run(rebuild::Options { lost_at_most: Some(0), discard: false }).await.unwrap();
        db.close().await.unwrap();
        // Not even the look at the partition was needed: no lease is left.
        test.issue(coupon, users[2]).await.ok();
        test.issue(coupon, users[2]).await.refused(400, "INVALID_COUPON");
        refused_alone(engine, coupon, &[users[1], users[3], users[4], users[5]]).await;
        test.issue(coupon, lost).await.refused(404, "USER_NOT_FOUND");
    })
    .await;
}

// --- stock that comes back -------------------------------------------------------------------------------------------

#[tokio::test]
async fn release_waits_for_every_lease() {
    on_1_and_3(async |test| {
        let users = users(test, 8).await;
        let coupon = test.campaign("FIXED", 100, 5).await;
        test.issue(coupon, users[0]).await.ok();
        keep_back(test, coupon, 4).await;
        let other = another(test, test.options.clone()).await;
        for engine in [&test.engine, &other.engine] {
            refused_alone(engine, coupon, &users[1..]).await;
        }
        release(test, coupon, 1).await;
        assert_eq!(issue(&test.engine, coupon, users[1]).await.unwrap(), 2);
        for engine in [&other.engine, &test.engine] {
            let told = issue(engine, coupon, users[1]).await;
            assert!(matches!(told, Err(Error::InvalidCoupon)), "{told:?}");
        }
        for engine in [&other.engine, &test.engine] {
            refused_alone(engine, coupon, &users[2..]).await;
        }
        // All at once; there the other process is asked first.
        test.drain().await;
        let all = test.post("/admin/v1/withheld/release", json!({}));
        let (all, ()) = tokio::join!(all, async {
            until("it is all released", async || {
                test.drain().await;
                let shown = test.get(&format!("/admin/v1/coupons/{coupon}")).await.ok();
                (shown["remainingQuantity"] == 3).then_some(())
            })
            .await;
            test.drain().await;
        });
        assert_eq!(all.ok()["coupons"], json!([]));
        for (nth, user) in users[2..5].iter().enumerate() {
            assert_eq!(issue(&other.engine, coupon, *user).await.unwrap(), nth as i64 + 3);
            let told = issue(&test.engine, coupon, *user).await;
            assert!(matches!(told, Err(Error::InvalidCoupon)), "{told:?}");
        }
        for engine in [&other.engine, &test.engine] {
            refused_alone(engine, coupon, &users[5..]).await;
        }
        other.db.close().await.unwrap();
    })
    .await;
}

/// From the announcement on no lease begins or goes on; one that nobody followed up is taken up by the next release.
#[tokio::test]
async fn release_announced_ends_leases() {
    on_1_and_3(async |test| {
        let (engine, store) = (&test.engine, &test.store);
        let users = users(test, 6).await;
        let coupon = test.campaign("FIXED", 100, 3).await;
        test.issue(coupon, users[0]).await.ok();
        keep_back(test, coupon, 2).await;
        refused_alone(engine, coupon, &users[1..]).await;
        let id = CouponId::new(coupon).unwrap();
        let request = call(None);
        let ReleasePreparation::Prepared(prepared) = store.coupon_release_prepare(&request, id, 1).await.unwrap()
        else {
            panic!("it is released")
        };
        let ask = async || test.issue(coupon, users[1]).await.refused(409, "COUPON_OUT_OF_STOCK");
        // What stands stands, until somebody asks.
        assert_eq!(since(engine, ask()).await.1, Counts { refused: 1, ..Counts::default() });
        test.clock.advance(LEASE_MS / 2);
        assert_eq!(since(engine, ask()).await.1, Counts { refused: 1, ..Counts::default() });
        for _ in 0..5 {
            assert_eq!(since(engine, ask()).await.1, Counts::default());
            test.clock.advance(LEASE_MS);
        }
        // It is the only one that stands, and it is used up once.
        let again = store.coupon_release_prepare(&request, id, 2).await.unwrap();
        assert!(matches!(&again, ReleasePreparation::Prepared(again) if *again == prepared), "{again:?}");
        release(test, coupon, 1).await;
        assert!(store.coupon_release(&request, id, 1, &prepared).await.unwrap().is_none());
        test.issue(coupon, users[1]).await.ok();
        refused_alone(engine, coupon, &users[2..]).await;
        // Neither what can't be released nor a repeat ends anything.
        let path = format!("/admin/v1/coupons/{coupon}/release");
        test.post(&path, json!({"quantity": 2})).await.refused(409, "INSUFFICIENT_STOCK");
        test.post("/admin/v1/coupons/999/release", json!({"quantity": 2})).await.refused(404, "COUPON_NOT_FOUND");
        let uptime = test.clock.uptime_us();
        let one = json!({"quantity": 1});
        let send = async || test.send(reqwest::Method::POST, &path, Some(&one), Some("k")).await;
        let (first, second) = tokio::join!(send(), send());
        assert!(first.replayed() != second.replayed() && first.text == second.text, "{} {}", first.text, second.text);
        let waited = test.clock.uptime_us() - uptime;
        assert!(send().await.replayed());
        assert_eq!(test.clock.uptime_us() - uptime, waited);
        test.issue(coupon, users[2]).await.ok();
        test.issue(coupon, users[3]).await.refused(409, "COUPON_OUT_OF_STOCK");
    })
    .await;
}

// --- at once ---------------------------------------------------------------------------------------------------------

/// Two processes by the system's clock, more buyers than coupons, and releases in between: whoever was told that he has one
/// is never told that there are none left.
async fn rush(partitions: u16) {
    const USERS: usize = 120;
    const RELEASES: i64 = 2;
    let options = Options { partitions, clock: None, project: true, ..Options::default() };
    let test = TestApp::with(options.clone()).await;
    let users = users(&test, USERS as i64).await;
    let coupon = test.campaign("FIXED", 100, 40).await;
    keep_back(&test, coupon, 20).await;
    let other = another(&test, options).await;
    let over = AtomicBool::new(false);
    let (given, released) = (AtomicU64::new(0), AtomicU64::new(0));
    let engines = [&test.engine, &other.engine];
    let buyers = users.iter().enumerate().map(|(n, user)| {
        let (over, given, released) = (&over, &given, &released);
        async move {
            let (mut has, mut turn) = (false, n);
            while !over.load(Ordering::SeqCst) {
                turn += 1;
                let before = released.load(Ordering::SeqCst);
                match issue(engines[turn % 2], coupon, *user).await {
                    Ok(_) => {
                        assert!(!has, "user {user} has two");
                        has = true;
                        given.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(Error::InvalidCoupon) => assert!(has, "user {user} has none, and is told otherwise"),
                    Err(Error::CouponOutOfStock) => {
                        assert!(!has, "user {user} has one, and is told that there are none");
                        let there = 20 + before * 10;
                        assert!(given.load(Ordering::SeqCst) + USERS as u64 >= there, "{there} are there");
                    }
                    other => panic!("{other:?}"),
                }
                tokio::task::yield_now().await;
            }
            has
        }
    });
    let releases = async {
        for nth in 1..=RELEASES {
            until("all are given out", async || (given.load(Ordering::SeqCst) == 10 + 10 * nth as u64).then_some(()))
                .await;
            let refused = engines.map(|engine| engine.sold_out().counts().refused);
            let alone = async || {
                let now = engines.map(|engine| engine.sold_out().counts().refused);
                (now[0] > refused[0] && now[1] > refused[1]).then_some(())
            };
            until("both refuse by themselves", alone).await;
            let id = CouponId::new(coupon).unwrap();
            test.engine.release_coupons(&call(None), id, 10).await.unwrap();
            released.fetch_add(1, Ordering::SeqCst);
        }
        until("all are given out", async || (given.load(Ordering::SeqCst) == 40).then_some(())).await;
        over.store(true, Ordering::SeqCst);
    };
    let (has, ()) = tokio::join!(join_all(buyers), releases);
    assert_eq!(has.iter().filter(|has| **has).count(), 40);
    other.db.close().await.unwrap();
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_issues_correct_while_coupons_released() {
    rush(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_issues_correct_while_coupons_released_across_partitions() {
    rush(3).await;
}
