//! Merging: concurrent requests for the same script, on the same thing, are decided by one call of it (see [`gather`]).

use anyhow::anyhow;
use redis::{Cmd, Value};

use super::{
    Store,
    gather::{self, Gather},
    keys::Partition,
    scripts::{Answer, Decided, Script},
    watermarks,
};
use crate::domain::Error;

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

/// What waits to be decided.
pub(super) type Merger = Gather<Group, Box<dyn Mergeable>, Answer>;

impl Store {
    /// Calls a script for this request, together with whoever else waits for the same.
    ///
    /// # Errors
    /// As [`Store::call`]: an outcome that is unknown is so for all of a call.
    pub async fn merged(&self, request: impl Mergeable) -> Result<Answer, Error> {
        let group = request.group();
        let (answered, lead) = self.shared.merger.join(group, Box::new(request));
        if lead {
            let store = self.clone();
            tokio::spawn(async move {
                let decide = |requests| store.decide(group, requests);
                store.shared.merger.lead(group, decide).await;
            });
        }
        let answer = gather::answer(answered).await?;
        if let Some(position) = answer.position() {
            watermarks::note(group.here, position);
        }
        Ok(answer)
    }

    async fn decide(
        &self,
        group: Group,
        requests: Vec<Box<dyn Mergeable>>,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let (script, (shared, own)) = (first.script(), first.key_counts());
        let mut call = redis::cmd("EVALSHA");
        call.arg(script.hash()).arg(shared + own * requests.len());
        first.shared_keys(&mut call);
        requests.iter().for_each(|request| request.keys(&mut call));
        first.shared_args(&mut call);
        requests.iter().for_each(|request| request.args(&mut call));
        match self.eval(group.here, script, &call, Decided::by_all).await? {
            Value::Array(values) if values.len() == requests.len() => {
                Ok(values.into_iter().map(|value| Answer::unpack(script.name, value)).collect())
            }
            _ => Err(Error::Internal(anyhow!("{} did not answer each of {} requests", script.name, requests.len()))),
        }
    }
}
