//! Authenticates users by their tokens (`AUTH=jwt`). [`oidc`](crate::oidc) verifies operators' tokens with the same keys.
//!
//! Owns the keys of tokens ([`keys`], [`jwks`]), the required claims, and the verification of signatures ([`crypto`]).
//! `http` decides which requests need a token, and compares the token's user with the user of the request.
//!
//! The key determines the algorithm, never the token: a key of one kind never verifies a token of another, and `none` is
//! no algorithm here.

mod crypto;
pub(crate) mod jwks;
pub(crate) mod keys;
mod verified;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};

pub(crate) use self::crypto::install;
use self::{
    jwks::Jwks,
    keys::{TokenKey, TokenKeys},
    verified::Verified,
};
use crate::{
    config::{Auth, AuthConfig},
    model::{Clock, Error, UserId, is_user_name},
    worker::{Worker, Workers},
};

/// The allowed difference, in ms, between this process's clock and an issuer's.
pub(crate) const LEEWAY_MS: i64 = 30_000;
/// The accepted values of a token's `typ` (RFC 7515, 4.1.9): a JWT, or a JWT that is an access token (RFC 9068, 2.1). Tokens
/// that an issuer signs for another purpose are rejected (RFC 8725, 3.11).
const TYPES: [&str; 2] = ["JWT", "at+jwt"];
/// The minimum length of a secret in bytes, as HS256 requires (RFC 7518, 3.2).
const MIN_SECRET_LEN: usize = 32;

/// Why a token is rejected.
#[derive(Debug)]
pub enum Refused {
    /// The token is invalid; the text is for the log.
    Invalid(&'static str),
    /// There are no keys yet to verify the token with.
    KeysUnknown,
}

impl From<Refused> for Error {
    fn from(_: Refused) -> Self {
        Error::unavailable("the keys of users' tokens are not known yet")
    }
}

/// Verifies users' tokens.
pub struct Tokens {
    keys: KeySource,
    /// The required issuer and audience.
    validation: Validation,
    /// The claim with the user's id.
    user_claim: String,
    /// The claim with the user's name.
    name_claim: String,
    clock: Clock,
    verified: Verified,
}

/// The source of the keys.
enum KeySource {
    Secret(Arc<TokenKeys>),
    Set(Arc<Jwks>),
}

impl Tokens {
    /// The verifier that `config` describes; `None` if users need no token. Reads a set of keys from a file at once;
    /// [`Tokens::follow`] fetches a set from a URL.
    ///
    /// # Errors
    /// The configuration is contradictory, or the file is not a set of keys.
    pub fn new(config: &AuthConfig, clock: Clock) -> anyhow::Result<Option<Arc<Tokens>>> {
        let AuthConfig { auth, auth_jwt_secret, auth_jwks_url, auth_jwks_file, .. } = config;
        if *auth == Auth::None {
            let any = auth_jwt_secret.is_some() || auth_jwks_url.is_some() || auth_jwks_file.is_some();
            anyhow::ensure!(!any, "AUTH=none has no use for keys of users' tokens: set AUTH=jwt, or remove the keys");
            anyhow::ensure!(!config.auth_create_users, "AUTH_CREATE_USERS needs the tokens of AUTH=jwt");
            return Ok(None);
        }
        install();
        let refresh = Duration::from_secs(config.auth_jwks_refresh_seconds);
        let keys = match (auth_jwt_secret, auth_jwks_url, auth_jwks_file) {
            (Some(secret), None, None) => {
                let secret = secret.expose().as_bytes();
                anyhow::ensure!(secret.len() >= MIN_SECRET_LEN, "AUTH_JWT_SECRET has less than {MIN_SECRET_LEN} bytes");
                KeySource::Secret(Arc::new(TokenKeys::of_secret(secret)))
            }
            (None, Some(url), None) => KeySource::Set(Jwks::of_url(url.expose(), refresh)?),
            (None, None, Some(file)) => KeySource::Set(Jwks::of_file(file, refresh).context("AUTH_JWKS_FILE")?),
            _ => anyhow::bail!("AUTH=jwt takes one of AUTH_JWT_SECRET, AUTH_JWKS_URL and AUTH_JWKS_FILE"),
        };
        anyhow::ensure!(!config.auth_jwt_user_claim.is_empty(), "AUTH_JWT_USER_CLAIM is empty");
        Ok(Some(Arc::new(Tokens {
            keys,
            validation: validation(config),
            user_claim: config.auth_jwt_user_claim.clone(),
            name_claim: config.auth_jwt_name_claim.clone(),
            clock,
            verified: Verified::default(),
        })))
    }

    /// Starts a worker that reads the set of keys: at once, on a timer, and when a token names an unknown key. Does nothing for
    /// a secret.
    pub fn follow(&self, workers: &Workers) {
        if let KeySource::Set(jwks) = &self.keys {
            let jwks = jwks.clone();
            workers.spawn(Worker::Jwks, move || {
                let jwks = jwks.clone();
                async move { jwks.follow().await }
            });
        }
    }

