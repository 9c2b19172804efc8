//! `ACK=replica`: waits until replicas have what a call decided.
//!
//! `WAIT` covers the writes of its own connection, and blocks it. So a call whose replies wait for replicas does not use a
//! shared connection: it takes a *dedicated* one, sends the script and the `WAIT` behind it without a round trip between them, and
//! returns its reply at once. The batcher sends the next batch meanwhile, on another dedicated connection; all requests of the
//! batch wait for the one `WAIT`.
//!
//! A connection leads to one process of Redis for its whole life. That process may be demoted and promoted again, with other data.
//! Every reign of a master has a replication id of its own: the wait counts only if the id is the same before and after it.
//!
//! The number of dedicated connections bounds the decisions that wait. Where replicas are slow, further writes are refused before
//! they decide anything.

use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, MaybeDone, maybe_done},
};
use redis::{FromRedisValue, RedisResult, Value, aio::MultiplexedConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Store,
    connection::{ConnectionHandle, SharedConnections},
    keys::Keys,
    settings::{MASTER, Replicas, ServerInfo},
};
use crate::{
    config::ReplicaAck,
    model::{Error, Partition, Position, Replication},
    telemetry::metrics,
};

/// The calls of one server that may wait for its replicas at once.
const MAX_WAITS: usize = 64;
/// The attempts of the check at start: replicas that are late once are busy.
const START_ATTEMPTS: usize = 5;

/// A write that replicas get and that changes nothing: behind it, `WAIT` covers the writes of every connection. Not to a partition
/// without state: it would look like a part of one.
const MARK_SCRIPT: &str = "#!lua
if redis.call('HEXISTS', KEYS[1], 'seq') == 1 then
  redis.call('HINCRBY', KEYS[1], 'seq', 0)
end
return 0
";

/// The dedicated connections of a server.
pub(super) struct DedicatedConnections {
    idle: Mutex<Vec<DedicatedLink>>,
    permits: Arc<Semaphore>,
}

/// A connection, and the replication id that its server had at last.
struct DedicatedLink {
    connection: MultiplexedConnection,
    replication_id: String,
}

impl Default for DedicatedConnections {
    fn default() -> Self {
        DedicatedConnections { idle: Mutex::default(), permits: Arc::new(Semaphore::new(MAX_WAITS)) }
    }
}

impl DedicatedConnections {
    /// Closes the idle connections.
    pub(super) fn clear(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn take(&self) -> Option<DedicatedLink> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, link: DedicatedLink) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(link);
    }
}

/// The replies to a `WAIT` and to the `INFO replication` behind it.
type WaitReplies = RedisResult<(Value, String)>;
/// A `WAIT` that was sent.
type ReplicaWait = MaybeDone<BoxFuture<'static, WaitReplies>>;

/// A dedicated connection in use. Dropped, it is closed.
pub(super) struct Dedicated {
    pub(super) handle: ConnectionHandle,
    link: DedicatedLink,
    _permit: OwnedSemaphorePermit,
}

