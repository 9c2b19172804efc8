//! The data of each type of event. Names and units are those of the API; times are UTC.

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

use crate::model::{CloseReason, DiscountType, OrderStatus, PaymentType};

/// The types, each with its data.
macro_rules! types {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal: $data:ident;)*) => {
        /// The type of an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EventType { $($(#[doc = $doc])+ $name,)* }

        impl EventType {
            /// Every type.
            pub const ALL: &[EventType] = &[$(EventType::$name),*];

            /// The `type` of the CloudEvent.
            pub const fn as_str(self) -> &'static str {
                match self { $(EventType::$name => $text,)* }
            }

            /// What it says, for the document.
            pub fn description(self) -> &'static str {
                match self { $(EventType::$name => concat!($($doc),+).trim(),)* }
            }

            /// The name of the schema of its data.
            pub const fn schema(self) -> &'static str {
                match self { $(EventType::$name => stringify!($data),)* }
            }
        }

        /// The schemas of the data of every type, by name.
        pub fn schemas() -> Vec<(String, RefOr<Schema>)> {
            let mut schemas = Vec::new();
            $(
                schemas.push((stringify!($data).to_owned(), $data::schema()));
                $data::schemas(&mut schemas);
            )*
            schemas
        }
    };
}

types! {
    /// Users were created: `count` of them, from `firstUserId` in steps of `step`, each with `balance` won.
    UserCreated = "user.created": UserCreatedData;
    /// Users were created under ids of the shop's own, or changed.
    UserPut = "user.put": UserPutData;
    /// A user was forgotten: the name is gone, and a balance that was left is forfeited.
    UserForgotten = "user.forgotten": UserForgottenData;
    /// A product was created.
    ProductCreated = "product.created": ProductCreatedData;
    /// A product's name, price, category or terms of sale were changed, or units were added or taken away.
    ProductChanged = "product.changed": ProductChangedData;
    /// A campaign of coupons was created.
    CouponCreated = "coupon.created": CouponCreatedData;
    /// The window of a campaign was changed.
    CouponChanged = "coupon.changed": CouponChangedData;
    /// A coupon was issued to a user.
    CouponIssued = "coupon.issued": CouponIssuedData;
    /// An issued coupon has reached its user's partition, and can be used.
    CouponGranted = "coupon.granted": CouponGrantedData;
    /// A user's balance was charged.
    BalanceCharged = "balance.charged": BalanceChargedData;
    /// An order was placed: its units and its coupon are held.
    OrderPlaced = "order.placed": OrderPlacedData;
    /// A gateway is asked for the payment of an order.
    PaymentStarted = "payment.started": PaymentStartedData;
    /// An order was paid.
    OrderPaid = "order.paid": OrderPaidData;
    /// An order was closed: cancelled, expired, declined, or refunded as a whole.
    OrderClosed = "order.closed": OrderClosedData;
    /// A part of a paid order was refunded, and something is left.
    OrderRefunded = "order.refunded": OrderRefundedData;
    /// The gateway has given back the money of a refunded part.
    RefundEnded = "refund.ended": RefundEndedData;
    /// A payment at a gateway ended after its order was decided.
    PaymentEnded = "payment.ended": PaymentEndedData;
    /// An operator decided on a payment whose outcome was unknown.
    PaymentResolved = "payment.resolved": PaymentResolvedData;
    /// A product's owner partition gave units to another one.
    StockAllotted = "stock.allotted": StockMovedData;
    /// The other partition has them on sale.
    StockReceived = "stock.received": StockMovedData;
    /// A partition gave units back to the product's owner partition.
    StockReturned = "stock.returned": StockMovedData;
    /// The owner partition has them again.
    StockRegained = "stock.regained": StockMovedData;
    /// Of releases before 0.1: units for an order of another partition were held, sold or given back.
    StockHeld = "stock.held": StockHeldData;
    /// Units that were withheld after a loss are on sale again.
    StockReleased = "stock.released": StockReleasedData;
    /// Coupons that were withheld after a loss can be issued again.
    CouponReleased = "coupon.released": CouponReleasedData;
    /// Ids were reserved for what a request creates.
    IdsReserved = "ids.reserved": IdsReservedData;
    /// A partition was rebuilt after a loss; what may be missing is withheld.
    PartitionRebuilt = "partition.rebuilt": PartitionRebuiltData;
}

macro_rules! data {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Serialize, ToSchema)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct $name { $($(#[$field_meta])* pub(super) $field: $type,)* }
    )*};
}

