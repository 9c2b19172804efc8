//! The reader builds the snapshot of all watchers, once per second.
//!
//! Each part is read by itself ([`Part`]): an unavailable store makes its own parts fail and no others.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use super::{
    feed::SharedHistory,
    part::Part,
    rates::{Places, Rate},
    reporter::{self, ProcessReport},
    sales::{MostHeld, SHOWN_PLACES, Sales},
    snapshot::{
        Audits, BurningCampaign, ClosedPartition, DashboardSnapshot, Health, HotProduct, Instance, InstanceRequests,
        LastAudit, Partitions, Place, ProjectionSummary, RecentRecovery, Redis, Requests, RunningAuditProgress,
    },
    traffic::{Traffic, Window},
};
use crate::{
    audit::{Auditor, Finished},
    engine::{
        Engine,
        dashboard::Projected,
        request_history::{RequestHistory, SampleBatch},
    },
    model::{Campaign, CouponId, OrderStatus, Partition, ProjectionStatus, RankedProduct, Recovery},
    redis::{outbox::StreamId, queries::dashboard::ServerState},
};

/// How long a campaign is shown after its window has closed.
const CLOSED_FOR_MS: i64 = 3_600_000;
/// The most campaigns in a snapshot.
const SHOWN_CAMPAIGNS: usize = 24;
/// The recoveries in a snapshot, the newest ones.
const SHOWN_RECOVERIES: i64 = 8;
/// The lag of the projection that is shown as a fault, in seconds.
const LATE_SECONDS: f64 = 10.0;

/// The part that PostgreSQL has.
struct Remembered {
    projected: Arc<Projected>,
    orders: HashMap<OrderStatus, i64>,
}

/// Reads the parts, and keeps what rates and movements need.
pub struct Reader {
    engine: Arc<Engine>,
    auditor: Arc<Auditor>,
    instance: Arc<Instance>,
    postgres: Part<Remembered>,
    /// The last known position of PostgreSQL.
    projected: Option<Arc<Projected>>,
    projection: Part<ProjectionStatus>,
    sales: Part<Sales>,
    held: MostHeld,
    campaigns: Part<Vec<Campaign>>,
    redis: Part<Vec<ServerState>>,
    stuck_payments: Part<i64>,
    /// The partitions that do not decide, and why.
    closed: Part<Vec<(Partition, String)>>,
    recoveries: Part<Vec<Recovery>>,
    traffic: Traffic,
    /// The requests of this process.
    own: Option<Window>,
    /// The reports of the other processes.
    others: Part<Vec<ProcessReport>>,
    /// The samples of every process that are new in Redis.
    samples: Part<SampleBatch>,
    history: SharedHistory,
    issued: HashMap<CouponId, Rate>,
    carried: Rate,
    places: Places,
}

impl Reader {
    pub fn new(engine: Arc<Engine>, auditor: Arc<Auditor>, instance: Arc<Instance>, history: SharedHistory) -> Self {
        Reader {
            engine,
            auditor,
            instance,
            postgres: Part::default(),
            projected: None,
            projection: Part::default(),
            sales: Part::default(),
            held: MostHeld::default(),
            campaigns: Part::default(),
            redis: Part::default(),
            stuck_payments: Part::default(),
            closed: Part::default(),
            recoveries: Part::default(),
            traffic: Traffic::default(),
            own: None,
            others: Part::default(),
            samples: Part::default(),
            history,
            issued: HashMap::new(),
            carried: Rate::default(),
            places: Places::default(),
        }
    }

    /// Reads all parts that answer within a second. Returns a [`DashboardSnapshot`] as JSON, on one line.
    ///
    /// # Errors
    /// None that data can cause.
    pub async fn read(&mut self, watchers: usize) -> serde_json::Result<Vec<u8>> {
        let tick = Instant::now();
        self.begin();
        // Read before the decisions: what PostgreSQL has was decided.
        if let Some(remembered) = self.postgres.settle(tick).await {
            let carried = remembered.projected.positions.iter().map(|projected| projected.position.seq).sum();
            self.carried.record(Instant::now(), carried);
            self.projected = Some(remembered.projected.clone());
        }
        if let Some(projected) = self.projected.clone() {
            let engine = self.engine.clone();
            self.projection.begin(async move { engine.lag(&projected).await });
        }
        if let Some(campaigns) = self.campaigns.settle(tick).await {
            let now = Instant::now();
            self.issued.retain(|id, _| campaigns.iter().any(|campaign| campaign.terms.coupon_id == *id));
            for campaign in campaigns {
                self.issued.entry(campaign.terms.coupon_id).or_default().record(now, campaign.issued);
            }
        }
        if let Some(sales) = self.sales.settle(tick).await {
            self.held = sales.held.clone();
            self.places.record(Instant::now(), &sales.rankings);
        }
        self.redis.settle(tick).await;
        self.stuck_payments.settle(tick).await;
        self.closed.settle(tick).await;
        self.recoveries.settle(tick).await;
        self.projection.settle(tick).await;
        self.others.settle(tick).await;
        if let Some(samples) = self.samples.settle(tick).await {
            self.history.lock().get_or_insert_default().add(samples);
        }
        self.own = self.traffic.sample(&crate::telemetry::metrics::counted(), Instant::now());
        let last = self.auditor.last();
        serde_json::to_vec(&self.snapshot(watchers, last.as_deref()))
    }

