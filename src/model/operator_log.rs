//! The operator log.

use super::Millis;

/// What an operator did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorAction {
    /// A UUID, so that it is written once.
    pub id: String,
    /// The operator's name.
    pub operator: String,
    /// Method and route.
    pub action: String,
    /// What it was about, `name=id`; empty where that is nothing in particular.
    pub target: String,
    /// What was asked for, as JSON, shortened.
    pub detail: String,
    /// The status of the reply.
    pub status: u16,
    pub request_id: String,
    /// When it was over.
    pub at: Millis,
}

/// Which acts to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct OperatorLogFilter {
    pub operator: Option<String>,
    /// From 0.
    pub page: i64,
    /// 1–100.
    pub size: i64,
}

/// A page of acts as Postgres has them.
#[derive(Clone, Debug)]
pub struct OperatorLogPage {
    pub actions: Vec<OperatorAction>,
    pub page: i64,
    pub size: i64,
    /// Acts in all that match.
    pub total: i64,
}
