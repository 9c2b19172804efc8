//! Settings of the operators' identity provider.

use clap::Args;

use super::Secret;

/// Sign-in to the dashboard with the company's accounts (OpenID Connect).
#[derive(Args, Clone, Debug)]
pub struct OidcConfig {
    /// The issuer of the identity provider, as it writes it; https, or http on this machine. Operators may then sign in at /ops
    /// with the company's accounts
    #[arg(long, env = "OPS_OIDC_ISSUER")]
    pub ops_oidc_issuer: Option<String>,
    /// The id of this client at the identity provider
    #[arg(long, env = "OPS_OIDC_CLIENT_ID")]
    pub ops_oidc_client_id: Option<String>,
    /// The secret of this client, of 16 or more printable characters; it also seals the sessions
    #[arg(long, env = "OPS_OIDC_CLIENT_SECRET", hide_env_values = true)]
    pub ops_oidc_client_secret: Option<Secret>,
    /// The claim of the ID token with the operator's role, or a list of roles: viewer, operator, admin. A path of objects is
    /// written with dots
    #[arg(long, env = "OPS_OIDC_ROLE_CLAIM", default_value = "roles")]
    pub ops_oidc_role_claim: String,
    /// The claim of the ID token that names the operator in the operator log; by default the verified email, else sub
    #[arg(long, env = "OPS_OIDC_NAME_CLAIM")]
    pub ops_oidc_name_claim: Option<String>,
    /// The scopes to ask for, separated by spaces; openid is always among them
    #[arg(long, env = "OPS_OIDC_SCOPES", default_value = "openid email profile")]
    pub ops_oidc_scopes: String,
    /// The URL to which the identity provider sends the browser back: https://HOST/ops/oidc/callback; by default of the host that
    /// the browser asked
    #[arg(long, env = "OPS_OIDC_REDIRECT_URL")]
    pub ops_oidc_redirect_url: Option<String>,
}

impl Default for OidcConfig {
    fn default() -> Self {
        OidcConfig {
            ops_oidc_issuer: None,
            ops_oidc_client_id: None,
            ops_oidc_client_secret: None,
            ops_oidc_role_claim: "roles".to_owned(),
            ops_oidc_name_claim: None,
            ops_oidc_scopes: "openid email profile".to_owned(),
            ops_oidc_redirect_url: None,
        }
    }
}
