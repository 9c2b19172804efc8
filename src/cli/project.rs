//! `firstcome project`: the projector alone.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Args;

use super::{
    listeners::bind,
    status,
    stop::stop_signal,
    waiting::{WaitingServers, open},
};
use crate::{
    config::{Ack, BrowserConfig, EngineConfig, MetricsConfig, ProjectorConfig},
    http::{routes::metrics, server},
    postgres,
};

/// Connections that may wait to be accepted: only scrapers and balancers connect.
const PROBES_BACKLOG: u32 = 128;

#[derive(Args)]
pub(super) struct ProjectArgs {
    #[command(flatten)]
    engine: EngineConfig,
    #[command(flatten)]
    projector: ProjectorConfig,
    #[command(flatten)]
    metrics: MetricsConfig,
    /// Where to serve /healthz, /readyz and /metrics, and nothing else; nowhere where it is not given
    #[arg(long, env = "OPS_BIND_ADDR")]
    ops_bind_addr: Option<SocketAddr>,
    /// Seconds, after a stop signal, for the outbox to drain
    #[arg(long, env = "DRAIN_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    drain_seconds: u64,
}

pub(super) async fn run(options: ProjectArgs) -> anyhow::Result<ExitCode> {
    let ProjectArgs { mut engine, projector, metrics, ops_bind_addr, drain_seconds } = options;
    metrics::check(&metrics)?;
    let stop = stop_signal()?;
    let probes = match ops_bind_addr {
        Some(address) => Some(bind(address, "OPS_BIND_ADDR", PROBES_BACKLOG)?),
        None => None,
    };
    // This process acknowledges nothing to clients.
    engine.durability.ack = Ack::Postgres;
    let waiting = WaitingServers::start(probes.iter(), &BrowserConfig::default())?;
    let Some(mut app) = open(&engine, &projector, &stop, waiting, false).await? else { return Ok(ExitCode::SUCCESS) };
    // Linger only where no reply waits for the projection. A PostgreSQL that is away again can't tell; then do not linger.
    if !postgres::progress::only_postgres_acknowledged(&app.db).await.unwrap_or(true) {
        app.projector = app.projector.lingering(Duration::from_millis(projector.projector_linger_ms));
    }
    app.project();
    app.sweep();
    app.watch(true);
    if let Some(listener) = probes {
        let address = listener.local_addr()?;
        tracing::info!(%address, "serving health and metrics");
        let (router, limits) = (app.probes(&metrics)?, server::ServerLimits::default());
        tokio::spawn(server::serve(listener, router, limits, app.stopping.clone()));
    }
    tracing::info!("projecting");
    app.stopping.cancelled().await;
    Ok(status(app.stop(Some(Duration::from_secs(drain_seconds))).await))
}
