//! The state at the time of a scrape, exported as gauges. The engine fills in [`Observed`]; a value that could not be
//! read in time is not exported.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

/// The observed state.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Whether the service can serve requests.
    pub ready: bool,
    /// Whether every partition of Redis answered.
    pub redis: bool,
    /// The partitions that answered.
    pub partitions: Vec<PartitionGauges>,
    /// Whether this process may use a partition; indexed by partition.
    pub open: Vec<bool>,
    /// Whether the process started without PostgreSQL, which has not confirmed that yet.
    pub unconfirmed: bool,
    /// Settings of Redis that may lose acknowledged decisions.
    pub unsafe_settings: usize,
    /// The replicas in sync of each partition's server, by the last check; and how many `ACK=replica` needs, 0 otherwise.
    pub replicas: (Vec<usize>, usize),
    /// Connections to Redis by kind: open, and the maximum.
    pub redis_connections: Vec<(&'static str, usize, usize)>,
    /// `None` if PostgreSQL did not answer.
    pub postgres: Option<Postgres>,
    /// Connections to PostgreSQL: in use, idle, and the maximum.
    pub postgres_connections: (usize, usize, usize),
    /// Decisions that PostgreSQL lacks, as far as this process knows, and the limit.
    pub backlog: (i64, i64),
    /// How far this process's clock is ahead of that of Redis, in seconds.
    pub clock_offset: f64,
    /// The sold-out refusals of this process.
    pub sold_out: SoldOut,
}

/// The state of a partition in Redis.
#[derive(Clone, Copy, Debug, Default)]
pub struct PartitionGauges {
    pub partition: u16,
    /// Decisions since the store was initialised.
    pub decisions: i64,
    /// Entries in the outbox, including committed ones that are kept.
    pub outbox: u64,
    /// Decisions that PostgreSQL lacks; `None` if its position is unknown.
    pub lag_events: Option<i64>,
    /// The age of the oldest of them, in seconds; 0 if there is none.
    pub lag_seconds: f64,
    pub holds: Holds,
    /// Gateway payments that stay unsettled for too long.
    pub stuck_payments: u64,
}

/// Records with a due time: all of them, and those that are overdue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holds {
    pub orders: (u64, u64),
    pub payments: (u64, u64),
}

/// The state of PostgreSQL.
#[derive(Clone, Debug, Default)]
pub struct Postgres {
    /// Dead letters by partition.
    pub dead_letters: Vec<(u16, i64)>,
}

/// Counters of the refusals that this process decides without asking Redis whether coupons are left.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoldOut {
    pub refused: u64,
    /// Leases begun or renewed.
    pub renewed: u64,
    /// Reads of the holders of a campaign.
    pub read: u64,
    /// Reads of the existence of users.
    pub learned: u64,
}

/// Values with their labels.
pub(super) type Samples<'a> = Vec<(Vec<(&'static str, String)>, f64)>;

/// A family of gauges, or of counters if the name ends in `_total`; `None` without samples.
pub(super) fn family(name: &str, help: &str, samples: Samples<'_>) -> Option<MetricFamily> {
    let counts = name.ends_with("_total");
    let metrics = samples.into_iter().map(|(labels, value)| {
        let labels = labels.into_iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value);
            pair
        });
        let mut metric = Metric::from_label(labels.collect());
        if counts {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    });
    let metrics: Vec<Metric> = metrics.collect();
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(if counts { MetricType::COUNTER } else { MetricType::GAUGE });
    let has_samples = !metrics.is_empty();
    family.set_metric(metrics);
    has_samples.then_some(family)
}

/// A sample without labels.
pub(super) fn one(value: f64) -> Samples<'static> {
    vec![(Vec::new(), value)]
}

