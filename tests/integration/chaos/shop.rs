//! The processes of a run: Redis, PostgreSQL and `firstcome serve`, with a proxy on every connection between them.
//!
//! Starts, stops and restarts them; the nemesis has the faults, the clients the load.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use firstcome::{
    config::Ack,
    dev::{AppendFsync, PostgresServer, PostgresServerConfig, RedisServer, RedisServerConfig, ScratchDir},
    postgres,
};
use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::DatabaseConnection;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::process::{Child, Command};

pub use super::options::{Goods, Options};
use super::{
    feed::Hook,
    logs::{serving, tail},
    machines,
    proxy::{Mode, Proxy, Upstream},
};
use crate::{
    process::binary,
    redis::{
        addresses::{know_each_other, sentinel_url, sentinels},
        failover::{in_sync, port},
    },
    support::{
        fake_gateway::FakeGateway,
        harness::{self, ADMIN, until},
        preload,
        standby::{self, Standby},
    },
};

const DATABASE: &str = "shop";

/// One `firstcome serve`.
pub struct Service {
    child: Option<Child>,
    pub log: PathBuf,
    /// The clients' way to the service, with the same address after a restart.
    pub proxy: Proxy,
    /// The error of its clock, from the next start on.
    pub clock_offset_ms: i64,
    starts: usize,
}

/// All processes of a run. Dropped, they end.
pub struct Shop {
    pub options: Options,
    pub services: Vec<Service>,
    pub to_redis: Proxy,
    pub to_postgres: Proxy,
    pub goods: Goods,
    // Fields drop in this order: the servers end before their directory is removed.
    pub redis: RedisServer,
    /// With [`Options::replica`].
    pub replica: Option<RedisServer>,
    /// With [`Options::sentinels`]: the services then reach Redis without the proxy.
    pub sentinels: Vec<RedisServer>,
    redis_url: String,
    pub postgres: PostgresServer,
    /// With [`Options::gateway`].
    pub gateway: Option<Arc<FakeGateway>>,
    /// The receiver of the webhook.
    pub hook: Option<Hook>,
    /// With [`Options::standby`], until it takes the place of the primary; the next one is made when it is needed.
    pub standby: Option<Standby>,
    /// How many standbys there were.
    standbys: usize,
    dir: ScratchDir,
}

impl Shop {
    /// Starts everything and creates the goods. `template` is the data directory of a stopped PostgreSQL server, to save time.
    pub async fn open(options: Options, template: Option<PathBuf>) -> Shop {
        let dir = ScratchDir::new().unwrap();
        let redis = RedisServer::start(redis_config(&options, dir.path().join("redis"))).await.unwrap();
        let mut replica = None;
        if options.replica {
            let config = redis_config(&options, dir.path().join("replica"));
            let server = replica.insert(RedisServer::start(config).await.unwrap());
            replicate(server, &redis).await;
            in_sync(&redis, server).await;
        }
        let mut config = PostgresServerConfig::new(dir.path().join("postgres"));
        config.template = template;
        let (postgres, standby) = match options.standby {
            true => {
                let (primary, standby) = standby::pair(&dir, true).await;
                (primary, Some(standby))
            }
            false => (PostgresServer::start(config).await.unwrap(), None),
        };
        let to_redis = Proxy::start(Some(Upstream::Unix(redis.socket_path()))).await;
        let to_postgres = Proxy::start(Some(Upstream::Unix(postgres.socket_dir().join(".s.PGSQL.5432")))).await;
        let (mut watchers, mut redis_url) = (Vec::new(), format!("redis://{}/", to_redis.address));
        if options.sentinels {
            watchers = sentinels(&dir, &port(&redis)).await;
            know_each_other(&watchers, 1).await;
            redis_url = sentinel_url(&watchers);
        }
        let goods = Goods { terms: options.terms, doors: options.doors, ..Goods::of(Goods::STOCK) };
        let services = Vec::new();
        let gateway = match options.gateway {
            Some(protocol) => Some(Arc::new(FakeGateway::speaking(protocol).await)),
            None => None,
        };
        let mut shop = Shop {
            options,
            services,
            to_redis,
            to_postgres,
            goods,
            redis,
            replica,
            sentinels: watchers,
            redis_url,
            postgres,
            gateway,
            hook: None,
            standby,
            standbys: 0,
            dir,
        };
        postgres::create_database(&harness::postgres_config(&shop.postgres.url("postgres")), DATABASE).await.unwrap();
        let migrating = shop.db().await;
        postgres::migrate(&migrating).await.unwrap();
        migrating.close().await.unwrap();
        for number in 0..shop.options.services {
            let log = shop.dir.path().join(format!("service-{number}.log"));
            shop.services.push(Service {
                child: None,
                log,
                proxy: Proxy::start(None).await,
                clock_offset_ms: 0,
                starts: 0,
            });
            shop.start(number).await.unwrap();
        }
        let Options { users, products, campaigns, .. } = shop.options;
        let base = shop.bases()[0].clone();
        if shop.options.doors {
            shop.hook = Some(Hook::start(&base, users as u64).await);
        }
        shop.goods.create(&base, users, products, campaigns).await;
        shop
    }

