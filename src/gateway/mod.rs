//! External payment gateways.
//!
//! Defines the operations of a gateway ([`PaymentGateway`]), the gateway of each payment type ([`Gateways`]), and one client for
//! each provider: the generic protocol ([`HttpGateway`]), Toss Payments, KakaoPay and PortOne. The engine decides when to call
//! and to retry, and what an outcome means for the order, its stock and its coupon.
//!
//! A payment is approved, declined or *unknown*. A timeout, a lost connection, an overloaded or broken gateway and an
//! unintelligible reply are all unknown. Unknown never counts as declined, because the gateway may have taken the money.
//! (An approval of another amount is unacceptable: the money goes back.) This module never retries: only the engine knows
//! whether the order can still be paid.

mod client;
mod http;
mod kakaopay;
mod log;
mod measured;
mod portone;
pub mod reply;
mod toss;
pub mod webhook;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};

pub use http::HttpGateway;
pub use kakaopay::{KakaoPay, KakaoPayConfig};
pub use portone::{PortOne, PortOneConfig};
pub use toss::{Toss, TossConfig};

use crate::model::{OrderId, PaymentType, UserId, Won};
use measured::MeasuredGateway;
use webhook::{MessageRefused, ProviderMessage};

/// Who makes payments of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    Http,
    Toss,
    KakaoPay,
    PortOne,
}

impl Provider {
    /// As in `PAYMENT_PROVIDER_<TYPE>`.
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Http => "http",
            Provider::Toss => "toss",
            Provider::KakaoPay => "kakaopay",
            Provider::PortOne => "portone",
        }
    }
}

/// A payment to make, or that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The receipt: the service's own unique name of the payment. Every repeat of the payment has the same one, and the
    /// gateway takes the money of one uid at most once.
    pub merchant_uid: String,
    /// The order's name at a provider: unique among all deployments that share an account there.
    pub merchant_order_id: String,
    pub order_id: OrderId,
    pub user_id: UserId,
    /// The order's final price in won.
    pub amount: Won,
    /// The provider's id of the payment, if it is known before the provider approves it.
    pub transaction: Option<String>,
}

/// What a client brings back from the page of a payment's provider.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// `gatewayToken`.
    pub token: Option<&'a str>,
    /// The provider's id of the payment, of its type's last preparation.
    pub prepared: Option<&'a str>,
    pub merchant_order_id: &'a str,
}

/// The client brought no token, or one that is not of this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken;

/// The page on which a customer approves a payment.
#[derive(Clone, Copy, Debug)]
pub struct PaymentPage<'a> {
    /// What the page names as bought.
    pub order_name: &'a str,
    /// Where the provider sends the customer afterwards.
    pub return_url: &'a str,
}

/// A prepared payment. No money is taken before the payment is approved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreparedPayment {
    /// The provider's id of the payment, if it has one already.
    pub transaction: Option<String>,
    /// Where the customer approves the payment; `None` if the shop's own page opens the provider's window.
    pub redirect: Option<Redirect>,
}

/// The provider's pages of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub pc: String,
    pub mobile: Option<String>,
    pub app: Option<String>,
}

/// The outcome of the preparation of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrepareOutcome {
    Prepared(PreparedPayment),
    /// The provider does not accept the request.
    Refused {
        why: String,
    },
    /// No answer. It may be prepared, which has no effect.
    Unknown {
        why: String,
    },
}

/// The outcome of a payment request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayOutcome {
    /// The gateway took the money. `transaction_id` is its id of the payment: a string of 1 to
    /// [`reply::TRANSACTION_ID_CHARS`] characters, or a number. Control characters are escaped.
    Approved { transaction_id: String },
    /// The gateway took another amount, or gave no usable transaction id. This is no payment: the money has to be
    /// refunded. `taken` is the amount in won, if the gateway names one.
    Unacceptable { taken: Option<Won>, why: String },
    /// The gateway took no money, and takes none for this uid. `reason` is its text, safe to log, at most
    /// [`reply::REASON_CHARS`] characters, possibly empty.
    Declined { reason: String },
    /// The gateway may have taken the money, or may take it later.
    Unknown { why: String },
}

