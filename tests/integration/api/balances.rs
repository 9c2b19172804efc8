//! 잔액: charges, balances, and a history that shows every change immediately, regardless of the projection lag.

use serde_json::{Value, json};

use crate::support::{
    api_kit::*,
    harness::{Options, TestApp},
};

#[tokio::test]
async fn balance_charged_grows_by_amount() {
    on_1_and_3(async |test| {
        for _ in 0..3 {
            let user = test.user(5_000).await;
            let path = format!("/api/v1/balances/{user}");
            let shown = |won: i64| json!({"userId": user, "userName": "이다은", "amount": won, "balance": won});
            assert_eq!(get(test, &path).await.ok(), shown(5_000));
            assert_eq!(put(test, &path, json!({"amount": 1_000})).await.ok(), shown(6_000));
            assert_eq!(put(test, &path, json!({"amount": 1})).await.ok(), shown(6_001));
            assert_eq!(put(test, &path, json!({"amount": 100_000})).await.ok(), shown(106_001));
            assert_eq!(get(test, &path).await.ok(), shown(106_001));
        }
    })
    .await;
}

#[tokio::test]
async fn charge_refused_changes_nothing() {
    on_1_and_3(async |test| {
        let user = test.user(0).await;
        let before = effects(test).await;
        for amount in [0, -1, 100_001, i64::MAX, i64::MIN] {
            let refused = put(test, &format!("/api/v1/balances/{user}"), json!({"amount": amount})).await;
            refused.refused(400, "INVALID_AMOUNT");
        }
        for unknown in [user + 1, 9_007_199_254_740_991] {
            let path = format!("/api/v1/balances/{unknown}");
            get(test, &path).await.refused(404, "USER_NOT_FOUND");
            put(test, &path, json!({"amount": 1_000})).await.refused(404, "USER_NOT_FOUND");
            get(test, &format!("{path}/history")).await.refused(404, "USER_NOT_FOUND");
            // The body is validated before the user is looked up.
            put(test, &path, json!({"amount": 0})).await.refused(400, "INVALID_AMOUNT");
        }
        assert_eq!(effects(test).await, before);
    })
    .await;
}

#[tokio::test]
async fn charge_refused_when_cap_exceeded() {
    let test = TestApp::with(Options { max_balance: Some(150_000), ..Options::default() }).await;
    let user = test.user(0).await;
    let path = format!("/api/v1/balances/{user}");
    put(&test, &path, json!({"amount": 100_000})).await.ok();
    let before = effects(&test).await;
    put(&test, &path, json!({"amount": 50_001})).await.refused(400, "INVALID_AMOUNT");
    assert_eq!(effects(&test).await, before);
    assert_eq!(put(&test, &path, json!({"amount": 50_000})).await.ok()["balance"], 150_000);
    put(&test, &path, json!({"amount": 1})).await.refused(400, "INVALID_AMOUNT");
    assert_eq!(balance(&test, user).await, 150_000);
    test.finish().await;
}

/// A user's whole history, read backwards in pages of `limit`.
async fn paged(test: &TestApp, user: i64, limit: usize) -> Vec<Value> {
    let (mut all, mut before) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/v1/balances/{user}/history?limit={limit}{before}");
        let page = get(test, &path).await.ok().as_array().unwrap().clone();
        assert!(page.len() <= limit);
        let Some(oldest) = page.first() else { return all };
        before = format!("&before={}", id(oldest, "entryNo"));
        all.splice(0..0, page);
    }
}

