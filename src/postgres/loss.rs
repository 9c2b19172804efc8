//! Possible losses of a partition, as a rebuild has to know them. They are kept in PostgreSQL, because a rebuild
//! empties Redis.

use super::{Connection, translate_sqlx};
use crate::model::{Error, Millis};

/// The possible losses of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub partition: u16,
    /// A rebuild that withholds has begun here and has not ended.
    pub suspected: bool,
    /// A lost decision may have paid any order that was placed until then and is still PENDING.
    pub suspected_at: Option<Millis>,
}

impl Loss {
    /// Whether an order that is PENDING in PostgreSQL and was placed at this time (ms) may have been paid.
    pub fn covers(&self, placed_at: i64) -> bool {
        self.suspected_at.is_some_and(|suspected_at| placed_at <= suspected_at.0)
    }
}

/// The possible losses, ordered by partition.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn read(db: &Connection) -> Result<Vec<Loss>, Error> {
    let rows: Vec<(i32, bool, Option<i64>)> = sqlx::query_as(
        "SELECT partition, in_doubt, (extract(epoch FROM doubted_at) * 1000)::bigint
         FROM projection_positions ORDER BY partition",
    )
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    let loss = |(partition, suspected, suspected_at): (i32, bool, Option<i64>)| Loss {
        partition: partition as u16,
        suspected,
        suspected_at: suspected_at.map(Millis),
    };
    Ok(rows.into_iter().map(loss).collect())
}

/// Records, before anything is withheld, that these partitions may have lost decisions. This covers every order that is
/// PENDING now, even one whose `placed_at` is ahead of `now`: their clocks may differ.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn begin(db: &Connection, partitions: &[u16], now: Millis) -> Result<(), Error> {
    sqlx::query(
        "UPDATE projection_positions SET in_doubt = true,
             doubted_at = greatest(doubted_at, to_timestamp($2 / 1000.0),
                 (SELECT max(placed_at) FROM orders WHERE status = 'PENDING'))
         WHERE partition = ANY($1::int[])",
    )
    .bind(numbers(partitions))
    .bind(now.0)
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(translate_sqlx)
}

/// Records that everything that these partitions may have lost is withheld.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn end(db: &Connection, partitions: &[u16]) -> Result<(), Error> {
    sqlx::query("UPDATE projection_positions SET in_doubt = false WHERE in_doubt AND partition = ANY($1::int[])")
        .bind(numbers(partitions))
        .execute(db.get_postgres_connection_pool())
        .await
        .map(drop)
        .map_err(translate_sqlx)
}

fn numbers(partitions: &[u16]) -> Vec<i32> {
    partitions.iter().map(|partition| i32::from(*partition)).collect()
}
