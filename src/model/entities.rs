//! What the verbs take and give: plain values, already validated, in the domain's own types.

use sha2::{Digest, Sha256};

use super::types::*;

/// What accompanies every write: who asked, and under which idempotency key.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `x-request-id`, at most 64 visible ASCII characters; carried into the event.
    pub request_id: String,
    /// The request's idempotency key, if it had one.
    pub key: Option<IdempotencyKey>,
}

/// An `Idempotency-Key` bound to the request that it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Whose key it is (a user's id, or "op"), "-", and the SHA-256 of the key, hex, shortened to 128 bits: what the record is
    /// filed under.
    pub digest: String,
    /// The same of the method, the path and the decoded body: what a repeat must match.
    pub fingerprint: String,
}

/// Whose an idempotency key is: another's of the same text is another key.
#[derive(Clone, Copy, Debug)]
pub enum KeyOwner<'a> {
    User(UserId),
    /// By name.
    Operator(&'a str),
}

impl IdempotencyKey {
    /// `request` is any canonical form of the request: equal requests give equal bytes.
    pub fn new(owner: KeyOwner<'_>, key: &str, request: &[u8]) -> Self {
        let digest_of = match owner {
            KeyOwner::User(user) => format!("{user}-{}", digest(key.as_bytes())),
            KeyOwner::Operator(name) => format!("op-{}", digest(format!("{name}\n{key}").as_bytes())),
        };
        IdempotencyKey { digest: digest_of, fingerprint: digest(request) }
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An answer, and whether it is the stored answer to an earlier request under the same idempotency key.
#[derive(Clone, Debug)]
pub struct Reply<T> {
    pub value: T,
    pub replayed: bool,
}

impl<T> Reply<T> {
    /// The answer to a request seen for the first time.
    pub fn first(value: T) -> Self {
        Reply { value, replayed: false }
    }

    /// The same reply about something else.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Reply<U> {
        Reply { value: f(self.value), replayed: self.replayed }
    }
}

/// A user's balance.
#[derive(Clone, Debug)]
pub struct Balance {
    pub user_id: UserId,
    pub user_name: String,
    pub balance: Won,
}

/// One change of a balance. `entry_no` counts a user's entries from 1 without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalanceEntry {
    pub user_id: UserId,
    pub entry_no: i64,
    pub kind: TransactionType,
    pub amount: Won,
    pub before: Won,
    pub after: Won,
    /// The order paid or refunded.
    pub order_id: Option<OrderId>,
    pub at: Millis,
}

/// A campaign's terms. Only its window may be moved once it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CampaignTerms {
    pub coupon_id: CouponId,
    pub code: String,
    pub discount: Discount,
    pub total: i64,
    /// First instant of the window.
    pub opens_at: Millis,
    /// First instant after the window.
    pub closes_at: Millis,
    /// First instant at which its coupons can no longer be used.
    pub expires_at: Millis,
}

/// A campaign and how far it is given out.
#[derive(Clone, Debug)]
pub struct Campaign {
    pub terms: CampaignTerms,
    pub issued: i64,
    /// Kept back by a rebuild, until an operator releases them.
    pub withheld: i64,
}

/// A campaign to create. Times that were left out: open at once, and until `expires_at`.
#[derive(Clone, Debug)]
pub struct NewCampaign {
    /// 1–64 characters.
    pub code: String,
    pub discount: Discount,
    /// 1–1,000,000,000.
    pub total: i64,
    pub opens_at: Option<Millis>,
    pub closes_at: Option<Millis>,
    pub expires_at: Millis,
}

/// A change of a campaign's window; what is left out stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct CampaignPatch {
    pub opens_at: Option<Millis>,
    /// A time just past means now.
    pub closes_at: Option<Millis>,
}

/// A coupon just given out.
#[derive(Clone, Debug)]
pub struct IssuedCoupon {
    pub terms: std::sync::Arc<CampaignTerms>,
    /// The place in the order of arrival, from 1.
    pub issue_no: i64,
    pub issued_at: Millis,
}

