//! Operators, their roles and their tokens.
//!
//! A request authenticates an operator by a token (`Authorization: Bearer …`), or by a [session](super::session) together with the
//! header [`CSRF_HEADER`](crate::http::headers::CSRF_HEADER). Its extensions have the [`Operator`], for the access log and the
//! operator log.

use std::{fmt, sync::Arc};

use anyhow::{bail, ensure};
use axum::http::{HeaderMap, header::AUTHORIZATION};
use ring::hmac;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    config::{OperatorsConfig, Secret},
    model::Role,
};

/// The operator of `ADMIN_TOKEN`.
const ADMIN: &str = "admin";
/// The characters of a token, at least: shorter ones could be guessed.
const MIN_TOKEN_LEN: usize = 16;
/// Each request's token is compared with those of all operators.
const MAX_OPERATORS: usize = 1000;

/// What the names of operators with a company's account begin with; no token's operator has such a name.
pub const PROVIDER_PREFIX: &str = "oidc:";

/// An operator: a name, 1–32 characters `[a-z0-9._-]` or the name of a company's account after [`PROVIDER_PREFIX`], and a role. In the extensions of an operator's request and of its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    name: Arc<str>,
    role: Role,
}

impl Operator {
    /// The operator of this name and role.
    pub fn named(name: &str, role: Role) -> Self {
        Operator { name: name.into(), role }
    }

    /// The operator with this company's account.
    pub fn of_provider(name: &str, role: Role) -> Self {
        Operator::named(&format!("{PROVIDER_PREFIX}{name}"), role)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }
}

/// The hash of a token; the token itself is not kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    fn new(token: &[u8]) -> Self {
        Token(Sha256::digest(token).into())
    }

    /// The token of the setting `name`. An empty one counts as absent: it would protect nothing.
    ///
    /// # Errors
    /// The token is too short or has unprintable characters. The message does not contain it.
    pub fn given(name: &str, secret: Option<&Secret>) -> anyhow::Result<Option<Self>> {
        let token = secret.map(|secret| secret.expose().trim()).filter(|token| !token.is_empty());
        token.map(|token| checked(name, token).map(|()| Token::new(token.as_bytes()))).transpose()
    }

    /// Whether `theirs` is this token.
    pub fn is(&self, theirs: &[u8]) -> bool {
        self.same(&Token::new(theirs))
    }

    /// Takes the same time for any two hashes.
    fn same(&self, other: &Token) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// An operator with the token.
pub struct Credential {
    pub operator: Operator,
    token: Token,
}

impl Credential {
    /// The key that signs this operator's sessions: a new token invalidates the old sessions.
    pub fn session_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.token.0)
    }
}

/// All operators.
#[derive(Clone, Default)]
pub struct Operators(Arc<[Credential]>);

impl Operators {
    /// The operators of the configuration. An empty token counts as absent: it would protect nothing.
    ///
    /// # Errors
    /// `ADMIN_TOKENS` is invalid. The message does not contain a token.
    pub fn new(config: &OperatorsConfig) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        if let Some(token) = Token::given("ADMIN_TOKEN", config.admin_token.as_ref())? {
            all.push(Credential { operator: Operator::named(ADMIN, Role::Admin), token });
        }
        let named = config.admin_tokens.as_ref().map_or("", |named| named.expose());
        for (n, entry) in named.split(',').map(str::trim).filter(|entry| !entry.is_empty()).enumerate() {
            let Some((name, rest)) = entry.split_once(':') else {
                bail!("ADMIN_TOKENS: entry {} is neither name:token nor name:role:token", n + 1);
            };
            ensure!(is_name(name), "ADMIN_TOKENS: the name of entry {} is not 1 to 32 characters a-z 0-9 . _ -", n + 1);
            let (role, token) = role_and_token(name, rest)?;
            checked(&format!("ADMIN_TOKENS: the token of {name}"), token)?;
            all.push(Credential { operator: Operator::named(name, role), token: Token::new(token.as_bytes()) });
        }
        ensure!(all.len() <= MAX_OPERATORS, "ADMIN_TOKENS: more than {MAX_OPERATORS} operators");
        for (n, one) in all.iter().enumerate() {
            let name = one.operator.name();
            let others = &all[..n];
            ensure!(others.iter().all(|other| other.operator.name() != name), "ADMIN_TOKENS: {name} is named twice");
            // The operator log could not tell them apart.
            ensure!(
                others.iter().all(|other| !other.token.same(&one.token)),
                "{name} has the token of another operator"
            );
        }
        Ok(Operators(all.into()))
    }

    /// Whether there is no operator.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The operator with this token. Takes the same time for any token.
    pub fn with_token(&self, token: &[u8]) -> Option<&Credential> {
        let theirs = Token::new(token);
        let mut found = None;
        for credential in self.0.iter() {
            if credential.token.same(&theirs) {
                found = Some(credential);
            }
        }
        found
    }

    pub fn named(&self, name: &str) -> Option<&Credential> {
        self.0.iter().find(|credential| credential.operator.name() == name)
    }
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|credential| credential.operator.name())).finish()
    }
}

