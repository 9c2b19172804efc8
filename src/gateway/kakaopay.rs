//! KakaoPay: online payment API v1 (`POST /online/v1/payment/ready`, `approve`, `order`, `cancel`).
//!
//! The service prepares the payment, which gives it a `tid`; the customer authorises it on KakaoPay's page and comes back with a
//! `pg_token`; the money is taken when the service approves it. KakaoPay knows a payment by its `tid` alone, has no idempotency
//! keys, and sends no messages. An error of an approval is not taken at its word: the state of the payment decides.
//!
//! | outcome | state of the payment |
//! | --- | --- |
//! | approved | `SUCCESS_PAYMENT` or `PART_CANCEL_PAYMENT`, of this order and the requested amount |
//! | unacceptable | the same with another amount |
//! | declined | `CANCEL_PAYMENT`, `FAIL_PAYMENT`, `QUIT_PAYMENT`, `FAIL_AUTH_PASSWORD` |
//! | not found | the states before the approval |

use std::{fmt, time::Duration};

use futures_util::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};

use super::{
    CancelOutcome, Charge, GatewayConfigError, InvalidToken, PartToCancel, PayOutcome, PaymentGateway, PaymentPage,
    PrepareOutcome, PreparedPayment, Presented, Provider, Redirect, StatusOutcome,
    client::{HttpReply, ProviderClient, authorization},
    log, reply,
};
use crate::model::{PaymentType, Won};

/// The maximum length of a `pg_token`.
const MAX_TOKEN_LEN: usize = 100;
/// The maximum length of a URL in a preparation.
const MAX_URL_LEN: usize = 255;
/// The maximum length of the name of what is bought.
const MAX_ITEM_CHARS: usize = 100;
/// The states of a payment that is not approved yet, in their order.
const BEFORE_APPROVAL: &[&str] =
    &["READY", "SEND_TMS", "OPEN_PAYMENT", "SELECT_METHOD", "ARS_WAITING", "AUTH_PASSWORD", "ISSUED_SID"];
/// How many of them come before the customer has done anything on the page.
const BEFORE_AUTHENTICATION: usize = 3;
/// The states of a payment that took no money, or gave all of it back.
const WITHOUT_MONEY: &[&str] = &["CANCEL_PAYMENT", "FAIL_PAYMENT", "QUIT_PAYMENT", "FAIL_AUTH_PASSWORD"];

/// The configuration of KakaoPay.
#[derive(Clone)]
pub struct KakaoPayConfig {
    /// The base URL of the API.
    pub url: String,
    /// The time limit of one call.
    pub timeout: Duration,
    /// The secret key; never printed.
    pub secret_key: String,
    /// The shop's code.
    pub cid: String,
}

impl fmt::Debug for KakaoPayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KakaoPayConfig").field("timeout", &self.timeout).field("cid", &self.cid).finish_non_exhaustive()
    }
}

/// A client of KakaoPay. See [`PaymentGateway`].
pub struct KakaoPay {
    client: ProviderClient,
    cid: String,
}

#[derive(Deserialize)]
struct ReadyReply {
    tid: String,
    next_redirect_pc_url: String,
    next_redirect_mobile_url: Option<String>,
    next_redirect_app_url: Option<String>,
}

/// A payment, as replies to an approval, a query and a cancel describe it. An approval has no status.
#[derive(Deserialize)]
struct KakaoPayment<'a> {
    tid: String,
    partner_order_id: String,
    status: Option<String>,
    #[serde(borrow)]
    amount: Option<KakaoAmount<'a>>,
    #[serde(borrow)]
    canceled_amount: Option<KakaoAmount<'a>>,
    #[serde(borrow)]
    approved_cancel_amount: Option<KakaoAmount<'a>>,
}

#[derive(Deserialize)]
struct KakaoAmount<'a> {
    #[serde(borrow)]
    total: Option<&'a RawValue>,
}

impl KakaoAmount<'_> {
    fn won(&self) -> Option<Won> {
        self.total.and_then(reply::integer)
    }
}

#[derive(Deserialize)]
struct KakaoError<'a> {
    // A number, or one in a text.
    #[serde(borrow)]
    error_code: &'a RawValue,
}

