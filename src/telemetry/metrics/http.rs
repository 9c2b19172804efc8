//! Requests: how many were answered how, and how long that took.

use std::{
    collections::HashMap,
    sync::{LazyLock, OnceLock, PoisonError, RwLock},
    time::Instant,
};

use prometheus::Histogram;

use super::{
    HTTP_ABANDONED, HTTP_CONNECTIONS, HTTP_CONNECTIONS_ACCEPTED, HTTP_IN_FLIGHT, HTTP_REQUESTS, HTTP_SECONDS,
    slots::Slots,
};

/// Methods that have a label of their own; what else comes is `other`.
const METHODS: [&str; 8] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "other"];
/// The route of a request to nowhere.
pub const NOWHERE: &str = "-";

/// What is kept of a route template. Never dropped: there are as many as the program has routes.
#[derive(Default)]
struct Route {
    methods: [OnceLock<Series>; METHODS.len()],
}

/// The metrics of one method on one route.
struct Series {
    method: &'static str,
    route: &'static str,
    seconds: Histogram,
    /// By status and error code.
    answers: Slots<(u16, &'static str), 24>,
}

static ROUTES: LazyLock<RwLock<HashMap<&'static str, &'static Route>>> = LazyLock::new(RwLock::default);

fn series(method: &str, route: &str) -> &'static Series {
    let known = ROUTES.read().unwrap_or_else(PoisonError::into_inner).get_key_value(route).map(|(k, v)| (*k, *v));
    let (route, of) = known.unwrap_or_else(|| {
        let mut routes = ROUTES.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, of)) = routes.get_key_value(route) {
            return (*known, *of);
        }
        let name: &'static str = Box::leak(Box::from(route));
        let of: &'static Route = Box::leak(Box::default());
        routes.insert(name, of);
        (name, of)
    });
    let other = METHODS.len() - 1;
    let place = METHODS.iter().position(|known| *known == method).unwrap_or(other);
    of.methods[place].get_or_init(|| {
        let method = METHODS[place];
        Series { method, route, seconds: HTTP_SECONDS.with_label_values(&[method, route]), answers: Slots::default() }
    })
}

/// A request that is being worked on, from its head to the head of its reply. Dropped before it is answered, its client went
/// away.
pub struct Running {
    series: &'static Series,
    began: Instant,
    answered: bool,
}

impl Running {
    /// `route` is a template that the program has, or [`NOWHERE`]: it is kept for ever.
    pub fn begin(began: Instant, method: &str, route: &str) -> Self {
        HTTP_IN_FLIGHT.inc();
        Running { series: series(method, route), began, answered: false }
    }

    /// `error_code`: that of the table of errors, or empty.
    pub fn answered(mut self, status: u16, error_code: &'static str) {
        let Series { method, route, seconds, answers } = self.series;
        seconds.observe(self.began.elapsed().as_secs_f64());
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

/// A client's connection, as long as it is open.
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
            Running::begin(Instant::now(), method, route).answered(status, code);
        }
        assert_eq!(counted(["GET", route, "200", ""]), 2);
        assert_eq!(counted(["GET", route, "404", "USER_NOT_FOUND"]), 1);
        assert_eq!(counted(["other", route, "405", "METHOD_NOT_ALLOWED"]), 1);
        assert_eq!(HTTP_SECONDS.with_label_values(&["GET", route]).get_sample_count(), 3);
        let before = HTTP_ABANDONED.get();
        drop(Running::begin(Instant::now(), "GET", route));
        assert!(HTTP_ABANDONED.get() > before);
        assert_eq!(HTTP_SECONDS.with_label_values(&["GET", route]).get_sample_count(), 3);
    }
}
