//! Payments, and what operators resolve about them.

use super::{Millis, OrderId, OrderStatus, PaymentId, PaymentType, UserId, Won};

/// A payment to make.
#[derive(Clone, Debug)]
pub struct NewPayment {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub payment_type: PaymentType,
    /// Must equal the order's final price.
    pub amount: Won,
}

/// A payment made.
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

/// An operator's word on a payment whose gateway can't say what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentResolution {
    pub approved: bool,
    /// The gateway's name for it, where the operator knows it.
    pub transaction: Option<String>,
    /// Who says so, and why.
    pub operator: String,
    pub reason: String,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedPayment {
    pub order_id: OrderId,
    pub status: OrderStatus,
    pub resolved_at: Millis,
}

/// A payment that nobody can settle.
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
    /// From when on it has been in that state.
    pub since: Millis,
    /// Times that the gateway was asked in vain.
    pub asks: i64,
    /// What it said the last time.
    pub said: Option<String>,
}

/// Payments that nobody can settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckPayments {
    /// The first hundred.
    pub payments: Vec<StuckPayment>,
    /// How many there are.
    pub total: i64,
}
