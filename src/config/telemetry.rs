//! Settings of the log and of the traces.

use clap::{Args, ValueEnum};

use super::Secret;

/// How the log is written.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people in a terminal, for programs elsewhere.
    #[default]
    Auto,
    /// A line for people.
    Text,
    /// A JSON object on a line.
    Json,
}

/// What is told of what happens inside. What is logged is set by RUST_LOG.
#[derive(Args, Clone, Debug, Default)]
pub struct TelemetryConfig {
    /// The log's lines: for people (text), for programs (json), or by whether it goes to a terminal
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
    /// Send traces to this OpenTelemetry collector by OTLP over HTTP: its base URL, without /v1/traces. Nothing is traced
    /// where neither this nor OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true, global = true)]
    pub otel_exporter_otlp_endpoint: Option<Secret>,
    /// The same, for traces alone and with the whole URL
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide_env_values = true, global = true)]
    pub otel_exporter_otlp_traces_endpoint: Option<Secret>,
}
