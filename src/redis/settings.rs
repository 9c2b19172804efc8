//! The version, the role and the settings of a Redis server on which durability depends.

use std::collections::HashMap;

use redis::{RedisError, aio::MultiplexedConnection};

use super::connection::Means;

/// The oldest supported version. From it on, Redis refuses a script (`#!lua`) when memory is out, instead of stopping it half
/// way, and the append-only file survives a crash during a rewrite.
const OLDEST: (u64, u64) = (7, 0);

/// The required settings: name, value, and the consequence of another value.
const REQUIRED: [(&str, &str, &str); 4] = [
    ("appendonly", "yes", "or a restart loses all data"),
    ("appendfsync", "always", "or a crash of the machine loses the last acknowledged decisions"),
    ("no-appendfsync-on-rewrite", "no", "or a crash during a rewrite of the append-only file loses them"),
    ("maxmemory-policy", "noeviction", "or Redis evicts decisions when memory is short"),
];

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

/// A message for each setting that has not the required value, or one message if the settings can't be read.
pub(super) async fn problems(link: &mut MultiplexedConnection) -> Result<Vec<String>, RedisError> {
    let mut read = redis::cmd("CONFIG");
    read.arg("GET");
    for (name, ..) in REQUIRED {
        read.arg(name);
    }
    let found: HashMap<String, String> = match read.query_async(link).await {
        Ok(found) => found,
        // Managed services refuse the command; the server is reachable.
        Err(error) if matches!(Means::of(&error), Means::Wrong | Means::Forbidden) => {
            return Ok(vec![format!("its settings can't be read ({error}), so its durability is unknown")]);
        }
        Err(error) => return Err(error),
    };
    let wrong = REQUIRED.iter().filter_map(|(name, needed, why)| {
        let value = found.get(*name).map_or("unknown", String::as_str);
        (value != *needed).then(|| format!("{name} is {value} and must be {needed}, {why}"))
    });
    Ok(wrong.collect())
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
}
