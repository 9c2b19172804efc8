//! The replies of handlers.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{error::ApiError, headers::IDEMPOTENT_REPLAYED};
use crate::model::{Put, PutOutcome, Reply};

/// The outcome of a read.
pub type Found<T> = Result<Json<T>, ApiError>;

/// The outcome of a write.
pub type Done<T> = Result<Answer<T>, ApiError>;

/// In the extensions of a reply: how long it was held back because its client wants to wait. No part of the request's duration.
#[derive(Clone, Copy, Debug)]
pub struct Waited(pub Duration);

/// 204: done, without a body.
#[derive(Debug)]
pub struct NoContent;

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

/// The reply to a write, which may be a replay.
#[derive(Debug)]
pub struct Answer<T> {
    status: StatusCode,
    reply: Reply<T>,
    created: Option<CreatedResource>,
}

impl<T> Answer<T> {
    /// 200.
    pub fn ok(reply: Reply<T>) -> Self {
        Answer { status: StatusCode::OK, reply, created: None }
    }

    /// 201.
    pub fn created(reply: Reply<T>) -> Self {
        Answer { status: StatusCode::CREATED, reply, created: None }
    }

    /// 201 of something that was created, else 200.
    pub fn put(reply: Reply<Put<impl Into<T>>>) -> Self {
        let status = if reply.value.outcome == PutOutcome::Created { StatusCode::CREATED } else { StatusCode::OK };
        Answer { status, reply: reply.map(|put| put.value.into()), created: None }
    }

    /// Names the created resource, for the operator log.
    pub fn naming(self, name: &str, id: i64) -> Self {
        Answer { created: Some(CreatedResource(format!("{name}={id}"))), ..self }
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.reply.value)).into_response();
        if self.reply.replayed {
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        self.created.map(|created| response.extensions_mut().insert(created));
        response
    }
}

/// In the extensions of a reply: the resource that it created, `name=id`.
#[derive(Clone, Debug)]
pub struct CreatedResource(pub String);
