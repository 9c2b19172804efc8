//! Dead letters, read: what could not be applied, and why. Filing, retrying and removing them is the projector's.

use sea_orm::{
    ConnectionTrait, DbBackend, EntityTrait, PaginatorTrait, QueryOrder, QuerySelect, Statement,
    sea_query::NullOrdering,
};

use crate::{
    model::{DeadLetter, DeadLetterId, DeadLetterPage, Error, OrderId, Partition, Position},
    postgres::{Connection, entities::dead_letters, translate},
};

/// Whether one of these decisions is a dead letter.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn is_any_dead(db: &Connection, decided: &[(Partition, Position)]) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM dead_letters
                   JOIN unnest($1::int[], $2::bigint[], $3::bigint[]) AS decided (partition, epoch, seq)
                       USING (partition, epoch, seq))";
    let partitions: Vec<i32> = decided.iter().map(|(partition, _)| i32::from(partition.0)).collect();
    let column = |value: fn(&Position) -> i64| decided.iter().map(|(_, at)| value(at)).collect::<Vec<i64>>();
    let values = [partitions.into(), column(|at| at.epoch).into(), column(|at| at.seq).into()];
    let asked = db.query_one_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await;
    let row = asked.map_err(translate)?;
    row.map_or(Ok(false), |row| row.try_get_by_index(0).map_err(translate))
}

/// Whether one of the dead letters of the epoch that its partition is in is about this order.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn is_about_order(db: &Connection, order: OrderId) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM dead_letters JOIN projection_positions USING (partition, epoch)
                   WHERE fields->>'order' = $1)";
    let values = [order.to_string().into()];
    let asked = db.query_one_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await;
    let row = asked.map_err(translate)?;
    row.map_or(Ok(false), |row| row.try_get_by_index(0).map_err(translate))
}

/// A page of dead letters, newest first.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn page(db: &Connection, page: i64, size: i64) -> Result<DeadLetterPage, Error> {
    use dead_letters::{Column, Entity};
    let total = Entity::find().count(db).await.map_err(translate)? as i64;
    let rows = Entity::find()
        .order_by_desc(Column::RecordedAt)
        // Those of one transaction have one time.
        .order_by_desc(Column::Partition)
        .order_by_desc(Column::StreamId)
        .order_by_with_nulls(Column::Seq, sea_orm::Order::Desc, NullOrdering::Last)
        .offset((page * size) as u64)
        .limit(size as u64)
        .all(db)
        .await
        .map_err(translate)?;
    let letter = |row: dead_letters::Model| DeadLetter {
        id: DeadLetterId { partition: row.partition as u16, stream_id: row.stream_id, seq: row.seq },
        reason: row.reason,
        fields: row.fields,
        recorded_at: row.recorded_at.into(),
    };
    Ok(DeadLetterPage { dead_letters: rows.into_iter().map(letter).collect(), page, size, total })
}