impl KakaoPay {
    /// A client for payments of `kind`. Opens no connection yet.
    ///
    /// # Errors
    /// The configuration is invalid.
    pub fn new(kind: PaymentType, config: &KakaoPayConfig) -> Result<KakaoPay, GatewayConfigError> {
        let visible = "visible ASCII characters without spaces";
        let secret = authorization("SECRET_KEY", &config.secret_key);
        let secret = secret.ok_or(GatewayConfigError::Secret(kind, "KAKAOPAY_SECRET_KEY", visible))?;
        if !(1..=10).contains(&config.cid.len()) || !config.cid.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(GatewayConfigError::Secret(kind, "KAKAOPAY_CID", "a code of at most 10 letters and digits"));
        }
        let client = ProviderClient::new(kind, &config.url, config.timeout, Some(secret))?;
        Ok(KakaoPay { client, cid: config.cid.clone() })
    }

    async fn send(&self, request_id: &str, call: &'static str, body: &impl Serialize) -> Result<HttpReply, String> {
        let route = match call {
            "ready" => "/online/v1/payment/ready",
            "approve" => "/online/v1/payment/approve",
            "order" => "/online/v1/payment/order",
            _ => "/online/v1/payment/cancel",
        };
        let url = self.client.url(&["online", "v1", "payment", call])?;
        self.client.call(request_id, ("POST", route), self.client.post(url, body, None)).await
    }

    async fn approve(&self, request_id: &str, charge: &Charge, token: &str) -> PayOutcome {
        let body = json!({
            "cid": self.cid, "tid": tid_of(charge), "partner_order_id": charge.merchant_order_id,
            "partner_user_id": charge.user_id.get().to_string(), "pg_token": token, "total_amount": charge.amount,
        });
        match self.send(request_id, "approve", &body).await {
            Ok((status @ 200..=299, body)) => decode_approval(charge, status, &body).into(),
            // The state of the payment says what the refusal means.
            Ok((status @ 400..=499, body)) if is_error(&body) => match self.query(request_id, charge).await {
                StatusOutcome::NotFound => PayOutcome::Unknown { why: undecided(status, &body) },
                known => known.into(),
            },
            Ok((status, body)) => PayOutcome::Unknown { why: undecided(status, &body) },
            Err(why) => PayOutcome::Unknown { why },
        }
    }

    async fn query(&self, request_id: &str, charge: &Charge) -> StatusOutcome {
        match self.send_query(request_id, charge).await {
            Ok((status, body)) => decode_status(charge, status, &body),
            Err(why) => StatusOutcome::Unknown { why },
        }
    }

    async fn send_query(&self, request_id: &str, charge: &Charge) -> Result<HttpReply, String> {
        let body = json!({ "cid": self.cid, "tid": tid_of(charge) });
        self.send(request_id, "order", &body).await
    }

    /// How far the customer came on the page of each of these payments: see [`decode_progress`].
    async fn query_progress(
        &self,
        request_id: &str,
        charge: &Charge,
        tids: &[String],
    ) -> Result<Vec<Option<usize>>, String> {
        try_join_all(tids.iter().map(async |tid| {
            let charge = Charge { transaction: Some(tid.clone()), ..charge.clone() };
            let (status, body) = self.send_query(request_id, &charge).await?;
            decode_progress(&charge, status, &body)
        }))
        .await
    }

    /// Cancels `amount`, while `refundable` may be cancelled.
    async fn send_cancel(
        &self,
        request_id: &str,
        charge: &Charge,
        (amount, refundable): (Won, Won),
        reason: &str,
    ) -> CancelOutcome {
        let body = json!({
            "cid": self.cid, "tid": tid_of(charge), "cancel_amount": amount, "cancel_tax_free_amount": 0,
            "cancel_available_amount": refundable, "payload": reason,
        });
        let outcome = match self.send(request_id, "cancel", &body).await {
            Ok((status, body)) => decode_cancel(charge, amount, status, &body),
            Err(why) => CancelOutcome::Unknown { why },
        };
        log::cancel(&self.client, request_id, charge, amount, outcome)
    }
}

fn tid_of(charge: &Charge) -> &str {
    charge.transaction.as_deref().unwrap_or_default()
}

