//! The lease: its renewal, its expiry, and its end with the state of Redis.

use super::*;

#[tokio::test]
async fn lease_renewed_once_and_expires() {
    on_1_and_3(async |test| {
        let engine = &test.engine;
        let users = test.users(30, 0).await;
        let coupon = sold_out_campaign(test, &users[..1]).await;
        let late = &users[1..];
        assert_refused_without_redis(engine, coupon, late).await;
        let all = async || {
            for result in join_all(late.iter().map(|user| issue(engine, coupon, *user))).await {
                assert!(matches!(result, Err(Error::CouponOutOfStock)), "{result:?}");
            }
        };
        test.clock.advance(LEASE_MS / 2 - 1);
        assert_eq!(counts_during(engine, all()).await.1, Counts { refused: 29, ..Counts::default() });
        test.clock.advance(1);
        let (_, counts) = counts_during(engine, all()).await;
        assert_eq!(counts, Counts { refused: 29, renewed: 1, ..Counts::default() });
        // The renewed lease begins at its renewal.
        test.clock.advance(LEASE_MS / 2 - 1);
        assert_eq!(counts_during(engine, all()).await.1, Counts { refused: 29, ..Counts::default() });
        test.clock.advance(LEASE_MS / 2 + 1);
        let (_, counts) = counts_during(engine, all()).await;
        // One call reads the state of the campaign; the process still knows the holders.
        assert_eq!(counts, Counts { renewed: 1, ..Counts::default() });
        assert_eq!(counts_during(engine, all()).await.1, Counts { refused: 29, ..Counts::default() });
    })
    .await;
}

#[tokio::test]
async fn sold_out_refusals_end_with_lease_when_redis_hangs() {
    let mut test = TestApp::with(Options { redis_timeout_ms: 1_000, ..Options::default() }).await;
    let users = test.users(5, 0).await;
    let coupon = sold_out_campaign(&test, &users[..1]).await;
    assert_refused_without_redis(&test.engine, coupon, &users[1..]).await;
    test.redis.pause().unwrap();
    for user in &users[1..] {
        test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
    }
    test.clock.advance(LEASE_MS - 1);
    for user in &users[1..] {
        test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
    }
    for user in [users[0], UNKNOWN_USER] {
        test.issue(coupon, user).await.refused(503, "SERVICE_UNAVAILABLE");
    }
    test.clock.advance(1);
    test.issue(coupon, users[1]).await.refused(503, "SERVICE_UNAVAILABLE");
    test.redis.resume().unwrap();
    until("Redis answers again", async || {
        let reply = test.issue(coupon, users[1]).await;
        (reply.status != 503).then(|| reply.refused(409, "COUPON_OUT_OF_STOCK"))
    })
    .await;
    test.engine.sold_out().settled().await;
    // The failed call is not repeated at once.
    test.clock.advance(LEASE_MS / 4);
    assert_refused_without_redis(&test.engine, coupon, &users[1..]).await;
    test.finish().await;
}

#[tokio::test]
async fn campaign_closed_refuses_in_every_process() {
    on_1_and_3(async |test| {
        let users = test.users(5, 0).await;
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
        assert_refused_without_redis(&test.engine, coupon, &users[1..]).await;
        test.clock.advance(1);
        for user in &users {
            test.issue(coupon, *user).await.refused(400, "INVALID_COUPON");
        }
        // The lease is still valid: with the clock set back, the process refuses with it.
        test.clock.advance(-1);
        for user in &users[1..] {
            test.issue(coupon, *user).await.refused(409, "COUPON_OUT_OF_STOCK");
        }
    })
    .await;
}

#[tokio::test]
async fn issue_unavailable_when_partition_closed() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let users = test.users(6, 0).await;
        let coupon = sold_out_campaign(&test, &users[..1]).await;
        assert_refused_without_redis(&test.engine, coupon, &users[1..]).await;
        let here = Partition((coupon % i64::from(partitions)) as u16);
        let meta = format!("{{p{}}}:meta", here.0);
        let mut redis = test.raw().await;
        test.store.freeze(here, "a test", FreezeCause::Gap).await.unwrap();
        for user in &users {
            test.issue(coupon, *user).await.refused(503, "SERVICE_UNAVAILABLE");
        }
        let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut redis).await.unwrap();
        test.engine.ready().await.unwrap();
        // Without a change of the state the lease is still valid.
        assert_refused_without_redis(&test.engine, coupon, &users[1..]).await;
        // Another process freezes the partition: this one learns of it at the next renewal, after half of the lease.
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
            // A frozen partition of the user counts too.
            let of = |partition: u16| {
                users.iter().copied().find(|user| *user > users[0] && user % 3 == i64::from(partition))
            };
            let user_partition = Partition((here.0 + 1) % 3);
            test.store.freeze(user_partition, "a test", FreezeCause::Gap).await.unwrap();
            test.issue(coupon, of(user_partition.0).unwrap()).await.refused(503, "SERVICE_UNAVAILABLE");
            test.issue(coupon, of((here.0 + 2) % 3).unwrap()).await.refused(409, "COUPON_OUT_OF_STOCK");
            let meta = format!("{{p{}}}:meta", user_partition.0);
            let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut redis).await.unwrap();
            test.engine.ready().await.unwrap();
        }
        test.finish().await;
    }
}

/// Redis lost decisions: the process that reads this starts a check of the partition, and does not renew its lease.
#[tokio::test]
async fn lease_not_renewed_when_redis_lost_decisions() {
    let test = TestApp::start().await;
    let users = test.users(3, 0).await;
    let coupon = sold_out_campaign(&test, &users[..1]).await;
    assert_refused_without_redis(&test.engine, coupon, &users[1..]).await;
    let mut redis = test.raw().await;
    let _: i64 = redis::cmd("HINCRBY").arg("{p0}:meta").arg("seq").arg(-1).query_async(&mut redis).await.unwrap();
    test.clock.advance(LEASE_MS / 2);
    let (reply, counts) = counts_during(&test.engine, test.issue(coupon, users[1])).await;
    reply.refused(409, "COUPON_OUT_OF_STOCK");
    assert_eq!(counts.renewed, 0);
    for user in &users {
        test.issue(coupon, *user).await.refused(503, "SERVICE_UNAVAILABLE");
    }
    test.finish_unchecked().await;
}

/// After the rebuild, lost coupons are issued again, and users of the old epoch may be unknown.
#[tokio::test]
async fn sold_out_state_dropped_when_epoch_changes() {
    on_1_and_3(async |test| {
        let (users, engine) = (test.users(6, 0).await, &test.engine);
        let coupon = test.campaign("FIXED", 100, 2).await;
        test.issue(coupon, users[0]).await.ok();
        test.drain().await;
        test.issue(coupon, users[1]).await.ok();
        let lost = test.user(0).await;
        assert_refused_without_redis(engine, coupon, &users[2..]).await;
        assert_refused_without_redis(engine, coupon, &[lost]).await;
        test.flush_redis().await;
        // The operator says that no decision is missing, and is wrong.
        rebuilt(test, rebuild::RebuildOptions { lost_at_most: rebuild::LossBounds::Each(0), ..Default::default() })
            .await;
        // The new epoch has ended the lease, without a check of the partition.
        test.issue(coupon, users[2]).await.ok();
        test.issue(coupon, users[2]).await.refused(400, "INVALID_COUPON");
        assert_refused_without_redis(engine, coupon, &[users[1], users[3], users[4], users[5]]).await;
        test.issue(coupon, lost).await.refused(404, "USER_NOT_FOUND");
    })
    .await;
}
