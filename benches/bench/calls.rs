//! Direct calls of a script, without the engine: the only module of the benchmarks that knows a script's keys and arguments.
//!
//! The calls use their own database of the same Redis (`SELECT 1`) with its own partition state, so that no direct decision is
//! projected and the engine's partitions stay untouched.

use anyhow::{Result, ensure};
use firstcome::{
    model::{CouponId, Partition, UserId},
    redis::{keys::Keys, script},
};
use redis::aio::MultiplexedConnection;

use crate::servers::{self, Servers};

/// redis-benchmark replaces each occurrence in a command by twelve random digits.
pub const RANDOM: &str = "__rand_int__";
/// The number of the database.
pub const DATABASE: i64 = 1;

const HERE: Keys = Keys(Partition(0));

/// A call of `lua/coupon_issue.lua` for any number of users.
pub struct CouponIssue {
    pub sha: String,
    keys: Vec<String>,
    args: Vec<String>,
}

impl CouponIssue {
    /// One call issues one coupon, without an idempotency key, to a user of the same partition, as a request over HTTP does. Keys
    /// and arguments follow the order of the script's header.
    ///
    /// All calls share one user's hash, which favours Redis; every other key is per user. The script refuses a user drawn twice, so
    /// redis-benchmark draws from two thousand million.
    fn new(sha: String, now: i64) -> Option<Self> {
        let (coupon, one) = (CouponId::new(1)?, UserId::new(1)?);
        let text = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
        let keys = vec![
            HERE.meta(),
            HERE.outbox(),
            HERE.campaign(coupon),
            HERE.holders(coupon),
            HERE.record(""),
            HERE.user(one),
        ];
        let args = text(&["86400000", "1", &now.to_string(), "", "", RANDOM, "1"]);
        Some(CouponIssue { sha, keys, args })
    }

    /// The arguments of the command, from `EVALSHA` on.
    pub fn command_args(&self) -> Vec<String> {
        let mut args = vec!["EVALSHA".to_owned(), self.sha.clone(), self.keys.len().to_string()];
        args.extend(self.keys.iter().chain(&self.args).cloned());
        args
    }

    /// The command for one user.
    pub fn command(&self, user: u64) -> redis::Cmd {
        let user = format!("{user:012}");
        let mut command = redis::Cmd::new();
        for arg in self.command_args() {
            command.arg(arg.replace(RANDOM, &user));
        }
        command
    }
}

/// The database of the direct calls.
pub struct Aside {
    pub link: MultiplexedConnection,
}

impl Aside {
    pub async fn open(servers: &Servers) -> Result<(Self, CouponIssue)> {
        let mut link = servers.redis_link().await?;
        redis::cmd("SELECT").arg(DATABASE).exec_async(&mut link).await?;
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script::COUPON_ISSUE.source());
        let sha: String = load.query_async(&mut link).await?;
        let call = CouponIssue::new(sha, servers::now().0);
        Ok((Aside { link }, call.ok_or_else(|| anyhow::anyhow!("not an id"))?))
    }

    /// Empties the database and creates an open partition, a campaign that never ends, and a user.
    pub async fn begin(&mut self) -> Result<()> {
        redis::cmd("FLUSHDB").exec_async(&mut self.link).await?;
        let (coupon, user) = (CouponId::new(1), UserId::new(1));
        let (Some(coupon), Some(user)) = (coupon, user) else { anyhow::bail!("not an id") };
        let (meta, campaign, user) = (HERE.meta(), HERE.campaign(coupon), HERE.user(user));
        let mut fill = redis::pipe();
        fill.cmd("HSET").arg(meta).arg(&["store", "bench", "partitions", "1", "epoch", "1", "seq", "0"]).ignore();
        fill.cmd("HSET").arg(campaign).arg(&["code", "HANGHAE8888", "type", "FIXED", "amount", "1000"]);
        fill.arg(&["total", "1000000000", "issued", "0", "opens_at", "0", "closes_at", "9000000000000"]).ignore();
        fill.cmd("HSET").arg(user).arg(&["name", "user-1", "balance", "0", "entries", "0", "tail", "", "open", "0"]);
        fill.ignore().exec_async(&mut self.link).await?;
        Ok(())
    }

    /// Checks that at least 99 % of the `calls` issued a coupon, so that the measurement is of issues and not of refusals.
    pub async fn end(&mut self, calls: u64) -> Result<()> {
        let mut decided = redis::cmd("HGET");
        let decided: u64 = decided.arg(HERE.meta()).arg("seq").query_async(&mut self.link).await?;
        ensure!(
            decided as f64 >= calls as f64 * 0.99,
            "only {decided} of {calls} direct calls issued a coupon: benches/bench/calls.rs no longer fits lua/coupon_issue.lua"
        );
        redis::cmd("FLUSHDB").exec_async(&mut self.link).await?;
        Ok(())
    }
}
