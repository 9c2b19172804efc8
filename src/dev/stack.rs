//! What `firstcome dev` runs on: a Redis and a PostgreSQL of its own, under one directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{
    dirs::{User, make_own},
    postgres_server::{self, PostgresConfig, PostgresServer},
    redis_server::{self, RedisConfig, RedisServer},
};

/// The service's database. Making it is the caller's first act, over
/// [`admin_database_url`](Stack::admin_database_url).
const DATABASE: &str = "firstcome";

/// A running Redis and PostgreSQL, durable, on Unix sockets only. The next start in the same
/// directory goes on with the same data.
#[derive(Debug)]
pub struct Stack {
    redis: RedisServer,
    postgres: PostgresServer,
    /// Held as long as the servers run, and let go by the kernel however we end.
    _lock: File,
}

impl Stack {
    /// Starts both under `dir` (`.firstcome`), made if it is missing: `redis/`, `postgres/`, `lock`.
    /// Servers that a killed earlier run left behind there are stopped first.
    ///
    /// # Errors
    /// When another process runs its own there ("already running"), or one of the servers does not
    /// start.
    pub async fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        // First of all: only under the lock are servers that run here nobody's.
        let lock = lock(&dir.join("lock"))?;
        let redis = make_own(&dir.join("redis"), None)?;
        let postgres = make_own(&dir.join("postgres"), User::for_postgres()?.as_ref())?;
        tokio::try_join!(redis_server::stop_leftovers(&redis), postgres_server::stop_leftovers(&postgres))?;
        let (redis, postgres) = tokio::try_join!(
            RedisServer::start(RedisConfig::new(redis)),
            PostgresServer::start(PostgresConfig::new(postgres)),
        )?;
        Ok(Self { redis, postgres, _lock: lock })
    }

    /// For redis-rs.
    #[must_use]
    pub fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// For sqlx: the database `firstcome`, once the caller has made it.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// For sqlx: the database `postgres`, which is there from the start.
    #[must_use]
    pub fn admin_database_url(&self) -> String {
        self.postgres.url("postgres")
    }

    /// For `redis-cli -s`.
    #[must_use]
    pub fn redis_socket(&self) -> PathBuf {
        self.redis.socket_path()
    }

    /// For `psql -h DIR -U firstcome`.
    #[must_use]
    pub fn postgres_socket_dir(&self) -> &Path {
        self.postgres.socket_dir()
    }

    /// Ends both in good order. Dropped instead, both are ended at once; nothing that they
    /// acknowledged is lost either way.
    ///
    /// # Errors
    /// When one of them cannot be ended.
    pub async fn stop(mut self) -> Result<()> {
        let (redis, postgres) = tokio::join!(self.redis.stop(), self.postgres.stop());
        redis.and(postgres)
    }
}

/// Takes the lock and writes our process id into it, for the message of the one who comes second.
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
