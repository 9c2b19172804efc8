//! The events of the outbox. An event is complete: a reader needs nothing from Redis to apply it.
//!
//! A version 1 entry holds one event as a flat list of fields; version 4 the same, of an event that only versions with refunds of
//! parts and payment providers know; version 5, that only versions that bring users in know. A version 3 entry holds the events of a batched
//! call, packed into one text; version 2 is that of releases whose orders had remote lines; in version 6 an order that was paid when it was
//! placed is one text, `order_checked_out`, for two events. Decoding validates every field; an event that does not decode becomes a
//! dead letter.

mod batch;
mod decode;
mod fields;
mod packed;

pub use decode::{BadEvent, Decoded, decode, fields_of, is_newer, request_id};
pub use packed::{pack_lines, unpack_lines, unpack_reply};

use super::*;

/// The version of an entry with one event.
pub const SINGLE: i64 = 1;
/// The version of an entry with a batch of events.
pub const BATCH: i64 = 3;
/// The version of an entry with one event that versions before refunds of parts must not project.
pub const SINGLE_OF_REFUNDS: i64 = 4;
/// The version of an entry with one event about users that versions before bringing users in must not project.
pub const SINGLE_OF_USERS: i64 = 5;
/// The version of an entry with a batch of orders that were paid when they were placed.
pub const BATCH_OF_CHECKOUTS: i64 = 6;
/// The version of an entry with a batch of events of releases whose orders had remote lines.
const BATCH_WITH_REMOTE_LINES: i64 = 2;
/// Separates the parts of a packed event. No part contains a control character.
pub const SEPARATOR: char = '\u{1f}';
/// The maximum number of users that one event creates.
pub const MAX_USERS_PER_EVENT: i64 = 10_000;

/// A decision and its position in its partition.
#[derive(Clone, Debug)]
pub struct Event {
    pub epoch: i64,
    pub seq: i64,
    pub at: Millis,
    /// The id of the request; empty if the decision has no request.
    pub request_id: String,
    pub body: Body,
    /// The reply to a repeat of the request.
    pub record: Option<Record>,
}

/// The idempotency record of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// See [`IdempotencyKey::digest`].
    pub digest: String,
    /// See [`IdempotencyKey::fingerprint`].
    pub fingerprint: String,
    /// The script's reply, packed: see [`unpack_reply`].
    pub reply: String,
}

/// A user that a decision brought in from elsewhere, or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutUser {
    pub user: UserId,
    pub is_new: bool,
    pub name: String,
}

