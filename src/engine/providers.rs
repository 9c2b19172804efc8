//! Payments with a provider's page: preparing them, and the provider's messages.
//!
//! A preparation decides nothing and takes no money: Redis keeps it with the order, and after a loss the customer prepares the payment
//! anew. A message of a provider is a hint: the provider is asked, and the state machine of [`payments`](super::payments) goes on.

use sha2::{Digest, Sha256};

use super::{payments::LATE_REASON, *};
use crate::{
    gateway::{
        CancelOutcome, Charge, PaymentGateway, PaymentPage, PrepareOutcome, Presented, StatusOutcome,
        webhook::{MessageRefused, ProviderMessage},
    },
    redis::records::{GatewayRecord, GatewayState, OrderRecord},
};

/// The bytes of the deployment's digest in the name of an order at a provider.
const DEPLOYMENT_BYTES: usize = 6;

impl Engine {
    /// Prepares the payment of a PENDING order with its provider. Takes no money; the last preparation counts.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`], [`Error::OrderAlreadyPaid`], [`Error::InProgress`] while the order is being paid;
    /// [`Error::InvalidPayment`] if it is closed, if it costs nothing, if its type has no gateway, or if the provider refuses;
    /// [`Error::Unavailable`] if the provider gives no answer.
    pub async fn prepare_payment(&self, call: &Call, payment: &PaymentToPrepare) -> Outcome<Preparation> {
        self.check_owner(call, payment.order_id, payment.user_id).await?;
        self.store.check_key(call, self.store.owner(payment.order_id.get())).await?;
        // No decision binds the key.
        self.with_bound_key(call, self.prepare_once(call, payment)).await
    }

    async fn prepare_once(&self, call: &Call, payment: &PaymentToPrepare) -> Outcome<Preparation> {
        let PaymentToPrepare { order_id, user_id, payment_type, return_url } = payment;
        let found = self.archive.find(*order_id).await?.map(|found| found.record);
        let record = found.filter(|record| record.order.user_id == *user_id).ok_or(Error::OrderNotFound)?;
        let key = call.key.as_ref().map(|key| (key.digest.clone(), key.fingerprint.clone()));
        if let Some(replayed) = replayed(&record, key.as_ref())? {
            return Ok(Reply { value: replayed, replayed: true });
        }
        match (record.order.status, record.gateway.as_ref().map(|gateway| gateway.state)) {
            (OrderStatus::Paid, _) => return Err(Error::OrderAlreadyPaid),
            (OrderStatus::Pending, Some(GatewayState::Started)) => return Err(Error::InProgress),
            (OrderStatus::Pending, _) => {}
            _ => return Err(Error::InvalidPayment),
        }
        let gateway = self.gateways.get(*payment_type).filter(|_| record.order.final_price > 0);
        let gateway = gateway.ok_or(Error::InvalidPayment)?;
        let charge = Charge {
            merchant_uid: String::new(),
            merchant_order_id: self.merchant_order_id(*order_id).await?,
            order_id: *order_id,
            user_id: *user_id,
            amount: record.order.final_price,
            transaction: None,
        };
        let order_name = self.name_of(&record).await?;
        let page = PaymentPage { order_name: &order_name, return_url };
        let prepared = match gateway.prepare(&call.request_id, &charge, page).await {
            PrepareOutcome::Prepared(prepared) => prepared,
            PrepareOutcome::Refused { why } => {
                tracing::warn!(request_id = call.request_id, order = %order_id, why, "a provider refuses to prepare a payment");
                return Err(Error::InvalidPayment);
            }
            PrepareOutcome::Unknown { why } => {
                tracing::warn!(request_id = call.request_id, order = %order_id, why, "a payment could not be prepared");
                return Err(Error::unavailable("the payment's provider gave no answer"));
            }
        };
        let (pc, mobile, app) = match prepared.redirect {
            Some(redirect) => (Some(redirect.pc), redirect.mobile, redirect.app),
            None => (None, None, None),
        };
        let preparation = Preparation {
            payment_type: payment_type.as_str().to_owned(),
            transaction: prepared.transaction,
            merchant_order_id: charge.merchant_order_id,
            order_name,
            amount: charge.amount,
            redirect_url: pc,
            redirect_mobile_url: mobile,
            redirect_app_url: app,
            key,
        };
        self.store.payment_prepare((*order_id, *user_id), &preparation).await?;
        Ok(Reply::first(preparation))
    }

