//! Receivers that fail.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use firstcome::config::WebhookConfig;

use super::*;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

#[tokio::test]
async fn failed_event_delays_only_its_subject() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["order.placed", "order.paid", "order.closed"]).await;
    let (user, product) = (test.user(1_000).await, test.product(10, 50).await);
    let (bad, good) = (test.place(user, product, 1).await, test.place(user, product, 2).await);
    test.pay(bad, user, "CARD", 10).await.ok();
    test.pay(good, user, "CARD", 20).await.ok();
    test.drain().await;
    let fails = Arc::new(AtomicBool::new(true));
    let (failing, subject) = (fails.clone(), format!("orders/{bad}"));
    receiver
        .answers(move |request| if request.subject() == subject && failing.load(Ordering::SeqCst) { 500 } else { 200 });
    send_due(&test).await;
    let kinds = |received: Vec<Received>, order: i64| -> Vec<String> {
        let of_order = received.iter().filter(|request| request.subject() == format!("orders/{order}"));
        of_order.map(|request| request.kind().to_owned()).collect()
    };
    let received = receiver.take();
    assert_eq!(kinds(received.clone(), good), ["order.placed", "order.paid"]);
    assert_eq!(kinds(received, bad), ["order.placed"], "the payment waits for the order");
    assert_eq!(shown(&test, id).await["retries"], 2);
    // A later event of the order waits too; others do not.
    test.cancel(bad, user).await.ok();
    test.cancel(good, user).await.ok();
    test.drain().await;
    send_due(&test).await;
    let received = receiver.take();
    assert_eq!((kinds(received.clone(), good), kinds(received, bad)), (vec!["order.closed".to_owned()], vec![]));
    // Tried again after growing pauses.
    for (pause, attempts) in [(4_999, 0), (1, 1), (29_999, 0), (1, 1), (MINUTE_MS, 0), (MINUTE_MS, 1)] {
        test.clock.advance(pause);
        send_due(&test).await;
        assert_eq!(kinds(receiver.take(), bad).len(), attempts, "after {pause}");
    }
    fails.store(false, Ordering::SeqCst);
    test.clock.advance(DAY_MS);
    send_due(&test).await;
    assert_eq!(kinds(receiver.take(), bad), ["order.placed", "order.paid", "order.closed"]);
    let log = deliveries(&test, id, "limit=100").await;
    let attempts = |event: &str| -> Vec<i64> {
        let of_event = log.iter().rev().filter(|delivery| delivery["eventId"] == event);
        of_event.map(|delivery| delivery["attempt"].as_i64().unwrap()).collect()
    };
    let failed = deliveries(&test, id, "failed=true").await;
    assert_eq!(failed.len(), 4);
    assert_eq!(attempts(failed[0]["eventId"].as_str().unwrap()), [1, 2, 3, 4, 5]);
    assert_eq!((&failed[0]["status"], &failed[0]["failure"]), (&json!(500), &json!("rejected")));
    let state = shown(&test, id).await;
    assert_eq!((&state["retries"], &state["status"], &state["failingSince"]), (&json!(0), &json!("ON"), &Value::Null));
    test.finish().await;
}

#[tokio::test]
async fn dead_receiver_costs_little_and_is_switched_off_after_three_days() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    let users = charges(&test, 200).await;
    receiver.answers(|_| 503);
    send_due(&test).await;
    let first = receiver.take().len();
    assert!((16..=80).contains(&first), "{first} requests to a receiver that is down");
    let state = shown(&test, id).await;
    assert_eq!((&state["retries"], &state["status"]), (&json!(0), &json!("ON")), "{state}");
    assert_ne!(state["failingSince"], Value::Null);
    send_due(&test).await;
    assert!(receiver.take().is_empty(), "it is left alone for a while");
    let (mut rounds, mut off) = (0, false);
    while !off {
        test.clock.advance(10 * MINUTE_MS);
        send_due(&test).await;
        assert!(receiver.take().len() <= 8);
        (rounds, off) = (rounds + 1, shown(&test, id).await["status"] == "FAILED");
    }
    assert_eq!(rounds, 3 * 24 * 6, "three days");
    test.clock.advance(DAY_MS);
    send_due(&test).await;
    assert!(receiver.take().is_empty(), "it is off");
    // Nothing is lost for it.
    receiver.answers(|_| 204);
    let on = patch(&test, &format!("/admin/v1/webhooks/{id}"), json!({"enabled": true})).await.ok();
    assert_eq!((&on["status"], &on["failingSince"]), (&json!("ON"), &Value::Null));
    send_due(&test).await;
    let received = receiver.take();
    assert_eq!(received.len(), users.len());
    let got: BTreeSet<i64> = received.iter().map(|request| request.event["data"]["userId"].as_i64().unwrap()).collect();
    assert_eq!(got, users.into_iter().collect());
    test.finish().await;
}

