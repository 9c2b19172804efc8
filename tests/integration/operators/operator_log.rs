//! The operator log: who did what, when, with which result. Each action is recorded once, even across an outage of
//! PostgreSQL, and no action waits for its record.

use reqwest::Method;
use serde_json::{Value, json};

use super::{KIM, options_with_kim};
use crate::support::{
    api_kit::{fields, get, now, post},
    harness::{ADMIN, TestApp, read},
};

/// The recorded actions, oldest first.
async fn actions(test: &TestApp, query: &str) -> Vec<Value> {
    let page = get(test, &format!("/admin/v1/operator-log?size=100{query}")).await.ok();
    let mut actions = page["content"].as_array().unwrap().clone();
    assert_eq!(page["totalElements"].as_i64().unwrap(), actions.len() as i64);
    actions.reverse();
    actions
}

fn summary(action: &Value) -> (&str, &str, &str, i64) {
    let text = |name: &str| action[name].as_str().unwrap();
    (text("operator"), text("action"), text("target"), action["status"].as_i64().unwrap())
}

#[tokio::test]
async fn operator_actions_recorded_and_nothing_else() {
    let test = TestApp::with(options_with_kim()).await;
    let as_kim = |method: Method, path: String| {
        test.client.request(method, format!("{}{path}", test.base)).bearer_auth(KIM).header("x-request-id", "of-kim")
    };
    let product = test.product(10, 5).await;
    let patch = as_kim(Method::PATCH, format!("/admin/v1/products/{product}"));
    let renamed = json!({"productName": "가\"나", "stockDelta": -9});
    read(patch.json(&renamed)).await.refused(409, "INSUFFICIENT_STOCK");
    // Unknown fields are not recorded.
    let unknown = json!({"userName": "x", "unknown field": "x".repeat(5_000)});
    read(as_kim(Method::POST, "/admin/v1/users".into()).json(&unknown)).await.refused(400, "INVALID_REQUEST");
    read(as_kim(Method::POST, "/admin/v1/users".into()).json(&json!({"userName": 1})))
        .await
        .refused(400, "INVALID_REQUEST");
    // Reads, unauthenticated requests, requests of customers and unknown paths are not recorded.
    get(&test, "/admin/v1/orders").await.ok();
    test.put_charge(1, 5).await.refused(404, "USER_NOT_FOUND");
    test.send(Method::POST, "/admin/v1/nothing", Some(&json!({})), None).await.refused(404, "NOT_FOUND");
    let unauthenticated = test.client.post(format!("{}/admin/v1/users", test.base)).bearer_auth("wrong");
    read(unauthenticated.json(&json!({"userName": "x"}))).await.refused(401, "UNAUTHORIZED");
    post(&test, "/ops/session", json!({"token": "wrong"})).await.refused(401, "UNAUTHORIZED");
    let signed_in = test.post("/ops/session", json!({"token": KIM})).await;
    let cookie = signed_in.headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    read(test.client.delete(format!("{}/ops/session", test.base)).header("cookie", &cookie)).await;

    let all = actions(&test, "").await;
    let expected = [
        ("admin", "POST /admin/v1/products", format!("productId={product}"), 201),
        ("kim", "PATCH /admin/v1/products/{productId}", format!("productId={product}"), 409),
        ("kim", "POST /admin/v1/users", String::new(), 400),
        ("kim", "POST /admin/v1/users", String::new(), 400),
        ("kim", "POST /ops/session", String::new(), 204),
        ("kim", "DELETE /ops/session", String::new(), 204),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(who, action, on, status)| (*who, *action, on.as_str(), *status)).collect();
    assert_eq!(all.iter().map(summary).collect::<Vec<_>>(), expected);
    fields(&all[0], "operator role action target detail status at requestId");
    assert!(all.iter().all(|action| action["role"] == "admin"));
    assert_eq!(all[0]["at"], now(&test));
    assert_eq!(all[1]["requestId"], "of-kim");
    let detail: Value = serde_json::from_str(all[1]["detail"].as_str().unwrap()).unwrap();
    assert_eq!((&detail["productName"], &detail["stockDelta"]), (&json!("가\"나"), &json!(-9)), "{detail}");
    let everything = all.iter().map(Value::to_string).collect::<String>();
    assert!(
        !everything.contains(KIM) && !everything.contains(ADMIN) && !everything.contains("unknown field"),
        "{everything}"
    );

    assert_eq!(actions(&test, "&operator=kim").await, all[1..]);
    assert!(actions(&test, "&operator=lee").await.is_empty());
    let page = get(&test, "/admin/v1/operator-log?page=1&size=2").await.ok();
    assert_eq!(page["content"].as_array().unwrap()[..], [all[3].clone(), all[2].clone()]);
    for wrong in ["operator=Kim", "operator=", "operator=a%00", "size=101", "page=-1"] {
        get(&test, &format!("/admin/v1/operator-log?{wrong}")).await.refused(400, "INVALID_REQUEST");
    }
    test.finish().await;
}

#[tokio::test]
async fn operator_action_path_recorded_short_and_printable() {
    let test = TestApp::start().await;
    for id in ["%00%0a", &"9".repeat(500), "%F0%9F%91%9F"] {
        let patch = json!({"price": 1});
        let path = format!("/admin/v1/products/{id}");
        test.send(Method::PATCH, &path, Some(&patch), None).await.refused(404, "PRODUCT_NOT_FOUND");
    }
    let all = actions(&test, "").await;
    let targets: Vec<&str> = all.iter().map(|action| summary(action).2).collect();
    let long = format!("productId={}…", "9".repeat(40));
    assert_eq!(targets, ["productId=\u{fffd}\u{fffd}", &long, "productId=👟"]);
    test.finish().await;
}

/// The action succeeds at once; its record follows when PostgreSQL is back.
#[tokio::test]
async fn operator_actions_queued_when_postgres_down() {
    let test = TestApp::start().await;
    let rename = async |from: &str, to: &str| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(test.db.get_postgres_connection_pool()).await.unwrap();
    };
    rename("operator_log", "away").await;
    let users: Vec<i64> = [test.user(1).await, test.user(2).await, test.user(3).await].into();
    rename("away", "operator_log").await;
    // A read waits for records in progress.
    let recorded = crate::support::harness::until("the operator log is written", async || {
        let all = actions(&test, "").await;
        (all.len() == users.len()).then_some(all)
    })
    .await;
    let targets: Vec<String> = recorded.iter().map(|action| summary(action).2.to_owned()).collect();
    assert_eq!(targets, users.iter().map(|id| format!("userId={id}")).collect::<Vec<_>>());
    test.finish().await;
}

#[tokio::test]
async fn operator_actions_written_before_stop() {
    let test = TestApp::start().await;
    let user = test.user(1).await;
    test.app.stop(None).await;
    let pool = test.db.get_postgres_connection_pool();
    let target: String = sqlx::query_scalar("SELECT target FROM operator_log").fetch_one(pool).await.unwrap();
    assert_eq!(target, format!("userId={user}"));
    assert_eq!(test.app.operator_log.dropped(), 0);
    test.finish().await;
}
