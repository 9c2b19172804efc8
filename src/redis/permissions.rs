//! What the writes of the scripts rely on before they begin: the Redis user's rights, and that the keys of a partition are
//! of the types that the scripts expect. Redis does not undo what a script has written when a later command of it is refused;
//! so both are tried before a partition is used, after every new connection, and again while it is used.

use std::{collections::HashSet, time::Duration};

use redis::{RedisError, aio::MultiplexedConnection};

use super::{connection::Means, keys::Keys};
use crate::model::Partition;

/// How often rights are tried again of a partition that is in use.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The pattern that every key of ours has, as an access control list writes it.
pub const KEY_PATTERN: &str = "~{p*}:*";

/// A command that the service or one of its scripts sends.
#[derive(Clone, Copy, Debug)]
pub struct Permission {
    /// As an access control list writes it.
    pub name: &'static str,
    /// A call of it, to be tried and never carried out; `KEY` is a key of the partition. Empty: it is used while a connection is
    /// made or to find the servers, and is its own trial.
    sample: &'static str,
}

const fn permission(name: &'static str, sample: &'static str) -> Permission {
    Permission { name, sample }
}

/// Every command that the user at Redis has to be allowed. `docs/running.md` has the same list.
pub const PERMISSIONS: &[Permission] = &[
    // The connection, and where it leads.
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

/// Says which of its arguments, commands in words, the user that calls it may not run. Runs none of them.
const TRY: &str = "#!lua flags=no-writes,allow-oom
if not redis.acl_check_cmd then
  return redis.error_reply('ERR rights can not be tried: redis.acl_check_cmd is missing, which Redis has since 7.0')
end
local missing = {}
for place, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do words[#words + 1] = word end
  -- An error: there is no such command, as where it was renamed.
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not (known and allowed) then missing[#missing + 1] = place end
end
return missing
";

/// What the user lacks to work on a partition; `None` where it lacks nothing.
///
/// # Errors
/// Redis does not answer, or can't say (also where `EVAL` is what is missing: the error names it).
pub(super) async fn missing(link: &mut MultiplexedConnection, here: Partition) -> Result<Option<String>, RedisError> {
    let (meta, keys) = (Keys(here).meta(), Keys(here).samples());
    let tried: Vec<&Permission> = PERMISSIONS.iter().filter(|right| !right.sample.is_empty()).collect();
    let mut ask = redis::cmd("EVAL");
    ask.arg(TRY).arg(0);
    for right in &tried {
        ask.arg(right.sample.replace("KEY", &meta));
    }
    // Two commands that read and write, since one of them may be what is missing.
    let on_keys = ["HINCRBY KEY field 1", "ZINCRBY KEY 1 member"];
    for key in &keys {
        for sample in on_keys {
            ask.arg(sample.replace("KEY", key));
        }
    }
    let places: Vec<usize> = ask.query_async(link).await?;
    let refused: HashSet<usize> = places.into_iter().filter_map(|place| place.checked_sub(1)).collect();
    let commands = tried.iter().enumerate().filter(|(at, _)| refused.contains(at));
    let commands: Vec<&Permission> = commands.map(|(_, right)| *right).collect();
    let of_key = |n: usize| tried.len() + n * on_keys.len()..tried.len() + (n + 1) * on_keys.len();
    let keys: Vec<&String> = keys
        .iter()
        .enumerate()
        .filter(|(n, _)| of_key(*n).all(|at| refused.contains(&at)))
        .map(|(_, key)| key)
        .collect();
    let with_key = |of: &[&Permission]| of.iter().filter(|right| right.sample.contains("KEY")).count();
    // Where no command gets at a key, it is not the commands that are missing.
    let names = match with_key(&commands) == with_key(&tried) {
        true => Vec::new(),
        false => commands.iter().map(|right| format!("+{}", right.name)).collect(),
    };
    let patterns =
        keys.first().map(|key| format!("{KEY_PATTERN} (it can't use {} kinds of keys, {key} for one)", keys.len()));
    let missing: Vec<String> = names.into_iter().chain(patterns).collect();
    Ok((!missing.is_empty()).then(|| missing.join(" ")))
}

/// The sentence about it.
pub(super) fn reason(missing: &str) -> String {
    format!("the user at Redis lacks rights: {missing}. docs/running.md has the whole list")
}

/// An error with that sentence before it, where it is about a right.
pub(super) fn explain(error: RedisError) -> anyhow::Error {
    match Means::of(&error) {
        Means::Forbidden => anyhow::anyhow!(reason(&error.to_string())),
        _ => error.into(),
    }
}

/// Keys of a partition that something else than this program has written; `None` where there are none.
///
/// # Errors
/// Redis does not answer.
pub(super) async fn foreign_keys(
    link: &mut MultiplexedConnection,
    here: Partition,
) -> Result<Option<String>, RedisError> {
    let fixed = Keys(here).fixed();
    let mut ask = redis::pipe();
    for (key, _) in &fixed {
        ask.cmd("TYPE").arg(key);
    }
    let types: Vec<String> = ask.query_async(link).await?;
    let wrong = fixed.iter().zip(types).filter(|((_, expected), found)| found != "none" && found != expected);
    let wrong: Vec<String> =
        wrong.map(|((key, expected), found)| format!("{key} is a {found}, not a {expected}")).collect();
    let reason = || format!("something else has written to this program's keys: {}", wrong.join(", "));
    Ok((!wrong.is_empty()).then(reason))
}
