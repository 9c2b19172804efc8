//! Middleware for writes: rejects them while the backlog is too long, and delays the reply until the decision is as durable as
//! `ACK` asks.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{engine::Engine, http::error::ApiError};

/// The layer. Reads pass through.
pub async fn durable(State(engine): State<Arc<Engine>>, mut request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let acknowledged = match engine.admit_write() {
        Ok(acknowledged) => acknowledged,
        Err(error) => return ApiError::from(error).into_response(),
    };
    // For the write's `Call`.
    request.extensions_mut().insert(acknowledged.clone());
    let response = next.run(request).await;
    // A declined payment has an effect, too: its order has failed.
    let has_effect = response.status().is_success() || response.status() == StatusCode::PAYMENT_REQUIRED;
    if has_effect && let Err(error) = engine.wait_until_durable(&acknowledged).await {
        return ApiError::from(error).into_response();
    }
    response
}
