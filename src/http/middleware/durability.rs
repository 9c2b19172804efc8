//! What stands around every write: it is turned away while Postgres has too much to catch up with, and answered once what
//! it decided is as safe as the configuration asks for.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{engine::Engine, http::error::ApiError, redis::progress::telling};

/// The layer. Reads pass through.
pub async fn durable(State(engine): State<Arc<Engine>>, request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    if let Err(error) = engine.admit_write() {
        return ApiError::from(error).into_response();
    }
    let (response, decided) = telling(next.run(request)).await;
    // A payment that was declined has an effect too: the order has failed.
    let has_effect = response.status().is_success() || response.status() == StatusCode::PAYMENT_REQUIRED;
    if has_effect && let Err(error) = engine.acknowledge(&decided).await {
        return ApiError::from(error).into_response();
    }
    response
}
