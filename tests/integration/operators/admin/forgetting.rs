//! Users that are forgotten: their names are in neither store any more, and nothing brings them back.

use firstcome::recovery::rebuild::{LossBounds, RebuildOptions};
use sqlx::AssertSqlSafe;

use super::*;
use crate::{
    recovery::rebuild::rebuilt,
    support::harness::{Reply, until},
};

async fn forget(test: &TestApp, user: i64, query: &str) -> Reply {
    delete(test, &format!("/admin/v1/users/{user}{query}")).await
}

/// Every key of Redis and every row of every table that has this text.
async fn found(test: &TestApp, text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (key, value) in test.snapshot().await {
        found.extend((key.contains(text) || value.contains(text)).then_some(key));
    }
    let pool = test.db.get_postgres_connection_pool();
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()")
            .fetch_all(pool)
            .await
            .unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    for table in tables {
        let sql = format!("SELECT t::text FROM \"{table}\" AS t WHERE t::text LIKE '%' || $1 || '%'");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).bind(text).fetch_all(pool).await.unwrap();
        found.extend(rows.into_iter().map(|row| format!("{table}: {row}")));
    }
    found
}

#[tokio::test]
async fn name_of_forgotten_user_in_neither_store() {
    const NAME: &str = "제갈공명";
    for partitions in [1, 3] {
        let options = Options { partitions, project: true, outbox_keep_seconds: 0, ..Options::default() };
        let test = TestApp::with(options).await;
        let path = "/admin/v1/users/70001";
        put(&test, path, json!({"userName": "임시", "balance": 9_000})).await.created();
        keyed(&test, &Method::PUT, path, &json!({"userName": NAME}), "rename").await.ok();
        // A record, an order, a coupon, a dead letter and entries of the operator log and of the history.
        let charge = json!({"amount": 500});
        keyed(&test, &Method::PUT, "/api/v1/balances/70001", &charge, "charge").await.ok();
        let product = test.product(1_000, 5).await;
        let paid = bought(&test, 70_001, product, 1).await;
        let campaign = test.campaign("FIXED", 10, 5).await;
        issue(&test, campaign, 70_001).await.ok();
        let own = post(&test, "/admin/v1/users", json!({"userName": NAME})).await.created()["userId"].as_i64().unwrap();
        for (entry, kind, fields) in [
            ("1-1", "users_put", json!({"users": format!("7\u{1f}1\u{1f}x\u{1e}70001\u{1f}1\u{1f}{NAME}")})),
            ("1-2", "users_created", json!({"first": own.to_string(), "step": "1", "count": "1", "name": NAME})),
        ] {
            let mut fields = fields;
            fields["kind"] = json!(kind);
            let here = if kind == "users_put" { 70_001 } else { own } % i64::from(partitions);
            let sql = format!(
                "INSERT INTO dead_letters (partition, stream_id, epoch, seq, reason, fields)
                 VALUES ({here}, '{entry}', 1, 900000, 'a test', '{fields}')"
            );
            test.sql(&sql).await;
        }
        // An entry as an earlier version wrote it.
        test.sql(&format!(
            "INSERT INTO operator_log (id, operator, action, target, detail, status, request_id, at)
             VALUES (gen_random_uuid(), 'admin', 'POST /admin/v1/users', 'userId={own}', '{{\"userName\":\"{NAME}\"}}', 201, 'r', now())"
        ))
        .await;
        assert!(found(&test, NAME).await.len() > 2);

        forget(&test, 70_001, "").await.refused(409, "BALANCE_LEFT");
        assert_eq!(forget(&test, 70_001, "?forfeit=true").await.status, 204);
        assert_eq!(forget(&test, own, "").await.status, 204);
        until("the name is gone", async || found(&test, NAME).await.is_empty().then_some(())).await;
        // What only the number tells stays.
        for sql in [
            "SELECT count(*) FROM orders WHERE user_id = 70001 AND status = 'PAID'",
            "SELECT (SELECT count(*) FROM user_coupons WHERE user_id = 70001)
                 + (SELECT count(*) FROM remote_coupons WHERE user_id = 70001)",
            "SELECT count(*) FROM balance_entries WHERE user_id = 70001 AND after_balance = 0 AND order_id IS NULL",
            "SELECT count(*) FROM dead_letters WHERE fields->>'users' LIKE '%7_1_x%70001%'",
            "SELECT count(*) FROM users WHERE id = 70001 AND name = '' AND forgotten_at IS NOT NULL AND balance = 0",
        ] {
            let counted = sqlx::query_scalar::<_, i64>(sql);
            assert_eq!(counted.fetch_one(test.db.get_postgres_connection_pool()).await.unwrap(), 1, "{sql}");
        }
        // The right of a shoe to come back is not its owner's: the order can be refunded.
        test.refund(paid, json!({"reason": "반품"})).await.ok();
        test.sql("DELETE FROM dead_letters").await;
        test.finish().await;
    }
}