    /// The user of a token. Waits a bounded time for an unknown key.
    ///
    /// # Errors
    /// The token is invalid, or no keys are known.
    pub async fn user(&self, token: &str) -> Result<UserId, Refused> {
        let keys = match &self.keys {
            KeySource::Secret(keys) => keys.clone(),
            KeySource::Set(jwks) => jwks.current(),
        };
        let now = self.clock.own().0;
        let digest = verified::digest(token);
        if let Some(user) = self.verified.get(&digest, keys.generation, now) {
            return Ok(user);
        }
        let header = decode_header(token).map_err(|_| Refused::Invalid("not a token"))?;
        // Critical extensions must be understood (RFC 7515, 4.1.11). This verifier supports none.
        if header.crit.is_some() {
            return Err(Refused::Invalid("critical extensions"));
        }
        if header.typ.as_deref().is_some_and(|typ| !is_type(typ)) {
            return Err(Refused::Invalid("of another type"));
        }
        let kid = header.kid.as_deref();
        let keys = match &self.keys {
            KeySource::Set(jwks) if !keys.have(kid, header.alg) => jwks.newer(keys.generation).await,
            _ => keys,
        };
        if keys.is_empty() {
            return Err(Refused::KeysUnknown);
        }
        let mut refused = Refused::Invalid("no key for it");
        for key in keys.candidates(kid, header.alg) {
            match self.claims(token, key).and_then(|claims| self.user_of(&claims, now)) {
                Ok((user, until)) => {
                    self.verified.put(digest, keys.generation, user, until);
                    return Ok(user);
                }
                Err(why) => refused = why,
            }
        }
        Err(refused)
    }

    /// The name in a token that [`Tokens::user`] has accepted, if a user can have it.
    pub fn name(&self, accepted: &str) -> Option<String> {
        let claims = URL_SAFE_NO_PAD.decode(accepted.split('.').nth(1)?).ok()?;
        let claims: Map<String, Value> = serde_json::from_slice(&claims).ok()?;
        let name = claims.get(&self.name_claim)?.as_str()?.trim();
        is_user_name(name).then(|| name.to_owned())
    }

    /// The claims of the token, if `key` signed it and its issuer and audience are the required ones.
    fn claims(&self, token: &str, key: &TokenKey) -> Result<Map<String, Value>, Refused> {
        let validation = Validation { algorithms: key.algorithms.clone(), ..self.validation.clone() };
        let decoded = decode::<Map<String, Value>>(token, &key.decoding, &validation);
        decoded.map(|decoded| decoded.claims).map_err(|error| {
            use jsonwebtoken::errors::ErrorKind::*;
            Refused::Invalid(match error.kind() {
                InvalidSignature => "invalid signature",
                InvalidIssuer => "other issuer",
                InvalidAudience => "other audience",
                MissingRequiredClaim(_) => "missing claim",
                InvalidAlgorithm => "other algorithm",
                _ => "not a token",
            })
        })
    }

    /// The user, and the end of the token's validity in ms.
    fn user_of(&self, claims: &Map<String, Value>, now: i64) -> Result<(UserId, i64), Refused> {
        let expires = instant(claims.get("exp")).ok_or(Refused::Invalid("without an end"))?;
        let until = expires.saturating_add(LEEWAY_MS);
        if now >= until {
            return Err(Refused::Invalid("expired"));
        }
        if let Some(begins) = claims.get("nbf") {
            let begins = instant(Some(begins)).ok_or(Refused::Invalid("with a beginning that is no time"))?;
            if now < begins.saturating_sub(LEEWAY_MS) {
                return Err(Refused::Invalid("not good yet"));
            }
        }
        let id = match claims.get(&self.user_claim) {
            Some(Value::Number(id)) => id.as_i64(),
            Some(Value::String(id)) => digits(id),
            _ => None,
        };
        let user = id.and_then(UserId::new).ok_or(Refused::Invalid("without a user"))?;
        Ok((user, until))
    }
}

/// Validates the issuer and the audience. The key determines the algorithms, and [`Tokens::user_of`] compares the times
/// with this process's own clock, because an issuer does not use the store's.
fn validation(config: &AuthConfig) -> Validation {
    let (issuer, audience) = (&config.auth_jwt_issuer, &config.auth_jwt_audience);
    let required = [("iss", issuer), ("aud", audience)].into_iter().filter(|(_, value)| value.is_some());
    Validation {
        required_spec_claims: required.map(|(claim, _)| claim.to_owned()).collect(),
        validate_exp: false,
        validate_nbf: false,
        validate_aud: audience.is_some(),
        iss: issuer.clone().map(|issuer| [issuer].into()),
        aud: audience.clone().map(|audience| [audience].into()),
        ..Validation::default()
    }
}

/// A `NumericDate` (RFC 7519, 2) in milliseconds. The claim is in seconds since the epoch, possibly with a fraction.
pub(crate) fn instant(claim: Option<&Value>) -> Option<i64> {
    let seconds = claim?.as_f64()?;
    // The bound is far beyond any real time, and a double is still exact there.
    (0.0..1e12).contains(&seconds).then_some((seconds * 1e3) as i64)
}

/// Whether `typ` is one of [`TYPES`], with or without `application/`, in any case.
fn is_type(typ: &str) -> bool {
    const PREFIX: &str = "application/";
    let short = typ.split_at_checked(PREFIX.len()).filter(|(prefix, _)| prefix.eq_ignore_ascii_case(PREFIX));
    let short = short.map_or(typ, |(_, short)| short);
    TYPES.iter().any(|known| short.eq_ignore_ascii_case(known))
}

/// Parses the canonical spelling of a positive number: digits without leading zeros. Other spellings would make one user
/// two for code that compares texts.
fn digits(text: &str) -> Option<i64> {
    let all_digits = (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits && !text.starts_with('0') { text.parse().ok() } else { None }
}

#[cfg(test)]
pub(crate) mod tests;
