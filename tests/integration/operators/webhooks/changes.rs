//! What operators change, and a stop, while a round is under way.

use super::*;

async fn leased_until(test: &TestApp) -> String {
    let sql = "SELECT leased_until::text FROM webhooks";
    sqlx::query_scalar(sql).fetch_one(test.app.db.get_postgres_connection_pool()).await.unwrap()
}

#[tokio::test]
async fn round_uses_new_url_and_secret_when_changed_meanwhile() {
    let test = TestApp::start().await;
    let (old, new) = (Receiver::start().await, Receiver::start().await);
    let (id, leaked) = webhook(&test, &old, &["balance.charged"]).await;
    charges_of_one(&test, 4).await;
    let sending = hanging_round(&test, &old, 1).await;
    let path = format!("/admin/v1/webhooks/{id}");
    let rotated = post(&test, &format!("{path}/rotate"), json!({"validSeconds": 0})).await.ok();
    patch(&test, &path, json!({"url": new.url})).await.ok();
    let before = leased_until(&test).await;
    until("the lease is renewed", async || (leased_until(&test).await != before).then_some(())).await;
    let renewed = leased_until(&test).await;
    until("and once more", async || (leased_until(&test).await != renewed).then_some(())).await;
    old.release();
    sending.await.unwrap();
    assert_eq!((old.take().len(), new.received().len()), (1, 3));
    for request in new.take() {
        let secret = rotated["secret"].as_str().unwrap();
        assert!(request.is_signed_by(secret) && !request.is_signed_by(&leaked), "{request:?}");
    }
    test.finish().await;
}

#[tokio::test]
async fn round_says_nothing_of_webhook_that_was_changed_meanwhile() {
    let test = TestApp::start().await;
    let (gone, new) = (Receiver::start().await, Receiver::start().await);
    let (id, _) = webhook(&test, &gone, &["balance.charged"]).await;
    charges(&test, 1).await;
    gone.answers(|_| 410);
    let sending = hanging_round(&test, &gone, 1).await;
    let path = format!("/admin/v1/webhooks/{id}");
    patch(&test, &path, json!({"url": new.url, "enabled": true})).await.ok();
    gone.release();
    sending.await.unwrap();
    assert_eq!(shown(&test, id).await["status"], "ON");
    test.clock.advance(5_000);
    send_due(&test).await;
    assert_eq!(new.take().len(), 1);
    test.finish().await;
}

#[tokio::test]
async fn log_has_attempts_of_round_when_webhook_is_switched_off() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    charges_of_one(&test, 2).await;
    let sending = hanging_round(&test, &receiver, 1).await;
    let path = format!("/admin/v1/webhooks/{id}");
    patch(&test, &path, json!({"enabled": false})).await.ok();
    receiver.release();
    sending.await.unwrap();
    let (sent, log) = (receiver.take().len(), deliveries(&test, id, "limit=100").await);
    assert_eq!(log.len(), sent);
    // Whether the round noticed before its second event or after it, the webhook gets each once.
    patch(&test, &path, json!({"enabled": true})).await.ok();
    send_due(&test).await;
    assert_eq!(sent + receiver.take().len(), 2);
    test.finish().await;
}

/// While PostgreSQL does not answer, a round begins no request once half of its lease is over. Another process sends the rest, in order.
#[tokio::test]
async fn round_begins_nothing_more_when_its_lease_is_not_renewed() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    webhook(&test, &receiver, &["balance.charged"]).await;
    charges_of_one(&test, 3).await;
    let sending = hanging_round(&test, &receiver, 1).await;
    let mut locking = test.app.db.get_postgres_connection_pool().begin().await.unwrap();
    sqlx::query("LOCK TABLE webhooks").execute(&mut *locking).await.unwrap();
    let sql = "SELECT leased_until - clock_timestamp() < interval '2 s' FROM webhooks";
    let mut is_ending = async || -> bool { sqlx::query_scalar(sql).fetch_one(&mut *locking).await.unwrap() };
    until("the lease ends", async || is_ending().await.then_some(())).await;
    receiver.release();
    locking.rollback().await.unwrap();
    sending.await.unwrap();
    assert_eq!(receiver.received().len(), 1);
    // The first request may have ended by its own timeout: then it is sent again.
    test.clock.advance(60_000);
    let other = test.open_instance(&test.options).await.unwrap();
    until("another process sends the rest", async || {
        other.webhooks.send_due().await.unwrap();
        let ids: BTreeSet<String> = receiver.received().into_iter().map(|request| request.id).collect();
        (ids.len() == 3).then_some(())
    })
    .await;
    other.db.close().await.unwrap();
    assert_ordered(&receiver.take());
    test.finish().await;
}

