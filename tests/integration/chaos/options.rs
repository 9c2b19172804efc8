//! The settings of a run's processes, and its goods.

use std::path::PathBuf;

use clap::ValueEnum;
use firstcome::config::{Ack, RecoveryMode};
use serde_json::{Value, json};

use super::elsewhere::{self, BroughtKind};
use crate::{process::binary, support::fake_gateway::Protocol};

/// The goods and the users of a run.
#[derive(Clone, Debug)]
pub struct Goods {
    pub users: Vec<i64>,
    pub products: Vec<i64>,
    pub campaigns: Vec<i64>,
    /// The units of each product at first.
    pub stock: i64,
    /// Whether some products have a limit per user, and some campaigns conditions.
    pub terms: bool,
    /// Whether operators bring records in from elsewhere.
    pub doors: bool,
    /// The products that share a limit per user, and the limit.
    pub limits: Vec<(Vec<i64>, i64)>,
}

impl Goods {
    pub const BALANCE: i64 = 1200;
    pub const STOCK: i64 = 20;
    pub const COUPONS: i64 = 8;
    /// The limit per user of a product, and of a group of two.
    const LIMIT: i64 = 5;
    const GROUP_LIMIT: i64 = 8;

    /// None yet.
    pub fn of(stock: i64) -> Goods {
        let (users, products, campaigns, limits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Goods { users, products, campaigns, stock, terms: false, doors: false, limits }
    }

    /// Creates so many of each through the service at `base`.
    pub async fn create(&mut self, base: &str, users: i64, products: i64, campaigns: i64) {
        let create = async |path: &str, body: Value| binary::post(base, path, body).await.created();
        let created = create("/admin/v1/users/bulk", json!({"count": users, "balance": Goods::BALANCE})).await;
        if self.doors {
            let first = format!("/admin/v1/users/{}", elsewhere::FIRST);
            binary::put(base, &first, BroughtKind::User.body(elsewhere::FIRST, 0)).await.created();
        }
        let first = created["firstUserId"].as_i64().unwrap();
        self.users = (first..first + users).collect();
        for number in 0..products {
            let (price, stock) = (100 + 50 * (number % 7), self.stock);
            let mut body = json!({"productName": "신발", "price": price, "stockQuantity": stock, "category": "SHOES"});
            // Of four products one has a limit of its own, and two share one.
            match number % 4 {
                1 if self.terms => body["limitPerUser"] = json!(Goods::LIMIT),
                2 | 3 if self.terms => {
                    body["limitPerUser"] = json!(Goods::GROUP_LIMIT);
                    body["limitGroup"] = json!(format!("SIZES-{}", number / 4));
                }
                _ => {}
            }
            let product = create("/admin/v1/products", body).await["productId"].as_i64().unwrap();
            self.products.push(product);
            match number % 4 {
                1 if self.terms => self.limits.push((vec![product], Goods::LIMIT)),
                2 if self.terms => self.limits.push((vec![product], Goods::GROUP_LIMIT)),
                3 if self.terms => self.limits.last_mut().unwrap().0.push(product),
                _ => {}
            }
        }
        for number in 0..campaigns {
            let (kind, amount) = if number % 2 == 0 { ("FIXED", 150) } else { ("PERCENTAGE", 30) };
            let mut body = json!({"couponCode": "FIRE", "discountType": kind, "discountAmount": amount,
                "totalQuantity": Goods::COUPONS, "expiredAt": "2099-01-01T00:00:00"});
            if self.terms && number % 3 == 2 {
                body["minOrderPrice"] = json!(300);
                body["categories"] = json!(["SHOES"]);
            }
            self.campaigns.push(create("/admin/v1/coupons", body).await["couponId"].as_i64().unwrap());
        }
    }
}

/// The settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub partitions: u16,
    pub services: usize,
    pub hold_seconds: u32,
    pub outbox_keep_seconds: u64,
    /// Whether Redis flushes each decision to its disk; otherwise the service accepts unsafe settings.
    pub safe: bool,
    /// The number of the goods of each kind, and of the users.
    pub users: i64,
    pub products: i64,
    pub campaigns: i64,
    /// See [`Goods::terms`] and [`Goods::doors`]. With doors a webhook is sent every event.
    pub terms: bool,
    pub doors: bool,
    pub ack: Ack,
    /// Whether Redis has a replica, and PostgreSQL a standby.
    pub replica: bool,
    pub standby: bool,
    /// Whether Sentinels watch Redis, which needs the replica.
    pub sentinels: bool,
    /// What the gateway speaks through which some orders are paid, if there is one.
    pub gateway: Option<Protocol>,
    /// Whether Redis records what it has flushed, so that its power may be lost.
    pub power_losses: bool,
    pub batch: u32,
    pub linger_ms: u64,
    pub sold_out_lease_ms: u64,
    pub closed_keep_seconds: i64,
    pub recovery: RecoveryMode,
    pub recovery_wait_seconds: u64,
    /// Another version of the program, for every second start of a service.
    pub base_program: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            partitions: 1,
            services: 1,
            hold_seconds: 600,
            outbox_keep_seconds: 60,
            safe: true,
            users: 2,
            products: 2,
            campaigns: 1,
            terms: false,
            doors: false,
            ack: Ack::Redis,
            replica: false,
            standby: false,
            sentinels: false,
            gateway: None,
            power_losses: false,
            batch: 1000,
            linger_ms: 50,
            sold_out_lease_ms: 200,
            // The minimum, so that a long run evicts orders.
            closed_keep_seconds: 60,
            // A loss is a violation: a recovery must not make it good.
            recovery: RecoveryMode::Manual,
            recovery_wait_seconds: 1,
            base_program: None,
        }
    }
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().unwrap().get_name().to_owned()
}

