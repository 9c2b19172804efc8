//! The situations that a long run must have had: counted by what the run observed, never by what it intended.

use std::collections::BTreeMap;

use firstcome::model::{BegunBy, Recovery, RecoveryOutcome};

use super::{
    facts::{Facts, OrderFact},
    history::{Attempt, Operation, Outcome, Request},
    losses::Losses,
    nemesis::{Chronicle, HandRebuild},
    options::Options,
};

/// "At the moment": within this distance, in nanoseconds.
const AT_ONCE: u64 = 10_000_000;
const SECOND: u64 = 1_000_000_000;

/// What a run observed.
pub struct Observed<'a> {
    pub options: &'a Options,
    pub operations: &'a [Operation],
    pub facts: &'a Facts,
    pub chronicle: &'a Chronicle,
    pub losses: &'a Losses,
    /// The logs of all services, and those of the servers of Redis.
    pub services: &'a str,
    pub servers: &'a str,
}

type Situation = (&'static str, fn(&Observed<'_>) -> usize);

/// The situations, and how often a run had each.
pub const TABLE: &[Situation] = &[
    ("an outcome unknown before a kill is replayed after it", |run| run.replays_after_kills()),
    ("an unknown outcome is repeated under its key: it had taken effect", |run| run.repeats(true)),
    ("an unknown outcome is repeated under its key: it had not", |run| run.repeats(false)),
    ("a payment begins within 10 ms of its order's expiry, and is in time", |run| run.payments_at_expiry(true)),
    ("a payment begins within 10 ms of its order's expiry, and is too late", |run| run.payments_at_expiry(false)),
    ("a payment through the gateway is unknown at first, and turns out paid", |run| run.gateway_payments(true)),
    ("a payment through the gateway is unknown at first, and turns out declined", |run| run.gateway_payments(false)),
    ("a refund begins within a second of its order's eviction", |run| run.refunds(-1..=1)),
    ("a refund restores an order that has been evicted", |run| run.refunds(2..=i64::MAX)),
    ("a coupon is requested within 10 ms of its campaign's end", |run| run.issues_at_the_end()),
    ("an order expires late, because nothing could expire it", |run| run.late_expiries()),
    ("two projectors have one batch", |run| run.services.matches("superseded by another projector").count()),
    ("a partition is closed while others decide", |run| run.decisions_beside_a_closed_partition()),
    ("a rebuild is killed in the middle, and repeated", |run| {
        run.chronicle.rebuilds.iter().filter(|rebuild| rebuild.killed).count()
    }),
    ("a service ends while it recovers a partition, and another one begins anew", |run| run.resumed_recoveries()),
    ("a replica is promoted that lacks decisions, and PostgreSQL has them", |run| {
        run.recoveries_as(RecoveryOutcome::Complete)
    }),
    ("a replica is promoted that lacks decisions, and so does PostgreSQL", |run| {
        run.recoveries_as(RecoveryOutcome::Withheld)
    }),
    ("a standby is promoted that lacks commits, and gets them again", |run| {
        run.services.matches("PostgreSQL has gone back").count()
    }),
    ("a power loss takes bytes that were written and not flushed", |run| {
        run.chronicle.power_losses.iter().filter(|bytes| **bytes > 0).count()
    }),
    ("Redis loads a file whose last command is torn", |run| {
        run.servers.matches("loaded anyway because aof-load-truncated is enabled").count()
    }),
    ("a service decides while its clock is a minute off", |run| run.decisions_under_skew()),
];

