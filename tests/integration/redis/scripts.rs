//! Every script against its header, called as Redis gets it: each refusal leaves Redis as it was, each effect is exactly
//! one event that carries it whole, each repeat changes nothing. A word that the header has and no test brought about, or
//! the other way round, fails too.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use firstcome::{
    model::{
        CalendarDay, CloseReason, DiscountType, MAX_SAFE_INTEGER, OrderStatus, Partition, UserId,
        event::{self, Body, Event, HoldState, PaymentOutcome, unpack_reply},
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

/// The words of a header's `Returns`: each reply's first element.
fn documented(script: &Script) -> BTreeSet<String> {
    let file = format!("{}/lua/{}.lua", env!("CARGO_MANIFEST_DIR"), script.name);
    let source = std::fs::read_to_string(file).unwrap();
    let header: Vec<&str> =
        source.lines().take_while(|line| line.starts_with("#!") || line.starts_with("--")).collect();
    let from = header.iter().position(|line| line.starts_with("-- Returns ")).expect("a header says what it returns");
    let until = |line: &&&str| !line.starts_with("-- Emits") && !line.starts_with("--@");
    let returns: String = header[from..].iter().take_while(until).map(|line| format!("{} ", &line[3..])).collect();
    // Of what is in braces only the first element, and nothing of what is in parentheses, or after "after".
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

    /// Must answer this word, and leave everything as it is.
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

    /// Must have an effect: one event, the next number, which are also in the answer.
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
            assert_eq!(self.position(here).await, (length + 1, seq + 1), "{} {word} at {place}", raw.script.name);
            let mut last = redis::cmd("XREVRANGE");
            last.arg(Keys(here).outbox()).arg("+").arg("-").arg("COUNT").arg(1);
            let last: Vec<(String, Vec<(String, String)>)> = last.query_async(&mut self.redis).await.unwrap();
            let event = event::decode(&last[0].1).pop().unwrap().event;
            let event = event.unwrap_or_else(|error| panic!("{error} at {place}: {last:?}"));
            let stamp = (event.epoch, event.seq, event.at.0.to_string());
            assert_eq!(stamp, (1, seq + 1, raw.now().to_owned()), "at {place}");
            assert_eq!(reply[1..3], ["1".to_owned(), (seq + 1).to_string()], "{reply:?} at {place}");
            (reply, event)
        }
    }

    /// What a call that would have an effect is refused for by a closed partition: one that is frozen, or whose state is lost.
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

    /// What a call that would have an effect is refused for under an idempotency key that is another request's, or whose
    /// request is still running. With `running` false the latter is no refusal of this script.
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
            assert_eq!(unpack_reply(&record.reply).unwrap(), reply, "at {place}");
            let again = self.leaves_all("REPLAYED", &raw).await;
            assert_eq!(again[1..], reply, "at {place}");
            self.leaves_all("KEY_REUSED", &raw.keyed(&format!("key-{seq}"), "another")).await;
            (reply, event)
        }
    }

    /// Every word of these scripts' headers was answered, and no other.
    fn covers(&mut self, scripts: &[&'static Script]) {
        for script in scripts {
            let seen = self.seen.remove(script.name).unwrap_or_default();
            assert_eq!(seen, documented(script), "{}: answered, and documented", script.name);
        }
    }

    pub async fn finish(self) {
        self.test.finish().await;
    }

    // --- the calls, with arguments that have an effect ---------------------------------------------------------------

    fn begin(&self, script: &'static Script, keys: Keys) -> Raw {
        let args = strings([&START.0, &"", &86_400_000, &"rid"]);
        Raw { script, keys: vec![keys.meta(), keys.outbox(), keys.record("")], args, shared: None }
    }

    fn begin_unrecorded(&self, script: &'static Script, keys: Keys) -> Raw {
        Raw { script, keys: vec![keys.meta(), keys.outbox()], args: strings([&START.0, &"rid"]), shared: None }
    }

    /// A call of one request to a script that decides many, with what they all share.
    fn one_of_many(script: &'static Script, keys: Vec<String>, args: Vec<String>, record: String) -> Raw {
        let mut raw = Raw { script, shared: Some((keys.len(), args.len())), keys, args };
        raw.keys.push(record);
        raw.args.extend(strings([&"", &"rid"]));
        raw
    }

    pub fn users_create(&self, first: i64, count: i64, balance: i64) -> Raw {
        let keys = self.keys(first);
        let mut raw = self.begin_unrecorded(&script::USERS_CREATE, keys);
        raw.args.extend(strings([&balance, &first, &self.partitions, &"1", &"u"]));
        for id in (0..count).map(|n| first + n * self.partitions) {
            raw.keys.push(keys.user(UserId::new(id).unwrap()));
            raw.args.push(format!("u{id}"));
        }
        raw
    }

    pub fn product_create(&self, id: i64, price: i64, units: i64) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin_unrecorded(&script::PRODUCT_CREATE, keys);
        raw.keys.extend([product_key(keys, id), keys.price(), keys.stock(), keys.catalogue(), keys.category("TOP")]);
        raw.args.extend(strings([&id, &"셔츠", &price, &units, &"TOP"]));
        raw
    }

    fn product_update(&self, id: i64, to: &str) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin(&script::PRODUCT_UPDATE, keys);
        raw.keys.extend([product_key(keys, id), keys.price(), keys.stock(), keys.category("TOP"), keys.category(to)]);
        raw.args.extend(strings([&id, &"", &"", &"TOP", &to, &0, &1_000_000_000]));
        raw
    }

    pub fn campaign_create(&self, id: i64, kind: &str, amount: i64, total: i64) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin_unrecorded(&script::CAMPAIGN_CREATE, keys);
        raw.keys.extend([campaign_key(keys, id), keys.campaigns()]);
        let (opens, closes, expires) = (START.0, START.0 + HOUR_MS, START.0 + 2 * HOUR_MS);
        raw.args.extend(strings([&id, &"CODE", &kind, &amount, &total, &opens, &closes, &expires]));
        raw
    }

    /// Moves the window of a campaign from now to half an hour from now.
    fn campaign_update(&self, id: i64) -> Raw {
        let keys = self.keys(id);
        let mut raw = self.begin(&script::CAMPAIGN_UPDATE, keys);
        raw.keys.extend([campaign_key(keys, id), keys.campaigns()]);
        raw.args.extend(strings([&id, &START.0, &(START.0 + HOUR_MS / 2), &60_000]));
        raw
    }

    pub fn coupon_issue(&self, coupon: i64, user: i64) -> Raw {
        let keys = self.keys(coupon);
        let holders = format!("{}:holders", campaign_key(keys, coupon));
        let shared = vec![keys.meta(), keys.outbox(), campaign_key(keys, coupon), holders];
        let args = strings([&START.0, &86_400_000, &coupon]);
        let mut raw = Bench::one_of_many(&script::COUPON_ISSUE, shared, args, keys.record(""));
        raw.keys.push(user_key(keys, user));
        let at_home = u8::from(user % self.partitions == coupon % self.partitions);
        raw.args.extend(strings([&user, &at_home]));
        raw
    }

    fn coupon_grant(&self, user: i64, coupon: i64, issue_no: i64) -> Raw {
        let keys = self.keys(user);
        let mut raw = self.begin_unrecorded(&script::COUPON_GRANT, keys);
        raw.keys.push(user_key(keys, user));
        raw.args.extend(strings([&user, &coupon, &issue_no, &START.0]));
        raw
    }

    pub fn charge(&self, user: i64, amount: i64) -> Raw {
        let keys = self.keys(user);
        let (shared, args) = (vec![keys.meta(), keys.outbox()], strings([&START.0, &86_400_000, &MAX_SAFE_INTEGER]));
        let mut raw = Bench::one_of_many(&script::BALANCE_CHARGE, shared, args, keys.record(""));
        raw.keys.push(user_key(keys, user));
        raw.args.extend(strings([&user, &amount]));
        raw
    }

    pub fn place(&self, order: i64, user: i64, lines: &[(i64, i64)], far: &str) -> Raw {
        let keys = self.keys(user);
        let shared = vec![keys.meta(), keys.outbox(), keys.expiry(), keys.price(), keys.stock(), keys.held()];
        let args = strings([&START.0, &86_400_000, &20, &1, &HOUR_MS]);
        let mut raw = Bench::one_of_many(&script::ORDER_PLACE, shared, args, keys.record(""));
        raw.keys.extend([user_key(keys, user), order_key(keys, order)]);
        raw.args.extend(strings([&order, &user, &"", &"", &"", &"", &lines.len()]));
        for (product, quantity) in lines {
            raw.args.extend(strings([product, quantity]));
        }
        raw.args.extend([far.to_owned(), String::new()]);
        raw
    }

    /// Keys 4 to 12 of the script that ends an order.
    fn closing(&self, script: &'static Script, order: i64, user: i64) -> Raw {
        let keys = self.keys(order);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut raw = self.begin(script, keys);
        raw.keys.extend([user_key(keys, user), order_key(keys, order), keys.expiry()]);
        raw.keys.extend([keys.stock(), keys.held(), keys.sold(), keys.rank_units(day), keys.rank_won(day)]);
        raw.keys.push(keys.gateway());
        raw.args.extend(strings([&order, &user]));
        raw
    }

    pub fn pay(&self, order: i64, user: i64, amount: i64) -> Raw {
        let keys = self.keys(order);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut shared = vec![keys.meta(), keys.outbox(), keys.expiry(), keys.stock(), keys.held(), keys.sold()];
        shared.extend([keys.withheld(), keys.rank_units(day), keys.rank_won(day), keys.gateway()]);
        let today = CalendarDay::of(START, chrono_tz::Asia::Seoul);
        let args = [&START.0, &86_400_000, &DAY as &dyn ToString, &today.from.0, &today.until.0];
        let mut args: Vec<String> = args.map(|arg| arg.to_string()).into();
        args.extend(strings([&ranked_until(day).0, &1_000]));
        let mut raw = Bench::one_of_many(&script::ORDER_PAY, shared, args, keys.record(""));
        raw.keys.extend([user_key(keys, user), order_key(keys, order)]);
        let receipt = format!("receipt-{order}");
        raw.args.extend(strings([&order, &user, &amount, &"CARD", &(order + 7), &receipt, &"BALANCE", &""]));
        raw
    }

    fn pay_by_gateway(&self, order: i64, user: i64, amount: i64) -> Raw {
        self.pay(order, user, amount).with(10, "GATEWAY").with(11, format!("tx-{order}"))
    }

    /// `why` is CANCEL, EXPIRE or DECLINE; of a PAID order, `day` is the day of its sale.
    pub fn close(&self, order: i64, user: i64, why: &str, day: &str) -> Raw {
        let mut raw = self.closing(&script::ORDER_CLOSE, order, user);
        raw.args.extend(strings([&why, &day, &if day.is_empty() { 0 } else { START.0 + HOUR_MS * 24 }, &"", &""]));
        raw
    }

    fn decline(&self, order: i64, user: i64) -> Raw {
        self.close(order, user, "DECLINE", "").with(10, format!("receipt-{order}"))
    }

    fn payment_begin(&self, order: i64, user: i64, amount: i64) -> Raw {
        let keys = self.keys(order);
        let mut raw = self.begin(&script::PAYMENT_BEGIN, keys);
        raw.keys.extend([order_key(keys, order), keys.expiry(), keys.gateway()]);
        let receipt = format!("receipt-{order}");
        raw.args.extend(strings([&order, &user, &amount, &"TOSS", &(order + 7), &receipt, &9_000, &""]));
        raw
    }

    fn payment_finish(&self, order: i64, user: i64, outcome: &str) -> Raw {
        let keys = self.keys(order);
        let mut raw = self.begin_unrecorded(&script::PAYMENT_FINISH, keys);
        raw.keys.extend([order_key(keys, order), keys.gateway()]);
        raw.args.extend(strings([&order, &user, &format!("receipt-{order}"), &outcome, &""]));
        raw
    }

    fn payment_postpone(&self, order: i64, score: i64) -> Raw {
        let keys = self.keys(order);
        let args = strings([&order, &format!("receipt-{order}"), &score, &"HTTP 500 decides nothing"]);
        let keys = vec![keys.meta(), order_key(keys, order), keys.gateway()];
        Raw { script: &script::PAYMENT_POSTPONE, keys, args, shared: None }
    }

    fn payment_resolve(&self, order: i64, user: i64, outcome: &str) -> Raw {
        let keys = self.keys(order);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut raw = self.begin(&script::PAYMENT_RESOLVE, keys);
        raw.keys.extend([keys.record(""), user_key(keys, user), order_key(keys, order), keys.gateway()]);
        raw.keys.extend([keys.stock(), keys.held(), keys.sold(), keys.rank_units(day), keys.rank_won(day)]);
        let (receipt, today) = (format!("receipt-{order}"), CalendarDay::of(START, chrono_tz::Asia::Seoul));
        raw.args.extend(strings([&order, &receipt, &"", &outcome, &"", &"kim", &"seen", &DAY]));
        raw.args.extend(strings([&today.from.0, &today.until.0, &ranked_until(day).0, &2_000]));
        raw
    }

    fn verdict(&self, order: i64) -> Raw {
        let keys = self.keys(order);
        let (keys, args) = (vec![keys.meta(), order_key(keys, order)], strings([&604_800_000]));
        Raw { script: &script::ORDER_RESOLVE, keys, args, shared: None }
    }

    /// Orders of one partition, each with what Postgres has it as; a life of a minute for each.
    pub fn retire(&self, orders: &[(String, &str)]) -> Raw {
        let (keys, was): (Vec<String>, Vec<&str>) = orders.iter().cloned().unzip();
        let args = was.iter().flat_map(|was| [(*was).to_owned(), "60000".to_owned()]).collect();
        Raw { script: &script::ORDER_EVICT, keys, args, shared: None }
    }

    pub fn restore(&self, here: Keys, key: &str, fields: &[(&str, &str)]) -> Raw {
        let mut args = strings([&60_000]);
        args.extend(fields.iter().flat_map(|(field, value)| [*field, *value]).map(str::to_owned));
        Raw { script: &script::ORDER_RESTORE, keys: vec![here.meta(), key.to_owned()], args, shared: None }
    }

    pub fn order_key(&self, order: i64) -> String {
        order_key(self.keys(order), order)
    }

    async fn life(&mut self, key: &str) -> i64 {
        redis::cmd("PTTL").arg(key).query_async(&mut self.redis).await.unwrap()
    }

    /// All `lines` are of products at home in one partition, which is not the order's.
    pub fn hold(&self, order: i64, user: i64, lines: &[(i64, i64)]) -> Raw {
        let keys = self.keys(lines[0].0);
        let mut raw = self.begin_unrecorded(&script::STOCK_HOLD, keys);
        raw.keys.extend([hold_key(keys, order), keys.holds(), keys.price(), keys.stock(), keys.held()]);
        raw.args.extend(strings([&order, &user, &(2 * HOUR_MS), &lines.len()]));
        for (product, quantity) in lines {
            raw.args.extend(strings([product, quantity]));
        }
        raw
    }

    pub fn settle(&self, product: i64, order: i64, user: i64, state: &str) -> Raw {
        let keys = self.keys(product);
        let day = NaiveDate::parse_from_str(DAY, "%Y%m%d").unwrap();
        let mut raw = self.begin_unrecorded(&script::STOCK_SETTLE, keys);
        raw.keys.extend([hold_key(keys, order), keys.holds(), keys.stock(), keys.held(), keys.sold()]);
        raw.keys.extend([keys.rank_units(day), keys.rank_won(day)]);
        raw.args.extend(strings([&order, &user, &state, &(START.0 + HOUR_MS * 24), &604_800_000, &1]));
        raw
    }

    /// Under the token `mine`.
    fn coupon_release_prepare(&self, coupon: i64, count: i64) -> Raw {
        let keys = self.keys(coupon);
        let (keys, args) =
            (vec![keys.meta(), keys.record(""), campaign_key(keys, coupon)], strings([&"", &"mine", &count]));
        Raw { script: &script::COUPON_RELEASE_PREPARE, keys, args, shared: None }
    }

    fn ids_reserve(&self, sequence: &str, count: i64) -> Raw {
        let keys = Keys(Partition(0));
        let mut raw = self.begin(&script::IDS_RESERVE, keys);
        raw.keys.push(keys.ids());
        raw.args.extend(strings([&sequence, &count]));
        raw
    }

    fn idempotency_claim(&self, digest: &str, fingerprint: &str) -> Raw {
        let keys = Keys(Partition(0));
        let args = strings([&fingerprint, &60_000]);
        Raw { script: &script::IDEMPOTENCY_CLAIM, keys: vec![keys.meta(), keys.record(digest)], args, shared: None }
    }

    fn idempotency_settle(&self, digest: &str, fingerprint: &str, keeps: u8) -> Raw {
        let keys = Keys(Partition(0));
        let args = strings([&fingerprint, &keeps, &86_400_000, &60_000]);
        Raw { script: &script::IDEMPOTENCY_SETTLE, keys: vec![keys.meta(), keys.record(digest)], args, shared: None }
    }

    fn history_read(&self, user: i64, most: i64) -> Raw {
        let keys = self.keys(user);
        let (keys, args) = (vec![user_key(keys, user), keys.outbox()], strings([&most, &user]));
        Raw { script: &script::HISTORY_READ, keys, args, shared: None }
    }

    /// A user with this balance and a product of this price with 100 units, at home in the first partition, and an order
    /// of `quantity` of it.
    async fn ordered(&mut self, order: i64, user: i64, balance: i64, quantity: i64) -> i64 {
        let product = 900 * self.partitions;
        let (create, user_create) = (self.product_create(product, 1_000, 100), self.users_create(user, 1, balance));
        self.run(&create).await;
        self.run(&user_create).await;
        let place = self.place(order, user, &[(product, quantity)], "");
        self.decides("PLACED", &place).await;
        product
    }
}

