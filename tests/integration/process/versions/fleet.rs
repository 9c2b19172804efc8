//! Services and projectors of two versions on the same stores, a balancer, and customers that want more than there is.

use std::{path::PathBuf, sync::Arc, time::Duration};

use firstcome::{
    model::Recovery,
    postgres::{instance_requests, recoveries},
    redis::LAYOUT,
};
use serde_json::json;
use tokio::{process::Command, task::JoinHandle};

use crate::{
    chaos::{
        clients::Market,
        facts::{self, Facts},
        history::{Operation, Outcome, now},
        shop::Goods,
    },
    process::{
        binary::{PROGRAM, Running, Servers, get, post, run},
        instances::Balancer,
    },
    support::harness::{raw_redis, until},
};

const CUSTOMERS: u64 = 8;
/// The time from one request to the next.
const REQUEST_INTERVAL: Duration = Duration::from_millis(10);
/// The customers want several times the stock.
const USERS: i64 = 60;
const PRODUCTS: i64 = 24;
const CAMPAIGNS: i64 = 20;
/// The first migration whose programs find each other's idempotency records.
const FIRST_SHARED_KEYS: i64 = 14;
/// Services, and projectors, of a version that works alone.
const EACH: usize = 2;

/// One of the two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Old,
    New,
}

/// The programs of the two versions.
pub struct Pair {
    old: PathBuf,
    /// The requests with success that each phase waits for.
    phase: usize,
    pub is_equal: bool,
}

impl Pair {
    /// The program under test, in both places.
    pub fn equal() -> Pair {
        Pair { old: PROGRAM.into(), phase: 25, is_equal: true }
    }

    /// BASE's program and the one under test.
    pub fn base() -> Pair {
        let old =
            std::env::var_os("BASE_PROGRAM").expect("`make test-versions` builds BASE's program and sets BASE_PROGRAM");
        Pair { old: old.into(), phase: 250, is_equal: false }
    }

    fn program(&self, version: Version) -> PathBuf {
        match version {
            Version::Old => self.old.clone(),
            Version::New => PROGRAM.into(),
        }
    }
}

/// A `firstcome serve` or a `firstcome project`.
struct Member {
    version: Version,
    running: Running,
    /// The base URL of a service.
    base: Option<String>,
}

/// All processes. Dropped, they end.
pub struct Fleet {
    pub pair: Pair,
    services: Vec<Member>,
    projectors: Vec<Member>,
    balancer: Balancer,
    market: Arc<Market>,
    goods: Goods,
    customers: Vec<JoinHandle<()>>,
    /// The requests of customers that are gone.
    operations: Vec<Operation>,
    partitions: u16,
    started: usize,
    servers: Servers,
}

impl Fleet {
    /// Starts the old version alone, and stocks the shop.
    pub async fn open(pair: Pair, partitions: u16) -> Fleet {
        let (servers, balancer) = (Servers::start().await, Balancer::start().await);
        let goods = Goods::of(Goods::STOCK);
        let market = Market::new(&goods, Vec::new(), 0);
        let (services, projectors, customers, operations) = Default::default();
        let mut fleet = Fleet {
            pair,
            services,
            projectors,
            balancer,
            market,
            goods,
            customers,
            operations,
            partitions,
            started: 0,
            servers,
        };
        fleet.migrate(Version::Old).await;
        fleet.start(Version::Old).await;
        let base = fleet.services[0].base.clone().unwrap();
        fleet.goods.create(&base, USERS, PRODUCTS, CAMPAIGNS).await;
        fleet.open_shop();
        fleet
    }

    /// Starts as many processes of a version as work alone.
    pub async fn start(&mut self, version: Version) {
        for _ in 0..EACH {
            self.start_projector(version).await;
            self.start_service(version).await;
        }
    }