/// An event that a receiver never takes ends the webhook after three days, although it takes the others.
#[tokio::test]
async fn refused_event_switches_off_after_three_days() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    let users = charges(&test, 3).await;
    let bad = users[1];
    receiver.answers(move |request| if request.event["data"]["userId"] == bad { 422 } else { 202 });
    for _ in 0..3 * 24 {
        send_due(&test).await;
        assert_eq!(shown(&test, id).await["status"], "ON");
        test.clock.advance(60 * MINUTE_MS);
    }
    assert!(receiver.take().len() < 40);
    test.clock.advance(5 * 60 * MINUTE_MS);
    send_due(&test).await;
    assert_eq!(shown(&test, id).await["status"], "FAILED");
    test.finish().await;
}

#[tokio::test]
async fn receiver_that_is_gone_switched_off_at_once() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["*"]).await;
    charges(&test, 1).await;
    receiver.answers(|_| 410);
    send_due(&test).await;
    assert_eq!(shown(&test, id).await["status"], "FAILED");
    test.finish().await;
}

#[tokio::test]
async fn redirect_is_failure_and_not_followed() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    charges(&test, 1).await;
    receiver.answers(|_| 307);
    send_due(&test).await;
    assert_eq!(receiver.take().len(), 1);
    let failed = deliveries(&test, id, "failed=true").await;
    assert_eq!((&failed[0]["status"], &failed[0]["failure"]), (&json!(307), &json!("rejected")));
    test.finish().await;
}

/// The address is checked when a name is resolved for a connection, whatever it was when the webhook was created.
#[tokio::test]
async fn private_address_refused_at_connection() {
    let test = TestApp::with(Options { webhooks: WebhookConfig::default(), ..Options::default() }).await;
    let receiver = Receiver::start().await;
    let url = "https://localhost:1/hook";
    let body = json!({"url": url, "types": ["balance.charged"]});
    let id = post(&test, "/admin/v1/webhooks", body).await.created()["webhookId"].as_i64().unwrap();
    charges(&test, 1).await;
    send_due(&test).await;
    // Admitted under other settings, or changed in the database.
    for url in [receiver.url.as_str(), "https://169.254.169.254/latest/meta-data"] {
        test.sql(&format!("UPDATE webhooks SET url = '{url}'")).await;
        test.clock.advance(DAY_MS / 2);
        send_due(&test).await;
    }
    let failed = deliveries(&test, id, "failed=true").await;
    assert_eq!(failed.len(), 3);
    assert!(failed.iter().all(|delivery| delivery["failure"] == "refused_address"), "{failed:?}");
    assert!(receiver.take().is_empty());
    test.finish().await;
}

#[tokio::test]
async fn hanging_receiver_delays_no_other_and_not_the_projection() {
    let test = TestApp::with(Options { project: true, ..Options::default() }).await;
    let (hanging, quick) = (Receiver::start().await, Receiver::start().await);
    hanging.hangs(true);
    webhook(&test, &hanging, &["*"]).await;
    webhook(&test, &quick, &["balance.charged"]).await;
    let user = test.user(0).await;
    until("the receiver hangs", async || (!hanging.received().is_empty()).then_some(())).await;
    for _ in 0..20 {
        test.put_charge(user, 1).await.ok();
    }
    until("the other gets every event", async || (quick.received().len() == 20).then_some(())).await;
    assert_ordered(&quick.received());
    test.finish().await;
}

#[tokio::test]
async fn event_sent_again_when_operator_asks() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    charges(&test, 2).await;
    send_due(&test).await;
    let sent = receiver.take();
    let path = format!("/admin/v1/webhooks/{id}/resend");
    let resend = async |event: &str| assert_eq!(post(&test, &path, json!({"eventId": event})).await.status, 204);
    resend(&sent[0].id).await;
    send_due(&test).await;
    let again = receiver.take();
    assert_eq!((again.len(), &again[0].body), (1, &sent[0].body));
    let log = deliveries(&test, id, "limit=1").await;
    assert_eq!((&log[0]["eventId"], &log[0]["resent"]), (&json!(sent[0].id), &json!(true)));
    assert_eq!(shown(&test, id).await["retries"], 0);
    // One that fails is tried again, and holds up no other.
    receiver.answers(|_| 500);
    resend(&sent[1].id).await;
    send_due(&test).await;
    receiver.answers(|_| 200);
    charges(&test, 1).await;
    send_due(&test).await;
    assert_eq!(receiver.take().len(), 2);
    test.clock.advance(5_000);
    send_due(&test).await;
    assert_eq!(receiver.take().len(), 1);
    test.finish().await;
}

/// A webhook that was off for longer than events are kept goes on with what is left.
#[tokio::test]
async fn webhook_goes_on_when_events_are_gone() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    let path = format!("/admin/v1/webhooks/{id}");
    patch(&test, &path, json!({"enabled": false})).await.ok();
    charges(&test, 2).await;
    test.clock.advance(50 * DAY_MS);
    charges(&test, 1).await;
    test.app.projector.purge_events().await.unwrap();
    patch(&test, &path, json!({"enabled": true})).await.ok();
    send_due(&test).await;
    assert_eq!(receiver.take().len(), 1);
    test.finish().await;
}
