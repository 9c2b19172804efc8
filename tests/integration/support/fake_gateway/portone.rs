//! PortOne, REST API V2: `pre-register`, a payment, `cancel`; and webhooks of version 2024-04-25.

use axum::extract::Query;
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{handlers::*, toss::order_of, *};

pub(super) const API_SECRET: &str = "portone-api-secret-of-a-fake-shop";
pub(super) const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(super) const STORE_ID: &str = "store-00000000-fake";

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/payments/{id}/pre-register", post(pre_register))
        .route("/payments/{id}", get(payment))
        .route("/payments/{id}/cancel", post(cancel))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PreRegisterBody {
    store_id: String,
    total_amount: i64,
    currency: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CancelBody {
    store_id: String,
    amount: Option<i64>,
    current_cancellable_amount: Option<i64>,
    reason: String,
}

fn error(status: u16, kind: &str) -> Response {
    json_reply(status, json!({"type": kind, "message": "a test's error"}))
}

fn is_authorized(headers: &HeaderMap) -> bool {
    let secret = format!("PortOne {API_SECRET}");
    headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes() == secret.as_bytes())
}

async fn pre_register(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !is_authorized(&headers) {
        return error(401, "UNAUTHORIZED");
    }
    match serde_json::from_slice::<PreRegisterBody>(&body) {
        Ok(asked) if asked.store_id == STORE_ID && asked.currency == "KRW" && asked.total_amount > 0 => {
            let ledger = shared.ledger();
            match ledger.payments.get(&id).and_then(Payment::taken) {
                Some(_) => error(409, "ALREADY_PAID"),
                None => json_reply(200, json!({})),
            }
        }
        _ => bad_request(&shared, format!("pre-registration of {id}")),
    }
}

async fn payment(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if !is_authorized(&headers) {
        return error(401, "UNAUTHORIZED");
    }
    if query.get("storeId").map(String::as_str) != Some(STORE_ID) {
        return bad_request(&shared, format!("query of {id}: {query:?}"));
    }
    let window = {
        let ledger = shared.ledger();
        let payment = ledger.payments.get(&id);
        payment.filter(|payment| payment.posts == 0).and_then(|payment| payment.window.clone())
    };
    // The service asks for the first time: the customer has paid, or has not, as the behaviour says.
    match window {
        Some(window) => {
            let (order_id, amount) = (order_of(&window), window.amount);
            let pay = PayBody { merchant_uid: id.clone(), order_id, user_id: 0, amount };
            take_payment(&shared, headers, &id, pay).await
        }
        None => query_payment(&shared, headers, &id).await,
    }
}

async fn cancel(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if !is_authorized(&headers) {
        return error(401, "UNAUTHORIZED");
    }
    let asked: CancelBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return bad_request(&shared, format!("cancel of {id}: {error}")),
    };
    let part = headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
    let quoted = part.as_ref().is_none_or(|key| key.len() >= 18 && key.starts_with('"') && key.ends_with('"'));
    if !quoted || asked.store_id != STORE_ID || asked.amount.is_some() != part.is_some() {
        return bad_request(&shared, format!("cancel of {id}: {part:?}"));
    }
    if !shared.ledger().payments.contains_key(&id) {
        return error(404, "PAYMENT_NOT_FOUND");
    }
    let refundable = asked.current_cancellable_amount;
    let cancel = Cancel { amount: asked.amount, part, refundable, reason: asked.reason };
    cancel_payment(&shared, headers, &id, cancel).await
}

pub(super) fn answer(uid: &str, payment: &Payment, asked: RequestKind, said: CancelledAmounts) -> Response {
    let Some(window) = &payment.window else { return error(404, "PAYMENT_NOT_FOUND") };
    if asked == RequestKind::Cancel {
        let cancellation = json!({
            "status": "SUCCEEDED", "id": "cancellation-1", "totalAmount": payment.last_cancel, "taxFreeAmount": 0,
            "vatAmount": 0, "reason": "x", "requestedAt": "2026-03-02T05:00:00Z",
        });
        return json_reply(200, json!({"cancellation": cancellation}));
    }
    let (status, total) = match payment.decision {
        None => ("READY", window.amount),
        Some(Decision::Declined) => ("FAILED", window.amount),
        Some(Decision::Taken { amount }) if payment.given_back >= amount => ("CANCELLED", amount),
        Some(Decision::Taken { amount }) if payment.given_back > 0 => ("PARTIAL_CANCELLED", amount),
        Some(Decision::Taken { amount }) => ("PAID", amount),
    };
    let mut amount = json!({"total": total, "taxFree": 0, "discount": 0, "paid": total, "cancelledTaxFree": 0});
    if let Some(cancelled) = payment.said_cancelled(said) {
        amount["cancelled"] = json!(cancelled);
    }
    json_reply(
        200,
        json!({
            "status": status, "id": uid, "transactionId": format!("tx-{uid}"), "merchantId": "merchant-1",
            "storeId": STORE_ID, "version": "V2", "orderName": "테스트", "amount": amount, "currency": "KRW",
            "requestedAt": "2026-03-02T05:00:00Z",
        }),
    )
}

pub(super) fn refuse_cancel(refused: CancelRefused) -> Response {
    match refused {
        CancelRefused::AlreadyCancelled => error(409, "PAYMENT_ALREADY_CANCELLED"),
        CancelRefused::NotPaid => error(409, "PAYMENT_NOT_PAID"),
        CancelRefused::OtherBalance => error(409, "CANCELLABLE_AMOUNT_CONSISTENCY_BROKEN"),
        CancelRefused::WrongAmount => error(409, "CANCEL_AMOUNT_EXCEEDS_CANCELLABLE_AMOUNT"),
    }
}

/// The headers and the body of a message about a payment, signed at `seconds`.
pub(super) fn message(kind: &str, id: &str, seconds: i64) -> (Vec<(&'static str, String)>, String) {
    let data = json!({"paymentId": id, "storeId": STORE_ID, "transactionId": format!("tx-{id}")});
    let body = json!({"type": kind, "timestamp": "2026-03-02T05:00:00Z", "data": data}).to_string();
    let key = STANDARD.decode(WEBHOOK_SECRET.trim_start_matches("whsec_")).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let signature = ring::hmac::sign(&key, format!("msg_{id}.{seconds}.{body}").as_bytes());
    let headers = vec![
        ("webhook-id", format!("msg_{id}")),
        ("webhook-timestamp", seconds.to_string()),
        ("webhook-signature", format!("v1,{}", STANDARD.encode(signature))),
    ];
    (headers, body)
}
