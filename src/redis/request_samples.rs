//! Samples of the requests of every process: a stream of the last fifteen minutes, for the dashboards.
//!
//! The stream dates the samples by Redis's clock, so that those of processes with different clocks fit together. It is bounded,
//! and expires by itself. It is no part of the shop's state: nothing waits for it, a rebuild leaves it alone, and a loss of it loses
//! the past of a chart.

use std::time::Duration;

use anyhow::anyhow;
use redis::{FromRedisValue, Value};

use super::{
    Store,
    keys::Keys,
    outbox::{Entry, StreamId},
};
use crate::model::{Error, Millis, Partition};

/// How long samples are kept.
pub const SAMPLES_KEPT: Duration = Duration::from_secs(900);
/// The most samples that are kept: those of 64 processes. A read takes no more.
pub const MAX_SAMPLES: usize = 64 * 180;
/// The samples of one page of a read.
const SAMPLES_PAGE: usize = 1_000;
/// The partition that has them.
const SAMPLES_PARTITION: Partition = Partition(0);

/// How far an entry may be ahead of Redis's clock, in ms.
const MAX_AHEAD_MS: i64 = 60_000;

/// Whether an entry is ahead of Redis's clock: the clock was, or another program wrote it. All later entries would be dated by it.
pub fn is_ahead(id: StreamId, now: Millis) -> bool {
    id.ms > now.0.saturating_add(MAX_AHEAD_MS).max(0) as u64
}

/// Parses the reply to `TIME`.
fn time((seconds, microseconds): (i64, i64)) -> Millis {
    Millis(seconds * 1000 + microseconds / 1000)
}

impl Store {
    /// Adds samples, each with the ms since the end of its period; at least one. `last`: the last entry that the caller has written.
    /// Returns the new one. A repeat adds the samples again: they have numbers.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also while the first partition is closed.
    pub async fn add_request_samples(
        &self,
        samples: &[(u64, String)],
        last: Option<StreamId>,
    ) -> Result<StreamId, Error> {
        let key = Keys(SAMPLES_PARTITION).requests();
        let kept_ms = SAMPLES_KEPT.as_millis() as u64;
        let mut add = redis::pipe();
        add.atomic();
        add.cmd("TIME");
        if let Some(last) = last {
            add.cmd("XTRIM").arg(&key).arg("MINID").arg("~").arg(last.ms.saturating_sub(kept_ms)).ignore();
        }
        for (ago, sample) in samples {
            add.cmd("XADD").arg(&key).arg("MAXLEN").arg("~").arg(MAX_SAMPLES).arg("*");
            add.arg("ago").arg(*ago).arg("sample").arg(sample);
        }
        add.cmd("PEXPIRE").arg(&key).arg(kept_ms).ignore();
        let mut replies: Vec<Value> = self.pipe(SAMPLES_PARTITION, &add).await?;
        let newest = replies.pop().map(String::from_redis_value).transpose();
        let newest = newest.ok().flatten().and_then(|id| id.parse().ok());
        let now = replies.into_iter().next().map(<(i64, i64)>::from_redis_value).transpose().ok().flatten();
        let (Some(newest), Some(now)) = (newest, now) else {
            return Err(Error::Internal(anyhow!("the reply of Redis names no entry or no time")));
        };
        if is_ahead(newest, time(now)) {
            self.query::<i64>(SAMPLES_PARTITION, redis::cmd("UNLINK").arg(&key).to_owned()).await?;
        }
        Ok(newest)
    }

    /// The samples after `after` that are not too old, oldest first, and Redis's time.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn request_samples(&self, after: StreamId) -> Result<(Millis, Vec<Entry>), Error> {
        let now = time(self.query_unchecked(SAMPLES_PARTITION, &redis::cmd("TIME")).await?);
        let oldest = (now.0 - SAMPLES_KEPT.as_millis() as i64).max(0) as u64;
        let mut after = after.max(StreamId { ms: oldest, no: 0 });
        let mut samples: Vec<Entry> = Vec::new();
        while samples.len() < MAX_SAMPLES {
            let mut read = redis::cmd("XRANGE");
            read.arg(Keys(SAMPLES_PARTITION).requests()).arg(format!("({after}")).arg("+");
            read.arg("COUNT").arg(SAMPLES_PAGE);
            let page: Vec<Entry> = self.query_unchecked(SAMPLES_PARTITION, &read).await?;
            let is_last = page.len() < SAMPLES_PAGE;
            after = page.last().map_or(after, |entry| entry.id);
            samples.extend(page);
            if is_last {
                break;
            }
        }
        Ok((now, samples))
    }
}