    /// Makes a standby for PostgreSQL, if it has none.
    pub async fn have_standby(&mut self) {
        if self.standby.is_none() {
            self.standbys += 1;
            let name = format!("standby-{}", self.standbys);
            self.standby = Some(Standby::of(&mut self.postgres, &self.dir, &name, true).await);
            self.up().await;
        }
    }

    /// The base URLs of the services.
    pub fn bases(&self) -> Vec<String> {
        self.services.iter().map(|service| format!("http://{}", service.proxy.address)).collect()
    }

    /// A connection to Redis that bypasses the proxy.
    pub async fn raw(&self) -> MultiplexedConnection {
        harness::raw_redis(&self.redis.url()).await
    }

    /// A connection to PostgreSQL that bypasses the proxy.
    pub async fn db(&self) -> DatabaseConnection {
        postgres::connect(&harness::postgres_config(&self.postgres.url(DATABASE))).await.unwrap()
    }

    /// Starts a service, again if it ends at once because a store is not ready.
    ///
    /// # Errors
    /// The service reports a loss of acknowledged decisions.
    pub async fn start(&mut self, number: usize) -> Result<(), String> {
        let url = format!("postgres://firstcome@{}/{DATABASE}?sslmode=disable", self.to_postgres.address);
        let (redis, service) = (&self.redis_url, &mut self.services[number]);
        service.starts += 1;
        let base = self.options.base_program.as_deref().filter(|_| (number + service.starts).is_multiple_of(2));
        let mut log_start = 0;
        until("a service listens", async || {
            let Some(child) = &mut service.child else {
                let log = fs::OpenOptions::new().create(true).append(true).open(&service.log).unwrap();
                log_start = log.metadata().unwrap().len();
                let mut command = binary::program_at(base.unwrap_or(Path::new(binary::PROGRAM)), &["serve"]);
                command.env("REDIS_URL", redis).env("DATABASE_URL", &url).env("ADMIN_TOKEN", ADMIN);
                command.env("BIND_ADDR", "127.0.0.1:0").envs(self.options.environment());
                command.env("REDIS_TIMEOUT_MS", "1000").env("DATABASE_TIMEOUT_MS", "1500");
                command
                    .env("REQUEST_TIMEOUT_MS", "3000")
                    .env("DRAIN_SECONDS", "120")
                    .env("DRAIN_DELAY_SECONDS", "0")
                    .env("MAX_BACKLOG", "500");
                // The projector logs at this level that another one was faster.
                command.env("RUST_LOG", "info,firstcome::projector=debug");
                // The receiver of the webhook is on this machine.
                command.env("WEBHOOK_ALLOW_PRIVATE", "true");
                // All clients have one address.
                command.env("RATE_LIMIT_CLIENT_PER_SECOND", "0").env("RATE_LIMIT_USER_PER_SECOND", "0");
                if let Some(gateway) = &self.gateway {
                    command.envs(gateway.environment());
                    command.env("PAYMENT_GATEWAY_TIMEOUT_MS", "1000").env("PAYMENT_GATEWAY_GIVE_UP_SECONDS", "5");
                }
                if service.clock_offset_ms != 0 {
                    command.envs(preload::shifted_clock(service.clock_offset_ms));
                }
                command.stdout(log.try_clone().unwrap()).stderr(log);
                service.child = Some(command.spawn().unwrap());
                return None;
            };
            if let Some(address) = serving(&service.log, log_start) {
                service.proxy.set_upstream(Upstream::Tcp(address.parse().unwrap()));
                return Some(Ok(()));
            }
            child.try_wait().unwrap()?;
            service.child = None;
            self.options.violation(&tail(&service.log, log_start)).map(Err)
        })
        .await
    }

