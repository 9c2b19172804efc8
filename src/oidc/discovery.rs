//! The provider's endpoints and keys, from its metadata (OpenID Connect Discovery 1.0).
//!
//! Read when a sign-in needs them, and again after an hour, or when a token names an unknown key. One sign-in reads while others
//! wait for it. A failure is kept for a second, so that a provider that is away is not asked by every click.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow, ensure};
use jsonwebtoken::Header;
use oauth2::{AuthUrl, TokenUrl};
use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::{sync::Mutex, time::timeout};

use super::SignInError;
use crate::{
    jwt::{
        jwks::{fetch, validated},
        keys::TokenKeys,
    },
    model::Clock,
};

/// The time limit of a read: metadata and keys.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a read is current.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// The minimum time between two reads because of an unknown key.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// How long a failure is current.
const FAILURE_AGE: Duration = Duration::from_secs(1);

/// What the provider says about itself.
pub struct Discovered {
    pub authorization: AuthUrl,
    pub token: TokenUrl,
    /// The client's secret goes into the header `Authorization`, not into the body.
    pub basic: bool,
    /// The provider names itself when it sends the browser back (RFC 9207).
    pub names_issuer: bool,
    pub keys: TokenKeys,
}

impl Discovered {
    /// Whether there is a key for a token with this header.
    fn verifies(&self, signed: Option<&Header>) -> bool {
        signed.is_none_or(|header| self.keys.have(header.kid.as_deref(), header.alg))
    }
}

/// Reads the provider's metadata and keys.
pub struct ProviderDiscovery {
    issuer: String,
    url: Url,
    http: Client,
    clock: Clock,
    last: Mutex<Option<LastRead>>,
}

struct LastRead {
    at_us: u64,
    outcome: Result<Arc<Discovered>, SignInError>,
}

#[derive(Deserialize)]
struct ProviderMetadata {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl ProviderDiscovery {
    /// The metadata of `issuer`, a valid URL.
    pub fn new(issuer: &str, http: Client, clock: Clock) -> anyhow::Result<Self> {
        let url = Url::parse(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')))?;
        Ok(ProviderDiscovery { issuer: issuer.to_owned(), url, http, clock, last: Mutex::default() })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// What the provider says; reads it again if it lacks the key of a token with this header, unless that was just done.
    ///
    /// # Errors
    /// [`SignInError::Unavailable`]
    pub async fn current(&self, signed: Option<&Header>) -> Result<Arc<Discovered>, SignInError> {
        let mut last = self.last.lock().await;
        if let Some(LastRead { at_us, outcome }) = &*last {
            let age = Duration::from_micros(self.clock.uptime_us().saturating_sub(*at_us));
            let max_age = match outcome {
                Ok(discovered) if discovered.verifies(signed) => MAX_AGE,
                Ok(_) => MIN_INTERVAL,
                Err(_) => FAILURE_AGE,
            };
            if age < max_age {
                return outcome.clone();
            }
        }
        let read =
            timeout(READ_TIMEOUT, self.read()).await.unwrap_or_else(|_| Err(anyhow!("it does not answer in time")));
        let outcome = read.map(Arc::new).map_err(|error| SignInError::Unavailable(format!("{error:#}")));
        *last = Some(LastRead { at_us: self.clock.uptime_us(), outcome: outcome.clone() });
        outcome
    }

    async fn read(&self) -> anyhow::Result<Discovered> {
        let metadata = fetch(&self.http, self.url.clone()).await.context("its metadata")?;
        let metadata: ProviderMetadata =
            serde_json::from_slice(&metadata).map_err(|_| anyhow!("its metadata lacks an endpoint"))?;
        // Otherwise a provider could speak for another one (OpenID Connect Discovery, 4.3).
        ensure!(metadata.issuer == self.issuer, "its metadata is of another issuer than OPS_OIDC_ISSUER");
        let endpoint = |url: &str| validated(url).map_err(|problem| anyhow!("one of its endpoints {problem}"));
        let authorization = AuthUrl::from_url(endpoint(&metadata.authorization_endpoint)?);
        let token = TokenUrl::from_url(endpoint(&metadata.token_endpoint)?);
        let keys = fetch(&self.http, endpoint(&metadata.jwks_uri)?).await.context("its keys")?;
        let keys = TokenKeys::of_set(&keys).map_err(|problem| anyhow!("its keys: {problem}"))?;
        // The default is basic (OpenID Connect Discovery, 3).
        let methods = metadata.token_endpoint_auth_methods_supported;
        let has = |name: &str| methods.iter().flatten().any(|method| method == name);
        Ok(Discovered {
            authorization,
            token,
            basic: !has("client_secret_post") || has("client_secret_basic"),
            names_issuer: metadata.authorization_response_iss_parameter_supported,
            keys: TokenKeys::default().next(keys).unwrap_or_default(),
        })
    }
}
