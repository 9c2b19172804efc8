//! Replies of scripts, parsed once: code, position, fields.

use std::{borrow::Cow, str::FromStr};

use anyhow::anyhow;
use redis::Value;

use super::reply_code::ReplyCode;
use crate::model::{Error, Position, Replication, Reply, event::SEPARATOR};

/// A script's reply to one request.
#[derive(Debug)]
pub struct ScriptReply {
    pub code: ReplyCode,
    /// The decision's place in the log of the partition that the script ran in; `None` if the script decided nothing.
    pub position: Option<Position>,
    /// Whether this is the stored reply to an earlier request under the same idempotency key.
    pub replayed: bool,
    /// With `ACK=replica`, of a reply to a client: whether replicas have the decision.
    pub replication: Option<Replication>,
    fields: ReplyFields,
    script: &'static str,
}

/// The parts of a reply after its code and position.
#[derive(Debug)]
enum ReplyFields {
    List(Vec<Value>),
    /// One reply of a batch, whole; its fields follow `head`, each after a separator. Not copied before one is read.
    Packed {
        text: String,
        head: usize,
    },
}

/// What a reply starts with.
struct Head {
    code: ReplyCode,
    position: Option<Position>,
    replayed: bool,
    /// How many parts these are, and how long they are with the separators between them.
    parts: usize,
    length: usize,
}

impl Head {
    fn parse<'a>(script: &str, mut parts: impl Iterator<Item = Cow<'a, str>>) -> Result<Head, Error> {
        let (mut taken, mut length) = (0, 0);
        let mut next = || {
            let part = parts.next().ok_or_else(|| Error::Internal(anyhow!("{script} replied with too little")))?;
            length += part.len() + usize::from(taken > 0);
            taken += 1;
            Ok::<_, Error>(part)
        };
        let parse_code = |part: Cow<'_, str>| {
            ReplyCode::parse(&part)
                .ok_or_else(|| Error::Internal(anyhow!("{script} replied with unknown code {part:?}")))
        };
        let mut code = parse_code(next()?)?;
        let replayed = code == ReplyCode::Replayed;
        if replayed {
            code = parse_code(next()?)?;
        }
        let mut position = None;
        if code.is_decision() {
            let (epoch, seq) = (next()?, next()?);
            let (Ok(epoch), Ok(seq)) = (epoch.parse(), seq.parse()) else {
                return Err(Error::Internal(anyhow!("{script} replied {code} at ({epoch}, {seq})")));
            };
            position = Some(Position { epoch, seq });
        }
        Ok(Head { code, position, replayed, parts: taken, length })
    }
}

impl ScriptReply {
    /// The reply of a script that decides one request per call: a list.
    pub(super) fn parse(script: &'static str, value: Value) -> Result<Self, Error> {
        let Value::Array(mut values) = value else {
            return Err(Error::Internal(anyhow!("{script} did not reply with a list")));
        };
        let Head { code, position, replayed, parts, .. } = Head::parse(script, values.iter().map_while(text_of))?;
        values.drain(..parts);
        Ok(ScriptReply { code, position, replayed, replication: None, fields: ReplyFields::List(values), script })
    }

    /// One of the replies of a script that decides a batch of requests per call: a text.
    pub(super) fn parse_packed(script: &'static str, value: Value) -> Result<Self, Error> {
        let Value::BulkString(bytes) = value else {
            return Err(Error::Internal(anyhow!("{script} did not reply with texts")));
        };
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::Internal(anyhow!("{script} replied with bytes that are no text: {error}")))?;
        let Head { code, position, replayed, length, .. } =
            Head::parse(script, text.split(SEPARATOR).map(Cow::Borrowed))?;
        let fields = ReplyFields::Packed { text, head: length };
        Ok(ScriptReply { code, position, replayed, replication: None, fields, script })
    }

    /// The reply that an idempotency record holds for a repeat of its request.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`] where the record is of another request.
    pub(super) fn parse_record(script: &'static str, mut record: Vec<Value>, fingerprint: &str) -> Result<Self, Error> {
        let of = record.drain(..1).next();
        if of.as_ref().and_then(text_of).as_deref() != Some(fingerprint) {
            return Err(Error::IdempotencyKeyReused);
        }
        Ok(ScriptReply { replayed: true, ..ScriptReply::parse(script, Value::Array(record))? })
    }

    /// The reply, unless it is one of the refusals that all scripts with an idempotency record share.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`]; [`Error::InProgress`].
    pub(super) fn accepted(self) -> Result<Self, Error> {
        match self.code {
            ReplyCode::KeyReused => Err(Error::IdempotencyKeyReused),
            ReplyCode::InProgress | ReplyCode::Running => Err(Error::InProgress),
            _ => Ok(self),
        }
    }

    /// The field `index` after the code and the position.
    ///
    /// # Errors
    /// There is none, or it is no `T`.
    pub fn get<T: FromStr>(&self, index: usize) -> Result<T, Error> {
        let field = match &self.fields {
            ReplyFields::List(values) => values.get(index).and_then(text_of),
            ReplyFields::Packed { text, head } => text[*head..].split(SEPARATOR).nth(index + 1).map(Cow::Borrowed),
        };
        field
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| Error::Internal(anyhow!("{} replied {} with a bad field {index}", self.script, self.code)))
    }

    /// The fields from `first` on, of a script that does not decide batches.
    pub fn into_fields(self, first: usize) -> impl Iterator<Item = Value> {
        let values = match self.fields {
            ReplyFields::List(values) => values,
            ReplyFields::Packed { .. } => Vec::new(),
        };
        values.into_iter().skip(first)
    }

    /// A value from the reply, with whether the reply is a replay.
    pub fn with<T>(&self, value: T) -> Reply<T> {
        Reply { value, replayed: self.replayed }
    }

    /// The code is none that the caller knows of this script.
    pub fn unexpected(&self) -> Error {
        Error::Internal(anyhow!("{} replied with unexpected code {}", self.script, self.code))
    }
}

