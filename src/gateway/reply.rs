//! What a gateway's reply means: pure functions from a status and a body to an outcome.
//!
//! The gateway is not trusted to make sense. Money hangs on these lines, and a wrong guess costs more than asking
//! again, so each definite outcome must be said in so many words and everything else is unknown:
//!
//! | outcome | said by |
//! | --- | --- |
//! | approved | 2xx with `approved: true` and a usable `transactionId` |
//! | declined | 200, 201, 400, 402, 403 or 422 with `approved: false` |
//! | not found | 404 with an empty body or a JSON object that does not claim `approved: true` |
//! | cancelled | 2xx with an empty body or a JSON object |
//!
//! The other statuses never decline, whatever the body: 202 is not a decision yet, and 401, 404, 408, 409, 425 and 429
//! are about this request (who sent it, where to, when, how often), while an earlier one with the same uid may have
//! been approved. An HTML page, as web servers and proxies serve one in a gateway's place, says nothing of the payment.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{CancelOutcome, PayOutcome, StatusOutcome};

/// The most characters of a `transactionId`; a longer one is not understood.
pub const TRANSACTION_ID_CHARS: usize = 128;

/// The most characters kept of a gateway's `reason`.
pub const REASON_CHARS: usize = 200;

/// The reply to `POST {url}/payments`.
pub fn decode_pay(status: u16, body: &[u8]) -> PayOutcome {
    match decide(status, body) {
        Ok(Decision::Approved { transaction_id }) => PayOutcome::Approved { transaction_id },
        Ok(Decision::Declined { reason }) => PayOutcome::Declined { reason },
        Err(why) => PayOutcome::Unknown { why },
    }
}

/// The reply to `GET {url}/payments/{merchantUid}`.
pub fn decode_status(status: u16, body: &[u8]) -> StatusOutcome {
    if is_not_found(status, body) {
        return StatusOutcome::NotFound;
    }
    match decide(status, body) {
        Ok(Decision::Approved { transaction_id }) => StatusOutcome::Approved { transaction_id },
        Ok(Decision::Declined { reason }) => StatusOutcome::Declined { reason },
        Err(why) => StatusOutcome::Unknown { why },
    }
}

/// The reply to `POST {url}/payments/{merchantUid}/cancel`.
pub fn decode_cancel(status: u16, body: &[u8]) -> CancelOutcome {
    match status {
        200..=299 if is_own_word(body) => CancelOutcome::Cancelled,
        200..=299 => CancelOutcome::Unknown { why: not_understood(status) },
        _ if is_not_found(status, body) => CancelOutcome::NotFound,
        _ => CancelOutcome::Unknown { why: undecided(status) },
    }
}

enum Decision {
    Approved { transaction_id: String },
    Declined { reason: String },
}

/// The body of the contract. Fields that we don't know are let pass; a known field of another type, or given twice,
/// spoils the whole.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    approved: bool,
    transaction_id: Option<String>,
    reason: Option<String>,
}

fn decide(status: u16, body: &[u8]) -> Result<Decision, String> {
    let may_approve = (200..=299).contains(&status);
    let may_decline = matches!(status, 200 | 201 | 400 | 402 | 403 | 422);
    if !may_approve && !may_decline {
        return Err(undecided(status));
    }
    match object::<Body>(body) {
        Some(Body { approved: true, transaction_id, .. }) if may_approve => {
            let transaction_id = transaction_id.filter(|id| is_transaction_id(id));
            let transaction_id = transaction_id.ok_or("approved without a usable transactionId")?;
            Ok(Decision::Approved { transaction_id })
        }
        Some(Body { approved: false, reason, .. }) if may_decline => {
            Ok(Decision::Declined { reason: plain(&reason.unwrap_or_default()) })
        }
        _ => Err(not_understood(status)),
    }
}

fn is_not_found(status: u16, body: &[u8]) -> bool {
    status == 404 && is_own_word(body) && !object::<Body>(body).is_some_and(|body| body.approved)
}

/// Whether the body can be the gateway's own, where the contract prescribes none.
fn is_own_word(body: &[u8]) -> bool {
    body.trim_ascii().is_empty() || object::<IgnoredAny>(body).is_some()
}

/// A JSON object; serde alone would read a struct from an array as well.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    serde_json::from_slice(body).ok()
}

