//! The operators' API, dashboard, metrics and runbook.

mod account_sign_in;
mod admin;
pub mod dashboard_feed;
mod dashboard_instances;
mod event_documents;
mod metrics;
mod operator_log;
mod request_history;
mod roles;
mod runbook;
mod sessions;
mod telemetry;
mod timeline;
pub mod webhooks;

use firstcome::config::{OperatorsConfig, Secret};

use crate::support::harness::{ADMIN, Options};

/// The token of the operator `kim`.
const KIM: &str = "a-token-of-kim-0123";

/// Options of a service with the operators `admin` and `kim`.
fn options_with_kim() -> Options {
    let admin_tokens = Some(Secret::new(format!("kim:{KIM}")));
    Options { operators: OperatorsConfig { admin_tokens, ..OperatorsConfig::admin(ADMIN) }, ..Options::default() }
}
