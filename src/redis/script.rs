//! The Lua scripts: embedded, loaded when Redis does not know them, called by hash.

use std::{borrow::Cow, sync::LazyLock, time::Instant};

use anyhow::anyhow;
use redis::{FromRedisValue, RedisError, ServerErrorKind, ToRedisArgs, Value};

use super::{
    Store,
    keys::Keys,
    partition_closed, progress,
    reply_code::{self, DECIDED},
};
use crate::{
    model::{Call, Error, Partition, Position, Reply, event::SEPARATOR},
    telemetry::{
        metrics::{
            self,
            scripts::{Failed, Meter},
        },
        traces,
    },
};

/// One business operation's script.
pub struct Script {
    /// The file's name, which is also the function's and the log's.
    pub name: &'static str,
    script: LazyLock<redis::Script>,
    source: fn() -> String,
    pub(super) meter: LazyLock<Meter>,
}

macro_rules! scripts {
    ($($static:ident = $name:literal;)*) => {
        $(
            #[doc = concat!("`lua/", $name, ".lua`")]
            pub static $static: Script = Script {
                name: $name,
                script: LazyLock::new(|| redis::Script::new(&$static.source())),
                source: || assemble(include_str!(concat!("../../lua/", $name, ".lua"))),
                meter: LazyLock::new(|| Meter::new($name)),
            };
        )*

        /// Every script.
        pub static ALL: &[&Script] = &[$(&$static),*];
    };
}

scripts! {
    COUPON_ISSUE = "coupon_issue";
    COUPON_GRANT = "coupon_grant";
    BALANCE_CHARGE = "balance_charge";
    ORDER_PLACE = "order_place";
    ORDER_PAY = "order_pay";
    ORDER_CLOSE = "order_close";
    ORDER_RESOLVE = "order_resolve";
    ORDER_EVICT = "order_evict";
    ORDER_RESTORE = "order_restore";
    PAYMENT_BEGIN = "payment_begin";
    PAYMENT_FINISH = "payment_finish";
    PAYMENT_POSTPONE = "payment_postpone";
    PAYMENT_RESOLVE = "payment_resolve";
    STOCK_HOLD = "stock_hold";
    STOCK_SETTLE = "stock_settle";
    USERS_CREATE = "users_create";
    PRODUCT_CREATE = "product_create";
    PRODUCT_UPDATE = "product_update";
    CAMPAIGN_CREATE = "campaign_create";
    CAMPAIGN_UPDATE = "campaign_update";
    IDS_RESERVE = "ids_reserve";
    IDEMPOTENCY_CLAIM = "idempotency_claim";
    IDEMPOTENCY_SETTLE = "idempotency_settle";
    STOCK_RELEASE = "stock_release";
    COUPON_RELEASE = "coupon_release";
    COUPON_RELEASE_PREPARE = "coupon_release_prepare";
    PARTITION_FREEZE = "partition_freeze";
    HISTORY_READ = "history_read";
}

/// The file with the parts that it includes in front, below its `#!lua` line.
fn assemble(file: &str) -> String {
    let (shebang, body) = file.split_once('\n').unwrap_or((file, ""));
    let mut source = format!("{shebang}\n");
    for (mark, part) in [
        ("lists", include_str!("../../lua/lib/lists.lua")),
        ("partition", include_str!("../../lua/lib/partition.lua")),
        ("idempotency", include_str!("../../lua/lib/idempotency.lua")),
        ("batch", include_str!("../../lua/lib/batch.lua")),
        ("holds", include_str!("../../lua/lib/holds.lua")),
    ] {
        if body.contains(&format!("--@include {mark}\n")) {
            source.push_str(part);
        }
    }
    source.push_str(body);
    source
}

impl Script {
    /// The whole source, as Redis gets it.
    pub fn source(&self) -> String {
        (self.source)()
    }

    /// What Redis knows it by.
    pub(super) fn hash(&self) -> &str {
        self.script.get_hash()
    }
}

/// A script call being put together: keys and arguments in the order of the script's header.
pub struct Invocation {
    script: &'static Script,
    keys: Vec<String>,
    args: Vec<Vec<u8>>,
}

impl Invocation {
    pub fn new(script: &'static Script) -> Self {
        Invocation { script, keys: Vec::with_capacity(16), args: Vec::with_capacity(16) }
    }

    pub fn key(mut self, key: String) -> Self {
        self.keys.push(key);
        self
    }

    pub fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.args.extend(arg.to_redis_args());
        self
    }

    /// Called by its hash, which Redis knows as a rule.
    fn command(&self) -> redis::Cmd {
        self.as_command(redis::cmd("EVALSHA").arg(self.script.hash()))
    }

    /// Sent with its source, whether Redis knows it or not.
    pub(super) fn whole(&self) -> redis::Cmd {
        self.as_command(redis::cmd("EVAL").arg(self.script.source()))
    }

    fn as_command(&self, eval: &redis::Cmd) -> redis::Cmd {
        let mut command = eval.clone();
        command.arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        for arg in &self.args {
            command.arg(arg);
        }
        command
    }
}