/// Everything but what every decision leaves: its number and its event.
fn without_positions(mut all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    all.retain(|key, _| !key.ends_with(":outbox") && !key.ends_with(":meta"));
    all
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

fn hold_key(keys: Keys, id: i64) -> String {
    keys.hold(firstcome::model::OrderId::new(id).unwrap())
}

#[test]
fn header_reply_codes_are_those_of_reply_code() {
    let documented: BTreeSet<String> = script::ALL.iter().flat_map(|script| documented(script)).collect();
    // `RUNNING` is of idempotency records only.
    let known = ReplyCode::ALL.iter().filter(|code| **code != ReplyCode::Running).map(|code| code.as_str().to_owned());
    assert_eq!(documented, known.collect());
}

#[test]
fn header_reply_codes_parsed() {
    let words = |script| documented(script).into_iter().collect::<Vec<_>>().join(" ");
    let close = words(&script::ORDER_CLOSE);
    assert!(close.starts_with("ALREADY_CLOSED ALREADY_PAID CLOSED DECLINED"), "{close}");
    assert_eq!(words(&script::HISTORY_READ), "ENTRIES USER_NOT_FOUND");
    assert_eq!(words(&script::ORDER_RESOLVE), "ORDER_STATUS PARTITION_CLOSED");
    assert_eq!(words(&script::IDS_RESERVE), "ALLOCATED KEY_REUSED PARTITION_CLOSED REPLAYED RESERVED");
}

#[tokio::test]
async fn creation_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let users = bench.users_create(5, 3, 250);
    bench.needs_open_partition(&users).await;
    let (_, event) = bench.decides("CREATED", &users).await;
    let Body::UsersCreated { first, step, count, balance, name, prefixed } = &event.body else { panic!("{event:?}") };
    assert_eq!((first.get(), *step, *count, *balance, name.as_str(), *prefixed), (5, 1, 3, 250, "u", true));
    bench.leaves_all("ALREADY_EXISTS", &users).await;
    // Without a balance there is no entry.
    let poor = bench.users_create(8, 1, 0);
    bench.decides("CREATED", &poor).await;

    let product = bench.product_create(1, 1_000_000_000_000, 1_000_000_000);
    bench.needs_open_partition(&product).await;
    let (_, event) = bench.decides("CREATED", &product).await;
    let Body::ProductCreated { product: id, name, price, units, category } = &event.body else { panic!("{event:?}") };
    assert_eq!((id.get(), name.as_str(), *price, *units), (1, "셔츠", 1_000_000_000_000, 1_000_000_000));
    assert_eq!(category, "TOP");
    bench.leaves_all("ALREADY_EXISTS", &product.with(5, 5)).await;

    let update = bench.product_update(1, "OUTER").with(6, "자켓").with(7, 7).with(10, -5);
    bench.needs_open_partition(&update).await;
    bench.needs_its_own_key(&update, true).await;
    bench.leaves_all("LIMIT_EXCEEDED", &update.with(10, 1)).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &update.with(10, -1_000_000_001)).await;
    bench.leaves_all("STALE", &update.with(8, "SHOES").keyed("k", "mine")).await;
    let unknown = bench.product_update(2, "TOP");
    bench.leaves_all("PRODUCT_NOT_FOUND", &unknown).await;
    let (reply, event) = bench.decides_once("UPDATED", &update).await;
    assert_eq!(reply[3..], ["자켓", "7", "999999995", "OUTER"]);
    let Body::ProductUpdated { product, name, price, category, delta } = &event.body else { panic!("{event:?}") };
    assert_eq!((product.get(), name.as_str(), *price, category.as_str(), *delta), (1, "자켓", 7, "OUTER", -5));
    // What is left out stays, and the event says it whole.
    let mut same = bench.product_update(1, "OUTER").with(8, "OUTER").with(10, 5);
    same.keys[6] = same.keys[7].clone();
    let (reply, event) = bench.decides("UPDATED", &same).await;
    assert_eq!(reply[3..], ["자켓", "7", "1000000000", "OUTER"]);
    let Body::ProductUpdated { name, price, delta, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((name.as_str(), *price, *delta), ("자켓", 7, 5));

    let campaign = bench.campaign_create(1, "PERCENTAGE", 20, 3);
    bench.needs_open_partition(&campaign).await;
    let (_, event) = bench.decides("CREATED", &campaign).await;
    let Body::CampaignCreated(terms) = &event.body else { panic!("{event:?}") };
    assert_eq!((terms.coupon_id.get(), terms.code.as_str(), terms.total), (1, "CODE", 3));
    assert_eq!((terms.discount.kind, terms.discount.amount), (DiscountType::Percentage, 20));
    assert_eq!((terms.opens_at, terms.closes_at), (START, START.plus(HOUR_MS)));
    assert_eq!(terms.expires_at, START.plus(2 * HOUR_MS));
    bench.leaves_all("ALREADY_EXISTS", &campaign.with(7, 9)).await;
    // One that is to open at once does so by the script's clock; a window that is none is no campaign.
    let at_once = bench.campaign_create(3, "FIXED", 10, 3).with(8, "");
    bench.leaves_all("INVALID_WINDOW", &at_once.with(9, START.0)).await;
    bench.leaves_all("INVALID_WINDOW", &at_once.with(9, START.0 + 2 * HOUR_MS + 1)).await;
    let (reply, event) = bench.decides("CREATED", &at_once).await;
    assert_eq!(reply[3], START.0.to_string());
    assert!(matches!(&event.body, Body::CampaignCreated(terms) if terms.opens_at == START), "{event:?}");

    let moved = bench.campaign_update(1);
    bench.needs_open_partition(&moved).await;
    bench.needs_its_own_key(&moved, true).await;
    let mut unknown = moved.clone();
    unknown.keys[3] = campaign_key(bench.keys(2), 2);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &unknown).await;
    bench.leaves_all("CLOSES_IN_PAST", &moved.with(7, START.0 - 60_001)).await;
    bench.leaves_all("INVALID_WINDOW", &moved.with(6, START.0 + HOUR_MS / 2)).await;
    bench.leaves_all("INVALID_WINDOW", &moved.with(6, START.0 + HOUR_MS).with(7, "")).await;
    bench.leaves_all("INVALID_WINDOW", &moved.with(7, START.0 + 2 * HOUR_MS + 1)).await;
    // It is open from START on, so that closing it now leaves nothing of it.
    bench.leaves_all("INVALID_WINDOW", &moved.with(6, "").with(7, START.0 - 5)).await;
    let (reply, event) = bench.decides_once("MOVED", &moved).await;
    assert_eq!(reply[3..], [START.0.to_string(), (START.0 + HOUR_MS / 2).to_string(), "0".into(), "0".into()]);
    let Body::CampaignUpdated { coupon, opens_at, closes_at } = &event.body else { panic!("{event:?}") };
    assert_eq!((coupon.get(), *opens_at, *closes_at), (1, START, START.plus(HOUR_MS / 2)));
    // An end just past is now; a beginning may be past, and what is left out stays.
    let (reply, _) = bench.decides("MOVED", &moved.with(6, START.0 - 9).with(7, START.0 - 60_000)).await;
    assert_eq!(reply[3..5], [(START.0 - 9).to_string(), START.0.to_string()]);
    let (reply, _) = bench.decides("MOVED", &moved.with(6, "").with(7, START.0 + 2 * HOUR_MS)).await;
    assert_eq!(reply[3..5], [(START.0 - 9).to_string(), (START.0 + 2 * HOUR_MS).to_string()]);
    let (reply, _) = bench.decides("MOVED", &moved.with(6, START.0 + 1).with(7, "")).await;
    assert_eq!(reply[3..5], [(START.0 + 1).to_string(), (START.0 + 2 * HOUR_MS).to_string()]);
    let score = redis::cmd("ZSCORE").arg(bench.keys(1).campaigns()).arg(1).query_async(&mut bench.redis).await;
    let closes: i64 = score.unwrap();
    assert_eq!(closes, START.0 + 2 * HOUR_MS);

    bench.covers(&[
        &script::USERS_CREATE,
        &script::PRODUCT_CREATE,
        &script::PRODUCT_UPDATE,
        &script::CAMPAIGN_CREATE,
        &script::CAMPAIGN_UPDATE,
    ]);
    bench.finish().await;
}

