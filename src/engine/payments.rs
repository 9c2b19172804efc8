//! Payments: from the balance in one step, or through an external gateway in three: begin, pay, settle.
//!
//! The outcome at a gateway may be unknown, after a timeout for example. The order then stays PENDING, and can't be cancelled
//! or expire, while the sweeper queries the gateway until the outcome is known: see [`Engine::check_payment`] and
//! [`backoff`](super::backoff).

use std::sync::Arc;

use uuid::Uuid;

use super::{backoff::Pause, *};
use crate::{
    gateway::{CancelOutcome, Charge, PartToCancel, PayOutcome, PaymentGateway, StatusOutcome},
    redis::{
        commands::{BeginPayment, Closing, PayOrder, PaymentFinish, Settled},
        queries::due::DuePayment,
        records::{DuePart, GatewayRecord, GatewayState, OrderRecord},
    },
};

/// The time, beyond the gateway's timeout, after which the sweeper checks a payment that was begun.
const RESOLVE_AFTER_MS: i64 = 2_000;
/// The maximum number of consecutive calls of a check: a status, and twice a cancel and a status.
const CALLS_PER_CHECK: i64 = 5;
/// The recorded answer of a gateway that does not know the payment.
const NOT_FOUND: &str = "no such payment";
/// The reasons of refunds, as the gateway receives them.
const REFUND_REASON: &str = "order refunded";
pub(super) const LATE_REASON: &str = "order closed before the payment was known";
const UNACCEPTABLE_REASON: &str = "not the payment that was asked for";

