//! Whose store this is: one row, written when the store is first initialised, beside the positions that it starts from.

use anyhow::Context;
use sea_orm::{ConnectionTrait, DbBackend, EntityTrait, Statement};

use super::{Connection, entities::stores};

/// The store's name and partitions, or `None` if it was never initialised.
///
/// # Errors
/// Postgres can't answer.
pub async fn read(db: &Connection) -> anyhow::Result<Option<(String, u16)>> {
    let row = stores::Entity::find().one(db).await.context("the store's identity can't be read")?;
    Ok(row.map(|row| (row.store, row.partitions as u16)))
}

/// Writes a new store's identity and positions, unless another process was first.
///
/// # Errors
/// Postgres can't answer.
pub async fn remember(db: &Connection, store: &str, partitions: u16, epoch: i64) -> anyhow::Result<()> {
    db.execute_raw(Statement::from_sql_and_values(
        DbBackend::Postgres,
        "WITH first AS (
             INSERT INTO store (store, partitions) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING partitions
         )
         INSERT INTO projection_positions (partition, epoch, seq, stream_id)
         SELECT partition, $3, 0, '0-0' FROM first, generate_series(0, first.partitions - 1) AS partition",
        [store.into(), i32::from(partitions).into(), epoch.into()],
    ))
    .await
    .context("the new store's identity can't be written")?;
    Ok(())
}
