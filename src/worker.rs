//! The background work of a process: one way to start it, and one to stop it.
//!
//! The stop drops a worker at whatever it awaits, so every step of a worker must be safe to repeat. A panic ends one run, not
//! the worker: it is logged (by the panic hook, with its message), counted, and the worker goes on.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::telemetry::metrics;

pub use metrics::worker::Worker;

/// The pause before a worker that panicked starts again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Repeats `attempt` with pauses until it succeeds, at most for `limit`. Returns whether it succeeded.
pub async fn retry_within<E>(limit: Duration, pause: Duration, attempt: impl AsyncFn() -> Result<(), E>) -> bool {
    // Boxed: the future of an attempt may be large.
    let trying = Box::pin(async {
        while attempt().await.is_err() {
            sleep(pause).await;
        }
    });
    timeout(limit, trying).await.is_ok()
}

/// The workers of a process. A clone starts and stops the same ones.
#[derive(Clone, Debug)]
pub struct Workers {
    tasks: TaskTracker,
    stop: CancellationToken,
    restart_delay: Duration,
}

impl Default for Workers {
    fn default() -> Self {
        Workers { tasks: TaskTracker::new(), stop: CancellationToken::new(), restart_delay: RESTART_DELAY }
    }
}

impl Workers {
    /// Runs `job` at once and then every `interval`, until the stop. A run that takes longer delays the next one.
    pub fn every<F>(&self, worker: Worker, every: Duration, mut job: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        self.track(async move {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                completes(worker, &mut job).await;
            }
        });
    }

    /// Runs `job`, which waits by itself for what it has to do, until it returns or the stop. After a panic `job` starts again.
    pub fn spawn<F>(&self, worker: Worker, mut job: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let delay = self.restart_delay;
        self.track(async move {
            while !completes(worker, &mut job).await {
                sleep(delay).await;
            }
        });
    }

    /// Runs `work` once the stop has come; [`Workers::stop`] waits for it.
    pub fn at_stop(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.cancelled().await;
            work.await;
        });
    }

    fn track(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(work));
    }

    /// Stops all workers and waits for them until `end`. Returns whether all of them stopped in time.
    pub async fn stop(&self, end: Instant) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let stopped = timeout_at(end, self.tasks.wait()).await.is_ok();
        if !stopped {
            tracing::warn!(tasks = self.tasks.len(), "background work is given up");
        }
        stopped
    }
}

/// Whether a run of `job` came to its end, or panicked.
async fn completes<F: Future<Output = ()>>(worker: Worker, job: &mut impl FnMut() -> F) -> bool {
    // Unwind safe: what a panic leaves behind is what the stop, which drops a run at any await, may leave too.
    let completed = AssertUnwindSafe(async { job().await }).catch_unwind().await.is_ok();
    if !completed {
        metrics::WORKER_PANICS.with_label_values(&[worker.as_str()]).inc();
        tracing::error!(worker = worker.as_str(), "a worker panicked; it goes on");
    }
    completed
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    fn workers() -> Workers {
        Workers { restart_delay: Duration::from_millis(1), ..Workers::default() }
    }

    async fn stopped(workers: &Workers) -> bool {
        workers.stop(Instant::now() + Duration::from_secs(30)).await
    }

    fn panics(worker: Worker) -> u64 {
        metrics::WORKER_PANICS.with_label_values(&[worker.as_str()]).get()
    }

    /// A job that panics on its second run, and sends the number of each run.
    fn panicking_job() -> (impl FnMut() -> futures_util::future::BoxFuture<'static, ()>, UnboundedReceiver<u32>) {
        let (sender, runs) = unbounded_channel();
        let mut run = 0;
        let job = move || {
            run += 1;
            let (run, sender) = (run, sender.clone());
            async move {
                assert_ne!(run, 2, "the second run");
                let _ = sender.send(run);
            }
            .boxed()
        };
        (job, runs)
    }

    #[tokio::test]
    async fn periodic_job_runs_until_stop_and_survives_panic() {
        let (job, mut runs) = panicking_job();
        let workers = workers();
        workers.every(Worker::Expiry, Duration::from_millis(1), job);
        for run in [1, 3, 4] {
            assert_eq!(runs.recv().await, Some(run));
        }
        assert_eq!(panics(Worker::Expiry), 1);
        assert!(stopped(&workers).await);
        // The job is dropped: nothing sends any more.
        while runs.recv().await.is_some() {}
    }

    #[tokio::test]
    async fn job_starts_again_only_after_panic() {
        let (mut job, mut runs) = panicking_job();
        drop(job());
        let workers = workers();
        // Its first run panics, its second returns: there is no third.
        workers.spawn(Worker::Jwks, job);
        assert_eq!(runs.recv().await, Some(3));
        assert_eq!(runs.recv().await, None);
        assert_eq!(panics(Worker::Jwks), 1);
        assert!(stopped(&workers).await);
    }

    #[tokio::test]
    async fn stop_drops_waiting_job_and_runs_last_work() {
        let workers = workers();
        let (held, last) = (Arc::new(()), Arc::new(AtomicBool::new(false)));
        let guard = held.clone();
        workers.spawn(Worker::Projector, move || {
            let guard = guard.clone();
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        });
        let ran = last.clone();
        workers.at_stop(async move { ran.store(true, Ordering::Relaxed) });
        tokio::task::yield_now().await;
        assert!(!last.load(Ordering::Relaxed));
        assert!(stopped(&workers).await);
        assert!(last.load(Ordering::Relaxed));
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn stop_gives_up_at_end_when_work_hangs() {
        let workers = workers();
        workers.at_stop(std::future::pending());
        assert!(!workers.stop(Instant::now() + Duration::from_millis(10)).await);
    }
}