/// A coupon that a user holds.
#[derive(Clone, Debug)]
pub struct UserCoupon {
    pub terms: std::sync::Arc<CampaignTerms>,
    pub issue_no: i64,
    pub issued_at: Millis,
    /// As shown now: held or used coupons are USED, unused ones past their time EXPIRED.
    pub status: CouponStatus,
    pub used_at: Option<Millis>,
    /// The PENDING order that holds it.
    pub held_by: Option<OrderId>,
}

/// A product as a storefront shows it.
#[derive(Clone, Debug)]
pub struct Product {
    pub product_id: ProductId,
    pub name: String,
    pub price: Won,
    /// Units on sale: neither held nor sold.
    pub stock: i64,
    pub category: String,
}

/// A page of the catalogue, by product id.
#[derive(Clone, Debug)]
pub struct ProductPage {
    pub products: Vec<Product>,
    /// From 0.
    pub page: i64,
    pub size: i64,
    /// Products in all (of the category).
    pub total: i64,
}

/// A product and where its units are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelvedProduct {
    pub product_id: ProductId,
    pub name: String,
    pub category: String,
    pub price: Won,
    /// Units on sale, held by PENDING orders, sold by PAID ones, and kept off sale by a rebuild.
    pub on_sale: i64,
    pub held: i64,
    pub sold: i64,
    pub withheld: i64,
}

/// A product to create.
#[derive(Clone, Debug)]
pub struct NewProduct {
    /// 1–200 characters.
    pub name: String,
    /// 0–[`MAX_PRICE`].
    pub price: Won,
    /// 0–[`MAX_STOCK`].
    pub stock: i64,
    pub category: Category,
}

/// What to change about a product; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct ProductPatch {
    pub name: Option<String>,
    pub price: Option<Won>,
    pub category: Option<Category>,
    /// Units to put on sale, or (negative) to take off; never below zero on sale.
    pub stock_delta: Option<i64>,
}

/// The dearest price of one unit: a trillion won. An order's total stays exact all the same (see `order_place.lua`).
pub const MAX_PRICE: Won = 1_000_000_000_000;
/// The most units of one product that may be on sale, held and sold together.
pub const MAX_STOCK: i64 = 1_000_000_000;
/// The largest opening balance of a user.
pub const MAX_OPENING_BALANCE: Won = 1_000_000_000_000;
/// The most that one charge may add.
pub const MAX_CHARGE: Won = 100_000;
/// The most lines in one order, before summing.
pub const MAX_ORDER_LINES: usize = 100;
/// The most units of one product in one order, after summing.
pub const MAX_LINE_QUANTITY: i64 = 10_000;

/// A place in the ranking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedProduct {
    pub product_id: ProductId,
    /// Units of paid orders, net of refunds.
    pub units: i64,
    /// Won at list price, net of refunds.
    pub won: Won,
    /// From 1.
    pub position: i64,
}

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

/// A user to create.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// 1–100 characters.
    pub name: String,
    /// 0–[`MAX_OPENING_BALANCE`]; more than 0 is the first entry of the history.
    pub balance: Won,
}

/// Users to create: `count` of them, named `prefix` and their id, each with `balance`.
#[derive(Clone, Debug)]
pub struct NewUsers {
    /// 1–1,000,000.
    pub count: i64,
    /// 0–80 characters.
    pub prefix: String,
    pub balance: Won,
}

/// Users created, with consecutive ids.
#[derive(Clone, Copy, Debug)]
pub struct CreatedUsers {
    pub first: UserId,
    pub count: i64,
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

/// How far the projection is behind the decisions.
#[derive(Clone, Debug)]
pub struct ProjectionStatus {
    /// Decisions not yet in Postgres.
    pub lag_events: i64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// How many decisions Postgres may be behind before writes are turned away.
    pub max_backlog: i64,
    pub dead_letters: i64,
    pub partitions: Vec<PartitionStatus>,
}

/// Which dead letter: an entry of a partition's outbox, and which of its decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterId {
    pub partition: u16,
    /// `milliseconds-number`
    pub stream_id: String,
    /// The decision's number; `None` of an entry that is none.
    pub seq: Option<i64>,
}

