//! Checks the permissions of the Redis user, and the types of a partition's keys.
//!
//! Redis does not undo the writes of a script when it refuses a later command of it. Therefore both are checked before a
//! partition is used, after every new connection, and periodically while the partition is in use.

use std::{collections::HashSet, time::Duration};

use redis::{RedisError, aio::MultiplexedConnection};

use super::{keys::Keys, server_error::Means};
use crate::{config::ReplicaAck, model::Partition};

/// The interval of the checks of a partition in use.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The pattern of all keys of the service, in the notation of access control lists.
pub const KEY_PATTERN: &str = "~{p*}:*";

/// A command that the service or one of its scripts sends.
#[derive(Clone, Copy, Debug)]
pub struct Permission {
    /// The name in the notation of access control lists.
    pub name: &'static str,
    /// A sample call for the check, which never runs it; `KEY` stands for a key of the partition. Empty for a command that
    /// connecting or discovery uses anyway.
    sample: &'static str,
}

const fn permission(name: &'static str, sample: &'static str) -> Permission {
    Permission { name, sample }
}

/// Every command that the Redis user needs. `docs/running.md` has the same list.
pub const PERMISSIONS: &[Permission] = &[
    // Connecting and discovery.
    permission("auth", ""),
    permission("hello", ""),
    permission("select", ""),
    permission("ping", ""),
    permission("unwatch", ""),
    permission("cluster|slots", ""),
    permission("cluster|keyslot", ""),
    permission("info", "INFO server"),
    permission("config|get", ""),
    // Scripts and transactions.
    permission("eval", "EVAL script 1 KEY"),
    permission("evalsha", "EVALSHA hash 1 KEY"),
    permission("script|load", "SCRIPT LOAD script"),
    permission("multi", "MULTI"),
    permission("exec", "EXEC"),
    // Keys.
    permission("del", "DEL KEY"),
    permission("exists", "EXISTS KEY"),
    permission("expire", "EXPIRE KEY 1"),
    permission("persist", "PERSIST KEY"),
    permission("pexpire", "PEXPIRE KEY 1"),
    permission("pttl", "PTTL KEY"),
    permission("scan", "SCAN 0"),
    permission("type", "TYPE KEY"),
    permission("unlink", "UNLINK KEY"),
    permission("hdel", "HDEL KEY field"),
    permission("hexists", "HEXISTS KEY field"),
    permission("hget", "HGET KEY field"),
    permission("hgetall", "HGETALL KEY"),
    permission("hincrby", "HINCRBY KEY field 1"),
    permission("hmget", "HMGET KEY field"),
    permission("hscan", "HSCAN KEY 0"),
    permission("hset", "HSET KEY field value"),
    permission("hsetnx", "HSETNX KEY field value"),
    permission("lrange", "LRANGE KEY 0 -1"),
    permission("rpush", "RPUSH KEY value"),
    permission("sadd", "SADD KEY member"),
    permission("scard", "SCARD KEY"),
    permission("smismember", "SMISMEMBER KEY member"),
    permission("sscan", "SSCAN KEY 0"),
    permission("zadd", "ZADD KEY 1 member"),
    permission("zcard", "ZCARD KEY"),
    permission("zcount", "ZCOUNT KEY -inf +inf"),
    permission("zincrby", "ZINCRBY KEY 1 member"),
    permission("zrange", "ZRANGE KEY 0 -1"),
    permission("zrem", "ZREM KEY member"),
    permission("zremrangebyscore", "ZREMRANGEBYSCORE KEY -inf +inf"),
    permission("zscore", "ZSCORE KEY member"),
    permission("zunion", "ZUNION 1 KEY"),
    permission("time", "TIME"),
    permission("xadd", "XADD KEY * field value"),
    permission("xlen", "XLEN KEY"),
    permission("xrange", "XRANGE KEY - +"),
    permission("xread", "XREAD STREAMS KEY 0"),
    permission("xtrim", "XTRIM KEY MINID 0"),
];

/// What the user needs beside them with `ACK=replica`; the second with `ACK_REPLICA_DISK` instead of the first.
pub const REPLICA_PERMISSIONS: [Permission; 2] =
    [permission("wait", "WAIT 1 1"), permission("waitaof", "WAITAOF 0 1 1")];

/// What the user should have for a server that has started again ([`aof_rewrite`](super::aof_rewrite)).
pub const REWRITE_PERMISSION: Permission = permission("bgrewriteaof", "BGREWRITEAOF");

/// The commands that the user needs, as configured.
fn needed(ack: Option<ReplicaAck>) -> impl Iterator<Item = &'static Permission> {
    let of_replicas = ack.map(|ack| &REPLICA_PERMISSIONS[usize::from(ack.on_disk)]);
    PERMISSIONS.iter().chain(of_replicas)
}

