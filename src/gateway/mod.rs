//! External payment gateways.
//!
//! Owns: what the engine may ask of a gateway ([`PaymentGateway`]), which payment type goes to which one
//! ([`Gateways`]), and the HTTP form of it ([`HttpGateway`]). Leaves to the domain: when to ask, asking again, and what
//! an answer means for the order, its stock and its coupon.
//!
//! A gateway has three answers to a payment: taken, refused, and *unknown*. (Taken otherwise than asked is no payment:
//! the money goes back.) Whatever is not clearly one of the first
//! two is unknown: a timeout, a lost connection, an overloaded or broken gateway, a reply that makes no sense. Unknown
//! is never treated as refused, because the money may have been taken. Nothing is retried in here: only the domain
//! knows whether the order can still be paid.

mod http;
pub mod reply;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

pub use http::HttpGateway;

use crate::model::{OrderId, PaymentType, UserId, Won};

/// A payment to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Our own name for the payment, the receipt; unique, and the same however often this payment is asked for. The
    /// gateway takes the money of one uid at most once.
    pub merchant_uid: String,
    pub order_id: OrderId,
    pub user_id: UserId,
    /// Won; the order's final price.
    pub amount: Won,
}

/// What became of a request to take money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayOutcome {
    /// The money is taken. `transaction_id` is the gateway's name for it: a string of 1 to
    /// [`reply::TRANSACTION_ID_CHARS`] characters, or a number; without control characters, which are escaped.
    Approved { transaction_id: String },
    /// The gateway says that it took money, but not as it was asked: another amount, or no usable transaction id. That
    /// is no payment, and the money has to go back. `taken` is the amount in won that it names, if it names one.
    Unacceptable { taken: Option<Won>, why: String },
    /// No money is taken, and none will be for this uid. `reason` is the gateway's wording, made safe to log, at most
    /// [`reply::REASON_CHARS`] characters, perhaps empty.
    Declined { reason: String },
    /// The money may or may not be taken, or be taken later still.
    Unknown { why: String },
}

/// What a gateway knows of an earlier request to take money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusOutcome {
    /// As [`PayOutcome::Approved`].
    Approved { transaction_id: String },
    /// As [`PayOutcome::Unacceptable`].
    Unacceptable { taken: Option<Won>, why: String },
    /// As [`PayOutcome::Declined`].
    Declined { reason: String },
    /// The gateway has no such payment *now*. A request that is still on its way may yet arrive, so this alone does not
    /// prove that the money stays untaken: paying again with the same uid does, because it ends in one of the others.
    NotFound,
    /// Not answered; ask again.
    Unknown { why: String },
}

/// What became of a request to give money back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The money is given back.
    Cancelled,
    /// The gateway has no such payment now; with the same limit as [`StatusOutcome::NotFound`].
    NotFound,
    /// The money may or may not be given back; ask again.
    Unknown { why: String },
}

/// An external payment gateway. Every call ends within the gateway's own time limit, and never fails otherwise than by
/// `Unknown`. A call whose future is dropped half way is unknown too. `asked_by` is the id of the request that it is made
/// for, which the gateway is told.
pub trait PaymentGateway: Send + Sync {
    /// Takes the money of `charge`, at most once per `merchant_uid`.
    fn pay<'a>(&'a self, asked_by: &'a str, charge: &'a Charge) -> BoxFuture<'a, PayOutcome>;

    /// What became of the payment that `charge` asked for; changes nothing.
    fn status<'a>(&'a self, asked_by: &'a str, charge: &'a Charge) -> BoxFuture<'a, StatusOutcome>;

    /// Gives back the `amount` (won) that was taken under `merchant_uid`, at most once.
    fn cancel<'a>(
        &'a self,
        asked_by: &'a str,
        merchant_uid: &'a str,
        amount: Won,
        reason: &'a str,
    ) -> BoxFuture<'a, CancelOutcome>;
}

/// How to reach one gateway.
#[derive(Clone)]
pub struct GatewayConfig {
    /// `http://` or `https://`, without user, query or fragment; paths are appended to it.
    pub url: String,
    /// The limit of one call, from waiting for a connection to the last byte of the reply; above zero, at most
    /// [`HttpGateway::LONGEST_TIMEOUT`].
    pub timeout: Duration,
    /// Sent as `Authorization: Bearer`; never printed.
    pub token: Option<String>,
}

