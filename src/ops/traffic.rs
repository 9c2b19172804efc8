//! Requests, as the process's own metrics count them: how many, of which kind and how long they took, over the last seconds.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use prometheus::proto::{Metric, MetricFamily};

use super::snapshot::{Latency, Refusal, Requests, Route, rounded};

const REQUESTS: &str = "firstcome_http_requests_total";
const DURATIONS: &str = "firstcome_http_request_duration_seconds";
const SHED: &str = "firstcome_shed_total";

/// Over how long rates are taken.
const WINDOW: Duration = Duration::from_secs(3);
/// What is shown of each list.
const MOST: usize = 12;
/// Where the page's own requests are, which nobody wants to see there.
const OWN: &str = "/ops";

/// The counters, time and again.
#[derive(Default)]
pub struct Traffic(VecDeque<Sample>);

/// The counters as of one moment.
struct Sample {
    at: Instant,
    /// Requests.
    counts: HashMap<Kind, f64>,
    /// By method and route: how many took at most so many seconds, for ever more seconds; the last: any.
    times: HashMap<(String, String), Vec<(f64, u64)>>,
    shed: f64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    method: String,
    route: String,
    status: String,
    error_code: String,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    all: f64,
    refused: f64,
    failed: f64,
    limited: f64,
}

impl Traffic {
    /// Takes note of the counters. What has happened since some seconds before; `None` when there was no earlier look.
    pub fn look(&mut self, families: &[MetricFamily], at: Instant) -> Option<Requests> {
        let now = Sample::new(families, at);
        let recent = |sample: Option<&Sample>| sample.is_some_and(|sample| at.duration_since(sample.at) >= WINDOW);
        // The last of those that are old enough is what is compared with.
        while recent(self.0.get(1)) {
            self.0.pop_front();
        }
        let requests = self.0.front().map(|before| now.since(before));
        self.0.push_back(now);
        requests
    }
}

impl Sample {
    fn new(families: &[MetricFamily], at: Instant) -> Self {
        let metrics = |name: &str| {
            let family = families.iter().find(|family| family.name() == name);
            family.map_or(&[][..], |family| family.get_metric())
        };
        let shop = |metric: &&Metric| !label(metric, "route").starts_with(OWN);
        let count = |metric: &Metric| {
            let label = |name: &str| label(metric, name).to_owned();
            let kind = Kind {
                method: label("method"),
                route: label("route"),
                status: label("status"),
                error_code: label("error_code"),
            };
            (kind, metric.get_counter().get_value())
        };
        let time = |metric: &Metric| {
            let histogram = metric.get_histogram();
            let buckets = histogram.get_bucket().iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
            let finite = buckets.filter(|(upper, _)| upper.is_finite());
            let buckets = finite.chain([(f64::INFINITY, histogram.get_sample_count())]).collect();
            ((label(metric, "method").to_owned(), label(metric, "route").to_owned()), buckets)
        };
        Sample {
            at,
            counts: metrics(REQUESTS).iter().filter(shop).map(count).collect(),
            times: metrics(DURATIONS).iter().filter(shop).map(time).collect(),
            shed: metrics(SHED).iter().map(|metric| metric.get_counter().get_value()).sum(),
        }
    }

    fn since(&self, before: &Sample) -> Requests {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let rate = |count: f64| if seconds > 0.0 { rounded(count.max(0.0) / seconds) } else { 0.0 };
        let (mut all, mut routes) = (Counts::default(), BTreeMap::<(&str, &str), Counts>::new());
        let mut refusals = BTreeMap::<&str, f64>::new();
        for (kind, count) in &self.counts {
            let count = count - before.counts.get(kind).copied().unwrap_or(0.0);
            all.add(&kind.status, count);
            routes.entry((&kind.method, &kind.route)).or_default().add(&kind.status, count);
            if !kind.error_code.is_empty() {
                *refusals.entry(&kind.error_code).or_default() += count;
            }
        }
        let shed = self.shed - before.shed;
        let (mut every, mut shown) = (Vec::new(), Vec::new());
        for ((method, route), buckets) in &self.times {
            let was = before.times.get(&(method.clone(), route.clone()));
            let buckets = less(buckets, was);
            add(&mut every, &buckets);
            let Some(latency) = latency(&buckets) else { continue };
            let counts = routes.get(&(method.as_str(), route.as_str())).copied().unwrap_or_default();
            shown.push(Route {
                method: method.clone(),
                route: route.clone(),
                per_second: rate(counts.all),
                refused_per_second: rate(counts.refused),
                failed_per_second: rate(counts.failed),
                latency,
            });
        }
        shown.sort_by(|a, b| {
            b.per_second.total_cmp(&a.per_second).then_with(|| (&a.route, &a.method).cmp(&(&b.route, &b.method)))
        });
        shown.truncate(MOST);
        let refusals = refusals.into_iter().filter(|(_, count)| *count > 0.0);
        let mut refusals: Vec<Refusal> =
            refusals.map(|(code, count)| Refusal { error_code: code.to_owned(), per_second: rate(count) }).collect();
        refusals.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
        refusals.truncate(MOST);
        Requests {
            per_second: rate(all.all),
            refused_per_second: rate(all.refused),
            failed_per_second: rate(all.failed - shed),
            limited_per_second: rate(all.limited),
            shed_per_second: rate(shed),
            latency: latency(&every),
            routes: shown,
            refusals,
        }
    }
}

