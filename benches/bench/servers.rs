//! The measured processes: a private Redis and PostgreSQL, durable as in production, and the service as a child process of this
//! program, so that the CPU time of each is separate.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use firstcome::{
    app::App,
    config::*,
    dev::{self, PostgresServer, RedisServer, ScratchDir},
    http::server::listener,
    model::{Clock, Millis},
    postgres,
    redis::Store,
};
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::DatabaseConnection;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    client, cpu,
    cpu::Cpu,
    loads::WON,
    nodes::{self, Layout},
};

const TOKEN: &str = "a-token-of-the-bench";
/// The default of `LISTEN_BACKLOG`.
const BACKLOG: u32 = 16_384;

/// The roles of a child process of this program.
pub const SERVE: &str = "serve";
pub const PROJECT: &str = "project";
pub const AUDIT: &str = "audit-role";
pub const REBUILD: &str = "rebuild-role";
pub const LOCK_BASED: &str = "lock_based";
pub const MICRO: &str = "micro";

pub struct Servers {
    pub store: Store,
    pub db: DatabaseConnection,
    pub layout: Layout,
    // Fields drop in this order: the servers end before their directory is removed.
    pub redis: RedisServer,
    /// The other nodes of a cluster.
    pub others: Vec<RedisServer>,
    pub postgres: PostgresServer,
    _dir: ScratchDir,
}

