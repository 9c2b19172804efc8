//! The Sentinels that know a master.
//!
//! All of them are asked at once. They learn of a failover one after the other, and one that is cut off does not learn of it
//! at all: the newest configuration counts, by its epoch, which every failover increments. Sentinels that name different
//! servers under one epoch watch different masters under one name, and are refused.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use crate::model::Error;

/// How long the other Sentinels may still answer, after most of them have.
const LATE_ANSWERS: Duration = Duration::from_millis(200);

/// The Sentinels that know a master.
pub(super) struct Sentinels {
    sentinels: Vec<Sentinel>,
    /// The name of the master.
    master: String,
}

struct Sentinel {
    client: Client,
    link: Mutex<Option<MultiplexedConnection>>,
}

/// What a Sentinel says of the master.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamedMaster {
    host: String,
    port: u16,
    /// Of the server; empty if the Sentinel has not reached it yet.
    run_id: String,
    epoch: u64,
}

impl Sentinels {
    pub(super) fn new(sentinels: Vec<Client>, master: String) -> Sentinels {
        let sentinels = sentinels.into_iter().map(|client| Sentinel { client, link: Mutex::default() });
        Sentinels { sentinels: sentinels.collect(), master }
    }

    /// The name of the master.
    pub(super) fn name(&self) -> &str {
        &self.master
    }

    /// The host and the port of the master. The server may be another one meanwhile, or gone.
    ///
    /// # Errors
    /// No Sentinel answers within `timeout`, none knows the master, or they name different ones.
    pub(super) async fn master(&self, timeout: Duration) -> anyhow::Result<(String, u16)> {
        let mut deadline = Instant::now() + timeout;
        let mut asked: FuturesUnordered<_> =
            self.sentinels.iter().map(|sentinel| sentinel.ask(&self.master, timeout)).collect();
        let (mut named, mut unknown, mut failure) = (Vec::new(), 0, None);
        while let Ok(Some(answer)) = timeout_at(deadline, asked.next()).await {
            match answer {
                Ok(Some(master)) => named.push(master),
                Ok(None) => unknown += 1,
                Err(error) => failure = Some(error),
            }
            if named.len() > self.sentinels.len() / 2 {
                deadline = deadline.min(Instant::now() + LATE_ANSWERS);
            }
        }
        if !named.is_empty() {
            return choose(named, &self.master);
        }
        if unknown == self.sentinels.len() {
            bail!("no Sentinel knows the master {}: REDIS_URL must name it as `sentinel monitor` does", self.master);
        }
        let Some(failure) = failure else {
            return Err(Error::unavailable(format!("no Sentinel names the master {}", self.master)).into());
        };
        Err(failure).with_context(|| format!("no Sentinel names the master {}", self.master))
    }
}

/// The master of the newest configuration.
fn choose(named: Vec<NamedMaster>, name: &str) -> anyhow::Result<(String, u16)> {
    let newest = named.iter().map(|master| master.epoch).max().unwrap_or(0);
    let mut named = named.into_iter().filter(|master| master.epoch == newest);
    let Some(mut chosen) = named.next() else { bail!("no Sentinel names the master {name}") };
    for other in named {
        let same = (&other.host, other.port) == (&chosen.host, chosen.port) || other.run_id == chosen.run_id;
        if !same && !other.run_id.is_empty() && !chosen.run_id.is_empty() {
            bail!(
                "the Sentinels do not agree on the master {name}: they name {}:{} and {}:{}. One name must stand for one master",
                chosen.host,
                chosen.port,
                other.host,
                other.port
            );
        }
        if chosen.run_id.is_empty() {
            chosen = other;
        }
    }
    Ok((chosen.host, chosen.port))
}

impl Sentinel {
    /// What the Sentinel says of the master; `None` if it does not know that name.
    async fn ask(&self, master: &str, timeout: Duration) -> RedisResult<Option<NamedMaster>> {
        let mut kept = self.link.lock().await;
        // Taken, so that a cancelled call leaves no connection behind that may hang.
        let link = kept.take();
        if let Some(mut link) = link
            && let Ok(masters) = masters(&mut link).await
        {
            *kept = Some(link);
            return find(&masters, master);
        }
        let settings =
            AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
        let mut link = self.client.get_multiplexed_async_connection_with_config(&settings).await?;
        let masters = masters(&mut link).await?;
        *kept = Some(link);
        find(&masters, master)
    }
}

type Masters = Vec<HashMap<String, String>>;

async fn masters(link: &mut MultiplexedConnection) -> RedisResult<Masters> {
    redis::cmd("SENTINEL").arg("MASTERS").query_async(link).await
}

fn find(masters: &Masters, name: &str) -> RedisResult<Option<NamedMaster>> {
    let Some(master) = masters.iter().find(|master| master.get("name").is_some_and(|known| known == name)) else {
        return Ok(None);
    };
    let field = |name: &str| master.get(name).map(String::as_str).unwrap_or_default();
    let unreadable = |_| RedisError::from((ErrorKind::UnexpectedReturnType, "a Sentinel names no port"));
    let port = field("port").parse().map_err(unreadable)?;
    let epoch = field("config-epoch").parse().unwrap_or(0);
    Ok(Some(NamedMaster { host: field("ip").to_owned(), port, run_id: field("runid").to_owned(), epoch }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(port: u16, run_id: &str, epoch: u64) -> NamedMaster {
        NamedMaster { host: "redis".to_owned(), port, run_id: run_id.to_owned(), epoch }
    }

    #[test]
    fn master_of_newest_configuration_chosen_in_any_order() {
        let (cut_off, elected) = (named(1, "old", 3), named(2, "new", 4));
        for answers in [[cut_off.clone(), elected.clone()], [elected, cut_off]] {
            assert_eq!(choose(answers.to_vec(), "shop").unwrap(), ("redis".to_owned(), 2));
        }
    }

    #[test]
    fn sentinels_refused_when_one_epoch_names_two_servers() {
        let error = choose(vec![named(1, "a", 0), named(2, "b", 0)], "shop").unwrap_err().to_string();
        assert!(error.contains("do not agree on the master shop: they name redis:1 and redis:2"), "{error}");
        // One server under two addresses, and a Sentinel that has not reached its master yet.
        assert_eq!(choose(vec![named(1, "a", 0), named(2, "a", 0)], "shop").unwrap().1, 1);
        assert_eq!(choose(vec![named(1, "", 0), named(2, "b", 0)], "shop").unwrap().1, 2);
    }
}
