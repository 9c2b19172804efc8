//! Signs operators in with the company's accounts: OpenID Connect, the authorization code flow with PKCE.
//!
//! Owns what the identity provider says: its endpoints and keys ([`discovery`]), the exchange of a code for an ID token
//! ([`exchange`]), and what the token must claim ([`id_token`]). `http` binds a sign-in to its browser and opens the session.
//!
//! The provider is asked when an operator signs in, not before: a start does not need it, and neither do open sessions.

mod discovery;
mod exchange;
mod id_token;

use std::sync::Arc;

use anyhow::{anyhow, bail, ensure};
use oauth2::{ClientId, ClientSecret, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope};
use reqwest::Url;
use tokio::sync::{Semaphore, SemaphorePermit};

use self::{discovery::ProviderDiscovery, exchange::BoundedClient, id_token::IdTokens};
use crate::{
    config::OidcConfig,
    jwt::{self, jwks},
    model::{Clock, Role},
};

/// The path to which the provider sends the browser back.
pub const CALLBACK_PATH: &str = "/ops/oidc/callback";
/// The characters of a client secret, at least: operators hold cookies that it seals, and could guess a shorter one.
const MIN_SECRET_LEN: usize = 16;

/// The most sign-ins that wait for the provider. While it is slow, they must not use up the operators' requests in flight.
const MAX_WAITING: usize = 32;

/// Why a sign-in is refused. The text is for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignInError {
    #[error("the browser did not begin this sign-in, or began it too long ago, or it was used before")]
    State,
    #[error("the identity provider refused: {0}")]
    Denied(String),
    #[error("the identity provider can't be asked: {0}")]
    Unavailable(String),
    #[error("the identity provider did not take the code: {0}")]
    Code(String),
    #[error("the ID token is invalid: {0}")]
    Token(&'static str),
    #[error("the ID token is of another issuer")]
    Issuer,
    #[error("the ID token is for another audience")]
    Audience,
    #[error("the ID token is not valid now: {0}")]
    Expired(&'static str),
    #[error("the ID token is of another sign-in")]
    Nonce,
    #[error("the ID token gives {0} no role: its claim {1} names none of viewer, operator, admin")]
    Role(String, String),
    #[error("the ID token has no usable name in its claim {0}")]
    Name(String),
}

impl SignInError {
    /// The reason as the dashboard's page knows it.
    pub fn reason(&self) -> &'static str {
        match self {
            SignInError::State => "state",
            SignInError::Denied(_) => "denied",
            SignInError::Unavailable(_) => "unavailable",
            SignInError::Code(_) => "code",
            SignInError::Token(_) => "token",
            SignInError::Issuer => "issuer",
            SignInError::Audience => "audience",
            SignInError::Expired(_) => "expired",
            SignInError::Nonce => "nonce",
            SignInError::Role(..) => "role",
            SignInError::Name(_) => "name",
        }
    }
}

/// What binds the steps of one sign-in to each other. Nobody can guess one of them.
#[derive(Clone)]
pub struct Proofs {
    /// Returns with the code.
    pub state: String,
    /// Returns in the ID token.
    pub nonce: String,
    /// Proves to the provider who asked for the code (RFC 7636): 43 to 128 characters `[A-Za-z0-9._~-]`.
    pub verifier: String,
}

/// The parameters with which the provider sends the browser back, besides the state.
#[derive(Clone, Debug, Default)]
pub struct AuthorizationReply {
    pub code: Option<String>,
    /// The issuer (RFC 9207).
    pub issuer: Option<String>,
    pub error: Option<String>,
}

/// Who has signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub role: Role,
}

/// The identity provider.
pub struct IdentityProvider {
    client_id: ClientId,
    client_secret: ClientSecret,
    scopes: Vec<Scope>,
    /// `None`: of the host that the browser asks.
    redirect_url: Option<Url>,
    discovery: ProviderDiscovery,
    id_tokens: IdTokens,
    http: BoundedClient,
    waiting: Semaphore,
}

