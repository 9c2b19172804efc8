//! The codes that scripts reply with.

use std::fmt;

macro_rules! reply_codes {
    (
        decisions { $($decision:ident = $decision_text:literal,)* }
        others { $($other:ident = $other_text:literal,)* }
    ) => {
        /// The first element of a script's reply. The header of every script lists its codes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ReplyCode {
            $($decision,)*
            $($other,)*
        }

        impl ReplyCode {
            pub const ALL: &[ReplyCode] = &[$(Self::$decision,)* $(Self::$other,)*];

            pub fn parse(text: &str) -> Option<Self> {
                match text {
                    $($decision_text => Some(Self::$decision),)*
                    $($other_text => Some(Self::$other),)*
                    _ => None,
                }
            }

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$decision => $decision_text,)*
                    $(Self::$other => $other_text,)*
                }
            }

            /// Whether the script decided something. Its epoch and seq follow such a code.
            pub fn is_decision(self) -> bool {
                matches!(self, $(Self::$decision)|*)
            }
        }
    };
}

// The codes of the busiest scripts stand first in each part.
reply_codes! {
    decisions {
        Issued = "ISSUED",
        Placed = "PLACED",
        Paid = "PAID",
        CheckedOut = "CHECKED_OUT",
        Charged = "CHARGED",
        Declined = "DECLINED",
        Closed = "CLOSED",
        Allotted = "ALLOTTED",
        CouponsReleased = "COUPONS_RELEASED",
        Created = "CREATED",
        Finished = "FINISHED",
        Forgotten = "FORGOTTEN",
        Granted = "GRANTED",
        Moved = "MOVED",
        Received = "RECEIVED",
        Refunded = "REFUNDED",
        Regained = "REGAINED",
        Reserved = "RESERVED",
        Resolved = "RESOLVED",
        Returned = "RETURNED",
        Started = "STARTED",
        UnitsReleased = "UNITS_RELEASED",
        Updated = "UPDATED",
    }
    others {
        OutOfStock = "OUT_OF_STOCK",
        SoldOut = "SOLD_OUT",
        Replayed = "REPLAYED",
        Allocated = "ALLOCATED",
        AlreadyClosed = "ALREADY_CLOSED",
        AlreadyExists = "ALREADY_EXISTS",
        AlreadyGranted = "ALREADY_GRANTED",
        AlreadyHolds = "ALREADY_HOLDS",
        AlreadyPaid = "ALREADY_PAID",
        AlreadyPresent = "ALREADY_PRESENT",
        AlreadyReceived = "ALREADY_RECEIVED",
        AlreadyRegained = "ALREADY_REGAINED",
        AlreadyReturned = "ALREADY_RETURNED",
        BalanceLeft = "BALANCE_LEFT",
        Behind = "BEHIND",
        CampaignNotFound = "CAMPAIGN_NOT_FOUND",
        Claimed = "CLAIMED",
        ClosesInPast = "CLOSES_IN_PAST",
        Entries = "ENTRIES",
        Evicted = "EVICTED",
        Frozen = "FROZEN",
        GroupSet = "GROUP_SET",
        InProgress = "IN_PROGRESS",
        InsufficientBalance = "INSUFFICIENT_BALANCE",
        InsufficientStock = "INSUFFICIENT_STOCK",
        InvalidCoupon = "INVALID_COUPON",
        InvalidWindow = "INVALID_WINDOW",
        KeyReused = "KEY_REUSED",
        LimitExceeded = "LIMIT_EXCEEDED",
        Marked = "MARKED",
        NoSequence = "NO_SEQUENCE",
        NotDue = "NOT_DUE",
        NotOnSale = "NOT_ON_SALE",
        NotOpen = "NOT_OPEN",
        NotPaid = "NOT_PAID",
        NotRefundable = "NOT_REFUNDABLE",
        OrderNotFound = "ORDER_NOT_FOUND",
        OrdersOpen = "ORDERS_OPEN",
        OtherDay = "OTHER_DAY",
        OtherLimit = "OTHER_LIMIT",
        Overflow = "OVERFLOW",
        PaidBefore = "PAID_BEFORE",
        PartitionClosed = "PARTITION_CLOSED",
        Postponed = "POSTPONED",
        Prepared = "PREPARED",
        PriceSet = "PRICE_SET",
        ProductNotFound = "PRODUCT_NOT_FOUND",
        PurchaseLimitExceeded = "PURCHASE_LIMIT_EXCEEDED",
        Raised = "RAISED",
        ReleaseNotPrepared = "RELEASE_NOT_PREPARED",
        ReleasePrepared = "RELEASE_PREPARED",
        Restored = "RESTORED",
        // Of an idempotency record: no script replies with it.
        Running = "RUNNING",
        Settled = "SETTLED",
        Split = "SPLIT",
        Stale = "STALE",
        TooManyOpen = "TOO_MANY_OPEN",
        Unchanged = "UNCHANGED",
        UserNotFound = "USER_NOT_FOUND",
        WindowClosed = "WINDOW_CLOSED",
        WrongAmount = "WRONG_AMOUNT",
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