/// The outcome of a query about an earlier payment request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusOutcome {
    /// As [`PayOutcome::Approved`]. `cancelled`: what the gateway has refunded of it in all, if it says so.
    Approved { transaction_id: String, cancelled: Option<Won> },
    /// As [`PayOutcome::Unacceptable`].
    Unacceptable { taken: Option<Won>, why: String },
    /// As [`PayOutcome::Declined`].
    Declined { reason: String },
    /// The gateway has no such payment *now*. The payment request may still arrive, so this does not prove that the gateway
    /// takes no money. A repeated payment request with the same uid does, because it ends in another outcome.
    NotFound,
    /// No answer; ask again.
    Unknown { why: String },
}

impl From<StatusOutcome> for PayOutcome {
    /// What a payment's state says of the request that it belongs to.
    fn from(status: StatusOutcome) -> PayOutcome {
        match status {
            StatusOutcome::Approved { transaction_id, .. } => PayOutcome::Approved { transaction_id },
            StatusOutcome::Unacceptable { taken, why } => PayOutcome::Unacceptable { taken, why },
            StatusOutcome::Declined { reason } => PayOutcome::Declined { reason },
            StatusOutcome::NotFound => PayOutcome::Unknown { why: "not approved yet".to_owned() },
            StatusOutcome::Unknown { why } => PayOutcome::Unknown { why },
        }
    }
}

/// The outcome of a refund request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The gateway refunded the money.
    Cancelled,
    /// The gateway has no such payment now. [`StatusOutcome::NotFound`] says what that does not prove.
    NotFound,
    /// The gateway may have refunded the money; ask again.
    Unknown { why: String },
}

/// An external payment gateway. Every call ends within the gateway's time limit, and fails with `Unknown` only. A call whose
/// future is dropped is unknown too. `request_id` is the id of the request that needs the call; the gateway receives it.
pub trait PaymentGateway: Send + Sync {
    fn provider(&self) -> Provider;

    /// Whether a client must bring a token from the provider's page. Such a payment needs an order that exists.
    fn needs_token(&self) -> bool {
        false
    }

    /// Whether the provider takes the money before the service asks for it, also for an order that is closed by then.
    fn takes_money_first(&self) -> bool {
        false
    }

    /// The provider's id of a payment that is about to be approved, if it is known by then.
    ///
    /// # Errors
    /// The token is missing or invalid.
    fn transaction_of(&self, _presented: Presented<'_>) -> Result<Option<String>, InvalidToken> {
        Ok(None)
    }

    /// Prepares a payment that the customer approves on a page of the provider. Takes no money.
    fn prepare<'a>(
        &'a self,
        _request_id: &'a str,
        _charge: &'a Charge,
        _page: PaymentPage<'a>,
    ) -> BoxFuture<'a, PrepareOutcome> {
        async { PrepareOutcome::Prepared(PreparedPayment::default()) }.boxed()
    }

    /// Which of several payments that were prepared for an order, the latest last, its customer has approved; `None`: none of them.
    /// The error is the reason why there is no answer.
    fn find_approved<'a>(
        &'a self,
        _request_id: &'a str,
        _charge: &'a Charge,
        prepared: &'a [String],
    ) -> BoxFuture<'a, Result<Option<String>, String>> {
        async { Ok(prepared.last().cloned()) }.boxed()
    }

    /// Takes the money of `charge`, at most once per `merchant_uid`. `token` is what the client brought from the provider's page.
    fn pay<'a>(&'a self, request_id: &'a str, charge: &'a Charge, token: Option<&'a str>) -> BoxFuture<'a, PayOutcome>;

    /// Queries the payment of `charge`; changes nothing.
    fn status<'a>(&'a self, request_id: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome>;

    /// Refunds `amount` won, all that was taken for `charge`, at most once.
    fn cancel<'a>(
        &'a self,
        request_id: &'a str,
        charge: &'a Charge,
        amount: Won,
        reason: &'a str,
    ) -> BoxFuture<'a, CancelOutcome>;

    /// Refunds a part of a payment, at most once.
    fn cancel_part<'a>(&'a self, request_id: &'a str, part: &'a PartToCancel<'a>) -> BoxFuture<'a, CancelOutcome>;

    /// The `merchant_order_id` of which a message of the provider speaks; `None` of a message about something else.
    ///
    /// # Errors
    /// The provider sends no such messages, or not this one.
    fn read_webhook(&self, _webhook: &ProviderMessage<'_>) -> Result<Option<String>, MessageRefused> {
        Err(MessageRefused::NotOffered)
    }
}