#[tokio::test]
async fn history_complete_when_projection_lags() {
    on_1_and_3(async |test| {
        let (user, other) = (test.user(10_000).await, test.user(1).await);
        let product = test.product(2_000, 10).await;
        let path = format!("/api/v1/balances/{user}/history");
        let mut expected = Vec::new();
        let mut change = |kind: &str, amount: i64, before: i64, after: i64, order: Option<i64>| {
            expected.push(json!({"userId": user, "transactionType": kind, "amount": amount, "before_balance": before,
                "after_balance": after, "createdAt": now(test), "entryNo": expected.len() + 1, "orderId": order}));
            expected.clone()
        };
        // The history comes first from the outbox alone, then partly from PostgreSQL, then entirely from PostgreSQL.
        let first = change("CHARGE", 10_000, 0, 10_000, None);
        assert_eq!(get(test, &path).await.ok(), json!(first));
        test.clock.advance(1_000);
        put(test, &format!("/api/v1/balances/{user}"), json!({"amount": 5_000})).await.ok();
        put(test, &format!("/api/v1/balances/{other}"), json!({"amount": 7})).await.ok();
        let charged = change("CHARGE", 5_000, 10_000, 15_000, None);
        assert_eq!(get(test, &path).await.ok(), json!(charged));
        test.drain().await;
        assert_eq!(get(test, &path).await.ok(), json!(charged));

        test.clock.advance(3_600_000);
        let order = bought(test, user, product, 1).await;
        let paid = change("PAYMENT", 2_000, 15_000, 13_000, Some(order));
        assert_eq!(get(test, &path).await.ok(), json!(paid));
        test.clock.advance(86_400_000);
        cancel(test, order, user).await.ok();
        let refunded = change("REFUND", 2_000, 13_000, 15_000, Some(order));
        assert_eq!(get(test, &path).await.ok(), json!(refunded));
        // An order that is cancelled before payment adds no entry.
        let order = placed(test, user, &[(product, 1)], None).await;
        cancel(test, order, user).await.ok();
        for limit in 1..=5 {
            assert_eq!(paged(test, user, limit).await, refunded, "half projected, by {limit}");
        }
        test.drain().await;
        for limit in [1, 3, 4, 1000] {
            assert_eq!(paged(test, user, limit).await, refunded, "projected, by {limit}");
        }
        let page = get(test, &format!("{path}?limit=2&before=4")).await.ok();
        assert_eq!(page, json!(refunded[1..3]), "the newest two before the fourth, oldest first");
        assert_eq!(get(test, &format!("{path}?before=1")).await.ok(), json!([]));
        assert_eq!(get(test, &format!("{path}?before=9007199254740991")).await.ok(), json!(refunded));
    })
    .await;
}

#[tokio::test]
async fn history_page_defaults_to_hundred_entries() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    let path = format!("/api/v1/balances/{user}/history");
    assert_eq!(get(&test, &path).await.ok(), json!([]));
    for amount in 1..=103 {
        put(&test, &format!("/api/v1/balances/{user}"), json!({"amount": amount})).await.ok();
        if amount == 51 {
            test.drain().await;
        }
    }
    let amounts = |page: Value| page.as_array().unwrap().iter().map(|e| id(e, "amount")).collect::<Vec<_>>();
    assert_eq!(amounts(get(&test, &path).await.ok()), (4..=103).collect::<Vec<_>>());
    assert_eq!(amounts(get(&test, &format!("{path}?limit=1000")).await.ok()), (1..=103).collect::<Vec<_>>());
    assert_eq!(amounts(get(&test, &format!("{path}?limit=3&before=53")).await.ok()), [50, 51, 52]);
    assert_eq!(paged(&test, user, 7).await, paged(&test, user, 100).await);
    for query in [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=",
        "limit=ten",
        "before=0",
        "before=-1",
        "before=1.0",
        "limit=1&limit=2",
    ] {
        get(&test, &format!("{path}?{query}")).await.refused(400, "INVALID_REQUEST");
    }
    test.finish().await;
}

#[tokio::test]
async fn balance_read_after_write_is_current_while_projecting() {
    let test = TestApp::with(Options { project: true, ..Options::default() }).await;
    let user = test.user(0).await;
    for turn in 1..=60 {
        put(&test, &format!("/api/v1/balances/{user}"), json!({"amount": turn})).await.ok();
        let history = get(&test, &format!("/api/v1/balances/{user}/history?limit=1000")).await.ok();
        let numbers: Vec<i64> = history.as_array().unwrap().iter().map(|entry| id(entry, "entryNo")).collect();
        assert_eq!(numbers, (1..=turn).collect::<Vec<_>>());
        assert_eq!(balance(&test, user).await, turn * (turn + 1) / 2);
    }
    test.finish().await;
}
