//! Payments through a gateway: decisions of operators, and how they finish.

use super::{DAY_ATTEMPTS, DAY_FORMAT, clock_unsteady, parse_word};
use crate::{
    model::{
        CalendarDay, Call, Error, IdempotencyKey, Millis, OrderId, Partition, PaymentResolution, Preparation, Reply,
        ResolvedPayment, UserId,
    },
    redis::{
        Store,
        keys::Keys,
        queries::ranking::ranked_until,
        reply_code::ReplyCode,
        script::{self, Invocation},
        script_reply::ScriptReply,
    },
};

/// How a gateway payment finishes that is still open after its order was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentFinish {
    /// The money went back.
    Refunded,
    /// No money was taken.
    Declined,
    /// The gateway confirms what an operator decided: it took the money, in this transaction.
    Settled { transaction: String },
    /// The gateway never confirmed it.
    Disputed,
}

impl PaymentFinish {
    /// The word of the script and of its event.
    fn as_str(&self) -> &'static str {
        match self {
            PaymentFinish::Refunded => "REFUNDED",
            PaymentFinish::Declined => "DECLINED",
            PaymentFinish::Settled { .. } => "SETTLED",
            PaymentFinish::Disputed => "DISPUTED",
        }
    }
}

/// Resolves a gateway payment as an operator decided.
#[derive(Clone, Debug)]
pub struct ResolvePayment {
    pub order_id: OrderId,
    pub user_id: UserId,
    /// The payment that the operator saw.
    pub receipt: String,
    /// The idempotency key of the request that waits for the payment's outcome.
    pub key: Option<IdempotencyKey>,
    pub resolution: PaymentResolution,
    /// The day of the decision.
    pub day: CalendarDay,
    /// How long from now the gateway is asked to confirm the decision.
    pub check_in_ms: i64,
}

impl ResolvePayment {
    /// Writes the keys and arguments after those that [`Store::begin`] writes.
    fn write(&self, keys: Keys, invocation: &mut Invocation) {
        let PaymentResolution { approved, transaction, operator, reason } = &self.resolution;
        let CalendarDay { date, from, until } = self.day;
        let waiting = self.key.as_ref().map_or("", |key| key.digest.as_str());
        invocation.key(keys.record(waiting)).key(keys.user(self.user_id)).key(keys.order(self.order_id));
        invocation.key(keys.gateway()).key(keys.stock()).key(keys.held()).key(keys.sold());
        invocation.key(keys.rank_units(date)).key(keys.rank_won(date)).key(keys.freed());
        invocation.arg(self.order_id.get()).arg(&self.receipt).arg(waiting);
        invocation.arg(if *approved { "APPROVED" } else { "DECLINED" }).arg(transaction.as_deref().unwrap_or(""));
        invocation.arg(operator).arg(reason);
        invocation.arg(date.format(DAY_FORMAT).to_string()).arg(from.0).arg(until.0);
        invocation.arg(ranked_until(date).0).arg(self.check_in_ms);
    }
}

impl Store {
    /// `payment_finish.lua`: true if the payment was still open.
    ///
    /// # Errors
    /// The [shared refusals](super#shared-refusals).
    pub async fn payment_finish(
        &self,
        call: &Call,
        (order, user): (OrderId, UserId),
        receipt: &str,
        finish: &PaymentFinish,
    ) -> Result<bool, Error> {
        let owner = self.owner(order.get());
        let transaction = match finish {
            PaymentFinish::Settled { transaction } => transaction.as_str(),
            _ => "",
        };
        let mut invocation = self.begin_unrecorded(call, &script::PAYMENT_FINISH, owner);
        invocation
            .key(Keys(owner).order(order))
            .key(Keys(owner).gateway())
            .arg(order.get())
            .arg(user.get())
            .arg(receipt)
            .arg(finish.as_str())
            .arg(transaction);
        let reply = self.decide(call, owner, &invocation).await?;
        match reply.code {
            ReplyCode::Finished => Ok(true),
            ReplyCode::NotOpen => Ok(false),
            _ => Err(reply.unexpected()),
        }
    }

    /// `payment_prepare.lua`.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`], [`Error::OrderAlreadyPaid`], [`Error::InvalidPayment`] of an order that is closed, and the
    /// [shared refusals](super#shared-refusals).
    pub async fn payment_prepare(
        &self,
        (order, user): (OrderId, UserId),
        preparation: &Preparation,
    ) -> Result<(), Error> {
        let owner = self.owner(order.get());
        let json = serde_json::to_string(preparation).map_err(|error| Error::Internal(error.into()))?;
        let mut invocation = Invocation::new(&script::PAYMENT_PREPARE);
        let prepared_id = preparation.transaction.as_ref().map(|id| format!("{} {id}", preparation.payment_type));
        invocation.key(Keys(owner).meta()).key(Keys(owner).order(order)).arg(user.get()).arg(json);
        invocation.arg(prepared_id.unwrap_or_default());
        let reply = self.run_script(owner, &invocation).await?;
        match reply.code {
            ReplyCode::Prepared => Ok(()),
            ReplyCode::OrderNotFound => Err(Error::OrderNotFound),
            ReplyCode::AlreadyPaid => Err(Error::OrderAlreadyPaid),
            ReplyCode::AlreadyClosed => Err(Error::InvalidPayment),
            _ => Err(reply.unexpected()),
        }
    }

    /// `payment_resolve.lua`, for an order of partition `owner`; `None`, and no change, if the order has another payment by now.
    /// `resolve_at` is the command at a time, which tells its day.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::NoPaymentUnderWay`]; the [shared refusals](super#shared-refusals).
    pub async fn payment_resolve(
        &self,
        call: &Call,
        owner: Partition,
        resolve_at: &(dyn Fn(Millis) -> ResolvePayment + Sync),
    ) -> Result<Option<Reply<ResolvedPayment>>, Error> {
        let mut now = self.now(owner);
        for _ in 0..DAY_ATTEMPTS {
            let resolve = resolve_at(now);
            let mut invocation = self.begin(call, &script::PAYMENT_RESOLVE, owner);
            resolve.write(Keys(owner), &mut invocation);
            let reply = self.decide(call, owner, &invocation).await?;
            match reply.code {
                ReplyCode::Resolved => return Ok(Some(reply.with(resolved(&reply, resolve.order_id)?))),
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
    /// The [shared refusals](super#shared-refusals).
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
