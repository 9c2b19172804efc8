//! The parts put together: connect, open the store, run the background work, serve, and stop in the right order.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::{Audit, Auditor},
    config::{Ack, EngineConfig, HttpConfig, ProjectorConfig},
    db,
    domain::{ActLog, Clock, Engine, startup},
    gateway::{self, Gateways},
    http::{self, Operators, Parts, Sessions, server},
    ops::Instance,
    projector::Projector,
    rebuild::Rebuild,
    store::Store,
};

/// How long a stop waits for the log of operators' acts to be written.
const ACTS_PATIENCE: Duration = Duration::from_secs(3);

/// A process's parts, connected.
pub struct App {
    pub engine: Arc<Engine>,
    pub projector: Projector,
    pub store: Store,
    pub db: db::Connection,
    /// Cancelled by whoever wants it to end.
    pub stopping: CancellationToken,
    /// What operators did.
    pub acts: Arc<ActLog>,
    background: TaskTracker,
    stop_background: CancellationToken,
}

impl App {
    /// Connects to both stores and opens them; a Redis that lost everything is rebuilt first.
    ///
    /// # Errors
    /// The reason why they can't be served from, and what to do about it.
    pub async fn open(config: &EngineConfig, projector: &ProjectorConfig, clock: Clock) -> anyhow::Result<Self> {
        let EngineConfig { redis, postgres, shop, gateway, durability, retention } = config;
        let keep = retention.keep();
        let gateways = Gateways::connect(gateway.urls().map(|(kind, url)| {
            let config = gateway::GatewayConfig {
                url: url.expose().to_owned(),
                timeout: Duration::from_millis(gateway.payment_gateway_timeout_ms),
                token: gateway.payment_gateway_token.as_ref().map(|token| token.expose().to_owned()),
            };
            (kind, config)
        }))
        .context("the payment gateways can't be set up")?;
        let db = db::connect(postgres).await?;
        let store = Store::connect(redis).await?;
        let patience = postgres.transaction_patience();
        let rebuild = Rebuild {
            store: store.clone(),
            db: db.clone(),
            projector: Projector::new(store.clone(), db.clone(), clock.clone(), projector, patience, keep),
            clock: clock.clone(),
            zone: shop.time_zone,
            keep,
            allow_unsafe_redis: redis.allow_unsafe_redis,
        };
        // Large, and seldom needed.
        Box::pin(rebuild.run_if_needed()).await?;
        let store = startup::open(store, &db, shop.partitions, redis.allow_unsafe_redis, durability.ack).await?;
        let following = Projector::new(store.clone(), db.clone(), clock.clone(), projector, patience, keep);
        let engine = Engine::new(store.clone(), db.clone(), clock.clone(), shop, gateways, gateway, durability);
        let (acts, background, stop_background) =
            (Arc::<ActLog>::default(), TaskTracker::new(), CancellationToken::new());
        acts.keep_writing(db.clone(), &background, &stop_background);
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
            background,
            stop_background,
        })
    }

    /// Starts the projection.
    pub fn project(&self) {
        self.projector.follow(&self.background, &self.stop_background);
    }

    /// Starts ending what is due.
    pub fn sweep(&self) {
        self.engine.keep_sweeping(&self.background, &self.stop_background);
    }

    /// Starts watching over the stores. `projects`: this process also runs the projection.
    pub fn watch(&self, projects: bool) {
        self.engine.keep_watch(projects, &self.background, &self.stop_background);
    }

    /// What recomputes the books of these stores.
    pub fn audit(&self) -> Audit {
        let (clock, zone) = (self.engine.clock().clone(), self.engine.zone());
        Audit { store: self.store.clone(), db: self.db.clone(), clock, zone }
    }

    /// The router with everything in it.
    ///
    /// # Errors
    /// The operators' tokens are not what they should be.
    pub fn router(&self, http: &HttpConfig) -> anyhow::Result<axum::Router> {
        let operators = Operators::new(&http.operators)?;
        let sessions = Sessions::new(operators, self.engine.clock().clone(), http.operators.ops_cookie_secure);
        Ok(http::router(Parts {
            engine: self.engine.clone(),
            projector: self.projector.clone(),
            auditor: Arc::new(Auditor::new(self.audit())),
            sessions: Arc::new(sessions),
            notes: http::Notes { log: self.acts.clone(), clock: self.engine.clock().clone() },
            feed: Arc::default(),
            instance: Arc::new(Instance::new(http.bind_addr, self.engine.clock().now())),
            config: http::HttpConfig {
                body_limit: http.body_limit_bytes as usize,
                request_timeout: Duration::from_millis(http.request_timeout_ms),
                ..http::HttpConfig::default()
            },
            stopping: self.stopping.clone(),
        }))
    }

    /// The same app, which ends once `stop` is cancelled.
    pub fn until(self, stop: CancellationToken) -> Self {
        App { stopping: stop, ..self }
    }

    /// Serves until it is told to stop and everybody had time to notice, then finishes the requests that have begun. Returns
    /// how many of them had to be cut.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(&self, listener: TcpListener, http: &HttpConfig) -> anyhow::Result<usize> {
        let limits = server::ServerLimits {
            max_connections: http.max_connections as usize,
            header_read_timeout: Duration::from_millis(http.header_timeout_ms),
            drain_delay: http.drain_delay(),
            drain: http.drain_requests(),
            ..server::ServerLimits::default()
        };
        Ok(server::serve(listener, self.router(http)?, limits, self.stopping.clone()).await?)
    }

    /// Ends the background work; the last requests must have been answered before. With `drain`, what was decided until now
    /// is carried to Postgres, all of this within that time: what does not make it waits in the outbox for the next start.
    /// Returns whether nothing was left.
    pub async fn stop(&self, drain: Option<Duration>) -> bool {
        self.stop_background.cancel();
        self.background.close();
        let Some(patience) = drain else {
            self.background.wait().await;
            self.acts.flush(&self.db, ACTS_PATIENCE).await;
            return true;
        };
        let draining = async {
            self.background.wait().await;
            self.acts.flush(&self.db, ACTS_PATIENCE).await;
            self.projector.carry_decided().await
        };
        let events = || self.store.backlog();
        match tokio::time::timeout(patience, draining).await {
            Ok(Ok(())) => {
                tracing::info!("the outbox is drained");
                return true;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, events = events(), "the outbox keeps what is not in PostgreSQL yet")
            }
            Err(_) => tracing::warn!(events = events(), ?patience, "the outbox keeps what is not in PostgreSQL yet"),
        }
        false
    }
}
