//! The Lua scripts: embedded in the binary, loaded into Redis, called by hash.

use std::{sync::LazyLock, time::Instant};

use redis::{RedisError, ServerErrorKind, ToRedisArgs, Value, aio::MultiplexedConnection};

use super::{
    Store, connection::ConnectionHandle, keys::Keys, partition_closed, progress::Acknowledgements,
    reply_code::ReplyCode, script_reply::ScriptReply,
};
use crate::{
    config::ReplicaAck,
    model::{Call, Error, Partition, Position},
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
    /// The name of the file, of the function that calls the script, and in logs and metrics.
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
    ORDER_CHECKOUT = "order_checkout";
    ORDER_PAY = "order_pay";
    ORDER_CLOSE = "order_close";
    ORDER_REFUND = "order_refund";
    REFUND_FINISH = "refund_finish";
    ORDER_EVICT = "order_evict";
    ORDER_RESTORE = "order_restore";
    PAYMENT_BEGIN = "payment_begin";
    PAYMENT_FINISH = "payment_finish";
    PAYMENT_POSTPONE = "payment_postpone";
    PAYMENT_PREPARE = "payment_prepare";
    PAYMENT_RESOLVE = "payment_resolve";
    STOCK_ALLOT = "stock_allot";
    STOCK_RECEIVE = "stock_receive";
    STOCK_RETURN = "stock_return";
    STOCK_REGAIN = "stock_regain";
    PRICE_SET = "price_set";
    LIMIT_GROUP_SET = "limit_group_set";
    USERS_CREATE = "users_create";
    USERS_PUT = "users_put";
    USER_FORGET = "user_forget";
    PRODUCT_CREATE = "product_create";
    PRODUCT_UPDATE = "product_update";
    CAMPAIGN_CREATE = "campaign_create";
    CAMPAIGN_UPDATE = "campaign_update";
    IDS_RESERVE = "ids_reserve";
    IDS_SKIP = "ids_skip";
    IDS_SPLIT = "ids_split";
    IDS_RAISE = "ids_raise";
    IDEMPOTENCY_CLAIM = "idempotency_claim";
    IDEMPOTENCY_SETTLE = "idempotency_settle";
    STOCK_RELEASE = "stock_release";
    COUPON_RELEASE = "coupon_release";
    COUPON_RELEASE_PREPARE = "coupon_release_prepare";
    PARTITION_FREEZE = "partition_freeze";
    OUTBOX_MARK = "outbox_mark";
    HISTORY_READ = "history_read";
}

/// A script's file with the files that it includes, below its `#!lua` line.
fn assemble(file: &str) -> String {
    let (shebang, body) = file.split_once('\n').unwrap_or((file, ""));
    let mut source = format!("{shebang}\n");
    for (include, part) in [
        ("lists", include_str!("../../lua/lib/lists.lua")),
        ("partition", include_str!("../../lua/lib/partition.lua")),
        ("idempotency", include_str!("../../lua/lib/idempotency.lua")),
        ("batch", include_str!("../../lua/lib/batch.lua")),
        ("holds", include_str!("../../lua/lib/holds.lua")),
        ("payment", include_str!("../../lua/lib/payment.lua")),
        ("placing", include_str!("../../lua/lib/placing.lua")),
        ("shares", include_str!("../../lua/lib/shares.lua")),
    ] {
        if body.contains(&format!("--@include {include}\n")) {
            source.push_str(part);
        }
    }
    source.push_str(body);
    source
}

impl Script {
    /// The source that Redis gets.
    pub fn source(&self) -> String {
        (self.source)()
    }

    /// The SHA-1 that Redis knows the script by.
    pub(super) fn hash(&self) -> &str {
        self.script.get_hash()
    }
}

/// A call of a script: keys and arguments in the order of its header.
pub struct Invocation {
    script: &'static Script,
    keys: Vec<String>,
    args: redis::Cmd,
}

impl Invocation {
    pub fn new(script: &'static Script) -> Self {
        Invocation { script, keys: Vec::with_capacity(16), args: redis::Cmd::with_capacity(16, 256) }
    }

    pub fn key(&mut self, key: String) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.args.arg(arg);
        self
    }

    /// Calls the script by its hash; Redis replies `NOSCRIPT` where it has not loaded the script.
    pub(super) fn by_hash(&self) -> redis::Cmd {
        self.complete(redis::cmd("EVALSHA"), self.script.hash())
    }

    /// Sends the script itself.
    pub(super) fn by_source(&self) -> redis::Cmd {
        self.complete(redis::cmd("EVAL"), &self.script.source())
    }

    fn complete(&self, mut command: redis::Cmd, script: &str) -> redis::Cmd {
        command.arg(script).arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        for arg in self.args.args_iter() {
            if let redis::Arg::Simple(arg) = arg {
                command.arg(arg);
            }
        }
        command
    }
}

