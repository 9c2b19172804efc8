//! Toss Payments: the core API, version 2022-11-16 (`POST /v1/payments/confirm`, `GET /v1/payments/{paymentKey}`,
//! `POST /v1/payments/{paymentKey}/cancel`).
//!
//! The customer authorises the payment in Toss's window, which names it with a `paymentKey`; the money is taken when the service
//! confirms it. A key of another order is no payment of this one. Toss does not sign its messages about payments.
//!
//! | outcome | reply |
//! | --- | --- |
//! | approved | a payment of this order, `DONE` or `PARTIAL_CANCELED`, of the requested amount |
//! | unacceptable | the same with another amount, or `WAITING_FOR_DEPOSIT`: a virtual account, which is not supported |
//! | declined | a payment of this order, `CANCELED`, `ABORTED` or `EXPIRED`; a refusal of the customer's card or account |
//! | not found | `NOT_FOUND_PAYMENT`; a payment of this order that is not confirmed; a payment of another order |
//!
//! A key that Toss does not accept says nothing of the payment: Toss is asked by the order's name.

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{FutureExt, future::BoxFuture};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    CancelOutcome, Charge, GatewayConfigError, InvalidToken, PartToCancel, PayOutcome, PaymentGateway, Presented,
    Provider, StatusOutcome,
    client::{HttpReply, ProviderClient, authorization},
    log, reply,
    webhook::{MessageRefused, ProviderMessage},
};
use crate::model::{PaymentType, Won};

/// The maximum length of a `paymentKey`.
const MAX_KEY_LEN: usize = 200;

/// The errors of a confirmation that say that this payment is not made, whoever asks again.
const REFUSALS: &[&str] = &[
    "BELOW_MINIMUM_AMOUNT",
    "EXCEED_MAX_AMOUNT",
    "EXCEED_MAX_CARD_INSTALLMENT_PLAN",
    "EXCEED_MAX_DAILY_PAYMENT_COUNT",
    "EXCEED_MAX_MONTHLY_PAYMENT_AMOUNT",
    "EXCEED_MAX_ONE_DAY_AMOUNT",
    "EXCEED_MAX_ONE_DAY_WITHDRAW_AMOUNT",
    "EXCEED_MAX_ONE_TIME_WITHDRAW_AMOUNT",
    "EXCEED_MAX_PAYMENT_AMOUNT",
    "FDS_ERROR",
    "INVALID_ACCOUNT_INFO_RE_REGISTER",
    "INVALID_CARD_EXPIRATION",
    "INVALID_CARD_INSTALLMENT_PLAN",
    "INVALID_CARD_LOST_OR_STOLEN",
    "INVALID_CARD_NUMBER",
    "INVALID_PASSWORD",
    "INVALID_REJECT_CARD",
    "INVALID_STOPPED_CARD",
    "NOT_ALLOWED_POINT_USE",
    "NOT_AVAILABLE_PAYMENT",
    "NOT_FOUND_PAYMENT_SESSION",
    "NOT_SUPPORTED_INSTALLMENT_PLAN_CARD_OR_MERCHANT",
    "NOT_SUPPORTED_MONTHLY_INSTALLMENT_PLAN",
    "REJECT_ACCOUNT_PAYMENT",
    "REJECT_CARD_COMPANY",
    "REJECT_CARD_PAYMENT",
    "REJECT_TOSSPAY_INVALID_ACCOUNT",
    "RESTRICTED_TRANSFER_ACCOUNT",
];

/// The configuration of Toss Payments.
#[derive(Clone)]
pub struct TossConfig {
    /// The base URL of the API.
    pub url: String,
    /// The time limit of one call.
    pub timeout: Duration,
    /// The secret key; never printed.
    pub secret_key: String,
}

impl fmt::Debug for TossConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TossConfig").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// A client of Toss Payments. See [`PaymentGateway`].
pub struct Toss {
    client: ProviderClient,
}

/// A payment. The fields that are not named here are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TossPayment<'a> {
    payment_key: String,
    order_id: String,
    status: String,
    #[serde(borrow)]
    total_amount: &'a RawValue,
    #[serde(borrow)]
    balance_amount: Option<&'a RawValue>,
    currency: Option<String>,
}

