//! The version, the role and the settings of a Redis server on which durability depends.

use std::collections::HashMap;

use redis::{RedisError, aio::MultiplexedConnection};

use super::server_error::Means;
use crate::{
    config::{RedisDurability, ReplicaAck},
    model::Error,
};

/// The oldest version that knows `WAITAOF`.
const OLDEST_WITH_WAITAOF: (u64, u64) = (7, 2);
/// The oldest supported version. From it on, Redis refuses a script (`#!lua`) when memory is out, instead of stopping it half
/// way, and the append-only file survives a crash during a rewrite.
const OLDEST: (u64, u64) = (7, 0);

/// The setting that decides what happens when memory is short.
const EVICTION: &str = "maxmemory-policy";

/// The required settings: name, value, and the consequence of another value.
const REQUIRED: [(&str, &str, &str); 4] = [
    ("appendonly", "yes", "or a restart loses all data"),
    ("appendfsync", "always", "or a crash of the machine loses the last acknowledged decisions"),
    ("no-appendfsync-on-rewrite", "no", "or a crash during a rewrite of the append-only file loses them"),
    (EVICTION, "noeviction", "or Redis evicts decisions when memory is short"),
];

/// The number of replicas without which a master refuses writes.
const MIN_REPLICAS: &str = "min-replicas-to-write";

/// A server.
pub(super) struct ServerInfo {
    /// Redis generates a new one at every start.
    pub run_id: String,
    version: (u64, u64),
}

impl ServerInfo {
    /// Parses the reply to `INFO server`.
    pub(super) fn read(info: &str) -> ServerInfo {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or("").trim().to_owned()
        };
        // Valkey reports 7.2.4 here, the version of Redis that it is compatible with.
        let version = field("redis_version");
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        ServerInfo { run_id: field("run_id"), version }
    }

    /// The reason why this server can't be used at all.
    pub(super) fn unusable(&self, role: &str) -> Option<String> {
        let (major, minor) = self.version;
        if self.version < OLDEST {
            return Some(format!("Redis {major}.{minor} is too old: {}.{} is needed", OLDEST.0, OLDEST.1));
        }
        (role != MASTER).then(|| NotMaster(role.to_owned()).to_string())
    }
}

/// The role of a server that accepts writes, in `INFO replication`.
pub(super) const MASTER: &str = "master";

/// A server that accepts no writes, with its role.
#[derive(Debug, thiserror::Error)]
#[error("REDIS_URL leads to a {0}, which can't be written to")]
pub(super) struct NotMaster(pub String);

/// Parses the role from the reply to `INFO replication`.
pub(super) fn role(info: &str) -> String {
    let role = info.lines().find_map(|line| line.strip_prefix("role:"));
    role.unwrap_or("server of no role").trim().to_owned()
}

/// A server's part in the replication, by `INFO replication`.
pub(super) struct Replicas {
    pub role: String,
    /// Every promotion, and every start, begins a new one.
    pub replication_id: String,
    /// The connected replicas.
    connected: usize,
    /// Those that have the initial copy, and follow.
    pub in_sync: usize,
}

impl Replicas {
    /// Parses the reply to `INFO replication`.
    pub(super) fn read(info: &str) -> Replicas {
        let id = info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap_or_default();
        let is_replica = |line: &&str| {
            let number = line.strip_prefix("slave").and_then(|rest| rest.split_once(':'));
            number.is_some_and(|(number, rest)| number.parse::<usize>().is_ok() && rest.contains("state="))
        };
        let replicas = info.lines().filter(is_replica);
        let (connected, in_sync) = replicas.fold((0, 0), |(connected, in_sync), line| {
            (connected + 1, in_sync + usize::from(line.contains("state=online")))
        });
        Replicas { role: role(info), replication_id: id.trim().to_owned(), connected, in_sync }
    }

    /// Checks that `ACK=replica` can keep its promise on this server.
    ///
    /// # Errors
    /// It can't; [`Error::Unavailable`] while replicas load their first copy.
    pub(super) fn check(&self, server: &ServerInfo, ack: ReplicaAck) -> anyhow::Result<()> {
        let (needed, (major, minor)) = (ack.replicas, server.version);
        if ack.on_disk && server.version < OLDEST_WITH_WAITAOF {
            anyhow::bail!(
                "ACK_REPLICA_DISK needs Redis 7.2 or newer, and this one is {major}.{minor}: upgrade it, or leave ACK_REPLICA_DISK out"
            );
        }
        if self.connected < needed {
            anyhow::bail!(
                "ACK=replica waits for {needed} replicas (ACK_REPLICAS), and this Redis has {}: start replicas of it, or choose \
                 ACK=redis or ACK=postgres",
                self.connected
            );
        }
        if self.in_sync < needed {
            let reason = format!("replicas of Redis load their first copy: {} of {needed} are in sync", self.in_sync);
            return Err(Error::unavailable(reason).into());
        }
        Ok(())
    }
}

