//! Payments through a gateway: decisions of operators, and how they finish.

use super::{DAY_ATTEMPTS, DAY_FORMAT, clock_unsteady, parse_word};
use crate::{
    model::{CalendarDay, Call, Error, Millis, OrderId, Partition, PaymentResolution, Reply, ResolvedPayment, UserId},
    redis::{
        Store, keys::Keys, queries::ranking::ranked_until, records::OrderRecord, reply_code::ReplyCode, script,
        script_reply::ScriptReply,
    },
};

/// How a gateway payment finishes that is still open after its order was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentEnd {
    /// The money went back.
    Refunded,
    /// No money was taken.
    Declined,
    /// The gateway confirms what an operator decided: it took the money, in this transaction.
    Settled { transaction: String },
    /// The gateway never confirmed it.
    Disputed,
}

impl PaymentEnd {
    /// The word of the script and of its event.
    fn as_str(&self) -> &'static str {
        match self {
            PaymentEnd::Refunded => "REFUNDED",
            PaymentEnd::Declined => "DECLINED",
            PaymentEnd::Settled { .. } => "SETTLED",
            PaymentEnd::Disputed => "DISPUTED",
        }
    }
}

impl Store {
    /// `payment_finish.lua`: true if the payment was still open.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn payment_finish(
        &self,
        call: &Call,
        (order, user): (OrderId, UserId),
        receipt: &str,
        end: &PaymentEnd,
    ) -> Result<bool, Error> {
        let owner = self.owner(order.get());
        let transaction = match end {
            PaymentEnd::Settled { transaction } => transaction.as_str(),
            _ => "",
        };
        let mut invocation = self.begin_unrecorded(call, &script::PAYMENT_FINISH, owner);
        invocation
            .key(Keys(owner).order(order))
            .key(Keys(owner).gateway())
            .arg(order.get())
            .arg(user.get())
            .arg(receipt)
            .arg(end.as_str())
            .arg(transaction);
        let reply = self.decide(call, owner, &invocation).await?;
        match reply.code {
            ReplyCode::Finished => Ok(true),
            ReplyCode::NotOpen => Ok(false),
            _ => Err(reply.unexpected()),
        }
    }

    /// `payment_resolve.lua`; `None`, and no change, if the order has another payment than `record` says. `day` is the day at a
    /// time; the gateway is asked again after `ask_after_ms`.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::NoPaymentUnderWay`]; the shared refusals.
    pub async fn payment_resolve(
        &self,
        call: &Call,
        record: &OrderRecord,
        resolution: &PaymentResolution,
        day: &(dyn Fn(Millis) -> CalendarDay + Sync),
        ask_after_ms: i64,
    ) -> Result<Option<Reply<ResolvedPayment>>, Error> {
        let Some(payment) = &record.gateway else { return Err(Error::NoPaymentUnderWay) };
        let (order, user) = (record.order.order_id, record.order.user_id);
        let owner = self.owner(order.get());
        let keys = Keys(owner);
        let waiting = payment.key.as_ref().map_or("", |key| key.digest.as_str());
        let mut now = self.now(owner);
        for _ in 0..DAY_ATTEMPTS {
            let CalendarDay { date, from, until } = day(now);
            let mut invocation = self.begin(call, &script::PAYMENT_RESOLVE, owner);
            invocation.key(keys.record(waiting)).key(keys.user(user)).key(keys.order(order)).key(keys.gateway());
            invocation.key(keys.stock()).key(keys.held()).key(keys.sold());
            invocation.key(keys.rank_units(date)).key(keys.rank_won(date));
            invocation.arg(order.get()).arg(&payment.receipt).arg(waiting);
            invocation.arg(if resolution.approved { "APPROVED" } else { "DECLINED" });
            invocation.arg(resolution.transaction.as_deref().unwrap_or(""));
            invocation.arg(&resolution.operator).arg(&resolution.reason);
            invocation.arg(date.format(DAY_FORMAT).to_string()).arg(from.0).arg(until.0);
            invocation.arg(ranked_until(date).0).arg(ask_after_ms);
            let reply = self.decide(call, owner, &invocation).await?;
            match reply.code {
                ReplyCode::Resolved => return Ok(Some(reply.with(resolved(&reply, order)?))),
                ReplyCode::Stale => return Ok(None),
                ReplyCode::OrderNotFound => return Err(Error::OrderNotFound),
                ReplyCode::NotOpen => return Err(Error::NoPaymentUnderWay),
                // Nothing was decided: midnight came in between, or this process knows the server's clock badly.
                ReplyCode::OtherDay => now = Millis(reply.get(0)?),
                _ => return Err(reply.unexpected()),
            }
        }
        Err(clock_unsteady())
    }

    /// The reply of an earlier `payment_resolve.lua` under this idempotency key, if there is one.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn payment_resolved_before(
        &self,
        call: &Call,
        owner: Partition,
        order: OrderId,
    ) -> Result<Option<Reply<ResolvedPayment>>, Error> {
        let Some(reply) = self.recorded(call, owner, &script::PAYMENT_RESOLVE).await? else { return Ok(None) };
        match reply.code {
            ReplyCode::Resolved => Ok(Some(reply.with(resolved(&reply, order)?))),
            _ => Err(reply.unexpected()),
        }
    }
}

fn resolved(reply: &ScriptReply, order_id: OrderId) -> Result<ResolvedPayment, Error> {
    let status = parse_word(&reply.get::<String>(0)?)?;
    Ok(ResolvedPayment { order_id, status, resolved_at: Millis(reply.get(1)?) })
}
