//! The HTTP client of a payment gateway, as the API contract's section "External gateways" defines it.
//!
//! Owns the connections to one gateway, and limits the time, the reply size and the concurrency of calls.
//! [`reply`](super::reply) decodes the replies.
//!
//! The client follows no redirects, ignores the environment's proxies, and never resends: a request reaches the configured
//! URL once, or its outcome is unknown.

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
    CancelOutcome, Charge, GatewayConfigError, HttpGatewayConfig, PartToCancel, PayOutcome, PaymentGateway,
    StatusOutcome, reply,
};
use crate::{
    model::{PaymentType, Won},
    telemetry::traces,
};

/// The header with the id of the request that needs the call.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The header with the key of a part to refund: the same in every repeat.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The time limit of opening a connection. A healthy gateway answers a SYN and a TLS handshake well within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The maximum size of a reply. A reply of the contract has about a hundred bytes.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// The maximum number of concurrent calls to one gateway, and so of connections to it. Further calls wait.
const MAX_CONCURRENT_CALLS: usize = 512;

/// The time after which the client closes an idle connection. It is shorter than the usual limits of gateways and load
/// balancers, because a request on a connection that the other end closes has an unknown outcome.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The HTTP client of one gateway, with pooled connections. See [`PaymentGateway`].
pub struct HttpGateway {
    kind: PaymentType,
    client: Client,
    /// `{url}/payments`
    payments: Url,
    timeout: Duration,
    permits: Semaphore,
}

impl fmt::Debug for HttpGateway {
    /// Omits the client, which holds the token.
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

/// The status and the body of a reply.
type HttpReply = (u16, Vec<u8>);

impl HttpGateway {
    /// The maximum time limit of a call.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

    /// A client for the gateway of `kind`. Opens no connection yet.
    ///
    /// # Errors
    /// The configuration is invalid, or the system has no root certificates for an `https` gateway.
    pub fn new(kind: PaymentType, config: &HttpGatewayConfig) -> Result<HttpGateway, GatewayConfigError> {
        let payments = payments_url(&config.url).map_err(|problem| GatewayConfigError::Url(kind, problem))?;
        if config.timeout.is_zero() || config.timeout > Self::MAX_TIMEOUT {
            return Err(GatewayConfigError::Timeout(kind));
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &config.token {
            headers.insert(AUTHORIZATION, bearer(token).ok_or(GatewayConfigError::Token(kind))?);
        }
        // reqwest panics without a default provider. The error means that one is already installed.
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
            .pool_max_idle_per_host(MAX_CONCURRENT_CALLS)
            .tcp_nodelay(true);
        if !encrypted {
            // Plain HTTP needs no certificates, and a slim image may have none.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(|error| GatewayConfigError::Client(kind, error.without_url()))?;
        let permits = Semaphore::new(MAX_CONCURRENT_CALLS);
        Ok(HttpGateway { kind, client, payments, timeout: config.timeout, permits })
    }

    /// `{url}/payments/{merchant_uid}`, followed by `rest`. The uid is encoded as one path segment.
    fn payment_url(&self, merchant_uid: &str, rest: &[&str]) -> Result<Url, String> {
        let mut url = self.payments.clone();
        // `Url` drops these segments, and the request would name another resource.
        if matches!(merchant_uid, "" | "." | "..") {
            return Err("a merchantUid that can't be in a URL; not sent".to_owned());
        }
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(merchant_uid).extend(rest);
        }
        Ok(url)
    }

    /// Sends `request` once and reads the whole reply, within the time limit. `route` is its path below the gateway's URL,
    /// without the uid. The error is the reason why there is no reply.
    async fn call(
        &self,
        request_id: &str,
        (method, route): (&'static str, &'static str),
        request: RequestBuilder,
    ) -> Result<HttpReply, String> {
        let span = traces::gateway(self.kind.as_str(), method, route, request_id);
        let mut headers = HeaderMap::new();
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(X_REQUEST_ID, id);
        }
        span.inject(&mut headers);
        let request = request.headers(headers);
        // The limit includes the wait for a permit, so that a gateway that hangs delays a caller by one limit at most.
        let call = async {
            let _permit = self.permits.acquire().await.map_err(|closed| closed.to_string())?;
            let response = request.send().await.map_err(explain)?;
            read(response).await
        };
        let reply = match tokio::time::timeout(self.timeout, call).await {
            Ok(reply) => reply,
            Err(_) => Err("timed out".to_owned()),
        };
        span.ends(reply)
    }