    /// What the customer buys: the name of the first product, and the number of the others.
    async fn name_of(&self, record: &OrderRecord) -> Result<String, Error> {
        let Some(first) = record.order.lines.first() else { return Ok(String::new()) };
        let name = self.store.product(first.product_id).await?.name;
        Ok(match record.order.lines.len() - 1 {
            0 => name,
            others => format!("{name} 외 {others}건"),
        })
    }

    /// The order's name at providers: a digest of this deployment, and the order's id. Deployments that share an account at a
    /// provider, such as a test shop that was set up anew, never take one's payment for the other's.
    pub(super) async fn merchant_order_id(&self, order: OrderId) -> Result<String, Error> {
        Ok(format!("{}-{order}", self.deployment().await?))
    }

    async fn deployment(&self) -> Result<&str, Error> {
        let read = || async {
            let id = self.store.deployment().await?;
            Ok::<_, Error>(hex::encode(&Sha256::digest(id.as_bytes())[..DEPLOYMENT_BYTES]))
        };
        self.deployment.get_or_try_init(read).await.map(String::as_str)
    }

    /// The payment as its provider knows it.
    pub(super) async fn charge_of(&self, payment: &NewPayment, receipt: &str) -> Result<Charge, Error> {
        Ok(Charge {
            merchant_uid: receipt.to_owned(),
            merchant_order_id: self.merchant_order_id(payment.order_id).await?,
            order_id: payment.order_id,
            user_id: payment.user_id,
            amount: payment.amount,
            transaction: None,
        })
    }

    /// The provider's id of a payment that is about to be approved, if it is known by then.
    ///
    /// # Errors
    /// [`Error::InvalidPayment`] if the client brought no usable token, or the payment was not prepared, or the customer has not
    /// approved it; [`Error::Unavailable`] if the provider does not say which one the customer approved.
    pub(super) async fn transaction_of(
        &self,
        call: &Call,
        charge: &Charge,
        payment_type: PaymentType,
        gateway: &dyn PaymentGateway,
        token: Option<&str>,
    ) -> Result<Option<String>, Error> {
        if !gateway.needs_token() {
            return Ok(None);
        }
        let record = self.store.order(charge.order_id).await?.filter(|record| {
            let started = record.gateway.as_ref().is_some_and(|gateway| gateway.state == GatewayState::Started);
            record.order.user_id == charge.user_id && record.order.status == OrderStatus::Pending && !started
        });
        // An order that can't be paid never can again: the script says why.
        let Some(record) = record else { return Ok(None) };
        let prepared = record.prepared_ids(payment_type);
        let last = prepared.last().map(String::as_str);
        let presented = Presented { token, prepared: last, merchant_order_id: &charge.merchant_order_id };
        let transaction = gateway.transaction_of(presented).map_err(|_| Error::InvalidPayment)?;
        if prepared.len() < 2 || transaction.as_deref() != last {
            return Ok(transaction);
        }
        // The customer has opened several pages, and comes back from any of them.
        match gateway.find_approved(&call.request_id, charge, &prepared).await {
            Ok(Some(approved)) => Ok(Some(approved)),
            Ok(None) => Err(Error::InvalidPayment),
            Err(why) => {
                tracing::warn!(request_id = call.request_id, order = %charge.order_id, why, "no approved payment is known");
                Err(Error::unavailable("the payment's provider gave no answer"))
            }
        }
    }

    /// Takes a provider's message for a hint, and asks the provider.
    ///
    /// # Errors
    /// The message is refused; or the provider gave no answer, and should send the message again.
    pub async fn payment_hint(
        &self,
        call: &Call,
        payment_type: PaymentType,
        webhook: &ProviderMessage<'_>,
    ) -> Result<Result<(), MessageRefused>, Error> {
        let Some(gateway) = self.gateways.get(payment_type) else { return Ok(Err(MessageRefused::NotOffered)) };
        let named = match gateway.read_webhook(webhook) {
            Ok(named) => named,
            Err(refused) => return Ok(Err(refused)),
        };
        let deployment = self.deployment().await?;
        // Another deployment's, or about something else.
        let order = named.as_deref().and_then(|name| name.strip_prefix(deployment)?.strip_prefix('-')?.parse().ok());
        let Some(order) = order.and_then(OrderId::new) else { return Ok(Ok(())) };
        let Some(record) = self.archive.find(order).await?.map(|found| found.record) else { return Ok(Ok(())) };
        Box::pin(self.follow_hint(call, payment_type, &**gateway, &record)).await.map(Ok)
    }

