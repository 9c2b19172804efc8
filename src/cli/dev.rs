//! `firstcome dev`: everything at once, with a Redis and a PostgreSQL of its own.

use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{listeners::Listeners, print, seed, serve::serve, stop::stop_signal};
use crate::{
    app::App,
    config::{
        DurabilityConfig, EngineConfig, GatewayConfig, HttpConfig, PostgresConfig, ProjectorConfig, RedisConfig,
        RetentionConfig, Secret, ShopConfig, WebhookConfig,
    },
    dev::Stack,
    http::{auth::operator::Operators, routes::metrics},
    model::Clock,
    oidc::IdentityProvider,
    postgres,
};

#[derive(Args)]
pub(super) struct DevArgs {
    /// Where the servers keep their data; the next run goes on with it
    #[arg(long, env = "FIRSTCOME_DIR", default_value = ".firstcome")]
    dir: PathBuf,
    #[command(flatten)]
    shop: ShopConfig,
    #[command(flatten)]
    gateway: GatewayConfig,
    #[command(flatten)]
    durability: DurabilityConfig,
    #[command(flatten)]
    retention: RetentionConfig,
    #[command(flatten)]
    http: HttpConfig,
}

pub(super) async fn run(options: DevArgs) -> anyhow::Result<ExitCode> {
    let DevArgs { dir, shop, gateway, durability, retention, mut http } = options;
    Operators::new(&http.operators)?;
    IdentityProvider::new(&http.operators.oidc, Clock::system())?;
    metrics::check(&http.metrics)?;
    let stop = stop_signal()?;
    // The port first: it is the likeliest to be taken, and the servers take a while to start.
    let listeners = Listeners::bind(&http)?;
    let stack = tokio::select! {
        stack = Stack::start(&dir) => stack?,
        () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    // No balancer has to notice.
    http.drain_delay_seconds.get_or_insert(0);
    let served = serve_on(&stack, &dir, (shop, gateway, durability, retention), &mut http, listeners, stop).await;
    let stopped = stack.stop().await;
    served.and_then(|ended| stopped.map(|()| ended))
}

/// Serves from `stack` until `stop`.
async fn serve_on(
    stack: &Stack,
    dir: &Path,
    (shop, gateway, durability, retention): (ShopConfig, GatewayConfig, DurabilityConfig, RetentionConfig),
    http: &mut HttpConfig,
    listeners: Listeners,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let postgres = |url: String| PostgresConfig {
        database_url: Secret::new(url),
        database_connections: 10,
        database_timeout_ms: 30_000,
    };
    let redis = RedisConfig { redis_timeout_ms: 10_000, ..RedisConfig::at(stack.redis_url()) };
    postgres::create_database(&postgres(stack.admin_database_url()), "firstcome").await?;
    let postgres = postgres(stack.database_url());
    postgres::migrate(&postgres::connect(&postgres).await?).await?;
    // Receivers that are tried out run here too.
    let webhooks = WebhookConfig { webhook_allow_private: true };
    let engine = EngineConfig { redis, postgres, shop, gateway, durability, retention, webhooks };
    let projector = ProjectorConfig::default();
    let opening = Box::pin(App::open(&engine, &projector, Clock::system()));
    let opened = stop.run_until_cancelled(opening).await.transpose()?;
    let Some(app) = opened.map(|app| app.until(stop.clone())) else { return Ok(ExitCode::SUCCESS) };
    seed::demo(&app.engine).await?;
    let token = match &http.operators.admin_token {
        Some(token) => token.expose().to_owned(),
        None => quick_start_token(&dir.join("admin-token"))?,
    };
    http.operators.admin_token = Some(Secret::new(token.clone()));
    let address = listeners.public.local_addr()?;
    print(&format!(
        "\n  firstcome is up.\n\n  \
         API          http://{address}\n  \
         Swagger UI   http://{address}/swagger-ui/index.html\n  \
         Admin token  {token}   (also in {token_file})\n  \
         Redis        redis-cli -s {redis}\n  \
         PostgreSQL   psql -h {postgres} -U firstcome firstcome\n\n  \
         Ctrl-C stops everything; the next run goes on with the same data.\n",
        token_file = dir.join("admin-token").display(),
        redis = stack.redis_socket().display(),
        postgres = stack.postgres_socket_dir().display(),
    ))?;
    serve(app, listeners, http, true).await
}

/// The quick start's own token, minted once and kept beside its data, readable by its owner alone.
fn quick_start_token(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(token) if !token.trim().is_empty() => return Ok(token.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} can't be read", path.display())),
    }
    let token = uuid::Uuid::new_v4().simple().to_string();
    let mut file = std::fs::OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("{} can't be written", path.display()))?;
    writeln!(file, "{token}")?;
    Ok(token)
}
