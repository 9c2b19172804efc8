//! What handlers answer with.

use axum::{
    Json,
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{error::ApiError, headers::IDEMPOTENT_REPLAYED};
use crate::model::Reply;

/// A read's outcome.
pub type Found<T> = Result<Json<T>, ApiError>;

/// A write's outcome.
pub type Done<T> = Result<Answer<T>, ApiError>;

/// 204: done, and there is nothing to say.
#[derive(Debug)]
pub struct NoContent;

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

/// The answer to a write, which may be a replay.
#[derive(Debug)]
pub struct Answer<T> {
    status: StatusCode,
    reply: Reply<T>,
    made: Option<Made>,
}

impl<T> Answer<T> {
    /// 200.
    pub fn ok(reply: Reply<T>) -> Self {
        Answer { status: StatusCode::OK, reply, made: None }
    }

    /// 201.
    pub fn created(reply: Reply<T>) -> Self {
        Answer { status: StatusCode::CREATED, reply, made: None }
    }

    /// Says what was made, for the log of operators' acts.
    pub fn made(self, name: &str, id: i64) -> Self {
        Answer { made: Some(Made(format!("{name}={id}"))), ..self }
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.reply.value)).into_response();
        if self.reply.replayed {
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        self.made.map(|made| response.extensions_mut().insert(made));
        response
    }
}

/// In the extensions of a reply: what was made, `name=id`.
#[derive(Clone, Debug)]
pub struct Made(pub String);
