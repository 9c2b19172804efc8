//! The outbox stream of each partition: read after an entry, trimmed once PostgreSQL has the entries. Works on a closed
//! partition too, because its earlier decisions are valid.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::{Store, keys::Keys};
use crate::model::{Error, Millis, Partition};

/// The id of an entry in its stream: `milliseconds-number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub ms: u64,
    pub no: u64,
}

impl StreamId {
    /// Before every entry.
    pub const ZERO: StreamId = StreamId { ms: 0, no: 0 };

    /// The next id: the first that a trim up to and including this one keeps.
    fn next(self) -> StreamId {
        match self.no.checked_add(1) {
            Some(no) => StreamId { ms: self.ms, no },
            None => StreamId { ms: self.ms + 1, no: 0 },
        }
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.no)
    }
}

impl std::str::FromStr for StreamId {
    type Err = anyhow::Error;

    fn from_str(id: &str) -> Result<Self, anyhow::Error> {
        let (ms, no) = id.split_once('-').ok_or_else(|| anyhow::anyhow!("{id:?} is no stream id"))?;
        Ok(StreamId { ms: ms.parse()?, no: no.parse()? })
    }
}

/// An entry of the stream, not decoded.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: StreamId,
    /// Invalid UTF-8 is replaced: such an entry becomes a dead letter anyway.
    pub fields: Vec<(String, String)>,
}

/// Parses an entry of `XRANGE` with all fields in their order, duplicate names included.
impl FromRedisValue for Entry {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let (id, fields) = <(String, Vec<Value>)>::from_redis_value(value)?;
        let id = id.parse().map_err(|error: anyhow::Error| ParsingError::from(error.to_string()))?;
        let mut texts = fields.into_iter().map(|value| match value {
            Value::BulkString(bytes) => {
                String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned())
            }
            Value::SimpleString(text) => text,
            Value::Int(number) => number.to_string(),
            other => format!("{other:?}"),
        });
        let mut fields = Vec::with_capacity(texts.len() / 2);
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            fields.push((name, value));
        }
        Ok(Entry { id, fields })
    }
}

impl Store {
    /// Reads up to `count` entries up to and including `last`, oldest first.
    pub async fn outbox_until(&self, here: Partition, last: StreamId, count: usize) -> Result<Vec<Entry>, Error> {
        let mut read = redis::cmd("XRANGE");
        read.arg(Keys(here).outbox()).arg("-").arg(last.to_string()).arg("COUNT").arg(count);
        self.query_unchecked(here, &read).await
    }

    /// Reads up to `count` entries after `last`, oldest first. Waits up to `wait` for the first one, on a connection of its own.
    pub async fn outbox_after(
        &self,
        here: Partition,
        last: StreamId,
        count: usize,
        wait: Duration,
    ) -> Result<Vec<Entry>, Error> {
        let mut link = self.shared_connections().blocking(here).await?;
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(count);
        // BLOCK 0 would wait for ever.
        if wait.as_millis() > 0 {
            read.arg("BLOCK").arg(wait.as_millis() as u64);
        }
        read.arg("STREAMS").arg(Keys(here).outbox()).arg(last.to_string());
        // Redis may reply a little after the BLOCK time. The limit is for a server that hangs.
        let limit = wait + Duration::from_secs(5);
        let reply =
            match tokio::time::timeout(limit, read.query_async::<Option<Vec<(String, Vec<Entry>)>>>(&mut link)).await {
                Ok(Ok(reply)) => reply,
                failed => {
                    // The connection may be blocked or broken: it must not return to the pool.
                    drop(deadpool_redis::Connection::take(link));
                    return Err(match failed {
                        Ok(Err(error)) => self.shared_connections().translate(error),
                        _ => Error::unavailable("Redis does not reply to a blocking read"),
                    });
                }
            };
        Ok(reply.into_iter().flatten().flat_map(|(_, entries)| entries).collect())
    }

    /// Reads up to `count` entries after `last`, oldest first, without waiting.
    pub async fn outbox_page(&self, here: Partition, last: StreamId, count: usize) -> Result<Vec<Entry>, Error> {
        let mut read = redis::cmd("XRANGE");
        read.arg(Keys(here).outbox()).arg(format!("({last}")).arg("+").arg("COUNT").arg(count);
        self.query_unchecked(here, &read).await
    }

    /// Trims every entry up to and including `last`. PostgreSQL must have committed them.
    pub async fn outbox_trim(&self, here: Partition, last: StreamId) -> Result<(), Error> {
        let mut trim = redis::cmd("XTRIM");
        trim.arg(Keys(here).outbox()).arg("MINID").arg("=").arg(last.next().to_string());
        self.query_unchecked::<i64>(here, &trim).await.map(drop)
    }

    /// The time, by Redis's clock, of the oldest entry after `last`; `None` if there is none.
    pub async fn outbox_oldest_after(&self, here: Partition, last: StreamId) -> Result<Option<Millis>, Error> {
        let first = self.outbox_page(here, last, 1).await?.pop();
        Ok(first.map(|entry| Millis(entry.id.ms as i64)))
    }
}
