//! Reads of dead letters: the events that could not be applied, with the reasons. The projector files, retries and
//! removes them.

use std::collections::HashMap;

use sea_orm::{ColumnTrait, EntityTrait, PaginatorTrait, QueryOrder, QuerySelect, sea_query::NullOrdering};

use crate::{
    model::{DeadLetter, DeadLetterId, Error, Page, Partition, Position},
    postgres::{Connection, entities::dead_letters, translate, translate_sqlx},
};

/// Whether one of these decisions is a dead letter.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn is_any_dead(db: &Connection, decided: &[(Partition, Position)]) -> Result<bool, Error> {
    let column = |value: fn(&Position) -> i64| decided.iter().map(|(_, at)| value(at)).collect::<Vec<i64>>();
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM dead_letters
             JOIN unnest($1::int[], $2::bigint[], $3::bigint[]) AS decided (partition, epoch, seq)
                 USING (partition, epoch, seq))",
    )
    .bind(decided.iter().map(|(partition, _)| i32::from(partition.0)).collect::<Vec<i32>>())
    .bind(column(|at| at.epoch))
    .bind(column(|at| at.seq))
    .fetch_one(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)
}

/// The number of dead letters of each partition that has any.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn counts(db: &Connection) -> Result<HashMap<u16, i64>, Error> {
    use dead_letters::{Column, Entity};
    let rows: Vec<(i32, i64)> = Entity::find()
        .select_only()
        .column(Column::Partition)
        .column_as(Column::StreamId.count(), "dead_letters")
        .group_by(Column::Partition)
        .into_tuple()
        .all(db)
        .await
        .map_err(translate)?;
    Ok(rows.into_iter().map(|(partition, count)| (partition as u16, count)).collect())
}

/// The number of dead letters of each partition's current epoch: decisions that Redis has and PostgreSQL lacks. Earlier
/// epochs do not count: a rebuild discards the decisions that only Redis had.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn counts_of_current_epoch(db: &Connection) -> Result<HashMap<u16, i64>, Error> {
    let rows: Vec<(i32, i64)> = sqlx::query_as(
        "SELECT d.partition, count(*) FROM dead_letters AS d JOIN projection_positions AS p USING (partition, epoch)
         GROUP BY d.partition",
    )
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    Ok(rows.into_iter().map(|(partition, count)| (partition as u16, count)).collect())
}

/// A page of dead letters, newest first.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn page(db: &Connection, page: i64, size: i64) -> Result<Page<DeadLetter>, Error> {
    use dead_letters::{Column, Entity};
    let total = Entity::find().count(db).await.map_err(translate)? as i64;
    let rows = Entity::find()
        .order_by_desc(Column::RecordedAt)
        // Dead letters of one transaction share their `recorded_at`.
        .order_by_desc(Column::Partition)
        .order_by_desc(Column::StreamId)
        .order_by_with_nulls(Column::Seq, sea_orm::Order::Desc, NullOrdering::Last)
        .offset((page * size) as u64)
        .limit(size as u64)
        .all(db)
        .await
        .map_err(translate)?;
    let dead_letter = |row: dead_letters::Model| DeadLetter {
        id: DeadLetterId { partition: row.partition as u16, stream_id: row.stream_id, seq: row.seq },
        reason: row.reason,
        fields: row.fields,
        recorded_at: row.recorded_at.into(),
    };
    Ok(Page { items: rows.into_iter().map(dead_letter).collect(), page, size, total })
}
