//! Which server a partition is on: one for all, or, on a Redis Cluster, the node that owns the partition's slot.
//!
//! The cluster is asked when the first connection is made, and again whenever a node says that it no longer owns a slot, is
//! no master, or can't be reached. Where `REDIS_URL` names Sentinels it is they who are asked which server is the master.
//! Nothing is ever redirected or sent again by itself: a command that went to the wrong node has not run, and is answered
//! "unavailable" once.

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
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo};

use super::{
    address::{Address, Sentinels},
    connection::SharedConnection,
    keys::Keys,
    permissions,
    settings::{self, MASTER, NotMaster},
};
use crate::{
    config::RedisConfig,
    model::{Error, MAX_PARTITIONS, Partition},
};

/// Commands that may wait on one lane to be written; beyond it requests wait their turn.
const PIPELINE_BUFFER: usize = 4096;
/// Connections beside the lanes: for administrative work, and while lanes are replaced.
const SPARE_CONNECTIONS: usize = 8;

/// How connections are made, but for the address.
pub(super) struct Connecting {
    /// How to sign in, and to which server, unless Sentinels say to which.
    info: ConnectionInfo,
    sentinels: Option<Sentinels>,
    timeout: Duration,
    shared: usize,
}

/// One server.
pub(super) struct Node {
    address: ConnectionAddr,
    pub(super) shared: Vec<SharedConnection>,
    /// Makes the lanes' connections.
    pub(super) pool: Pool,
    /// Connections whose replies may take their time.
    pub(super) blocking: Pool,
    made: Instant,
    stale: AtomicBool,
}

/// The servers, and which of them each partition is on.
pub(super) struct Topology {
    nodes: Vec<Arc<Node>>,
    /// By partition: an index into `nodes`.
    owners: Vec<usize>,
}

impl Connecting {
    /// # Errors
    /// What is wrong with the address or the files of the certificates.
    pub(super) fn new(config: &RedisConfig) -> anyhow::Result<Self> {
        let Address { info, sentinels } = Address::read(config)?;
        Ok(Connecting {
            info,
            sentinels,
            timeout: Duration::from_millis(config.redis_timeout_ms),
            shared: usize::from(config.redis_connections.max(1)),
        })
    }

    pub(super) fn has_sentinels(&self) -> bool {
        self.sentinels.is_some()
    }

