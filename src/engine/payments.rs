//! Payments: from the balance in one step, or through an external gateway in three: begin, ask, settle.
//!
//! A gateway's outcome may be unknown (a timeout, garbage). The order then stays as it is, out of reach of cancel and
//! expiry, and the sweeper asks again until it is known, after growing pauses; see [`Engine::look_at_payment`] and
//! [`pauses`](super::backoff).

use std::sync::Arc;

use uuid::Uuid;

use super::{backoff::Pause, *};
use crate::{
    gateway::{CancelOutcome, Charge, PayOutcome, PaymentGateway, StatusOutcome},
    redis::{
        commands::{Closing, PaymentEnd, RemoteEnd, Settled, Settling},
        progress::told_so_far,
        queries::due::DuePayment,
        records::{GatewayRecord, GatewayState, OrderRecord},
    },
};

/// How long after a gateway's own timeout the sweeper looks at a payment that was begun.
const RESOLVE_AFTER_MS: i64 = 2_000;
/// Calls that a look makes at most, one after the other: a status, and twice a cancel and a status.
const CALLS_PER_CHECK: i64 = 5;
/// What is kept as the gateway's answer where it knows no such payment.
const NOT_FOUND: &str = "no such payment";
/// What a gateway is told when money goes back.
const REFUND_REASON: &str = "order refunded";
const LATE_REASON: &str = "order closed before the payment was known";
const UNACCEPTABLE_REASON: &str = "not the payment that was asked for";

impl Engine {
    /// Pays a PENDING order.
    ///
    /// # Errors
    /// The refusals of `POST /payments`. [`Error::PaymentDeclined`] after the order became FAILED;
    /// [`Error::Unavailable`] where a gateway's outcome is not known yet.
    pub async fn pay_order(&self, call: &Call, payment: NewPayment) -> Outcome<Payment> {
        self.check_owner(call, payment.order_id, payment.user_id).await?;
        let id = self.payments_seq.next(&self.store, self.store.owner(payment.order_id.get())).await?;
        let payment_id = PaymentId::new(id).ok_or_else(|| Error::Internal(anyhow::anyhow!("payment id {id}")))?;
        let receipt = Uuid::now_v7().to_string();
        // Nothing to pay is nothing to ask a gateway for.
        let gateway = self.gateways.get(payment.payment_type).filter(|_| payment.amount > 0).cloned();
        let settled = match gateway {
            // Boxed, like all that few requests need: every payment would weigh as much (docs/decisions.md).
            Some(gateway) => Box::pin(self.pay_by_gateway(call, &payment, payment_id, &receipt, &gateway)).await?,
            None => self.settle(call, &payment, payment_id, &receipt, None).await?,
        };
        match settled.value {
            Settled::Declined => Err(Error::PaymentDeclined { replayed: settled.replayed }),
            Settled::Paid { payment_id, receipt, paid_at } => {
                let NewPayment { order_id, user_id, payment_type, amount } = payment;
                let value = Payment { payment_id, order_id, user_id, payment_type, amount, receipt, paid_at };
                Ok(Reply { value, replayed: settled.replayed })
            }
        }
    }

    /// Settles an order, and carries its end to other partitions.
    async fn settle(
        &self,
        call: &Call,
        payment: &NewPayment,
        payment_id: PaymentId,
        receipt: &str,
        transaction: Option<&str>,
    ) -> Outcome<Settled> {
        let settling = Settling { payment, payment_id, receipt, transaction, day: &|now| self.day(now) };
        let settled = match self.store.order_pay(call, &settling).await {
            Err(Error::OrderNotFound) => {
                return Box::pin(self.settled_before(payment, transaction.and(Some(receipt)))).await;
            }
            settled => settled?,
        };
        if self.store.partitions() > 1 && !settled.replayed {
            let end = match settled.value {
                Settled::Paid { .. } => RemoteEnd::Settled,
                Settled::Declined => RemoteEnd::Released,
            };
            Box::pin(self.settle_remote(call, payment.order_id, end)).await;
        }
        // Last: a ranking merged before the far step would lack it.
        self.popular.sold();
        Ok(settled)
    }

    /// What is to be said about a payment of an order that Redis does not have: what the scripts would say of one that has left.
    /// `receipt` is of a gateway that took the money.
    async fn settled_before(&self, payment: &NewPayment, receipt: Option<&str>) -> Outcome<Settled> {
        let found = self.archive.find(payment.order_id).await?.map(|found| found.record.order);
        let order = found.filter(|order| order.user_id == payment.user_id).ok_or(Error::OrderNotFound)?;
        match (order.status, order.payment, receipt) {
            // Placed after we were told that it is not there.
            (OrderStatus::Pending, ..) => Err(Error::OrderNotFound),
            (OrderStatus::Paid, Some(paid), Some(receipt)) if paid.receipt == receipt => {
                let OrderPayment { payment_id, receipt, paid_at, .. } = paid;
                Ok(Reply::first(Settled::Paid { payment_id, receipt, paid_at }))
            }
            (OrderStatus::Paid, _, None) => Err(Error::OrderAlreadyPaid),
            _ => Err(Error::InvalidPayment),
        }
    }

