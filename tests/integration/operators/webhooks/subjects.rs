//! What one subject, or one refused event, does to the others, and which receivers are down.

use super::*;

fn user_of(request: &Received) -> i64 {
    request.event["data"]["userId"].as_i64().unwrap()
}

#[tokio::test]
async fn refused_event_delays_no_other_subject() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    let bad = charges(&test, 1).await[0];
    receiver.answers(move |request| if user_of(request) == bad { 422 } else { 204 });
    send_due(&test).await;
    assert_eq!(receiver.take().len(), 1);
    let good = charges(&test, 1).await;
    send_due(&test).await;
    assert_eq!(receiver.take().iter().map(user_of).collect::<Vec<_>>(), good);
    let log = deliveries(&test, id, "limit=1").await;
    assert_eq!(log[0]["attempt"], 1, "{log:?}");
    test.finish().await;
}

/// Events that were refused before, and are due again, say nothing of a receiver, and hide nothing either.
#[tokio::test]
async fn dead_receiver_is_down_when_many_events_are_due_again() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    let users = charges(&test, 40).await;
    let refused: BTreeSet<i64> = users.into_iter().step_by(2).collect();
    receiver.answers(move |request| if refused.contains(&user_of(request)) { 422 } else { 204 });
    send_due(&test).await;
    let state = shown(&test, id).await;
    assert_eq!((&state["retries"], &state["failingSince"]), (&json!(20), &Value::Null));
    receiver.take();
    receiver.answers(|_| 503);
    let waiting = charges(&test, 30).await;
    test.clock.advance(5_000);
    send_due(&test).await;
    let state = shown(&test, id).await;
    assert_eq!(state["retries"], 20, "no rows for a receiver that is down");
    assert_ne!(state["failingSince"], Value::Null);
    receiver.take();
    for _ in 0..6 {
        test.clock.advance(600_000);
        send_due(&test).await;
        let sent = receiver.take().len();
        assert!((1..=16).contains(&sent), "{sent} requests to a receiver that is down");
        assert_eq!(shown(&test, id).await["failingSince"], state["failingSince"]);
    }
    receiver.answers(|_| 204);
    test.clock.advance(86_400_000);
    send_due(&test).await;
    let received: BTreeSet<i64> = receiver.take().iter().map(user_of).collect();
    assert!(waiting.iter().all(|user| received.contains(user)));
    assert_eq!(shown(&test, id).await["retries"], 0);
    test.finish().await;
}

/// A subject whose events take long holds up the others for one request at most.
#[tokio::test]
async fn slow_subject_delays_no_other_subject() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    webhook(&test, &receiver, &["balance.charged"]).await;
    let slow = charges_of_one(&test, 4).await;
    let sending = hanging_round(&test, &receiver, 1).await;
    let quick = charges(&test, 1).await[0];
    test.clock.advance(2_000);
    receiver.release();
    sending.await.unwrap();
    send_due(&test).await;
    let received = receiver.take();
    let users: Vec<i64> = received.iter().map(user_of).collect();
    let place = users.iter().position(|user| *user == quick).unwrap();
    assert!(users.len() == 5 && place <= 2, "{slow} is slow, {quick} waits: {users:?}");
    assert_ordered(&received);
    test.finish().await;
}

#[tokio::test]
async fn webhook_goes_on_when_clock_goes_back() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    webhook(&test, &receiver, &["balance.charged"]).await;
    for _ in 0..2 {
        let users = charges(&test, 1).await;
        send_due(&test).await;
        assert_eq!(receiver.take().iter().map(user_of).collect::<Vec<_>>(), users);
        test.clock.advance(-3_600_000);
    }
    test.finish().await;
}

/// An event that is sent again on request, and fails as a new one too, still holds up those of its subject.
#[tokio::test]
async fn subject_keeps_order_when_its_event_is_resent() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    let users = charges(&test, 20).await;
    receiver.answers(|_| 503);
    send_due(&test).await;
    assert_eq!(shown(&test, id).await["retries"], 0, "the receiver is down");
    let user = users[0];
    let first = receiver.take().into_iter().find(|request| user_of(request) == user).unwrap().id;
    let path = format!("/admin/v1/webhooks/{id}/resend");
    assert_eq!(post(&test, &path, json!({"eventId": first})).await.status, 204);
    let failing = first.clone();
    receiver.answers(move |request| if request.id == failing { 500 } else { 204 });
    test.put_charge(user, 1).await.ok();
    test.drain().await;
    test.clock.advance(600_000);
    send_due(&test).await;
    let of_user = |received: Vec<Received>| -> Vec<String> {
        received.into_iter().filter(|request| user_of(request) == user).map(|request| request.id).collect()
    };
    let received = of_user(receiver.take());
    assert!(received.iter().all(|event| *event == first), "the second one waits: {received:?}");
    // The first one, the same that was resent, and the second one.
    assert_eq!(shown(&test, id).await["retries"], 3);
    receiver.answers(|_| 204);
    test.clock.advance(600_000);
    send_due(&test).await;
    let received = of_user(receiver.take());
    assert!(received.len() == 3 && received[2] != first, "{received:?}");
    assert_eq!(shown(&test, id).await["retries"], 0);
    test.finish().await;
}

#[tokio::test]
async fn held_event_sent_at_once_when_operator_asks() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["order.placed", "order.paid"]).await;
    let (user, product) = (test.user(1_000).await, test.product(10, 50).await);
    let order = test.place(user, product, 1).await;
    test.pay(order, user, "CARD", 10).await.ok();
    test.drain().await;
    receiver.answers(|request| if request.kind() == "order.placed" { 500 } else { 204 });
    send_due(&test).await;
    assert_eq!(receiver.take().len(), 1);
    let events = get(&test, "/admin/v1/events?types=order.paid").await.ok();
    let paid = events["events"][0]["id"].as_str().unwrap();
    let path = format!("/admin/v1/webhooks/{id}/resend");
    assert_eq!(post(&test, &path, json!({"eventId": paid})).await.status, 204);
    send_due(&test).await;
    assert_eq!(receiver.take().iter().map(|request| request.id.as_str()).collect::<Vec<_>>(), [paid]);
    test.finish().await;
}
