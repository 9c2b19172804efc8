//! The machines of a drill: the stores, two services, and a balancer in front of them.

use firstcome::{
    dev::{PostgresServer, PostgresServerConfig, ScratchDir},
    postgres,
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::redis_servers::{Layout, RedisServers};
use crate::{
    chaos::shop::{self, Goods},
    process::{
        binary::{ADMIN, Running, get, post, program, run},
        instances::Balancer,
    },
    support::{
        harness::{self, until},
        preload::Variable,
        standby::{self, Standby},
    },
};

const DATABASE: &str = "postgres";
const USERS: i64 = 200;
const PRODUCTS: i64 = 40;
const STOCK: i64 = 10_000;
const CAMPAIGNS: i64 = 30;

/// What a drill runs on.
#[derive(Clone, Copy)]
pub struct Plan {
    pub redis: Layout,
    /// Whether PostgreSQL has a standby.
    pub standby: bool,
    pub partitions: u16,
    /// `ACK`.
    pub ack: &'static str,
}

impl Plan {
    /// One Redis, one PostgreSQL, the program's defaults.
    pub const SMALLEST: Plan = Plan { redis: Layout::Alone, standby: false, partitions: 1, ack: "redis" };
}

/// A `firstcome serve`.
pub struct Service {
    pub running: Running,
    pub base: String,
}

/// All processes. Dropped, they end.
pub struct Site {
    pub plan: Plan,
    pub services: Vec<Service>,
    pub goods: Goods,
    pub balancer: Balancer,
    // The servers end before their directory is removed.
    pub redis: RedisServers,
    pub standby: Option<Standby>,
    pub postgres: PostgresServer,
    database_url: String,
    started: usize,
    dir: ScratchDir,
}

impl Site {
    /// Starts everything, with two services, and stocks the shop.
    pub async fn open(plan: Plan) -> Site {
        let dir = ScratchDir::new().unwrap();
        let redis = RedisServers::start(plan.redis, &dir).await;
        let (postgres, standby) = match plan.standby {
            true => {
                let (primary, standby) = standby::pair(&dir, false).await;
                (primary, Some(standby))
            }
            false => {
                let alone = PostgresServerConfig::new(dir.path().join("postgres"));
                (PostgresServer::start(alone).await.unwrap(), None)
            }
        };
        let database_url = match &standby {
            Some(standby) => standby.url(&postgres, DATABASE),
            None => postgres.url(DATABASE),
        };
        let (goods, balancer, services) = (Goods::of(STOCK), Balancer::start().await, Vec::new());
        let mut site =
            Site { plan, services, goods, balancer, redis, standby, postgres, database_url, started: 0, dir };
        let (status, said) = run(&mut site.command("migrate")).await;
        assert!(status.success(), "{said}");
        for _ in 0..2 {
            site.start_service(&[]).await;
        }
        site.stock_up().await;
        if let Some(standby) = &site.standby {
            standby.caught_up(&site.postgres).await;
        }
        site
    }

    fn command(&self, command: &str) -> Command {
        let mut command = program(&[command]);
        command.env("REDIS_URL", &self.redis.url).env("DATABASE_URL", &self.database_url).env("ADMIN_TOKEN", ADMIN);
        command.env("BIND_ADDR", "127.0.0.1:0").env("ACK", self.plan.ack);
        command.env("PARTITIONS", self.plan.partitions.to_string()).env("ORDER_HOLD_SECONDS", "5");
        command.env("DRAIN_DELAY_SECONDS", "0").env("DRAIN_SECONDS", "120");
        // All customers have one address.
        command.env("RATE_LIMIT_CLIENT_PER_SECOND", "0").env("RATE_LIMIT_USER_PER_SECOND", "0");
        command
    }

    /// Starts a service with these additional variables, waits until it is ready, and puts it behind the balancer.
    pub async fn start_service(&mut self, variables: &[Variable]) {
        let (name, mut command) = (format!("serve-{}", self.started), self.command("serve"));
        self.started += 1;
        let mut running = Running::start(command.envs(variables.iter().cloned()), &self.dir, &name);
        let base = running.base().await;
        until("the service is ready", async || (get(&base, "/readyz").await.status == 200).then_some(())).await;
        self.balancer.add(&base).await;
        self.services.push(Service { running, base });
    }

    /// `kill -9`. The balancer finds out by itself.
    pub async fn kill_service(&mut self, number: usize) {
        self.services.remove(number).running.child.kill().await.unwrap();
    }

    async fn stock_up(&mut self) {
        let base = &self.services[0].base;
        let create = async |path: &str, body: Value| post(base, path, body).await.created();
        let users = create("/admin/v1/users/bulk", json!({"count": USERS, "balance": Goods::BALANCE})).await;
        let first = users["firstUserId"].as_i64().unwrap();
        self.goods.users = (first..first + USERS).collect();
        for _ in 0..PRODUCTS {
            let body = json!({"productName": "신발", "price": 10, "stockQuantity": STOCK, "category": "SHOES"});
            self.goods.products.push(create("/admin/v1/products", body).await["productId"].as_i64().unwrap());
        }
        for _ in 0..CAMPAIGNS {
            let body = json!({"couponCode": "DRILL", "discountType": "FIXED", "discountAmount": 1, "totalQuantity": 100,
                "expiredAt": "2099-01-01T00:00:00"});
            self.goods.campaigns.push(create("/admin/v1/coupons", body).await["couponId"].as_i64().unwrap());
        }
    }

    /// Whether every service says that it serves, and that nothing needs attention.
    pub async fn is_up(&self) -> bool {
        let client = shop::client();
        for service in &self.services {
            let Ok(reply) = client.get(format!("{}/readyz", service.base)).send().await else { return false };
            let body = reply.json::<Value>().await.unwrap_or_default();
            if body["status"] != "UP" {
                return false;
            }
        }
        true
    }

    /// A connection to PostgreSQL.
    pub async fn db(&self) -> sea_orm::DatabaseConnection {
        postgres::connect(&harness::postgres_config(&self.postgres.url(DATABASE))).await.unwrap()
    }

    /// The errors and the last lines of the services' logs, for the report of a failure.
    pub fn logs(&self) -> String {
        let excerpt = |service: &Service| {
            let log = service.running.err();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"INFO\"")).collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        self.services.iter().map(excerpt).collect::<Vec<_>>().join("\n--\n")
    }
}
