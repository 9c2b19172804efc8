//! The outbox's vocabulary: what a decision wrote down, whole, so that nobody has to look at Redis to understand it.
//!
//! An entry of the outbox has one event, as a flat list of fields (version 1), or those of a call that decided many requests
//! at once, packed into one text (version 2). Decoding trusts nothing: what does not fit is an error with the reason,
//! which the projector files as a dead letter.

mod decode;
mod fields;
mod packed;

pub use decode::{BadEvent, Decoded, decode, fields_of, is_newer, request_id};
pub use packed::{pack_lines, unpack_lines, unpack_reply};

use super::*;

/// The versions of entries that this code writes and reads: of one event, and of many.
pub const SINGLE: i64 = 1;
pub const BATCH: i64 = 2;
/// What separates the parts of a packed event, and the events of an entry; no part has a control character in it.
pub const SEPARATOR: char = '\u{1f}';
/// The most users that one event creates.
pub const MAX_USERS_PER_EVENT: i64 = 10_000;

/// A decision, and where it stands in its partition's books.
#[derive(Clone, Debug)]
pub struct Event {
    pub epoch: i64,
    pub seq: i64,
    pub at: Millis,
    /// Of the request that it was decided for; empty where it has none.
    pub request_id: String,
    pub body: Body,
    /// What is to be answered to a repeat of the request.
    pub record: Option<Record>,
}

/// The idempotency record of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the key, as in the record's name.
    pub digest: String,
    /// Of the request.
    pub fingerprint: String,
    /// The script's reply, packed: see [`unpack_reply`].
    pub reply: String,
}

/// What was decided. Lines named `lines` are of products at home in the event's partition, `far` of others.
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
    ProductCreated {
        product: ProductId,
        name: String,
        price: Won,
        units: i64,
        category: String,
    },
    ProductUpdated {
        product: ProductId,
        name: String,
        price: Won,
        category: String,
        delta: i64,
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
    OrderPlaced(Placed),
    PaymentStarted(Started),
    OrderPaid(Paid),
    OrderClosed(Closed),
    PaymentEnded {
        order: OrderId,
        receipt: String,
        outcome: PaymentOutcome,
        /// The gateway's transaction, where it is known only now.
        transaction: Option<String>,
    },
    PaymentResolved(Resolved),
    StockHeld {
        order: OrderId,
        user: UserId,
        lines: Vec<OrderLine>,
    },
    StockSettled {
        order: OrderId,
        user: UserId,
        lines: Vec<OrderLine>,
        from: HoldState,
        to: HoldState,
        /// What was held is kept off sale, as in [`Closed`].
        withheld: bool,
        /// No order came of it, and none can.
        forgotten: bool,
    },
    /// Ids that a request will create under, however often it is repeated.
    IdsReserved {
        sequence: String,
        last: i64,
    },
    /// A rebuild: what it keeps off sale.
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
pub struct Placed {
    pub order: OrderId,
    pub user: UserId,
    pub lines: Vec<OrderLine>,
    pub remote: Vec<OrderLine>,
    pub total: Won,
    pub discount: Won,
    pub final_price: Won,
    pub coupon: Option<CouponId>,
    pub expires_at: Millis,
}

/// `payment_started`
#[derive(Clone, Debug)]
pub struct Started {
    pub order: OrderId,
    pub user: UserId,
    pub payment: PaymentId,
    pub payment_type: PaymentType,
    pub amount: Won,
    pub receipt: String,
}

/// How a gateway payment ended that outlived the decision about its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentOutcome {
    Refunded,
    Declined,
    /// The gateway says what an operator said: approved.
    Settled,
    /// The gateway never said so.
    Disputed,
}

/// `payment_resolved`: what an operator said of a payment, beside the `order_paid` or `order_closed` that follows from it.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub order: OrderId,
    pub user: UserId,
    pub receipt: String,
    pub approved: bool,
    pub operator: String,
    pub reason: String,
}

/// `order_paid`
#[derive(Clone, Debug)]
pub struct Paid {
    pub order: OrderId,
    pub user: UserId,
    pub payment: PaymentId,
    pub payment_type: PaymentType,
    pub amount: Won,
    pub receipt: String,
    /// Paid through a gateway, and not from the balance.
    pub by_gateway: bool,
    /// The gateway's transaction; `None` where the balance paid, or an operator did not know it.
    pub transaction: Option<String>,
    pub lines: Vec<OrderLine>,
    pub remote: Vec<OrderLine>,
    pub coupon: Option<CouponId>,
    /// What left the balance; `None` where nothing did.
    pub entry: Option<BalanceEntry>,
    /// The day of the sale, `%Y%m%d` in the service's zone.
    pub day: String,
}

/// `order_closed`
#[derive(Clone, Debug)]
pub struct Closed {
    pub order: OrderId,
    pub user: UserId,
    /// PENDING or PAID.
    pub from: OrderStatus,
    pub status: OrderStatus,
    pub reason: CloseReason,
    pub lines: Vec<OrderLine>,
    pub remote: Vec<OrderLine>,
    pub coupon: Option<CouponId>,
    /// The payment that was declined or refunded.
    pub receipt: Option<String>,
    /// The gateway could not say for certain that it took nothing, and is asked for a while yet.
    pub watched: bool,
    /// What the order held is kept off sale: decisions that were lost may have paid it.
    pub withheld: bool,
    pub by_gateway: bool,
    /// What came back to the balance.
    pub entry: Option<BalanceEntry>,
    /// The day of the sale, `%Y%m%d`; empty where there was none.
    pub day: String,
}

/// Where stock stands that is held for an order at home in another partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    Held,
    Settled,
    /// Back on sale, as is the next.
    Released,
    Refunded,
}

impl HoldState {
    /// As Redis and Postgres have it.
    pub fn as_str(self) -> &'static str {
        match self {
            HoldState::Held => "HELD",
            HoldState::Settled => "SETTLED",
            HoldState::Released => "RELEASED",
            HoldState::Refunded => "REFUNDED",
        }
    }
}

impl Event {
    /// What the event did to `user`'s balance, if anything.
    pub fn entry_of(&self, user: UserId) -> Option<BalanceEntry> {
        let entry = match &self.body {
            Body::BalanceCharged(entry) => Some(entry.clone()),
            Body::OrderPaid(paid) => paid.entry.clone(),
            Body::OrderClosed(closed) => closed.entry.clone(),
            Body::UsersCreated { balance, .. } if *balance > 0 => Some(opening_entry(user, *balance, self.at)),
            _ => None,
        };
        entry.filter(|entry| entry.user_id == user)
    }
}

/// The first entry of a user that was created with a balance.
pub fn opening_entry(user_id: UserId, balance: Won, at: Millis) -> BalanceEntry {
    let kind = TransactionType::Charge;
    BalanceEntry { user_id, entry_no: 1, kind, amount: balance, before: 0, after: balance, order_id: None, at }
}

impl Body {
    /// The order that it is about, if any.
    pub fn order(&self) -> Option<OrderId> {
        match self {
            Body::OrderPlaced(placed) => Some(placed.order),
            Body::PaymentStarted(started) => Some(started.order),
            Body::OrderPaid(paid) => Some(paid.order),
            Body::OrderClosed(closed) => Some(closed.order),
            Body::PaymentResolved(resolved) => Some(resolved.order),
            Body::PaymentEnded { order, .. } | Body::StockHeld { order, .. } | Body::StockSettled { order, .. } => {
                Some(*order)
            }
            _ => None,
        }
    }
}
