//! Redis of a drill: alone, behind Sentinels, or a cluster; masters that are killed, and replicas that lack their last seconds.

use firstcome::dev::{RedisServer, RedisServerConfig, ScratchDir};
use redis::aio::MultiplexedConnection;

use crate::{
    redis::{
        addresses::{know_each_other, sentinel_url, sentinels},
        cluster,
        failover::{info, port, server},
    },
    support::harness::{raw_redis, until},
};

/// `cluster-node-timeout`: how long a node of the cluster may be silent.
const NODE_TIMEOUT_MS: u32 = 3_000;

/// How Redis is laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    Alone,
    /// A master with a replica, and three Sentinels.
    Sentinels,
    /// Three masters, each with a replica.
    Cluster,
}

/// The servers of a layout.
pub struct RedisServers {
    pub url: String,
    pub masters: Vec<RedisServer>,
    /// The replica of each master, in the same order.
    pub replicas: Vec<RedisServer>,
    _sentinels: Vec<RedisServer>,
}

impl RedisServers {
    pub async fn start(layout: Layout, dir: &ScratchDir) -> RedisServers {
        match layout {
            Layout::Alone => {
                let alone = RedisServer::start(RedisServerConfig::new(dir.path().join("redis"))).await.unwrap();
                RedisServers { url: alone.url(), masters: vec![alone], replicas: Vec::new(), _sentinels: Vec::new() }
            }
            Layout::Sentinels => {
                let master = server(dir, "master", None).await;
                let replica = server(dir, "replica", Some(&master)).await;
                let sentinels = sentinels(dir, &port(&master)).await;
                know_each_other(&sentinels, 1).await;
                let url = sentinel_url(&sentinels);
                RedisServers { url, masters: vec![master], replicas: vec![replica], _sentinels: sentinels }
            }
            Layout::Cluster => RedisServers::cluster(dir).await,
        }
    }

    async fn cluster(dir: &ScratchDir) -> RedisServers {
        let masters = cluster::cluster(dir, &[]).await;
        let mut replicas = Vec::new();
        for (n, master) in masters.iter().enumerate() {
            replicas.push(cluster::replica_of(dir, masters.len() + n, &[], master).await);
        }
        for node in masters.iter().chain(&replicas) {
            let mut link = raw_redis(&node.url()).await;
            let set = |name: &str, value: &str| redis::cmd("CONFIG").arg("SET").arg(name).arg(value).clone();
            set("cluster-node-timeout", &NODE_TIMEOUT_MS.to_string()).exec_async(&mut link).await.unwrap();
            // The partitions of the other masters decide while one is without a master.
            set("cluster-require-full-coverage", "no").exec_async(&mut link).await.unwrap();
            until("the nodes know each other", async || {
                let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut link).await.unwrap();
                info.contains("cluster_known_nodes:6").then_some(())
            })
            .await;
        }
        RedisServers { url: masters[0].url(), masters, replicas, _sentinels: Vec::new() }
    }

    /// From now on the replica of this master gets nothing more: the master refuses to replicate to it.
    pub async fn hold_back(&self, master: usize) {
        let mut link = raw_redis(&self.masters[master].url()).await;
        let refuse = redis::cmd("ACL").arg("SETUSER").arg("default").arg("-psync").arg("-sync").clone();
        refuse.exec_async(&mut link).await.unwrap();
        let cut = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("replica").clone();
        cut.query_async::<i64>(&mut link).await.unwrap();
        let mut link = raw_redis(&self.replicas[master].url()).await;
        until("the replica is held back", async || {
            info(&mut link, "replication").await.contains("master_link_status:down").then_some(())
        })
        .await;
    }

    /// Starts a master again that was killed, and waits until it replicates from the server that took its place.
    pub async fn restart(&mut self, master: usize) {
        self.masters[master].restart().await.unwrap();
        let url = self.masters[master].url();
        until("the old master is a replica", async || {
            // A Sentinel that makes it a replica closes its connections.
            let mut ask = redis::cmd("INFO");
            let info: String = ask.arg("replication").query_async(&mut raw_redis(&url).await).await.ok()?;
            info.contains("role:slave").then_some(())
        })
        .await;
    }

    /// Connections to the servers that are masters now.
    pub async fn current_masters(&self) -> Vec<MultiplexedConnection> {
        let mut links = Vec::new();
        for server in self.masters.iter().chain(&self.replicas).filter(|server| server.pid().is_some()) {
            let mut link = raw_redis(&server.url()).await;
            if info(&mut link, "replication").await.contains("role:master") {
                links.push(link);
            }
        }
        links
    }
}