data! {
    UserCreatedData {
        first_user_id: i64,
        step: i64,
        count: i64,
        balance: i64,
    }
    /// A user under an id of the shop's own.
    PutUserData {
        user_id: i64,
        /// The user is new.
        created: bool,
    }
    UserPutData {
        users: Vec<PutUserData>,
    }
    UserForgottenData {
        user_id: i64,
        #[schema(required = true)]
        balance: Option<BalanceChangeData>,
    }
    ProductCreatedData {
        product_id: i64,
        product_name: String,
        price: i64,
        category: String,
        stock_quantity: i64,
        #[schema(required = true, format = DateTime)]
        opens_at: Option<String>,
        #[schema(required = true, format = DateTime)]
        closes_at: Option<String>,
        #[schema(required = true)]
        limit_per_user: Option<i64>,
        #[schema(required = true)]
        limit_group: Option<String>,
    }
    ProductChangedData {
        product_id: i64,
        product_name: String,
        price: i64,
        category: String,
        /// Units that were added, or taken away.
        stock_delta: i64,
        /// Counts the changes of the price and the terms.
        version: i64,
        #[schema(required = true, format = DateTime)]
        opens_at: Option<String>,
        #[schema(required = true, format = DateTime)]
        closes_at: Option<String>,
        #[schema(required = true)]
        limit_per_user: Option<i64>,
        #[schema(required = true)]
        limit_group: Option<String>,
    }
    CouponCreatedData {
        coupon_id: i64,
        coupon_code: String,
        discount_type: DiscountType,
        discount_amount: i64,
        total_quantity: i64,
        #[schema(format = DateTime)]
        opens_at: String,
        #[schema(format = DateTime)]
        closes_at: String,
        #[schema(format = DateTime)]
        expired_at: String,
        #[schema(required = true)]
        min_order_price: Option<i64>,
        #[schema(required = true)]
        max_discount_price: Option<i64>,
        product_ids: Vec<i64>,
        categories: Vec<String>,
    }
    CouponChangedData {
        coupon_id: i64,
        #[schema(format = DateTime)]
        opens_at: String,
        #[schema(format = DateTime)]
        closes_at: String,
    }
    CouponIssuedData {
        coupon_id: i64,
        user_id: i64,
        /// The place in the order of arrival.
        issue_no: i64,
    }
    CouponGrantedData {
        coupon_id: i64,
        user_id: i64,
        issue_no: i64,
        #[schema(format = DateTime)]
        issued_at: String,
    }
    BalanceChargedData {
        user_id: i64,
        amount: i64,
        before_balance: i64,
        after_balance: i64,
        /// Counts the entries of the user's history from 1.
        entry_no: i64,
    }
    /// A change of the user's balance.
    BalanceChangeData {
        amount: i64,
        before_balance: i64,
        after_balance: i64,
        entry_no: i64,
    }
    /// A line of an order; the price is that of one unit when the order was placed.
    LineData {
        product_id: i64,
        quantity: i64,
        price: i64,
    }
    OrderPlacedData {
        order_id: i64,
        user_id: i64,
        lines: Vec<LineData>,
        total_price: i64,
        discount_price: i64,
        final_price: i64,
        #[schema(required = true)]
        coupon_id: Option<i64>,
        /// The end of the hold.
        #[schema(format = DateTime)]
        expires_at: String,
    }
    PaymentStartedData {
        order_id: i64,
        user_id: i64,
        payment_id: i64,
        payment_type: PaymentType,
        amount: i64,
        receipt: String,
    }
    OrderPaidData {
        order_id: i64,
        user_id: i64,
        payment_id: i64,
        payment_type: PaymentType,
        amount: i64,
        receipt: String,
        /// A gateway made the payment, not the user's balance.
        by_gateway: bool,
        /// The gateway's transaction.
        #[schema(required = true)]
        transaction_id: Option<String>,
        lines: Vec<LineData>,
        #[schema(required = true)]
        coupon_id: Option<i64>,
        #[schema(required = true)]
        balance: Option<BalanceChangeData>,
    }
    OrderClosedData {
        order_id: i64,
        user_id: i64,
        /// The status before.
        from_status: OrderStatus,
        order_status: OrderStatus,
        close_reason: CloseReason,
        lines: Vec<LineData>,
        #[schema(required = true)]
        coupon_id: Option<i64>,
        /// The declined or refunded payment.
        #[schema(required = true)]
        receipt: Option<String>,
        by_gateway: bool,
        by_operator: bool,
        /// The units are back on sale.
        restocked: bool,
        #[schema(required = true)]
        balance: Option<BalanceChangeData>,
    }
    OrderRefundedData {
        order_id: i64,
        user_id: i64,
        /// The number of the part, from 1.
        part: i64,
        lines: Vec<LineData>,
        left_lines: Vec<LineData>,
        amount: i64,
        receipt: String,
        by_gateway: bool,
        by_operator: bool,
        restocked: bool,
        #[schema(required = true)]
        balance: Option<BalanceChangeData>,
    }
    RefundEndedData {
        order_id: i64,
        receipt: String,
        part: i64,
    }
    PaymentEndedData {
        order_id: i64,
        receipt: String,
        /// `REFUNDED`, `DECLINED`, `SETTLED` or `DISPUTED`.
        outcome: &'static str,
        #[schema(required = true)]
        transaction_id: Option<String>,
    }
    PaymentResolvedData {
        order_id: i64,
        user_id: i64,
        receipt: String,
        approved: bool,
    }
    StockMovedData {
        product_id: i64,
        quantity: i64,
        /// All units that ever moved this way between the two.
        total_quantity: i64,
        /// The units are withheld, not on sale.
        withheld: bool,
    }
    StockHeldData {
        order_id: i64,
        user_id: i64,
        lines: Vec<LineData>,
        /// `HELD`, `SETTLED`, `RELEASED` or `REFUNDED`.
        state: &'static str,
    }
    StockReleasedData {
        product_id: i64,
        quantity: i64,
    }
    CouponReleasedData {
        coupon_id: i64,
        quantity: i64,
    }
    IdsReservedData {
        sequence: String,
        last: i64,
    }
    WithheldUnitsData {
        product_id: i64,
        quantity: i64,
    }
    WithheldCouponsData {
        coupon_id: i64,
        quantity: i64,
    }
    PartitionRebuiltData {
        withheld_products: Vec<WithheldUnitsData>,
        withheld_coupons: Vec<WithheldCouponsData>,
    }
}
