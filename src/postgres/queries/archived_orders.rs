//! What has left Redis, read one by one: orders, and what they sold in partitions that are not their own.

use std::collections::HashSet;

use sea_orm::{DatabaseConnection, DbErr, RuntimeErr};

use crate::{
    model::{Error, OrderId, OrderStatus},
    postgres::{
        snapshot::{OrderRow, orders_sql},
        translate,
    },
};

impl OrderRow {
    /// Where its gateway payment stands, in the scripts' words; `None` where there is none.
    pub fn gateway(&self) -> Option<&str> {
        let status = self.payment_status.as_deref().filter(|_| self.method.as_deref() == Some("GATEWAY"));
        // The scripts' word for a gateway's payment that is done.
        status.map(|status| if status == "PAID" { "SETTLED" } else { status })
    }

    /// Whether its gateway is still asked about its payment.
    pub fn is_under_way(&self) -> bool {
        matches!(self.gateway(), Some("STARTED" | "WATCHED" | "REFUND_DUE" | "UNCONFIRMED"))
    }

    /// Whether nothing happens to it any more, unless its user has it refunded.
    pub fn is_closed(&self) -> bool {
        self.status != "PENDING" && !self.is_under_way()
    }

    /// Its hash in Redis, as the scripts would have left it.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let (pending, by_gateway) = (self.paid_at.is_none(), self.gateway().is_some());
        let shown = |n: Option<i64>| n.map(|n| n.to_string());
        let asked = |text: &Option<String>| by_gateway.then(|| text.clone().unwrap_or_default());
        let fields = [
            ("user", Some(self.user_id.to_string())),
            ("status", Some(self.status.clone())),
            ("lines", Some(self.near.clone())),
            ("far", Some(self.far.clone())),
            ("total", Some(self.total.to_string())),
            ("discount", Some(self.discount.to_string())),
            ("final", Some(self.final_price.to_string())),
            ("coupon", Some(shown(self.coupon_id).unwrap_or_default())),
            ("placed_at", Some(self.placed_at.to_string())),
            ("expires_at", Some(self.expires_at.to_string())),
            ("closed_at", shown(self.closed_at)),
            ("reason", self.close_reason.clone()),
            ("day", self.day.clone()),
            ("payment", shown(self.payment_id)),
            ("type", self.payment_type.clone()),
            ("method", self.method.clone().filter(|_| !pending)),
            ("receipt", self.receipt.clone()),
            ("paid_at", shown(self.paid_at)),
            ("transaction", self.transaction_id.clone()),
            ("gateway", self.gateway().map(str::to_owned)),
            ("gateway_at", shown(self.started_at).filter(|_| by_gateway)),
            ("key", asked(&self.key_digest)),
            ("fingerprint", asked(&self.key_fingerprint)),
        ];
        fields.into_iter().filter_map(|(field, value)| Some((field, value?))).collect()
    }
}

/// An order, with days in `zone` where the day of the sale was not written down; `None` if there is none (yet).
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn order(
    db: &DatabaseConnection,
    order: OrderId,
    partitions: u16,
    zone: &str,
) -> Result<Option<OrderRow>, Error> {
    let query = sqlx::query_as(orders_sql!("WHERE o.id = $3")).bind(i64::from(partitions)).bind(zone);
    query.bind(order.get()).fetch_optional(db.get_postgres_connection_pool()).await.map_err(untranslated)
}

/// The stock that a partition sold by an order at home elsewhere, packed; `None` if it has none, or not any more.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn sold_remote(db: &DatabaseConnection, partition: u16, order: OrderId) -> Result<Option<String>, Error> {
    let query = sqlx::query_scalar(
        "SELECT lines FROM stock_holds WHERE partition = $1 AND order_id = $2 AND state = 'SETTLED'",
    );
    let query = query.bind(i32::from(partition)).bind(order.get());
    query.fetch_optional(db.get_postgres_connection_pool()).await.map_err(untranslated)
}

/// Which of these orders a dead letter of the partition is about.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn orders_in_dead_letters(
    db: &DatabaseConnection,
    partition: u16,
    orders: &[i64],
) -> Result<HashSet<i64>, Error> {
    let ids: Vec<String> = orders.iter().map(i64::to_string).collect();
    let query = sqlx::query_scalar(
        "SELECT DISTINCT fields->>'order' FROM dead_letters WHERE partition = $1 AND fields->>'order' = ANY($2)",
    );
    let query = query.bind(i32::from(partition)).bind(ids);
    let found: Vec<String> = query.fetch_all(db.get_postgres_connection_pool()).await.map_err(untranslated)?;
    Ok(found.iter().filter_map(|id| id.parse().ok()).collect())
}

/// An order that is PENDING no more, whether it is refunded, and where stock that a partition held for it stands; of each nothing
/// if it is not so.
pub type Ended = (Option<(OrderStatus, bool)>, Option<String>);

/// What has ended of an order, and of its stock in a partition.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn ended(db: &DatabaseConnection, partition: u16, order: OrderId) -> Result<Ended, Error> {
    let pool = db.get_postgres_connection_pool();
    let query = sqlx::query_as(
        "SELECT status, coalesce(close_reason = 'REFUNDED', false) FROM orders WHERE id = $1 AND status <> 'PENDING'",
    );
    let ended: Option<(String, bool)> = query.bind(order.get()).fetch_optional(pool).await.map_err(untranslated)?;
    let query = sqlx::query_scalar("SELECT state FROM stock_holds WHERE partition = $1 AND order_id = $2");
    let hold = query.bind(i32::from(partition)).bind(order.get()).fetch_optional(pool).await.map_err(untranslated)?;
    Ok((ended.and_then(|(status, refunded)| Some((status.parse().ok()?, refunded))), hold))
}

fn untranslated(error: sqlx::Error) -> Error {
    translate(DbErr::Query(RuntimeErr::SqlxError(error.into())))
}
