//! A private PostgreSQL. Owns the process and its settings; the data directory is `postgres_data`'s, and
//! databases, tables and every other word of SQL are for whoever connects.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{
    dirs::{SocketDir, User, make_own, percent_encode},
    postgres_data::{self, PASSWORD_FILE, ROLE},
    process::{self, Process, StopSignal},
};

/// Without TCP the port is only a part of the socket's name.
const SOCKET_PORT: u16 = 5432;

/// What a [`PostgresServer`] is started with.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// The server's own directory, made if it is missing: `data/`, `run/` (the socket),
    /// `postgres.log`.
    pub dir: PathBuf,
    /// A TCP port on 127.0.0.1 beside the socket, with a password that the URL carries. `None`: no
    /// TCP.
    pub port: Option<u16>,
    /// Whether commits reach the disk. Without, they survive the end of the server's processes, but
    /// not the machine's: for tests. It also makes the end of ours, and a drop, skip the checkpoint.
    pub fsync: bool,
    /// `max_connections`.
    pub max_connections: u32,
    /// A stopped server's [`data_dir`](PostgresServer::data_dir), to be copied where this one has no
    /// data yet, databases and all: much faster than making a new one. `None`: `initdb`.
    pub template: Option<PathBuf>,
    /// Further settings, name and value; they override what the fields above say.
    pub settings: Vec<(String, String)>,
}

impl PostgresConfig {
    /// A socket only, durable, 100 connections.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), port: None, fsync: true, max_connections: 100, template: None, settings: Vec::new() }
    }
}

/// A running, or ended, private PostgreSQL with one role, the superuser `firstcome`, and no databases
/// of ours. Dropped, it is ended without a checkpoint; its data stay.
///
/// Local connections need no password, and nobody else can reach the socket.
#[derive(Debug)]
pub struct PostgresServer {
    /// Its `dir` is absolute.
    config: PostgresConfig,
    user: Option<User>,
    // Before the directory of its socket, so that it is dropped first.
    process: Option<Process>,
    socket: SocketDir,
    data: PathBuf,
}

impl PostgresServer {
    /// Makes the data directory if there is none, starts the server on it, and waits until it has
    /// recovered and takes connections. As root, which PostgreSQL refuses to run as, it runs as user
    /// `postgres` or `nobody`; if that user cannot reach `dir`, the data go to a directory below
    /// `/var/tmp` instead, and `dir/data` points there.
    ///
    /// # Errors
    /// When no server program is found, the data were made by another major version, another server
    /// uses them, or it does not start; the message then shows the end of its log.
    pub async fn start(mut config: PostgresConfig) -> Result<Self> {
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
        // The value is a list of directories; quoted, it is one with any characters.
        let socket_dir = self.socket.path().to_str().context("the path is not UTF-8")?;
        let quoted = format!("\"{}\"", socket_dir.replace('"', "\"\""));
        set("unix_socket_directories", &quoted);
        set("unix_socket_permissions", "0700");
        set("max_connections", &self.config.max_connections.to_string());
        set("timezone", "UTC");
        set("log_timezone", "UTC");
        // In the data directory instead of /dev/shm, where a killed server's would stay.
        set("dynamic_shared_memory_type", "mmap");
        if !self.config.fsync {
            set("fsync", "off");
            set("full_page_writes", "off");
        }
        for (name, value) in &self.config.settings {
            set(name, value);
        }

        let when_dropped = if self.config.fsync { StopSignal::Int } else { StopSignal::Quit };
        postgres_data::forget_killed(&self.data);
        let process = Process::spawn("PostgreSQL", &mut command, &self.data, &self.log_path(), when_dropped)?;
        let pid = process.pid();
        let data = &self.data;
        // Kept from here on: given up while it starts, it is ended by its drop.
        self.process.insert(process).until_ready(|| async { is_ready(data, pid) }).await?;
        tracing::debug!(pid, dir = %self.data.display(), "PostgreSQL is ready");
        Ok(())
    }

    /// What sqlx (and `psql`) connect to, for a database that exists (`postgres` always does). It
    /// stays the same when the server is restarted.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let database = percent_encode(Path::new(database));
        match self.config.port {
            Some(port) => {
                let password = fs::read_to_string(self.data.join(PASSWORD_FILE)).unwrap_or_default();
                format!("postgres://{ROLE}:{password}@127.0.0.1:{port}/{database}?sslmode=disable")
            }
            // The port too, or sqlx would take one from the environment.
            None => format!(
                "postgres://{ROLE}@localhost:{SOCKET_PORT}/{database}?host={}&sslmode=disable",
                percent_encode(self.socket.path())
            ),
        }
    }

    /// The directory of the Unix socket, for `psql -h`. There is always one.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.socket.path()
    }

    /// The data directory. To lose the disk: kill the server and remove this.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// What the server has to say.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.config.dir.join("postgres.log")
    }

    /// The first process, unless it was stopped or killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Disconnects the clients, ends it in good order (SIGINT) and waits for that; SIGKILL after a
    /// minute.
    ///
    /// # Errors
    /// When even that does not end it.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(StopSignal::Int).await,
            None => Ok(()),
        }
    }

    /// SIGKILL to the first process and then to the others, and waits until all are gone.
    ///
    /// # Errors
    /// When they are not, half a minute later.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill().await?;
            // At once: a test may remove the data next, and with them what tells of it.
            postgres_data::forget_killed(&self.data);
        }
        Ok(())
    }

    /// Freezes all its processes (SIGSTOP): its connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&mut self) -> Result<()> {
        let process = self.process.as_mut();
        process.context("PostgreSQL is not running")?.pause()
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&mut self) -> Result<()> {
        let process = self.process.as_ref();
        process.context("PostgreSQL is not running")?.resume();
        Ok(())
    }

    /// Makes every write beyond this size of a file fail, as on a full disk, until it is lifted with `None` or the server
    /// is started anew.
    ///
    /// # Errors
    /// When it is not running.
    pub fn limit_file_size(&mut self, bytes: Option<u64>) -> Result<()> {
        let process = self.process.as_mut().context("PostgreSQL is not running")?;
        process.limit_file_size(bytes, self.user.as_ref())
    }

    /// Starts it again on the same data, at the same URL, after stopping it in good order if it runs.
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
        postgres_data::forget_killed(&self.data);
    }
}

/// Ends what a killed earlier run left behind in `dir`.
pub(super) async fn stop_leftovers(dir: &Path) -> Result<()> {
    let base = postgres_data::base_dir(dir, User::for_postgres()?.as_ref())?;
    let data = base.join("data");
    process::stop_leftovers(&postgres_data::unfinished(&data), StopSignal::Wait).await?;
    process::stop_leftovers(&data, StopSignal::Int).await
}

fn socket_name(port: Option<u16>) -> String {
    // The longest name in that directory.
    format!(".s.PGSQL.{}.lock", port.unwrap_or(SOCKET_PORT))
}

/// Whether the server whose first process is `pid` takes connections: its status file says so.
fn is_ready(data: &Path, pid: u32) -> bool {
    fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|status| {
        let mut lines = status.lines();
        // A standby takes connections as well.
        lines.next().and_then(|line| line.parse().ok()) == Some(pid)
            && matches!(lines.nth(6).map(str::trim), Some("ready" | "standby"))
    })
}
