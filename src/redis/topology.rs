//! The servers of the partitions: one server for all or, in a Redis Cluster, the node that owns the partition's slot.
//!
//! Discovery asks the cluster, at the first connection and whenever a node no longer owns a slot, is no master, or can't be
//! reached. If `REDIS_URL` names Sentinels, discovery asks them for the master. No command is redirected or resent: a command
//! that reached the wrong node has not run, and its request gets "unavailable".

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use deadpool_redis::{Manager, Pool, Timeouts};
use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo};

use super::{
    address::Address,
    connection::SharedConnection,
    keys::Keys,
    permissions,
    replication::DedicatedConnections,
    sentinels::Sentinels,
    settings::{self, MASTER, NotMaster},
};
use crate::{
    config::RedisConfig,
    model::{Error, MAX_PARTITIONS, Partition},
};

/// The number of commands that may wait in the send buffer of a shared connection; further requests wait.
const PIPELINE_BUFFER: usize = 4096;
/// Connections beside the shared ones: for administrative work, and while shared connections are replaced.
const SPARE_CONNECTIONS: usize = 8;
/// How long a discovery waits for one server before it asks the next one too.
const SLOW_ANSWER: Duration = Duration::from_millis(200);

/// Discovers servers and opens connections.
pub(super) struct Connecting {
    /// The credentials, and the kind of the addresses.
    info: ConnectionInfo,
    /// The configured servers: several nodes of a cluster, or one server; none with Sentinels.
    seeds: Vec<ConnectionAddr>,
    sentinels: Option<Sentinels>,
    timeout: Duration,
    shared: usize,
}

/// A server and its connections.
pub(super) struct Node {
    address: ConnectionAddr,
    pub(super) shared: Vec<SharedConnection>,
    /// Opens the shared connections.
    pub(super) pool: Pool,
    /// Connections without a response timeout.
    pub(super) blocking: Pool,
    /// For calls whose replies wait for replicas.
    pub(super) dedicated: DedicatedConnections,
    created_at: Instant,
    stale: AtomicBool,
    suspect: AtomicBool,
}

/// The servers, and the server of each partition.
pub(super) struct Topology {
    nodes: Vec<Arc<Node>>,
    /// The index into `nodes`, by partition; `None` if the partition's slot has no owner.
    owners: Vec<Option<usize>>,
    is_cluster: bool,
}

impl Connecting {
    /// # Errors
    /// The address or a certificate file is invalid.
    pub(super) fn new(config: &RedisConfig) -> anyhow::Result<Self> {
        let Address { info, seeds, sentinels } = Address::read(config)?;
        Ok(Connecting {
            info,
            seeds,
            sentinels,
            timeout: Duration::from_millis(config.redis_timeout_ms),
            shared: usize::from(config.redis_connections.max(1)),
        })
    }

