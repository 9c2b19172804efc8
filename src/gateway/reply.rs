//! Decodes the replies of a gateway: pure functions from a status and a body to an outcome.
//!
//! A reply may be malformed. A wrong decision about money costs more than another query, so a definite outcome needs an
//! explicit reply, and every other reply is unknown:
//!
//! | outcome | reply |
//! | --- | --- |
//! | approved | 2xx with `approved: true`, a usable `transactionId`, and the requested `amount` or none |
//! | unacceptable | 2xx with `approved: true`, and another `amount` or no usable `transactionId` |
//! | declined | 200, 201, 400, 402, 403 or 422 with `approved: false` |
//! | not found | 404 with an empty body or a JSON object that does not claim `approved: true` |
//! | cancelled | 2xx with an empty body or a JSON object that names no failure |
//!
//! The other statuses never decline, whatever the body. 202 is no decision yet. 401, 404, 408, 409, 425 and 429 concern
//! this request only (its sender, target, time, rate), while the gateway may have approved an earlier one with the same
//! uid. An HTML page of a web server or a proxy says nothing about the payment. Neither does a reply that names another
//! `merchantUid` or `orderId`.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{CancelOutcome, Charge, PayOutcome, StatusOutcome};
use crate::model::Won;

/// The maximum length of a `transactionId`. An approval with a longer one is unacceptable.
pub const TRANSACTION_ID_CHARS: usize = 255;

/// The length to which a gateway's `reason` is truncated.
pub const REASON_CHARS: usize = 200;

/// Decodes the reply to `POST {url}/payments` for `charge`.
pub fn decode_pay(charge: &Charge, status: u16, body: &[u8]) -> PayOutcome {
    match decide(charge, status, body) {
        Ok(Decision::Approved { transaction_id, .. }) => PayOutcome::Approved { transaction_id },
        Ok(Decision::Unacceptable { taken, why }) => PayOutcome::Unacceptable { taken, why },
        Ok(Decision::Declined { reason }) => PayOutcome::Declined { reason },
        Err(why) => PayOutcome::Unknown { why },
    }
}

/// Decodes the reply to `GET {url}/payments/{merchantUid}` for `charge`.
pub fn decode_status(charge: &Charge, status: u16, body: &[u8]) -> StatusOutcome {
    if is_not_found(status, body) {
        return StatusOutcome::NotFound;
    }
    match decide(charge, status, body) {
        Ok(Decision::Approved { transaction_id, cancelled }) => StatusOutcome::Approved { transaction_id, cancelled },
        Ok(Decision::Unacceptable { taken, why }) => StatusOutcome::Unacceptable { taken, why },
        Ok(Decision::Declined { reason }) => StatusOutcome::Declined { reason },
        Err(why) => StatusOutcome::Unknown { why },
    }
}

/// Decodes the reply to `POST {url}/payments/{merchantUid}/cancel`.
pub fn decode_cancel(status: u16, body: &[u8]) -> CancelOutcome {
    match status {
        200..=299 if names_failure(body) => CancelOutcome::Unknown { why: format!("HTTP {status} with a failure") },
        200..=299 if is_from_gateway(body) => CancelOutcome::Cancelled,
        200..=299 => CancelOutcome::Unknown { why: invalid_body(status) },
        _ if is_not_found(status, body) => CancelOutcome::NotFound,
        _ => CancelOutcome::Unknown { why: undecided(status) },
    }
}

enum Decision {
    Approved { transaction_id: String, cancelled: Option<Won> },
    Unacceptable { taken: Option<Won>, why: String },
    Declined { reason: String },
}

/// The body of the contract. Unknown fields are ignored. The body is invalid if `approved` has another type, or if a known
/// field occurs twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReplyBody<'a> {
    approved: bool,
    #[serde(borrow)]
    transaction_id: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
    #[serde(borrow)]
    cancelled_amount: Option<&'a RawValue>,
    #[serde(borrow)]
    merchant_uid: Option<&'a RawValue>,
    #[serde(borrow)]
    order_id: Option<&'a RawValue>,
}

impl ReplyBody<'_> {
    /// Whether the reply names a payment other than `charge`. An `orderId` that is no number is the gateway's own id.
    fn names_another(&self, charge: &Charge) -> bool {
        let uid = self.merchant_uid.and_then(text).is_some_and(|uid| uid != charge.merchant_uid);
        uid || self.order_id.and_then(integer).is_some_and(|order| order != charge.order_id.get())
    }
}

