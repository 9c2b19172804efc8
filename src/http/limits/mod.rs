//! Limits on clients, users and requests in flight.
//!
//! Owns the address of a client ([`address`]), the token buckets ([`buckets`]), the requests in flight ([`in_flight`]), the
//! connections of a client ([`connections`]), the costs of requests ([`costs`]), and the limits that each [`RequestClass`] has.
//!
//! The [pipeline](super::middleware::pipeline) applies the limits that need no user; the [extractors](super::extract) apply those
//! of the user for whom a request acts; the [server](super::server) applies those on connections.

pub mod address;
mod buckets;
pub mod connections;
pub mod costs;
mod in_flight;

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{Extensions, HeaderMap, request::Parts},
};

pub use self::in_flight::Permit;
use self::{
    buckets::Buckets,
    in_flight::{InFlight, Suspended},
};
use super::{
    error::{ApiError, Code},
    headers::X_FORWARDED_FOR,
    request_class::RequestClass,
};
use crate::{
    config::{LimitsConfig, TrustedProxies},
    model::UserId,
    telemetry::metrics,
    worker::{Worker, Workers},
};

/// Bounds the operators' requests in flight: they are few, and some take long.
const MAX_OPERATORS_IN_FLIGHT: u32 = 256;
/// Bounds the probes in flight: more than one client has connections, so that none uses up the bound.
const MAX_PROBES_IN_FLIGHT: u32 = 4096;
/// The interval in which full buckets are forgotten, and how many times until memory is given back.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);
const TIDIES_PER_SHRINK: u32 = 60;

