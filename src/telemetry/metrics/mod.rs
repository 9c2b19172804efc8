//! The metrics for Prometheus. Depends on no other module; every module may use it.
//!
//! Each metric is a typed static with its help text, in the one registry of the process. Events are counted when they
//! happen. States (the lag of PostgreSQL, the open holds) are read at a scrape, by the engine, and passed in as
//! [`state::Observed`].
//!
//! **Label values come from a fixed set**: route templates, script names, reply codes, error codes. Never an id or a
//! text of a client: the registry keeps every value for ever.
//!
//! **The hot path looks up no labels**: [`http`] and [`scripts`] cache the counters that they need.
//!
//! `docs/metrics.md` documents every metric; a test compares the two.

pub mod http;
pub mod process;
pub mod scripts;
mod slots;
pub mod state;
pub mod worker;

use std::{sync::LazyLock, time::SystemTime};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder, core::Collector, proto::MetricFamily,
};

use self::worker::Worker;

/// The metrics of the process.
static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::new);

/// Buckets of the duration of a request, in seconds: from a refusal without a store to a timeout.
pub const REQUEST_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Buckets of the duration of a call of Redis, in seconds.
const CALL_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 3.0];
/// Buckets of the duration of a transaction of PostgreSQL, in seconds.
const COMMIT_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Buckets of the duration of a call to a payment provider, in seconds.
const GATEWAY_SECONDS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets of the duration of a recovery, in seconds.
const RECOVERY_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// Buckets of the requests in one call.
const CALL_BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
/// Buckets of the events in one transaction.
const BATCH: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0];

macro_rules! metrics {
    ($($static:ident: $kind:ty = $name:literal ($($label:literal),*) $(in $buckets:ident)? $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $static: LazyLock<$kind> = LazyLock::new(|| {
                let buckets: &[&[f64]] = &[$($buckets)?];
                registered::<$kind>($name, $help, &[$($label),*], buckets.concat())
            });
        )*

        /// Creates every metric, so that a metric without events is exported as 0.
        fn create_all() {
            $(LazyLock::force(&$static);)*
            for (counters, values) in KNOWN {
                for value in *values {
                    counters.with_label_values(&[value]);
                }
            }
            for step in REBUILD_STEPS {
                REBUILD_STEP_SECONDS.with_label_values(&[step]);
            }
        }
    };
}

