//! Releases of coupons while processes refuse without Redis.

use super::*;

/// Withholds coupons in both stores, as a rebuild does.
async fn withhold(test: &TestApp, coupon: i64, count: i64) {
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

#[tokio::test]
async fn release_waits_for_every_lease() {
    on_1_and_3(async |test| {
        let users = test.users(8, 0).await;
        let coupon = test.campaign("FIXED", 100, 5).await;
        test.issue(coupon, users[0]).await.ok();
        withhold(test, coupon, 4).await;
        let other = test.open_instance(&test.options).await.unwrap();
        for engine in [&test.engine, &other.engine] {
            assert_refused_without_redis(engine, coupon, &users[1..]).await;
        }
        release(test, coupon, 1).await;
        assert_eq!(issue(&test.engine, coupon, users[1]).await.unwrap(), 2);
        for engine in [&other.engine, &test.engine] {
            let result = issue(engine, coupon, users[1]).await;
            assert!(matches!(result, Err(Error::InvalidCoupon)), "{result:?}");
        }
        for engine in [&other.engine, &test.engine] {
            assert_refused_without_redis(engine, coupon, &users[2..]).await;
        }
        // Releases all coupons; the other process then issues first.
        test.drain().await;
        let all = test.post("/admin/v1/withheld/release", json!({}));
        let (all, ()) = tokio::join!(all, async {
            until("all coupons are released", async || {
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
            let result = issue(&test.engine, coupon, *user).await;
            assert!(matches!(result, Err(Error::InvalidCoupon)), "{result:?}");
        }
        for engine in [&other.engine, &test.engine] {
            assert_refused_without_redis(engine, coupon, &users[5..]).await;
        }
        other.db.close().await.unwrap();
    })
    .await;
}

/// A prepared release prevents new leases and renewals; the next release continues an abandoned preparation.
#[tokio::test]
async fn release_announced_ends_leases() {
    on_1_and_3(async |test| {
        let (engine, store) = (&test.engine, &test.store);
        let users = test.users(6, 0).await;
        let coupon = test.campaign("FIXED", 100, 3).await;
        test.issue(coupon, users[0]).await.ok();
        withhold(test, coupon, 2).await;
        assert_refused_without_redis(engine, coupon, &users[1..]).await;
        let id = CouponId::new(coupon).unwrap();
        let request = call(None);
        let ReleasePreparation::Prepared(prepared) = store.coupon_release_prepare(&request, id, 1).await.unwrap()
        else {
            panic!("released without preparation")
        };
        let refused = async || test.issue(coupon, users[1]).await.refused(409, "COUPON_OUT_OF_STOCK");
        // Existing leases last until the next renewal.
        assert_eq!(counts_during(engine, refused()).await.1, Counts { refused: 1, ..Counts::default() });
        test.clock.advance(LEASE_MS / 2);
        assert_eq!(counts_during(engine, refused()).await.1, Counts { refused: 1, ..Counts::default() });
        for _ in 0..5 {
            assert_eq!(counts_during(engine, refused()).await.1, Counts::default());
            test.clock.advance(LEASE_MS);
        }
        // One release is prepared at a time, and takes effect once.
        let again = store.coupon_release_prepare(&request, id, 2).await.unwrap();
        assert!(matches!(&again, ReleasePreparation::Prepared(again) if *again == prepared), "{again:?}");
        release(test, coupon, 1).await;
        assert!(store.coupon_release(&request, id, 1, &prepared).await.unwrap().is_none());
        test.issue(coupon, users[1]).await.ok();
        assert_refused_without_redis(engine, coupon, &users[2..]).await;
        // A refused release and a repeat end no lease.
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

/// Two processes on the system's clock, more buyers than coupons, and releases in between: a user with a coupon never gets
/// "sold out".
async fn releases_under_load(partitions: u16) {
    const USERS: usize = 120;
    const RELEASES: i64 = 2;
    let options = Options { partitions, clock: None, project: true, ..Options::default() };
    let test = TestApp::with(options.clone()).await;
    let users = test.users(USERS as i64, 0).await;
    let coupon = test.campaign("FIXED", 100, 40).await;
    withhold(&test, coupon, 20).await;
    let other = test.open_instance(&options).await.unwrap();
    let over = AtomicBool::new(false);
    let (issued, released) = (AtomicU64::new(0), AtomicU64::new(0));
    let engines = [&test.engine, &other.engine];
    let buyers = users.iter().enumerate().map(|(n, user)| {
        let (over, issued, released) = (&over, &issued, &released);
        async move {
            let (mut has, mut turn) = (false, n);
            while !over.load(Ordering::SeqCst) {
                turn += 1;
                let before = released.load(Ordering::SeqCst);
                match issue(engines[turn % 2], coupon, *user).await {
                    Ok(_) => {
                        assert!(!has, "user {user} gets a second coupon");
                        has = true;
                        issued.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(Error::InvalidCoupon) => assert!(has, "user {user} has no coupon and gets INVALID_COUPON"),
                    Err(Error::CouponOutOfStock) => {
                        assert!(!has, "user {user} has a coupon and gets COUPON_OUT_OF_STOCK");
                        let on_sale = 20 + before * 10;
                        assert!(
                            issued.load(Ordering::SeqCst) + USERS as u64 >= on_sale,
                            "{on_sale} coupons are on sale"
                        );
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
            until("all coupons are issued", async || {
                (issued.load(Ordering::SeqCst) == 10 + 10 * nth as u64).then_some(())
            })
            .await;
            let refused = engines.map(|engine| engine.sold_out().counts().refused);
            let both_refused = async || {
                let now = engines.map(|engine| engine.sold_out().counts().refused);
                (now[0] > refused[0] && now[1] > refused[1]).then_some(())
            };
            until("both processes refuse without Redis", both_refused).await;
            let id = CouponId::new(coupon).unwrap();
            test.engine.release_coupons(&call(None), id, 10).await.unwrap();
            released.fetch_add(1, Ordering::SeqCst);
        }
        until("all coupons are issued", async || (issued.load(Ordering::SeqCst) == 40).then_some(())).await;
        over.store(true, Ordering::SeqCst);
    };
    let (has, ()) = tokio::join!(join_all(buyers), releases);
    assert_eq!(has.iter().filter(|has| **has).count(), 40);
    other.db.close().await.unwrap();
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_issues_correct_while_coupons_released() {
    releases_under_load(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_issues_correct_while_coupons_released_across_partitions() {
    releases_under_load(3).await;
}
