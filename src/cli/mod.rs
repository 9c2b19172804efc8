//! The program: one binary, a role per subcommand.

mod catalog;
mod health;
mod stop;

use std::{
    io::Write,
    net::SocketAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use self::stop::stop_signal;
use crate::{
    app::App,
    audit::Audit,
    config::*,
    dev::Stack,
    http::{self, Operators, Scrapes, Waiting, listener, server},
    jwt::Tokens,
    model::Clock,
    postgres,
    projector::Projector,
    recovery::rebuild::{self, Rebuild, Summary},
    redis::Store,
    telemetry::{self, traces},
};

/// Connections that may wait for a process that serves no API: only scrapers and balancers come.
const PROBES_BACKLOG: u32 = 128;

/// A flash-sale commerce engine: first come, first served, exactly once.
///
/// New here? `firstcome dev` starts everything at once, with a Redis and a PostgreSQL of its own and a demo catalogue. In
/// a real deployment run `firstcome migrate` once, then `firstcome serve` with REDIS_URL and DATABASE_URL. Every option can
/// be given as the environment variable named beside it; one that is empty counts as not set. A secret NAME may be in a file
/// that NAME_FILE names, and is refused on the command line. RUST_LOG sets what is logged (default: info).
#[derive(Parser)]
#[command(version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    role: Role,
    #[command(flatten)]
    telemetry: TelemetryConfig,
}

#[derive(Subcommand)]
enum Role {
    /// Everything at once, to try it: private Redis and PostgreSQL, migrations, a demo catalogue, and the API
    Dev(Box<Dev>),
    /// The API, and (unless --no-projector) the projector
    Serve(Box<Serve>),
    /// The projector alone: carries what Redis decided to PostgreSQL
    Project(Box<Project>),
    /// Brings PostgreSQL's schema up to date, and ends
    Migrate(Migrate),
    /// Puts the demo catalogue into a store without products, and ends
    Seed(Box<Seed>),
    /// Puts Redis back together from PostgreSQL, after a loss, and ends
    Rebuild(Box<RebuildRole>),
    /// Recomputes every conservation law from Redis and PostgreSQL, while they work, and ends: with status 0 if the books
    /// balance, 1 if not, 2 if that could not be found out
    Audit(Box<AuditRole>),
    /// Asks a running service whether it is ready, for health checks: ends with status 0 if it is, 1 if not
    Health(Health),
}

#[derive(Parser)]
struct Dev {
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

#[derive(Parser)]
struct Serve {
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

#[derive(Parser)]
struct Project {
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

#[derive(Parser)]
struct Migrate {
    #[command(flatten)]
    postgres: PostgresConfig,
}

#[derive(Parser)]
struct Seed {
    #[command(flatten)]
    engine: EngineConfig,
}

#[derive(Parser)]
struct RebuildRole {
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
    #[command(flatten)]
    projector: ProjectorConfig,
    #[command(flatten)]
    retention: RetentionConfig,
    /// The zone of the rankings' days
    #[arg(long, env = "TIME_ZONE", default_value = "Asia/Seoul")]
    time_zone: chrono_tz::Tz,
    /// Go on where decisions would be discarded that Redis has and PostgreSQL does not
    #[arg(long)]
    discard: bool,
    /// The most decisions that were lost in each partition, beside discarded ones, where somebody knows: keeps less off sale
    #[arg(long, value_parser = clap::value_parser!(i64).range(0..))]
    lost_at_most: Option<i64>,
}

#[derive(Parser)]
struct AuditRole {
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
    /// The zone of the rankings' days
    #[arg(long, env = "TIME_ZONE", default_value = "Asia/Seoul")]
    time_zone: chrono_tz::Tz,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Parser)]
struct Health {
    /// What to ask [default: /readyz of the service that is bound to BIND_ADDR]
    #[arg(long)]
    url: Option<String>,
    /// The address that it serves on
    #[arg(long, env = "BIND_ADDR", default_value = "127.0.0.1:8080")]
    bind_addr: SocketAddr,
}

impl Cli {
    /// Reads the command line and the environment.
    ///
    /// # Errors
    /// The status to end with, where help was asked for or something is wrong; it has been printed.
    pub fn parse() -> Result<Self, ExitCode> {
        let matches = environment::read(Cli::command())?;
        Cli::from_arg_matches(&matches).map_err(|error| end(&error.into()))
    }

    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        telemetry::log(self.telemetry.log_format);
        start(self).unwrap_or_else(|error| end(&error))
    }
}

/// Says why it ends: the last line, with no secret in it.
fn end(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{}", redact(&format!("Error: {error:?}")));
    ExitCode::FAILURE
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    // The one TLS implementation, for rediss://, PostgreSQL and https gateways alike.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        anyhow::bail!("a TLS implementation is installed already");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let delivery = match &cli.role {
            Role::Dev(_) | Role::Serve(_) | Role::Project(_) => traces::start(&cli.telemetry)?,
            _ => None,
        };
        let ended = play(cli.role).await;
        if let Some(delivery) = delivery {
            delivery.stop().await;
        }
        ended
    });
    // A name that is still being looked up holds up nobody's end.
    runtime.shutdown_background();
    ended
}

