//! Tests of decoding the replies of Toss Payments.

use serde_json::Value;

use super::*;
use crate::model::{OrderId, UserId};

fn charge() -> Charge {
    Charge {
        merchant_uid: "r-1".to_owned(),
        merchant_order_id: "shop-7".to_owned(),
        order_id: OrderId::new(7).unwrap(),
        user_id: UserId::new(3).unwrap(),
        amount: 5_000,
        transaction: Some("key-1".to_owned()),
    }
}

fn payment(status: &str, changes: Value) -> Vec<u8> {
    let mut payment = json!({
        "version": "2022-11-16", "paymentKey": "key-1", "orderId": "shop-7", "status": status, "currency": "KRW",
        "totalAmount": 5_000, "balanceAmount": 5_000,
    });
    payment.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    payment.to_string().into_bytes()
}

fn status_of(status: &str, changes: Value) -> StatusOutcome {
    decode_status(&charge(), &(200, payment(status, changes)))
}

fn approved(cancelled: Option<Won>) -> StatusOutcome {
    StatusOutcome::Approved { transaction_id: "key-1".to_owned(), cancelled }
}

#[test]
fn toss_payment_judged_by_state_and_amount() {
    assert_eq!(status_of("DONE", json!({})), approved(Some(0)));
    assert_eq!(status_of("PARTIAL_CANCELED", json!({"balanceAmount": 2_000})), approved(Some(3_000)));
    assert_eq!(status_of("DONE", json!({"balanceAmount": null})), approved(None));
    assert_eq!(status_of("DONE", json!({"balanceAmount": 6_000})), approved(None));
    for other in [json!({"totalAmount": 4_999}), json!({"totalAmount": "?"}), json!({"currency": "USD"})] {
        assert!(matches!(status_of("DONE", other.clone()), StatusOutcome::Unacceptable { .. }), "{other}");
    }
    assert!(matches!(status_of("WAITING_FOR_DEPOSIT", json!({})), StatusOutcome::Unacceptable { taken: None, .. }));
    for state in ["CANCELED", "ABORTED", "EXPIRED"] {
        assert_eq!(status_of(state, json!({})), StatusOutcome::Declined { reason: state.to_owned() });
    }
    for state in ["READY", "IN_PROGRESS"] {
        assert_eq!(status_of(state, json!({})), StatusOutcome::NotFound);
    }
    assert!(matches!(status_of("done", json!({})), StatusOutcome::Unknown { .. }));
}

#[test]
fn toss_payment_of_other_order_never_approves() {
    assert_eq!(status_of("DONE", json!({"orderId": "shop-8"})), StatusOutcome::NotFound);
    assert!(matches!(status_of("DONE", json!({"paymentKey": "key-2"})), StatusOutcome::Unknown { .. }));
    assert_eq!(status_of("IN_PROGRESS", json!({"paymentKey": "key-2"})), StatusOutcome::NotFound);
    let other = payment("DONE", json!({"orderId": "shop-8"}));
    assert!(matches!(decode_pay(&charge(), &(200, other)), PayOutcome::Unknown { .. }));
}

#[test]
fn toss_error_declines_when_it_names_a_refusal() {
    let decode = |status: u16, body: &str| decode_pay(&charge(), &(status, body.as_bytes().to_vec()));
    for code in REFUSALS {
        let body = format!(r#"{{"code": "{code}", "message": "거절"}}"#);
        assert!(matches!(decode(403, &body), PayOutcome::Declined { .. }), "{code}");
        assert!(matches!(decode(500, &body), PayOutcome::Unknown { .. }), "{code}");
    }
    for (status, body) in [
        (400, r#"{"code": "ALREADY_PROCESSED_PAYMENT", "message": ""}"#),
        (400, r#"{"code": "PROVIDER_ERROR"}"#),
        (400, r#"{"code": "INVALID_REQUEST"}"#),
        (401, r#"{"code": "UNAUTHORIZED_KEY"}"#),
        (403, "<html>REJECT_CARD_PAYMENT</html>"),
        (404, r#"{"code": "NOT_FOUND_PAYMENT"}"#),
        (409, r#"{"code": "IDEMPOTENT_REQUEST_PROCESSING"}"#),
        (500, r#"{"code": "FAILED_PAYMENT_INTERNAL_SYSTEM_PROCESSING"}"#),
    ] {
        assert!(matches!(decode(status, body), PayOutcome::Unknown { .. }), "{body}");
    }
}

#[test]
fn toss_cancel_confirmed_by_payment_alone() {
    let decode = |status: u16, body: &[u8]| decode_cancel(&charge(), &(status, body.to_vec()));
    for state in ["CANCELED", "PARTIAL_CANCELED"] {
        assert_eq!(decode(200, &payment(state, json!({}))), CancelOutcome::Cancelled);
    }
    assert!(matches!(decode(200, &payment("DONE", json!({}))), CancelOutcome::Unknown { .. }));
    assert!(matches!(decode(200, b"{}"), CancelOutcome::Unknown { .. }));
    assert_eq!(decode(404, br#"{"code": "NOT_FOUND_PAYMENT"}"#), CancelOutcome::NotFound);
    assert!(matches!(decode(404, b"<html></html>"), CancelOutcome::Unknown { .. }));
    assert!(matches!(decode(400, br#"{"code": "ALREADY_CANCELED_PAYMENT"}"#), CancelOutcome::Unknown { .. }));
}

#[test]
fn toss_key_refused_when_missing_or_unsafe() {
    let config =
        TossConfig { url: "http://127.0.0.1:9".into(), timeout: Duration::from_secs(1), secret_key: "sk".into() };
    let toss = Toss::new(PaymentType::Toss, &config).unwrap();
    let key = |token| toss.transaction_of(Presented { token, prepared: None, merchant_order_id: "shop-7" });
    assert_eq!(key(Some("key-1")), Ok(Some("key-1".to_owned())));
    let long = "k".repeat(201);
    for refused in [
        None,
        Some(""),
        Some("a key"),
        Some("키"),
        Some("."),
        Some(".."),
        Some("a/b"),
        Some("a%2f"),
        Some(long.as_str()),
    ] {
        assert_eq!(key(refused), Err(InvalidToken), "{refused:?}");
    }
    for secret_key in ["", "hunter2 hunter2", "hunter2\n"] {
        let config = TossConfig { secret_key: secret_key.to_owned(), ..config.clone() };
        let refused = Toss::new(PaymentType::Toss, &config).err().unwrap().to_string();
        assert!(refused.contains("TOSS_SECRET_KEY") && !refused.contains("hunter2"), "{refused}");
    }
}
