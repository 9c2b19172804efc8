//! Writes a folded batch: per table one statement for new rows and one for changed rows. All values are bound as
//! arrays, so the text of a statement is the same for every batch. A new order or payment is inserted in its final
//! state.
//!
//! Every statement must touch exactly the rows that the batch names. Otherwise (an order is missing, a coupon was
//! issued twice) the transaction fails, and the projector finds the event that caused it.

mod coupons;
mod orders;
mod payments;
mod products;
mod records;
mod remote_holds;
mod users;

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement, Value};

pub(super) use self::users::remove_names;
use self::{
    coupons::{campaigns, coupons},
    orders::orders,
    payments::payments,
    products::products,
    records::{records, sequences},
    remote_holds::remote_holds,
    users::users,
};
use super::batch::Batch;
use crate::model::{Millis, Partition};

/// Why a batch could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Db(#[from] DbErr),
    #[error("{what}: {named} named, {touched} there")]
    Missing { what: &'static str, named: usize, touched: u64 },
}

/// Times are bound as milliseconds. The statements divide the times of events as `float8`: exact to the microsecond
/// until the year 2242, and fourteen times as fast as `numeric`. They divide times that an operator sets, which may be
/// later, as `numeric`.
fn ms(at: Millis) -> i64 {
    at.0
}

fn optional_ms(at: Option<Millis>) -> i64 {
    at.map_or(0, ms)
}

/// A time that an operator sets, which may be 0; no time is -1.
fn operator_ms(at: Option<Millis>) -> i64 {
    at.map_or(-1, ms)
}

struct Apply<'a>(&'a DatabaseTransaction);

impl Apply<'_> {
    /// Runs a statement that must touch `rows` rows, unless there are none.
    async fn run(&self, what: &'static str, rows: usize, sql: &str, values: Vec<Value>) -> Result<(), ApplyError> {
        if rows == 0 {
            return Ok(());
        }
        let done = self.0.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
        let touched = done.rows_affected();
        if touched == rows as u64 { Ok(()) } else { Err(ApplyError::Missing { what, named: rows, touched }) }
    }
}

impl Apply<'_> {
    /// Runs a statement that may touch fewer rows, unless there are none.
    async fn run_any(&self, rows: usize, sql: &str, values: Vec<Value>) -> Result<(), ApplyError> {
        if rows > 0 {
            self.0.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
        }
        Ok(())
    }
}

/// Binds one value of each row as an array.
macro_rules! column {
    ($rows:expr, $row:pat => $value:expr) => {
        $rows.iter().map(|$row| $value).collect::<Vec<_>>().into()
    };
}
use column;

/// Applies a batch of a partition. `partitions`: the number of all.
///
/// # Errors
/// A row violates a constraint or is missing, or PostgreSQL is unavailable.
pub async fn apply(
    transaction: &DatabaseTransaction,
    (here, partitions): (Partition, u16),
    batch: &Batch,
) -> Result<(), ApplyError> {
    let db = Apply(transaction);
    users(&db, batch).await?;
    products(&db, (here, partitions), batch).await?;
    campaigns(&db, batch).await?;
    orders(&db, batch).await?;
    coupons(&db, batch).await?;
    payments(&db, batch).await?;
    remote_holds(&db, here, batch).await?;
    records(&db, here, batch).await?;
    sequences(&db, batch).await
}
