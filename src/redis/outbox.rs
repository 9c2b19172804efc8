//! The outbox stream of each partition: read after an entry, trimmed once PostgreSQL has the entries. Works on a closed
//! partition too, because its earlier decisions are valid.

use std::{io, time::Duration};

use redis::{FromRedisValue, ParsingError, Value};

use super::{
    Store,
    keys::Keys,
    reply_code::ReplyCode,
    script::{self, Invocation},
};
use crate::model::{Error, Millis, Partition, Position};

/// What Redis needs beside the texts, about: for each name with its value, and for each entry.
const FIELD_BYTES: usize = 4;
const ENTRY_BYTES: usize = 16;

/// The id of an entry in its stream: `milliseconds-number`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    pub ms: u64,
    pub no: u64,
}

impl StreamId {
    /// Before every entry.
    pub const ZERO: StreamId = StreamId { ms: 0, no: 0 };

    /// The id before this one.
    pub fn before(self) -> StreamId {
        match self.no.checked_sub(1) {
            Some(no) => StreamId { ms: self.ms, no },
            None => StreamId { ms: self.ms.saturating_sub(1), no: u64::MAX },
        }
    }

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

/// The last decision whose effects the projector has relayed and whose order it has evicted, and its entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    pub position: Position,
    pub entry: StreamId,
}

impl Relayed {
    /// Parses the field `relayed` of a partition's state.
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, rest) = text.split_once(':')?;
        let (seq, entry) = rest.split_once(':')?;
        let position = Position { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? };
        Some(Relayed { position, entry: entry.parse().ok()? })
    }
}

/// As the field `relayed` has it.
impl std::fmt::Display for Relayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.position.epoch, self.position.seq, self.entry)
    }
}

/// An entry of the stream, not decoded.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: StreamId,
    /// Invalid UTF-8 is replaced: such an entry becomes a dead letter anyway.
    pub fields: Vec<(String, String)>,
}

impl Entry {
    /// About the bytes that Redis needs for the entry.
    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len() + FIELD_BYTES).sum::<usize>() + ENTRY_BYTES
    }
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
    /// Reads up to `count` entries after `after`, up to and including `last`, oldest first.
    pub async fn outbox_between(
        &self,
        here: Partition,
        (after, last): (StreamId, StreamId),
        count: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut read = redis::cmd("XRANGE");
        read.arg(Keys(here).outbox()).arg(format!("({after}")).arg(last.to_string()).arg("COUNT").arg(count);
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
        let (node, mut link) = self.shared_connections().blocking(here).await?;
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(count);
        // BLOCK 0 would wait for ever.
        if wait.as_millis() > 0 {
            read.arg("BLOCK").arg(wait.as_millis() as u64);
        }
        read.arg("STREAMS").arg(Keys(here).outbox()).arg(last.to_string());
        // Redis may reply a little after the BLOCK time. The limit is for a server that hangs.
        let limit = wait + Duration::from_secs(5);
        let reply = tokio::time::timeout(limit, read.query_async::<Option<Vec<(String, Vec<Entry>)>>>(&mut link));
        match reply.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())) {
            Ok(reply) => Ok(reply.into_iter().flatten().flat_map(|(_, entries)| entries).collect()),
            Err(error) => {
                // The connection may be blocked or broken: it must not return to the pool.
                drop(deadpool_redis::Connection::take(link));
                Err(self.shared_connections().settle_blocking(&node, error))
            }
        }
    }

    /// Reads up to `count` entries after `last`, oldest first, without waiting.
    pub async fn outbox_page(&self, here: Partition, last: StreamId, count: usize) -> Result<Vec<Entry>, Error> {
        let mut read = redis::cmd("XRANGE");
        read.arg(Keys(here).outbox()).arg(format!("({last}")).arg("+").arg("COUNT").arg(count);
        self.query_unchecked(here, &read).await
    }

    /// The mark of [`Store::outbox_mark_and_trim`]; `None` before the first one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn relayed(&self, here: Partition) -> Result<Option<Relayed>, Error> {
        let mut read = redis::cmd("HGET");
        read.arg(Keys(here).meta()).arg("relayed");
        let mark: Option<String> = self.query_unchecked(here, &read).await?;
        Ok(mark.as_deref().and_then(Relayed::parse))
    }

    /// Marks decisions as relayed and their orders as evicted (`outbox_mark.lua`), and trims every entry up to and including
    /// `trim`, which PostgreSQL must have committed. `known`: the last mark that the caller knows of. Returns the number of entries
    /// that remain; `None` if Redis lacks that mark: then nothing is trimmed.
    ///
    /// # Errors
    /// [`Error::Unavailable`]. A repeat is safe.
    pub async fn outbox_mark_and_trim(
        &self,
        here: Partition,
        mark: Option<Relayed>,
        known: Option<Relayed>,
        trim: Option<StreamId>,
    ) -> Result<Option<usize>, Error> {
        if let Some(Relayed { position, entry }) = mark {
            let known =
                known.filter(|known| known.position.epoch == position.epoch).map_or(0, |known| known.position.seq);
            let mut invocation = Invocation::new(&script::OUTBOX_MARK);
            invocation.key(Keys(here).meta()).arg(position.epoch).arg(position.seq).arg(entry.to_string()).arg(known);
            let mut calls = redis::pipe();
            // By source, because a pipeline can't load a forgotten script and go on.
            calls.add_command(invocation.by_source());
            calls.cmd("XLEN").arg(Keys(here).outbox());
            let ((code,), remaining): ((String,), usize) = self.pipe_unchecked(here, &calls).await?;
            if code == ReplyCode::Behind.as_str() {
                return Ok(None);
            }
            if trim.is_none() {
                return Ok(Some(remaining));
            }
        }
        let mut calls = redis::pipe();
        if let Some(last) = trim {
            calls.cmd("XTRIM").arg(Keys(here).outbox()).arg("MINID").arg("=").arg(last.next().to_string()).ignore();
        }
        calls.cmd("XLEN").arg(Keys(here).outbox());
        let (remaining,): (usize,) = self.pipe_unchecked(here, &calls).await?;
        Ok(Some(remaining))
    }

    /// The time, by Redis's clock, of the oldest entry after `last`; `None` if there is none.
    pub async fn outbox_oldest_after(&self, here: Partition, last: StreamId) -> Result<Option<Millis>, Error> {
        let first = self.outbox_page(here, last, 1).await?.pop();
        Ok(first.map(|entry| Millis(entry.id.ms as i64)))
    }
}
