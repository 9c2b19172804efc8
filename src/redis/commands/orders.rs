//! Orders: placing, paying, ending them.

use chrono::{Datelike, NaiveDate};
use redis::Cmd;

use crate::{
    model::{Call, CampaignTerms, Error, NewOrder, NewPayment, Partition, PlacedOrder, Reply, *},
    redis::{
        Store,
        batchable::Mergeable,
        batcher::MAX_WEIGHT,
        keys::Keys,
        queries::ranking::ranked_until,
        script::{self, Answer, Invocation, Script},
    },
};

/// How a day is written in keys and events.
pub const DAY_FORMAT: &str = "%Y%m%d";

/// How often a payment is tried where it is another day than was thought.
pub(super) const DAY_ATTEMPTS: u32 = 3;

/// What decides about an order beside the order itself.
pub struct Placing<'a> {
    pub order_id: OrderId,
    /// How long it holds what it orders.
    pub hold_ms: i64,
    pub max_open: u32,
    /// Whether the balance must suffice (no gateway could settle it).
    pub must_afford: bool,
    /// The terms of the order's coupon, if there is such a campaign.
    pub terms: Option<&'a CampaignTerms>,
    /// The lines held before in other partitions, packed; empty for none.
    pub far: &'a str,
}

/// Why lines can't be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    None,
    ProductNotFound,
    SoldOut,
    InsufficientStock,
}

impl Shortage {
    /// As the script takes it and answers it.
    fn as_str(self) -> &'static str {
        match self {
            Shortage::None => "NONE",
            Shortage::ProductNotFound => "PRODUCT_NOT_FOUND",
            Shortage::SoldOut => "SOLD_OUT",
            Shortage::InsufficientStock => "INSUFFICIENT_STOCK",
        }
    }
}

/// A payment about to be settled.
pub struct Settling<'a> {
    pub payment: &'a NewPayment,
    pub payment_id: PaymentId,
    pub receipt: &'a str,
    /// The gateway's transaction id, where a gateway took the money.
    pub transaction: Option<&'a str>,
    /// Which day it is at a time.
    pub day: &'a (dyn Fn(Millis) -> CalendarDay + Sync),
}

/// How a payment ended.
#[derive(Clone, Debug)]
pub enum Settled {
    Paid { payment_id: PaymentId, receipt: String, paid_at: Millis },
    Declined,
}

/// Why an order is to be closed.
#[derive(Clone, Copy, Debug)]
pub enum Closing<'a> {
    /// By its user; a PAID one is refunded, and was paid on this day.
    Cancel { paid_on: Option<NaiveDate> },
    /// By the clock.
    Expire,
    /// By the gateway's word on this receipt; `ask_again_in_ms` where the gateway could not say for certain.
    Decline { receipt: &'a str, ask_again_in_ms: Option<i64> },
}

/// How an order was closed.
#[derive(Clone, Copy, Debug)]
pub struct Closed {
    pub status: OrderStatus,
    pub reason: CloseReason,
    /// `None` of one that a gateway declined.
    pub closed_at: Option<Millis>,
}

struct Place {
    order_id: OrderId,
    user: UserId,
    hold_ms: i64,
    max_open: u32,
    must_afford: bool,
    coupon: Option<(CouponId, Option<CouponTerms>)>,
    /// Those at home in the user's partition.
    lines: Vec<(ProductId, i64)>,
    far: String,
    judges: Option<Shortage>,
}

/// What a coupon is worth, and until when.
struct CouponTerms {
    discount: Discount,
    expires_at: Millis,
}

