//! The id of a request.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{Extensions, HeaderMap, HeaderValue},
};
use uuid::Uuid;

use super::headers::X_REQUEST_ID;

/// The id of a request, in its extensions: 1–64 characters `[A-Za-z0-9._-]`.
#[derive(Clone, Debug)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Gives a request its id: the client's own if it is sane, else a new one.
    pub fn assign(request: &mut Request) -> Self {
        let id = RequestId::choose(request.headers());
        request.extensions_mut().insert(id.clone());
        id
    }

    fn choose(headers: &HeaderMap) -> Self {
        let sane = |id: &&str| {
            (1..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        let theirs = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok()).filter(sane);
        RequestId(theirs.map_or_else(|| Uuid::now_v7().simple().to_string().into(), Arc::from))
    }

    /// The id itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names the request in its reply.
    pub fn set(&self, headers: &mut HeaderMap) {
        if let Ok(id) = HeaderValue::from_str(&self.0) {
            headers.insert(X_REQUEST_ID, id);
        }
    }

    /// The id of the request with these extensions; empty outside of a pipeline.
    pub fn of(extensions: &Extensions) -> String {
        extensions.get::<RequestId>().map_or_else(String::new, |id| id.0.as_ref().to_owned())
    }
}