    fn begin(&mut self) {
        let engine = self.engine.clone();
        self.postgres.begin(async move {
            // In this order, so that the position is never before what it is shown to contain.
            let orders = engine.order_totals().await?;
            Ok(Remembered { orders, projected: Arc::new(engine.projected_positions().await?) })
        });
        let engine = self.engine.clone();
        self.campaigns.begin(async move { engine.campaigns_lately(CLOSED_FOR_MS).await });
        self.sales.begin(Sales::read(self.engine.clone(), self.held.clone()));
        let engine = self.engine.clone();
        self.redis.begin(async move { engine.redis_states().await });
        let (engine, instance) = (self.engine.clone(), self.instance.clone());
        self.others.begin(async move { reporter::others(&engine, &instance).await });
        let (engine, last) =
            (self.engine.clone(), self.history.lock().as_ref().map_or(StreamId::ZERO, RequestHistory::last));
        self.samples.begin(async move { engine.request_samples(last).await });
        let engine = self.engine.clone();
        self.stuck_payments.begin(async move { engine.count_stuck_payments().await });
        let engine = self.engine.clone();
        self.closed.begin(async move { Ok(engine.closed_partitions().await) });
        let engine = self.engine.clone();
        self.recoveries.begin(async move { Ok(engine.recoveries(0, SHOWN_RECOVERIES).await?.items) });
    }

    fn snapshot<'a>(&'a self, watchers: usize, last: Option<&'a Finished>) -> DashboardSnapshot<'a> {
        let others = self.others();
        DashboardSnapshot {
            at: self.engine.clock().now().0,
            zone: self.engine.zone().name(),
            instance: &self.instance,
            health: self.health(),
            rankings: self.rankings(),
            campaigns: self.campaigns(),
            products: self.products(),
            orders: self.orders(),
            stuck_payments: self.stuck_payments.get().copied(),
            requests: self.own.as_ref().map(|own| {
                let others = others.iter().flatten().map(|report| &report.window);
                Requests::of(&[own].into_iter().chain(others).collect::<Vec<_>>())
            }),
            instances: others.as_ref().map(|others| self.instances(others)),
            history_unavailable: if self.samples.get().is_some() { "" } else { self.samples.failure() },
            projection: self.projection.get().map(|status| ProjectionSummary::new(status, self.carried.per_second())),
            redis: self.redis.get().and_then(|servers| Redis::new(servers)),
            partitions: self.closed.get().map(|closed| Partitions {
                count: self.engine.partitions(),
                closed: closed.iter().map(ClosedPartition::from).collect(),
            }),
            recoveries: self.recoveries.get().map(|all| all.iter().map(RecentRecovery::from).collect()),
            audit: self.audits(last),
            watchers,
        }
    }

