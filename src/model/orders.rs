//! Orders.

use super::{
    CloseReason, CountedLimit, CouponId, Millis, OrderId, OrderStatus, PaymentId, PaymentType, ProductId, UserId, Won,
};

/// The maximum number of lines of an order, before lines of one product are summed.
pub const MAX_ORDER_LINES: usize = 100;
/// The maximum number of units of one product in an order, after summing.
pub const MAX_LINE_QUANTITY: i64 = 10_000;

/// An order to place.
#[derive(Clone, Debug)]
pub struct NewOrder {
    pub user_id: UserId,
    /// 1–[`MAX_ORDER_LINES`] distinct products with 1–[`MAX_LINE_QUANTITY`] units each.
    pub lines: Vec<(ProductId, i64)>,
    pub coupon_id: Option<CouponId>,
    /// The type of the payment, of an order that is to be paid at once.
    pub payment_type: Option<PaymentType>,
}

/// An order that was just placed.
#[derive(Clone, Debug)]
pub struct PlacedOrder {
    pub order_id: OrderId,
    pub final_price: Won,
    pub ordered_at: Millis,
    /// Of an order that was also paid.
    pub payment: Option<PlacedPayment>,
}

/// The payment of an order that was placed and paid at once.
#[derive(Clone, Debug)]
pub struct PlacedPayment {
    pub payment_id: PaymentId,
    pub receipt: String,
}

/// A line of an order. Its price is the product's when the order was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderLine {
    pub product_id: ProductId,
    pub quantity: i64,
    /// The price of one unit in won.
    pub price: Won,
    /// The limit per user that it counts against, which the product had when the order was placed.
    pub limit: Option<CountedLimit>,
}

/// An order.
#[derive(Clone, Debug)]
pub struct Order {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub status: OrderStatus,
    pub lines: Vec<OrderLine>,
    pub total: Won,
    pub discount: Won,
    pub final_price: Won,
    pub coupon_id: Option<CouponId>,
    pub ordered_at: Millis,
    /// The end of its hold, if the order is still PENDING then.
    pub expires_at: Millis,
    pub payment: Option<OrderPayment>,
    pub closed_at: Option<Millis>,
    pub close_reason: Option<CloseReason>,
    /// The units that no part of it has refunded, and the rest of what was paid for them. A refund of what is left changes neither.
    pub left: Vec<OrderLine>,
    pub left_price: Won,
}

impl Order {
    /// The refunded units of one of its lines.
    pub fn refunded_quantity(&self, line: &OrderLine) -> i64 {
        let left = self.left.iter().find(|left| left.product_id == line.product_id).map_or(0, |left| left.quantity);
        line.quantity - if self.is_refunded() { 0 } else { left }
    }

    /// What was refunded of its price.
    pub fn refunded_price(&self) -> Won {
        self.final_price - if self.is_refunded() { 0 } else { self.left_price }
    }

    fn is_refunded(&self) -> bool {
        self.close_reason == Some(CloseReason::Refunded)
    }
}

/// The share of `paid` won that lines worth `value` of `total` won have, rounded down; 0 of an order without value.
pub fn share_of(paid: Won, value: Won, total: Won) -> Won {
    let wide = |won: Won| i128::from(won);
    i64::try_from((wide(paid) * wide(value)).checked_div(wide(total)).unwrap_or_default()).unwrap_or(Won::MAX)
}

/// A part of an order to refund, or all that is left of it.
#[derive(Clone, Debug)]
pub struct NewRefund {
    /// Distinct products with 1–[`MAX_LINE_QUANTITY`] units each; `None` for all that is left.
    pub lines: Option<Vec<(ProductId, i64)>>,
    pub terms: RefundTerms,
}

/// Who refunds an order, and what becomes of its units.
#[derive(Clone, Debug)]
pub struct RefundTerms {
    /// How long after its payment the order may be refunded, ms; `None` for any time.
    pub within_ms: Option<i64>,
    /// Whether the units come back on sale.
    pub restock: bool,
    /// The operator who refunds the order, and the reason.
    pub operator: Option<(String, String)>,
}

/// The payment that settled an order.
#[derive(Clone, Debug)]
pub struct OrderPayment {
    pub payment_id: PaymentId,
    pub payment_type: PaymentType,
    pub receipt: String,
    pub paid_at: Millis,
}

/// The orders to list, newest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrderFilter {
    pub status: Option<OrderStatus>,
    pub user_id: Option<UserId>,
    /// From 0.
    pub page: i64,
    /// 1–100.
    pub size: i64,
}
