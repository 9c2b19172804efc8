//! Postgres, read: the entities, the reads behind history and listings, and the migrations.
//!
//! Writing is the projector's alone, but for the rows that say whose store this is ([`identity`]), what a rebuild knows to be
//! missing ([`loss`]), the log of operators' acts ([`acts`]) and what each process says of its requests ([`instance_requests`]):
//! none of them is a decision that an outbox carries.

pub mod entities;
pub mod instance_requests;
pub mod loss;
pub mod operator_log;
pub mod progress;
pub mod queries;
mod server;
pub mod snapshot;
mod url;

pub use server::Unusable;

use std::{borrow::Cow, time::Duration};

use anyhow::Context;
use sea_orm::{ConnectOptions, Database, DbErr, RuntimeErr};

/// A pool of connections; clones share it.
pub use sea_orm::DatabaseConnection as Connection;

use sqlx::{
    AssertSqlSafe, PgConnection, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

use crate::{config::PostgresConfig, model::Error};

/// The migrations, oldest first: version, what it is about, the SQL.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "initial", include_str!("../../migrations/0001_initial.sql")),
    (2, "rebuild", include_str!("../../migrations/0002_rebuild.sql")),
    (3, "batches", include_str!("../../migrations/0003_batches.sql")),
    (4, "order lines place", include_str!("../../migrations/0004_order_lines_place.sql")),
    (5, "projection cost", include_str!("../../migrations/0005_projection_cost.sql")),
    (7, "operator acts", include_str!("../../migrations/0007_operator_acts.sql")),
    (8, "order totals", include_str!("../../migrations/0008_order_totals.sql")),
    (9, "recovery", include_str!("../../migrations/0009_recovery.sql")),
    (12, "newest orders", include_str!("../../migrations/0012_newest_orders.sql")),
    (13, "instance requests", include_str!("../../migrations/0013_instance_requests.sql")),
    (14, "payment outcomes", include_str!("../../migrations/0014_payment_outcomes.sql")),
    (15, "table names", include_str!("../../migrations/0015_table_names.sql")),
];

/// Makes the pool, once PostgreSQL is there and is what it must be.
///
/// # Errors
/// [`Unusable`]: it can't be reached within `DATABASE_TIMEOUT_MS`, or is refused. A URL that can't be meant.
pub async fn connect(config: &PostgresConfig) -> anyhow::Result<Connection> {
    let timeout = Duration::from_millis(config.database_timeout_ms);
    let how = url::options(config.database_url.expose())?;
    server::check(&how, timeout).await?;
    // Not with the URL: what has it may print it.
    let mut options = ConnectOptions::new("postgres://localhost");
    options
        .max_connections(config.database_connections)
        .connect_timeout(timeout)
        .acquire_timeout(timeout)
        .connect_lazy(true)
        .record_stmt_in_spans(false)
        .map_sqlx_postgres_opts(move |_| how.clone())
        .map_sqlx_postgres_pool_opts(move |pool| {
            // Whoever stopped waiting for an answer leaves a connection on which it is still to come. The pool waits for it
            // without end, and has one connection less meanwhile: on one that fell silent, for ever.
            pool.after_release(move |connection, _| {
                Box::pin(async move {
                    let answers = tokio::time::timeout(timeout, is_at_rest(connection));
                    answers.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
                })
            })
        });
    Database::connect(options).await.context("can't reach PostgreSQL at DATABASE_URL")
}

/// Whether a connection has answered everything and is in no transaction; one that is must not be used again. (Whoever stops
/// waiting for the answer to a BEGIN leaves one that sqlx knows nothing of: whatever is read or written next would be in it.)
async fn is_at_rest(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // Outside of a transaction a statement is one of its own, and begins it: as long as it comes alone, in the simple protocol.
    let asked = sqlx::raw_sql("SELECT transaction_timestamp() = statement_timestamp()");
    sqlx::Row::try_get(&asked.fetch_one(connection).await?, 0)
}

/// Makes a database, if the server has none of that name; over a connection to another one. `name` is ours, never a
/// client's.
///
/// # Errors
/// Postgres can't be reached, or does not let us.
pub async fn create_database(config: &PostgresConfig, name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name:?}");
    let db = connect(config).await?;
    let pool = db.get_postgres_connection_pool();
    let found: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(pool)
        .await?;
    if !found {
        // A name can't be bound.
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(pool).await?;
    }
    db.close().await?;
    Ok(())
}