#[tokio::test]
async fn forgotten_user_not_found_from_then_on() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(0).await, test.product(0, 5).await);
        let open = test.place(user, product, 1).await;
        forget(test, user, "").await.refused(409, "ORDERS_OPEN");
        cancel(test, open, user).await.ok();
        let campaigns = [test.campaign("FIXED", 10, 9).await, test.campaign("FIXED", 10, 9).await];
        issue(test, campaigns[0], user).await.ok();
        for hostile in ["?forfeit=maybe", "?forfeit=", "?forfeits=true"] {
            forget(test, user, hostile).await.refused(400, "INVALID_REQUEST");
        }
        assert_eq!(forget(test, user, "").await.status, 204);
        let done = effects(test).await;
        forget(test, user, "?forfeit=true").await.refused(404, "USER_NOT_FOUND");
        forget(test, 999_999, "").await.refused(404, "USER_NOT_FOUND");
        for path in ["", "/history"] {
            get(test, &format!("/api/v1/balances/{user}{path}")).await.refused(404, "USER_NOT_FOUND");
        }
        get(test, &format!("/api/v1/coupons/{user}")).await.refused(404, "USER_NOT_FOUND");
        get(test, &format!("/admin/v1/users/{user}/timeline")).await.refused(404, "USER_NOT_FOUND");
        test.put_charge(user, 5).await.refused(404, "USER_NOT_FOUND");
        test.order(user, product, 1).await.refused(404, "USER_NOT_FOUND");
        for campaign in campaigns {
            issue(test, campaign, user).await.refused(404, "USER_NOT_FOUND");
        }
        // It is not brought back.
        let path = format!("/admin/v1/users/{user}");
        put(test, &path, json!({"userName": "x", "balance": 5})).await.refused(404, "USER_NOT_FOUND");
        assert_eq!(effects(test).await, done);
        assert_eq!(test.user(0).await, user + 1);
    })
    .await;
}

#[tokio::test]
async fn paid_order_of_forgotten_user_not_found_when_cancelled() {
    on_1_and_3(async |test| {
        let (user, product) = (test.user(2_000).await, test.product(1_000, 5).await);
        let paid = bought(test, user, product, 2).await;
        assert_eq!(forget(test, user, "").await.status, 204);
        let done = effects(test).await;
        cancel(test, paid, user).await.refused(404, "ORDER_NOT_FOUND");
        test.refund_lines(paid, user, &[(product, 1)]).await.refused(404, "ORDER_NOT_FOUND");
        assert_eq!(effects(test).await, done);
    })
    .await;
}

#[tokio::test]
async fn forgotten_user_stays_so_after_rebuild() {
    on_1_and_3(async |test| {
        let (user, other) = (test.user(7).await, test.user(7).await);
        let campaigns = [test.campaign("FIXED", 10, 9).await, test.campaign("FIXED", 10, 9).await];
        assert_eq!(forget(test, user, "?forfeit=true").await.status, 204);
        test.drain().await;
        test.flush_redis().await;
        rebuilt(test, RebuildOptions { lost_at_most: LossBounds::Each(0), ..Default::default() }).await;
        get(test, &format!("/api/v1/balances/{user}")).await.refused(404, "USER_NOT_FOUND");
        let path = format!("/admin/v1/users/{user}");
        put(test, &path, json!({"userName": "x"})).await.refused(404, "USER_NOT_FOUND");
        for campaign in campaigns {
            issue(test, campaign, user).await.refused(404, "USER_NOT_FOUND");
            issue(test, campaign, other).await.ok();
        }
        assert_eq!(balance(test, other).await, 7);
    })
    .await;
}

/// A process that knows the user learns within a lease that the user was forgotten by another one.
#[tokio::test]
async fn other_process_learns_of_forgotten_user() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    let users = test.users(6, 0).await;
    let campaign = test.campaign("FIXED", 10, 1).await;
    let other = test.open_instance(&test.options).await.unwrap();
    let id = |id: i64| UserId::new(id).unwrap();
    let coupon = firstcome::model::CouponId::new(campaign).unwrap();
    other.engine.issue_coupon(&call(None), id(users[0]), coupon).await.unwrap();
    let answer = async |user: i64| match other.engine.issue_coupon(&call(None), id(user), coupon).await {
        Err(error) => format!("{error:?}"),
        Ok(_) => "issued".to_owned(),
    };
    for user in &users[1..] {
        until("the process knows that the campaign is sold out", async || {
            let (before, answer) = (other.engine.sold_out().counts().refused, answer(*user).await);
            assert_eq!(answer, "CouponOutOfStock");
            other.engine.sold_out().settled().await;
            (other.engine.sold_out().counts().refused > before).then_some(())
        })
        .await;
    }
    for user in &users[1..] {
        assert_eq!(forget(&test, *user, "").await.status, 204);
        until("the process knows that the user was forgotten", async || {
            (answer(*user).await == "UserNotFound").then_some(())
        })
        .await;
    }
    other.stop(None).await;
    test.finish().await;
}
