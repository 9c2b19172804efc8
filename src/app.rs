//! The parts put together: connect, open the store, run the background work, serve, and stop in the right order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::extract::FromRef;
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{Audit, Auditor},
    config::{
        Ack, EngineConfig, GUESSES_PER_MINUTE, GatewayConfig, HttpConfig, LimitsConfig, MetricsConfig, ProjectorConfig,
        redact,
    },
    dashboard::{self, Dashboard, Instance, keep_reporting},
    engine::{Engine, OperatorLog},
    gateway::{self, Gateways},
    http::{
        admin::AdminState,
        auth::{operator::Operators, session::Sessions},
        extract::write::Decoding,
        limits::Limits,
        middleware::operator_log::ActionRecorder,
        request_class::Listener,
        router::{self, Services},
        routes::{health::HealthState, metrics::MetricsState},
        server,
        state::AppState,
        waiting::Waiting,
    },
    jwt::Tokens,
    model::{Clock, Error},
    postgres,
    projector::Projector,
    recovery::{open, rebuild::Rebuild},
    redis::{self, Store},
    worker::Workers,
};

/// How long a stop takes that has no bound of its own: long enough for a machine that stalls.
const STOP_TIMEOUT: Duration = Duration::from_secs(300);
/// Clients that a process without an API tells apart.
const PROBES_CLIENTS: u32 = 10_000;
/// Connections to the operators' own listener, where there is one.
const OPERATORS_CONNECTIONS: usize = 1024;

/// The first and the longest pause between two attempts to open stores that are away.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Clients of the gateways; connects to none of them.
fn gateways(config: &GatewayConfig) -> anyhow::Result<Gateways> {
    let gateways = config.urls().map(|(kind, url)| {
        let of_kind = gateway::HttpGatewayConfig {
            url: url.expose().to_owned(),
            timeout: Duration::from_millis(config.payment_gateway_timeout_ms),
            token: config.payment_gateway_token.as_ref().map(|token| token.expose().to_owned()),
        };
        (kind, of_kind)
    });
    Gateways::connect(gateways).context("the payment gateways can't be set up")
}

/// Connects to both stores; or the reasons why that has to wait.
///
/// # Errors
/// What waiting does not help against.
async fn connect_both(config: &EngineConfig) -> anyhow::Result<Result<(postgres::Connection, Store), Vec<String>>> {
    let redis = async {
        let store = Store::connect(&config.redis).await?;
        store.check_loaded().await?;
        anyhow::Ok(store)
    };
    match tokio::join!(postgres::connect(&config.postgres), redis) {
        (Ok(db), Ok(store)) => Ok(Ok((db, store))),
        (db, store) => {
            let failed = [db.err(), store.err()].into_iter().flatten();
            Ok(Err(failed.map(reason_to_wait).collect::<anyhow::Result<_>>()?))
        }
    }
}

/// Why an attempt to open the stores failed, if the next one may succeed; else the error again.
fn reason_to_wait(error: anyhow::Error) -> anyhow::Result<String> {
    let passes = error.chain().any(|cause| {
        matches!(cause.downcast_ref::<postgres::Unusable>(), Some(postgres::Unusable::Unavailable(_)))
            || matches!(cause.downcast_ref::<Error>(), Some(Error::Unavailable { .. }))
            || cause.downcast_ref::<sea_orm::DbErr>().is_some_and(postgres::is_transient)
            || cause.downcast_ref::<sqlx::Error>().is_some_and(postgres::is_unavailable)
            || redis::is_unavailable(cause)
    });
    if passes { Ok(redact(&format!("{error:#}")).into_owned()) } else { Err(error) }
}

/// A process's parts, connected.
pub struct App {
    pub engine: Arc<Engine>,
    pub projector: Projector,
    pub store: Store,
    pub db: postgres::Connection,
    /// Cancelled by whoever wants it to end.
    pub stopping: CancellationToken,
    /// What operators did.
    pub acts: Arc<OperatorLog>,
    workers: Workers,
}

impl App {
    /// Connects to both stores and opens them; a Redis that lost everything is rebuilt first.
    ///
    /// # Errors
    /// The reason why they can't be served from, and what to do about it.
    pub async fn open(config: &EngineConfig, projector: &ProjectorConfig, clock: Clock) -> anyhow::Result<Self> {
        let gateways = gateways(&config.gateway)?;
        let (db, store) = (postgres::connect(&config.postgres).await?, Store::connect(&config.redis).await?);
        Self::open_on(config, projector, clock, gateways, (db, store)).await
    }