impl Mergeable for Place {
    fn script(&self) -> &'static Script {
        &script::ORDER_PLACE
    }

    fn weight(&self) -> usize {
        self.lines.len().max(1)
    }

    fn key_counts(&self) -> (usize, usize) {
        (4, 2)
    }

    fn shared_keys(&self, keys: Keys, call: &mut Cmd) {
        call.arg(keys.expiry());
        call.arg(keys.price()).arg(keys.stock()).arg(keys.held());
    }

    fn keys(&self, keys: Keys, call: &mut Cmd) {
        call.arg(keys.user(self.user)).arg(keys.order(self.order_id));
    }

    fn shared_args(&self, call: &mut Cmd) {
        call.arg(self.max_open).arg(if self.must_afford { "1" } else { "0" }).arg(self.hold_ms);
    }

    fn args(&self, call: &mut Cmd) {
        call.arg(self.order_id.get()).arg(self.user.get());
        match &self.coupon {
            None => call.arg(""),
            Some((coupon, _)) => call.arg(coupon.get()),
        };
        match &self.coupon {
            Some((_, Some(terms))) => {
                call.arg(terms.discount.kind.as_str()).arg(terms.discount.amount).arg(terms.expires_at.0)
            }
            _ => call.arg("").arg("").arg(""),
        };
        call.arg(self.lines.len());
        for (product, quantity) in &self.lines {
            call.arg(product.get()).arg(quantity);
        }
        call.arg(&self.far).arg(self.judges.map_or("", Shortage::as_str));
    }
}

struct Pay {
    payment: NewPayment,
    payment_id: PaymentId,
    receipt: String,
    transaction: Option<String>,
    day: CalendarDay,
}

impl Mergeable for Pay {
    fn script(&self) -> &'static Script {
        &script::ORDER_PAY
    }

    fn of(&self) -> i64 {
        self.day.date.num_days_from_ce().into()
    }

    fn key_counts(&self) -> (usize, usize) {
        (8, 2)
    }

    fn shared_keys(&self, keys: Keys, call: &mut Cmd) {
        call.arg(keys.expiry());
        call.arg(keys.stock()).arg(keys.held()).arg(keys.sold()).arg(keys.withheld());
        call.arg(keys.rank_units(self.day.date)).arg(keys.rank_won(self.day.date)).arg(keys.gateway());
    }

    fn keys(&self, keys: Keys, call: &mut Cmd) {
        call.arg(keys.user(self.payment.user_id)).arg(keys.order(self.payment.order_id));
    }

    fn shared_args(&self, call: &mut Cmd) {
        call.arg(self.day.date.format(DAY_FORMAT).to_string()).arg(self.day.from.0).arg(self.day.until.0);
        call.arg(ranked_until(self.day.date).0).arg(MAX_WEIGHT);
    }

    fn args(&self, call: &mut Cmd) {
        call.arg(self.payment.order_id.get()).arg(self.payment.user_id.get()).arg(self.payment.amount);
        call.arg(self.payment.payment_type.as_str()).arg(self.payment_id.get()).arg(&self.receipt);
        call.arg(if self.transaction.is_some() { "GATEWAY" } else { "BALANCE" });
        call.arg(self.transaction.as_deref().unwrap_or(""));
    }
}

impl Store {
    /// `order_place.lua`. Of the order's lines, those at home in its user's partition; the others come as `far`.
    ///
    /// # Errors
    /// The refusals of `POST /orders`, and the shared ones.
    pub async fn order_place(
        &self,
        call: &Call,
        order: &NewOrder,
        placing: &Placing<'_>,
    ) -> Result<Reply<PlacedOrder>, Error> {
        placed_or_refused(&self.ask_for_order(call, order, placing, None).await?)
    }

    /// `order_place.lua`, which judges alone, before the lines of other partitions are held: `shortage` is why not all lines
    /// could be. `Some` is the answer to an earlier request under the same idempotency key; `None`: it would be placed.
    ///
    /// # Errors
    /// As [`Store::order_place`].
    pub async fn order_judge(
        &self,
        call: &Call,
        order: &NewOrder,
        placing: &Placing<'_>,
        shortage: Shortage,
    ) -> Result<Option<Reply<PlacedOrder>>, Error> {
        let answer = self.ask_for_order(call, order, placing, Some(shortage)).await?;
        if answer.word == "ACCEPTABLE" { Ok(None) } else { placed_or_refused(&answer).map(Some) }
    }

    async fn ask_for_order(
        &self,
        call: &Call,
        order: &NewOrder,
        placing: &Placing<'_>,
        judges: Option<Shortage>,
    ) -> Result<Answer, Error> {
        let home = self.owner(order.user_id.get());
        let near = order.lines.iter().filter(|(product, _)| self.owner(product.get()) == home);
        let terms = placing.terms.map(|terms| CouponTerms { discount: terms.discount, expires_at: terms.expires_at });
        let place = Place {
            order_id: placing.order_id,
            user: order.user_id,
            hold_ms: placing.hold_ms,
            max_open: placing.max_open,
            must_afford: placing.must_afford,
            coupon: order.coupon_id.map(|coupon| (coupon, terms)),
            lines: near.copied().collect(),
            far: placing.far.to_owned(),
            judges,
        };
        self.merged(call, home, place).await
    }

