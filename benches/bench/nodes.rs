//! The Redis servers of a section: one, or the nodes of a cluster.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use firstcome::{
    dev::{self, RedisServer},
    model::Partition,
    redis::keys::Keys,
};
use redis::aio::MultiplexedConnection;

/// The slots of a cluster.
const SLOTS: u16 = 16_384;

/// How the data of a section are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub partitions: u16,
    /// 1: a server by itself. More: a cluster, whose nodes have the partitions in turn.
    pub nodes: u16,
}

impl Layout {
    pub const SMALLEST: Layout = Layout { partitions: 1, nodes: 1 };

    /// The node that has a partition.
    pub fn node_of(self, here: Partition) -> usize {
        usize::from(here.0 % self.nodes)
    }
}

/// Starts the servers of a layout, below `dir`.
pub async fn start(dir: &Path, layout: Layout) -> Result<Vec<RedisServer>> {
    if layout.nodes == 1 {
        return Ok(vec![RedisServer::start(config(dir, "redis")).await?]);
    }
    let (mut nodes, mut buses) = (Vec::new(), Vec::new());
    for n in 0..layout.nodes {
        let mut config = config(dir, &format!("node-{n}"));
        config.port = Some(dev::free_port()?);
        let bus = dev::free_port()?.to_string();
        config.extra_args.extend(["--cluster-enabled", "yes", "--cluster-port", &bus].map(str::to_owned));
        buses.push((config.port.unwrap_or_default(), bus));
        nodes.push(RedisServer::start(config).await?);
    }
    join(&nodes, &buses, layout).await?;
    Ok(nodes)
}

fn config(dir: &Path, name: &str) -> dev::RedisServerConfig {
    let mut config = dev::RedisServerConfig::new(dir.join(name));
    // No rewrite within a round, whose figures would include it: see `Servers::tidy`.
    config.extra_args = vec!["--auto-aof-rewrite-percentage".to_owned(), "0".to_owned()];
    config
}

/// Divides the slots among the nodes, and waits until the cluster is up.
async fn join(nodes: &[RedisServer], buses: &[(u16, String)], layout: Layout) -> Result<()> {
    let mut links = Vec::new();
    for node in nodes {
        links.push(link(node).await?);
    }
    let mut owners: Vec<usize> = (0..SLOTS).map(|slot| usize::from(slot) * nodes.len() / usize::from(SLOTS)).collect();
    for here in (0..layout.partitions).map(Partition) {
        let slot: u16 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(Keys(here).meta()).query_async(&mut links[0]).await?;
        owners[usize::from(slot)] = layout.node_of(here);
    }
    for n in 0..nodes.len() {
        let slots: Vec<usize> = (0..owners.len()).filter(|slot| owners[*slot] == n).collect();
        redis::cmd("CLUSTER").arg("ADDSLOTS").arg(slots).exec_async(&mut links[n]).await?;
        redis::cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(n + 1).exec_async(&mut links[n]).await?;
        if n > 0 {
            let (port, bus) = &buses[n];
            let meet = redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(*port).arg(bus).clone();
            meet.exec_async(&mut links[0]).await?;
        }
    }
    let (begun, known) = (Instant::now(), format!("cluster_known_nodes:{}", nodes.len()));
    for link in &mut links {
        loop {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(link).await?;
            if info.contains("cluster_state:ok") && info.contains(&known) {
                break;
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "the cluster does not come up: {info}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// A connection without a time limit.
pub async fn link(server: &RedisServer) -> Result<MultiplexedConnection> {
    let client = redis::Client::open(server.url())?;
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// A number of a server's reply to INFO.
pub async fn info(server: &RedisServer, name: &str) -> Result<f64> {
    let info: String = redis::cmd("INFO").arg("everything").query_async(&mut link(server).await?).await?;
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    ensure!(line.is_some(), "INFO has no {name}");
    Ok(line.unwrap_or_default().trim().parse()?)
}
