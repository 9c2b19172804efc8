//! What every protocol does with a payment: the ledger, and the ways to misbehave.

use super::*;

/// A request for a refund.
pub(super) struct Cancel {
    /// `None`: all that is left.
    pub amount: Option<i64>,
    /// The key of a part: the same key is the same part.
    pub part: Option<String>,
    /// What the client believes may be refunded. Another amount is refused.
    pub refundable: Option<i64>,
    pub reason: String,
}

/// Takes the money of a payment, as the behaviour says, and replies.
pub(super) async fn take_payment(shared: &Arc<Shared>, headers: HeaderMap, uid: &str, asked: PayBody) -> Response {
    // The effect precedes a wait or a cut.
    let behaviour = {
        let mut ledger = shared.ledger();
        let ledger = &mut *ledger;
        ledger.headers = headers;
        let behaviour = ledger.next_pay.pop_front().unwrap_or_else(|| ledger.every_pay.clone());
        let payment = ledger.payments.entry(uid.to_owned()).or_default();
        payment.posts += 1;
        let first = payment.asked.get_or_insert_with(|| asked.clone());
        if *first != asked {
            ledger.faults.push(format!("payment {uid}: {first:?}, then {asked:?}"));
            shared.changed();
            return StatusCode::CONFLICT.into_response();
        }
        match behaviour {
            Behaviour::Approve
            | Behaviour::ApproveThenHang
            | Behaviour::GarbageAfterApproval
            | Behaviour::ServerErrorAfterApproval
            | Behaviour::AnswerAfterApproval(..)
            | Behaviour::CutAfterApproval => payment.take(),
            Behaviour::ApproveAmount(amount) | Behaviour::ApproveAmountThenHang(amount) => {
                payment.decision.get_or_insert(Decision::Taken { amount });
            }
            Behaviour::Decline => {
                payment.decision.get_or_insert(Decision::Declined);
            }
            Behaviour::ApproveLate => payment.is_late = payment.decision.is_none(),
            Behaviour::Hang
            | Behaviour::Garbage
            | Behaviour::ServerError
            | Behaviour::ApproveOther
            | Behaviour::Answer(..) => {}
        }
        behaviour
    };
    let mut changes = shared.changes.subscribe();
    shared.changed();
    match behaviour {
        Behaviour::Approve | Behaviour::Decline | Behaviour::ApproveAmount(_) => {}
        Behaviour::ApproveLate => {
            while shared.ledger().payments[uid].decision.is_none() {
                changes.changed().await.unwrap();
            }
        }
        Behaviour::Hang | Behaviour::ApproveThenHang | Behaviour::ApproveAmountThenHang(_) => return pending().await,
        Behaviour::Garbage | Behaviour::GarbageAfterApproval => return garbage(),
        Behaviour::ServerError | Behaviour::ServerErrorAfterApproval => return server_error(),
        Behaviour::CutAfterApproval => return cut(),
        Behaviour::Answer(status, body) | Behaviour::AnswerAfterApproval(status, body) => return reply(status, body),
        Behaviour::ApproveOther => return shared.other(uid),
    }
    shared.answer(uid, RequestKind::Pay)
}

/// Replies to a query, as the behaviour says.
pub(super) async fn query_payment(shared: &Arc<Shared>, headers: HeaderMap, uid: &str) -> Response {
    let manner = {
        let mut ledger = shared.ledger();
        ledger.headers = headers;
        ledger.payments.entry(uid.to_owned()).or_default().status_queries += 1;
        ledger.every_status.clone()
    };
    let answer = match manner {
        QueryBehaviour::Denied => shared.deny(uid),
        _ => shared.answer(uid, RequestKind::Status),
    };
    shared.changed();
    answer_as(manner, answer).await
}

/// Refunds, as the behaviour says, and replies.
pub(super) async fn cancel_payment(shared: &Arc<Shared>, headers: HeaderMap, uid: &str, asked: Cancel) -> Response {
    let (manner, refused) = {
        let mut ledger = shared.ledger();
        let ledger = &mut *ledger;
        ledger.headers = headers;
        let manner = ledger.every_cancel.clone();
        let payment = ledger.payments.entry(uid.to_owned()).or_default();
        payment.cancels += 1;
        let does = matches!(
            manner,
            QueryBehaviour::Truthful
                | QueryBehaviour::ThenHang
                | QueryBehaviour::ThenServerError
                | QueryBehaviour::ThenAnswer(..)
        );
        let refused = match payment.decision {
            Some(Decision::Taken { amount: taken }) => {
                let left = taken - payment.given_back;
                let amount = asked.amount.unwrap_or(left);
                let known = asked.part.as_ref().and_then(|key| payment.parts.get(key)).copied();
                let is_part = asked.part.is_some() || asked.refundable.is_some_and(|refundable| refundable != amount);
                let wrong = match known {
                    Some(part) => part != amount,
                    None if is_part => !(1..=left).contains(&amount),
                    // The generic protocol refunds all again, to no effect.
                    None => amount != taken && amount != left,
                };
                if asked.refundable.is_some_and(|refundable| known.is_none() && refundable != left) {
                    Some(CancelRefused::OtherBalance)
                } else if known.is_none() && left == 0 {
                    (shared.protocol != Protocol::Http).then_some(CancelRefused::AlreadyCancelled)
                } else if wrong || asked.reason.is_empty() {
                    ledger.faults.push(format!("cancel of {uid}: {amount} of {taken}, {:?}", asked.reason));
                    Some(CancelRefused::WrongAmount)
                } else {
                    if does && known.is_none() {
                        let is_whole = asked.part.is_none() && amount == taken;
                        payment.given_back = if is_whole { taken } else { payment.given_back + amount };
                        payment.parts.extend(asked.part.map(|key| (key, amount)));
                        payment.last_cancel = amount;
                    }
                    None
                }
            }
            Some(Decision::Declined) | None => Some(CancelRefused::NotPaid),
        };
        (manner, refused)
    };
    let refused = if manner == QueryBehaviour::Denied { Some(CancelRefused::NotPaid) } else { refused };
    let answer = match refused {
        Some(refused) => shared.refuse_cancel(refused),
        None => shared.answer(uid, RequestKind::Cancel),
    };
    shared.changed();
    answer_as(manner, answer).await
}

