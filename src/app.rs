//! Builds the parts of a process: connects, opens the stores, runs the background work, serves, and stops in order.

mod drain;
mod gateways;
mod stores;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::extract::FromRef;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::{
    gateways::gateways,
    stores::{MissingStores, connect_both, reason_to_wait},
};
use crate::{
    audit::{Audit, AuditTracker, Auditor},
    config::{
        Ack, EngineConfig, GUESSES_PER_MINUTE, HttpConfig, LimitsConfig, MetricsConfig, ProjectorConfig, RecoveryMode,
    },
    dashboard::{self, Dashboard, Instance, keep_reporting, keep_sampling},
    engine::{Engine, OperatorLog, Preview},
    gateway::Gateways,
    http::{
        admin::AdminState,
        auth::session::Sessions,
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
    model::Clock,
    postgres,
    projector::Projector,
    recovery::{
        join::{self, Confirmation, Voucher},
        open,
        rebuild::Rebuild,
        watch::Watch,
    },
    redis::Store,
    webhooks::Webhooks,
    worker::Workers,
};

/// The bound of a stop that has none of its own: long enough for a machine that stalls.
const STOP_TIMEOUT: Duration = Duration::from_secs(300);
/// Clients that the limits of a process without an API distinguish.
const PROBES_CLIENTS: u32 = 10_000;
/// Connections to the operators' own listener.
const OPERATORS_CONNECTIONS: usize = 1024;

/// The first and the longest pause between two attempts to open unavailable stores.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// The connected parts of a process.
pub struct App {
    pub engine: Arc<Engine>,
    pub projector: Projector,
    pub store: Store,
    pub db: postgres::Connection,
    /// Stops the process when cancelled.
    pub stopping: CancellationToken,
    /// Actions of operators that are not in PostgreSQL yet.
    pub operator_log: Arc<OperatorLog>,
    /// The recovery of partitions whose data Redis lost.
    pub recovery: Arc<Watch>,
    /// The receivers of events.
    pub webhooks: Webhooks,
    /// What this process tells those that start while PostgreSQL is away.
    voucher: Voucher,
    /// What PostgreSQL has to confirm; `None` if the process started with PostgreSQL.
    confirmation: Option<Confirmation>,
    workers: Workers,
}

impl App {
    /// Connects to both stores and opens them. Rebuilds an empty Redis first.
    ///
    /// # Errors
    /// The reason why the stores can't be served from, and its remedy; settings that contradict each other.
    pub async fn open(config: &EngineConfig, projector: &ProjectorConfig, clock: Clock) -> anyhow::Result<Self> {
        config.check()?;
        let gateways = gateways(&config.gateway)?;
        let (db, store) = (postgres::connect(&config.postgres).await?, Store::connect(&config.redis).await?);
        Self::open_on(config, projector, clock, gateways, (db, store), false).await
    }

    /// As [`App::open`], but waits for unavailable stores and other transient errors. Reports the reasons to `waiting`. Opens a store
    /// that can't be used because Redis lost decisions, if this process recovers it ([`App::watch`]).
    ///
    /// With `joins`, waits for Redis only, if PostgreSQL is away and other instances serve: their leases say what PostgreSQL would
    /// ([`recovery::join`](crate::recovery::join)). Otherwise such a process could serve a Redis that has lost decisions.
    ///
    /// # Errors
    /// Permanent errors: wrong settings, stores that do not belong together.
    pub async fn open_when_there(
        config: &EngineConfig,
        projector: &ProjectorConfig,
        clock: Clock,
        waiting: &Waiting,
        joins: bool,
    ) -> anyhow::Result<Self> {
        config.check()?;
        let (gateways, process) = (gateways(&config.gateway)?, Uuid::new_v4().to_string());
        let recovers = config.durability.recovery != RecoveryMode::Manual;
        let mut pause = MIN_BACKOFF;
        loop {
            let reasons = match connect_both(config).await? {
                Ok(stores) => {
                    waiting.set(Vec::new());
                    // Boxed: the future is large.
                    let opened = Self::open_on(config, projector, clock.clone(), gateways.clone(), stores, recovers);
                    match Box::pin(opened).await {
                        Ok(app) => return Ok(app),
                        Err(error) => vec![reason_to_wait(error)?],
                    }
                }
                Err(MissingStores { mut reasons, redis: Some(store) }) if joins => {
                    let joining = Self::join(config, projector, clock.clone(), gateways.clone(), store, &process);
                    match Box::pin(joining).await {
                        Ok(Ok(app)) => return Ok(app),
                        Ok(Err(why)) => reasons.iter_mut().for_each(|reason| *reason = format!("{reason} ({why})")),
                        Err(error) => reasons.push(reason_to_wait(error)?),
                    }
                    reasons
                }
                Err(MissingStores { reasons, .. }) => reasons,
            };
            if waiting.set(reasons.clone()) {
                tracing::warn!(reasons = reasons.join("; "), "waiting for the stores");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_BACKOFF);
        }
    }

    /// Connects to both stores to say what bringing records in would do, and changes nothing.
    ///
    /// # Errors
    /// As [`App::open`]; the store has to be recovered first.
    pub async fn preview(config: &EngineConfig, clock: Clock) -> anyhow::Result<Preview> {
        config.check()?;
        gateways(&config.gateway)?;
        let (db, store) = (postgres::connect(&config.postgres).await?, Store::connect(&config.redis).await?);
        store.set_clock(&clock);
        if let Some(ack) = config.durability.replica_ack() {
            store.require_replicas(ack);
        }
        Ok(Preview::new(open::open_to_read(store, &db, config).await?, clock))
    }

    async fn open_on(
        config: &EngineConfig,
        projector: &ProjectorConfig,
        clock: Clock,
        gateways: Gateways,
        (db, store): (postgres::Connection, Store),
        recovers: bool,
    ) -> anyhow::Result<Self> {
        let EngineConfig { redis, postgres, shop, durability, retention, .. } = config;
        let retention = retention.retention();
        store.set_clock(&clock);
        if let Some(ack) = durability.replica_ack() {
            store.require_replicas(ack);
        }
        let timeout = postgres.transaction_timeout();
        let rebuild = Rebuild {
            store: store.clone(),
            db: db.clone(),
            projector: Projector::new(store.clone(), db.clone(), clock.clone(), projector, timeout, retention),
            clock: clock.clone(),
            zone: shop.time_zone,
            retention,
            durability: redis.redis_durability,
            barrier: None,
            log: Default::default(),
        };
        // Boxed: the future is large and seldom needed.
        Box::pin(rebuild.run_if_needed()).await?;
        let store = open::open(store, &db, config, recovers).await?;
        let identity = store.identity().await?.context("Redis has lost the store's identity")?.store;
        let voucher = Voucher {
            process: Uuid::new_v4().to_string(),
            store,
            identity,
            database: postgres::place(postgres)?,
            ack: durability.ack,
        };
        Ok(Self::assemble(config, projector, clock, gateways, db, voucher, None))
    }

    /// Opens Redis on the word of the instances that serve, while PostgreSQL is away. Returns the reason to wait if they do not
    /// vouch for it.
    async fn join(
        config: &EngineConfig,
        projector: &ProjectorConfig,
        clock: Clock,
        gateways: Gateways,
        store: Store,
        process: &str,
    ) -> anyhow::Result<Result<Self, String>> {
        store.set_clock(&clock);
        if let Some(ack) = config.durability.replica_ack() {
            store.require_replicas(ack);
        }
        let confirmed = CancellationToken::new();
        let db = postgres::connect_when(&config.postgres, confirmed.clone()).await?;
        let voucher = match join::join(store, &db, config, process).await? {
            Ok(voucher) => voucher,
            Err(why) => return Ok(Err(why)),
        };
        let confirmation = Confirmation {
            voucher: voucher.clone(),
            postgres: config.postgres.clone(),
            confirmed,
            contradiction: Arc::default(),
        };
        Ok(Ok(Self::assemble(config, projector, clock, gateways, db, voucher, Some(confirmation))))
    }

    /// The parts of a process on stores that are open.
    fn assemble(
        config: &EngineConfig,
        projector: &ProjectorConfig,
        clock: Clock,
        gateways: Gateways,
        db: postgres::Connection,
        voucher: Voucher,
        confirmation: Option<Confirmation>,
    ) -> Self {
        let EngineConfig { redis, postgres, shop, gateway, durability, retention, webhooks } = config;
        let (store, retention, timeout) =
            (voucher.store.clone(), retention.retention(), postgres.transaction_timeout());
        let following = Projector::new(store.clone(), db.clone(), clock.clone(), projector, timeout, retention);
        let engine = Engine::new(store.clone(), db.clone(), clock.clone(), shop, gateways, gateway, durability);
        let engine = match &confirmation {
            Some(confirmation) => engine.joined(confirmation.confirmed.clone()),
            None => engine,
        };
        let recovery = Watch {
            store: store.clone(),
            redis: redis.clone(),
            db: db.clone(),
            clock: clock.clone(),
            zone: shop.time_zone,
            projector: projector.clone(),
            timeout,
            retention,
            mode: durability.recovery,
            wait: Duration::from_secs(durability.recovery_wait_seconds),
            noticed: Default::default(),
            log: Default::default(),
        };
        let (operator_log, workers) = (Arc::<OperatorLog>::default(), Workers::default());
        operator_log.keep_writing(db.clone(), &workers);
        let engine = Arc::new(engine);
        let webhooks = Webhooks::new(engine.clone(), db.clone(), webhooks, &voucher.process);
        App {
            engine,
            projector: match durability.ack {
                Ack::Redis | Ack::Replica => following,
                // Replies wait for the projection.
                Ack::Postgres => following.lingering(Duration::ZERO),
            },
            store,
            db,
            stopping: CancellationToken::new(),
            operator_log,
            recovery: Arc::new(recovery),
            webhooks,
            voucher,
            confirmation,
            workers,
        }
    }

    /// Starts the projection, and sending its events to webhooks.
    pub fn project(&self) {
        self.projector.follow(&self.workers);
        if self.projector.keeps_events() {
            self.webhooks.keep_sending(&self.workers);
        }
    }

    /// Starts ending due holds and checking due payments.
    pub fn sweep(&self) {
        self.engine.keep_sweeping(&self.workers);
    }

    /// Starts watching the stores, and recovering what Redis lost. `projects`: this process also runs the projection.
    pub fn watch(&self, projects: bool) {
        self.recovery.clone().keep_watching(&self.workers);
        if let Some(confirmation) = &self.confirmation {
            confirmation.clone().keep_asking(self.stopping.clone(), &self.workers);
        }
        self.engine.keep_watch(projects, &self.workers);
    }

    /// Starts to vouch for Redis while PostgreSQL is away, for instances that start meanwhile. Only for a process that serves.
    pub fn vouch(&self) {
        self.voucher.clone().keep_vouching(self.engine.clone(), &self.workers);
    }

    /// Why PostgreSQL contradicts what this process joined on: the process has to end.
    pub fn contradiction(&self) -> Option<String> {
        self.confirmation.as_ref()?.contradiction.get().cloned()
    }

    /// The audit of these stores.
    pub fn audit(&self) -> Audit {
        let (clock, zone) = (self.engine.clock().clone(), self.engine.zone());
        Audit { store: self.store.clone(), db: self.db.clone(), tracker: AuditTracker::new(clock.now()), clock, zone }
    }

    /// The router of one listener for everything. Starts refreshing the keys of users' tokens, if `AUTH=jwt`.
    ///
    /// # Errors
    /// Unusable tokens of operators; users' tokens that can't be verified as configured.
    pub fn router(&self, http: &HttpConfig) -> anyhow::Result<axum::Router> {
        let services = self.services(http)?;
        let pages = dashboard::router(self.dashboard(&services, http.bind_addr));
        Ok(router::router(services, http, Listener::All, pages))
    }

    fn services(&self, http: &HttpConfig) -> anyhow::Result<Services> {
        let (engine, clock, stopping) = (self.engine.clone(), self.engine.clock().clone(), self.stopping.clone());
        let limits = self.limits(&http.limits);
        let tokens = Tokens::new(&http.auth, clock.clone())?;
        if let Some(tokens) = &tokens {
            tokens.follow(&self.workers);
        }
        let app = AppState::new(engine.clone(), limits.clone(), http);
        Ok(Services {
            admin: AdminState {
                app: app.clone(),
                projector: self.projector.clone(),
                webhooks: self.webhooks.clone(),
                auditor: Arc::new(Auditor::new(self.audit())),
                stopping: stopping.clone(),
                recorder: ActionRecorder { log: self.operator_log.clone(), clock: clock.clone() },
            },
            app,
            health: HealthState::new(engine.clone(), self.store.all().count(), stopping.clone()),
            metrics: MetricsState::new(engine, limits.clone(), &http.metrics, stopping.clone())?,
            sessions: Arc::new(Sessions::of(&http.operators, clock, limits)?),
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
            instance: Arc::new(Instance::new(self.store.instance(), address, self.engine.clock().now())),
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
    /// A metrics token that could be guessed.
    pub fn probes(&self, metrics: &MetricsConfig) -> anyhow::Result<axum::Router> {
        // Limits guesses only.
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

    /// The same app, stopped by `stop`.
    pub fn until(self, stop: CancellationToken) -> Self {
        App { stopping: stop, ..self }
    }

    /// Serves until `stopping` is cancelled and the drain delay is over, then finishes the requests that have begun. Returns the
    /// number of requests cut off. A listener for operators serves their routes alone, until the last public request ends.
    ///
    /// # Errors
    /// As [`App::router`]; a failing listener.
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
        keep_sampling(self.engine.clone(), dashboard.instance.clone(), &self.workers);
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
            // Half of the remaining time: the drain of the outbox needs the rest.
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

    /// Stops the background work, after the last reply. With `drain`, projects every decision made before, within that time.
    /// Returns whether nothing is left.
    pub async fn stop(&self, drain: Option<Duration>) -> bool {
        self.stop_within(drain.unwrap_or(STOP_TIMEOUT), drain.is_some()).await
    }

    /// As [`App::stop`], within `timeout`. `projects`: this process runs the projection. A decision that is not projected in time
    /// stays in the outbox for the next start. Both logs are only in this process, so they are flushed until the end.
    pub async fn stop_within(&self, timeout: Duration, projects: bool) -> bool {
        let end = Instant::now() + timeout;
        let ended = self.workers.stop(end).await;
        let (db, left) = (&self.db, end.duration_since(Instant::now()));
        let flushed = async { tokio::join!(self.operator_log.flush(db, left), self.recovery.log.flush(db, left)) };
        // Not into a database that is not this store's.
        let projects = projects && self.contradiction().is_none();
        // Boxed: the future is large.
        let projected = async { !projects || Box::pin(self.drain(end)).await };
        let (flushed, projected) = tokio::join!(flushed, self.engine.end_acknowledging(projected));
        ended && flushed == (true, true) && projected
    }
}