impl Store {
    /// The reply of this script to an earlier request under the call's idempotency key, from the record in `here`. Runs no
    /// script.
    ///
    /// # Errors
    /// [`Error::IdempotencyKeyReused`] and [`Error::InProgress`], as the script itself would reply.
    pub(super) async fn recorded(
        &self,
        call: &Call,
        here: Partition,
        script: &'static Script,
    ) -> Result<Option<ScriptReply>, Error> {
        let Some(key) = &call.key else { return Ok(None) };
        let mut read = redis::cmd("LRANGE");
        read.arg(Keys(here).record(&key.digest)).arg(0).arg(-1);
        let (record, replication) = match self.replica_ack().filter(|_| call.acknowledged.is_collecting()) {
            None => (self.query::<Vec<Value>>(here, read).await?, None),
            Some(ack) => Box::pin(self.read_replicated(here, &read, ack)).await?,
        };
        if record.is_empty() {
            return Ok(None);
        }
        let mut reply = ScriptReply::parse_record(script.name, record, &key.fingerprint)?.accepted()?;
        reply.replication = replication;
        self.acknowledge(call, here, &reply);
        Ok(Some(reply))
    }

    /// Loads every script into every server. A `NOSCRIPT` later therefore shows that a server was restarted or replaced.
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

    /// Runs a script that decides nothing, in one round trip unless Redis has forgotten the script.
    ///
    /// # Errors
    /// As [`Store::decide`].
    pub async fn run_script(&self, here: Partition, invocation: &Invocation) -> Result<ScriptReply, Error> {
        self.run(here, invocation, false).await
    }

    /// `waits`: the reply to a client waits for the decision.
    async fn run(&self, here: Partition, invocation: &Invocation, waits: bool) -> Result<ScriptReply, Error> {
        let script = invocation.script;
        let span = traces::script(script.name, here.0, 1, traces::here().as_deref());
        let parse = |value| Ok([ScriptReply::parse(script.name, value)]);
        let [reply] = span.ends(self.eval(here, script, (&invocation.by_hash(), waits), parse).await)?;
        reply?.accepted()
    }

    /// Runs a script that decides, and keeps the decision's position with the call.
    ///
    /// # Errors
    /// The [shared refusals](super::commands#shared-refusals).
    pub(super) async fn decide(
        &self,
        call: &Call,
        here: Partition,
        invocation: &Invocation,
    ) -> Result<ScriptReply, Error> {
        let reply = self.run(here, invocation, call.acknowledged.is_collecting()).await?;
        self.acknowledge(call, here, &reply);
        Ok(reply)
    }

    /// Keeps the position of a reply's decision with the call that got the reply.
    pub(super) fn acknowledge(&self, call: &Call, here: Partition, reply: &ScriptReply) {
        let Some(position) = reply.position else { return };
        // A rebuild restored the records of earlier epochs from Postgres, so Postgres has their decisions.
        if !reply.replayed || position.epoch >= self.watermark(here).acknowledged().epoch {
            call.acknowledged.add(here, position, reply.replication.as_ref());
        }
    }

    /// Runs a script and checks what its replies say of the partition: whether it is open, and whether it still has every
    /// decision that was acknowledged. `waits`: a reply to a client waits until the decision is as durable as `ACK` asks.
    pub(super) async fn eval<R: AsRef<[Result<ScriptReply, Error>]> + AsMut<[Result<ScriptReply, Error>]>>(
        &self,
        here: Partition,
        script: &'static Script,
        (command, waits): (&redis::Cmd, bool),
        parse: impl FnOnce(Value) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if let Some(ack) = self.replica_ack().filter(|_| waits) {
            // Boxed: without replicas no call is to carry this future.
            return Box::pin(self.eval_replicated(here, script, (command, ack), parse)).await;
        }
        let (handle, mut link) = self.connection(here).await?;
        // Read before the call: the script must decide after everything that was acknowledged until now.
        let before = self.watermark(here).before_call();
        let called = Instant::now();
        let mut result: Result<Value, RedisError> = command.query_async(&mut link).await;
        if is_forgotten(&result) {
            self.load_again(here, script, &handle, &mut link).await?;
            result = command.query_async(&mut link).await;
        }
        script.meter.called(called.elapsed());
        let value = self.settle_call(script, &handle, result)?;
        self.judge(here, script, (&mut link, before), value, parse).await.map(|(replies, _)| replies)
    }

