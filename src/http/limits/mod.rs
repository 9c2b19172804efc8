//! Who is let in: the limits on clients, users and requests under way.
//!
//! Owns who a request comes from ([`address`]), the token buckets ([`buckets`]), the requests under way ([`gate`]), the
//! limits on connections ([`connections`]), what requests cost ([`costs`]), and which of these hold for which [`Traffic`]. When they are asked is left to
//! [`edge`](super::middleware::edge) (before a request is looked at), [`body`](super::extract::write) and [`params`](super::extract::params) (when it says
//! for whom it acts) and [`server`](super::server) (connections).

pub mod address;
mod buckets;
pub mod connections;
pub mod costs;
mod in_flight;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    extract::FromRequestParts,
    http::{Extensions, HeaderMap, request::Parts},
};

use self::{
    buckets::Buckets,
    in_flight::{Gate, Outside, Pass},
};
use super::error::{ApiError, Code};
use crate::{
    config::{LimitsConfig, TrustedProxies},
    model::UserId,
    telemetry::metrics,
    worker::Workers,
};

/// Requests of operators under way at once: they are few, and long ones are among them.
const MOST_OF_OPERATORS: u32 = 256;
/// The same for balancers and scrapers: more than one client has connections, so that none takes up all of it.
const MOST_PROBES: u32 = 4096;
/// How often full buckets are forgotten, and how many times until memory is given back.
const TIDY_EVERY: Duration = Duration::from_secs(1);
const SHRINK_EVERY: u32 = 60;

/// Kinds of requests, by their path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Customers': the public API and its documentation, and whatever does not exist.
    Public,
    /// `/admin` and `/ops`.
    Operators,
    /// `/metrics`.
    Metrics,
    /// `/healthz` and `/readyz`.
    Health,
}

impl Traffic {
    /// What a request to this path is.
    pub fn of(path: &str) -> Self {
        let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match path {
            "/healthz" | "/readyz" => Traffic::Health,
            _ if path.starts_with("/api/") => Traffic::Public,
            _ if below("/metrics") => Traffic::Metrics,
            _ if below("/admin") || below("/ops") => Traffic::Operators,
            _ => Traffic::Public,
        }
    }
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Everything: there is one listener.
    Both,
    /// What is the internet's; the rest has a listener of its own.
    Public,
    /// What is not the internet's, and health.
    Operators,
}

impl Side {
    /// Whether such requests are answered here.
    pub fn serves(self, traffic: Traffic) -> bool {
        match self {
            Side::Both => true,
            Side::Public => matches!(traffic, Traffic::Public | Traffic::Health),
            Side::Operators => traffic != Traffic::Public,
        }
    }
}

/// The limits of a process, and what they know of clients and users.
pub struct Limits {
    proxies: TrustedProxies,
    /// `None`: no limit; so for users.
    clients: Option<Buckets>,
    users: Option<Buckets>,
    /// Wrong tokens of operators and scrapers.
    guesses: Option<Buckets>,
    public: Gate,
    operators: Gate,
    probes: Gate,
    /// A proxy that is not trusted was seen.
    warned: AtomicBool,
}

impl Limits {
    pub fn new(config: &LimitsConfig) -> Self {
        let keys = config.rate_limit_keys;
        Limits {
            proxies: config.trusted_proxies.clone(),
            clients: Buckets::new(config.rate_limit_client_per_second, config.rate_limit_client_burst, keys),
            users: Buckets::new(config.rate_limit_user_per_second, config.rate_limit_user_burst, keys),
            guesses: Buckets::per_minute(config.rate_limit_guesses_per_minute, keys),
            public: Gate::new(config.max_in_flight),
            operators: Gate::new(MOST_OF_OPERATORS),
            probes: Gate::new(MOST_PROBES),
            warned: AtomicBool::new(false),
        }
    }

    /// Forgets who has all tokens again, from time to time, until `stop`.
    pub fn keep_tidy(self: &Arc<Self>, workers: &Workers) {
        if self.buckets().next().is_none() {
            return;
        }
        let (this, mut count) = (self.clone(), 0_u32);
        workers.every("limits", TIDY_EVERY, move || {
            count = count.wrapping_add(1);
            let (this, shrink) = (this.clone(), count % SHRINK_EVERY == 0);
            async move {
                // On a thread of its own: it may take a few milliseconds.
                if let Err(error) = tokio::task::spawn_blocking(move || this.tidy(shrink)).await {
                    tracing::error!(%error, "the limits keep who could be forgotten");
                }
            }
        });
    }