/// The durability settings of a server, as far as they can be read.
#[derive(Default)]
pub(super) struct ServerSettings {
    /// A message for each setting that may lose acknowledged decisions.
    losing: Vec<String>,
    /// The message about a policy that removes keys when memory is short: decisions would contradict what is gone.
    evicting: Option<String>,
    /// Why `CONFIG GET` is refused, as by most managed services.
    unreadable: Option<String>,
}

impl ServerSettings {
    /// Reads the settings with `CONFIG GET`; where that is refused, what `INFO` tells of them.
    ///
    /// With `ack`, a server must refuse writes while it has fewer replicas than that: it would make decisions that no reply may
    /// report.
    pub(super) async fn read(
        link: &mut MultiplexedConnection,
        ack: Option<ReplicaAck>,
    ) -> Result<ServerSettings, RedisError> {
        let mut read = redis::cmd("CONFIG");
        read.arg("GET");
        for (name, ..) in REQUIRED {
            read.arg(name);
        }
        read.arg(MIN_REPLICAS);
        let reply: Result<HashMap<String, String>, RedisError> = read.query_async(link).await;
        match reply {
            Ok(found) => Ok(ServerSettings::judge(ack, |name| Some(found.get(name).map_or("unknown", String::as_str)))),
            Err(error) if matches!(Means::of(&error), Means::Wrong | Means::Forbidden) => {
                let mut info = redis::pipe();
                info.cmd("INFO").arg("persistence");
                info.cmd("INFO").arg("memory");
                let (persistence, memory): (String, String) = info.query_async(link).await?;
                let info = persistence + &memory;
                let reported = reported_by_info(&info);
                let unreadable = Some(format!("its settings can't be read ({error}), so its durability is unknown"));
                Ok(ServerSettings { unreadable, ..ServerSettings::judge(ack, |name| reported.get(name).copied()) })
            }
            Err(error) => Err(error),
        }
    }

    /// Compares with [`REQUIRED`], and with `ack`; `value` is `None` for a setting that nothing tells.
    fn judge<'a>(ack: Option<ReplicaAck>, value: impl Fn(&str) -> Option<&'a str>) -> ServerSettings {
        let mut settings = ServerSettings::default();
        for (name, needed, why) in REQUIRED {
            let Some(value) = value(name).filter(|value| *value != needed) else { continue };
            let message = format!("{name} is {value} and must be {needed}, {why}");
            match name {
                EVICTION => settings.evicting = Some(message),
                _ => settings.losing.push(message),
            }
        }
        if let Some((ReplicaAck { replicas, .. }, value)) = ack.zip(value(MIN_REPLICAS))
            && !value.parse::<usize>().is_ok_and(|value| value >= replicas)
        {
            settings.losing.push(format!(
                "{MIN_REPLICAS} is {value} and must be {replicas} or more with ACK=replica, or a master without replicas keeps \
                 writing decisions that it can't acknowledge"
            ));
        }
        settings
    }

    /// The reason why `durability` does not accept these settings.
    pub(super) fn refusal(&self, durability: RedisDurability) -> Option<String> {
        let risks = self.losing.iter().chain(&self.unreadable).filter(|_| durability == RedisDurability::Checked);
        let refused: Vec<&str> = risks.chain(&self.evicting).map(String::as_str).collect();
        (!refused.is_empty()).then(|| format!("Redis may lose acknowledged decisions: {}", refused.join("; ")))
    }

    /// What to do about a refusal at start.
    pub(super) fn remedy(&self) -> &'static str {
        match (&self.evicting, &self.unreadable) {
            (Some(_), _) => "Change its settings",
            (None, Some(_)) => {
                "If its provider promises that it keeps every write that it has answered, say so with \
                 REDIS_DURABILITY=asserted (docs/running.md)"
            }
            (None, None) => {
                "Change its settings; docs/running.md says when REDIS_DURABILITY=asserted, or none with ACK=postgres, is right"
            }
        }
    }

    /// The number of settings that `durability` accepts although they may lose acknowledged decisions.
    pub(super) fn accepted_risks(&self, durability: RedisDurability) -> usize {
        match durability {
            // PostgreSQL has what such a Redis loses.
            RedisDurability::None => 0,
            RedisDurability::Checked | RedisDurability::Asserted => self.losing.len(),
        }
    }

    /// Logs what an operator answers for.
    pub(super) fn log(&self, durability: RedisDurability) {
        if durability != RedisDurability::Asserted {
            return;
        }
        for problem in &self.losing {
            tracing::warn!(problem, "Redis may lose acknowledged decisions");
        }
        if let Some(unreadable) = &self.unreadable {
            tracing::info!(unreadable, "the durability of Redis is as its operator asserts");
        }
    }
}

