//! Who a user is, by its token: `AUTH=jwt`.
//!
//! Owns: which keys a token may be signed with ([`keys`], [`jwks`]), what a token must say, and how a signature is verified
//! ([`crypto`]). Leaves to `http::acting` which requests need a token, and that its user is the one they act for.
//!
//! Which algorithm verifies a token is decided by the key, never by the token: a key of one kind is not taken for another,
//! and `none` is no algorithm here.

mod crypto;
mod jwks;
mod keys;

mod verified;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use jsonwebtoken::{Validation, decode, decode_header};
use serde_json::{Map, Value};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    jwks::Jwks,
    keys::{Key, Keys},
    verified::Verified,
};
use crate::{
    config::{Auth, AuthConfig},
    model::{Clock, Error, UserId},
};

/// Seconds that our clock and an issuer's may differ.
const LEEWAY_MS: i64 = 30_000;
/// What a token may say that it is (RFC 7515, 4.1.9), where it says so: a JWT, or a JWT that is an access token (RFC 9068, 2.1).
/// What an issuer signs for something else (RFC 8725, 3.11) opens nothing here.
const TYPES: [&str; 2] = ["JWT", "at+jwt"];
/// Bytes of the shortest secret that is one: what HS256 asks for (RFC 7518, 3.2).
const SHORTEST_SECRET: usize = 32;

/// Why nobody is known by a token.
#[derive(Debug)]
pub enum Refused {
    /// It is none, or not a good one; why is for the log.
    Invalid(&'static str),
    /// There are no keys yet to verify it with.
    KeysUnknown,
}

impl From<Refused> for Error {
    fn from(_: Refused) -> Self {
        Error::unavailable("the keys of users' tokens are not known yet")
    }
}

/// Verifies users' tokens.
pub struct Tokens {
    keys: Source,
    /// What a token must say of where it comes from and whom it is for.
    validation: Validation,
    /// The claim that has the user's id.
    user_claim: String,
    clock: Clock,
    verified: Verified,
}

/// Where keys come from.
enum Source {
    Secret(Arc<Keys>),
    Set(Arc<Jwks>),
}

impl Tokens {
    /// As configured; `None` where users need no token. A set of keys in a file is read here; one behind a URL is fetched by
    /// [`Tokens::follow`].
    ///
    /// # Errors
    /// A configuration that can't be meant, or a file that is not a set of keys.
    pub fn new(config: &AuthConfig, clock: Clock) -> anyhow::Result<Option<Arc<Tokens>>> {
        let AuthConfig { auth, auth_jwt_secret, auth_jwks_url, auth_jwks_file, .. } = config;
        if *auth == Auth::None {
            let any = auth_jwt_secret.is_some() || auth_jwks_url.is_some() || auth_jwks_file.is_some();
            anyhow::ensure!(!any, "there are keys for users' tokens, which AUTH=jwt would use; AUTH=none needs none");
            return Ok(None);
        }
        crypto::install();
        let every = Duration::from_secs(config.auth_jwks_refresh_seconds);
        let keys = match (auth_jwt_secret, auth_jwks_url, auth_jwks_file) {
            (Some(secret), None, None) => {
                let secret = secret.expose().as_bytes();
                anyhow::ensure!(
                    secret.len() >= SHORTEST_SECRET,
                    "AUTH_JWT_SECRET has less than {SHORTEST_SECRET} bytes"
                );
                Source::Secret(Arc::new(Keys::of_secret(secret)))
            }
            (None, Some(url), None) => Source::Set(Jwks::of_url(url.expose(), every)?),
            (None, None, Some(file)) => Source::Set(Jwks::of_file(file, every).context("AUTH_JWKS_FILE")?),
            _ => anyhow::bail!("AUTH=jwt takes one of AUTH_JWT_SECRET, AUTH_JWKS_URL and AUTH_JWKS_FILE"),
        };
        anyhow::ensure!(!config.auth_jwt_user_claim.is_empty(), "AUTH_JWT_USER_CLAIM is empty");
        Ok(Some(Arc::new(Tokens {
            keys,
            validation: validation(config),
            user_claim: config.auth_jwt_user_claim.clone(),
            clock,
            verified: Verified::default(),
        })))
    }