    fn tidy(&self, shrink: bool) {
        for buckets in self.buckets() {
            buckets.forget_full();
            if shrink {
                buckets.shrink();
            }
        }
    }

    /// Whom a request comes from.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let client = address::client(peer, headers, &self.proxies);
        if address::is_private(client) && !self.warned.load(Relaxed) {
            self.look_for_proxy(client, headers);
        }
        client
    }

    /// Whoever runs an unknown proxy should hear of it: it is one client, and all behind it share one limit.
    #[cold]
    fn look_for_proxy(&self, peer: IpAddr, headers: &HeaderMap) {
        let forwards = headers.contains_key(crate::http::headers::X_FORWARDED_FOR) && !self.proxies.contains(peer);
        if forwards && self.clients.is_some() && !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                %peer,
                "requests come through a proxy that is not in TRUSTED_PROXIES: all of its clients share one limit"
            );
        }
    }

    /// Lets a request to this route in. One to the public API costs its client tokens ([`costs`]).
    ///
    /// # Errors
    /// 429: the client has not enough of them. 503: too many are under way.
    pub fn admit(&self, traffic: Traffic, client: IpAddr, route: &str) -> Result<Pass<'_>, ApiError> {
        if traffic == Traffic::Public && self.clients.is_some() {
            take(self.clients.as_ref(), || address::key(client), costs::of_route(route), "client")?;
        }
        self.gate(traffic).enter().ok_or_else(|| self.shed())
    }

    /// Takes more tokens of a client whose request turns out to be a large one, before it is carried out.
    ///
    /// # Errors
    /// 429: it has not enough of them.
    pub fn admit_more(&self, client: IpAddr, tokens: u32) -> Result<(), ApiError> {
        take(self.clients.as_ref(), || address::key(client), tokens, "client")
    }

    /// Takes tokens of a client whose request turned out to be dear, also those that it does not have yet.
    pub fn charge(&self, client: IpAddr, tokens: u32) {
        if let Some(clients) = self.clients.as_ref().filter(|_| tokens > 0) {
            clients.charge(address::key(client), tokens);
        }
    }

    /// Judges a secret that a client presents; `None`: it is wrong. Wrong ones cost the client a token of a bucket of their
    /// own, and while that is empty nothing is judged: a right guess is then refused as a wrong one is, so that guessing is
    /// slow. Nobody else's bucket is touched. (As many more are judged as there are threads at it in the same moment.)
    ///
    /// # Errors
    /// 429: not judged. 401: it is wrong.
    pub fn judge<T>(&self, client: IpAddr, judge: impl FnOnce() -> Option<T>) -> Result<T, ApiError> {
        let Some(guesses) = &self.guesses else { return judge().ok_or(Code::Unauthorized.into()) };
        let key = address::key(client);
        guesses.has_token(key).map_err(|wait| too_many("operator", wait))?;
        judge().ok_or_else(|| {
            guesses.charge(key, 1);
            Code::Unauthorized.into()
        })
    }

    /// What an operators' request that proved nobody's right costs its client: what any request does.
    ///
    /// # Errors
    /// 429: the client has no token left.
    pub fn admit_stranger(&self, client: IpAddr) -> Result<(), ApiError> {
        take(self.clients.as_ref(), || address::key(client), 1, "operator")
    }

    /// Takes tokens of the user's for whom a request acts.
    ///
    /// # Errors
    /// 429: there are not enough.
    pub fn admit_user(&self, user: UserId, tokens: u32) -> Result<(), ApiError> {
        take(self.users.as_ref(), || user.get().cast_unsigned(), tokens, "user")
    }

    /// For a request that waits for its client rather than works.
    pub fn step_out(&self, traffic: Traffic) -> Outside<'_> {
        self.gate(traffic).step_out()
    }

    /// A request that can't be worked on: it is one too many.
    pub fn shed(&self) -> ApiError {
        metrics::SHED.with_label_values(&["overload"]).inc();
        Code::Unavailable.into()
    }

    /// Clients and users that are told apart now.
    pub fn keys(&self) -> usize {
        self.buckets().map(Buckets::len).sum()
    }

    /// Requests of the public API under way; 0 without a limit.
    pub fn in_flight(&self) -> i64 {
        self.public.inside()
    }

    fn buckets(&self) -> impl Iterator<Item = &Buckets> {
        [&self.clients, &self.users, &self.guesses].into_iter().flatten()
    }

    fn gate(&self, traffic: Traffic) -> &Gate {
        match traffic {
            Traffic::Public => &self.public,
            Traffic::Operators => &self.operators,
            Traffic::Metrics | Traffic::Health => &self.probes,
        }
    }
}