/// A part of a payment to refund. Its uid and `total` name it: every repeat has the same key, and no other part has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartToCancel<'a> {
    pub charge: &'a Charge,
    pub amount: Won,
    /// What is refunded of the payment with this part and all before it.
    pub total: Won,
    pub reason: &'a str,
}

impl PartToCancel<'_> {
    /// The idempotency key of the request.
    pub fn key(&self) -> String {
        format!("{}-{}", self.charge.merchant_uid, self.total)
    }

    /// What may be refunded of the payment before this part.
    pub fn refundable(&self) -> Won {
        self.charge.amount - (self.total - self.amount)
    }
}

/// The configuration of the gateway of a payment type.
#[derive(Clone, Debug)]
pub enum ProviderConfig {
    Http(HttpGatewayConfig),
    Toss(TossConfig),
    KakaoPay(KakaoPayConfig),
    PortOne(PortOneConfig),
}

impl From<HttpGatewayConfig> for ProviderConfig {
    fn from(config: HttpGatewayConfig) -> Self {
        ProviderConfig::Http(config)
    }
}

/// The configuration of one gateway.
#[derive(Clone)]
pub struct HttpGatewayConfig {
    /// The base URL: `http://` or `https://`, without user, query or fragment.
    pub url: String,
    /// The time limit of one call, from the wait for a connection to the last byte of the reply; above zero, at most
    /// [`HttpGateway::MAX_TIMEOUT`].
    pub timeout: Duration,
    /// The bearer token of the `Authorization` header; never printed.
    pub token: Option<String>,
}

impl fmt::Debug for HttpGatewayConfig {
    /// Omits the token, and the URL, which may hold a password until it is validated.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("HttpGatewayConfig")
            .field("timeout", &self.timeout)
            .field("token", &token)
            .finish_non_exhaustive()
    }
}

/// Why the configuration of a gateway is invalid. Never quotes the URL or a secret.
#[derive(Debug, thiserror::Error)]
pub enum GatewayConfigError {
    #[error("BALANCE payments use the balance and can't have a gateway")]
    Balance,
    #[error("{0} has more than one gateway")]
    Twice(PaymentType),
    #[error("the gateway URL of {0} {1}")]
    Url(PaymentType, &'static str),
    #[error("the gateway timeout of {0} must be above zero and at most {max:?}", max = HttpGateway::MAX_TIMEOUT)]
    Timeout(PaymentType),
    #[error("the gateway token of {0} must be visible ASCII characters without spaces")]
    Token(PaymentType),
    #[error("{1}, of the provider of {0}, must be {2}")]
    Secret(PaymentType, &'static str, &'static str),
    #[error("no HTTP client for the gateway of {0}: {1}")]
    Client(PaymentType, #[source] reqwest::Error),
}

/// The gateway of each payment type. Payments of a type without one, and of `BALANCE`, are made from the user's balance.
#[derive(Clone, Default)]
pub struct Gateways {
    gateways: HashMap<PaymentType, Arc<dyn PaymentGateway>>,
}

impl Gateways {
    /// One gateway per entry. Opens no connection yet.
    ///
    /// # Errors
    /// The first invalid entry.
    pub fn connect<C: Into<ProviderConfig>>(
        configs: impl IntoIterator<Item = (PaymentType, C)>,
    ) -> Result<Gateways, GatewayConfigError> {
        let mut gateways: HashMap<PaymentType, Arc<dyn PaymentGateway>> = HashMap::new();
        for (kind, config) in configs {
            if kind == PaymentType::Balance {
                return Err(GatewayConfigError::Balance);
            }
            let gateway: Arc<dyn PaymentGateway> = match config.into() {
                ProviderConfig::Http(config) => Arc::new(HttpGateway::new(kind, &config)?),
                ProviderConfig::Toss(config) => Arc::new(Toss::new(kind, &config)?),
                ProviderConfig::KakaoPay(config) => Arc::new(KakaoPay::new(kind, &config)?),
                ProviderConfig::PortOne(config) => Arc::new(PortOne::new(kind, &config)?),
            };
            if gateways.insert(kind, MeasuredGateway::of(gateway)).is_some() {
                return Err(GatewayConfigError::Twice(kind));
            }
        }
        Ok(Gateways { gateways })
    }

    /// Gateways of any implementation, for tests. An entry for `BALANCE` is dropped.
    pub fn of(gateways: impl IntoIterator<Item = (PaymentType, Arc<dyn PaymentGateway>)>) -> Gateways {
        let gateways = gateways.into_iter().filter(|(kind, _)| *kind != PaymentType::Balance).collect();
        Gateways { gateways }
    }

    /// The gateway of `kind`; `None` if the balance pays.
    pub fn get(&self, kind: PaymentType) -> Option<&Arc<dyn PaymentGateway>> {
        self.gateways.get(&kind)
    }

    /// Whether no payment type has a gateway.
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty()
    }

    /// The payment types with a gateway, in the order of the API page.
    pub fn kinds(&self) -> impl Iterator<Item = PaymentType> {
        PaymentType::ALL.iter().copied().filter(|kind| self.gateways.contains_key(kind))
    }
}

impl fmt::Debug for Gateways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> HttpGatewayConfig {
        HttpGatewayConfig { url: url.to_owned(), timeout: Duration::from_secs(1), token: None }
    }