#[tokio::test]
async fn withheld_release_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let (product, campaign) = (bench.product_create(1, 10, 100), bench.campaign_create(1, "FIXED", 10, 5));
    for raw in [&product, &campaign, &bench.users_create(1, 3, 0)] {
        bench.run(raw).await;
    }
    bench.test.drain().await;
    // As a rebuild leaves it, in both stores.
    let keys = bench.keys(1);
    for (key, field, value) in
        [(keys.stock(), "1", 93), (keys.withheld(), "1", 7), (campaign_key(keys, 1), "withheld", 4)]
    {
        let set = redis::cmd("HSET").arg(key).arg(field).arg(value).query_async(&mut bench.redis).await;
        let _: i64 = set.unwrap();
    }
    for sql in ["UPDATE products SET on_sale = 93, withheld = 7", "UPDATE campaigns SET withheld = 4"] {
        sqlx::query(sql).execute(bench.test.db.get_postgres_connection_pool()).await.unwrap();
    }
    // What is kept back is not given out.
    bench.decides("ISSUED", &bench.coupon_issue(1, 1)).await;
    bench.leaves_all("OUT_OF_STOCK", &bench.coupon_issue(1, 2)).await;

    let mut units = bench.begin(&script::STOCK_RELEASE, keys);
    units.keys.extend([keys.stock(), keys.withheld()]);
    units.args.extend(strings([&1, &5]));
    bench.needs_open_partition(&units).await;
    bench.needs_its_own_key(&units, true).await;
    bench.leaves_all("PRODUCT_NOT_FOUND", &units.with(5, 2)).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &units.with(6, 8)).await;
    let (reply, event) = bench.decides_once("UNITS_RELEASED", &units).await;
    assert_eq!(reply[3], "2");
    assert!(matches!(&event.body, Body::StockReleased { units: 5, .. }), "{event:?}");
    let mut coupons = bench.begin(&script::COUPON_RELEASE, keys);
    coupons.keys.push(campaign_key(keys, 1));
    coupons.args.extend(strings([&1, &1, &"mine"]));
    bench.needs_open_partition(&coupons).await;
    // Not before it was announced.
    bench.leaves_all("RELEASE_NOT_PREPARED", &coupons).await;
    let announce = bench.coupon_release_prepare(1, 1);
    bench.needs_open_partition(&announce).await;
    bench.needs_its_own_key(&announce, true).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &announce.with(3, 5)).await;
    let mut nowhere = announce.clone();
    nowhere.keys[2] = campaign_key(keys, 2);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &nowhere).await;
    assert_eq!(bench.run(&announce).await, ["RELEASE_PREPARED", "mine"]);
    assert_eq!(bench.run(&announce.with(2, "another")).await, ["RELEASE_PREPARED", "mine"], "the first one stands");
    bench.leaves_all("RELEASE_NOT_PREPARED", &coupons.with(7, "another")).await;
    bench.needs_its_own_key(&coupons, true).await;
    let mut unknown = coupons.clone();
    unknown.keys[3] = campaign_key(keys, 2);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &unknown).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &coupons.with(6, 5)).await;
    let (reply, event) = bench.decides_once("COUPONS_RELEASED", &coupons).await;
    assert_eq!(reply[3], "3");
    assert!(matches!(&event.body, Body::CouponsReleased { count: 1, .. }), "{event:?}");
    let record = event.record.as_ref().unwrap();
    bench.leaves_all("REPLAYED", &announce.keyed(&record.digest, "mine")).await;
    bench.leaves_all("RELEASE_NOT_PREPARED", &coupons).await;
    bench.decides("ISSUED", &bench.coupon_issue(1, 2)).await;
    bench.leaves_all("OUT_OF_STOCK", &bench.coupon_issue(1, 3)).await;
    bench.covers(&[&script::STOCK_RELEASE, &script::COUPON_RELEASE, &script::COUPON_RELEASE_PREPARE]);
    bench.finish().await;
}