impl IdentityProvider {
    /// The provider that `config` describes; `None` if it describes none. Asks nothing yet.
    ///
    /// # Errors
    /// The settings are incomplete or invalid. The message does not contain the secret.
    pub fn new(config: &OidcConfig, clock: Clock) -> anyhow::Result<Option<Arc<IdentityProvider>>> {
        let OidcConfig { ops_oidc_issuer: issuer, ops_oidc_client_id: id, ops_oidc_client_secret: secret, .. } = config;
        let secret = secret.as_ref().map(|secret| secret.expose().trim()).filter(|secret| !secret.is_empty());
        let (issuer, id, secret) = match (issuer, id, secret) {
            (None, None, None) => return Ok(None),
            (Some(issuer), Some(id), Some(secret)) => (issuer, id, secret),
            _ => bail!(
                "OPS_OIDC_ISSUER, OPS_OIDC_CLIENT_ID and OPS_OIDC_CLIENT_SECRET belong together: set all of them, or none"
            ),
        };
        let strong = secret.len() >= MIN_SECRET_LEN && secret.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(strong, "OPS_OIDC_CLIENT_SECRET is not {MIN_SECRET_LEN} or more printable characters");
        ensure!(!config.ops_oidc_role_claim.is_empty(), "OPS_OIDC_ROLE_CLAIM is empty");
        let issuer_url = jwks::validated(issuer).map_err(|problem| anyhow!("OPS_OIDC_ISSUER {problem}"))?;
        ensure!(
            issuer_url.query().is_none() && issuer_url.fragment().is_none(),
            "OPS_OIDC_ISSUER has a query or a fragment, which no issuer has"
        );
        let redirect_url = config.ops_oidc_redirect_url.as_deref().map(redirect_url).transpose()?;
        jwt::install();
        let http = jwks::client(issuer_url.scheme() == "https", "OPS_OIDC_ISSUER")?;
        let scopes = config.ops_oidc_scopes.split_whitespace().filter(|scope| *scope != "openid");
        Ok(Some(Arc::new(IdentityProvider {
            client_id: ClientId::new(id.clone()),
            client_secret: ClientSecret::new(secret.to_owned()),
            scopes: ["openid"].into_iter().chain(scopes).map(|scope| Scope::new(scope.to_owned())).collect(),
            redirect_url,
            discovery: ProviderDiscovery::new(issuer, http.clone(), clock.clone())?,
            id_tokens: IdTokens::new(issuer, id, config, clock),
            http: BoundedClient(http),
            waiting: Semaphore::new(MAX_WAITING),
        })))
    }

    /// The right to wait for the provider.
    fn wait(&self) -> Result<SemaphorePermit<'_>, SignInError> {
        let full = || SignInError::Unavailable(format!("{MAX_WAITING} sign-ins already wait for it"));
        self.waiting.try_acquire().map_err(|_| full())
    }

    /// The URL to which the provider sends the browser back; `own` is this service, as the browser calls it.
    pub fn redirect_url<'a>(&'a self, own: Option<&'a Url>) -> Option<&'a Url> {
        self.redirect_url.as_ref().or(own)
    }

    /// The secret with which the provider knows this service; issuer and client id.
    pub fn secret(&self) -> (&str, String) {
        (self.client_secret.secret(), format!("{}\n{}", self.discovery.issuer(), self.client_id.as_str()))
    }

    /// The URL at which the browser asks the provider for a code.
    ///
    /// # Errors
    /// The provider can't be asked for its endpoints.
    pub async fn authorization_url(&self, redirect: &Url, proofs: &Proofs) -> Result<Url, SignInError> {
        let _waiting = self.wait()?;
        let provider = self.discovery.current(None).await?;
        let client = exchange::client(self, &provider).set_redirect_uri(RedirectUrl::from_url(redirect.clone()));
        let verifier = PkceCodeVerifier::new(proofs.verifier.clone());
        let state = proofs.state.clone();
        let request = client
            .authorize_url(|| CsrfToken::new(state))
            .add_scopes(self.scopes.iter().cloned())
            .add_extra_param("nonce", proofs.nonce.clone())
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier));
        Ok(request.url().0)
    }

    /// Who has signed in, by what the provider sent with the browser. The caller has compared the state.
    ///
    /// # Errors
    /// Nobody has.
    pub async fn identify(
        &self,
        reply: AuthorizationReply,
        redirect: &Url,
        proofs: &Proofs,
    ) -> Result<Account, SignInError> {
        let AuthorizationReply { code, issuer, error } = reply;
        if issuer.as_deref().is_some_and(|issuer| issuer != self.discovery.issuer()) {
            return Err(SignInError::Issuer);
        }
        if let Some(error) = error {
            return Err(SignInError::Denied(error_code(&error)));
        }
        let code = code.ok_or_else(|| SignInError::Denied("neither a code nor an error".to_owned()))?;
        let _waiting = self.wait()?;
        let provider = self.discovery.current(None).await?;
        if provider.names_issuer && issuer.is_none() {
            return Err(SignInError::Issuer);
        }
        let token = exchange::id_token(self, &provider, code, redirect, proofs).await?;
        let header = id_token::header(&token)?;
        let provider = self.discovery.current(Some(&header)).await?;
        self.id_tokens.identity(&token, &header, &provider.keys, &proofs.nonce)
    }
}

