//! Cancellations and refunds in the model.

use super::*;

/// How long after its payment a user may refund an order, ms.
pub const WINDOW_MS: i64 = 604_800_000;

pub fn op() -> impl Strategy<Value = Op> {
    let lines = prop::collection::vec((0..3usize, prop_oneof![9 => 1..3i64, 1 => Just(MAX_LINE_QUANTITY)]), 1..3);
    let refund = (0..12usize, prop::option::weighted(0.1, 0..6usize), prop::option::weighted(0.8, lines));
    let terms = (any::<bool>(), prop::bool::weighted(0.6));
    (refund, terms).prop_map(|((order, user, lines), (operator, restock))| Op::Refund {
        order,
        user,
        operator,
        lines,
        restock: restock || !operator,
    })
}

/// `None`: an operator.
type By = Option<usize>;

impl Model {
    /// The products of these places of an order's lines, summed; an unknown one for a place that it does not have.
    pub fn lines_at(&self, order: usize, places: &[(usize, i64)]) -> Vec<(usize, i64)> {
        let ordered = self.orders.get(order).map(|order| order.ordered.as_slice()).unwrap_or_default();
        let named: Vec<(usize, i64)> =
            places.iter().map(|(place, units)| (ordered.get(*place).copied().unwrap_or(usize::MAX), *units)).collect();
        let (sums, first) = summed(&named);
        first.into_iter().map(|product| (product, sums[&product])).collect()
    }

    /// Closes an order: what is left of it comes back, and its coupon.
    pub fn release(&mut self, order: usize, status: &'static str) {
        let (lines, coupon, user) =
            (self.orders[order].lines.clone(), self.orders[order].coupon, self.orders[order].user);
        for (product, (quantity, _)) in lines {
            self.products[product].1 += quantity;
        }
        if let Some(coupon) = coupon {
            self.coupons.insert((coupon, user), Coupon::Free);
        }
        self.orders[order].status = status;
    }

    pub fn cancel(&mut self, now: i64, order: usize, user: usize) -> Result<String, &'static str> {
        if self.orders.get(order).is_some_and(|found| found.user == user && found.status == "PENDING") {
            self.release(order, "CANCELLED_BY_USER");
            return Ok("closed CANCELLED_BY_USER".into());
        }
        self.refund(now, order, Some(user), None, true).map(|_| "closed REFUNDED".into())
    }

    pub fn refund(
        &mut self,
        now: i64,
        order: usize,
        by: By,
        lines: Option<Vec<(usize, i64)>>,
        restock: bool,
    ) -> Result<String, &'static str> {
        let found = self.orders.get(order).filter(|found| by.is_none_or(|user| found.user == user));
        let found = found.ok_or("OrderNotFound")?;
        match found.status {
            "PENDING" => return Err("InvalidOrder"),
            "PAID" => {}
            _ => return Err("OrderAlreadyClosed"),
        }
        if by.is_some() && now - found.paid_at >= WINDOW_MS {
            return Err("RefundWindowClosed");
        }
        let (user, mut left) = (found.user, found.lines.clone());
        let all = || left.iter().map(|(product, (units, _))| (*product, *units)).collect();
        for (product, units) in lines.unwrap_or_else(all) {
            let (rest, _) = left.get_mut(&product).ok_or("InvalidOrder")?;
            *rest -= units;
            if *rest < 0 {
                return Err("InvalidOrder");
            }
        }
        if by.is_some_and(|user| self.forgotten.contains(&user)) {
            return Err("OrderNotFound");
        }
        let value =
            |lines: &BTreeMap<usize, (i64, i64)>| lines.values().map(|(units, price)| units * price).sum::<i64>();
        let (paid, total, before) = (found.final_price, found.total, found.left_price);
        let left_price = paid - share_of(paid, total - value(&left), total);
        let units: Vec<(usize, i64)> =
            found.lines.iter().map(|(product, (had, _))| (*product, had - left[product].0)).collect();
        for (product, units) in units.into_iter().filter(|_| restock) {
            self.products[product].1 += units;
        }
        let is_over = left.values().all(|(units, _)| *units == 0);
        let left_price = if is_over { 0 } else { left_price };
        if before > left_price {
            self.entry(user, TransactionType::Refund, before - left_price);
        }
        self.orders[order].lines = left;
        self.orders[order].left_price = left_price;
        if is_over {
            // Nothing is left to come back but the coupon.
            self.release(order, "REFUNDED");
        }
        Ok(format!("refunded {} {}", paid - left_price, if is_over { "CANCELLED" } else { "PAID" }))
    }
}
