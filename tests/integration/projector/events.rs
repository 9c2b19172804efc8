//! The events of other systems: every decision is one, in the order of its partition; a reader with a cursor gets each once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use firstcome::{model::DeadLetterId, postgres::progress, projector::dead_letters::Retried};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    projector::{
        dead_letters::{all_dead_letters, make_applicable, make_dead_letters, retry},
        projection::busy_day,
    },
    recovery::restored_postgres::{back_up, restore},
    support::{
        api_kit::get,
        harness::{Options, TestApp, until},
    },
};

const DAY_MS: i64 = 86_400_000;

/// Reads pages until there are no more. Returns the events and the cursor at the end.
async fn read_all(test: &TestApp, mut cursor: Option<String>, query: &str) -> (Vec<Value>, String) {
    let mut events = Vec::new();
    loop {
        let after = cursor.as_ref().map(|cursor| format!("&after={cursor}")).unwrap_or_default();
        let page = get(test, &format!("/admin/v1/events?{query}{after}")).await.ok();
        events.extend(page["events"].as_array().unwrap().clone());
        let next = page["next"].as_str().unwrap().to_owned();
        if page["more"] == false {
            return (events, next);
        }
        assert_ne!(cursor.as_ref(), Some(&next), "a reader makes progress");
        cursor = Some(next);
    }
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// The seqs of the events by partition, in their order.
fn seqs(events: &[Value]) -> BTreeMap<i64, Vec<i64>> {
    let mut seqs: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for event in events {
        let id: Vec<i64> = event["id"].as_str().unwrap().split('-').map(|part| part.parse().unwrap()).collect();
        assert_eq!(event["partition"], id[1], "{event}");
        seqs.entry(id[1]).or_default().push(id[2]);
    }
    seqs
}

#[tokio::test]
async fn events_gapless_in_order_for_any_page_size() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    busy_day(&test).await;
    test.drain().await;
    let (all, end) = read_all(&test, None, "limit=1000").await;
    let seqs = seqs(&all);
    for (partition, seqs) in &seqs {
        let decided = test.store.position(firstcome::model::Partition(*partition as u16)).await.unwrap().seq;
        assert_eq!(*seqs, (1..=decided).collect::<Vec<_>>(), "partition {partition}");
    }
    assert_eq!(seqs.len(), 3);
    for limit in [1, 7, 100] {
        let (pages, at_end) = read_all(&test, None, &format!("limit={limit}")).await;
        assert_eq!(ids(&pages).into_iter().collect::<BTreeSet<_>>(), ids(&all).into_iter().collect());
        assert_eq!((pages.len(), self::seqs(&pages)), (all.len(), seqs.clone()), "limit {limit}");
        assert_eq!(at_end.split_once('~').unwrap().1, end.split_once('~').unwrap().1);
    }
    // Only some types, one at a time: the order is kept.
    let wanted = ["order.paid", "coupon.issued"];
    let (some, _) = read_all(&test, None, "limit=1&types=order.paid,coupon.issued").await;
    let expected: BTreeSet<String> =
        ids(&all.iter().filter(|event| wanted.contains(&event["type"].as_str().unwrap())).cloned().collect::<Vec<_>>())
            .into_iter()
            .collect();
    assert_eq!(ids(&some).into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(some.len(), expected.len());
    assert!(self::seqs(&some).values().all(|seqs| seqs.is_sorted()));
    // Nothing new; then one decision.
    assert_eq!(read_all(&test, Some(end.clone()), "limit=9").await, (Vec::new(), end.clone()));
    let latest = get(&test, "/admin/v1/events?after=latest").await.ok()["next"].as_str().unwrap().to_owned();
    let user = test.user(0).await;
    test.put_charge(user, 5).await.ok();
    test.drain().await;
    for cursor in [end, latest] {
        let (new, _) = read_all(&test, Some(cursor), "types=balance.charged").await;
        assert_eq!(new.len(), 1, "{new:?}");
        assert_eq!(
            (&new[0]["type"], &new[0]["subject"], &new[0]["data"]),
            (
                &json!("balance.charged"),
                &json!(format!("users/{user}")),
                &json!({"userId": user, "amount": 5, "beforeBalance": 0, "afterBalance": 5, "entryNo": 1})
            )
        );
    }
    test.finish().await;
}

#[tokio::test]
async fn events_free_of_names_and_reasons() {
    let test = TestApp::start().await;
    busy_day(&test).await;
    let named = json!({"userName": "홍길동의 이름", "balance": 100});
    let user = test.post("/admin/v1/users", named).await.created()["userId"].as_i64().unwrap();
    let product = test.product(7, 5).await;
    let order = test.place(user, product, 1).await;
    test.pay(order, user, "CARD", 7).await.ok();
    test.refund(order, json!({"reason": "홍길동의 사정"})).await.ok();
    test.drain().await;
    let (all, _) = read_all(&test, None, "").await;
    let text = serde_json::to_string(&all).unwrap();
    for private in ["홍길동", "손님", "반품", "착용"] {
        assert!(!text.contains(private), "{private}");
    }
    assert!(text.contains("\"byOperator\":true"));
    test.finish().await;
}

#[tokio::test]
async fn dead_letter_is_event_once_when_applied() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    busy_day(&test).await;
    make_dead_letters(&test, |place, _| place % 5 == 2).await;
    test.drain().await;
    let (timely, end) = read_all(&test, None, "limit=11").await;
    let dead = all_dead_letters(&test).await;
    make_applicable(&test).await;
    for _ in 0..100 {
        for dead_letter in all_dead_letters(&test).await {
            retry(&test, &dead_letter).await;
        }
    }
    assert!(all_dead_letters(&test).await.is_empty());
    // A reader that was at the end gets them, each with the id of its decision.
    let (late, _) = read_all(&test, Some(end), "limit=2").await;
    let expected: BTreeSet<String> = dead.iter().map(|it| format!("1-{}-{}", it["partition"], it["seq"])).collect();
    assert_eq!(ids(&late).into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(late.len(), expected.len());
    let (all, _) = read_all(&test, None, "limit=11").await;
    assert_eq!(all.len(), timely.len() + late.len());
    let mut seqs = seqs(&all);
    for seqs in seqs.values_mut() {
        seqs.sort_unstable();
        assert_eq!(*seqs, (1..=seqs.len() as i64).collect::<Vec<_>>());
    }
    assert!(test.app.audit().run().await.unwrap().balanced);
    test.finish().await;
}

#[tokio::test]
async fn reader_refused_when_events_gone() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    test.put_charge(user, 1).await.ok();
    test.drain().await;
    let first = get(&test, "/admin/v1/events?limit=1").await.ok()["next"].as_str().unwrap().to_owned();
    let (_, end) = read_all(&test, None, "").await;
    test.clock.advance(20 * DAY_MS);
    test.put_charge(user, 2).await.ok();
    test.drain().await;
    test.app.projector.purge_events().await.unwrap();
    assert_eq!(read_all(&test, Some(first.clone()), "").await.0.len(), 2, "all are kept for 30 days");
    test.clock.advance(20 * DAY_MS);
    test.app.projector.purge_events().await.unwrap();
    get(&test, &format!("/admin/v1/events?after={first}")).await.refused(410, "EVENTS_EXPIRED");
    // A reader that had them goes on, and a new one begins with what is left.
    let (left, _) = read_all(&test, Some(end), "").await;
    assert_eq!((left.len(), &left[0]["data"]["amount"]), (1, &json!(2)));
    assert_eq!(read_all(&test, None, "").await.0, left);
    assert!(test.app.audit().run().await.unwrap().balanced);
    test.clock.advance(40 * DAY_MS);
    test.app.projector.purge_events().await.unwrap();
    assert_eq!(read_all(&test, None, "").await.0, Vec::<Value>::new());
    test.finish().await;
}

