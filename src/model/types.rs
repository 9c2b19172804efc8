//! Ids, money and the enumerations of the API page.
//!
//! Values from outside pass through the constructors of this module, so the rest of the crate relies on their bounds:
//! ids are 1 to 2^53−1, money is a whole number of won from 0 to 2^53−1. Numbers of Lua and JavaScript hold both exactly.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest integer that Lua, JavaScript and IEEE doubles hold exactly: 2^53−1.
pub const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// A whole number of won. Stored amounts are 0 to [`MAX_SAFE_INTEGER`].
pub type Won = i64;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// `None` unless `id` is 1 to 2^53−1.
            pub const fn new(id: i64) -> Option<Self> {
                if id >= 1 && id <= MAX_SAFE_INTEGER { Some(Self(id)) } else { None }
            }

            /// The number.
            pub const fn get(self) -> i64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// A user. The owner partition is `id mod N`.
    UserId;
    /// A product. Partition `id mod N` holds its stock.
    ProductId;
    /// A coupon campaign. Partition `id mod N` holds its counter and its holders.
    CouponId;
    /// An order. Its owner partition is its user's, and also `id mod N`.
    OrderId;
    /// A payment of an order.
    PaymentId;
    /// A receiver of events.
    WebhookId;
}

/// A name that the enumeration does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name of this enumeration")]
pub struct UnknownName;

/// Enums with one text per variant: the same in JSON, in Redis and in PostgreSQL.
macro_rules! text_enums {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// Every value, in the order of the API page.
            pub const ALL: &[$name] = &[$($name::$variant),*];

            /// The text in JSON, in Redis and in PostgreSQL.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text { $($text => Ok($name::$variant),)* _ => Err(UnknownName) }
            }
        }
    )*};
}

text_enums! {
    /// How a payment is made.
    PaymentType {
        Card = "CARD",
        KakaoPay = "KAKAO_PAY",
        Toss = "TOSS",
        /// Extension: the user's balance pays.
        Balance = "BALANCE",
    }
    /// The status of an order.
    OrderStatus {
        Pending = "PENDING",
        Paid = "PAID",
        Cancelled = "CANCELLED",
        Failed = "FAILED",
    }
    /// Extension: whether a product can be bought now.
    SaleStatus {
        Scheduled = "SCHEDULED",
        OnSale = "ON_SALE",
        SoldOut = "SOLD_OUT",
        Ended = "ENDED",
    }
    /// Why an order was closed without, or after, a payment.
    CloseReason {
        CancelledByUser = "CANCELLED_BY_USER",
        Expired = "EXPIRED",
        Refunded = "REFUNDED",
        PaymentDeclined = "PAYMENT_DECLINED",
    }
    /// The status of a user's coupon, as the API shows it.
    CouponStatus {
        Available = "AVAILABLE",
        Used = "USED",
        Expired = "EXPIRED",
    }
    /// The unit of `discountAmount`: percent of the total, or won.
    DiscountType {
        Percentage = "PERCENTAGE",
        Fixed = "FIXED",
    }
    /// The kind of a balance change.
    TransactionType {
        Charge = "CHARGE",
        Payment = "PAYMENT",
        /// Extension: the refund of an order.
        Refund = "REFUND",
    }
    /// Extension: whether a webhook is sent events.
    WebhookStatus {
        On = "ON",
        /// An operator has switched it off.
        Off = "OFF",
        /// Its receiver has taken nothing for days.
        Failed = "FAILED",
    }
    /// The calendar days, the current one included, over which sales are ranked.
    RankingScope {
        ThreeDays = "THREE_DAYS",
        Weekly = "WEEKLY",
        /// Extension.
        Today = "TODAY",
        /// Extension: 30 days.
        Monthly = "MONTHLY",
    }
    /// Extension: what an operator may do. Each role includes the ones before it.
    Role {
        /// Reads.
        Viewer = "viewer",
        /// Runs sales: products and coupons.
        Operator = "operator",
        /// Money, users, webhooks and recovery.
        Admin = "admin",
    }
}

impl Role {
    /// Whether this role may do what `needed` may.
    pub const fn includes(self, needed: Role) -> bool {
        self as u8 >= needed as u8
    }
}

impl RankingScope {
    /// The number of calendar days, the current one included.
    pub const fn days(self) -> u32 {
        match self {
            RankingScope::Today => 1,
            RankingScope::ThreeDays => 3,
            RankingScope::Weekly => 7,
            RankingScope::Monthly => 30,
        }
    }

    /// The days of the longest scope. A day's bucket must live at least as long.
    pub const MAX_DAYS: u32 = 30;
}

/// A product category: `OUTER`, `TOP`, `BOTTOM`, `SHOES`, or any other token `[A-Z][A-Z0-9_]{0,31}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Category(String);

impl Category {
    /// The token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Category {
    type Err = UnknownName;

    fn from_str(token: &str) -> Result<Self, UnknownName> {
        let mut bytes = token.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_uppercase());
        let tail = bytes.all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        if head && tail && token.len() <= 32 { Ok(Category(token.to_owned())) } else { Err(UnknownName) }
    }
}

/// The discount of a campaign. It never changes once the campaign exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discount {
    pub kind: DiscountType,
    /// Percent 1–100, or won.
    pub amount: i64,
}

impl Discount {
    /// The discount on `total` in won, rounded down, at most `total`.
    ///
    /// `order_place.lua` decides by the same arithmetic; a property test compares the two.
    pub fn of(self, total: Won) -> Won {
        match self.kind {
            DiscountType::Fixed => self.amount.min(total),
            DiscountType::Percentage => (i128::from(total) * i128::from(self.amount) / 100) as Won,
        }
    }
}