/// The URL to come back to, which says how the customer left KakaoPay's page.
fn return_url(url: &str, result: &str) -> String {
    let (url, fragment) = url.split_once('#').map_or((url, String::new()), |(url, rest)| (url, format!("#{rest}")));
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}paymentResult={result}{fragment}")
}

impl PaymentGateway for KakaoPay {
    fn provider(&self) -> Provider {
        Provider::KakaoPay
    }

    fn needs_token(&self) -> bool {
        true
    }

    fn transaction_of(&self, presented: Presented<'_>) -> Result<Option<String>, InvalidToken> {
        let usable = |token: &&str| {
            (1..=MAX_TOKEN_LEN).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match (presented.token.filter(usable), presented.prepared) {
            (Some(_), Some(tid)) => Ok(Some(tid.to_owned())),
            _ => Err(InvalidToken),
        }
    }

    fn prepare<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        page: PaymentPage<'a>,
    ) -> BoxFuture<'a, PrepareOutcome> {
        async move {
            let url = |result| return_url(page.return_url, result);
            if url("CANCELLED").len() > MAX_URL_LEN {
                return PrepareOutcome::Refused { why: "the URL to return to is too long".to_owned() };
            }
            let item: String = page.order_name.chars().take(MAX_ITEM_CHARS).collect();
            let body = json!({
                "cid": self.cid, "partner_order_id": charge.merchant_order_id,
                "partner_user_id": charge.user_id.get().to_string(), "item_name": item, "quantity": 1,
                "total_amount": charge.amount, "tax_free_amount": 0, "approval_url": url("APPROVED"),
                "cancel_url": url("CANCELLED"), "fail_url": url("FAILED"),
            });
            match self.send(request_id, "ready", &body).await {
                Ok((status, body)) => decode_ready(status, &body),
                Err(why) => PrepareOutcome::Unknown { why },
            }
        }
        .boxed()
    }

    fn find_approved<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        prepared: &'a [String],
    ) -> BoxFuture<'a, Result<Option<String>, String>> {
        async move {
            let query = self.query_progress(request_id, charge, prepared);
            let progress = tokio::time::timeout(self.client.timeout(), query).await;
            let progress = progress.map_err(|_| "timed out".to_owned())??;
            // Of two that came as far, the latest.
            let reached = progress.into_iter().zip(prepared).filter_map(|(at, tid)| Some((at?, tid)));
            Ok(reached.max_by_key(|(at, _)| *at).map(|(_, tid)| tid.clone()))
        }
        .boxed()
    }

    fn pay<'a>(&'a self, request_id: &'a str, charge: &'a Charge, token: Option<&'a str>) -> BoxFuture<'a, PayOutcome> {
        async move {
            let approval = self.approve(request_id, charge, token.unwrap_or_default());
            let outcome = match tokio::time::timeout(self.client.timeout(), approval).await {
                Ok(outcome) => outcome,
                Err(_) => PayOutcome::Unknown { why: "timed out".to_owned() },
            };
            log::pay(&self.client, request_id, charge, outcome)
        }
        .boxed()
    }

    fn status<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
        async move {
            let outcome = self.query(request_id, charge).await;
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
        self.send_cancel(request_id, charge, (amount, amount), reason).boxed()
    }

    fn cancel_part<'a>(&'a self, request_id: &'a str, part: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome> {
        // Of two requests for one part, the second finds another amount to be refundable.
        self.send_cancel(request_id, part.charge, (part.amount, part.refundable()), part.reason).boxed()
    }
}

fn decode_ready(status: u16, body: &[u8]) -> PrepareOutcome {
    match (status, reply::object::<ReadyReply>(body)) {
        (200..=299, Some(ready)) => {
            let Some(tid) = reply::usable_text(&ready.tid).filter(|tid| *tid == ready.tid) else {
                return PrepareOutcome::Unknown { why: "a preparation without a usable tid".to_owned() };
            };
            let (pc, mobile, app) =
                (ready.next_redirect_pc_url, ready.next_redirect_mobile_url, ready.next_redirect_app_url);
            PrepareOutcome::Prepared(PreparedPayment {
                transaction: Some(tid),
                redirect: Some(Redirect { pc, mobile, app }),
            })
        }
        (400 | 403 | 422, _) if is_error(body) => PrepareOutcome::Refused { why: undecided(status, body) },
        _ => PrepareOutcome::Unknown { why: undecided(status, body) },
    }
}

