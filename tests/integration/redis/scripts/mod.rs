//! Every script against its header, called as the service calls it: a refusal leaves Redis unchanged, an effect is
//! exactly one event that carries it whole, a repeat changes nothing. A reply code that only the header or only the
//! tests have fails.

mod balances;
mod calls;
mod coupons;
mod creation;
mod orders;
mod payments;
mod refunds;
mod retention;
mod terms;
mod transfers;
mod users;

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use firstcome::{
    model::{
        CalendarDay, CloseReason, DiscountType, MAX_SAFE_INTEGER, OrderStatus, Partition, SaleTerms, UserId,
        event::{self, Body, Event, PaymentOutcome, unpack_reply},
    },
    redis::{
        keys::Keys,
        queries::ranking::ranked_until,
        reply_code::ReplyCode,
        script::{self, Script},
    },
};
use redis::{Value, aio::MultiplexedConnection};

use crate::support::harness::{Options, START, TestApp};

const DAY: &str = "20260302";
pub const HOUR_MS: i64 = 3_600_000;

/// A call: keys and arguments as in the script's header. To a script that decides many requests at once, a call of one.
#[derive(Clone)]
pub struct Raw {
    pub script: &'static Script,
    pub keys: Vec<String>,
    pub args: Vec<String>,
    /// How many of the keys and arguments all requests of a call share; then come the request's own. `None`: the script
    /// decides one request at a time.
    pub shared: Option<(usize, usize)>,
}

impl Raw {
    /// The same with another ARGV `n`, numbered as in the header; of a request that is one of many, the clock is the first and
    /// its own follow.
    pub fn with(&self, n: usize, value: impl ToString) -> Raw {
        match self.shared {
            Some((_, args)) if n > 1 => self.with_shared(n - 1 + args, value),
            _ => self.with_shared(n, value),
        }
    }

    /// The same with another of the arguments that come first.
    pub fn with_shared(&self, n: usize, value: impl ToString) -> Raw {
        let mut other = self.clone();
        other.args[n - 1] = value.to_string();
        other
    }

    /// Where its idempotency record is named: the first, of a script that has two.
    fn record_at(&self) -> usize {
        self.keys.iter().position(|key| key.contains(":idem:")).unwrap()
    }

    fn record(&self) -> &String {
        &self.keys[self.record_at()]
    }

    fn now(&self) -> &str {
        &self.args[0]
    }

    /// The same under an idempotency key (one per partition), as the request `fingerprint`.
    pub fn keyed(&self, key: &str, fingerprint: &str) -> Raw {
        // A script without an event needs no clock, so that its fingerprint is the first argument.
        let has_clock = self.keys.contains(&Keys(self.partition()).outbox());
        let mut other = self.with(if has_clock { 2 } else { 1 }, fingerprint);
        other.keys[self.record_at()] = Keys(self.partition()).record(key);
        other
    }

    fn partition(&self) -> Partition {
        let tag = self.keys[0].split_once(':').unwrap().0;
        Partition(tag.trim_start_matches("{p").trim_end_matches('}').parse().unwrap())
    }
}

/// Calls scripts directly, and collects the reply codes.
pub struct Bench {
    pub test: TestApp,
    pub redis: MultiplexedConnection,
    partitions: i64,
    seen: BTreeMap<&'static str, BTreeSet<String>>,
}

pub fn text(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).unwrap(),
        Value::SimpleString(text) => text,
        Value::Int(number) => number.to_string(),
        Value::Array(values) => values.into_iter().map(text).collect::<Vec<_>>().join(" "),
        other => panic!("a script answered {other:?}"),
    }
}

fn strings<const N: usize>(values: [&dyn ToString; N]) -> Vec<String> {
    values.map(|value| value.to_string()).into()
}

/// The reply codes of a header's `Returns`: the first element of each reply.
fn documented(script: &Script) -> BTreeSet<String> {
    let file = format!("{}/lua/{}.lua", env!("CARGO_MANIFEST_DIR"), script.name);
    let source = std::fs::read_to_string(file).unwrap();
    let header: Vec<&str> =
        source.lines().take_while(|line| line.starts_with("#!") || line.starts_with("--")).collect();
    let from = header.iter().position(|line| line.starts_with("-- Returns ")).expect("a header says what it returns");
    let until = |line: &&&str| !line.starts_with("-- Emits") && !line.starts_with("--@");
    let returns: String = header[from..].iter().take_while(until).map(|line| format!("{} ", &line[3..])).collect();
    // Only the first element in braces; nothing in parentheses, or after "after".
    let returns = returns.replace("after DECLINE", "");
    let (mut words, mut word, mut braces, mut parentheses, mut first) = (BTreeSet::new(), String::new(), 0, 0, true);
    for c in returns.chars().chain([' ']) {
        if c.is_ascii_uppercase() || (c == '_' && !word.is_empty()) {
            word.push(c);
            continue;
        }
        if word.len() > 1 && parentheses == 0 && (braces == 0 || first) {
            words.insert(word.clone());
        }
        word.clear();
        match c {
            '{' => (braces, first) = (braces + 1, braces == 0),
            '}' => (braces, first) = (braces - 1, false),
            ',' => first = false,
            '(' => parentheses += 1,
            ')' => parentheses -= 1,
            _ => {}
        }
    }
    words
}

