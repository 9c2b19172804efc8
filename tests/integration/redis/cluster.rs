//! The service on a Redis Cluster of three nodes: each partition on the node that owns its slot.

use firstcome::{
    config::RedisConfig,
    dev::{self, RedisServer, ScratchDir},
    redis::Store,
};
use serde_json::{Value, json};

use crate::{
    operators::dashboard_feed::Watch,
    redis::failover::{in_sync, server},
    support::harness::{self, Options, TestApp, fresh_database, raw_redis, until},
};

/// A node by itself, with these arguments too; its port and that of its bus.
async fn node(dir: &ScratchDir, n: usize, more: &[&str]) -> (RedisServer, u16, String) {
    let mut config = dev::RedisServerConfig::new(dir.path().join(format!("node-{n}")));
    config.port = Some(dev::free_port().unwrap());
    let bus = dev::free_port().unwrap().to_string();
    let args = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-require-full-coverage", "yes"];
    config.extra_args = args.iter().chain(more).map(|arg| (*arg).to_owned()).collect();
    (RedisServer::start(config.clone()).await.unwrap(), config.port.unwrap(), bus)
}

/// Three nodes of one cluster, with a third of the slots each.
pub async fn cluster(dir: &ScratchDir, args: &[&str]) -> Vec<RedisServer> {
    let mut nodes = Vec::new();
    for n in 0..3 {
        nodes.push(node(dir, n, args).await);
    }
    let mut first = raw_redis(&nodes[0].0.url()).await;
    for (n, (node, port, bus)) in nodes.iter().enumerate() {
        let (from, to) = (n * 5462, (n * 5462 + 5461).min(16_383));
        let mut link = raw_redis(&node.url()).await;
        redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(from).arg(to).exec_async(&mut link).await.unwrap();
        redis::cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(n + 1).exec_async(&mut link).await.unwrap();
        if n > 0 {
            let meet = redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(*port).arg(bus).clone();
            meet.exec_async(&mut first).await.unwrap();
        }
    }
    // The nodes gossip on timers of their own.
    for (node, ..) in &nodes {
        let mut link = raw_redis(&node.url()).await;
        until("the cluster is up", async || {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut link).await.unwrap();
            (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")).then_some(())
        })
        .await;
    }
    nodes.into_iter().map(|(node, ..)| node).collect()
}

/// A further node of the cluster, which replicates this master and is in sync.
pub async fn replica_of(dir: &ScratchDir, n: usize, args: &[&str], master: &RedisServer) -> RedisServer {
    let (replica, port, bus) = node(dir, n, args).await;
    let (mut there, mut link) = (raw_redis(&master.url()).await, raw_redis(&replica.url()).await);
    let id: String = redis::cmd("CLUSTER").arg("MYID").query_async(&mut there).await.unwrap();
    let meet = redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(port).arg(bus).clone();
    meet.exec_async(&mut there).await.unwrap();
    until("the replica knows its master", async || {
        redis::cmd("CLUSTER").arg("REPLICATE").arg(&id).exec_async(&mut link).await.ok()
    })
    .await;
    in_sync(master, &replica).await;
    replica
}

/// The slot of a partition.
pub async fn slot_of(node: &str, partition: i64) -> u16 {
    let mut link = raw_redis(node).await;
    redis::cmd("CLUSTER").arg("KEYSLOT").arg(format!("{{p{partition}}}:meta")).query_async(&mut link).await.unwrap()
}

