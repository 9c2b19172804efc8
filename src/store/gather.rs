//! What is asked for at once is carried out at once: requests of a kind that come while one is under way go together, in the
//! order in which they came, each with its own answer.
//!
//! A request that finds nothing under way is carried out at once; those that come meanwhile wait for it to end, and go
//! together in the next. So nobody waits for company, and the busier it gets the less each one costs. None joins what has been
//! sent already, so that each answer is of a moment after its request.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    sync::{Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::domain::Error;

/// The most requests that go together: bounds how long Redis is busy with them.
pub(super) const MOST: usize = 128;
/// How many such parties of one kind are under way at a time: with a second one Redis is not idle while we read the first
/// one's answers.
const UNDER_WAY: usize = 2;

type Answered<A> = oneshot::Sender<Result<A, Error>>;

struct Queue<R, A> {
    waiting: VecDeque<(R, Answered<A>)>,
    under_way: usize,
}

/// Requests `R` with answers `A` that wait to go together, by kind; a kind that nobody waits for has no queue.
pub(super) struct Gather<K, R, A>(Mutex<HashMap<K, Queue<R, A>>>);

impl<K, R, A> Default for Gather<K, R, A> {
    fn default() -> Self {
        Gather(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash, R, A> Gather<K, R, A> {
    /// Takes a request in. Whether the caller has to see to it, by [`Gather::lead`], that it is carried out: in a task of its
    /// own, for others depend on it, whatever becomes of this request.
    pub(super) fn join(&self, kind: K, request: R) -> (oneshot::Receiver<Result<A, Error>>, bool) {
        let (answered, answer) = oneshot::channel();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(kind).or_insert_with(|| Queue { waiting: VecDeque::new(), under_way: 0 });
        queue.waiting.push_back((request, answered));
        let lead = queue.under_way < UNDER_WAY;
        queue.under_way += usize::from(lead);
        (answer, lead)
    }

    /// The next requests, those that somebody still waits for; none if there are none, and then the caller has led enough.
    fn next(&self, kind: K) -> (Vec<R>, Vec<Answered<A>>) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut entry) = queues.entry(kind) else { return (Vec::new(), Vec::new()) };
        let queue = entry.get_mut();
        queue.waiting.retain(|(_, answered)| !answered.is_closed());
        let next: (Vec<R>, Vec<_>) = queue.waiting.drain(..MOST.min(queue.waiting.len())).unzip();
        if next.0.is_empty() {
            queue.under_way -= 1;
            if queue.under_way == 0 {
                entry.remove();
            }
        }
        next
    }

    /// Carries out what waits until nothing does. An answer may be an error of one request; an error of `carry_out` is one of
    /// all that went together.
    pub(super) async fn lead<F>(&self, kind: K, carry_out: impl Fn(Vec<R>) -> F)
    where
        F: Future<Output = Result<Vec<Result<A, Error>>, Error>>,
    {
        loop {
            // Whoever is ready to run, and about to ask for the same, is let in.
            tokio::task::yield_now().await;
            let (requests, answered) = self.next(kind);
            if requests.is_empty() {
                return;
            }
            match carry_out(requests).await {
                Ok(answers) => {
                    for (answered, answer) in answered.into_iter().zip(answers) {
                        let _ = answered.send(answer);
                    }
                }
                Err(error) => {
                    for answered in answered {
                        let _ = answered.send(Err(error.again()));
                    }
                }
            }
        }
    }
}

/// The answer, once it is there. It is never sent where fewer answers came than were asked for, or the service is stopping.
pub(super) async fn answer<A>(answer: oneshot::Receiver<Result<A, Error>>) -> Result<A, Error> {
    answer.await.unwrap_or_else(|_| Err(Error::unavailable("there is no answer")))
}
