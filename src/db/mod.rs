//! Postgres, read: the entities, the reads behind history and listings, and the migrations.
//!
//! Writing is the projector's alone, but for the rows that say whose store this is ([`identity`]), what a rebuild knows to be
//! missing ([`loss`]), the log of operators' acts ([`acts`]) and what each process says of its requests ([`instance_requests`]):
//! none of them is a decision that an outbox carries.

pub mod acts;
pub mod entities;
pub mod identity;
pub mod instance_requests;
pub mod letters;
pub mod loss;
pub mod pages;
pub mod reads;
pub mod retired;
pub mod snapshot;
pub mod stories;

use std::{borrow::Cow, time::Duration};

use anyhow::Context;
use sea_orm::{ConnectOptions, Database, DbErr, RuntimeErr};

/// A pool of connections; clones share it.
pub use sea_orm::DatabaseConnection as Connection;

use sqlx::{
    AssertSqlSafe, PgConnection, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

use crate::{config::PostgresConfig, domain::Error};

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
];

/// Makes the pool.
///
/// # Errors
/// Postgres that can't be reached within `DATABASE_TIMEOUT_MS`, or does not let us in.
pub async fn connect(config: &PostgresConfig) -> anyhow::Result<Connection> {
    let url = config.database_url.expose();
    // Checked here, because the library would put the whole URL, password and all, into its message.
    anyhow::ensure!(
        url.starts_with("postgres://") || url.starts_with("postgresql://"),
        "DATABASE_URL is no PostgreSQL URL: postgres://user:password@host/database"
    );
    let timeout = Duration::from_millis(config.database_timeout_ms);
    let mut options = ConnectOptions::new(url);
    options
        .max_connections(config.database_connections)
        .connect_timeout(timeout)
        .acquire_timeout(timeout)
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .set_application_name("firstcome")
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

/// Brings the schema up to date; several at once wait for each other.
///
/// # Errors
/// A migration that fails, or that was changed since it ran.
pub async fn migrate(db: &Connection) -> anyhow::Result<()> {
    migrator().run(db.get_postgres_connection_pool()).await.context("the migrations can't be run")
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
fn is_transient(error: &DbErr) -> bool {
    let runtime = match error {
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => return true,
        DbErr::Exec(runtime) | DbErr::Query(runtime) => runtime,
        _ => return false,
    };
    let RuntimeErr::SqlxError(error) = runtime else { return false };
    match error.as_ref() {
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

/// Whether a failure says that the data itself does not fit: a data exception (class 22) or a violated constraint (23).
/// Everything else, a missing column or a broken statement included, is about Postgres or about us, and may pass.
pub fn is_data_fault(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error))) = error else {
        return false;
    };
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// A failed read as the domain's error.
pub fn translate(error: DbErr) -> Error {
    if is_transient(&error) {
        tracing::warn!(%error, "PostgreSQL can't answer");
        Error::unavailable("PostgreSQL can't answer")
    } else {
        Error::Internal(anyhow::Error::new(error).context("PostgreSQL refused a query"))
    }
}
