//! The operator log.

use super::{Millis, Role};

/// An action of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorAction {
    /// A UUID: makes the write of the action idempotent.
    pub id: String,
    /// The operator's name.
    pub operator: String,
    /// The operator's role at that time; `None` for an action of the service or the command line, and in entries of earlier
    /// versions.
    pub role: Option<Role>,
    /// Method and route.
    pub action: String,
    /// The resource, as `name=id`; empty if there is none.
    pub target: String,
    /// The request's body as JSON, truncated.
    pub detail: String,
    /// The status of the reply.
    pub status: u16,
    pub request_id: String,
    /// The end of the request.
    pub at: Millis,
}

/// The actions to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct OperatorLogFilter {
    pub operator: Option<String>,
    /// From 0.
    pub page: i64,
    /// 1–100.
    pub size: i64,
}