/// A script that returns the indexes of those arguments, each a command, that its caller may not run. It runs none of them.
const CHECK_SCRIPT: &str = "#!lua flags=no-writes,allow-oom
if not redis.acl_check_cmd then
  return redis.error_reply('ERR rights can not be tried: redis.acl_check_cmd is missing, which Redis has since 7.0')
end
local missing = {}
for place, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do words[#words + 1] = word end
  -- pcall fails for an unknown command, for example a renamed one.
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not (known and allowed) then missing[#missing + 1] = place end
end
return missing
";

/// The commands and key patterns that the user lacks for a partition; `None` if it has all.
///
/// # Errors
/// Redis is unavailable, or can't run the check. If the user may not run `EVAL`, the error names it.
async fn missing(
    link: &mut MultiplexedConnection,
    here: Partition,
    ack: Option<ReplicaAck>,
) -> Result<Option<String>, RedisError> {
    let (meta, keys) = (Keys(here).meta(), Keys(here).samples());
    let checked: Vec<&Permission> = needed(ack).filter(|permission| !permission.sample.is_empty()).collect();
    let mut check = redis::cmd("EVAL");
    check.arg(CHECK_SCRIPT).arg(0);
    for permission in &checked {
        check.arg(permission.sample.replace("KEY", &meta));
    }
    // Two commands that read and write a key, because one of them may itself be missing.
    let on_keys = ["HINCRBY KEY field 1", "ZINCRBY KEY 1 member"];
    for key in &keys {
        for sample in on_keys {
            check.arg(sample.replace("KEY", key));
        }
    }
    let places: Vec<usize> = check.query_async(link).await?;
    let refused: HashSet<usize> = places.into_iter().filter_map(|place| place.checked_sub(1)).collect();
    let commands = checked.iter().enumerate().filter(|(at, _)| refused.contains(at));
    let commands: Vec<&Permission> = commands.map(|(_, permission)| *permission).collect();
    let of_key = |n: usize| checked.len() + n * on_keys.len()..checked.len() + (n + 1) * on_keys.len();
    let keys: Vec<&String> = keys
        .iter()
        .enumerate()
        .filter(|(n, _)| of_key(*n).all(|at| refused.contains(&at)))
        .map(|(_, key)| key)
        .collect();
    let with_key = |of: &[&Permission]| of.iter().filter(|permission| permission.sample.contains("KEY")).count();
    // If every command on keys is refused, the key pattern is missing, not the commands.
    let names = match with_key(&commands) == with_key(&checked) {
        true => Vec::new(),
        false => commands.iter().map(|permission| format!("+{}", permission.name)).collect(),
    };
    let patterns =
        keys.first().map(|key| format!("{KEY_PATTERN} (it can't use {} kinds of keys, {key} for one)", keys.len()));
    let missing: Vec<String> = names.into_iter().chain(patterns).collect();
    Ok((!missing.is_empty()).then(|| missing.join(" ")))
}

/// A message about the permissions that the Redis user lacks for a partition; `None` if it has all.
pub(super) async fn lacking(
    link: &mut MultiplexedConnection,
    here: Partition,
    ack: Option<ReplicaAck>,
) -> Result<Option<String>, RedisError> {
    match missing(link, here, ack).await {
        Ok(missing) => Ok(missing.map(|missing| reason(&missing))),
        // The user may not even run the command that checks; the error names it.
        Err(error) if Means::of(&error) == Means::Forbidden => Ok(Some(reason(&error.to_string()))),
        Err(error) => Err(error),
    }
}

/// The message about missing permissions.
fn reason(missing: &str) -> String {
    format!("the Redis user lacks permissions: {missing}. docs/running.md has the whole list")
}

/// Adds the message to an error about permissions.
pub(super) fn explain(error: RedisError) -> anyhow::Error {
    match Means::of(&error) {
        Means::Forbidden => anyhow::anyhow!(reason(&error.to_string())),
        _ => error.into(),
    }
}

/// A message about keys of a partition with an unexpected type, which another program has written; `None` if there are none.
///
/// # Errors
/// Redis is unavailable.
pub(super) async fn foreign_keys(
    link: &mut MultiplexedConnection,
    here: Partition,
) -> Result<Option<String>, RedisError> {
    let fixed = Keys(here).fixed();
    let mut read = redis::pipe();
    for (key, _) in &fixed {
        read.cmd("TYPE").arg(key);
    }
    let types: Vec<String> = read.query_async(link).await?;
    let wrong = fixed.iter().zip(types).filter(|((_, expected), found)| found != "none" && found != expected);
    let wrong: Vec<String> =
        wrong.map(|((key, expected), found)| format!("{key} is a {found}, not a {expected}")).collect();
    let reason = || format!("another program has written to this program's keys: {}", wrong.join(", "));
    Ok((!wrong.is_empty()).then(reason))
}
