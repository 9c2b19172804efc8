//! Refunds of parts of orders.

use super::{Batch, Shelf};
use crate::model::{Millis, OrderId, Won, event};

/// Refunded parts of an order.
#[derive(Clone, Copy, Default)]
pub struct RefundDelta {
    pub amount: Won,
    pub parts: i64,
}

/// Refunded units of a line: of parts, and those of any refund that stay off sale.
#[derive(Clone, Copy, Default)]
pub struct LineDelta {
    pub refunded: i64,
    pub quarantined: i64,
}

pub struct PartInsert {
    pub amount: Won,
    pub lines: String,
    pub quarantined: bool,
    pub operator: Option<(String, String)>,
    /// The gateway has to refund it.
    pub due: bool,
    pub at: Millis,
    pub ended_at: Option<Millis>,
}

impl Batch {
    pub(super) fn refunded(&mut self, part: &event::OrderRefunded, at: Millis) {
        self.shift(&part.lines, Shelf::Sold, if part.quarantined { Shelf::Quarantined } else { Shelf::OnSale });
        for line in &part.lines {
            let delta = self.refunded_lines.entry((part.order.get(), line.product_id.get())).or_default();
            delta.refunded += line.quantity;
            delta.quarantined += if part.quarantined { line.quantity } else { 0 };
        }
        let delta = self.refunds.entry(part.order.get()).or_default();
        delta.amount = delta.amount.saturating_add(part.amount);
        delta.parts += 1;
        let insert = PartInsert {
            amount: part.amount,
            lines: event::pack_lines(&part.lines),
            quarantined: part.quarantined,
            operator: part.operator.clone(),
            due: part.by_gateway && part.amount > 0,
            at,
            ended_at: None,
        };
        self.parts.insert((part.order.get(), part.part), insert);
        if let Some(entry) = &part.entry {
            self.entry(entry);
        }
    }

    /// The gateway has refunded a part.
    pub(super) fn part_ended(&mut self, order: OrderId, part: i64, at: Millis) {
        match self.parts.get_mut(&(order.get(), part)) {
            Some(part) => (part.due, part.ended_at) = (false, Some(at)),
            None => drop(self.ended_parts.insert((order.get(), part), at)),
        }
    }
}
