//! Orders: place, read, cancel.

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDate;

use super::*;
use crate::{
    model::Partition,
    redis::{
        commands::{
            CloseOrder, Closed, Closing, CouponTerms, DAY_FORMAT, HoldStock, PlaceOrder, REMOTE_HOLD_GRACE_MS,
            RemoteEnd, SettleStock, Shortage,
        },
        records::OrderRecord,
    },
};

/// The number of attempts to close an order that changes concurrently.
const CLOSE_ATTEMPTS: usize = 5;

impl Engine {
    /// Places an order: it is PENDING, and holds its stock and its coupon.
    ///
    /// # Errors
    /// The refusals of `POST /orders`; then nothing is held.
    pub async fn place_order(&self, call: &Call, order: NewOrder) -> Outcome<PlacedOrder> {
        let _operation = self.store.begin_operation();
        let owner = self.store.owner(order.user_id.get());
        let id = self.order_ids.next(&self.store, owner).await?;
        let order_id = OrderId::new(id).ok_or_else(|| Error::Internal(anyhow::anyhow!("order id {id}")))?;
        let terms = match order.coupon_id {
            Some(coupon) => self.terms(coupon).await?,
            None => None,
        };
        let terms = terms.map(|terms| CouponTerms { discount: terms.discount, expires_at: terms.expires_at });
        let mut place = PlaceOrder {
            order_id,
            user_id: order.user_id,
            hold_ms: self.hold_ms,
            max_open: self.max_open_orders,
            must_afford: self.gateways.is_empty(),
            coupon: order.coupon_id.map(|coupon| (coupon, terms)),
            lines: Vec::new(),
            remote_lines: String::new(),
            validate: None,
        };
        let remote = self.remote_lines(owner, &order);
        if remote.is_empty() {
            place.lines = order.lines;
            return self.store.order_place(call, place).await;
        }
        // Boxed: the future is large, and every order moves it.
        Box::pin(self.place_across_partitions(call, owner, order, place, remote)).await
    }

    /// Places an order that has lines in other partitions than its own.
    async fn place_across_partitions(
        &self,
        call: &Call,
        owner: Partition,
        order: NewOrder,
        mut place: PlaceOrder,
        remote: BTreeMap<Partition, Vec<(ProductId, i64)>>,
    ) -> Outcome<PlacedOrder> {
        let order_id = place.order_id;
        let own = order.lines.iter().filter(|(product, _)| self.store.owner(product.get()) == owner);
        place.lines = own.copied().collect();
        // The owner partition, which has the user, the coupon and the balance, validates the order before another partition holds
        // stock: a refusal leaves nothing behind.
        let (priced, shortage) = self.check_remote_lines(owner, &order).await?;
        let validate = PlaceOrder { remote_lines: priced, ..place.clone() };
        if let Some(before) = self.store.order_validate(call, validate, shortage).await? {
            // The earlier reply does not name its decisions in other partitions.
            self.check_order_durable(before.value.order_id).await?;
            return Ok(before);
        }
        let check_in_ms = self.hold_ms + REMOTE_HOLD_GRACE_MS;
        let mut held = Vec::new();
        // The partitions that hold stock, and the one that may.
        let (mut certain, mut perhaps) = (Vec::new(), None);
        let mut holds = Ok(());
        for (partition, lines) in remote {
            let hold = HoldStock { order_id, user_id: order.user_id, check_in_ms, lines };
            match self.store.stock_hold(call, partition, &hold).await {
                Ok(packed) => {
                    held.push(packed);
                    certain.push(partition);
                }
                Err(error) => {
                    perhaps = error.leaves_step_unknown().then_some(partition);
                    holds = Err(error);
                    break;
                }
            }
        }
        place.remote_lines = held.join(",");
        let all_held = holds.is_ok();
        let placed = match holds {
            Ok(()) => self.store.order_place(call, place).await,
            Err(error) => Err(error),
        };
        // Release the holds, unless the order was placed with them. After an unknown outcome the holds expire by themselves.
        let holds_used = matches!(&placed, Ok(placed) if placed.value.order_id == order_id);
        let unknown = all_held && placed.as_ref().is_err_and(Error::leaves_step_unknown);
        if !holds_used && !unknown {
            let certain = certain.into_iter().map(|partition| (partition, RemoteEnd::Abandoned));
            for (partition, end) in certain.chain(perhaps.map(|partition| (partition, RemoteEnd::Released))) {
                let settle = SettleStock { order_id, user_id: order.user_id, end, day: None };
                if let Err(error) = self.store.stock_settle(call, partition, settle).await {
                    tracing::warn!(%order_id, partition = partition.0, %error, "can't release a remote hold: it expires later");
                }
            }
        }
        placed
    }

