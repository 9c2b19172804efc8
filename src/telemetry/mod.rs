//! The log, [`metrics`] and [`traces`]. Depends on [`config`](crate::config) only; every other module may use it.
//!
//! The log goes to standard error: text in a terminal, JSON elsewhere. `RUST_LOG` filters it by module; the target
//! [`ACCESS`] has a line per request at level debug. No secret is logged: secrets have a type that prints as `***`,
//! errors of HTTP clients are logged without their URLs, and every line passes through [`Redacting`].

pub mod metrics;
pub mod traces;

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Redacting};

/// The target of the access log.
pub const ACCESS: &str = "firstcome::access";

/// Starts the log of this process. To be called once.
pub fn log(format: LogFormat) {
    // An empty value counts as unset.
    let setting = std::env::var("RUST_LOG").ok().filter(|setting| !setting.trim().is_empty());
    let parsed = setting.as_deref().map(|setting| EnvFilter::builder().parse(setting));
    let (filter, problem) = match parsed {
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
        tracing::warn!(%problem, "RUST_LOG can't be read: the log is filtered as by info");
    }
    // Panics go through the log too, which redacts the messages of libraries.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}
