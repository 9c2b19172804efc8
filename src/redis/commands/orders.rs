//! Orders: placing, paying, closing them.

use chrono::{Datelike, NaiveDate};
use chrono_tz::Tz;

use crate::{
    model::{
        event::{pack_lines, unpack_lines},
        *,
    },
    redis::{
        Store,
        batchable::Batchable,
        batcher::MAX_BATCH_WEIGHT,
        keys::Keys,
        queries::ranking::ranked_until,
        reply_code::ReplyCode,
        script::{self, Invocation, Script},
        script_reply::ScriptReply,
    },
};

/// How a day is written in keys and events.
pub const DAY_FORMAT: &str = "%Y%m%d";

/// Attempts at a decision of one day, while the server says that it is another one.
pub(super) const DAY_ATTEMPTS: u32 = 3;

/// Places an order.
#[derive(Clone, Debug)]
pub struct PlaceOrder {
    pub order_id: OrderId,
    pub user_id: UserId,
    /// How long the order holds its stock and coupon.
    pub hold_ms: i64,
    /// The most open orders of a user.
    pub max_open: u32,
    /// Whether the balance must cover the order, because no gateway could settle it.
    pub must_afford: bool,
    /// The coupon, and its terms if there is such a campaign.
    pub coupon: Option<(CouponId, Option<CouponTerms>)>,
    pub lines: Vec<(ProductId, i64)>,
    /// The payment, of an order that is paid from the balance in the same step.
    pub checkout: Option<Box<Checkout>>,
}

/// The payment of an order in the step that places it.
#[derive(Clone, Debug)]
pub struct Checkout {
    pub payment_type: PaymentType,
    pub payment_id: PaymentId,
    pub receipt: String,
    /// The day by the caller's clock, and the zone of the days, should it be another one.
    pub day: CalendarDay,
    pub zone: Tz,
}

/// The value of a coupon for an order, and when it expires.
#[derive(Clone, Debug)]
pub struct CouponTerms {
    pub discount: Discount,
    pub conditions: OrderConditions,
    pub expires_at: Millis,
}

impl Batchable for PlaceOrder {
    fn script(&self) -> &'static Script {
        &script::ORDER_PLACE
    }

    fn weight(&self) -> usize {
        self.lines.len().max(1)
    }

    fn write_shared(&self, keys: Keys, invocation: &mut Invocation) {
        invocation.key(keys.expiry()).key(keys.price()).key(keys.stock()).key(keys.held());
        invocation.arg(self.max_open).arg(if self.must_afford { "1" } else { "0" }).arg(self.hold_ms);
    }

    fn write_own(&self, keys: Keys, invocation: &mut Invocation) {
        invocation.key(keys.user(self.user_id)).key(keys.order(self.order_id));
        invocation.arg(self.order_id.get()).arg(self.user_id.get());
        match &self.coupon {
            None => invocation.arg(""),
            Some((coupon, _)) => invocation.arg(coupon.get()),
        };
        match &self.coupon {
            Some((_, Some(CouponTerms { discount, conditions, expires_at }))) => invocation
                .arg(discount.kind.as_str())
                .arg(discount.amount)
                .arg(expires_at.0)
                .arg(conditions.to_string()),
            _ => invocation.arg("").arg("").arg("").arg(""),
        };
        invocation.arg(self.lines.len());
        for (product, quantity) in &self.lines {
            invocation.arg(product.get()).arg(quantity);
        }
    }
}

/// Places an order and pays it.
struct PlacePaidOrder {
    order: PlaceOrder,
    checkout: Box<Checkout>,
    /// The day of the payment.
    day: CalendarDay,
}

