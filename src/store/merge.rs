//! Merging: concurrent requests for the same script, on the same thing, are decided by one call of it, in the order in which
//! they came, each with its own answer.
//!
//! A request that finds nothing under way is sent at once; those that come meanwhile wait for that call to end, and go
//! together in the next. So nobody waits for company, and the busier it gets the less each one costs.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Mutex, PoisonError},
};

use anyhow::anyhow;
use redis::{Cmd, Value};
use tokio::sync::oneshot;

use super::{
    Store,
    keys::Partition,
    scripts::{Answer, Script},
    watermarks,
};
use crate::domain::Error;

/// The most requests in one call: bounds how long Redis is busy with it.
const MOST: usize = 128;
/// Calls of one group under way at a time: with a second one Redis is not idle while we read the first one's answers.
const UNDER_WAY: usize = 2;

/// Requests that one call may decide together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    pub script: &'static str,
    pub here: Partition,
    /// What the script is about beside the partition: a campaign, a day; 0 for nothing.
    pub of: i64,
}

/// A request to a script that decides many at once. Its keys and arguments are in the order of the script's header: first
/// what all requests of a group share, then each request's own.
pub trait Mergeable: Send + 'static {
    fn script(&self) -> &'static Script;
    fn group(&self) -> Group;
    /// How many keys the group shares, and how many each request has.
    fn key_counts(&self) -> (usize, usize);
    fn shared_keys(&self, call: &mut Cmd);
    fn keys(&self, call: &mut Cmd);
    fn shared_args(&self, call: &mut Cmd);
    fn args(&self, call: &mut Cmd);
}

struct Waiting {
    request: Box<dyn Mergeable>,
    answer: oneshot::Sender<Result<Answer, Error>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    under_way: usize,
}

/// What waits, by group; a group that nothing waits for has no queue.
#[derive(Default)]
pub(super) struct Merger(Mutex<HashMap<Group, Queue>>);

impl Merger {
    /// Takes a request in; true if the caller has to see to it that it is carried out.
    fn queue(&self, group: Group, waiting: Waiting) -> bool {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(group).or_default();
        queue.waiting.push_back(waiting);
        let more = queue.under_way < UNDER_WAY;
        queue.under_way += usize::from(more);
        more
    }

    /// The next requests of a group, whoever still waits for them; none if there are none, and then nothing is under way here.
    fn take(&self, group: Group) -> Vec<Waiting> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut entry) = queues.entry(group) else { return Vec::new() };
        let queue = entry.get_mut();
        queue.waiting.retain(|waiting| !waiting.answer.is_closed());
        let next: Vec<Waiting> = queue.waiting.drain(..MOST.min(queue.waiting.len())).collect();
        if next.is_empty() {
            queue.under_way -= 1;
            if queue.under_way == 0 {
                entry.remove();
            }
        }
        next
    }
}

impl Store {
    /// Calls a script for this request, together with whoever else waits for the same.
    ///
    /// # Errors
    /// As [`Store::call`]: an outcome that is unknown is so for all of a call.
    pub async fn merged(&self, request: impl Mergeable) -> Result<Answer, Error> {
        let group = request.group();
        let (answer, answered) = oneshot::channel();
        if self.shared.merger.queue(group, Waiting { request: Box::new(request), answer }) {
            // In a task of its own: others depend on it, whatever becomes of this request.
            let store = self.clone();
            tokio::spawn(async move { store.carry_out(group).await });
        }
        let answer = answered.await.map_err(|_| Error::unavailable("the service is stopping"))??;
        if let Some(position) = answer.position() {
            watermarks::note(group.here, position);
        }
        Ok(answer)
    }

    async fn carry_out(&self, group: Group) {
        loop {
            // Whoever is ready to run, and about to ask for the same, is let in.
            tokio::task::yield_now().await;
            let batch = self.shared.merger.take(group);
            let Some(first) = batch.first() else { return };
            let call = call(&batch);
            match self.eval(group.here, first.request.script(), &call).await.and_then(|value| answers(&batch, value)) {
                Ok(answers) => {
                    for (waiting, answer) in batch.into_iter().zip(answers) {
                        let _ = waiting.answer.send(answer);
                    }
                }
                Err(error) => {
                    for waiting in batch {
                        let _ = waiting.answer.send(Err(error.again()));
                    }
                }
            }
        }
    }
}

fn call(batch: &[Waiting]) -> Cmd {
    let first = &batch[0].request;
    let (shared, own) = first.key_counts();
    let mut call = redis::cmd("EVALSHA");
    call.arg(first.script().hash()).arg(shared + own * batch.len());
    first.shared_keys(&mut call);
    batch.iter().for_each(|waiting| waiting.request.keys(&mut call));
    first.shared_args(&mut call);
    batch.iter().for_each(|waiting| waiting.request.args(&mut call));
    call
}

/// Each request's answer.
fn answers(batch: &[Waiting], value: Value) -> Result<Vec<Result<Answer, Error>>, Error> {
    let script = batch[0].request.script().name;
    match value {
        Value::Array(values) if values.len() == batch.len() => {
            Ok(values.into_iter().map(|value| Answer::read(script, value)).collect())
        }
        _ => Err(Error::Internal(anyhow!("{script} did not answer each of {} requests", batch.len()))),
    }
}
