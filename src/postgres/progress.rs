//! The identity of the deployment, and the facts that must survive a loss of Redis: the initial positions, the
//! acknowledged positions, and whether replies ever went out before PostgreSQL had the decision.

use std::time::Duration;

use anyhow::Context;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, Statement};

use super::{Connection, entities::stores, translate, translate_sqlx};
use crate::model::{Error, Partition, Position, Projection};

/// The store's name and number of partitions; `None` before it was initialised.
///
/// # Errors
/// PostgreSQL can't answer.
pub async fn identity(db: &Connection) -> anyhow::Result<Option<(String, u16)>> {
    let row = stores::Entity::find().one(db).await.context("the store's identity can't be read")?;
    Ok(row.map(|row| (row.store, row.partitions as u16)))
}

/// Writes the identity and the initial positions of a new store, unless another process was first.
///
/// # Errors
/// PostgreSQL can't answer.
pub async fn insert_identity(db: &Connection, store: &str, partitions: u16, epoch: i64) -> anyhow::Result<()> {
    sqlx::query(
        "WITH first AS (
             INSERT INTO store (store, partitions, ack) VALUES ($1, $2, 'postgres') ON CONFLICT DO NOTHING RETURNING partitions
         )
         INSERT INTO projection_positions (partition, epoch, seq, stream_id)
         SELECT partition, $3, 0, '0-0' FROM first, generate_series(0, first.partitions - 1) AS partition",
    )
    .bind(store)
    .bind(i32::from(partitions))
    .bind(epoch)
    .execute(db.get_postgres_connection_pool())
    .await
    .context("the new store's identity can't be written")?;
    Ok(())
}

/// Records that replies go out before PostgreSQL has the decision. A loss of Redis may then lose acknowledged
/// decisions.
///
/// # Errors
/// PostgreSQL can't answer.
pub async fn acknowledges_before_postgres(db: &Connection) -> anyhow::Result<()> {
    sqlx::query("UPDATE store SET ack = 'redis' WHERE ack <> 'redis'")
        .execute(db.get_postgres_connection_pool())
        .await
        .context("the ack mode can't be written")?;
    Ok(())
}

/// Whether every reply that this store ever gave waited for PostgreSQL.
///
/// # Errors
/// PostgreSQL can't answer.
pub async fn only_postgres_acknowledged(db: &Connection) -> anyhow::Result<bool> {
    let row = stores::Entity::find().one(db).await.context("the store's identity can't be read")?;
    Ok(row.is_some_and(|row| row.ack == "postgres"))
}

/// How far PostgreSQL is with a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectedPosition {
    pub partition: Partition,
    /// The last decision that PostgreSQL has.
    pub position: Position,
    /// The entry of the outbox that this decision came in.
    pub stream_id: String,
    /// The seq of the last dead letter; 0 if there is none.
    pub last_dead_letter: i64,
}

impl ProjectedPosition {
    /// The same without the partition and the entry.
    pub fn projection(&self) -> Projection {
        Projection { position: self.position, last_dead_letter: self.last_dead_letter }
    }
}

/// How far PostgreSQL is with each partition, ordered by partition.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is, or while it is a standby.
pub async fn projected(db: &Connection) -> Result<Vec<ProjectedPosition>, Error> {
    type PositionRow = (i32, i64, i64, String, i64, bool);
    let rows: Vec<PositionRow> = sqlx::query_as(
        "SELECT partition, epoch, seq, stream_id,
             coalesce((SELECT max(d.seq) FROM dead_letters AS d WHERE d.partition = p.partition), 0), pg_is_in_recovery()
         FROM projection_positions AS p ORDER BY partition",
    )
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    // A standby may lag: its position is no proof of anything.
    if rows.iter().any(|(.., is_standby)| *is_standby) {
        return Err(Error::unavailable("PostgreSQL is a standby"));
    }
    let position = |(partition, epoch, seq, stream_id, last_dead_letter, _): PositionRow| ProjectedPosition {
        partition: Partition(partition as u16),
        position: Position { epoch, seq },
        stream_id,
        last_dead_letter,
    };
    Ok(rows.into_iter().map(position).collect())
}