impl Batchable for PlacePaidOrder {
    fn script(&self) -> &'static Script {
        &script::ORDER_CHECKOUT
    }

    fn subject(&self) -> i64 {
        self.day.date.num_days_from_ce().into()
    }

    fn weight(&self) -> usize {
        self.order.weight()
    }

    fn write_shared(&self, keys: Keys, invocation: &mut Invocation) {
        let CalendarDay { date, from, until } = self.day;
        invocation.key(keys.price()).key(keys.stock()).key(keys.sold());
        invocation.key(keys.rank_units(date)).key(keys.rank_won(date));
        invocation.arg(self.order.max_open).arg(self.order.hold_ms);
        invocation.arg(date.format(DAY_FORMAT).to_string()).arg(from.0).arg(until.0).arg(ranked_until(date).0);
    }

    fn write_own(&self, keys: Keys, invocation: &mut Invocation) {
        let Checkout { payment_type, payment_id, receipt, .. } = &*self.checkout;
        self.order.write_own(keys, invocation);
        invocation.arg(payment_type.as_str()).arg(payment_id.get()).arg(receipt);
    }
}

/// What became of an order.
#[derive(Debug)]
pub enum Placement {
    Placed(Reply<PlacedOrder>),
    /// The user's partition lacks products, or units of them.
    Short(Error),
}

/// Settles a payment.
#[derive(Clone, Debug)]
pub struct PayOrder {
    pub payment: NewPayment,
    pub payment_id: PaymentId,
    pub receipt: String,
    /// The gateway's transaction id, if a gateway took the money.
    pub transaction: Option<String>,
    /// The day of the payment.
    pub day: CalendarDay,
}

impl Batchable for PayOrder {
    fn script(&self) -> &'static Script {
        &script::ORDER_PAY
    }

    fn subject(&self) -> i64 {
        self.day.date.num_days_from_ce().into()
    }

    fn write_shared(&self, keys: Keys, invocation: &mut Invocation) {
        let CalendarDay { date, from, until } = self.day;
        invocation.key(keys.expiry()).key(keys.stock()).key(keys.held()).key(keys.sold()).key(keys.withheld());
        invocation.key(keys.rank_units(date)).key(keys.rank_won(date)).key(keys.gateway()).key(keys.freed());
        invocation.arg(date.format(DAY_FORMAT).to_string()).arg(from.0).arg(until.0);
        invocation.arg(ranked_until(date).0).arg(MAX_BATCH_WEIGHT);
    }

    fn write_own(&self, keys: Keys, invocation: &mut Invocation) {
        let NewPayment { order_id, user_id, payment_type, amount } = &self.payment;
        invocation.key(keys.user(*user_id)).key(keys.order(*order_id));
        invocation.arg(order_id.get()).arg(user_id.get()).arg(amount);
        invocation.arg(payment_type.as_str()).arg(self.payment_id.get()).arg(&self.receipt);
        invocation.arg(if self.transaction.is_some() { "GATEWAY" } else { "BALANCE" });
        invocation.arg(self.transaction.as_deref().unwrap_or(""));
    }
}

/// Begins a payment through a gateway.
#[derive(Clone, Debug)]
pub struct BeginPayment {
    pub payment: NewPayment,
    pub payment_id: PaymentId,
    pub receipt: String,
    /// The provider's id of the payment, if it is known before the provider approves it.
    pub transaction: Option<String>,
    /// How long from now the gateway is asked for the outcome, unless it is known by then.
    pub check_in_ms: i64,
}

/// The outcome of a payment.
#[derive(Clone, Debug)]
pub enum Settled {
    Paid { payment_id: PaymentId, receipt: String, paid_at: Millis },
    Declined,
}

/// Closes an order.
#[derive(Clone, Debug)]
pub struct CloseOrder {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub closing: Closing,
}

/// Why an order is closed.
#[derive(Clone, Debug)]
pub enum Closing {
    /// Its user cancels it; a PAID one, paid on this day and not longer ago than `within_ms`, is refunded.
    Cancel { paid_on: Option<NaiveDate>, within_ms: i64 },
    /// What is left of a PAID one, paid on this day, is refunded; with `only`, if these lines are left.
    Refund { paid_on: Option<NaiveDate>, only: Option<Vec<OrderLine>>, terms: RefundTerms },
    /// Its hold has expired.
    Expire,
    /// The gateway declined the payment with this receipt; `ask_again_in_ms` if the gateway was not certain.
    Decline { receipt: String, ask_again_in_ms: Option<i64> },
}