async fn play(role: Role) -> anyhow::Result<ExitCode> {
    match role {
        Role::Dev(options) => return dev(*options).await,
        Role::Serve(options) => return serve(*options).await,
        Role::Project(options) => return project(*options).await,
        Role::Migrate(options) => postgres::migrate(&postgres::connect(&options.postgres).await?).await,
        Role::Seed(options) => {
            let app = App::open(&options.engine, &ProjectorConfig::default(), Clock::system()).await?;
            let did = catalog::demo(&app.engine).await?;
            say(if did { "The demo catalogue is in." } else { "There are products already: nothing was changed." })
        }
        Role::Rebuild(options) => rebuild(*options).await,
        Role::Audit(options) => return audit(*options).await,
        Role::Health(options) => return health(options).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn serve(options: Serve) -> anyhow::Result<ExitCode> {
    let Serve { engine, http, projector, no_projector } = options;
    // Said before anything is opened.
    Tokens::new(&http.auth, Clock::system())?;
    Scrapes::new(&http.metrics)?;
    if Operators::new(&http.operators)?.is_empty() {
        tracing::warn!("ADMIN_TOKEN is not set: the operators' API answers 401");
    }
    let stop = stop_signal()?;
    let listeners = Listeners::bind(&http)?;
    let waiters = [Some(&listeners.public), listeners.operators.as_ref()];
    let waiters = Waiters::start(waiters.into_iter().flatten(), &http.browsers)?;
    let Some(app) = open(&engine, &projector, &stop, waiters).await? else { return Ok(ExitCode::SUCCESS) };
    run(app, listeners, &http, !no_projector).await
}

/// Those that answer on the listeners as long as the stores are not open.
struct Waiters {
    waiting: Waiting,
    opened: CancellationToken,
    servers: Vec<JoinHandle<std::io::Result<usize>>>,
}

impl Waiters {
    fn start<'a>(
        listeners: impl Iterator<Item = &'a TcpListener>,
        browsers: &BrowserConfig,
    ) -> anyhow::Result<Waiters> {
        let (waiting, opened) = (Waiting::default(), CancellationToken::new());
        let mut servers = Vec::new();
        for listener in listeners {
            // The same queue of connections: who comes while one server ends waits for the next.
            let same = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
            let (router, limits) = (
                http::waiting(waiting.clone(), browsers),
                server::ServerLimits { drain: Duration::from_millis(500), ..server::ServerLimits::default() },
            );
            servers.push(tokio::spawn(server::serve(TcpListener::from_std(same)?, router, limits, opened.clone())));
        }
        Ok(Waiters { waiting, opened, servers })
    }

    /// Whoever connects from here on is somebody else's.
    async fn stop(self) {
        self.opened.cancel();
        for server in self.servers {
            if let Err(error) = server.await {
                tracing::debug!(%error, "what answered meanwhile has ended badly");
            }
        }
    }
}

/// Opens the stores, for which it waits; nothing where a stop came first.
async fn open(
    engine: &EngineConfig,
    projector: &ProjectorConfig,
    stop: &CancellationToken,
    waiters: Waiters,
) -> anyhow::Result<Option<App>> {
    // Boxed: it is large, and all that waits for it would be.
    let opening = Box::pin(App::open_when_there(engine, projector, Clock::system(), &waiters.waiting));
    let opened = stop.run_until_cancelled(opening).await.transpose();
    waiters.stop().await;
    Ok(opened?.map(|app| app.until(stop.clone())))
}

/// Serves until the stop signal, then ends in order, all within [`HttpConfig::drain`]: readiness, new connections, requests,
/// background work, outbox and the log of acts. The status tells whether nothing was left.
async fn run(app: App, listeners: Listeners, http: &HttpConfig, projects: bool) -> anyhow::Result<ExitCode> {
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
    let Listeners { public, operators } = listeners;
    if let Some(operators) = &operators {
        tracing::info!(address = %operators.local_addr()?, "serving operators");
    }
    tracing::info!(address = %public.local_addr()?, "serving");
    let cut = app.serve(public, operators, http).await?;
    let left = end.await?.duration_since(Instant::now());
    // Where it does not project, what it decided is others' to carry.
    let stopped = app.stop_within(left, projects).await;
    Ok(ended(cut == 0 && stopped))
}

/// Whatever was left is in the log.
fn ended(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn project(options: Project) -> anyhow::Result<ExitCode> {
    let Project { mut engine, projector, metrics, ops_bind_addr, drain_seconds } = options;
    Scrapes::new(&metrics)?;
    let stop = stop_signal()?;
    let probes = match ops_bind_addr {
        Some(address) => Some(bind(address, "OPS_BIND_ADDR", PROBES_BACKLOG)?),
        None => None,
    };
    // Nobody is told anything by it.
    engine.durability.ack = Ack::Postgres;
    let waiters = Waiters::start(probes.iter(), &BrowserConfig::default())?;
    let Some(mut app) = open(&engine, &projector, &stop, waiters).await? else { return Ok(ExitCode::SUCCESS) };
    // Where PostgreSQL has gone again meanwhile, nobody knows: then nobody is kept waiting for it.
    if !postgres::progress::only_postgres_acknowledged(&app.db).await.unwrap_or(true) {
        app.projector = app.projector.lingering(Duration::from_millis(projector.projector_linger_ms));
    }
    app.project();
    app.sweep();
    app.watch(true);
    if let Some(listener) = probes {
        let address = listener.local_addr()?;
        tracing::info!(%address, "serving health and metrics");
        let (router, limits) = (app.probes(address, &metrics)?, server::ServerLimits::default());
        tokio::spawn(server::serve(listener, router, limits, app.stopping.clone()));
    }
    tracing::info!("projecting");
    app.stopping.cancelled().await;
    Ok(ended(app.stop(Some(Duration::from_secs(drain_seconds))).await))
}

/// The status tells books that do not balance from books that could not be looked at.
async fn audit(options: AuditRole) -> anyhow::Result<ExitCode> {
    let AuditRole { redis, postgres, time_zone, json } = options;
    let audited = async {
        let (store, db) = (Store::connect(&redis).await?, postgres::connect(&postgres).await?);
        postgres::check_schema(&db).await?;
        Audit { store, db, clock: Clock::system(), zone: time_zone }.run().await
    };
    match audited.await {
        Ok(report) => {
            say(&if json { report.json().to_string() } else { report.to_string() })?;
            Ok(if report.balanced { ExitCode::SUCCESS } else { ExitCode::from(1) })
        }
        Err(error) => {
            tracing::error!("{error:#}");
            Ok(ExitCode::from(2))
        }
    }
}

async fn health(options: Health) -> anyhow::Result<ExitCode> {
    let url = options.url.unwrap_or_else(|| health::readiness_of(options.bind_addr));
    let (good, answer) = health::ask(&url).await?;
    say(&answer)?;
    Ok(ended(good))
}

async fn rebuild(options: RebuildRole) -> anyhow::Result<()> {
    let RebuildRole { redis, postgres, projector, retention, time_zone, discard, lost_at_most } = options;
    let (store, db, clock) = (Store::connect(&redis).await?, postgres::connect(&postgres).await?, Clock::system());
    let rebuild = Rebuild {
        projector: Projector::new(
            store.clone(),
            db.clone(),
            clock.clone(),
            &projector,
            postgres.transaction_patience(),
            retention.retention(),
        ),
        store,
        db,
        clock,
        zone: time_zone,
        keep: retention.retention(),
        allow_unsafe_redis: redis.allow_unsafe_redis,
    };
    let Summary {
        epoch,
        rows,
        seconds,
        discarded,
        lost_at_least,
        possible_losses: doubtful,
        repaired,
        withheld_units,
        withheld_coupons,
    } = rebuild.run(rebuild::Options { discard, lost_at_most }).await?;
    say(&format!(
        "Redis is rebuilt from PostgreSQL: {rows} rows in {seconds:.1} s. Epoch {epoch} has begun.\n\
         Discarded decisions: {discarded}. Lost at least: {lost_at_least}. Steps between partitions finished: {repaired}."
    ))?;
    if doubtful.is_empty() {
        return say("Nothing that anybody was told can be missing: everything is on sale.");
    }
    say(&format!(
        "Decisions may be lost in partitions {doubtful:?}: {withheld_units} units and {withheld_coupons} coupons are kept off \
         sale.\nLook at them with GET /admin/v1/withheld, and release them with POST /admin/v1/withheld/release.\n\
         Balances, orders, and coupons in hand are those that PostgreSQL has: see docs/operations.md."
    ))
}

async fn dev(options: Dev) -> anyhow::Result<ExitCode> {
    let Dev { dir, shop, gateway, durability, retention, mut http } = options;
    Operators::new(&http.operators)?;
    Scrapes::new(&http.metrics)?;
    let stop = stop_signal()?;
    // First the port: it is what is most likely taken, and the servers take a while.
    let listeners = Listeners::bind(&http)?;
    let stack = tokio::select! {
        stack = Stack::start(&dir) => stack?,
        () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    // No balancer.
    http.drain_delay_seconds.get_or_insert(0);
    let served = dev_on(&stack, &dir, (shop, gateway, durability, retention), &mut http, listeners, stop).await;
    let stopped = stack.stop().await;
    served.and_then(|ended| stopped.map(|()| ended))
}

async fn dev_on(
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
    let engine = EngineConfig { redis, postgres, shop, gateway, durability, retention };
    let projector = ProjectorConfig::default();
    let opening = Box::pin(App::open(&engine, &projector, Clock::system()));
    let opened = stop.run_until_cancelled(opening).await.transpose()?;
    let Some(app) = opened.map(|app| app.until(stop.clone())) else { return Ok(ExitCode::SUCCESS) };
    catalog::demo(&app.engine).await?;
    let token = match &http.operators.admin_token {
        Some(token) => token.expose().to_owned(),
        None => quick_start_token(&dir.join("admin-token"))?,
    };
    http.operators.admin_token = Some(Secret::new(token.clone()));
    let address = listeners.public.local_addr()?;
    say(&format!(
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
    run(app, listeners, http, true).await
}

/// The quick start's own token, minted once and kept beside its data, readable by its owner alone.
fn quick_start_token(path: &Path) -> anyhow::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
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

/// Where is served.
struct Listeners {
    public: TcpListener,
    /// What is the operators', where it is apart.
    operators: Option<TcpListener>,
}

impl Listeners {
    fn bind(http: &HttpConfig) -> anyhow::Result<Self> {
        let operators = match http.ops_bind_addr {
            Some(address) => Some(bind(address, "OPS_BIND_ADDR", http.listen_backlog)?),
            None => None,
        };
        Ok(Listeners { public: bind(http.bind_addr, "BIND_ADDR", http.listen_backlog)?, operators })
    }
}

fn bind(address: SocketAddr, name: &str, backlog: u32) -> anyhow::Result<TcpListener> {
    listener::listen(address, backlog).map_err(|error| {
        let next = SocketAddr::new(address.ip(), address.port().checked_add(1).unwrap_or(8081));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
                "{address} is taken: stop what uses it (`ss -ltnp` shows it), or serve elsewhere with {name}={next}"
            ),
            _ => anyhow::Error::new(error).context(format!("can't serve on {address} ({name})")),
        }
    })
}

/// To the person at the terminal.
fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