fn take(buckets: Option<&Buckets>, key: impl FnOnce() -> u64, tokens: u32, kind: &str) -> Result<(), ApiError> {
    let Some(buckets) = buckets else { return Ok(()) };
    buckets.take(key(), tokens).map_err(|wait| too_many(kind, wait))
}

#[cold]
fn too_many(kind: &str, wait: Duration) -> ApiError {
    metrics::RATE_LIMITED.with_label_values(&[kind]).inc();
    ApiError::too_many(wait)
}

/// The client of a request that is not to the public API, in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub IpAddr);

impl Client {
    /// That of a request with these extensions; outside of [`edge`](super::middleware::edge), the address of nobody.
    pub fn of(extensions: &Extensions) -> IpAddr {
        extensions.get::<Client>().map_or(Ipv4Addr::UNSPECIFIED.into(), |Client(address)| *address)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Client(Client::of(&parts.extensions)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use axum::{http::header::RETRY_AFTER, response::IntoResponse};

    use super::*;

    fn limits(change: impl FnOnce(&mut LimitsConfig)) -> Limits {
        let mut config = LimitsConfig { rate_limit_keys: 1000, ..LimitsConfig::off() };
        change(&mut config);
        Limits::new(&config)
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));

    #[test]
    fn path_classified() {
        for (traffic, paths) in [
            (Traffic::Health, &["/healthz", "/readyz"][..]),
            (Traffic::Metrics, &["/metrics", "/metrics/"]),
            (Traffic::Operators, &["/admin", "/admin/", "/admin/v1/users", "/ops", "/ops/", "/ops/feed"]),
            (
                Traffic::Public,
                &[
                    "/",
                    "",
                    "*",
                    "/api/v1/orders",
                    "/administrators",
                    "/opsx",
                    "/metricsx",
                    "/healthz/",
                    "/v3/api-docs",
                    "//admin",
                ],
            ),
        ] {
            for path in paths {
                assert_eq!(Traffic::of(path), traffic, "{path}");
            }
        }
    }

    #[test]
    fn listener_serves_its_own_routes() {
        let all = [Traffic::Public, Traffic::Operators, Traffic::Metrics, Traffic::Health];
        assert_eq!(all.map(|traffic| Side::Both.serves(traffic)), [true; 4]);
        assert_eq!(all.map(|traffic| Side::Public.serves(traffic)), [true, false, false, true]);
        assert_eq!(all.map(|traffic| Side::Operators.serves(traffic)), [false, true, true, true]);
    }

    #[test]
    fn tokens_charged_for_public_api_only() {
        let limits = limits(|config| {
            (config.rate_limit_client_per_second, config.rate_limit_client_burst) = (1, 2);
        });
        for _ in 0..2 {
            assert!(limits.admit(Traffic::Public, CLIENT, "").is_ok());
        }
        let refused = limits.admit(Traffic::Public, CLIENT, "").err().unwrap().into_response();
        assert_eq!((refused.status().as_u16(), &refused.headers()[RETRY_AFTER]), (429, &"1".parse().unwrap()));
        for traffic in [Traffic::Health, Traffic::Metrics, Traffic::Operators] {
            assert!((0..1000).all(|_| limits.admit(traffic, CLIENT, "").is_ok()), "{traffic:?}");
        }
        assert!(limits.admit_stranger(CLIENT).is_err(), "a guess costs what any request does");
        assert!(limits.admit(Traffic::Public, "198.51.100.8".parse().unwrap(), "").is_ok());
        assert_eq!(limits.keys(), 2);
    }

    #[test]
    fn expensive_request_charged_more() {
        let limits = limits(|config| {
            (config.rate_limit_client_per_second, config.rate_limit_client_burst) = (1, 20);
        });
        assert!(limits.admit(Traffic::Public, CLIENT, "/v3/api-docs").is_ok());
        assert!(limits.admit_more(CLIENT, 14).is_ok());
        assert!(limits.admit(Traffic::Public, CLIENT, "/api/v1/orders/{orderId}").is_err(), "it costs two");
        assert!(limits.admit(Traffic::Public, CLIENT, "/api/v1/orders").is_ok());
        limits.charge(CLIENT, 2);
        let refused = limits.admit(Traffic::Public, CLIENT, "").err().unwrap().into_response();
        assert_eq!(refused.headers()[RETRY_AFTER], "3", "two are owed");
    }

    /// `None`: 429, without being judged.
    fn guess(limits: &Limits, client: IpAddr, right: bool) -> Option<bool> {
        let mut judged = false;
        let answer = limits.judge(client, || {
            judged = true;
            right.then_some(())
        });
        match answer.map_err(|error| error.code()) {
            Ok(()) => Some(true),
            Err(Code::Unauthorized) => Some(false),
            Err(Code::TooManyRequests) if !judged => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn token_guess_not_judged_when_client_over_limit() {
        let limits = limits(|config| config.rate_limit_guesses_per_minute = 3);
        let other = "198.51.100.8".parse().unwrap();
        // Right ones cost nothing.
        assert!((0..100).all(|_| guess(&limits, CLIENT, true) == Some(true)));
        for _ in 0..3 {
            assert_eq!(guess(&limits, CLIENT, false), Some(false));
        }
        for right in [false, true] {
            assert_eq!(guess(&limits, CLIENT, right), None);
        }
        assert_eq!(guess(&limits, other, true), Some(true), "nobody else is locked out");
        assert!(limits.admit(Traffic::Public, CLIENT, "").is_ok());
        let off = Limits::new(&LimitsConfig::off());
        assert!((0..1_000).all(|_| guess(&off, CLIENT, false) == Some(false)));
    }

    #[test]
    fn user_limited_apart_from_client() {
        let limits = limits(|config| (config.rate_limit_user_per_second, config.rate_limit_user_burst) = (1, 3));
        let (one, other) = (UserId::new(1).unwrap(), UserId::new(2).unwrap());
        assert_eq!((0..10).filter(|_| limits.admit_user(one, 1).is_ok()).count(), 3);
        assert!(limits.admit_user(other, 1).is_ok());
        assert!((0..10).all(|_| limits.admit(Traffic::Public, CLIENT, "").is_ok()));
    }

    #[test]
    fn public_request_shed_when_full_and_operators_admitted() {
        let limits = limits(|config| config.max_in_flight = 1);
        let inside = limits.admit(Traffic::Public, CLIENT, "").unwrap();
        let refused = limits.admit(Traffic::Public, CLIENT, "").err().unwrap().into_response();
        assert_eq!((refused.status().as_u16(), &refused.headers()[RETRY_AFTER]), (503, &"1".parse().unwrap()));
        for traffic in [Traffic::Health, Traffic::Metrics, Traffic::Operators] {
            assert!(limits.admit(traffic, CLIENT, "").is_ok(), "{traffic:?}");
        }
        drop(inside);
        assert!(limits.admit(Traffic::Public, CLIENT, "").is_ok());
        assert_eq!(limits.in_flight(), 0);
    }

    #[test]
    fn limits_absent_when_off() {
        let limits = Limits::new(&LimitsConfig::off());
        let user = UserId::new(1).unwrap();
        assert!(
            (0..100_000)
                .all(|_| limits.admit(Traffic::Public, CLIENT, "").is_ok() && limits.admit_user(user, 1).is_ok())
        );
        assert_eq!(limits.keys(), 0);
    }

    #[test]
    fn unknown_proxy_logged_once() {
        let forwarded = |limits: &Limits, peer: &str| {
            let headers =
                HeaderMap::from_iter([(crate::http::headers::X_FORWARDED_FOR, "198.51.100.7".parse().unwrap())]);
            limits.client(peer.parse().unwrap(), &headers);
            limits.warned.load(Relaxed)
        };
        let limits = limits(|config| {
            config.rate_limit_client_per_second = 1;
            config.trusted_proxies = "10.0.0.1".parse().unwrap();
        });
        assert!(!forwarded(&limits, "203.0.113.1"), "that is anybody");
        assert!(!forwarded(&limits, "10.0.0.1"), "that is known");
        limits.client("10.0.0.2".parse().unwrap(), &HeaderMap::new());
        assert!(!limits.warned.load(Relaxed), "that is a neighbour");
        assert!(forwarded(&limits, "10.0.0.2"));
    }
}
