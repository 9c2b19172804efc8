//! What an ID token must claim (OpenID Connect Core 1.0, 3.1.3.7), and the operator that it names.

use jsonwebtoken::{Header, Validation, decode, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use super::{Account, SignInError};
use crate::{
    config::OidcConfig,
    jwt::{LEEWAY_MS, instant, keys::TokenKeys},
    model::{Clock, Role},
};

/// The maximum length of an operator's name, and of `sub` (OpenID Connect Core 1.0, 2), in bytes.
const MAX_NAME_LEN: usize = 255;

type Claims = Map<String, Value>;

/// Verifies ID tokens.
pub struct IdTokens {
    validation: Validation,
    client_id: String,
    role_claim: String,
    /// `None`: the verified email, else `sub`.
    name_claim: Option<String>,
    clock: Clock,
}

/// The header of a token.
///
/// # Errors
/// It is no token, or one for another purpose.
pub fn header(token: &str) -> Result<Header, SignInError> {
    let header = decode_header(token).map_err(|_| SignInError::Token("not a token"))?;
    // Critical extensions must be understood (RFC 7515, 4.1.11). This verifier supports none.
    if header.crit.is_some() {
        return Err(SignInError::Token("critical extensions"));
    }
    // An access token of the same provider is no ID token (RFC 8725, 3.11).
    if header.typ.as_deref().is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
        return Err(SignInError::Token("of another type"));
    }
    Ok(header)
}

impl IdTokens {
    pub fn new(issuer: &str, client_id: &str, config: &OidcConfig, clock: Clock) -> Self {
        // `identity` compares the times with this process's own clock.
        let validation = Validation {
            required_spec_claims: ["iss", "aud"].map(str::to_owned).into(),
            validate_exp: false,
            validate_nbf: false,
            validate_aud: true,
            iss: Some([issuer.to_owned()].into()),
            aud: Some([client_id.to_owned()].into()),
            ..Validation::default()
        };
        let (role_claim, name_claim) = (config.ops_oidc_role_claim.clone(), config.ops_oidc_name_claim.clone());
        IdTokens { validation, client_id: client_id.to_owned(), role_claim, name_claim, clock }
    }

    /// The operator whom a token names.
    ///
    /// # Errors
    /// The token is not the provider's, not for this client, not of this sign-in, not valid now, or gives no role.
    pub fn identity(
        &self,
        token: &str,
        header: &Header,
        keys: &TokenKeys,
        nonce: &str,
    ) -> Result<Account, SignInError> {
        let claims = self.claims(token, header, keys)?;
        self.check_audience(&claims)?;
        self.check_times(&claims)?;
        let theirs = claims.get("nonce").and_then(Value::as_str).unwrap_or_default();
        if !bool::from(theirs.as_bytes().ct_eq(nonce.as_bytes())) {
            return Err(SignInError::Nonce);
        }
        let name = self.name_of(&claims)?;
        let role = role_of(&claims, &self.role_claim);
        let role = role.ok_or_else(|| SignInError::Role(name.clone(), self.role_claim.clone()))?;
        Ok(Account { name, role })
    }

    /// The claims of a token that one of the keys signed for this client. The key determines the algorithm, never the token.
    fn claims(&self, token: &str, header: &Header, keys: &TokenKeys) -> Result<Claims, SignInError> {
        let mut refused = SignInError::Token("no key for it");
        for key in keys.candidates(header.kid.as_deref(), header.alg) {
            let validation = Validation { algorithms: key.algorithms.clone(), ..self.validation.clone() };
            match decode::<Claims>(token, &key.decoding, &validation) {
                Ok(decoded) => return Ok(decoded.claims),
                Err(error) => {
                    refused = match error.kind() {
                        ErrorKind::InvalidSignature => SignInError::Token("invalid signature"),
                        ErrorKind::InvalidIssuer => SignInError::Issuer,
                        ErrorKind::InvalidAudience => SignInError::Audience,
                        ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => SignInError::Issuer,
                        ErrorKind::MissingRequiredClaim(_) => SignInError::Audience,
                        ErrorKind::InvalidAlgorithm => SignInError::Token("other algorithm"),
                        _ => SignInError::Token("not a token"),
                    }
                }
            }
        }
        Err(refused)
    }

    /// A token for several audiences, or with `azp`, must have been issued to this client.
    fn check_audience(&self, claims: &Claims) -> Result<(), SignInError> {
        let several = claims.get("aud").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
        let ours = match claims.get("azp") {
            Some(client) => *client == *self.client_id,
            None => !several,
        };
        if ours { Ok(()) } else { Err(SignInError::Audience) }
    }

