//! Batches concurrent requests of a kind. The first runs immediately; requests that arrive meanwhile form the next batch, in
//! their order, each with its own reply. There is no timer, and none joins a batch already sent, so that every reply shows a
//! moment after its request.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
};

use tokio::sync::oneshot;

use crate::{
    model::Error,
    sync::{Mutex, PoisonError},
};

/// The most requests of a batch.
pub(super) const MAX_BATCH: usize = 128;
/// The most weight of a batch, unless its first request alone weighs more. Bounds how long one batch keeps Redis busy.
pub(super) const MAX_BATCH_WEIGHT: usize = 1000;

type ReplySender<A> = oneshot::Sender<Result<A, Error>>;

/// A request that waits for its batch.
struct QueuedRequest<R, A> {
    request: R,
    weight: usize,
    reply_to: ReplySender<A>,
}

type Queue<R, A> = VecDeque<QueuedRequest<R, A>>;

/// The replies to the first requests of a batch, and the requests that the batch left for the next one.
pub(super) struct BatchReplies<R, A> {
    pub replies: Vec<Result<A, Error>>,
    pub remaining: Vec<R>,
}

impl<R, A> Default for BatchReplies<R, A> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<R, A> From<Vec<Result<A, Error>>> for BatchReplies<R, A> {
    fn from(replies: Vec<Result<A, Error>>) -> Self {
        BatchReplies { replies, remaining: Vec::new() }
    }
}

/// Requests `R` with replies `A` that wait for a batch, by kind. A kind has a queue while one of its batches runs.
pub(super) struct Batcher<K, R, A>(Mutex<HashMap<K, Queue<R, A>>>);

