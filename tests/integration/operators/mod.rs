//! The operators' API, dashboard, metrics and runbook.

mod admin;
pub mod dashboard_feed;
mod dashboard_instances;
mod metrics;
mod operator_log;
mod runbook;
mod sessions;
mod telemetry;
mod timeline;
