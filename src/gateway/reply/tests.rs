//! Tests of decoding the replies of a gateway.

use proptest::prelude::*;

use super::*;
use crate::model::{OrderId, UserId};

const APPROVED: &[u8] = br#"{"approved": true, "transactionId": "tx-1"}"#;
const DECLINED: &[u8] = br#"{"approved": false, "reason": "limit"}"#;

fn charge() -> Charge {
    Charge {
        merchant_uid: "r-1".to_owned(),
        merchant_order_id: "shop-7".to_owned(),
        transaction: None,
        order_id: OrderId::new(7).unwrap(),
        user_id: UserId::new(3).unwrap(),
        amount: 5_000,
    }
}

fn decode_pay(status: u16, body: &[u8]) -> PayOutcome {
    super::decode_pay(&charge(), status, body)
}

fn decode_status(status: u16, body: &[u8]) -> StatusOutcome {
    super::decode_status(&charge(), status, body)
}

fn approved() -> PayOutcome {
    PayOutcome::Approved { transaction_id: "tx-1".to_owned() }
}

fn declined(reason: &str) -> PayOutcome {
    PayOutcome::Declined { reason: reason.to_owned() }
}

fn is_unknown(status: u16, body: impl AsRef<[u8]>) -> bool {
    matches!(decode_pay(status, body.as_ref()), PayOutcome::Unknown { .. })
}

