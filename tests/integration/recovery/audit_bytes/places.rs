//! Every byte of Redis, by the key and the field that it is in, and how to change it.

use std::{collections::BTreeMap, ops::Range};

use firstcome::{model::event, redis::keys::Keys};
use redis::{FromRedisValue, aio::MultiplexedConnection};

type Bytes = Vec<u8>;

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The name of the key.
    Key,
    /// The name of a field of a hash.
    Field(Bytes),
    /// The value of a field of a hash.
    Value(Bytes),
    /// An item of a list.
    Item(usize),
    /// A member of a set.
    Member,
    /// A member of a sorted set.
    Scored,
    /// The score of a member of a sorted set.
    Score(Bytes),
    /// A text of an entry of a stream: the entry, and the place among its names and values.
    Entry(String, usize),
    /// Whether the key expires.
    Life,
}

/// A text in Redis.
#[derive(Clone, Debug)]
pub struct Place {
    pub key: String,
    pub part: Part,
    /// What the text is, for example `Order status`; places with the same one are tried a few times only.
    pub group: String,
    pub text: Bytes,
    /// The bytes of the text that belong to the group.
    pub range: Range<usize>,
}

pub async fn get<T: FromRedisValue>(redis: &mut MultiplexedConnection, words: &[&[u8]]) -> T {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query_async(redis).await.unwrap()
}

/// Every place of every key.
pub async fn all_places(redis: &mut MultiplexedConnection) -> Vec<Place> {
    let mut places = Vec::new();
    let mut keys: Vec<String> = get(redis, &[b"KEYS", b"*"]).await;
    keys.sort_unstable();
    for key in keys {
        let (_, kind) = Keys::parse(&key).unwrap_or_else(|| panic!("{key} is of no kind"));
        let kind = format!("{kind:?}").split('(').next().unwrap().to_owned();
        let mut add = |part: Part, what: &str, text: &[u8], range: Range<usize>| {
            let group = format!("{kind} {what}");
            places.push(Place { key: key.clone(), part, group, text: text.to_vec(), range });
        };
        let name = key.as_bytes();
        add(Part::Key, "key", name, 0..name.len());
        if get::<i64>(redis, &[b"PTTL", name]).await >= 0 {
            add(Part::Life, "life", b"", 0..0);
        }
        match get::<String>(redis, &[b"TYPE", name]).await.as_str() {
            "hash" => {
                for (field, value) in get::<BTreeMap<Bytes, Bytes>>(redis, &[b"HGETALL", name]).await {
                    let shown = String::from_utf8_lossy(&field).into_owned();
                    let shown = if shown.starts_with(|c: char| c.is_ascii_digit()) { "id" } else { &shown };
                    add(Part::Field(field.clone()), &format!("field {shown}"), &field, 0..field.len());
                    add(Part::Value(field), shown, &value, 0..value.len());
                }
            }
            "list" => {
                let items: Vec<Bytes> = get(redis, &[b"LRANGE", name, b"0", b"-1"]).await;
                let state = String::from_utf8_lossy(&items[1]).into_owned();
                for (at, item) in items.iter().enumerate() {
                    add(Part::Item(at), &format!("{state} {at}"), item, 0..item.len());
                }
            }
            "set" => {
                for member in get::<Vec<Bytes>>(redis, &[b"SMEMBERS", name]).await {
                    add(Part::Member, "member", &member, 0..member.len());
                }
            }
            "zset" => {
                for (member, score) in
                    get::<Vec<(Bytes, Bytes)>>(redis, &[b"ZRANGE", name, b"0", b"-1", b"WITHSCORES"]).await
                {
                    add(Part::Scored, "member", &member, 0..member.len());
                    add(Part::Score(member), "score", &score, 0..score.len());
                }
            }
            "stream" => {
                for (id, texts) in get::<Vec<(String, Vec<Bytes>)>>(redis, &[b"XRANGE", name, b"-", b"+"]).await {
                    let is_forgotten = is_of_forgotten_user(redis, &key, &texts).await;
                    for (at, text) in texts.iter().enumerate() {
                        for (what, range) in parts_of(&texts, at) {
                            let is_gone = is_forgotten && what == "users_created name";
                            let what = if is_gone { "users_created forgotten name" } else { &what };
                            add(Part::Entry(id.clone(), at), what, text, range);
                        }
                    }
                }
            }
            other => panic!("{key} is a {other}"),
        }
    }
    places
}

/// Whether an entry of the outbox creates a user who was forgotten.
async fn is_of_forgotten_user(redis: &mut MultiplexedConnection, outbox: &str, texts: &[Bytes]) -> bool {
    let field = |name: &str| texts.chunks(2).find(|pair| pair[0] == name.as_bytes()).map(|pair| pair[1].as_slice());
    let (Some(b"users_created"), Some(first)) = (field("kind"), field("first")) else { return false };
    let user = outbox.replace("outbox", &format!("user:{}", std::str::from_utf8(first).unwrap()));
    get::<bool>(redis, &[b"EXISTS", user.as_bytes()]).await
        && !get::<bool>(redis, &[b"HEXISTS", user.as_bytes(), b"name"]).await
}

