//! The reads that Postgres answers: history, listings, and how far it is itself.

use std::collections::HashMap;

use anyhow::anyhow;
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait, PaginatorTrait,
    QueryFilter, QueryOrder, QueryResult, QuerySelect, Statement,
};

use crate::{
    model::{Error, Position, Projection, *},
    postgres::{
        entities::{balance_entries, campaigns, dead_letters, order_lines, orders, payments, products},
        translate,
    },
};

/// How far Postgres is with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectedPosition {
    pub partition: u16,
    pub epoch: i64,
    pub seq: i64,
    pub stream_id: String,
    /// The number of the last decision that is a dead letter; 0 where there is none.
    pub last_dead_letter: i64,
}

impl ProjectedPosition {
    /// The same for the store.
    pub fn projection(&self) -> Projection {
        let (epoch, seq) = self.at();
        Projection { position: Position { epoch, seq }, last_dead_letter: self.last_dead_letter }
    }

    /// The last decision that Postgres has: epoch and seq.
    pub fn at(&self) -> (i64, i64) {
        (self.epoch, self.seq)
    }
}

/// A user's balance changes, newest first: at most `limit`, before entry `before`.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn history(
    db: &DatabaseConnection,
    user: UserId,
    limit: u64,
    before: Option<i64>,
) -> Result<Vec<BalanceEntry>, Error> {
    use balance_entries::{Column, Entity};
    let mut find = Entity::find().filter(Column::UserId.eq(user.get()));
    if let Some(before) = before {
        find = find.filter(Column::EntryNo.lt(before));
    }
    let rows = find.order_by_desc(Column::EntryNo).limit(limit).all(db).await.map_err(translate)?;
    rows.into_iter()
        .map(|row| {
            Ok(BalanceEntry {
                user_id: user,
                entry_no: row.entry_no,
                kind: name(&row.transaction_type)?,
                amount: row.amount,
                before: row.before_balance,
                after: row.after_balance,
                order_id: row.order_id.and_then(OrderId::new),
                at: row.created_at.into(),
            })
        })
        .collect()
}

/// The newest orders of all, by the one index that has each status by itself. `$1`: to skip, `$2`: to show.
pub const NEWEST_ORDERS: &str = "SELECT * FROM (
    (SELECT * FROM orders WHERE status = 'PENDING' ORDER BY placed_at DESC, id DESC LIMIT $1 + $2) UNION ALL
    (SELECT * FROM orders WHERE status = 'PAID' ORDER BY placed_at DESC, id DESC LIMIT $1 + $2) UNION ALL
    (SELECT * FROM orders WHERE status = 'FAILED' ORDER BY placed_at DESC, id DESC LIMIT $1 + $2) UNION ALL
    (SELECT * FROM orders WHERE status = 'CANCELLED' ORDER BY placed_at DESC, id DESC LIMIT $1 + $2)
) AS orders ORDER BY placed_at DESC, id DESC OFFSET $1 LIMIT $2";

/// A page of orders, newest first: by when they were placed, and of those placed at the same moment the higher id first.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn orders(db: &DatabaseConnection, filter: &OrderFilter) -> Result<OrderPage, Error> {
    use orders::{Column, Entity};
    let mut matching = Condition::all();
    if let Some(status) = filter.status {
        matching = matching.add(Column::Status.eq(status.as_str()));
    }
    if let Some(user) = filter.user_id {
        matching = matching.add(Column::UserId.eq(user.get()));
    }
    let find = Entity::find().filter(matching);
    let total = match filter.user_id {
        Some(_) => find.clone().count(db).await.map_err(translate)? as i64,
        // However many there are, they are counted.
        None => {
            let totals = order_totals(db).await?;
            totals.iter().filter(|(status, _)| filter.status.is_none_or(|one| one == **status)).map(|(_, n)| n).sum()
        }
    };
    let (offset, size) = (filter.page * filter.size, filter.size);
    let find = if filter.user_id.is_none() && filter.status.is_none() {
        Entity::find()
            .from_raw_sql(Statement::from_sql_and_values(
                DbBackend::Postgres,
                NEWEST_ORDERS,
                [offset.into(), size.into()],
            ))
            .all(db)
            .await
    } else {
        let newest = find.order_by_desc(Column::PlacedAt).order_by_desc(Column::Id);
        newest.offset(offset as u64).limit(size as u64).all(db).await
    };
    let rows = find.map_err(translate)?;
    Ok(OrderPage { orders: whole_orders(db, rows).await?, page: filter.page, size: filter.size, total })
}

/// Adds lines and payments to orders, keeping their order: two queries however many they are.
async fn whole_orders(db: &DatabaseConnection, rows: Vec<orders::Model>) -> Result<Vec<Order>, Error> {
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
    let paid = payments::Entity::find().filter(payments::Column::OrderId.is_in(ids));
    let paid = paid.filter(payments::Column::PaidAt.is_not_null()).all(db).await.map_err(translate)?;
    let mut lines_of: HashMap<i64, Vec<OrderLine>> = HashMap::new();
    for line in lines {
        let Some(product_id) = ProductId::new(line.product_id) else { continue };
        let line_of_order = OrderLine { product_id, quantity: line.quantity, price: line.price };
        lines_of.entry(line.order_id).or_default().push(line_of_order);
    }
    let mut payment_of: HashMap<i64, payments::Model> = paid.into_iter().map(|row| (row.order_id, row)).collect();
    rows.into_iter()
        .map(|row| {
            let payment = payment_of.remove(&row.id).map(order_payment).transpose()?.flatten();
            Ok(Order {
                order_id: OrderId::new(row.id).ok_or_else(|| Error::Internal(anyhow!("an order without an id")))?,
                user_id: UserId::new(row.user_id).ok_or_else(|| Error::Internal(anyhow!("an order without a user")))?,
                status: name(&row.status)?,
                lines: lines_of.remove(&row.id).unwrap_or_default(),
                total: row.total,
                discount: row.discount,
                final_price: row.final_price,
                coupon_id: row.coupon_id.and_then(CouponId::new),
                ordered_at: row.placed_at.into(),
                expires_at: row.expires_at.into(),
                payment,
                closed_at: row.closed_at.map(Millis::from),
                close_reason: row.close_reason.as_deref().map(name).transpose()?,
            })
        })
        .collect()
}

