//! Orders: place, read, close.

use std::collections::HashMap;

use uuid::Uuid;

use super::*;
use crate::redis::{
    commands::{Checkout, CloseOrder, Closed, Closing, CouponTerms, PlaceOrder, Placement},
    records::OrderRecord,
};

impl Engine {
    /// Places an order, and pays it if it names a payment type. Until it is paid it is PENDING, and holds its stock and its coupon.
    ///
    /// # Errors
    /// The refusals of `POST /orders`; then nothing is held. Of a payment through a gateway, those of [`Engine::pay_order`].
    pub async fn place_order(&self, call: &Call, order: NewOrder) -> Outcome<PlacedOrder> {
        // Boxed, so that the future of an order alone stays small.
        match order.payment_type {
            None => self.place(call, order, None).await,
            Some(payment_type) => Box::pin(self.place_and_pay(call, order, payment_type)).await,
        }
    }

    /// Places an order and pays it: from the balance in one step, through a gateway in several.
    async fn place_and_pay(&self, call: &Call, order: NewOrder, payment_type: PaymentType) -> Outcome<PlacedOrder> {
        let user_id = order.user_id;
        let checkout = match self.gateways.get(payment_type) {
            // The customer approves such a payment on a page of its provider, which needs the order.
            Some(gateway) if gateway.needs_token() => return Err(Error::InvalidOrder),
            Some(_) => None,
            None => {
                let owner = self.store.owner(user_id.get());
                let payment_id = self.next_payment_id(owner).await?;
                let (receipt, day) = (Uuid::now_v7().to_string(), self.day(self.store.now(owner)));
                Some(Box::new(Checkout { payment_type, payment_id, receipt, day, zone: self.zone }))
            }
        };
        let placed = self.place(call, order, checkout).await?;
        if placed.value.payment.is_some() {
            self.popular.sold();
            return Ok(placed);
        }
        let Reply { value: mut placed, replayed } = placed;
        let (order_id, amount) = (placed.order_id, placed.final_price);
        // The order is recorded under the request's key, and its payment under another one: a repeat finds what was done, and does
        // the rest.
        let call = call.of_step("payment");
        let paid = self.pay_order(&call, NewPayment { order_id, user_id, payment_type, amount }, None).await;
        let payment = match paid {
            Ok(Reply { value: Payment { payment_id, receipt, .. }, replayed }) => {
                Reply { value: PlacedPayment { payment_id, receipt }, replayed }
            }
            // Somebody has paid it meanwhile by itself.
            Err(Error::OrderAlreadyPaid) => {
                let payment = self.order(order_id, Some(user_id)).await?.payment.ok_or(Error::OrderAlreadyPaid)?;
                let OrderPayment { payment_id, receipt, .. } = payment;
                Reply { value: PlacedPayment { payment_id, receipt }, replayed }
            }
            // It was closed before it was paid.
            Err(Error::InvalidPayment) => return Err(Error::InvalidOrder),
            Err(error) => return Err(error),
        };
        placed.payment = Some(payment.value);
        Ok(Reply { value: placed, replayed: payment.replayed })
    }

    async fn place(&self, call: &Call, order: NewOrder, checkout: Option<Box<Checkout>>) -> Outcome<PlacedOrder> {
        let _operation = self.store.begin_operation();
        let owner = self.store.owner(order.user_id.get());
        let id = self.order_ids.next(&self.store, owner).await?;
        let order_id = OrderId::new(id).ok_or_else(|| Error::Internal(anyhow::anyhow!("order id {id}")))?;
        let coupon = match order.coupon_id {
            Some(coupon) => Some((coupon, self.coupon_terms(coupon, &order.lines).await?)),
            None => None,
        };
        let place = PlaceOrder {
            order_id,
            user_id: order.user_id,
            hold_ms: self.hold_ms,
            max_open: self.max_open_orders,
            must_afford: self.gateways.is_empty() || checkout.is_some(),
            coupon,
            lines: order.lines,
            checkout,
        };
        if self.store.partitions() > 1 {
            // Boxed: the future is large, and every order moves it.
            return Box::pin(self.place_with_many(call, place)).await;
        }
        match self.store.order_place(call, place).await? {
            Placement::Placed(placed) => Ok(placed),
            Placement::Short(error) => Err(error),
        }
    }

    /// The terms of a coupon for an order of these lines; `None` if there is no such campaign.
    async fn coupon_terms(&self, coupon: CouponId, lines: &[(ProductId, i64)]) -> Result<Option<CouponTerms>, Error> {
        let Some(terms) = self.terms(coupon).await? else { return Ok(None) };
        let mut conditions = OrderConditions::default();
        if terms.conditions != CouponConditions::default() {
            let products: Vec<ProductId> = lines.iter().map(|(product, _)| *product).collect();
            // The owner partition has the category, and it may change. Boxed: only few coupons name categories.
            let categories = match terms.conditions.categories.is_empty() {
                true => Vec::new(),
                false => Box::pin(self.store.categories_of(&products)).await?,
            };
            conditions = terms.conditions.of_order(&products, &categories);
        }
        Ok(Some(CouponTerms { discount: terms.discount, conditions, expires_at: terms.expires_at }))
    }

    /// Places an order with several partitions: what its user's partition lacks comes from others.
    async fn place_with_many(&self, call: &Call, place: PlaceOrder) -> Outcome<PlacedOrder> {
        let user = place.user_id;
        let coupon = place.coupon.as_ref().map(|(coupon, _)| *coupon);
        let remote = coupon.filter(|coupon| self.store.owner(coupon.get()) != self.store.owner(user.get()));
        let Some(coupon) = remote else { return self.place_supplied(call, place).await };
        match self.place_supplied(call, place.clone()).await {
            // The coupon may be where its campaign issued it.
            Err(Error::InvalidCoupon) => {
                self.check_affordable(&place, &HashMap::new()).await?;
                self.grant_coupon(call, user, coupon).await?;
                self.place_supplied(call, place).await
            }
            outcome => outcome,
        }
    }

    /// An order; with a `user`, only that user's.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::Unavailable`] if Redis does not have the order while PostgreSQL is unavailable.
    pub async fn order(&self, order: OrderId, user: Option<UserId>) -> Result<Order, Error> {
        let found = self.archive.find(order).await?.map(|found| found.record.order);
        let found = found.filter(|found| user.is_none_or(|user| found.user_id == user)).ok_or(Error::OrderNotFound)?;
        match user {
            // One that was forgotten has no orders any more.
            Some(user) if matches!(self.check_user(user).await, Err(Error::UserNotFound)) => Err(Error::OrderNotFound),
            _ => Ok(found),
        }
    }

    /// Closes an order. `None` if the order differs from the record.
    pub(super) async fn close(
        &self,
        call: &Call,
        record: &OrderRecord,
        closing: Closing,
    ) -> Result<Option<Reply<Closed>>, Error> {
        let _operation = self.store.begin_operation();
        let (order, user) = (record.order.order_id, record.order.user_id);
        let close = CloseOrder { order_id: order, user_id: user, closing };
        let Some(closed) = self.store.order_close(call, &close).await? else { return Ok(None) };
        if closed.value.reason == Some(CloseReason::Refunded) {
            self.popular.sold();
        }
        Ok(Some(closed))
    }
}