impl Dedicated {
    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.link.connection
    }

    pub(super) fn parts(&mut self) -> (&ConnectionHandle, &mut MultiplexedConnection) {
        (&self.handle, &mut self.link.connection)
    }

    /// Sends a command and a `WAIT` right behind it. Returns the command's reply, and the wait.
    pub(super) async fn call(
        &self,
        command: &redis::Cmd,
        ack: ReplicaAck,
        timeout: Duration,
    ) -> (RedisResult<Value>, ReplicaWait) {
        let mut connection = self.link.connection.clone();
        let mut wait = self.wait(ack);
        let mut call = pin!(command.query_async::<Value>(&mut connection));
        // The first poll of each puts it into the queue of the connection: in this order, and before the queue is sent.
        let sent = std::future::poll_fn(|context| {
            let sent = call.as_mut().poll(context);
            let _ = Pin::new(&mut wait).poll(context);
            Poll::Ready(sent)
        });
        let result = match sent.await {
            Poll::Ready(result) => result,
            Poll::Pending => tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| Err(timed_out())),
        };
        (result, wait)
    }

    fn wait(&self, ack: ReplicaAck) -> ReplicaWait {
        let mut connection = self.link.connection.clone();
        let mut wait = redis::pipe();
        match ack.on_disk {
            true => wait.cmd("WAITAOF").arg(0),
            false => wait.cmd("WAIT"),
        };
        wait.arg(ack.replicas).arg(ack.timeout.as_millis() as u64);
        wait.cmd("INFO").arg("replication");
        maybe_done(async move { wait.query_async(&mut connection).await }.boxed())
    }

    /// Sends the write that changes nothing, and a `WAIT` behind it.
    async fn write_mark(
        &self,
        here: Partition,
        ack: ReplicaAck,
        timeout: Duration,
    ) -> (RedisResult<Value>, ReplicaWait) {
        let mut mark = redis::cmd("EVAL");
        mark.arg(MARK_SCRIPT).arg(1).arg(Keys(here).meta());
        self.call(&mark, ack, timeout).await
    }

    /// Whether the replies of a wait say that enough replicas have it, in the reign in which the call was made.
    fn judge(&mut self, replies: (Value, String), ack: ReplicaAck) -> bool {
        let (count, info) = replies;
        let server = Replicas::read(&info);
        let same_reign = is_same_reign(&server, &self.link.replication_id);
        self.link.replication_id = server.replication_id;
        same_reign && is_enough(&count, ack)
    }
}

async fn replies_of(mut wait: ReplicaWait) -> WaitReplies {
    (&mut wait).await;
    Pin::new(&mut wait).take_output().unwrap_or_else(|| Err(timed_out()))
}

/// Whether the server has been master without a break since it had this replication id.
fn is_same_reign(server: &Replicas, replication_id: &str) -> bool {
    server.role == MASTER && server.replication_id == replication_id
}

fn is_enough(count: &Value, ack: ReplicaAck) -> bool {
    replicas_in(count).is_some_and(|replicas| replicas >= ack.replicas)
}

/// The number of replicas in the reply to `WAIT`, a number, or to `WAITAOF`, two.
fn replicas_in(reply: &Value) -> Option<usize> {
    match reply {
        Value::Int(replicas) => usize::try_from(*replicas).ok(),
        Value::Array(counts) => counts.get(1).and_then(replicas_in),
        _ => None,
    }
}

fn timed_out() -> redis::RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

impl SharedConnections {
    /// A dedicated connection to the server of `partition`, and whether it is new: then its server is not known.
    ///
    /// # Errors
    /// [`Error::Unavailable`], also while too many calls wait for the server's replicas.
    async fn dedicated(&self, partition: Partition) -> Result<(Dedicated, bool), Error> {
        let node = self.node(partition).await?;
        let permits = node.dedicated.permits.clone();
        let permit = match permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let permit = tokio::time::timeout(self.timeout(), permits.acquire_owned()).await;
                let slow = || Error::unavailable("too many decisions wait for the replicas of Redis");
                permit.ok().and_then(Result::ok).ok_or_else(slow)?
            }
        };
        let (link, is_new) = match node.dedicated.take() {
            Some(link) => (link, false),
            None => {
                let connection = self.open_detached(&node).await?;
                (DedicatedLink { connection, replication_id: String::new() }, true)
            }
        };
        Ok((Dedicated { handle: ConnectionHandle::dedicated(node), link, _permit: permit }, is_new))
    }
}

impl Store {
    /// Makes replies wait for replicas. Only the first call counts.
    pub fn require_replicas(&self, ack: ReplicaAck) {
        let _ = self.shared.replica_ack.set(ack);
    }

    /// What replies ask of replicas; `None` unless `ACK=replica`.
    pub(super) fn replica_ack(&self) -> Option<ReplicaAck> {
        self.shared.replica_ack.get().copied()
    }

