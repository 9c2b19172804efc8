//! Whose store this is: one row, written when the store is first initialised, beside the positions that it starts from. And
//! what its processes know that a loss of Redis would take with it: how far it had decided, and what their replies wait for.

use anyhow::Context;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, FromQueryResult, Statement};

use super::{Connection, entities::stores};
use crate::model::{Error, Partition, Position};

/// The store's name and partitions, or `None` if it was never initialised.
///
/// # Errors
/// Postgres can't answer.
pub async fn identity(db: &Connection) -> anyhow::Result<Option<(String, u16)>> {
    let row = stores::Entity::find().one(db).await.context("the store's identity can't be read")?;
    Ok(row.map(|row| (row.store, row.partitions as u16)))
}

/// Writes a new store's identity and positions, unless another process was first.
///
/// # Errors
/// Postgres can't answer.
pub async fn insert_identity(db: &Connection, store: &str, partitions: u16, epoch: i64) -> anyhow::Result<()> {
    db.execute_raw(Statement::from_sql_and_values(
        DbBackend::Postgres,
        "WITH first AS (
             INSERT INTO store (store, partitions, ack) VALUES ($1, $2, 'postgres') ON CONFLICT DO NOTHING RETURNING partitions
         )
         INSERT INTO projection_positions (partition, epoch, seq, stream_id)
         SELECT partition, $3, 0, '0-0' FROM first, generate_series(0, first.partitions - 1) AS partition",
        [store.into(), i32::from(partitions).into(), epoch.into()],
    ))
    .await
    .context("the new store's identity can't be written")?;
    Ok(())
}

/// Notes that writes are answered before Postgres has them, so that a loss of Redis may be one of acknowledged decisions.
///
/// # Errors
/// Postgres can't answer.
pub async fn acknowledges_before_postgres(db: &Connection) -> anyhow::Result<()> {
    let sql = "UPDATE store SET ack = 'redis' WHERE ack <> 'redis'";
    db.execute_unprepared(sql).await.context("what the replies wait for can't be written down")?;
    Ok(())
}

/// Whether everything that anybody was ever told waited for Postgres.
///
/// # Errors
/// Postgres can't answer.
pub async fn only_postgres_acknowledged(db: &Connection) -> anyhow::Result<bool> {
    let row = stores::Entity::find().one(db).await.context("the store's identity can't be read")?;
    Ok(row.is_some_and(|row| row.ack == "postgres"))
}

/// Writes down how far each of these partitions had decided, as this process was told, and that it is at work on them.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn record_acknowledged(db: &Connection, acknowledged: &[(Partition, Position)]) -> Result<(), Error> {
    if acknowledged.is_empty() {
        return Ok(());
    }
    let column = |value: fn(&(Partition, Position)) -> i64| acknowledged.iter().map(value).collect::<Vec<i64>>();
    let sql = "INSERT INTO acknowledged_positions AS old (partition, epoch, seq, acknowledged_at)
               SELECT partition, epoch, seq, clock_timestamp()
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (partition, epoch, seq) ORDER BY partition
               ON CONFLICT (partition) DO UPDATE SET acknowledged_at = excluded.acknowledged_at,
                   epoch = greatest(old.epoch, excluded.epoch),
                   seq = CASE WHEN old.epoch > excluded.epoch THEN old.seq
                              WHEN old.epoch < excluded.epoch THEN excluded.seq
                              ELSE greatest(old.seq, excluded.seq) END";
    let values = [
        column(|(partition, _)| partition.0.into()).into(),
        column(|(_, position)| position.epoch).into(),
        column(|(_, position)| position.seq).into(),
    ];
    db.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values))
        .await
        .map(drop)
        .map_err(super::translate)
}

/// What a process was told of a partition, and when somebody last said so.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Acknowledged {
    pub partition: i32,
    pub epoch: i64,
    pub seq: i64,
    /// Microseconds by Postgres's clock.
    pub acknowledged_at: i64,
}

impl Acknowledged {
    /// How far the partition had decided.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.seq }
    }
}

/// What was written down by [`tell`], by partition.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn acknowledged(db: &Connection) -> Result<Vec<Acknowledged>, Error> {
    let sql = "SELECT partition, epoch, seq, (extract(epoch FROM acknowledged_at) * 1000000)::bigint AS acknowledged_at
               FROM acknowledged_positions ORDER BY partition";
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.map_err(super::translate)?;
    rows.iter().map(|row| Acknowledged::from_query_result(row, "").map_err(super::translate)).collect()
}

/// What the one lock of a database is known by.
const LOCK: i64 = 0x6669_7273_7463_6f6d;

/// Held by the one process that rebuilds; the end of its transaction, or of its connection, lets it go.
pub struct Lock(#[expect(dead_code, reason = "held")] sqlx::Transaction<'static, sqlx::Postgres>);

impl Lock {
    /// Waits until nobody else holds it.
    ///
    /// # Errors
    /// Postgres can't answer.
    pub async fn take(db: &Connection) -> anyhow::Result<Lock> {
        Ok(Lock(super::lock(db.get_postgres_connection_pool(), LOCK).await?))
    }
}

/// Whether nobody holds the [`Lock`]; until the end of this transaction nobody will.
///
/// # Errors
/// [`Error::Unavailable`] while Postgres is.
pub async fn no_rebuild_runs(transaction: &DatabaseTransaction) -> Result<bool, Error> {
    let sql = "SELECT pg_try_advisory_xact_lock_shared($1)";
    let asked =
        transaction.query_one_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, [LOCK.into()])).await;
    let row = asked.map_err(super::translate)?;
    row.map_or(Ok(false), |row| row.try_get_by_index(0).map_err(super::translate))
}