#[tokio::test]
async fn stopped_process_writes_what_it_has_sent() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    let users = charges(&test, 4).await;
    let hanging = users[0];
    let other = test.open_instance(&test.options).await.unwrap();
    receiver.hangs_for(move |request| request.event["data"]["userId"] == hanging);
    other.project();
    until("all are sent", async || (receiver.received().len() == 4).then_some(())).await;
    other.stop(None).await;
    other.db.close().await.unwrap();
    assert_eq!(deliveries(&test, id, "limit=100").await.len(), 3);
    receiver.take();
    receiver.release();
    send_due(&test).await;
    let received = receiver.take();
    assert!(received.len() == 1 && received[0].event["data"]["userId"] == hanging, "{received:?}");
    test.finish().await;
}

#[tokio::test]
async fn repeat_of_webhook_request_gets_first_reply() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let body = json!({"url": receiver.url, "types": ["order.paid"]});
    let create = async || send(&test, Method::POST, "/admin/v1/webhooks", Some(body.clone()), Some("create-1")).await;
    let first = create().await.created();
    let id = first["webhookId"].as_i64().unwrap();
    let path = format!("/admin/v1/webhooks/{id}");
    let rotation = format!("{path}/rotate");
    let rotate = async |key| send(&test, Method::POST, &rotation, Some(json!({"validSeconds": 0})), Some(key)).await;
    let (one, two) = (rotate("rotate-1").await.json(), rotate("rotate-2").await.json());
    assert_ne!(one, two);
    assert_eq!(rotate("rotate-1").await.json(), one);
    patch(&test, &path, json!({"description": "ERP", "enabled": false})).await.ok();
    assert_eq!(create().await.json(), first);
    rotate("create-1").await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(send(&test, Method::DELETE, &path, None, None).await.status, 204);
    assert_eq!(create().await.json(), first);
    assert_eq!(get(&test, "/admin/v1/webhooks").await.ok()["totalElements"], 0);
    // A key is over after a day.
    test.clock.advance(24 * 60 * 60 * 1000);
    assert_ne!(create().await.created()["webhookId"], id);
    test.finish().await;
}

/// A request that has found the webhook waits for its deletion.
#[tokio::test]
async fn resend_refused_when_webhook_is_deleted_meanwhile() {
    let test = TestApp::start().await;
    let receiver = Receiver::start().await;
    let (id, _) = webhook(&test, &receiver, &["balance.charged"]).await;
    charges(&test, 1).await;
    send_due(&test).await;
    let event = receiver.take()[0].id.clone();
    let pool = test.app.db.get_postgres_connection_pool();
    let mut deleting = pool.begin().await.unwrap();
    sqlx::query("DELETE FROM webhooks WHERE id = $1").bind(id).execute(&mut *deleting).await.unwrap();
    let path = format!("/admin/v1/webhooks/{id}/resend");
    let resending = post(&test, &path, json!({"eventId": event}));
    let deleted = async {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until("the request waits", async || {
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap();
            (waiting > 0).then_some(())
        })
        .await;
        deleting.commit().await.unwrap();
    };
    let (reply, ()) = tokio::join!(resending, deleted);
    reply.refused(404, "WEBHOOK_NOT_FOUND");
    test.finish().await;
}
