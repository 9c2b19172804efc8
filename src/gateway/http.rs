//! A payment gateway spoken to over HTTP, as the API contract's "External gateways" fixes it.
//!
//! Owns: the connections to one gateway, and the limits of a call: time, reply size, calls under way. Leaves what a
//! reply means to [`reply`](super::reply).
//!
//! Redirects are not followed, proxies of the environment not used, and nothing is sent a second time: a payment goes
//! to the URL that the operator named, once, or its outcome is unknown.

use std::{error::Error, fmt, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
    redirect, retry,
};
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::{
    CancelOutcome, Charge, GatewayConfig, GatewayConfigError, PayOutcome, PaymentGateway, StatusOutcome, reply,
};
use crate::{
    model::{PaymentType, Won},
    telemetry::traces,
};

/// Names the request that a call is made for.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The most time spent on making a connection; a healthy gateway answers a SYN and a TLS handshake well within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The most bytes read of a reply; one of the contract has about a hundred.
const REPLY_BYTES: usize = 64 * 1024;

/// The most calls under way to one gateway, which is also the most connections to it; more wait for their turn.
const CALLS_UNDER_WAY: usize = 512;

/// Idle connections are closed after this long, before a gateway or a balancer between is likely to close them: a
/// request sent into a closing connection ends unknown.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// One gateway, over HTTP. Cheap calls on pooled connections; see [`PaymentGateway`].
pub struct HttpGateway {
    kind: PaymentType,
    client: Client,
    /// `{url}/payments`
    payments: Url,
    timeout: Duration,
    turns: Semaphore,
}

impl fmt::Debug for HttpGateway {
    /// Not the client: it holds the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("HttpGateway");
        debug.field("kind", &self.kind).field("payments", &self.payments.as_str()).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PayBody<'a> {
    merchant_uid: &'a str,
    order_id: i64,
    user_id: i64,
    amount: Won,
}

#[derive(Serialize)]
struct CancelBody<'a> {
    amount: Won,
    reason: &'a str,
}

/// A whole reply: its status and its body.
type Reply = (u16, Vec<u8>);

impl HttpGateway {
    /// The longest time limit of a call that a configuration may ask for.
    pub const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

