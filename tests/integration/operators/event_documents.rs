//! The document of the events matches them, and the examples of docs/events.md work.

use std::{collections::BTreeSet, fs, process::Command};

use firstcome::{
    dev::ScratchDir,
    model::public_event::{EventType, PublicEvent},
};
use serde_json::{Value, json};

use crate::{
    api::openapi::Document,
    projector::{fuzz_events::real_events, projection::busy_day},
    support::{
        api_kit::get,
        harness::{ADMIN, Options, TestApp},
        repository::root,
    },
};

/// Events of every kind, each with its document's schema.
#[tokio::test]
async fn events_match_their_document() {
    let test = TestApp::start().await;
    let document = Document::new(test.get("/v3/event-docs").await.ok());
    assert_eq!(document.0["asyncapi"], "3.0.0");
    busy_day(&test).await;
    test.drain().await;
    let mut after = String::new();
    loop {
        let page = get(&test, &format!("/admin/v1/events?limit=1000{after}")).await.ok();
        for event in page["events"].as_array().unwrap() {
            let envelope = json!({"$ref": "#/components/schemas/CloudEvent"});
            let mut head = event.clone();
            head["data"] = json!({});
            document.check(&envelope, &head, true).unwrap();
        }
        if page["more"] == false {
            break;
        }
        after = format!("&after={}", page["next"].as_str().unwrap());
    }
    test.finish().await;
    let mut kinds = BTreeSet::new();
    for fields in real_events().await {
        for decoded in firstcome::model::event::decode(&fields) {
            let event = PublicEvent::of(&decoded.event.unwrap());
            let message = &document.0["components"]["messages"][event.kind.as_str()];
            let schema = &message["payload"]["allOf"][1]["properties"]["data"];
            let data: Value = serde_json::from_str(&event.data).unwrap();
            document.check(schema, &data, true).unwrap_or_else(|fault| panic!("{:?}{fault}: {data}", event.kind));
            kinds.insert(event.kind.as_str());
        }
    }
    let all: BTreeSet<&str> = EventType::ALL.iter().map(|kind| kind.as_str()).collect();
    // No script writes the events of earlier releases.
    assert_eq!(all.difference(&kinds).collect::<Vec<_>>(), [&"stock.held"]);
}

/// The consumer of docs/events.md, stopped and started again: each event is there once.
#[tokio::test(flavor = "multi_thread")]
async fn consumer_of_the_page_carries_each_event_once() {
    let page = fs::read_to_string(root().join("docs/events.md")).unwrap();
    let consumer = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    assert!(consumer.lines().count() <= 25, "twenty lines, about");
    let test = TestApp::with(Options { partitions: 3, project: true, ..Options::default() }).await;
    let dir = ScratchDir::new().unwrap();
    let consume = async || {
        let mut command = Command::new("python3");
        command.arg("-c").arg(&consumer).env("ONCE", "1").env("WAIT", "0").env("ADMIN_TOKEN", ADMIN);
        command.env("FIRSTCOME_URL", &test.base).env("WAREHOUSE", dir.path().join("warehouse.db"));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    consume().await;
    busy_day(&test).await;
    test.drain().await;
    consume().await;
    let user = test.user(0).await;
    test.put_charge(user, 3).await.ok();
    test.drain().await;
    consume().await;
    let events: i64 = sqlx::query_scalar("SELECT count(*) FROM events")
        .fetch_one(test.db.get_postgres_connection_pool())
        .await
        .unwrap();
    let mut count = Command::new("python3");
    count.arg("-c").arg("import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT count(*), count(DISTINCT id) FROM events').fetchone())");
    let output = count.arg(dir.path().join("warehouse.db")).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("{events} {events}"));
    test.finish().await;
}