impl Engine {
    /// Pays a PENDING order.
    ///
    /// # Errors
    /// The refusals of `POST /payments`. After [`Error::PaymentDeclined`] the order is FAILED; [`Error::Unavailable`] if the
    /// outcome at the gateway is unknown. `token` is what the client brought from the page of the payment's provider.
    pub async fn pay_order(&self, call: &Call, payment: NewPayment, token: Option<&str>) -> Outcome<Payment> {
        self.check_owner(call, payment.order_id, payment.user_id).await?;
        let payment_id = self.next_payment_id(self.store.owner(payment.order_id.get())).await?;
        let receipt = Uuid::now_v7().to_string();
        // A payment of 0 won needs no gateway.
        let gateway = self.gateways.get(payment.payment_type).filter(|_| payment.amount > 0).cloned();
        let settled = match gateway {
            // Boxed, because few requests need this: otherwise the future of every payment would be as large
            // (docs/decisions.md).
            Some(gateway) => {
                let gateway = (&gateway, token);
                Box::pin(self.pay_by_gateway(call, &payment, payment_id, &receipt, gateway)).await?
            }
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

    pub(super) async fn next_payment_id(&self, owner: Partition) -> Result<PaymentId, Error> {
        let id = self.payment_ids.next(&self.store, owner).await?;
        PaymentId::new(id).ok_or_else(|| Error::Internal(anyhow::anyhow!("payment id {id}")))
    }

    /// Settles an order.
    async fn settle(
        &self,
        call: &Call,
        payment: &NewPayment,
        payment_id: PaymentId,
        receipt: &str,
        transaction: Option<&str>,
    ) -> Outcome<Settled> {
        let _operation = self.store.begin_operation();
        let pay_at = |now| PayOrder {
            payment: payment.clone(),
            payment_id,
            receipt: receipt.to_owned(),
            transaction: transaction.map(str::to_owned),
            day: self.day(now),
        };
        let owner = self.store.owner(payment.order_id.get());
        let settled = match self.store.order_pay(call, owner, &pay_at).await {
            Err(Error::OrderNotFound) => {
                return Box::pin(self.settled_before(payment, transaction.and(Some(receipt)))).await;
            }
            settled => settled?,
        };
        self.popular.sold();
        Ok(settled)
    }

    /// The outcome of a payment of an order that Redis does not have: for an archived order, the script's outcome as if it were
    /// in Redis. `receipt` is of a gateway that took the money.
    async fn settled_before(&self, payment: &NewPayment, receipt: Option<&str>) -> Outcome<Settled> {
        let found = self.archive.find(payment.order_id).await?.map(|found| found.record.order);
        let order = found.filter(|order| order.user_id == payment.user_id).ok_or(Error::OrderNotFound)?;
        match (order.status, order.payment, receipt) {
            // Placed after Redis was read.
            (OrderStatus::Pending, ..) => Err(Error::OrderNotFound),
            (OrderStatus::Paid, Some(paid), Some(receipt)) if paid.receipt == receipt => {
                let OrderPayment { payment_id, receipt, paid_at, .. } = paid;
                Ok(Reply::first(Settled::Paid { payment_id, receipt, paid_at }))
            }
            (OrderStatus::Paid, _, None) => Err(Error::OrderAlreadyPaid),
            _ => Err(Error::InvalidPayment),
        }
    }

    async fn pay_by_gateway(
        &self,
        call: &Call,
        payment: &NewPayment,
        payment_id: PaymentId,
        receipt: &str,
        (gateway, token): (&Arc<dyn PaymentGateway>, Option<&str>),
    ) -> Outcome<Settled> {
        let mut charge = self.charge_of(payment, receipt).await?;
        charge.transaction = self.transaction_of(call, &charge, payment.payment_type, &**gateway, token).await?;
        let begin = BeginPayment {
            payment: payment.clone(),
            payment_id,
            receipt: receipt.to_owned(),
            transaction: charge.transaction.clone(),
            check_in_ms: self.gateway_timeout_ms + RESOLVE_AFTER_MS,
        };
        let begun = match self.store.payment_begin(call, &begin).await {
            Ok(None) => None,
            Ok(Some(settled)) => Some(Ok(Reply { value: settled, replayed: true })),
            Err(Error::OrderNotFound) => Some(self.settled_before(payment, None).await),
            Err(error) => Some(Err(error)),
        };
        if let Some(ended) = begun {
            let refused = matches!(ended, Err(Error::InvalidPayment | Error::OrderAlreadyPaid | Error::InProgress));
            if refused && gateway.takes_money_first() {
                Box::pin(self.return_stray_money(call, &charge, payment.payment_type, &**gateway)).await?;
            }
            return ended;
        }
        // The gateway must not take money for a payment that a loss of Redis could undo.
        self.wait_until_durable(&call.acknowledged).await?;
        match gateway.pay(&call.request_id, &charge, token).await {
            PayOutcome::Approved { transaction_id } => {
                let settled = self.settle(call, payment, payment_id, receipt, Some(&transaction_id)).await;
                if matches!(settled, Err(Error::InvalidPayment)) {
                    // The order has failed meanwhile. If this refund fails too, the watch of the payment refunds the money.
                    let outcome = gateway.cancel(&call.request_id, &charge, payment.amount, LATE_REASON).await;
                    tracing::warn!(order = %payment.order_id, ?outcome, "a gateway approved a payment too late");
                }
                settled
            }
            PayOutcome::Declined { reason } => {
                tracing::info!(request_id = call.request_id, order = %payment.order_id, reason, "the gateway declined");
                // The customer may still pay at a provider that takes the money by itself.
                let ask_again_in_ms = gateway.takes_money_first().then_some(RESOLVE_AFTER_MS);
                self.declined(call, payment, receipt, ask_again_in_ms).await
            }
            PayOutcome::Unacceptable { taken, why } => {
                let request_id = &call.request_id;
                tracing::error!(request_id, order = %payment.order_id, receipt, ?taken, why, "an approval is unacceptable");
                // The watch of the payment refunds the money.
                self.declined(call, payment, receipt, Some(0)).await
            }
            PayOutcome::Unknown { why } => {
                let request_id = &call.request_id;
                tracing::warn!(request_id, order = %payment.order_id, receipt, why, "a payment's outcome is unknown");
                Err(Error::unavailable("the payment's outcome is not known yet"))
            }
        }
    }

    /// Fails the order of a payment whose client waits, and returns the outcome.
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
        // Another process or an operator has settled the payment meanwhile.
        self.settled_before(payment, Some(receipt)).await
    }

    /// Fails an order after its payment was declined. With `ask_again_in_ms` the gateway may still take the money, and the
    /// payment is watched. Returns false if the order is paid instead.
    async fn decline(
        &self,
        call: &Call,
        order: OrderId,
        receipt: &str,
        ask_again_in_ms: Option<i64>,
    ) -> Result<bool, Error> {
        // Another check of the payment was first, and the order is archived by now.
        let Some(record) = self.store.order(order).await? else { return Ok(true) };
        let closing = Closing::Decline { receipt: receipt.to_owned(), ask_again_in_ms };
        match self.close(call, &record, closing).await {
            Ok(closed) => Ok(closed.is_some()),
            // Another check of the payment was first.
            Err(Error::OrderAlreadyClosed | Error::OrderNotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Checks a due gateway payment: queries its outcome and acts on it. Concurrent checks do nothing twice: the scripts check
    /// the state of the payment, and a refund at the gateway is idempotent.
    ///
    /// # Errors
    /// Redis is unavailable; the payment stays due.
    pub(super) async fn check_payment(&self, due: DuePayment) -> Result<(), Error> {
        let (order, now) = (due.order, self.store.now(self.store.owner(due.order.get())));
        // The lease avoids concurrent checks, and keeps a payment that can't be checked from delaying the others.
        let lease = now.plus(self.gateway_timeout_ms * CALLS_PER_CHECK + RESOLVE_AFTER_MS);
        self.store.postpone_payment(due, lease).await?;
        let Some(record) = self.store.order(order).await? else { return Ok(()) };
        let Some(mut payment) = record.gateway.clone() else { return Ok(()) };
        if let Some(part) = record.due.first() {
            payment.since = part.since;
        }
        let Some(gateway) = self.gateways.get(payment.payment_type).cloned() else {
            tracing::error!(%order, kind = %payment.payment_type, "a payment's gateway is no longer configured");
            return self.query_later(&record, &payment, "no gateway is configured for this payment type").await;
        };
        let charge = Charge {
            merchant_uid: payment.receipt.clone(),
            merchant_order_id: self.merchant_order_id(order).await?,
            order_id: order,
            user_id: record.order.user_id,
            amount: record.order.final_price,
            transaction: payment.transaction.clone(),
        };
        let check = PaymentCheck { record: &record, payment: &payment, gateway: &*gateway, charge };
        if let Some(part) = record.due.first() {
            return self.refund_part(&check, part).await;
        }
        match payment.state {
            GatewayState::Started => self.resolve(&check).await,
            GatewayState::Watched => self.watch(&check).await,
            GatewayState::RefundDue => self.refund(&check, REFUND_REASON, None).await,
            GatewayState::Unconfirmed => self.confirm(&check).await,
            GatewayState::Ended => Ok(()),
        }
    }

    /// Settles or fails a PENDING order by the outcome at the gateway.
    async fn resolve(&self, check: &PaymentCheck<'_>) -> Result<(), Error> {
        let PaymentCheck { record, payment, .. } = check;
        let order = &record.order;
        let call = Call::new(describe(payment), payment.key.clone());
        let now = self.store.now(self.store.owner(order.order_id.get()));
        let declined = match check.status().await {
            StatusOutcome::Approved { transaction_id, .. } => {
                let new = NewPayment {
                    order_id: order.order_id,
                    user_id: order.user_id,
                    payment_type: payment.payment_type,
                    amount: order.final_price,
                };
                let settled =
                    self.settle(&call, &new, payment.payment_id, &payment.receipt, Some(&transaction_id)).await;
                return match settled {
                    // Another process has resolved the payment since the read.
                    Ok(_) | Err(Error::InvalidPayment) => Ok(()),
                    Err(error) => Err(error),
                };
            }
            StatusOutcome::Declined { reason } => {
                tracing::info!(order = %order.order_id, reason, "the gateway declined");
                self.decline(&call, order.order_id, &payment.receipt, None).await
            }
            StatusOutcome::Unacceptable { taken, why } => {
                tracing::error!(order = %order.order_id, ?taken, why, "an approval is unacceptable");
                self.decline(&call, order.order_id, &payment.receipt, Some(0)).await
            }
            StatusOutcome::NotFound if now.0 - payment.started_at.0 >= self.give_up_ms => {
                // The payment request may still arrive. The order fails now, and the watch refunds money that is taken late.
                tracing::warn!(order = %order.order_id, "the gateway does not know a payment: giving it up");
                self.decline(&call, order.order_id, &payment.receipt, Some(RESOLVE_AFTER_MS)).await
            }
            StatusOutcome::NotFound => return self.query_later(record, payment, NOT_FOUND).await,
            StatusOutcome::Unknown { why } => return self.query_later(record, payment, &why).await,
        };
        declined.map(drop)
    }

    /// Checks whether the gateway took money for an order that failed, and refunds it.
    async fn watch(&self, check: &PaymentCheck<'_>) -> Result<(), Error> {
        let PaymentCheck { record, payment, .. } = check;
        match check.status().await {
            StatusOutcome::Approved { .. } => self.refund(check, LATE_REASON, None).await,
            StatusOutcome::Unacceptable { taken, .. } => self.refund(check, UNACCEPTABLE_REASON, taken).await,
            StatusOutcome::Declined { .. } => self.finish_payment(record, payment, &PaymentFinish::Declined).await,
            StatusOutcome::NotFound if self.is_watched_enough(record.order.order_id, payment) => {
                self.finish_payment(record, payment, &PaymentFinish::Declined).await
            }
            StatusOutcome::NotFound => self.query_later(record, payment, NOT_FOUND).await,
            StatusOutcome::Unknown { why } => self.query_later(record, payment, &why).await,
        }
    }

    /// Queries the outcome of a payment that an operator approved. The order stays paid; a contradiction is reported to
    /// operators, who can refund the order.
    async fn confirm(&self, check: &PaymentCheck<'_>) -> Result<(), Error> {
        let PaymentCheck { record, payment, .. } = check;
        let now = self.store.now(self.store.owner(record.order.order_id.get()));
        let known_for = now.0 - payment.started_at.0;
        let (last_answer, contradicts) = match check.status().await {
            StatusOutcome::Approved { transaction_id, .. } => {
                let finish = PaymentFinish::Settled { transaction: transaction_id };
                return self.finish_payment(record, payment, &finish).await;
            }
            StatusOutcome::Declined { reason } => (format!("declined: {reason}"), true),
            StatusOutcome::Unacceptable { why, .. } => (why, true),
            StatusOutcome::NotFound => (NOT_FOUND.to_owned(), known_for >= self.give_up_ms),
            StatusOutcome::Unknown { why } => (why, false),
        };
        if self.is_watched_enough(record.order.order_id, payment) {
            tracing::error!(order = %record.order.order_id, last_answer, "a gateway never confirmed a payment that an operator approved");
            return self.finish_payment(record, payment, &PaymentFinish::Disputed).await;
        }
        if contradicts {
            tracing::error!(order = %record.order.order_id, last_answer, "a gateway contradicts an operator's approval");
        }
        let Pause { until, stuck } = Pause::after(payment.since, now, true);
        let order = record.order.order_id;
        self.store.payment_postpone(order, &payment.receipt, until, stuck || contradicts, &last_answer).await
    }

    /// Refunds a payment at the gateway: `taken` won if that is known, else the order's price. If the gateway does not confirm
    /// the refund clearly, the status of the payment decides.
    async fn refund(&self, check: &PaymentCheck<'_>, reason: &str, taken: Option<Won>) -> Result<(), Error> {
        let PaymentCheck { record, payment, gateway, charge } = check;
        let rest = record.order.left_price;
        if rest < charge.amount && payment.state == GatewayState::RefundDue {
            // Parts of the order were refunded before: this is the last one.
            return match self.cancel_part(check, rest, charge.amount).await {
                Ok(()) => self.finish_payment(record, payment, &PaymentFinish::Refunded).await,
                Err(last_answer) => self.query_later(record, payment, &last_answer).await,
            };
        }
        let mut amounts = vec![taken.unwrap_or(charge.amount), charge.amount];
        amounts.dedup();
        let mut last_answer = String::new();
        for amount in amounts {
            let outcome = gateway.cancel(&describe(payment), charge, amount, reason).await;
            last_answer = match outcome {
                CancelOutcome::Cancelled => {
                    return self.finish_payment(record, payment, &PaymentFinish::Refunded).await;
                }
                CancelOutcome::NotFound => NOT_FOUND.to_owned(),
                CancelOutcome::Unknown { why } => why,
            };
            match check.status().await {
                StatusOutcome::Declined { .. } => {
                    return self.finish_payment(record, payment, &PaymentFinish::Refunded).await;
                }
                StatusOutcome::NotFound if self.is_watched_enough(record.order.order_id, payment) => {
                    return self.finish_payment(record, payment, &PaymentFinish::Refunded).await;
                }
                // The gateway has the money. If it rejected the amount that it named, it may accept the requested amount.
                StatusOutcome::Approved { .. } | StatusOutcome::Unacceptable { .. } => {}
                StatusOutcome::NotFound | StatusOutcome::Unknown { .. } => break,
            }
        }
        tracing::warn!(order = %record.order.order_id, last_answer, "a gateway has not refunded a payment yet");
        self.query_later(record, payment, &last_answer).await
    }

    /// Refunds the earliest part of an order that its gateway has not refunded yet.
    async fn refund_part(&self, check: &PaymentCheck<'_>, part: &DuePart) -> Result<(), Error> {
        let PaymentCheck { record, payment, .. } = check;
        match self.cancel_part(check, part.amount, part.total).await {
            Ok(()) => {
                let call = Call::new(describe(payment), None);
                let of = (record.order.order_id, record.order.user_id);
                self.store.refund_finish(&call, of, &payment.receipt, part.number).await.map(drop)
            }
            Err(last_answer) => {
                tracing::warn!(order = %record.order.order_id, part = part.number, last_answer, "a gateway has not refunded a part yet");
                self.query_later(record, payment, &last_answer).await
            }
        }
    }

    /// Has the gateway refund `amount` won, with which it has refunded `total` of the payment. It is asked first whether it has: the
    /// reply to an earlier request may be lost. A gateway that does not say what it has refunded recognises the repeat by its key.
    /// The error is the last answer of a gateway that has not confirmed the refund.
    async fn cancel_part(&self, check: &PaymentCheck<'_>, amount: Won, total: Won) -> Result<(), String> {
        let PaymentCheck { record, payment, gateway, charge } = check;
        let mut last_answer = None;
        if amount == 0 {
            // The order's other lines cost nothing.
            return Ok(());
        }
        loop {
            let left = match check.status().await {
                StatusOutcome::Approved { cancelled: Some(cancelled), .. } => total - cancelled,
                StatusOutcome::Approved { cancelled: None, .. } | StatusOutcome::Unacceptable { .. } => amount,
                // The gateway has refunded all of it.
                StatusOutcome::Declined { .. } => 0,
                StatusOutcome::NotFound if self.is_watched_enough(record.order.order_id, payment) => 0,
                StatusOutcome::NotFound => return Err(NOT_FOUND.to_owned()),
                StatusOutcome::Unknown { why } => return Err(why),
            };
            if left <= 0 {
                return Ok(());
            }
            if let Some(last_answer) = last_answer {
                return Err(last_answer);
            }
            let part = PartToCancel { charge, amount: amount.min(left), total, reason: REFUND_REASON };
            last_answer = match gateway.cancel_part(&describe(payment), &part).await {
                CancelOutcome::Cancelled => return Ok(()),
                CancelOutcome::NotFound => Some(NOT_FOUND.to_owned()),
                CancelOutcome::Unknown { why } => Some(why),
            };
        }
    }

    /// Whether the watch of a payment that the gateway does not know is over.
    fn is_watched_enough(&self, order: OrderId, payment: &GatewayRecord) -> bool {
        self.store.now(self.store.owner(order.get())).0 - payment.since.0 >= self.watch_ms
    }

    /// Schedules the next query, after the pause of [`backoff`](super::backoff). `last_answer` is the gateway's last answer.
    async fn query_later(&self, record: &OrderRecord, payment: &GatewayRecord, last_answer: &str) -> Result<(), Error> {
        let now = self.store.now(self.store.owner(record.order.order_id.get()));
        let Pause { until, stuck } = Pause::after(payment.since, now, last_answer != NOT_FOUND);
        if stuck {
            let order = record.order.order_id;
            tracing::warn!(%order, receipt = payment.receipt, last_answer, "a payment is stuck: its gateway gives no outcome");
        }
        self.store.payment_postpone(record.order.order_id, &payment.receipt, until, stuck, last_answer).await
    }

    async fn finish_payment(
        &self,
        record: &OrderRecord,
        payment: &GatewayRecord,
        finish: &PaymentFinish,
    ) -> Result<(), Error> {
        let call = Call::new(describe(payment), None);
        let of = (record.order.order_id, record.order.user_id);
        self.store.payment_finish(&call, of, &payment.receipt, finish).await.map(drop)
    }
}

/// A check of a gateway payment.
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

/// The request id of the sweeper's steps for a payment.
fn describe(payment: &GatewayRecord) -> String {
    format!("resolve-{}", payment.receipt)
}
