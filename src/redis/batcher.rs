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

use crate::model::Error;

/// The most requests that go together, and the most that they may carry in all (what one of them alone carries is its own
/// business): bounds how long Redis is busy with them.
pub(super) const MOST: usize = 128;
pub(super) const MAX_WEIGHT: usize = 1000;
type Answered<A> = oneshot::Sender<Result<A, Error>>;

/// A request that waits: what it carries, and who waits for it.
struct Waiting<R, A> {
    request: R,
    weight: usize,
    answered: Answered<A>,
}

type Queue<R, A> = VecDeque<Waiting<R, A>>;

/// What became of requests that went together: the answers to the first of them, and the others, which were not taken on.
pub(super) struct Carried<R, A> {
    pub answers: Vec<Result<A, Error>>,
    pub rest: Vec<R>,
}

impl<R, A> Default for Carried<R, A> {
    fn default() -> Self {
        Carried { answers: Vec::new(), rest: Vec::new() }
    }
}

impl<R, A> From<Vec<Result<A, Error>>> for Carried<R, A> {
    fn from(answers: Vec<Result<A, Error>>) -> Self {
        Carried { answers, rest: Vec::new() }
    }
}

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
    pub(super) fn join(&self, kind: K, request: R, weight: usize) -> (oneshot::Receiver<Result<A, Error>>, bool) {
        let (answered, answer) = oneshot::channel();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lead = !queues.contains_key(&kind);
        queues.entry(kind).or_default().push_back(Waiting { request, weight, answered });
        (answer, lead)
    }

    /// The next requests, those that somebody still waits for; none if there are none, and then the caller has led enough.
    fn next(&self, kind: K) -> (Vec<R>, Vec<(usize, Answered<A>)>) {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut entry) = queues.entry(kind) else { return (Vec::new(), Vec::new()) };
        let queue = entry.get_mut();
        queue.retain(|waiting| !waiting.answered.is_closed());
        let mut carried = 0;
        let fits = |waiting: &&Waiting<R, A>| {
            carried += waiting.weight;
            carried <= MAX_WEIGHT
        };
        // The first goes whatever it carries.
        let count = queue.iter().take(MOST).take_while(fits).count().max(1).min(queue.len());
        let next = queue.drain(..count).map(|Waiting { request, weight, answered }| (request, (weight, answered)));
        let next: (Vec<R>, Vec<_>) = next.unzip();
        if next.0.is_empty() {
            entry.remove();
        }
        next
    }

    /// Puts back what was not taken on, before what came since.
    fn put_back(&self, kind: K, rest: impl IntoIterator<Item = R>, waiting: Vec<(usize, Answered<A>)>) {
        let rest = rest.into_iter().zip(waiting);
        let rest = rest.map(|(request, (weight, answered))| Waiting { request, weight, answered });
        let mut rest: Queue<R, A> = rest.collect();
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(kind).or_default();
        rest.append(queue);
        *queue = rest;
    }

    /// Carries out what waits until nothing does. An answer may be an error of one request; an error of `carry_out` is one of
    /// all that went together.
    pub(super) async fn lead<F, C>(&self, kind: K, carry_out: impl Fn(Vec<R>) -> F)
    where
        F: Future<Output = Result<C, Error>>,
        C: Into<Carried<R, A>>,
    {
        loop {
            // Whoever is ready to run, and about to ask for the same, is let in.
            tokio::task::yield_now().await;
            let (requests, mut answered) = self.next(kind);
            if requests.is_empty() {
                return;
            }
            match carry_out(requests).await {
                Ok(carried) => {
                    let Carried { answers, rest } = carried.into();
                    let waiting = answered.split_off(answers.len().min(answered.len()));
                    for ((_, answered), answer) in answered.into_iter().zip(answers) {
                        let _ = answered.send(answer);
                    }
                    if !rest.is_empty() {
                        self.put_back(kind, rest, waiting);
                    }
                }
                Err(error) => {
                    for (_, answered) in answered {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    /// Requests are numbers, answers their doubles; a party with a 0 in it fails. Each party waits for a permit, and is
    /// noted.
    struct Hall {
        gather: Gather<u8, u64, u64>,
        doors: Semaphore,
        parties: Mutex<Vec<Vec<u64>>>,
    }

    impl Hall {
        fn new() -> Arc<Hall> {
            Arc::new(Hall { gather: Gather::default(), doors: Semaphore::new(0), parties: Mutex::default() })
        }

        fn join(self: &Arc<Self>, request: u64) -> oneshot::Receiver<Result<u64, Error>> {
            let (answered, lead) = self.gather.join(0, request, 1);
            if lead {
                let hall = self.clone();
                tokio::spawn(async move {
                    hall.gather.lead(0, |party| hall.carry_out(party)).await;
                });
            }
            answered
        }

        async fn carry_out(&self, party: Vec<u64>) -> Result<Vec<Result<u64, Error>>, Error> {
            self.parties.lock().unwrap().push(party.clone());
            self.doors.acquire().await.unwrap().forget();
            if party.contains(&0) {
                return Err(Error::unavailable("a nought"));
            }
            Ok(party.into_iter().map(|request| Ok(request * 2)).collect())
        }

        /// Until so many parties have begun.
        async fn begun(&self, parties: usize) {
            while self.parties.lock().unwrap().len() < parties {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn requests_join_next_batch_while_one_runs() {
        let hall = Hall::new();
        let first = hall.join(1);
        hall.begun(1).await;
        let others: Vec<_> = (2..=300).map(|request| hall.join(request)).collect();
        hall.doors.add_permits(10);
        assert_eq!(answer(first).await.unwrap(), 2);
        for (request, answered) in (2..=300).zip(others) {
            assert_eq!(answer(answered).await.unwrap(), request * 2);
        }
        let sizes: Vec<usize> = hall.parties.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, MOST, MOST, 299 - 2 * MOST]);
        // Nobody waits, and nothing is kept of it.
        while !hall.gather.0.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(answer(hall.join(7)).await.unwrap(), 14);
    }

    #[tokio::test]
    async fn cancelled_request_left_out_and_error_shared() {
        let hall = Hall::new();
        let first = hall.join(1);
        hall.begun(1).await;
        let (gone, unlucky, beside) = (hall.join(2), hall.join(0), hall.join(3));
        drop(gone);
        hall.doors.add_permits(2);
        assert_eq!(answer(first).await.unwrap(), 2);
        for answered in [unlucky, beside] {
            assert!(matches!(answer(answered).await, Err(Error::Unavailable { .. })));
        }
        assert_eq!(*hall.parties.lock().unwrap(), [vec![1], vec![0, 3]]);
    }
}