#[derive(Deserialize)]
struct TossError {
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TossMessage {
    data: Option<TossMessageData>,
    // `DEPOSIT_CALLBACK` has the order beside the type.
    order_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TossMessageData {
    order_id: Option<String>,
}

impl Toss {
    /// A client for payments of `kind`. Opens no connection yet.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn new(kind: PaymentType, config: &TossConfig) -> Result<Toss, GatewayConfigError> {
        let invalid = GatewayConfigError::Secret(kind, "TOSS_SECRET_KEY", "visible ASCII characters without spaces");
        if authorization("Basic", &config.secret_key).is_none() {
            return Err(invalid);
        }
        // The key is the user, and there is no password.
        let basic = authorization("Basic", &STANDARD.encode(format!("{}:", config.secret_key)));
        Ok(Toss { client: ProviderClient::new(kind, &config.url, config.timeout, basic)? })
    }

    /// Asks about the payment by its key. Where the key is not known, or Toss finds fault with it, by the order's name: the
    /// customer chose the key, and a wrong one must not leave the outcome unknown.
    async fn query(&self, request_id: &str, charge: &Charge) -> StatusOutcome {
        let by_key = charge.transaction.as_deref().map(|key| self.client.url(&["v1", "payments", key]));
        if let Some(Ok(url)) = by_key {
            let route = ("GET", "/v1/payments/{paymentKey}");
            match self.client.call(request_id, route, self.client.get(url)).await {
                Ok(reply) if is_fault_of_request(&reply) => {}
                reply => return decode_query(charge, reply),
            }
        }
        let reply = match self.client.url(&["v1", "payments", "orders", &charge.merchant_order_id]) {
            Ok(url) => {
                self.client.call(request_id, ("GET", "/v1/payments/orders/{orderId}"), self.client.get(url)).await
            }
            Err(why) => Err(why),
        };
        decode_query(charge, reply)
    }

    /// Sends a `POST /v1/payments/{paymentKey}/cancel`; without an amount, of all that is left.
    async fn send_cancel(
        &self,
        request_id: &str,
        charge: &Charge,
        (amount, part): (Won, Option<Won>),
        reason: &str,
        key: Option<String>,
    ) -> CancelOutcome {
        let reply = match self.client.url(&["v1", "payments", key_of(charge), "cancel"]) {
            Ok(url) => {
                let mut body = json!({ "cancelReason": reason });
                if let Some(part) = part {
                    body["cancelAmount"] = part.into();
                }
                let request = self.client.post(url, &body, key.as_deref());
                self.client.call(request_id, ("POST", "/v1/payments/{paymentKey}/cancel"), request).await
            }
            Err(why) => Err(why),
        };
        let outcome = reply.map_or_else(|why| CancelOutcome::Unknown { why }, |reply| decode_cancel(charge, &reply));
        log::cancel(&self.client, request_id, charge, amount, outcome)
    }
}

fn key_of(charge: &Charge) -> &str {
    charge.transaction.as_deref().unwrap_or_default()
}

impl PaymentGateway for Toss {
    fn provider(&self) -> Provider {
        Provider::Toss
    }

    fn needs_token(&self) -> bool {
        true
    }

    fn transaction_of(&self, presented: Presented<'_>) -> Result<Option<String>, InvalidToken> {
        // The characters of ids that a URL leaves alone, and never a segment that it drops.
        let usable = |key: &&str| {
            (1..=MAX_KEY_LEN).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=.~".contains(&byte))
                && key.bytes().any(|byte| byte.is_ascii_alphanumeric())
        };
        presented.token.filter(usable).map(|key| Some(key.to_owned())).ok_or(InvalidToken)
    }

    fn pay<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        _token: Option<&'a str>,
    ) -> BoxFuture<'a, PayOutcome> {
        async move {
            let body = json!({
                "paymentKey": key_of(charge), "orderId": charge.merchant_order_id, "amount": charge.amount,
            });
            // Do not start a payment whose status could not be queried afterwards.
            let url = self.client.url(&["v1", "payments", key_of(charge)]);
            let reply = match url.and_then(|_| self.client.url(&["v1", "payments", "confirm"])) {
                Ok(url) => {
                    let request = self.client.post(url, &body, Some(&charge.merchant_uid));
                    self.client.call(request_id, ("POST", "/v1/payments/confirm"), request).await
                }
                Err(why) => Err(why),
            };
            let outcome = reply.map_or_else(|why| PayOutcome::Unknown { why }, |reply| decode_pay(charge, &reply));
            log::pay(&self.client, request_id, charge, outcome)
        }
        .boxed()
    }

    fn status<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
        async move {
            let query = self.query(request_id, charge);
            let outcome = match tokio::time::timeout(self.client.timeout(), query).await {
                Ok(outcome) => outcome,
                Err(_) => StatusOutcome::Unknown { why: "timed out".to_owned() },
            };
            log::status(&self.client, request_id, charge, outcome)
        }
        .boxed()
    }

    fn cancel<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        amount: Won,
        reason: &'a str,
    ) -> BoxFuture<'a, CancelOutcome> {
        self.send_cancel(request_id, charge, (amount, None), reason, None).boxed()
    }

    fn cancel_part<'a>(&'a self, request_id: &'a str, part: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome> {
        let amount = (part.amount, Some(part.amount));
        self.send_cancel(request_id, part.charge, amount, part.reason, Some(part.key())).boxed()
    }

    fn read_webhook(&self, webhook: &ProviderMessage<'_>) -> Result<Option<String>, MessageRefused> {
        // Unsigned: whoever sent it, Toss is asked.
        let message: TossMessage = reply::object(webhook.body).ok_or(MessageRefused::Malformed)?;
        Ok(message.data.and_then(|data| data.order_id).or(message.order_id))
    }
}

