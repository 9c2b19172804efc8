//! The payment gateway of a run. It lies while the nemesis has it lie; in the end it has the money of the paid orders, and no other.

use super::{facts::Facts, history::Random, losses::Losses};
use crate::support::fake_gateway::{Behaviour, FakeGateway, QueryBehaviour};

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
    for uid in gateway.uids() {
        let Some(order) = gateway.order_of(&uid).filter(|order| !losses.concern(*order)) else { continue };
        let is_paid = facts.orders.get(&order).is_some_and(|fact| fact.status == "PAID");
        let paid = facts.payments.values().find(|(of, .., receipt)| *of == order && *receipt == uid);
        let left = facts.orders.get(&order).map_or(0, |fact| fact.left_price());
        let due = paid.filter(|_| is_paid).map_or(0, |_| left);
        let kept = gateway.kept(&uid);
        if kept != due {
            contradictions
                .push(format!("the gateway keeps {kept} won of order {order}, of which {due} are due: {uid}"));
        }
    }
    contradictions
}
