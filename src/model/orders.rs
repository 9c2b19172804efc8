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