    /// Sends a `POST {url}/payments/{merchant_uid}/cancel`.
    async fn send_cancel(
        &self,
        request_id: &str,
        merchant_uid: &str,
        CancelBody { amount, reason }: CancelBody<'_>,
        key: Option<String>,
    ) -> CancelOutcome {
        let reply = match self.payment_url(merchant_uid, &["cancel"]) {
            Ok(url) => {
                let mut request = self.client.post(url).json(&CancelBody { amount, reason });
                if let Some(key) = &key {
                    request = request.header(IDEMPOTENCY_KEY, key);
                }
                self.call(request_id, ("POST", "/payments/{merchantUid}/cancel"), request).await
            }
            Err(why) => Err(why),
        };
        let outcome = match reply {
            Ok((status, body)) => reply::decode_cancel(status, &body),
            Err(why) => CancelOutcome::Unknown { why },
        };
        match &outcome {
            CancelOutcome::Unknown { why } => {
                warn!(request_id, gateway = %self.kind, merchant_uid, amount, why, "payment cancel: unknown");
            }
            known => {
                debug!(request_id, gateway = %self.kind, merchant_uid, amount, outcome = ?known, "payment cancel");
            }
        }
        outcome
    }
}

impl PaymentGateway for HttpGateway {
    fn pay<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, PayOutcome> {
        async move {
            let uid = charge.merchant_uid.as_str();
            let body = PayBody {
                merchant_uid: uid,
                order_id: charge.order_id.get(),
                user_id: charge.user_id.get(),
                amount: charge.amount,
            };
            // Do not start a payment whose status could not be queried afterwards.
            let reply = match self.payment_url(uid, &[]) {
                Ok(_) => {
                    let request = self.client.post(self.payments.clone()).json(&body);
                    self.call(request_id, ("POST", "/payments"), request).await
                }
                Err(why) => Err(why),
            };
            let outcome = match reply {
                Ok((status, body)) => reply::decode_pay(charge, status, &body),
                Err(why) => PayOutcome::Unknown { why },
            };
            match &outcome {
                PayOutcome::Unknown { why } => {
                    warn!(request_id, gateway = %self.kind, merchant_uid = uid, why, "payment: unknown");
                }
                known => {
                    debug!(request_id, gateway = %self.kind, merchant_uid = uid, outcome = ?known, "payment");
                }
            }
            outcome
        }
        .boxed()
    }

    fn status<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
        async move {
            let merchant_uid = charge.merchant_uid.as_str();
            let reply = match self.payment_url(merchant_uid, &[]) {
                Ok(url) => self.call(request_id, ("GET", "/payments/{merchantUid}"), self.client.get(url)).await,
                Err(why) => Err(why),
            };
            let outcome = match reply {
                Ok((status, body)) => reply::decode_status(charge, status, &body),
                Err(why) => StatusOutcome::Unknown { why },
            };
            match &outcome {
                StatusOutcome::Unknown { why } => {
                    warn!(request_id, gateway = %self.kind, merchant_uid, why, "payment status: unknown");
                }
                known => {
                    debug!(request_id, gateway = %self.kind, merchant_uid, outcome = ?known, "payment status");
                }
            }
            outcome
        }
        .boxed()
    }

    fn cancel<'a>(
        &'a self,
        request_id: &'a str,
        merchant_uid: &'a str,
        amount: Won,
        reason: &'a str,
    ) -> BoxFuture<'a, CancelOutcome> {
        self.send_cancel(request_id, merchant_uid, CancelBody { amount, reason }, None).boxed()
    }

    fn cancel_part<'a>(&'a self, request_id: &'a str, part: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome> {
        let body = CancelBody { amount: part.amount, reason: part.reason };
        self.send_cancel(request_id, part.merchant_uid, body, Some(part.key())).boxed()
    }
}

/// `{url}/payments`. The error completes the sentence "the gateway URL ...".
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

/// Reads the whole reply, up to [`MAX_REPLY_BYTES`].
async fn read(mut response: Response) -> Result<HttpReply, String> {
    let oversized = || format!("a reply of more than {MAX_REPLY_BYTES} bytes");
    let status = response.status().as_u16();
    if response.content_length().is_some_and(|bytes| bytes > MAX_REPLY_BYTES as u64) {
        return Err(oversized());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(explain)? {
        if body.len() + chunk.len() > MAX_REPLY_BYTES {
            return Err(oversized());
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

/// The error and its causes on one bounded line, without the URL.
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
