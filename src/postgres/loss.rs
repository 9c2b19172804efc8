//! What may be missing in a partition, as far as a rebuild must know it: kept in Postgres, since Redis is emptied meanwhile.

use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::Connection;
use crate::model::{Error, Millis};

/// What is known of a partition's losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub partition: u16,
    /// A rebuild that withholds has begun here, and has not ended.
    pub suspected: bool,
    /// Orders placed up to here, and PENDING still, may have been paid by a decision that is lost.
    pub suspected_at: Option<Millis>,
}

impl Loss {
    /// Whether an order that is PENDING in Postgres, placed at this time (ms), may have been paid.
    pub fn covers(&self, placed_at: i64) -> bool {
        self.suspected_at.is_some_and(|doubted_at| placed_at <= doubted_at.0)
    }
}

/// By partition, in their order.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn read(db: &Connection) -> Result<Vec<Loss>, Error> {
    let sql = "SELECT partition, in_doubt, (extract(epoch FROM doubted_at) * 1000)::bigint
               FROM projection_positions ORDER BY partition";
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.map_err(super::translate)?;
    rows.iter()
        .map(|row| {
            let partition: i32 = row.try_get_by_index(0).map_err(super::translate)?;
            let doubted_at: Option<i64> = row.try_get_by_index(2).map_err(super::translate)?;
            Ok(Loss {
                partition: partition as u16,
                suspected: row.try_get_by_index(1).map_err(super::translate)?,
                suspected_at: doubted_at.map(Millis),
            })
        })
        .collect()
}

/// Notes, before anything is withheld, that decisions of these partitions may be lost. Every order that is PENDING now counts,
/// whatever the clocks said that dated it.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn begin(db: &Connection, partitions: &[u16], now: Millis) -> Result<(), Error> {
    let sql = "UPDATE projection_positions SET in_doubt = true,
                   doubted_at = greatest(doubted_at, to_timestamp($2 / 1000.0),
                       (SELECT max(placed_at) FROM orders WHERE status = 'PENDING'))
               WHERE partition = ANY($1::int[])";
    let partitions: Vec<i32> = partitions.iter().map(|partition| i32::from(*partition)).collect();
    let values = [partitions.into(), now.0.into()];
    db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values))
        .await
        .map(drop)
        .map_err(super::translate)
}

/// Notes that what may be lost is withheld.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn end(db: &Connection) -> Result<(), Error> {
    let sql = "UPDATE projection_positions SET in_doubt = false WHERE in_doubt";
    db.execute_unprepared(sql).await.map(drop).map_err(super::translate)
}