    /// The same on a dedicated connection, with a wait for replicas behind the script.
    async fn eval_replicated<R: AsRef<[Result<ScriptReply, Error>]> + AsMut<[Result<ScriptReply, Error>]>>(
        &self,
        here: Partition,
        script: &'static Script,
        (command, ack): (&redis::Cmd, ReplicaAck),
        parse: impl FnOnce(Value) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let timeout = self.shared_connections().timeout();
        let mut dedicated = self.dedicated(here).await?;
        let before = self.watermark(here).before_call();
        let called = Instant::now();
        let (mut result, mut wait) = dedicated.call(command, ack, timeout).await;
        if is_forgotten(&result) {
            // Not this connection: its wait is for nothing.
            dedicated = self.dedicated(here).await?;
            let (handle, link) = dedicated.parts();
            self.load_again(here, script, handle, link).await?;
            (result, wait) = dedicated.call(command, ack, timeout).await;
        }
        script.meter.called(called.elapsed());
        let value = self.settle_call(script, &dedicated.handle, result)?;
        let link = (dedicated.connection(), before);
        let (mut replies, positions) = self.judge(here, script, link, value, parse).await?;
        // A batch of replays writes nothing.
        let marks = positions.first_new.is_none() && positions.last.is_some();
        let replication = self.follow_replicas(here, dedicated, wait, (positions.last, marks), ack);
        for reply in replies.as_mut().iter_mut().flatten() {
            reply.replication = Some(replication.clone());
        }
        Ok(replies)
    }

    /// Loads a script that Redis has forgotten; its call did not run, so it is safe to send it again.
    async fn load_again(
        &self,
        here: Partition,
        script: &'static Script,
        handle: &ConnectionHandle,
        link: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        tracing::warn!(script = script.name, "Redis has forgotten a script: it was restarted or replaced");
        metrics::SCRIPT_NOSCRIPT.inc();
        self.invalidate();
        self.admit(here, handle, link).await?;
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(script.source());
        let loaded: Result<String, RedisError> = load.query_async(link).await;
        self.shared_connections().settle(handle, loaded).map(drop)
    }

    fn settle_call(
        &self,
        script: &'static Script,
        handle: &ConnectionHandle,
        result: Result<Value, RedisError>,
    ) -> Result<Value, Error> {
        self.shared_connections().settle(handle, result).map_err(|error| {
            let unavailable = matches!(error, Error::Unavailable { .. });
            script.meter.failed(if unavailable { Failed::Unavailable } else { Failed::Error });
            error
        })
    }

    /// Parses the replies of a call, and checks what they say of the partition. `before`: what was acknowledged before the call.
    async fn judge<R: AsRef<[Result<ScriptReply, Error>]>>(
        &self,
        here: Partition,
        script: &'static Script,
        (link, before): (&mut MultiplexedConnection, Acknowledgements),
        value: Value,
        parse: impl FnOnce(Value) -> Result<R, Error>,
    ) -> Result<(R, ReplyPositions), Error> {
        let watermark = self.watermark(here);
        let replies = parse(value).inspect_err(|_| script.meter.failed(Failed::Error))?;
        let positions = ReplyPositions::of(replies.as_ref(), &script.meter);
        if positions.closed {
            script.meter.failed(Failed::Closed);
            watermark.invalidate();
            return Err(partition_closed());
        }
        if let Some(found) = positions.first_new.filter(|first| *first <= before.position) {
            script.meter.failed(Failed::Lost);
            return Err(self.lost(here, link, found, before.position).await);
        }
        if let Some(last) = positions.last {
            self.verify(here).await?;
            if !watermark.acknowledge(before, last) {
                script.meter.failed(Failed::Unavailable);
                return Err(Error::unavailable("the partition has moved to another server meanwhile"));
            }
        }
        Ok((replies, positions))
    }
}

fn is_forgotten(result: &Result<Value, RedisError>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ServerErrorKind::NoScript.into())
}

/// What the replies of one call say of their partition.
#[derive(Default)]
struct ReplyPositions {
    closed: bool,
    /// The first decision of this call.
    first_new: Option<Position>,
    /// The last decision, replays included.
    last: Option<Position>,
}

impl ReplyPositions {
    /// Counts the replies by code, too.
    fn of(replies: &[Result<ScriptReply, Error>], meter: &Meter) -> Self {
        let mut positions = ReplyPositions::default();
        for reply in replies {
            let Ok(reply) = reply else {
                meter.failed(Failed::Error);
                continue;
            };
            let code = if reply.replayed { ReplyCode::Replayed } else { reply.code };
            meter.replied(code.as_str());
            positions.closed |= reply.code == ReplyCode::PartitionClosed;
            let Some(position) = reply.position else { continue };
            positions.last = positions.last.max(Some(position));
            if !reply.replayed {
                positions.first_new = Some(positions.first_new.map_or(position, |first| first.min(position)));
            }
        }
        positions
    }
}
