//! What a PostgreSQL must be before anything is asked of it: reachable, of a version that is supported, in UTF-8, the primary; and
//! a pooler before it must be one that does not mix up whose statement is whose.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};
use tokio::time::timeout;

/// The oldest version that is supported.
const OLDEST: i32 = 15;
/// How long a pooler may keep a second transaction waiting while a first one is open, before it counts as having one connection.
const SECOND_TIMEOUT: Duration = Duration::from_secs(1);

/// Why PostgreSQL can't be worked with.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Waiting may help: it is not there, or not yet.
    #[error("PostgreSQL can't be reached at DATABASE_URL: {0}")]
    Unavailable(String),
    /// It stays as it is until somebody changes a setting, here or there.
    #[error("{0}")]
    Refused(String),
}

impl Unusable {
    fn refused(reason: impl Into<String>) -> Self {
        Unusable::Refused(reason.into())
    }
}

/// Connects once, and looks.
///
/// # Errors
/// The reason, and what to do about it.
pub(super) async fn check(options: &PgConnectOptions, patience: Duration) -> Result<(), Unusable> {
    let mut first = connect(options, patience).await?;
    let looked = timeout(patience, async {
        check_server(&mut first).await?;
        check_pooler(&mut first, options, patience).await
    });
    let looked = looked.await.unwrap_or_else(|_| Err(no_answer(patience)));
    // Whoever is at the other end hears of it, or does not.
    let _ = timeout(Duration::from_secs(1), first.close()).await;
    looked
}

fn no_answer(patience: Duration) -> Unusable {
    Unusable::Unavailable(format!("no answer within {patience:?}"))
}

async fn connect(options: &PgConnectOptions, patience: Duration) -> Result<PgConnection, Unusable> {
    match timeout(patience, PgConnection::connect_with(options)).await {
        Ok(connected) => connected.map_err(refusal),
        Err(_) => Err(no_answer(patience)),
    }
}

/// What a failure to connect, or of the first questions, means.
fn refusal(error: sqlx::Error) -> Unusable {
    match &error {
        sqlx::Error::Database(refused) => {
            let code = refused.code().unwrap_or_default();
            match code.get(..2) {
                // 28: who we are; 3D: no such database; 42: what we may not do.
                Some("28") => Unusable::refused(format!(
                    "PostgreSQL does not let us in ({refused}): the user or the password in DATABASE_URL is wrong"
                )),
                Some("3D") => Unusable::refused(format!(
                    "PostgreSQL has no such database ({refused}): create it, or correct DATABASE_URL"
                )),
                Some("42" | "0A") => Unusable::refused(format!("PostgreSQL refuses us ({refused})")),
                // A pooler's way to say what it does not know.
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
        // So rustls says that a certificate is not trusted, or is another host's.
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
    if version < OLDEST {
        return Err(Unusable::refused(format!("PostgreSQL {version} is too old: {OLDEST} is needed")));
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

/// A pooler that gives each transaction another connection must know of prepared statements: else one is not there where it is
/// executed, or is somebody else's.
///
/// Two of our connections that are on the same one of the server's, or one of ours that changes it, are proof of such a pooler. It
/// tracks statements where it calls them by names of its own.
async fn check_pooler(
    first: &mut PgConnection,
    options: &PgConnectOptions,
    patience: Duration,
) -> Result<(), Unusable> {
    let mut second = connect(options, patience).await?;
    let checked = async {
        // Before anything is prepared on a connection that may be shared.
        if !is_shared(first, &mut second).await? || tracks_statements(first).await? {
            return Ok(());
        }
        Err(Unusable::refused(
            "the pooler at DATABASE_URL gives each transaction another connection (transaction mode) and does not keep track of \
             prepared statements: set max_prepared_statements above 0 (PgBouncer 1.21 or newer), or use session mode",
        ))
    };
    let checked = checked.await;
    let _ = timeout(Duration::from_secs(1), second.close()).await;
    checked
}

async fn is_shared(first: &mut PgConnection, second: &mut PgConnection) -> Result<bool, Unusable> {
    let (one, other) = (backend(first).await?, backend(second).await?);
    if one == other {
        return Ok(true);
    }
    // A pooler gives out what came back last, or first: so both ways.
    for second_ends_last in [true, false] {
        begin(first).await?;
        let now = backend(first).await?;
        match timeout(SECOND_TIMEOUT, begin(second)).await {
            Ok(began) => began?,
            // It waits for ours to end: there is one connection for both.
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

/// Which connection of the server's this one is on now; with the server's start, so that two servers differ.
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

/// Whether what is prepared has another name on the server than ours; in a transaction, which stays where it is.
async fn tracks_statements(connection: &mut PgConnection) -> Result<bool, Unusable> {
    // A statement that runs is among those that are prepared.
    const PROBE: &str = "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%a probe of firstcome%' \
                         AND name NOT LIKE 'sqlx\\_s\\_%'";
    let asked = async {
        let mut transaction = connection.begin().await?;
        let named = sqlx::query(PROBE).fetch_optional(&mut *transaction).await?;
        transaction.rollback().await?;
        Ok::<bool, sqlx::Error>(named.is_some())
    };
    match asked.await {
        Ok(tracked) => Ok(tracked),
        Err(sqlx::Error::Database(error)) if is_mixed_up(error.code().as_deref()) => Ok(false),
        Err(error) => Err(refusal(error)),
    }
}

/// What a server says to a statement that is there already, or is not there: a pooler has mixed up whose it is.
pub(super) fn is_mixed_up(code: Option<&str>) -> bool {
    matches!(code, Some("42P05" | "26000"))
}
