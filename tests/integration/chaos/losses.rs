//! What a run may lose: with `ACK=redis`, what a replica lacked when it was promoted, and nothing that the log of recoveries does not
//! name.

use std::collections::{BTreeMap, BTreeSet};

use firstcome::{
    config::Ack,
    model::{BegunBy, Recovery, RecoveryOutcome},
    postgres::{Connection, recoveries},
};
use redis::aio::MultiplexedConnection;

use super::{
    facts::{Difference, DifferenceKind},
    history::{Operation, Request},
    nemesis::Chronicle,
    options::Options,
};
use crate::support::fake_gateway::Protocol;

/// The losses that the log of recoveries names.
pub struct Losses {
    pub recoveries: Vec<Recovery>,
    partitions: u16,
    ack: Ack,
    replica: bool,
    /// Whether the provider's payments need their preparations.
    prepares: bool,
    /// By partition: how many decisions may be missing; `None` if their number is unknown.
    named: BTreeMap<u16, Option<i64>>,
    /// Partitions that the services recovered.
    recovered: BTreeSet<u16>,
    /// The times in which decisions could be lost.
    lags: Vec<(u64, u64)>,
    /// Partitions that a rebuild by hand withheld goods of.
    rebuilt: BTreeSet<u16>,
}

impl Losses {
    pub async fn read(db: &Connection, options: &Options, chronicle: &Chronicle) -> Losses {
        Losses::of(recoveries::page(db, 0, 10_000).await.unwrap().items, options, chronicle)
    }

    /// No recovery is logged.
    pub fn none(options: &Options, chronicle: &Chronicle) -> Losses {
        Losses::of(Vec::new(), options, chronicle)
    }

    fn of(recoveries: Vec<Recovery>, options: &Options, chronicle: &Chronicle) -> Losses {
        let by_services = || recoveries.iter().filter(|one| one.begun_by == BegunBy::Service);
        let recovered = by_services().map(|one| one.partition.0).collect();
        let mut named: BTreeMap<u16, Option<i64>> = BTreeMap::new();
        for recovery in by_services().filter(|one| one.outcome == RecoveryOutcome::Withheld) {
            let missing = recovery.missing().map_or(Some(0), |(first, last)| Some(last? - first + 1));
            let sum = named.entry(recovery.partition.0).or_insert(Some(0));
            *sum = sum.zip(missing).map(|(sum, missing)| sum + missing);
        }
        let (partitions, ack, lags) = (options.partitions, options.ack, chronicle.lags.clone());
        let (replica, prepares) = (options.replica, options.gateway == Some(Protocol::KakaoPay));
        let rebuilt = chronicle.rebuilds.iter().map(|rebuild| rebuild.partition).collect();
        Losses { recoveries, partitions, ack, replica, prepares, named, recovered, lags, rebuilt }
    }

    fn partition(&self, id: i64) -> u16 {
        (id % i64::from(self.partitions)) as u16
    }

    /// Whether what was acknowledged then may be lost.
    fn lag(&self, (began, ended): (u64, u64)) -> bool {
        self.lags.iter().any(|(from, to)| began < *to && ended > *from)
    }

    /// Whether the log names a loss in the partition of this object.
    pub fn concern(&self, id: i64) -> bool {
        self.named.contains_key(&self.partition(id))
    }

    /// Whether a read or a refusal of that time, in the partition of this object, may be based on a decision that was lost before it was
    /// acknowledged to its own client. Only replies to writes promise that they stay true.
    pub fn unfounded(&self, id: i64, within: (u64, u64)) -> bool {
        self.recovered.contains(&self.partition(id)) && self.lag(within)
    }

    /// Whether the goods of the partition of this object were ever withheld.
    pub fn withhold(&self, id: i64) -> bool {
        self.concern(id) || self.rebuilt.contains(&self.partition(id))
    }

    /// Whether Redis may lack what is no decision, such as the preparation of a payment: it was rebuilt, or a replica took over.
    pub fn forget_preparations(&self, id: i64) -> bool {
        let partition = self.partition(id);
        self.prepares && (self.replica || self.recovered.contains(&partition) || self.rebuilt.contains(&partition))
    }

    /// The contradictions among replies that no loss explains.
    pub fn contradictions(&self, operations: &[Operation]) -> Vec<String> {
        let unharmed = |operation: &&Operation| operation.request.objects().iter().all(|id| !self.concern(*id));
        operations.iter().filter(unharmed).flat_map(Operation::contradictions).collect()
    }

    /// The differences that no loss explains.
    pub fn unexplained(&self, differences: Vec<Difference>) -> Vec<String> {
        let mut unexplained = Vec::new();
        let mut lost: BTreeMap<u16, i64> = BTreeMap::new();
        for Difference { kind, owner, what } in differences {
            let explained = match kind {
                DifferenceKind::Read { within } => {
                    self.concern(owner) || within.is_some_and(|within| self.unfounded(owner, within))
                }
                DifferenceKind::Missing { times, acknowledged } if self.concern(owner) => {
                    *lost.entry(self.partition(owner)).or_default() += times as i64;
                    self.ack == Ack::Redis
                        && acknowledged.into_iter().filter(|within| self.lag(*within)).count() >= times
                }
                DifferenceKind::Missing { .. } | DifferenceKind::Unacknowledged => false,
            };
            if !explained {
                unexplained.push(what);
            }
        }
        for (partition, lost) in lost {
            // A payment is one decision and two effects: the payment and the balance entry.
            if let Some(Some(bound)) = self.named.get(&partition)
                && lost > 2 * bound
            {
                unexplained.push(format!(
                    "partition {partition} lost {lost} effects of {bound} decisions that may be missing"
                ));
            }
        }
        unexplained
    }

    /// Recoveries that nothing was lost for, and goods that are withheld for no named loss.
    pub async fn findings(&self, operations: &[Operation], redis: &mut MultiplexedConnection) -> Vec<String> {
        let mut findings = Vec::new();
        // A partition whose rebuild was killed is recovered too.
        let unbroken = |one: &&Recovery| one.begun_by == BegunBy::Service && !self.rebuilt.contains(&one.partition.0);
        for recovery in self.recoveries.iter().filter(unbroken) {
            let withheld = recovery.outcome == RecoveryOutcome::Withheld;
            if self.lags.is_empty() || (withheld && self.ack == Ack::Postgres) {
                findings.push(format!("a recovery of a partition that lost nothing: {recovery:?}"));
            }
        }
        for partition in 0..self.partitions {
            let key = format!("{{p{partition}}}:withheld");
            let withheld: BTreeMap<i64, i64> = redis::cmd("HGETALL").arg(key).query_async(redis).await.unwrap();
            for (product, units) in withheld.into_iter().filter(|(product, _)| !self.withhold(*product)) {
                // A lost decision may have paid an order of a partition with losses: when the order ends, or if it is lost itself,
                // what it held elsewhere is withheld.
                let suspect: i64 = operations.iter().map(|operation| self.suspect_units(operation, product)).sum();
                if units > suspect {
                    findings.push(format!(
                        "{units} units of product {product} are withheld, and its partition lost nothing"
                    ));
                }
            }
        }
        findings
    }

    /// The units of a product that an order may have held for a user of a partition with losses.
    fn suspect_units(&self, operation: &Operation, product: i64) -> i64 {
        match &operation.request {
            Request::Place { user, lines, .. } if self.withhold(*user) => {
                lines.iter().filter(|(other, _)| *other == product).map(|(_, units)| units).sum()
            }
            _ => 0,
        }
    }
}
