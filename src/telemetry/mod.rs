//! What is told of what happens inside: the log, and [`traces`]. Anybody may use it; it knows nobody.
//!
//! The log goes to standard error: lines for people in a terminal, JSON objects elsewhere. `RUST_LOG` sets what is in it, by
//! the module that says it; beside those there is the target [`ACCESS`], with a line for every request at level debug. No
//! secret is logged: what is one has a type that prints as `***`, errors of clients are told without their URLs, and every line
//! goes through [`Redacting`].

pub mod metrics;
pub mod traces;

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Redacting};

/// The target of the log's lines about requests.
pub const ACCESS: &str = "firstcome::access";

/// Starts the log of this process; to be called once.
pub fn log(format: LogFormat) {
    // Empty is not set; what can't be read is said, below.
    let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.trim().is_empty());
    let read = wanted.as_deref().map(|wanted| EnvFilter::builder().parse(wanted));
    let (filter, problem) = match read {
        Some(Ok(filter)) => (filter, None),
        Some(Err(problem)) => (EnvFilter::new("info"), Some(problem)),
        None => (EnvFilter::new("info"), None),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Redacting(stderr()));
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
    if let Some(problem) = problem {
        tracing::warn!(%problem, "RUST_LOG can't be read: what is logged is as if it were info");
    }
    // The message of a panic may be a library's.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}