    /// A client for the gateway of `kind`; connects to nothing yet.
    ///
    /// # Errors
    /// When the configuration can't be used, or the system has no certificates to check an `https` gateway by.
    pub fn new(kind: PaymentType, config: &GatewayConfig) -> Result<HttpGateway, GatewayConfigError> {
        let payments = payments_url(&config.url).map_err(|problem| GatewayConfigError::Url(kind, problem))?;
        if config.timeout.is_zero() || config.timeout > Self::LONGEST_TIMEOUT {
            return Err(GatewayConfigError::Timeout(kind));
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &config.token {
            headers.insert(AUTHORIZATION, bearer(token).ok_or(GatewayConfigError::Token(kind))?);
        }
        // reqwest takes the process's provider and panics where there is none. An error says that one is installed
        // already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let encrypted = payments.scheme() == "https";
        let mut client = Client::builder()
            .user_agent(concat!("firstcome/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .https_only(encrypted)
            .connect_timeout(config.timeout.min(CONNECT_TIMEOUT))
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(CALLS_UNDER_WAY)
            .tcp_nodelay(true);
        if !encrypted {
            // A plain gateway needs no certificates, and a slim image may have none.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(|error| GatewayConfigError::Client(kind, error.without_url()))?;
        let turns = Semaphore::new(CALLS_UNDER_WAY);
        Ok(HttpGateway { kind, client, payments, timeout: config.timeout, turns })
    }

    /// `{url}/payments/{merchant_uid}` and what follows it; the uid stays one segment, whatever it is made of.
    fn payment_url(&self, merchant_uid: &str, rest: &[&str]) -> Result<Url, String> {
        let mut url = self.payments.clone();
        // The URL type drops these from a path, so that the request would name something else.
        if matches!(merchant_uid, "" | "." | "..") {
            return Err("a merchantUid that can't be in a URL; not sent".to_owned());
        }
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(merchant_uid).extend(rest);
        }
        Ok(url)
    }

    /// Sends `request` once and reads the whole reply, all within the time limit; otherwise says why not. `route` is its
    /// path below the gateway's URL, without the uid.
    async fn call(
        &self,
        asked_by: &str,
        (method, route): (&'static str, &'static str),
        request: RequestBuilder,
    ) -> Result<Reply, String> {
        let work = traces::gateway(self.kind.as_str(), method, route, asked_by);
        let mut headers = HeaderMap::new();
        if let Ok(id) = HeaderValue::from_str(asked_by) {
            headers.insert(X_REQUEST_ID, id);
        }
        work.tell(&mut headers);
        let request = request.headers(headers);
        // The limit covers the wait for a turn too: a gateway that hangs slows its callers down, but holds none of them
        // for longer than one call may take.
        let call = async {
            let _turn = self.turns.acquire().await.map_err(|closed| closed.to_string())?;
            let response = request.send().await.map_err(explain)?;
            read(response).await
        };
        let reply = match tokio::time::timeout(self.timeout, call).await {
            Ok(reply) => reply,
            Err(_) => Err("timed out".to_owned()),
        };
        work.ends(reply)
    }
}

impl PaymentGateway for HttpGateway {
    fn pay<'a>(&'a self, asked_by: &'a str, charge: &'a Charge) -> BoxFuture<'a, PayOutcome> {
        async move {
            let uid = charge.merchant_uid.as_str();
            let body = PayBody {
                merchant_uid: uid,
                order_id: charge.order_id.get(),
                user_id: charge.user_id.get(),
                amount: charge.amount,
            };
            // A payment that could not be asked about afterwards is not begun.
            let reply = match self.payment_url(uid, &[]) {
                Ok(_) => {
                    let request = self.client.post(self.payments.clone()).json(&body);
                    self.call(asked_by, ("POST", "/payments"), request).await
                }
                Err(why) => Err(why),
            };
            let outcome = match reply {
                Ok((status, body)) => reply::decode_pay(charge, status, &body),
                Err(why) => PayOutcome::Unknown { why },
            };
            match &outcome {
                PayOutcome::Unknown { why } => {
                    warn!(request_id = asked_by, gateway = %self.kind, merchant_uid = uid, why, "payment: unknown");
                }
                known => {
                    debug!(request_id = asked_by, gateway = %self.kind, merchant_uid = uid, outcome = ?known, "payment");
                }
            }
            outcome
        }
        .boxed()
    }

    fn status<'a>(&'a self, asked_by: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
        async move {
            let merchant_uid = charge.merchant_uid.as_str();
            let reply = match self.payment_url(merchant_uid, &[]) {
                Ok(url) => self.call(asked_by, ("GET", "/payments/{merchantUid}"), self.client.get(url)).await,
                Err(why) => Err(why),
            };
            let outcome = match reply {
                Ok((status, body)) => reply::decode_status(charge, status, &body),
                Err(why) => StatusOutcome::Unknown { why },
            };
            match &outcome {
                StatusOutcome::Unknown { why } => {
                    warn!(request_id = asked_by, gateway = %self.kind, merchant_uid, why, "payment status: unknown");
                }
                known => {
                    debug!(request_id = asked_by, gateway = %self.kind, merchant_uid, outcome = ?known, "payment status");
                }
            }
            outcome
        }
        .boxed()
    }

    fn cancel<'a>(
        &'a self,
        asked_by: &'a str,
        merchant_uid: &'a str,
        amount: Won,
        reason: &'a str,
    ) -> BoxFuture<'a, CancelOutcome> {
        async move {
            let reply = match self.payment_url(merchant_uid, &["cancel"]) {
                Ok(url) => {
                    let request = self.client.post(url).json(&CancelBody { amount, reason });
                    self.call(asked_by, ("POST", "/payments/{merchantUid}/cancel"), request).await
                }
                Err(why) => Err(why),
            };
            let outcome = match reply {
                Ok((status, body)) => reply::decode_cancel(status, &body),
                Err(why) => CancelOutcome::Unknown { why },
            };
            match &outcome {
                CancelOutcome::Unknown { why } => {
                    warn!(request_id = asked_by, gateway = %self.kind, merchant_uid, amount, why, "payment cancel: unknown");
                }
                known => {
                    debug!(request_id = asked_by, gateway = %self.kind, merchant_uid, amount, outcome = ?known, "payment cancel");
                }
            }
            outcome
        }
        .boxed()
    }
}

/// `{url}/payments`, or what is wrong with `url`, as the end of "the gateway URL ...".
fn payments_url(url: &str) -> Result<Url, &'static str> {
    let mut url = Url::parse(url).map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("is neither http:// nor https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or a password; a token belongs into its own variable");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or a fragment");
    }
    url.path_segments_mut().map_err(|()| "has no path")?.pop_if_empty().push("payments");
    Ok(url)
}

fn bearer(token: &str) -> Option<HeaderValue> {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The status and the whole body, as long as it has at most [`REPLY_BYTES`].
async fn read(mut response: Response) -> Result<Reply, String> {
    let oversized = || format!("a reply of more than {REPLY_BYTES} bytes");
    let status = response.status().as_u16();
    if response.content_length().is_some_and(|bytes| bytes > REPLY_BYTES as u64) {
        return Err(oversized());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(explain)? {
        if body.len() + chunk.len() > REPLY_BYTES {
            return Err(oversized());
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

/// The error and its causes in one bounded line, without the URL.
fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    reply::plain(&line)
}
