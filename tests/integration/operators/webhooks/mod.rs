//! Webhooks: what receivers get, in which order, and what becomes of those that fail.

mod changes;
mod failures;
pub mod receiver;
mod subjects;

use std::collections::{BTreeMap, BTreeSet};

use firstcome::config::WebhookConfig;
use reqwest::Method;
use serde_json::{Value, json};

use self::receiver::{Received, Receiver};
use crate::{
    projector::projection::busy_day,
    support::{
        api_kit::{get, patch, post, send},
        harness::{Options, TestApp, until},
    },
};

/// Creates a webhook. Returns its id and its secret.
async fn webhook(test: &TestApp, receiver: &Receiver, types: &[&str]) -> (i64, String) {
    let created = post(test, "/admin/v1/webhooks", json!({"url": receiver.url, "types": types})).await.created();
    let secret = created["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("whsec_"));
    (created["webhookId"].as_i64().unwrap(), secret)
}

async fn shown(test: &TestApp, webhook: i64) -> Value {
    get(test, &format!("/admin/v1/webhooks/{webhook}")).await.ok()
}

async fn deliveries(test: &TestApp, webhook: i64, query: &str) -> Vec<Value> {
    let page = get(test, &format!("/admin/v1/webhooks/{webhook}/deliveries?{query}")).await.ok();
    page["content"].as_array().unwrap().clone()
}

async fn send_due(test: &TestApp) {
    test.app.webhooks.send_due().await.unwrap();
}

/// Users with a charge each.
async fn charges(test: &TestApp, count: usize) -> Vec<i64> {
    let mut users = Vec::new();
    for _ in 0..count {
        let user = test.user(0).await;
        test.put_charge(user, 1).await.ok();
        users.push(user);
    }
    test.drain().await;
    users
}

/// A user with several charges.
async fn charges_of_one(test: &TestApp, count: usize) -> i64 {
    let user = charges(test, 1).await[0];
    for _ in 1..count {
        test.put_charge(user, 1).await.ok();
    }
    test.drain().await;
    user
}

/// Starts the rounds of all webhooks, and waits until a request hangs.
async fn hanging_round(test: &TestApp, receiver: &Receiver, requests: usize) -> tokio::task::JoinHandle<()> {
    receiver.hangs(true);
    let webhooks = test.app.webhooks.clone();
    let sending = tokio::spawn(async move { webhooks.send_due().await.unwrap() });
    until("requests hang", async || (receiver.received().len() == requests).then_some(())).await;
    sending
}

/// The ids of all events, of those types if any.
async fn event_ids(test: &TestApp, query: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut after = String::new();
    loop {
        let page = get(test, &format!("/admin/v1/events?limit=1000{query}{after}")).await.ok();
        ids.extend(page["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()));
        if page["more"] == false {
            return ids;
        }
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
}

/// Asserts that the events of each subject came in the order of their decisions.
fn assert_ordered(received: &[Received]) {
    let mut last: BTreeMap<(&str, i64), i64> = BTreeMap::new();
    for request in received {
        let numbers: Vec<i64> = request.id.split('-').map(|number| number.parse().unwrap()).collect();
        let before = last.insert((request.subject(), numbers[1]), numbers[2]);
        assert!(before.is_none_or(|before| before <= numbers[2]), "{} after {before:?}", request.id);
    }
}

#[tokio::test]
async fn webhook_sent_each_event_once_signed_and_in_order() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let (all, some) = (Receiver::start().await, Receiver::start().await);
        let (id, secret) = webhook(&test, &all, &["*"]).await;
        webhook(&test, &some, &["order.paid", "order.closed"]).await;
        busy_day(&test).await;
        test.drain().await;
        send_due(&test).await;
        let received = all.take();
        let ids: BTreeSet<String> = received.iter().map(|request| request.id.clone()).collect();
        assert_eq!((ids.clone(), received.len()), (event_ids(&test, "").await, ids.len()));
        assert_ordered(&received);
        for request in &received {
            assert!(request.is_signed_by(&secret), "{request:?}");
            assert_eq!(request.event["id"], request.id.as_str());
            assert_eq!(request.timestamp, test.clock.now().0 / 1000);
        }
        let kinds = some.take();
        let expected = event_ids(&test, "&types=order.paid,order.closed").await;
        assert_eq!(kinds.iter().map(|request| request.id.clone()).collect::<BTreeSet<_>>(), expected);
        // The log has every attempt; there is nothing more to send.
        let mut logged = BTreeSet::new();
        let mut query = "limit=100".to_owned();
        loop {
            let page = get(&test, &format!("/admin/v1/webhooks/{id}/deliveries?{query}")).await.ok();
            for delivery in page["content"].as_array().unwrap() {
                assert_eq!(
                    (&delivery["status"], &delivery["failure"], &delivery["attempt"]),
                    (&json!(204), &Value::Null, &json!(1))
                );
                logged.insert(delivery["eventId"].as_str().unwrap().to_owned());
            }
            let Some(next) = page["next"].as_i64() else { break };
            query = format!("limit=100&before={next}");
        }
        assert_eq!(logged, ids);
        assert_eq!(deliveries(&test, id, "failed=true").await, Vec::<Value>::new());
        send_due(&test).await;
        assert!(all.take().is_empty() && some.take().is_empty());
        test.finish().await;
    }
}

#[tokio::test]
async fn webhook_sent_by_several_processes_once() {
    let test = TestApp::with(Options { partitions: 3, project: true, ..Options::default() }).await;
    let others = [test.open_instance(&test.options).await.unwrap(), test.open_instance(&test.options).await.unwrap()];
    for other in &others {
        other.project();
    }
    let receiver = Receiver::start().await;
    webhook(&test, &receiver, &["*"]).await;
    busy_day(&test).await;
    let mut expected = BTreeSet::new();
    until("every event arrives", async || {
        expected = event_ids(&test, "").await;
        (receiver.received().len() >= expected.len()).then_some(())
    })
    .await;
    let received = receiver.take();
    assert_eq!(received.len(), expected.len(), "none twice");
    assert_eq!(received.iter().map(|request| request.id.clone()).collect::<BTreeSet<_>>(), expected);
    assert_ordered(&received);
    for other in others {
        other.stop(None).await;
        other.db.close().await.unwrap();
    }
    test.finish().await;
}

#[tokio::test]
async fn webhook_secret_rotates_with_two_valid() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, old) = webhook(&test, &receiver, &["balance.charged"]).await;
    let user = test.user(0).await;
    let path = format!("/admin/v1/webhooks/{id}/rotate");
    let body = json!({"validSeconds": 60});
    let rotated = send(&test, Method::POST, &path, Some(body.clone()), Some("rotate-1")).await;
    let secret = rotated.json()["secret"].as_str().unwrap().to_owned();
    let again = send(&test, Method::POST, &path, Some(body.clone()), Some("rotate-1")).await;
    assert!(again.replayed());
    assert_eq!(again.json()["secret"], secret.as_str());
    send(&test, Method::POST, &path, Some(json!({"validSeconds": 61})), Some("rotate-1"))
        .await
        .refused(422, "IDEMPOTENCY_KEY_REUSED");
    post(&test, &path, body.clone()).await.refused(409, "SECRET_ROTATING");
    let charge = async |valid: &[(&str, bool)]| {
        test.put_charge(user, 1).await.ok();
        test.drain().await;
        send_due(&test).await;
        let received = receiver.take();
        assert_eq!(received.len(), 1);
        for (secret, is_valid) in valid {
            assert_eq!(received[0].is_signed_by(secret), *is_valid);
        }
    };
    charge(&[(&old, true), (&secret, true)]).await;
    assert_ne!(shown(&test, id).await["oldSecretUntil"], Value::Null);
    test.clock.advance(60_000);
    assert_eq!(shown(&test, id).await["oldSecretUntil"], Value::Null);
    charge(&[(&old, false), (&secret, true)]).await;
    // A secret that leaked is invalid at once.
    let newest = post(&test, &path, json!({"validSeconds": 0})).await.ok()["secret"].as_str().unwrap().to_owned();
    charge(&[(&secret, false), (&newest, true)]).await;
    post(&test, &path, json!({"validSeconds": 0})).await.ok();
    post(&test, "/admin/v1/webhooks/99/rotate", body).await.refused(404, "WEBHOOK_NOT_FOUND");
    test.finish().await;
}