/// The settings that `INFO` tells.
fn reported_by_info(info: &str) -> HashMap<&'static str, &str> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let appendonly = field("aof_enabled").map(|enabled| if enabled == "1" { "yes" } else { "no" });
    let reported = [("appendonly", appendonly), (EVICTION, field("maxmemory_policy"))];
    reported.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_settings_parsed_from_info() {
        let info = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nrun_id:0d12ab\r\n";
        let server = ServerInfo::read(info);
        assert_eq!((server.run_id.as_str(), server.version), ("0d12ab", (7, 0)));
        assert_eq!(server.unusable("master"), None);
        assert!(server.unusable("slave").is_some_and(|why| why.contains("slave")));
        let old = ServerInfo::read("redis_version:6.2.14\r\nrun_id:1\r\n");
        assert!(old.unusable("master").is_some_and(|why| why.contains("6.2 is too old")));
        assert!(ServerInfo::read("").unusable("master").is_some());
    }

    #[test]
    fn replicas_counted_when_they_follow() {
        let info = "role:master\r\nconnected_slaves:2\r\nslave0:ip=1,port=2,state=online,offset=3,lag=0\r\n\
                    slave1:ip=1,port=3,state=wait_bgsave,offset=0,lag=0\r\nmaster_replid:8f\r\nslave_read_repl_offset:1\r\n";
        let replicas = Replicas::read(info);
        assert_eq!((replicas.role.as_str(), replicas.replication_id.as_str()), ("master", "8f"));
        assert_eq!((replicas.connected, replicas.in_sync), (2, 1));
        let (old, new) = (ServerInfo::read("redis_version:7.0.15"), ServerInfo::read("redis_version:7.2.4"));
        let ack = |replicas, on_disk| ReplicaAck { replicas, on_disk, timeout: std::time::Duration::from_secs(1) };
        assert!(replicas.check(&old, ack(1, false)).is_ok() && replicas.check(&new, ack(1, true)).is_ok());
        let refusal = |server: &ServerInfo, ack| replicas.check(server, ack).unwrap_err();
        assert!(refusal(&old, ack(1, true)).to_string().contains("Redis 7.2 or newer"));
        assert!(refusal(&new, ack(3, false)).to_string().contains("has 2: start replicas"));
        // This one is worth waiting for.
        assert!(refusal(&new, ack(2, false)).downcast_ref::<Error>().is_some());
    }

    #[test]
    fn settings_judged_by_asserted_durability() {
        use RedisDurability::{Asserted, Checked, None as Nothing};
        let judge = |settings: ServerSettings| {
            [Checked, Asserted, Nothing]
                .map(|durability| (settings.refusal(durability).is_none(), settings.accepted_risks(durability)))
        };
        let of = |append: &'static str, policy: &'static str| {
            ServerSettings::judge(None, move |name| match name {
                "appendonly" => Some(append),
                "appendfsync" => Some("always"),
                "no-appendfsync-on-rewrite" => Some("no"),
                _ => Some(policy),
            })
        };
        assert_eq!(judge(of("yes", "noeviction")), [(true, 0); 3]);
        assert_eq!(judge(of("no", "noeviction")), [(false, 1), (true, 1), (true, 0)]);
        // Evicted keys make wrong decisions, however durable Redis is.
        assert_eq!(judge(of("yes", "allkeys-lru")).map(|(accepted, _)| accepted), [false; 3]);
        let closed = |info: &str| {
            let reported = reported_by_info(info);
            let unreadable = Some("its settings can't be read".to_owned());
            ServerSettings { unreadable, ..ServerSettings::judge(None, |name| reported.get(name).copied()) }
        };
        let info = "aof_enabled:1\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!(judge(closed(info)), [(false, 0), (true, 0), (true, 0)]);
        assert_eq!(judge(closed("aof_enabled:0\r\n")), [(false, 1), (true, 1), (true, 0)]);
        assert_eq!(judge(closed("maxmemory_policy:volatile-lru\r\n")).map(|(accepted, _)| accepted), [false; 3]);
        assert_eq!(judge(closed("")), [(false, 0), (true, 0), (true, 0)]);
    }
}
