//! `firstcome serve`: the API, and the projector beside it.

use std::process::ExitCode;

use clap::Args;
use tokio::time::Instant;

use super::{
    listeners::Listeners,
    status,
    stop::stop_signal,
    waiting::{WaitingServers, open},
};
use crate::{
    app::App,
    config::{EngineConfig, HttpConfig, ProjectorConfig},
    http::{auth::operator::Operators, routes::metrics},
    jwt::Tokens,
    model::Clock,
    oidc::IdentityProvider,
};

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    engine: EngineConfig,
    #[command(flatten)]
    http: HttpConfig,
    #[command(flatten)]
    projector: ProjectorConfig,
    /// Leave the projection to `firstcome project`
    #[arg(long, env = "NO_PROJECTOR")]
    no_projector: bool,
}

pub(super) async fn run(options: ServeArgs) -> anyhow::Result<ExitCode> {
    let ServeArgs { engine, http, projector, no_projector } = options;
    // Wrong settings are reported before anything is opened.
    Tokens::new(&http.auth, Clock::system())?;
    metrics::check(&http.metrics)?;
    let provider = IdentityProvider::new(&http.operators.oidc, Clock::system())?;
    if Operators::new(&http.operators)?.is_empty() && provider.is_none() {
        tracing::warn!("ADMIN_TOKEN is not set: the operators' API answers 401");
    }
    let stop = stop_signal()?;
    let listeners = Listeners::bind(&http)?;
    let waiting = [Some(&listeners.public), listeners.operators.as_ref()];
    let waiting = WaitingServers::start(waiting.into_iter().flatten(), &http.browsers)?;
    let Some(app) = open(&engine, &projector, &stop, waiting, true).await? else { return Ok(ExitCode::SUCCESS) };
    serve(app, listeners, &http, !no_projector).await
}

/// Serves until the stop signal, then ends in order, all within [`HttpConfig::drain`]: readiness, new connections, requests,
/// background work, outbox and the operator log. The status is a failure where a request was cut or work was left.
pub(super) async fn serve(
    app: App,
    listeners: Listeners,
    http: &HttpConfig,
    projects: bool,
) -> anyhow::Result<ExitCode> {
    let (stopping, bound) = (app.stopping.clone(), http.drain());
    let end = tokio::spawn(async move {
        stopping.cancelled().await;
        Instant::now() + bound
    });
    if projects {
        app.project();
    }
    app.sweep();
    app.watch(projects);
    app.vouch();
    let Listeners { public, operators } = listeners;
    if let Some(operators) = &operators {
        tracing::info!(address = %operators.local_addr()?, "serving operators");
    }
    tracing::info!(address = %public.local_addr()?, "serving");
    let cut = app.serve(public, operators, http).await?;
    let left = end.await?.duration_since(Instant::now());
    // A process that does not project leaves its decisions to the projectors of others.
    let stopped = app.stop_within(left, projects).await;
    if let Some(reason) = app.contradiction() {
        anyhow::bail!(reason);
    }
    Ok(status(cut == 0 && stopped))
}