/// Samples with one label.
fn by<V: ToString>(label: &'static str, of: impl IntoIterator<Item = (V, f64)>) -> Samples<'static> {
    of.into_iter().map(|(value, number)| (vec![(label, value.to_string())], number)).collect()
}

fn yes(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

/// The families of the observed state.
pub(super) fn families(observed: &Observed) -> Vec<MetricFamily> {
    let Observed { ready, redis, partitions, open, unsafe_settings, redis_connections, postgres, .. } = observed;
    let (backlog, backlog_limit) = observed.backlog;
    let (used, idle, most) = observed.postgres_connections;
    let SoldOut { refused, renewed, read, learned } = observed.sold_out;
    let of_partitions = |value: fn(&PartitionGauges) -> Option<f64>| {
        by("partition", partitions.iter().filter_map(|here| Some((here.partition, value(here)?))))
    };
    let holds = |value: fn((u64, u64)) -> u64| {
        let sum =
            |kind: fn(&Holds) -> (u64, u64)| partitions.iter().map(|here| value(kind(&here.holds))).sum::<u64>() as f64;
        let kinds = [("order", sum(|holds| holds.orders)), ("payment", sum(|holds| holds.payments))];
        // A sum over a part of the partitions would mislead.
        if *redis { by("kind", kinds) } else { Samples::new() }
    };
    let connections = |value: fn(&(&'static str, usize, usize)) -> usize| {
        by("kind", redis_connections.iter().map(|kind| (kind.0, value(kind) as f64)))
    };
    let dead_letters = postgres.iter().flat_map(|postgres| postgres.dead_letters.iter());
    let families = [
        family(
            "firstcome_up",
            "Whether a store answered this scrape in time: redis (every partition), postgres.",
            by("part", [("redis", yes(*redis)), ("postgres", yes(postgres.is_some()))]),
        ),
        family("firstcome_ready", "Whether the process can serve requests, as /readyz reports.", one(yes(*ready))),
        family(
            "firstcome_partition_open",
            "Whether this process may use a partition; 0 also before the check after an invalidation.",
            by("partition", open.iter().enumerate().map(|(here, open)| (here, yes(*open)))),
        ),
        family(
            "firstcome_unconfirmed",
            "Whether the process started without PostgreSQL, which has not confirmed the start yet.",
            one(yes(observed.unconfirmed)),
        ),
        family(
            "firstcome_redis_unsafe_settings",
            "Settings of Redis that may lose acknowledged decisions.",
            one(*unsafe_settings as f64),
        ),
        family(
            "firstcome_redis_replicas",
            "Replicas in sync that the server of a partition had at the last check.",
            by("partition", observed.replicas.0.iter().enumerate().map(|(here, count)| (here, *count as f64))),
        ),
        family(
            "firstcome_redis_replicas_required",
            "Replicas that must have a decision before its reply: ACK_REPLICAS with ACK=replica, 0 otherwise.",
            one(observed.replicas.1 as f64),
        ),
        family(
            "firstcome_redis_connections",
            "Connections to Redis: shared (by all requests), pool (spare ones), blocking (reads of the projector).",
            connections(|kind| kind.1),
        ),
        family(
            "firstcome_redis_connections_limit",
            "Maximum number of connections to Redis.",
            connections(|kind| kind.2),
        ),
        family(
            "firstcome_postgres_connections",
            "Connections to PostgreSQL.",
            by("state", [("idle", idle as f64), ("used", used as f64)]),
        ),
        family(
            "firstcome_postgres_connections_limit",
            "Maximum number of connections to PostgreSQL.",
            one(most as f64),
        ),
        family(
            "firstcome_decisions_total",
            "Decisions of a partition since its creation, by any process.",
            of_partitions(|here| Some(here.decisions as f64)),
        ),
        family(
            "firstcome_outbox_entries",
            "Entries in the outbox, with those that are kept after their commit; one entry may have many events.",
            of_partitions(|here| Some(here.outbox as f64)),
        ),
        family(
            "firstcome_outbox_lag_events",
            "Decisions that PostgreSQL does not have yet.",
            of_partitions(|here| here.lag_events.map(|events| events as f64)),
        ),
        family(
            "firstcome_outbox_lag_seconds",
            "Age of the oldest decision that PostgreSQL does not have yet.",
            of_partitions(|here| Some(here.lag_seconds)),
        ),
        family(
            "firstcome_backlog_events",
            "Decisions that PostgreSQL does not have yet, as this process last observed.",
            one(backlog as f64),
        ),
        family(
            "firstcome_backlog_limit_events",
            "The backlog from which on writes are answered 503 (MAX_BACKLOG).",
            one(backlog_limit as f64),
        ),
        family(
            "firstcome_clock_offset_seconds",
            "Seconds that this process's clock is ahead of Redis, which decides; of several servers, the largest difference.",
            one(observed.clock_offset),
        ),
        family(
            "firstcome_dead_letters",
            "Events that could not be applied and wait for an operator.",
            by("partition", dead_letters.map(|(partition, count)| (*partition, *count as f64))),
        ),
        family(
            "firstcome_holds_open",
            "Open holds: order (unpaid) or payment (unknown outcome at the gateway).",
            holds(|(open, _)| open),
        ),
        family("firstcome_holds_overdue", "Holds that are due and not yet processed.", holds(|(_, due)| due)),
        family(
            "firstcome_payments_stuck",
            "Payments that their gateway has not settled for at least five minutes: an operator has to resolve them.",
            of_partitions(|here| Some(here.stuck_payments as f64)),
        ),
        family(
            "firstcome_sold_out_refusals_total",
            "Requests for coupons refused without a call of Redis.",
            one(refused as f64),
        ),
        family(
            "firstcome_sold_out_lease_renewals_total",
            "Leases of a sold-out campaign begun or renewed.",
            one(renewed as f64),
        ),
        family(
            "firstcome_sold_out_holder_reads_total",
            "Reads of the holders of a sold-out campaign.",
            one(read as f64),
        ),
        family(
            "firstcome_sold_out_user_reads_total",
            "Reads of the existing users, for refusals.",
            one(learned as f64),
        ),
    ];
    families.into_iter().flatten().collect()
}
