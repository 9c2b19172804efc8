//! Who may operate: the bearer token of `/admin`.

use std::fmt;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::Response,
};
use sha2::{Digest, Sha256};

use super::error::{ApiError, Code};

/// The operators' token; only its hash is kept.
#[derive(Clone, Copy)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// `None` for an empty token: that is no protection.
    pub fn new(token: &str) -> Option<Self> {
        (!token.is_empty()).then(|| AdminToken(Sha256::digest(token.as_bytes()).into()))
    }

    /// Takes the same time however much of `token` is right.
    fn admits(&self, token: &[u8]) -> bool {
        let theirs: [u8; 32] = Sha256::digest(token).into();
        self.0.iter().zip(theirs).fold(0, |differing, (ours, theirs)| differing | (ours ^ theirs)) == 0
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Lets operators through and nobody else; nobody at all where no token is configured.
pub async fn operators_only(
    State(token): State<Option<AdminToken>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match (token, bearer(request.headers())) {
        (Some(token), Some(theirs)) if token.admits(theirs) => Ok(next.run(request).await),
        _ => Err(Code::Unauthorized.into()),
    }
}

/// The token of `Authorization: Bearer …`, said once.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn admitted(token: Option<AdminToken>, authorization: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in authorization {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        bearer(&headers).zip(token).is_some_and(|(theirs, token)| token.admits(theirs))
    }

    #[test]
    fn one_right_token_opens() {
        let token = AdminToken::new("right");
        assert!(admitted(token, &["Bearer right"]));
        assert!(admitted(token, &["bearer  right"]));
        for wrong in ["Bearer wrong", "Bearer ", "Bearer", "Basic right", "right", "Bearer right2", ""] {
            assert!(!admitted(token, &[wrong]), "{wrong}");
        }
        assert!(!admitted(token, &[]));
        assert!(!admitted(token, &["Bearer right", "Bearer right"]));
    }

    #[test]
    fn no_token_opens_to_nobody_and_none_is_printed() {
        assert!(AdminToken::new("").is_none());
        assert!(!admitted(None, &["Bearer "]));
        assert_eq!(format!("{:?}", AdminToken::new("right").unwrap()), "***");
    }
}