/// The content of a decision.
#[derive(Clone, Debug)]
pub enum Body {
    UsersCreated {
        first: UserId,
        step: i64,
        count: i64,
        balance: Won,
        name: String,
        prefixed: bool,
    },
    /// Opening balances are entries of their own: [`Body::BalanceCharged`].
    UsersPut(Vec<PutUser>),
    UserForgotten {
        user: UserId,
        /// The forfeited balance; `None` if there was none.
        entry: Option<BalanceEntry>,
    },
    ProductCreated {
        product: ProductId,
        name: String,
        price: Won,
        units: i64,
        category: String,
        terms: SaleTerms,
    },
    ProductUpdated {
        product: ProductId,
        name: String,
        price: Won,
        category: String,
        delta: i64,
        /// The number of the price and the terms.
        version: i64,
        terms: SaleTerms,
    },
    CampaignCreated(CampaignTerms),
    CampaignUpdated {
        coupon: CouponId,
        opens_at: Millis,
        closes_at: Millis,
    },
    CouponIssued {
        coupon: CouponId,
        user: UserId,
        issue_no: i64,
        at_home: bool,
    },
    CouponGranted {
        coupon: CouponId,
        user: UserId,
        issue_no: i64,
        issued_at: Millis,
    },
    BalanceCharged(BalanceEntry),
    OrderPlaced(OrderPlaced),
    PaymentStarted(PaymentStarted),
    OrderPaid(OrderPaid),
    OrderClosed(OrderClosed),
    OrderRefunded(OrderRefunded),
    /// The gateway has refunded a part of an order.
    RefundEnded {
        order: OrderId,
        receipt: String,
        part: i64,
        /// The number of refunded parts of the order.
        refunds: i64,
    },
    PaymentEnded {
        order: OrderId,
        receipt: String,
        outcome: PaymentOutcome,
        /// The gateway's transaction, unless an earlier event has it.
        transaction: Option<String>,
    },
    PaymentResolved(PaymentResolved),
    /// Units that a product's owner partition, the event's, gave to another one.
    StockAllotted {
        product: ProductId,
        partition: Partition,
        units: i64,
        /// The units that it ever gave to that partition, with these.
        total: i64,
        price: Won,
        /// The number of the price and the terms.
        version: i64,
        terms: SaleTerms,
    },
    /// The same units, on sale in the other partition, the event's.
    StockReceived {
        product: ProductId,
        units: i64,
        /// The units that it ever received, with these.
        total: i64,
    },
    /// Units that a partition, the event's, gave back to the product's owner partition.
    StockReturned {
        product: ProductId,
        units: i64,
        /// The units of that kind that it ever gave back, with these.
        total: i64,
        withheld: bool,
    },
    /// The same units, in the owner partition, the event's.
    StockRegained {
        product: ProductId,
        partition: Partition,
        units: i64,
        /// The units of that kind that it ever took back from that partition, with these.
        total: i64,
        withheld: bool,
    },
    /// Of releases whose orders had remote lines: units that a partition, the event's, held for an order of another one. A rebuild gives
    /// them to the partition of the order.
    RemoteHold {
        order: OrderId,
        user: UserId,
        lines: Vec<OrderLine>,
        /// `None`: the hold begins.
        from: Option<RemoteHoldState>,
        to: RemoteHoldState,
        /// The held units are kept off sale, as in [`OrderClosed`].
        withheld: bool,
        /// The order of the hold does not exist, and never will.
        forgotten: bool,
    },
    /// Ids for the resources that a request creates. A repeat of the request uses the same ids.
    IdsReserved {
        sequence: String,
        last: i64,
    },
    /// A rebuild, with the units and the coupons that it keeps off sale.
    Rebuilt {
        units: Vec<(ProductId, i64)>,
        coupons: Vec<(CouponId, i64)>,
    },
    StockReleased {
        product: ProductId,
        units: i64,
    },
    CouponsReleased {
        coupon: CouponId,
        count: i64,
    },
}

/// `order_placed`
#[derive(Clone, Debug)]
pub struct OrderPlaced {
    pub order: OrderId,
    pub user: UserId,
    pub lines: Vec<OrderLine>,
    /// Of releases whose orders had them: lines whose units other partitions hold.
    pub remote: Vec<OrderLine>,
    pub total: Won,
    pub discount: Won,
    pub final_price: Won,
    pub coupon: Option<CouponId>,
    pub expires_at: Millis,
}

/// `payment_started`
#[derive(Clone, Debug)]
pub struct PaymentStarted {
    pub order: OrderId,
    pub user: UserId,
    pub payment: PaymentId,
    pub payment_type: PaymentType,
    pub amount: Won,
    pub receipt: String,
    /// The provider's id of the payment, if it was known before the provider approved it.
    pub transaction: Option<String>,
}

/// The outcome of a gateway payment that ended after its order was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentOutcome {
    Refunded,
    Declined,
    /// The gateway confirms the operator's approval.
    Settled,
    /// The gateway does not confirm the operator's approval.
    Disputed,
}

/// `payment_resolved`: an operator's decision on a payment. An `order_paid` or `order_closed` accompanies it.
#[derive(Clone, Debug)]
pub struct PaymentResolved {
    pub order: OrderId,
    pub user: UserId,
    pub receipt: String,
    pub approved: bool,
    pub operator: String,
    pub reason: String,
}

/// `order_paid`
#[derive(Clone, Debug)]
pub struct OrderPaid {
    pub order: OrderId,
    pub user: UserId,
    pub payment: PaymentId,
    pub payment_type: PaymentType,
    pub amount: Won,
    pub receipt: String,
    /// A gateway made the payment, not the balance.
    pub by_gateway: bool,
    /// The gateway's transaction; `None` if the balance paid, or if the operator who resolved the payment did not know it.
    pub transaction: Option<String>,
    pub lines: Vec<OrderLine>,
    pub coupon: Option<CouponId>,
    /// The debit; `None` if the balance did not change.
    pub entry: Option<BalanceEntry>,
    /// The day of the sale, `%Y%m%d` in the service's zone.
    pub day: String,
}

