//! Tests of decoding the replies of KakaoPay.

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
        transaction: Some("T1".to_owned()),
    }
}

fn payment(changes: Value) -> Vec<u8> {
    let mut payment =
        json!({"tid": "T1", "cid": "TC0ONETIME", "partner_order_id": "shop-7", "amount": {"total": 5_000}});
    payment.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    payment.to_string().into_bytes()
}

fn status_of(changes: Value) -> StatusOutcome {
    decode_status(&charge(), 200, &payment(changes))
}

#[test]
fn kakaopay_payment_judged_by_state_and_amount() {
    let approved = |cancelled| StatusOutcome::Approved { transaction_id: "T1".to_owned(), cancelled };
    let paid = json!({"status": "SUCCESS_PAYMENT", "canceled_amount": {"total": 0}});
    assert_eq!(status_of(paid), approved(Some(0)));
    let part = json!({"status": "PART_CANCEL_PAYMENT", "canceled_amount": {"total": 2_000}});
    assert_eq!(status_of(part), approved(Some(2_000)));
    assert_eq!(status_of(json!({"status": "SUCCESS_PAYMENT"})), approved(None));
    for amount in [json!({"total": 100}), json!({}), json!(null)] {
        let other = json!({"status": "SUCCESS_PAYMENT", "amount": amount});
        assert!(matches!(status_of(other), StatusOutcome::Unacceptable { .. }), "{amount}");
    }
    for state in WITHOUT_MONEY {
        assert_eq!(status_of(json!({"status": state})), StatusOutcome::Declined { reason: (*state).to_owned() });
    }
    for state in BEFORE_APPROVAL {
        assert_eq!(status_of(json!({"status": state})), StatusOutcome::NotFound);
    }
    for unclear in [json!({}), json!({"status": "PAID"}), json!({"status": 1})] {
        assert!(matches!(status_of(unclear.clone()), StatusOutcome::Unknown { .. }), "{unclear}");
    }
}

#[test]
fn kakaopay_reply_about_other_payment_unknown() {
    for other in [json!({"tid": "T2"}), json!({"partner_order_id": "shop-8"})] {
        let approval = decode_approval(&charge(), 200, &payment(other.clone()));
        assert!(matches!(approval, StatusOutcome::Unknown { .. }), "{other}");
        let mut paid = other.clone();
        paid["status"] = "SUCCESS_PAYMENT".into();
        assert!(matches!(status_of(paid), StatusOutcome::Unknown { .. }), "{other}");
    }
    assert!(matches!(decode_approval(&charge(), 200, &payment(json!({}))), StatusOutcome::Approved { .. }));
    let error = br#"{"error_code": -721, "error_message": "no such tid"}"#;
    assert_eq!(decode_status(&charge(), 404, error), StatusOutcome::NotFound);
    assert!(matches!(decode_status(&charge(), 400, error), StatusOutcome::Unknown { .. }));
    assert!(matches!(decode_status(&charge(), 404, b"<html></html>"), StatusOutcome::Unknown { .. }));
}

#[test]
fn kakaopay_page_left_by_its_customer_told_by_state() {
    let decode = |changes: Value| decode_progress(&charge(), 200, &payment(changes));
    for state in ["READY", "SEND_TMS", "OPEN_PAYMENT", "QUIT_PAYMENT", "SUCCESS_PAYMENT"] {
        assert_eq!(decode(json!({"status": state})), Ok(None), "{state}");
    }
    let (selected, authenticated) =
        (decode(json!({"status": "SELECT_METHOD"})), decode(json!({"status": "AUTH_PASSWORD"})));
    assert!(selected.as_ref().unwrap().is_some() && authenticated > selected);
    for other in [json!({}), json!({"status": "READY", "tid": "T2"}), json!({"status": 1})] {
        assert!(decode(other.clone()).is_err(), "{other}");
    }
    let error = br#"{"error_code": -721, "error_message": "no such tid"}"#;
    assert_eq!(decode_progress(&charge(), 400, error), Ok(None));
    for (status, body) in [(400, &b"<html></html>"[..]), (401, error), (500, error)] {
        assert!(decode_progress(&charge(), status, body).is_err(), "{status}");
    }
}

#[test]
fn kakaopay_cancel_confirmed_by_its_amount() {
    let decode = |changes: Value| decode_cancel(&charge(), 2_000, 200, &payment(changes));
    let cancelled = |won: i64| json!({"status": "PART_CANCEL_PAYMENT", "approved_cancel_amount": {"total": won}});
    assert_eq!(decode(cancelled(2_000)), CancelOutcome::Cancelled);
    assert!(matches!(decode(cancelled(1_000)), CancelOutcome::Unknown { .. }));
    assert!(matches!(decode(json!({"status": "SUCCESS_PAYMENT"})), CancelOutcome::Unknown { .. }));
}

#[test]
fn kakaopay_preparation_needs_tid_and_page() {
    let ready = br#"{"tid": "T1", "next_redirect_pc_url": "https://pc", "next_redirect_mobile_url": "https://m"}"#;
    let PrepareOutcome::Prepared(prepared) = decode_ready(200, ready) else { panic!("not prepared") };
    assert_eq!(prepared.transaction.as_deref(), Some("T1"));
    assert_eq!(prepared.redirect.unwrap().pc, "https://pc");
    for body in [&br#"{"tid": "", "next_redirect_pc_url": "https://pc"}"#[..], br#"{"tid": "T1"}"#, b"<html></html>"] {
        assert!(matches!(decode_ready(200, body), PrepareOutcome::Unknown { .. }));
    }
    let error = br#"{"error_code": -705, "error_message": "invalid url"}"#;
    assert!(matches!(decode_ready(400, error), PrepareOutcome::Refused { .. }));
    assert!(matches!(decode_ready(500, error), PrepareOutcome::Unknown { .. }));
}

#[test]
fn return_url_keeps_its_query_and_fragment() {
    assert_eq!(return_url("https://a/b", "FAILED"), "https://a/b?paymentResult=FAILED");
    assert_eq!(return_url("https://a/b?c=d#e", "FAILED"), "https://a/b?c=d&paymentResult=FAILED#e");
}

#[test]
fn kakaopay_payment_refused_without_token_or_preparation() {
    let config = KakaoPayConfig {
        url: "http://127.0.0.1:9".into(),
        timeout: Duration::from_secs(1),
        secret_key: "DEV".into(),
        cid: "TC0ONETIME".into(),
    };
    let kakaopay = KakaoPay::new(PaymentType::KakaoPay, &config).unwrap();
    let of = |token, prepared| kakaopay.transaction_of(Presented { token, prepared, merchant_order_id: "shop-7" });
    assert_eq!(of(Some("pg"), Some("T1")), Ok(Some("T1".to_owned())));
    for (token, prepared) in [(None, Some("T1")), (Some("pg"), None), (Some("p g"), Some("T1")), (Some(""), Some("T1"))]
    {
        assert_eq!(of(token, prepared), Err(InvalidToken), "{token:?} {prepared:?}");
    }
    for cid in ["", "TC0ONETIME0", "TC 1"] {
        let refused = KakaoPay::new(PaymentType::KakaoPay, &KakaoPayConfig { cid: cid.into(), ..config.clone() });
        assert!(refused.err().unwrap().to_string().contains("KAKAOPAY_CID"), "{cid}");
    }
}