    /// `order_pay.lua`.
    ///
    /// # Errors
    /// The refusals of `POST /payments`, and the shared ones. [`Settled::Declined`] is no error here: it has an effect.
    pub async fn order_pay(&self, call: &Call, settling: &Settling<'_>) -> Result<Reply<Settled>, Error> {
        let home = self.owner(settling.payment.order_id.get());
        let mut now = self.now(home);
        let mut attempt = 1;
        let answer = loop {
            let pay = Pay {
                payment: settling.payment.clone(),
                payment_id: settling.payment_id,
                receipt: settling.receipt.to_owned(),
                transaction: settling.transaction.map(str::to_owned),
                day: (settling.day)(now),
            };
            let answer = self.merged(call, home, pay).await?;
            if answer.word != "OTHER_DAY" {
                break answer;
            }
            if attempt == DAY_ATTEMPTS {
                return Err(Error::unavailable("the server's clock does not go on"));
            }
            // It was decided by nobody: midnight came between, or this process knows the server's clock badly.
            (now, attempt) = (Millis(answer.get(0)?), attempt + 1);
        };
        let settled = match answer.word.as_str() {
            "PAID" => Settled::Paid {
                payment_id: PaymentId::new(answer.get(2)?).ok_or_else(|| answer.unknown())?,
                receipt: answer.get(3)?,
                paid_at: Millis(answer.get(4)?),
            },
            "PAID_BEFORE" => Settled::Paid {
                payment_id: PaymentId::new(answer.get(0)?).ok_or_else(|| answer.unknown())?,
                receipt: answer.get(1)?,
                paid_at: Millis(answer.get(2)?),
            },
            "DECLINED" => Settled::Declined,
            word => return Err(no_payment(word).unwrap_or_else(|| answer.unknown())),
        };
        Ok(answer.reply(settled))
    }

    /// `payment_begin.lua`. `Some` is the settled reply to an earlier request under the same idempotency key.
    ///
    /// # Errors
    /// The refusals of `POST /payments`, and the shared ones.
    pub async fn payment_begin(
        &self,
        call: &Call,
        payment: &NewPayment,
        payment_id: PaymentId,
        receipt: &str,
        ask_in_ms: i64,
    ) -> Result<Option<Settled>, Error> {
        let home = self.owner(payment.order_id.get());
        let keys = Keys(home);
        let call = self
            .begin(call, &script::PAYMENT_BEGIN, home)
            .key(keys.order(payment.order_id))
            .key(keys.expiry())
            .key(keys.gateway())
            .arg(payment.order_id.get())
            .arg(payment.user_id.get())
            .arg(payment.amount)
            .arg(payment.payment_type.as_str())
            .arg(payment_id.get())
            .arg(receipt)
            .arg(ask_in_ms)
            .arg(call.key.as_ref().map_or("", |key| &key.digest));
        let answer = self.call(home, &call).await?;
        match answer.word.as_str() {
            "STARTED" => Ok(None),
            "PAID" => Ok(Some(Settled::Paid {
                payment_id: PaymentId::new(answer.get(2)?).ok_or_else(|| answer.unknown())?,
                receipt: answer.get(3)?,
                paid_at: Millis(answer.get(4)?),
            })),
            "DECLINED" => Ok(Some(Settled::Declined)),
            word => Err(no_payment(word).unwrap_or_else(|| answer.unknown())),
        }
    }