    fn audits<'a>(&self, last: Option<&'a Finished>) -> Audits<'a> {
        let progress = self.auditor.progress();
        Audits {
            last: last.map(LastAudit::from),
            running: progress.is_some(),
            progress: progress.map(RunningAuditProgress::from),
        }
    }

    /// The other processes, as PostgreSQL has their reports; while it is away, as Redis has their samples. `None` if both are away.
    fn others(&self) -> Option<Vec<ProcessReport>> {
        if let Some(reports) = self.others.get() {
            return Some(reports.clone());
        }
        self.samples.get()?;
        let history = self.history.lock();
        let running = history.as_ref()?.running().into_iter().filter(|sample| sample.instance != self.instance.id);
        let mut reports: Vec<ProcessReport> = running.map(ProcessReport::from).collect();
        reporter::sort(&mut reports);
        Some(reports)
    }

    /// The processes, this one first.
    fn instances(&self, others: &[ProcessReport]) -> Vec<InstanceRequests> {
        let alone = |instance: &Instance, window: Option<&Window>| InstanceRequests {
            instance: instance.clone(),
            requests: window.map(|window| Requests::of(&[window])),
        };
        let others = others.iter().map(|report| alone(&report.instance, Some(&report.window)));
        [alone(&self.instance, self.own.as_ref())].into_iter().chain(others).collect()
    }

    fn rankings(&self) -> Option<BTreeMap<&'static str, Vec<Place>>> {
        let sales = self.sales.get()?;
        let places = sales.rankings.iter().map(|(scope, ranked)| {
            let place = |product: &RankedProduct| Place {
                product_id: product.product_id.get(),
                product_name: sales.shelves.get(&product.product_id).map_or(String::new(), |shelf| shelf.name.clone()),
                sales_count: product.units,
                total_sales_price: product.won,
                rank_position: product.rank,
                previous_position: self.places.before(*scope, product.product_id),
            };
            (scope.as_str(), ranked.iter().take(SHOWN_PLACES).map(place).collect())
        });
        Some(places.collect())
    }

    /// The campaigns, those that sell fastest first.
    fn campaigns(&self) -> Option<Vec<BurningCampaign>> {
        let now = self.engine.clock().now();
        let burning = |campaign: &Campaign| {
            let rate = self.issued.get(&campaign.terms.coupon_id).map_or(0.0, Rate::per_second);
            BurningCampaign::new(campaign, now, rate)
        };
        let mut campaigns: Vec<BurningCampaign> = self.campaigns.get()?.iter().map(burning).collect();
        campaigns.sort_by(|a, b| {
            let rates = b.issues_per_second.total_cmp(&a.issues_per_second);
            a.state.cmp(&b.state).then(rates).then_with(|| (a.closes_at, a.coupon_id).cmp(&(b.closes_at, b.coupon_id)))
        });
        campaigns.truncate(SHOWN_CAMPAIGNS);
        Some(campaigns)
    }

    fn products(&self) -> Option<Vec<HotProduct<'_>>> {
        let sales = self.sales.get()?;
        Some(sales.hot.iter().filter_map(|id| sales.shelves.get(id)).map(HotProduct::from).collect())
    }

    fn orders(&self) -> Option<BTreeMap<&'static str, i64>> {
        let orders = &self.postgres.get()?.orders;
        Some(
            OrderStatus::ALL.iter().map(|status| (status.as_str(), orders.get(status).copied().unwrap_or(0))).collect(),
        )
    }

    fn health(&self) -> Vec<Health> {
        let health = |part, wrong: String| Health { part, ok: wrong.is_empty(), detail: wrong };
        vec![
            health("redis", self.redis_wrong()),
            health("postgres", absent(&self.postgres).unwrap_or_default()),
            health("projection", self.projection_wrong()),
            health("decisions", absent(&self.closed).unwrap_or_else(|| self.hindered())),
        ]
    }

    fn redis_wrong(&self) -> String {
        let Some(servers) = self.redis.get() else { return absent(&self.redis).unwrap_or_default() };
        let full = |server: &ServerState| server.max_memory.is_some_and(|most| server.used_memory > most / 10 * 9);
        let missing_replicas = self.engine.missing_replicas();
        let wrong = [
            (servers.iter().any(|server| !server.aof_enabled), "the append-only file is off"),
            (servers.iter().any(|server| !server.aof_last_write_ok), "the append-only file could not be written"),
            (servers.iter().any(full), "more than nine tenths of the memory are used"),
        ];
        let wrong = wrong.into_iter().filter_map(|(wrong, what)| wrong.then_some(what));
        wrong.chain(missing_replicas.iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
    }

    fn projection_wrong(&self) -> String {
        let Some(status) = self.projection.get() else {
            return absent(&self.projection).unwrap_or_default();
        };
        let mut wrong = self.engine.projection_stalls();
        if status.dead_letters > 0 {
            wrong.push(format!("{} events could not be applied", status.dead_letters));
        }
        if status.lag_seconds > LATE_SECONDS {
            wrong.push(format!("{:.0} seconds behind", status.lag_seconds));
        }
        if status.lag_events > status.max_backlog / 10 * 8 {
            wrong.push(format!("{} of at most {} events behind", status.lag_events, status.max_backlog));
        }
        wrong.join("; ")
    }

    fn hindered(&self) -> String {
        let reason = |(here, reason): &(Partition, String)| format!("partition {}: {reason}", here.0);
        match self.closed.get().map_or(&[][..], Vec::as_slice) {
            [] => String::new(),
            [one] => reason(one),
            [first, more @ ..] => format!("{}; and {} more", reason(first), more.len()),
        }
    }
}

/// The failure of a part, if it has one.
fn absent<T: Send + 'static>(part: &Part<T>) -> Option<String> {
    match (part.get(), part.failure()) {
        (Some(_), _) => None,
        (None, "") => Some("not known yet".to_owned()),
        (None, why) => Some(why.to_owned()),
    }
}
