//! The Redis and the PostgreSQL of `firstcome dev`, under one directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{
    dirs::{User, make_own},
    postgres_server::{self, PostgresServer, PostgresServerConfig},
    redis_server::{self, RedisServer, RedisServerConfig},
};

/// The database of the service. The caller creates it first, over [`admin_database_url`](Stack::admin_database_url).
const DATABASE: &str = "firstcome";

/// A running Redis and PostgreSQL, durable, on Unix sockets only. The next start in the same directory uses the same
/// data.
#[derive(Debug)]
pub struct Stack {
    redis: RedisServer,
    postgres: PostgresServer,
    /// Held while the servers run; the kernel releases it at any end of the process.
    _lock: File,
}

impl Stack {
    /// Starts both servers under `dir` (`.firstcome`), created if it is missing: `redis/`, `postgres/`, `lock`. Stops
    /// the servers that a killed earlier run left behind there.
    ///
    /// # Errors
    /// Another process runs its servers there ("already running"), or a server does not start.
    pub async fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // The lock comes first: under it, no running process owns a server in this directory.
        let lock = lock(&dir.join("lock"))?;
        let redis = make_own(&dir.join("redis"), None)?;
        let postgres = make_own(&dir.join("postgres"), User::for_postgres()?.as_ref())?;
        tokio::try_join!(redis_server::stop_leftovers(&redis), postgres_server::stop_leftovers(&postgres))?;
        let (redis, postgres) = tokio::try_join!(
            RedisServer::start(RedisServerConfig::new(redis)),
            PostgresServer::start(PostgresServerConfig::new(postgres)),
        )?;
        Ok(Self { redis, postgres, _lock: lock })
    }

    /// The URL of Redis, for redis-rs.
    #[must_use]
    pub fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// The URL of the database `firstcome`, which the caller creates, for sqlx.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// The URL of the database `postgres`, which always exists, for sqlx.
    #[must_use]
    pub fn admin_database_url(&self) -> String {
        self.postgres.url("postgres")
    }

    /// The socket of Redis, for `redis-cli -s`.
    #[must_use]
    pub fn redis_socket(&self) -> PathBuf {
        self.redis.socket_path()
    }

    /// The directory of PostgreSQL's socket, for `psql -h DIR -U firstcome`.
    #[must_use]
    pub fn postgres_socket_dir(&self) -> &Path {
        self.postgres.socket_dir()
    }

    /// Stops both servers in order. A drop ends them at once. Neither loses an acknowledged write.
    ///
    /// # Errors
    /// A server cannot be stopped.
    pub async fn stop(mut self) -> Result<()> {
        let (redis, postgres) = tokio::join!(self.redis.stop(), self.postgres.stop());
        redis.and(postgres)
    }
}

/// Takes the lock, and writes the process id into it for the error message of a second process.
fn lock(path: &Path) -> Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            file.read_to_string(&mut owner)?;
            bail!(
                "already running (pid {}), with its data in {}",
                owner.trim(),
                path.parent().unwrap_or(path).display()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}