metrics! {
    HTTP_REQUESTS: IntCounterVec = "firstcome_http_requests_total" ("method", "route", "status", "error_code")
        "Answered requests; error_code is the errorCode of the reply, empty for a success.";
    HTTP_SECONDS: HistogramVec = "firstcome_http_request_duration_seconds" ("method", "route") in REQUEST_SECONDS
        "Seconds from the head of a request to the head of its reply, without the time that a reader of events waits.";
    HTTP_IN_FLIGHT: IntGauge = "firstcome_http_requests_in_flight" ()
        "Requests in progress.";
    HTTP_ABANDONED: IntCounter = "firstcome_http_requests_abandoned_total" ()
        "Requests whose client disconnected before the reply.";
    HTTP_CONNECTIONS: IntGauge = "firstcome_http_connections" ()
        "Open client connections.";
    HTTP_CONNECTIONS_ACCEPTED: IntCounter = "firstcome_http_connections_accepted_total" ()
        "Accepted client connections.";
    HTTP_CONNECTIONS_REFUSED: IntCounter = "firstcome_http_connections_refused_total" ()
        "Client connections closed at once because of MAX_CONNECTIONS_PER_CLIENT.";
    RATE_LIMITED: IntCounterVec = "firstcome_rate_limited_total" ("kind")
        "Requests refused by a rate limit: client (per address), user, operator (wrong operator tokens).";
    SHED: IntCounterVec = "firstcome_shed_total" ("reason")
        "Requests rejected before a decision: backlog (PostgreSQL lags too far), overload (too many requests in progress).";

    SCRIPT_SECONDS: HistogramVec = "firstcome_script_call_duration_seconds" ("script") in CALL_SECONDS
        "Seconds from sending a script call to its reply.";
    SCRIPT_REQUESTS: HistogramVec = "firstcome_script_requests_per_call" ("script") in CALL_BATCH
        "Requests decided by one script call.";
    SCRIPT_REPLIES: IntCounterVec = "firstcome_script_replies_total" ("script", "code")
        "Replies of scripts, one per request, by reply code.";
    SCRIPT_FAILURES: IntCounterVec = "firstcome_script_failures_total" ("script", "kind")
        "Script calls without a reply: unavailable (503), closed (the partition may not decide), lost (Redis is behind an acknowledged position), error (500).";
    SCRIPT_NOSCRIPT: IntCounter = "firstcome_script_noscript_total" ()
        "Script calls answered NOSCRIPT: Redis was restarted or replaced.";

    REDIS_CALLS: IntGauge = "firstcome_redis_calls_in_flight" ()
        "Calls on the shared connections to Redis that wait for a reply.";
    REDIS_PIPELINE: Histogram = "firstcome_redis_commands_per_pipeline" () in CALL_BATCH
        "Reads sent to Redis in one pipeline.";
    REDIS_CONNECTED: IntCounter = "firstcome_redis_connections_made_total" ()
        "Shared connections to Redis opened; after the first ones each replaces a broken one.";
    REDIS_BROKEN: IntCounter = "firstcome_redis_connections_broken_total" ()
        "Shared connections to Redis closed after a failure.";
    REDIS_SERVERS_LEFT: IntCounter = "firstcome_redis_servers_left_total" ()
        "Redis servers dropped with all connections: no longer the master, or refusing commands.";
    REDIS_CONNECT_FAILURES: IntCounter = "firstcome_redis_connect_failures_total" ()
        "Failed attempts to connect to Redis.";
    REDIS_ERRORS: IntCounterVec = "firstcome_redis_errors_total" ("kind")
        "Failed commands: unavailable (no answer of Redis), refused (Redis rejects the command).";
    REPLICA_WAITS: IntCounterVec = "firstcome_replica_waits_total" ("result")
        "Waits for replicas with ACK=replica, one per call of a script: reached, late (not in ACK_REPLICA_TIMEOUT_MS), failed (no answer of Redis, or another master).";
    REPLICA_WAIT_SECONDS: Histogram = "firstcome_replica_wait_duration_seconds" () in CALL_SECONDS
        "Seconds from a script's reply to the confirmation of the replicas, with ACK=replica.";

    PARTITION_INVALIDATIONS: IntCounter = "firstcome_partition_invalidations_total" ()
        "Events (a new connection, a NOSCRIPT) after which every partition is checked before its next use.";
    PARTITION_CHECKS: IntCounterVec = "firstcome_partition_checks_total" ("result")
        "Checks of a partition: open, closed (it may not decide), failed (no answer).";
    PARTITION_FREEZES: IntCounter = "firstcome_partition_freezes_total" ()
        "Partitions that this process froze because decisions are lost.";

    RECOVERIES: IntCounterVec = "firstcome_recoveries_total" ("outcome")
        "Recoveries of partitions by this process: COMPLETE (nothing acknowledged is missing), WITHHELD (what may be missing is withheld), FAILED (tried again).";
    RECOVERY_SECONDS: Histogram = "firstcome_recovery_duration_seconds" () in RECOVERY_BUCKETS
        "Seconds from the moment that this process noticed a loss to the end of the recovery.";
    REBUILD_STEP_SECONDS: GaugeVec = "firstcome_rebuild_step_duration_seconds" ("step")
        "Seconds of each step of this process's last rebuild: prepare (freeze and compare the partitions), empty, read (PostgreSQL), write (Redis), finish (repair, withhold, project, open).";

    REBUILD_PROGRESS: Gauge = "firstcome_rebuild_progress_ratio" ()
        "The part of the rows that this process's running rebuild has written back; 0 if none runs.";

    AUDITS: IntCounterVec = "firstcome_audits_total" ("outcome")
        "Audits of this process: balanced, unbalanced, failed (a store did not answer), stopped (the client has gone).";
    AUDIT_SECONDS: Gauge = "firstcome_audit_duration_seconds" ()
        "Seconds of this process's last finished audit.";
    AUDIT_PROGRESS: Gauge = "firstcome_audit_progress_ratio" ()
        "The part of the running audit's work that is done; 0 if none runs.";

    PROJECTOR_PARTITIONS: IntGauge = "firstcome_projector_partitions" ()
        "Partitions that this process projects to PostgreSQL.";
    PROJECTOR_LAST_STEP: GaugeVec = "firstcome_projector_last_step_timestamp_seconds" ("partition")
        "Unix time of the projector's last progress on a partition, or of its last look at an empty outbox.";
    PROJECTOR_EVENTS: IntCounter = "firstcome_projector_events_total" ()
        "Events committed to PostgreSQL.";
    PROJECTOR_BATCH: Histogram = "firstcome_projector_batch_events" () in BATCH
        "Events in a committed transaction.";
    PROJECTOR_SECONDS: Histogram = "firstcome_projector_commit_duration_seconds" () in COMMIT_SECONDS
        "Seconds from the begin to the commit of a transaction.";
    PROJECTOR_FAILURES: IntCounterVec = "firstcome_projector_failures_total" ("kind")
        "Failed steps of the projector: unavailable (a store), timeout (of PostgreSQL), superseded (by another projector), newer_version (the next event requires one), gap (decisions are lost).";
    PROJECTION_REWINDS: IntCounter = "firstcome_projection_rewinds_total" ()
        "Times that a partition's position in PostgreSQL went back, after a failover to a standby that lacked the last commits or a restore: the outbox is projected again from there.";
    ACCOUNT_SIGN_INS: IntCounterVec = "firstcome_account_sign_ins_total" ("outcome")
        "Sign-ins at /ops with a company's account: signed_in, or the reason of the refusal.";
    OPERATOR_LOG_DROPPED: IntCounter = "firstcome_operator_log_dropped_total" ()
        "Actions of operators that the operator log lacks: PostgreSQL was unavailable for too long.";
    DEAD_LETTERS_FILED: IntCounter = "firstcome_dead_letters_filed_total" ()
        "Events that this process could not apply and filed as dead letters.";

    WEBHOOK_DELIVERIES: IntCounterVec = "firstcome_webhook_deliveries_total" ("result")
        "Attempts of this process to deliver an event to a webhook: delivered, rejected (another status than 2xx), timeout, unreachable, refused_address (a private one).";
    WEBHOOK_EVENTS_EXPIRED: IntCounter = "firstcome_webhook_events_expired_total" ()
        "Times that events were removed before a webhook was sent them.";
    WEBHOOKS_FAILED: IntGauge = "firstcome_webhooks_failed" ()
        "Webhooks that are switched off because their receivers failed for three days.";
    WEBHOOKS_FAILING: IntGauge = "firstcome_webhooks_failing" ()
        "Webhooks whose receivers take nothing now, or not everything.";

    GATEWAY_CALLS: IntCounterVec = "firstcome_gateway_calls_total" ("provider", "call", "outcome")
        "Calls of this process to payment providers: prepare, pay, status, cancel. An unknown outcome is asked about again.";
    GATEWAY_CALL_SECONDS: HistogramVec = "firstcome_gateway_call_duration_seconds" ("provider", "call") in GATEWAY_SECONDS
        "Seconds from the begin of a call to a payment provider to its outcome.";
    GATEWAY_MESSAGES: IntCounterVec = "firstcome_gateway_messages_total" ("provider", "result")
        "Messages of payment providers: taken (about an order), ignored (about something else), unverified, malformed, not_offered (the provider sends none).";

    STOCK_TRANSFERS: IntCounterVec = "firstcome_stock_transfers_total" ("step")
        "Transfers of units between partitions that this process began: allotted (from the product's own partition to another one), returned (back).";
    EXPIRED: IntCounterVec = "firstcome_expired_total" ("kind")
        "Holds that the sweeper processed when due: order (expired) or payment (its gateway asked).";
    SWEEP_FAILURES: IntCounterVec = "firstcome_sweep_failures_total" ("kind")
        "Due holds that the sweeper could not process; they stay due.";

    WORKER_PANICS: IntCounterVec = "firstcome_worker_panics_total" ("worker")
        "Number of panics of background work. The work continues; the log has the message of the panic.";
}

