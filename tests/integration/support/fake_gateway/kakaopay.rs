//! KakaoPay, online payment API v1: `ready`, `approve`, `order`, `cancel`.

use super::{handlers::*, toss::order_of, *};

pub(super) const SECRET_KEY: &str = "DEV0000000000000000000000000000000000FAKE";
pub(super) const CID: &str = "TC0ONETIME";

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/online/v1/payment/ready", post(ready))
        .route("/online/v1/payment/approve", post(approve))
        .route("/online/v1/payment/order", post(order))
        .route("/online/v1/payment/cancel", post(cancel))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyBody {
    cid: String,
    partner_order_id: String,
    partner_user_id: String,
    item_name: String,
    quantity: i64,
    total_amount: i64,
    tax_free_amount: i64,
    approval_url: String,
    cancel_url: String,
    fail_url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApproveBody {
    cid: String,
    tid: String,
    partner_order_id: String,
    partner_user_id: String,
    pg_token: String,
    total_amount: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderBody {
    cid: String,
    tid: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelBody {
    cid: String,
    tid: String,
    cancel_amount: i64,
    cancel_tax_free_amount: i64,
    cancel_available_amount: i64,
    payload: String,
}

fn error(status: u16, code: i64, message: &str) -> Response {
    json_reply(status, json!({"error_code": code, "error_message": message}))
}

/// Decodes a body of this shop.
fn read<T: serde::de::DeserializeOwned>(
    shared: &Shared,
    headers: &HeaderMap,
    (call, body): (&str, &Bytes),
    cid: fn(&T) -> &str,
) -> Result<T, Box<Response>> {
    let secret = format!("SECRET_KEY {SECRET_KEY}");
    if headers.get(AUTHORIZATION).is_none_or(|value| value.as_bytes() != secret.as_bytes()) {
        return Err(Box::new(error(401, -401, "Invalid secret key")));
    }
    let asked: T =
        serde_json::from_slice(body).map_err(|error| Box::new(bad_request(shared, format!("{call}: {error}"))))?;
    match cid(&asked) {
        CID => Ok(asked),
        other => Err(Box::new(bad_request(shared, format!("{call} of {other}")))),
    }
}

async fn ready(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let asked: ReadyBody = match read(&shared, &headers, ("ready", &body), |asked: &ReadyBody| &asked.cid) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let urls = [&asked.approval_url, &asked.cancel_url, &asked.fail_url];
    let sane = asked.total_amount > 0
        && asked.tax_free_amount == 0
        && asked.quantity == 1
        && !asked.partner_user_id.is_empty()
        && (1..=100).contains(&asked.item_name.chars().count())
        && urls.iter().all(|url| url.len() <= 255);
    if !sane {
        return bad_request(&shared, format!("ready of {}", asked.partner_order_id));
    }
    let mut ledger = shared.ledger();
    ledger.headers = headers;
    let tid = format!("T{:019}", ledger.payments.len());
    ledger.payments.entry(tid.clone()).or_default().window =
        Some(Window { merchant_order_id: asked.partner_order_id, amount: asked.total_amount });
    let page = |device: &str| format!("https://online-payment.kakaopay.com/{device}/{tid}");
    json_reply(
        200,
        json!({
            "tid": tid, "next_redirect_app_url": page("app"), "next_redirect_mobile_url": page("mobile"),
            "next_redirect_pc_url": page("pc"), "android_app_scheme": "kakaotalk://kakaopay/pg",
            "ios_app_scheme": "kakaotalk://kakaopay/pg", "created_at": "2026-03-02T14:00:00",
        }),
    )
}

async fn approve(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let asked: ApproveBody = match read(&shared, &headers, ("approve", &body), |asked: &ApproveBody| &asked.cid) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    let window = {
        let ledger = shared.ledger();
        let Some(payment) = ledger.payments.get(&asked.tid) else {
            return error(400, -721, "no such tid");
        };
        if payment.decision.is_some() {
            return error(400, -702, "payment is already done");
        }
        payment.window.clone()
    };
    let Some(window) = window.filter(|window| window.merchant_order_id == asked.partner_order_id) else {
        return error(400, -722, "partner_order_id mismatch");
    };
    if asked.pg_token != format!("pg_{}", asked.tid) || asked.partner_user_id.is_empty() {
        return error(400, -723, "pg_token mismatch");
    }
    let order_id = order_of(&window);
    let pay = PayBody { merchant_uid: asked.tid.clone(), order_id, user_id: 0, amount: asked.total_amount };
    take_payment(&shared, headers, &asked.tid, pay).await
}

async fn order(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    match read(&shared, &headers, ("order", &body), |asked: &OrderBody| &asked.cid) {
        Ok(asked) => query_payment(&shared, headers, &asked.tid).await,
        Err(refused) => *refused,
    }
}

async fn cancel(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let asked: CancelBody = match read(&shared, &headers, ("cancel", &body), |asked: &CancelBody| &asked.cid) {
        Ok(asked) => asked,
        Err(refused) => return *refused,
    };
    if asked.cancel_tax_free_amount != 0 {
        return bad_request(&shared, format!("cancel of {}: free of tax", asked.tid));
    }
    if !shared.ledger().payments.contains_key(&asked.tid) {
        return error(400, -721, "no such tid");
    }
    let cancel = Cancel {
        amount: Some(asked.cancel_amount),
        part: None,
        refundable: Some(asked.cancel_available_amount),
        reason: asked.payload,
    };
    cancel_payment(&shared, headers, &asked.tid, cancel).await
}

pub(super) fn answer(uid: &str, payment: &Payment, asked: RequestKind, said: CancelledAmounts) -> Response {
    let Some(window) = &payment.window else { return error(400, -721, "no such tid") };
    let (status, total) = match payment.decision {
        None if payment.is_authenticated => ("AUTH_PASSWORD", window.amount),
        None => ("OPEN_PAYMENT", window.amount),
        Some(Decision::Declined) if asked == RequestKind::Pay => {
            let extras = json!({"method_result_code": "8326", "method_result_message": "한도초과"});
            let body = json!({"error_code": -780, "error_message": "approval failure!", "extras": extras});
            return json_reply(400, body);
        }
        Some(Decision::Declined) => ("FAIL_PAYMENT", window.amount),
        Some(Decision::Taken { amount }) if payment.given_back >= amount => ("CANCEL_PAYMENT", amount),
        Some(Decision::Taken { amount }) if payment.given_back > 0 => ("PART_CANCEL_PAYMENT", amount),
        Some(Decision::Taken { amount }) => ("SUCCESS_PAYMENT", amount),
    };
    let won = |total: i64| json!({"total": total, "tax_free": 0, "vat": 0, "point": 0, "discount": 0});
    let mut object = json!({
        "tid": uid, "cid": CID, "partner_order_id": window.merchant_order_id, "partner_user_id": "1",
        "payment_method_type": "MONEY", "item_name": "테스트", "quantity": 1, "amount": won(total),
        "created_at": "2026-03-02T14:00:00",
    });
    if asked == RequestKind::Pay {
        object["aid"] = json!(format!("A{uid}"));
        object["approved_at"] = json!("2026-03-02T14:01:00");
        return json_reply(200, object);
    }
    object["status"] = json!(status);
    if asked == RequestKind::Cancel {
        object["aid"] = json!(format!("C{uid}"));
        object["approved_cancel_amount"] = won(payment.last_cancel);
    }
    if let Some(cancelled) = payment.said_cancelled(said) {
        object["canceled_amount"] = won(cancelled);
        object["cancel_available_amount"] = won(total - cancelled);
    }
    json_reply(200, object)
}

pub(super) fn refuse_cancel(refused: CancelRefused) -> Response {
    match refused {
        CancelRefused::AlreadyCancelled => error(400, -785, "already canceled"),
        CancelRefused::NotPaid => error(400, -784, "payment is not done"),
        CancelRefused::OtherBalance => error(400, -783, "cancel_available_amount mismatch"),
        CancelRefused::WrongAmount => error(400, -782, "cancel_amount exceeds"),
    }
}
