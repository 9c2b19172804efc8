//! Payments, and their resolution by operators.

use serde::{Deserialize, Serialize};

use super::{Millis, OrderId, OrderStatus, PaymentId, PaymentType, UserId, Won};

/// A payment to make.
#[derive(Clone, Debug)]
pub struct NewPayment {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub payment_type: PaymentType,
    /// The order's final price.
    pub amount: Won,
}

/// A payment to prepare with its provider.
#[derive(Clone, Debug)]
pub struct PaymentToPrepare {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub payment_type: PaymentType,
    /// Where the provider sends the customer afterwards.
    pub return_url: String,
}

/// The preparation of a payment, as the order keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// The name of the payment type.
    pub payment_type: String,
    /// The provider's id of the payment, if it has one already.
    pub transaction: Option<String>,
    /// The order's name at the provider.
    pub merchant_order_id: String,
    /// What the customer buys, as the provider's page names it.
    pub order_name: String,
    /// The order's final price.
    pub amount: Won,
    pub redirect_url: Option<String>,
    pub redirect_mobile_url: Option<String>,
    pub redirect_app_url: Option<String>,
    /// The idempotency key of the request: its digest and its fingerprint.
    pub key: Option<(String, String)>,
}

/// A payment that was made.
#[derive(Clone, Debug)]
pub struct Payment {
    pub payment_id: PaymentId,
    pub order_id: OrderId,
    pub user_id: UserId,
    pub payment_type: PaymentType,
    pub amount: Won,
    pub receipt: String,
    pub paid_at: Millis,
}

/// An operator's decision on a payment whose gateway does not know the outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentResolution {
    pub approved: bool,
    /// The gateway's id of the transaction, if the operator knows it.
    pub transaction: Option<String>,
    pub operator: String,
    pub reason: String,
}

/// The order after the resolution of its payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedPayment {
    pub order_id: OrderId,
    pub status: OrderStatus,
    pub resolved_at: Millis,
}

/// A payment whose outcome neither the gateway nor the service can determine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckPayment {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub payment_type: PaymentType,
    /// The order's price in won.
    pub amount: Won,
    pub receipt: String,
    /// STARTED, WATCHED, REFUND_DUE or UNCONFIRMED.
    pub state: &'static str,
    /// The beginning of that state.
    pub since: Millis,
    /// The number of queries to the gateway without an outcome.
    pub queries: i64,
    /// The gateway's last answer.
    pub last_answer: Option<String>,
}

/// The stuck payments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckPayments {
    /// The first hundred.
    pub payments: Vec<StuckPayment>,
    /// The number of all stuck payments.
    pub total: i64,
}
