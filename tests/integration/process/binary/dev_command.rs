//! `firstcome dev`.

use super::*;

fn dev_in(data: &Path) -> Command {
    let mut command = program(&["dev", "--dir", data.to_str().unwrap()]);
    command.env("BIND_ADDR", "127.0.0.1:0").env("ADMIN_TOKEN", ADMIN);
    command
}

/// The quick start: it starts, seeds, and stops without leaving more than its data. The next start continues with the
/// data, even after a kill.
#[tokio::test]
async fn dev_command_keeps_data_between_starts() {
    let dir = ScratchDir::new().unwrap();
    let data = dir.path().join("data");
    let mut first = Running::start(&mut dev_in(&data), &dir, "first");
    let base = first.base().await;
    get(&base, "/readyz").await.ok();
    let products = get(&base, "/api/v1/products").await.ok();
    assert_eq!(
        (products["totalElements"].as_i64(), products["content"].as_array().map(Vec::len)),
        (Some(6), Some(6)),
        "{products}"
    );
    assert_eq!(get(&base, "/api/v1/campaigns").await.ok().as_array().map_or(0, Vec::len), 2);
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_000);
    get(&base, "/swagger-ui/index.html").await.status.is_success().then_some(()).unwrap();
    let printed = first.out();
    for part in [base.as_str(), "/swagger-ui/index.html", "redis-cli -s ", "psql -h ", "Ctrl-C"] {
        assert!(printed.contains(part), "{part:?} is not in {printed}");
    }
    let names = servers_below(&data);
    for server in [&["redis-server", "valkey-server"][..], &["postgres"]] {
        assert!(names.iter().any(|name| server.iter().any(|server| name.contains(server))), "{names:?}");
    }
    // A second process in the same directory is refused, with the pid of the first.
    let (status, said) = run(&mut dev_in(&data)).await;
    assert_eq!(status.code(), Some(1), "{said}");
    let pid = first.child.id().unwrap();
    assert!(said.contains(&format!("already running (pid {pid})")), "{said}");
    get(&base, "/readyz").await.ok();

    put(&base, "/api/v1/balances/1", json!({"amount": 1})).await.ok();
    let lines = json!([{"productId": 5, "quantity": 1}]);
    let order =
        post(&base, "/api/v1/orders", json!({"userId": 2, "orderProducts": lines})).await.ok()["orderId"].clone();
    first.stop().await;
    assert!(first.logged("the outbox is drained").is_some(), "{}", first.err());
    assert!(servers_below(dir.path()).is_empty(), "{:?}", servers_below(dir.path()));
    assert!(!first.err().contains(ADMIN), "the token is in the log");

    // A second start continues with the data; then the test kills it.
    let mut second = Running::start(&mut dev_in(&data), &dir, "second");
    let base = second.base().await;
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_001);
    assert_eq!(get(&base, "/api/v1/products").await.ok()["totalElements"], 6, "the catalogue was seeded again");
    let path = format!("/api/v1/orders/{order}?userId=2");
    assert_eq!(get(&base, &path).await.ok()["orderStatus"], "PENDING");
    put(&base, "/api/v1/balances/1", json!({"amount": 2})).await.ok();
    post(&base, "/api/v1/payments", json!({"orderId": order, "userId": 2, "paymentType": "CARD", "amount": 39_900}))
        .await
        .ok();
    second.child.kill().await.unwrap();
    until("no servers are left", async || servers_below(dir.path()).is_empty().then_some(())).await;

    let mut third = Running::start(&mut dev_in(&data), &dir, "third");
    let base = third.base().await;
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_003);
    assert_eq!(get(&base, &path).await.ok()["orderStatus"], "PAID");
    let history = get(&base, "/api/v1/balances/1/history").await.ok();
    assert_eq!(history.as_array().unwrap().len(), 3, "{history}");
    until("what was in the outbox is projected", async || {
        let projection = get(&base, "/admin/v1/projection").await.ok();
        assert_eq!(projection["deadLetters"], 0);
        (projection["lagEvents"] == 0).then_some(())
    })
    .await;
    // A start right after a kill, before the orphaned servers have ended.
    third.child.kill().await.unwrap();
    let mut fourth = Running::start(&mut dev_in(&data), &dir, "fourth");
    let base = fourth.base().await;
    assert_eq!(get(&base, "/api/v1/balances/1").await.ok()["balance"], 10_003);
    fourth.stop().await;
    assert!(servers_below(dir.path()).is_empty());
}

#[tokio::test]
async fn dev_command_keeps_token_private() {
    use std::os::unix::fs::MetadataExt;
    let dir = ScratchDir::new().unwrap();
    let data = dir.path().join("data");
    let mut tokens = Vec::new();
    for name in ["first", "second"] {
        let mut command = dev_in(&data);
        let mut dev = Running::start(command.env_remove("ADMIN_TOKEN"), &dir, name);
        let base = dev.base().await;
        let file = data.join("admin-token");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        let token = fs::read_to_string(&file).unwrap().trim().to_owned();
        assert!(token.len() >= 32 && dev.out().contains(&token), "{}", dev.out());
        assert!(!dev.err().contains(&token), "the token is in the log");
        get(&base, "/admin/v1/projection").await.refused(401, "UNAUTHORIZED");
        let path = format!("{base}/admin/v1/projection");
        harness::read(harness::client().get(path).bearer_auth(&token)).await.ok();
        // Ctrl-C.
        dev.signal(Signal::INT);
        assert!(dev.ended().await.success(), "{}", dev.err());
        tokens.push(token);
    }
    assert_eq!(tokens[0], tokens[1]);
    assert!(servers_below(dir.path()).is_empty());
}
