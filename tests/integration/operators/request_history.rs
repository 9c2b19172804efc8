//! The requests of the last fifteen minutes, of every process: in the operators' API, and when the dashboard opens.

use firstcome::model::RequestSample;
use serde_json::{Value, json};

use crate::{
    operators::dashboard_feed::Watch,
    projector::projection::RestartableApp,
    support::{
        api_kit::fields,
        harness::{Options, TestApp},
    },
};

const ONE: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const OTHER: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";
const KEY: &str = "{p0}:requests";

/// Five seconds of a process: `served`, and twice as many refused as sold out.
fn sample(instance: &str, number: u64, served: u64) -> String {
    let sample = RequestSample {
        instance: instance.to_owned(),
        name: format!("host-{}:8080", &instance[..1]),
        version: "0.2.0".to_owned(),
        started_at: 1_700_000_000_000,
        number,
        ms: 5_000,
        counts: vec![("200".to_owned(), String::new(), served), ("409".to_owned(), "SOLD_OUT".to_owned(), 2 * served)],
        shed: 0,
        times: vec![(1_000, 3 * served)],
    };
    sample.write().unwrap()
}

/// The requests in all slots, of this class.
fn counted(history: &Value, class: &str) -> f64 {
    let slots = history["slots"].as_array().unwrap();
    let sum: f64 = slots.iter().map(|slot| slot[class].as_f64().unwrap() * 5.0).sum();
    (sum * 10.0).round() / 10.0
}

