//! Reads for the audit: records with everything that belongs to them, and the decisions that PostgreSQL does not have yet, at
//! one moment (one `MULTI`). Works on a closed partition too.
//!
//! A changed byte may make any value of Redis something else than what the service writes. So values are read as text, and the
//! audit compares and parses them.

mod indexes;
mod records;

pub use indexes::{FixedKeys, Scanned, sort_keys};
pub use records::{CampaignSeen, OrderSeen, ProductSeen, RanksSeen, RecordSeen, UserSeen};

use std::{collections::HashMap, fmt};

use anyhow::anyhow;
use redis::{FromRedisValue, ParsingError, Value};

use crate::{
    model::{Error, Partition, Position},
    redis::{
        Store,
        keys::Keys,
        outbox::{Entry, Relayed, StreamId},
    },
};

/// A text of Redis. Invalid UTF-8 is replaced, so that it equals nothing that the service writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LossyText(pub String);

impl FromRedisValue for LossyText {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match value {
            Value::BulkString(bytes) => Ok(LossyText(
                String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()),
            )),
            other => String::from_redis_value(other).map(LossyText),
        }
    }
}

impl fmt::Display for LossyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fields of a hash. They are few, so that a list is faster than a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashFields(Vec<(String, String)>);

impl HashFields {
    pub fn get(&self, name: &str) -> Option<&String> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(name, _)| name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes the fields whose names are so.
    fn take(&mut self, is_so: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        self.0.extract_if(.., |(name, _)| is_so(name)).collect()
    }
}

impl FromIterator<(String, String)> for HashFields {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(fields: T) -> Self {
        HashFields(fields.into_iter().collect())
    }
}

impl FromRedisValue for HashFields {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let field = |(name, value)| Ok((LossyText::from_redis_value(name)?.0, LossyText::from_redis_value(value)?.0));
        match value {
            // RESP3.
            Value::Map(fields) => fields.into_iter().map(field).collect(),
            // RESP2.
            Value::Array(items) if items.len() % 2 == 0 => {
                let mut items = items.into_iter();
                std::iter::from_fn(|| items.next().zip(items.next())).map(field).collect()
            }
            other => {
                let fields = HashMap::<LossyText, LossyText>::from_redis_value(other)?;
                Ok(fields.into_iter().map(|(name, value)| (name.0, value.0)).collect())
            }
        }
    }
}

/// The members of a sorted set with their scores: a flat list in RESP2, pairs in RESP3.
struct ScoredTexts(Vec<(String, f64)>);

impl FromRedisValue for ScoredTexts {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let pairs = Vec::<(LossyText, f64)>::from_redis_value(value)?;
        Ok(ScoredTexts(pairs.into_iter().map(|(member, score)| (member.0, score)).collect()))
    }
}

/// Records of one partition at one moment.
#[derive(Debug)]
pub struct Inspected<T> {
    /// The partition's last decision; `None` if the partition has no state.
    pub position: Option<Position>,
    /// The last decision whose effects the projector has relayed, and whose order it has evicted.
    pub relayed: Option<Relayed>,
    /// The entries of the outbox after the given one.
    pub entries: Vec<Entry>,
    pub records: Vec<T>,
}

struct Replies(std::vec::IntoIter<Value>);

impl Replies {
    fn next<T: FromRedisValue>(&mut self) -> Result<T, Error> {
        let value = self.0.next().unwrap_or(Value::Nil);
        T::from_redis_value(value)
            .map_err(|error| Error::Internal(anyhow!("a value in Redis has an unexpected type: {error}")))
    }

    fn text(&mut self) -> Result<Option<String>, Error> {
        Ok(self.next::<Option<LossyText>>()?.map(|text| text.0))
    }

    fn hash(&mut self) -> Result<HashFields, Error> {
        self.next()
    }
}

impl Store {
    /// Reads the position, up to `max` entries of the outbox after `after`, and the replies to the commands of `add_reads`, at
    /// one moment; `read` makes the records of the replies.
    async fn at_one_moment<T>(
        &self,
        here: Partition,
        (after, max): (StreamId, usize),
        add_reads: impl FnOnce(&mut redis::Pipeline),
        read: impl FnOnce(&mut Replies) -> Result<Vec<T>, Error>,
    ) -> Result<Inspected<T>, Error> {
        let mut reads = redis::pipe();
        reads.atomic();
        reads.cmd("HMGET").arg(Keys(here).meta()).arg(&["epoch", "seq", "relayed"]);
        reads.cmd("XRANGE").arg(Keys(here).outbox()).arg(format!("({after}")).arg("+").arg("COUNT").arg(max);
        add_reads(&mut reads);
        let replies: Vec<Value> = self.pipe_unchecked(here, &reads).await?;
        let mut replies = Replies(replies.into_iter());
        let meta: Vec<Option<LossyText>> = replies.next()?;
        let field = |at: usize| meta.get(at)?.as_ref().map(|text| text.0.as_str());
        let number = |at: usize| field(at)?.parse().ok();
        let position = number(0).zip(number(1)).map(|(epoch, seq)| Position { epoch, seq });
        let relayed = field(2).and_then(Relayed::parse);
        let entries: Vec<Entry> = replies.next()?;
        Ok(Inspected { position, relayed, entries, records: read(&mut replies)? })
    }
}