impl CloseOrder {
    /// Writes the keys and arguments after those that [`Store::begin`] writes.
    fn write(&self, keys: Keys, invocation: &mut Invocation) {
        let (why, day, receipt, ask_again_in_ms) = match &self.closing {
            Closing::Cancel { paid_on, .. } => ("CANCEL", *paid_on, "", None),
            Closing::Refund { paid_on, .. } => ("REFUND", *paid_on, "", None),
            Closing::Expire => ("EXPIRE", None, "", None),
            Closing::Decline { receipt, ask_again_in_ms } => ("DECLINE", None, receipt.as_str(), *ask_again_in_ms),
        };
        let ranked = day.unwrap_or(NaiveDate::MIN);
        invocation.key(keys.user(self.user_id)).key(keys.order(self.order_id)).key(keys.expiry());
        invocation.key(keys.stock()).key(keys.held()).key(keys.sold());
        invocation.key(keys.rank_units(ranked)).key(keys.rank_won(ranked)).key(keys.gateway()).key(keys.withheld());
        invocation.key(keys.freed()).key(keys.quarantined());
        invocation.arg(self.order_id.get()).arg(self.user_id.get()).arg(why);
        invocation.arg(day.map(|day| day.format(DAY_FORMAT).to_string()).unwrap_or_default());
        invocation.arg(day.map_or(0, |day| ranked_until(day).0)).arg(receipt);
        invocation.arg(ask_again_in_ms.map(|delay| delay.to_string()).unwrap_or_default());
        match &self.closing {
            Closing::Refund { only, terms, .. } => {
                let RefundTerms { within_ms, restock, operator } = terms;
                invocation.arg(within_ms.map(|window| window.to_string()).unwrap_or_default());
                invocation.arg(only.as_deref().map(pack_lines).unwrap_or_default()).arg(restocked(*restock));
                let (operator, reason) = operator.as_ref().map_or(("", ""), |(operator, reason)| (operator, reason));
                invocation.arg(operator).arg(reason);
            }
            Closing::Cancel { within_ms, .. } => drop(invocation.arg(within_ms).arg("").arg("1").arg("").arg("")),
            Closing::Expire | Closing::Decline { .. } => {
                invocation.arg("").arg("").arg("1").arg("").arg("");
            }
        }
    }
}

/// An order after it was closed, or after a part of it was refunded.
#[derive(Clone, Debug)]
pub struct Closed {
    pub status: OrderStatus,
    /// `None` of an order of which something is left.
    pub reason: Option<CloseReason>,
    /// `None` also of an order that a gateway declined.
    pub closed_at: Option<Millis>,
    /// What is left of an order that is still PAID: the lines, and their price.
    pub left: Option<(Vec<OrderLine>, Won)>,
}

impl Store {
    /// `order_place.lua`, or `order_checkout.lua` if the order is paid in the same step.
    ///
    /// # Errors
    /// The refusals of `POST /orders` but those of [`Placement::Short`], and the [shared ones](super#shared-refusals).
    pub async fn order_place(&self, call: &Call, mut order: PlaceOrder) -> Result<Placement, Error> {
        let reply = match order.checkout.take() {
            None => self.run_batched(call, self.owner(order.user_id.get()), order).await?,
            // Boxed, so that the future of an order alone stays small.
            Some(checkout) => Box::pin(self.order_checkout(call, order, checkout)).await?,
        };
        match reply.code {
            ReplyCode::Placed | ReplyCode::CheckedOut => {
                let order_id = OrderId::new(reply.get(0)?).ok_or_else(|| reply.unexpected())?;
                let payment = match reply.code {
                    ReplyCode::CheckedOut => {
                        let payment_id = PaymentId::new(reply.get(3)?).ok_or_else(|| reply.unexpected())?;
                        Some(PlacedPayment { payment_id, receipt: reply.get(4)? })
                    }
                    _ => None,
                };
                let (final_price, ordered_at) = (reply.get(1)?, Millis(reply.get(2)?));
                Ok(Placement::Placed(reply.with(PlacedOrder { order_id, final_price, ordered_at, payment })))
            }
            ReplyCode::ProductNotFound | ReplyCode::SoldOut | ReplyCode::InsufficientStock => {
                Ok(Placement::Short(no_stock(&reply)))
            }
            ReplyCode::NotOnSale => Err(Error::NotOnSale),
            ReplyCode::PurchaseLimitExceeded => Err(Error::PurchaseLimitExceeded),
            ReplyCode::UserNotFound => Err(Error::UserNotFound),
            ReplyCode::TooManyOpen => Err(Error::TooManyOpenOrders),
            ReplyCode::InvalidCoupon => Err(Error::InvalidCoupon),
            ReplyCode::Overflow => Err(Error::InvalidOrder),
            ReplyCode::InsufficientBalance => Err(Error::InsufficientBalance),
            ReplyCode::AlreadyExists => Err(Error::unavailable("the order's id was used before a loss")),
            _ => Err(reply.unexpected()),
        }
    }