fn ids(history: &Value) -> Vec<&str> {
    history["instances"].as_array().unwrap().iter().map(|one| one["instanceId"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn requests_of_two_instances_merged_and_each_alone() {
    for partitions in [1, 3] {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let none = test.get("/admin/v1/requests").await.ok();
        let empty = json!({"periodSeconds": 5, "slots": [], "refusals": [], "instances": [], "skippedSamples": 0});
        assert_eq!(none, empty);
        // The first has ended; the other one was away from Redis for a while, and wrote all at once, the first sample twice.
        let first = test.engine.write_request_samples(&[(20_000, sample(ONE, 1, 100))], None).await.unwrap();
        let late = [(25_000, sample(OTHER, 1, 10)), (20_000, sample(OTHER, 2, 30))];
        let last = test.engine.write_request_samples(&late[..1], None).await.unwrap();
        assert!(last > first && test.engine.write_request_samples(&late, Some(last)).await.unwrap() > last);
        let all = test.get("/admin/v1/requests").await.ok();
        assert_eq!((counted(&all, "perSecond"), counted(&all, "refusedPerSecond")), (420.0, 280.0));
        assert_eq!(all["refusals"], json!([{"errorCode": "SOLD_OUT", "count": 280}]));
        assert_eq!(ids(&all), [ONE, OTHER]);
        fields(&all["instances"][0], "instanceId name version startedAt sampledAt");
        let slot = &all["slots"][0];
        fields(slot, "at perSecond refusedPerSecond failedPerSecond limitedPerSecond shedPerSecond p50Ms p95Ms p99Ms");
        assert_eq!(slot["p50Ms"], 0.875);
        for (id, requests) in [(ONE, 300.0), (OTHER, 120.0), ("00000000-0000-0000-0000-000000000000", 0.0)] {
            let alone = test.get(&format!("/admin/v1/requests?instanceId={id}")).await.ok();
            assert_eq!((counted(&alone, "perSecond"), ids(&alone)), (requests, vec![ONE, OTHER]), "{id}");
        }
        for wrong in ["instanceId=1", "instanceId=", "instance=1"] {
            test.get(&format!("/admin/v1/requests?{wrong}")).await.refused(400, "INVALID_REQUEST");
        }
        // The page has the same before its first snapshot.
        let mut watch = Watch::open(&test.base).await;
        let history = watch.history().await.expect("the history precedes the first snapshot");
        let slots = all["slots"].as_array().unwrap();
        for column in ["perSecond", "refusedPerSecond", "failedPerSecond", "p50Ms", "p99Ms"] {
            let listed: Vec<&Value> = slots.iter().map(|slot| &slot[column]).collect();
            assert_eq!(history["all"][column].as_array().unwrap().iter().collect::<Vec<_>>(), listed, "{column}");
        }
        assert_eq!(history["all"]["at"].as_array().unwrap().len(), slots.len());
        let shown = history["instances"].as_array().unwrap();
        assert_eq!((&shown[0]["instanceId"], &shown[1]["instanceId"]), (&json!(ONE), &json!(OTHER)));
        let alone: f64 =
            shown[1]["requests"]["perSecond"].as_array().unwrap().iter().map(|rate| rate.as_f64().unwrap()).sum();
        assert_eq!((alone * 50.0).round() / 10.0, 120.0);
        assert_eq!(watch.next().await.unwrap()["historyUnavailable"], "");
        drop(watch);
        test.finish().await;
    }
}

#[tokio::test]
async fn malformed_samples_skipped_and_key_bounded() {
    let test = TestApp::start().await;
    let mut redis = test.raw().await;
    let written = sample(ONE, 1, 10);
    for (field, value) in [("sample", "{}"), ("sample", "\u{0}"), ("", ""), ("sample", &written)] {
        let mut add = redis::cmd("XADD");
        add.arg(KEY).arg("*").arg(field).arg(value).exec_async(&mut redis).await.unwrap();
    }
    let mut not_text = redis::cmd("XADD");
    not_text.arg(KEY).arg("*").arg("ago").arg(0).arg("sample").arg(&[0xff_u8, 0xfe][..]);
    not_text.exec_async(&mut redis).await.unwrap();
    let last = test.engine.write_request_samples(&[(15_000, sample(ONE, 1, 10))], None).await.unwrap();
    let read = test.get("/admin/v1/requests").await.ok();
    assert_eq!((&read["skippedSamples"], counted(&read, "perSecond")), (&json!(5), 30.0));
    // Each write lets the key live for fifteen minutes, and trims what is older.
    let ttl: i64 = redis::cmd("PTTL").arg(KEY).query_async(&mut redis).await.unwrap();
    assert!((1..=900_000).contains(&ttl), "{ttl}");
    let old = redis::cmd("DEL").arg(KEY).query_async::<i64>(&mut redis).await.unwrap();
    assert_eq!(old, 1);
    for n in 1..=1_000 {
        let mut add = redis::cmd("XADD");
        add.arg(KEY).arg(format!("1-{n}")).arg("ago").arg(0).arg("sample").arg(&written);
        add.exec_async(&mut redis).await.unwrap();
    }
    assert_eq!(test.get("/admin/v1/requests").await.ok()["slots"], json!([]), "they are of 1970");
    test.engine.write_request_samples(&[(15_000, sample(ONE, 1, 10))], Some(last)).await.unwrap();
    let left: i64 = redis::cmd("XLEN").arg(KEY).query_async(&mut redis).await.unwrap();
    assert!(left < 200, "{left}");
    // An entry from a clock that was ahead would date all later ones: the next write starts anew.
    redis::cmd("XADD").arg(KEY).arg("9999999999999-1").arg("ago").arg(0).exec_async(&mut redis).await.unwrap();
    let ahead = test.get("/admin/v1/requests").await.ok();
    assert_eq!((&ahead["skippedSamples"], counted(&ahead, "perSecond")), (&json!(1), 30.0));
    let last = test.engine.write_request_samples(&[(15_000, sample(ONE, 2, 10))], Some(last)).await.unwrap();
    test.engine.write_request_samples(&[(15_000, sample(ONE, 3, 20))], Some(last)).await.unwrap();
    assert_eq!(counted(&test.get("/admin/v1/requests").await.ok(), "perSecond"), 60.0);
    let untouched = test.app.audit().run().await.unwrap();
    assert!(untouched.balanced, "{untouched:?}");
    // Without an end, the samples would stay for ever: the audit says so.
    redis::cmd("PERSIST").arg(KEY).exec_async(&mut redis).await.unwrap();
    let report = test.app.audit().run().await.unwrap();
    let wrong: Vec<_> = report.checks.iter().filter(|check| !check.ok).collect();
    assert!(wrong.len() == 1 && wrong[0].detail.contains("samples of requests do not expire"), "{wrong:?}");
    redis::cmd("DEL").arg(KEY).exec_async(&mut redis).await.unwrap();
    test.finish().await;
}

/// A rebuild of a partition by a running process leaves the past of the charts.
#[tokio::test]
async fn requests_kept_by_rebuild() {
    let test = TestApp::start().await;
    test.user(100).await;
    test.drain().await;
    test.engine.write_request_samples(&[(15_000, sample(ONE, 1, 10))], None).await.unwrap();
    let rebuild = test.rebuild().await;
    rebuild.clone().run(Default::default()).await.unwrap();
    rebuild.db.close().await.unwrap();
    test.engine.check().await;
    assert_eq!(counted(&test.get("/admin/v1/requests").await.ok(), "perSecond"), 30.0);
    test.finish().await;
}

#[tokio::test]
async fn page_opens_without_redis_and_gets_history_once_it_answers() {
    let mut shop = RestartableApp::open().await;
    shop.app.engine.write_request_samples(&[(15_000, sample(OTHER, 1, 10))], None).await.unwrap();
    shop.redis.kill().await.unwrap();
    let mut watch = Watch::open(&shop.base).await;
    assert_eq!(watch.history().await, None);
    let down = watch.until("the history is unknown", |seen| seen["historyUnavailable"].as_str() != Some("")).await;
    assert!(down["orders"].is_object(), "{down:#}");
    shop.redis.restart().await.unwrap();
    let history = watch.late_history().await;
    assert_eq!(history["instances"][0]["instanceId"], OTHER);
    watch.until("it is known", |seen| seen["historyUnavailable"] == "").await;
    drop(watch);
    shop.finish().await;
}

/// While PostgreSQL is away, the requests of others are those of their samples.
#[tokio::test]
async fn requests_of_others_known_without_postgres() {
    let mut shop = RestartableApp::open().await;
    let mut watch = Watch::open(&shop.base).await;
    let alone = watch.until("it is alone", |seen| seen["instances"].is_array()).await;
    assert_eq!(alone["instances"].as_array().unwrap().len(), 1);
    shop.postgres.pause().unwrap();
    watch.until("PostgreSQL is down", |seen| seen["orders"].is_null()).await;
    let mut number = 0;
    let seen = loop {
        // The process writes, as long as it runs.
        number += 1;
        shop.app.engine.write_request_samples(&[(0, sample(OTHER, number, 100))], None).await.unwrap();
        let seen = watch.next().await.unwrap();
        if seen["instances"].as_array().is_some_and(|all| all.len() == 2) {
            break seen;
        }
    };
    let other = &seen["instances"][1];
    assert_eq!((&other["instanceId"], &other["requests"]["perSecond"]), (&json!(OTHER), &json!(60.0)));
    assert_eq!(other["requests"]["refusals"], json!([{"errorCode": "SOLD_OUT", "perSecond": 40.0}]));
    assert_eq!(other["requests"]["routes"], json!([]));
    assert!(seen["requests"]["perSecond"].as_f64() >= Some(60.0), "{seen:#}");
    shop.postgres.resume().unwrap();
    watch.until("only reports count", |seen| seen["instances"].as_array().is_some_and(|all| all.len() == 1)).await;
    drop(watch);
    shop.finish().await;
}