    /// How long Redis may take to reply.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn has_sentinels(&self) -> bool {
        self.sentinels.is_some()
    }

    /// The address of the master by the Sentinels; `None` if there are none.
    pub(super) async fn master_of_sentinels(&self) -> Option<anyhow::Result<ConnectionAddr>> {
        let named = self.sentinels.as_ref()?.master(self.timeout).await;
        Some(named.map(|(host, port)| Address::like(self.info.addr(), host, port)))
    }

    /// Asks a server that the Sentinels name whether it is a master.
    ///
    /// # Errors
    /// It is not, or can't be reached.
    pub(super) async fn check_named(&self, address: &ConnectionAddr) -> anyhow::Result<()> {
        let named = self.node(address.clone())?;
        self.ask(&named, &[]).await.map(drop).with_context(|| self.named(address))
    }

    fn named(&self, address: &ConnectionAddr) -> String {
        let name = self.sentinels.as_ref().map_or("", Sentinels::name);
        format!("the Sentinels name {address} as the master {name}")
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
            shared: (0..self.shared).map(|_| SharedConnection::default()).collect(),
            pool: pool(settings.clone(), self.shared + SPARE_CONNECTIONS)?,
            // A blocking read returns when there is an entry, or after its own BLOCK time.
            blocking: pool(settings.set_response_timeout(None), usize::from(MAX_PARTITIONS) + SPARE_CONNECTIONS)?,
            dedicated: DedicatedConnections::default(),
            address,
            created_at: Instant::now(),
            stale: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
        }))
    }

    /// The servers of another topology, without its connections.
    ///
    /// # Errors
    /// A certificate can't be used.
    pub(super) fn unconnected(&self, other: &Topology) -> anyhow::Result<Topology> {
        let nodes: anyhow::Result<_> = other.nodes.iter().map(|node| self.node(node.address.clone())).collect();
        Ok(Topology { nodes: nodes?, owners: other.owners.clone(), is_cluster: other.is_cluster })
    }

    /// Asks the known servers and the configured ones for the partitions' servers. A known node keeps its connections; a stale
    /// one gets new ones.
    ///
    /// # Errors
    /// No server can be reached, or none of them is a master ([`NotMaster`]).
    pub(super) async fn discover(&self, before: Option<&Topology>) -> anyhow::Result<Topology> {
        let known: Vec<Arc<Node>> = before.map(Topology::nodes).unwrap_or_default().to_vec();
        let known: Vec<Arc<Node>> = known.into_iter().filter(|node| !node.is_stale()).collect();
        let topology = match self.master_of_sentinels().await {
            Some(Ok(address)) => {
                let named = self.node_at(address, &known)?;
                match self.ask(&named, &known).await {
                    Ok(topology) => topology,
                    // They may be wrong, and the master that was known still be one.
                    Err(error) => {
                        let known: Vec<_> =
                            known.iter().filter(|node| node.address != named.address).cloned().collect();
                        self.ask_any(&known, error.context(self.named(&named.address))).await?
                    }
                }
            }
            Some(Err(error)) => self.ask_any(&known, error).await?,
            None => {
                let configured = self.seeds.iter().map(|address| self.node_at(address.clone(), &known));
                let configured: Vec<_> = configured.collect::<anyhow::Result<_>>()?;
                let others = known.iter().filter(|node| !self.seeds.contains(&node.address));
                // The known servers first: a configured one may be the one that failed. A suspect one may hang.
                let mut seeds: Vec<_> = others.cloned().chain(configured).collect();
                seeds.sort_by_key(|node| node.is_suspect());
                self.ask_any(&seeds, anyhow::anyhow!("no server is known")).await?
            }
        };
        if before.is_none() {
            topology.check_names().await?;
        }
        Ok(topology)
    }

    fn node_at(&self, address: ConnectionAddr, known: &[Arc<Node>]) -> anyhow::Result<Arc<Node>> {
        let found = known.iter().find(|node| node.address == address && !node.is_stale()).cloned();
        found.map_or_else(|| self.node(address), Ok)
    }

    /// Asks one server after the other, until one knows the topology. Does not wait for one that is slow.
    async fn ask_any(&self, seeds: &[Arc<Node>], mut failure: anyhow::Error) -> anyhow::Result<Topology> {
        let (mut asked, mut next) = (FuturesUnordered::new(), seeds.iter());
        loop {
            if let Some(seed) = next.next() {
                asked.push(self.ask(seed, seeds));
            }
            tokio::select! {
                answer = asked.next() => match answer {
                    Some(Ok(topology)) => return Ok(topology),
                    Some(Err(error)) => failure = error,
                    None => return Err(failure),
                },
                () = tokio::time::sleep(SLOW_ANSWER), if next.len() > 0 => {}
            }
        }
    }

    async fn ask(&self, seed: &Arc<Node>, known: &[Arc<Node>]) -> anyhow::Result<Topology> {
        let mut link = seed.pool.get().await.with_context(|| format!("no connection to {}", seed.address))?;
        let mut ask = redis::pipe();
        ask.cmd("INFO").arg("cluster");
        ask.cmd("INFO").arg("replication");
        let (info, replication): (String, String) = ask.query_async(&mut link).await.map_err(permissions::explain)?;
        if !info.contains("cluster_enabled:1") {
            let role = settings::role(&replication);
            if role != MASTER {
                // The connections may be older than a failover: new ones may lead to another server.
                seed.mark_stale();
                return Err(anyhow::Error::new(NotMaster(role)).context(seed.address.to_string()));
            }
            if self.seeds.len() > 1 {
                bail!(
                    "{} is no node of a cluster, and REDIS_URL has several addresses: name this server alone, or its Sentinels \
                     (redis+sentinel://)",
                    seed.address
                );
            }
            let owners = vec![Some(0); usize::from(MAX_PARTITIONS)];
            return Ok(Topology { nodes: vec![seed.clone()], owners, is_cluster: false });
        }
        let ranges = slot_ranges(redis::cmd("CLUSTER").arg("SLOTS"), &mut link).await?;
        let mut ask = redis::pipe();
        for partition in (0..MAX_PARTITIONS).map(Partition) {
            ask.cmd("CLUSTER").arg("KEYSLOT").arg(Keys(partition).meta());
        }
        let slots: Vec<u16> = ask.query_async(&mut link).await.map_err(permissions::explain)?;
        let mut topology = Topology { nodes: Vec::new(), owners: Vec::with_capacity(slots.len()), is_cluster: true };
        for slot in slots {
            let Some((.., master)) = ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)) else {
                // The partition may not be in use.
                topology.owners.push(None);
                continue;
            };
            let address = self.address_of(master, seed)?;
            let place = topology.nodes.iter().position(|node| node.address == address);
            let place = match place {
                Some(place) => place,
                None => {
                    let node = if seed.address == address { seed.clone() } else { self.node_at(address, known)? };
                    topology.nodes.push(node);
                    topology.nodes.len() - 1
                }
            };
            topology.owners.push(Some(place));
        }
        if topology.nodes.is_empty() {
            return Err(Error::unavailable(format!("{} knows no owner of a slot of its cluster", seed.address)).into());
        }
        Ok(topology)
    }

    /// Converts `[host, port, id, metadata]` to an address of the same kind as `REDIS_URL`. With TLS, an announced host name
    /// takes precedence over an IP address, because the certificate must match it. A node that does not know its own name
    /// returns none, or `?`: it is `seed`.
    fn address_of(&self, master: &redis::Value, seed: &Node) -> anyhow::Result<ConnectionAddr> {
        let redis::Value::Array(parts) = master else { bail!("CLUSTER SLOTS answered an owner without an address") };
        let text = |index: usize| parts.get(index).cloned().unwrap_or_default();
        let reported: String = redis::FromRedisValue::from_redis_value(text(0)).unwrap_or_default();
        let port: u16 = redis::FromRedisValue::from_redis_value(text(1))?;
        let metadata: HashMap<String, String> = redis::FromRedisValue::from_redis_value(text(3)).unwrap_or_default();
        let tls = matches!(self.info.addr(), ConnectionAddr::TcpTls { .. });
        let name = metadata.get("hostname").filter(|name| tls && !name.is_empty());
        let host = match (name, reported.as_str(), metadata.get("ip"), &seed.address) {
            (Some(name), ..) => name.clone(),
            (None, reported, ..) if !reported.is_empty() && reported != "?" => reported.to_owned(),
            (None, _, Some(ip), _) if !ip.is_empty() => ip.clone(),
            (.., ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => host.clone(),
            _ => "127.0.0.1".to_owned(),
        };
        Ok(Address::like(self.info.addr(), host, port))
    }
}

