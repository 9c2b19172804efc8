//! A process that refuses without Redis gives each request the reply of the script.

use super::*;

/// The number of commands that Redis has executed, without those of this connection.
async fn commands(test: &TestApp) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut test.raw().await).await.unwrap();
    let calls = |line: &str| {
        let (command, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let own = ["info", "client|setinfo", "hello", "select"].contains(&command);
        rest.split(',').next()?.parse::<u64>().ok().filter(|_| !own)
    };
    info.lines().filter_map(calls).sum()
}

#[tokio::test]
async fn issue_refused_without_redis_when_sold_out() {
    on_1_and_3(async |test| {
        let users = test.users(60, 0).await;
        let (winners, late) = users.split_at(4);
        let coupon = sold_out_campaign(test, winners).await;
        assert_refused_without_redis(&test.engine, coupon, late).await;
        let before = commands(test).await;
        let (_, counts) = counts_during(&test.engine, async {
            for user in late.iter().cycle().take(200) {
                test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
            }
        })
        .await;
        assert_eq!(counts, Counts { refused: 200, ..Counts::default() });
        assert_eq!(commands(test).await, before, "a command was sent to Redis");
    })
    .await;
}

/// The contract's order of checks: body, user, campaign, window, whether the user has a coupon, and last the stock.
#[tokio::test]
async fn issue_refused_for_other_reasons_when_sold_out() {
    on_1_and_3(async |test| {
        let users = test.users(40, 0).await;
        let (winners, late) = users.split_at(20);
        let coupon = sold_out_campaign(test, winners).await;
        assert_refused_without_redis(&test.engine, coupon, late).await;
        let (_, counts) = counts_during(&test.engine, async {
            for winner in winners {
                for _ in 0..3 {
                    test.issue(coupon, *winner).await.refused(400, "INVALID_COUPON");
                }
            }
            for user in [UNKNOWN_USER, users[39] + 1, users[39] + 2, users[39] + 3, MAX_SAFE_INTEGER] {
                test.issue(coupon, user).await.refused(404, "USER_NOT_FOUND");
            }
            test.issue(coupon + 1, late[0]).await.refused(400, "INVALID_COUPON");
            let body = json!({"couponId": coupon.to_string(), "userId": late[0]});
            test.post("/api/v1/coupons/issue", body).await.refused(400, "INVALID_COUPON");
        })
        .await;
        assert_eq!(counts, Counts::default(), "unknown ids change no state");
        // The first request of a new user calls Redis, which teaches the process about the user.
        let new = test.user(0).await;
        let (_, counts) = counts_during(&test.engine, test.issue(coupon, new)).await;
        assert_eq!(counts, Counts { learned: 1, ..Counts::default() });
        let (reply, counts) = counts_during(&test.engine, test.issue(coupon, new)).await;
        reply.refused(409, "COUPON_OUT_OF_STOCK");
        assert_eq!(counts, Counts { refused: 1, ..Counts::default() });
    })
    .await;
}

/// The idempotency record decides the reply, whatever the current state is.
#[tokio::test]
async fn issue_with_key_calls_redis_when_sold_out() {
    on_1_and_3(async |test| {
        let users = test.users(4, 0).await;
        let coupon = test.campaign("FIXED", 100, 1).await;
        let body = |user: i64| json!({"couponId": coupon, "userId": user});
        let send = async |user: i64, key: &str| {
            test.send(reqwest::Method::POST, "/api/v1/coupons/issue", Some(&body(user)), Some(key)).await
        };
        let first = send(users[0], "first").await;
        assert_eq!(first.status, 200);
        assert_refused_without_redis(&test.engine, coupon, &users[1..]).await;
        let (_, counts) = counts_during(&test.engine, async {
            let again = send(users[0], "first").await;
            assert!(again.replayed() && again.text == first.text, "{}", again.text);
            // The same key of another user is another key, with a call to Redis of its own.
            send(users[1], "first").await.refused(409, "COUPON_OUT_OF_STOCK");
            send(users[1], "second").await.refused(409, "COUPON_OUT_OF_STOCK");
        })
        .await;
        assert_eq!(counts.refused, 0);
    })
    .await;
}