    /// Lets customers in.
    pub fn open_shop(&mut self) {
        let seed = 20_260_302 + self.operations.len() as u64;
        self.market = Market::new(&self.goods, vec![format!("http://{}", self.balancer.address)], seed);
        self.customers = self.market.start(CUSTOMERS);
        self.customers.push(tokio::spawn(self.market.clone().pace(REQUEST_INTERVAL)));
    }

    /// Lets the customers finish, and settles what they do not know.
    pub async fn close_shop(&mut self) {
        self.market.permits.close();
        for customer in self.customers.drain(..) {
            customer.await.unwrap();
        }
        self.market.settle_open().await;
        self.operations.extend(self.market.history.all());
    }

    fn command(&self, version: Version, role: &[&str]) -> Command {
        let mut command = self.servers.role_of(&self.pair.program(version), role);
        command.env("PARTITIONS", self.partitions.to_string()).env("ORDER_HOLD_SECONDS", "5");
        command.env("DRAIN_DELAY_SECONDS", "1").env("RUST_LOG", "info");
        command
    }

    /// Runs a command of a version to its end. Returns whether it succeeded, and its output.
    pub async fn run(&self, version: Version, role: &[&str]) -> (bool, String) {
        let (status, said) = run(&mut self.command(version, role)).await;
        (status.success(), said)
    }

    /// Runs a command of a version, which succeeds. Returns its output.
    pub async fn succeed(&self, version: Version, role: &[&str]) -> String {
        let (succeeded, said) = self.run(version, role).await;
        assert!(succeeded, "{version:?} {role:?}: {said}");
        said
    }

    pub async fn migrate(&self, version: Version) {
        self.succeed(version, &["migrate"]).await;
    }

    /// Why the two versions must not work side by side, as the page says; `None` if they may.
    pub async fn needs_a_stop(&self) -> Option<String> {
        let db = self.servers.db().await;
        let schema: i64 = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations")
            .fetch_one(db.get_postgres_connection_pool())
            .await
            .unwrap();
        db.close().await.unwrap();
        if self.layout().await != Some(LAYOUT) {
            return Some("it has another layout of Redis".to_owned());
        }
        (schema < FIRST_SHARED_KEYS).then(|| format!("its schema is {schema}, and it shares no idempotency keys"))
    }

    /// The layout of Redis.
    pub async fn layout(&self) -> Option<i64> {
        let mut redis = raw_redis(&self.servers.redis_url).await;
        redis::cmd("HGET").arg("{p0}:meta").arg("layout").query_async(&mut redis).await.unwrap()
    }

    /// Makes Redis have the layout of an earlier version.
    pub async fn set_earlier_layout(&self) {
        let mut redis = raw_redis(&self.servers.redis_url).await;
        for partition in 0..self.partitions {
            let mut set = redis::cmd("HSET");
            set.arg(format!("{{p{partition}}}:meta")).arg("layout").arg(LAYOUT - 1);
            set.query_async::<i64>(&mut redis).await.unwrap();
        }
    }

    /// Starts a service, waits until it is ready, and puts it behind the balancer.
    pub async fn start_service(&mut self, version: Version) {
        let mut command = self.command(version, &["serve"]);
        let mut running = self.launch(command.env("NO_PROJECTOR", "true"), version);
        let base = running.base().await;
        until("the service is ready", async || (get(&base, "/readyz").await.status == 200).then_some(())).await;
        self.balancer.add(&base).await;
        self.services.push(Member { version, running, base: Some(base) });
    }

    /// Starts a projector, and waits until it projects.
    pub async fn start_projector(&mut self, version: Version) {
        let mut command = self.command(version, &["project"]);
        let mut running = self.launch(&mut command, version);
        until("the projector projects", async || {
            running.assert_alive();
            running.logged("projecting").map(drop)
        })
        .await;
        self.projectors.push(Member { version, running, base: None });
    }

    fn launch(&mut self, command: &mut Command, version: Version) -> Running {
        self.started += 1;
        Running::start(command, &self.servers.dir, &format!("{}-{version:?}", self.started))
    }