    /// Starts keeping up with the set of keys, where it is one: at once, on a timer, and when a token names a key that is not
    /// known.
    pub fn follow(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) {
        if let Source::Set(jwks) = &self.keys {
            let (jwks, stop) = (jwks.clone(), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = jwks.follow() => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// Whose token this is. Waits for keys for a bounded time at most.
    ///
    /// # Errors
    /// Nobody's.
    pub async fn user(&self, token: &str) -> Result<UserId, Refused> {
        let keys = match &self.keys {
            Source::Secret(keys) => keys.clone(),
            Source::Set(jwks) => jwks.current(),
        };
        let now = self.clock.own().0;
        let digest = verified::digest(token);
        if let Some(user) = self.verified.get(&digest, keys.generation, now) {
            return Ok(user);
        }
        let header = decode_header(token).map_err(|_| Refused::Invalid("not a token"))?;
        // Extensions that have to be understood (RFC 7515, 4.1.11), and none is.
        if header.crit.is_some() {
            return Err(Refused::Invalid("critical extensions"));
        }
        if header.typ.as_deref().is_some_and(|typ| !is_type(typ)) {
            return Err(Refused::Invalid("of another type"));
        }
        let kid = header.kid.as_deref();
        let keys = match &self.keys {
            Source::Set(jwks) if !keys.have(kid, header.alg) => jwks.newer(keys.generation).await,
            _ => keys,
        };
        if keys.is_empty() {
            return Err(Refused::KeysUnknown);
        }
        let mut refused = Refused::Invalid("no key for it");
        for key in keys.fitting(kid, header.alg) {
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

    /// What the token says, if this key signed it and it is from and for whom it should be.
    fn claims(&self, token: &str, key: &Key) -> Result<Map<String, Value>, Refused> {
        let validation = Validation { algorithms: key.algorithms.clone(), ..self.validation.clone() };
        let decoded = decode::<Map<String, Value>>(token, &key.decoding, &validation);
        decoded.map(|decoded| decoded.claims).map_err(|error| {
            use jsonwebtoken::errors::ErrorKind::*;
            Refused::Invalid(match error.kind() {
                InvalidSignature => "signed by somebody else",
                InvalidIssuer => "of another issuer",
                InvalidAudience => "for another audience",
                MissingRequiredClaim(_) => "without a claim that it must have",
                InvalidAlgorithm => "of another algorithm",
                _ => "not a token",
            })
        })
    }

    /// The user, and until when (ms) the token is good.
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

/// All but the algorithms, which are a key's, and the times, which are held against this process's own clock: no token is of the store.
fn validation(config: &AuthConfig) -> Validation {
    let (issuer, audience) = (&config.auth_jwt_issuer, &config.auth_jwt_audience);
    let required = [("iss", issuer), ("aud", audience)].into_iter().filter(|(_, wanted)| wanted.is_some());
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

/// A `NumericDate` (RFC 7519, 2) in milliseconds: seconds since the epoch, perhaps with a fraction.
fn instant(claim: Option<&Value>) -> Option<i64> {
    let seconds = claim?.as_f64()?;
    // Far beyond any time, and still exact.
    (0.0..1e12).contains(&seconds).then_some((seconds * 1e3) as i64)
}

/// A media type, of which `application/` may be left out; in any case.
fn is_type(typ: &str) -> bool {
    const PREFIX: &str = "application/";
    let short = typ.split_at_checked(PREFIX.len()).filter(|(prefix, _)| prefix.eq_ignore_ascii_case(PREFIX));
    let short = short.map_or(typ, |(_, short)| short);
    TYPES.iter().any(|known| short.eq_ignore_ascii_case(known))
}

/// Digits and nothing else, as a number is written: two spellings of one user would be two for everybody who compares texts.
fn digits(text: &str) -> Option<i64> {
    let plain = (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain && !text.starts_with('0') { text.parse().ok() } else { None }
}

#[cfg(test)]
pub(crate) mod tests;