fn migrator() -> Migrator {
    let migration = |(version, about, sql): &(i64, &'static str, &'static str)| {
        let sql = AssertSqlSafe(*sql).into_sql_str();
        Migration::new(*version, Cow::Borrowed(*about), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect())
}

/// The connections that there are: in use, idle, and how many there may be.
pub fn connections(db: &Connection) -> (usize, usize, usize) {
    let pool = db.get_postgres_connection_pool();
    let (there, idle) = (pool.size() as usize, pool.num_idle());
    (there.saturating_sub(idle), idle, pool.options().get_max_connections() as usize)
}

/// Held while the schema is brought up to date.
const MIGRATION_LOCK: i64 = 0x6669_7273_746d_6967;

/// Brings the schema up to date; several at once wait for each other.
///
/// # Errors
/// A migration that fails, or that was changed since it ran.
pub async fn migrate(db: &Connection) -> anyhow::Result<()> {
    // sqlx's own lock is a session's: behind a pooler it would stay with a connection that is somebody else's by then. So lock
    // and migrations are one transaction; all of them are there, or none.
    let mut transaction =
        lock(db.get_postgres_connection_pool(), MIGRATION_LOCK).await.context("the migrations can't be run")?;
    let mut migrator = migrator();
    migrator.set_locking(false);
    migrator.run(&mut *transaction).await.context("the migrations can't be run")?;
    transaction.commit().await.context("nobody knows whether the migrations have run: run `firstcome migrate` again")
}

/// Waits for a lock, which is held until this transaction ends: however its connection ends, and whoever has it after.
async fn lock(pool: &sqlx::PgPool, id: i64) -> sqlx::Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut transaction = pool.begin().await?;
    // Nothing is asked of it meanwhile, however long that is.
    sqlx::raw_sql("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
        .execute(&mut *transaction)
        .await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(id).execute(&mut *transaction).await?;
    Ok(transaction)
}

/// Checks that every migration of this program has run.
///
/// # Errors
/// The schema is older than this program, or not there.
pub async fn check_schema(db: &Connection) -> anyhow::Result<()> {
    let have: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(db.get_postgres_connection_pool())
        .await
        .context("the database has no schema of ours: run `firstcome migrate`")?;
    let need = MIGRATIONS.iter().map(|(version, ..)| *version).max();
    anyhow::ensure!(have >= need, "the database's schema is older than this program: run `firstcome migrate`");
    Ok(())
}

/// Whether a failure is Postgres being away, slow or busy: worth trying again.
pub fn is_transient(error: &DbErr) -> bool {
    let runtime = match error {
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => return true,
        DbErr::Exec(runtime) | DbErr::Query(runtime) => runtime,
        _ => return false,
    };
    let RuntimeErr::SqlxError(error) = runtime else { return false };
    is_unavailable(error)
}

/// The same of the driver's own.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            // Classes: 08 connection, 25 read-only, 40 rolled back, 53 resources, 55 not now, 57 intervention, 58 system.
            error
                .code()
                .is_some_and(|code| ["08", "25", "40", "53", "55", "57", "58"].iter().any(|c| code.starts_with(c)))
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Whether a failure says that the data itself does not fit, now and for ever: a data exception (class 22), a violated
/// constraint (23), the same row twice in a statement (21), a row or an index entry that is too large (54), what a trigger of
/// the database's owner refuses (P0001); or a value that the driver can't send. Everything else, a missing column or a broken
/// statement included, is about Postgres or about us, and may pass.
pub fn is_data_fault(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return false;
    };
    match error.as_ref() {
        sqlx::Error::Encode(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code == "P0001" || ["21", "22", "23", "54"].iter().any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}

/// What the server calls a failure.
fn sql_state(error: &DbErr) -> Option<Cow<'_, str>> {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            error.as_database_error().and_then(|error| error.code())
        }
        _ => None,
    }
}

/// A failed read as the domain's error.
pub fn translate(error: DbErr) -> Error {
    if is_transient(&error) {
        tracing::warn!(%error, "PostgreSQL can't answer");
        Error::unavailable("PostgreSQL can't answer")
    } else if server::is_mixed_up(sql_state(&error).as_deref()) {
        tracing::error!(
            %error,
            "a pooler mixes up prepared statements: set its max_prepared_statements above 0, or use session mode"
        );
        Error::unavailable("PostgreSQL's pooler mixes up prepared statements")
    } else {
        Error::Internal(anyhow::Error::new(error).context("PostgreSQL refused a query"))
    }
}