    /// `kill -9`.
    pub async fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.services[number].child.take() {
            child.kill().await.unwrap();
        }
    }

    /// SIGSTOP, SIGCONT or SIGTERM to a service.
    pub fn signal(&self, number: usize, signal: Signal) {
        let pid = self.services[number].child.as_ref().and_then(Child::id);
        if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid as i32)) {
            kill_process(pid, signal).unwrap();
        }
    }

    /// Sends SIGTERM, and waits for the end.
    pub async fn stop(&mut self, number: usize) -> Option<ExitStatus> {
        self.signal(number, Signal::TERM);
        let mut child = self.services[number].child.take()?;
        Some(
            tokio::time::timeout(Duration::from_secs(300), child.wait())
                .await
                .expect("the service does not end")
                .unwrap(),
        )
    }

    /// Repairs and restarts everything, which ends every request under way.
    ///
    /// # Errors
    /// A service reports a loss of acknowledged decisions.
    pub async fn start_anew(&mut self) -> Result<(), String> {
        for number in 0..self.services.len() {
            self.kill(number).await;
            self.services[number].proxy.set(Mode::Pass);
            self.services[number].proxy.cut();
        }
        for proxy in [&self.to_redis, &self.to_postgres] {
            proxy.set(Mode::Pass);
            proxy.cut();
        }
        // Sentinels would take the restart for the end of the master.
        if self.sentinels.is_empty() {
            self.redis.restart().await.unwrap();
        }
        self.postgres.restart().await.unwrap();
        for number in 0..self.services.len() {
            self.start(number).await?;
        }
        self.ready().await
    }

    /// Waits until every service is ready, with every partition.
    ///
    /// # Errors
    /// A service reports a loss of acknowledged decisions.
    pub async fn ready(&self) -> Result<(), String> {
        self.ready_unless(|said| self.options.violation(said)).await
    }

    /// The same, where a partition may be closed meanwhile.
    pub async fn up(&self) {
        self.ready_unless(|_| None).await.unwrap();
    }

    async fn ready_unless(&self, violation: impl Fn(&str) -> Option<String>) -> Result<(), String> {
        let client = client();
        for base in self.bases() {
            until("a service is ready", async || {
                let response = client.get(format!("{base}/readyz")).send().await.ok()?;
                let text = response.text().await.ok()?;
                // DEGRADED: a partition does not decide, or its projection has stopped.
                if text.contains(r#""status":"UP""#) { Some(Ok(())) } else { violation(&text).map(Err) }
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until PostgreSQL has every decision; no client is active.
    pub async fn caught_up(&self) {
        let client = client();
        until("PostgreSQL has caught up", async || {
            let request = client.get(format!("{}/admin/v1/projection", self.bases()[0])).bearer_auth(ADMIN);
            let response = request.send().await.ok()?;
            let lag = response.json::<Value>().await.ok()?["lagEvents"].as_i64()?;
            (lag == 0).then_some(())
        })
        .await;
    }

    /// Waits until no order is held. No client is active.
    pub async fn holds_ended(&self) {
        let db = self.db().await;
        until("no order is held", async || {
            let sql = "SELECT count(*) FROM orders WHERE status = 'PENDING'";
            let held: i64 = sqlx::query_scalar(sql).fetch_one(db.get_postgres_connection_pool()).await.unwrap();
            (held == 0).then_some(())
        })
        .await;
        db.close().await.unwrap();
    }

    /// Waits until every payment through the gateway has its outcome, and the gateway has refunded what it must.
    pub async fn payments_ended(&self) {
        let db = self.db().await;
        until("no payment is open", async || {
            let sql = "SELECT count(*) FROM payments WHERE status IN ('STARTED', 'REFUND_DUE')";
            let open: i64 = sqlx::query_scalar(sql).fetch_one(db.get_postgres_connection_pool()).await.unwrap();
            (open == 0).then_some(())
        })
        .await;
        db.close().await.unwrap();
    }

    /// Stops every service with SIGTERM, which drains the outbox. Returns the failures.
    pub async fn drain(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        for number in 0..self.services.len() {
            match self.stop(number).await {
                Some(status) if status.success() => {}
                ended => failures.push(format!("service {number} ended with {ended:?}")),
            }
        }
        let mut redis = self.raw().await;
        let mut postgres = PgConnection::connect(&self.postgres.url(DATABASE)).await.unwrap();
        for partition in 0..self.options.partitions {
            let sql = "SELECT stream_id FROM projection_positions WHERE partition = $1";
            let at: String = sqlx::query_scalar(sql).bind(i32::from(partition)).fetch_one(&mut postgres).await.unwrap();
            let mut read = redis::cmd("XRANGE");
            read.arg(outbox(partition)).arg(format!("({at}")).arg("+");
            let left = read.query_async::<Vec<redis::Value>>(&mut redis).await.unwrap().len();
            if left > 0 {
                let log = tail(&self.services[0].log, 0);
                let reason =
                    log.lines().rfind(|line| line.contains("outbox keeps") || line.contains("projection waits"));
                failures
                    .push(format!("the outbox of partition {partition} keeps {left} events: {}", reason.unwrap_or("")));
            }
        }
        failures
    }

    /// `firstcome rebuild` of a partition.
    pub fn rebuild(&self, partition: u16) -> Command {
        let partition = partition.to_string();
        let mut command = binary::program(&["rebuild", "--partition", &partition]);
        command.env("REDIS_URL", self.redis.url()).env("DATABASE_URL", self.postgres.url(DATABASE));
        let environment = self.options.environment().into_iter();
        command.envs(environment.filter(|(name, _)| ["CLOSED_ORDER_KEEP_SECONDS", "REDIS_DURABILITY"].contains(name)));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs `firstcome audit`. Returns the failed checks, or its log if it could not run.
    pub async fn audit(&self) -> Vec<String> {
        let mut command = binary::program(&["audit", "--json"]);
        command.env("REDIS_URL", self.redis.url()).env("DATABASE_URL", self.postgres.url(DATABASE));
        let output = command.output().await.unwrap();
        let (printed, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        match output.status.code() {
            Some(0) => Vec::new(),
            Some(1) => {
                let report: Value = serde_json::from_str(&printed).unwrap();
                let checks = report["checks"].as_array().unwrap().iter();
                checks.filter(|check| check["ok"] == false).map(Value::to_string).collect()
            }
            _ => vec![log],
        }
    }
}

fn redis_config(options: &Options, dir: PathBuf) -> RedisServerConfig {
    let mut config = RedisServerConfig::new(dir);
    config.full_disks = true;
    if !options.safe {
        config.append_fsync = if options.power_losses { AppendFsync::EverySecond } else { AppendFsync::Never };
    }
    if options.replica {
        config.port = Some(firstcome::dev::free_port().unwrap());
        config.extra_args = vec!["--repl-diskless-sync-delay".into(), "0".into()];
    }
    if options.power_losses {
        config.environment = machines::disk(&config.dir.join("data")).environment().into();
    }
    if options.ack == Ack::Replica {
        config.extra_args.extend(["--min-replicas-to-write".into(), "1".into()]);
    }
    config
}

/// Makes a server a replica of another.
pub async fn replicate(replica: &RedisServer, master: &RedisServer) {
    let mut link = harness::raw_redis(&replica.url()).await;
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port(master)).exec_async(&mut link).await.unwrap();
}

/// The key of a partition's outbox.
pub fn outbox(partition: u16) -> String {
    format!("{{p{partition}}}:outbox")
}

/// A client with a timeout.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(4)).build().unwrap()
}
