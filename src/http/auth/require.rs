//! The layers that require an operator: by a token or a session for `/admin`; by a session alone for the dashboard's feed.

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

/// Requires an operator. Without a configured token there is none.
pub async fn operators_only(
    State(sessions): State<Arc<Sessions>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let operator = sessions.operator(request.headers(), Client::of(request.extensions()))?;
    Ok(run_as(operator, request, next).await)
}

/// Runs a request as this operator: the extensions of the request and of its reply name it.
pub async fn run_as(operator: Operator, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(operator.clone());
    let mut response = next.run(request).await;
    response.extensions_mut().insert(operator);
    response
}

/// Requires a session; for what only shows something. The extensions of the request have it, as [`Session`] and [`Operator`].
///
/// [`Session`]: super::session::Session
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