impl Bench {
    pub async fn start(partitions: u16) -> Bench {
        let test = TestApp::with(Options { partitions, ..Options::default() }).await;
        let redis = test.raw().await;
        Bench { test, redis, partitions: partitions.into(), seen: BTreeMap::new() }
    }

    fn keys(&self, id: i64) -> Keys {
        Keys(Partition((id % self.partitions) as u16))
    }

    pub async fn run(&mut self, raw: &Raw) -> Vec<String> {
        let mut command = redis::cmd("EVAL");
        command.arg(raw.script.source()).arg(raw.keys.len()).arg(&raw.keys).arg(&raw.args);
        let Value::Array(mut reply) = command.query_async(&mut self.redis).await.unwrap() else { panic!("no list") };
        let reply: Vec<String> = match raw.shared {
            Some(_) => text(reply.pop().unwrap()).split('\u{1f}').map(str::to_owned).collect(),
            None => reply.into_iter().map(text).collect(),
        };
        self.seen.entry(raw.script.name).or_default().insert(reply[0].clone());
        reply
    }

    /// The outbox's length and the last decision's number.
    async fn position(&mut self, here: Partition) -> (i64, i64) {
        let keys = Keys(here);
        let length = redis::cmd("XLEN").arg(keys.outbox()).query_async(&mut self.redis).await.unwrap();
        let seq = redis::cmd("HGET").arg(keys.meta()).arg("seq").query_async(&mut self.redis).await.unwrap();
        (length, seq)
    }

    /// Asserts that the reply has this code, and that Redis is unchanged.
    #[track_caller]
    fn leaves_all<'a>(
        &'a mut self,
        word: &'a str,
        raw: &'a Raw,
    ) -> impl std::future::Future<Output = Vec<String>> + use<'a> {
        let place = std::panic::Location::caller();
        async move {
            let before = self.test.snapshot().await;
            let reply = self.run(raw).await;
            assert_eq!(reply[0], word, "{}: {reply:?} at {place}", raw.script.name);
            assert!(before == self.test.snapshot().await, "{} {word} changed something, at {place}", raw.script.name);
            reply
        }
    }

    /// Must have an effect: one event, the next number, which are also in the answer. (Of two events in one entry, the answer has the
    /// first number, and the second event is returned.)
    #[track_caller]
    fn decides<'a>(
        &'a mut self,
        word: &'a str,
        raw: &'a Raw,
    ) -> impl std::future::Future<Output = (Vec<String>, Event)> + use<'a> {
        let place = std::panic::Location::caller();
        async move {
            let here = raw.partition();
            let (length, seq) = self.position(here).await;
            let reply = self.run(raw).await;
            assert_eq!(reply[0], word, "{}: {reply:?} at {place}", raw.script.name);
            let events = if word == "CHECKED_OUT" { 2 } else { 1 };
            assert_eq!(self.position(here).await, (length + 1, seq + events), "{} {word} at {place}", raw.script.name);
            let mut last = redis::cmd("XREVRANGE");
            last.arg(Keys(here).outbox()).arg("+").arg("-").arg("COUNT").arg(1);
            let last: Vec<(String, Vec<(String, String)>)> = last.query_async(&mut self.redis).await.unwrap();
            let mut decoded = event::decode(&last[0].1);
            assert_eq!(decoded.len() as i64, events, "at {place}");
            let event = decoded.pop().unwrap().event;
            let event = event.unwrap_or_else(|error| panic!("{error} at {place}: {last:?}"));
            let stamp = (event.epoch, event.seq, event.at.0.to_string());
            assert_eq!(stamp, (1, seq + events, raw.now().to_owned()), "at {place}");
            assert_eq!(reply[1..3], ["1".to_owned(), (seq + 1).to_string()], "{reply:?} at {place}");
            (reply, event)
        }
    }

    /// Asserts that a closed partition, frozen or with its state lost, refuses a call that would have an effect.
    async fn needs_open_partition(&mut self, raw: &Raw) {
        let meta = Keys(raw.partition()).meta();
        let _: i64 = redis::cmd("HSET").arg(&meta).arg("frozen").arg(1).query_async(&mut self.redis).await.unwrap();
        self.leaves_all("PARTITION_CLOSED", raw).await;
        let _: i64 = redis::cmd("HDEL").arg(&meta).arg("frozen").query_async(&mut self.redis).await.unwrap();
        let aside = Keys(raw.partition()).record("aside");
        let _: () = redis::cmd("RENAME").arg(&meta).arg(&aside).query_async(&mut self.redis).await.unwrap();
        self.leaves_all("PARTITION_CLOSED", raw).await;
        let _: () = redis::cmd("RENAME").arg(&aside).arg(&meta).query_async(&mut self.redis).await.unwrap();
    }

    /// Asserts that a call is refused under an idempotency key of another request, or of one that still runs. With
    /// `running` false this script does not refuse the latter.
    async fn needs_its_own_key(&mut self, raw: &Raw, running: bool) {
        for (record, word) in [(["other", "CHARGED"], "KEY_REUSED"), (["mine", "RUNNING"], "IN_PROGRESS")] {
            let raw = raw.keyed("planted", "mine");
            let push: i64 =
                redis::cmd("RPUSH").arg(raw.record()).arg(&record).query_async(&mut self.redis).await.unwrap();
            assert_eq!(push, 2);
            if running || word != "IN_PROGRESS" {
                self.leaves_all(word, &raw).await;
            }
            let _: i64 = redis::cmd("DEL").arg(raw.record()).query_async(&mut self.redis).await.unwrap();
        }
    }

    /// The effect under an idempotency key, and its repeat, which is the same answer and no effect.
    #[track_caller]
    fn decides_once<'a>(
        &'a mut self,
        word: &'a str,
        raw: &'a Raw,
    ) -> impl std::future::Future<Output = (Vec<String>, Event)> + use<'a> {
        let place = std::panic::Location::caller();
        async move {
            let (_, seq) = self.position(raw.partition()).await;
            let raw = raw.keyed(&format!("key-{seq}"), "mine");
            let (reply, event) = self.decides(word, &raw).await;
            let life: i64 = redis::cmd("PTTL").arg(raw.record()).query_async(&mut self.redis).await.unwrap();
            assert!((1..=86_400_000).contains(&life), "the record's life is {life} at {place}");
            // The event carries what the record says, so that it outlives Redis.
            let record = event.record.as_ref().unwrap_or_else(|| panic!("no record in the event at {place}"));
            assert_eq!((record.digest.as_str(), record.fingerprint.as_str()), (&*format!("key-{seq}"), "mine"));
            let mut kept = reply.clone();
            if word == "CHARGED" {
                // A record has no name.
                kept[3].clear();
            }
            assert_eq!(unpack_reply(&record.reply).unwrap(), kept, "at {place}");
            let again = self.leaves_all("REPLAYED", &raw).await;
            assert_eq!(again[1..], reply, "at {place}");
            self.leaves_all("KEY_REUSED", &raw.keyed(&format!("key-{seq}"), "another")).await;
            (reply, event)
        }
    }

    /// Asserts that exactly the reply codes of these scripts' headers have occurred.
    fn covers(&mut self, scripts: &[&'static Script]) {
        for script in scripts {
            let seen = self.seen.remove(script.name).unwrap_or_default();
            assert_eq!(seen, documented(script), "{}: answered, and documented", script.name);
        }
    }

    pub async fn finish(self) {
        self.test.skip_chosen_ids().await;
        self.test.finish().await;
    }
}