/// The count of each situation.
pub fn count(observed: &Observed<'_>) -> BTreeMap<&'static str, usize> {
    TABLE.iter().map(|(name, count)| (*name, count(observed))).collect()
}

/// The end of a recovery, in nanoseconds since 1970.
fn ended_ns(recovery: &Recovery) -> Option<u64> {
    recovery.ended_at.map(|at| at.0 as u64 * 1_000_000)
}

impl Observed<'_> {
    fn attempts(&self) -> impl Iterator<Item = (&Operation, &Attempt)> {
        self.operations.iter().flat_map(|operation| operation.attempts.iter().map(move |attempt| (operation, attempt)))
    }

    fn writes(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().filter(|operation| operation.request.is_write())
    }

    fn replays_after_kills(&self) -> usize {
        let spans_a_kill =
            |operation: &&Operation| {
                let Some(replay) = operation.attempts.iter().find(|attempt| attempt.outcome.replayed()) else {
                    return false;
                };
                operation.attempts.iter().filter(|attempt| !attempt.outcome.is_known()).any(|attempt| {
                    self.chronicle.kills.iter().any(|kill| attempt.began < *kill && *kill < replay.began)
                })
            };
        self.writes().filter(spans_a_kill).count()
    }

    fn repeats(&self, took_effect: bool) -> usize {
        let repeated = |operation: &&Operation| {
            let first = operation.attempts.first();
            let unknown = first.is_some_and(|attempt| !attempt.outcome.is_known());
            unknown && operation.effect().is_some_and(|effect| effect.outcome.replayed() == took_effect)
        };
        self.writes().filter(repeated).count()
    }

    fn gateway_payments(&self, paid: bool) -> usize {
        let turned_out = |operation: &&Operation| {
            let Request::Pay { order, .. } = operation.request else { return false };
            let unknown = operation.attempts.first().is_some_and(|attempt| !attempt.outcome.is_known());
            let outcome = operation.effect().map(|effect| matches!(effect.outcome, Outcome::Done { .. }));
            unknown && self.facts.by_gateway.contains(&order) && outcome == Some(paid)
        };
        self.writes().filter(turned_out).count()
    }

    fn payments_at_expiry(&self, in_time: bool) -> usize {
        let hold = u64::from(self.options.hold_seconds) * SECOND;
        let at_expiry = |(operation, attempt): &(&Operation, &Attempt)| {
            let Request::Pay { order, .. } = operation.request else { return false };
            let Some(fact) = self.facts.orders.get(&order) else { return false };
            let known = match in_time {
                true => attempt.outcome.took_effect(),
                false => matches!(attempt.outcome, Outcome::Refused { .. }) && fact.reason == "EXPIRED",
            };
            known && attempt.began.abs_diff(fact.placed_at + hold) <= AT_ONCE
        };
        self.attempts().filter(at_expiry).count()
    }

    /// Refunds that begin this many seconds after the order's eviction.
    fn refunds(&self, seconds: std::ops::RangeInclusive<i64>) -> usize {
        let retention = self.options.closed_keep_seconds as u64 * SECOND;
        let refund = |operation: &&Operation| {
            let Request::Cancel { order, .. } = operation.request else { return false };
            let (Some(fact), Some(effect)) = (self.facts.orders.get(&order), operation.effect()) else { return false };
            let after = effect.began as i64 - (fact.paid_at + retention) as i64;
            fact.paid_at > 0 && seconds.contains(&after.div_euclid(SECOND as i64))
        };
        self.writes().filter(refund).count()
    }

    fn issues_at_the_end(&self) -> usize {
        let at_the_end = |(operation, attempt): &(&Operation, &Attempt)| {
            let Request::Issue { campaign, .. } = operation.request else { return false };
            let end = self.facts.closes_at.get(&campaign);
            attempt.outcome.is_known() && end.is_some_and(|end| attempt.began.abs_diff(*end) <= AT_ONCE)
        };
        self.attempts().filter(at_the_end).count()
    }

    fn late_expiries(&self) -> usize {
        let hold = u64::from(self.options.hold_seconds) * SECOND;
        let orders = self.facts.orders.values();
        orders
            .filter(|order| order.reason == "EXPIRED" && order.closed_at > order.placed_at + hold + 3 * SECOND)
            .count()
    }

    /// Times in which a partition did not decide, each with the number of decisions of others that began and ended in it.
    fn decisions_beside_a_closed_partition(&self) -> usize {
        let partitions = i64::from(self.options.partitions);
        let rebuilds = self.chronicle.rebuilds.iter().map(|one| (i64::from(one.partition), one.began, one.ended));
        let recovered = self.recoveries().filter_map(|one| {
            let noticed = one.noticed_at.0 as u64 * 1_000_000;
            Some((i64::from(one.partition.0), noticed, ended_ns(one)?))
        });
        let closed: Vec<(i64, u64, u64)> = rebuilds.chain(recovered).collect();
        let during = |from: u64, to: u64, attempt: &Attempt| attempt.began >= from && attempt.ended <= to;
        let refused_and_decided = |(partition, from, to): &&(i64, u64, u64)| {
            let refused = self.attempts().any(|(operation, attempt)| {
                operation.request.owner() % partitions == *partition
                    && during(*from, *to, attempt)
                    && attempt.outcome == Outcome::Unknown("503 SERVICE_UNAVAILABLE".to_owned())
            });
            refused
                && self.writes().any(|operation| {
                    operation.request.owner() % partitions != *partition
                        && operation.effect().is_some_and(|effect| during(*from, *to, effect))
                })
        };
        closed.iter().filter(refused_and_decided).count()
    }

    fn resumed_recoveries(&self) -> usize {
        let resumed = |one: &&Recovery| {
            let began = one.began_at.0 as u64 * 1_000_000;
            let killed = |kill: &u64| began < *kill && ended_ns(one).is_some_and(|ended| *kill < ended);
            let ended_before = one.outcome == RecoveryOutcome::Failed && one.detail.contains("ended before");
            ended_before || (one.attempts > 1 && self.chronicle.kills.iter().any(killed))
        };
        self.losses.recoveries.iter().filter(resumed).count()
    }

    fn recoveries_as(&self, outcome: RecoveryOutcome) -> usize {
        self.recoveries().filter(|recovery| recovery.outcome == outcome).count()
    }

    /// The recoveries by services that a partition decided again after.
    fn recoveries(&self) -> impl Iterator<Item = &Recovery> {
        let ended = [RecoveryOutcome::Complete, RecoveryOutcome::Withheld];
        self.losses
            .recoveries
            .iter()
            .filter(move |one| one.begun_by == BegunBy::Service && ended.contains(&one.outcome))
    }

    fn decisions_under_skew(&self) -> usize {
        let skewed = |effect: &Attempt| {
            self.chronicle.skews.iter().any(|(from, to)| effect.began >= *from && effect.ended <= *to)
        };
        self.writes().filter(|operation| operation.effect().is_some_and(skewed)).count()
    }
}