#[tokio::test]
async fn id_and_idempotency_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let reserve = bench.ids_reserve("user", 10);
    bench.needs_open_partition(&reserve).await;
    // Its records are never of a request that runs.
    bench.needs_its_own_key(&reserve, false).await;
    assert_eq!(bench.run(&reserve).await, ["ALLOCATED", "1"]);
    assert_eq!(bench.position(Partition(0)).await, (0, 0), "without a key it is no decision");
    let (reply, event) = bench.decides_once("RESERVED", &reserve).await;
    assert_eq!(reply[3], "11");
    assert!(matches!(event.body, Body::IdsReserved { .. }), "{event:?}");
    assert_eq!(bench.run(&reserve.with(6, 1)).await, ["ALLOCATED", "21"]);

    let decided = bench.position(Partition(0)).await;
    let claim = bench.idempotency_claim("digest", "mine");
    bench.needs_open_partition(&claim).await;
    let record = claim.keys[1].clone();
    let other = bench.idempotency_claim("digest", "another");
    let (refused, kept) =
        (bench.idempotency_settle("digest", "mine", 0), bench.idempotency_settle("digest", "mine", 1));
    // A refusal leaves nothing, once all that claimed the key are refused.
    let before = bench.test.snapshot().await;
    for claims in 1..=2 {
        assert_eq!(bench.run(&claim).await, ["CLAIMED", &claims.to_string()]);
        assert!((1..=60_000).contains(&bench.life(&record).await));
        bench.leaves_all("KEY_REUSED", &other).await;
    }
    bench.needs_open_partition(&refused).await;
    bench.leaves_all("SETTLED", &bench.idempotency_settle("digest", "another", 0)).await;
    assert_eq!(bench.run(&refused).await, ["SETTLED"]);
    bench.leaves_all("KEY_REUSED", &other).await;
    assert_eq!(bench.run(&refused).await, ["SETTLED"]);
    assert!(before == bench.test.snapshot().await);
    bench.leaves_all("SETTLED", &refused).await;
    // A decision keeps it, whatever else claims it or is refused.
    bench.run(&claim).await;
    assert_eq!(bench.run(&kept).await, ["SETTLED"]);
    assert!((60_001..=86_400_000).contains(&bench.life(&record).await));
    for raw in [&claim, &refused, &kept] {
        bench.leaves_all(if raw.script.name == "idempotency_claim" { "CLAIMED" } else { "SETTLED" }, raw).await;
    }
    bench.leaves_all("KEY_REUSED", &other).await;
    bench.covers(&[&script::IDS_RESERVE, &script::IDEMPOTENCY_CLAIM, &script::IDEMPOTENCY_SETTLE]);
    assert_eq!(bench.position(Partition(0)).await, decided, "a claim is no decision");
    bench.finish().await;
}

#[tokio::test]
async fn balance_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let user = bench.users_create(1, 1, 50);
    bench.run(&user).await;
    let charge = bench.charge(1, 100);
    bench.needs_open_partition(&charge).await;
    bench.needs_its_own_key(&charge, true).await;
    bench.leaves_all("LIMIT_EXCEEDED", &charge.with_shared(3, 149)).await;
    bench.leaves_all("LIMIT_EXCEEDED", &charge.with_shared(3, 149).keyed("k", "mine")).await;
    let stranger = bench.charge(2, 100);
    bench.leaves_all("USER_NOT_FOUND", &stranger).await;
    bench.leaves_all("USER_NOT_FOUND", &stranger.keyed("k", "mine")).await;
    let (reply, event) = bench.decides_once("CHARGED", &charge.with_shared(3, 150)).await;
    assert_eq!(reply[3..], ["u1", "150"]);
    let Body::BalanceCharged(entry) = &event.body else { panic!("{event:?}") };
    assert_eq!((entry.user_id.get(), entry.entry_no), (1, 2));
    assert_eq!((entry.before, entry.amount, entry.after, entry.order_id), (50, 100, 150, None));

    let tail = bench.history_read(1, 10);
    let reply = bench.leaves_all("ENTRIES", &tail).await;
    assert_eq!((reply.len(), reply[1].as_str()), (4, "0"));
    assert!(reply[2].contains("events balance_charged") && reply[3].contains("kind users_created"), "{reply:?}");
    let cut = bench.leaves_all("ENTRIES", &tail.with(1, 1)).await;
    assert_eq!((cut.len(), cut[1].as_str()), (3, "1"));
    let stranger = bench.history_read(2, 10);
    bench.leaves_all("USER_NOT_FOUND", &stranger).await;
    bench.covers(&[&script::BALANCE_CHARGE, &script::HISTORY_READ]);
    bench.finish().await;
}

#[tokio::test]
async fn coupon_issue_matches_header_in_one_partition() {
    let mut bench = Bench::start(1).await;
    for raw in [bench.users_create(1, 4, 0), bench.campaign_create(1, "FIXED", 500, 2)] {
        bench.run(&raw).await;
    }
    let issue = bench.coupon_issue(1, 1);
    bench.needs_open_partition(&issue).await;
    bench.needs_its_own_key(&issue, true).await;
    bench.leaves_all("NOT_OPEN", &issue.with(1, START.0 - 1)).await;
    bench.leaves_all("NOT_OPEN", &issue.with(1, START.0 + HOUR_MS)).await;
    let unknown = bench.coupon_issue(2, 1);
    bench.leaves_all("CAMPAIGN_NOT_FOUND", &unknown).await;
    let stranger = bench.coupon_issue(1, 9);
    bench.leaves_all("USER_NOT_FOUND", &stranger).await;
    let (reply, event) = bench.decides_once("ISSUED", &issue).await;
    assert_eq!(reply[3..], ["1".to_owned(), START.0.to_string()]);
    let Body::CouponIssued { coupon, user, issue_no, at_home } = &event.body else { panic!("{event:?}") };
    assert_eq!((coupon.get(), user.get(), *issue_no, *at_home), (1, 1, 1, true));
    bench.leaves_all("ALREADY_HOLDS", &issue).await;
    let second = bench.coupon_issue(1, 2);
    let (reply, _) = bench.decides("ISSUED", &second).await;
    assert_eq!(reply[3], "2");
    let third = bench.coupon_issue(1, 3);
    bench.leaves_all("OUT_OF_STOCK", &third).await;
    bench.leaves_all("OUT_OF_STOCK", &third.keyed("k", "mine")).await;
    // Who holds one is told so, not that there are no more.
    bench.leaves_all("ALREADY_HOLDS", &second).await;
    bench.covers(&[&script::COUPON_ISSUE]);
    bench.finish().await;
}

#[tokio::test]
async fn coupon_scripts_match_headers_across_partitions() {
    let mut bench = Bench::start(2).await;
    for raw in [bench.users_create(2, 1, 0), bench.campaign_create(1, "FIXED", 500, 2)] {
        bench.run(&raw).await;
    }
    let issue = bench.coupon_issue(1, 2);
    let (_, event) = bench.decides_once("ISSUED", &issue).await;
    assert!(matches!(event.body, Body::CouponIssued { at_home: false, issue_no: 1, .. }), "{event:?}");
    bench.leaves_all("ALREADY_HOLDS", &issue).await;
    let grant = bench.coupon_grant(2, 1, 1);
    bench.needs_open_partition(&grant).await;
    let (_, event) = bench.decides("GRANTED", &grant).await;
    let Body::CouponGranted { coupon, user, issue_no, issued_at } = &event.body else { panic!("{event:?}") };
    assert_eq!((coupon.get(), user.get(), *issue_no, *issued_at), (1, 2, 1, START));
    bench.leaves_all("ALREADY_GRANTED", &grant).await;
    bench.covers(&[&script::COUPON_GRANT]);
    bench.finish().await;
}