fn user_key(keys: Keys, id: i64) -> String {
    keys.user(UserId::new(id).unwrap())
}

fn product_key(keys: Keys, id: i64) -> String {
    keys.product(firstcome::model::ProductId::new(id).unwrap())
}

fn campaign_key(keys: Keys, id: i64) -> String {
    keys.campaign(firstcome::model::CouponId::new(id).unwrap())
}

fn order_key(keys: Keys, id: i64) -> String {
    keys.order(firstcome::model::OrderId::new(id).unwrap())
}

#[test]
fn header_reply_codes_are_those_of_reply_code() {
    let documented: BTreeSet<String> = script::ALL.iter().flat_map(|script| documented(script)).collect();
    // `RUNNING` is of idempotency records only.
    let known = ReplyCode::ALL.iter().filter(|code| **code != ReplyCode::Running).map(|code| code.as_str().to_owned());
    assert_eq!(documented, known.collect(), "codes of the headers in lua/, and src/redis/reply_code.rs");
}

/// A script that emits an event is called with arguments for each of its reply codes.
#[test]
fn scripts_that_emit_covered_by_tests() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/redis/scripts");
    let mut covered = BTreeSet::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for list in source.split(".covers(&[").skip(1) {
            let names = list.split(']').next().unwrap().split("script::").skip(1);
            covered.extend(names.map(|name| name.split(',').next().unwrap().trim().to_ascii_lowercase()));
        }
    }
    for script in script::ALL.iter().filter(|script| script.source().contains("\n-- Emits ")) {
        assert!(covered.contains(script.name), "no test in redis/scripts/ passes {} to `Bench::covers`", script.name);
    }
}

#[test]
fn header_reply_codes_parsed() {
    let words = |script| documented(script).into_iter().collect::<Vec<_>>().join(" ");
    let close = words(&script::ORDER_CLOSE);
    assert!(close.starts_with("ALREADY_CLOSED ALREADY_PAID CLOSED DECLINED"), "{close}");
    assert_eq!(words(&script::HISTORY_READ), "ENTRIES USER_NOT_FOUND");
    assert_eq!(words(&script::PRICE_SET), "PARTITION_CLOSED PRICE_SET UNCHANGED");
    assert_eq!(words(&script::IDS_RESERVE), "ALLOCATED KEY_REUSED NO_SEQUENCE PARTITION_CLOSED REPLAYED RESERVED");
}
