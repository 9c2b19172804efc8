//! Cancellations by users, and refunds of what is left of an order, or of a part of it, by users and operators.

use std::collections::HashMap;

use chrono::NaiveDate;

use super::*;
use crate::redis::{
    commands::{Closed, Closing, DAY_FORMAT, RefundOrder},
    records::OrderRecord,
};

/// The number of attempts to close or refund an order that changes concurrently.
const CLOSE_ATTEMPTS: usize = 5;

impl Engine {
    /// Cancels a PENDING order of this user, or refunds a PAID one, all that is left or these lines, by its payment type.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::OrderAlreadyClosed`]; [`Error::RefundWindowClosed`]; [`Error::InvalidOrder`] if lines are
    /// named of a PENDING order, or more than is left; [`Error::InProgress`] while a gateway payment is in progress.
    pub async fn cancel_order(
        &self,
        call: &Call,
        order: OrderId,
        user: UserId,
        lines: Option<Vec<(ProductId, i64)>>,
    ) -> Outcome<Order> {
        self.check_owner(call, order, user).await?;
        // Check the key before the order: it may belong to another request.
        self.store.check_key(call, self.store.owner(order.get())).await?;
        let terms = RefundTerms { within_ms: Some(self.refund_window_ms), restock: true, operator: None };
        self.close_or_refund(call, order, Some(user), &NewRefund { lines, terms }).await
    }

    /// Refunds a PAID order, all that is left or some lines, as an operator asks.
    ///
    /// # Errors
    /// As [`Engine::cancel_order`]; [`Error::InvalidOrder`] if the order is PENDING.
    pub async fn refund_order(&self, call: &Call, order: OrderId, refund: &NewRefund) -> Outcome<Order> {
        let owner = self.store.owner(order.get());
        let work = async {
            // Check the key before the order: it may belong to another request.
            self.store.check_key(call, owner).await?;
            self.close_or_refund(call, order, None, refund).await
        };
        self.with_claimed_key(call, owner, work).await
    }

    /// Refunds an order; with a `user`, only that user's, which may be PENDING: then it is cancelled.
    async fn close_or_refund(
        &self,
        call: &Call,
        order: OrderId,
        user: Option<UserId>,
        refund: &NewRefund,
    ) -> Outcome<Order> {
        let mut refused = Error::InProgress;
        for _ in 0..CLOSE_ATTEMPTS {
            let found = self.archive.find(order).await?;
            let found = found.filter(|found| user.is_none_or(|user| found.record.order.user_id == user));
            let found = found.ok_or(Error::OrderNotFound)?;
            let paid = found.record.order.status == OrderStatus::Paid;
            if paid && !self.archive.restore(&found).await? {
                continue;
            }
            match self.refund_once(call, &found.record, user.is_some(), refund).await {
                Ok(Some(closed)) => {
                    let (order, Closed { status, reason, closed_at, left }) = (found.record.order, closed.value);
                    let (left, left_price) = left.unwrap_or((order.left, order.left_price));
                    let value = Order { status, closed_at, close_reason: reason, left, left_price, ..order };
                    return Ok(Reply { value, replayed: closed.replayed });
                }
                // The order changed after the read: try again.
                Ok(None) => refused = Error::InProgress,
                // It has left Redis since it was restored, or its user was forgotten.
                Err(Error::OrderNotFound) if paid => refused = Error::OrderNotFound,
                // The order is archived, and this request is no repeat of the one that closed it.
                Err(Error::OrderNotFound) if found.is_archived() => return Err(Error::OrderAlreadyClosed),
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    /// Refunds an order as the record shows it. `None` if the order differs from the record.
    async fn refund_once(
        &self,
        call: &Call,
        record: &OrderRecord,
        by_user: bool,
        refund: &NewRefund,
    ) -> Result<Option<Reply<Closed>>, Error> {
        let NewRefund { lines, terms } = refund;
        let order = &record.order;
        let paid_on = record.day.as_deref().and_then(|day| NaiveDate::parse_from_str(day, DAY_FORMAT).ok());
        let closing = match (lines, terms.within_ms) {
            (None, Some(within_ms)) if by_user => Closing::Cancel { paid_on, within_ms },
            (None, _) => Closing::Refund { paid_on, only: None, terms: terms.clone() },
            (Some(lines), _) if order.status == OrderStatus::Paid && covers(lines, &order.left) => {
                Closing::Refund { paid_on, only: Some(order.left.clone()), terms: terms.clone() }
            }
            (Some(lines), _) => {
                let _operation = self.store.begin_operation();
                let (order_id, user_id) = (order.order_id, order.user_id);
                let part = RefundOrder { order_id, user_id, lines: lines.clone(), paid_on, terms: terms.clone() };
                let refunded = self.store.order_refund(call, &part).await?;
                if refunded.is_some() {
                    self.popular.sold();
                }
                return Ok(refunded);
            }
        };
        // Boxed, because the closing of an order is a large future.
        Box::pin(self.close(call, record, closing)).await
    }
}

/// Whether a part of an order is all that is left of it.
fn covers(part: &[(ProductId, i64)], left: &[OrderLine]) -> bool {
    let units: HashMap<ProductId, i64> = part.iter().copied().collect();
    units.len() == left.len() && left.iter().all(|line| units.get(&line.product_id) == Some(&line.quantity))
}
