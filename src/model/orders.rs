//! Orders.

use super::{CloseReason, CouponId, Millis, OrderId, OrderStatus, PaymentId, PaymentType, ProductId, UserId, Won};

/// The most lines in one order, before summing.
pub const MAX_ORDER_LINES: usize = 100;
/// The most units of one product in one order, after summing.
pub const MAX_LINE_QUANTITY: i64 = 10_000;

/// An order to place.
#[derive(Clone, Debug)]
pub struct NewOrder {
    pub user_id: UserId,
    /// Distinct products, each 1–[`MAX_LINE_QUANTITY`] units, 1–[`MAX_ORDER_LINES`] of them.
    pub lines: Vec<(ProductId, i64)>,
    pub coupon_id: Option<CouponId>,
}

/// An order just placed.
#[derive(Clone, Debug)]
pub struct PlacedOrder {
    pub order_id: OrderId,
    pub final_price: Won,
    pub ordered_at: Millis,
}

/// A line of an order, its price frozen when it was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderLine {
    pub product_id: ProductId,
    pub quantity: i64,
    /// Won for one unit.
    pub price: Won,
}

/// An order, whole.
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
    /// When its hold ends if it is still PENDING.
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

/// Which orders to list, newest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrderFilter {
    pub status: Option<OrderStatus>,
    pub user_id: Option<UserId>,
    /// From 0.
    pub page: i64,
    /// 1–100.
    pub size: i64,
}

/// A page of orders as Postgres has them.
#[derive(Clone, Debug)]
pub struct OrderPage {
    pub orders: Vec<Order>,
    pub page: i64,
    pub size: i64,
    /// Orders in all that match.
    pub total: i64,
}
