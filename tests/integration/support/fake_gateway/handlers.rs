//! The handlers of the gateway's requests.

use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelBody {
    amount: i64,
    reason: String,
}

pub(super) async fn pay(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let asked: PayBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => {
            shared.ledger().faults.push(format!("payment: {error}"));
            return StatusCode::BAD_REQUEST.into_response();
        }
    };
    let uid = asked.merchant_uid.clone();
    // The effect precedes a wait or a cut.
    let behaviour = {
        let mut ledger = shared.ledger();
        let ledger = &mut *ledger;
        ledger.headers = headers;
        let behaviour = ledger.next_pay.pop_front().unwrap_or_else(|| ledger.every_pay.clone());
        let payment = ledger.payments.entry(uid.clone()).or_default();
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
            Behaviour::Hang | Behaviour::Garbage | Behaviour::ServerError | Behaviour::Answer(..) => {}
        }
        behaviour
    };
    let mut changes = shared.changes.subscribe();
    shared.changed();
    match behaviour {
        Behaviour::Approve | Behaviour::Decline | Behaviour::ApproveAmount(_) => {}
        Behaviour::ApproveLate => {
            while shared.ledger().payments[&uid].decision.is_none() {
                changes.changed().await.unwrap();
            }
        }
        Behaviour::Hang | Behaviour::ApproveThenHang | Behaviour::ApproveAmountThenHang(_) => return pending().await,
        Behaviour::Garbage | Behaviour::GarbageAfterApproval => return garbage(),
        Behaviour::ServerError | Behaviour::ServerErrorAfterApproval => return server_error(),
        Behaviour::CutAfterApproval => return cut(),
        Behaviour::Answer(status, body) | Behaviour::AnswerAfterApproval(status, body) => return reply(status, body),
    }
    let ledger = shared.ledger();
    ledger.payments[&uid].answer(&uid, ledger.transaction_id.as_ref(), CancelledAmounts::Unnamed)
}

pub(super) async fn status(State(shared): State<Arc<Shared>>, Path(uid): Path<String>, headers: HeaderMap) -> Response {
    let (manner, answer) = {
        let mut ledger = shared.ledger();
        let ledger = &mut *ledger;
        ledger.headers = headers;
        let manner = ledger.every_status.clone();
        let payment = ledger.payments.entry(uid.clone()).or_default();
        payment.status_queries += 1;
        (manner, payment.answer(&uid, ledger.transaction_id.as_ref(), ledger.cancelled_amounts))
    };
    shared.changed();
    answer_as(manner, answer).await
}

pub(super) async fn cancel(
    State(shared): State<Arc<Shared>>,
    Path(uid): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let asked: CancelBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => {
            shared.ledger().faults.push(format!("cancel of {uid}: {error}"));
            return StatusCode::BAD_REQUEST.into_response();
        }
    };
    let (manner, answer) = {
        let mut ledger = shared.ledger();
        let ledger = &mut *ledger;
        let key = headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
        ledger.headers = headers;
        let manner = ledger.every_cancel.clone();
        let payment = ledger.payments.entry(uid.clone()).or_default();
        payment.cancels += 1;
        let does = matches!(
            manner,
            QueryBehaviour::Truthful
                | QueryBehaviour::ThenHang
                | QueryBehaviour::ThenServerError
                | QueryBehaviour::ThenAnswer(..)
        );
        let is_wrong = |amount: i64| match &key {
            Some(key) => match payment.parts.get(key) {
                Some(part) => *part != asked.amount,
                None => !(1..=amount - payment.given_back).contains(&asked.amount),
            },
            None => asked.amount != amount,
        };
        let answer = match payment.decision {
            Some(Decision::Taken { amount }) if is_wrong(amount) || asked.reason.is_empty() => {
                ledger.faults.push(format!("cancel of {uid}: {} of {amount}, {:?}", asked.amount, asked.reason));
                StatusCode::BAD_REQUEST.into_response()
            }
            Some(Decision::Taken { amount }) => {
                match key {
                    Some(key) if does && !payment.parts.contains_key(&key) => {
                        payment.given_back += asked.amount;
                        payment.parts.insert(key, asked.amount);
                    }
                    None if does => payment.given_back = amount,
                    _ => {}
                }
                StatusCode::OK.into_response()
            }
            Some(Decision::Declined) | None => StatusCode::NOT_FOUND.into_response(),
        };
        (manner, answer)
    };
    shared.changed();
    answer_as(manner, answer).await
}

async fn answer_as(manner: QueryBehaviour, truth: Response) -> Response {
    match manner {
        QueryBehaviour::Truthful => truth,
        QueryBehaviour::ThenHang | QueryBehaviour::Hang => pending().await,
        QueryBehaviour::ThenServerError | QueryBehaviour::ServerError => server_error(),
        QueryBehaviour::Garbage => garbage(),
        QueryBehaviour::ThenAnswer(status, body) | QueryBehaviour::Answer(status, body) => reply(status, body),
    }
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