impl Options {
    /// With enough goods for this many operations: each object is replaced after a number of requests.
    pub fn with_goods_for(self, operations: i64) -> Options {
        let each = 12 + operations / 100;
        Options { users: 2 * each, products: each, campaigns: each, terms: true, doors: true, ..self }
    }

    /// The loss that a service reports, if that is a violation. Where the processes recover losses, `losses` judges by their log.
    pub fn violation(&self, said: &str) -> Option<String> {
        let signs = ["are lost", "Redis lost decisions", "lost the state", "is not open in Redis"];
        let reported = said.lines().find(|line| signs.iter().any(|sign| line.contains(sign)));
        reported.filter(|_| self.recovery != RecoveryMode::Automatic).map(str::to_owned)
    }

    /// The variables of `firstcome serve`.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PARTITIONS", self.partitions.to_string()),
            ("ORDER_HOLD_SECONDS", self.hold_seconds.to_string()),
            ("OUTBOX_KEEP_SECONDS", self.outbox_keep_seconds.to_string()),
            ("CLOSED_ORDER_KEEP_SECONDS", self.closed_keep_seconds.to_string()),
            ("ACK", name(&self.ack)),
            ("ACK_REPLICA_TIMEOUT_MS", "1000".into()),
            ("PROJECTOR_BATCH", self.batch.to_string()),
            ("PROJECTOR_LINGER_MS", self.linger_ms.to_string()),
            ("SOLD_OUT_LEASE_MS", self.sold_out_lease_ms.to_string()),
            ("RECOVERY", name(&self.recovery)),
            ("RECOVERY_WAIT_SECONDS", self.recovery_wait_seconds.to_string()),
            ("REDIS_DURABILITY", if self.safe { "checked" } else { "asserted" }.into()),
        ]
    }
}

impl std::fmt::Display for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Options { users, products, campaigns, services, .. } = self;
        write!(f, "{services} service(s), {users} users, {products} products of {} units, ", Goods::STOCK)?;
        write!(f, "{campaigns} campaigns of {} coupons", Goods::COUPONS)?;
        for (is_there, name) in [
            (self.replica, "a replica of Redis"),
            (self.standby, "a standby of PostgreSQL"),
            (self.sentinels, "Sentinels"),
            (self.terms, "terms of sale"),
            (self.doors, "records from elsewhere and a webhook"),
            (self.power_losses, "a record of what Redis has flushed"),
        ] {
            if is_there {
                write!(f, ", {name}")?;
            }
        }
        if let Some(protocol) = self.gateway {
            write!(f, ", a payment gateway ({protocol:?})")?;
        }
        if let Some(program) = &self.base_program {
            write!(f, ", every second start of a service one of {}", program.display())?;
        }
        self.environment().iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}