/// The role and the token of `token` or `role:token`. A token alone is an admin's, and may have colons, as before there were
/// roles. A word before the colon is a role: a mistyped one must not make an admin.
fn role_and_token<'a>(name: &str, rest: &'a str) -> anyhow::Result<(Role, &'a str)> {
    let Some((word, token)) = rest.split_once(':') else { return Ok((Role::Admin, rest)) };
    if let Ok(role) = word.parse() {
        return Ok((role, token));
    }
    ensure!(
        word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_alphabetic()),
        "ADMIN_TOKENS: the role of {name} is not viewer, operator or admin (a token that begins with letters and a colon is \
         written as name:admin:token)"
    );
    Ok((Role::Admin, rest))
}

/// Refuses a token that could be guessed. `what` names the setting in the message.
fn checked(what: &str, token: &str) -> anyhow::Result<()> {
    let strong = token.len() >= MIN_TOKEN_LEN && token.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(strong, "{what} is not {MIN_TOKEN_LEN} or more printable characters: make one with `openssl rand -hex 32`");
    Ok(())
}

/// Whether an operator may have this name.
pub fn is_operator_name(name: &str) -> bool {
    let account = name.strip_prefix(PROVIDER_PREFIX);
    let is_account =
        |account: &str| (1..=255).contains(&account.chars().count()) && !account.chars().any(char::is_control);
    is_name(name) || account.is_some_and(is_account)
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    (1..=32).contains(&name.len()) && name.bytes().all(legal)
}

