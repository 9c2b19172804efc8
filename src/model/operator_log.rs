//! The operator log.

use super::{Millis, Role};

/// Who the operator log names for an action of the command line, which asks for no token.
pub const COMMAND_LINE: &str = "command-line";

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
    /// Method and route, or the command.
    pub action: String,
    /// The resource, as `name=id`; empty if there is none. Of an import its kind.
    pub target: String,
    /// The request's body, or what a command reports, as JSON, truncated.
    pub detail: String,
    /// The status of the reply. Of a command the one that says the same.
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
