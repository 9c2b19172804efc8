//! Startup, rebuild, audit.

mod audit;
mod audit_bytes;
mod audit_over_http;
mod emptied;
mod joining;
mod large;
mod log;
pub mod rebuild;
pub mod restored_postgres;
mod sequences;
mod startup;
mod startup_waits;
mod step_back;
mod upgrade;
mod watch;
