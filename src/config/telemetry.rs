//! Settings of the log and of the traces.

use clap::{Args, ValueEnum};

use super::Secret;

/// The format of the log.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text in a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// The log's format and the traces. RUST_LOG sets the log's levels.
#[derive(Args, Clone, Debug, Default)]
pub struct TelemetryConfig {
    /// The log's format; auto: text in a terminal, json elsewhere
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
    /// Send traces to this OpenTelemetry collector by OTLP over HTTP: its base URL, without /v1/traces. Without this and
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT nothing is traced
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true, global = true)]
    pub otel_exporter_otlp_endpoint: Option<Secret>,
    /// The full URL for traces; it takes precedence over OTEL_EXPORTER_OTLP_ENDPOINT
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide_env_values = true, global = true)]
    pub otel_exporter_otlp_traces_endpoint: Option<Secret>,
}