    /// A dedicated connection to the server of `here`, once the partition is admitted.
    pub(super) async fn dedicated(&self, here: Partition) -> Result<Dedicated, Error> {
        let connections = self.shared_connections();
        let (mut dedicated, is_new) = connections.dedicated(here).await?;
        if is_new {
            let mut read = redis::pipe();
            read.cmd("INFO").arg("server").cmd("INFO").arg("replication");
            let reading = read.query_async::<(String, String)>(dedicated.connection());
            let answered = tokio::time::timeout(connections.timeout(), reading).await;
            let answered = answered.unwrap_or_else(|_| Err(timed_out()));
            let (server, replication) = connections.settle(&dedicated.handle, answered)?;
            dedicated.link.replication_id = Replicas::read(&replication).replication_id;
            // It may lead to another server than the connections before it.
            if !self.shared.known_servers.has(&ServerInfo::read(&server).run_id) {
                self.invalidate();
                self.check_over(here, &dedicated.handle, &mut dedicated.link.connection).await?;
            }
        }
        self.admit(here, &dedicated.handle, &mut dedicated.link.connection).await?;
        Ok(dedicated)
    }

    /// Waits in the background for the replicas, and then returns the connection. `last`: the last decision that the wait is for;
    /// `marks`: the call wrote nothing itself, so the wait needs a write.
    pub(super) fn follow_replicas(
        &self,
        here: Partition,
        dedicated: Dedicated,
        wait: ReplicaWait,
        (last, marks): (Option<Position>, bool),
        ack: ReplicaAck,
    ) -> Replication {
        let (answer, replication) = Replication::pending();
        let store = self.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            let reached = store.wait_for_replicas(here, dedicated, wait, marks, ack).await;
            metrics::REPLICA_WAIT_SECONDS.observe(begun.elapsed().as_secs_f64());
            let result = match reached {
                Some(true) => "reached",
                Some(false) => "late",
                None => "failed",
            };
            metrics::REPLICA_WAITS.with_label_values(&[result]).inc();
            let reached = reached == Some(true);
            if let (true, Some(last)) = (reached, last) {
                store.watermark(here).record_replicated(last);
            }
            let _ = answer.send(Some(reached));
        });
        replication
    }

    /// Whether the replicas have it in time; `None` if Redis can't tell.
    async fn wait_for_replicas(
        &self,
        here: Partition,
        mut dedicated: Dedicated,
        wait: ReplicaWait,
        marks: bool,
        ack: ReplicaAck,
    ) -> Option<bool> {
        // Redis ends the wait itself; the limit is for a server that hangs.
        let timeout = self.shared_connections().timeout();
        let asking = async {
            let replies = replies_of(wait).await?;
            if !marks || !is_enough(&replies.0, ack) {
                return Ok(replies);
            }
            let (marked, wait) = dedicated.write_mark(here, ack, timeout).await;
            marked?;
            replies_of(wait).await
        };
        let answered =
            tokio::time::timeout(ack.timeout * 2 + timeout, asking).await.unwrap_or_else(|_| Err(timed_out()));
        let replies = self.shared_connections().settle(&dedicated.handle, answered).ok()?;
        let reached = dedicated.judge(replies, ack);
        let Dedicated { handle, link, _permit } = dedicated;
        if !handle.node.is_stale() {
            handle.node.dedicated.give_back(link);
        }
        Some(reached)
    }

    /// Reads what an earlier call wrote, and whether replicas have that.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(super) async fn read_replicated<T: FromRedisValue>(
        &self,
        here: Partition,
        read: &redis::Cmd,
        ack: ReplicaAck,
    ) -> Result<(T, Option<Replication>), Error> {
        let dedicated = self.dedicated(here).await?;
        let (found, wait) = dedicated.call(read, ack, self.shared_connections().timeout()).await;
        let found = found.and_then(|found| Ok(T::from_redis_value(found)?));
        let found = self.shared_connections().settle(&dedicated.handle, found)?;
        Ok((found, Some(self.follow_replicas(here, dedicated, wait, (None, true), ack))))
    }

    /// Whether the replicas of a partition's server have everything that the server has now.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn replicated(&self, here: Partition) -> Result<Option<Replication>, Error> {
        let Some(ack) = self.replica_ack() else { return Ok(None) };
        let dedicated = self.dedicated(here).await?;
        let (marked, wait) = dedicated.write_mark(here, ack, self.shared_connections().timeout()).await;
        self.shared_connections().settle(&dedicated.handle, marked)?;
        Ok(Some(self.follow_replicas(here, dedicated, wait, (None, false), ack)))
    }

    /// Checks at start that the replicas of every server with an open partition acknowledge in time.
    ///
    /// # Errors
    /// They do not, or Redis is unavailable.
    pub async fn check_replication(&self) -> anyhow::Result<()> {
        let Some(ack) = self.replica_ack() else { return Ok(()) };
        for here in self.all().filter(|here| self.watermark(*here).is_open()) {
            let mut reached = false;
            for _ in 0..START_ATTEMPTS {
                reached = match self.replicated(here).await? {
                    Some(replication) => replication.reached().await,
                    None => true,
                };
                if reached {
                    break;
                }
            }
            if !reached {
                let on_disk = if ack.on_disk { " to their disk (they need appendonly yes)" } else { "" };
                anyhow::bail!(
                    "the replicas of partition {}'s server did not confirm a write{on_disk} within {} ms, in \
                     {START_ATTEMPTS} attempts: bring back ACK_REPLICAS={} of them, raise ACK_REPLICA_TIMEOUT_MS, or choose another ACK",
                    here.0,
                    ack.timeout.as_millis(),
                    ack.replicas
                );
            }
        }
        Ok(())
    }

    /// Records the replicas of the partition's server.
    pub(super) fn record_replicas(&self, here: Partition, in_sync: usize) {
        let before = self.watermark(here).set_replicas(in_sync);
        let needed = self.replica_ack().map_or(0, |ack| ack.replicas);
        match (before < needed, in_sync < needed) {
            (false, true) => tracing::error!(partition = here.0, in_sync, needed, "replicas of Redis are missing"),
            (true, false) => tracing::info!(partition = here.0, in_sync, "enough replicas of Redis are in sync"),
            _ => {}
        }
    }

    /// The replicas that the server of `here` had at the last check, all in sync with it.
    pub fn replicas(&self, here: Partition) -> usize {
        self.watermark(here).replicas()
    }

    /// A message for each partition whose server had fewer replicas at the last check than `ACK=replica` needs.
    pub fn missing_replicas(&self) -> Vec<String> {
        let Some(ack) = self.replica_ack() else { return Vec::new() };
        let missing = self.all().filter(|here| self.replicas(*here) < ack.replicas);
        let message = |here: Partition| {
            let found = self.replicas(here);
            format!(
                "partition {}: its server has {found} replicas in sync, and ACK_REPLICAS is {}: writes are answered 503",
                here.0, ack.replicas
            )
        };
        missing.map(message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reign_ends_with_demotion_and_does_not_return_with_promotion() {
        let info = |role: &str, id: &str| Replicas::read(&format!("role:{role}\r\nmaster_replid:{id}\r\n"));
        assert!(is_same_reign(&info("master", "a1"), "a1"));
        assert!(!is_same_reign(&info("slave", "a1"), "a1"));
        assert!(!is_same_reign(&info("master", "b2"), "a1"));
    }

    #[test]
    fn replicas_counted_in_replies_of_both_waits() {
        assert_eq!(replicas_in(&Value::Int(2)), Some(2));
        assert_eq!(replicas_in(&Value::Array(vec![Value::Int(0), Value::Int(1)])), Some(1));
        for nothing in [Value::Int(-1), Value::Nil, Value::Array(vec![Value::Int(1)])] {
            assert_eq!(replicas_in(&nothing), None);
        }
    }
}
