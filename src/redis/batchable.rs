//! Runs a script for a batch of concurrent requests about the same subject: see [`batcher`].

use anyhow::anyhow;
use opentelemetry::trace::SpanContext;
use redis::Value;

use super::{
    Store,
    batcher::{self, BatchReplies, Batcher},
    keys::Keys,
    script::{Invocation, Script},
    script_reply::ScriptReply,
};
use crate::{
    model::{Call, Error, Partition, RECORD_TTL_MS},
    telemetry::traces,
};

/// Requests that one call of a script may decide together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchKind {
    pub script: &'static str,
    pub here: Partition,
    /// What the script is about beside the partition: a campaign, a day; 0 for nothing.
    pub subject: i64,
}

/// A request to a script that decides batches. It writes its keys and arguments in the order of the script's header, without
/// those that all such scripts start with.
pub trait Batchable: Send + 'static {
    fn script(&self) -> &'static Script;
    /// See [`BatchKind::subject`].
    fn subject(&self) -> i64 {
        0
    }
    /// The lines of an order. Bounds a batch, as the number of its requests does.
    fn weight(&self) -> usize {
        1
    }
    /// Writes the keys and arguments that all requests of the batch share: keys after `meta outbox`, arguments after the clock
    /// and the life of a record.
    fn write_shared(&self, keys: Keys, invocation: &mut Invocation);
    /// Writes the request's own keys and arguments: keys after its record, arguments after fingerprint and request id.
    fn write_own(&self, keys: Keys, invocation: &mut Invocation);
}

/// A request that waits for its batch.
pub(super) struct Pending {
    call: Call,
    request: Box<dyn Batchable>,
    /// The span of the request.
    span: Option<Box<SpanContext>>,
}

/// Requests that wait for their batch.
pub(super) type ScriptBatcher = Batcher<BatchKind, Pending, ScriptReply>;

impl Store {
    /// Runs a script of partition `here` for this request, in a batch with others of its kind, and keeps the decision's position
    /// with the call.
    ///
    /// # Errors
    /// As [`Store::decide`]. An outcome that is unknown is unknown for the whole batch.
    pub(super) async fn run_batched(
        &self,
        call: &Call,
        here: Partition,
        request: impl Batchable,
    ) -> Result<ScriptReply, Error> {
        let kind = BatchKind { script: request.script().name, here, subject: request.subject() };
        let weight = request.weight();
        let pending = Pending { call: call.clone(), request: Box::new(request), span: traces::here() };
        let (receiver, must_run) = self.shared.batcher.submit(kind, pending, weight);
        if must_run {
            let store = self.clone();
            // A request may be cancelled while its batch runs.
            let operation = self.begin_operation();
            tokio::spawn(async move {
                let _operation = operation;
                let run_batch = |batch| store.run_batch(kind, batch);
                store.shared.batcher.run(kind, run_batch).await;
            });
        }
        let reply = batcher::reply(receiver).await?.accepted()?;
        self.acknowledge(call, here, &reply);
        Ok(reply)
    }

    async fn run_batch(
        &self,
        kind: BatchKind,
        mut batch: Vec<Pending>,
    ) -> Result<BatchReplies<Pending, ScriptReply>, Error> {
        let Some(Pending { request: first, .. }) = batch.first() else { return Ok(BatchReplies::default()) };
        let (script, keys) = (first.script(), Keys(kind.here));
        let mut invocation = Invocation::new(script);
        invocation.key(keys.meta()).key(keys.outbox()).arg(self.test_clock()).arg(RECORD_TTL_MS);
        first.write_shared(keys, &mut invocation);
        for Pending { call, request, .. } in &batch {
            let (digest, fingerprint) = call.key_parts();
            invocation.key(keys.record(digest)).arg(fingerprint).arg(&call.request_id);
            request.write_own(keys, &mut invocation);
        }
        let waits = batch.iter().any(|pending| pending.call.acknowledged.is_collecting());
        let count = batch.len();
        script.meter.batched(count);
        let requests = batch.iter().filter_map(|pending| pending.span.as_deref());
        let span = traces::script(script.name, kind.here.0, count, requests);
        let parse = |value| match value {
            Value::Array(values) if (1..=count).contains(&values.len()) => {
                Ok(values.into_iter().map(|value| ScriptReply::parse_packed(script.name, value)).collect::<Vec<_>>())
            }
            _ => Err(Error::Internal(anyhow!("{} did not reply to {count} requests", script.name))),
        };
        let replies = span.ends(self.eval(kind.here, script, (&invocation.by_hash(), waits), parse).await)?;
        let remaining = batch.split_off(replies.len());
        Ok(BatchReplies { replies, remaining })
    }
}
