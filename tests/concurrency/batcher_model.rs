//! The batcher: each request gets its own reply, batches of a kind do not overlap, and no request is left behind.

use loom::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{
    Model,
    batcher::{self, BatchReplies, Batcher},
    explore,
    model::Error,
};

pub const MODELS: &[Model] = &[
    ("batcher_replies_to_each_request", replies_to_each_request),
    ("batcher_retries_rest_of_batch", retries_rest),
    ("batcher_continues_when_request_cancelled", continues_without_cancelled),
];

/// Doubles numbers, at most `takes` of a batch.
struct Doubler {
    batcher: Batcher<u8, u64, u64>,
    takes: usize,
    busy: AtomicBool,
}

impl Doubler {
    fn new(takes: usize) -> Arc<Doubler> {
        Arc::new(Doubler { batcher: Batcher::default(), takes, busy: AtomicBool::new(false) })
    }

    async fn run(&self, mut batch: Vec<u64>) -> Result<BatchReplies<u64, u64>, Error> {
        assert!(!self.busy.swap(true, Ordering::SeqCst), "two batches at once");
        thread::yield_now();
        let remaining = batch.split_off(self.takes.min(batch.len()));
        self.busy.store(false, Ordering::SeqCst);
        Ok(BatchReplies { replies: batch.into_iter().map(|number| Ok(number * 2)).collect(), remaining })
    }

    /// Requests a number's double, and runs the batches if this thread has to. `waits`: for the reply.
    fn request(&self, number: u64, waits: bool) {
        let (reply, runs) = self.batcher.submit(0, number, 1);
        let reply = waits.then_some(reply);
        if runs {
            block_on(self.batcher.run(0, |batch| self.run(batch)));
        }
        if let Some(reply) = reply {
            assert_eq!(block_on(batcher::reply(reply)).ok(), Some(number * 2));
        }
    }
}

/// Sends two requests from threads of their own and one from this thread; the second request is cancelled or not.
fn request_at_once(doubler: &Arc<Doubler>, second_waits: bool) {
    let request = |number, waits| {
        let doubler = doubler.clone();
        thread::spawn(move || doubler.request(number, waits))
    };
    let requesting = [request(1, true), request(2, second_waits)];
    doubler.request(3, true);
    for thread in requesting {
        thread.join().unwrap();
    }
    // Nothing is left: the next request runs at once.
    doubler.request(4, true);
}

fn replies_to_each_request() {
    explore(|| request_at_once(&Doubler::new(10), true));
}

fn retries_rest() {
    explore(|| request_at_once(&Doubler::new(1), true));
}

fn continues_without_cancelled() {
    explore(|| request_at_once(&Doubler::new(10), false));
}