/// The process that updates a window follows it at once; another process follows at the end of its lease at the latest.
#[tokio::test]
async fn issue_follows_campaign_window_when_sold_out() {
    on_1_and_3(async |test| {
        let users = test.users(20, 0).await;
        let (winners, late) = users.split_at(4);
        let coupon = sold_out_campaign(test, winners).await;
        let other = test.open_instance(&test.options).await.unwrap();
        test.clock.advance(1_000);
        assert_refused_without_redis(&test.engine, coupon, late).await;
        assert_refused_without_redis(&other.engine, coupon, late).await;
        let here = async |user: i64| issue(&test.engine, coupon, user).await;
        let there = async |user: i64| issue(&other.engine, coupon, user).await;
        let update_window = async |opens_in: Option<i64>, closes_in: i64| {
            let (id, now) = (CouponId::new(coupon).unwrap(), test.clock.now());
            let patch =
                CampaignPatch { opens_at: opens_in.map(|ms| now.plus(ms)), closes_at: Some(now.plus(closes_in)) };
            test.engine.update_campaign(&call(None), id, patch).await.unwrap();
        };
        // The campaign closes now.
        update_window(None, 0).await;
        assert!(matches!(here(late[0]).await, Err(Error::InvalidCoupon)));
        assert!(
            matches!(there(late[0]).await, Err(Error::CouponOutOfStock)),
            "the lease of the other process has not ended"
        );
        test.clock.advance(LEASE_MS);
        for user in late {
            assert!(matches!(there(*user).await, Err(Error::InvalidCoupon)));
            assert!(matches!(here(*user).await, Err(Error::InvalidCoupon)));
        }
        // Open again, and still sold out.
        update_window(None, 60_000).await;
        assert_refused_without_redis(&test.engine, coupon, late).await;
        assert_refused_without_redis(&other.engine, coupon, late).await;
        // The opening moves while the other process renews its lease: its next refusal follows.
        update_window(Some(10_000), 60_000).await;
        test.clock.advance(LEASE_MS / 2 + 1);
        let _ = there(late[0]).await;
        other.engine.sold_out().settled().await;
        assert!(matches!(there(late[0]).await, Err(Error::InvalidCoupon)), "the other process has renewed its lease");
        test.clock.advance(10_000);
        assert_refused_without_redis(&other.engine, coupon, late).await;
        other.db.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn issue_calls_redis_without_lease() {
    let test = TestApp::with(Options { sold_out_lease_ms: 0, ..Options::default() }).await;
    let users = test.users(3, 0).await;
    let coupon = sold_out_campaign(&test, &users[..1]).await;
    let (_, counts) = counts_during(&test.engine, async {
        for user in users[1..].iter().cycle().take(10) {
            test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
        }
    })
    .await;
    assert_eq!(counts, Counts::default());
    test.finish().await;
}

/// More holders than one page has, and users in several blocks of ids.
#[tokio::test]
async fn sold_out_refusal_knows_all_holders_and_users() {
    on_1_and_3(async |test| {
        let users = test.users(7_000, 0).await;
        let winners: Vec<i64> = users.iter().copied().filter(|user| user % 2 == 0).collect();
        let coupon = test.campaign("FIXED", 100, winners.len() as i64).await;
        for some in winners.chunks(256) {
            join_all(some.iter().map(async |user| issue(&test.engine, coupon, *user).await.unwrap())).await;
        }
        let (mut known, began) = (0, Instant::now());
        let (_, counts) = counts_during(&test.engine, async {
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
        // One call learns of a block of 1024 users of a partition; of users of other partitions at the issue.
        let learned = test.engine.sold_out().counts().learned;
        assert!((7..=12).contains(&learned), "{learned}");
        assert_eq!(counts.read, 1, "{counts:?}");
        // One more of each partition for each second in which a user may have been forgotten.
        let (most, seconds) = (3_500 - 1 - counts.learned, began.elapsed().as_secs());
        assert!((most - 3 * (1 + seconds)..=most).contains(&known), "{known} of {most} in {seconds} s: {counts:?}");
    })
    .await;
}
