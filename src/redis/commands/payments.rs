//! Payments through a gateway, after they were begun: what an operator decides, and how they end.

use super::{DAY_ATTEMPTS, DAY_FORMAT, closing_word};
use crate::{
    model::{CalendarDay, Call, Error, Millis, OrderId, Partition, PaymentResolution, Reply, ResolvedPayment, UserId},
    redis::{
        Store,
        keys::Keys,
        queries::ranking::ranked_until,
        records::OrderRecord,
        script::{self, Answer},
    },
};

/// How a gateway payment ends that outlived the decision about its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentEnd {
    /// The money went back.
    Refunded,
    /// There was none.
    Declined,
    /// The gateway says what an operator said: it took the money, in this transaction.
    Settled { transaction: String },
    /// The gateway never said so.
    Disputed,
}

impl PaymentEnd {
    /// The outcome in the script's and the event's word.
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
    /// `payment_finish.lua`: true if the payment was still to be ended.
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
        let home = self.owner(order.get());
        let transaction = match end {
            PaymentEnd::Settled { transaction } => transaction.as_str(),
            _ => "",
        };
        let call = self
            .begin_unrecorded(call, &script::PAYMENT_FINISH, home)
            .key(Keys(home).order(order))
            .key(Keys(home).gateway())
            .arg(order.get())
            .arg(user.get())
            .arg(receipt)
            .arg(end.as_str())
            .arg(transaction);
        let answer = self.call(home, &call).await?;
        match answer.word.as_str() {
            "FINISHED" => Ok(true),
            "NOT_OPEN" => Ok(false),
            _ => Err(answer.unknown()),
        }
    }

    /// `payment_resolve.lua`; `None` where the order's payment is another one than `record` says. `day` says which day
    /// it is at a time; the gateway is asked again after `ask_after_ms`.
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
        let home = self.owner(order.get());
        let keys = Keys(home);
        let waiting = payment.key.as_ref().map_or("", |key| key.digest.as_str());
        let mut now = self.now(home);
        for _ in 0..DAY_ATTEMPTS {
            let CalendarDay { date, from, until } = day(now);
            let resolve = self
                .begin(call, &script::PAYMENT_RESOLVE, home)
                .key(keys.record(waiting))
                .key(keys.user(user))
                .key(keys.order(order))
                .key(keys.gateway())
                .key(keys.stock())
                .key(keys.held())
                .key(keys.sold())
                .key(keys.rank_units(date))
                .key(keys.rank_won(date))
                .arg(order.get())
                .arg(&payment.receipt)
                .arg(waiting)
                .arg(if resolution.approved { "APPROVED" } else { "DECLINED" })
                .arg(resolution.transaction.as_deref().unwrap_or(""))
                .arg(&resolution.operator)
                .arg(&resolution.reason)
                .arg(date.format(DAY_FORMAT).to_string())
                .arg(from.0)
                .arg(until.0)
                .arg(ranked_until(date).0)
                .arg(ask_after_ms);
            let answer = self.call(home, &resolve).await?;
            match answer.word.as_str() {
                "RESOLVED" => return Ok(Some(answer.reply(resolved(&answer, order)?))),
                "ORDER_NOT_FOUND" => return Err(Error::OrderNotFound),
                "NOT_OPEN" => return Err(Error::NoPaymentUnderWay),
                "STALE" => return Ok(None),
                // It was decided by nobody: midnight came between, or this process knows the server's clock badly.
                "OTHER_DAY" => now = Millis(answer.get(0)?),
                _ => return Err(answer.unknown()),
            }
        }
        Err(Error::unavailable("the server's clock does not go on"))
    }

    /// What an earlier `payment_resolve.lua` answered under this idempotency key, if there is one.
    ///
    /// # Errors
    /// The shared refusals.
    pub async fn payment_resolved_before(
        &self,
        call: &Call,
        home: Partition,
        order: OrderId,
    ) -> Result<Option<Reply<ResolvedPayment>>, Error> {
        let Some(answer) = self.recorded(call, home, &script::PAYMENT_RESOLVE).await? else { return Ok(None) };
        match answer.word.as_str() {
            "RESOLVED" => Ok(Some(answer.reply(resolved(&answer, order)?))),
            _ => Err(answer.unknown()),
        }
    }
}

fn resolved(answer: &Answer, order_id: OrderId) -> Result<ResolvedPayment, Error> {
    let status = closing_word(&answer.get::<String>(2)?)?;
    Ok(ResolvedPayment { order_id, status, resolved_at: Millis(answer.get(3)?) })
}