#[tokio::test]
async fn order_place_matches_header() {
    let mut bench = Bench::start(1).await;
    for raw in [
        bench.users_create(1, 2, 10_000),
        bench.product_create(1, 1_000, 5),
        bench.product_create(2, 300, 1),
        bench.product_create(3, 100, 0),
        bench.product_create(4, 1_000_000_000_000, 10_000),
        bench.campaign_create(1, "PERCENTAGE", 33, 5),
        bench.campaign_create(2, "FIXED", 99_999, 5),
        bench.coupon_issue(1, 1),
        bench.coupon_issue(2, 1),
    ] {
        bench.run(&raw).await;
    }
    let place = bench.place(10, 1, &[(1, 2), (2, 1)], "");
    bench.needs_open_partition(&place).await;
    bench.needs_its_own_key(&place, true).await;
    let stranger = bench.place(10, 9, &[(1, 2)], "");
    bench.leaves_all("USER_NOT_FOUND", &stranger).await;
    bench.leaves_all("TOO_MANY_OPEN", &place.with_shared(3, 0)).await;
    for (lines, word, product) in [
        (&[(1, 1), (77, 1)][..], "PRODUCT_NOT_FOUND", "77"),
        // What is unknown is told before what is sold out, and the first that is short of all.
        (&[(3, 1), (77, 1)], "PRODUCT_NOT_FOUND", "77"),
        (&[(1, 1), (3, 1)], "SOLD_OUT", "3"),
        (&[(1, 6), (3, 1)], "INSUFFICIENT_STOCK", "1"),
        (&[(1, 5), (2, 2)], "INSUFFICIENT_STOCK", "2"),
    ] {
        let raw = bench.place(10, 1, lines, "");
        let reply = bench.leaves_all(word, &raw).await;
        assert_eq!(reply[1], product);
        bench.leaves_all(word, &raw.keyed("k", "mine")).await;
    }
    // Judged alone it is refused for the same, or for its far lines, and else would be placed.
    let judged = |raw: &Raw, shortage: &str| {
        let mut judged = raw.clone();
        *judged.args.last_mut().unwrap() = shortage.to_owned();
        judged
    };
    bench.leaves_all("ACCEPTABLE", &judged(&place, "NONE")).await;
    bench.leaves_all("ACCEPTABLE", &judged(&place, "NONE").keyed("k", "mine")).await;
    bench.leaves_all("SOLD_OUT", &judged(&place, "SOLD_OUT")).await;
    bench.leaves_all("USER_NOT_FOUND", &judged(&stranger, "SOLD_OUT")).await;
    bench.leaves_all("INSUFFICIENT_STOCK", &judged(&bench.place(10, 1, &[(1, 6)], ""), "NONE")).await;
    bench.leaves_all("INSUFFICIENT_BALANCE", &judged(&bench.place(10, 1, &[(4, 1)], ""), "NONE")).await;
    let dear = bench.place(10, 1, &[(4, 10_000)], "").with_shared(4, 0);
    bench.leaves_all("OVERFLOW", &dear).await;
    bench.leaves_all("INSUFFICIENT_BALANCE", &bench.place(10, 1, &[(4, 1)], "")).await;
    // Coupons: not this user's, of no campaign, past their end.
    let with_coupon = |raw: &Raw, id: i64, kind: &str, amount: i64| {
        raw.with(6, id).with(7, kind).with(8, amount).with(9, START.0 + 2 * HOUR_MS)
    };
    let discounted = with_coupon(&place, 1, "PERCENTAGE", 33);
    bench.leaves_all("INVALID_COUPON", &with_coupon(&place, 3, "FIXED", 1)).await;
    bench.leaves_all("INVALID_COUPON", &place.with(6, 3)).await;
    let others = bench.place(10, 2, &[(1, 1)], "");
    bench.leaves_all("INVALID_COUPON", &with_coupon(&others, 1, "PERCENTAGE", 33)).await;
    bench.leaves_all("INVALID_COUPON", &discounted.with(1, START.0 + 2 * HOUR_MS)).await;

    let (reply, event) = bench.decides_once("PLACED", &discounted).await;
    // 33 % of 2,300 is 759.
    assert_eq!(reply[3..], ["10".to_owned(), "1541".to_owned(), START.0.to_string()]);
    let Body::OrderPlaced(placed) = &event.body else { panic!("{event:?}") };
    assert_eq!((placed.order.get(), placed.user.get()), (10, 1));
    assert_eq!((placed.total, placed.discount, placed.final_price), (2_300, 759, 1_541));
    assert_eq!((placed.coupon.unwrap().get(), placed.expires_at), (1, START.plus(HOUR_MS)));
    let lines: Vec<_> = placed.lines.iter().map(|l| (l.product_id.get(), l.quantity, l.price)).collect();
    assert_eq!((lines, placed.remote.len()), (vec![(1, 2, 1_000), (2, 1, 300)], 0));
    let again = bench.place(11, 1, &[(1, 1)], "");
    bench.leaves_all("INVALID_COUPON", &with_coupon(&again, 1, "PERCENTAGE", 33)).await;
    bench.leaves_all("SOLD_OUT", &bench.place(11, 1, &[(2, 1)], "")).await;
    // A discount beyond the total ends at nothing to pay.
    let (reply, _) = bench.decides("PLACED", &with_coupon(&again, 2, "FIXED", 99_999)).await;
    assert_eq!(reply[4], "0");
    bench.leaves_all("TOO_MANY_OPEN", &bench.place(12, 1, &[(1, 1)], "").with_shared(3, 2)).await;

    // The mark of an order whose far holds were given back keeps it from ever being placed with them.
    let verdict = bench.verdict(20);
    assert_eq!(bench.run(&verdict).await, ["ORDER_STATUS", "ABANDONED", "", ""]);
    let late = bench.place(20, 1, &[(1, 1)], "6:1:10");
    bench.leaves_all("ABANDONED", &late).await;
    bench.covers(&[&script::ORDER_PLACE]);
    bench.finish().await;
}

#[tokio::test]
async fn order_pay_matches_header() {
    let mut bench = Bench::start(1).await;
    bench.ordered(10, 1, 5_000, 4).await;
    for raw in [bench.campaign_create(1, "FIXED", 100, 5), bench.coupon_issue(1, 1)] {
        bench.run(&raw).await;
    }
    let second = bench.place(11, 1, &[(900, 2)], "").with(6, 1).with(7, "FIXED").with(8, 100);
    let second = second.with(9, START.0 + 2 * HOUR_MS);
    bench.decides("PLACED", &second).await;
    let pay = bench.pay(10, 1, 4_000);
    bench.needs_open_partition(&pay).await;
    bench.needs_its_own_key(&pay, true).await;
    let (others, unknown) = (bench.pay(10, 2, 4_000), bench.pay(12, 1, 4_000));
    bench.leaves_all("ORDER_NOT_FOUND", &others).await;
    bench.leaves_all("ORDER_NOT_FOUND", &unknown).await;
    bench.leaves_all("WRONG_AMOUNT", &pay.with(6, 3_999)).await;
    bench.leaves_all("WRONG_AMOUNT", &pay.with(6, 4_001).keyed("k", "mine")).await;
    // The day of the call is the server's: the last instant of it is still of it, the first after it is not.
    let today = CalendarDay::of(START, chrono_tz::Asia::Seoul);
    for now in [today.from.0 - 1, today.until.0] {
        assert_eq!(bench.leaves_all("OTHER_DAY", &pay.with(1, now)).await[1], now.to_string());
    }
    let (reply, event) = bench.decides_once("PAID", &pay).await;
    assert_eq!(reply[3..], ["17".to_owned(), "receipt-10".to_owned(), START.0.to_string()]);
    let Body::OrderPaid(paid) = &event.body else { panic!("{event:?}") };
    assert_eq!((paid.order.get(), paid.user.get(), paid.payment.get(), paid.amount), (10, 1, 17, 4_000));
    assert_eq!((paid.receipt.as_str(), paid.transaction.as_deref(), paid.day.as_str()), ("receipt-10", None, DAY));
    assert_eq!(paid.lines.len(), 1);
    let entry = paid.entry.as_ref().unwrap();
    assert_eq!((entry.entry_no, entry.before, entry.amount, entry.after), (2, 5_000, 4_000, 1_000));
    assert_eq!(entry.order_id.unwrap().get(), 10);
    bench.leaves_all("ALREADY_PAID", &pay).await;
    // A balance that does not suffice is an effect: the order has failed.
    let broke = bench.pay(11, 1, 1_900);
    let (_, event) = bench.decides_once("DECLINED", &broke).await;
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.from, closed.status), (OrderStatus::Pending, OrderStatus::Failed));
    assert_eq!((closed.reason, closed.entry.is_none()), (CloseReason::PaymentDeclined, true));
    assert_eq!((closed.coupon.unwrap().get(), closed.lines[0].quantity), (1, 2));
    bench.leaves_all("ALREADY_CLOSED", &broke).await;
    // Nothing to pay leaves no entry.
    for raw in [bench.product_create(5, 0, 10), bench.place(13, 1, &[(5, 1)], "")] {
        bench.run(&raw).await;
    }
    let (_, event) = bench.decides_once("PAID", &bench.pay(13, 1, 0)).await;
    assert!(matches!(&event.body, Body::OrderPaid(paid) if paid.entry.is_none()), "{event:?}");
    // A gateway's verdict told again.
    for raw in [bench.place(14, 1, &[(5, 1)], ""), bench.payment_begin(14, 1, 0), bench.pay_by_gateway(14, 1, 0)] {
        bench.run(&raw).await;
    }
    bench.leaves_all("PAID_BEFORE", &bench.pay_by_gateway(14, 1, 0)).await;
    bench.covers(&[&script::ORDER_PAY]);
    bench.finish().await;
}

