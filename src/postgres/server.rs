//! The check of PostgreSQL before its first use: reachable, a supported version, UTF-8, the primary. A pooler in front
//! of it must keep the prepared statements of its clients apart.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};
use tokio::time::timeout;

/// The oldest supported major version.
const MIN_VERSION: i32 = 15;
/// A pooler that delays a second transaction for this long while a first one is open has a single server connection.
const SECOND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the close of a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why PostgreSQL is unusable.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A retry may succeed.
    #[error("PostgreSQL can't be reached at DATABASE_URL: {0}")]
    Unavailable(String),
    /// An operator has to change a setting first.
    #[error("{0}")]
    Refused(String),
}

impl Unusable {
    fn refused(reason: impl Into<String>) -> Self {
        Unusable::Refused(reason.into())
    }
}

/// Checks the server and the pooler over connections of its own. `limit` bounds each connect, and the whole check after
/// it.
///
/// # Errors
/// The reason, and the remedy.
pub(super) async fn check(options: &PgConnectOptions, limit: Duration) -> Result<(), Unusable> {
    let mut first = connect(options, limit).await?;
    let checked = timeout(limit, async {
        check_server(&mut first).await?;
        check_pooler(&mut first, options, limit).await
    });
    let checked = checked.await.unwrap_or_else(|_| Err(no_answer(limit)));
    let _ = timeout(CLOSE_TIMEOUT, first.close()).await;
    checked
}

fn no_answer(limit: Duration) -> Unusable {
    Unusable::Unavailable(format!("no answer within {limit:?}"))
}

async fn connect(options: &PgConnectOptions, limit: Duration) -> Result<PgConnection, Unusable> {
    match timeout(limit, PgConnection::connect_with(options)).await {
        Ok(connected) => connected.map_err(refusal),
        Err(_) => Err(no_answer(limit)),
    }
}

/// Classifies an error of the connect or of the check.
fn refusal(error: sqlx::Error) -> Unusable {
    match &error {
        sqlx::Error::Database(refused) => {
            let code = refused.code().unwrap_or_default();
            match code.get(..2) {
                // Classes: 28 authorization, 3D database name, 42 access rule, 0A unsupported feature.
                Some("28") => Unusable::refused(format!(
                    "PostgreSQL does not let us in ({refused}): the user or the password in DATABASE_URL is wrong"
                )),
                Some("3D") => Unusable::refused(format!(
                    "PostgreSQL has no such database ({refused}): create it, or correct DATABASE_URL"
                )),
                Some("42" | "0A") => Unusable::refused(format!("PostgreSQL refuses us ({refused})")),
                // PgBouncer reports its own refusals in class 08.
                Some("08") if refused.message().contains("unsupported startup parameter") => {
                    Unusable::refused(format!(
                        "the pooler at DATABASE_URL refuses a parameter ({refused}): leave it out, or tell the pooler to ignore it \
                     (PgBouncer: ignore_startup_parameters)"
                    ))
                }
                Some("08") if refused.message().contains("statement pooling mode") => Unusable::refused(
                    "the pooler at DATABASE_URL gives each statement another connection (statement mode): use transaction mode or \
                     session mode",
                ),
                Some("08") if refused.message().contains("no such database") => {
                    Unusable::refused(format!("the pooler at DATABASE_URL has no such database ({refused})"))
                }
                _ => Unusable::Unavailable(refused.to_string()),
            }
        }
        sqlx::Error::Tls(why) => {
            Unusable::refused(format!("TLS to PostgreSQL fails ({why}): see sslmode in docs/running.md"))
        }
        // rustls reports an untrusted certificate, or one for another host, as invalid data.
        sqlx::Error::Io(why) if why.kind() == std::io::ErrorKind::InvalidData => Unusable::refused(format!(
            "PostgreSQL's certificate is not accepted ({why}): its authority belongs in the system's store, or in sslrootcert of \
             DATABASE_URL, and its name must be the host's for sslmode=verify-full"
        )),
        sqlx::Error::Configuration(why) => Unusable::refused(format!("DATABASE_URL can't be used ({why})")),
        _ => Unusable::Unavailable(error.to_string()),
    }
}