/// Moves a partition's slot with its keys, a few at a time, to the next node of a [`cluster`]. `moved` counts the partition's moves,
/// this one included.
pub async fn move_partition(nodes: &[String], partition: i64, moved: usize) {
    let slot = slot_of(&nodes[0], partition).await;
    let from = (usize::from(slot / 5462) + moved - 1) % nodes.len();
    let to = (from + 1) % nodes.len();
    let (mut links, mut ids) = (Vec::new(), Vec::new());
    for node in nodes {
        let mut link = raw_redis(node).await;
        ids.push(redis::cmd("CLUSTER").arg("MYID").query_async::<String>(&mut link).await.unwrap());
        links.push(link);
    }
    let set =
        |state: &str, node: usize| redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(&ids[node]).clone();
    set("IMPORTING", from).exec_async(&mut links[to]).await.unwrap();
    set("MIGRATING", to).exec_async(&mut links[from]).await.unwrap();
    let port = nodes[to].trim_end_matches('/').rsplit(':').next().unwrap();
    loop {
        let mut get = redis::cmd("CLUSTER");
        let keys: Vec<String> = get.arg("GETKEYSINSLOT").arg(slot).arg(10).query_async(&mut links[from]).await.unwrap();
        if keys.is_empty() {
            break;
        }
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(port).arg("").arg(0).arg(60_000).arg("KEYS").arg(keys);
        migrate.exec_async(&mut links[from]).await.unwrap();
    }
    for node in [to, from].into_iter().chain((0..nodes.len()).filter(|node| *node != to && *node != from)) {
        set("NODE", to).exec_async(&mut links[node]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sale_runs_on_cluster() {
    let dir = ScratchDir::new().unwrap();
    let mut nodes = cluster(&dir, &[]).await;
    let first = nodes.remove(0);
    let mut test =
        TestApp::on(Options { partitions: 8, ..Options::default() }, dir, first, fresh_database().await).await;
    test.others = nodes;
    let mut products = Vec::new();
    for _ in 0..8 {
        products.push(test.product(1_000, 10).await);
    }
    let coupon = test.campaign("PERCENTAGE", 10, 6).await;
    let mut orders = Vec::new();
    for _ in 0..8 {
        let user = test.user(100_000).await;
        test.put_charge(user, 1_000).await.ok();
        test.issue(coupon, user).await;
        let lines: Vec<_> = products.iter().map(|product| json!({"productId": product, "quantity": 1})).collect();
        let order = test.post("/api/v1/orders", json!({"userId": user, "orderProducts": lines})).await.ok();
        orders.push((order["orderId"].as_i64().unwrap(), user));
    }
    for (n, (order, user)) in orders.iter().enumerate() {
        if n % 2 == 0 {
            test.pay(*order, *user, "CARD", 8_000).await.ok();
        }
        if n % 4 < 2 {
            test.cancel(*order, *user).await.ok();
        }
    }
    let popular = test.get("/api/v1/products/popular?sortBy=TODAY&limit=100").await.ok();
    assert_eq!(popular.as_array().unwrap().len(), 8);
    assert!(popular.as_array().unwrap().iter().all(|product| product["salesCount"] == 2));
    // The dashboard sums the nodes.
    let whole = |seen: &Value| seen["products"].as_array().is_some_and(|products| products.len() == 8);
    let seen = Watch::open(&test.base).await.until("all products", whole).await;
    assert_eq!((&seen["redis"]["servers"], seen["rankings"]["TODAY"].as_array().unwrap().len()), (&json!(3), 8));
    let held: i64 = seen["products"].as_array().unwrap().iter().map(|product| product["held"].as_i64().unwrap()).sum();
    assert_eq!(held, 16);
    // Every node has keys.
    for node in std::iter::once(&test.redis).chain(&test.others) {
        let keys: i64 = redis::cmd("DBSIZE").query_async(&mut raw_redis(&node.url()).await).await.unwrap();
        assert!(keys > 0, "a node without keys");
    }
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partition_found_when_slot_moved() {
    let dir = ScratchDir::new().unwrap();
    let mut nodes = cluster(&dir, &[]).await;
    let first = nodes.remove(0);
    let mut test =
        TestApp::on(Options { partitions: 2, ..Options::default() }, dir, first, fresh_database().await).await;
    test.others = nodes;
    let user = test.user(1_000).await;
    // The slot of this user's partition moves to the next node.
    let nodes: Vec<String> = std::iter::once(&test.redis).chain(&test.others).map(RedisServer::url).collect();
    move_partition(&nodes, user % 2, 1).await;
    // Each connection gets at most one 503 at the old node, and then uses the new one.
    let mut refused = 0;
    while test.put_charge(user, 100).await.status != 200 {
        refused += 1;
        assert!(refused < 10);
    }
    assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1_100);
    test.finish().await;
}

/// A replica and its master exchange roles; no server stops, and no connection closes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_followed_when_failed_over() {
    let dir = ScratchDir::new().unwrap();
    let mut nodes = cluster(&dir, &[]).await;
    let replica = replica_of(&dir, 3, &[], &nodes[0]).await;
    let (mut first, mut link) = (raw_redis(&nodes[0].url()).await, raw_redis(&replica.url()).await);
    let master = nodes.remove(0);
    let mut test =
        TestApp::on(Options { partitions: 8, ..Options::default() }, dir, master, fresh_database().await).await;
    test.others = nodes;
    let mut users = Vec::new();
    for _ in 0..8 {
        users.push(test.user(1_000).await);
    }
    in_sync(&test.redis, &replica).await;
    redis::cmd("CLUSTER").arg("FAILOVER").exec_async(&mut link).await.unwrap();
    until("the roles are exchanged", async || {
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut first).await.unwrap();
        info.contains("role:slave").then_some(())
    })
    .await;
    let _old = std::mem::replace(&mut test.redis, replica);
    for user in users {
        until("the new owner is found", async || (test.put_charge(user, 100).await.status == 200).then_some(())).await;
        assert_eq!(test.get(&format!("/api/v1/balances/{user}")).await.ok()["balance"], 1_100);
    }
    test.get("/readyz").await.ok();
    test.finish().await;
}

/// The configuration with these servers in `REDIS_URL`.
fn configured(servers: &[&str]) -> RedisConfig {
    let hosts: Vec<&str> = servers.iter().map(|url| url.trim_start_matches("redis://").trim_end_matches('/')).collect();
    harness::redis_config(&format!("redis://{}", hosts.join(",")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_starts_when_first_address_of_cluster_is_dead() {
    let dir = ScratchDir::new().unwrap();
    let mut nodes = cluster(&dir, &[]).await;
    let first = nodes.remove(0);
    let dead = format!("redis://127.0.0.1:{}", dev::free_port().unwrap());
    let redis = Some(configured(&[&dead, &nodes[0].url(), &nodes[1].url()]));
    let options = Options { partitions: 3, redis, raw_url: Some(first.url()), ..Options::default() };
    let mut test = TestApp::on(options, dir, first, fresh_database().await).await;
    test.others = nodes;
    for _ in 0..3 {
        let user = test.user(0).await;
        test.put_charge(user, 1).await.ok();
    }
    test.finish().await;
}

#[tokio::test]
async fn start_refused_when_several_addresses_are_no_cluster() {
    let dir = ScratchDir::new().unwrap();
    let (one, two) = (server(&dir, "one", None).await, server(&dir, "two", None).await);
    let opened = Store::connect(&configured(&[&one.url(), &two.url()])).await;
    let error = format!("{:#}", opened.err().unwrap());
    assert!(error.contains("is no node of a cluster, and REDIS_URL has several addresses"), "{error}");
}
