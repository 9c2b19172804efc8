//! The requests of the last fifteen minutes, of every process, from the samples that the processes write to Redis.
//!
//! Samples of different processes begin at different moments. Each is spread evenly over its period, into slots that all share, so
//! that sums stay exact; durations are merged as histograms.

use std::{
    collections::{BTreeMap, HashMap, btree_map},
    time::Duration,
};

use super::*;
use crate::{
    redis::{
        outbox::{Entry, StreamId},
        request_samples::{MAX_SAMPLES, SAMPLES_KEPT, is_ahead},
    },
    telemetry::metrics::REQUEST_SECONDS,
};

/// The period of a sample, and the width of a slot.
pub const SAMPLE_PERIOD: Duration = Duration::from_secs(5);
const SLOT_MS: i64 = SAMPLE_PERIOD.as_millis() as i64;
const KEPT_MS: i64 = SAMPLES_KEPT.as_millis() as i64;
/// The age of the latest sample up to which a process counts as running.
const RUNNING_MS: i64 = 3 * SLOT_MS;
/// The most processes of a history by name, those that were sampled last. The sums are of all.
const MAX_SAMPLED_INSTANCES: usize = 64;

/// A read of the samples after an entry.
pub struct SampleBatch {
    /// Redis's time of the read.
    now: Millis,
    /// This process's time of the read.
    read_at: Millis,
    /// `None` for an entry that is no sample.
    entries: Vec<(StreamId, Option<AgedSample>)>,
}

/// A sample, written some time after its period.
#[derive(Clone)]
struct AgedSample {
    ago_ms: i64,
    sample: Arc<RequestSample>,
}

impl AgedSample {
    fn read(entry: &Entry) -> Option<Self> {
        let field = |name: &str| entry.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
        let ago: u32 = field("ago")?.parse().ok()?;
        Some(AgedSample { ago_ms: i64::from(ago), sample: Arc::new(RequestSample::read(field("sample")?)?) })
    }
}

impl SampleBatch {
    fn new(now: Millis, read_at: Millis, entries: &[Entry]) -> Self {
        let entries = entries.iter().map(|entry| (entry.id, AgedSample::read(entry)));
        SampleBatch { now, read_at, entries: entries.collect() }
    }
}

/// The samples of the last fifteen minutes. Times are Redis's.
#[derive(Default)]
pub struct RequestHistory {
    /// By process, then by number.
    samples: HashMap<String, BTreeMap<u64, DatedSample>>,
    last: StreamId,
    /// Redis's time and this process's, of the last read.
    now: i64,
    read_at: i64,
    skipped: u64,
}

struct DatedSample {
    /// The end of its period.
    end: i64,
    sample: Arc<RequestSample>,
}

/// The requests within a slot, as rates per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RequestSlot {
    /// The end of the slot.
    pub at: Millis,
    pub rates: RequestClasses,
    pub latency: Option<Latency>,
}

/// A process that has answered requests in the last fifteen minutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampledInstance {
    pub id: String,
    pub name: String,
    pub version: String,
    pub started_at: Millis,
    /// The end of its latest sample.
    pub sampled_at: Millis,
}

#[derive(Clone, Default)]
struct SlotSums {
    counts: RequestClasses,
    /// By the place of the bucket's bound; the last is beyond all.
    times: Vec<f64>,
}

impl RequestHistory {
    /// The last entry that it has.
    pub fn last(&self) -> StreamId {
        self.last
    }

