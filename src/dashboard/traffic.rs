//! The requests of the last seconds, from the metrics of a process: their numbers, kinds and durations, and the sums over several
//! processes.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use prometheus::proto::{Metric, MetricFamily};
use serde::{Deserialize, Serialize};

use super::snapshot::{Instance, Refusal, Requests, RouteTraffic};
use crate::{
    engine::request_history::{bucket_us, buckets},
    model::{Latency, RequestClasses, RequestSample, rounded},
    telemetry::metrics::REQUEST_SECONDS,
};

const REQUESTS: &str = "firstcome_http_requests_total";
const DURATIONS: &str = "firstcome_http_request_duration_seconds";
const SHED: &str = "firstcome_shed_total";

/// The time over which rates are taken.
const WINDOW: Duration = Duration::from_secs(3);
/// The most entries of a list.
const MAX_ENTRIES: usize = 12;
/// The routes of the page's own requests, which are left out.
const OWN: &str = "/ops";

/// Samples of the counters.
#[derive(Default)]
pub struct Traffic(VecDeque<Sample>);

/// The counters at one time.
struct Sample {
    at: Instant,
    /// Requests.
    counts: HashMap<RequestKind, f64>,
    /// The bounds of `times`, in seconds, rising.
    bounds: Vec<f64>,
    /// By method and route: the requests within each bound, cumulative; the last count is all of them.
    times: HashMap<Operation, Vec<u64>>,
    shed: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Operation {
    method: String,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestKind {
    #[serde(flatten)]
    operation: Operation,
    status: String,
    error_code: String,
}

/// The requests of one process over the last seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// The duration of the window.
    seconds: f64,
    /// The number of requests of each kind.
    counts: Vec<(RequestKind, f64)>,
    bounds: Vec<f64>,
    times: Vec<(Operation, Vec<u64>)>,
    shed: f64,
}

impl Traffic {
    /// Samples the counters. Returns the requests of the last seconds; `None` at the first sample.
    pub fn sample(&mut self, families: &[MetricFamily], at: Instant) -> Option<Window> {
        let now = Sample::new(families, at);
        let recent = |sample: Option<&Sample>| sample.is_some_and(|sample| at.duration_since(sample.at) >= WINDOW);
        // Compared with the latest sample that is old enough.
        while recent(self.0.get(1)) {
            self.0.pop_front();
        }
        let window = self.0.front().map(|before| now.since(before));
        self.0.push_back(now);
        window
    }
}

impl Sample {
    fn new(families: &[MetricFamily], at: Instant) -> Self {
        let metrics = |name: &str| {
            let family = families.iter().find(|family| family.name() == name);
            family.map_or(&[][..], |family| family.get_metric())
        };
        let operation = |metric: &Metric| Operation {
            method: label(metric, "method").to_owned(),
            route: label(metric, "route").to_owned(),
        };
        let shop = |metric: &&Metric| !label(metric, "route").starts_with(OWN);
        let count = |metric: &Metric| {
            let label = |name: &str| label(metric, name).to_owned();
            let kind =
                RequestKind { operation: operation(metric), status: label("status"), error_code: label("error_code") };
            (kind, metric.get_counter().get_value())
        };
        let finite = |metric: &Metric| -> Vec<(f64, u64)> {
            let buckets = metric.get_histogram().get_bucket().iter();
            let buckets = buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
            buckets.filter(|(upper, _)| upper.is_finite()).collect()
        };
        let time = |metric: &Metric| {
            let counts = finite(metric).into_iter().map(|(_, count)| count);
            (operation(metric), counts.chain([metric.get_histogram().get_sample_count()]).collect())
        };
        let first = metrics(DURATIONS).first();
        Sample {
            at,
            counts: metrics(REQUESTS).iter().filter(shop).map(count).collect(),
            bounds: first.map_or_else(Vec::new, |metric| finite(metric).into_iter().map(|(upper, _)| upper).collect()),
            times: metrics(DURATIONS).iter().filter(shop).map(time).collect(),
            shed: metrics(SHED).iter().map(|metric| metric.get_counter().get_value()).sum(),
        }
    }

