//! Reads for the dashboard: the units of products by state, the held units, the state of the servers. Each read is bounded in
//! size.

use std::collections::{HashMap, HashSet};

use anyhow::anyhow;
use futures_util::future::try_join_all;
use redis::{FromRedisValue, Value};

use crate::{
    model::{Error, Partition, ShelvedProduct, *},
    redis::{Store, keys::Keys},
};

/// The state of a Redis server, as the server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// `redis`, or the name of a compatible server.
    pub name: String,
    pub version: String,
    pub used_memory: u64,
    /// `None` if there is no limit.
    pub max_memory: Option<u64>,
    pub maxmemory_policy: String,
    pub aof_enabled: bool,
    /// `None` if the server does not report it.
    pub appendfsync: Option<String>,
    /// Whether the last write to the append-only file succeeded.
    pub aof_last_write_ok: bool,
    pub aof_rewrite_in_progress: bool,
    pub connected_clients: u64,
    /// The current number of commands per second.
    pub ops_per_second: u64,
}

impl Store {
    /// Products of one partition, with the units of all partitions; `None` for those that do not exist.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as for all the following methods.
    pub async fn shelves_of(&self, here: Partition, ids: &[ProductId]) -> Result<Vec<Option<ShelvedProduct>>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let elsewhere = self.all_but(here).map(|other| self.units_of(other, ids));
        let (mut shelves, elsewhere) = tokio::try_join!(self.own_shelves(here, ids), try_join_all(elsewhere))?;
        for units in elsewhere {
            for (shelf, [on_sale, held, sold, withheld, quarantined]) in shelves.iter_mut().zip(units) {
                let Some(shelf) = shelf else { continue };
                shelf.on_sale += on_sale;
                shelf.held += held;
                shelf.sold += sold;
                shelf.withheld += withheld;
                shelf.quarantined += quarantined;
            }
        }
        Ok(shelves)
    }

    /// The units on sale, held, sold, withheld and quarantined that a partition has of these products of another one.
    async fn units_of(&self, here: Partition, ids: &[ProductId]) -> Result<Vec<[i64; 5]>, Error> {
        let keys = Keys(here);
        let numbers: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let mut read = redis::pipe();
        read.atomic();
        for counter in [keys.stock(), keys.held(), keys.sold(), keys.withheld(), keys.quarantined()] {
            read.cmd("HMGET").arg(counter).arg(&numbers);
        }
        let columns: [Vec<Option<i64>>; 5] = self.pipe(here, &read).await?;
        let count = |column: &Vec<Option<i64>>, place: usize| column.get(place).copied().flatten().unwrap_or_default();
        Ok((0..ids.len()).map(|place| columns.each_ref().map(|column| count(column, place))).collect())
    }

    /// Products of one partition, with its own units, at one moment.
    async fn own_shelves(&self, here: Partition, ids: &[ProductId]) -> Result<Vec<Option<ShelvedProduct>>, Error> {
        let keys = Keys(here);
        let numbers: Vec<i64> = ids.iter().map(|id| id.get()).collect();
        let counters = [keys.stock(), keys.held(), keys.sold(), keys.withheld(), keys.quarantined()];
        let mut read = redis::pipe();
        read.atomic();
        for counter in &counters {
            read.cmd("HMGET").arg(counter).arg(&numbers);
        }
        read.cmd("HMGET").arg(keys.price()).arg(&numbers);
        for id in ids {
            read.cmd("HMGET").arg(keys.product(*id)).arg(&["name", "category"]);
        }
        let mut replies: Vec<Value> = self.pipe(here, &read).await?;
        let mut described = replies.split_off(counters.len().min(replies.len())).into_iter();
        let prices = Vec::<Option<String>>::from_redis_value(described.next().unwrap_or(Value::Nil));
        let prices = prices.map_err(|error| Error::Internal(anyhow!("prices are no texts: {error}")))?;
        let read_at = self.now(here);
        let columns = replies.into_iter().map(Vec::<Option<i64>>::from_redis_value).collect::<Result<Vec<_>, _>>();
        let columns = columns.map_err(|error| Error::Internal(anyhow!("units are no numbers: {error}")))?;
        let shelved = ids.iter().zip(described).zip(prices).enumerate().map(|(place, ((id, described), price))| {
            let count = |column: usize| columns.get(column)?.get(place).copied().flatten();
            let (name, category) = <(Option<String>, Option<String>)>::from_redis_value(described).ok()?;
            let (price, terms) = unpack_price(&price?)?;
            Some(ShelvedProduct {
                product_id: *id,
                name: name?,
                category: category?,
                price,
                on_sale: count(0)?,
                held: count(1).unwrap_or(0),
                sold: count(2).unwrap_or(0),
                withheld: count(3).unwrap_or(0),
                quarantined: count(4).unwrap_or(0),
                terms,
                read_at,
            })
        });
        Ok(shelved.collect())
    }

    /// A page of about `size` products of a partition with their held units, and the next cursor, which is `0` after the last
    /// page. A scan may return a product twice.
    pub async fn held_page(
        &self,
        here: Partition,
        cursor: &str,
        size: usize,
    ) -> Result<(Vec<(ProductId, i64)>, String), Error> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(Keys(here).held()).arg(cursor).arg("COUNT").arg(size);
        let (next, page): (String, Vec<(i64, i64)>) = self.query(here, scan).await?;
        Ok((page.into_iter().filter_map(|(id, held)| Some((ProductId::new(id)?, held))).collect(), next))
    }

    /// The state of each server.
    pub async fn server_states(&self) -> Result<Vec<ServerState>, Error> {
        let mut states = Vec::new();
        for here in self.one_of_each_server()? {
            let mut read = redis::cmd("INFO");
            read.arg(&["server", "memory", "persistence", "clients", "stats"]);
            let info: String = self.query_unchecked(here, &read).await?;
            let mut read = redis::cmd("CONFIG");
            read.arg("GET").arg("appendfsync");
            // Without `settle`: some services refuse this command, which must not cause a check of all permissions.
            let (_handle, mut link) = self.shared_connections().get(here).await?;
            let setting: Option<HashMap<String, String>> = read.query_async(&mut link).await.ok();
            states.push(server_state(&info, setting.and_then(|mut setting| setting.remove("appendfsync"))));
        }
        Ok(states)
    }

    fn one_of_each_server(&self) -> Result<Vec<Partition>, Error> {
        let mut seen = HashSet::new();
        let mut each = Vec::new();
        for here in self.all() {
            if seen.insert(self.shared_connections().server_of(here)?) {
                each.push(here);
            }
        }
        Ok(each)
    }
}

