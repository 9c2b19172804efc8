//! The errors of operations. `http::error` maps each to a status, a code and a message.
//!
//! A variant marked *Extension* is not on the API page.

use std::time::Duration;

/// Why an operation failed. The operation changed nothing, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the payment request is not valid for this order")]
    InvalidPayment,
    #[error("the user's balance is too low")]
    InsufficientBalance,
    /// The payment was declined. The order is now FAILED, and its holds are released.
    #[error("the payment was declined")]
    PaymentDeclined {
        /// An idempotency record supplied this reply.
        replayed: bool,
    },
    #[error("no such order of this user")]
    OrderNotFound,
    #[error("the order is paid already")]
    OrderAlreadyPaid,
    /// Extension: the order to cancel is already CANCELLED or FAILED.
    #[error("the order is closed already")]
    OrderAlreadyClosed,
    /// Extension: the time in which its user may refund the order is over.
    #[error("the order may no longer be refunded by its user")]
    RefundWindowClosed,
    /// Extension: an operator resolved a payment that is not in progress.
    #[error("no payment of the order is under way")]
    NoPaymentUnderWay,
    #[error("no such user")]
    UserNotFound,
    /// Extension: a user with open orders can't be forgotten.
    #[error("the user has open orders")]
    OrdersOpen,
    /// Extension: a user with a balance is forgotten only if the balance is forfeited.
    #[error("the user has a balance")]
    BalanceLeft,
    #[error("the amount is out of bounds")]
    InvalidAmount,
    #[error("the coupon cannot be issued or used")]
    InvalidCoupon,
    /// Extension: no campaign has this id.
    #[error("no such campaign")]
    CampaignNotFound,
    #[error("all coupons are issued")]
    CouponOutOfStock,
    #[error("no such product")]
    ProductNotFound,
    #[error("the order request is not valid")]
    InvalidOrder,
    #[error("a product is sold out")]
    SoldOut,
    /// Extension: a product is not on sale yet, or no more.
    #[error("a product is not on sale now")]
    NotOnSale,
    /// Extension: the user would have more units than the limit of a product.
    #[error("the user's limit of a product is exceeded")]
    PurchaseLimitExceeded,
    #[error("a product has fewer units than requested")]
    InsufficientStock,
    /// Extension: the user has too many PENDING orders.
    #[error("too many open orders")]
    TooManyOpenOrders,
    /// Extension: a request of the operators' API, or a query parameter, is not valid.
    #[error("the request is not valid: {0}")]
    InvalidRequest(&'static str),
    /// Extension: events after the reader's cursor are kept no longer.
    #[error("events after the cursor are gone")]
    EventsExpired,
    /// Extension: no webhook has this id.
    #[error("no such webhook")]
    WebhookNotFound,
    /// Extension: a deployment has no more webhooks.
    #[error("too many webhooks")]
    TooManyWebhooks,
    /// Extension: the old key of the webhook is still valid.
    #[error("the key of the webhook is being rotated")]
    KeyRotating,
    /// Extension: no event that is kept has this id.
    #[error("no such event")]
    EventNotFound,
    /// Extension: the idempotency key was used for a different request.
    #[error("the idempotency key belongs to another request")]
    IdempotencyKeyReused,
    /// Extension: the first request under this key, or a payment of this order, is still running.
    #[error("a request for this is still running")]
    InProgress,
    /// A dependency does not answer. The outcome of a write that was already sent is unknown; a retry under its
    /// idempotency key is safe.
    #[error("unavailable: {reason}")]
    Unavailable { reason: String, retry_after: Duration },
    /// A defect. The details go to the log, never to the client.
    #[error("internal: {0:#}")]
    Internal(#[from] anyhow::Error),
}

impl Error {
    /// [`Error::Unavailable`] with the default retry hint of one second.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Error::Unavailable { reason: reason.into(), retry_after: Duration::from_secs(1) }
    }

    /// Whether the operation may have taken effect. A refusal changes nothing; a failure leaves this open.
    pub fn leaves_outcome_unknown(&self) -> bool {
        matches!(self, Error::Unavailable { .. } | Error::Internal(_))
    }

    /// A copy of the error of a batch, for one more of its requests.
    pub fn again(&self) -> Self {
        match self {
            Error::Unavailable { reason, retry_after } => {
                Error::Unavailable { reason: reason.clone(), retry_after: *retry_after }
            }
            other => Error::Internal(anyhow::anyhow!("{other:#}")),
        }
    }
}
