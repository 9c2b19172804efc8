//! Settings of the HTTP server.

use std::{net::SocketAddr, time::Duration};

use clap::Args;

use super::{AuthConfig, BrowserConfig, LimitsConfig, OperatorsConfig, Secret};

/// The HTTP server.
#[derive(Args, Clone, Debug)]
pub struct HttpConfig {
    /// The address to serve on
    #[arg(long, env = "BIND_ADDR", default_value = "127.0.0.1:8080")]
    pub bind_addr: SocketAddr,
    /// A second address that serves health, metrics, /ops and /admin; the first then has no /metrics, /ops and /admin
    #[arg(long, env = "OPS_BIND_ADDR")]
    pub ops_bind_addr: Option<SocketAddr>,
    #[command(flatten)]
    pub operators: OperatorsConfig,
    /// Milliseconds for one request before it is answered 503
    #[arg(long, env = "REQUEST_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub request_timeout_ms: u64,
    /// The largest request body, in bytes
    #[arg(long, env = "BODY_LIMIT_BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1024..=16_777_216))]
    pub body_limit_bytes: u64,
    /// The maximum number of connections served at once; more wait to be accepted
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Connections that may wait to be accepted, up to the kernel's net.core.somaxconn; beyond it clients retry after a second
    #[arg(long, env = "LISTEN_BACKLOG", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub listen_backlog: u32,
    /// Milliseconds for a client to send the head of a request
    #[arg(long, env = "HEADER_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub header_timeout_ms: u64,
    /// Seconds from a stop signal to the end of the process: requests have three quarters of them to finish, the outbox has
    /// at least the rest
    #[arg(long, env = "DRAIN_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_seconds: u64,
    /// Seconds of DRAIN_SECONDS, at most half of them, in which the process still accepts requests while /readyz reports
    /// that it stops: as long as the load balancer needs to notice [default: 3; dev: 0]
    #[arg(long, env = "DRAIN_DELAY_SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub drain_delay_seconds: Option<u64>,
    #[command(flatten)]
    pub limits: LimitsConfig,
    #[command(flatten)]
    pub browsers: BrowserConfig,
    #[command(flatten)]
    pub metrics: MetricsConfig,
    #[command(flatten)]
    pub auth: AuthConfig,
}

impl HttpConfig {
    /// The time from the stop signal to the end of the process.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// The time from the stop signal until the listeners close.
    pub fn drain_delay(&self) -> Duration {
        Duration::from_secs(self.drain_delay_seconds.unwrap_or(3)).min(self.drain() / 2)
    }

    /// The time from the stop signal until running requests are aborted.
    pub fn drain_requests(&self) -> Duration {
        self.drain() * 3 / 4
    }
}

/// The metrics endpoint.
#[derive(Args, Clone, Debug, Default)]
pub struct MetricsConfig {
    /// A bearer token, of 16 or more printable characters, that GET /metrics requires; without one the endpoint is open
    #[arg(long, env = "METRICS_TOKEN", hide_env_values = true)]
    pub metrics_token: Option<Secret>,
}