// --- tests of the counts ----------------------------------------------------------------------------------------------

const AT: u64 = 1_000_000 * SECOND;
const HOLD: u64 = 3 * SECOND;
const RETENTION: u64 = 60 * SECOND;

fn operation(request: Request, attempts: &[(u64, Outcome)]) -> Operation {
    let mut operation = Operation::new(request, "key".to_owned());
    for (began, outcome) in attempts {
        operation.attempts.push(Attempt { began: *began, ended: began + 1_000_000, outcome: outcome.clone() });
    }
    operation
}

fn done(replayed: bool) -> Outcome {
    Outcome::Done { body: serde_json::json!({}), replayed }
}

fn unknown() -> Outcome {
    Outcome::Unknown("503 SERVICE_UNAVAILABLE".to_owned())
}

fn order(paid_at: u64, reason: &str) -> OrderFact {
    let lines = BTreeMap::new();
    let (status, reason) = (String::new(), reason.to_owned());
    OrderFact {
        user: 0,
        status,
        price: 1,
        coupon: None,
        reason,
        placed_at: AT,
        paid_at,
        closed_at: AT + HOLD,
        lines,
        parts: Vec::new(),
    }
}

/// The counts above zero of a run with three partitions.
fn counted(operations: &[Operation], facts: &Facts, chronicle: &Chronicle, log: &str) -> BTreeMap<&'static str, usize> {
    let options = Options { partitions: 3, hold_seconds: 3, ..Options::default() };
    let losses = Losses::none(&options, chronicle);
    let observed =
        Observed { options: &options, operations, facts, chronicle, losses: &losses, services: log, servers: "" };
    count(&observed).into_iter().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn nothing_counted_of_run_without_situations() {
    let mut facts = Facts::default();
    facts.orders.insert(9, order(AT + SECOND, ""));
    let calm = [
        operation(Request::Charge { user: 1, amount: 1 }, &[(AT, done(false)), (AT + SECOND, done(true))]),
        operation(Request::Pay { order: 9, user: 0, price: 1, amount: 1 }, &[(AT + SECOND, done(false))]),
        operation(Request::Balance { user: 1 }, &[(AT, unknown()), (AT + SECOND, done(false))]),
    ];
    let chronicle = Chronicle { kills: vec![AT + SECOND / 2], power_losses: vec![0], ..Chronicle::default() };
    assert_eq!(counted(&calm, &facts, &chronicle, "serving"), BTreeMap::new());
}

