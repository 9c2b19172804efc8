//! The JSON of a `snapshot` event. Unavailable parts are null. Times are milliseconds since the epoch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    audit::{AuditProgress, Check, Finished},
    model::{
        Campaign, Latency, Millis, Partition, ProjectionStatus, Recovery, RecoveryOutcome, SaleStatus, ShelvedProduct,
        rounded,
    },
    redis::queries::dashboard::ServerState,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DashboardSnapshot<'a> {
    pub at: i64,
    /// The zone of the shop's wall-clock times.
    pub zone: &'a str,
    pub instance: &'a Instance,
    pub health: Vec<Health>,
    /// By scope.
    pub rankings: Option<BTreeMap<&'static str, Vec<Place>>>,
    pub campaigns: Option<Vec<BurningCampaign>>,
    pub products: Option<Vec<HotProduct<'a>>>,
    /// By status, all of them.
    pub orders: Option<BTreeMap<&'static str, i64>>,
    /// Stuck payments.
    pub stuck_payments: Option<i64>,
    /// The requests of all known processes.
    pub requests: Option<Requests>,
    /// The running processes, this one first; `None` if the others are unknown.
    pub instances: Option<Vec<InstanceRequests>>,
    /// Why the requests of the last fifteen minutes are unknown; empty if they are known.
    pub history_unavailable: &'a str,
    pub projection: Option<ProjectionSummary>,
    pub redis: Option<Redis>,
    pub partitions: Option<Partitions<'a>>,
    /// The newest first.
    pub recoveries: Option<Vec<RecentRecovery<'a>>>,
    pub audit: Audits<'a>,
    /// The watchers of this process's page.
    pub watchers: usize,
}

/// A process of the service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Unique to one run of the process. Reports of earlier versions lack it.
    #[serde(default, rename = "instanceId")]
    pub id: String,
    pub name: String,
    pub version: String,
    pub started_at: i64,
}

/// The requests of one process.
#[derive(Debug, Serialize)]
pub struct InstanceRequests {
    #[serde(flatten)]
    pub instance: Instance,
    /// `None` until there are two samples.
    pub requests: Option<Requests>,
}

/// Whether a part is healthy; if not, why.
#[derive(Serialize)]
pub struct Health {
    pub part: &'static str,
    pub ok: bool,
    pub detail: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    pub product_id: i64,
    pub product_name: String,
    pub sales_count: i64,
    pub total_sales_price: i64,
    pub rank_position: i64,
    /// About a minute ago; `None` if it had no place.
    pub previous_position: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BurningCampaign {
    pub coupon_id: i64,
    pub coupon_code: String,
    pub discount_type: &'static str,
    pub discount_amount: i64,
    pub min_order_price: Option<i64>,
    pub max_discount_price: Option<i64>,
    /// The number of products that qualify; 0 with no categories: all do.
    pub product_count: usize,
    pub categories: Vec<String>,
    pub total_quantity: i64,
    pub issued_quantity: i64,
    pub remaining_quantity: i64,
    pub withheld_quantity: i64,
    pub opens_at: i64,
    pub closes_at: i64,
    pub expired_at: i64,
    pub state: CampaignState,
    /// Over the last seconds.
    pub issues_per_second: f64,
    /// At that rate; `None` if nothing moves or nothing is left.
    pub seconds_to_empty: Option<f64>,
}

/// The status of a campaign, in the order of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CampaignState {
    Open,
    SoldOut,
    Scheduled,
    Closed,
}