    async fn order_checkout(
        &self,
        call: &Call,
        order: PlaceOrder,
        checkout: Box<Checkout>,
    ) -> Result<ScriptReply, Error> {
        let place_at = |now| {
            let day = if checkout.day.includes(now) { checkout.day } else { CalendarDay::of(now, checkout.zone) };
            PlacePaidOrder { order: order.clone(), checkout: checkout.clone(), day }
        };
        self.run_on_its_day(call, self.owner(order.user_id.get()), &place_at).await
    }

    /// Runs a script whose requests are of one day, again while the server says that it is another one. `request_at` is the request at
    /// a time, which tells its day.
    async fn run_on_its_day<B: Batchable>(
        &self,
        call: &Call,
        owner: Partition,
        request_at: &(dyn Fn(Millis) -> B + Sync),
    ) -> Result<ScriptReply, Error> {
        let mut now = self.now(owner);
        for _ in 0..DAY_ATTEMPTS {
            let reply = self.run_batched(call, owner, request_at(now)).await?;
            if reply.code != ReplyCode::OtherDay {
                return Ok(reply);
            }
            // Nothing was decided: midnight came in between, or this process knows the server's clock badly.
            now = Millis(reply.get(0)?);
        }
        Err(clock_unsteady())
    }

    /// `order_pay.lua`, for an order of partition `owner`. `pay_at` is the command at a time, which tells its day.
    ///
    /// # Errors
    /// The refusals of `POST /payments`,
    /// and the [shared ones](super#shared-refusals). [`Settled::Declined`] is no error here: it has an effect.
    pub async fn order_pay(
        &self,
        call: &Call,
        owner: Partition,
        pay_at: &(dyn Fn(Millis) -> PayOrder + Sync),
    ) -> Result<Reply<Settled>, Error> {
        let reply = self.run_on_its_day(call, owner, pay_at).await?;
        settled(&reply).map(|settled| reply.with(settled))
    }

    /// `payment_begin.lua`. `Some`: the reply to an earlier request under the same idempotency key, settled since.
    ///
    /// # Errors
    /// The refusals of `POST /payments`, and the [shared ones](super#shared-refusals).
    pub async fn payment_begin(&self, call: &Call, begin: &BeginPayment) -> Result<Option<Settled>, Error> {
        let NewPayment { order_id, user_id, payment_type, amount } = &begin.payment;
        let owner = self.owner(order_id.get());
        let keys = Keys(owner);
        let mut invocation = self.begin(call, &script::PAYMENT_BEGIN, owner);
        invocation.key(keys.order(*order_id)).key(keys.expiry()).key(keys.gateway());
        invocation.arg(order_id.get()).arg(user_id.get()).arg(amount).arg(payment_type.as_str());
        invocation.arg(begin.payment_id.get()).arg(&begin.receipt).arg(begin.check_in_ms).arg(call.key_parts().0);
        invocation.arg(begin.transaction.as_deref().unwrap_or(""));
        let reply = self.decide(call, owner, &invocation).await?;
        match reply.code {
            ReplyCode::Started => Ok(None),
            _ => settled(&reply).map(Some),
        }
    }

