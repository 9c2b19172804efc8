//! The processes of a run: Redis, PostgreSQL and `firstcome serve`, with a proxy on every connection between them.
//!
//! Starts, stops and restarts them; the nemesis has the faults, the clients the load.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::ExitStatus,
    time::Duration,
};

use firstcome::{
    dev::{AppendFsync, PostgresServer, PostgresServerConfig, RedisServer, RedisServerConfig, ScratchDir},
    postgres,
};
use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::DatabaseConnection;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::process::Child;

use super::proxy::{Mode, Proxy, Upstream};
use crate::{
    process::binary,
    support::harness::{self, ADMIN, until},
};

const DATABASE: &str = "shop";

/// The settings of a run.
#[derive(Clone)]
pub struct Options {
    pub partitions: u16,
    pub services: usize,
    pub hold_seconds: u32,
    pub outbox_keep_seconds: u64,
    /// Whether Redis flushes each decision to its disk; otherwise the service accepts unsafe settings.
    pub safe: bool,
    pub users: i64,
    pub products: i64,
    pub campaigns: i64,
}

/// The goods and the users of a run.
#[derive(Clone, Debug)]
pub struct Goods {
    pub users: Vec<i64>,
    pub products: Vec<i64>,
    pub campaigns: Vec<i64>,
}

impl Goods {
    pub const BALANCE: i64 = 1200;
    pub const STOCK: i64 = 20;
    pub const COUPONS: i64 = 8;

    /// Creates so many of each through the service at `base`.
    pub async fn create(base: &str, users: i64, products: i64, campaigns: i64) -> Goods {
        let create = async |path: &str, body: Value| binary::post(base, path, body).await.created();
        let created = create("/admin/v1/users/bulk", json!({"count": users, "balance": Goods::BALANCE})).await;
        let first = created["firstUserId"].as_i64().unwrap();
        let users = (first..first + users).collect();
        let mut goods = Goods { users, products: Vec::new(), campaigns: Vec::new() };
        for number in 0..products {
            let (price, stock) = (100 + 50 * (number % 7), Goods::STOCK);
            let body = json!({"productName": "신발", "price": price, "stockQuantity": stock, "category": "SHOES"});
            goods.products.push(create("/admin/v1/products", body).await["productId"].as_i64().unwrap());
        }
        for number in 0..campaigns {
            let (kind, amount) = if number % 2 == 0 { ("FIXED", 150) } else { ("PERCENTAGE", 30) };
            let body = json!({"couponCode": "FIRE", "discountType": kind, "discountAmount": amount,
                "totalQuantity": Goods::COUPONS, "expiredAt": "2099-01-01T00:00:00"});
            goods.campaigns.push(create("/admin/v1/coupons", body).await["couponId"].as_i64().unwrap());
        }
        goods
    }
}

/// One `firstcome serve`.
pub struct Service {
    child: Option<Child>,
    log: PathBuf,
    /// The clients' way to the service, with the same address after a restart.
    pub proxy: Proxy,
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
    pub postgres: PostgresServer,
    dir: ScratchDir,
}

