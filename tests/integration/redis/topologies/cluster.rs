//! A cluster whose masters have replicas.

use firstcome::{
    config::Ack,
    dev::{RedisServer, ScratchDir},
};
use serde_json::json;

use super::{load::Load, loaded, send};
use crate::{
    redis::cluster::{cluster, replica_of, slot_of},
    support::harness::{self, Options, TestApp, fresh_database, until},
};

/// A node is given up after half a second, and the slots of the others are served meanwhile.
const QUICK: &[&str] = &[
    "--cluster-node-timeout",
    "500",
    "--cluster-require-full-coverage",
    "no",
    "--cluster-replica-validity-factor",
    "0",
    "--repl-diskless-sync-delay",
    "0",
];
const PARTITIONS: u16 = 6;

/// A service on a cluster, its replicas, and the node of each partition.
struct Clustered {
    test: TestApp,
    replicas: Vec<RedisServer>,
    owners: Vec<usize>,
}

impl Clustered {
    /// Each of the three masters has so many replicas.
    async fn start(replicas: usize, args: &[&str], options: Options) -> Clustered {
        let dir = ScratchDir::new().unwrap();
        let mut nodes = cluster(&dir, args).await;
        let mut others = Vec::new();
        for n in 0..3 * replicas {
            others.push(replica_of(&dir, 3 + n, args, &nodes[n % 3]).await);
        }
        let mut owners = Vec::new();
        for partition in 0..PARTITIONS {
            owners.push(usize::from(slot_of(&nodes[0].url(), i64::from(partition)).await / 5462));
        }
        let first = nodes.remove(0);
        let options = Options { partitions: PARTITIONS, ..options };
        let mut test = TestApp::on(options, dir, first, fresh_database().await).await;
        test.others = nodes;
        if test.options.project {
            test.app.watch(true);
        }
        Clustered { test, replicas: others, owners }
    }

    /// The index of the replica that has taken over from `node`.
    async fn successor(&self, node: usize) -> usize {
        until("a replica takes over", async || {
            for (n, replica) in self.replicas.iter().enumerate().filter(|(n, _)| n % 3 == node) {
                let mut link = harness::raw_redis(&replica.url()).await;
                let info: String = redis::cmd("INFO").arg("replication").query_async(&mut link).await.unwrap();
                if info.contains("role:master") {
                    return Some(n);
                }
            }
            None
        })
        .await
    }
}

/// `ACK=postgres`: whatever the replica lacks is in PostgreSQL. `end`: ends the master.
async fn assert_sale_goes_on(node: usize, end: impl AsyncFnOnce(&mut RedisServer)) {
    let mut clustered = Clustered::start(1, QUICK, loaded(Ack::Postgres)).await;
    let bystanders = clustered.test.users(i64::from(PARTITIONS), 0).await;
    let load = Load::new(&clustered.test, 8).await;
    let Clustered { test, replicas, owners } = &mut clustered;
    let (client, base) = (test.client.clone(), test.base.clone());
    let charge = async |user: i64| {
        let path = format!("{base}/api/v1/balances/{user}");
        harness::read(client.put(path).json(&json!({"amount": 1}))).await.status.as_u16()
    };
    let master = std::iter::once(&mut test.redis).chain(&mut test.others).nth(node).unwrap();
    let requests = load
        .during(async || {
            load.progress().await;
            // Nothing takes over before the others have decided.
            replicas[node].pause().unwrap();
            end(master).await;
            for user in &bystanders {
                if owners[(user % i64::from(PARTITIONS)) as usize] == node {
                    assert_eq!(charge(*user).await, 503);
                } else {
                    until("the others decide", async || (charge(*user).await == 200).then_some(())).await;
                }
            }
            replicas[node].resume().unwrap();
            load.progress().await;
        })
        .await;
    let successor = clustered.successor(node).await;
    let successor = clustered.replicas.swap_remove(successor);
    let test = &mut clustered.test;
    *std::iter::once(&mut test.redis).chain(&mut test.others).nth(node).unwrap() = successor;
    load.assert_kept(test, &requests).await;
    let withheld = test.get("/admin/v1/withheld").await.ok();
    assert_eq!(withheld["products"], json!([]));
    clustered.test.finish().await;
}

/// `REDIS_URL` leads to this master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_decide_and_everything_acknowledged_kept_when_master_killed_under_load() {
    assert_sale_goes_on(0, async |master| master.kill().await.unwrap()).await;
}

/// The master hangs, with its connections open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_decide_and_everything_acknowledged_kept_when_master_hangs_under_load() {
    assert_sale_goes_on(1, async |master| master.pause().unwrap()).await;
}

/// By default the whole cluster refuses commands while a slot has no node (`CLUSTERDOWN`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_partition_waits_and_recovers_when_cluster_is_down() {
    let args = ["--cluster-node-timeout", "500"];
    let mut clustered = Clustered::start(0, &args, loaded(Ack::Redis)).await;
    let load = Load::new(&clustered.test, 6).await;
    let node = &mut clustered.test.others[0];
    let (client, ready) = (clustered.test.client.clone(), format!("{}/readyz", clustered.test.base));
    let requests = load
        .during(async || {
            load.progress().await;
            node.kill().await.unwrap();
            until("no partition decides", async || {
                let reply = harness::read(client.get(&ready)).await;
                (reply.status == 503).then_some(())
            })
            .await;
            node.restart().await.unwrap();
            load.progress().await;
        })
        .await;
    load.assert_kept(&clustered.test, &requests).await;
    clustered.test.finish().await;
}

/// The user's partition can't take the units that another one gives to it: the order is refused, and the relay brings them later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_placed_later_when_units_cannot_arrive() {
    let options = Options { redis_timeout_ms: 3_000, ..Options::default() };
    let clustered = Clustered::start(0, QUICK, options).await;
    let Clustered { test, owners, .. } = &clustered;
    let of = |id: i64| owners[(id % i64::from(PARTITIONS)) as usize];
    let user = test.user(100).await;
    let product = loop {
        let product = test.product(10, 5).await;
        if of(product) != of(user) {
            break product;
        }
    };
    test.order(user, product, 1).await.ok();
    let nodes: Vec<&RedisServer> = std::iter::once(&test.redis).chain(&test.others).collect();
    let (of_user, of_product) = (nodes[of(user)], nodes[of(product)]);
    // The order waits for units of the other partition: reads go on there, and decisions do not.
    send(of_product, "CLIENT PAUSE 300000 WRITE").await;
    let degraded = async {
        let mut link = harness::raw_redis(&of_product.url()).await;
        until("the order waits for its units", async || {
            let info: String = redis::cmd("INFO").arg("clients").query_async(&mut link).await.unwrap();
            info.contains("blocked_clients:1").then_some(())
        })
        .await;
        send(of_user, "CONFIG SET maxmemory 1").await;
        send(of_product, "CLIENT UNPAUSE").await;
    };
    let (reply, ()) = tokio::join!(test.order(user, product, 1), degraded);
    reply.refused(503, "SERVICE_UNAVAILABLE");
    send(of_user, "CONFIG SET maxmemory 0").await;
    until("orders are placed again", async || (test.order(user, product, 1).await.status == 200).then_some(())).await;
    assert_eq!(test.stock(product).await, 3);
    clustered.test.finish().await;
}