/// The steps of a rebuild, in their order; read and write alternate.
pub const REBUILD_STEPS: [&str; 5] = ["prepare", "empty", "read", "write", "finish"];

/// Label values that are exported as 0 before their first event.
static KNOWN: &[(&LazyLock<IntCounterVec>, &[&str])] = &[
    (&RATE_LIMITED, &["client", "operator", "user"]),
    (&SHED, &["backlog", "overload"]),
    (&REDIS_ERRORS, &["refused", "unavailable"]),
    (&REPLICA_WAITS, &["failed", "late", "reached"]),
    (&PARTITION_CHECKS, &["closed", "failed", "open"]),
    (&RECOVERIES, &["COMPLETE", "FAILED", "WITHHELD"]),
    (&AUDITS, &["balanced", "failed", "stopped", "unbalanced"]),
    (&PROJECTOR_FAILURES, &["gap", "newer_version", "superseded", "timeout", "unavailable"]),
    (&WEBHOOK_DELIVERIES, &["delivered", "refused_address", "rejected", "timeout", "unreachable"]),
    (&EXPIRED, &["order", "payment"]),
    (&SWEEP_FAILURES, &["order", "payment"]),
    (&STOCK_TRANSFERS, &["allotted", "returned"]),
    (&ACCOUNT_SIGN_INS, ACCOUNT_SIGN_IN_OUTCOMES),
    (&WORKER_PANICS, Worker::LABELS),
];

