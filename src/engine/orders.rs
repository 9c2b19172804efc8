//! Orders: placing, showing, cancelling.

use std::collections::{BTreeMap, HashMap};

use chrono::NaiveDate;

use super::*;
use crate::{
    model::Partition,
    redis::{
        commands::{Closed, Closing, DAY_FORMAT, Placing, REMOTE_HOLD_GRACE_MS, RemoteEnd, Shortage},
        records::OrderRecord,
    },
};

/// How often closing an order is tried when it changes under our eyes.
const CLOSE_ATTEMPTS: usize = 5;

impl Engine {
    /// Places an order: PENDING, its stock and coupon held.
    ///
    /// # Errors
    /// The refusals of `POST /orders`; nothing is held then.
    pub async fn place_order(&self, call: &Call, order: NewOrder) -> Outcome<PlacedOrder> {
        let home = self.store.owner(order.user_id.get());
        let id = self.orders_seq.next(&self.store, home).await?;
        let order_id = OrderId::new(id).ok_or_else(|| Error::Internal(anyhow::anyhow!("order id {id}")))?;
        let terms = match order.coupon_id {
            Some(coupon) => self.terms(coupon).await?,
            None => None,
        };
        let far = self.remote_lines(home, &order);
        let placing = |far| Placing {
            order_id,
            hold_ms: self.hold_ms,
            max_open: self.max_open_orders,
            must_afford: self.gateways.is_empty(),
            terms: terms.as_deref(),
            far,
        };
        if far.is_empty() {
            return self.store.order_place(call, &order, &placing("")).await;
        }
        // Judged where the user, the coupon and the money are, before anything is held elsewhere: a refusal leaves nothing.
        let (priced, shortage) = self.check_remote_lines(home, &order).await?;
        if let Some(before) = self.store.order_judge(call, &order, &placing(&priced), shortage).await? {
            // Which does not tell what was decided in other partitions then.
            self.acknowledge_order(before.value.order_id).await?;
            return Ok(before);
        }
        let due_in_ms = self.hold_ms + REMOTE_HOLD_GRACE_MS;
        let mut held = Vec::new();
        // Where stock is held for certain, and where it may be.
        let (mut certain, mut perhaps) = (Vec::new(), None);
        let mut holds = Ok(());
        for (partition, lines) in &far {
            match self.store.stock_hold(call, *partition, order_id, order.user_id, due_in_ms, lines).await {
                Ok(packed) => {
                    held.push(packed);
                    certain.push(*partition);
                }
                Err(error) => {
                    perhaps = error.leaves_outcome_unknown().then_some(*partition);
                    holds = Err(error);
                    break;
                }
            }
        }
        let packed = held.join(",");
        let asked = holds.is_ok();
        let placed = match holds {
            Ok(()) => self.store.order_place(call, &order, &placing(&packed)).await,
            Err(error) => Err(error),
        };
        // Given back unless the order is there with these very holds. An unknown outcome is left to the holds' own end.
        let ours = matches!(&placed, Ok(placed) if placed.value.order_id == order_id);
        let unknown = asked && placed.as_ref().is_err_and(Error::leaves_outcome_unknown);
        if !ours && !unknown {
            let certain = certain.into_iter().map(|partition| (partition, RemoteEnd::Abandoned));
            for (partition, end) in certain.chain(perhaps.map(|partition| (partition, RemoteEnd::Released))) {
                let back = self.store.stock_settle(call, partition, order_id, order.user_id, end, None);
                if let Err(error) = back.await {
                    tracing::warn!(%order_id, partition = partition.0, %error, "a far hold ends later, by itself");
                }
            }
        }
        placed
    }

    /// The lines whose products are at home elsewhere, by partition.
    fn remote_lines(&self, home: Partition, order: &NewOrder) -> BTreeMap<Partition, Vec<(ProductId, i64)>> {
        let mut far: BTreeMap<Partition, Vec<_>> = BTreeMap::new();
        for (product, quantity) in &order.lines {
            let partition = self.store.owner(product.get());
            if partition != home {
                far.entry(partition).or_default().push((*product, *quantity));
            }
        }
        far
    }