/// The parts of a text of an entry, each with what it is.
fn parts_of(texts: &[Bytes], at: usize) -> Vec<(String, Range<usize>)> {
    let shown = |text: &Bytes| String::from_utf8(text.clone()).unwrap();
    let whole = 0..texts[at].len();
    let name = shown(&texts[at - at % 2]);
    let fields: Vec<(String, String)> = texts.chunks(2).map(|pair| (shown(&pair[0]), shown(&pair[1]))).collect();
    if at.is_multiple_of(2) {
        return vec![(format!("name {name}"), whole)];
    }
    let kind = fields.iter().find(|(name, _)| name == "kind").map(|(_, kind)| kind.as_str());
    if name != "events" {
        return vec![(format!("{} {name}", kind.unwrap_or("batch")), whole)];
    }
    let (text, mut start, mut parts) = (shown(&texts[at]), 0, Vec::new());
    for (nth, packed) in text.split('\u{1e}').enumerate() {
        let named = event::fields_of(&fields, nth);
        let names = named.iter().map(|(name, _)| name).filter(|name| !["v", "epoch"].contains(&name.as_str()));
        let kind = packed.split('\u{1f}').next().unwrap();
        for (name, part) in names.zip(packed.split('\u{1f}')) {
            parts.push((format!("{kind} {name}"), start..start + part.len()));
            // The separator, too.
            start += part.len() + 1;
        }
    }
    parts
}

/// The key as it was, to be written back.
pub struct Saved {
    key: String,
    dump: Bytes,
    until: i64,
    other: Option<Bytes>,
}

/// Replaces the text of a place. `None` if that would replace another text, too.
pub async fn change(redis: &mut MultiplexedConnection, place: &Place, text: &[u8]) -> Option<Saved> {
    let key = place.key.as_bytes();
    let taken = match &place.part {
        Part::Key => get::<bool>(redis, &[b"EXISTS", text]).await,
        Part::Field(_) => get::<bool>(redis, &[b"HEXISTS", key, text]).await,
        Part::Member => get::<bool>(redis, &[b"SISMEMBER", key, text]).await,
        Part::Scored => get::<Option<f64>>(redis, &[b"ZSCORE", key, text]).await.is_some(),
        _ => false,
    };
    if taken {
        return None;
    }
    let dump: Bytes = get(redis, &[b"DUMP", key]).await;
    let until: i64 = get(redis, &[b"PEXPIRETIME", key]).await;
    let other = (place.part == Part::Key).then(|| text.to_vec());
    let saved = Saved { key: place.key.clone(), dump, until, other };
    match &place.part {
        Part::Key => get::<()>(redis, &[b"RENAME", key, text]).await,
        Part::Life => get::<()>(redis, &[b"PERSIST", key]).await,
        Part::Value(field) => get::<()>(redis, &[b"HSET", key, field, text]).await,
        Part::Field(field) => {
            let value: Bytes = get(redis, &[b"HGET", key, field]).await;
            get::<()>(redis, &[b"HDEL", key, field]).await;
            get::<()>(redis, &[b"HSET", key, text, &value]).await;
        }
        Part::Item(at) => get::<()>(redis, &[b"LSET", key, at.to_string().as_bytes(), text]).await,
        Part::Member => {
            get::<()>(redis, &[b"SREM", key, &place.text]).await;
            get::<()>(redis, &[b"SADD", key, text]).await;
        }
        Part::Scored => {
            let score: Bytes = get(redis, &[b"ZSCORE", key, &place.text]).await;
            get::<()>(redis, &[b"ZREM", key, &place.text]).await;
            get::<()>(redis, &[b"ZADD", key, &score, text]).await;
        }
        Part::Score(member) => get::<()>(redis, &[b"ZADD", key, text, member]).await,
        Part::Entry(id, at) => {
            let mut entries: Vec<(String, Vec<Bytes>)> = get(redis, &[b"XRANGE", key, b"-", b"+"]).await;
            let entry = entries.iter_mut().find(|(other, _)| other == id).unwrap();
            entry.1[*at] = text.to_vec();
            get::<()>(redis, &[b"DEL", key]).await;
            for (id, texts) in &entries {
                let words = [b"XADD", key, id.as_bytes()].into_iter().chain(texts.iter().map(Vec::as_slice));
                get::<()>(redis, &words.collect::<Vec<_>>()).await;
            }
        }
    }
    Some(saved)
}

pub async fn restore(redis: &mut MultiplexedConnection, saved: Saved) {
    if let Some(other) = &saved.other {
        get::<()>(redis, &[b"DEL", other]).await;
    }
    let until = saved.until.max(0).to_string();
    get::<()>(redis, &[b"RESTORE", saved.key.as_bytes(), until.as_bytes(), &saved.dump, b"REPLACE", b"ABSTTL"]).await;
}
