//! The payment gateway of a run, of the generic protocol or a provider's. It lies while the nemesis has it lie; in the end it has the money of the paid orders, and no other.

use std::collections::BTreeMap;

use super::{facts::Facts, history::Random, losses::Losses};
use crate::support::fake_gateway::{Behaviour, FakeGateway, Protocol, QueryBehaviour};

/// What the gateway may do with payments, with questions about them, and with refunds.
const PAYMENTS: [Behaviour; 9] = [
    Behaviour::Decline,
    Behaviour::Hang,
    Behaviour::ApproveThenHang,
    Behaviour::Garbage,
    Behaviour::GarbageAfterApproval,
    Behaviour::ServerError,
    Behaviour::ServerErrorAfterApproval,
    Behaviour::CutAfterApproval,
    Behaviour::ApproveAmount(1),
];
const QUESTIONS: [QueryBehaviour; 4] =
    [QueryBehaviour::Truthful, QueryBehaviour::Hang, QueryBehaviour::ServerError, QueryBehaviour::Garbage];
const REFUNDS: [QueryBehaviour; 5] = [
    QueryBehaviour::Truthful,
    QueryBehaviour::ThenHang,
    QueryBehaviour::ThenServerError,
    QueryBehaviour::ServerError,
    QueryBehaviour::Garbage,
];

/// From now on the gateway does something else than it should.
pub fn lie(gateway: &FakeGateway, random: &mut Random) {
    gateway.always(random.pick(&PAYMENTS).clone());
    gateway.status_queries_are(random.pick(&QUESTIONS).clone());
    gateway.cancels_are(random.pick(&REFUNDS).clone());
}

pub fn be_honest(gateway: &FakeGateway) {
    gateway.always(Behaviour::Approve);
    gateway.status_queries_are(QueryBehaviour::Truthful);
    gateway.cancels_are(QueryBehaviour::Truthful);
}

/// What the gateway has against the orders that no loss explains, and the requests that no correct service sends.
pub fn contradictions(gateway: &FakeGateway, facts: &Facts, losses: &Losses) -> Vec<String> {
    let mut contradictions = gateway.faults();
    let mut kept: BTreeMap<i64, i64> = BTreeMap::new();
    for uid in gateway.uids() {
        // Nobody was asked to pay what a customer has only approved.
        let Some(order) = gateway.order_of(&uid).filter(|order| !losses.concern(*order)) else { continue };
        *kept.entry(order).or_default() += gateway.kept(&uid);
        let is_receipt = facts.payments.values().any(|(of, .., receipt)| *of == order && *receipt == uid);
        if gateway.protocol == Protocol::Http && !is_receipt && gateway.kept(&uid) > 0 {
            contradictions.push(format!("the gateway keeps money of order {order} under another receipt: {uid}"));
        }
    }
    for (order, kept) in kept {
        let fact = facts.orders.get(&order).filter(|fact| fact.status == "PAID" && facts.by_gateway.contains(&order));
        let due = fact.map_or(0, |fact| fact.left_price());
        if kept != due {
            contradictions.push(format!("the gateway keeps {kept} won of order {order}, of which {due} are due"));
        }
    }
    // Each has a payment there.
    let paid = facts.orders.iter().filter(|(_, fact)| fact.status == "PAID" && fact.left_price() > 0);
    for (order, _) in paid.filter(|(order, _)| facts.by_gateway.contains(order) && !losses.concern(**order)) {
        if !gateway.uids().iter().any(|uid| gateway.order_of(uid) == Some(*order)) {
            contradictions.push(format!("order {order} is paid, and the gateway was not asked"));
        }
    }
    contradictions
}