#[tokio::test]
async fn order_close_matches_header() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 4).await;
    for order in 11..=13 {
        let place = bench.place(order, 1, &[(product, 1)], "");
        bench.decides("PLACED", &place).await;
    }
    let cancel = bench.close(10, 1, "CANCEL", "");
    bench.needs_open_partition(&cancel).await;
    bench.needs_its_own_key(&cancel, true).await;
    let (others, unknown) = (bench.close(10, 2, "CANCEL", ""), bench.close(99, 1, "CANCEL", ""));
    bench.leaves_all("ORDER_NOT_FOUND", &others).await;
    bench.leaves_all("ORDER_NOT_FOUND", &unknown).await;
    let (reply, event) = bench.decides_once("CLOSED", &cancel).await;
    assert_eq!(reply[3..], ["CANCELLED".to_owned(), "CANCELLED_BY_USER".to_owned(), START.0.to_string()]);
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.order.get(), closed.user.get(), closed.from), (10, 1, OrderStatus::Pending));
    assert_eq!((closed.lines[0].quantity, closed.entry.is_none(), closed.receipt.is_none()), (4, true, true));
    for why in ["CANCEL", "EXPIRE", "DECLINE"] {
        let again = bench.close(10, 1, why, "");
        bench.leaves_all("ALREADY_CLOSED", &again.with(1, START.0 + HOUR_MS)).await;
    }

    // By the clock: not a millisecond early.
    let expire = bench.close(11, 1, "EXPIRE", "");
    bench.leaves_all("NOT_DUE", &expire.with(1, START.0 + HOUR_MS - 1)).await;
    let expire = expire.with(1, START.0 + HOUR_MS);
    let (reply, event) = bench.decides("CLOSED", &expire).await;
    assert_eq!(reply[4], "EXPIRED");
    assert!(matches!(&event.body, Body::OrderClosed(closed) if closed.reason == CloseReason::Expired), "{event:?}");

    // A paid one: by its user alone, refunded, and with the rankings of its own day.
    let pay = bench.pay(12, 1, 1_000);
    bench.decides("PAID", &pay).await;
    for why in ["EXPIRE", "DECLINE"] {
        let raw = bench.close(12, 1, why, "");
        bench.leaves_all("ALREADY_PAID", &raw.with(1, START.0 + HOUR_MS)).await;
    }
    let refund = bench.close(12, 1, "CANCEL", DAY);
    bench.leaves_all("STALE", &refund.with(8, "20260301")).await;
    bench.leaves_all("STALE", &refund.with(8, "")).await;
    let (reply, event) = bench.decides_once("CLOSED", &refund).await;
    assert_eq!(reply[4], "REFUNDED");
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    let entry = closed.entry.as_ref().unwrap();
    assert_eq!((entry.entry_no, entry.before, entry.amount, entry.after), (3, 49_000, 1_000, 50_000));
    assert_eq!((closed.from, closed.receipt.as_deref()), (OrderStatus::Paid, Some("receipt-12")));
    assert_eq!((closed.day.as_str(), closed.by_gateway), (DAY, false));

    // A decline is of one payment: without it, or with another receipt, there is nothing to decline.
    let decline = bench.decline(13, 1);
    bench.leaves_all("NOT_DUE", &decline).await;
    let begin = bench.payment_begin(13, 1, 1_000);
    bench.decides("STARTED", &begin).await;
    bench.leaves_all("NOT_DUE", &decline.with(10, "receipt-of-another")).await;
    bench.decides("DECLINED", &decline).await;
    bench.covers(&[&script::ORDER_CLOSE]);
    bench.finish().await;
}

#[tokio::test]
async fn payment_scripts_match_headers() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 2).await;
    for order in 11..=14 {
        let place = bench.place(order, 1, &[(product, 1)], "");
        bench.decides("PLACED", &place).await;
    }
    let begin = bench.payment_begin(10, 1, 2_000);
    bench.needs_open_partition(&begin).await;
    bench.needs_its_own_key(&begin, true).await;
    let (others, unknown) = (bench.payment_begin(10, 2, 2_000), bench.payment_begin(99, 1, 2_000));
    bench.leaves_all("ORDER_NOT_FOUND", &others).await;
    bench.leaves_all("ORDER_NOT_FOUND", &unknown).await;
    bench.leaves_all("WRONG_AMOUNT", &begin.with(7, 1_999)).await;
    let begin = begin.keyed("payment", "mine").with(12, "payment");
    let (_, event) = bench.decides("STARTED", &begin).await;
    let Body::PaymentStarted(started) = &event.body else { panic!("{event:?}") };
    assert_eq!((started.order.get(), started.user.get(), started.payment.get()), (10, 1, 17));
    assert_eq!((started.amount, started.receipt.as_str()), (2_000, "receipt-10"));
    // The repeat is told to wait, and another request of the order too; none can end it but the gateway's word.
    bench.leaves_all("IN_PROGRESS", &begin).await;
    bench.leaves_all("KEY_REUSED", &begin.keyed("payment", "another")).await;
    bench.leaves_all("IN_PROGRESS", &bench.payment_begin(10, 1, 2_000)).await;
    bench.leaves_all("IN_PROGRESS", &bench.pay(10, 1, 2_000)).await;
    bench.leaves_all("IN_PROGRESS", &bench.close(10, 1, "CANCEL", "")).await;
    bench.leaves_all("NOT_DUE", &bench.close(10, 1, "EXPIRE", "").with(1, START.0 + HOUR_MS)).await;
    // The gateway's word is told apart by its receipt.
    let settle = bench.pay_by_gateway(10, 1, 2_000).keyed("payment", "mine");
    bench.needs_open_partition(&settle).await;
    bench.leaves_all("ALREADY_CLOSED", &settle.with(9, "receipt-of-another")).await;
    let (reply, event) = bench.decides("PAID", &settle).await;
    let Body::OrderPaid(paid) = &event.body else { panic!("{event:?}") };
    assert_eq!((paid.transaction.as_deref(), paid.entry.is_none()), (Some("tx-10"), true));
    // Said twice it is the same answer; the client's repeat finds it under its key.
    assert_eq!(bench.leaves_all("PAID_BEFORE", &settle).await[1..], reply[3..]);
    let replayed = bench.leaves_all("REPLAYED", &begin).await;
    assert_eq!(replayed[1..], reply);
    bench.leaves_all("ALREADY_PAID", &bench.payment_begin(10, 1, 2_000)).await;
    bench.leaves_all("ALREADY_PAID", &bench.decline(10, 1)).await;
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(10, 1, "REFUNDED")).await;

    // Its refund goes through the gateway, until that has given it back.
    let (_, event) = bench.decides_once("CLOSED", &bench.close(10, 1, "CANCEL", DAY)).await;
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.by_gateway, closed.entry.is_none()), (true, true));
    bench.leaves_all("ALREADY_CLOSED", &settle).await;
    let end = bench.payment_finish(10, 1, "REFUNDED");
    bench.needs_open_partition(&end).await;
    bench.leaves_all("NOT_OPEN", &end.with(5, "receipt-of-another")).await;
    let (_, event) = bench.decides("FINISHED", &end).await;
    let Body::PaymentEnded { order, receipt, outcome, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((order.get(), receipt.as_str(), *outcome), (10, "receipt-10", PaymentOutcome::Refunded));
    bench.leaves_all("NOT_OPEN", &end).await;

    // Declined for certain; and not for certain, after which it is watched.
    let begin = bench.payment_begin(11, 1, 1_000).keyed("declined", "mine").with(12, "declined");
    bench.decides("STARTED", &begin).await;
    let decline = bench.decline(11, 1).keyed("declined", "mine");
    bench.needs_open_partition(&decline).await;
    let (reply, event) = bench.decides("DECLINED", &decline).await;
    let Body::OrderClosed(closed) = &event.body else { panic!("{event:?}") };
    assert_eq!((closed.status, closed.receipt.as_deref()), (OrderStatus::Failed, Some("receipt-11")));
    let replayed = bench.leaves_all("REPLAYED", &begin).await;
    assert_eq!(replayed[1..], reply);
    bench.leaves_all("ALREADY_CLOSED", &bench.payment_begin(11, 1, 1_000)).await;
    bench.leaves_all("ALREADY_CLOSED", &bench.pay_by_gateway(11, 1, 1_000)).await;
    bench.leaves_all("ALREADY_CLOSED", &decline).await;
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(11, 1, "DECLINED")).await;
    for (order, outcome) in [(12, "DECLINED"), (13, "REFUNDED")] {
        bench.decides("STARTED", &bench.payment_begin(order, 1, 1_000)).await;
        bench.decides("DECLINED", &bench.decline(order, 1).with(11, 5_000)).await;
        bench.leaves_all("ALREADY_CLOSED", &bench.pay_by_gateway(order, 1, 1_000)).await;
        bench.decides("FINISHED", &bench.payment_finish(order, 1, outcome)).await;
    }
    bench.decides("STARTED", &bench.payment_begin(14, 1, 1_000)).await;
    bench.covers(&[&script::PAYMENT_BEGIN, &script::PAYMENT_FINISH]);
    bench.finish().await;
}

