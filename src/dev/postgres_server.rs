//! A private PostgreSQL server: its process and settings. `postgres_data` has the data directory; databases and tables
//! are up to the client.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{
    dirs::{SocketDir, User, make_own, percent_encode},
    postgres_data::{self, PASSWORD_FILE, ROLE},
    process::{self, Process, StopSignal},
};

/// The port in the socket's name, without TCP.
const SOCKET_PORT: u16 = 5432;

/// The settings of a [`PostgresServer`].
#[derive(Clone, Debug)]
pub struct PostgresServerConfig {
    /// The directory of this server, created if it is missing: `data/`, `run/` (the socket), `postgres.log`.
    pub dir: PathBuf,
    /// A TCP port on 127.0.0.1 besides the socket, with a password, which the URL has. `None`: no TCP.
    pub port: Option<u16>,
    /// Whether commits reach the disk. If not (for tests), they survive a crash of the server but not of the machine,
    /// and the drop and the end of this process skip the checkpoint.
    pub fsync: bool,
    /// `max_connections`.
    pub max_connections: u32,
    /// The [`data_dir`](PostgresServer::data_dir) of a stopped server, copied if this server has no data yet: much
    /// faster than `initdb`.
    pub template: Option<PathBuf>,
    /// Further settings, name and value; they override the fields above.
    pub settings: Vec<(String, String)>,
}

impl PostgresServerConfig {
    /// Durable, without TCP, 100 connections.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), port: None, fsync: true, max_connections: 100, template: None, settings: Vec::new() }
    }
}

/// A running or stopped private PostgreSQL with one role, the superuser `firstcome`, and no further databases. A drop
/// stops it and keeps the data.
///
/// Connections over the socket need no password: other users cannot reach it.
#[derive(Debug)]
pub struct PostgresServer {
    /// `dir` is absolute.
    config: PostgresServerConfig,
    user: Option<User>,
    // Before the directory of the socket, so that it is dropped first.
    process: Option<Process>,
    socket: SocketDir,
    data: PathBuf,
}

impl PostgresServer {
    /// Creates the data directory if it is missing, starts the server, and waits until it accepts connections. Under
    /// root, PostgreSQL runs as user `postgres` or `nobody`; if that user cannot reach `dir`, the data are in a
    /// directory below `/var/tmp`, and `dir/data` is a link to it.
    ///
    /// # Errors
    /// No server program is found, another major version created the data, another server uses them, or the server does
    /// not start; the message then has the end of its log.
    pub async fn start(mut config: PostgresServerConfig) -> Result<Self> {
        let user = User::for_postgres()?;
        config.dir = make_own(&config.dir, user.as_ref())?;
        let base = postgres_data::base_dir(&config.dir, user.as_ref())?;
        if base != config.dir {
            postgres_data::use_elsewhere(&config.dir, &base)?;
        }
        let socket = SocketDir::new(&base.join("run"), &socket_name(config.port), user.as_ref())?;
        let mut server = Self { config, user, process: None, socket, data: base.join("data") };
        server.spawn().await?;
        Ok(server)
    }

    async fn spawn(&mut self) -> Result<()> {
        let bin = postgres_data::prepare(&self.data, &self.config, self.user.as_ref(), &self.log_path()).await?;
        let mut command = postgres_data::server_command(&bin.join("postgres"), self.user.as_ref());
        command.arg("-D").arg(&self.data);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        let on_tcp = self.config.port.map_or("", |_| "127.0.0.1");
        set("listen_addresses", on_tcp);
        let port = self.config.port.unwrap_or(SOCKET_PORT);
        set("port", &port.to_string());
        // The value is a list of directories. Quoted, it is one directory with any characters.
        let socket_dir = self.socket.path().to_str().context("the path is not UTF-8")?;
        let quoted = format!("\"{}\"", socket_dir.replace('"', "\"\""));
        set("unix_socket_directories", &quoted);
        set("unix_socket_permissions", "0700");
        set("max_connections", &self.config.max_connections.to_string());
        set("timezone", "UTC");
        set("log_timezone", "UTC");
        // In the data directory and not in /dev/shm, where the memory of a killed server would stay.
        set("dynamic_shared_memory_type", "mmap");
        if !self.config.fsync {
            set("fsync", "off");
            set("full_page_writes", "off");
        }
        for (name, value) in &self.config.settings {
            set(name, value);
        }

        let when_dropped = if self.config.fsync { StopSignal::Int } else { StopSignal::Quit };
        postgres_data::clean_up_killed(&self.data);
        let process = Process::spawn("PostgreSQL", &mut command, &self.data, &self.log_path(), when_dropped)?;
        let pid = process.pid();
        let data = &self.data;
        // Stored before the wait, so that a cancelled start drops it, which ends it.
        self.process.insert(process).until_ready(|| async { is_ready(data, pid) }).await?;
        tracing::debug!(pid, dir = %self.data.display(), "PostgreSQL is ready");
        Ok(())
    }

