//! Merging: concurrent requests for the same script, on the same thing, are decided by one call of it (see [`gather`]).

use anyhow::anyhow;
use opentelemetry::trace::SpanContext;
use redis::{Cmd, Value};

use super::{
    Store,
    batcher::{self, Carried, Gather},
    commands::RECORD_TTL_MS,
    keys::Keys,
    script::{Answer, Decided, Script},
};
use crate::{
    model::{Call, Error, Partition},
    telemetry::traces,
};

/// Requests that one call may decide together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    pub script: &'static str,
    pub here: Partition,
    /// What the script is about beside the partition: a campaign, a day; 0 for nothing.
    pub of: i64,
}

/// A request to a script that decides many at once: its keys and arguments in the order of the script's header, but for
/// those that all such scripts start with, which are written here.
pub trait Mergeable: Send + 'static {
    fn script(&self) -> &'static Script;
    /// See [`Group::of`].
    fn of(&self) -> i64 {
        0
    }
    /// What it carries: the lines of an order. Bounds a call together with the number of its requests.
    fn weight(&self) -> usize {
        1
    }
    /// How many keys follow: of the group after `meta outbox`, and of each request after its record.
    fn key_counts(&self) -> (usize, usize);
    fn shared_keys(&self, keys: Keys, call: &mut Cmd);
    fn keys(&self, keys: Keys, call: &mut Cmd);
    /// After the clock and the life of a record.
    fn shared_args(&self, call: &mut Cmd);
    /// After fingerprint and request id.
    fn args(&self, call: &mut Cmd);
}

/// A request, and for whom it is decided.
pub(super) struct Asked {
    call: Call,
    request: Box<dyn Mergeable>,
    /// The span that waits for the answer.
    span: Option<Box<SpanContext>>,
}

/// What waits to be decided.
pub(super) type Merger = Gather<Group, Asked, Answer>;

impl Store {
    /// Calls a script of partition `here` for this request, together with whoever else waits for the same.
    ///
    /// # Errors
    /// As [`Store::call`]: an outcome that is unknown is so for all of a call.
    pub async fn merged(&self, call: &Call, here: Partition, request: impl Mergeable) -> Result<Answer, Error> {
        let group = Group { script: request.script().name, here, of: request.of() };
        let weight = request.weight();
        let asked = Asked { call: call.clone(), request: Box::new(request), span: traces::here() };
        let (answered, lead) = self.shared.merger.join(group, asked, weight);
        if lead {
            let store = self.clone();
            tokio::spawn(async move {
                let decide = |requests| store.decide(group, requests);
                store.shared.merger.lead(group, decide).await;
            });
        }
        let answer = batcher::answer(answered).await?;
        self.note(group.here, &answer);
        Ok(answer)
    }

    /// The answers, and the last requests where the call did not take on all of them.
    async fn decide(&self, group: Group, mut requests: Vec<Asked>) -> Result<Carried<Asked, Answer>, Error> {
        let Some(Asked { request: first, .. }) = requests.first() else { return Ok(Carried::default()) };
        let (script, (shared, own), keys) = (first.script(), first.key_counts(), Keys(group.here));
        let mut call = redis::cmd("EVALSHA");
        call.arg(script.hash()).arg(2 + shared + (1 + own) * requests.len());
        call.arg(keys.meta()).arg(keys.outbox());
        first.shared_keys(keys, &mut call);
        for Asked { call: caller, request, .. } in &requests {
            call.arg(keys.record(caller.key.as_ref().map_or("", |key| &key.digest)));
            request.keys(keys, &mut call);
        }
        call.arg(self.test_clock()).arg(RECORD_TTL_MS);
        first.shared_args(&mut call);
        for Asked { call: caller, request, .. } in &requests {
            let fingerprint = caller.key.as_ref().map_or("", |key| &key.fingerprint);
            call.arg(fingerprint).arg(&caller.request_id);
            request.args(&mut call);
        }
        script.meter.batched(requests.len());
        let asked_by = requests.iter().filter_map(|asked| asked.span.as_deref());
        let work = traces::script(script.name, group.here.0, requests.len(), asked_by);
        match work.ends(self.eval(group.here, script, &call, Decided::by_all).await)? {
            Value::Array(values) if (1..=requests.len()).contains(&values.len()) => {
                let rest = requests.split_off(values.len());
                Ok(Carried {
                    answers: values.into_iter().map(|value| Answer::unpack(script.name, value)).collect(),
                    rest,
                })
            }
            _ => Err(Error::Internal(anyhow!("{} did not answer {} requests", script.name, requests.len()))),
        }
    }
}