static ACCOUNT_SIGN_IN_OUTCOMES: &[&str] = &[
    "audience",
    "code",
    "denied",
    "expired",
    "issuer",
    "name",
    "nonce",
    "role",
    "signed_in",
    "slow",
    "state",
    "token",
    "unavailable",
];

/// A metric that is created from a name, labels and, for a histogram, buckets.
trait MetricKind: Collector + Clone + 'static {
    fn make(opts: Opts, labels: &[&str], buckets: Vec<f64>) -> prometheus::Result<Self>;
}

macro_rules! kinds {
    ($($kind:ty: |$opts:ident, $labels:ident, $buckets:ident| $make:expr;)*) => {
        $(impl MetricKind for $kind {
            fn make($opts: Opts, $labels: &[&str], $buckets: Vec<f64>) -> prometheus::Result<Self> {
                $make
            }
        })*
    };
}

kinds! {
    IntCounter: |opts, _labels, _buckets| IntCounter::with_opts(opts);
    IntCounterVec: |opts, labels, _buckets| IntCounterVec::new(opts, labels);
    IntGauge: |opts, _labels, _buckets| IntGauge::with_opts(opts);
    Gauge: |opts, _labels, _buckets| Gauge::with_opts(opts);
    GaugeVec: |opts, labels, _buckets| GaugeVec::new(opts, labels);
    Histogram: |opts, _labels, buckets| Histogram::with_opts(HistogramOpts::from(opts).buckets(buckets));
    HistogramVec: |opts, labels, buckets| HistogramVec::new(HistogramOpts::from(opts).buckets(buckets), labels);
}

/// Creates and registers a metric.
///
/// # Panics
/// The name is invalid or taken: a fault of the list above, which the first test finds.
fn registered<K: MetricKind>(name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> K {
    let metric = K::make(Opts::new(name, help), labels, buckets)
        .and_then(|metric| REGISTRY.register(Box::new(metric.clone())).map(|()| metric));
    metric.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The current time in seconds since 1970, as Prometheus expects it.
pub fn now_seconds() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// The metrics of the registry, sorted by name.
pub fn counted() -> Vec<MetricFamily> {
    static ALL: LazyLock<()> = LazyLock::new(create_all);
    LazyLock::force(&ALL);
    REGISTRY.gather()
}

/// The content type of [`text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The text of a scrape: the registry, the process and the observed state, sorted by name.
///
/// # Errors
/// The encoder fails, which no metric of this module causes.
pub fn text(observed: &state::Observed) -> prometheus::Result<String> {
    let mut families = counted();
    families.extend(state::families(observed));
    families.extend(process::families());
    families.sort_by(|one, other| one.name().cmp(other.name()));
    TextEncoder.encode_to_string(&families)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_exported_with_help_before_first_event() {
        let text = text(&state::Observed::default()).unwrap();
        let mut names = std::collections::BTreeSet::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            let (name, help) = line.split_once(' ').unwrap();
            assert!(name.starts_with("firstcome_"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
            assert!(names.insert(name), "{name} is exported twice");
        }
        for (name, at) in
            [("firstcome_sweep_failures_total{kind=\"order\"}", "0"), ("firstcome_up{part=\"redis\"}", "0")]
        {
            assert!(text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.trim() == at)), "{name}");
        }
        // Prometheus's convention: the names of counters, and of nothing else, end in `_total`.
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        }
    }
}
