//! Dead letters, read: what could not be applied, and why. Filing, retrying and removing them is the projector's.

use sea_orm::{EntityTrait, PaginatorTrait, QueryOrder, QuerySelect, sea_query::NullOrdering};

use super::{Connection, entities::dead_letters, translate};
use crate::domain::{
    Error,
    model::{DeadLetter, DeadLetterPage, LetterId},
};

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
        id: LetterId { partition: row.partition as u16, stream_id: row.stream_id, seq: row.seq },
        reason: row.reason,
        fields: row.fields,
        recorded_at: row.recorded_at.into(),
    };
    Ok(DeadLetterPage { letters: rows.into_iter().map(letter).collect(), page, size, total })
}