/// A part of a reply as text; `None` of a list.
fn text_of(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Value::SimpleString(text) => Some(Cow::Borrowed(text)),
        Value::Int(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(parts: &[&str]) -> Value {
        Value::Array(parts.iter().map(|part| Value::BulkString(part.as_bytes().to_vec())).collect())
    }

    fn packed(parts: &[&str]) -> Value {
        Value::BulkString(parts.join("\u{1f}").into_bytes())
    }

    /// A reply in both of its forms.
    fn both(parts: &[&str]) -> [Result<ScriptReply, Error>; 2] {
        [ScriptReply::parse("a_script", list(parts)), ScriptReply::parse_packed("a_script", packed(parts))]
    }

    #[test]
    fn every_code_parsed_with_position_if_it_is_a_decision() {
        for code in ReplyCode::ALL.iter().copied().filter(|code| *code != ReplyCode::Replayed) {
            assert_eq!(ReplyCode::parse(code.as_str()), Some(code));
            for reply in both(&[code.as_str(), "3", "14", "15"]) {
                let reply = reply.unwrap();
                let position = code.is_decision().then_some(Position { epoch: 3, seq: 14 });
                assert_eq!((reply.code, reply.position, reply.replayed), (code, position, false));
                let first: i64 = if code.is_decision() { 15 } else { 3 };
                assert_eq!(reply.get::<i64>(0).unwrap(), first, "{code}");
            }
        }
    }

    #[test]
    fn replay_parsed_as_the_first_reply() {
        for reply in both(&["REPLAYED", "CHARGED", "1", "2", "김하늘", "500"]) {
            let reply = reply.unwrap();
            assert!(reply.replayed && reply.with(()).replayed);
            assert_eq!((reply.code, reply.position), (ReplyCode::Charged, Some(Position { epoch: 1, seq: 2 })));
            assert_eq!((reply.get::<String>(0).unwrap().as_str(), reply.get::<i64>(1).unwrap()), ("김하늘", 500));
        }
    }

    #[test]
    fn number_of_a_list_read_as_text_of_one_is() {
        let numbers = Value::Array(vec![
            Value::SimpleString("RESERVED".into()),
            Value::BulkString(b"1".to_vec()),
            Value::Int(9_007_199_254_740_991),
            Value::Int(7),
        ]);
        let reply = ScriptReply::parse("a_script", numbers).unwrap();
        assert_eq!(reply.position, Some(Position { epoch: 1, seq: 9_007_199_254_740_991 }));
        assert_eq!(reply.get::<i64>(0).unwrap(), 7);
    }

    #[test]
    fn empty_and_missing_fields_told_apart() {
        for reply in both(&["INSUFFICIENT_STOCK", "5", ""]) {
            let reply = reply.unwrap();
            assert_eq!(reply.get::<String>(1).unwrap(), "");
            assert!(reply.get::<i64>(1).is_err() && reply.get::<String>(2).is_err());
        }
        for reply in both(&["GRANTED", "1", "2"]) {
            assert!(reply.unwrap().get::<String>(0).is_err());
        }
    }

    #[test]
    fn malformed_reply_an_error() {
        let malformed: &[&[&str]] = &[
            &[""],
            &["granted", "1", "2"],
            &["NO_SUCH_CODE"],
            &["REPLAYED"],
            &["REPLAYED", "NO_SUCH_CODE"],
            &["GRANTED"],
            &["GRANTED", "1"],
            &["GRANTED", "1", "two"],
            &["GRANTED", "", "2"],
            &["REPLAYED", "GRANTED", "1"],
        ];
        for parts in malformed {
            for reply in both(parts) {
                assert!(matches!(reply, Err(Error::Internal(_))), "{parts:?}: {reply:?}");
            }
        }
        for value in [Value::Nil, Value::Int(1), Value::Array(Vec::new()), packed(&["GRANTED", "1", "2"])] {
            assert!(ScriptReply::parse("a_script", value).is_err());
        }
        for value in [Value::Nil, list(&["GRANTED", "1", "2"]), Value::BulkString(vec![0xff])] {
            assert!(ScriptReply::parse_packed("a_script", value).is_err());
        }
    }

    #[test]
    fn record_replayed_to_its_own_request_only() {
        let Value::Array(record) = list(&["print", "RESERVED", "1", "2", "50"]) else { unreachable!() };
        let reply = ScriptReply::parse_record("a_script", record.clone(), "print").unwrap();
        assert!(reply.replayed && reply.code == ReplyCode::Reserved && reply.get::<i64>(0).unwrap() == 50);
        let other = ScriptReply::parse_record("a_script", record, "another");
        assert!(matches!(other, Err(Error::IdempotencyKeyReused)));
        let Value::Array(running) = list(&["print", "RUNNING"]) else { unreachable!() };
        let reply = ScriptReply::parse_record("a_script", running, "print").unwrap();
        assert!(matches!(reply.accepted(), Err(Error::InProgress)));
    }

    #[test]
    fn shared_refusals_errors() {
        for (code, refused) in [("KEY_REUSED", true), ("IN_PROGRESS", true), ("RUNNING", true), ("STALE", false)] {
            for reply in both(&[code]) {
                assert_eq!(reply.unwrap().accepted().is_err(), refused, "{code}");
            }
        }
    }
}
