//! PostgreSQL: the connections, the migrations, and the statements except those of the projection.
//!
//! The projector alone writes decisions (`projector`). This module writes only facts that no outbox carries: the
//! identity and the acknowledged positions ([`progress`]), possible losses ([`loss`]), the operator log
//! ([`operator_log`]) and the request counts of each process ([`instance_requests`]).

pub mod entities;
pub mod events;
pub mod instance_requests;
pub mod loss;
pub mod operator_log;
pub mod progress;
pub mod queries;
pub mod recoveries;
mod server;
pub mod snapshot;
mod url;
pub mod webhooks;

pub use server::Unusable;

use std::{borrow::Cow, time::Duration};

use anyhow::Context;
use sea_orm::{ConnectOptions, Database, DbErr, RuntimeErr};
use sha2::{Digest, Sha256};

/// A pool of connections; clones share it.
pub use sea_orm::DatabaseConnection as Connection;

use sqlx::{
    AssertSqlSafe, PgConnection, SqlSafeStr,
    error::DatabaseError,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgDatabaseError, PgSeverity},
};
use tokio_util::sync::CancellationToken;

use crate::{config::PostgresConfig, model::Error};

/// The migrations, oldest first: version, description, SQL.
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
    (16, "orders in place", include_str!("../../migrations/0016_orders_in_place.sql")),
    (17, "recoveries", include_str!("../../migrations/0017_recoveries.sql")),
    (18, "recovery details", include_str!("../../migrations/0018_recovery_details.sql")),
    (19, "remote coupons by user", include_str!("../../migrations/0019_remote_coupons_user.sql")),
    (20, "allotments", include_str!("../../migrations/0020_allotments.sql")),
    (21, "recovery progress", include_str!("../../migrations/0021_recovery_progress.sql")),
    (22, "sale terms", include_str!("../../migrations/0022_sale_terms.sql")),
    (23, "coupon conditions", include_str!("../../migrations/0023_coupon_conditions.sql")),
    (24, "refunds", include_str!("../../migrations/0024_refunds.sql")),
    (25, "sales on the dashboard", include_str!("../../migrations/0025_sales_on_dashboard.sql")),
    (26, "users from elsewhere", include_str!("../../migrations/0026_users_from_elsewhere.sql")),
    (27, "events", include_str!("../../migrations/0027_events.sql")),
    (28, "operator roles", include_str!("../../migrations/0028_operator_roles.sql")),
    (29, "webhooks", include_str!("../../migrations/0029_webhooks.sql")),
    (30, "webhook changes", include_str!("../../migrations/0030_webhook_changes.sql")),
];

/// Checks the server, and creates the pool.
///
/// # Errors
/// [`Unusable`] if the server can't be reached within `DATABASE_TIMEOUT_MS` or can't be worked with; or the URL is
/// wrong.
pub async fn connect(config: &PostgresConfig) -> anyhow::Result<Connection> {
    let connect_options = url::options(config.database_url.expose())?;
    server::check(&connect_options, Duration::from_millis(config.database_timeout_ms)).await?;
    // Open from the start.
    let open = CancellationToken::new();
    open.cancel();
    pool(config, connect_options, open).await
}

/// Creates the pool without a server. Its connections wait until `open` is cancelled, and count as unavailable meanwhile.
///
/// # Errors
/// The URL is wrong.
pub async fn connect_when(config: &PostgresConfig, open: CancellationToken) -> anyhow::Result<Connection> {
    pool(config, url::options(config.database_url.expose())?, open).await
}

/// A digest of the place of the database: the host, the port and the name in `DATABASE_URL`.
///
/// # Errors
/// The URL is wrong.
pub fn place(config: &PostgresConfig) -> anyhow::Result<String> {
    let options = url::options(config.database_url.expose())?;
    let place = format!("{}:{}/{}", options.get_host(), options.get_port(), options.get_database().unwrap_or_default());
    Ok(hex::encode(&Sha256::digest(place)[..16]))
}

