//! What stands around handlers. [`pipeline`] is the one layer of every request, whose steps are in the files beside it; [`cors`],
//! [`tracing`], [`durability`] and [`operator_log`] are layers of their own.

pub mod access_log;
pub mod cors;
pub mod durability;
mod envelope;
pub mod framing;
pub mod operator_log;
pub mod pipeline;
mod response_headers;
pub mod tracing;
pub mod unknown_fields;
pub mod unread_body;