fn decide(charge: &Charge, status: u16, body: &[u8]) -> Result<Decision, String> {
    let may_approve = (200..=299).contains(&status);
    let may_decline = matches!(status, 200 | 201 | 400 | 402 | 403 | 422);
    if !may_approve && !may_decline {
        return Err(undecided(status));
    }
    let body = object::<ReplyBody<'_>>(body).ok_or_else(|| invalid_body(status))?;
    if body.names_another(charge) {
        return Err(format!("HTTP {status} about another payment"));
    }
    match body {
        ReplyBody { approved: true, transaction_id, amount, cancelled_amount, .. } if may_approve => {
            let named = amount.and_then(integer);
            let refuse = |why: &str| {
                let taken = if amount.is_some() { named.filter(|won| *won > 0) } else { Some(charge.amount) };
                Ok(Decision::Unacceptable { taken, why: why.to_owned() })
            };
            if amount.is_some() && named != Some(charge.amount) {
                return refuse("approved with another amount");
            }
            match transaction_id.and_then(usable_id) {
                Some(transaction_id) => {
                    let cancelled = cancelled_amount.and_then(integer).filter(|won| (0..=charge.amount).contains(won));
                    Ok(Decision::Approved { transaction_id, cancelled })
                }
                None => refuse("approved without a usable transactionId"),
            }
        }
        ReplyBody { approved: false, reason, .. } if may_decline => {
            let reason = reason.map(|reason| text(reason).unwrap_or_else(|| reason.get().to_owned()));
            Ok(Decision::Declined { reason: plain(&reason.unwrap_or_default()) })
        }
        _ => Err(invalid_body(status)),
    }
}

/// The text of a JSON string.
pub(super) fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// An integer, written as `5000`, `5000.0` or `"5000"`.
pub(super) fn integer(value: &RawValue) -> Option<i64> {
    if let Some(text) = text(value) {
        return text.parse().ok();
    }
    let number: serde_json::Number = serde_json::from_str(value.get()).ok()?;
    let integral = |n: f64| (n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_991.0).then_some(n as i64);
    number.as_i64().or_else(|| number.as_f64().and_then(integral))
}

/// A transaction id of 1 to [`TRANSACTION_ID_CHARS`] characters: a JSON string, or a number as it is written. Control
/// characters are escaped (`\u001f`), because they separate the parts of an event.
fn usable_id(value: &RawValue) -> Option<String> {
    let is_number = value.get().starts_with(|c: char| c.is_ascii_digit() || c == '-');
    usable_text(&if is_number { value.get().to_owned() } else { text(value)? })
}

/// The same, of a text.
pub(super) fn usable_text(id: &str) -> Option<String> {
    if !(1..=TRANSACTION_ID_CHARS).contains(&id.chars().count()) {
        return None;
    }
    let mut kept = String::with_capacity(id.len());
    for c in id.chars() {
        match c {
            c if c.is_control() => kept.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => kept.push(c),
        }
    }
    Some(kept)
}

/// An approved payment of a provider that always names the amount.
pub(super) fn paid(charge: &Charge, taken: Option<Won>, transaction: &str, cancelled: Option<Won>) -> StatusOutcome {
    let refuse = |why: &str| StatusOutcome::Unacceptable { taken: taken.filter(|won| *won > 0), why: why.to_owned() };
    if taken != Some(charge.amount) {
        return refuse("approved with another amount");
    }
    match usable_text(transaction) {
        Some(transaction_id) => {
            let cancelled = cancelled.filter(|won| (0..=charge.amount).contains(won));
            StatusOutcome::Approved { transaction_id, cancelled }
        }
        None => refuse("approved without a usable id"),
    }
}

fn is_not_found(status: u16, body: &[u8]) -> bool {
    status == 404 && is_from_gateway(body) && !object::<ReplyBody<'_>>(body).is_some_and(|body| body.approved)
}

/// Whether the gateway itself can have sent the body: the contract prescribes none for this reply, and a proxy sends HTML.
fn is_from_gateway(body: &[u8]) -> bool {
    body.trim_ascii().is_empty() || object::<IgnoredAny>(body).is_some()
}

/// Whether the reply to a refund request names a failure. The contract prescribes no body, and some gateways report errors
/// with status 200.
fn names_failure(body: &[u8]) -> bool {
    let Some(fields) = object::<serde_json::Map<String, serde_json::Value>>(body) else { return false };
    let is_false = |name: &str| fields.get(name).is_some_and(|value| value == false);
    let is_there = |name: &str| fields.get(name).is_some_and(|value| !value.is_null() && value != false);
    ["cancelled", "canceled", "success", "approved"].into_iter().any(is_false)
        || ["error", "errorCode"].into_iter().any(is_there)
}

/// Parses a JSON object. serde alone would also read a struct from an array.
pub(super) fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// At most [`REASON_CHARS`] characters of `text`, without those that break lines, control terminals or reorder text.
pub(super) fn plain(text: &str) -> String {
    let unsafe_to_log = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.trim().chars().filter(|c| !unsafe_to_log(*c)).take(REASON_CHARS).collect()
}

pub(super) fn undecided(status: u16) -> String {
    format!("HTTP {status} is no decision")
}

pub(super) fn invalid_body(status: u16) -> String {
    format!("HTTP {status} with an invalid body")
}

#[cfg(test)]
mod tests;