    /// The URL of a database (`postgres` always exists), for sqlx and `psql`. A restart does not change it.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let database = percent_encode(Path::new(database));
        match self.config.port {
            Some(port) => {
                let password = fs::read_to_string(self.data.join(PASSWORD_FILE)).unwrap_or_default();
                format!("postgres://{ROLE}:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
            }
            // With the port: sqlx would take another from the environment.
            None => format!(
                "postgres://{ROLE}@localhost:{SOCKET_PORT}/{database}?host={}&sslmode=disable",
                percent_encode(self.socket.path())
            ),
        }
    }

    /// The directory of the Unix socket, for `psql -h`.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.socket.path()
    }

    /// The data directory. To simulate a lost disk, kill the server and remove it.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The log of the server.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.config.dir.join("postgres.log")
    }

    /// The first process, unless it was stopped or killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Disconnects the clients, stops the server in order (SIGINT), and waits for its end; SIGKILL after a minute.
    ///
    /// # Errors
    /// The server survives the SIGKILL.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(StopSignal::Int).await,
            None => Ok(()),
        }
    }

    /// Kills the first process and then the others (SIGKILL), and waits for their end.
    ///
    /// # Errors
    /// A process is still there after half a minute.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill().await?;
            // At once: a test may remove the data next, and with them the status file.
            postgres_data::clean_up_killed(&self.data);
        }
        Ok(())
    }

    /// Pauses all processes (SIGSTOP): connections stay open, and nothing answers.
    ///
    /// # Errors
    /// The server is not running.
    pub fn pause(&mut self) -> Result<()> {
        let process = self.process.as_mut();
        process.context("PostgreSQL is not running")?.pause()
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// The server is not running.
    pub fn resume(&mut self) -> Result<()> {
        let process = self.process.as_ref();
        process.context("PostgreSQL is not running")?.resume();
        Ok(())
    }

    /// Makes every write beyond this file size fail, as on a full disk, until a call with `None` or the next start.
    ///
    /// # Errors
    /// The server is not running.
    pub fn limit_file_size(&mut self, bytes: Option<u64>) -> Result<()> {
        let process = self.process.as_mut().context("PostgreSQL is not running")?;
        process.limit_file_size(bytes, self.user.as_ref())
    }

    /// Stops the server in order if it runs, and starts it on the same data at the same URL.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.spawn().await
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.process = None;
        postgres_data::clean_up_killed(&self.data);
    }
}

/// Stops the servers that a killed earlier run left behind in `dir`.
pub(super) async fn stop_leftovers(dir: &Path) -> Result<()> {
    let base = postgres_data::base_dir(dir, User::for_postgres()?.as_ref())?;
    let data = base.join("data");
    process::stop_leftovers(&postgres_data::unfinished(&data), StopSignal::Wait).await?;
    process::stop_leftovers(&data, StopSignal::Int).await
}

fn socket_name(port: Option<u16>) -> String {
    // The longest name in the directory: that of the lock file.
    format!(".s.PGSQL.{}.lock", port.unwrap_or(SOCKET_PORT))
}

/// Whether the server whose first process is `pid` accepts connections, by its status file.
fn is_ready(data: &Path, pid: u32) -> bool {
    fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|status| {
        let mut lines = status.lines();
        // A standby accepts connections too.
        lines.next().and_then(|line| line.parse().ok()) == Some(pid)
            && matches!(lines.nth(6).map(str::trim), Some("ready" | "standby"))
    })
}