    /// The lines of other partitions than `home`, packed with their prices as they are now, and why not all lines could be held
    /// now: in the order that one script tells it.
    async fn check_remote_lines(&self, home: Partition, order: &NewOrder) -> Result<(String, Shortage), Error> {
        let mut found = HashMap::new();
        for here in self.store.all() {
            let mine = order.lines.iter().map(|(product, _)| *product).filter(|id| self.store.owner(id.get()) == here);
            let mine: Vec<ProductId> = mine.collect();
            for (id, product) in mine.iter().zip(self.store.products_of(here, &mine).await?) {
                let product = match product {
                    Some(product) => product,
                    // Asked for by itself, it is told apart from a partition that lost its data.
                    None => match self.store.product(*id).await {
                        Err(Error::ProductNotFound) => return Ok((String::new(), Shortage::ProductNotFound)),
                        product => product?,
                    },
                };
                found.insert(*id, product);
            }
        }
        let mut shortage = Shortage::None;
        let mut far = Vec::new();
        for (id, quantity) in &order.lines {
            let Some(product) = found.get(id) else { continue };
            if shortage == Shortage::None && product.stock == 0 {
                shortage = Shortage::SoldOut;
            } else if shortage == Shortage::None && product.stock < *quantity {
                shortage = Shortage::InsufficientStock;
            }
            if self.store.owner(id.get()) != home {
                far.push(OrderLine { product_id: *id, quantity: *quantity, price: product.price });
            }
        }
        Ok((event::pack_lines(&far), shortage))
    }

    /// An order, of this user if one is named.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::Unavailable`] while Postgres is, for one that Redis does not have.
    pub async fn order(&self, order: OrderId, user: Option<UserId>) -> Result<Order, Error> {
        let found = self.archive.find(order).await?.map(|found| found.record.order);
        found.filter(|found| user.is_none_or(|user| found.user_id == user)).ok_or(Error::OrderNotFound)
    }

    /// Cancels a PENDING order of this user, or refunds a PAID one the way it was paid.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::OrderAlreadyClosed`]; [`Error::InProgress`] while a gateway is being asked.
    pub async fn cancel_order(&self, call: &Call, order: OrderId, user: UserId) -> Outcome<Order> {
        self.check_owner(call, order, user).await?;
        // The key comes before the order: it may belong to another request.
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
                // Not as it was found any more.
                Ok(None) => {}
                Err(Error::OrderNotFound) if paid => {}
                // Closed for so long that it has left; and this is no repeat of what closed it.
                Err(Error::OrderNotFound) if found.is_archived() => return Err(Error::OrderAlreadyClosed),
                Err(error) => return Err(error),
            }
        }
        Err(Error::InProgress)
    }

    /// Closes an order and carries its end to other partitions. `None` where the order is not what the record says.
    pub(super) async fn close(
        &self,
        call: &Call,
        record: &OrderRecord,
        closing: Closing<'_>,
    ) -> Result<Option<Reply<Closed>>, Error> {
        let (order, user) = (record.order.order_id, record.order.user_id);
        let Some(closed) = self.store.order_close(call, order, user, closing).await? else { return Ok(None) };
        let refunded = closed.value.reason == CloseReason::Refunded;
        if !record.remote.is_empty() {
            let end = if refunded { RemoteEnd::Refunded } else { RemoteEnd::Released };
            let day = record.day.as_deref().unwrap_or("");
            let stores = (&self.store, &self.db);
            if let Err(error) = crate::archive::end_remote(stores, call, (order, user), &record.remote, end, day).await
            {
                tracing::warn!(%order, %error, "the order's end is relayed later");
            }
        }
        if refunded {
            self.popular.sold();
        }
        Ok(Some(closed))
    }
}

/// A user's wish to end an order, as the record shows it.
fn by_user(record: &OrderRecord) -> Closing<'static> {
    let paid_on = record.day.as_deref().and_then(|day| NaiveDate::parse_from_str(day, DAY_FORMAT).ok());
    Closing::Cancel { paid_on }
}