    /// The same, which waits for stores that are away, and for what passes by itself; what it waits for is told to `waiting`.
    ///
    /// It waits for both of them, even where another instance serves without PostgreSQL: PostgreSQL alone says which Redis is
    /// this store's and how far that one must be, and it is where a process registers what it acknowledges. An instance that
    /// began without it could serve a Redis that has lost decisions, and nobody would notice.
    ///
    /// # Errors
    /// What does not pass: settings that are wrong, stores that do not belong together.
    pub async fn open_when_there(
        config: &EngineConfig,
        projector: &ProjectorConfig,
        clock: Clock,
        waiting: &Waiting,
    ) -> anyhow::Result<Self> {
        let gateways = gateways(&config.gateway)?;
        let mut pause = MIN_BACKOFF;
        loop {
            let reasons = match connect_both(config).await? {
                Ok(stores) => {
                    waiting.tell(Vec::new());
                    // Large, and waited for by little.
                    let opened = Self::open_on(config, projector, clock.clone(), gateways.clone(), stores);
                    match Box::pin(opened).await {
                        Ok(app) => return Ok(app),
                        Err(error) => vec![reason_to_wait(error)?],
                    }
                }
                Err(reasons) => reasons,
            };
            if waiting.tell(reasons.clone()) {
                tracing::warn!(reasons = reasons.join("; "), "waiting for the stores");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_BACKOFF);
        }
    }

    async fn open_on(
        config: &EngineConfig,
        projector: &ProjectorConfig,
        clock: Clock,
        gateways: Gateways,
        (db, store): (postgres::Connection, Store),
    ) -> anyhow::Result<Self> {
        let EngineConfig { redis, postgres, shop, gateway, durability, retention } = config;
        let keep = retention.retention();
        store.set_clock(&clock);
        let patience = postgres.transaction_timeout();
        let rebuild = Rebuild {
            store: store.clone(),
            db: db.clone(),
            projector: Projector::new(store.clone(), db.clone(), clock.clone(), projector, patience, keep),
            clock: clock.clone(),
            zone: shop.time_zone,
            retention: keep,
            allow_unsafe_redis: redis.allow_unsafe_redis,
        };
        // Large, and seldom needed.
        Box::pin(rebuild.run_if_needed()).await?;
        let store = open::open(store, &db, shop.partitions, redis.allow_unsafe_redis, durability.ack).await?;
        let following = Projector::new(store.clone(), db.clone(), clock.clone(), projector, patience, keep);
        let engine = Engine::new(store.clone(), db.clone(), clock.clone(), shop, gateways, gateway, durability);
        let (acts, workers) = (Arc::<OperatorLog>::default(), Workers::default());
        acts.keep_writing(db.clone(), &workers);
        Ok(App {
            engine: Arc::new(engine),
            projector: match durability.ack {
                Ack::Redis => following,
                // Replies wait for it.
                Ack::Postgres => following.lingering(Duration::ZERO),
            },
            store,
            db,
            stopping: CancellationToken::new(),
            acts,
            workers,
        })
    }

    /// Starts the projection.
    pub fn project(&self) {
        self.projector.follow(&self.workers);
    }

    /// Starts ending what is due.
    pub fn sweep(&self) {
        self.engine.keep_sweeping(&self.workers);
    }

    /// Starts watching over the stores. `projects`: this process also runs the projection.
    pub fn watch(&self, projects: bool) {
        self.engine.keep_watch(projects, &self.workers);
    }

    /// What recomputes the books of these stores.
    pub fn audit(&self) -> Audit {
        let (clock, zone) = (self.engine.clock().clone(), self.engine.zone());
        Audit { store: self.store.clone(), db: self.db.clone(), clock, zone }
    }

    /// The router of one listener for everything. Starts refreshing the keys of users' tokens, if they need one.
    ///
    /// # Errors
    /// The operators' tokens are not what they should be, or users' can't be verified as configured.
    pub fn router(&self, http: &HttpConfig) -> anyhow::Result<axum::Router> {
        let services = self.services(http)?;
        let pages = dashboard::router(self.dashboard(&services, http.bind_addr));
        Ok(router::router(services, http, Listener::All, pages))
    }

    fn services(&self, http: &HttpConfig) -> anyhow::Result<Services> {
        let (engine, clock, stopping) = (self.engine.clone(), self.engine.clock().clone(), self.stopping.clone());
        let operators = Operators::new(&http.operators)?;
        let limits = self.limits(&http.limits);
        let secure = http.operators.ops_cookie_secure;
        let tokens = Tokens::new(&http.auth, clock.clone())?;
        if let Some(tokens) = &tokens {
            tokens.follow(&self.workers);
        }
        let app = AppState::new(engine.clone(), limits.clone(), http);
        Ok(Services {
            admin: AdminState {
                app: app.clone(),
                projector: self.projector.clone(),
                auditor: Arc::new(Auditor::new(self.audit())),
                recorder: ActionRecorder { log: self.acts.clone(), clock: clock.clone() },
            },
            app,
            health: HealthState::new(engine.clone(), self.store.all().count(), stopping.clone()),
            metrics: MetricsState::new(engine, limits.clone(), &http.metrics, stopping.clone())?,
            sessions: Arc::new(Sessions::new(operators, clock, secure, limits)),
            tokens,
            stopping,
        })
    }

