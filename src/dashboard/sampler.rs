//! Samples of the requests of a process, once per five seconds in Redis: the last fifteen minutes of every dashboard. What can't be
//! written waits in the process, and is written with its time once Redis answers.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::proto::MetricFamily;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{snapshot::Instance, traffic::Traffic};
use crate::{
    engine::{Engine, request_history::SAMPLE_PERIOD},
    model::Error,
    redis::{outbox::StreamId, request_samples::SAMPLES_KEPT},
    worker::{Worker, Workers},
};

/// How long a write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// The most samples that wait: those of fifteen minutes.
const MAX_PENDING: usize = (SAMPLES_KEPT.as_secs() / SAMPLE_PERIOD.as_secs()) as usize;

/// The samples of a process that are not in Redis yet.
#[derive(Default)]
struct Sampler {
    traffic: Traffic,
    /// Each with the end of its period, oldest first.
    pending: VecDeque<(Instant, String)>,
}

impl Sampler {
    /// Takes the sample since the last one; the first call takes none.
    fn take(&mut self, families: &[MetricFamily], at: Instant, instance: &Instance, number: u64) {
        let Some(window) = self.traffic.sample(families, at) else { return };
        match window.sample(instance, number).write() {
            Ok(sample) => self.pending.push_back((at, sample)),
            Err(error) => tracing::warn!(%error, "a sample of the requests can't be written"),
        }
        while self.pending.len() > MAX_PENDING {
            self.pending.pop_front();
        }
    }

    /// The waiting samples, each with the ms since its end.
    fn pending(&self, at: Instant) -> Vec<(u64, String)> {
        let ago = |end: &Instant| at.saturating_duration_since(*end).as_millis() as u64;
        self.pending.iter().map(|(end, sample)| (ago(end), sample.clone())).collect()
    }
}

/// Starts to write samples.
pub fn keep_sampling(engine: Arc<Engine>, instance: Arc<Instance>, workers: &Workers) {
    // Outlives a panic: no two samples of the process have the same number.
    let number = Arc::<AtomicU64>::default();
    workers.spawn(Worker::RequestSamples, move || sample(engine.clone(), instance.clone(), number.clone()));
}

/// Samples every [`SAMPLE_PERIOD`], for ever.
async fn sample(engine: Arc<Engine>, instance: Arc<Instance>, number: Arc<AtomicU64>) {
    let (mut sampler, mut last, mut ticks) = (Sampler::default(), None, interval(SAMPLE_PERIOD));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let number = number.fetch_add(1, Ordering::Relaxed);
        sampler.take(&crate::telemetry::metrics::counted(), Instant::now(), &instance, number);
        let pending = sampler.pending(Instant::now());
        if pending.is_empty() {
            continue;
        }
        if let Some(written) = written(timeout(WRITE_TIMEOUT, engine.write_request_samples(&pending, last)).await) {
            last = Some(written);
            sampler.pending.clear();
        }
    }
}

/// The last entry. A missing sample is not an error: it is written with the next one.
fn written(result: Result<Result<StreamId, Error>, tokio::time::error::Elapsed>) -> Option<StreamId> {
    match result {
        Ok(Ok(last)) => return Some(last),
        Ok(Err(error)) => tracing::debug!(%error, "the sample of this instance's requests waits"),
        Err(_elapsed) => tracing::debug!("the sample of this instance's requests is not written in time"),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RequestSample;

    #[test]
    fn samples_wait_while_redis_is_away_bounded() {
        let instance = Instance {
            id: "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned(),
            name: "shop:8080".to_owned(),
            version: "0.2.0".to_owned(),
            started_at: 1,
        };
        let (mut sampler, begun) = (Sampler::default(), Instant::now());
        let at = |number: u64| begun + SAMPLE_PERIOD * number as u32;
        sampler.take(&[], begun, &instance, 0);
        assert!(sampler.pending(begun).is_empty());
        let periods = MAX_PENDING as u64 + 5;
        (1..=periods).for_each(|number| sampler.take(&[], at(number), &instance, number));
        let pending = sampler.pending(at(periods) + Duration::from_millis(7));
        assert_eq!(pending.len(), MAX_PENDING);
        let samples: Vec<(u64, RequestSample)> =
            pending.iter().map(|(ago, text)| (*ago, RequestSample::read(text).unwrap())).collect();
        assert!(samples.iter().all(|(_, sample)| sample.ms == 5_000), "without a gap");
        let shown = |(ago, sample): &(u64, RequestSample)| (*ago, sample.number);
        assert_eq!(samples.last().map(shown), Some((7, periods)));
        assert_eq!(samples.first().map(shown), Some((895_007, 6)));
    }
}