#[tokio::test]
async fn webhook_requests_refused_when_invalid() {
    let test = TestApp::with(Options { webhooks: WebhookConfig::default(), ..Options::default() }).await;
    for url in [
        "http://shop.example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://10.0.0.1/",
        "x",
        "https://u:p@shop.example.com/",
    ] {
        post(&test, "/admin/v1/webhooks", json!({"url": url, "types": ["*"]})).await.refused(400, "INVALID_REQUEST");
    }
    let valid = json!({"url": "https://shop.example.com/", "types": ["order.paid"], "description": "ERP"});
    for (field, value) in [
        ("url", json!(null)),
        ("types", json!([])),
        ("types", json!(["order.lost"])),
        ("description", json!("x".repeat(201))),
        ("secret", json!("whsec_mine")),
    ] {
        let mut body = valid.clone();
        body[field] = value;
        post(&test, "/admin/v1/webhooks", body).await.refused(400, "INVALID_REQUEST");
    }
    let key = Some("create-1");
    let first = send(&test, Method::POST, "/admin/v1/webhooks", Some(valid.clone()), key).await;
    let again = send(&test, Method::POST, "/admin/v1/webhooks", Some(valid.clone()), key).await;
    assert!(again.replayed());
    assert_eq!(first.json(), again.json());
    let id = first.created()["webhookId"].as_i64().unwrap();
    let path = format!("/admin/v1/webhooks/{id}");
    patch(&test, &path, json!({"url": "https://192.168.0.1/"})).await.refused(400, "INVALID_REQUEST");
    patch(&test, &path, json!({})).await.refused(400, "INVALID_REQUEST");
    let changed = patch(&test, &path, json!({"types": ["*"], "description": "", "enabled": false})).await.ok();
    assert_eq!((&changed["types"], &changed["status"]), (&json!(["*"]), &json!("OFF")));
    assert_eq!(shown(&test, id).await, changed);
    assert!(changed.get("secret").is_none());
    post(&test, &format!("{path}/resend"), json!({"eventId": "1-0-999"})).await.refused(404, "EVENT_NOT_FOUND");
    post(&test, &format!("{path}/resend"), json!({"eventId": "1-0"})).await.refused(400, "INVALID_REQUEST");
    for query in ["limit=0", "limit=101", "before=0", "failed=yes"] {
        get(&test, &format!("{path}/deliveries?{query}")).await.refused(400, "INVALID_REQUEST");
    }
    assert_eq!(get(&test, "/admin/v1/webhooks").await.ok()["totalElements"], 1);
    assert_eq!(send(&test, Method::DELETE, &path, None, None).await.status, 204);
    for (method, path, body) in [
        (Method::GET, path.clone(), None),
        (Method::DELETE, path.clone(), None),
        (Method::PATCH, path.clone(), Some(json!({"enabled": true}))),
        (Method::GET, format!("{path}/deliveries"), None),
        (Method::POST, format!("{path}/resend"), Some(json!({"eventId": "1-0-1"}))),
    ] {
        send(&test, method, &path, body, None).await.refused(404, "WEBHOOK_NOT_FOUND");
    }
    for n in 0..50 {
        let url = format!("https://shop.example.com/{n}");
        post(&test, "/admin/v1/webhooks", json!({"url": url, "types": ["*"]})).await.created();
    }
    post(&test, "/admin/v1/webhooks", valid.clone()).await.refused(409, "TOO_MANY_WEBHOOKS");
    // The log of operators has no secret.
    let log = get(&test, "/admin/v1/operator-log?size=100").await.text;
    assert!(log.contains("/admin/v1/webhooks") && !log.contains("whsec_"), "{log}");
    test.finish().await;

    let test = TestApp::with(Options { events_keep_days: 0, ..Options::default() }).await;
    post(&test, "/admin/v1/webhooks", valid).await.refused(409, "EVENTS_OFF");
    test.finish().await;
}
