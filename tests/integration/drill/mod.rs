//! Drills: a machine dies while customers buy, nobody types a command, and the drill prints what the customers saw.
//!
//! `make drill` runs all of them, and `make drill ARGS=redis-master` those whose name begins so. docs/operations.md has a section for
//! each machine. The customers are those of `chaos`, and so is the check of what they were told. What the drill does besides
//! the fault is what supervisors do: it starts a process that was killed, and promotes PostgreSQL's standby.

mod redis_servers;
mod site;

use std::{sync::Arc, time::Duration};

use firstcome::model::{Recovery, RecoveryOutcome};
use tokio::task::JoinHandle;

use self::{
    redis_servers::Layout,
    site::{Plan, Site},
};
use crate::{
    chaos::{
        clients::Market,
        facts::{self, Facts},
        history::{Attempt, Operation, Outcome, now},
    },
    process::binary::get,
    support::{harness::until, invariants, preload},
};

const CUSTOMERS: u64 = 8;
/// The time from one request to the next.
const REQUEST_INTERVAL: Duration = Duration::from_millis(20);
/// So many requests in a row without a failure end a drill.
const CALM: usize = 100;
/// So many requests, some three seconds of the load, are made while a replica is held back.
const HELD_BACK: usize = 150;

/// What a customer saw of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saw {
    Success,
    /// A 4xx of the business: a sold-out product, a coupon that the user has already.
    Refusal,
    Unavailable,
    NoReply,
    /// A reply that no correct service sends.
    Wrong,
}

impl Saw {
    fn of(attempt: &Attempt) -> (u64, Saw) {
        let saw = match &attempt.outcome {
            Outcome::Done { .. } => Saw::Success,
            Outcome::Declined { .. } | Outcome::Refused { .. } => Saw::Refusal,
            Outcome::Unknown(what) if what.starts_with("503") => Saw::Unavailable,
            Outcome::Unknown(what) if what.starts_with("409") => Saw::Refusal,
            Outcome::Unknown(_) => Saw::NoReply,
            Outcome::Wrong(_) => Saw::Wrong,
        };
        (attempt.ended, saw)
    }

    fn failed(self) -> bool {
        matches!(self, Saw::Unavailable | Saw::NoReply | Saw::Wrong)
    }
}

/// What the customers saw from a moment on.
struct View {
    since: u64,
    /// With the end of each attempt, in their order.
    attempts: Vec<(u64, Saw)>,
}

impl View {
    fn count(&self, of: Saw) -> usize {
        self.attempts.iter().filter(|(_, saw)| *saw == of).count()
    }

    fn seconds(nanoseconds: u64) -> f64 {
        nanoseconds as f64 / 1e9
    }

    /// The longest time without a success, in seconds.
    fn longest_gap(&self) -> f64 {
        let successes = self.attempts.iter().filter(|(_, saw)| *saw == Saw::Success).map(|(ended, _)| *ended);
        let (mut last, mut longest) = (self.since, 0);
        for ended in successes {
            (last, longest) = (ended, longest.max(ended - last));
        }
        View::seconds(longest)
    }

    /// The seconds until the last failure: from then on every request was served.
    fn served_again_after(&self) -> f64 {
        let failures = self.attempts.iter().filter(|(_, saw)| saw.failed());
        View::seconds(failures.map(|(ended, _)| ended - self.since).max().unwrap_or(0))
    }

    fn print(&self, fault: &str) {
        println!(
            "{fault}: {} requests: {} 2xx, {} 4xx, {} 503, {} without a reply; longest gap without a success {:.1} s, \
             served again after {:.1} s",
            self.attempts.len(),
            self.count(Saw::Success),
            self.count(Saw::Refusal),
            self.count(Saw::Unavailable),
            self.count(Saw::NoReply),
            self.longest_gap(),
            self.served_again_after()
        );
    }
}

/// A site under load.
struct Drill {
    site: Site,
    market: Arc<Market>,
    customers: Vec<JoinHandle<()>>,
    pace: JoinHandle<()>,
}

impl Drill {
    async fn start(plan: Plan) -> Drill {
        let site = Site::open(plan).await;
        let market = Market::new(&site.goods, vec![format!("http://{}", site.balancer.address)], 20_260_302);
        let (customers, pace) = (market.start(CUSTOMERS), tokio::spawn(market.clone().pace(REQUEST_INTERVAL)));
        let drill = Drill { site, market, customers, pace };
        drill.requests(CALM).await;
        drill
    }

    fn view(&self, since: u64) -> View {
        let mut attempts = self.market.history.since(since, Saw::of);
        attempts.sort_unstable_by_key(|(ended, _)| *ended);
        View { since, attempts }
    }

