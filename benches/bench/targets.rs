//! The targets of the project, and the measurements of a run.

use crate::report::Report;

/// A target, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    IssueCpu,
    OrderPayCpu,
    CheckoutCpu,
    CheckoutOfOrder,
    TermsRedis,
    IssueRate,
    ProductRate,
    SoldOutRate,
    ProjectorKeepsUp,
    EventsPostgres,
    WebhookRate,
    DeadReceiverCpu,
    BurstTail,
    ReplicaCpu,
    ReplicaWait,
    ReplicaWaitOfMany,
    RecoverySeconds,
    KeptOutboxCpu,
    PartitionsOrderCpu,
    PartitionsIssueCpu,
    PartitionsChargeCpu,
    NodeShare,
    CouponBytes,
    OrderBytes,
    GrowthCpu,
}

use Target::*;

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

const ALL: &[(Target, &str, &str, Bound)] = &[
    (
        IssueCpu,
        "endpoints",
        "CPU of a durable coupon issue (service + Redis + PostgreSQL), × baseline",
        Bound::AtMost(2.1),
    ),
    (OrderPayCpu, "endpoints", "CPU of an order and its payment, × baseline", Bound::AtMost(8.0)),
    (CheckoutCpu, "endpoints", "CPU of an order paid in one step, × baseline", Bound::AtMost(5.0)),
    (CheckoutOfOrder, "endpoints", "CPU of an order paid in one step, × an order", Bound::AtMost(1.2)),
    (TermsRedis, "endpoints", "µs of Redis that a window and a limit add to an order", Bound::AtMost(1.0)),
    (
        IssueRate,
        "scripts",
        "coupon issues over HTTP, × unpipelined redis-benchmark with the same script",
        Bound::AtLeast(0.6),
    ),
    (ProductRate, "endpoints", "product GET, × the rate of the baseline", Bound::AtLeast(0.6)),
    (SoldOutRate, "endpoints", "refused issue of a sold-out campaign, × the rate of the baseline", Bound::AtLeast(0.9)),
    (
        ProjectorKeepsUp,
        "projector",
        "growth of the projector's lag at the highest issue rate, as a share of that rate",
        Bound::AtMost(crate::projector::GROWING),
    ),
    (EventsPostgres, "projector", "µs of PostgreSQL that events add to a decision", Bound::AtMost(3.0)),
    (WebhookRate, "webhooks", "webhooks per second to a fast receiver", Bound::AtLeast(10_000.0)),
    (
        DeadReceiverCpu,
        "webhooks",
        "CPU of projecting a coupon issue beside a webhook of a dead receiver, × without",
        Bound::AtMost(1.05),
    ),
    (BurstTail, "burst", "p99 of a burst of coupon issues, × p50", Bound::AtMost(10.0)),
    (ReplicaCpu, "replica", "CPU of a coupon issue with `ACK=replica`, × `ACK=redis`, 64 clients", Bound::AtMost(1.3)),
    (
        ReplicaWait,
        "replica",
        "p50 of one client with `ACK=replica` minus that with `ACK=redis`, × a round trip to the replica",
        Bound::AtMost(1.1),
    ),
    (ReplicaWaitOfMany, "replica", "the same of 64 clients, × a round trip under their load", Bound::AtMost(1.1)),
    (
        RecoverySeconds,
        "recovery",
        "seconds until a lost partition of 100,000 users and 100,000 orders sells again",
        Bound::AtMost(15.0),
    ),
    (KeptOutboxCpu, "recovery", "CPU of a coupon issue, the outbox kept for 60 s, × not kept", Bound::AtMost(1.05)),
    (
        PartitionsOrderCpu,
        "cluster",
        "CPU of an order of one product, 16 partitions on one server, × one partition",
        Bound::AtMost(1.3),
    ),
    (PartitionsIssueCpu, "cluster", "CPU of a coupon issue, likewise", Bound::AtMost(1.3)),
    (PartitionsChargeCpu, "cluster", "CPU of a balance charge, likewise", Bound::AtMost(1.3)),
    (
        NodeShare,
        "cluster",
        "% of Redis's CPU on the busiest of three nodes, orders of one product",
        Bound::AtMost(45.0),
    ),
    (CouponBytes, "growth", "bytes of Redis per issued coupon", Bound::AtMost(200.0)),
    (OrderBytes, "growth", "bytes of Redis per open order", Bound::AtMost(1024.0)),
    (
        GrowthCpu,
        "growth",
        "cost of a request at the largest size, × at the smallest, of the kind that grows most",
        Bound::AtMost(1.2),
    ),
];

/// The measured values of the targets.
#[derive(Default)]
pub struct Targets(Vec<(Target, f64, String)>);

impl Targets {
    /// `note`: the spread of the value, or the conditions of its measurement.
    pub fn measured(&mut self, target: Target, value: f64, note: impl Into<String>) {
        self.0.push((target, value, note.into()));
    }

    pub fn table(&self, report: &mut Report) {
        report.heading("Targets");
        let mut lines = Vec::new();
        for (target, section, name, bound) in ALL {
            let limit = match bound {
                Bound::AtMost(limit) => format!("≤ {limit}"),
                Bound::AtLeast(limit) => format!("≥ {limit}"),
            };
            let found = self.0.iter().find(|(measured, ..)| measured == target);
            let (value, result, note) = match found {
                // The section reports why it did not measure the target.
                None => ("–".to_owned(), "not measured", format!("section `{section}`")),
                Some((_, value, note)) => {
                    let met = match bound {
                        Bound::AtMost(limit) => value <= limit,
                        Bound::AtLeast(limit) => value >= limit,
                    };
                    let digits = if value.abs() < 100.0 { 2 } else { 0 };
                    (format!("{value:.digits$}"), if met { "met" } else { "**not met**" }, note.clone())
                }
            };
            lines.push(vec![(*name).to_owned(), limit, value, result.to_owned(), note]);
        }
        report.table(&["target", "bound", "measured", "", "note"], &lines);
    }
}
