//! What this project set out to reach, and what this run has come to: nothing here is known beforehand but the bounds.

use crate::report::Report;

/// A target, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    IssueCpu,
    OrderPayCpu,
    IssueRate,
    ProductRate,
    SoldOutRate,
    ProjectorKeepsUp,
    BurstTail,
    CouponBytes,
    OrderBytes,
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
        "CPU of a durable coupon issue (service + Redis + PostgreSQL), × floor",
        Bound::AtMost(2.5),
    ),
    (OrderPayCpu, "endpoints", "the same of an order and its payment, × floor", Bound::AtMost(6.0)),
    (
        IssueRate,
        "scripts",
        "coupon issues over HTTP, × unpipelined redis-benchmark with the same script",
        Bound::AtLeast(0.6),
    ),
    (ProductRate, "endpoints", "product GET, × the floor's rate", Bound::AtLeast(0.6)),
    (SoldOutRate, "endpoints", "refused issue of a sold-out campaign, × the floor's rate", Bound::AtLeast(0.9)),
    (
        ProjectorKeepsUp,
        "projector",
        "the projector keeps up with the highest issue rate: growth of its lag, as a share of that rate",
        Bound::AtMost(crate::projector::GROWING),
    ),
    (BurstTail, "burst", "p99 of a burst of coupon issues, × p50", Bound::AtMost(10.0)),
    (CouponBytes, "growth", "bytes of Redis per issued coupon", Bound::AtMost(200.0)),
    (OrderBytes, "growth", "bytes of Redis per open order", Bound::AtMost(1024.0)),
];

/// What was measured of the targets.
#[derive(Default)]
pub struct Targets(Vec<(Target, f64, String)>);

impl Targets {
    /// `note`: how far it spreads, or under what circumstances it was measured.
    pub fn measured(&mut self, target: Target, value: f64, note: impl Into<String>) {
        self.0.push((target, value, note.into()));
    }

    pub fn table(&self, report: &mut Report) {
        report.heading("Targets");
        let mut lines = Vec::new();
        for (target, section, what, bound) in ALL {
            let limit = match bound {
                Bound::AtMost(limit) => format!("≤ {limit}"),
                Bound::AtLeast(limit) => format!("≥ {limit}"),
            };
            let found = self.0.iter().find(|(measured, ..)| measured == target);
            let (value, verdict, note) = match found {
                // A section that could not measure it has said why.
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
            lines.push(vec![(*what).to_owned(), limit, value, verdict.to_owned(), note]);
        }
        report.table(&["target", "bound", "measured", "", "of which"], &lines);
    }
}