    /// Carries a settled order's end to other partitions; what fails here is relayed later.
    pub(super) async fn settle_remote(&self, call: &Call, order: OrderId, end: RemoteEnd) {
        let settle = async {
            let Some(record) = self.store.order(order).await? else { return Ok(()) };
            let (user, day) = (record.order.user_id, record.day.as_deref().unwrap_or(""));
            self.store.end_remote(call, order, user, &record.remote, end, day).await.map(drop)
        };
        if let Err(error) = settle.await {
            let error: Error = error;
            tracing::warn!(%order, %error, "the order's end is relayed later");
        }
    }

    async fn pay_by_gateway(
        &self,
        call: &Call,
        payment: &NewPayment,
        payment_id: PaymentId,
        receipt: &str,
        gateway: &Arc<dyn PaymentGateway>,
    ) -> Outcome<Settled> {
        let ask_in_ms = self.gateway_timeout_ms + RESOLVE_AFTER_MS;
        match self.store.payment_begin(call, payment, payment_id, receipt, ask_in_ms).await {
            Ok(None) => {}
            Ok(Some(settled)) => return Ok(Reply { value: settled, replayed: true }),
            Err(Error::OrderNotFound) => return self.settled_before(payment, None).await,
            Err(error) => return Err(error),
        }
        // The gateway is told, too: money must not be taken for a payment that a loss of Redis could take back.
        self.acknowledge(&told_so_far()).await?;
        let (order_id, user_id, amount) = (payment.order_id, payment.user_id, payment.amount);
        let charge = Charge { merchant_uid: receipt.to_owned(), order_id, user_id, amount };
        match gateway.pay(&call.request_id, &charge).await {
            PayOutcome::Approved { transaction_id } => {
                let settled = self.settle(call, payment, payment_id, receipt, Some(&transaction_id)).await;
                if matches!(settled, Err(Error::InvalidPayment)) {
                    // The order was given up meanwhile. If this fails too, the order's watch gives the money back.
                    let outcome = gateway.cancel(&call.request_id, receipt, payment.amount, LATE_REASON).await;
                    tracing::warn!(order = %payment.order_id, ?outcome, "approved too late");
                }
                settled
            }
            PayOutcome::Declined { reason } => {
                tracing::info!(request_id = call.request_id, order = %payment.order_id, reason, "the gateway declined");
                self.declined(call, payment, receipt, None).await
            }
            PayOutcome::Unacceptable { taken, why } => {
                let request_id = &call.request_id;
                tracing::error!(request_id, order = %payment.order_id, receipt, ?taken, why, "an approval is no payment");
                // From now on its watch gives the money back.
                self.declined(call, payment, receipt, Some(0)).await
            }
            PayOutcome::Unknown { why } => {
                let request_id = &call.request_id;
                tracing::warn!(request_id, order = %payment.order_id, receipt, why, "a payment's outcome is unknown");
                Err(Error::unavailable("the payment's outcome is not known yet"))
            }
        }
    }

    /// Fails the order of a payment that its client waits for, and says what became of it.
    async fn declined(
        &self,
        call: &Call,
        payment: &NewPayment,
        receipt: &str,
        ask_again_in_ms: Option<i64>,
    ) -> Outcome<Settled> {
        if self.decline(call, payment.order_id, receipt, ask_again_in_ms).await? {
            return Ok(Reply::first(Settled::Declined));
        }
        // Paid meanwhile, by somebody who knew more.
        self.settled_before(payment, Some(receipt)).await
    }