#[tokio::test]
async fn reader_refused_when_events_were_off() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    test.drain().await;
    let (_, cursor) = read_all(&test, None, "").await;
    let off = test.open_instance(&Options { events_keep_days: 0, ..test.options.clone() }).await.unwrap();
    test.put_charge(user, 1).await.ok();
    off.projector.drain().await.unwrap();
    test.put_charge(user, 2).await.ok();
    test.drain().await;
    get(&test, &format!("/admin/v1/events?after={cursor}")).await.refused(410, "EVENTS_EXPIRED");
    let (left, _) = read_all(&test, None, "").await;
    assert_eq!((left.len(), &left[0]["data"]["amount"]), (1, &json!(2)));
    assert!(test.app.audit().run().await.unwrap().balanced);
    off.db.close().await.unwrap();
    test.finish().await;

    let test = TestApp::with(Options { events_keep_days: 0, ..Options::default() }).await;
    test.user(0).await;
    test.drain().await;
    get(&test, "/admin/v1/events").await.refused(409, "EVENTS_OFF");
    let events: i64 = sqlx::query_scalar("SELECT count(*) FROM events")
        .fetch_one(test.db.get_postgres_connection_pool())
        .await
        .unwrap();
    assert_eq!(events, 0);
    test.finish().await;
}