/// An event that could not be applied to Postgres.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub id: DeadLetterId,
    /// Why not, the last time that it was tried.
    pub reason: String,
    /// The event: names and texts.
    pub fields: serde_json::Value,
    pub recorded_at: Millis,
}

/// A page of dead letters, newest first.
#[derive(Clone, Debug)]
pub struct DeadLetterPage {
    pub dead_letters: Vec<DeadLetter>,
    pub page: i64,
    pub size: i64,
    pub total: i64,
}

/// A user's story.
#[derive(Clone, Debug)]
pub struct UserTimeline {
    pub balance: Balance,
    /// The newest first, up to a bound.
    pub coupons: Vec<UserCoupon>,
    pub coupons_in_all: i64,
    /// `None` while Postgres is away.
    pub written: Option<UserTrace>,
}

/// What Postgres tells of a user.
#[derive(Clone, Debug)]
pub struct UserTrace {
    /// The newest balance changes, oldest first.
    pub entries: Vec<BalanceEntry>,
    /// PENDING orders, newest first.
    pub open: OrderPage,
    /// Orders, newest first.
    pub last: OrderPage,
    /// What could not be applied.
    pub dead_letters: Vec<DeadLetter>,
}

/// An order's story.
#[derive(Clone, Debug)]
pub struct OrderTimeline {
    pub order: Order,
    /// Its status there, if it has not left.
    pub in_redis: Option<OrderStatus>,
    /// `None` while Postgres is away, or does not have it.
    pub trace: Option<OrderTrace>,
    /// What could not be applied; `None` while Postgres is away.
    pub dead_letters: Option<Vec<DeadLetter>>,
}

/// What happened to an order, as Postgres has it, in its words.
#[derive(Clone, Debug)]
pub struct OrderTrace {
    pub status: String,
    pub placed_at: Millis,
    pub expires_at: Millis,
    pub paid_at: Option<Millis>,
    pub closed_at: Option<Millis>,
    pub close_reason: Option<String>,
    pub payment: Option<PaymentTrace>,
    /// Number, kind, won and time of what it did to its user's balance.
    pub entries: Vec<(i64, String, Won, Millis)>,
    /// Partition and state of stock held elsewhere.
    pub holds: Vec<(u16, String)>,
}

/// The same of its payment.
#[derive(Clone, Debug)]
pub struct PaymentTrace {
    pub payment_id: i64,
    pub payment_type: String,
    pub method: String,
    pub status: String,
    pub amount: Won,
    pub receipt: String,
    pub transaction_id: Option<String>,
    pub started_at: Millis,
    pub paid_at: Option<Millis>,
    pub ended_at: Option<Millis>,
    /// The operator who decided it, and why.
    pub resolved: Option<(String, String)>,
}

/// What an operator did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorAction {
    /// A UUID, so that it is written once.
    pub id: String,
    /// The operator's name.
    pub operator: String,
    /// Method and route.
    pub action: String,
    /// What it was about, `name=id`; empty where that is nothing in particular.
    pub target: String,
    /// What was asked for, as JSON, shortened.
    pub detail: String,
    /// The status of the reply.
    pub status: u16,
    pub request_id: String,
    /// When it was over.
    pub at: Millis,
}

/// Which acts to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct OperatorLogFilter {
    pub operator: Option<String>,
    /// From 0.
    pub page: i64,
    /// 1–100.
    pub size: i64,
}

/// A page of acts as Postgres has them.
#[derive(Clone, Debug)]
pub struct OperatorLogPage {
    pub actions: Vec<OperatorAction>,
    pub page: i64,
    pub size: i64,
    /// Acts in all that match.
    pub total: i64,
}

/// What a rebuild keeps off sale, until an operator releases it: the first of each by id.
#[derive(Clone, Debug)]
pub struct Withheld {
    /// Units by product.
    pub products: Vec<(ProductId, i64)>,
    /// Coupons by campaign.
    pub coupons: Vec<(CouponId, i64)>,
}

/// The same for one partition.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    pub partition: u16,
    pub epoch: i64,
    /// The last decision taken in Redis.
    pub decided_seq: i64,
    /// The last decision committed to Postgres.
    pub projected_seq: i64,
    pub lag_seconds: f64,
    pub dead_letters: i64,
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