/// `order_closed`
#[derive(Clone, Debug)]
pub struct OrderClosed {
    pub order: OrderId,
    pub user: UserId,
    /// PENDING or PAID.
    pub from: OrderStatus,
    pub status: OrderStatus,
    pub reason: CloseReason,
    pub lines: Vec<OrderLine>,
    pub coupon: Option<CouponId>,
    /// The declined or refunded payment.
    pub receipt: Option<String>,
    /// The gateway may still have taken the money: the payment is queried for a while longer.
    pub watched: bool,
    /// The order's units are kept off sale: a lost decision may have paid the order.
    pub withheld: bool,
    /// The order's units are refunded and stay off sale.
    pub quarantined: bool,
    pub by_gateway: bool,
    /// The operator who refunded the order, and the reason.
    pub operator: Option<(String, String)>,
    /// The refund; `None` if the balance did not change.
    pub entry: Option<BalanceEntry>,
    /// The day of the sale, `%Y%m%d` in the service's zone; empty if there was no sale.
    pub day: String,
}

/// `order_refunded`: a part of a PAID order is refunded, and something is left.
#[derive(Clone, Debug)]
pub struct OrderRefunded {
    pub order: OrderId,
    pub user: UserId,
    /// The number of the part, from 1.
    pub part: i64,
    /// The units of the part.
    pub lines: Vec<OrderLine>,
    /// What is left.
    pub left: Vec<OrderLine>,
    /// The share of the price.
    pub amount: Won,
    /// The units stay off sale.
    pub quarantined: bool,
    pub receipt: String,
    pub by_gateway: bool,
    /// The operator who refunded the part, and the reason.
    pub operator: Option<(String, String)>,
    /// The refund; `None` if the balance did not change.
    pub entry: Option<BalanceEntry>,
    /// The day of the sale, `%Y%m%d` in the service's zone.
    pub day: String,
}

/// The state of a [`Body::RemoteHold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteHoldState {
    Held,
    Settled,
    /// The units are back on sale, as in [`RemoteHoldState::Refunded`].
    Released,
    Refunded,
}

impl RemoteHoldState {
    /// The text in events and in PostgreSQL.
    pub fn as_str(self) -> &'static str {
        match self {
            RemoteHoldState::Held => "HELD",
            RemoteHoldState::Settled => "SETTLED",
            RemoteHoldState::Released => "RELEASED",
            RemoteHoldState::Refunded => "REFUNDED",
        }
    }
}

impl Event {
    /// The event's change of `user`'s balance, if any.
    pub fn entry_of(&self, user: UserId) -> Option<BalanceEntry> {
        let entry = match &self.body {
            Body::UsersCreated { balance, .. } if *balance > 0 => Some(opening_entry(user, *balance, self.at)),
            body => body.entry().cloned(),
        };
        entry.filter(|entry| entry.user_id == user)
    }
}

/// The first balance entry of a user created with a balance.
pub fn opening_entry(user_id: UserId, balance: Won, at: Millis) -> BalanceEntry {
    let kind = TransactionType::Charge;
    BalanceEntry { user_id, entry_no: 1, kind, amount: balance, before: 0, after: balance, order_id: None, at }
}

impl Body {
    /// The change of a balance, of a user that exists.
    pub fn entry(&self) -> Option<&BalanceEntry> {
        match self {
            Body::BalanceCharged(entry) => Some(entry),
            Body::OrderPaid(paid) => paid.entry.as_ref(),
            Body::OrderClosed(closed) => closed.entry.as_ref(),
            Body::OrderRefunded(part) => part.entry.as_ref(),
            Body::UserForgotten { entry, .. } => entry.as_ref(),
            _ => None,
        }
    }

    /// The order that the decision is about, if any.
    pub fn order(&self) -> Option<OrderId> {
        match self {
            Body::OrderPlaced(placed) => Some(placed.order),
            Body::PaymentStarted(started) => Some(started.order),
            Body::OrderPaid(paid) => Some(paid.order),
            Body::OrderClosed(closed) => Some(closed.order),
            Body::OrderRefunded(part) => Some(part.order),
            Body::PaymentResolved(resolved) => Some(resolved.order),
            Body::PaymentEnded { order, .. } | Body::RefundEnded { order, .. } | Body::RemoteHold { order, .. } => {
                Some(*order)
            }
            _ => None,
        }
    }
}
