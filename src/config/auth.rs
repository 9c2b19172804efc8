//! Settings of operators' and users' tokens.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{OidcConfig, Secret};

/// Operators.
#[derive(Args, Clone, Debug, Default)]
pub struct OperatorsConfig {
    /// The token of the operator named admin, of 16 or more printable characters; without any token the operators' API answers 401
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<Secret>,
    /// More operators, each with a role and a token of its own: name:role:token,name:role:token. A role is viewer (reads),
    /// operator (sales) or admin (everything; also where the entry is name:token), a name 1 to 32 characters a-z 0-9 . _ -, a
    /// token 16 or more printable characters without a comma
    #[arg(long, env = "ADMIN_TOKENS", hide_env_values = true)]
    pub admin_tokens: Option<Secret>,
    /// Browsers send the cookie of the dashboard's session over https only: for a service behind a TLS proxy
    #[arg(long, env = "OPS_COOKIE_SECURE")]
    pub ops_cookie_secure: bool,
    #[command(flatten)]
    pub oidc: OidcConfig,
}

impl OperatorsConfig {
    /// One operator, named admin, with this token.
    pub fn admin(token: impl Into<String>) -> Self {
        OperatorsConfig { admin_token: Some(Secret::new(token)), ..OperatorsConfig::default() }
    }
}

/// The source of a user's identity.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// The request: a component in front of the service authenticates users.
    #[default]
    None,
    /// An issuer's token.
    Jwt,
}

/// Users' tokens.
#[derive(Args, Clone, Debug)]
pub struct AuthConfig {
    /// Whether a request that acts for a user, or shows one, needs that user's token (Authorization: Bearer <JWT>)
    #[arg(long, env = "AUTH", value_enum, default_value_t)]
    pub auth: Auth,
    /// The secret, of 32 bytes or more, of tokens signed by HS256, HS384 or HS512
    #[arg(long, env = "AUTH_JWT_SECRET", hide_env_values = true)]
    pub auth_jwt_secret: Option<Secret>,
    /// The URL of the issuer's public keys (a JWK set); https, or http on this machine
    #[arg(long, env = "AUTH_JWKS_URL", hide_env_values = true)]
    pub auth_jwks_url: Option<Secret>,
    /// A file with the issuer's public keys
    #[arg(long, env = "AUTH_JWKS_FILE")]
    pub auth_jwks_file: Option<PathBuf>,
    /// Seconds between reads of the issuer's keys; a token with an unknown key causes a read at once
    #[arg(long, env = "AUTH_JWKS_REFRESH_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    pub auth_jwks_refresh_seconds: u64,
    /// The issuer (iss) that a token must name
    #[arg(long, env = "AUTH_JWT_ISSUER")]
    pub auth_jwt_issuer: Option<String>,
    /// The audience (aud) that a token must name
    #[arg(long, env = "AUTH_JWT_AUDIENCE")]
    pub auth_jwt_audience: Option<String>,
    /// The claim with the user's id: a whole number, or its digits
    #[arg(long, env = "AUTH_JWT_USER_CLAIM", default_value = "sub")]
    pub auth_jwt_user_claim: String,
    /// A valid token of a user that does not exist creates the user
    #[arg(long, env = "AUTH_CREATE_USERS")]
    pub auth_create_users: bool,
    /// The claim with the name of a user that is created; without a usable one the name is user- and the id
    #[arg(long, env = "AUTH_JWT_NAME_CLAIM", default_value = "name")]
    pub auth_jwt_name_claim: String,
}

impl Default for AuthConfig {
    fn default() -> Self {
        AuthConfig {
            auth: Auth::None,
            auth_jwt_secret: None,
            auth_jwks_url: None,
            auth_jwks_file: None,
            auth_jwks_refresh_seconds: 300,
            auth_jwt_issuer: None,
            auth_jwt_audience: None,
            auth_jwt_user_claim: "sub".to_owned(),
            auth_create_users: false,
            auth_jwt_name_claim: "name".to_owned(),
        }
    }
}