fn decode_pay(charge: &Charge, (status, body): &HttpReply) -> PayOutcome {
    match status {
        200..=299 => decode_payment(charge, *status, body).into(),
        400 | 403 | 404 | 422 => match reply::object::<TossError>(body) {
            Some(error) if REFUSALS.contains(&error.code.as_str()) => {
                PayOutcome::Declined { reason: reply::plain(&format!("{}: {}", error.code, error.message)) }
            }
            _ => PayOutcome::Unknown { why: undecided(*status, body) },
        },
        _ => PayOutcome::Unknown { why: undecided(*status, body) },
    }
}

fn decode_query(charge: &Charge, reply: Result<HttpReply, String>) -> StatusOutcome {
    reply.map_or_else(|why| StatusOutcome::Unknown { why }, |reply| decode_status(charge, &reply))
}

/// Whether Toss refuses a query for another reason than that it has no such payment.
fn is_fault_of_request((status, body): &HttpReply) -> bool {
    matches!(status, 400 | 403 | 404 | 422) && reply::object::<TossError>(body).is_some() && !is_not_found(body)
}

fn decode_status(charge: &Charge, (status, body): &HttpReply) -> StatusOutcome {
    match status {
        200..=299 => decode_payment(charge, *status, body),
        404 if is_not_found(body) => StatusOutcome::NotFound,
        _ => StatusOutcome::Unknown { why: undecided(*status, body) },
    }
}

fn decode_payment(charge: &Charge, status: u16, body: &[u8]) -> StatusOutcome {
    let Some(payment) = reply::object::<TossPayment<'_>>(body) else {
        return StatusOutcome::Unknown { why: reply::invalid_body(status) };
    };
    if payment.order_id != charge.merchant_order_id {
        // The key that the client brought is of another order.
        return StatusOutcome::NotFound;
    }
    if charge.transaction.as_ref().is_some_and(|key| *key != payment.payment_key) {
        // The order's customer has begun another payment, and brought the key of none.
        return match payment.status.as_str() {
            "READY" | "IN_PROGRESS" | "CANCELED" | "ABORTED" | "EXPIRED" => StatusOutcome::NotFound,
            _ => StatusOutcome::Unknown { why: format!("HTTP {status} about another payment") },
        };
    }
    let taken = reply::integer(payment.total_amount).filter(|_| payment.currency.is_none_or(|it| it == "KRW"));
    match payment.status.as_str() {
        "DONE" | "PARTIAL_CANCELED" => {
            let balance = payment.balance_amount.and_then(reply::integer);
            let cancelled = taken.zip(balance).and_then(|(taken, balance)| taken.checked_sub(balance));
            reply::paid(charge, taken, &payment.payment_key, cancelled)
        }
        "WAITING_FOR_DEPOSIT" => {
            StatusOutcome::Unacceptable { taken: None, why: "a virtual account that waits for its deposit".to_owned() }
        }
        "CANCELED" | "ABORTED" | "EXPIRED" => StatusOutcome::Declined { reason: payment.status },
        "READY" | "IN_PROGRESS" => StatusOutcome::NotFound,
        _ => StatusOutcome::Unknown { why: format!("HTTP {status} with an unknown state") },
    }
}

fn decode_cancel(charge: &Charge, (status, body): &HttpReply) -> CancelOutcome {
    match status {
        200..=299 => match reply::object::<TossPayment<'_>>(body) {
            Some(payment)
                if payment.order_id == charge.merchant_order_id
                    && matches!(payment.status.as_str(), "CANCELED" | "PARTIAL_CANCELED") =>
            {
                CancelOutcome::Cancelled
            }
            _ => CancelOutcome::Unknown { why: reply::invalid_body(*status) },
        },
        404 if is_not_found(body) => CancelOutcome::NotFound,
        _ => CancelOutcome::Unknown { why: undecided(*status, body) },
    }
}

fn is_not_found(body: &[u8]) -> bool {
    reply::object::<TossError>(body).is_some_and(|error| error.code == "NOT_FOUND_PAYMENT")
}

/// Why an error says nothing about the payment, with its code.
fn undecided(status: u16, body: &[u8]) -> String {
    match reply::object::<TossError>(body) {
        Some(error) => reply::plain(&format!("HTTP {status} {}", error.code)),
        None => reply::undecided(status),
    }
}

#[cfg(test)]
mod tests;