async fn answer_as(manner: QueryBehaviour, truth: Response) -> Response {
    match manner {
        QueryBehaviour::Truthful | QueryBehaviour::Denied => truth,
        QueryBehaviour::ThenHang | QueryBehaviour::Hang => pending().await,
        QueryBehaviour::ThenServerError | QueryBehaviour::ServerError => server_error(),
        QueryBehaviour::Garbage => garbage(),
        QueryBehaviour::ThenAnswer(status, body) | QueryBehaviour::Answer(status, body) => reply(status, body),
    }
}

/// A request that no correct client sends.
pub(super) fn bad_request(shared: &Shared, fault: String) -> Response {
    shared.ledger().faults.push(fault);
    StatusCode::BAD_REQUEST.into_response()
}

/// A JSON body under this status.
pub(super) fn json_reply(status: u16, body: Value) -> Response {
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

fn reply(status: u16, body: String) -> Response {
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

fn garbage() -> Response {
    "<html>approved: true</html>".into_response()
}

fn server_error() -> Response {
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

/// A complete approval, but the connection breaks before the end of the reply.
fn cut() -> Response {
    let words = Bytes::from_static(br#"{"approved": true, "transactionId": "tx"}"#);
    let parts = [Ok(words), Err(std::io::Error::other("cut"))];
    Body::from_stream(stream::iter(parts)).into_response()
}

/// What a reply answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestKind {
    Pay,
    Status,
    Cancel,
}

/// Why a refund is refused.
#[derive(Clone, Copy)]
pub(super) enum CancelRefused {
    NotPaid,
    AlreadyCancelled,
    OtherBalance,
    WrongAmount,
}

impl Shared {
    /// The correct reply about a payment.
    pub(super) fn answer(&self, uid: &str, asked: RequestKind) -> Response {
        let ledger = self.ledger();
        let (payment, said) = (&ledger.payments[uid], ledger.cancelled_amounts);
        match (self.protocol, asked) {
            (Protocol::Http, RequestKind::Cancel) => StatusCode::OK.into_response(),
            (Protocol::Http, RequestKind::Pay) => {
                http::answer(uid, payment, ledger.transaction_id.as_ref(), CancelledAmounts::Unnamed)
            }
            (Protocol::Http, RequestKind::Status) => http::answer(uid, payment, ledger.transaction_id.as_ref(), said),
            (Protocol::Toss, asked) => toss::answer(uid, payment, asked, said),
            (Protocol::KakaoPay, asked) => kakaopay::answer(uid, payment, asked, said),
            (Protocol::PortOne, asked) => portone::answer(uid, payment, asked, said),
        }
    }

    /// An approval of another order than that of the payment.
    fn other(&self, uid: &str) -> Response {
        let ledger = self.ledger();
        let payment = &ledger.payments[uid];
        let mut other = Payment { window: payment.window.clone(), ..Payment::default() };
        if let Some(window) = &mut other.window {
            window.merchant_order_id.push('9');
        }
        other.take();
        match self.protocol {
            Protocol::Http => http::other(payment),
            Protocol::Toss => toss::answer(uid, &other, RequestKind::Pay, CancelledAmounts::Named),
            Protocol::KakaoPay => kakaopay::answer(uid, &other, RequestKind::Pay, CancelledAmounts::Named),
            Protocol::PortOne => portone::answer(&format!("{uid}9"), &other, RequestKind::Pay, CancelledAmounts::Named),
        }
    }

    /// Says that there is no money, of a payment that has some.
    fn deny(&self, uid: &str) -> Response {
        let ledger = self.ledger();
        let window = ledger.payments[uid].window.clone();
        // PortOne says so of a cancelled payment alone: after a failure its customer may still pay.
        let (decision, given_back) = match self.protocol {
            Protocol::PortOne => (Decision::Taken { amount: 1 }, 1),
            _ => (Decision::Declined, 0),
        };
        let denied = Payment { window, decision: Some(decision), given_back, ..Payment::default() };
        match self.protocol {
            Protocol::Http => http::answer(uid, &denied, None, CancelledAmounts::Named),
            Protocol::Toss => toss::answer(uid, &denied, RequestKind::Status, CancelledAmounts::Named),
            Protocol::KakaoPay => kakaopay::answer(uid, &denied, RequestKind::Status, CancelledAmounts::Named),
            Protocol::PortOne => portone::answer(uid, &denied, RequestKind::Status, CancelledAmounts::Named),
        }
    }

    fn refuse_cancel(&self, refused: CancelRefused) -> Response {
        match (self.protocol, refused) {
            (Protocol::Http, CancelRefused::NotPaid) => StatusCode::NOT_FOUND.into_response(),
            (Protocol::Http, _) => StatusCode::BAD_REQUEST.into_response(),
            (Protocol::Toss, refused) => toss::refuse_cancel(refused),
            (Protocol::KakaoPay, refused) => kakaopay::refuse_cancel(refused),
            (Protocol::PortOne, refused) => portone::refuse_cancel(refused),
        }
    }
}