    /// Waits until the customers have had this many further replies.
    async fn requests(&self, count: usize) {
        let since = now();
        until("the customers go on", async || (self.view(since).attempts.len() >= count).then_some(())).await;
    }

    /// A fault, and what supervisors do about it. Waits until everything is served again, and prints what the customers saw.
    async fn rehearse(&mut self, fault: &str, happens: impl AsyncFnOnce(&mut Drill)) -> View {
        let since = now();
        happens(self).await;
        until("everything is served again", async || self.site.is_up().await.then_some(())).await;
        let up = now();
        let view = until("no request fails any more", async || {
            let view = self.view(since);
            let last = &view.attempts[view.attempts.len().saturating_sub(CALM)..];
            let calm = last.len() == CALM && last.iter().all(|(ended, saw)| *ended > up && !saw.failed());
            calm.then_some(view)
        })
        .await;
        view.print(fault);
        view
    }

    /// Stops everything in order, and checks that the stores have what the customers were told. Returns the recoveries.
    async fn end(mut self) -> Vec<Recovery> {
        self.market.permits.close();
        for customer in self.customers.drain(..) {
            customer.await.unwrap();
        }
        self.pace.await.unwrap();
        self.market.settle_open().await;
        let mut links = self.site.redis.current_masters().await;
        let base = self.site.services[0].base.clone();
        until("the books balance", async || {
            let audit = get(&base, "/admin/v1/audit").await;
            (audit.status == 200 && audit.json()["balanced"] == true).then_some(())
        })
        .await;
        let withheld = get(&base, "/admin/v1/withheld").await.ok();
        let units = |kind: &str| -> i64 {
            let all = withheld[kind].as_array().unwrap();
            all.iter().map(|one| one["withheldQuantity"].as_i64().unwrap()).sum()
        };
        let withheld = units("products") + units("coupons");
        let logs = self.site.logs();
        for service in &mut self.site.services {
            service.running.stop().await;
        }
        let db = self.site.db().await;
        let facts = Facts::read(db.get_postgres_connection_pool()).await;
        let operations = self.market.history.all();
        let compared = facts::compare(&operations, &facts, &self.site.goods);
        let mut differences: Vec<String> = compared.into_iter().map(|difference| difference.what).collect();
        let lost = differences.iter().filter(|what| what.contains("acknowledged and not stored")).count();
        differences.extend(operations.iter().flat_map(Operation::contradictions));
        let recoveries = firstcome::postgres::recoveries::page(&db, 0, 100).await.unwrap().items;
        println!(
            "acknowledged decisions lost: {lost}; units withheld: {withheld}; partitions recovered: {}",
            recoveries.iter().filter(|one| one.outcome == RecoveryOutcome::Complete).count()
        );
        if !differences.is_empty() || withheld > 0 {
            println!("{logs}\n{recoveries:#?}");
        }
        assert!(differences.is_empty(), "{differences:#?}");
        assert_eq!(withheld, 0, "units are withheld");
        invariants::check(&mut links, &db, self.site.plan.partitions, 0).await;
        db.close().await.unwrap();
        recoveries
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_killed_and_the_other_serves() {
    let mut drill = Drill::start(Plan::SMALLEST).await;
    let view = drill.rehearse("a service is killed", async |drill| drill.site.kill_service(0).await).await;
    assert_eq!(view.count(Saw::Unavailable), 0);
    drill.rehearse("it is started again", async |drill| drill.site.start_service(&[]).await).await;
    drill.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_and_served_again_when_restarted() {
    let mut drill = Drill::start(Plan::SMALLEST).await;
    drill
        .rehearse("Redis is killed and started again", async |drill| {
            drill.site.redis.masters[0].kill().await.unwrap();
            drill.site.redis.masters[0].restart().await.unwrap();
        })
        .await;
    assert!(drill.end().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make drill"]
async fn redis_master_killed_and_partitions_recovered_when_replica_behind() {
    let plan = Plan { redis: Layout::Sentinels, partitions: 3, ack: "postgres", ..Plan::SMALLEST };
    let fault = "Redis's master is killed, and the Sentinels promote a replica that is seconds behind";
    kill_master_before_its_replica_catches_up(plan, 0, fault).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make drill"]
async fn cluster_master_killed_and_partitions_recovered_when_replica_behind() {
    let plan = Plan { redis: Layout::Cluster, partitions: 8, ack: "postgres", ..Plan::SMALLEST };
    let fault = "a master of the cluster is killed, and its replica, seconds behind, takes over";
    kill_master_before_its_replica_catches_up(plan, 1, fault).await;
}

async fn kill_master_before_its_replica_catches_up(plan: Plan, master: usize, fault: &str) {
    let mut drill = Drill::start(plan).await;
    drill.site.redis.hold_back(master).await;
    drill.requests(HELD_BACK).await;
    drill.rehearse(fault, async |drill| drill.site.redis.masters[master].kill().await.unwrap()).await;
    drill.rehearse("the old master comes back", async |drill| drill.site.redis.restart(master).await).await;
    assert_recovered(&drill.end().await);
}

/// The replicas were behind, and nothing is missing.
fn assert_recovered(recoveries: &[Recovery]) {
    assert!(!recoveries.is_empty());
    assert!(recoveries.iter().all(|one| one.outcome == RecoveryOutcome::Complete), "{recoveries:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make drill"]
async fn postgres_killed_and_the_sale_goes_on() {
    let mut drill = Drill::start(Plan::SMALLEST).await;
    let fault = "PostgreSQL is killed, and started again some seconds later";
    drill
        .rehearse(fault, async |drill| {
            drill.site.postgres.kill().await.unwrap();
            drill.requests(HELD_BACK).await;
            drill.site.postgres.restart().await.unwrap();
        })
        .await;
    drill.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make drill"]
async fn postgres_standby_promoted_and_decisions_projected_again() {
    let mut drill = Drill::start(Plan { standby: true, ..Plan::SMALLEST }).await;
    drill.site.standby.as_ref().unwrap().cut().await;
    drill.requests(HELD_BACK).await;
    drill.rehearse("PostgreSQL's primary is killed, and a standby that is seconds behind is promoted", promote).await;
    drill.end().await;
}

/// PostgreSQL's primary is killed, and the failover manager promotes the standby.
async fn promote(drill: &mut Drill) {
    let site = &mut drill.site;
    site.postgres.kill().await.unwrap();
    site.postgres = site.standby.take().unwrap().promote().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make drill"]
async fn postgres_unavailable_while_a_service_is_replaced() {
    let mut drill = Drill::start(Plan::SMALLEST).await;
    let fault = "PostgreSQL is killed, a new service joins, an old one is killed, PostgreSQL comes back";
    drill
        .rehearse(fault, async |drill| {
            drill.site.postgres.kill().await.unwrap();
            drill.site.start_service(&[]).await;
            drill.site.kill_service(0).await;
            drill.site.postgres.restart().await.unwrap();
        })
        .await;
    drill.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make drill"]
async fn service_clock_wrong_and_nothing_early_or_late() {
    let mut drill = Drill::start(Plan::SMALLEST).await;
    for offset in [60, -60] {
        let fault = format!("a service whose clock is {offset} s off replaces another one");
        let variables = preload::shifted_clock(offset * 1000);
        let view = drill
            .rehearse(&fault, async |drill| {
                drill.site.start_service(&variables).await;
                drill.site.kill_service(0).await;
            })
            .await;
        assert_eq!(view.count(Saw::Unavailable), 0);
        let metrics = get(&drill.site.services[1].base, "/metrics").await.text;
        let shown = metrics.lines().find_map(|line| line.strip_prefix("firstcome_clock_offset_seconds "));
        let shown: f64 = shown.unwrap().parse().unwrap();
        assert!((shown - offset as f64).abs() < 10.0, "{shown}");
    }
    drill.end().await;
}

/// Three masters whose replicas are seconds behind, PostgreSQL's primary with a standby, two services: each is killed in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make drill"]
async fn six_processes_killed_in_turn_and_nothing_lost() {
    let plan = Plan { redis: Layout::Cluster, standby: true, partitions: 8, ack: "postgres" };
    let mut drill = Drill::start(plan).await;
    for master in 0..3 {
        drill.site.redis.hold_back(master).await;
        drill.requests(HELD_BACK).await;
        let fault = format!("master {} of three is killed, its replica is seconds behind", master + 1);
        drill.rehearse(&fault, async |drill| drill.site.redis.masters[master].kill().await.unwrap()).await;
        drill.rehearse("it comes back", async |drill| drill.site.redis.restart(master).await).await;
    }
    drill.site.standby.as_ref().unwrap().cut().await;
    drill.requests(HELD_BACK).await;
    drill.rehearse("PostgreSQL's primary is killed, its standby is seconds behind", promote).await;
    drill.rehearse("a service is killed", async |drill| drill.site.kill_service(0).await).await;
    drill
        .rehearse("it is started again, and the other is killed", async |drill| {
            drill.site.start_service(&[]).await;
            drill.site.kill_service(0).await;
        })
        .await;
    assert_recovered(&drill.end().await);
}