    /// Replaces the services by those of a version, one after the other.
    pub async fn replace_services(&mut self, version: Version) {
        for _ in 0..EACH {
            self.start_service(version).await;
            self.phase().await;
            let mut old = self.services.remove(0);
            assert_ne!(old.version, version);
            self.balancer.remove(old.base.as_ref().unwrap()).await;
            old.running.stop().await;
            self.phase().await;
        }
    }

    /// Replaces the projectors by those of a version, one after the other.
    pub async fn replace_projectors(&mut self, version: Version) {
        for _ in 0..EACH {
            self.start_projector(version).await;
            self.phase().await;
            let mut old = self.projectors.remove(0);
            assert_ne!(old.version, version);
            old.running.stop().await;
            self.phase().await;
        }
    }

    /// `kill -9` of a service of a version, which is then started again.
    pub async fn kill_service(&mut self, version: Version) {
        let at = self.services.iter().position(|service| service.version == version).unwrap();
        let mut killed = self.services.remove(at);
        killed.running.child.kill().await.unwrap();
        self.phase().await;
        self.balancer.remove(killed.base.as_ref().unwrap()).await;
        self.start_service(version).await;
    }

    /// `kill -9` of a projector of a version, which is then started again.
    pub async fn kill_projector(&mut self, version: Version) {
        let at = self.projectors.iter().position(|projector| projector.version == version).unwrap();
        self.projectors.remove(at).running.child.kill().await.unwrap();
        self.phase().await;
        self.start_projector(version).await;
    }

    /// `kill -9` of Redis, which is then started again.
    pub async fn kill_redis(&mut self) {
        self.servers.redis.kill().await.unwrap();
        self.servers.redis.restart().await.unwrap();
        self.ready().await;
    }

    /// Waits until every service decides in every partition.
    async fn ready(&self) {
        for service in &self.services {
            let base = service.base.as_ref().unwrap();
            until("the service is ready again", async || {
                let reply = get(base, "/readyz").await;
                (reply.status == 200 && reply.json()["status"] == "UP").then_some(())
            })
            .await;
        }
    }

    /// Waits until PostgreSQL has every decision, as every service sees it.
    async fn caught_up(&self) {
        for service in &self.services {
            let base = service.base.as_ref().unwrap();
            until("PostgreSQL has every decision", async || {
                let projection = get(base, "/admin/v1/projection").await.ok();
                assert_eq!(projection["deadLetters"], 0, "{projection}");
                (projection["lagEvents"] == 0).then_some(())
            })
            .await;
        }
    }

    /// The processes that serve and give no word in the roll calls; none if there are as many words as processes.
    pub async fn without_word(&self) -> Vec<String> {
        let db = self.servers.db().await;
        let serving = until("every service reports its requests", async || {
            let serving = instance_requests::serving_within(&db, Duration::ZERO).await.unwrap();
            (serving.len() == self.services.len()).then_some(serving)
        })
        .await;
        db.close().await.unwrap();
        let mut redis = raw_redis(&self.servers.redis_url).await;
        let words: Vec<String> = redis::cmd("HKEYS").arg("{p0}:instances").query_async(&mut redis).await.unwrap();
        if words.len() >= self.services.len() + self.projectors.len() {
            return Vec::new();
        }
        serving.into_iter().filter(|process| !words.contains(process)).collect()
    }

    /// Redis loses everything once PostgreSQL has every decision. Returns the recoveries, once every service decides again.
    pub async fn empty_redis(&mut self) -> Vec<Recovery> {
        self.caught_up().await;
        let mut redis = raw_redis(&self.servers.redis_url).await;
        redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
        let db = self.servers.db().await;
        let recoveries = until("the partitions are recovered", async || {
            let log = recoveries::page(&db, 0, 100).await.unwrap().items;
            let ended = log.len() == usize::from(self.partitions) && log.iter().all(|one| one.epoch.is_some());
            ended.then_some(log)
        })
        .await;
        db.close().await.unwrap();
        self.ready().await;
        recoveries
    }