/// The token of `Authorization: Bearer …`; `None` if the header is absent or repeated.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn operators(admin: Option<&str>, named: Option<&str>) -> anyhow::Result<Operators> {
        Operators::new(&OperatorsConfig {
            admin_token: admin.map(Secret::new),
            admin_tokens: named.map(Secret::new),
            ..OperatorsConfig::default()
        })
    }

    const RIGHT: &str = "the-right-token-01";

    fn admitted(operators: &Operators, authorization: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        let known = operators.with_token(bearer(&headers)?)?;
        Some(known.operator.name().to_owned())
    }

    #[test]
    fn operator_admitted_with_right_token_only() {
        let operators = operators(Some(RIGHT), None).unwrap();
        assert_eq!(admitted(&operators, &["Bearer the-right-token-01"]).as_deref(), Some("admin"));
        assert_eq!(admitted(&operators, &["bearer  the-right-token-01"]).as_deref(), Some("admin"));
        for wrong in
            ["Bearer wrong", "Bearer ", "Bearer", "Basic the-right-token-01", RIGHT, "Bearer the-right-token-012", ""]
        {
            assert_eq!(admitted(&operators, &[wrong]), None, "{wrong}");
        }
        assert_eq!(admitted(&operators, &[]), None);
        assert_eq!(admitted(&operators, &["Bearer the-right-token-01", "Bearer the-right-token-01"]), None);
    }

    #[test]
    fn operator_named_by_its_token() {
        let operators = operators(Some(RIGHT), Some("kim:0123456789abcdef, lee.2:fedcba9876543210,")).unwrap();
        for (token, name) in [
            ("Bearer the-right-token-01", "admin"),
            ("Bearer 0123456789abcdef", "kim"),
            ("Bearer fedcba9876543210", "lee.2"),
        ] {
            assert_eq!(admitted(&operators, &[token]).as_deref(), Some(name));
        }
        assert_eq!(admitted(&operators, &["Bearer kim:0123456789abcdef"]), None);
        assert_eq!(admitted(&operators, &["Bearer 0123456789abcde"]), None);
    }

    #[test]
    fn operator_has_role_of_its_entry() {
        let named = "kim:viewer:0123456789abcdef,lee:operator:1123456789abcdef,park:admin:2123:456789abcdef,choi:3123456789abcdef,\
                     oh:4:viewer:0123456789";
        let operators = operators(Some(RIGHT), Some(named)).unwrap();
        for (token, name, role) in [
            (RIGHT, "admin", Role::Admin),
            ("0123456789abcdef", "kim", Role::Viewer),
            ("1123456789abcdef", "lee", Role::Operator),
            ("2123:456789abcdef", "park", Role::Admin),
            ("3123456789abcdef", "choi", Role::Admin),
            ("4:viewer:0123456789", "oh", Role::Admin),
        ] {
            let operator = &operators.with_token(token.as_bytes()).unwrap().operator;
            assert_eq!((operator.name(), operator.role()), (name, role));
        }
        assert!(operators.with_token(b"viewer:0123456789abcdef").is_none());
    }

    #[test]
    fn operator_refused_when_no_token_configured() {
        for none in [operators(None, None), operators(Some(""), Some("")), operators(Some(" "), Some(" , "))] {
            let none = none.unwrap();
            assert!(none.is_empty());
            assert_eq!(admitted(&none, &["Bearer "]), None);
        }
        let printed = format!("{:?}", operators(Some(RIGHT), Some("kim:0123456789abcdef")).unwrap());
        assert_eq!(printed, r#"["admin", "kim"]"#);
    }

    #[test]
    fn token_setting_refused_without_printing_it() {
        let long = format!("{}:0123456789abcdef", "k".repeat(33));
        for wrong in [
            "secret-0123456789",
            "kim:secret-too",
            ":secret-0123456789",
            "Kim:secret-0123456789",
            "k m:secret-0123456789",
            "kim:secret 0123456789",
            "kim:secret-0123456789,kim:secret-9876543210",
            "kim:secret-0123456789,lee:secret-0123456789",
            "admin:secret-0123456789",
            "kim:secret-of-the-admin",
            "kim:viewer:secret-too",
            "kim:veiwer:secret-0123456789",
            "kim:Admin:secret-0123456789",
            "kim:viewer:secret-0123456789,kim:admin:secret-9876543210",
            "kim:viewer:secret-0123456789,lee:secret-0123456789",
            &long,
        ] {
            let refused = operators(Some("secret-of-the-admin"), Some(wrong)).unwrap_err().to_string();
            assert!(!refused.contains("secret"), "{refused}");
        }
        assert!(operators(None, Some("admin:secret-0123456789")).is_ok());
        for guessable in ["a", "secret-012345", "secret 0123456789", "비밀-비밀-비밀-비밀"] {
            let refused = operators(Some(guessable), None).unwrap_err().to_string();
            assert!(refused.starts_with("ADMIN_TOKEN is not 16 or more") && !refused.contains("secret"), "{refused}");
            let refused = Token::given("METRICS_TOKEN", Some(&Secret::new(guessable))).err().unwrap().to_string();
            assert!(refused.starts_with("METRICS_TOKEN is not 16 or more") && !refused.contains("secret"), "{refused}");
        }
    }
}