impl BurningCampaign {
    pub fn new(campaign: &Campaign, now: Millis, issues_per_second: f64) -> Self {
        let Campaign { terms, issued, withheld } = campaign;
        let remaining = (terms.total - issued - withheld).max(0);
        let state = match () {
            () if now < terms.opens_at => CampaignState::Scheduled,
            () if now >= terms.closes_at => CampaignState::Closed,
            () if remaining == 0 => CampaignState::SoldOut,
            () => CampaignState::Open,
        };
        let burns = state == CampaignState::Open && issues_per_second > 0.0;
        BurningCampaign {
            coupon_id: terms.coupon_id.get(),
            coupon_code: terms.code.clone(),
            discount_type: terms.discount.kind.as_str(),
            discount_amount: terms.discount.amount,
            min_order_price: terms.conditions.min_order_price,
            max_discount_price: terms.conditions.max_discount_price,
            product_count: terms.conditions.product_ids.len(),
            categories: terms.conditions.categories.iter().map(|category| category.as_str().to_owned()).collect(),
            total_quantity: terms.total,
            issued_quantity: *issued,
            remaining_quantity: remaining,
            withheld_quantity: *withheld,
            opens_at: terms.opens_at.0,
            closes_at: terms.closes_at.0,
            expired_at: terms.expires_at.0,
            state,
            issues_per_second: rounded(issues_per_second),
            seconds_to_empty: burns.then(|| rounded(remaining as f64 / issues_per_second)),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HotProduct<'a> {
    product_id: i64,
    product_name: &'a str,
    category: &'a str,
    price: i64,
    on_sale: i64,
    held: i64,
    sold: i64,
    withheld: i64,
    /// Refunded units that stay off sale.
    quarantined: i64,
    sale_status: SaleStatus,
    /// The limit of units per user.
    limit_per_user: Option<i64>,
}

impl<'a> From<&'a ShelvedProduct> for HotProduct<'a> {
    fn from(product: &'a ShelvedProduct) -> Self {
        let ShelvedProduct {
            product_id,
            name,
            category,
            price,
            on_sale,
            held,
            sold,
            withheld,
            quarantined,
            terms,
            read_at,
        } = product;
        HotProduct {
            product_id: product_id.get(),
            product_name: name,
            category,
            price: *price,
            on_sale: *on_sale,
            held: *held,
            sold: *sold,
            withheld: *withheld,
            quarantined: *quarantined,
            sale_status: terms.status(*on_sale, *read_at),
            limit_per_user: terms.limit_per_user,
        }
    }
}

/// The requests of the last seconds, without the page's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    pub per_second: f64,
    /// 4xx without 429.
    pub refused_per_second: f64,
    /// 5xx without shed ones.
    pub failed_per_second: f64,
    /// 429.
    pub limited_per_second: f64,
    /// Shed under overload.
    pub shed_per_second: f64,
    /// `None` without requests.
    pub latency: Option<Latency>,
    /// The busiest first.
    pub routes: Vec<RouteTraffic>,
    /// The most frequent first.
    pub refusals: Vec<Refusal>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTraffic {
    pub method: String,
    pub route: String,
    pub per_second: f64,
    pub refused_per_second: f64,
    pub failed_per_second: f64,
    #[serde(flatten)]
    pub latency: Latency,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    pub error_code: String,
    pub per_second: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionSummary {
    lag_events: i64,
    lag_seconds: f64,
    dead_letters: i64,
    max_backlog: i64,
    /// Projected to PostgreSQL, over the last seconds.
    events_per_second: f64,
}

impl ProjectionSummary {
    pub fn new(status: &ProjectionStatus, events_per_second: f64) -> Self {
        ProjectionSummary {
            lag_events: status.lag_events,
            lag_seconds: rounded(status.lag_seconds),
            dead_letters: status.dead_letters,
            max_backlog: status.max_backlog,
            events_per_second: rounded(events_per_second),
        }
    }
}

/// All servers of Redis: sums, and properties that all share.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// `redis` or `valkey`
    name: String,
    version: String,
    servers: usize,
    used_memory_bytes: u64,
    /// `None` if a server has no limit.
    max_memory_bytes: Option<u64>,
    maxmemory_policy: String,
    aof_enabled: bool,
    /// `None` if a server does not tell.
    appendfsync: Option<String>,
    aof_last_write_ok: bool,
    aof_rewrite_in_progress: bool,
    connected_clients: u64,
    ops_per_second: u64,
}

impl Redis {
    /// Of at least one server.
    pub fn new(servers: &[ServerState]) -> Option<Self> {
        let first = servers.first()?;
        let sum = |of: fn(&ServerState) -> u64| servers.iter().map(of).sum();
        Some(Redis {
            name: first.name.clone(),
            version: first.version.clone(),
            servers: servers.len(),
            used_memory_bytes: sum(|server| server.used_memory),
            max_memory_bytes: servers.iter().map(|server| server.max_memory).sum(),
            maxmemory_policy: first.maxmemory_policy.clone(),
            aof_enabled: servers.iter().all(|server| server.aof_enabled),
            appendfsync: first.appendfsync.clone(),
            aof_last_write_ok: servers.iter().all(|server| server.aof_last_write_ok),
            aof_rewrite_in_progress: servers.iter().any(|server| server.aof_rewrite_in_progress),
            connected_clients: sum(|server| server.connected_clients),
            ops_per_second: sum(|server| server.ops_per_second),
        })
    }
}

/// The partitions, and those of them that do not decide.
#[derive(Serialize)]
pub struct Partitions<'a> {
    pub count: u16,
    pub closed: Vec<ClosedPartition<'a>>,
}

