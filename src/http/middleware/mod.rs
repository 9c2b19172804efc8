//! The layers around handlers, one a file.

pub mod access_log;
pub mod cors;
pub mod durability;
pub mod edge;
pub mod framing;
pub mod operator_log;
pub mod tracing;
pub mod unknown_fields;
pub mod unread_body;