impl<K, R, A> Default for Batcher<K, R, A> {
    fn default() -> Self {
        Batcher(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash, R, A> Batcher<K, R, A> {
    /// Queues a request. Where this returns true, the caller must call [`Batcher::run`] in a task of its own, because other
    /// requests depend on it, even if this one is cancelled.
    pub(super) fn submit(&self, kind: K, request: R, weight: usize) -> (oneshot::Receiver<Result<A, Error>>, bool) {
        let (reply_to, reply) = oneshot::channel();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let must_run = !queues.contains_key(&kind);
        queues.entry(kind).or_default().push_back(QueuedRequest { request, weight, reply_to });
        (reply, must_run)
    }

    /// Takes the next batch, without requests that were cancelled. Removes the queue if the batch is empty.
    fn next(&self, kind: K) -> (Vec<R>, Vec<(usize, ReplySender<A>)>) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut entry) = queues.entry(kind) else { return (Vec::new(), Vec::new()) };
        let queue = entry.get_mut();
        queue.retain(|waiting| !waiting.reply_to.is_closed());
        let mut total = 0;
        let fits = |waiting: &&QueuedRequest<R, A>| {
            total += waiting.weight;
            total <= MAX_BATCH_WEIGHT
        };
        // The first is taken at any weight.
        let count = queue.iter().take(MAX_BATCH).take_while(fits).count().max(1).min(queue.len());
        let batch =
            queue.drain(..count).map(|QueuedRequest { request, weight, reply_to }| (request, (weight, reply_to)));
        let batch: (Vec<R>, Vec<_>) = batch.unzip();
        if batch.0.is_empty() {
            entry.remove();
        }
        batch
    }

    /// Puts the remaining requests of a batch back, before those that arrived since.
    fn put_back(&self, kind: K, remaining: Vec<R>, senders: Vec<(usize, ReplySender<A>)>) {
        let remaining = remaining.into_iter().zip(senders);
        let remaining = remaining.map(|(request, (weight, reply_to))| QueuedRequest { request, weight, reply_to });
        let mut remaining: Queue<R, A> = remaining.collect();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(kind).or_default();
        remaining.append(queue);
        *queue = remaining;
    }

    /// Runs batches of a kind until no request waits. A reply may be the error of one request; an error of `run_batch` is the
    /// error of every request of the batch.
    pub(super) async fn run<F, B>(&self, kind: K, run_batch: impl Fn(Vec<R>) -> F)
    where
        F: Future<Output = Result<B, Error>>,
        B: Into<BatchReplies<R, A>>,
    {
        loop {
            // Lets tasks that are ready submit their requests to this batch.
            tokio::task::yield_now().await;
            let (requests, mut senders) = self.next(kind);
            if requests.is_empty() {
                return;
            }
            match run_batch(requests).await {
                Ok(done) => {
                    let BatchReplies { replies, remaining } = done.into();
                    let unanswered = senders.split_off(replies.len().min(senders.len()));
                    for ((_, reply_to), reply) in senders.into_iter().zip(replies) {
                        let _ = reply_to.send(reply);
                    }
                    if !remaining.is_empty() {
                        self.put_back(kind, remaining, unanswered);
                    }
                }
                Err(error) => {
                    for (_, reply_to) in senders {
                        let _ = reply_to.send(Err(error.again()));
                    }
                }
            }
        }
    }
}

/// Waits for a reply. There is none if a batch had fewer replies than requests, or if the process stops.
pub(super) async fn reply<A>(receiver: oneshot::Receiver<Result<A, Error>>) -> Result<A, Error> {
    receiver.await.unwrap_or_else(|_| Err(Error::unavailable("there is no answer")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    /// Doubles numbers. Every batch is recorded, then waits for a permit. A batch with a 0 fails; a batch stops before its
    /// first number above 1000, which remains, unless it is the first of the batch.
    struct Doubler {
        batcher: Batcher<u8, u64, u64>,
        batches: Mutex<Vec<Vec<u64>>>,
        permits: Semaphore,
    }

    impl Doubler {
        fn new() -> Arc<Doubler> {
            let (batcher, batches) = (Batcher::default(), Mutex::default());
            Arc::new(Doubler { batcher, batches, permits: Semaphore::new(0) })
        }

        fn submit(self: &Arc<Self>, request: u64) -> oneshot::Receiver<Result<u64, Error>> {
            self.submit_weighing(request, 1)
        }

        fn submit_weighing(self: &Arc<Self>, request: u64, weight: usize) -> oneshot::Receiver<Result<u64, Error>> {
            let (reply, must_run) = self.batcher.submit(0, request, weight);
            if must_run {
                let this = self.clone();
                tokio::spawn(async move {
                    this.batcher.run(0, |batch| this.run_batch(batch)).await;
                });
            }
            reply
        }

        async fn run_batch(&self, mut batch: Vec<u64>) -> Result<BatchReplies<u64, u64>, Error> {
            self.batches.lock().unwrap().push(batch.clone());
            self.permits.acquire().await.unwrap().forget();
            if batch.contains(&0) {
                return Err(Error::unavailable("a zero"));
            }
            let end = batch.iter().skip(1).position(|request| *request > 1000).map_or(batch.len(), |at| at + 1);
            let remaining = batch.split_off(end);
            Ok(BatchReplies { replies: batch.into_iter().map(|request| Ok(request * 2)).collect(), remaining })
        }

        /// Waits until this many batches have begun.
        async fn begun(&self, batches: usize) {
            while self.batches.lock().unwrap().len() < batches {
                tokio::task::yield_now().await;
            }
        }

        fn batches(&self) -> Vec<Vec<u64>> {
            self.batches.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn requests_join_next_batch_while_one_runs() {
        let doubler = Doubler::new();
        let first = doubler.submit(1);
        doubler.begun(1).await;
        let others: Vec<_> = (2..=300).map(|request| doubler.submit(request)).collect();
        doubler.permits.add_permits(10);
        assert_eq!(reply(first).await.unwrap(), 2);
        for (request, receiver) in (2..=300).zip(others) {
            assert_eq!(reply(receiver).await.unwrap(), request * 2);
        }
        let sizes: Vec<usize> = doubler.batches().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, MAX_BATCH, MAX_BATCH, 299 - 2 * MAX_BATCH]);
        // Nothing is kept of a kind without requests.
        while !doubler.batcher.0.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(reply(doubler.submit(7)).await.unwrap(), 14);
    }

    #[tokio::test]
    async fn cancelled_request_left_out_and_error_shared() {
        let doubler = Doubler::new();
        let first = doubler.submit(1);
        doubler.begun(1).await;
        let (cancelled, failing, beside) = (doubler.submit(2), doubler.submit(0), doubler.submit(3));
        drop(cancelled);
        doubler.permits.add_permits(2);
        assert_eq!(reply(first).await.unwrap(), 2);
        for receiver in [failing, beside] {
            assert!(matches!(reply(receiver).await, Err(Error::Unavailable { .. })));
        }
        assert_eq!(doubler.batches(), [vec![1], vec![0, 3]]);
    }

    #[tokio::test]
    async fn batch_bounded_by_weight_but_for_its_first_request() {
        let doubler = Doubler::new();
        let first = doubler.submit(1);
        doubler.begun(1).await;
        let weights = [MAX_BATCH_WEIGHT + 1, MAX_BATCH_WEIGHT - 1, 1, 1];
        let others: Vec<_> =
            (2..).zip(weights).map(|(request, weight)| doubler.submit_weighing(request, weight)).collect();
        doubler.permits.add_permits(10);
        assert_eq!(reply(first).await.unwrap(), 2);
        for (request, receiver) in (2..).zip(others) {
            assert_eq!(reply(receiver).await.unwrap(), request * 2);
        }
        assert_eq!(doubler.batches(), [vec![1], vec![2], vec![3, 4], vec![5]]);
    }

    #[tokio::test]
    async fn remaining_requests_go_first_in_the_next_batch() {
        let doubler = Doubler::new();
        let first = doubler.submit(1);
        doubler.begun(1).await;
        let early = [2, 2_000, 3].map(|request| doubler.submit(request));
        doubler.permits.add_permits(1);
        doubler.begun(2).await;
        let late = doubler.submit(4);
        doubler.permits.add_permits(10);
        assert_eq!(reply(first).await.unwrap(), 2);
        for (request, receiver) in [2, 2_000, 3].into_iter().zip(early) {
            assert_eq!(reply(receiver).await.unwrap(), request * 2);
        }
        assert_eq!(reply(late).await.unwrap(), 8);
        assert_eq!(doubler.batches(), [vec![1], vec![2, 2_000, 3], vec![2_000, 3, 4]]);
    }

    #[tokio::test]
    async fn request_without_reply_unavailable() {
        let batcher = Batcher::<u8, u64, u64>::default();
        let (receiver, must_run) = batcher.submit(0, 1, 1);
        assert!(must_run);
        batcher.run(0, async |_| Ok(Vec::<Result<u64, Error>>::new())).await;
        assert!(matches!(reply(receiver).await, Err(Error::Unavailable { .. })));
    }
}