/// A script's answer: a word, and what goes with it.
#[derive(Debug)]
pub struct Answer {
    pub word: String,
    fields: Vec<Value>,
    /// The stored answer to an earlier request under the same idempotency key.
    pub replayed: bool,
    script: &'static str,
}

impl Answer {
    /// One of the packed answers of a script that decides many requests at once.
    pub(super) fn unpack(script: &'static str, value: Value) -> Result<Self, Error> {
        let Value::BulkString(packed) = value else {
            return Err(Error::Internal(anyhow!("{script} answered something that is no text")));
        };
        let parts = packed.split(|byte| *byte == SEPARATOR as u8).map(|part| Value::BulkString(part.to_vec()));
        Answer::read(script, Value::Array(parts.collect()))
    }

    pub(super) fn read(script: &'static str, value: Value) -> Result<Self, Error> {
        let Value::Array(mut fields) = value else {
            return Err(Error::Internal(anyhow!("{script} answered something that is no list")));
        };
        let mut word = take_word(script, &mut fields)?;
        let replayed = word == "REPLAYED";
        if replayed {
            word = take_word(script, &mut fields)?;
        }
        match word.as_str() {
            "KEY_REUSED" => Err(Error::IdempotencyKeyReused),
            "IN_PROGRESS" | "RUNNING" => Err(Error::InProgress),
            _ => Ok(Answer { word, fields, replayed, script }),
        }
    }

    /// The `index`-th value after the word.
    pub fn get<T: FromRedisValue>(&self, index: usize) -> Result<T, Error> {
        T::from_redis_value_ref(self.fields.get(index).unwrap_or(&Value::Nil)).map_err(|error| {
            Error::Internal(anyhow!("{} answered {} with a bad value {index}: {error}", self.script, self.word))
        })
    }

    /// Where the decision stands in its partition's books, for words that start with epoch and seq; `None` where nothing was
    /// decided.
    pub(super) fn position(&self) -> Option<Position> {
        DECIDED
            .contains(&self.word.as_str())
            .then(|| Some(Position { epoch: self.get(0).ok()?, seq: self.get(1).ok()? }))?
    }

    /// What the answer came to.
    pub fn reply<T>(&self, value: T) -> Reply<T> {
        Reply { value, replayed: self.replayed }
    }

    /// The values after the first `skip`.
    pub fn rest(self, skip: usize) -> impl Iterator<Item = Value> {
        self.fields.into_iter().skip(skip)
    }

    /// The answer has a word that its script does not document.
    pub fn unknown(&self) -> Error {
        Error::Internal(anyhow!("{} answered an unknown word {:?}", self.script, self.word))
    }
}

fn take_word(script: &'static str, fields: &mut Vec<Value>) -> Result<String, Error> {
    if fields.is_empty() {
        return Err(Error::Internal(anyhow!("{script} answered nothing")));
    }
    String::from_redis_value(fields.remove(0))
        .map_err(|error| Error::Internal(anyhow!("{script} answered without a word: {error}")))
}

impl Store {
    /// What an idempotency record in `here` holds of an earlier answer of this script; reads, and calls nothing.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`] and [`Error::InProgress`], as the script itself would say.
    pub(super) async fn recorded(
        &self,
        call: &Call,
        here: Partition,
        script: &'static Script,
    ) -> Result<Option<Answer>, Error> {
        let Some(key) = &call.key else { return Ok(None) };
        let mut read = redis::cmd("LRANGE");
        read.arg(Keys(here).record(&key.digest)).arg(0).arg(-1);
        let mut record: Vec<Value> = self.query(here, read).await?;
        if record.is_empty() {
            return Ok(None);
        }
        if take_word(script.name, &mut record)? != key.fingerprint {
            return Err(Error::IdempotencyKeyReused);
        }
        let answer = Answer { replayed: true, ..Answer::read(script.name, Value::Array(record))? };
        self.note(here, &answer);
        Ok(Some(answer))
    }

