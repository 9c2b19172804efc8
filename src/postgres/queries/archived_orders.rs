//! Reads of single orders that have left Redis.

use std::collections::HashSet;

use crate::{
    model::{Error, OrderId},
    postgres::{
        Connection,
        snapshot::{OrderRow, orders_sql},
        translate_sqlx,
    },
};

impl OrderRow {
    /// The status of the order's gateway payment, as the scripts name it; `None` without such a payment.
    pub fn gateway(&self) -> Option<&str> {
        let status = self.payment_status.as_deref().filter(|_| self.method.as_deref() == Some("GATEWAY"));
        // The scripts call a paid gateway payment SETTLED.
        status.map(|status| if status == "PAID" { "SETTLED" } else { status })
    }

    /// Whether the sweeper still asks the gateway about the order's payment, or about a refunded part.
    pub fn is_watched(&self) -> bool {
        !self.due.is_empty() || matches!(self.gateway(), Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED"))
    }

    /// Whether the order is final, except for a refund.
    pub fn is_closed(&self) -> bool {
        self.status != "PENDING" && !self.is_watched()
    }

    /// The fields of the order's hash in Redis, as the scripts would have left them.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let by_gateway = self.gateway().is_some();
        let number = |n: Option<i64>| n.map(|n| n.to_string());
        let of_gateway = |text: &Option<String>| by_gateway.then(|| text.clone().unwrap_or_default());
        let fields = [
            ("user", Some(self.user_id.to_string())),
            ("status", Some(self.status.clone())),
            ("lines", Some(self.lines.clone())),
            ("total", Some(self.total.to_string())),
            ("discount", Some(self.discount.to_string())),
            ("final", Some((self.final_price - self.refunded).to_string())),
            ("coupon", Some(number(self.coupon_id).unwrap_or_default())),
            ("placed_at", Some(self.placed_at.to_string())),
            ("expires_at", Some(self.expires_at.to_string())),
            ("closed_at", number(self.closed_at)),
            ("reason", self.close_reason.clone()),
            ("receipt", self.receipt.clone()),
            ("payment", self.payment_id.map(|id| self.packed_payment(id))),
            ("transaction", self.transaction_id.clone()),
            ("gateway", self.gateway().map(str::to_owned)),
            ("gateway_at", number(self.started_at).filter(|_| by_gateway)),
            ("ordered", Some(self.ordered.clone()).filter(|_| self.refunds > 0)),
            ("refunds", Some(self.refunds.to_string()).filter(|_| self.refunds > 0)),
            ("due", Some(self.due.clone()).filter(|due| !due.is_empty())),
            ("key", of_gateway(&self.key_digest)),
            ("fingerprint", of_gateway(&self.key_fingerprint)),
        ];
        fields.into_iter().filter_map(|(field, value)| Some((field, value?))).collect()
    }

    /// The order's payment as the scripts pack it (`lua/lib/payment.lua`).
    fn packed_payment(&self, id: i64) -> String {
        let paid = |text: &Option<String>| text.clone().filter(|_| self.paid_at.is_some()).unwrap_or_default();
        let kind = self.payment_type.as_deref().unwrap_or_default();
        let paid_at = self.paid_at.map(|at| at.to_string()).unwrap_or_default();
        format!("{id}|{kind}|{}|{paid_at}|{}", paid(&self.method), paid(&self.day))
    }
}

/// An order; `None` if PostgreSQL does not have it (yet). `zone` gives the day of a sale whose event did not name the
/// day.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn order(db: &Connection, order: OrderId, zone: &str) -> Result<Option<OrderRow>, Error> {
    let query = sqlx::query_as(orders_sql!("WHERE o.id = $2")).bind(zone);
    query.bind(order.get()).fetch_optional(db.get_postgres_connection_pool()).await.map_err(translate_sqlx)
}

/// Those of `orders` that a dead letter of the partition is about.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn orders_in_dead_letters(db: &Connection, partition: u16, orders: &[i64]) -> Result<HashSet<i64>, Error> {
    let ids: Vec<String> = orders.iter().map(i64::to_string).collect();
    let query = sqlx::query_scalar(
        "SELECT DISTINCT fields->>'order' FROM dead_letters WHERE partition = $1 AND fields->>'order' = ANY($2)",
    );
    let query = query.bind(i32::from(partition)).bind(ids);
    let found: Vec<String> = query.fetch_all(db.get_postgres_connection_pool()).await.map_err(translate_sqlx)?;
    Ok(found.iter().filter_map(|id| id.parse().ok()).collect())
}

/// The status of an order that is no longer PENDING, with the number of refunded parts if it is PAID, as `order_evict.lua` compares
/// it; and whether the order, or a part of it, was refunded.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn ended(db: &Connection, order: OrderId) -> Result<Option<(String, bool)>, Error> {
    let query = sqlx::query_as(
        "SELECT CASE WHEN status = 'PAID' AND refunds > 0 THEN status || ':' || refunds ELSE status END,
             coalesce(close_reason = 'REFUNDED', false) OR refunds > 0
         FROM orders WHERE id = $1 AND status <> 'PENDING'",
    );
    query.bind(order.get()).fetch_optional(db.get_postgres_connection_pool()).await.map_err(translate_sqlx)
}