    fn check_times(&self, claims: &Claims) -> Result<(), SignInError> {
        let now = self.clock.own().0;
        let time = |claim: &str| instant(claims.get(claim));
        let expires = time("exp").ok_or(SignInError::Token("without an end"))?;
        if now >= expires.saturating_add(LEEWAY_MS) {
            return Err(SignInError::Expired("expired"));
        }
        let issued = time("iat").ok_or(SignInError::Token("without a time of issue"))?;
        let begins =
            if claims.contains_key("nbf") { time("nbf").ok_or(SignInError::Token("not a time"))? } else { issued };
        if now < issued.max(begins).saturating_sub(LEEWAY_MS) {
            return Err(SignInError::Expired("issued in the future"));
        }
        Ok(())
    }

    fn name_of(&self, claims: &Claims) -> Result<String, SignInError> {
        let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
        let verified = claims.get("email_verified") == Some(&Value::Bool(true));
        let claim = match &self.name_claim {
            Some(claim) => claim.as_str(),
            None if verified && text("email").is_some() => "email",
            None => "sub",
        };
        let usable = |name: &&str| {
            (1..=MAX_NAME_LEN).contains(&name.len()) && name.trim() == *name && !name.chars().any(char::is_control)
        };
        // `sub` is there in every ID token, and no name replaces it.
        let named = text("sub").filter(usable).and(text(claim)).filter(usable);
        named.map(str::to_owned).ok_or_else(|| SignInError::Name(claim.to_owned()))
    }
}

/// The highest role that the claim names: a text, or a list of texts. Other texts count for nothing: a company's claim also has
/// the roles of its other services.
fn role_of(claims: &Claims, claim: &str) -> Option<Role> {
    let nested = || {
        let (first, rest) = claim.split_once('.')?;
        rest.split('.').try_fold(claims.get(first)?, |value, name| value.get(name))
    };
    let texts = match claims.get(claim).or_else(nested)? {
        Value::Array(items) => items.as_slice(),
        text => std::slice::from_ref(text),
    };
    let roles = texts.iter().filter_map(|text| text.as_str()?.parse::<Role>().ok());
    roles.max_by_key(|role| *role as u8)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn role_is_highest_that_claim_names() {
        let claims = json!({
            "roles": ["shop-buyer", "viewer", "operator", 7, null],
            "role": "admin",
            "https://shop.example/roles": ["viewer"],
            "realm_access": {"roles": ["operator"]},
            "none": ["Admin", "viewer admin", "administrator", ""],
            "object": {"admin": true},
        });
        let claims = claims.as_object().unwrap();
        for (claim, role) in [
            ("roles", Some(Role::Operator)),
            ("role", Some(Role::Admin)),
            ("https://shop.example/roles", Some(Role::Viewer)),
            ("realm_access.roles", Some(Role::Operator)),
            ("none", None),
            ("object", None),
            ("object.admin", None),
            ("missing", None),
            ("realm_access.roles.0", None),
            ("", None),
        ] {
            assert_eq!(role_of(claims, claim), role, "{claim}");
        }
    }

    #[test]
    fn name_is_verified_email_or_subject() {
        let of = |claim: Option<&str>, claims: Value| {
            let config = OidcConfig { ops_oidc_name_claim: claim.map(str::to_owned), ..OidcConfig::default() };
            let tokens = IdTokens::new("https://id.example", "shop", &config, Clock::system());
            tokens.name_of(claims.as_object().unwrap()).ok()
        };
        let named = |name: &str| Some(name.to_owned());
        let kim = json!({"sub": "7", "email": "kim@shop.example", "email_verified": true, "nick": "김"});
        assert_eq!(of(None, kim.clone()), named("kim@shop.example"));
        assert_eq!(of(Some("sub"), kim.clone()), named("7"));
        assert_eq!(of(Some("nick"), kim.clone()), named("김"));
        assert_eq!(of(Some("missing"), kim), None);
        for unverified in [json!(false), json!("true"), json!(null)] {
            assert_eq!(of(None, json!({"sub": "7", "email": "a@b", "email_verified": unverified})), named("7"));
        }
        for bad in ["", " a", "a\n", "a\u{7f}", &"a".repeat(256)] {
            assert_eq!(of(None, json!({"sub": bad})), None, "{bad:?}");
            assert_eq!(of(Some("nick"), json!({"sub": "7", "nick": bad})), None, "{bad:?}");
        }
        assert_eq!(of(None, json!({"email": "a@b", "email_verified": true})), None, "no subject");
        assert_eq!(of(None, json!({"sub": 7})), None);
    }
}
