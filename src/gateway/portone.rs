//! PortOne: the REST API V2 (`POST /payments/{paymentId}/pre-register`, `GET /payments/{paymentId}`,
//! `POST /payments/{paymentId}/cancel`), and webhooks of version 2024-04-25.
//!
//! The customer pays in PortOne's window, under the `paymentId` that the service gives the order, so the money is taken before
//! the service hears of it: a payment is a query, and the money of an order that can't be paid any more goes back.
//!
//! | outcome | state of the payment |
//! | --- | --- |
//! | approved | `PAID` or `PARTIAL_CANCELLED`, of this order, in won, of the requested amount |
//! | unacceptable | the same with another amount or currency |
//! | declined | `CANCELLED`; and `FAILED`, of a client that says it has paid |
//! | not found | `PAYMENT_NOT_FOUND`; `READY`, `PAY_PENDING`, `VIRTUAL_ACCOUNT_ISSUED`, `FAILED`: the customer may still pay |

use std::{fmt, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    CancelOutcome, Charge, GatewayConfigError, InvalidToken, PartToCancel, PayOutcome, PaymentGateway, PaymentPage,
    PrepareOutcome, PreparedPayment, Presented, Provider, StatusOutcome,
    client::{HttpReply, ProviderClient, authorization},
    log, reply,
    webhook::{MessageKey, MessageRefused, ProviderMessage},
};
use crate::model::{PaymentType, Won};

/// The configuration of PortOne.
#[derive(Clone)]
pub struct PortOneConfig {
    /// The base URL of the API.
    pub url: String,
    /// The time limit of one call.
    pub timeout: Duration,
    /// The API secret; never printed.
    pub api_secret: String,
    /// The shop, of an account with several.
    pub store_id: Option<String>,
    /// The secret of its webhooks; never printed. Without one they are refused.
    pub webhook_secret: Option<String>,
}

impl fmt::Debug for PortOneConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("PortOneConfig");
        debug.field("timeout", &self.timeout).field("store_id", &self.store_id).finish_non_exhaustive()
    }
}

/// A client of PortOne. See [`PaymentGateway`].
pub struct PortOne {
    client: ProviderClient,
    store_id: Option<String>,
    signing_key: Option<MessageKey>,
}

/// A payment. The fields that are not named here are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortOnePayment<'a> {
    id: String,
    store_id: Option<String>,
    status: String,
    currency: Option<String>,
    #[serde(borrow)]
    amount: Option<PortOneAmount<'a>>,
}

#[derive(Deserialize)]
struct PortOneAmount<'a> {
    #[serde(borrow)]
    total: &'a RawValue,
    #[serde(borrow)]
    cancelled: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct CancelReply {
    cancellation: CancelEntry,
}

#[derive(Deserialize)]
struct CancelEntry {
    status: String,
}

#[derive(Deserialize)]
struct PortOneError {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct PortOneMessage {
    #[serde(rename = "type")]
    kind: String,
    data: Option<PortOneMessageData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortOneMessageData {
    payment_id: Option<String>,
}

impl PortOne {
    /// A client for payments of `kind`. Opens no connection yet.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn new(kind: PaymentType, config: &PortOneConfig) -> Result<PortOne, GatewayConfigError> {
        let visible = "visible ASCII characters without spaces";
        let secret = authorization("PortOne", &config.api_secret);
        let secret = secret.ok_or(GatewayConfigError::Secret(kind, "PORTONE_API_SECRET", visible))?;
        let signing_key = match &config.webhook_secret {
            Some(secret) => {
                let key = MessageKey::parse(secret);
                Some(key.ok_or(GatewayConfigError::Secret(kind, "PORTONE_WEBHOOK_SECRET", "base64 after whsec_"))?)
            }
            None => None,
        };
        let client = ProviderClient::new(kind, &config.url, config.timeout, Some(secret))?;
        Ok(PortOne { client, store_id: config.store_id.clone(), signing_key })
    }