    /// The lines of products in other partitions than `owner`, by partition.
    fn remote_lines(&self, owner: Partition, order: &NewOrder) -> BTreeMap<Partition, Vec<(ProductId, i64)>> {
        let mut remote: BTreeMap<Partition, Vec<_>> = BTreeMap::new();
        for (product, quantity) in &order.lines {
            let partition = self.store.owner(product.get());
            if partition != owner {
                remote.entry(partition).or_default().push((*product, *quantity));
            }
        }
        remote
    }

    /// The lines of products in other partitions than `owner`, packed with their current prices; and the reason why the current
    /// stock does not cover all lines, chosen in the same order as by the script for one partition.
    async fn check_remote_lines(&self, owner: Partition, order: &NewOrder) -> Result<(String, Shortage), Error> {
        let mut products = HashMap::new();
        for here in self.store.all() {
            let ids = order.lines.iter().map(|(product, _)| *product).filter(|id| self.store.owner(id.get()) == here);
            let ids: Vec<ProductId> = ids.collect();
            for (id, product) in ids.iter().zip(self.store.products_of(here, &ids).await?) {
                let product = match product {
                    Some(product) => product,
                    // A read of the single product distinguishes a missing product from a partition that lost its data.
                    None => match self.store.product(*id).await {
                        Err(Error::ProductNotFound) => return Ok((String::new(), Shortage::ProductNotFound)),
                        product => product?,
                    },
                };
                products.insert(*id, product);
            }
        }
        let mut shortage = Shortage::None;
        let mut remote = Vec::new();
        for (id, quantity) in &order.lines {
            let Some(product) = products.get(id) else { continue };
            if shortage == Shortage::None && product.stock == 0 {
                shortage = Shortage::SoldOut;
            } else if shortage == Shortage::None && product.stock < *quantity {
                shortage = Shortage::InsufficientStock;
            }
            if self.store.owner(id.get()) != owner {
                remote.push(OrderLine { product_id: *id, quantity: *quantity, price: product.price });
            }
        }
        Ok((event::pack_lines(&remote), shortage))
    }

    /// An order; with a `user`, only that user's.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::Unavailable`] if Redis does not have the order while PostgreSQL is unavailable.
    pub async fn order(&self, order: OrderId, user: Option<UserId>) -> Result<Order, Error> {
        let found = self.archive.find(order).await?.map(|found| found.record.order);
        found.filter(|found| user.is_none_or(|user| found.user_id == user)).ok_or(Error::OrderNotFound)
    }

    /// Cancels a PENDING order of this user, or refunds a PAID one by its payment type.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::OrderAlreadyClosed`]; [`Error::InProgress`] while a gateway payment is in progress.
    pub async fn cancel_order(&self, call: &Call, order: OrderId, user: UserId) -> Outcome<Order> {
        self.check_owner(call, order, user).await?;
        // Check the key before the order: it may belong to another request.
        self.store.check_key(call, self.store.owner(order.get())).await?;
        for _ in 0..CLOSE_ATTEMPTS {
            let found = self.archive.find(order).await?.filter(|found| found.record.order.user_id == user);
            let found = found.ok_or(Error::OrderNotFound)?;
            let paid = found.record.order.status == OrderStatus::Paid;
            if paid && !self.archive.restore(&found).await? {
                continue;
            }
            let record = &found.record;
            match self.close(call, record, by_user(record)).await {
                Ok(Some(closed)) => {
                    let order = Order {
                        status: closed.value.status,
                        closed_at: closed.value.closed_at,
                        close_reason: Some(closed.value.reason),
                        ..found.record.order
                    };
                    return Ok(Reply { value: order, replayed: closed.replayed });
                }
                // The order changed after the read: try again.
                Ok(None) => {}
                Err(Error::OrderNotFound) if paid => {}
                // The order is archived, and this request is no repeat of the one that closed it.
                Err(Error::OrderNotFound) if found.is_archived() => return Err(Error::OrderAlreadyClosed),
                Err(error) => return Err(error),
            }
        }
        Err(Error::InProgress)
    }

    /// Closes an order, and ends its remote holds. `None` if the order differs from the record.
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
        let refunded = closed.value.reason == CloseReason::Refunded;
        if !record.remote.is_empty() {
            let end = if refunded { RemoteEnd::Refunded } else { RemoteEnd::Released };
            let day = record.day.as_deref().unwrap_or("");
            let stores = (&self.store, &self.db);
            if let Err(error) = crate::archive::end_remote(stores, call, (order, user), &record.remote, end, day).await
            {
                tracing::warn!(%order, %error, "can't end the order's remote holds: the relay retries");
            }
        }
        if refunded {
            self.popular.sold();
        }
        Ok(Some(closed))
    }
}

/// The closing of an order by its user: a cancellation or, if the record has a day of sale, a refund.
fn by_user(record: &OrderRecord) -> Closing {
    let paid_on = record.day.as_deref().and_then(|day| NaiveDate::parse_from_str(day, DAY_FORMAT).ok());
    Closing::Cancel { paid_on }
}