    async fn follow_hint(
        &self,
        call: &Call,
        payment_type: PaymentType,
        gateway: &dyn PaymentGateway,
        record: &OrderRecord,
    ) -> Result<(), Error> {
        let order = &record.order;
        let payment =
            NewPayment { order_id: order.order_id, user_id: order.user_id, payment_type, amount: order.final_price };
        let charge = self.charge_of(&payment, "").await?;
        let open = record.gateway.as_ref().filter(|open| open.state != GatewayState::Ended || !record.due.is_empty());
        if open.is_some_and(|open| self.is_payment_of(open, &charge, payment_type, gateway)) {
            return self.store.hasten_payment(order.order_id).await;
        }
        if !gateway.takes_money_first() {
            return Ok(());
        }
        if order.status != OrderStatus::Pending || open.is_some() {
            return Box::pin(self.return_stray_money(call, &charge, payment_type, gateway)).await;
        }
        match gateway.status(&call.request_id, &charge).await {
            StatusOutcome::Approved { .. } | StatusOutcome::Unacceptable { .. } => {
                let paid = Box::pin(self.pay_order(call, payment, Some(&charge.merchant_order_id))).await;
                match paid {
                    Err(error) if error.leaves_outcome_unknown() => Err(error),
                    // Whatever became of it, the payment is begun, or was before.
                    _ => Ok(()),
                }
            }
            StatusOutcome::Declined { .. } | StatusOutcome::NotFound => Ok(()),
            StatusOutcome::Unknown { .. } => Err(Error::unavailable("the payment's provider gave no answer")),
        }
    }

    /// Whether the payment that an order has, or had, is this provider's.
    fn is_payment_of(
        &self,
        payment: &GatewayRecord,
        charge: &Charge,
        payment_type: PaymentType,
        gateway: &dyn PaymentGateway,
    ) -> bool {
        match &payment.transaction {
            // Such a provider knows a payment by the order's name, whatever its type was at the time.
            Some(id) if gateway.takes_money_first() => *id == charge.merchant_order_id,
            _ => {
                let of = self.gateways.get(payment.payment_type);
                payment.payment_type == payment_type || of.is_some_and(|of| of.provider() == gateway.provider())
            }
        }
    }

    /// Gives back the money of an order that this payment can't pay: it is closed, or is or was paid otherwise.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the provider does not confirm it: ask again.
    pub(super) async fn return_stray_money(
        &self,
        call: &Call,
        charge: &Charge,
        payment_type: PaymentType,
        gateway: &dyn PaymentGateway,
    ) -> Result<(), Error> {
        let found = self.archive.find(charge.order_id).await?.map(|found| found.record);
        let Some(record) = found.filter(|record| record.order.user_id == charge.user_id) else { return Ok(()) };
        let is_kept = match &record.gateway {
            // It pays the order, or the sweeper refunds it.
            Some(own) if self.is_payment_of(own, charge, payment_type, gateway) => {
                record.order.status == OrderStatus::Paid || own.state != GatewayState::Ended || !record.due.is_empty()
            }
            // An order has one payment, whatever becomes of it.
            Some(_) => false,
            None => record.order.status == OrderStatus::Pending,
        };
        if is_kept {
            return Ok(());
        }
        let request_id = &call.request_id;
        let unconfirmed = || Error::unavailable("money of a closed order is not given back yet");
        let taken = match gateway.status(request_id, charge).await {
            StatusOutcome::Approved { .. } => charge.amount,
            StatusOutcome::Unacceptable { taken, .. } => taken.unwrap_or(charge.amount),
            StatusOutcome::Declined { .. } | StatusOutcome::NotFound => return Ok(()),
            StatusOutcome::Unknown { .. } => return Err(unconfirmed()),
        };
        let outcome = gateway.cancel(request_id, charge, taken, LATE_REASON).await;
        tracing::warn!(request_id, order = %charge.order_id, taken, ?outcome, "a provider took money for a closed order");
        match outcome {
            CancelOutcome::Cancelled => Ok(()),
            CancelOutcome::NotFound | CancelOutcome::Unknown { .. } => Err(unconfirmed()),
        }
    }
}

/// The last preparation, if this request asked for it.
///
/// # Errors
/// [`Error::IdempotencyKeyReused`].
fn replayed(record: &OrderRecord, key: Option<&(String, String)>) -> Result<Option<Preparation>, Error> {
    let Some(prepared) = &record.prepared else { return Ok(None) };
    match (&prepared.key, key) {
        (Some((digest, print)), Some((of, by))) if digest == of => match print == by {
            true => Ok(Some(prepared.clone())),
            false => Err(Error::IdempotencyKeyReused),
        },
        _ => Ok(None),
    }
}
