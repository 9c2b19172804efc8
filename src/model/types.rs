//! The vocabulary: ids, money, times and the enumerations of the API page.
//!
//! Every value that came from outside passes through a constructor here, so that the rest of the crate can rely on its
//! bounds: ids are 1 to 2^53−1, money is a whole number of won from 0 to 2^53−1 (exact in Lua's and JavaScript's
//! numbers).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest integer that Lua, JavaScript and IEEE doubles hold exactly: 2^53−1.
pub const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// A whole number of won, 0 to [`MAX_SAFE_INTEGER`] wherever it is stored.
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

            /// The number itself.
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
    /// A user; at home in partition `id mod N`.
    UserId;
    /// A product; its stock is in partition `id mod N`.
    ProductId;
    /// A coupon campaign; its counter and holders are in partition `id mod N`.
    CouponId;
    /// An order; at home in its user's partition, which is also `id mod N`.
    OrderId;
    /// A payment of an order.
    PaymentId;
}

/// A word that is none of an enumeration's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a word of this enumeration")]
pub struct UnknownName;

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)* }

        impl $name {
            /// Every value, in the order of the API page.
            pub const ALL: &[$name] = &[$($name::$variant),*];

            /// The word used in JSON, in Redis and in Postgres.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(word: &str) -> Result<Self, UnknownName> {
                match word { $($word => Ok($name::$variant),)* _ => Err(UnknownName) }
            }
        }
    )*};
}

words! {
    /// How a payment is made.
    PaymentType {
        Card = "CARD",
        KakaoPay = "KAKAO_PAY",
        Toss = "TOSS",
        /// Ours: explicitly from the user's balance.
        Balance = "BALANCE",
    }
    /// Where an order stands.
    OrderStatus {
        Pending = "PENDING",
        Paid = "PAID",
        Cancelled = "CANCELLED",
        Failed = "FAILED",
    }
    /// Why an order ended without being (or staying) paid.
    CloseReason {
        CancelledByUser = "CANCELLED_BY_USER",
        Expired = "EXPIRED",
        Refunded = "REFUNDED",
        PaymentDeclined = "PAYMENT_DECLINED",
    }
    /// What a user can do with a coupon, as the API shows it.
    CouponStatus {
        Available = "AVAILABLE",
        Used = "USED",
        Expired = "EXPIRED",
    }
    /// What `discountAmount` means: percent of the total, or won.
    DiscountType {
        Percentage = "PERCENTAGE",
        Fixed = "FIXED",
    }
    /// The kind of a balance change.
    TransactionType {
        Charge = "CHARGE",
        Payment = "PAYMENT",
        /// Ours: the money of a refunded order coming back.
        Refund = "REFUND",
    }
    /// The calendar days, the current one included, over which sales are ranked.
    RankingScope {
        ThreeDays = "THREE_DAYS",
        Weekly = "WEEKLY",
        /// Ours.
        Today = "TODAY",
        /// Ours: 30 days.
        Monthly = "MONTHLY",
    }
}

impl RankingScope {
    /// Calendar days covered, the current one included.
    pub const fn days(self) -> u32 {
        match self {
            RankingScope::Today => 1,
            RankingScope::ThreeDays => 3,
            RankingScope::Weekly => 7,
            RankingScope::Monthly => 30,
        }
    }

    /// The longest scope's days: how long a day's bucket must live.
    pub const MAX_DAYS: u32 = 30;
}

/// A product category: `OUTER`, `TOP`, `BOTTOM`, `SHOES`, or any other token `[A-Z][A-Z0-9_]{0,31}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Category(String);

impl Category {
    /// The token itself.
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

/// The discount of a campaign; immutable once the campaign exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discount {
    pub kind: DiscountType,
    /// Percent 1–100, or won.
    pub amount: i64,
}

impl Discount {
    /// Won taken off `total`, rounded down, never more than `total`.
    ///
    /// `order_place.lua` decides with the same arithmetic; a property test holds the two together.
    pub fn of(self, total: Won) -> Won {
        match self.kind {
            DiscountType::Fixed => self.amount.min(total),
            DiscountType::Percentage => (i128::from(total) * i128::from(self.amount) / 100) as Won,
        }
    }
}