    fn since(&self, before: &Sample) -> Window {
        let counts = self.counts.iter().map(|(kind, count)| {
            let count = count - before.counts.get(kind).copied().unwrap_or(0.0);
            (kind.clone(), count)
        });
        let times = self.times.iter().map(|(operation, counts)| {
            let was = |place: usize| before.times.get(operation).and_then(|was| was.get(place)).copied().unwrap_or(0);
            let more = counts.iter().enumerate().map(|(place, count)| count.saturating_sub(was(place))).collect();
            (operation.clone(), more)
        });
        Window {
            seconds: self.at.duration_since(before.at).as_secs_f64(),
            counts: counts.filter(|(_, count)| *count > 0.0).collect(),
            bounds: self.bounds.clone(),
            times: times.filter(|(_, counts): &(_, Vec<u64>)| counts.last().is_some_and(|all| *all > 0)).collect(),
            shed: (self.shed - before.shed).max(0.0),
        }
    }
}

impl Window {
    /// The sample of the window, of a process: without routes.
    pub fn sample(&self, of: &Instance, number: u64) -> RequestSample {
        let mut counts = BTreeMap::<(&str, &str), u64>::new();
        for (kind, count) in &self.counts {
            *counts.entry((&kind.status, &kind.error_code)).or_default() += *count as u64;
        }
        let mut cumulative = Vec::new();
        self.times.iter().for_each(|(_, times)| add(&mut cumulative, times));
        let bounds = self.bounds.iter().map(|bound| bucket_us(*bound)).chain([0]);
        let below = [0].into_iter().chain(cumulative.iter().copied());
        let times =
            bounds.zip(cumulative.iter().zip(below)).map(|(bound, (all, below))| (bound, all.saturating_sub(below)));
        let Instance { id, name, version, started_at } = of.clone();
        RequestSample {
            instance: id,
            name,
            version,
            started_at,
            number,
            ms: (self.seconds * 1000.0).round().max(1.0) as u64,
            counts: counts.into_iter().map(|((status, code), count)| (status.into(), code.into(), count)).collect(),
            shed: self.shed as u64,
            times: times.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

impl From<&RequestSample> for Window {
    fn from(sample: &RequestSample) -> Self {
        let nowhere = || Operation { method: String::new(), route: String::new() };
        let counts = sample.counts.iter().map(|(status, code, count)| {
            let kind = RequestKind { operation: nowhere(), status: status.clone(), error_code: code.clone() };
            (kind, *count as f64)
        });
        let cumulative = buckets(&sample.times).into_iter().scan(0, |sum, count| {
            *sum += count as u64;
            Some(*sum)
        });
        let times: Vec<u64> = cumulative.collect();
        Window {
            seconds: sample.ms as f64 / 1000.0,
            counts: counts.collect(),
            bounds: REQUEST_SECONDS.to_vec(),
            times: if times.is_empty() { Vec::new() } else { vec![(nowhere(), times)] },
            shed: sample.shed as f64,
        }
    }
}

impl Requests {
    /// The requests of these processes together. Times with other bounds than the first one's, from another version of the program,
    /// are left out.
    pub fn of(windows: &[&Window]) -> Self {
        let (mut all, mut operations) = (RequestClasses::default(), BTreeMap::<&Operation, RequestClasses>::new());
        let mut refusals = BTreeMap::<&str, f64>::new();
        let bounds = windows.iter().map(|window| &window.bounds).find(|bounds| !bounds.is_empty());
        let mut times = BTreeMap::<&Operation, Vec<u64>>::new();
        for window in windows {
            let rate = |count: f64| if window.seconds > 0.0 { count.max(0.0) / window.seconds } else { 0.0 };
            for (kind, count) in &window.counts {
                all.add(&kind.status, rate(*count));
                operations.entry(&kind.operation).or_default().add(&kind.status, rate(*count));
                if !kind.error_code.is_empty() {
                    *refusals.entry(&kind.error_code).or_default() += rate(*count);
                }
            }
            all.shed += rate(window.shed);
            for (operation, counts) in window.times.iter().filter(|_| Some(&window.bounds) == bounds) {
                add(times.entry(operation).or_default(), counts);
            }
        }
        let bounds = bounds.map_or(&[][..], Vec::as_slice);
        let mut every = Vec::new();
        times.values().for_each(|counts| add(&mut every, counts));
        // A sample names no routes.
        let named = times.iter().filter(|(operation, _)| !operation.route.is_empty());
        let shown = named.filter_map(|(operation, counts)| {
            let rates = operations.get(operation).copied().unwrap_or_default();
            Some(RouteTraffic {
                method: operation.method.clone(),
                route: operation.route.clone(),
                per_second: rounded(rates.all),
                refused_per_second: rounded(rates.refused),
                failed_per_second: rounded(rates.failed),
                latency: latency(bounds, counts)?,
            })
        });
        let mut shown: Vec<RouteTraffic> = shown.collect();
        shown.sort_by(|a, b| {
            b.per_second.total_cmp(&a.per_second).then_with(|| (&a.route, &a.method).cmp(&(&b.route, &b.method)))
        });
        shown.truncate(MAX_ENTRIES);
        let refusals = refusals.into_iter().filter(|(_, rate)| *rate > 0.0);
        let mut refusals: Vec<Refusal> =
            refusals.map(|(code, rate)| Refusal { error_code: code.to_owned(), per_second: rounded(rate) }).collect();
        refusals.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
        refusals.truncate(MAX_ENTRIES);
        Requests {
            per_second: rounded(all.all),
            refused_per_second: rounded(all.refused),
            failed_per_second: rounded(all.failed_otherwise()),
            limited_per_second: rounded(all.limited),
            shed_per_second: rounded(all.shed),
            latency: latency(bounds, &every),
            routes: shown,
            refusals,
        }
    }
}

fn label<'m>(metric: &'m Metric, name: &str) -> &'m str {
    metric.get_label().iter().find(|label| label.name() == name).map_or("", |label| label.value())
}

/// Adds counts of the same bounds.
fn add(sum: &mut Vec<u64>, more: &[u64]) {
    if sum.is_empty() {
        sum.extend_from_slice(more);
        return;
    }
    for (count, more) in sum.iter_mut().zip(more) {
        *count = count.saturating_add(*more);
    }
}

fn latency(bounds: &[f64], counts: &[u64]) -> Option<Latency> {
    Latency::of(bounds, &counts.iter().map(|count| *count as f64).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

    use super::*;

    struct Metrics {
        registry: Registry,
        requests: IntCounterVec,
        durations: HistogramVec,
        shed: IntCounterVec,
    }

    impl Metrics {
        fn new() -> Self {
            Metrics::with(&[0.001, 0.002, 0.1])
        }

        fn with(bounds: &[f64]) -> Self {
            let opts = HistogramOpts::new(DURATIONS, "tested").buckets(bounds.to_vec());
            let labels = ["method", "route", "status", "error_code"];
            let metrics = Metrics {
                registry: Registry::new(),
                requests: IntCounterVec::new(Opts::new(REQUESTS, "tested"), &labels).unwrap(),
                durations: HistogramVec::new(opts, &labels[..2]).unwrap(),
                shed: IntCounterVec::new(Opts::new(SHED, "tested"), &["reason"]).unwrap(),
            };
            metrics.registry.register(Box::new(metrics.requests.clone())).unwrap();
            metrics.registry.register(Box::new(metrics.durations.clone())).unwrap();
            metrics.registry.register(Box::new(metrics.shed.clone())).unwrap();
            metrics
        }

        fn serve(&self, route: &str, status: &str, code: &str, times: u64, seconds: f64) {
            self.requests.with_label_values(&["POST", route, status, code]).inc_by(times);
            for _ in 0..times {
                self.durations.with_label_values(&["POST", route]).observe(seconds);
            }
        }
    }

    #[test]
    fn request_rates_cover_last_seconds_by_class() {
        let (metrics, mut traffic, begun) = (Metrics::new(), Traffic::default(), Instant::now());
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        metrics.serve("/a", "200", "", 1_000, 0.05);
        let mut sample = |at: Instant| {
            let window = traffic.sample(&metrics.registry.gather(), at)?;
            Some(Requests::of(&[&window]))
        };
        assert_eq!(sample(begun), None);
        let idle = sample(at(1)).unwrap();
        assert_eq!(idle, Requests::default());
        metrics.serve("/a", "200", "", 60, 0.001);
        metrics.serve("/a", "409", "SOLD_OUT", 20, 0.001);
        metrics.serve("/a", "429", "TOO_MANY_REQUESTS", 4, 0.001);
        metrics.serve("/b", "500", "INTERNAL_SERVER_ERROR", 2, 5.0);
        metrics.serve("/b", "503", "SERVICE_UNAVAILABLE", 14, 0.001);
        metrics.serve("/ops/feed", "200", "", 50, 0.001);
        metrics.shed.with_label_values(&["tested"]).inc_by(14);
        let busy = sample(at(2)).unwrap();
        let rates = [
            busy.per_second,
            busy.refused_per_second,
            busy.limited_per_second,
            busy.failed_per_second,
            busy.shed_per_second,
        ];
        assert_eq!(rates, [50.0, 10.0, 2.0, 1.0, 7.0]);
        let routes: Vec<_> = busy.routes.iter().map(|route| (route.route.as_str(), route.per_second)).collect();
        assert_eq!(routes, [("/a", 42.0), ("/b", 8.0)]);
        let codes: Vec<_> =
            busy.refusals.iter().map(|refusal| (refusal.error_code.as_str(), refusal.per_second)).collect();
        let expected = [
            ("SOLD_OUT", 10.0),
            ("SERVICE_UNAVAILABLE", 7.0),
            ("TOO_MANY_REQUESTS", 2.0),
            ("INTERNAL_SERVER_ERROR", 1.0),
        ];
        assert_eq!(codes, expected);
        // Half of those below a millisecond, interpolated; times beyond all bounds are at the last one.
        assert_eq!(busy.latency, Some(Latency { p50_ms: 0.51, p95_ms: 0.969, p99_ms: 100.0 }));
        // They count within the window only.
        assert!(sample(at(4)).unwrap().per_second > 0.0);
        assert_eq!(sample(at(6)).unwrap(), Requests::default());
        assert_eq!(traffic.0.len(), 3);
    }

    #[test]
    fn request_rates_bounded_and_reset_ignored() {
        let (metrics, mut traffic, begun) = (Metrics::new(), Traffic::default(), Instant::now());
        assert_eq!(traffic.sample(&metrics.registry.gather(), begun), None);
        for n in 0..40 {
            metrics.serve(&format!("/{n}"), "400", &format!("CODE_{n}"), n + 1, 0.001);
        }
        let busy = traffic.sample(&metrics.registry.gather(), begun + Duration::from_secs(1)).unwrap();
        let busy = Requests::of(&[&busy]);
        assert_eq!((busy.routes.len(), busy.refusals.len()), (MAX_ENTRIES, MAX_ENTRIES));
        assert_eq!((busy.routes[0].route.as_str(), busy.refusals[0].error_code.as_str()), ("/39", "CODE_39"));
        let anew = Metrics::new();
        anew.serve("/39", "400", "CODE_39", 1, 0.001);
        let requests = traffic.sample(&anew.registry.gather(), begun + Duration::from_secs(2)).unwrap();
        let requests = Requests::of(&[&requests]);
        assert!(requests.per_second >= 0.0 && requests.refusals.len() <= 1);
    }

    /// The reported window of a process.
    fn window_of(serve: impl Fn(&Metrics)) -> Window {
        window_with(&[0.001, 0.002, 0.1], serve)
    }

    fn window_with(bounds: &[f64], serve: impl Fn(&Metrics)) -> Window {
        let (metrics, mut traffic, begun) = (Metrics::with(bounds), Traffic::default(), Instant::now());
        traffic.sample(&metrics.registry.gather(), begun);
        serve(&metrics);
        let window = traffic.sample(&metrics.registry.gather(), begun + Duration::from_secs(2)).unwrap();
        let again: Window = serde_json::from_str(&serde_json::to_string(&window).unwrap()).unwrap();
        assert_eq!(again, window, "as it is written, so it is read");
        window
    }

    #[test]
    fn window_of_sample_has_its_rates_and_times_without_routes() {
        let serve = |metrics: &Metrics| {
            metrics.serve("/a", "200", "", 90, 0.001);
            metrics.serve("/b", "503", "SERVICE_UNAVAILABLE", 10, 20.0);
            metrics.shed.with_label_values(&["tested"]).inc_by(8);
        };
        let window = window_with(REQUEST_SECONDS, serve);
        let instance = Instance {
            id: "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned(),
            name: "shop:8080".to_owned(),
            version: "0.2.0".to_owned(),
            started_at: 1,
        };
        let sample = window.sample(&instance, 7);
        assert_eq!(RequestSample::read(&sample.clone().write().unwrap()), Some(sample.clone()));
        assert_eq!((sample.number, sample.ms, sample.shed), (7, 2_000, 8));
        assert_eq!(sample.times, [(1_000, 90), (0, 10)]);
        let (whole, again) = (Requests::of(&[&window]), Requests::of(&[&Window::from(&sample)]));
        assert_eq!(again, Requests { routes: Vec::new(), ..whole });
        let newer = RequestSample { times: vec![(1_234, 5)], ..sample };
        assert_eq!(Requests::of(&[&Window::from(&newer)]).latency, None);
    }

    #[test]
    fn requests_and_times_summed_over_instances() {
        let one = window_of(|metrics| metrics.serve("/a", "200", "", 90, 0.001));
        let other = window_of(|metrics| {
            metrics.serve("/a", "200", "", 10, 0.05);
            metrics.serve("/b", "503", "SERVICE_UNAVAILABLE", 20, 0.001);
            metrics.shed.with_label_values(&["tested"]).inc_by(20);
        });
        let all = Requests::of(&[&one, &other]);
        assert_eq!((all.per_second, all.shed_per_second, all.failed_per_second), (60.0, 10.0, 0.0));
        let (alone, route) = (Requests::of(&[&one]), &all.routes[0]);
        assert_eq!((alone.per_second, route.route.as_str(), route.per_second), (45.0, "/a", 50.0));
        // The slow tenth is that of the other process.
        assert!(alone.latency.unwrap().p99_ms <= 1.0 && route.latency.p50_ms <= 1.0 && route.latency.p99_ms > 50.0);
        // Another version may have other bounds: its rates count, its times can't be added.
        let mut newer = other.clone();
        newer.bounds.pop();
        let mixed = Requests::of(&[&one, &newer]);
        assert_eq!((mixed.per_second, mixed.latency), (60.0, alone.latency));
        assert_eq!(Requests::of(&[]), Requests::default());
        assert_eq!(Requests::of(&[&Window { seconds: 0.0, ..one }]).per_second, 0.0);
    }
}
