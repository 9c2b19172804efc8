//! Toss Payments, core API 2022-11-16: `confirm`, a payment by its key or its order, `cancel`.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{handlers::*, *};

pub(super) const SECRET_KEY: &str = "test_sk_of_a_fake_shop";

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/payments/confirm", post(confirm))
        .route("/v1/payments/{key}", get(payment))
        .route("/v1/payments/orders/{order}", get(payment_of_order))
        .route("/v1/payments/{key}/cancel", post(cancel))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfirmBody {
    payment_key: String,
    order_id: String,
    amount: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CancelBody {
    cancel_reason: String,
    cancel_amount: Option<i64>,
}

fn error(status: u16, code: &str) -> Response {
    json_reply(status, json!({"code": code, "message": "테스트 오류입니다."}))
}

fn is_authorized(headers: &HeaderMap) -> bool {
    let basic = format!("Basic {}", STANDARD.encode(format!("{SECRET_KEY}:")));
    headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes() == basic.as_bytes())
}

fn key_of(headers: &HeaderMap) -> Option<String> {
    headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned())
}

async fn confirm(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    if !is_authorized(&headers) {
        return error(401, "UNAUTHORIZED_KEY");
    }
    let asked: ConfirmBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return bad_request(&shared, format!("confirm: {error}")),
    };
    let Some(merchant_uid) = key_of(&headers) else { return bad_request(&shared, "confirm without a key".to_owned()) };
    let window = {
        let ledger = shared.ledger();
        let Some(payment) = ledger.payments.get(&asked.payment_key) else {
            return error(404, "NOT_FOUND_PAYMENT");
        };
        if payment.decision.is_some() {
            return error(400, "ALREADY_PROCESSED_PAYMENT");
        }
        payment.window.clone()
    };
    let Some(window) = window else { return error(404, "NOT_FOUND_PAYMENT_SESSION") };
    if (asked.order_id.as_str(), asked.amount) != (window.merchant_order_id.as_str(), window.amount) {
        return error(400, "INVALID_REQUEST");
    }
    let order_id = order_of(&window);
    let pay = PayBody { merchant_uid, order_id, user_id: 0, amount: asked.amount };
    take_payment(&shared, headers, &asked.payment_key, pay).await
}

/// The order in its name.
pub(super) fn order_of(window: &Window) -> i64 {
    window.merchant_order_id.rsplit('-').next().unwrap().parse().unwrap()
}

async fn payment(State(shared): State<Arc<Shared>>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    if !is_authorized(&headers) {
        return error(401, "UNAUTHORIZED_KEY");
    }
    if !key.starts_with("tgen_") {
        return error(400, "INVALID_REQUEST");
    }
    query_payment(&shared, headers, &key).await
}

async fn payment_of_order(
    State(shared): State<Arc<Shared>>,
    Path(order): Path<String>,
    headers: HeaderMap,
) -> Response {
    let key = {
        let ledger = shared.ledger();
        let mut found = ledger.payments.iter();
        found
            .find(|(_, payment)| payment.window.as_ref().is_some_and(|window| window.merchant_order_id == order))
            .map(|(key, _)| key.clone())
    };
    match key {
        Some(key) if is_authorized(&headers) => query_payment(&shared, headers, &key).await,
        _ => error(404, "NOT_FOUND_PAYMENT"),
    }
}

async fn cancel(
    State(shared): State<Arc<Shared>>,
    Path(key): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !is_authorized(&headers) {
        return error(401, "UNAUTHORIZED_KEY");
    }
    let asked: CancelBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return bad_request(&shared, format!("cancel of {key}: {error}")),
    };
    if !shared.ledger().payments.contains_key(&key) {
        return error(404, "NOT_FOUND_PAYMENT");
    }
    let part = key_of(&headers);
    if part.is_none() && asked.cancel_amount.is_some() {
        return bad_request(&shared, format!("cancel of a part of {key} without a key"));
    }
    let cancel = Cancel { amount: asked.cancel_amount, part, refundable: None, reason: asked.cancel_reason };
    cancel_payment(&shared, headers, &key, cancel).await
}

pub(super) fn answer(uid: &str, payment: &Payment, asked: RequestKind, said: CancelledAmounts) -> Response {
    if payment.window.is_none() {
        return error(404, "NOT_FOUND_PAYMENT");
    }
    if asked == RequestKind::Pay && payment.decision == Some(Decision::Declined) {
        return error(403, "REJECT_CARD_PAYMENT");
    }
    json_reply(200, describe(uid, payment, said))
}

/// The payment object.
pub(super) fn describe(uid: &str, payment: &Payment, said: CancelledAmounts) -> Value {
    let window = payment.window.as_ref().unwrap();
    let (status, total) = match payment.decision {
        None => ("IN_PROGRESS", window.amount),
        Some(Decision::Declined) => ("ABORTED", window.amount),
        Some(Decision::Taken { amount }) if payment.given_back >= amount => ("CANCELED", amount),
        Some(Decision::Taken { amount }) if payment.given_back > 0 => ("PARTIAL_CANCELED", amount),
        Some(Decision::Taken { amount }) => ("DONE", amount),
    };
    let mut object = json!({
        "mId": "tvivarepublica", "version": "2022-11-16", "paymentKey": uid, "type": "NORMAL",
        "orderId": window.merchant_order_id, "orderName": "테스트", "currency": "KRW", "method": "카드",
        "totalAmount": total, "status": status, "requestedAt": "2026-03-02T14:00:00+09:00",
    });
    if let Some(cancelled) = payment.said_cancelled(said) {
        object["balanceAmount"] = json!(total - cancelled);
    }
    object
}

/// The body of a message about a payment.
pub(super) fn message(payment: &Value) -> String {
    json!({"eventType": "PAYMENT_STATUS_CHANGED", "createdAt": "2026-03-02T14:00:00.000000", "data": payment})
        .to_string()
}

pub(super) fn refuse_cancel(refused: CancelRefused) -> Response {
    match refused {
        CancelRefused::AlreadyCancelled => error(400, "ALREADY_CANCELED_PAYMENT"),
        CancelRefused::NotPaid => error(403, "NOT_CANCELABLE_PAYMENT"),
        CancelRefused::OtherBalance | CancelRefused::WrongAmount => error(403, "NOT_CANCELABLE_AMOUNT"),
    }
}