    /// `order_close.lua`. `None`, and no change, if the order is no longer as the caller found it: not due, paid, or sold on
    /// another day.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`], [`Error::OrderAlreadyClosed`], [`Error::RefundWindowClosed`], [`Error::InvalidOrder`] of a refund
    /// if the order is not PAID, and the [shared refusals](super#shared-refusals).
    pub async fn order_close(&self, call: &Call, close: &CloseOrder) -> Result<Option<Reply<Closed>>, Error> {
        let owner = self.owner(close.order_id.get());
        let mut invocation = self.begin(call, &script::ORDER_CLOSE, owner);
        close.write(Keys(owner), &mut invocation);
        let reply = self.decide(call, owner, &invocation).await?;
        closed(&reply)
    }
}

/// An order after it was closed, or a part of it refunded; `None` if it was not as the caller found it.
pub(super) fn closed(reply: &ScriptReply) -> Result<Option<Reply<Closed>>, Error> {
    let closed = match reply.code {
        ReplyCode::Closed => Closed {
            status: parse_word(&reply.get::<String>(0)?)?,
            reason: Some(parse_word(&reply.get::<String>(1)?)?),
            closed_at: Some(Millis(reply.get(2)?)),
            left: None,
        },
        ReplyCode::Refunded => {
            let lines = unpack_lines(&reply.get::<String>(0)?).ok_or_else(|| reply.unexpected())?;
            let left = Some((lines, reply.get(1)?));
            Closed { status: OrderStatus::Paid, reason: None, closed_at: None, left }
        }
        ReplyCode::Declined => {
            let reason = Some(CloseReason::PaymentDeclined);
            Closed { status: OrderStatus::Failed, reason, closed_at: None, left: None }
        }
        ReplyCode::Stale | ReplyCode::NotDue | ReplyCode::AlreadyPaid => return Ok(None),
        ReplyCode::OrderNotFound => return Err(Error::OrderNotFound),
        ReplyCode::AlreadyClosed => return Err(Error::OrderAlreadyClosed),
        ReplyCode::WindowClosed => return Err(Error::RefundWindowClosed),
        ReplyCode::NotPaid | ReplyCode::NotRefundable => return Err(Error::InvalidOrder),
        _ => return Err(reply.unexpected()),
    };
    Ok(Some(reply.with(closed)))
}

/// How scripts are told whether refunded units come back on sale.
pub(super) fn restocked(restock: bool) -> &'static str {
    if restock { "1" } else { "0" }
}

/// The end of a payment, from the balance or through a gateway.
fn settled(reply: &ScriptReply) -> Result<Settled, Error> {
    match reply.code {
        ReplyCode::Paid | ReplyCode::PaidBefore => Ok(Settled::Paid {
            payment_id: PaymentId::new(reply.get(0)?).ok_or_else(|| reply.unexpected())?,
            receipt: reply.get(1)?,
            paid_at: Millis(reply.get(2)?),
        }),
        ReplyCode::Declined => Ok(Settled::Declined),
        ReplyCode::OrderNotFound => Err(Error::OrderNotFound),
        ReplyCode::AlreadyPaid => Err(Error::OrderAlreadyPaid),
        ReplyCode::AlreadyClosed | ReplyCode::WrongAmount => Err(Error::InvalidPayment),
        _ => Err(reply.unexpected()),
    }
}

/// Why stock could not be held.
fn no_stock(reply: &ScriptReply) -> Error {
    match reply.code {
        ReplyCode::ProductNotFound => Error::ProductNotFound,
        ReplyCode::SoldOut => Error::SoldOut,
        ReplyCode::InsufficientStock => Error::InsufficientStock,
        _ => reply.unexpected(),
    }
}

/// The server said at every attempt that it is yet another day.
pub(super) fn clock_unsteady() -> Error {
    Error::unavailable("the server's clock does not go on")
}

/// A word of an enumeration, as scripts write it.
pub(super) fn parse_word<T: std::str::FromStr<Err = UnknownName>>(word: &str) -> Result<T, Error> {
    word.parse().map_err(|error: UnknownName| Error::Internal(anyhow::anyhow!("{word:?}: {error}")))
}