#[test]
fn each_situation_counted_once() {
    let mut facts = Facts::default();
    facts.closes_at.insert(4, AT);
    facts.orders.insert(9, order(AT + HOLD, ""));
    facts.orders.insert(10, OrderFact { closed_at: AT + HOLD + 4 * SECOND, ..order(0, "EXPIRED") });
    facts.orders.insert(11, order(AT, ""));
    facts.orders.insert(12, order(AT, ""));
    facts.by_gateway.extend([13, 14]);
    let pay = |order: i64| Request::Pay { order, user: 0, price: 1, amount: 1 };
    let cancel = |order: i64| Request::Cancel { order, user: 0 };
    let refused = Outcome::Refused { status: 409, code: "ORDER_ALREADY_CLOSED".to_owned() };
    let run = [
        operation(Request::Charge { user: 1, amount: 1 }, &[(AT, unknown()), (AT + SECOND, done(true))]),
        operation(
            Request::Charge { user: 2, amount: 1 },
            &[(AT + 2 * SECOND, unknown()), (AT + 3 * SECOND, done(false))],
        ),
        operation(pay(9), &[(AT + HOLD - AT_ONCE, done(false))]),
        operation(pay(10), &[(AT + HOLD + AT_ONCE, refused)]),
        operation(cancel(11), &[(AT + RETENTION - SECOND / 2, done(false))]),
        operation(cancel(12), &[(AT + RETENTION + 2 * SECOND, done(false))]),
        operation(Request::Issue { campaign: 4, user: 1 }, &[(AT - 1, done(false))]),
        operation(pay(13), &[(AT + 10 * SECOND, unknown()), (AT + 11 * SECOND, done(true))]),
        operation(pay(14), &[(AT + 10 * SECOND, unknown()), (AT + 11 * SECOND, Outcome::Declined { replayed: true })]),
    ];
    let rebuild = HandRebuild { partition: 1, began: AT - SECOND, ended: AT + 4 * SECOND, killed: true };
    let chronicle = Chronicle {
        kills: vec![AT + SECOND / 2],
        power_losses: vec![0, 7],
        skews: vec![(AT + 3 * SECOND, AT + 3 * SECOND + 1_000_000)],
        rebuilds: vec![rebuild],
        ..Chronicle::default()
    };
    let found = counted(&run, &facts, &chronicle, "superseded by another projector, PostgreSQL has gone back");
    // The others are those of the log of recoveries and of Redis's log.
    assert_eq!(found.len(), TABLE.len() - 4, "{found:?}");
    // Both payments through the gateway are repeats, too.
    let repeats = "an unknown outcome is repeated under its key: it had taken effect";
    assert!(found.iter().all(|(name, count)| *count == if *name == repeats { 3 } else { 1 }), "{found:?}");
}
