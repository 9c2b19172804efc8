//! Scripts that bring users in under foreign ids, and that forget users.

use super::*;

#[tokio::test]
async fn scripts_of_foreign_ids_match_headers() {
    let mut bench = Bench::start(1).await;
    let put = bench.users_put(&[(7, "이다은", 0), (9, "김하늘", 0)]);
    bench.needs_open_partition(&put).await;
    bench.needs_its_own_key(&put, true).await;
    let (reply, event) = bench.decides_once("UPDATED", &put).await;
    assert_eq!(reply[3..], ["created", "0", "created", "0"]);
    let Body::UsersPut(users) = &event.body else { panic!("{event:?}") };
    let named = |users: &[event::PutUser]| -> Vec<(i64, bool, String)> {
        users.iter().map(|put| (put.user.get(), put.is_new, put.name.clone())).collect()
    };
    assert_eq!(named(users), [(7, true, "이다은".to_owned()), (9, true, "김하늘".to_owned())]);
    assert_eq!(bench.leaves_all("UNCHANGED", &put).await[1..], ["unchanged", "0", "unchanged", "0"]);
    let (reply, event) = bench.decides("UPDATED", &bench.users_put(&[(7, "이다은", 0), (9, "박준서", 0)])).await;
    assert_eq!(reply[3..], ["unchanged", "0", "changed", "0"]);
    let Body::UsersPut(users) = &event.body else { panic!("{event:?}") };
    assert_eq!(named(users), [(9, false, "박준서".to_owned())]);

    // Opening balances are decisions of their own, of users without balance entries.
    let (_, seq) = bench.position(Partition(0)).await;
    let opening = bench.users_put(&[(7, "이다은", 500), (11, "최", 9_000_000_000_000), (9, "박준서", 0)]);
    let reply = bench.run(&opening).await;
    assert_eq!(reply[..3], ["UPDATED".to_owned(), "1".to_owned(), (seq + 3).to_string()]);
    assert_eq!(reply[3..], ["changed", "500", "created", "9000000000000", "unchanged", "0"]);
    let (_, last) = bench.position(Partition(0)).await;
    assert_eq!(last, seq + 3);
    let again = bench.leaves_all("UNCHANGED", &opening).await;
    assert_eq!(again[1..], ["unchanged", "500", "unchanged", "9000000000000", "unchanged", "0"]);
    bench.decides("CHARGED", &bench.charge(7, 20)).await;
    let again = bench.leaves_all("UNCHANGED", &bench.users_put(&[(7, "이다은", 77)])).await;
    assert_eq!(again[1..], ["unchanged", "520"]);
    let history = bench.test.engine.history(UserId::new(7).unwrap(), 9, None).await.unwrap();
    let amounts: Vec<_> = history.iter().map(|entry| (entry.entry_no, entry.amount, entry.after)).collect();
    assert_eq!(amounts, [(1, 500, 500), (2, 20, 520)]);

    let skip = bench.ids_skip("user", 1_000_000_000_000);
    bench.needs_open_partition(&skip).await;
    let (_, event) = bench.decides("RESERVED", &skip).await;
    assert!(matches!(&event.body, Body::IdsReserved { last: 1_000_000_000_000, .. }), "{event:?}");
    for id in [1, 1_000_000_000_000] {
        bench.leaves_all("UNCHANGED", &bench.ids_skip("user", id)).await;
    }
    assert_eq!(bench.test.user(0).await, 1_000_000_000_001);
    bench.covers(&[&script::USERS_PUT, &script::IDS_SKIP]);
    bench.test.finish().await;
}

#[tokio::test]
async fn forgetting_script_matches_header() {
    let mut bench = Bench::start(1).await;
    bench.run(&bench.users_put(&[(1, "이다은", 0), (2, "김하늘", 70), (3, "박준서", 0)])).await;
    for raw in [bench.product_create(1, 0, 9), bench.campaign_create(1, "FIXED", 1, 9), bench.place(11, 3, &[(1, 1)])] {
        bench.run(&raw).await;
    }
    let forget = bench.user_forget(1, false);
    bench.needs_open_partition(&forget).await;
    let (reply, event) = bench.decides("FORGOTTEN", &forget).await;
    assert_eq!(reply[3], "1");
    assert!(matches!(&event.body, Body::UserForgotten { user, entry: None } if user.get() == 1), "{event:?}");
    bench.leaves_all("USER_NOT_FOUND", &forget).await;
    bench.leaves_all("USER_NOT_FOUND", &bench.user_forget(9, true)).await;
    bench.leaves_all("ORDERS_OPEN", &bench.user_forget(3, true)).await;

    // A balance is forfeited, or keeps its user.
    bench.leaves_all("BALANCE_LEFT", &bench.user_forget(2, false)).await;
    let keyed = bench.charge(2, 30).keyed("charge", "mine");
    let (charged, _) = bench.decides("CHARGED", &keyed).await;
    assert_eq!(charged[3..], ["김하늘", "100"]);
    assert_eq!(bench.leaves_all("REPLAYED", &keyed).await[1..], charged);
    let (reply, event) = bench.decides("FORGOTTEN", &bench.user_forget(2, true)).await;
    assert_eq!(reply[3], "2");
    let Body::UserForgotten { entry: Some(entry), .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((entry.entry_no, entry.amount, entry.before, entry.after, entry.order_id), (3, 100, 100, 0, None));

    // Forgotten users are like unknown ones to every script, and stay so.
    bench.leaves_all("USER_NOT_FOUND", &keyed).await;
    for user in [1, 2] {
        bench.leaves_all("USER_NOT_FOUND", &bench.charge(user, 1)).await;
        bench.leaves_all("USER_NOT_FOUND", &bench.place(12, user, &[(1, 1)])).await;
        bench.leaves_all("USER_NOT_FOUND", &bench.coupon_issue(1, user)).await;
        bench.leaves_all("ALREADY_EXISTS", &bench.users_create(user, 1, 0)).await;
        let again = bench.leaves_all("UNCHANGED", &bench.users_put(&[(user, "이다은", 5)])).await;
        assert_eq!(again[1..], ["forgotten", "0"]);
    }
    bench.decides("ISSUED", &bench.coupon_issue(1, 3)).await;
    bench.covers(&[&script::USER_FORGET]);
    bench.finish().await;
}