    fn refusal(kind: PaymentType, config: HttpGatewayConfig) -> String {
        Gateways::connect([(kind, config)]).expect_err("refused").to_string()
    }

    #[test]
    fn gateway_present_for_configured_types_only() {
        let gateways = Gateways::connect([
            (PaymentType::Toss, config("http://127.0.0.1:9/toss/")),
            (PaymentType::Card, config("http://gateway.internal:8081")),
        ])
        .unwrap();
        assert!(gateways.get(PaymentType::Card).is_some());
        assert!(gateways.get(PaymentType::KakaoPay).is_none());
        assert!(gateways.get(PaymentType::Balance).is_none());
        assert!(!gateways.is_empty());
        assert_eq!(gateways.kinds().collect::<Vec<_>>(), [PaymentType::Card, PaymentType::Toss]);
        assert_eq!(format!("{gateways:?}"), "{Card, Toss}");
        assert!(Gateways::default().is_empty());
    }

    #[test]
    fn balance_has_no_gateway() {
        assert!(refusal(PaymentType::Balance, config("http://127.0.0.1:9")).contains("BALANCE"));
        let card = Gateways::connect([(PaymentType::Card, config("http://127.0.0.1:9"))]).unwrap();
        let card = Arc::clone(card.get(PaymentType::Card).unwrap());
        let gateways = Gateways::of([(PaymentType::Balance, Arc::clone(&card)), (PaymentType::Toss, card)]);
        assert!(gateways.get(PaymentType::Balance).is_none());
        assert!(gateways.get(PaymentType::Toss).is_some());
    }

    #[test]
    fn gateway_refused_when_type_configured_twice() {
        let twice = [(PaymentType::Card, config("http://a")), (PaymentType::Card, config("http://b"))];
        assert!(matches!(Gateways::connect(twice), Err(GatewayConfigError::Twice(PaymentType::Card))));
    }

    #[test]
    fn gateway_url_refused_without_printing_it() {
        for url in [
            "",
            "gateway",
            "ftp://hunter2.example",
            "unix:///hunter2",
            "http://",
            "http://user:hunter2@gateway",
            "http://hunter2@gateway",
            "http://gateway?key=hunter2",
            "http://gateway#hunter2",
            "data:text/plain,hunter2",
        ] {
            let said = refusal(PaymentType::KakaoPay, config(url));
            assert!(said.starts_with("the gateway URL of KAKAO_PAY "), "{url}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn gateway_timeout_and_token_refused_when_unusable() {
        for timeout in [Duration::ZERO, HttpGateway::MAX_TIMEOUT + Duration::from_millis(1)] {
            let config = HttpGatewayConfig { timeout, ..config("http://gateway") };
            assert!(refusal(PaymentType::Card, config).contains("timeout"));
        }
        for token in ["", "hunter2 hunter2", "hunter2\r\nX-Evil: 1", "hunter2é"] {
            let config = HttpGatewayConfig { token: Some(token.to_owned()), ..config("http://gateway") };
            let said = refusal(PaymentType::Card, config);
            assert!(said.contains("token") && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn gateway_secrets_not_printed() {
        let config = HttpGatewayConfig { token: Some("hunter2".to_owned()), ..config("https://me:hunter2@gateway") };
        assert!(!format!("{config:?}").contains("hunter2"));
        let config = HttpGatewayConfig { url: "http://127.0.0.1:9".to_owned(), ..config };
        let gateway = HttpGateway::new(PaymentType::Card, &config).unwrap();
        assert!(!format!("{gateway:?}").contains("hunter2"));
    }
}