async fn pool(
    config: &PostgresConfig,
    connect_options: PgConnectOptions,
    open: CancellationToken,
) -> anyhow::Result<Connection> {
    let timeout = Duration::from_millis(config.database_timeout_ms);
    // A placeholder instead of the URL, whose password SeaORM might print.
    let mut options = ConnectOptions::new("postgres://localhost");
    options
        .max_connections(config.database_connections)
        .connect_timeout(timeout)
        .acquire_timeout(timeout)
        .connect_lazy(true)
        .record_stmt_in_spans(false)
        .map_sqlx_postgres_opts(move |_| connect_options.clone())
        .map_sqlx_postgres_pool_opts(move |pool| {
            let open = open.clone();
            let pool = pool.after_connect(move |_, _| {
                let open = open.clone();
                Box::pin(async move {
                    open.cancelled().await;
                    Ok(())
                })
            });
            // A cancelled query leaves a connection with a pending reply. Without this bound the pool would wait for
            // that reply without end: on a dead connection the pool would be one connection short for ever.
            pool.after_release(move |connection, _| {
                Box::pin(async move {
                    let checked = tokio::time::timeout(timeout, is_idle(connection));
                    checked.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
                })
            })
        });
    Database::connect(options).await.context("can't reach PostgreSQL at DATABASE_URL")
}

/// Whether a connection has no pending reply and no open transaction, and leads to the primary; the pool drops any other.
/// A cancelled BEGIN leaves a transaction that sqlx does not know of, and the next statements would be part of it. A
/// primary that became a standby keeps its connections, while DATABASE_URL leads to another server.
async fn is_idle(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // Outside a transaction the two times are equal: a single statement in the simple protocol begins its own
    // transaction.
    let probe = sqlx::raw_sql("SELECT transaction_timestamp() = statement_timestamp() AND NOT pg_is_in_recovery()");
    sqlx::Row::try_get(&probe.fetch_one(connection).await?, 0)
}

/// Creates the database `name` over a connection to another one, unless it exists. `name` comes from this program,
/// never from a client.
///
/// # Errors
/// PostgreSQL can't be reached, or refuses.
pub async fn create_database(config: &PostgresConfig, name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name:?}");
    let db = connect(config).await?;
    let pool = db.get_postgres_connection_pool();
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(pool)
        .await?;
    if !exists {
        // PostgreSQL takes no parameter for a name.
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(pool).await?;
    }
    db.close().await?;
    Ok(())
}

fn migrator() -> Migrator {
    let migration = |(version, description, sql): &(i64, &'static str, &'static str)| {
        let sql = AssertSqlSafe(*sql).into_sql_str();
        Migration::new(*version, Cow::Borrowed(*description), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect())
}

/// The connections of the pool: in use, idle, and the maximum.
pub fn connections(db: &Connection) -> (usize, usize, usize) {
    let pool = db.get_postgres_connection_pool();
    let (open, idle) = (pool.size() as usize, pool.num_idle());
    (open.saturating_sub(idle), idle, pool.options().get_max_connections() as usize)
}

/// The key of the advisory lock that the migrations hold.
const MIGRATION_LOCK: i64 = 0x6669_7273_746d_6967;

/// Runs the missing migrations, all or none. Concurrent calls wait for each other.
///
/// # Errors
/// A migration fails, or differs from the one that ran under its version.
pub async fn migrate(db: &Connection) -> anyhow::Result<()> {
    // sqlx's own lock belongs to a session: behind a pooler it would stay with a server connection that serves another
    // client by then. So the lock and the migrations are one transaction.
    let mut transaction =
        lock(db.get_postgres_connection_pool(), MIGRATION_LOCK).await.context("the migrations can't be run")?;
    let mut migrator = migrator();
    migrator.set_locking(false);
    migrator.run(&mut *transaction).await.context("the migrations can't be run")?;
    transaction.commit().await.context("it is unknown whether the migrations have run: run `firstcome migrate` again")
}

/// Waits for an advisory lock. The end of the returned transaction releases it, also where the connection breaks.
async fn lock(pool: &sqlx::PgPool, id: i64) -> sqlx::Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut transaction = pool.begin().await?;
    // The transaction stays idle for as long as the caller works.
    sqlx::raw_sql("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0")
        .execute(&mut *transaction)
        .await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(id).execute(&mut *transaction).await?;
    Ok(transaction)
}

/// Takes an advisory lock as [`lock`] does, unless another session holds it: then `None`.
async fn try_lock(pool: &sqlx::PgPool, id: i64) -> sqlx::Result<Option<sqlx::Transaction<'static, sqlx::Postgres>>> {
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *transaction).await?;
    let taken: bool =
        sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(id).fetch_one(&mut *transaction).await?;
    Ok(taken.then_some(transaction))
}