    /// Fails an order whose payment a gateway declined, or (with `ask_again_in_ms`) can't be certain to have declined. Returns
    /// false where the order is not failed: it is paid.
    async fn decline(
        &self,
        call: &Call,
        order: OrderId,
        receipt: &str,
        ask_again_in_ms: Option<i64>,
    ) -> Result<bool, Error> {
        // Somebody else, asking about the same payment, was first, and so long ago that the order has left.
        let Some(record) = self.store.order(order).await? else { return Ok(true) };
        match self.close(call, &record, Closing::Decline { receipt, ask_again_in_ms }).await {
            Ok(closed) => Ok(closed.is_some()),
            // Somebody else, asking about the same payment, was first.
            Err(Error::OrderAlreadyClosed | Error::OrderNotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Looks at a gateway payment that is due: finds out what became of it, and does what follows from that. Looking twice,
    /// or from two processes at once, does nothing twice: the scripts check where the payment stands, and a gateway's
    /// cancel is idempotent.
    ///
    /// # Errors
    /// Redis can't answer; the payment stays due.
    pub(super) async fn check_payment(&self, due: DuePayment) -> Result<(), Error> {
        let (order, now) = (due.order, self.store.now(self.store.owner(due.order.get())));
        // Not looked at by two at once, as a rule; and one that can't be looked at does not stand in the others' way.
        let lease = now.plus(self.gateway_timeout_ms * CALLS_PER_CHECK + RESOLVE_AFTER_MS);
        self.store.postpone_payment(due, lease).await?;
        let Some(record) = self.store.order(order).await? else { return Ok(()) };
        let Some(payment) = record.gateway.clone() else { return Ok(()) };
        let Some(gateway) = self.gateways.get(payment.payment_type).cloned() else {
            tracing::error!(%order, kind = %payment.payment_type, "a payment's gateway is no longer configured");
            return self.ask_later(&record, &payment, "no gateway is configured for this type").await;
        };
        let charge = Charge {
            merchant_uid: payment.receipt.clone(),
            order_id: order,
            user_id: record.order.user_id,
            amount: record.order.final_price,
        };
        let look = PaymentCheck { record: &record, payment: &payment, gateway: &*gateway, charge };
        match payment.state {
            GatewayState::Started => self.resolve(&look).await,
            GatewayState::Watched => self.watch(&look).await,
            GatewayState::RefundDue => self.refund(&look, REFUND_REASON, None).await,
            GatewayState::Unconfirmed => self.confirm(&look).await,
            GatewayState::Ended => Ok(()),
        }
    }

    async fn resolve(&self, look: &PaymentCheck<'_>) -> Result<(), Error> {
        let PaymentCheck { record, payment, .. } = look;
        let order = &record.order;
        let call = Call { request_id: describe(payment), key: payment.key.clone() };
        let now = self.store.now(self.store.owner(order.order_id.get()));
        let declined = match look.status().await {
            StatusOutcome::Approved { transaction_id } => {
                let new = NewPayment {
                    order_id: order.order_id,
                    user_id: order.user_id,
                    payment_type: payment.payment_type,
                    amount: order.final_price,
                };
                let settled =
                    self.settle(&call, &new, payment.payment_id, &payment.receipt, Some(&transaction_id)).await;
                return match settled {
                    // Somebody else resolved it between our read and now.
                    Ok(_) | Err(Error::InvalidPayment) => Ok(()),
                    Err(error) => Err(error),
                };
            }
            StatusOutcome::Declined { reason } => {
                tracing::info!(order = %order.order_id, reason, "the gateway declined");
                self.decline(&call, order.order_id, &payment.receipt, None).await
            }
            StatusOutcome::Unacceptable { taken, why } => {
                tracing::error!(order = %order.order_id, ?taken, why, "an approval is no payment");
                self.decline(&call, order.order_id, &payment.receipt, Some(0)).await
            }
            StatusOutcome::NotFound if now.0 - payment.started_at.0 >= self.give_up_ms => {
                // It may still be on its way. The order fails now, and the gateway is watched, so that late money goes back.
                tracing::warn!(order = %order.order_id, "the gateway has never heard of a payment");
                self.decline(&call, order.order_id, &payment.receipt, Some(RESOLVE_AFTER_MS)).await
            }
            StatusOutcome::NotFound => return self.ask_later(record, payment, NOT_FOUND).await,
            StatusOutcome::Unknown { why } => return self.ask_later(record, payment, &why).await,
        };
        declined.map(drop)
    }

    /// Looks whether money was taken after all for an order that failed.
    async fn watch(&self, look: &PaymentCheck<'_>) -> Result<(), Error> {
        let PaymentCheck { record, payment, .. } = look;
        match look.status().await {
            StatusOutcome::Approved { .. } => self.refund(look, LATE_REASON, None).await,
            StatusOutcome::Unacceptable { taken, .. } => self.refund(look, UNACCEPTABLE_REASON, taken).await,
            StatusOutcome::Declined { .. } => self.finish_payment(record, payment, &PaymentEnd::Declined).await,
            StatusOutcome::NotFound if self.is_watched_enough(record.order.order_id, payment) => {
                self.finish_payment(record, payment, &PaymentEnd::Declined).await
            }
            StatusOutcome::NotFound => self.ask_later(record, payment, NOT_FOUND).await,
            StatusOutcome::Unknown { why } => self.ask_later(record, payment, &why).await,
        }
    }

    /// Asks for the gateway's own word on a payment that an operator has approved. Its order is paid, whatever the gateway
    /// says now: a contradiction is told to operators, who can refund the order.
    async fn confirm(&self, look: &PaymentCheck<'_>) -> Result<(), Error> {
        let PaymentCheck { record, payment, .. } = look;
        let now = self.store.now(self.store.owner(record.order.order_id.get()));
        let known_for = now.0 - payment.started_at.0;
        let (said, contradicts) = match look.status().await {
            StatusOutcome::Approved { transaction_id } => {
                let end = PaymentEnd::Settled { transaction: transaction_id };
                return self.finish_payment(record, payment, &end).await;
            }
            StatusOutcome::Declined { reason } => (format!("declined: {reason}"), true),
            StatusOutcome::Unacceptable { why, .. } => (why, true),
            StatusOutcome::NotFound => (NOT_FOUND.to_owned(), known_for >= self.give_up_ms),
            StatusOutcome::Unknown { why } => (why, false),
        };
        if self.is_watched_enough(record.order.order_id, payment) {
            tracing::error!(order = %record.order.order_id, said, "a gateway never confirmed what an operator approved");
            return self.finish_payment(record, payment, &PaymentEnd::Disputed).await;
        }
        if contradicts {
            tracing::error!(order = %record.order.order_id, said, "a gateway contradicts what an operator approved");
        }
        let Pause { until, stuck } = Pause::after(payment.since, now, true);
        let order = record.order.order_id;
        self.store.payment_postpone(order, &payment.receipt, until, stuck || contradicts, &said).await
    }

    /// Has the gateway give money back: `taken` won where that is known, else the order's price. What the gateway does not
    /// clearly confirm is settled by its own word on the payment.
    async fn refund(&self, look: &PaymentCheck<'_>, reason: &str, taken: Option<Won>) -> Result<(), Error> {
        let PaymentCheck { record, payment, gateway, charge } = look;
        let mut amounts = vec![taken.unwrap_or(charge.amount), charge.amount];
        amounts.dedup();
        let mut said = String::new();
        for amount in amounts {
            let outcome = gateway.cancel(&describe(payment), &payment.receipt, amount, reason).await;
            said = match outcome {
                CancelOutcome::Cancelled => return self.finish_payment(record, payment, &PaymentEnd::Refunded).await,
                CancelOutcome::NotFound => NOT_FOUND.to_owned(),
                CancelOutcome::Unknown { why } => why,
            };
            match look.status().await {
                StatusOutcome::Declined { .. } => {
                    return self.finish_payment(record, payment, &PaymentEnd::Refunded).await;
                }
                StatusOutcome::NotFound if self.is_watched_enough(record.order.order_id, payment) => {
                    return self.finish_payment(record, payment, &PaymentEnd::Refunded).await;
                }
                // It has the money. If it refused the amount that it named itself, it may give back what was asked for.
                StatusOutcome::Approved { .. } | StatusOutcome::Unacceptable { .. } => {}
                StatusOutcome::NotFound | StatusOutcome::Unknown { .. } => break,
            }
        }
        tracing::warn!(order = %record.order.order_id, said, "a gateway has not given money back yet");
        self.ask_later(record, payment, &said).await
    }

    /// Whether a gateway that has never heard of a payment was asked for long enough since its order was closed.
    fn is_watched_enough(&self, order: OrderId, payment: &GatewayRecord) -> bool {
        self.store.now(self.store.owner(order.get())).0 - payment.since.0 >= self.watch_ms
    }

    /// Has the gateway asked again, later the longer it has been asked. `said`: why it is not settled.
    async fn ask_later(&self, record: &OrderRecord, payment: &GatewayRecord, said: &str) -> Result<(), Error> {
        let now = self.store.now(self.store.owner(record.order.order_id.get()));
        let Pause { until, stuck } = Pause::after(payment.since, now, said != NOT_FOUND);
        if stuck {
            let order = record.order.order_id;
            tracing::warn!(%order, receipt = payment.receipt, said, "a payment is stuck: its gateway does not settle it");
        }
        self.store.payment_postpone(record.order.order_id, &payment.receipt, until, stuck, said).await
    }

    async fn finish_payment(
        &self,
        record: &OrderRecord,
        payment: &GatewayRecord,
        end: &PaymentEnd,
    ) -> Result<(), Error> {
        let call = Call { request_id: describe(payment), key: None };
        let of = (record.order.order_id, record.order.user_id);
        self.store.payment_finish(&call, of, &payment.receipt, end).await.map(drop)
    }
}

/// A gateway payment being looked at.
struct PaymentCheck<'a> {
    record: &'a OrderRecord,
    payment: &'a GatewayRecord,
    gateway: &'a dyn PaymentGateway,
    charge: Charge,
}

impl PaymentCheck<'_> {
    async fn status(&self) -> StatusOutcome {
        self.gateway.status(&describe(self.payment), &self.charge).await
    }
}

/// In place of a request's id, for what is done about a payment later.
fn describe(payment: &GatewayRecord) -> String {
    format!("resolve-{}", payment.receipt)
}