    /// Puts on sale what is withheld.
    pub async fn release_withheld(&self) {
        let newest = self.services.last().unwrap().base.as_ref().unwrap();
        post(newest, "/admin/v1/withheld/release", json!({})).await.ok();
    }

    /// Stops every process in order. The last one leaves nothing in the outbox.
    pub async fn stop(&mut self) {
        for mut service in self.services.drain(..) {
            self.balancer.remove(service.base.as_ref().unwrap()).await;
            service.running.stop().await;
        }
        for projector in &mut self.projectors {
            projector.running.stop().await;
            assert!(projector.running.logged("the outbox is drained").is_some(), "{}", projector.running.err());
        }
        self.projectors.clear();
    }

    /// Waits until the customers have had some more successes.
    pub async fn phase(&self) {
        let since = now();
        until("the customers go on", async || {
            let successes = self.market.history.since(since, |attempt| attempt.outcome.took_effect());
            (successes.into_iter().filter(|success| *success).count() >= self.pair.phase).then_some(())
        })
        .await;
    }

    /// The attempts so far that were answered 503.
    pub fn unavailable(&self) -> Vec<String> {
        let outcomes = self.market.history.since(0, |attempt| attempt.outcome.clone());
        let unavailable = |outcome| match outcome {
            Outcome::Unknown(what) if what.starts_with("503") => Some(what),
            _ => None,
        };
        outcomes.into_iter().filter_map(unavailable).collect()
    }

    /// The audits of these versions find no fault, while the others work. BASE's may not know keys of the new version.
    pub async fn audit(&self, versions: &[Version]) {
        for version in versions {
            let (balanced, said) = self.run(*version, &["audit"]).await;
            let mut wrong = said.lines().filter(|line| line.starts_with("WRONG"));
            let unknown_keys = wrong.clone().count() == 1
                && wrong.all(|line| {
                    let known = ["instances", "requests"].map(|key| format!("}}:{key} is nothing of ours"));
                    line.starts_with("WRONG  keys of Redis") && known.iter().any(|unknown| line.contains(unknown))
                });
            let tolerated = !self.pair.is_equal && *version == Version::Old && unknown_keys;
            assert!(balanced || tolerated, "{version:?}: {said}");
        }
    }

    /// Lets the customers finish, and checks that the stores have exactly what they were told. `versions`: those whose audit is run.
    pub async fn end(mut self, versions: &[Version]) {
        self.close_shop().await;
        self.caught_up().await;
        self.audit(versions).await;
        self.stop().await;
        let db = self.servers.db().await;
        let facts = Facts::read(db.get_postgres_connection_pool()).await;
        db.close().await.unwrap();
        let compared = facts::compare(&self.operations, &facts, &self.goods);
        let mut differences: Vec<String> = compared.into_iter().map(|difference| difference.what).collect();
        differences.extend(self.operations.iter().flat_map(Operation::contradictions));
        assert!(differences.is_empty(), "{differences:#?}");
        assert!(self.pair.is_equal || is_sold_out(&self.operations), "the stock sufficed for everybody");
        let attempts: usize = self.operations.iter().map(|operation| operation.attempts.len()).sum();
        println!("{} requests in {attempts} attempts, {} of them 503", self.operations.len(), self.unavailable().len());
        self.servers.end_of(self.partitions).await;
    }
}

/// Whether the stock did not suffice for the customers.
fn is_sold_out(operations: &[Operation]) -> bool {
    let refused = |code: &str| {
        let mut attempts = operations.iter().flat_map(|operation| &operation.attempts);
        attempts.any(|attempt| matches!(&attempt.outcome, Outcome::Refused { code: refused, .. } if refused == code))
    };
    refused("COUPON_OUT_OF_STOCK") && (refused("SOLD_OUT") || refused("INSUFFICIENT_STOCK"))
}