/// The last migration of this program.
fn newest_migration() -> Option<i64> {
    MIGRATIONS.iter().map(|(version, ..)| *version).max()
}

async fn schema_version(db: &Connection) -> sqlx::Result<Option<i64>> {
    let version = "SELECT max(version) FROM _sqlx_migrations WHERE success";
    sqlx::query_scalar(version).fetch_one(db.get_postgres_connection_pool()).await
}

/// Whether a newer version of this program has migrated the database.
///
/// # Errors
/// PostgreSQL can't answer.
pub async fn is_schema_newer(db: &Connection) -> anyhow::Result<bool> {
    Ok(schema_version(db).await.context("the schema's version can't be read")? > newest_migration())
}

/// Checks that every migration of this program has run.
///
/// # Errors
/// The schema is missing, or older than this program.
pub async fn check_schema(db: &Connection) -> anyhow::Result<()> {
    let have = schema_version(db).await.context("the database has no schema of ours: run `firstcome migrate`")?;
    anyhow::ensure!(
        have >= newest_migration(),
        "the database's schema is older than this program: run `firstcome migrate`"
    );
    let missing =
        missing_grants(db.get_postgres_connection_pool()).await.context("can't read the rights of our role")?;
    if !missing.is_empty() {
        tracing::warn!(
            "processes of an older version fail: the role of DATABASE_URL may not use the views that they need. Grant it, as the \
             role that runs `firstcome migrate`: {}",
            missing.join("; ")
        );
    }
    Ok(())
}

/// The GRANT statements that give the role of a connection the same rights to each view of migration 15 as to its table. Processes
/// of the version before that migration use the views. Where another role runs the migrations, it owns the views, and the grants
/// of a renamed table do not pass on to its view.
///
/// # Errors
/// PostgreSQL can't answer.
pub async fn missing_grants(connection: impl sqlx::PgExecutor<'_>) -> sqlx::Result<Vec<String>> {
    let sql = "SELECT format('GRANT %s ON %I TO %I', string_agg(kind, ', ' ORDER BY kind), view, current_user)
               FROM (VALUES ('operator_acts', 'operator_log'), ('watermarks', 'acknowledged_positions'),
                            ('far_coupons', 'remote_coupons')) AS renamed (view, name),
                    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS kind
               WHERE has_table_privilege(to_regclass(name), kind) AND NOT has_table_privilege(to_regclass(view), kind)
               GROUP BY view ORDER BY view";
    sqlx::query_scalar(sql).fetch_all(connection).await
}

/// Whether an error is transient: PostgreSQL is unreachable, slow or busy, and a retry may succeed.
pub fn is_transient(error: &DbErr) -> bool {
    let runtime = match error {
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => return true,
        DbErr::Exec(runtime) | DbErr::Query(runtime) => runtime,
        _ => return false,
    };
    let RuntimeErr::SqlxError(error) = runtime else { return false };
    is_unavailable(error)
}

/// [`is_transient`] of an error of sqlx.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            // Classes: 08 connection, 25 transaction state (read-only), 40 rollback, 53 resources, 55 object state, 57
            // intervention, 58 system.
            const TRANSIENT: [&str; 7] = ["08", "25", "40", "53", "55", "57", "58"];
            ends_connection(error.as_ref())
                || error.code().is_some_and(|code| TRANSIENT.iter().any(|class| code.starts_with(class)))
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

/// Whether an error is FATAL: the server refuses the connection, whatever the class of the error, or ends it.
fn ends_connection(error: &dyn DatabaseError) -> bool {
    let error = error.try_downcast_ref::<PgDatabaseError>();
    error.is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the data itself causes an error, so that no retry can succeed: a data exception (class 22), a violated
/// constraint (23), a row twice in one statement (21), a row or an index entry that is too large (54), an exception of
/// a trigger (P0001), or a value that the driver can't encode. Every other error, a missing column or a broken
/// statement included, is a fault of PostgreSQL or of this program, and may pass.
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

/// The SQLSTATE of an error of the server.
fn sql_state(error: &DbErr) -> Option<Cow<'_, str>> {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            error.as_database_error().and_then(|error| error.code())
        }
        _ => None,
    }
}

/// An error of sqlx as SeaORM would wrap it, so that one classification serves both.
pub fn statement_error(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// [`translate`] of an error of sqlx.
pub fn translate_sqlx(error: sqlx::Error) -> Error {
    translate(statement_error(error))
}

/// Logs a failed statement, and converts its error.
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