    fn url(&self, charge: &Charge, rest: &[&str]) -> Result<Url, String> {
        let segments: Vec<&str> =
            ["payments", charge.merchant_order_id.as_str()].into_iter().chain(rest.iter().copied()).collect();
        self.client.url(&segments)
    }

    /// A body with the shop, if there are several.
    fn body(&self, mut body: Value) -> Value {
        if let Some(store) = &self.store_id {
            body["storeId"] = store.as_str().into();
        }
        body
    }

    async fn query(&self, request_id: &str, charge: &Charge) -> Result<HttpReply, String> {
        let mut url = self.url(charge, &[])?;
        if let Some(store) = &self.store_id {
            url.query_pairs_mut().append_pair("storeId", store);
        }
        self.client.call(request_id, ("GET", "/payments/{paymentId}"), self.client.get(url)).await
    }

    /// Sends a `POST /payments/{paymentId}/cancel`.
    async fn send_cancel(
        &self,
        request_id: &str,
        charge: &Charge,
        amount: Won,
        body: Value,
        key: Option<String>,
    ) -> CancelOutcome {
        let reply = match self.url(charge, &["cancel"]) {
            Ok(url) => {
                // A structured header: a text in quotes.
                let key = key.map(|key| format!("\"{key}\""));
                let request = self.client.post(url, &self.body(body), key.as_deref());
                self.client.call(request_id, ("POST", "/payments/{paymentId}/cancel"), request).await
            }
            Err(why) => Err(why),
        };
        let outcome = reply.map_or_else(|why| CancelOutcome::Unknown { why }, |reply| decode_cancel(&reply));
        log::cancel(&self.client, request_id, charge, amount, outcome)
    }
}

impl PaymentGateway for PortOne {
    fn provider(&self) -> Provider {
        Provider::PortOne
    }

    fn needs_token(&self) -> bool {
        true
    }

    fn takes_money_first(&self) -> bool {
        true
    }

    fn transaction_of(&self, presented: Presented<'_>) -> Result<Option<String>, InvalidToken> {
        // Another order's payment pays that one only.
        let own = presented.token.filter(|id| *id == presented.merchant_order_id);
        own.map(|id| Some(id.to_owned())).ok_or(InvalidToken)
    }

    fn prepare<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        _page: PaymentPage<'a>,
    ) -> BoxFuture<'a, PrepareOutcome> {
        async move {
            let reply = match self.url(charge, &["pre-register"]) {
                Ok(url) => {
                    let body = self.body(json!({ "totalAmount": charge.amount, "currency": "KRW" }));
                    let request = self.client.post(url, &body, None);
                    self.client.call(request_id, ("POST", "/payments/{paymentId}/pre-register"), request).await
                }
                Err(why) => Err(why),
            };
            match reply {
                Ok((200..=299, _)) => PrepareOutcome::Prepared(PreparedPayment::default()),
                Ok((409, body)) if error_is(&body, "ALREADY_PAID") => {
                    PrepareOutcome::Prepared(PreparedPayment::default())
                }
                Ok((status @ (400 | 403), body)) if error_of(&body).is_some() => {
                    PrepareOutcome::Refused { why: undecided(status, &body) }
                }
                Ok((status, body)) => PrepareOutcome::Unknown { why: undecided(status, &body) },
                Err(why) => PrepareOutcome::Unknown { why },
            }
        }
        .boxed()
    }

    fn pay<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        _token: Option<&'a str>,
    ) -> BoxFuture<'a, PayOutcome> {
        async move {
            let outcome = match self.query(request_id, charge).await {
                Ok((status, body)) => match self.decode_status(charge, status, &body) {
                    StatusOutcome::NotFound if failed(&body) => PayOutcome::Declined { reason: "FAILED".to_owned() },
                    known => known.into(),
                },
                Err(why) => PayOutcome::Unknown { why },
            };
            log::pay(&self.client, request_id, charge, outcome)
        }
        .boxed()
    }

    fn status<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
        async move {
            let outcome = match self.query(request_id, charge).await {
                Ok((status, body)) => self.decode_status(charge, status, &body),
                Err(why) => StatusOutcome::Unknown { why },
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
        // Without an amount it is all of it.
        self.send_cancel(request_id, charge, amount, json!({ "reason": reason }), None).boxed()
    }

    fn cancel_part<'a>(&'a self, request_id: &'a str, part: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome> {
        // The key holds for three hours; the balance holds for ever.
        let body = json!({
            "reason": part.reason, "amount": part.amount, "currentCancellableAmount": part.refundable(),
        });
        self.send_cancel(request_id, part.charge, part.amount, body, Some(part.key())).boxed()
    }

    fn read_webhook(&self, webhook: &ProviderMessage<'_>) -> Result<Option<String>, MessageRefused> {
        self.signing_key.as_ref().ok_or(MessageRefused::NotOffered)?.verify(webhook)?;
        let message: PortOneMessage = reply::object(webhook.body).ok_or(MessageRefused::Malformed)?;
        let of_payment = message.kind.starts_with("Transaction.");
        Ok(message.data.filter(|_| of_payment).and_then(|data| data.payment_id))
    }
}

