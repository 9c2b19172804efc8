//! Which server a partition is on: one for all, or, on a Redis Cluster, the node that owns the partition's slot.
//!
//! The cluster is asked when the first connection is made, and again whenever a node says that it no longer owns a slot, or
//! can't be reached. Nothing is ever redirected or sent again by itself: a command that went to the wrong node has not run,
//! and is answered "unavailable" once.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use deadpool_redis::{Manager, Pool, Timeouts};
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, io::tcp::TcpSettings};

use super::{
    MAX_PARTITIONS,
    keys::{Keys, Partition},
    lanes::Lane,
};
use crate::config::RedisConfig;

/// Commands that may wait on one lane to be written; beyond it requests wait their turn.
const PIPELINE_BUFFER: usize = 4096;
/// Connections beside the lanes: for administrative work, and while lanes are replaced.
const SPARE_CONNECTIONS: usize = 8;

/// How connections are made, but for the address.
pub(super) struct Connecting {
    info: ConnectionInfo,
    timeout: Duration,
    lanes: usize,
}

/// One server.
pub(super) struct Node {
    address: ConnectionAddr,
    pub(super) lanes: Vec<Lane>,
    /// Makes the lanes' connections.
    pub(super) pool: Pool,
    /// Connections whose replies may take their time.
    pub(super) blocking: Pool,
}

/// The servers, and which of them each partition is on.
pub(super) struct Topology {
    nodes: Vec<Arc<Node>>,
    /// By partition: an index into `nodes`.
    homes: Vec<usize>,
}

impl Connecting {
    pub(super) fn new(config: &RedisConfig) -> anyhow::Result<Self> {
        let info = config.redis_url.expose().into_connection_info().context("REDIS_URL is not a Redis URL")?;
        Ok(Connecting {
            // Off by default in redis 1.x, and worth 40 % and more of the throughput on a real network.
            info: info.set_tcp_settings(TcpSettings::default().set_nodelay(true)),
            timeout: Duration::from_millis(config.redis_timeout_ms),
            lanes: usize::from(config.redis_lanes.max(1)),
        })
    }

    fn node(&self, address: ConnectionAddr) -> anyhow::Result<Arc<Node>> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        let pool = |settings: AsyncConnectionConfig, size: usize| -> anyhow::Result<Pool> {
            let limits = Timeouts { wait: Some(self.timeout), create: Some(self.timeout), recycle: Some(self.timeout) };
            let manager = Manager::new_with_config(self.info.clone().set_addr(address.clone()), settings)?;
            Ok(Pool::builder(manager)
                .max_size(size)
                .timeouts(limits)
                .runtime(deadpool_redis::Runtime::Tokio1)
                .build()?)
        };
        Ok(Arc::new(Node {
            lanes: (0..self.lanes).map(|_| Lane::default()).collect(),
            pool: pool(settings.clone(), self.lanes + SPARE_CONNECTIONS)?,
            // A blocking read answers when there is something, or after its own BLOCK time.
            blocking: pool(settings.set_response_timeout(None), usize::from(MAX_PARTITIONS) + SPARE_CONNECTIONS)?,
            address,
        }))
    }

    /// Asks the servers known before, and the configured one, where the partitions are. A node that is still there keeps
    /// its connections.
    pub(super) async fn discover(&self, before: Option<&Topology>) -> anyhow::Result<Topology> {
        let known = before.map(|topology| topology.nodes.clone()).unwrap_or_default();
        let configured = match known.iter().find(|node| node.address == *self.info.addr()) {
            Some(node) => node.clone(),
            None => self.node(self.info.addr().clone())?,
        };
        let mut failure = anyhow::anyhow!("no server is known");
        // Those known to have been there first: the configured one may be the very one that is gone.
        for seed in known.iter().filter(|node| !Arc::ptr_eq(node, &configured)).chain([&configured]) {
            match self.ask(seed, &known).await {
                Ok(topology) => return Ok(topology),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn ask(&self, seed: &Arc<Node>, known: &[Arc<Node>]) -> anyhow::Result<Topology> {
        let mut link = seed.pool.get().await?;
        let info: String = redis::cmd("INFO").arg("cluster").query_async(&mut link).await?;
        if !info.contains("cluster_enabled:1") {
            return Ok(Topology { nodes: vec![seed.clone()], homes: vec![0; usize::from(MAX_PARTITIONS)] });
        }
        let ranges: Vec<(u16, u16, redis::Value)> = slot_ranges(redis::cmd("CLUSTER").arg("SLOTS"), &mut link).await?;
        let mut ask = redis::pipe();
        for partition in (0..MAX_PARTITIONS).map(Partition) {
            ask.cmd("CLUSTER").arg("KEYSLOT").arg(Keys(partition).meta());
        }
        let slots: Vec<u16> = ask.query_async(&mut link).await?;
        let mut topology = Topology { nodes: Vec::new(), homes: Vec::with_capacity(slots.len()) };
        for slot in slots {
            let Some((.., master)) = ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)) else {
                bail!("slot {slot} of the cluster has no owner");
            };
            let address = self.address_of(master, seed)?;
            let place = topology.nodes.iter().position(|node| node.address == address);
            let place = match place {
                Some(place) => place,
                None => {
                    let node = known.iter().chain([seed]).find(|node| node.address == address).cloned();
                    topology.nodes.push(node.map_or_else(|| self.node(address), Ok)?);
                    topology.nodes.len() - 1
                }
            };
            topology.homes.push(place);
        }
        Ok(topology)
    }

    /// `[host, port, id, ...]` as an address of the kind that REDIS_URL has. A node that does not know its own name gives an
    /// empty one: it is the one that was asked.
    fn address_of(&self, master: &redis::Value, seed: &Node) -> anyhow::Result<ConnectionAddr> {
        let redis::Value::Array(parts) = master else { bail!("CLUSTER SLOTS answered an owner without an address") };
        let text = |index: usize| parts.get(index).cloned().unwrap_or_default();
        let host: String = redis::FromRedisValue::from_redis_value(text(0)).unwrap_or_default();
        let port: u16 = redis::FromRedisValue::from_redis_value(text(1))?;
        let seed_host = match &seed.address {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
            _ => "127.0.0.1".to_owned(),
        };
        let host = if host.is_empty() { seed_host } else { host };
        Ok(match self.info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        })
    }
}

/// The ranges of `CLUSTER SLOTS`: first slot, last slot, owner (replicas follow, and are not asked).
async fn slot_ranges(
    command: &redis::Cmd,
    link: &mut deadpool_redis::Connection,
) -> anyhow::Result<Vec<(u16, u16, redis::Value)>> {
    let ranges: Vec<Vec<redis::Value>> = command.query_async(link).await?;
    let number = |value: &redis::Value| redis::FromRedisValue::from_redis_value_ref(value);
    ranges
        .into_iter()
        .map(|range| match range.as_slice() {
            [first, last, owner, ..] => Ok((number(first)?, number(last)?, owner.clone())),
            _ => bail!("CLUSTER SLOTS answered a range without an owner"),
        })
        .collect()
}

impl Topology {
    /// Every server.
    pub(super) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The server that `partition` is on.
    pub(super) fn home(&self, partition: Partition) -> Option<&Arc<Node>> {
        self.nodes.get(self.place(partition)?)
    }

    /// A number for it.
    pub(super) fn place(&self, partition: Partition) -> Option<usize> {
        self.homes.get(usize::from(partition.0)).copied()
    }
}