    /// The number of entries that were no samples.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Adds what was read, and drops what is too old.
    pub fn add(&mut self, batch: &SampleBatch) {
        (self.now, self.read_at) = (batch.now.0, batch.read_at.0);
        let oldest = self.now - KEPT_MS;
        self.samples.retain(|_, samples| {
            samples.retain(|_, dated| dated.end > oldest);
            !samples.is_empty()
        });
        let mut count: usize = self.samples.values().map(BTreeMap::len).sum();
        for (id, read) in &batch.entries {
            if is_ahead(*id, batch.now) {
                self.skipped += 1;
                continue;
            }
            self.last = self.last.max(*id);
            let Some(AgedSample { ago_ms, sample }) = read.clone() else {
                self.skipped += 1;
                continue;
            };
            let end = i64::try_from(id.ms).unwrap_or(i64::MAX).saturating_sub(ago_ms);
            if end > oldest && count < MAX_SAMPLES {
                let samples = self.samples.entry(sample.instance.clone()).or_default();
                // The first counts: a later one was written again, because the reply was lost.
                if let btree_map::Entry::Vacant(place) = samples.entry(sample.number) {
                    place.insert(DatedSample { end, sample });
                    count += 1;
                }
            }
        }
    }

    /// The samples of one process, or of all.
    fn of(&self, instance: Option<&str>) -> impl Iterator<Item = &DatedSample> {
        let chosen = self.samples.iter().filter(move |(id, _)| instance.is_none_or(|wanted| wanted == id.as_str()));
        chosen.flat_map(|(_, samples)| samples.values())
    }

    /// The time that a time of Redis is for this process.
    fn local(&self, at: i64) -> Millis {
        Millis(self.read_at).plus(at - self.now)
    }

    /// The slots of the last fifteen minutes that every process has had the time to report, oldest first: of one process, or of all. A
    /// slot without any sample is missing.
    pub fn slots(&self, instance: Option<&str>) -> Vec<RequestSlot> {
        // The slot of a moment is the one that begins with it or before.
        let slot_of = |at: i64| at.div_euclid(SLOT_MS);
        let until = slot_of(self.now - SLOT_MS);
        let from = slot_of(self.now - KEPT_MS) + 1;
        let mut sums: BTreeMap<i64, SlotSums> = BTreeMap::new();
        for DatedSample { end, sample } in self.of(instance) {
            let (length, classes, times) = (sample.ms as i64, sample.classes(), buckets(&sample.times));
            let begin = end.saturating_sub(length);
            for slot in slot_of(begin).max(from)..=slot_of(end - 1).min(until - 1) {
                let overlap = (*end).min((slot + 1) * SLOT_MS) - begin.max(slot * SLOT_MS);
                sums.entry(slot).or_default().add(&classes, &times, overlap as f64 / length as f64);
            }
        }
        sums.into_iter().map(|(slot, sums)| sums.over(self.local((slot + 1) * SLOT_MS))).collect()
    }

