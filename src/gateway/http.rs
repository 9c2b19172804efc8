//! The generic gateway: the protocol of the API contract's section "External gateways". [`reply`](super::reply) decodes the replies.

use std::{fmt, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use serde::Serialize;

use super::{
    CancelOutcome, Charge, GatewayConfigError, HttpGatewayConfig, PartToCancel, PayOutcome, PaymentGateway, Provider,
    StatusOutcome,
    client::{MAX_TIMEOUT, ProviderClient, authorization},
    log, reply,
};
use crate::model::{PaymentType, Won};

/// The HTTP client of one gateway. See [`PaymentGateway`].
pub struct HttpGateway {
    client: ProviderClient,
}

impl fmt::Debug for HttpGateway {
    /// Omits the client, which holds the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("HttpGateway");
        debug.field("kind", &self.client.kind()).field("url", &self.client.base()).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PayBody<'a> {
    merchant_uid: &'a str,
    order_id: i64,
    user_id: i64,
    amount: Won,
}

#[derive(Serialize)]
struct CancelBody<'a> {
    amount: Won,
    reason: &'a str,
}

impl HttpGateway {
    /// The maximum time limit of a call.
    pub const MAX_TIMEOUT: Duration = MAX_TIMEOUT;

    /// A client for the gateway of `kind`. Opens no connection yet.
    ///
    /// # Errors
    /// The configuration is invalid, or the system has no root certificates for an `https` gateway.
    pub fn new(kind: PaymentType, config: &HttpGatewayConfig) -> Result<HttpGateway, GatewayConfigError> {
        let bearer = match &config.token {
            Some(token) => Some(authorization("Bearer", token).ok_or(GatewayConfigError::Token(kind))?),
            None => None,
        };
        Ok(HttpGateway { client: ProviderClient::new(kind, &config.url, config.timeout, bearer)? })
    }

    /// Sends a `POST {url}/payments/{merchant_uid}/cancel`.
    async fn send_cancel(
        &self,
        request_id: &str,
        charge: &Charge,
        body: CancelBody<'_>,
        key: Option<String>,
    ) -> CancelOutcome {
        let reply = match self.client.url(&["payments", &charge.merchant_uid, "cancel"]) {
            Ok(url) => {
                let request = self.client.post(url, &body, key.as_deref());
                self.client.call(request_id, ("POST", "/payments/{merchantUid}/cancel"), request).await
            }
            Err(why) => Err(why),
        };
        let outcome = match reply {
            Ok((status, body)) => reply::decode_cancel(status, &body),
            Err(why) => CancelOutcome::Unknown { why },
        };
        log::cancel(&self.client, request_id, charge, body.amount, outcome)
    }
}

impl PaymentGateway for HttpGateway {
    fn provider(&self) -> Provider {
        Provider::Http
    }

    fn pay<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        _token: Option<&'a str>,
    ) -> BoxFuture<'a, PayOutcome> {
        async move {
            let uid = charge.merchant_uid.as_str();
            let body = PayBody {
                merchant_uid: uid,
                order_id: charge.order_id.get(),
                user_id: charge.user_id.get(),
                amount: charge.amount,
            };
            // Do not start a payment whose status could not be queried afterwards.
            let reply = match self.client.url(&["payments", uid]).and_then(|_| self.client.url(&["payments"])) {
                Ok(url) => {
                    let request = self.client.post(url, &body, None);
                    self.client.call(request_id, ("POST", "/payments"), request).await
                }
                Err(why) => Err(why),
            };
            let outcome = match reply {
                Ok((status, body)) => reply::decode_pay(charge, status, &body),
                Err(why) => PayOutcome::Unknown { why },
            };
            log::pay(&self.client, request_id, charge, outcome)
        }
        .boxed()
    }

    fn status<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome> {
        async move {
            let reply = match self.client.url(&["payments", &charge.merchant_uid]) {
                Ok(url) => self.client.call(request_id, ("GET", "/payments/{merchantUid}"), self.client.get(url)).await,
                Err(why) => Err(why),
            };
            let outcome = match reply {
                Ok((status, body)) => reply::decode_status(charge, status, &body),
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
        self.send_cancel(request_id, charge, CancelBody { amount, reason }, None).boxed()
    }

    fn cancel_part<'a>(&'a self, request_id: &'a str, part: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome> {
        let body = CancelBody { amount: part.amount, reason: part.reason };
        self.send_cancel(request_id, part.charge, body, Some(part.key())).boxed()
    }
}