fn is_transaction_id(id: &str) -> bool {
    (1..=TRANSACTION_ID_CHARS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// At most [`REASON_CHARS`] characters of `text`, without those that break lines, steer terminals or reorder text.
pub(super) fn plain(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.trim().chars().filter(|c| !steers(*c)).take(REASON_CHARS).collect()
}

fn undecided(status: u16) -> String {
    format!("HTTP {status} decides nothing")
}

fn not_understood(status: u16) -> String {
    format!("HTTP {status} with a body that was not understood")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const APPROVED: &[u8] = br#"{"approved": true, "transactionId": "tx-1"}"#;
    const DECLINED: &[u8] = br#"{"approved": false, "reason": "limit"}"#;

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
    fn the_contracts_replies_are_read() {
        assert_eq!(decode_pay(200, APPROVED), approved());
        assert_eq!(
            decode_pay(201, br#" {"transactionId":"tx-1","approved":true,"reason":null,"more":[{}]} "#),
            approved()
        );
        assert_eq!(decode_pay(200, DECLINED), declined("limit"));
        assert_eq!(decode_pay(402, br#"{"approved":false}"#), declined(""));
        assert_eq!(decode_pay(402, br#"{"approved":false,"reason":null,"transactionId":"tx-1"}"#), declined(""));
    }

    #[test]
    fn approval_needs_a_usable_transaction_id() {
        for id in [r#""""#, "null", "7", r#"" ""#, r#""a b""#, r#""a\n""#, r#""é""#, r#"["tx"]"#] {
            assert!(is_unknown(200, format!(r#"{{"approved":true,"transactionId":{id}}}"#)), "{id}");
        }
        assert!(is_unknown(200, r#"{"approved":true}"#));
        let of_length = |n: usize| format!(r#"{{"approved":true,"transactionId":"{}"}}"#, "x".repeat(n));
        assert!(is_unknown(200, of_length(TRANSACTION_ID_CHARS + 1)));
        assert!(!is_unknown(200, of_length(TRANSACTION_ID_CHARS)));
    }

    #[test]
    fn garbage_is_unknown() {
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
            r#"{"approved":false,"reason":5}"#,
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
    fn only_a_success_approves_and_only_a_decision_declines() {
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
    fn reasons_are_bounded_and_harmless() {
        let reply = r#"{"approved":false,"reason":" a\u001b[31m\r\n\u0000\u202eb한도 초과 "}"#;
        assert_eq!(decode_pay(200, reply.as_bytes()), declined("a[31mb한도 초과"));
        let reply = format!(r#"{{"approved":false,"reason":"{}"}}"#, "한".repeat(5_000));
        assert_eq!(decode_pay(200, reply.as_bytes()), declined(&"한".repeat(REASON_CHARS)));
    }

    #[test]
    fn a_payment_is_not_found_only_where_the_gateway_says_so() {
        for body in [&b""[..], b" \r\n", b"{}", br#"{"error":"no such payment"}"#, br#"{"approved":false}"#] {
            assert_eq!(decode_status(404, body), StatusOutcome::NotFound);
            assert_eq!(decode_cancel(404, body), CancelOutcome::NotFound);
        }
        for body in [&b"<html>404</html>"[..], b"404 page not found", APPROVED, b"[]", b"{"] {
            assert!(matches!(decode_status(404, body), StatusOutcome::Unknown { .. }));
            assert!(matches!(decode_cancel(404, body), CancelOutcome::Unknown { .. }));
        }
        assert_eq!(decode_status(200, APPROVED), StatusOutcome::Approved { transaction_id: "tx-1".to_owned() });
        assert_eq!(decode_status(200, DECLINED), StatusOutcome::Declined { reason: "limit".to_owned() });
        for status in [204, 302, 401, 410, 429, 500, 503] {
            assert!(matches!(decode_status(status, b""), StatusOutcome::Unknown { .. }), "{status}");
        }
    }

    #[test]
    fn money_is_given_back_only_where_the_gateway_says_so() {
        for (status, body) in [(200, &b""[..]), (204, b""), (200, b"{}"), (200, br#"{"cancelled":true}"#)] {
            assert_eq!(decode_cancel(status, body), CancelOutcome::Cancelled);
        }
        for (status, body) in [(200, &b"<html>"[..]), (200, b"OK"), (302, b""), (409, b"{}"), (429, b""), (500, b"{}")]
        {
            assert!(matches!(decode_cancel(status, body), CancelOutcome::Unknown { .. }), "{status}");
        }
    }

    /// Bytes of any kind, and bytes that nearly are a reply.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let value = prop_oneof![
            Just("true".to_owned()),
            Just("false".to_owned()),
            Just("null".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
            "\"[!-~]{0,140}\"",
        ];
        let name = prop_oneof![Just("approved"), Just("transactionId"), Just("reason"), Just("other")];
        let fields = proptest::collection::vec((name, value), 0..5).prop_map(|fields| {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", fields.join(",")).into_bytes()
        });
        prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), fields]
    }

    proptest! {
        #[test]
        fn no_reply_panics_or_approves_without_a_transaction_id(
            status in prop_oneof![any::<u16>(), Just(200), Just(402), Just(404)],
            body in bodies(),
        ) {
            let json = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
            match decode_pay(status, &body) {
                PayOutcome::Approved { transaction_id } => {
                    prop_assert!((200..=299).contains(&status));
                    prop_assert_eq!(&json["approved"], true);
                    prop_assert_eq!(&json["transactionId"], transaction_id.as_str());
                    prop_assert!(is_transaction_id(&transaction_id));
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
}