/// Makes these charges of a new user dead letters, the newest decisions, which can be applied.
async fn dead_charges<const N: usize>(test: &TestApp, user: i64, amounts: [i64; N]) -> [DeadLetterId; N] {
    for amount in amounts {
        test.put_charge(user, amount).await.ok();
    }
    assert_eq!(make_dead_letters(test, |_, kind| kind == "balance_charged").await, N);
    test.drain().await;
    make_applicable(test).await;
    let dead = all_dead_letters(test).await;
    amounts.map(|amount| {
        let dead = dead.iter().find(|dead| dead["fields"]["amount"] == json!(amount.to_string())).unwrap();
        let stream_id = dead["streamId"].as_str().unwrap().to_owned();
        DeadLetterId { partition: 0, stream_id, seq: dead["seq"].as_i64() }
    })
}

#[tokio::test]
async fn reader_passes_dead_letter_when_newest() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    let [dead] = dead_charges(&test, user, [2]).await;
    let (events, end) = read_all(&test, None, "").await;
    assert_eq!((events.len(), end.as_str()), (1, "0~1-2"));
    assert_eq!(read_all(&test, Some(end.clone()), "limit=1").await, (Vec::new(), end.clone()));
    assert_eq!(test.app.projector.retry(&dead).await.unwrap(), Retried::Applied);
    assert_eq!(ids(&read_all(&test, Some(end), "").await.0), ["1-0-2"]);
    test.finish().await;
}

#[tokio::test]
async fn reader_refused_when_dead_letter_applied_while_events_off() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    let [dead] = dead_charges(&test, user, [2]).await;
    let (_, cursor) = read_all(&test, None, "").await;
    let off = test.open_instance(&Options { events_keep_days: 0, ..test.options.clone() }).await.unwrap();
    assert_eq!(off.projector.retry(&dead).await.unwrap(), Retried::Applied);
    get(&test, &format!("/admin/v1/events?after={cursor}")).await.refused(410, "EVENTS_EXPIRED");
    let latest = get(&test, "/admin/v1/events?after=latest").await.ok()["next"].as_str().unwrap().to_owned();
    test.put_charge(user, 3).await.ok();
    test.drain().await;
    get(&test, &format!("/admin/v1/events?after={cursor}")).await.refused(410, "EVENTS_EXPIRED");
    assert_eq!(ids(&read_all(&test, Some(latest), "").await.0), ["1-0-3"]);
    assert!(test.app.audit().run().await.unwrap().balanced);
    off.db.close().await.unwrap();
    test.finish().await;
}

/// The standby that took over lacks the application of one dead letter, and a decision that a reader has.
#[tokio::test]
async fn dead_letter_reaches_reader_when_failover_loses_application() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    let [first, second] = dead_charges(&test, user, [2, 3]).await;
    let backup = back_up(&test).await;
    until("PostgreSQL answers", async || test.app.projector.drain().await.ok()).await;
    test.put_charge(user, 4).await.ok();
    test.drain().await;
    assert_eq!(test.app.projector.retry(&first).await.unwrap(), Retried::Applied);
    let (events, cursor) = read_all(&test, None, "").await;
    assert_eq!(ids(&events), ["1-0-1", "1-0-4", "1-0-2"]);
    restore(&test, backup).await;
    until("PostgreSQL answers", async || progress::projected(&test.db).await.ok()).await;
    let late: i64 = cursor.rsplit_once('-').unwrap().1.parse().unwrap();
    until("a second has gone by", async || {
        let sql = "SELECT (extract(epoch FROM now()) - 1577836800)::bigint";
        let seconds: i64 = sqlx::query_scalar(sql).fetch_one(test.db.get_postgres_connection_pool()).await.unwrap();
        (seconds > late + 1).then_some(())
    })
    .await;
    // The retry waits for the decision that is projected again.
    let (applied, drained) = tokio::join!(test.app.projector.retry(&second), test.app.projector.drain());
    drained.unwrap();
    assert_eq!(applied.unwrap(), Retried::Applied);
    let (events, cursor) = read_all(&test, Some(cursor), "").await;
    assert_eq!(ids(&events), ["1-0-3"]);
    assert_eq!(test.app.projector.retry(&first).await.unwrap(), Retried::Applied);
    assert_eq!(ids(&read_all(&test, Some(cursor), "").await.0), ["1-0-2"], "again, with the same id");
    test.finish().await;
}