/// Parses the reply to `INFO`. Missing numbers are 0, missing flags false.
fn server_state(info: &str, appendfsync: Option<String>) -> ServerState {
    let field = |name: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or("").trim()
    };
    let number = |name: &str| field(name).parse().unwrap_or(0);
    // Valkey reports both; its `redis_version` is the Redis that it is compatible with.
    let (name, version) = match field("valkey_version") {
        "" => ("redis", field("redis_version")),
        version => ("valkey", version),
    };
    ServerState {
        name: name.to_owned(),
        version: version.to_owned(),
        used_memory: number("used_memory"),
        max_memory: Some(number("maxmemory")).filter(|max| *max > 0),
        maxmemory_policy: field("maxmemory_policy").to_owned(),
        aof_enabled: field("aof_enabled") == "1",
        appendfsync,
        aof_last_write_ok: field("aof_last_write_status") == "ok",
        aof_rewrite_in_progress: field("aof_rewrite_in_progress") == "1",
        connected_clients: number("connected_clients"),
        ops_per_second: number("instantaneous_ops_per_sec"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_state_parsed_from_info() {
        let info = "# Server\r\nredis_version:7.2.4\r\nvalkey_version:9.1.2\r\n# Memory\r\nused_memory:1048576\r\n\
                    used_memory_human:1.00M\r\nmaxmemory:2097152\r\nmaxmemory_policy:noeviction\r\n# Persistence\r\n\
                    aof_enabled:1\r\naof_rewrite_in_progress:0\r\naof_last_write_status:ok\r\n# Clients\r\n\
                    connected_clients:12\r\n# Stats\r\ninstantaneous_ops_per_sec:1200\r\n";
        let state = server_state(info, Some("always".to_owned()));
        assert_eq!((state.name.as_str(), state.version.as_str()), ("valkey", "9.1.2"));
        assert_eq!((state.used_memory, state.max_memory), (1_048_576, Some(2_097_152)));
        assert_eq!((state.maxmemory_policy.as_str(), state.appendfsync.as_deref()), ("noeviction", Some("always")));
        assert!(state.aof_enabled && state.aof_last_write_ok && !state.aof_rewrite_in_progress);
        assert_eq!((state.connected_clients, state.ops_per_second), (12, 1200));
        let bare = server_state("redis_version:7.0.15\r\nmaxmemory:0\r\n", None);
        assert_eq!((bare.name.as_str(), bare.version.as_str(), bare.max_memory), ("redis", "7.0.15", None));
        assert!(!bare.aof_enabled && !bare.aof_last_write_ok);
    }
}
