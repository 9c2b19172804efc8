//! A sign-in with the company's account, from the browser's way to the identity provider until it is back.
//!
//! A cookie binds the steps to the browser: a random id, and the end of the sign-in (epoch ms). State, nonce and the verifier of
//! PKCE are HMACs of the cookie under the client's secret. So no store has sign-ins, the browser may come back to another process,
//! and neither the cookie nor the URL alone is of use to anybody.
//!
//! A sign-in is used once: this process rejects a second use, and the identity provider takes a code only once.

use std::{net::IpAddr, sync::Arc};

use axum::http::{
    HeaderMap, HeaderValue, Uri,
    header::{COOKIE, HOST},
};
use reqwest::Url;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;

use super::{operator::Operator, spent::SpentIds};
use crate::{
    http::{error::ApiError, limits::Limits},
    model::{Clock, Millis},
    oidc::{AuthorizationReply, CALLBACK_PATH, IdentityProvider, Proofs, SignInError},
};

/// The name of the cookie, and the path to which browsers send it.
const SIGN_IN_COOKIE: &str = "firstcome_ops_sign_in";
const SIGN_IN_PATH: &str = "/ops/oidc";
/// The time for a sign-in at the provider.
const SIGN_IN_TTL_SECONDS: i64 = 600;
/// Longer cookies are not read: 32 characters of the id and the digits of a time.
const MAX_SIGN_IN_LEN: usize = 64;

/// Signs operators in with the company's accounts.
pub struct ProviderSignIn {
    provider: Arc<IdentityProvider>,
    key: hmac::Key,
    clock: Clock,
    /// The service is reached over HTTPS, and browsers send the cookie over HTTPS only.
    secure: bool,
    limits: Arc<Limits>,
    used: SpentIds,
}

/// Why a browser that is back is not signed in.
#[derive(Debug)]
pub enum NotSignedIn {
    Refused(SignInError),
    /// Not judged: the client had too many failures.
    Limited,
}

impl NotSignedIn {
    /// The reason as the dashboard's page knows it.
    pub fn reason(&self) -> &'static str {
        match self {
            NotSignedIn::Refused(refused) => refused.reason(),
            NotSignedIn::Limited => "slow",
        }
    }
}

impl From<SignInError> for NotSignedIn {
    fn from(refused: SignInError) -> Self {
        NotSignedIn::Refused(refused)
    }
}

/// A key that only holders of the provider's secret have, for one purpose.
pub fn derived_key(provider: &IdentityProvider, purpose: &str) -> hmac::Key {
    let (secret, client) = provider.secret();
    let root = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let key = hmac::sign(&root, format!("firstcome {purpose}\n{client}").as_bytes());
    hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
}

impl ProviderSignIn {
    /// `secure`: browsers reach the service over HTTPS. `limits` bound the failures of a client.
    pub fn new(provider: Arc<IdentityProvider>, clock: Clock, secure: bool, limits: Arc<Limits>) -> Self {
        let key = derived_key(&provider, "sign-in");
        ProviderSignIn { provider, key, clock, secure, limits, used: SpentIds::default() }
    }

    /// Begins a sign-in: where the browser goes, and its cookie.
    ///
    /// # Errors
    /// The provider can't be asked; the request names no host.
    pub async fn begin(&self, headers: &HeaderMap, uri: &Uri) -> Result<(Url, HeaderValue), SignInError> {
        let mut id = [0; 16];
        let random = SystemRandom::new().fill(&mut id);
        random.map_err(|_| SignInError::Unavailable("this process has no random numbers".to_owned()))?;
        let cookie = format!("{}.{}", hex::encode(id), self.clock.now().plus(SIGN_IN_TTL_SECONDS * 1000).0);
        let redirect = self.redirect_url(headers, uri)?;
        let url = self.provider.authorization_url(&redirect, &self.proofs(&cookie)).await?;
        Ok((url, self.set_cookie(&cookie, SIGN_IN_TTL_SECONDS)))
    }

    /// Ends a sign-in: the operator of the browser that is back with `state` and `reply`.
    ///
    /// # Errors
    /// The browser is not signed in.
    pub async fn complete(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        state: &str,
        reply: AuthorizationReply,
        client: IpAddr,
    ) -> Result<Operator, NotSignedIn> {
        let proofs = self.take(headers, state).ok_or(SignInError::State)?;
        let redirect = self.redirect_url(headers, uri)?;
        // A forged code makes this process ask the provider: the client pays as for a wrong token.
        self.limits.may_guess(client).map_err(|_| NotSignedIn::Limited)?;
        let identity = self.provider.identify(reply, &redirect, &proofs).await;
        let identity = identity.inspect_err(|_| self.limits.charge_guess(client))?;
        Ok(Operator::of_provider(&identity.name, identity.role))
    }

    /// Takes a token for a refused sign-in, which costs what any unauthenticated request costs.
    ///
    /// # Errors
    /// 429: the client has no token left.
    pub fn admit_refused(&self, client: IpAddr) -> Result<(), ApiError> {
        self.limits.admit_unauthenticated(client)
    }

    /// The proofs of the sign-in that this browser began with this state. None of a sign-in that is over, or was taken before.
    fn take(&self, headers: &HeaderMap, state: &str) -> Option<Proofs> {
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut ours = pairs.filter(|(name, value)| *name == SIGN_IN_COOKIE && value.len() <= MAX_SIGN_IN_LEN);
        // A page of a sibling domain may have set others of the name.
        let (cookie, proofs) = ours.find_map(|(_, cookie)| {
            let proofs = self.proofs(cookie);
            bool::from(proofs.state.as_bytes().ct_eq(state.as_bytes())).then_some((cookie, proofs))
        })?;
        let (now, end) = (self.clock.now(), Millis(cookie.rsplit_once('.')?.1.parse().ok()?));
        (now < end && self.used.spend(cookie, end, now)).then_some(proofs)
    }

    /// The header that makes a browser keep the cookie for `seconds`, or forget it for 0.
    pub fn set_cookie(&self, value: &str, seconds: i64) -> HeaderValue {
        let secure = if self.secure { "; Secure" } else { "" };
        // Lax: the browser sends it when the provider's page leads back here.
        let cookie =
            format!("{SIGN_IN_COOKIE}={value}; HttpOnly; SameSite=Lax; Path={SIGN_IN_PATH}; Max-Age={seconds}{secure}");
        HeaderValue::try_from(cookie).unwrap_or(HeaderValue::from_static(""))
    }

    fn proofs(&self, cookie: &str) -> Proofs {
        let proof = |of: &str| hex::encode(hmac::sign(&self.key, format!("{of}\n{cookie}").as_bytes()));
        Proofs { state: proof("state"), nonce: proof("nonce"), verifier: proof("verifier") }
    }

    /// The setting, or the callback at the host that the browser asks. The provider sends browsers to registered URLs only, so
    /// that a forged `Host` leads nowhere.
    fn redirect_url(&self, headers: &HeaderMap, uri: &Uri) -> Result<Url, SignInError> {
        let host = uri.authority().map(|authority| authority.as_str());
        let host = host.or_else(|| headers.get(HOST)?.to_str().ok()).unwrap_or_default();
        let scheme = if self.secure { "https" } else { "http" };
        let own = Url::parse(&format!("{scheme}://{host}{CALLBACK_PATH}")).ok();
        let own = own.filter(|url| url.path() == CALLBACK_PATH && url.username().is_empty() && url.query().is_none());
        let url = self.provider.redirect_url(own.as_ref()).cloned();
        url.ok_or_else(|| SignInError::Unavailable("the request names no host to come back to".to_owned()))
    }
}