#[test]
fn reply_of_contract_parsed() {
    assert_eq!(decode_pay(200, APPROVED), approved());
    assert_eq!(decode_pay(201, br#" {"transactionId":"tx-1","approved":true,"reason":null,"more":[{}]} "#), approved());
    assert_eq!(decode_pay(200, DECLINED), declined("limit"));
    assert_eq!(decode_pay(402, br#"{"approved":false}"#), declined(""));
    assert_eq!(decode_pay(402, br#"{"approved":false,"reason":null,"transactionId":"tx-1"}"#), declined(""));
    assert_eq!(decode_pay(402, br#"{"approved":false,"reason":{"code":51}}"#), declined(r#"{"code":51}"#));
}

/// An approval with this `transactionId`, as JSON.
fn with_id(id: &str) -> PayOutcome {
    decode_pay(200, format!(r#"{{"approved":true,"transactionId":{id}}}"#).as_bytes())
}

fn unacceptable(taken: Option<Won>, why: &str) -> PayOutcome {
    PayOutcome::Unacceptable { taken, why: why.to_owned() }
}

#[test]
fn reply_approved_when_transaction_id_number_or_string() {
    let long = "가".repeat(TRANSACTION_ID_CHARS);
    for (json, id) in [
        ("12345", "12345"),
        ("-1", "-1"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("1.50", "1.50"),
        (r#"" ""#, " "),
        (r#""a b é""#, "a b é"),
        (r#""a\n\u001f\u0000""#, "a\\u000a\\u001f\\u0000"),
        (&format!("{long:?}"), &long),
    ] {
        assert_eq!(with_id(json), PayOutcome::Approved { transaction_id: id.to_owned() }, "{json}");
    }
}

#[test]
fn approval_unacceptable_without_usable_transaction_id() {
    let long = format!("{:?}", "x".repeat(TRANSACTION_ID_CHARS + 1));
    let digits = "9".repeat(TRANSACTION_ID_CHARS + 1);
    for id in [r#""""#, "null", "true", r#"["tx"]"#, r#"{"id":"tx"}"#, r#""\ud800""#, &long, &digits] {
        assert_eq!(with_id(id), unacceptable(Some(5_000), "approved without a usable transactionId"), "{id}");
    }
    assert!(matches!(decode_pay(200, br#"{"approved":true}"#), PayOutcome::Unacceptable { .. }));
}

#[test]
fn approval_unacceptable_when_amount_differs() {
    let with_amount = |amount: &str| {
        decode_pay(200, format!(r#"{{"approved":true,"transactionId":"tx-1","amount":{amount}}}"#).as_bytes())
    };
    for amount in ["5000", "5000.0", "5e3", r#""5000""#, "null"] {
        assert_eq!(with_amount(amount), approved(), "{amount}");
    }
    let why = "approved with another amount";
    for (amount, taken) in [
        ("100", Some(100)),
        ("5001", Some(5_001)),
        (r#""100""#, Some(100)),
        ("0", None),
        ("-5000", None),
        ("5000.5", None),
        ("1e300", None),
        (r#""five""#, None),
        (r#"{"total":5000}"#, None),
    ] {
        assert_eq!(with_amount(amount), unacceptable(taken, why), "{amount}");
    }
}

#[test]
fn reply_unknown_when_about_other_payment() {
    for named in [r#""merchantUid":"r-2""#, r#""orderId":8"#, r#""orderId":"8""#, r#""merchantUid":"r-1","orderId":8"#]
    {
        assert!(is_unknown(200, format!(r#"{{"approved":true,"transactionId":"tx-1",{named}}}"#)), "{named}");
        assert!(is_unknown(200, format!(r#"{{"approved":false,{named}}}"#)), "{named}");
    }
    for named in [r#""merchantUid":"r-1""#, r#""orderId":7"#, r#""orderId":"7""#, r#""orderId":"their-own""#] {
        let body = format!(r#"{{"approved":true,"transactionId":"tx-1",{named}}}"#);
        assert_eq!(decode_pay(200, body.as_bytes()), approved(), "{named}");
    }
}

#[test]
fn reply_unknown_when_garbage() {
    for body in [
        "",
        "{",
        "null",
        "true",
        "approved",
        "<html>approved</html>",
        r#"[true, "tx-1"]"#,
        r#"[{"approved":true,"transactionId":"tx-1"}]"#,
        r#""{\"approved\":true}""#,
        r#"{"approved":"true","transactionId":"tx-1"}"#,
        r#"{"approved":1,"transactionId":"tx-1"}"#,
        r#"{"Approved":true,"transactionId":"tx-1"}"#,
        r#"{"approved":true,"approved":true,"transactionId":"tx-1"}"#,
        r#"{"approved":false,"approved":true,"transactionId":"tx-1"}"#,
        r#"{"approved":true,"transactionId":"tx-1"} {"approved":false}"#,
        "\u{feff}{\"approved\":true,\"transactionId\":\"tx-1\"}",
    ] {
        assert!(is_unknown(200, body), "{body}");
        assert!(is_unknown(402, body), "{body}");
    }
    assert!(is_unknown(200, b"{\"approved\":true,\"transactionId\":\"\xff\"}"));
    assert!(is_unknown(200, "[".repeat(60_000)));
    assert!(is_unknown(200, r#"{"a":"#.repeat(12_000)));
}

#[test]
fn reply_decided_by_matching_status_only() {
    for status in 0..=999 {
        assert_eq!(decode_pay(status, APPROVED) == approved(), (200..=299).contains(&status), "{status}");
        let refuses = [200, 201, 400, 402, 403, 422].contains(&status);
        assert_eq!(decode_pay(status, DECLINED) == declined("limit"), refuses, "{status}");
    }
    for status in [202, 301, 302, 401, 404, 405, 408, 409, 425, 429, 500, 502, 503, 504] {
        assert!(is_unknown(status, DECLINED), "{status}");
    }
}

#[test]
fn reason_bounded_and_printable() {
    let reply = r#"{"approved":false,"reason":" a\u001b[31m\r\n\u0000\u202eb한도 초과 "}"#;
    assert_eq!(decode_pay(200, reply.as_bytes()), declined("a[31mb한도 초과"));
    let reply = format!(r#"{{"approved":false,"reason":"{}"}}"#, "한".repeat(5_000));
    assert_eq!(decode_pay(200, reply.as_bytes()), declined(&"한".repeat(REASON_CHARS)));
}

#[test]
fn payment_not_found_only_when_gateway_says_so() {
    for body in [&b""[..], b" \r\n", b"{}", br#"{"error":"no such payment"}"#, br#"{"approved":false}"#] {
        assert_eq!(decode_status(404, body), StatusOutcome::NotFound);
        assert_eq!(decode_cancel(404, body), CancelOutcome::NotFound);
    }
    for body in [&b"<html>404</html>"[..], b"404 page not found", APPROVED, b"[]", b"{"] {
        assert!(matches!(decode_status(404, body), StatusOutcome::Unknown { .. }));
        assert!(matches!(decode_cancel(404, body), CancelOutcome::Unknown { .. }));
    }
    assert_eq!(
        decode_status(200, APPROVED),
        StatusOutcome::Approved { transaction_id: "tx-1".to_owned(), cancelled: None }
    );
    assert_eq!(decode_status(200, DECLINED), StatusOutcome::Declined { reason: "limit".to_owned() });
    for status in [204, 302, 401, 410, 429, 500, 503] {
        assert!(matches!(decode_status(status, b""), StatusOutcome::Unknown { .. }), "{status}");
    }
}

#[test]
fn cancelled_amount_read_only_within_payment() {
    let cancelled = |amount: &str| {
        let body = format!(r#"{{"approved":true,"transactionId":"tx-1","cancelledAmount":{amount}}}"#);
        match decode_status(200, body.as_bytes()) {
            StatusOutcome::Approved { cancelled, .. } => cancelled,
            other => panic!("{other:?}"),
        }
    };
    for (amount, expected) in [
        ("0", Some(0)),
        ("2000", Some(2_000)),
        ("2000.0", Some(2_000)),
        (r#""2000""#, Some(2_000)),
        ("5000", Some(5_000)),
        ("5001", None),
        ("-1", None),
        ("0.5", None),
        ("null", None),
        (r#"{"won":1}"#, None),
    ] {
        assert_eq!(cancelled(amount), expected, "{amount}");
    }
}

#[test]
fn payment_refunded_only_when_gateway_says_so() {
    for (status, body) in [(200, &b""[..]), (204, b""), (200, b"{}"), (200, br#"{"cancelled":true}"#)] {
        assert_eq!(decode_cancel(status, body), CancelOutcome::Cancelled);
    }
    for (status, body) in [
        (200, &b"<html>"[..]),
        (200, b"OK"),
        (200, br#"{"cancelled":false}"#),
        (200, br#"{"success":false}"#),
        (200, br#"{"error":{"code":"ALREADY_CANCELLED"}}"#),
        (200, br#"{"errorCode":"NO_SUCH_PAYMENT"}"#),
        (302, b""),
        (401, br#"{"error":"who are you"}"#),
        (409, br#"{"error":"already cancelled"}"#),
        (410, b"{}"),
        (429, b""),
        (500, b"{}"),
    ] {
        assert!(matches!(decode_cancel(status, body), CancelOutcome::Unknown { .. }), "{status}");
    }
    assert_eq!(decode_cancel(200, br#"{"error":null,"cancelled":true}"#), CancelOutcome::Cancelled);
}

/// Random bytes, and bytes that resemble a reply.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("null".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        "\"[!-~]{0,300}\"",
        Just("5000".to_owned()),
        Just("\"r-1\"".to_owned()),
    ];
    let names = vec!["approved", "transactionId", "reason", "amount", "merchantUid", "orderId", "other"];
    let name = proptest::sample::select(names);
    let fields = proptest::collection::vec((name, value), 0..5).prop_map(|fields| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), fields]
}

proptest! {
    #[test]
    fn reply_of_random_bytes_never_approves_without_transaction_id(
        status in prop_oneof![any::<u16>(), Just(200), Just(402), Just(404)],
        body in bodies(),
    ) {
        let json = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        match decode_pay(status, &body) {
            PayOutcome::Approved { transaction_id } => {
                prop_assert!((200..=299).contains(&status));
                prop_assert_eq!(&json["approved"], true);
                let id = &json["transactionId"];
                prop_assert!(id.is_number() || id.is_string());
                prop_assert!(!transaction_id.is_empty() && !transaction_id.contains(char::is_control));
                let amount = &json["amount"];
                prop_assert!(amount.is_null() || amount.as_f64() == Some(5_000.0) || amount == "5000");
            }
            PayOutcome::Unacceptable { taken, .. } => {
                prop_assert!((200..=299).contains(&status));
                prop_assert_eq!(&json["approved"], true);
                prop_assert!(taken.is_none_or(|won| won > 0));
            }
            PayOutcome::Declined { reason } => {
                prop_assert_eq!(&json["approved"], false);
                prop_assert!(reason.chars().count() <= REASON_CHARS && !reason.contains(char::is_control));
            }
            PayOutcome::Unknown { why } => prop_assert!(!why.is_empty()),
        }
        if decode_status(status, &body) == StatusOutcome::NotFound {
            prop_assert_eq!(status, 404);
        }
        if decode_cancel(status, &body) == CancelOutcome::Cancelled {
            prop_assert!((200..=299).contains(&status));
        }
    }
}
