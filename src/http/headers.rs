//! The headers that this API reads and sets, beside those of the `http` crate.

use axum::http::HeaderName;

/// Names a request. The client may choose it; the reply repeats it.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names a write, so that repeating it has no further effect.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// In a reply: the stored reply to an earlier request under the same idempotency key.
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// In a reply of the public API: the names of the fields and parameters that it does not know, percent-encoded and separated
/// by commas.
pub const X_UNKNOWN_FIELDS: HeaderName = HeaderName::from_static("x-unknown-fields");

/// The addresses that a request passed through, as its proxies say.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Has the value `1` in every request to `/admin` that has a session's cookie instead of a token. No form and no link can
/// send it, and a script of another site needs the permission of CORS, which `/admin` never gives.
pub const CSRF_HEADER: HeaderName = HeaderName::from_static("x-firstcome-ops");
