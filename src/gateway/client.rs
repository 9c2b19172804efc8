//! The HTTP connections to one payment provider.
//!
//! Owns the connections, and limits the time, the reply size and the concurrency of calls. The client follows no redirects,
//! ignores the environment's proxies, and never resends: a request reaches the configured URL once, or its outcome is unknown.

use std::{error::Error, time::Duration};

use reqwest::{
    Client, RequestBuilder, Response, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
    redirect, retry,
};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::{GatewayConfigError, reply};
use crate::{model::PaymentType, telemetry::traces};

/// The maximum time limit of a call.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// The header with the id of the request that needs the call.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The header with the key of a request that must have one effect, however often it is repeated.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The time limit of opening a connection. A healthy gateway answers a SYN and a TLS handshake well within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The maximum size of a reply. A reply of the contract has about a hundred bytes, a provider's some thousand.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// The maximum number of concurrent calls to one gateway, and so of connections to it. Further calls wait.
const MAX_CONCURRENT_CALLS: usize = 512;

/// The time after which the client closes an idle connection. It is shorter than the usual limits of gateways and load
/// balancers, because a request on a connection that the other end closes has an unknown outcome.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The status and the body of a reply.
pub(super) type HttpReply = (u16, Vec<u8>);

/// A client of one provider, with pooled connections.
pub(super) struct ProviderClient {
    kind: PaymentType,
    client: Client,
    base: Url,
    timeout: Duration,
    permits: Semaphore,
}

impl ProviderClient {
    /// A client for the provider of `kind` at `url`. `authorization` is the header of every request. Opens no connection yet.
    ///
    /// # Errors
    /// The URL or the time limit is invalid, or the system has no root certificates for an `https` provider.
    pub(super) fn new(
        kind: PaymentType,
        url: &str,
        timeout: Duration,
        authorization: Option<HeaderValue>,
    ) -> Result<ProviderClient, GatewayConfigError> {
        let base = base_url(url).map_err(|problem| GatewayConfigError::Url(kind, problem))?;
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return Err(GatewayConfigError::Timeout(kind));
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        // reqwest panics without a default provider. The error means that one is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let encrypted = base.scheme() == "https";
        let mut client = Client::builder()
            .user_agent(concat!("firstcome/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .https_only(encrypted)
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_CONCURRENT_CALLS)
            .tcp_nodelay(true);
        if !encrypted {
            // Plain HTTP needs no certificates, and a slim image may have none.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(|error| GatewayConfigError::Client(kind, error.without_url()))?;
        Ok(ProviderClient { kind, client, base, timeout, permits: Semaphore::new(MAX_CONCURRENT_CALLS) })
    }

    pub(super) fn kind(&self) -> PaymentType {
        self.kind
    }

    /// The base URL.
    pub(super) fn base(&self) -> &str {
        self.base.as_str()
    }

    /// The time limit of a call.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The base URL, followed by these segments of a path, each encoded.
    ///
    /// # Errors
    /// A segment can't be in a URL.
    pub(super) fn url(&self, segments: &[&str]) -> Result<Url, String> {
        // `Url` drops these segments, and the request would name another resource.
        if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return Err("an id of a payment that can't be in a URL; not sent".to_owned());
        }
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        Ok(url)
    }

    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.client.get(url)
    }

    /// A POST of this body; `key` is its idempotency key.
    pub(super) fn post(&self, url: Url, body: &impl Serialize, key: Option<&str>) -> RequestBuilder {
        let request = self.client.post(url).json(body);
        match key {
            Some(key) => request.header(IDEMPOTENCY_KEY, key),
            None => request,
        }
    }

    /// Sends `request` once and reads the whole reply, within the time limit. `route` is its path below the base URL, without the
    /// ids in it. The error is the reason why there is no reply.
    pub(super) async fn call(
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
}

/// A URL below which a provider's paths are. The error completes the sentence "the gateway URL ...".
fn base_url(url: &str) -> Result<Url, &'static str> {
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
    url.path_segments_mut().map_err(|()| "has no path")?.pop_if_empty();
    Ok(url)
}

/// The value of an `Authorization` header; `None` unless the secret is visible ASCII without spaces.
pub(super) fn authorization(scheme: &str, secret: &str) -> Option<HeaderValue> {
    if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("{scheme} {secret}")).ok()?;
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
