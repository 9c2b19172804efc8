//! The headers of every response.

use axum::http::{
    HeaderMap, HeaderValue,
    header::{CACHE_CONTROL, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS},
};

/// `Strict-Transport-Security` for so many seconds; `None` for 0.
pub fn hsts(seconds: u64) -> Option<HeaderValue> {
    let value = (seconds > 0).then(|| HeaderValue::try_from(format!("max-age={seconds}")).ok());
    value.flatten()
}

/// Tells browsers not to guess types, not to store what does not allow it, and to come by HTTPS if `hsts` says so.
pub fn set(headers: &mut HeaderMap, hsts: Option<&HeaderValue>) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Most responses belong to a user or to a moment.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Some(hsts) = hsts {
        headers.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
}