    /// The replies of the last fifteen minutes with an error code, the most frequent first: of one process, or of all.
    pub fn refusals(&self, instance: Option<&str>) -> Vec<(String, u64)> {
        let mut refusals: HashMap<&str, u64> = HashMap::new();
        for DatedSample { sample, .. } in self.of(instance) {
            for (_, code, count) in sample.counts.iter().filter(|(_, code, _)| !code.is_empty()) {
                let sum = refusals.entry(code).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        let mut refusals: Vec<_> = refusals.into_iter().map(|(code, count)| (code.to_owned(), count)).collect();
        refusals.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        refusals
    }

    /// The latest sample of each process, those that were sampled last first.
    fn latest(&self) -> Vec<&DatedSample> {
        let newest =
            self.samples.values().map(|samples| samples.values().max_by_key(|dated| (dated.end, dated.sample.number)));
        let mut latest: Vec<&DatedSample> = newest.flatten().collect();
        latest.sort_by(|a, b| b.end.cmp(&a.end).then_with(|| a.sample.instance.cmp(&b.sample.instance)));
        latest.truncate(MAX_SAMPLED_INSTANCES);
        latest
    }

    /// The processes of the last fifteen minutes, by name.
    pub fn instances(&self) -> Vec<SampledInstance> {
        let instance = |dated: &DatedSample| SampledInstance {
            id: dated.sample.instance.clone(),
            name: dated.sample.name.clone(),
            version: dated.sample.version.clone(),
            started_at: Millis(dated.sample.started_at),
            sampled_at: self.local(dated.end),
        };
        let mut instances: Vec<SampledInstance> = self.latest().into_iter().map(instance).collect();
        instances.sort_by(|a, b| (&a.name, a.started_at, &a.id).cmp(&(&b.name, b.started_at, &b.id)));
        instances
    }

    /// The latest sample of each process that seems to run.
    pub fn running(&self) -> Vec<&RequestSample> {
        let latest = self.latest().into_iter().filter(|dated| dated.end > self.now - RUNNING_MS);
        latest.map(|dated| dated.sample.as_ref()).collect()
    }
}

impl SlotSums {
    fn add(&mut self, classes: &RequestClasses, times: &[f64], share: f64) {
        let RequestClasses { all, refused, failed, limited, shed } = classes;
        self.counts.all += all * share;
        self.counts.refused += refused * share;
        self.counts.failed += failed * share;
        self.counts.limited += limited * share;
        self.counts.shed += shed * share;
        if self.times.len() < times.len() {
            self.times.resize(times.len(), 0.0);
        }
        self.times.iter_mut().zip(times).for_each(|(sum, count)| *sum += count * share);
    }

    fn over(self, at: Millis) -> RequestSlot {
        let per_second = |count: f64| rounded(count / SAMPLE_PERIOD.as_secs_f64());
        let RequestClasses { all, refused, failed, limited, shed } = self.counts;
        let rates = RequestClasses {
            all: per_second(all),
            refused: per_second(refused),
            failed: per_second(failed),
            limited: per_second(limited),
            shed: per_second(shed),
        };
        let cumulative: Vec<f64> = self
            .times
            .iter()
            .scan(0.0, |sum, count| {
                *sum += count;
                Some(*sum)
            })
            .collect();
        RequestSlot { at, rates, latency: Latency::of(REQUEST_SECONDS, &cumulative) }
    }
}

/// The bucket of a duration as samples name it: its upper bound in µs.
pub fn bucket_us(upper_seconds: f64) -> u64 {
    (upper_seconds * 1e6).round() as u64
}

/// The counts of a sample by the place of their bound; empty if a bound is another version's, because they can't be added.
pub fn buckets(times: &[(u64, u64)]) -> Vec<f64> {
    let mut buckets = vec![0.0; REQUEST_SECONDS.len() + 1];
    for (bound, count) in times {
        let place = match bound {
            0 => Some(REQUEST_SECONDS.len()),
            bound => REQUEST_SECONDS.iter().position(|upper| bucket_us(*upper) == *bound),
        };
        let Some(bucket) = place.and_then(|place| buckets.get_mut(place)) else { return Vec::new() };
        *bucket += *count as f64;
    }
    buckets
}

impl Engine {
    /// Writes samples of this process's requests for the dashboards, each with the ms since its end. `last` and the result: the last
    /// entry that the process has written.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis or the first partition is.
    pub async fn write_request_samples(
        &self,
        samples: &[(u64, String)],
        last: Option<StreamId>,
    ) -> Result<StreamId, Error> {
        self.store.add_request_samples(samples, last).await
    }

    /// Reads the samples of every process after an entry, for [`RequestHistory::add`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn request_samples(&self, after: StreamId) -> Result<SampleBatch, Error> {
        let (now, entries) = self.store.request_samples(after).await?;
        let read_at = self.clock.now();
        // Of 64 processes there are six megabytes.
        let parsed = tokio::task::spawn_blocking(move || SampleBatch::new(now, read_at, &entries)).await;
        parsed.map_err(|error| Error::Internal(error.into()))
    }

    /// The requests of the last fifteen minutes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while Redis is.
    pub async fn request_history(&self) -> Result<RequestHistory, Error> {
        let mut history = RequestHistory::default();
        history.add(&self.request_samples(StreamId::ZERO).await?);
        Ok(history)
    }
}

#[cfg(test)]
mod tests;