impl PortOne {
    fn decode_status(&self, charge: &Charge, status: u16, body: &[u8]) -> StatusOutcome {
        if status == 404 && error_is(body, "PAYMENT_NOT_FOUND") {
            return StatusOutcome::NotFound;
        }
        if !(200..=299).contains(&status) {
            return StatusOutcome::Unknown { why: undecided(status, body) };
        }
        let Some(payment) = reply::object::<PortOnePayment<'_>>(body) else {
            return StatusOutcome::Unknown { why: reply::invalid_body(status) };
        };
        let is_other_store = self.store_id.is_some() && payment.store_id.is_some() && payment.store_id != self.store_id;
        if payment.id != charge.merchant_order_id || is_other_store {
            return StatusOutcome::Unknown { why: format!("HTTP {status} about another payment") };
        }
        match payment.status.as_str() {
            "PAID" | "PARTIAL_CANCELLED" => {
                let amount = payment.amount.filter(|_| payment.currency.as_deref() == Some("KRW"));
                let (taken, cancelled) = match &amount {
                    Some(amount) => (reply::integer(amount.total), amount.cancelled.and_then(reply::integer)),
                    None => (None, None),
                };
                reply::paid(charge, taken, &payment.id, cancelled)
            }
            "CANCELLED" => StatusOutcome::Declined { reason: payment.status },
            "READY" | "PAY_PENDING" | "VIRTUAL_ACCOUNT_ISSUED" | "FAILED" => StatusOutcome::NotFound,
            _ => StatusOutcome::Unknown { why: format!("HTTP {status} with an unknown state") },
        }
    }
}

/// Whether a payment failed.
fn failed(body: &[u8]) -> bool {
    reply::object::<PortOnePayment<'_>>(body).is_some_and(|payment| payment.status == "FAILED")
}

fn decode_cancel((status, body): &HttpReply) -> CancelOutcome {
    match status {
        200..=299 => match reply::object::<CancelReply>(body) {
            Some(reply) if reply.cancellation.status == "SUCCEEDED" => CancelOutcome::Cancelled,
            Some(reply) => CancelOutcome::Unknown { why: reply::plain(&reply.cancellation.status) },
            None => CancelOutcome::Unknown { why: reply::invalid_body(*status) },
        },
        404 if error_is(body, "PAYMENT_NOT_FOUND") => CancelOutcome::NotFound,
        _ => CancelOutcome::Unknown { why: undecided(*status, body) },
    }
}

fn error_of(body: &[u8]) -> Option<String> {
    reply::object::<PortOneError>(body).map(|error| error.kind)
}

fn error_is(body: &[u8], kind: &str) -> bool {
    error_of(body).is_some_and(|error| error == kind)
}

/// Why an error says nothing about the payment, with its type.
fn undecided(status: u16, body: &[u8]) -> String {
    match error_of(body) {
        Some(kind) => reply::plain(&format!("HTTP {status} {kind}")),
        None => reply::undecided(status),
    }
}

#[cfg(test)]
mod tests;
