//! Every way in which a request can end without doing what it asked for.
//!
//! The words here are the domain's; `http::error` is the one table that turns them into status, code and message.

use std::time::Duration;

/// Why a request was not carried out. Unless a variant says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the payment request is not valid for this order")]
    InvalidPayment,
    #[error("the user's balance is too low")]
    InsufficientBalance,
    /// The payment was declined: the order is now FAILED and its holds are given back.
    #[error("the payment was declined")]
    PaymentDeclined {
        /// The answer is a repeat under an idempotency key.
        replayed: bool,
    },
    #[error("no such order of this user")]
    OrderNotFound,
    #[error("the order is paid already")]
    OrderAlreadyPaid,
    /// Ours: cancelling an order that is CANCELLED or FAILED already.
    #[error("the order is closed already")]
    OrderAlreadyClosed,
    /// Ours: an operator decides a payment that is not under way.
    #[error("no payment of the order is under way")]
    NoPaymentUnderWay,
    #[error("no such user")]
    UserNotFound,
    #[error("the amount is out of bounds")]
    InvalidAmount,
    #[error("the coupon cannot be issued or used")]
    InvalidCoupon,
    /// Ours: an operator asked for a campaign that does not exist.
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
    #[error("a product has less than was asked for")]
    InsufficientStock,
    /// Ours: the user has too many PENDING orders.
    #[error("too many open orders")]
    TooManyOpenOrders,
    /// Ours: a request of the operators' API, or a query parameter, is not valid.
    #[error("the request is not valid: {0}")]
    InvalidRequest(&'static str),
    /// Ours: the idempotency key was used for a different request.
    #[error("the idempotency key belongs to another request")]
    IdempotencyKeyReused,
    /// Ours: the first request under this key, or a payment of this order, is still running.
    #[error("a request for this is still running")]
    InProgress,
    /// A dependency can't answer now. Where a write was sent its outcome is unknown, and repeating it under its
    /// idempotency key is safe.
    #[error("unavailable: {reason}")]
    Unavailable { reason: String, retry_after: Duration },
    /// Something that should not happen; the details go to the log, never to the client.
    #[error("internal: {0:#}")]
    Internal(#[from] anyhow::Error),
}

impl Error {
    /// [`Error::Unavailable`] with the usual hint of one second.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Error::Unavailable { reason: reason.into(), retry_after: Duration::from_secs(1) }
    }

    /// Whether what was asked for may have been carried out all the same: no refusal, which changes nothing.
    pub fn leaves_outcome_unknown(&self) -> bool {
        matches!(self, Error::Unavailable { .. } | Error::Internal(_))
    }

    /// The same for another one whom it concerns: of a call that was made for several.
    pub fn again(&self) -> Self {
        match self {
            Error::Unavailable { reason, retry_after } => {
                Error::Unavailable { reason: reason.clone(), retry_after: *retry_after }
            }
            other => Error::Internal(anyhow::anyhow!("{other:#}")),
        }
    }
}