/// A child process of this program.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops the process: its connections stay, and it uses no CPU.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Servers {
    pub async fn start(layout: Layout) -> Result<Self> {
        let dir = ScratchDir::new()?;
        let mut nodes = nodes::start(dir.path(), layout).await?;
        let others = nodes.split_off(1);
        let redis = nodes.pop().context("no Redis")?;
        let postgres = PostgresServer::start(dev::PostgresServerConfig::new(dir.path().join("postgres"))).await?;
        let admin = postgres_config(postgres.url("postgres"));
        for database in ["firstcome", "lock_based"] {
            postgres::create_database(&admin, database).await?;
            postgres::migrate(&postgres::connect(&postgres_config(postgres.url(database))).await?).await?;
        }
        let db = postgres::connect(&postgres_config(postgres.url("firstcome"))).await?;
        let store = Store::connect(&redis_config(redis.url())).await?.with_partitions(layout.partitions);
        Ok(Servers { store, db, layout, redis, others, postgres, _dir: dir })
    }

    /// The Redis servers, in the order of the layout's nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &RedisServer> {
        std::iter::once(&self.redis).chain(&self.others)
    }

    /// Seconds of CPU of each Redis server.
    pub fn cpu_of_nodes(&self) -> Vec<f64> {
        self.nodes().map(|node| node.pid().map_or(0.0, cpu::of_family)).collect()
    }

    /// Seconds of CPU of PostgreSQL.
    pub fn postgres_cpu(&self) -> f64 {
        self.postgres.pid().map_or(0.0, cpu::of_family)
    }

    /// Sets the addresses of the servers in the environment of a program.
    pub fn with_servers<'a>(&self, program: &'a mut Command, database: &str) -> &'a mut Command {
        program
            .env("REDIS_URL", self.redis.url())
            .env("DATABASE_URL", self.postgres.url(database))
            .env("PARTITIONS", self.layout.partitions.to_string())
    }

    /// Starts this program in another role, and waits until it prints the address that it listens at.
    pub fn process(&self, role: &str, args: &[&str]) -> Result<Process> {
        self.process_with(role, args, &[])
    }

    /// The same with further variables in its environment.
    pub fn process_with(&self, role: &str, args: &[&str], variables: &[(&str, &str)]) -> Result<Process> {
        let database = if role == LOCK_BASED { "lock_based" } else { "firstcome" };
        let mut child = self
            .with_servers(
                Command::new(std::env::current_exe()?).arg(role).args(args).envs(variables.iter().copied()),
                database,
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("{role} did not start: {line:?}"))?;
        Ok(Process { child, address })
    }

    pub fn cpu(&self, service: u32) -> Cpu {
        Cpu {
            service: cpu::of(service),
            redis: self.cpu_of_nodes().iter().sum(),
            postgres: self.postgres_cpu(),
            generator: cpu::of(std::process::id()),
        }
    }

    /// Decisions that PostgreSQL does not have yet.
    pub async fn lag(&self) -> Result<i64> {
        let mut lag = 0;
        let positions = postgres::progress::projected(&self.db).await?;
        for here in self.store.all() {
            let projected = positions.iter().find(|p| p.partition == here).map_or(0, |p| p.position.seq);
            lag += self.store.position(here).await?.seq - projected;
        }
        Ok(lag)
    }

    /// Waits until PostgreSQL has every decision. Fails after 120 seconds without progress.
    pub async fn drain(&self) -> Result<()> {
        let (mut min, mut since) = (i64::MAX, Instant::now());
        loop {
            let lag = self.lag().await?;
            if lag == 0 {
                return Ok(());
            }
            if lag < min {
                (min, since) = (lag, Instant::now());
            }
            ensure!(since.elapsed() < Duration::from_secs(120), "no progress of the projection: it lags by {lag}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has Redis rewrite its append-only file, under the condition of its default configuration: a doubled size.
    pub async fn tidy(&self) -> Result<()> {
        for node in self.nodes() {
            let (size, base) =
                (nodes::info(node, "aof_current_size").await?, nodes::info(node, "aof_base_size").await?);
            if size < 64.0 * 1024.0 * 1024.0 || size < 2.0 * base {
                continue;
            }
            redis::cmd("BGREWRITEAOF").exec_async(&mut nodes::link(node).await?).await?;
            while nodes::info(node, "aof_rewrite_in_progress").await?
                + nodes::info(node, "aof_rewrite_scheduled").await?
                > 0.0
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// A number of the reply to INFO, of the first server.
    pub async fn redis_info(&self, name: &str) -> Result<f64> {
        nodes::info(&self.redis, name).await
    }

    /// A connection to the first server.
    pub async fn redis_link(&self) -> Result<redis::aio::MultiplexedConnection> {
        nodes::link(&self.redis).await
    }
}

impl Process {
    pub async fn operate(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        client::operate(self.address, TOKEN, method, path, &body).await
    }

    /// Creates `count` users. Returns the first of their consecutive ids.
    pub async fn users(&self, count: u64, balance: i64) -> Result<u64> {
        let users = json!({ "count": count, "namePrefix": "user-", "balance": balance });
        let made = self.operate("POST", "/admin/v1/users/bulk", users).await?;
        made["firstUserId"].as_u64().context("no firstUserId")
    }

    pub async fn product(&self, units: i64) -> Result<u64> {
        self.operate("POST", "/admin/v1/products", product(units)).await?["productId"].as_u64().context("no productId")
    }

    /// A product that is on sale for a while, and of whose group a user may have so many units.
    pub async fn product_with_terms(&self, units: i64) -> Result<u64> {
        let mut product = product(units);
        for (name, value) in [
            ("opensAt", json!("2026-01-01T10:00:00")),
            ("closesAt", json!("2099-12-31T23:59:59")),
            ("limitPerUser", json!(10_000)),
            ("limitGroup", json!("AIR")),
        ] {
            product[name] = value;
        }
        self.operate("POST", "/admin/v1/products", product).await?["productId"].as_u64().context("no productId")
    }

    /// Writes a request that creates a product.
    pub fn write_product(&self, request: &mut Vec<u8>, units: i64) {
        client::write_operation(request, TOKEN, "POST", "/admin/v1/products", &product(units).to_string());
    }

    pub async fn campaign(&self, total: u64) -> Result<u64> {
        let campaign = json!({
            "couponCode": "HANGHAE8888", "discountType": "FIXED", "discountAmount": 1000, "totalQuantity": total,
            "expiredAt": "2099-12-31T23:59:59",
        });
        self.operate("POST", "/admin/v1/coupons", campaign).await?["couponId"].as_u64().context("no couponId")
    }
}

fn product(units: i64) -> Value {
    json!({ "productName": "나이키 에어포스", "price": WON, "stockQuantity": units, "category": "SHOES" })
}

pub fn redis_config(url: String) -> RedisConfig {
    let redis_timeout_ms = number_of("REDIS_TIMEOUT_MS").unwrap_or(120_000);
    RedisConfig { redis_timeout_ms, redis_durability: RedisDurability::Asserted, ..RedisConfig::at(url) }
}

pub fn postgres_config(url: String) -> PostgresConfig {
    PostgresConfig { database_url: Secret::new(url), database_connections: 10, database_timeout_ms: 120_000 }
}

/// The `ACK` of the environment.
fn ack() -> Ack {
    match std::env::var("ACK").as_deref() {
        Ok("replica") => Ack::Replica,
        _ => Ack::Redis,
    }
}

/// The number in a variable of the environment.
fn number_of<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// The projector's settings, with the `OUTBOX_KEEP_SECONDS` and the `EVENTS_KEEP_DAYS` of the environment.
fn projector_config() -> ProjectorConfig {
    let config = ProjectorConfig::default();
    let outbox_keep_seconds = number_of("OUTBOX_KEEP_SECONDS").unwrap_or(config.outbox_keep_seconds);
    let events_keep_days = number_of("EVENTS_KEEP_DAYS").unwrap_or(config.events_keep_days);
    ProjectorConfig { outbox_keep_seconds, events_keep_days, ..config }
}

fn engine_config() -> Result<EngineConfig> {
    Ok(EngineConfig {
        redis: redis_config(std::env::var("REDIS_URL")?),
        postgres: postgres_config(std::env::var("DATABASE_URL")?),
        shop: ShopConfig {
            time_zone: chrono_tz::Asia::Seoul,
            order_hold_seconds: 24 * 3600,
            refund_window_seconds: 604_800,
            max_open_orders_per_user: u32::MAX,
            max_balance: 9_007_199_254_740_991,
            sold_out_lease_ms: 200,
            partitions: number_of("PARTITIONS"),
        },
        gateway: GatewayConfig::default(),
        retention: RetentionConfig::default(),
        durability: DurabilityConfig { ack: ack(), max_backlog: 100_000_000, ..DurabilityConfig::default() },
        webhooks: WebhookConfig { webhook_allow_private: true },
    })
}

/// The service as `firstcome serve` runs it, without limits, and with the routes of the baseline.
pub async fn serve(projects: bool) -> Result<()> {
    let app = open().await?.until(stop_with_parent());
    let http = http_config();
    if projects {
        app.project();
    }
    app.sweep();
    app.watch(projects);
    let listener = listen().await?;
    app.serve(listener, None, &http).await?;
    app.stop(None).await;
    Ok(())
}

/// Opens the engine with the servers of the environment.
pub async fn open() -> Result<App> {
    App::open(&engine_config()?, &projector_config(), Clock::system()).await
}

pub fn http_config() -> HttpConfig {
    HttpConfig {
        bind_addr: ([127, 0, 0, 1], 0).into(),
        ops_bind_addr: None,
        operators: OperatorsConfig::admin(TOKEN),
        request_timeout_ms: 600_000,
        body_limit_bytes: 65_536,
        max_connections: 20_000,
        listen_backlog: BACKLOG,
        header_timeout_ms: 600_000,
        drain_seconds: 1,
        drain_delay_seconds: Some(0),
        limits: LimitsConfig::off(),
        browsers: BrowserConfig::default(),
        metrics: MetricsConfig::default(),
        auth: AuthConfig::default(),
    }
}

/// Runs the projector alone.
pub async fn project() -> Result<()> {
    let app = open().await?;
    app.project();
    let _listener = listen().await?;
    stop_with_parent().cancelled().await;
    app.stop(None).await;
    Ok(())
}

/// Listens at a free port, and prints the address for the parent process.
pub async fn listen() -> Result<TcpListener> {
    let listener = listener::listen((Ipv4Addr::LOCALHOST, 0).into(), BACKLOG)?;
    println!("{}", listener.local_addr()?);
    Ok(listener)
}

/// A token that is cancelled when the parent process ends, which closes standard input.
pub fn stop_with_parent() -> CancellationToken {
    let stop = CancellationToken::new();
    let gone = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        gone.cancel();
    });
    stop
}

/// The current time by the clock of the service.
pub fn now() -> Millis {
    Clock::system().now()
}