impl Node {
    pub(super) fn address(&self) -> &ConnectionAddr {
        &self.address
    }

    /// The maximum age of its connections.
    pub(super) fn age(&self) -> Duration {
        self.created_at.elapsed()
    }

    /// Closes the pools: the node takes no further commands, and returned connections are closed. Returns false if it was
    /// stale before.
    pub(super) fn mark_stale(&self) -> bool {
        let is_new = !self.stale.swap(true, Ordering::AcqRel);
        self.pool.close();
        self.blocking.close();
        self.dedicated.clear();
        is_new
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// Its partitions may be on another server: discover before their next use.
    pub(super) fn suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    pub(super) fn clear_suspicion(&self) {
        self.suspect.store(false, Ordering::Release);
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.is_stale() || self.suspect.load(Ordering::Acquire)
    }
}

/// The ranges of `CLUSTER SLOTS`: first slot, last slot, owner. Ignores the replicas.
async fn slot_ranges(
    command: &redis::Cmd,
    link: &mut deadpool_redis::Connection,
) -> anyhow::Result<Vec<(u16, u16, redis::Value)>> {
    let ranges: Vec<Vec<redis::Value>> = command.query_async(link).await.map_err(permissions::explain)?;
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
    /// Connects to every server whose certificate must match an IP address.
    ///
    /// # Errors
    /// A certificate is for other names.
    async fn check_names(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            let ConnectionAddr::TcpTls { host, .. } = &node.address else { continue };
            if host.parse::<IpAddr>().is_err() {
                continue;
            }
            if let Err(error) = node.pool.get().await
                && error.to_string().contains("not valid for name")
            {
                bail!(
                    "{}: its certificate is for a host name, and the cluster announces an IP address: set \
                     cluster-announce-hostname on every node (or give it a certificate for its IP address): {error}",
                    node.address
                );
            }
        }
        Ok(())
    }

    pub(super) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The server of `partition`.
    pub(super) fn owner(&self, partition: Partition) -> Option<&Arc<Node>> {
        self.nodes.get(self.place(partition)?)
    }

    /// The index of the server of `partition`.
    pub(super) fn place(&self, partition: Partition) -> Option<usize> {
        self.owners.get(usize::from(partition.0)).copied().flatten()
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    pub(super) fn has_stale(&self) -> bool {
        self.nodes.iter().any(|node| node.is_stale())
    }

    /// Whether every partition has the same server, by the same connections.
    pub(super) fn is_same(&self, other: &Topology) -> bool {
        (0..MAX_PARTITIONS).map(Partition).all(|here| match (self.owner(here), other.owner(here)) {
            (Some(one), Some(another)) => Arc::ptr_eq(one, another),
            (one, another) => one.is_none() && another.is_none(),
        })
    }
}