#[tokio::test]
async fn payment_postpone_and_resolve_match_headers() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 2).await;
    bench.decides("PLACED", &bench.place(11, 1, &[(product, 1)], "")).await;
    let (postpone, approve) = (bench.payment_postpone(10, START.0 + 4_000), bench.payment_resolve(10, 1, "APPROVED"));
    bench.leaves_all("NOT_OPEN", &postpone).await;
    bench.leaves_all("NOT_OPEN", &approve).await;
    bench.leaves_all("ORDER_NOT_FOUND", &bench.payment_resolve(99, 1, "APPROVED")).await;
    bench.decides("STARTED", &bench.payment_begin(10, 1, 2_000)).await;
    let begin = bench.payment_begin(11, 1, 1_000).keyed("payment", "mine").with(12, "payment");
    bench.decides("STARTED", &begin).await;

    bench.needs_open_partition(&postpone).await;
    bench.leaves_all("NOT_OPEN", &postpone.with(2, "receipt-of-another")).await;
    let here = bench.keys(10);
    for asks in 1..=2 {
        assert_eq!(bench.run(&postpone).await, ["POSTPONED"]);
        let mut read = redis::cmd("HMGET");
        read.arg(order_key(here, 10)).arg(&["gateway_asks", "gateway_said"]);
        let kept: (i64, String) = read.query_async(&mut bench.redis).await.unwrap();
        assert_eq!(kept, (asks, "HTTP 500 decides nothing".to_owned()));
    }
    let due = redis::cmd("ZSCORE").arg(here.gateway()).arg(10).query_async::<i64>(&mut bench.redis).await.unwrap();
    assert_eq!(due, START.0 + 4_000);

    bench.needs_open_partition(&approve).await;
    bench.needs_its_own_key(&approve, true).await;
    bench.leaves_all("STALE", &approve.with(6, "receipt-of-another")).await;
    bench.leaves_all("STALE", &approve.with(7, "key-of-another")).await;
    bench.leaves_all("OTHER_DAY", &approve.with(1, START.0 + 24 * HOUR_MS)).await;
    // Each is two decisions: the order's, and the operator's, with a record each.
    let decline = bench.payment_resolve(11, 1, "DECLINED").with(7, "payment");
    let mut decline_keyed = decline.keyed("act-11", "operator");
    decline_keyed.keys[3] = here.record("payment");
    for (raw, status, kind) in
        [(approve.keyed("act-10", "operator"), "PAID", "paid"), (decline_keyed, "FAILED", "closed")]
    {
        let (length, seq) = bench.position(raw.partition()).await;
        let reply = bench.run(&raw).await;
        assert_eq!(reply, ["RESOLVED", "1", &(seq + 2).to_string(), status, raw.now()]);
        assert_eq!(bench.position(raw.partition()).await, (length + 2, seq + 2));
        let mut last = redis::cmd("XREVRANGE");
        last.arg(here.outbox()).arg("+").arg("-").arg("COUNT").arg(2);
        let last: Vec<(String, Vec<(String, String)>)> = last.query_async(&mut bench.redis).await.unwrap();
        let mut events = last.iter().map(|(_, fields)| event::decode(fields).pop().unwrap().event.unwrap());
        let (resolved, decided) = (events.next().unwrap(), events.next().unwrap());
        assert_eq!((decided.seq, resolved.seq), (seq + 1, seq + 2));
        let Body::PaymentResolved(resolution) = &resolved.body else { panic!("{resolved:?}") };
        assert_eq!((resolution.operator.as_str(), resolution.reason.as_str()), ("kim", "seen"));
        assert_eq!(resolution.approved, status == "PAID");
        assert_eq!(unpack_reply(&resolved.record.as_ref().unwrap().reply).unwrap(), reply);
        match (&decided.body, kind) {
            (Body::OrderPaid(paid), "paid") => {
                assert_eq!((paid.by_gateway, &paid.transaction, paid.entry.is_none()), (true, &None, true));
            }
            (Body::OrderClosed(closed), "closed") => {
                assert_eq!((closed.status, closed.watched, closed.withheld), (OrderStatus::Failed, true, false));
                assert_eq!(decided.record.as_ref().unwrap().digest, "payment");
            }
            _ => panic!("{decided:?}"),
        }
        assert_eq!(bench.leaves_all("REPLAYED", &raw).await[1..], reply);
        bench.leaves_all("KEY_REUSED", &raw.keyed(if kind == "paid" { "act-10" } else { "act-11" }, "another")).await;
    }
    // Its client finds the outcome under its own key.
    assert_eq!(bench.leaves_all("REPLAYED", &begin).await[1], "DECLINED");
    bench.leaves_all("NOT_OPEN", &approve).await;
    // What the gateway says afterwards ends an approved payment in its own way, and no other.
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(10, 1, "REFUNDED")).await;
    bench.leaves_all("NOT_OPEN", &bench.payment_finish(11, 1, "SETTLED")).await;
    let (_, event) = bench.decides("FINISHED", &bench.payment_finish(10, 1, "SETTLED").with(7, "tx-10")).await;
    let Body::PaymentEnded { outcome, transaction, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((*outcome, transaction.as_deref()), (PaymentOutcome::Settled, Some("tx-10")));
    bench.decides("FINISHED", &bench.payment_finish(11, 1, "DECLINED")).await;
    bench.leaves_all("NOT_OPEN", &postpone).await;
    bench.covers(&[&script::PAYMENT_POSTPONE, &script::PAYMENT_RESOLVE]);
    bench.finish().await;
}

/// The steps of an order across two partitions, taken by hand: its user is at home in the first, its product in the second.
#[tokio::test]
async fn hold_scripts_match_headers() {
    let mut bench = Bench::start(2).await;
    for raw in [
        bench.users_create(2, 1, 100_000),
        bench.product_create(1, 1_000, 5),
        bench.product_create(3, 10, 0),
        bench.product_create(5, 10, 9),
    ] {
        bench.run(&raw).await;
    }
    let hold = bench.hold(10, 2, &[(1, 2), (5, 3)]);
    bench.needs_open_partition(&hold).await;
    for (lines, word, product) in [
        (&[(1, 1), (77, 1)][..], "PRODUCT_NOT_FOUND", "77"),
        (&[(1, 1), (3, 1)], "SOLD_OUT", "3"),
        (&[(1, 6)], "INSUFFICIENT_STOCK", "1"),
    ] {
        let raw = bench.hold(10, 2, lines);
        assert_eq!(bench.leaves_all(word, &raw).await[1], product);
    }
    let (reply, event) = bench.decides("HELD", &hold).await;
    assert_eq!(reply[3], "1:2:1000,5:3:10");
    assert!(matches!(&event.body, Body::StockHeld { lines, .. } if lines.len() == 2), "{event:?}");
    let again = bench.leaves_all("ALREADY_HELD", &hold).await;
    assert_eq!(again[1], reply[3], "said twice, held once");
    let place = bench.place(10, 2, &[], "1:2:1000,5:3:10");
    let (placed, event) = bench.decides_once("PLACED", &place).await;
    assert_eq!(placed[4], "2030");
    assert!(matches!(&event.body, Body::OrderPlaced(placed) if placed.remote.len() == 2), "{event:?}");
    let verdict = bench.verdict(10);
    bench.needs_open_partition(&verdict).await;
    assert_eq!(bench.leaves_all("ORDER_STATUS", &verdict).await, ["ORDER_STATUS", "PENDING", "", ""]);

    bench.decides("PAID", &bench.pay(10, 2, 2_030)).await;
    assert_eq!(bench.leaves_all("ORDER_STATUS", &verdict).await, ["ORDER_STATUS", "PAID", "", DAY]);
    let settle = bench.settle(1, 10, 2, "SETTLED");
    bench.needs_open_partition(&settle).await;
    let (_, event) = bench.decides("MOVED", &settle).await;
    let Body::StockSettled { lines, from, to, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((lines.len(), *from, *to), (2, HoldState::Held, HoldState::Settled));
    bench.leaves_all("UNCHANGED", &settle).await;
    bench.leaves_all("UNCHANGED", &bench.settle(1, 10, 2, "RELEASED")).await;
    bench.leaves_all("RELEASED", &hold).await;

    bench.decides("CLOSED", &bench.close(10, 2, "CANCEL", DAY)).await;
    assert_eq!(bench.leaves_all("ORDER_STATUS", &verdict).await, ["ORDER_STATUS", "CANCELLED", "REFUNDED", DAY]);
    let refund = bench.settle(1, 10, 2, "REFUNDED");
    let (_, event) = bench.decides("MOVED", &refund).await;
    let Body::StockSettled { from, to, .. } = &event.body else { panic!("{event:?}") };
    assert_eq!((*from, *to), (HoldState::Settled, HoldState::Refunded));
    bench.leaves_all("UNCHANGED", &refund).await;
    bench.leaves_all("UNCHANGED", &settle).await;

    // No order came of it: it comes back, and stays back.
    let stray = bench.hold(12, 2, &[(1, 5)]);
    bench.decides("HELD", &stray).await;
    assert_eq!(bench.run(&bench.verdict(12)).await[1], "ABANDONED");
    bench.leaves_all("ORDER_STATUS", &bench.verdict(12)).await;
    bench.decides("MOVED", &bench.settle(1, 12, 2, "RELEASED")).await;
    bench.leaves_all("UNCHANGED", &bench.settle(1, 12, 2, "RELEASED")).await;
    bench.leaves_all("RELEASED", &stray).await;

    // Given back by whoever held it: nothing of it stays.
    let undone = bench.hold(18, 2, &[(1, 3)]);
    let before = bench.test.snapshot().await;
    bench.decides("HELD", &undone).await;
    let (_, event) = bench.decides("MOVED", &bench.settle(1, 18, 2, "RELEASED").with(8, 0)).await;
    assert!(matches!(event.body, Body::StockSettled { forgotten: true, .. }), "{event:?}");
    let (before, after) = (without_positions(before), without_positions(bench.test.snapshot().await));
    assert!(before == after, "{before:?} {after:?}");
    bench.test.drain().await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM stock_holds WHERE order_id = 18")
        .fetch_one(bench.test.db.get_postgres_connection_pool())
        .await
        .unwrap();
    assert_eq!(rows, 0);

    // The end comes first: a mark, which is no decision, and the beginning obeys it.
    let decided = bench.position(Partition(1)).await;
    for end in ["SETTLED", "REFUNDED"] {
        bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 14, 2, end)).await;
    }
    // Whoever found it held needs no mark.
    bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 14, 2, "RELEASED").with(8, 0)).await;
    assert_eq!(bench.run(&bench.settle(1, 14, 2, "RELEASED")).await, ["TOMBSTONED"]);
    assert_eq!(bench.position(Partition(1)).await, decided);
    bench.leaves_all("RELEASED", &bench.hold(14, 2, &[(1, 1)])).await;

    // A refund that overtook its settlement.
    let overtaken = bench.hold(16, 2, &[(5, 1)]);
    bench.decides("HELD", &overtaken).await;
    for raw in [bench.place(16, 2, &[], "5:1:10"), bench.pay(16, 2, 10), bench.close(16, 2, "CANCEL", DAY)] {
        bench.run(&raw).await;
    }
    bench.decides("MOVED", &bench.settle(5, 16, 2, "REFUNDED")).await;
    bench.leaves_all("UNCHANGED", &bench.settle(5, 16, 2, "SETTLED")).await;
    bench.covers(&[&script::ORDER_RESOLVE, &script::STOCK_HOLD, &script::STOCK_SETTLE]);
    bench.finish().await;
}