    /// `order_close.lua`; `None` where the order is no longer what the caller took it for (not due, paid meanwhile, another
    /// day of sale), and nothing was changed.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`], [`Error::OrderAlreadyClosed`], and the shared refusals.
    pub async fn order_close(
        &self,
        call: &Call,
        order: OrderId,
        user: UserId,
        closing: Closing<'_>,
    ) -> Result<Option<Reply<Closed>>, Error> {
        let home = self.owner(order.get());
        let keys = Keys(home);
        let (why, day, receipt, ask_again_in_ms) = match closing {
            Closing::Cancel { paid_on } => ("CANCEL", paid_on, "", None),
            Closing::Expire => ("EXPIRE", None, "", None),
            Closing::Decline { receipt, ask_again_in_ms } => ("DECLINE", None, receipt, ask_again_in_ms),
        };
        let ranked = day.unwrap_or(NaiveDate::MIN);
        let call = closing_keys(self.begin(call, &script::ORDER_CLOSE, home), home, order, user)
            .key(keys.rank_units(ranked))
            .key(keys.rank_won(ranked))
            .key(keys.gateway())
            .key(keys.withheld())
            .arg(order.get())
            .arg(user.get())
            .arg(why)
            .arg(day.map(|day| day.format(DAY_FORMAT).to_string()).unwrap_or_default())
            .arg(day.map_or(0, |day| ranked_until(day).0))
            .arg(receipt)
            .arg(ask_again_in_ms.map(|delay| delay.to_string()).unwrap_or_default());
        let answer = self.call(home, &call).await?;
        let closed = match answer.word.as_str() {
            "CLOSED" => Closed {
                status: closing_word(&answer.get::<String>(2)?)?,
                reason: closing_word(&answer.get::<String>(3)?)?,
                closed_at: Some(Millis(answer.get(4)?)),
            },
            "DECLINED" => Closed { status: OrderStatus::Failed, reason: CloseReason::PaymentDeclined, closed_at: None },
            "STALE" | "NOT_DUE" | "ALREADY_PAID" => return Ok(None),
            "ORDER_NOT_FOUND" => return Err(Error::OrderNotFound),
            "ALREADY_CLOSED" => return Err(Error::OrderAlreadyClosed),
            _ => return Err(answer.unknown()),
        };
        Ok(Some(answer.reply(closed)))
    }
}

fn placed_or_refused(answer: &Answer) -> Result<Reply<PlacedOrder>, Error> {
    match answer.word.as_str() {
        "PLACED" => Ok(answer.reply(placed(answer)?)),
        "USER_NOT_FOUND" => Err(Error::UserNotFound),
        "TOO_MANY_OPEN" => Err(Error::TooManyOpenOrders),
        "INVALID_COUPON" => Err(Error::InvalidCoupon),
        "OVERFLOW" => Err(Error::InvalidOrder),
        "INSUFFICIENT_BALANCE" => Err(Error::InsufficientBalance),
        "ABANDONED" => Err(Error::unavailable("the order took too long and was given up")),
        word => Err(no_stock(word).unwrap_or_else(|| answer.unknown())),
    }
}

fn placed(answer: &Answer) -> Result<PlacedOrder, Error> {
    let order_id = OrderId::new(answer.get(2)?).ok_or_else(|| answer.unknown())?;
    Ok(PlacedOrder { order_id, final_price: answer.get(3)?, ordered_at: Millis(answer.get(4)?) })
}

/// Keys 4 to 9 of the script that ends an order.
fn closing_keys(call: Invocation, home: Partition, order: OrderId, user: UserId) -> Invocation {
    let keys = Keys(home);
    call.key(keys.user(user))
        .key(keys.order(order))
        .key(keys.expiry())
        .key(keys.stock())
        .key(keys.held())
        .key(keys.sold())
}

/// The refusals that holding stock has, near or far.
pub(super) fn no_stock(word: &str) -> Option<Error> {
    match word {
        "PRODUCT_NOT_FOUND" => Some(Error::ProductNotFound),
        "SOLD_OUT" => Some(Error::SoldOut),
        "INSUFFICIENT_STOCK" => Some(Error::InsufficientStock),
        _ => None,
    }
}

/// The refusals that a payment has, from the balance or through a gateway.
fn no_payment(word: &str) -> Option<Error> {
    match word {
        "ORDER_NOT_FOUND" => Some(Error::OrderNotFound),
        "ALREADY_PAID" => Some(Error::OrderAlreadyPaid),
        "CLOSED" | "WRONG_AMOUNT" => Some(Error::InvalidPayment),
        _ => None,
    }
}

/// A word of an enumeration, as a script writes it.
pub(super) fn closing_word<T: std::str::FromStr<Err = UnknownName>>(word: &str) -> Result<T, Error> {
    word.parse().map_err(|error: UnknownName| Error::Internal(anyhow::anyhow!("{word:?}: {error}")))
}