impl Counts {
    fn add(&mut self, status: &str, count: f64) {
        self.all += count;
        match (status, status.as_bytes().first()) {
            ("429", _) => self.limited += count,
            (_, Some(b'4')) => self.refused += count,
            (_, Some(b'5')) => self.failed += count,
            _ => {}
        }
    }
}

fn label<'m>(metric: &'m Metric, name: &str) -> &'m str {
    metric.get_label().iter().find(|label| label.name() == name).map_or("", |label| label.value())
}

/// What has been added to the buckets.
fn less(now: &[(f64, u64)], before: Option<&Vec<(f64, u64)>>) -> Vec<(f64, u64)> {
    let was = |place: usize| before.and_then(|before| before.get(place)).map_or(0, |(_, count)| *count);
    now.iter().enumerate().map(|(place, (upper, count))| (*upper, count.saturating_sub(was(place)))).collect()
}

/// Adds buckets of the same bounds.
fn add(sum: &mut Vec<(f64, u64)>, more: &[(f64, u64)]) {
    if sum.is_empty() {
        sum.extend_from_slice(more);
        return;
    }
    for ((_, count), (_, more)) in sum.iter_mut().zip(more) {
        *count += more;
    }
}

/// `None` where there is nothing in the buckets.
fn latency(buckets: &[(f64, u64)]) -> Option<Latency> {
    let ms = |share| Some(rounded(quantile(buckets, share)? * 1000.0));
    Some(Latency { p50_ms: ms(0.5)?, p95_ms: ms(0.95)?, p99_ms: ms(0.99)? })
}

/// As `histogram_quantile` of Prometheus: evenly spread within a bucket; beyond the last finite bound, that bound.
fn quantile(buckets: &[(f64, u64)], share: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
    let wanted = share * all as f64;
    let (mut lower, mut below) = (0.0, 0);
    for (upper, count) in buckets {
        if *count as f64 >= wanted && *count > below {
            let within = (wanted - below as f64) / (count - below) as f64;
            return Some(if upper.is_finite() { lower + (upper - lower) * within } else { lower });
        }
        if upper.is_finite() {
            (lower, below) = (*upper, *count);
        }
    }
    Some(lower)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
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
            let opts = HistogramOpts::new(DURATIONS, "tested").buckets(vec![0.001, 0.002, 0.1]);
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
    fn rates_are_of_the_last_seconds_and_of_each_kind() {
        let (metrics, mut traffic, begun) = (Metrics::new(), Traffic::default(), Instant::now());
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        metrics.serve("/a", "200", "", 1_000, 0.05);
        assert_eq!(traffic.look(&metrics.registry.gather(), begun), None);
        let idle = traffic.look(&metrics.registry.gather(), at(1)).unwrap();
        assert_eq!(idle, Requests::default());
        metrics.serve("/a", "200", "", 60, 0.001);
        metrics.serve("/a", "409", "SOLD_OUT", 20, 0.001);
        metrics.serve("/a", "429", "TOO_MANY_REQUESTS", 4, 0.001);
        metrics.serve("/b", "500", "INTERNAL_SERVER_ERROR", 2, 5.0);
        metrics.serve("/b", "503", "SERVICE_UNAVAILABLE", 14, 0.001);
        metrics.serve("/ops/feed", "200", "", 50, 0.001);
        metrics.shed.with_label_values(&["tested"]).inc_by(14);
        let busy = traffic.look(&metrics.registry.gather(), at(2)).unwrap();
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
        // Half of those below a millisecond, spread evenly; what took long beyond all bounds is at the last one.
        assert_eq!(busy.latency, Some(Latency { p50_ms: 0.51, p95_ms: 0.969, p99_ms: 100.0 }));
        // They count for as long as the window is, and no longer.
        assert!(traffic.look(&metrics.registry.gather(), at(4)).unwrap().per_second > 0.0);
        assert_eq!(traffic.look(&metrics.registry.gather(), at(6)).unwrap(), Requests::default());
        assert_eq!(traffic.0.len(), 3);
    }

    #[test]
    fn lists_are_bounded_and_a_counter_that_begins_anew_is_no_rate() {
        let (metrics, mut traffic, begun) = (Metrics::new(), Traffic::default(), Instant::now());
        assert_eq!(traffic.look(&metrics.registry.gather(), begun), None);
        for n in 0..40 {
            metrics.serve(&format!("/{n}"), "400", &format!("CODE_{n}"), n + 1, 0.001);
        }
        let busy = traffic.look(&metrics.registry.gather(), begun + Duration::from_secs(1)).unwrap();
        assert_eq!((busy.routes.len(), busy.refusals.len()), (MOST, MOST));
        assert_eq!((busy.routes[0].route.as_str(), busy.refusals[0].error_code.as_str()), ("/39", "CODE_39"));
        let anew = Metrics::new();
        anew.serve("/39", "400", "CODE_39", 1, 0.001);
        let requests = traffic.look(&anew.registry.gather(), begun + Duration::from_secs(2)).unwrap();
        assert!(requests.per_second >= 0.0 && requests.refusals.len() <= 1);
    }

    #[test]
    fn quantiles_are_between_the_bounds() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0), (f64::INFINITY, 0)], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0), (3.0, 4), (f64::INFINITY, 4)], 0.5), Some(2.0));
        assert_eq!(quantile(&[(1.0, 1), (3.0, 1), (f64::INFINITY, 9)], 0.99), Some(3.0));
    }
}