async fn check_server(connection: &mut PgConnection) -> Result<(), Unusable> {
    let sql = "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),
                      current_database(), pg_is_in_recovery()";
    let found = sqlx::raw_sql(sql).fetch_one(connection).await.map_err(refusal)?;
    let (version, encoding): (i32, String) = (found.try_get(0).map_err(refusal)?, found.try_get(1).map_err(refusal)?);
    let (database, standby): (String, bool) = (found.try_get(2).map_err(refusal)?, found.try_get(3).map_err(refusal)?);
    if version < MIN_VERSION {
        return Err(Unusable::refused(format!("PostgreSQL {version} is too old: {MIN_VERSION} is needed")));
    }
    if encoding != "UTF8" {
        return Err(Unusable::refused(format!(
            "the encoding of database {database} is {encoding} and must be UTF8, or there are names that it can't keep: CREATE \
             DATABASE ... ENCODING 'UTF8' TEMPLATE template0 makes one that can (LOCALE 'C.UTF-8' where the server's own locale is of \
             another encoding), pg_dump and pg_restore move what there is"
        )));
    }
    if standby {
        return Err(Unusable::Unavailable("it is a standby, which can't be written to".to_owned()));
    }
    Ok(())
}

/// Refuses a pooler that gives each transaction another server connection and does not track prepared statements: a
/// statement would be missing where it is executed, or be that of another client.
///
/// Two client connections on one server connection, or a client connection that changes its server connection, prove
/// such a pooler. It tracks statements if it gives them names of its own on the server.
async fn check_pooler(first: &mut PgConnection, options: &PgConnectOptions, limit: Duration) -> Result<(), Unusable> {
    let mut second = connect(options, limit).await?;
    let checked = async {
        // The simple protocol first: `is_shared` prepares no statement on a connection that may be shared.
        if !is_shared(first, &mut second).await? || tracks_statements(first).await? {
            return Ok(());
        }
        Err(Unusable::refused(
            "the pooler at DATABASE_URL gives each transaction another connection (transaction mode) and does not keep track of \
             prepared statements: set max_prepared_statements above 0 (PgBouncer 1.21 or newer), or use session mode",
        ))
    };
    let checked = checked.await;
    let _ = timeout(CLOSE_TIMEOUT, second.close()).await;
    checked
}

async fn is_shared(first: &mut PgConnection, second: &mut PgConnection) -> Result<bool, Unusable> {
    let (one, other) = (backend(first).await?, backend(second).await?);
    if one == other {
        return Ok(true);
    }
    // A pooler hands out either the connection that was returned last or the one that was returned first: test both.
    for second_ends_last in [true, false] {
        begin(first).await?;
        let now = backend(first).await?;
        match timeout(SECOND_TIMEOUT, begin(second)).await {
            Ok(began) => began?,
            // The second waits for the first to end: both share one server connection.
            Err(_) => return end(first).await.map(|()| true),
        }
        let also_now = backend(second).await?;
        if second_ends_last {
            end(first).await?;
            end(second).await?;
        } else {
            end(second).await?;
            end(first).await?;
        }
        let (after, also_after) = (backend(first).await?, backend(second).await?);
        if now != one || after != one || also_now != other || also_after != other {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The server connection in use: its process id, and the start time of the server, which tells two servers apart.
async fn backend(connection: &mut PgConnection) -> Result<(i32, String), Unusable> {
    let sql = "SELECT pg_backend_pid(), pg_postmaster_start_time()::text";
    let row = sqlx::raw_sql(sql).fetch_one(connection).await.map_err(refusal)?;
    Ok((row.try_get(0).map_err(refusal)?, row.try_get(1).map_err(refusal)?))
}

async fn begin(connection: &mut PgConnection) -> Result<(), Unusable> {
    sqlx::raw_sql("BEGIN").execute(connection).await.map(drop).map_err(refusal)
}

async fn end(connection: &mut PgConnection) -> Result<(), Unusable> {
    sqlx::raw_sql("COMMIT").execute(connection).await.map(drop).map_err(refusal)
}

/// Whether a prepared statement has another name on the server than sqlx gave it. The transaction keeps the server
/// connection.
async fn tracks_statements(connection: &mut PgConnection) -> Result<bool, Unusable> {
    // The probe finds itself: a running statement is in pg_prepared_statements.
    const PROBE: &str = "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%a probe of firstcome%' \
                         AND name NOT LIKE 'sqlx\\_s\\_%'";
    let probe = async {
        let mut transaction = connection.begin().await?;
        let renamed = sqlx::query(PROBE).fetch_optional(&mut *transaction).await?;
        transaction.rollback().await?;
        Ok::<bool, sqlx::Error>(renamed.is_some())
    };
    match probe.await {
        Ok(tracked) => Ok(tracked),
        Err(sqlx::Error::Database(error)) if is_mixed_up(error.code().as_deref()) => Ok(false),
        Err(error) => Err(refusal(error)),
    }
}

/// Whether the SQLSTATE says that a prepared statement exists already (42P05) or is missing (26000): a pooler mixed up
/// the statements of its clients.
pub(super) fn is_mixed_up(code: Option<&str>) -> bool {
    matches!(code, Some("42P05" | "26000"))
}
