//! The layers that ask for an operator: by a token or a session at `/admin`, by a session alone where a browser only looks.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};

use super::{operator::Operator, session::Sessions};
use crate::http::{
    error::{ApiError, Code},
    limits::Client,
};

/// Lets operators through and nobody else; nobody at all where no token is configured.
pub async fn operators_only(
    State(sessions): State<Arc<Sessions>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let operator = sessions.operator(request.headers(), Client::of(request.extensions()))?;
    Ok(run_as(operator, request, next).await)
}

/// Goes on with a request that is this operator's.
pub async fn run_as(operator: Operator, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(operator.clone());
    let mut response = next.run(request).await;
    response.extensions_mut().insert(operator);
    response
}

/// Lets through who has a session, whatever else; for what only shows something. The session goes with the request, as
/// [`Session`] and [`Operator`].
pub async fn session_only(
    State(sessions): State<Arc<Sessions>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let session = sessions.session(request.headers()).ok_or(Code::Unauthorized)?;
    let operator = session.operator.clone();
    request.extensions_mut().insert(session);
    Ok(run_as(operator, request, next).await)
}