/// The URL of the setting.
fn redirect_url(url: &str) -> anyhow::Result<Url> {
    let parsed = Url::parse(url).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.path() == CALLBACK_PATH
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    parsed.ok_or_else(|| anyhow!("OPS_OIDC_REDIRECT_URL is not https://HOST{CALLBACK_PATH}"))
}

/// The provider's name of an error (RFC 6749, 4.1.2.1), if it looks like one: anybody can write the URL that has it.
fn error_code(text: &str) -> String {
    let named = (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if named { text.to_owned() } else { "an unknown error".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn config() -> OidcConfig {
        OidcConfig {
            ops_oidc_issuer: Some("https://id.example/realms/shop".to_owned()),
            ops_oidc_client_id: Some("firstcome".to_owned()),
            ops_oidc_client_secret: Some(Secret::new("hunter2-0123456789")),
            ..OidcConfig::default()
        }
    }

    fn refused(config: &OidcConfig) -> String {
        IdentityProvider::new(config, Clock::system()).err().map_or(String::new(), |error| format!("{error:#}"))
    }

    #[test]
    fn provider_settings_refused_when_incomplete_or_unsafe() {
        assert!(IdentityProvider::new(&OidcConfig::default(), Clock::system()).unwrap().is_none());
        assert!(IdentityProvider::new(&config(), Clock::system()).unwrap().is_some());
        let changed = |change: fn(&mut OidcConfig)| {
            let mut config = config();
            change(&mut config);
            refused(&config)
        };
        for (said, part) in [
            (changed(|config| config.ops_oidc_issuer = None), "belong together"),
            (changed(|config| config.ops_oidc_client_id = None), "belong together"),
            (changed(|config| config.ops_oidc_client_secret = None), "belong together"),
            (changed(|config| config.ops_oidc_client_secret = Some(Secret::new(" "))), "belong together"),
            (changed(|config| config.ops_oidc_client_secret = Some(Secret::new("hunter2"))), "16 or more"),
            (changed(|config| config.ops_oidc_issuer = Some("http://id.example".into())), "OPS_OIDC_ISSUER is http://"),
            (changed(|config| config.ops_oidc_issuer = Some("id.example".into())), "OPS_OIDC_ISSUER is not a URL"),
            (changed(|config| config.ops_oidc_issuer = Some("https://id.example/?a".into())), "a query"),
            (changed(|config| config.ops_oidc_role_claim = String::new()), "OPS_OIDC_ROLE_CLAIM"),
            (
                changed(|config| config.ops_oidc_redirect_url = Some("https://ops.example/".into())),
                "OPS_OIDC_REDIRECT_URL",
            ),
            (
                changed(|config| config.ops_oidc_redirect_url = Some("https://ops.example/ops/oidc/callback?a".into())),
                "OPS_OIDC_REDIRECT_URL",
            ),
        ] {
            assert!(said.contains(part) && !said.contains("hunter2"), "{part}: {said}");
        }
        let own = Url::parse("http://10.0.0.1/ops/oidc/callback").unwrap();
        let provider = IdentityProvider::new(&config(), Clock::system()).unwrap().unwrap();
        assert_eq!(provider.redirect_url(Some(&own)), Some(&own));
        let fixed = "https://ops.example/ops/oidc/callback";
        let config = OidcConfig { ops_oidc_redirect_url: Some(fixed.to_owned()), ..config() };
        let provider = IdentityProvider::new(&config, Clock::system()).unwrap().unwrap();
        assert_eq!(provider.redirect_url(Some(&own)).unwrap().as_str(), fixed);
    }

    #[tokio::test]
    async fn sign_in_refused_when_too_many_wait() {
        let provider = IdentityProvider::new(&config(), Clock::system()).unwrap().unwrap();
        let waiting: Vec<_> = (0..MAX_WAITING).map(|_| provider.wait().unwrap()).collect();
        let (redirect, proof) = (Url::parse("https://ops.example/ops/oidc/callback").unwrap(), String::new);
        let proofs = Proofs { state: proof(), nonce: proof(), verifier: "v".repeat(43) };
        let begun = provider.authorization_url(&redirect, &proofs).await.map(|_| ());
        let reply = AuthorizationReply { code: Some("code".to_owned()), ..AuthorizationReply::default() };
        let ended = provider.identify(reply, &redirect, &proofs).await.map(|_| ());
        for refused in [begun, ended] {
            assert_eq!(
                refused.unwrap_err().to_string(),
                "the identity provider can't be asked: 32 sign-ins already wait for it"
            );
        }
        drop(waiting);
        assert!(provider.wait().is_ok());
    }

    #[test]
    fn provider_error_logged_only_if_it_is_a_code() {
        assert_eq!(error_code("access_denied"), "access_denied");
        for text in ["", "Access", "a b", "a\nb", &"a".repeat(65)] {
            assert_eq!(error_code(text), "an unknown error");
        }
    }
}