    /// Where the master is, as the Sentinels say; `None` where there are none.
    pub(super) async fn master_of_sentinels(&self) -> Option<anyhow::Result<ConnectionAddr>> {
        Some(self.sentinels.as_ref()?.master(self.timeout).await)
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
            // A blocking read answers when there is something, or after its own BLOCK time.
            blocking: pool(settings.set_response_timeout(None), usize::from(MAX_PARTITIONS) + SPARE_CONNECTIONS)?,
            address,
            made: Instant::now(),
            stale: AtomicBool::new(false),
        }))
    }

    /// Asks the servers known before, and the configured one, where the partitions are. A node that is still there keeps
    /// its connections; one that was left is made anew.
    ///
    /// # Errors
    /// No server can be reached, or none of them is a master ([`NotMaster`]).
    pub(super) async fn discover(&self, before: Option<&Topology>) -> anyhow::Result<Topology> {
        let known: Vec<Arc<Node>> = before.map(Topology::nodes).unwrap_or_default().to_vec();
        let known: Vec<Arc<Node>> = known.into_iter().filter(|node| !node.is_stale()).collect();
        let topology = match self.master_of_sentinels().await {
            Some(Ok(address)) => self.ask(&self.node_at(address, &known)?, &known).await?,
            Some(Err(error)) => self.ask_any(&known, error).await?,
            None => {
                let configured = self.node_at(self.info.addr().clone(), &known)?;
                // Those known to have been there first: the configured one may be the very one that is gone.
                let mut seeds: Vec<_> = known.iter().filter(|node| !Arc::ptr_eq(node, &configured)).cloned().collect();
                seeds.push(configured);
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

    async fn ask_any(&self, seeds: &[Arc<Node>], mut failure: anyhow::Error) -> anyhow::Result<Topology> {
        for seed in seeds {
            match self.ask(seed, seeds).await {
                Ok(topology) => return Ok(topology),
                Err(error) => failure = error,
            }
        }
        Err(failure)
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
                // Its connections may be older than the change: new ones may lead to another server.
                seed.mark_stale();
                return Err(anyhow::Error::new(NotMaster(role)).context(seed.address.to_string()));
            }
            return Ok(Topology { nodes: vec![seed.clone()], owners: vec![0; usize::from(MAX_PARTITIONS)] });
        }
        let ranges = slot_ranges(redis::cmd("CLUSTER").arg("SLOTS"), &mut link).await?;
        let mut ask = redis::pipe();
        for partition in (0..MAX_PARTITIONS).map(Partition) {
            ask.cmd("CLUSTER").arg("KEYSLOT").arg(Keys(partition).meta());
        }
        let slots: Vec<u16> = ask.query_async(&mut link).await.map_err(permissions::explain)?;
        let mut topology = Topology { nodes: Vec::new(), owners: Vec::with_capacity(slots.len()) };
        for slot in slots {
            let Some((.., master)) = ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)) else {
                return Err(Error::unavailable(format!("slot {slot} of the cluster has no owner")).into());
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
            topology.owners.push(place);
        }
        Ok(topology)
    }

    /// `[host, port, id, metadata]` as an address of the kind that REDIS_URL has. Where a certificate has to have the node's
    /// name, a host name that it announces is used before an IP address. A node that does not know its own name gives none,
    /// or `?`: it is the one that was asked.
    fn address_of(&self, master: &redis::Value, seed: &Node) -> anyhow::Result<ConnectionAddr> {
        let redis::Value::Array(parts) = master else { bail!("CLUSTER SLOTS answered an owner without an address") };
        let text = |index: usize| parts.get(index).cloned().unwrap_or_default();
        let told: String = redis::FromRedisValue::from_redis_value(text(0)).unwrap_or_default();
        let port: u16 = redis::FromRedisValue::from_redis_value(text(1))?;
        let more: HashMap<String, String> = redis::FromRedisValue::from_redis_value(text(3)).unwrap_or_default();
        let tls = matches!(self.info.addr(), ConnectionAddr::TcpTls { .. });
        let name = more.get("hostname").filter(|name| tls && !name.is_empty());
        let host = match (name, told.as_str(), more.get("ip"), &seed.address) {
            (Some(name), ..) => name.clone(),
            (None, told, ..) if !told.is_empty() && told != "?" => told.to_owned(),
            (None, _, Some(ip), _) if !ip.is_empty() => ip.clone(),
            (.., ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => host.clone(),
            _ => "127.0.0.1".to_owned(),
        };
        Ok(match self.info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        })
    }
}

impl Node {
    pub(super) fn address(&self) -> &ConnectionAddr {
        &self.address
    }

    /// How long ago its first connection could be made.
    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// Takes no further commands; connections that come back are closed. Whether this is news.
    pub(super) fn mark_stale(&self) -> bool {
        let news = !self.stale.swap(true, Ordering::AcqRel);
        self.pool.close();
        self.blocking.close();
        news
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }
}

/// The ranges of `CLUSTER SLOTS`: first slot, last slot, owner (replicas follow, and are not asked).
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
    /// Connects once to every server that is known by an IP address and must have a certificate for it.
    ///
    /// # Errors
    /// A certificate that is for other names.
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

    /// Every server.
    pub(super) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The server that `partition` is on.
    pub(super) fn owner(&self, partition: Partition) -> Option<&Arc<Node>> {
        self.nodes.get(self.place(partition)?)
    }

    /// A number for it.
    pub(super) fn place(&self, partition: Partition) -> Option<usize> {
        self.owners.get(usize::from(partition.0)).copied()
    }
}
