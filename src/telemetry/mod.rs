//! What is told of what happens inside: the log, and [`traces`]. Anybody may use it; it knows nobody.
//!
//! The log goes to standard error: lines for people in a terminal, JSON objects elsewhere. `RUST_LOG` sets what is in it, by
//! the module that says it; beside those there is the target [`ACCESS`], with a line for every request at level debug. No
//! secret is logged: what is one has a type that prints as `***`, and errors of clients are told without their URLs.

pub mod traces;

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The target of the log's lines about requests.
pub const ACCESS: &str = "firstcome::access";

/// Starts the log of this process; to be called once.
pub fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let json = match format {
        LogFormat::Auto => !stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    if json {
        log.json().init();
    } else {
        log.with_ansi(stderr().is_terminal()).init();
    }
}