#[derive(Serialize)]
pub struct ClosedPartition<'a> {
    partition: u16,
    reason: &'a str,
}

impl<'a> From<&'a (Partition, String)> for ClosedPartition<'a> {
    fn from((here, reason): &'a (Partition, String)) -> Self {
        ClosedPartition { partition: here.0, reason }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentRecovery<'a> {
    recovery_id: &'a str,
    partition: u16,
    begun_by: &'static str,
    attempts: i32,
    outcome: &'static str,
    reason: &'a str,
    detail: &'a str,
    missing_first_seq: Option<i64>,
    missing_last_seq: Option<i64>,
    withheld_units: i64,
    withheld_coupons: i64,
    step: Option<&'a str>,
    rows_done: i64,
    rows_expected: Option<i64>,
    eta_seconds: Option<f64>,
    noticed_at: i64,
    /// `None` while the rebuild is in progress.
    seconds: Option<f64>,
}

impl<'a> From<&'a Recovery> for RecentRecovery<'a> {
    fn from(recovery: &'a Recovery) -> Self {
        let missing = recovery.missing();
        RecentRecovery {
            recovery_id: &recovery.id,
            partition: recovery.partition.0,
            begun_by: recovery.begun_by.as_str(),
            attempts: recovery.attempts,
            outcome: recovery.outcome.as_str(),
            reason: &recovery.reason,
            detail: &recovery.detail,
            missing_first_seq: missing.map(|(first, _)| first),
            missing_last_seq: missing.and_then(|(_, last)| last),
            withheld_units: recovery.withheld_units,
            withheld_coupons: recovery.withheld_coupons,
            step: recovery.progress.step.as_deref(),
            rows_done: recovery.progress.rows_done,
            rows_expected: recovery.progress.rows_expected,
            eta_seconds: recovery.progress.eta_seconds.filter(|_| recovery.outcome == RecoveryOutcome::Running),
            noticed_at: recovery.noticed_at.0,
            seconds: recovery.seconds(),
        }
    }
}

#[derive(Serialize)]
pub struct Audits<'a> {
    /// The last audit that this process finished.
    pub last: Option<LastAudit<'a>>,
    pub running: bool,
    /// How far the running audit is.
    pub progress: Option<RunningAuditProgress>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningAuditProgress {
    check: &'static str,
    items: i64,
    expected_items: Option<i64>,
    share: f64,
    seconds: f64,
    eta_seconds: Option<f64>,
}

impl From<AuditProgress> for RunningAuditProgress {
    fn from(progress: AuditProgress) -> Self {
        let AuditProgress { check, items, expected_items, share, seconds, eta_seconds, .. } = progress;
        let (share, seconds, eta_seconds) = (rounded(share), rounded(seconds), eta_seconds.map(rounded));
        RunningAuditProgress { check, items, expected_items, share, seconds, eta_seconds }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastAudit<'a> {
    balanced: bool,
    checks: Vec<AuditCheck<'a>>,
    finished_at: i64,
    seconds: f64,
}

#[derive(Serialize)]
struct AuditCheck<'a> {
    name: &'a str,
    ok: bool,
    detail: &'a str,
}

impl<'a> From<&'a Finished> for LastAudit<'a> {
    fn from(finished: &'a Finished) -> Self {
        let check = |Check { name, ok, detail }: &'a Check| AuditCheck { name, ok: *ok, detail };
        LastAudit {
            balanced: finished.report.balanced,
            checks: finished.report.checks.iter().map(check).collect(),
            finished_at: finished.at.0,
            seconds: rounded(finished.report.seconds),
        }
    }
}
