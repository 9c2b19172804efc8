//! Authorization of users: with `AUTH=jwt` a request acts for the user of its token alone.
//!
//! A request names its user in the path, the query or the body. The extractor of each ([`PathId`](crate::http::extract::params::PathId),
//! [`Params`](crate::http::extract::params::Params), [`Write`](crate::http::extract::write::Write)) calls [`admit`], so that no handler
//! has to. The layer [`users_only`] turns a success into a 500 if the user was not checked, so that no handler can forget it.
//!
//! The token is checked first; its user is compared once the request has named one.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::anyhow;
use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{Extensions, request::Parts},
    middleware::Next,
    response::Response,
};

use super::operator::bearer;
use crate::{
    engine::Engine,
    http::{
        error::{ApiError, Code},
        request_id::RequestId,
    },
    jwt::{Refused, Tokens},
    model::{Error, UserId},
};

/// The routes of the API that concern no user. All others need a token, new ones included.
const OPEN: [&str; 4] =
    ["/api/v1/products", "/api/v1/products/popular", "/api/v1/products/{productId}", "/api/v1/campaigns"];

/// Whether requests to this route need a user's token.
pub fn needs_user(route: &str) -> bool {
    route.starts_with("/api/") && !OPEN.contains(&route)
}

/// The user of a request's token; none if users need no token.
#[derive(Clone, Debug)]
pub struct Caller(Option<Authenticated>);

#[derive(Clone, Debug)]
struct Authenticated {
    user: UserId,
    /// Set once the user is used for a decision.
    checked: Arc<AtomicBool>,
}

impl Caller {
    /// The user of the token, else the user that the request names, if any.
    pub fn or(self, named: Option<UserId>) -> Option<UserId> {
        self.0.map(|caller| caller.check()).or(named)
    }
}

impl Authenticated {
    fn check(&self) -> UserId {
        self.checked.store(true, Ordering::Relaxed);
        self.user
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Caller(parts.extensions.get::<Authenticated>().cloned()))
    }
}

/// Whether a request may act for `user`, if its path, query or body names one.
pub fn admit(extensions: &Extensions, user: Option<UserId>) -> Result<(), Code> {
    match (user, extensions.get::<Authenticated>()) {
        (Some(user), Some(caller)) if caller.check() != user => Err(Code::Forbidden),
        _ => Ok(()),
    }
}

/// What the layer needs.
#[derive(Clone)]
pub struct UserTokens {
    pub tokens: Arc<Tokens>,
    /// Creates the users of tokens that do not exist; `None`: they are unknown.
    pub creates: Option<Arc<Engine>>,
}

/// The layer. It is absent if users need no token.
pub async fn users_only(
    State(UserTokens { tokens, creates }): State<UserTokens>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let route = request.extensions().get::<MatchedPath>();
    if !route.is_some_and(|route| needs_user(route.as_str())) {
        return Ok(next.run(request).await);
    }
    let token = bearer(request.headers()).and_then(|token| std::str::from_utf8(token).ok());
    let token = token.ok_or(Code::InvalidToken)?;
    let user = match tokens.user(token).await {
        Ok(user) => user,
        Err(Refused::Invalid(why)) => {
            tracing::debug!(why, "token refused");
            return Err(Code::InvalidToken.into());
        }
        Err(unknown @ Refused::KeysUnknown) => return Err(Error::from(unknown).into()),
    };
    if let Some(engine) = creates {
        // Boxed: few requests create a user.
        let request_id = RequestId::of(request.extensions());
        Box::pin(engine.ensure_user(&request_id, user, || tokens.name(token))).await?;
    }
    let checked = Arc::new(AtomicBool::new(false));
    request.extensions_mut().insert(Authenticated { user, checked: checked.clone() });
    let response = next.run(request).await;
    if response.status().is_success() && !checked.load(Ordering::Relaxed) {
        return Err(Error::Internal(anyhow!("a handler did not ask whose request this is")).into());
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::Body,
        http::header::AUTHORIZATION,
        middleware::from_fn_with_state,
        routing::{get, post},
    };
    use serde_json::json;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        http::extract::params::PathId,
        jwt::tests::{config, signed},
        model::Clock,
    };

    fn app() -> Router {
        let tokens = Tokens::new(&config(), Clock::system()).unwrap().unwrap();
        let own = async |caller: Caller| caller.or(None).map_or(0, UserId::get).to_string();
        let named = async |user: PathId<UserId>| user.valid().map(|user| user.to_string());
        let forgetful = async || "everybody's secrets";
        Router::new()
            .route("/api/v1/own", get(own))
            .route("/api/v1/named/{userId}", get(named))
            .route("/api/v1/forgetful", get(forgetful))
            .route("/api/v1/refusing", post(async || ApiError::from(Code::InvalidRequest)))
            .route("/api/v1/products", get(forgetful))
            .route("/healthz", get(forgetful))
            .layer(from_fn_with_state(UserTokens { tokens, creates: None }, users_only))
    }

    async fn ask(method: &str, path: &str, token: Option<&str>) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        app().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn reply_withheld_when_handler_checks_no_user() {
        let token = signed(&json!({"sub": 7, "exp": 4_102_444_800_i64}));
        let mine = Some(token.as_str());
        assert_eq!(ask("GET", "/api/v1/own", mine).await, 200);
        assert_eq!(ask("GET", "/api/v1/named/7", mine).await, 200);
        assert_eq!(ask("GET", "/api/v1/named/8", mine).await, 403);
        assert_eq!(ask("GET", "/api/v1/forgetful", mine).await, 500);
        assert_eq!(ask("POST", "/api/v1/refusing", mine).await, 400);
        for route in ["/api/v1/own", "/api/v1/named/7", "/api/v1/forgetful"] {
            assert_eq!(ask("GET", route, None).await, 401, "{route}");
            assert_eq!(ask("GET", route, Some("nonsense")).await, 401, "{route}");
        }
        for open in ["/api/v1/products", "/healthz"] {
            assert_eq!(ask("GET", open, None).await, 200, "{open}");
        }
        assert_eq!(ask("GET", "/api/v1/unknown", None).await, 404);
    }
}
