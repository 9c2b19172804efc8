//! Scripts that issue and grant coupons.

use super::*;

#[tokio::test]
async fn coupon_issue_matches_header_in_one_partition() {
    let mut bench = Bench::start(1).await;
    for raw in [bench.users_create(1, 4, 0), bench.campaign_create(1, "FIXED", 500, 2)] {
        bench.run(&raw).await;
    }
    let issue = bench.coupon_issue(1, 1);
    bench.needs_open_partition(&issue).await;
    bench.needs_its_own_key(&issue, true).await;
    bench.leaves_all("NOT_OPEN", &issue.with(1, START.0 - 1)).await;
    bench.leaves_all("NOT_OPEN", &issue.with(1, START.0 + HOUR_MS)).await;
    let unknown = bench.coupon_issue(2, 1);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &unknown).await;
    let unknown_user = bench.coupon_issue(1, 9);
    bench.leaves_all("USER_NOT_FOUND", &unknown_user).await;
    let (reply, event) = bench.decides_once("ISSUED", &issue).await;
    assert_eq!(reply[3..], ["1".to_owned(), START.0.to_string()]);
    let Body::CouponIssued { coupon, user, issue_no, at_home } = &event.body else { panic!("{event:?}") };
    assert_eq!((coupon.get(), user.get(), *issue_no, *at_home), (1, 1, 1, true));
    bench.leaves_all("ALREADY_HOLDS", &issue).await;
    let second = bench.coupon_issue(1, 2);
    let (reply, _) = bench.decides("ISSUED", &second).await;
    assert_eq!(reply[3], "2");
    let third = bench.coupon_issue(1, 3);
    bench.leaves_all("OUT_OF_STOCK", &third).await;
    bench.leaves_all("OUT_OF_STOCK", &third.keyed("k", "mine")).await;
    // A holder gets "already issued", not "sold out".
    bench.leaves_all("ALREADY_HOLDS", &second).await;
    bench.covers(&[&script::COUPON_ISSUE]);
    bench.finish().await;
}

#[tokio::test]
async fn coupon_scripts_match_headers_across_partitions() {
    let mut bench = Bench::start(2).await;
    for raw in [bench.users_create(2, 1, 0), bench.campaign_create(1, "FIXED", 500, 2)] {
        bench.run(&raw).await;
    }
    let issue = bench.coupon_issue(1, 2);
    let (_, event) = bench.decides_once("ISSUED", &issue).await;
    assert!(matches!(event.body, Body::CouponIssued { at_home: false, issue_no: 1, .. }), "{event:?}");
    bench.leaves_all("ALREADY_HOLDS", &issue).await;
    let issued: String = redis::cmd("HGET").arg("{p1}:issued:2").arg(1).query_async(&mut bench.redis).await.unwrap();
    assert_eq!(issued, format!("1|{}|A||", START.0));
    let grant = bench.coupon_grant(2, 1, 1);
    bench.needs_open_partition(&grant).await;
    let (_, event) = bench.decides("GRANTED", &grant).await;
    let Body::CouponGranted { coupon, user, issue_no, issued_at } = &event.body else { panic!("{event:?}") };
    assert_eq!((coupon.get(), user.get(), *issue_no, *issued_at), (1, 2, 1, START));
    bench.leaves_all("ALREADY_GRANTED", &grant).await;
    bench.covers(&[&script::COUPON_GRANT]);
    bench.finish().await;
}
