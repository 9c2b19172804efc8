//! A private Redis, or Valkey. Owns the process and its directory; what is said to it is for
//! whoever connects.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{
    binaries,
    dirs::{SocketDir, make_own, make_private, percent_encode},
    process::{self, Process, StopSignal},
};

const SOCKET: &str = "redis.sock";

/// When an append-only file is flushed to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppendFsync {
    /// Before each reply: what was acknowledged is kept.
    #[default]
    Always,
    /// Once a second: up to that much is lost with the machine, but nothing with the process.
    EverySecond,
    /// When the system pleases; likewise.
    Never,
}

/// What a [`RedisServer`] is started with.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// The server's own directory, made if it is missing: `data/`, `redis.sock`, `redis.log`.
    pub dir: PathBuf,
    /// A TCP port on 127.0.0.1, without a password, beside the socket. `None`: no TCP.
    pub port: Option<u16>,
    /// See [`AppendFsync`].
    pub append_fsync: AppendFsync,
    /// `maxmemory`. `None`: no limit. Nothing is ever evicted.
    pub max_memory_bytes: Option<u64>,
    /// Whether [`limit_file_size`](RedisServer::limit_file_size) will be used: a write beyond the limit is then an error to
    /// the server, as on a full disk, and not a signal that ends it.
    pub full_disks: bool,
    /// Lines of a configuration file (`sentinel monitor ...`) that make it a Sentinel, which keeps no data. Empty: a server.
    pub sentinel: Vec<String>,
    /// Further arguments; they override what the fields above say (`["--appendonly", "no"]`).
    pub extra_args: Vec<String>,
}

impl RedisConfig {
    /// A socket only, and the durability that the service asks for.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            port: None,
            append_fsync: AppendFsync::default(),
            max_memory_bytes: None,
            full_disks: false,
            sentinel: Vec::new(),
            extra_args: Vec::new(),
        }
    }
}

/// A running, or ended, private Redis. Dropped, it is killed; its data stay.
#[derive(Debug)]
pub struct RedisServer {
    /// Its `dir` is absolute.
    config: RedisConfig,
    // Before the directory of its socket, so that it is dropped first.
    process: Option<Process>,
    socket: SocketDir,
}

impl RedisServer {
    /// Starts a server on what is in the directory, and waits until it has loaded it.
    ///
    /// # Errors
    /// When no server program is found, another server uses the directory, or it does not start;
    /// the message then shows the end of its log.
    pub async fn start(mut config: RedisConfig) -> Result<Self> {
        config.dir = make_own(&config.dir, None)?;
        let socket = SocketDir::new(&config.dir, SOCKET, None)?;
        let mut server = Self { config, process: None, socket };
        server.spawn().await?;
        Ok(server)
    }

    async fn spawn(&mut self) -> Result<()> {
        let config = &self.config;
        let data = self.data_dir();
        make_private(&data, None)?;
        let mut command = match config.full_disks {
            // PostgreSQL ignores this signal by itself; Redis needs somebody to do it before.
            true => {
                let mut env = Command::new("env");
                env.arg("--ignore-signal=XFSZ").arg(binaries::redis_server()?);
                env
            }
            false => Command::new(binaries::redis_server()?),
        };
        if !config.sentinel.is_empty() {
            // It writes what it learns into its file.
            let file = data.join("sentinel.conf");
            std::fs::write(&file, config.sentinel.join("\n") + "\n")?;
            command.arg(file).arg("--sentinel");
        }
        let mut set = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            command.arg(format!("--{name}")).arg(value.as_ref());
        };
        set("bind", &"127.0.0.1");
        set("port", &config.port.unwrap_or(0).to_string());
        set("unixsocket", &self.socket_path());
        set("unixsocketperm", &"700");
        if config.sentinel.is_empty() {
            set("appendonly", &"yes");
            set(
                "appendfsync",
                &match config.append_fsync {
                    AppendFsync::Always => "always",
                    AppendFsync::EverySecond => "everysec",
                    AppendFsync::Never => "no",
                },
            );
            // The append-only file is the one copy: no snapshots beside it.
            set("save", &"");
            set("maxmemory-policy", &"noeviction");
        }
        if let Some(bytes) = config.max_memory_bytes {
            set("maxmemory", &bytes.to_string());
        }
        command.args(&config.extra_args);

        let process = Process::spawn("Redis", &mut command, &data, &self.log_path(), StopSignal::Term)?;
        // Kept from here on: given up while it starts, it is killed by its drop.
        let socket = self.socket_path();
        self.process.insert(process).until_ready(|| answers(&socket)).await?;
        tracing::debug!(pid = self.pid(), socket = %socket.display(), "Redis is ready");
        Ok(())
    }

    /// What redis-rs connects to: `redis://127.0.0.1:PORT/`, or `redis+unix://SOCKET` without a
    /// port. It stays the same when the server is restarted.
    #[must_use]
    pub fn url(&self) -> String {
        match self.config.port {
            Some(port) => format!("redis://127.0.0.1:{port}/"),
            None => format!("redis+unix://{}", percent_encode(&self.socket_path())),
        }
    }

    /// The Unix socket, for `redis-cli -s`. There is always one.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.socket.path().join(SOCKET)
    }

    /// Where the append-only file is. To lose the disk: kill the server and remove this.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.config.dir.join("data")
    }

    /// What the server has to say.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.config.dir.join("redis.log")
    }

    /// The process, unless it was stopped or killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends it in good order (SIGTERM) and waits for that; SIGKILL after a minute.
    ///
    /// # Errors
    /// When even that does not end it.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(StopSignal::Term).await,
            None => Ok(()),
        }
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it is not, half a minute later.
    pub async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Freezes it (SIGSTOP): its connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process.as_mut().context("Redis is not running")?.pause()
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&mut self) -> Result<()> {
        let process = self.process.as_ref().context("Redis is not running")?;
        process.resume();
        Ok(())
    }

    /// Makes every write beyond this size of a file fail, as on a full disk, until it is lifted with `None` or the server
    /// is started anew. Only with [`full_disks`](RedisConfig::full_disks).
    ///
    /// # Errors
    /// When it is not running.
    pub fn limit_file_size(&mut self, bytes: Option<u64>) -> Result<()> {
        self.process.as_mut().context("Redis is not running")?.limit_file_size(bytes, None)
    }

    /// Adds to [`RedisConfig::extra_args`], from its next start on.
    pub fn add_args(&mut self, args: &[&str]) {
        self.config.extra_args.extend(args.iter().map(|arg| (*arg).to_owned()));
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

/// Ends what a killed earlier run left behind in `dir`.
pub(super) async fn stop_leftovers(dir: &Path) -> Result<()> {
    process::stop_leftovers(&dir.join("data"), StopSignal::Term).await
}

/// Whether a server answers at `socket` and has loaded its data.
async fn answers(socket: &Path) -> bool {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut reply = [0; 64];
        let length = stream.read(&mut reply).await?;
        io::Result::Ok(reply[..length].to_vec())
    };
    match tokio::time::timeout(Duration::from_secs(1), ask).await {
        // Any other refusal (a password is wanted, a primary is away) comes from a server that is up.
        Ok(Ok(reply)) => !reply.is_empty() && !reply.starts_with(b"-LOADING"),
        _ => false,
    }
}
