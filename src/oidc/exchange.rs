//! The exchange of a code for an ID token, at the provider's token endpoint.

use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};
use oauth2::{
    AsyncHttpClient, AuthType, AuthorizationCode, Client, EndpointNotSet, EndpointSet, ExtraTokenFields, HttpRequest,
    HttpResponse, PkceCodeVerifier, RedirectUrl, RequestTokenError, StandardRevocableToken, StandardTokenResponse,
    basic::{BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType},
};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{IdentityProvider, Proofs, SignInError, discovery::Discovered, error_code};

/// The time limit of the exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum size of a reply.
const MAX_REPLY_BYTES: usize = 256 * 1024;

/// The field of the token endpoint's reply that OAuth 2.0 does not have.
#[derive(Debug, Deserialize, Serialize)]
pub struct IdTokenField {
    id_token: Option<String>,
}

impl ExtraTokenFields for IdTokenField {}

/// The client of a provider whose endpoints are known.
type OidcClient = Client<
    BasicErrorResponse,
    StandardTokenResponse<IdTokenField, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// Sends requests whose replies are bounded.
pub struct BoundedClient(pub reqwest::Client);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ExchangeFailure(String);

pub fn client(provider: &IdentityProvider, discovered: &Discovered) -> OidcClient {
    Client::new(provider.client_id.clone())
        .set_client_secret(provider.client_secret.clone())
        .set_auth_type(if discovered.basic { AuthType::BasicAuth } else { AuthType::RequestBody })
        .set_auth_uri(discovered.authorization.clone())
        .set_token_uri(discovered.token.clone())
}

/// The ID token for a code.
///
/// # Errors
/// The provider does not answer, does not take the code, or answers without an ID token.
pub async fn id_token(
    provider: &IdentityProvider,
    discovered: &Discovered,
    code: String,
    redirect: &Url,
    proofs: &Proofs,
) -> Result<String, SignInError> {
    let client = client(provider, discovered).set_redirect_uri(RedirectUrl::from_url(redirect.clone()));
    let exchange = client
        .exchange_code(AuthorizationCode::new(code))
        .set_pkce_verifier(PkceCodeVerifier::new(proofs.verifier.clone()))
        .request_async(&provider.http);
    let reply = timeout(EXCHANGE_TIMEOUT, exchange).await.map_err(|_| unavailable("no answer in time"))?;
    let reply = reply.map_err(|error| match error {
        RequestTokenError::ServerResponse(refused) => SignInError::Code(error_code(refused.error().as_ref())),
        RequestTokenError::Request(ExchangeFailure(reason)) => unavailable(&reason),
        // The reply may have tokens: it is not quoted.
        RequestTokenError::Parse(..) | RequestTokenError::Other(_) => unavailable("its answer can't be read"),
    })?;
    reply.extra_fields().id_token.clone().ok_or(SignInError::Token("the answer has none"))
}

fn unavailable(reason: &str) -> SignInError {
    SignInError::Unavailable(format!("its token endpoint: {reason}"))
}

impl<'c> AsyncHttpClient<'c> for BoundedClient {
    type Error = ExchangeFailure;
    type Future = BoxFuture<'c, Result<HttpResponse, ExchangeFailure>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        send(&self.0, request).boxed()
    }
}

async fn send(http: &reqwest::Client, request: HttpRequest) -> Result<HttpResponse, ExchangeFailure> {
    let failed = |error: reqwest::Error| ExchangeFailure(error.without_url().to_string());
    let request = reqwest::Request::try_from(request).map_err(failed)?;
    let mut response = http.execute(request).await.map_err(failed)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_REPLY_BYTES {
            return Err(ExchangeFailure(format!("more than {MAX_REPLY_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    let mut reply = HttpResponse::new(body);
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    Ok(reply)
}
