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
type Answered<A> = oneshot::Sender<Result<A, Error>>;

type Queue<R, A> = VecDeque<(R, Answered<A>)>;

/// Requests `R` with answers `A` that wait to go together, by kind; a kind of which nothing is under way has no queue.
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
        let lead = !queues.contains_key(&kind);
        queues.entry(kind).or_default().push_back((request, answered));
        (answer, lead)
    }

    /// The next requests, those that somebody still waits for; none if there are none, and then the caller has led enough.
    fn next(&self, kind: K) -> (Vec<R>, Vec<Answered<A>>) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut entry) = queues.entry(kind) else { return (Vec::new(), Vec::new()) };
        let queue = entry.get_mut();
        queue.retain(|(_, answered)| !answered.is_closed());
        let next: (Vec<R>, Vec<_>) = queue.drain(..MOST.min(queue.len())).unzip();
        if next.0.is_empty() {
            entry.remove();
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
