//! The log of recoveries: a row per partition of a rebuild, whoever began it, and an entry in the operator log.

use firstcome::{
    model::{BegunBy, Millis, Partition, Recovery, RecoveryOutcome, RecoveryProgress},
    postgres::{progress, recoveries},
    recovery::{
        log::{NoticedLoss, RebuildCause},
        rebuild::{LossBounds, RebuildOptions},
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::rebuild::{ready, rebuilt, refused};
use crate::support::{
    api_kit::{after, fields, get, now, post},
    harness::{Options, TestApp, read},
};

/// A recovery as an earlier process wrote it.
fn recovery(partition: u16, began_at: Millis) -> Recovery {
    Recovery {
        id: Uuid::now_v7().to_string(),
        partition: Partition(partition),
        begun_by: BegunBy::Service,
        attempts: 1,
        reason: "acknowledged decisions are lost".to_owned(),
        found_seq: Some(7),
        acknowledged_seq: 12,
        projected_seq: 9,
        missing_last_seq: Some(12),
        silent: Vec::new(),
        outcome: RecoveryOutcome::Running,
        detail: String::new(),
        epoch: None,
        withheld_units: 0,
        withheld_coupons: 0,
        progress: RecoveryProgress::default(),
        noticed_at: began_at,
        began_at,
        ended_at: None,
    }
}

async fn listed(test: &TestApp) -> Vec<Value> {
    get(test, "/admin/v1/recoveries?size=100").await.ok()["content"].as_array().unwrap().clone()
}

/// The entries of the operator log for recoveries, oldest first: operator, action, target, status, outcome.
async fn entries(test: &TestApp) -> Vec<(String, String, String, i64, String)> {
    let page = get(test, "/admin/v1/operator-log?size=100").await.ok();
    let actions = page["content"].as_array().unwrap().iter().rev();
    let text = |action: &Value, field: &str| action[field].as_str().unwrap().to_owned();
    actions
        .filter(|action| action["target"].as_str().unwrap().starts_with("partition="))
        .map(|action| {
            let detail: Value = serde_json::from_str(action["detail"].as_str().unwrap()).unwrap();
            let outcome = text(&detail, "outcome");
            let [operator, what, target] = ["operator", "action", "target"].map(|field| text(action, field));
            (operator, what, target, action["status"].as_i64().unwrap(), outcome)
        })
        .collect()
}

#[tokio::test]
async fn recoveries_listed_newest_first_in_pages() {
    let test = TestApp::start().await;
    assert_eq!(
        get(&test, "/admin/v1/recoveries").await.ok(),
        json!({"content": [], "page": 0, "size": 20, "totalElements": 0})
    );
    let began_at = test.clock.now();
    let complete = Recovery {
        outcome: RecoveryOutcome::Complete,
        epoch: Some(2),
        noticed_at: began_at.plus(-500),
        ended_at: Some(began_at.plus(2_700)),
        ..recovery(1, began_at)
    };
    let withheld = Recovery {
        outcome: RecoveryOutcome::Withheld,
        withheld_units: 20,
        withheld_coupons: 3,
        attempts: 2,
        ended_at: Some(began_at.plus(9_000)),
        ..recovery(2, began_at.plus(1_000))
    };
    let unknown = Recovery {
        begun_by: BegunBy::Operator,
        missing_last_seq: None,
        silent: vec!["a".to_owned(), "b".to_owned()],
        ..Recovery { id: Uuid::now_v7().to_string(), ..withheld.clone() }
    };
    let running = Recovery { found_seq: None, ..recovery(0, began_at.plus(5_000)) };
    for recovery in [&withheld, &running, &complete, &unknown] {
        recoveries::write(&test.db, recovery).await.unwrap();
        // Written twice, listed once.
        recoveries::write(&test.db, recovery).await.unwrap();
    }
    let all = listed(&test).await;
    let ids: Vec<&str> = all.iter().map(|one| one["recoveryId"].as_str().unwrap()).collect();
    assert_eq!(ids, [&running.id, &unknown.id, &withheld.id, &complete.id]);
    for one in &all {
        fields(
            one,
            "recoveryId partition begunBy attempts reason outcome detail foundSeq acknowledgedSeq projectedSeq missingFirstSeq \
             missingLastSeq silentProcesses withheldUnits withheldCoupons step rowsDone rowsExpected etaSeconds epoch noticedAt beganAt endedAt seconds",
        );
    }
    let of = |one: &Value, names: &[&str]| names.iter().map(|name| one[name].clone()).collect::<Vec<_>>();
    let missing = ["missingFirstSeq", "missingLastSeq", "silentProcesses"];
    assert_eq!(of(&all[0], &missing), [json!(null), json!(null), json!([])]);
    assert_eq!(of(&all[1], &missing), [json!(10), json!(null), json!(["a", "b"])]);
    assert_eq!(of(&all[2], &missing), [json!(10), json!(12), json!([])]);
    assert_eq!(of(&all[3], &missing), [json!(null), json!(null), json!([])]);
    let ends = ["outcome", "foundSeq", "epoch", "beganAt", "endedAt", "seconds"];
    let began = after(&test, 5_000);
    assert_eq!(
        of(&all[0], &ends),
        [json!("RUNNING"), json!(null), json!(null), json!(began), json!(null), json!(null)]
    );
    let (began, ended) = (now(&test), after(&test, 2_700));
    assert_eq!(of(&all[3], &ends), [json!("COMPLETE"), json!(7), json!(2), json!(began), json!(ended), json!(3.2)]);
    let counts = ["begunBy", "attempts", "withheldUnits", "withheldCoupons", "acknowledgedSeq", "projectedSeq"];
    assert_eq!(of(&all[1], &counts), [json!("OPERATOR"), json!(2), json!(20), json!(3), json!(12), json!(9)]);

    let second = get(&test, "/admin/v1/recoveries?page=1&size=3").await.ok();
    assert_eq!(second, json!({"content": [all[3]], "page": 1, "size": 3, "totalElements": 4}));
    assert_eq!(get(&test, "/admin/v1/recoveries?page=2&size=3").await.ok()["content"], json!([]));
    for wrong in ["page=-1", "size=0", "size=101", "size=x", "partition=1", "limit=5"] {
        get(&test, &format!("/admin/v1/recoveries?{wrong}")).await.refused(400, "INVALID_REQUEST");
    }
    let url = format!("{}/admin/v1/recoveries", test.base);
    read(test.client.get(&url)).await.refused(401, "UNAUTHORIZED");
    read(test.client.get(&url).bearer_auth("wrong")).await.refused(401, "UNAUTHORIZED");
    post(&test, "/admin/v1/recoveries", json!({})).await.refused(405, "METHOD_NOT_ALLOWED");
    test.finish().await;
}

#[tokio::test]
async fn rebuild_by_hand_recorded_with_operator() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    test.user(5).await;
    test.drain().await;
    let only = RebuildOptions { partitions: Some([Partition(1)].into()), ..RebuildOptions::default() };
    rebuilt(&test, only).await;
    ready(&test).await;
    rebuilt(&test, RebuildOptions::default()).await;
    ready(&test).await;
    let all = listed(&test).await;
    let mut partitions: Vec<i64> = all.iter().map(|one| one["partition"].as_i64().unwrap()).collect();
    assert_eq!(partitions.pop(), Some(1));
    partitions.sort_unstable();
    assert_eq!(partitions, [0, 1, 2]);
    for one in &all {
        assert_eq!((&one["begunBy"], &one["outcome"]), (&json!("OPERATOR"), &json!("COMPLETE")), "{one}");
        assert_eq!(one["reason"], "an operator rebuilds the partition");
        assert_eq!((&one["withheldUnits"], &one["missingFirstSeq"]), (&json!(0), &json!(null)), "{one}");
        assert_eq!((&one["foundSeq"], &one["attempts"]), (&one["projectedSeq"], &json!(1)), "{one}");
    }
    let logged = entries(&test).await;
    assert_eq!(logged.len(), 4, "{logged:?}");
    let by_hand = |partition: u16| {
        let target = format!("partition={partition}");
        ("command-line".to_owned(), "firstcome rebuild".to_owned(), target, 200, "COMPLETE".to_owned())
    };
    assert_eq!(logged[0], by_hand(1));
    assert!((0..3).all(|partition| logged[1..].contains(&by_hand(partition))), "{logged:?}");
    test.finish().await;
}

/// What Redis lost without a trace is withheld, and its number is unknown.
#[tokio::test]
async fn rebuild_by_hand_recorded_with_what_it_withheld() {
    let test = TestApp::start().await;
    test.product(10, 30).await;
    test.campaign("FIXED", 10, 4).await;
    test.drain().await;
    test.flush_redis().await;
    rebuilt(&test, RebuildOptions::default()).await;
    ready(&test).await;
    let all = listed(&test).await;
    assert_eq!(all.len(), 1, "{all:?}");
    let of = |field: &str| all[0][field].clone();
    assert_eq!((of("outcome"), of("foundSeq")), (json!("WITHHELD"), json!(null)));
    assert_eq!(of("reason"), "Redis has lost the partition");
    assert_eq!((of("withheldUnits"), of("withheldCoupons")), (json!(30), json!(4)));
    let first = of("projectedSeq").as_i64().unwrap() + 1;
    assert_eq!((of("missingFirstSeq"), of("missingLastSeq")), (json!(first), json!(null)));
    test.finish().await;
}

#[tokio::test]
async fn rebuild_by_hand_recorded_when_refused() {
    let test = TestApp::with(Options { dead_letters: 1, ..Options::default() }).await;
    dead_letter(&test).await;
    let error = refused(&test, RebuildOptions::default()).await;
    ready(&test).await;
    rebuilt(&test, RebuildOptions { discard: true, ..RebuildOptions::default() }).await;
    ready(&test).await;
    let all = listed(&test).await;
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!((&all[1]["outcome"], &all[1]["detail"]), (&json!("FAILED"), &json!(error)));
    assert_eq!((&all[0]["outcome"], &all[0]["detail"]), (&json!("WITHHELD"), &json!("")));
    let outcomes: Vec<(i64, String)> = entries(&test).await.into_iter().map(|one| (one.3, one.4)).collect();
    assert_eq!(outcomes, [(503, "FAILED".to_owned()), (200, "WITHHELD".to_owned())]);
    test.finish().await;
}

/// A decision that PostgreSQL refuses.
async fn dead_letter(test: &TestApp) {
    let user = test.user(0).await;
    test.drain().await;
    test.sql("ALTER TABLE balance_entries ADD CONSTRAINT no_sevens CHECK (amount <> 7)").await;
    test.put_charge(user, 7).await.ok();
    test.drain().await;
}

/// A process repeats what failed: the attempts are one recovery, and the same failure is logged once.
#[tokio::test]
async fn failed_recovery_repeated_in_one_row() {
    let test = TestApp::with(Options { dead_letters: 1, ..Options::default() }).await;
    dead_letter(&test).await;
    let noticed_at = test.clock.now();
    let attempt = async |discard: bool| {
        let rebuild = test.rebuild().await;
        let lock = progress::Lock::take(&rebuild.db).await.unwrap();
        let noticed = NoticedLoss { reason: "lost".to_owned(), silent: vec!["p".to_owned()], at: noticed_at };
        let cause = RebuildCause { begun_by: BegunBy::Service, noticed: [(Partition(0), noticed)].into() };
        let options = RebuildOptions { discard, lost_at_most: LossBounds::Unknown, partitions: None };
        let recovered = rebuild.clone().run_holding(&lock, options, cause).await;
        drop(lock);
        rebuild.db.close().await.unwrap();
        recovered.map(drop)
    };
    test.clock.advance(1_000);
    attempt(false).await.unwrap_err();
    test.clock.advance(10_000);
    attempt(false).await.unwrap_err();
    test.clock.advance(10_000);
    attempt(true).await.unwrap();
    ready(&test).await;
    let all = listed(&test).await;
    assert_eq!(all.len(), 1, "{all:?}");
    let of = |field: &str| all[0][field].clone();
    assert_eq!((of("attempts"), of("outcome"), of("begunBy")), (json!(3), json!("WITHHELD"), json!("SERVICE")));
    assert_eq!((of("reason"), of("silentProcesses"), of("seconds")), (json!("lost"), json!(["p"]), json!(21.0)));
    let logged = entries(&test).await;
    let entry = |status: i64, outcome: &str| {
        ("firstcome".to_owned(), "recovery".to_owned(), "partition=0".to_owned(), status, outcome.to_owned())
    };
    assert_eq!(logged, [entry(503, "FAILED"), entry(200, "WITHHELD")]);
    test.finish().await;
}

#[tokio::test]
async fn recovery_at_start_recorded_with_service() {
    let test = TestApp::start().await;
    test.user(5).await;
    test.drain().await;
    // As a process left it that was killed.
    let killed = recovery(0, test.clock.now());
    recoveries::write(&test.db, &killed).await.unwrap();
    test.flush_redis().await;
    let second = test.open_instance(&test.options).await.unwrap();
    ready(&test).await;
    let all = listed(&test).await;
    assert_eq!(all.len(), 1, "{all:?}");
    let of = |field: &str| all[0][field].clone();
    assert_eq!((of("recoveryId"), of("attempts"), of("begunBy")), (json!(killed.id), json!(2), json!("SERVICE")));
    assert_eq!((of("outcome"), of("epoch")), (json!("WITHHELD"), json!(2)));
    second.stop(None).await;
    test.finish().await;
}

/// Its partition decides, so that no later recovery continues it.
#[tokio::test]
async fn interrupted_recovery_ended_at_next_start() {
    let test = TestApp::start().await;
    recoveries::write(&test.db, &recovery(0, test.clock.now())).await.unwrap();
    let second = test.open_instance(&test.options).await.unwrap();
    let all = listed(&test).await;
    assert_eq!((all.len(), &all[0]["outcome"], &all[0]["endedAt"]), (1, &json!("FAILED"), &json!(now(&test))));
    assert_eq!(all[0]["detail"], "the process that recovered the partition ended before");
    second.stop(None).await;
    test.finish().await;
}
