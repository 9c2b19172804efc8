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
    redis::records::{GatewayState, OrderRecord},
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
        let PaymentToPrepare { order_id, user_id, payment_type, return_url } = payment;
        self.check_owner(call, *order_id, *user_id).await?;
        self.store.check_key(call, self.store.owner(order_id.get())).await?;
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
    /// [`Error::InvalidPayment`] if the client brought no usable token, or the payment was not prepared.
    pub(super) async fn transaction_of(
        &self,
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
        let prepared = record.prepared.filter(|prepared| prepared.payment_type == payment_type.as_str());
        let presented = Presented {
            token,
            prepared: prepared.as_ref().and_then(|prepared| prepared.transaction.as_deref()),
            merchant_order_id: &charge.merchant_order_id,
        };
        gateway.transaction_of(presented).map_err(|_| Error::InvalidPayment)
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
        let state = record.gateway.as_ref().map_or(GatewayState::Ended, |gateway| gateway.state);
        if state != GatewayState::Ended || !record.due.is_empty() {
            return self.store.hasten_payment(order.order_id).await;
        }
        if !gateway.takes_money_first() {
            return Ok(());
        }
        let payment =
            NewPayment { order_id: order.order_id, user_id: order.user_id, payment_type, amount: order.final_price };
        let charge = self.charge_of(&payment, "").await?;
        if order.status != OrderStatus::Pending {
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

    /// Gives back the money of an order that this payment can't pay: it is closed, or was paid otherwise.
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
        let Some(record) = self.archive.find(charge.order_id).await?.map(|found| found.record) else { return Ok(()) };
        let paid_by_it = record.gateway.as_ref().is_some_and(|paid| {
            let of = self.gateways.get(paid.payment_type);
            paid.payment_type == payment_type || of.is_some_and(|of| of.provider() == gateway.provider())
        });
        // The sweeper refunds what it knows of.
        let is_open = record.gateway.as_ref().is_some_and(|gateway| gateway.state != GatewayState::Ended);
        let is_its_own = record.order.status == OrderStatus::Paid && paid_by_it;
        if record.order.status == OrderStatus::Pending || is_its_own || is_open || !record.due.is_empty() {
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