/// What is over leaves, as long as it is what Postgres has; what comes of it afterwards takes that back.
#[tokio::test]
async fn order_evict_and_restore_match_headers() {
    let mut bench = Bench::start(1).await;
    let product = bench.ordered(10, 1, 50_000, 2).await;
    for order in 11..=16 {
        let place = bench.place(order, 1, &[(product, 1)], "");
        bench.decides("PLACED", &place).await;
    }
    // PENDING, PAID, CANCELLED, FAILED; and with a gateway still asked: about its payment, its late money, its refund.
    for raw in [
        bench.pay(11, 1, 1_000),
        bench.close(12, 1, "CANCEL", ""),
        bench.payment_begin(13, 1, 1_000),
        bench.decline(13, 1),
        bench.payment_begin(14, 1, 1_000),
        bench.payment_begin(15, 1, 1_000),
        bench.decline(15, 1).with(11, 5_000),
        bench.payment_begin(16, 1, 1_000),
        bench.pay_by_gateway(16, 1, 1_000),
        bench.close(16, 1, "CANCEL", DAY),
    ] {
        bench.run(&raw).await;
    }
    let keys = Keys(Partition(0));
    let key = |order: i64| order_key(keys, order);
    let states = ["PENDING", "PAID", "CANCELLED", "FAILED", "PENDING", "FAILED", "CANCELLED", ""];
    let may = [(11, "PAID"), (12, "CANCELLED"), (12, "CLOSED"), (13, "FAILED"), (13, "CLOSED")];
    for (order, status) in (10..=17).zip(states) {
        for was in ["PAID", "CANCELLED", "FAILED", "CLOSED", "SETTLED", "REFUNDED", "RELEASED", "ABANDONED"] {
            let raw = bench.retire(&[(key(order), was)]);
            let before = bench.test.snapshot().await;
            let retired = usize::from(may.contains(&(order, was)));
            assert_eq!(bench.run(&raw).await, ["EVICTED".to_owned(), retired.to_string()], "{status} as {was}");
            assert!(before == bench.test.snapshot().await);
            assert_eq!(bench.life(&key(order)).await > 0, retired == 1, "{status} as {was}");
            if retired == 1 {
                let _: i64 = redis::cmd("PERSIST").arg(key(order)).query_async(&mut bench.redis).await.unwrap();
            }
        }
    }
    // Many at once: each for itself. Said again it is the same.
    let all: Vec<(String, &str)> = (10..=17).zip(states).map(|(order, was)| (key(order), was)).collect();
    for _ in 0..2 {
        let raw = bench.retire(&all[1..]);
        assert_eq!(bench.leaves_all("EVICTED", &raw).await[1], "3");
        assert_eq!(bench.life(&key(11)).await / 60_001, 0);
    }
    assert_eq!(bench.run(&bench.retire(&[])).await, ["EVICTED", "0"]);

    // A refund keeps the order: Postgres does not know of it yet.
    assert!(bench.life(&key(11)).await > 0);
    bench.decides("CLOSED", &bench.close(11, 1, "CANCEL", DAY)).await;
    assert_eq!(bench.life(&key(11)).await, -1);
    assert_eq!(bench.leaves_all("EVICTED", &bench.retire(&[(key(11), "PAID")])).await[1], "0");
    assert_eq!(bench.life(&key(11)).await, -1);

    // What has left comes back as it was, for a while; and only then.
    let whole: Vec<(String, String)> = redis::cmd("HGETALL").arg(key(13)).query_async(&mut bench.redis).await.unwrap();
    let whole: Vec<(&str, &str)> = whole.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
    let restore = bench.restore(keys, &key(13), &whole);
    bench.leaves_all("ALREADY_PRESENT", &restore).await;
    let before = bench.test.snapshot().await;
    let _: i64 = redis::cmd("DEL").arg(key(13)).query_async(&mut bench.redis).await.unwrap();
    bench.needs_open_partition(&restore).await;
    // The mark of an order that never was is wrong about it.
    for mark in [false, true] {
        if mark {
            let _: i64 = redis::cmd("DEL").arg(key(13)).query_async(&mut bench.redis).await.unwrap();
            assert_eq!(bench.run(&bench.verdict(13)).await[1], "ABANDONED");
        }
        let decided = bench.position(Partition(0)).await;
        assert_eq!(bench.run(&restore).await, ["RESTORED"]);
        assert_eq!(bench.position(Partition(0)).await, decided, "that decided something");
        assert!(before == bench.test.snapshot().await);
        assert!((1..=60_000).contains(&bench.life(&key(13)).await));
        bench.leaves_all("ALREADY_PRESENT", &restore).await;
    }
    bench.covers(&[&script::ORDER_EVICT, &script::ORDER_RESTORE]);
    bench.finish().await;
}

/// The same of stock held in another partition.
#[tokio::test]
async fn hold_evict_and_restore_match_headers() {
    let mut bench = Bench::start(2).await;
    for raw in [bench.users_create(2, 1, 100_000), bench.product_create(1, 1_000, 5)] {
        bench.run(&raw).await;
    }
    let keys = Keys(Partition(1));
    let (key, far) = (hold_key(keys, 10), "1:2:1000");
    for raw in [bench.hold(10, 2, &[(1, 2)]), bench.place(10, 2, &[], far), bench.pay(10, 2, 2_000)] {
        bench.run(&raw).await;
    }
    // HELD: whatever Postgres is said to have.
    for was in ["SETTLED", "REFUNDED", "RELEASED", "PAID", "CLOSED"] {
        assert_eq!(bench.leaves_all("EVICTED", &bench.retire(&[(key.clone(), was)])).await[1], "0", "{was}");
    }
    bench.decides("MOVED", &bench.settle(1, 10, 2, "SETTLED")).await;
    assert_eq!(bench.life(&key).await, -1);
    assert_eq!(bench.leaves_all("EVICTED", &bench.retire(&[(key.clone(), "SETTLED")])).await[1], "1");
    let before = bench.test.snapshot().await;
    let _: i64 = redis::cmd("DEL").arg(&key).query_async(&mut bench.redis).await.unwrap();
    // Whatever is said of it again, there is nothing; and the refund finds out that there should be.
    for end in ["SETTLED", "REFUNDED"] {
        bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 10, 2, end)).await;
    }
    bench.leaves_all("HOLD_NOT_FOUND", &bench.settle(1, 10, 2, "RELEASED").with(8, 0)).await;
    let restore = bench.restore(keys, &key, &[("state", "SETTLED"), ("lines", far), ("user", "2")]);
    bench.needs_open_partition(&restore).await;
    assert_eq!(bench.run(&restore).await, ["RESTORED"]);
    assert!(before == bench.test.snapshot().await);
    assert!((1..=60_000).contains(&bench.life(&key).await));
    bench.decides("CLOSED", &bench.close(10, 2, "CANCEL", DAY)).await;
    // The refund keeps it: Postgres does not know of it yet.
    bench.decides("MOVED", &bench.settle(1, 10, 2, "REFUNDED")).await;
    assert_eq!(bench.life(&key).await, -1);
    bench.leaves_all("ALREADY_PRESENT", &restore).await;
    assert_eq!(bench.leaves_all("EVICTED", &bench.retire(&[(key.clone(), "SETTLED")])).await[1], "0");
    assert_eq!(bench.leaves_all("EVICTED", &bench.retire(&[(key.clone(), "REFUNDED")])).await[1], "1");
    bench.finish().await;
}
