//! Sends one event to a receiver, signed as Standard Webhooks defines it (<https://www.standardwebhooks.com>).
//!
//! Follows no redirect, ignores the environment's proxies, bounds the time and what it reads, and connects to no private address.

use std::{
    error::Error,
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::{
    Client, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    redirect, retry,
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use super::address::{AddressPolicy, AddressRefused};
use crate::model::{Millis, PendingEvent, WebhookKey, WebhookKeys};

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const CLOUD_EVENT: HeaderValue = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");

/// The prefix of a key's text.
const KEY_PREFIX: &str = "whsec_";
const KEY_LEN: usize = 32;

/// The time limits of a connection, and of a request with its reply.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an unused connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a reply, so that its connection can be used again; a longer reply costs the connection.
const MAX_REPLY_BYTES: usize = 16 * 1024;

/// A new key.
///
/// # Errors
/// The system has no random numbers.
pub fn new_key() -> anyhow::Result<WebhookKey> {
    let mut key = vec![0; KEY_LEN];
    SystemRandom::new().fill(&mut key).map_err(|_| anyhow::anyhow!("no random numbers"))?;
    Ok(WebhookKey::new(key))
}

/// The text of a key, as a receiver needs it.
pub fn key_text(key: &WebhookKey) -> String {
    format!("{KEY_PREFIX}{}", BASE64.encode(key.as_bytes()))
}

/// The value of `webhook-signature`: by each key that is valid.
fn signatures(keys: &WebhookKeys, id: &str, timestamp: i64, body: &str, now: Millis) -> String {
    let text = format!("{id}.{timestamp}.{body}");
    let old = keys.old.as_ref().filter(|(_, until)| *until > now).map(|(key, _)| key);
    let sign = |key: &WebhookKey| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        format!("v1,{}", BASE64.encode(hmac::sign(&key, text.as_bytes())))
    };
    std::iter::once(&keys.key).chain(old).map(sign).collect::<Vec<_>>().join(" ")
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub status: Option<u16>,
    /// `None`: delivered.
    pub failure: Option<&'static str>,
}

impl Attempt {
    fn failed(failure: &'static str) -> Self {
        Attempt { status: None, failure: Some(failure) }
    }

    /// Whether the receiver wants no more events.
    pub fn is_gone(&self) -> bool {
        self.status == Some(StatusCode::GONE.as_u16())
    }

    /// The label of the metric.
    pub fn result(&self) -> &'static str {
        self.failure.unwrap_or("delivered")
    }
}

/// The HTTP client of all receivers. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Sender {
    policy: AddressPolicy,
    /// Made for the first event: it reads the system's certificates.
    client: Arc<OnceLock<Client>>,
}

impl Sender {
    pub fn new(policy: AddressPolicy) -> Self {
        Sender { policy, client: Arc::default() }
    }

    fn client(&self) -> reqwest::Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // reqwest panics without a default provider. The error means that one is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("firstcome/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .dns_resolver(self.policy)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .build()?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Sends an event. `now` is the store's time, by which keys end, and `own_time` this process's, by which a receiver checks its age.
    pub async fn send(
        &self,
        url: &Url,
        keys: &WebhookKeys,
        event: &PendingEvent,
        now: Millis,
        own_time: Millis,
    ) -> Attempt {
        if self.policy.check(url).is_err() {
            return Attempt::failed("refused_address");
        }
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "the client of webhooks can't be set up");
                return Attempt::failed("unreachable");
            }
        };
        let timestamp = own_time.0.div_euclid(1000);
        let signatures = signatures(keys, &event.id, timestamp, &event.body, now);
        let request = client
            .post(url.clone())
            .header(CONTENT_TYPE, CLOUD_EVENT)
            .header(WEBHOOK_ID, &event.id)
            .header(WEBHOOK_TIMESTAMP, timestamp)
            .header(WEBHOOK_SIGNATURE, signatures)
            .body(event.body.clone());
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Attempt::failed(failure_of(&error)),
        };
        let status = response.status();
        let mut left = MAX_REPLY_BYTES;
        while let Ok(Some(chunk)) = response.chunk().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
        Attempt { status: Some(status.as_u16()), failure: (!status.is_success()).then_some("rejected") }
    }
}

/// Why there is no reply. Says no more of another network than its operators may know.
fn failure_of(error: &reqwest::Error) -> &'static str {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<AddressRefused>() {
            return "refused_address";
        }
        cause = error.source();
    }
    if error.is_timeout() { "timeout" } else { "unreachable" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    #[test]
    fn signature_matches_specification() {
        let key = WebhookKey::new(BASE64.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap());
        assert_eq!(key_text(&key), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let keys = WebhookKeys { key: key.clone(), old: Some((key, Millis(5))) };
        let sign =
            |now| signatures(&keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}", now);
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(Millis(5)), expected);
        assert_eq!(sign(Millis(4)), format!("{expected} {expected}"));
        assert_eq!(new_key().unwrap().as_bytes().len(), KEY_LEN);
        assert!(!format!("{keys:?}").contains("77"), "a key is not printed");
    }
}