/// A payment of this order; `None` if the reply is about another one, or none at all.
fn payment_of<'a>(charge: &Charge, body: &'a [u8]) -> Option<KakaoPayment<'a>> {
    let payment = reply::object::<KakaoPayment<'a>>(body)?;
    (payment.tid == tid_of(charge) && payment.partner_order_id == charge.merchant_order_id).then_some(payment)
}

fn decode_approval(charge: &Charge, status: u16, body: &[u8]) -> StatusOutcome {
    match payment_of(charge, body) {
        Some(payment) => reply::paid(charge, payment.amount.and_then(|it| it.won()), &payment.tid, None),
        None => StatusOutcome::Unknown { why: reply::invalid_body(status) },
    }
}

fn decode_status(charge: &Charge, status: u16, body: &[u8]) -> StatusOutcome {
    if status == 404 && is_error(body) {
        return StatusOutcome::NotFound;
    }
    if !(200..=299).contains(&status) {
        return StatusOutcome::Unknown { why: undecided(status, body) };
    }
    let Some(payment) = payment_of(charge, body) else {
        return StatusOutcome::Unknown { why: reply::invalid_body(status) };
    };
    match payment.status.as_deref() {
        Some("SUCCESS_PAYMENT" | "PART_CANCEL_PAYMENT") => {
            let cancelled = payment.canceled_amount.and_then(|it| it.won());
            reply::paid(charge, payment.amount.and_then(|it| it.won()), &payment.tid, cancelled)
        }
        Some(state) if WITHOUT_MONEY.contains(&state) => StatusOutcome::Declined { reason: state.to_owned() },
        Some(state) if BEFORE_APPROVAL.contains(&state) => StatusOutcome::NotFound,
        _ => StatusOutcome::Unknown { why: format!("HTTP {status} with an unknown state") },
    }
}

/// The place of a payment's state in [`BEFORE_APPROVAL`], if its customer may have approved it; `None`: there is nothing to approve.
///
/// # Errors
/// The reply is no answer.
fn decode_progress(charge: &Charge, status: u16, body: &[u8]) -> Result<Option<usize>, String> {
    if matches!(status, 400 | 404) && is_error(body) {
        // It is too old to be known.
        return Ok(None);
    }
    if !(200..=299).contains(&status) {
        return Err(undecided(status, body));
    }
    let state =
        payment_of(charge, body).and_then(|payment| payment.status).ok_or_else(|| reply::invalid_body(status))?;
    let at = BEFORE_APPROVAL.iter().position(|known| *known == state);
    Ok(at.filter(|at| *at >= BEFORE_AUTHENTICATION))
}

fn decode_cancel(charge: &Charge, amount: Won, status: u16, body: &[u8]) -> CancelOutcome {
    match status {
        200..=299 => match payment_of(charge, body) {
            Some(payment)
                if matches!(payment.status.as_deref(), Some("CANCEL_PAYMENT" | "PART_CANCEL_PAYMENT"))
                    && payment.approved_cancel_amount.as_ref().and_then(|it| it.won()) == Some(amount) =>
            {
                CancelOutcome::Cancelled
            }
            _ => CancelOutcome::Unknown { why: reply::invalid_body(status) },
        },
        404 if is_error(body) => CancelOutcome::NotFound,
        _ => CancelOutcome::Unknown { why: undecided(status, body) },
    }
}

/// Whether KakaoPay itself sent the error, and not a proxy.
fn is_error(body: &[u8]) -> bool {
    reply::object::<KakaoError<'_>>(body).is_some()
}

/// Why an error says nothing about the payment, with its code.
fn undecided(status: u16, body: &[u8]) -> String {
    match reply::object::<KakaoError<'_>>(body) {
        Some(error) => reply::plain(&format!("HTTP {status} {}", error.error_code.get())),
        None => reply::undecided(status),
    }
}

#[cfg(test)]
mod tests;
