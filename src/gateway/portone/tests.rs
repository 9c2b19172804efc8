//! Tests of decoding the replies of PortOne.

use super::*;
use crate::model::{Millis, OrderId, UserId};

fn charge() -> Charge {
    Charge {
        merchant_uid: "r-1".to_owned(),
        merchant_order_id: "shop-7".to_owned(),
        order_id: OrderId::new(7).unwrap(),
        user_id: UserId::new(3).unwrap(),
        amount: 5_000,
        transaction: Some("shop-7".to_owned()),
    }
}

fn portone(webhook_secret: Option<&str>) -> PortOne {
    let config = PortOneConfig {
        url: "http://127.0.0.1:9".into(),
        timeout: Duration::from_secs(1),
        api_secret: "secret".into(),
        store_id: Some("store-1".into()),
        webhook_secret: webhook_secret.map(str::to_owned),
    };
    PortOne::new(PaymentType::Card, &config).unwrap()
}

fn payment(status: &str, changes: Value) -> Vec<u8> {
    let mut payment = json!({
        "id": "shop-7", "storeId": "store-1", "status": status, "currency": "KRW", "transactionId": "tx-1",
        "amount": {"total": 5_000, "cancelled": 0},
    });
    payment.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    payment.to_string().into_bytes()
}

fn status_of(status: &str, changes: Value) -> StatusOutcome {
    portone(None).decode_status(&charge(), 200, &payment(status, changes))
}

#[test]
fn portone_payment_judged_by_state_and_amount() {
    let approved = |cancelled| StatusOutcome::Approved { transaction_id: "shop-7".to_owned(), cancelled };
    assert_eq!(status_of("PAID", json!({})), approved(Some(0)));
    let part = json!({"amount": {"total": 5_000, "cancelled": 2_000}});
    assert_eq!(status_of("PARTIAL_CANCELLED", part), approved(Some(2_000)));
    for other in [json!({"amount": {"total": 100}}), json!({"currency": "USD"}), json!({"amount": null})] {
        assert!(matches!(status_of("PAID", other.clone()), StatusOutcome::Unacceptable { .. }), "{other}");
    }
    for other in [json!({"id": "shop-8"}), json!({"storeId": "store-2"})] {
        assert!(matches!(status_of("PAID", other.clone()), StatusOutcome::Unknown { .. }), "{other}");
    }
    assert_eq!(status_of("CANCELLED", json!({})), StatusOutcome::Declined { reason: "CANCELLED".to_owned() });
    for state in ["READY", "PAY_PENDING", "VIRTUAL_ACCOUNT_ISSUED", "FAILED"] {
        assert_eq!(status_of(state, json!({})), StatusOutcome::NotFound, "{state}");
    }
    assert!(matches!(status_of("paid", json!({})), StatusOutcome::Unknown { .. }));
}

#[test]
fn portone_error_never_decides() {
    let decode = |status: u16, body: &[u8]| portone(None).decode_status(&charge(), status, body);
    assert_eq!(decode(404, br#"{"type": "PAYMENT_NOT_FOUND"}"#), StatusOutcome::NotFound);
    for (status, body) in [
        (404, &b"<html></html>"[..]),
        (404, br#"{"type": "STORE_NOT_FOUND"}"#),
        (401, br#"{"type": "UNAUTHORIZED"}"#),
        (500, br#"{"type": "PAYMENT_NOT_FOUND"}"#),
        (200, br#"{"type": "PAYMENT_NOT_FOUND"}"#),
    ] {
        assert!(matches!(decode(status, body), StatusOutcome::Unknown { .. }), "{status}");
    }
}

#[test]
fn portone_cancel_confirmed_when_it_succeeded() {
    let decode = |status: u16, body: &str| decode_cancel(&(status, body.as_bytes().to_vec()));
    assert_eq!(decode(200, r#"{"cancellation": {"status": "SUCCEEDED"}}"#), CancelOutcome::Cancelled);
    assert_eq!(decode(404, r#"{"type": "PAYMENT_NOT_FOUND"}"#), CancelOutcome::NotFound);
    for (status, body) in [
        (200, r#"{"cancellation": {"status": "REQUESTED"}}"#),
        (200, r#"{"cancellation": {"status": "FAILED"}}"#),
        (200, "{}"),
        (409, r#"{"type": "PAYMENT_ALREADY_CANCELLED"}"#),
        (409, r#"{"type": "CANCELLABLE_AMOUNT_CONSISTENCY_BROKEN"}"#),
    ] {
        assert!(matches!(decode(status, body), CancelOutcome::Unknown { .. }), "{body}");
    }
}

#[test]
fn portone_payment_of_other_order_refused() {
    let of = |token| portone(None).transaction_of(Presented { token, prepared: None, merchant_order_id: "shop-7" });
    assert_eq!(of(Some("shop-7")), Ok(Some("shop-7".to_owned())));
    for token in [None, Some("shop-8"), Some("shop-7 "), Some("")] {
        assert_eq!(of(token), Err(InvalidToken), "{token:?}");
    }
}

#[test]
fn portone_message_refused_without_secret_or_signature() {
    let webhook = ProviderMessage { body: b"{}", header: &|_| None, now: Millis(0) };
    assert_eq!(portone(None).read_webhook(&webhook), Err(MessageRefused::NotOffered));
    let refused = portone(Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).read_webhook(&webhook);
    assert!(matches!(refused, Err(MessageRefused::Unverified(_))));
}
