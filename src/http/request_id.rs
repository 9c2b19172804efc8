//! The id of a request.

use std::sync::Arc;

use axum::http::{Extensions, HeaderMap};
use uuid::Uuid;

use super::headers::X_REQUEST_ID;

/// The id of a request, in its extensions: 1–64 characters `[A-Za-z0-9._-]`.
#[derive(Clone, Debug)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// The client's own if it is sane, else a new one.
    pub fn choose(headers: &HeaderMap) -> Self {
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

    /// The id of the request with these extensions; empty outside of the outermost layer.
    pub fn of(extensions: &Extensions) -> String {
        extensions.get::<RequestId>().map_or_else(String::new, |id| id.0.as_ref().to_owned())
    }
}
