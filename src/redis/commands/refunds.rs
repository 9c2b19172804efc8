//! Refunds of parts of orders.

use chrono::NaiveDate;

use super::{
    DAY_FORMAT,
    orders::{Closed, closed, restocked},
};
use crate::{
    model::{Call, Error, OrderId, ProductId, RefundTerms, Reply, UserId},
    redis::{
        Store,
        keys::Keys,
        queries::ranking::ranked_until,
        reply_code::ReplyCode,
        script::{self, Invocation},
    },
};

/// The maximum number of parts of one order that its gateway has not refunded yet.
const MAX_DUE_PARTS: u32 = 100;

/// Refunds a part of an order.
#[derive(Clone, Debug)]
pub struct RefundOrder {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub lines: Vec<(ProductId, i64)>,
    /// The day of the sale, if the order is PAID.
    pub paid_on: Option<NaiveDate>,
    pub terms: RefundTerms,
}

impl RefundOrder {
    /// Writes the keys and arguments after those that [`Store::begin`] writes.
    fn write(&self, keys: Keys, invocation: &mut Invocation) {
        let RefundTerms { within_ms, restock, operator } = &self.terms;
        invocation.key(keys.user(self.user_id)).key(keys.order(self.order_id));
        invocation.key(keys.stock()).key(keys.sold()).key(keys.quarantined());
        let ranked = self.paid_on.unwrap_or(NaiveDate::MIN);
        invocation.key(keys.rank_units(ranked)).key(keys.rank_won(ranked));
        invocation.key(keys.gateway()).key(keys.freed());
        invocation.arg(self.order_id.get()).arg(self.user_id.get());
        invocation.arg(self.paid_on.map(|day| day.format(DAY_FORMAT).to_string()).unwrap_or_default());
        invocation.arg(self.paid_on.map_or(0, |day| ranked_until(day).0));
        invocation.arg(within_ms.map(|window| window.to_string()).unwrap_or_default()).arg(restocked(*restock));
        let (operator, reason) = operator.as_ref().map_or(("", ""), |(operator, reason)| (operator, reason));
        invocation.arg(operator).arg(reason).arg(MAX_DUE_PARTS);
        for (product, units) in &self.lines {
            invocation.arg(product.get()).arg(units);
        }
    }
}

impl Store {
    /// `order_refund.lua`. `None`, and no change, if the order was sold on another day, or if nothing would be left of it.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::OrderAlreadyClosed`]; [`Error::RefundWindowClosed`]; [`Error::InvalidOrder`] if the order
    /// is PENDING, or if a line has fewer units left; [`Error::InProgress`] also while its gateway owes too many parts, or has not
    /// confirmed the payment; the [shared refusals](super#shared-refusals).
    pub async fn order_refund(&self, call: &Call, refund: &RefundOrder) -> Result<Option<Reply<Closed>>, Error> {
        let owner = self.owner(refund.order_id.get());
        let mut invocation = self.begin(call, &script::ORDER_REFUND, owner);
        refund.write(Keys(owner), &mut invocation);
        closed(&self.decide(call, owner, &invocation).await?)
    }

    /// `refund_finish.lua`: records that the gateway has refunded a part of an order. Returns true if the part was the next one due.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn refund_finish(
        &self,
        call: &Call,
        (order, user): (OrderId, UserId),
        receipt: &str,
        part: i64,
    ) -> Result<bool, Error> {
        let owner = self.owner(order.get());
        let mut invocation = self.begin_unrecorded(call, &script::REFUND_FINISH, owner);
        invocation.key(Keys(owner).order(order)).key(Keys(owner).gateway());
        invocation.arg(order.get()).arg(user.get()).arg(receipt).arg(part);
        let reply = self.decide(call, owner, &invocation).await?;
        match reply.code {
            ReplyCode::Finished => Ok(true),
            ReplyCode::NotOpen => Ok(false),
            _ => Err(reply.unexpected()),
        }
    }
}