/// The limits of a process, with the buckets of its clients and users.
pub struct Limits {
    proxies: TrustedProxies,
    /// `None`: no limit; so for users.
    clients: Option<Buckets>,
    users: Option<Buckets>,
    /// Wrong tokens of operators and scrapers.
    guesses: Option<Buckets>,
    public: InFlight,
    operators: InFlight,
    probes: InFlight,
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
            public: InFlight::new(config.max_in_flight),
            operators: InFlight::new(MAX_OPERATORS_IN_FLIGHT),
            probes: InFlight::new(MAX_PROBES_IN_FLIGHT),
            warned: AtomicBool::new(false),
        }
    }

    /// Forgets full buckets, from time to time.
    pub fn keep_tidy(self: &Arc<Self>, workers: &Workers) {
        if self.buckets().next().is_none() {
            return;
        }
        let (this, mut count) = (self.clone(), 0_u32);
        workers.every(Worker::Limits, TIDY_INTERVAL, move || {
            count = count.wrapping_add(1);
            let (this, shrink) = (this.clone(), count % TIDIES_PER_SHRINK == 0);
            async move {
                // On a thread of its own: it may take a few milliseconds.
                if let Err(error) = tokio::task::spawn_blocking(move || this.tidy(shrink)).await {
                    tracing::error!(%error, "full buckets are not forgotten");
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

    /// The client of a request with these extensions and headers; unspecified outside of a server.
    pub fn client_of(&self, extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
        let peer = extensions.get::<ConnectInfo<SocketAddr>>();
        self.client(peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |ConnectInfo(peer)| peer.ip()), headers)
    }

    /// The client of a request that comes from `peer`.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let client = address::client(peer, headers, &self.proxies);
        if address::is_private(client) && !self.warned.load(Relaxed) {
            self.look_for_proxy(client, headers);
        }
        client
    }

    /// Warns of an unknown proxy: it counts as one client, so that all clients behind it share one limit.
    #[cold]
    fn look_for_proxy(&self, peer: IpAddr, headers: &HeaderMap) {
        let forwards = headers.contains_key(X_FORWARDED_FOR) && !self.proxies.contains(peer);
        if forwards && self.clients.is_some() && !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                %peer,
                "requests come through a proxy that is not in TRUSTED_PROXIES: all of its clients share one limit"
            );
        }
    }

    /// Admits a request to this route. A public request costs its client tokens ([`costs`]).
    ///
    /// # Errors
    /// 429: the client has too few. 503: too many requests are in flight.
    pub fn admit(&self, class: RequestClass, client: IpAddr, route: &str) -> Result<Permit<'_>, ApiError> {
        if class == RequestClass::Public && self.clients.is_some() {
            take(self.clients.as_ref(), || address::key(client), costs::of_route(route), "client")?;
        }
        self.in_flight_of(class).acquire().ok_or_else(|| self.shed())
    }

    /// Takes more tokens for a large request, before it is carried out.
    ///
    /// # Errors
    /// 429: the client has too few.
    pub fn admit_more(&self, client: IpAddr, tokens: u32) -> Result<(), ApiError> {
        take(self.clients.as_ref(), || address::key(client), tokens, "client")
    }

    /// Takes tokens for an expensive reply, also tokens that the client does not have yet.
    pub fn charge(&self, client: IpAddr, tokens: u32) {
        if let Some(clients) = self.clients.as_ref().filter(|_| tokens > 0) {
            clients.charge(address::key(client), tokens);
        }
    }

    /// Judges a secret that a client presents; `None`: it is wrong. A wrong secret costs the client a token of a bucket for
    /// guesses. While that bucket is empty nothing is judged: a right secret is refused as a wrong one is, so that guessing is
    /// slow. Other clients' buckets stay untouched. (Threads that judge at the same moment may judge one more each.)
    ///
    /// # Errors
    /// 429: the secret was not judged. 401: it is wrong.
    pub fn judge<T>(&self, client: IpAddr, judge: impl FnOnce() -> Option<T>) -> Result<T, ApiError> {
        self.may_guess(client)?;
        judge().ok_or_else(|| {
            self.charge_guess(client);
            Code::Unauthorized.into()
        })
    }

    /// Whether a secret of this client is judged.
    ///
    /// # Errors
    /// 429: the client's bucket for guesses is empty.
    pub fn may_guess(&self, client: IpAddr) -> Result<(), ApiError> {
        let Some(guesses) = &self.guesses else { return Ok(()) };
        guesses.has_token(address::key(client)).map_err(|wait| too_many("operator", wait))
    }

    /// Takes a token for a wrong secret.
    pub fn charge_guess(&self, client: IpAddr) {
        if let Some(guesses) = &self.guesses {
            guesses.charge(address::key(client), 1);
        }
    }

    /// Takes a token for an unauthenticated request to the operators' routes, which costs what any request costs.
    ///
    /// # Errors
    /// 429: the client has no token left.
    pub fn admit_unauthenticated(&self, client: IpAddr) -> Result<(), ApiError> {
        take(self.clients.as_ref(), || address::key(client), 1, "operator")
    }

    /// Takes tokens of the user for whom a request acts.
    ///
    /// # Errors
    /// 429: the user has too few.
    pub fn admit_user(&self, user: UserId, tokens: u32) -> Result<(), ApiError> {
        take(self.users.as_ref(), || user.get().cast_unsigned(), tokens, "user")
    }

    /// Suspends the permit of a request that waits for its body.
    pub fn suspend(&self, class: RequestClass) -> Suspended<'_> {
        self.in_flight_of(class).suspend()
    }

    /// The reply to a request that finds no room.
    pub fn shed(&self) -> ApiError {
        metrics::SHED.with_label_values(&["overload"]).inc();
        Code::Unavailable.into()
    }

    /// The clients and users that have a bucket.
    pub fn keys(&self) -> usize {
        self.buckets().map(Buckets::len).sum()
    }

    /// The public requests in flight; 0 without a limit.
    pub fn in_flight(&self) -> i64 {
        self.public.count()
    }

    fn buckets(&self) -> impl Iterator<Item = &Buckets> {
        [&self.clients, &self.users, &self.guesses].into_iter().flatten()
    }

    fn in_flight_of(&self, class: RequestClass) -> &InFlight {
        match class {
            RequestClass::Public => &self.public,
            RequestClass::Operators => &self.operators,
            RequestClass::Metrics | RequestClass::Health => &self.probes,
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

/// The client of a request that is not public, in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub IpAddr);

impl Client {
    /// The client of a request with these extensions; unspecified outside of a pipeline.
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
    fn tokens_charged_for_public_api_only() {
        let limits = limits(|config| {
            (config.rate_limit_client_per_second, config.rate_limit_client_burst) = (1, 2);
        });
        for _ in 0..2 {
            assert!(limits.admit(RequestClass::Public, CLIENT, "").is_ok());
        }
        let refused = limits.admit(RequestClass::Public, CLIENT, "").err().unwrap().into_response();
        assert_eq!((refused.status().as_u16(), &refused.headers()[RETRY_AFTER]), (429, &"1".parse().unwrap()));
        for class in [RequestClass::Health, RequestClass::Metrics, RequestClass::Operators] {
            assert!((0..1000).all(|_| limits.admit(class, CLIENT, "").is_ok()), "{class:?}");
        }
        assert!(limits.admit_unauthenticated(CLIENT).is_err(), "a guess costs what any request does");
        assert!(limits.admit(RequestClass::Public, "198.51.100.8".parse().unwrap(), "").is_ok());
        assert_eq!(limits.keys(), 2);
    }

    #[test]
    fn expensive_request_charged_more() {
        let limits = limits(|config| {
            (config.rate_limit_client_per_second, config.rate_limit_client_burst) = (1, 20);
        });
        assert!(limits.admit(RequestClass::Public, CLIENT, "/v3/api-docs").is_ok());
        assert!(limits.admit_more(CLIENT, 14).is_ok());
        assert!(limits.admit(RequestClass::Public, CLIENT, "/api/v1/orders/{orderId}").is_err(), "it costs two");
        assert!(limits.admit(RequestClass::Public, CLIENT, "/api/v1/orders").is_ok());
        limits.charge(CLIENT, 2);
        let refused = limits.admit(RequestClass::Public, CLIENT, "").err().unwrap().into_response();
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
        assert_eq!(guess(&limits, other, true), Some(true), "other clients are not locked out");
        assert!(limits.admit(RequestClass::Public, CLIENT, "").is_ok());
        let off = Limits::new(&LimitsConfig::off());
        assert!((0..1_000).all(|_| guess(&off, CLIENT, false) == Some(false)));
    }

    #[test]
    fn user_limited_apart_from_client() {
        let limits = limits(|config| (config.rate_limit_user_per_second, config.rate_limit_user_burst) = (1, 3));
        let (one, other) = (UserId::new(1).unwrap(), UserId::new(2).unwrap());
        assert_eq!((0..10).filter(|_| limits.admit_user(one, 1).is_ok()).count(), 3);
        assert!(limits.admit_user(other, 1).is_ok());
        assert!((0..10).all(|_| limits.admit(RequestClass::Public, CLIENT, "").is_ok()));
    }

    #[test]
    fn public_request_shed_when_full_and_operators_admitted() {
        let limits = limits(|config| config.max_in_flight = 1);
        let inside = limits.admit(RequestClass::Public, CLIENT, "").unwrap();
        let refused = limits.admit(RequestClass::Public, CLIENT, "").err().unwrap().into_response();
        assert_eq!((refused.status().as_u16(), &refused.headers()[RETRY_AFTER]), (503, &"1".parse().unwrap()));
        for class in [RequestClass::Health, RequestClass::Metrics, RequestClass::Operators] {
            assert!(limits.admit(class, CLIENT, "").is_ok(), "{class:?}");
        }
        drop(inside);
        assert!(limits.admit(RequestClass::Public, CLIENT, "").is_ok());
        assert_eq!(limits.in_flight(), 0);
    }

    #[test]
    fn limits_absent_when_off() {
        let limits = Limits::new(&LimitsConfig::off());
        let user = UserId::new(1).unwrap();
        assert!(
            (0..100_000)
                .all(|_| limits.admit(RequestClass::Public, CLIENT, "").is_ok() && limits.admit_user(user, 1).is_ok())
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
        assert!(!forwarded(&limits, "203.0.113.1"), "a public address may be any client");
        assert!(!forwarded(&limits, "10.0.0.1"), "a trusted proxy");
        limits.client("10.0.0.2".parse().unwrap(), &HeaderMap::new());
        assert!(!limits.warned.load(Relaxed), "a private address without the header");
        assert!(forwarded(&limits, "10.0.0.2"));
    }
}