/// Records the acknowledged positions of this process, and that it is at work on these partitions. A position never
/// goes back.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn record_acknowledged(db: &Connection, acknowledged: &[(Partition, Position)]) -> Result<(), Error> {
    if acknowledged.is_empty() {
        return Ok(());
    }
    let column = |value: fn(&(Partition, Position)) -> i64| acknowledged.iter().map(value).collect::<Vec<i64>>();
    sqlx::query(
        "INSERT INTO acknowledged_positions AS old (partition, epoch, seq, acknowledged_at)
         SELECT partition, epoch, seq, clock_timestamp()
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS new (partition, epoch, seq) ORDER BY partition
         ON CONFLICT (partition) DO UPDATE SET acknowledged_at = excluded.acknowledged_at,
             epoch = greatest(old.epoch, excluded.epoch),
             seq = CASE WHEN old.epoch > excluded.epoch THEN old.seq
                        WHEN old.epoch < excluded.epoch THEN excluded.seq
                        ELSE greatest(old.seq, excluded.seq) END",
    )
    .bind(column(|(partition, _)| partition.0.into()))
    .bind(column(|(_, position)| position.epoch))
    .bind(column(|(_, position)| position.seq))
    .execute(db.get_postgres_connection_pool())
    .await
    .map(drop)
    .map_err(translate_sqlx)
}

/// The acknowledged position of a partition, over all processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub partition: Partition,
    pub position: Position,
    /// The last time that a process recorded it, in microseconds by PostgreSQL's clock.
    pub acknowledged_at: i64,
}

/// The acknowledged positions that [`record_acknowledged`] wrote, ordered by partition.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn acknowledged(db: &Connection) -> Result<Vec<Acknowledged>, Error> {
    let rows: Vec<(i32, i64, i64, i64)> = sqlx::query_as(
        "SELECT partition, epoch, seq, (extract(epoch FROM acknowledged_at) * 1000000)::bigint
         FROM acknowledged_positions ORDER BY partition",
    )
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    let acknowledged = |(partition, epoch, seq, acknowledged_at): (i32, i64, i64, i64)| Acknowledged {
        partition: Partition(partition as u16),
        position: Position { epoch, seq },
        acknowledged_at,
    };
    Ok(rows.into_iter().map(acknowledged).collect())
}

/// The partitions that some process has reported as open within this time.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn reported_within(db: &Connection, time: Duration) -> Result<Vec<Partition>, Error> {
    let rows: Vec<i32> = sqlx::query_scalar(
        "SELECT partition FROM acknowledged_positions WHERE acknowledged_at > clock_timestamp() - $1 * interval '1 ms'",
    )
    .bind(time.as_millis() as f64)
    .fetch_all(db.get_postgres_connection_pool())
    .await
    .map_err(translate_sqlx)?;
    Ok(rows.into_iter().map(|partition| Partition(partition as u16)).collect())
}

/// The key of the advisory lock that a rebuild holds.
const REBUILD_LOCK: i64 = 0x6669_7273_7463_6f6d;

/// The lock of the one process that rebuilds. The end of its transaction, or of its connection, releases it; when it is dropped, that is
/// a moment later.
pub struct Lock(sqlx::Transaction<'static, sqlx::Postgres>);

impl Lock {
    /// Waits until no other process holds the lock, and takes it.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn take(db: &Connection) -> anyhow::Result<Lock> {
        Ok(Lock(super::lock(db.get_postgres_connection_pool(), REBUILD_LOCK).await?))
    }

    /// Takes the lock, unless another process holds it: then `None`.
    ///
    /// # Errors
    /// PostgreSQL can't answer.
    pub async fn try_take(db: &Connection) -> anyhow::Result<Option<Lock>> {
        Ok(super::try_lock(db.get_postgres_connection_pool(), REBUILD_LOCK).await?.map(Lock))
    }

    /// Releases the lock before it returns.
    pub async fn release(self) {
        if let Err(error) = self.0.rollback().await {
            tracing::debug!(%error, "the lock of the rebuild ends with its connection");
        }
    }
}

/// Whether no rebuild runs; if so, none begins before this transaction ends.
///
/// # Errors
/// [`Error::Unavailable`] while PostgreSQL is.
pub async fn no_rebuild_runs(transaction: &DatabaseTransaction) -> Result<bool, Error> {
    let sql = "SELECT pg_try_advisory_xact_lock_shared($1)";
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, [REBUILD_LOCK.into()]);
    let row = transaction.query_one_raw(statement).await.map_err(translate)?;
    row.map_or(Ok(false), |row| row.try_get_by_index(0).map_err(translate))
}