/// The clock of the decisions runs ahead for a while, and is right again.
#[tokio::test]
async fn event_kept_when_clock_was_ahead() {
    let test = TestApp::start().await;
    let user = test.user(0).await;
    for days in [8, 100] {
        test.clock.advance(days * DAY_MS);
        test.put_charge(user, 1).await.ok();
        test.drain().await;
        test.clock.advance(-days * DAY_MS);
        test.app.projector.purge_events().await.unwrap();
    }
    assert_eq!(ids(&read_all(&test, None, "").await.0), ["1-0-1", "1-0-2", "1-0-3"]);
    test.clock.advance(140 * DAY_MS);
    test.app.projector.purge_events().await.unwrap();
    assert_eq!(read_all(&test, None, "").await.0, Vec::<Value>::new());
    test.finish().await;
}

#[tokio::test]
async fn reader_waits_for_next_event() {
    let test = TestApp::with(Options { project: true, ..Options::default() }).await;
    let latest = get(&test, "/admin/v1/events?after=latest").await.ok()["next"].as_str().unwrap().to_owned();
    let path = format!("/admin/v1/events?after={latest}&types=user.created&wait=30");
    let (page, user) = tokio::join!(get(&test, &path), test.user(0));
    assert_eq!(page.ok()["events"][0]["data"]["firstUserId"], user);
    test.finish().await;
}

#[tokio::test]
async fn readers_beyond_bound_answered_without_wait() {
    let test = TestApp::with(Options { project: true, ..Options::default() }).await;
    let latest = get(&test, "/admin/v1/events?after=latest").await.ok()["next"].as_str().unwrap().to_owned();
    let path = format!("/admin/v1/events?after={latest}&wait=30");
    let mut readers = FuturesUnordered::new();
    for ended in [36, 100] {
        readers.extend((0..100).map(|_| get(&test, &path)));
        for _ in 0..ended {
            let page = timeout(Duration::from_secs(20), readers.next()).await.expect("it does not wait").unwrap();
            assert_eq!(page.ok(), json!({"events": [], "next": latest, "more": false}));
        }
    }
    get(&test, "/admin/v1/webhooks").await.ok();
    test.user(0).await;
    assert_eq!(readers.len(), 64);
    while let Some(page) = readers.next().await {
        assert_eq!(page.ok()["events"].as_array().unwrap().len(), 1);
    }
    drop(readers);
    test.finish().await;
}

#[tokio::test]
async fn reader_waits_a_moment_when_process_stops() {
    let test = TestApp::start().await;
    test.app.stopping.cancel();
    let began = Instant::now();
    let page = get(&test, "/admin/v1/events?after=latest&wait=30").await.ok();
    assert_eq!(page["events"], json!([]));
    assert!((1..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    test.finish().await;
}

#[tokio::test]
async fn event_query_refused_when_invalid() {
    let test = TestApp::with(Options { partitions: 3, ..Options::default() }).await;
    for query in [
        "limit=0",
        "limit=1001",
        "wait=31",
        "wait=-1",
        "after=",
        "after=x",
        "after=0~1-1",
        "after=3~1-1_1-1_1-1",
        "types=",
        "types=order.lost",
        "types=order.paid,",
        "type=order.paid",
    ] {
        get(&test, &format!("/admin/v1/events?{query}")).await.refused(400, "INVALID_REQUEST");
    }
    test.finish().await;
}
