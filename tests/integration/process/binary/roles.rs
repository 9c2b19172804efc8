//! The roles of a deployment, each a process.

use super::*;

#[tokio::test]
async fn roles_run_as_separate_processes() {
    let servers = Servers::start().await;
    for role in ["serve", "project", "seed"] {
        let (status, said) = run(&mut servers.role(&[role])).await;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("firstcome migrate"), "{role}: {said}");
    }
    let (first, second) = (&mut servers.role(&["migrate"]), &mut servers.role(&["migrate"]));
    for (status, said) in <[_; 2]>::from(tokio::join!(run(first), run(second))) {
        assert!(status.success(), "two at once: {said}");
    }
    let (status, said) = run(&mut servers.role(&["migrate"])).await;
    assert!(status.success(), "a third time: {said}");
    for expected in ["The demo catalogue is in.", "nothing was changed"] {
        let (status, said) = run(&mut servers.role(&["seed"])).await;
        assert!(status.success() && said.contains(expected), "{said}");
    }

    let mut serve = servers.start_role(&["serve", "--no-projector"], "serve");
    let base = serve.base().await;
    let lines = json!([{"productId": 5, "quantity": 2}]);
    let order = post(&base, "/api/v1/orders", json!({"userId": 2, "orderProducts": lines})).await.ok();
    let order = order["orderId"].as_i64().unwrap();
    let pay = json!({"orderId": order, "userId": 2, "paymentType": "TOSS", "amount": 79_800});
    post(&base, "/api/v1/payments", pay).await.ok();
    // The log contains no unknown token either.
    let wrong = harness::client().get(format!("{base}/admin/v1/projection")).bearer_auth(SECRET);
    harness::read(wrong).await.refused(401, "UNAUTHORIZED");
    let projection = get(&base, "/admin/v1/projection").await.ok();
    assert_eq!(projection["partitions"][0]["projectedSeq"], 0, "{projection}");
    assert!(projection["lagEvents"].as_i64().unwrap() > 10);

    let mut project = servers.start_role(&["project"], "project");
    let db = servers.db().await;
    until("the order is in Postgres", async || {
        project.assert_alive();
        let status: Option<String> = sqlx::query_scalar("SELECT status FROM orders WHERE id = $1")
            .bind(order)
            .fetch_optional(db.get_postgres_connection_pool())
            .await
            .unwrap();
        (status? == "PAID").then_some(())
    })
    .await;
    let listed = get(&base, "/admin/v1/orders").await.ok();
    assert_eq!(listed["content"][0]["orderId"], order, "{listed}");
    // A process without a projector stops at once and leaves its last decisions to the other process.
    put(&base, "/api/v1/balances/1", json!({"amount": 5})).await.ok();
    serve.stop().await;
    project.stop().await;
    assert!(project.logged("the outbox is drained").is_some(), "{}", project.err());
    servers.no_secret_in(&[&serve, &project]);
    db.close().await.unwrap();
    servers.end().await;
}

/// A stop waits until every acknowledged decision is projected, even if the projection hung before.
#[tokio::test]
async fn stop_drains_outbox() {
    let servers = Servers::start().await;
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let mut serve = servers.start_role(&["serve"], "serve");
    let base = serve.base().await;
    let user = post(&base, "/admin/v1/users", json!({"userName": "A", "balance": 0})).await.created()["userId"].clone();
    // The projection waits while another transaction locks the row of the position.
    let db = servers.db().await;
    let mut lock = db.get_postgres_connection_pool().begin().await.unwrap();
    sqlx::query("SELECT 1 FROM projection_positions FOR UPDATE").execute(&mut *lock).await.unwrap();
    for n in 1..=20 {
        let charged = put(&base, &format!("/api/v1/balances/{user}"), json!({"amount": 1})).await.ok();
        assert_eq!(charged["balance"], n);
    }
    serve.signal(Signal::TERM);
    until("it takes no more requests", async || {
        harness::client().get(format!("{base}/healthz")).send().await.err().map(drop)
    })
    .await;
    serve.assert_alive();
    lock.rollback().await.unwrap();
    let status = serve.ended().await;
    assert!(status.success(), "{status}\n{}", serve.err());
    assert!(serve.logged("the outbox is drained").is_some(), "{}", serve.err());
    let balance: i64 =
        sqlx::query_scalar("SELECT balance FROM users").fetch_one(db.get_postgres_connection_pool()).await.unwrap();
    assert_eq!(balance, 20);
    db.close().await.unwrap();
    servers.no_secret_in(&[&serve]);
    servers.end().await;
}

/// A killed process loses no acknowledged decision, and a repeat under the same key has no second effect.
#[tokio::test]
async fn kill_loses_no_acknowledged_decision() {
    const REQUESTS: u32 = 200;
    let servers = Servers::start().await;
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let mut serve = servers.start_role(&["serve"], "first");
    let mut base = serve.base().await;
    let user = post(&base, "/admin/v1/users", json!({"userName": "A", "balance": 0})).await.created()["userId"].clone();
    let path = format!("/api/v1/balances/{user}");
    let mut balance = 0;
    for round in 0..3_u32 {
        let (client, answered) = (harness::client(), tokio::sync::Semaphore::new(0));
        let requests = (0..REQUESTS).map(|n| {
            let request = client.put(format!("{base}{path}")).header("Idempotency-Key", format!("{round}-{n}"));
            let sent = request.json(&json!({"amount": 1})).send();
            let answered = &answered;
            async move {
                let answer = sent.await;
                answered.add_permits(1);
                answer
            }
        });
        let requests = futures_util::future::join_all(requests);
        let kill = async {
            drop(answered.acquire_many(REQUESTS / 4).await.unwrap());
            serve.child.kill().await.unwrap();
        };
        let (answers, ()) = tokio::join!(requests, kill);
        let answered = answers.iter().flatten().filter(|answer| answer.status() == 200).count() as i64;
        serve = servers.start_role(&["serve"], &format!("after-{round}"));
        base = serve.base().await;
        let now = get(&base, &path).await.ok()["balance"].as_i64().unwrap();
        assert!(
            (balance + answered..=balance + i64::from(REQUESTS)).contains(&now),
            "{balance} + {answered} answered, {now} there"
        );
        for n in 0..REQUESTS {
            let request =
                harness::client().put(format!("{base}{path}")).header("Idempotency-Key", format!("{round}-{n}"));
            harness::read(request.json(&json!({"amount": 1}))).await.ok();
        }
        balance += i64::from(REQUESTS);
        assert_eq!(get(&base, &path).await.ok()["balance"], balance);
    }
    serve.stop().await;
    servers.end().await;
}

/// A recovery takes a process that reports requests, and has given no word under the same id, for one of an earlier version.
#[tokio::test]
async fn process_reports_requests_under_the_id_of_its_word() {
    let servers = Servers::start().await;
    assert!(run(&mut servers.role(&["migrate"])).await.0.success());
    let mut serve = servers.start_role(&["serve"], "serve");
    serve.base().await;
    let db = servers.db().await;
    let reported = until("the process reports its requests", async || {
        let reported = "SELECT instance::text FROM instance_requests";
        let reported: Vec<String> =
            sqlx::query_scalar(reported).fetch_all(db.get_postgres_connection_pool()).await.unwrap();
        (!reported.is_empty()).then_some(reported)
    })
    .await;
    let mut redis = harness::raw_redis(&servers.redis_url).await;
    let words: Vec<String> = redis::cmd("HKEYS").arg("{p0}:instances").query_async(&mut redis).await.unwrap();
    assert_eq!(words, reported);
    serve.stop().await;
    db.close().await.unwrap();
    servers.end().await;
}