    /// Loads every script into every server, so that a script which Redis does not know later is a sign that it was
    /// restarted or replaced.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn load_scripts(&self) -> Result<(), Error> {
        let mut load = redis::pipe();
        for script in ALL {
            load.cmd("SCRIPT").arg("LOAD").arg(script.source()).ignore();
        }
        for here in self.all() {
            self.pipe::<()>(here, &load).await?;
        }
        Ok(())
    }

    /// Calls a script on its partition: one round trip, unless Redis has forgotten the script.
    ///
    /// # Errors
    /// The three refusals that all scripts share; [`Error::Unavailable`] where Redis can't answer, after which the script
    /// may have run or not; the same where the partition is closed, or turns out to have lost decisions.
    pub async fn call(&self, partition: Partition, call: &Invocation) -> Result<Answer, Error> {
        let work = traces::script(call.script.name, partition.0, 1, traces::here().as_deref());
        let value = work.ends(self.eval(partition, call.script, &call.command(), Decided::by).await)?;
        let answer = Answer::read(call.script.name, value)?;
        self.note(partition, &answer);
        Ok(answer)
    }

    /// Takes note of an answer's decision for the request that runs in this task.
    pub(super) fn note(&self, here: Partition, answer: &Answer) {
        let Some(position) = answer.position() else { return };
        // A record of an earlier epoch is one that a rebuild took from Postgres: what it tells of is there.
        if !answer.replayed || position.epoch >= self.watermark(here).acknowledged().epoch {
            progress::note(here, position);
        }
    }

    /// The same for a call that is put together already: the script's reply, whose decisions are taken note of.
    pub(super) async fn eval(
        &self,
        partition: Partition,
        script: &'static Script,
        command: &redis::Cmd,
        decided: fn(&Value, &Meter) -> Decided,
    ) -> Result<Value, Error> {
        let (handle, mut link) = self.connection(partition).await?;
        let watermark = self.watermark(partition);
        // Before the call: whatever it decides comes later than all that was told by now.
        let acknowledged = watermark.acknowledged();
        let called = Instant::now();
        let mut result: Result<Value, RedisError> = command.query_async(&mut link).await;
        if result.as_ref().is_err_and(|error| error.kind() == ServerErrorKind::NoScript.into()) {
            // Nothing has run, so this one may be sent again.
            tracing::warn!(script = script.name, "Redis has forgotten a script: it was restarted or replaced");
            metrics::SCRIPTS_FORGOTTEN.inc();
            self.invalidate();
            self.admit(partition, &handle, &mut link).await?;
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script.source());
            let loaded: Result<String, RedisError> = load.query_async(&mut link).await;
            self.shared_connections().settle(&handle, loaded)?;
            result = command.query_async(&mut link).await;
        }
        script.meter.called(called.elapsed());
        let value = self.shared_connections().settle(&handle, result).inspect_err(|error| {
            let unavailable = matches!(error, Error::Unavailable { .. });
            script.meter.failed(if unavailable { Failed::Unavailable } else { Failed::Error });
        })?;
        let Decided { closed, first, last } = decided(&value, &script.meter);
        if closed {
            script.meter.failed(Failed::Closed);
            watermark.invalidate();
            return Err(partition_closed());
        }
        if let Some(found) = first.filter(|first| *first <= acknowledged) {
            script.meter.failed(Failed::Lost);
            return Err(self.lost(partition, &mut link, found, acknowledged).await);
        }
        if let Some(last) = last {
            watermark.advance(last);
        }
        Ok(value)
    }
}

/// What a reply says of its partition's books.
#[derive(Default)]
pub(super) struct Decided {
    closed: bool,
    /// The first and the last number that were given to decisions by this very call.
    first: Option<Position>,
    /// Likewise, or to earlier ones that are told again.
    last: Option<Position>,
}

impl Decided {
    /// As one answer says it; its word is counted.
    fn by(value: &Value, meter: &Meter) -> Self {
        let mut decided = Decided::default();
        if let Value::Array(fields) = value {
            let texts = fields.iter().map(|field| match field {
                Value::BulkString(text) => String::from_utf8_lossy(text),
                Value::SimpleString(text) => text.as_str().into(),
                Value::Int(number) => number.to_string().into(),
                _ => "".into(),
            });
            decided.add(texts.take(4), meter);
        }
        decided
    }

    /// As many packed answers say it; likewise.
    pub(super) fn by_all(value: &Value, meter: &Meter) -> Self {
        let mut decided = Decided::default();
        if let Value::Array(answers) = value {
            for answer in answers {
                let Value::BulkString(packed) = answer else { continue };
                let parts = packed.split(|byte| *byte == SEPARATOR as u8).take(4);
                decided.add(parts.map(|part| std::str::from_utf8(part).unwrap_or_default().into()), meter);
            }
        }
        decided
    }

    fn add<'a>(&mut self, mut parts: impl Iterator<Item = Cow<'a, str>>, meter: &Meter) {
        let mut word = parts.next().unwrap_or_default();
        meter.answered(&word, reply_code::label);
        let replayed = word == "REPLAYED";
        if replayed {
            word = parts.next().unwrap_or_default();
        }
        self.closed |= word == "PARTITION_CLOSED";
        if !DECIDED.contains(&word.as_ref()) {
            return;
        }
        let mut number = || parts.next()?.parse().ok();
        let (Some(epoch), Some(seq)) = (number(), number()) else { return };
        let position = Position { epoch, seq };
        self.last = self.last.max(Some(position));
        if !replayed {
            self.first = Some(self.first.map_or(position, |first| first.min(position)));
        }
    }
}
