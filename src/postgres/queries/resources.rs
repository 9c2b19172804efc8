//! Balance histories and orders, as the API lists them, and the units that a rebuild withheld.

use std::collections::HashMap;

use anyhow::anyhow;
use sea_orm::{ColumnTrait, Condition, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::{
    model::{Error, *},
    postgres::{
        Connection,
        entities::{balance_entries, campaigns, order_lines, orders, payments},
        translate, translate_sqlx,
    },
};

/// A user's balance entries, newest first: at most `limit`, with numbers below `before`.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn history(
    db: &Connection,
    user: UserId,
    limit: u64,
    before: Option<i64>,
) -> Result<Vec<BalanceEntry>, Error> {
    use balance_entries::{Column, Entity};
    let mut query = Entity::find().filter(Column::UserId.eq(user.get()));
    if let Some(before) = before {
        query = query.filter(Column::EntryNo.lt(before));
    }
    let rows = query.order_by_desc(Column::EntryNo).limit(limit).all(db).await.map_err(translate)?;
    rows.into_iter()
        .map(|row| {
            Ok(BalanceEntry {
                user_id: user,
                entry_no: row.entry_no,
                kind: parse_name(&row.transaction_type)?,
                amount: row.amount,
                before: row.before_balance,
                after: row.after_balance,
                order_id: row.order_id.and_then(OrderId::new),
                at: row.created_at.into(),
            })
        })
        .collect()
}

/// A page of orders, newest first; of orders placed at the same time, the higher id first.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn orders(db: &Connection, filter: &OrderFilter) -> Result<Page<Order>, Error> {
    use orders::{Column, Entity};
    let mut matching = Condition::all();
    if let Some(status) = filter.status {
        matching = matching.add(Column::Status.eq(status.as_str()));
        if matches!(status, OrderStatus::Failed | OrderStatus::Cancelled) {
            // It follows from the status, and lets PostgreSQL use the index of the closed orders.
            matching = matching.add(Column::ClosedAt.is_not_null());
        }
    }
    if let Some(user) = filter.user_id {
        matching = matching.add(Column::UserId.eq(user.get()));
    }
    let query = Entity::find().filter(matching);
    let total = match filter.user_id {
        Some(_) => query.clone().count(db).await.map_err(translate)? as i64,
        // Triggers keep these totals, so that no request counts every order.
        None => {
            let totals = order_totals(db).await?;
            totals.iter().filter(|(status, _)| filter.status.is_none_or(|one| one == **status)).map(|(_, n)| n).sum()
        }
    };
    let (offset, size) = (filter.page * filter.size, filter.size);
    // Rows of another status are skipped while reading, so the query must not look for more rows than there are.
    let limit = size.min(total - offset);
    let rows = if limit <= 0 {
        Vec::new()
    } else {
        let newest = query.order_by_desc(Column::PlacedAt).order_by_desc(Column::Id);
        newest.offset(offset as u64).limit(limit as u64).all(db).await.map_err(translate)?
    };
    Ok(Page { items: with_lines_and_payments(db, rows).await?, page: filter.page, size: filter.size, total })
}