fn order_payment(row: payments::Model) -> Result<Option<OrderPayment>, Error> {
    let (Some(payment_id), Some(paid_at)) = (PaymentId::new(row.id), row.paid_at) else { return Ok(None) };
    let payment_type = name(&row.payment_type)?;
    Ok(Some(OrderPayment { payment_id, payment_type, receipt: row.receipt, paid_at: paid_at.into() }))
}

/// How far each partition is projected, by partition.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn positions(db: &DatabaseConnection) -> Result<Vec<ProjectedPosition>, Error> {
    let sql = "SELECT partition, epoch, seq, stream_id,
                   coalesce((SELECT max(d.seq) FROM dead_letters AS d WHERE d.partition = p.partition), 0)
               FROM projection_positions AS p ORDER BY partition";
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.map_err(translate)?;
    let position = |row: &QueryResult| -> Result<ProjectedPosition, DbErr> {
        let partition: i32 = row.try_get_by_index(0)?;
        Ok(ProjectedPosition {
            partition: partition as u16,
            epoch: row.try_get_by_index(1)?,
            seq: row.try_get_by_index(2)?,
            stream_id: row.try_get_by_index(3)?,
            last_dead_letter: row.try_get_by_index(4)?,
        })
    };
    rows.iter().map(|row| position(row).map_err(translate)).collect()
}

/// Dead letters by partition, of those that have any.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn dead_letters(db: &DatabaseConnection) -> Result<HashMap<u16, i64>, Error> {
    use dead_letters::{Column, Entity};
    let rows: Vec<(i32, i64)> = Entity::find()
        .select_only()
        .column(Column::Partition)
        .column_as(Column::StreamId.count(), "letters")
        .group_by(Column::Partition)
        .into_tuple()
        .all(db)
        .await
        .map_err(translate)?;
    Ok(rows.into_iter().map(|(partition, letters)| (partition as u16, letters)).collect())
}

/// Dead letters by partition, of the epoch that each partition is in: decisions that Redis has and Postgres does not. (A rebuild
/// ends an epoch, and with it what only Redis knew.)
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn dead_letters_of_current_epoch(db: &DatabaseConnection) -> Result<HashMap<u16, i64>, Error> {
    let sql =
        "SELECT d.partition, count(*) FROM dead_letters AS d JOIN projection_positions AS p USING (partition, epoch)
               GROUP BY d.partition";
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.map_err(translate)?;
    rows.iter()
        .map(|row| {
            let partition: i32 = row.try_get_by_index(0).map_err(translate)?;
            Ok((partition as u16, row.try_get_by_index(1).map_err(translate)?))
        })
        .collect()
}

/// How many orders there are, of the statuses that there are any of.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn order_totals(db: &DatabaseConnection) -> Result<HashMap<OrderStatus, i64>, Error> {
    let sql = "SELECT status, sum(orders)::bigint FROM order_totals GROUP BY status";
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.map_err(translate)?;
    rows.iter()
        .map(|row| {
            let status: String = row.try_get_by_index(0).map_err(translate)?;
            Ok((name(&status)?, row.try_get_by_index(1).map_err(translate)?))
        })
        .collect()
}

/// What a rebuild keeps off sale: the first `most` products and campaigns by id.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn withheld(db: &DatabaseConnection, most: u64) -> Result<Withheld, Error> {
    let products: Vec<(i64, i64)> = products::Entity::find()
        .select_only()
        .columns([products::Column::Id, products::Column::Withheld])
        .filter(products::Column::Withheld.gt(0))
        .order_by_asc(products::Column::Id)
        .limit(most)
        .into_tuple()
        .all(db)
        .await
        .map_err(translate)?;
    let campaigns: Vec<(i64, i64)> = campaigns::Entity::find()
        .select_only()
        .columns([campaigns::Column::Id, campaigns::Column::Withheld])
        .filter(campaigns::Column::Withheld.gt(0))
        .order_by_asc(campaigns::Column::Id)
        .limit(most)
        .into_tuple()
        .all(db)
        .await
        .map_err(translate)?;
    Ok(Withheld {
        products: products.into_iter().filter_map(|(id, n)| Some((ProductId::new(id)?, n))).collect(),
        coupons: campaigns.into_iter().filter_map(|(id, n)| Some((CouponId::new(id)?, n))).collect(),
    })
}

fn name<T: std::str::FromStr<Err = UnknownName>>(word: &str) -> Result<T, Error> {
    word.parse().map_err(|error: UnknownName| Error::Internal(anyhow!("{word:?} in PostgreSQL: {error}")))
}
