//! The generic protocol.

use super::{handlers::*, *};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelBody {
    amount: i64,
    reason: String,
}

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/payments", post(pay))
        .route("/payments/{uid}", get(status))
        .route("/payments/{uid}/cancel", post(cancel))
}

async fn pay(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let asked: PayBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return bad_request(&shared, format!("payment: {error}")),
    };
    let uid = asked.merchant_uid.clone();
    take_payment(&shared, headers, &uid, asked).await
}

async fn status(State(shared): State<Arc<Shared>>, Path(uid): Path<String>, headers: HeaderMap) -> Response {
    query_payment(&shared, headers, &uid).await
}

async fn cancel(
    State(shared): State<Arc<Shared>>,
    Path(uid): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let asked: CancelBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return bad_request(&shared, format!("cancel of {uid}: {error}")),
    };
    let part = headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
    let cancel = Cancel { amount: Some(asked.amount), part, refundable: None, reason: asked.reason };
    cancel_payment(&shared, headers, &uid, cancel).await
}

/// The reply about this payment.
pub(super) fn answer(uid: &str, payment: &Payment, id: Option<&Value>, said: CancelledAmounts) -> Response {
    let id = id.cloned().unwrap_or_else(|| json!(format!("tx-{uid}")));
    match payment.decision {
        _ if payment.is_given_back() => Json(json!({"approved": false, "reason": "CANCELLED"})).into_response(),
        Some(Decision::Taken { amount }) if amount != payment.amount() => {
            Json(json!({"approved": true, "transactionId": id, "amount": amount})).into_response()
        }
        Some(Decision::Taken { .. }) => {
            let mut approval = json!({"approved": true, "transactionId": id});
            if let Some(cancelled) = payment.said_cancelled(said) {
                approval["cancelledAmount"] = json!(cancelled);
            }
            Json(approval).into_response()
        }
        Some(Decision::Declined) => Json(json!({"approved": false, "reason": "LIMIT_EXCEEDED"})).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// An approval of another order than that of the payment.
pub(super) fn other(payment: &Payment) -> Response {
    let order = payment.asked.as_ref().map_or(0, |asked| asked.order_id) + 1;
    Json(json!({"approved": true, "transactionId": "tx", "orderId": order})).into_response()
}