/// Adds lines and payments to `rows`, in the same sequence, with two queries in all.
async fn with_lines_and_payments(db: &Connection, rows: Vec<orders::Model>) -> Result<Vec<Order>, Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    let lines = order_lines::Entity::find().filter(order_lines::Column::OrderId.is_in(ids.clone()));
    let lines = lines
        .order_by_asc(order_lines::Column::Place)
        .order_by_asc(order_lines::Column::ProductId)
        .all(db)
        .await
        .map_err(translate)?;
    let payments = payments::Entity::find().filter(payments::Column::OrderId.is_in(ids));
    let payments = payments.filter(payments::Column::PaidAt.is_not_null()).all(db).await.map_err(translate)?;
    let mut lines_of: HashMap<i64, (Vec<OrderLine>, Vec<OrderLine>)> = HashMap::new();
    for line in lines {
        let Some(product_id) = ProductId::new(line.product_id) else { continue };
        let limit = line.limit_group.as_deref().map(parse_name).transpose()?;
        let line_of_order = OrderLine { product_id, quantity: line.quantity, price: line.price, limit };
        let (lines, left) = lines_of.entry(line.order_id).or_default();
        lines.push(line_of_order);
        if line.quantity > line.refunded {
            left.push(OrderLine { quantity: line.quantity - line.refunded, ..line_of_order });
        }
    }
    let mut payment_of: HashMap<i64, payments::Model> = payments.into_iter().map(|row| (row.order_id, row)).collect();
    rows.into_iter()
        .map(|row| {
            let (lines, left) = lines_of.remove(&row.id).unwrap_or_default();
            let payment = payment_of.remove(&row.id).map(order_payment).transpose()?.flatten();
            Ok(Order {
                order_id: OrderId::new(row.id).ok_or_else(|| Error::Internal(anyhow!("an order without an id")))?,
                user_id: UserId::new(row.user_id).ok_or_else(|| Error::Internal(anyhow!("an order without a user")))?,
                status: parse_name(&row.status)?,
                lines,
                total: row.total,
                discount: row.discount,
                final_price: row.final_price,
                coupon_id: row.coupon_id.and_then(CouponId::new),
                ordered_at: row.placed_at.into(),
                expires_at: row.expires_at.into(),
                payment,
                closed_at: row.closed_at.map(Millis::from),
                close_reason: row.close_reason.as_deref().map(parse_name).transpose()?,
                left,
                left_price: row.final_price - row.refunded,
            })
        })
        .collect()
}

fn order_payment(row: payments::Model) -> Result<Option<OrderPayment>, Error> {
    let (Some(payment_id), Some(paid_at)) = (PaymentId::new(row.id), row.paid_at) else { return Ok(None) };
    let payment_type = parse_name(&row.payment_type)?;
    Ok(Some(OrderPayment { payment_id, payment_type, receipt: row.receipt, paid_at: paid_at.into() }))
}

/// The number of orders by status, for each status that has any.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn order_totals(db: &Connection) -> Result<HashMap<OrderStatus, i64>, Error> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT status, sum(orders)::bigint FROM order_totals GROUP BY status")
            .fetch_all(db.get_postgres_connection_pool())
            .await
            .map_err(translate_sqlx)?;
    rows.into_iter().map(|(status, orders)| Ok((parse_name(&status)?, orders))).collect()
}

/// The products and the campaigns with withheld units, the first `limit` of each by id.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn withheld(db: &Connection, limit: u64) -> Result<Withheld, Error> {
    // Every partition withholds the units that it has.
    let products: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT id, sum(withheld)::bigint FROM (
             SELECT id, withheld FROM products WHERE withheld > 0
             UNION ALL SELECT product_id, withheld FROM partition_stock WHERE withheld > 0) AS of_partitions
         GROUP BY id ORDER BY id LIMIT $1",
    )
    .bind(limit as i64)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    let campaigns: Vec<(i64, i64)> = campaigns::Entity::find()
        .select_only()
        .columns([campaigns::Column::Id, campaigns::Column::Withheld])
        .filter(campaigns::Column::Withheld.gt(0))
        .order_by_asc(campaigns::Column::Id)
        .limit(limit)
        .into_tuple()
        .all(db)
        .await
        .map_err(translate)?;
    Ok(Withheld {
        products: products.into_iter().filter_map(|(id, n)| Some((ProductId::new(id)?, n))).collect(),
        coupons: campaigns.into_iter().filter_map(|(id, n)| Some((CouponId::new(id)?, n))).collect(),
    })
}

/// The value of an enum by its name in the database.
fn parse_name<T: std::str::FromStr<Err = UnknownName>>(name: &str) -> Result<T, Error> {
    name.parse().map_err(|error: UnknownName| Error::Internal(anyhow!("{name:?} in PostgreSQL: {error}")))
}