    /// The dashboard of a process that listens on `address`.
    fn dashboard(&self, services: &Services, address: SocketAddr) -> Dashboard {
        Dashboard {
            engine: self.engine.clone(),
            sessions: services.sessions.clone(),
            recorder: services.admin.recorder.clone(),
            auditor: services.admin.auditor.clone(),
            feed: Arc::default(),
            instance: Arc::new(Instance::new(address, self.engine.clock().now())),
            decoding: Decoding::from_ref(&services.app),
            stopping: self.stopping.clone(),
        }
    }

    fn limits(&self, config: &LimitsConfig) -> Arc<Limits> {
        let limits = Arc::new(Limits::new(config));
        limits.keep_tidy(&self.workers);
        limits
    }

    /// The router of a process without an API: health and metrics.
    ///
    /// # Errors
    /// The metrics' token could be guessed.
    pub fn probes(&self, metrics: &MetricsConfig) -> anyhow::Result<axum::Router> {
        // Only guesses are limited.
        let limits = self.limits(&LimitsConfig {
            rate_limit_guesses_per_minute: GUESSES_PER_MINUTE,
            rate_limit_keys: PROBES_CLIENTS,
            ..LimitsConfig::off()
        });
        let (engine, stopping) = (self.engine.clone(), self.stopping.clone());
        let health = HealthState::new(engine.clone(), self.store.all().count(), stopping.clone());
        let metrics = MetricsState::new(engine, limits.clone(), metrics, stopping.clone())?;
        Ok(router::probes(health, metrics, limits, stopping))
    }

    /// The same app, which ends once `stop` is cancelled.
    pub fn until(self, stop: CancellationToken) -> Self {
        App { stopping: stop, ..self }
    }

    /// Serves until it is told to stop and everybody had time to notice, then finishes the requests that have begun. Returns
    /// how many of them had to be cut. With a listener for the operators, what is theirs is served there alone, and until the
    /// last customer is served.
    ///
    /// # Errors
    /// As [`App::router`]; a listener fails.
    pub async fn serve(
        &self,
        listener: TcpListener,
        operators: Option<TcpListener>,
        http: &HttpConfig,
    ) -> anyhow::Result<usize> {
        let limits = server::ServerLimits::from(http);
        let (services, stopping) = (self.services(http)?, self.stopping.clone());
        let dashboard = self.dashboard(&services, listener.local_addr()?);
        keep_reporting(self.engine.clone(), dashboard.instance.clone(), &self.workers);
        let pages = dashboard::router(dashboard);
        let Some(operators) = operators else {
            let everything = router::router(services, http, Listener::All, pages);
            return Ok(server::serve(listener, everything, limits, stopping).await?);
        };
        let public = router::router(services.clone(), http, Listener::Public, pages.clone());
        let theirs = router::router(services, http, Listener::Operators, pages);
        let few = server::ServerLimits {
            max_connections: OPERATORS_CONNECTIONS,
            max_connections_per_client: 0,
            drain_delay: Duration::ZERO,
            // Half of what is left then: the rest is the outbox's.
            drain: (http.drain() - http.drain_requests()) / 2,
            ..limits.clone()
        };
        let served = CancellationToken::new();
        let last = served.clone().drop_guard();
        let public = async move {
            let _last = last;
            server::serve(listener, public, limits, stopping).await
        };
        let (cut, cut_of_operators) = tokio::try_join!(public, server::serve(operators, theirs, few, served))?;
        Ok(cut + cut_of_operators)
    }

    /// Stops the background work, after the last reply. With `drain`, projects every decision made before
    /// within that time. Returns whether nothing is left.
    pub async fn stop(&self, drain: Option<Duration>) -> bool {
        self.stop_within(drain.unwrap_or(STOP_TIMEOUT), drain.is_some()).await
    }

    /// The same within `timeout`; `projects`: this process carries decisions to PostgreSQL. A decision that is not projected in
    /// time stays in the outbox for the next start. The operator log is only in this process, so it is flushed until the end.
    pub async fn stop_within(&self, timeout: Duration, projects: bool) -> bool {
        let end = Instant::now() + timeout;
        let ended = self.workers.stop(end).await;
        let flushed = self.acts.flush(&self.db, end.duration_since(Instant::now()));
        let projected = async { !projects || self.drain(end).await };
        let (flushed, projected) = tokio::join!(flushed, projected);
        ended && flushed && projected
    }

    /// Projects every decision made before the call, until `end`. Returns whether PostgreSQL has all of them.
    async fn drain(&self, end: Instant) -> bool {
        let why = match timeout_at(end, self.projector.project_decided()).await {
            Ok(Ok(())) => {
                tracing::info!("the outbox is drained");
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the time is over".to_owned(),
        };
        let events = self.store.backlog();
        tracing::warn!(why, events, "the outbox keeps what is not in PostgreSQL yet");
        false
    }
}