impl fmt::Debug for GatewayConfig {
    /// Neither the token nor the URL, which may hold a password before it is checked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "***");
        f.debug_struct("GatewayConfig").field("timeout", &self.timeout).field("token", &token).finish_non_exhaustive()
    }
}

/// A gateway that can't be used as configured. Never quotes the URL or the token.
#[derive(Debug, thiserror::Error)]
pub enum GatewayConfigError {
    #[error("BALANCE is settled here and can't have a gateway")]
    Balance,
    #[error("{0} has more than one gateway")]
    Twice(PaymentType),
    #[error("the gateway URL of {0} {1}")]
    Url(PaymentType, &'static str),
    #[error("the gateway timeout of {0} must be above zero and at most {max:?}", max = HttpGateway::LONGEST_TIMEOUT)]
    Timeout(PaymentType),
    #[error("the gateway token of {0} must be visible ASCII characters without spaces")]
    Token(PaymentType),
    #[error("no HTTP client for the gateway of {0}: {1}")]
    Client(PaymentType, #[source] reqwest::Error),
}

/// Which payment type goes to which gateway. Types without one are settled from the user's balance, as `BALANCE` always
/// is.
#[derive(Clone, Default)]
pub struct Gateways {
    gateways: HashMap<PaymentType, Arc<dyn PaymentGateway>>,
}

impl Gateways {
    /// One HTTP gateway per entry. Connects to none of them.
    ///
    /// # Errors
    /// The first entry that can't be used, and why.
    pub fn connect(
        configs: impl IntoIterator<Item = (PaymentType, GatewayConfig)>,
    ) -> Result<Gateways, GatewayConfigError> {
        let mut gateways: HashMap<PaymentType, Arc<dyn PaymentGateway>> = HashMap::new();
        for (kind, config) in configs {
            if kind == PaymentType::Balance {
                return Err(GatewayConfigError::Balance);
            }
            if gateways.insert(kind, Arc::new(HttpGateway::new(kind, &config)?)).is_some() {
                return Err(GatewayConfigError::Twice(kind));
            }
        }
        Ok(Gateways { gateways })
    }

    /// These gateways, whatever they are made of; for tests. One named for `BALANCE` is left out.
    pub fn of(gateways: impl IntoIterator<Item = (PaymentType, Arc<dyn PaymentGateway>)>) -> Gateways {
        let gateways = gateways.into_iter().filter(|(kind, _)| *kind != PaymentType::Balance).collect();
        Gateways { gateways }
    }

    /// The gateway of `kind`; `None` where the balance pays.
    pub fn get(&self, kind: PaymentType) -> Option<&Arc<dyn PaymentGateway>> {
        self.gateways.get(&kind)
    }

    /// Whether every payment is settled from the balance.
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty()
    }

    /// The types that have a gateway, in the order of the API page.
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
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn config(url: &str) -> GatewayConfig {
        GatewayConfig { url: url.to_owned(), timeout: Duration::from_secs(1), token: None }
    }

    fn refusal(kind: PaymentType, config: GatewayConfig) -> String {
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
        for timeout in [Duration::ZERO, HttpGateway::LONGEST_TIMEOUT + Duration::from_millis(1)] {
            let config = GatewayConfig { timeout, ..config("http://gateway") };
            assert!(refusal(PaymentType::Card, config).contains("timeout"));
        }
        for token in ["", "hunter2 hunter2", "hunter2\r\nX-Evil: 1", "hunter2é"] {
            let config = GatewayConfig { token: Some(token.to_owned()), ..config("http://gateway") };
            let said = refusal(PaymentType::Card, config);
            assert!(said.contains("token") && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn gateway_secrets_not_printed() {
        let config = GatewayConfig { token: Some("hunter2".to_owned()), ..config("https://me:hunter2@gateway") };
        assert!(!format!("{config:?}").contains("hunter2"));
        let config = GatewayConfig { url: "http://127.0.0.1:9".to_owned(), ..config };
        let gateway = HttpGateway::new(PaymentType::Card, &config).unwrap();
        assert!(!format!("{gateway:?}").contains("hunter2"));
    }
}