impl Shop {
    /// Starts everything and creates the goods. `template` is the data directory of a stopped PostgreSQL server, to save time.
    pub async fn open(options: Options, template: Option<PathBuf>) -> Shop {
        let dir = ScratchDir::new().unwrap();
        let mut redis = RedisServerConfig::new(dir.path().join("redis"));
        redis.full_disks = true;
        if !options.safe {
            redis.append_fsync = AppendFsync::Never;
        }
        let redis = RedisServer::start(redis).await.unwrap();
        let mut postgres = PostgresServerConfig::new(dir.path().join("postgres"));
        postgres.template = template;
        let postgres = PostgresServer::start(postgres).await.unwrap();
        let to_redis = Proxy::start(Some(Upstream::Unix(redis.socket_path()))).await;
        let to_postgres = Proxy::start(Some(Upstream::Unix(postgres.socket_dir().join(".s.PGSQL.5432")))).await;
        let goods = Goods { users: Vec::new(), products: Vec::new(), campaigns: Vec::new() };
        let mut shop = Shop { options, services: Vec::new(), to_redis, to_postgres, goods, redis, postgres, dir };
        postgres::create_database(&harness::postgres_config(&shop.postgres.url("postgres")), DATABASE).await.unwrap();
        let migrating = shop.db().await;
        postgres::migrate(&migrating).await.unwrap();
        migrating.close().await.unwrap();
        for number in 0..shop.options.services {
            let log = shop.dir.path().join(format!("service-{number}.log"));
            shop.services.push(Service { child: None, log, proxy: Proxy::start(None).await });
            shop.start(number).await.unwrap();
        }
        let Options { users, products, campaigns, .. } = shop.options;
        shop.goods = Goods::create(&shop.bases()[0], users, products, campaigns).await;
        shop
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
        let (redis, service) = (format!("redis://{}/", self.to_redis.address), &mut self.services[number]);
        let mut log_start = 0;
        until("a service listens", async || {
            let Some(child) = &mut service.child else {
                let log = fs::OpenOptions::new().create(true).append(true).open(&service.log).unwrap();
                log_start = log.metadata().unwrap().len();
                let mut command = binary::program(&["serve"]);
                command.env("REDIS_URL", &redis).env("DATABASE_URL", &url).env("ADMIN_TOKEN", ADMIN);
                command.env("BIND_ADDR", "127.0.0.1:0").env("PARTITIONS", self.options.partitions.to_string());
                command.env("ORDER_HOLD_SECONDS", self.options.hold_seconds.to_string());
                command.env("OUTBOX_KEEP_SECONDS", self.options.outbox_keep_seconds.to_string());
                // The minimum, so that a long run evicts orders.
                command.env("CLOSED_ORDER_KEEP_SECONDS", "60");
                command.env("REDIS_TIMEOUT_MS", "1000").env("DATABASE_TIMEOUT_MS", "1500");
                command
                    .env("REQUEST_TIMEOUT_MS", "3000")
                    .env("DRAIN_SECONDS", "120")
                    .env("DRAIN_DELAY_SECONDS", "0")
                    .env("MAX_BACKLOG", "500");
                // All clients have one address.
                command.env("RATE_LIMIT_CLIENT_PER_SECOND", "0").env("RATE_LIMIT_USER_PER_SECOND", "0");
                // A loss is a violation here: a recovery must not make it good.
                command.env("RECOVERY", "manual");
                command.env("REDIS_DURABILITY", if self.options.safe { "checked" } else { "asserted" });
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
            reported_loss(&tail(&service.log, log_start)).map(Err)
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
        self.redis.restart().await.unwrap();
        self.postgres.restart().await.unwrap();
        for number in 0..self.services.len() {
            self.start(number).await?;
        }
        self.ready().await
    }

    /// Waits until every service is ready.
    ///
    /// # Errors
    /// A service reports a loss of acknowledged decisions.
    pub async fn ready(&self) -> Result<(), String> {
        let client = client();
        for base in self.bases() {
            until("a service is ready", async || {
                let response = client.get(format!("{base}/readyz")).send().await.ok()?;
                let ready = response.status() == 200;
                let text = response.text().await.ok()?;
                if ready { Some(Ok(())) } else { reported_loss(&text).map(Err) }
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

    /// Waits until no stock is held for an order that is not PENDING. A request that ended between its remote hold and its order
    /// leaves the hold to the sweeper, which releases it a minute after the order would have expired.
    pub async fn stray_holds_ended(&self) {
        let (mut redis, partitions) = (self.raw().await, self.options.partitions);
        until("holds of orders that were never placed are released", async || {
            for here in 0..partitions {
                let mut read = redis::cmd("ZRANGE");
                let held: Vec<String> =
                    read.arg(format!("{{p{here}}}:holds")).arg(0).arg(-1).query_async(&mut redis).await.unwrap();
                for order in held.iter().map(|member| member.split(':').next().unwrap()) {
                    let owner = order.parse::<i64>().unwrap() % i64::from(partitions);
                    let mut read = redis::cmd("HGET");
                    read.arg(format!("{{p{owner}}}:order:{order}")).arg("status");
                    let status: Option<String> = read.query_async(&mut redis).await.unwrap();
                    if status.as_deref() != Some("PENDING") {
                        return None;
                    }
                }
            }
            Some(())
        })
        .await;
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

    /// The errors and the last lines of the services' logs, for the report of a failure.
    pub fn logs(&self) -> String {
        let excerpt = |service: &Service| {
            let log = tail(&service.log, 0);
            let (errors, rest): (Vec<&str>, Vec<&str>) =
                log.lines().filter(|line| !line.contains("\"INFO\"")).partition(|line| line.contains("\"ERROR\""));
            let last = &rest[rest.len().saturating_sub(15)..];
            [&errors[..errors.len().min(15)], last].concat().join("\n")
        };
        self.services.iter().map(excerpt).collect::<Vec<_>>().join("\n--\n")
    }
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

fn tail(log: &PathBuf, from: u64) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = fs::File::open(log) {
        file.seek(SeekFrom::Start(from)).unwrap();
        file.read_to_end(&mut text).unwrap();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The address that a service serves, from its log after this offset.
fn serving(log: &PathBuf, from: u64) -> Option<String> {
    let text = tail(log, from);
    let line = text.lines().find(|line| line.contains("\"message\":\"serving\"") && line.ends_with('}'))?;
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line["fields"]["address"].as_str()?.to_owned())
}

/// The reported loss, if any.
fn reported_loss(text: &str) -> Option<String> {
    let signs = ["are lost", "Redis lost decisions", "lost the state", "is not open in Redis"];
    text.lines().find(|line| signs.iter().any(|sign| line.contains(sign))).map(str::to_owned)
}
