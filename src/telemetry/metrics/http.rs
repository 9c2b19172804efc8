//! The metrics of HTTP requests: counts by outcome, and durations.

use std::{
    collections::HashMap,
    sync::{LazyLock, OnceLock, PoisonError, RwLock},
    time::{Duration, Instant},
};

use prometheus::Histogram;

use super::{
    HTTP_ABANDONED, HTTP_CONNECTIONS, HTTP_CONNECTIONS_ACCEPTED, HTTP_IN_FLIGHT, HTTP_REQUESTS, HTTP_SECONDS,
    slots::Slots,
};

/// The labels of methods. Any other method is `other`.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other"];
/// The route label of a request without a route.
pub const NOWHERE: &str = "-";

/// The metrics of a route template. Never dropped: their number is bounded by the routes of the program.
#[derive(Default)]
struct RouteMetrics {
    methods: [OnceLock<Series>; METHODS.len()],
}

/// The metrics of one method on one route.
struct Series {
    method: &'static str,
    route: &'static str,
    seconds: Histogram,
    /// Counters by status and error code.
    answers: Slots<(u16, &'static str), 24>,
}

static ROUTES: LazyLock<RwLock<HashMap<&'static str, &'static RouteMetrics>>> = LazyLock::new(RwLock::default);

fn series(method: &str, route: &str) -> &'static Series {
    let found = ROUTES.read().unwrap_or_else(PoisonError::into_inner).get_key_value(route).map(|(k, v)| (*k, *v));
    let (route, metrics) = found.unwrap_or_else(|| {
        let mut routes = ROUTES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((route, metrics)) = routes.get_key_value(route) {
            return (*route, *metrics);
        }
        let route: &'static str = Box::leak(Box::from(route));
        let metrics: &'static RouteMetrics = Box::leak(Box::default());
        routes.insert(route, metrics);
        (route, metrics)
    });
    let other = METHODS.len() - 1;
    let index = METHODS.iter().position(|label| *label == method).unwrap_or(other);
    metrics.methods[index].get_or_init(|| {
        let method = METHODS[index];
        Series { method, route, seconds: HTTP_SECONDS.with_label_values(&[method, route]), answers: Slots::default() }
    })
}

/// A request in flight, from its head to the head of its reply. A request that is dropped unanswered counts as
/// abandoned by its client.
pub struct Running {
    series: &'static Series,
    began: Instant,
    answered: bool,
}

impl Running {
    /// `route`: a template of the router, or [`NOWHERE`]. It is leaked, so it must never be the path of a request.
    pub fn begin(began: Instant, method: &str, route: &str) -> Self {
        HTTP_IN_FLIGHT.inc();
        Running { series: series(method, route), began, answered: false }
    }

    /// Counts the request. `error_code`: a code of the table of errors, or empty. `waited`: a part of the time that does not count.
    pub fn answered(mut self, status: u16, error_code: &'static str, waited: Duration) {
        let Series { method, route, seconds, answers } = self.series;
        seconds.observe(self.began.elapsed().saturating_sub(waited).as_secs_f64());
        answers.count(
            |known| *known == (status, error_code),
            || {
                (
                    (status, error_code),
                    HTTP_REQUESTS.with_label_values(&[method, route, status.to_string().as_str(), error_code]),
                )
            },
        );
        self.answered = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        HTTP_IN_FLIGHT.dec();
        if !self.answered {
            HTTP_ABANDONED.inc();
        }
    }
}

/// Counts a client's connection until it is dropped.
pub struct Connected(());

impl Connected {
    pub fn accept() -> Self {
        HTTP_CONNECTIONS_ACCEPTED.inc();
        HTTP_CONNECTIONS.inc();
        Connected(())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        HTTP_CONNECTIONS.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(labels: [&str; 4]) -> u64 {
        HTTP_REQUESTS.with_label_values(&labels).get()
    }

    #[test]
    fn requests_counted_by_outcome() {
        let route = "/metrics-test/{id}";
        for (method, status, code) in [
            ("GET", 200, ""),
            ("GET", 404, "USER_NOT_FOUND"),
            ("GET", 200, ""),
            ("PROPFIND", 405, "METHOD_NOT_ALLOWED"),
        ] {
            Running::begin(Instant::now(), method, route).answered(status, code, Duration::ZERO);
        }
        assert_eq!(counted(["GET", route, "200", ""]), 2);
        assert_eq!(counted(["GET", route, "404", "USER_NOT_FOUND"]), 1);
        assert_eq!(counted(["other", route, "405", "METHOD_NOT_ALLOWED"]), 1);
        assert_eq!(HTTP_SECONDS.with_label_values(&["GET", route]).get_sample_count(), 3);
        let an_hour = Duration::from_secs(3600);
        Running::begin(Instant::now() - an_hour, "HEAD", route).answered(200, "", an_hour);
        assert!(HTTP_SECONDS.with_label_values(&["HEAD", route]).get_sample_sum() < 3600.0, "the wait does not count");
        let before = HTTP_ABANDONED.get();
        drop(Running::begin(Instant::now(), "GET", route));
        assert!(HTTP_ABANDONED.get() > before);
        assert_eq!(HTTP_SECONDS.with_label_values(&["GET", route]).get_sample_count(), 3);
    }
}
