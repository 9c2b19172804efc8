//! A private Redis or Valkey server: its process and its directory.

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
    /// Before each reply: no acknowledged write is lost.
    #[default]
    Always,
    /// Once a second: a crash of the machine loses up to a second, a crash of the process nothing.
    EverySecond,
    /// When the system decides: a crash of the machine loses the unflushed writes, a crash of the process nothing.
    Never,
}

/// The settings of a [`RedisServer`].
#[derive(Clone, Debug)]
pub struct RedisServerConfig {
    /// The directory of this server, created if it is missing: `data/`, `redis.sock`, `redis.log`.
    pub dir: PathBuf,
    /// A TCP port on 127.0.0.1 besides the socket, without a password. `None`: no TCP.
    pub port: Option<u16>,
    /// The durability: `appendfsync`.
    pub append_fsync: AppendFsync,
    /// `maxmemory`, without eviction. `None`: no limit.
    pub max_memory_bytes: Option<u64>,
    /// Whether [`limit_file_size`](RedisServer::limit_file_size) will be used: a write beyond the limit is then an
    /// error, as on a full disk, and not a signal that ends the server.
    pub full_disks: bool,
    /// The lines of a Sentinel's configuration file (`sentinel monitor ...`). Empty: a server.
    pub sentinel: Vec<String>,
    /// Further arguments; they override the fields above (`["--appendonly", "no"]`).
    pub extra_args: Vec<String>,
    /// Variables of the server's environment besides those of this process.
    pub environment: Vec<(String, String)>,
}

impl RedisServerConfig {
    /// Without TCP, and as durable as the service requires.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            port: None,
            append_fsync: AppendFsync::default(),
            max_memory_bytes: None,
            full_disks: false,
            sentinel: Vec::new(),
            extra_args: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// A running or stopped private Redis. A drop kills it and keeps the data.
#[derive(Debug)]
pub struct RedisServer {
    /// `dir` is absolute.
    config: RedisServerConfig,
    // Before the directory of the socket, so that it is dropped first.
    process: Option<Process>,
    socket: SocketDir,
}

impl RedisServer {
    /// Starts a server on the data of the directory, and waits until it has loaded them.
    ///
    /// # Errors
    /// No server program is found, another server uses the directory, or the server does not start; the message then
    /// has the end of its log.
    pub async fn start(mut config: RedisServerConfig) -> Result<Self> {
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
            // Redis inherits the ignored signal from `env`. (PostgreSQL ignores it by itself.)
            true => {
                let mut env = Command::new("env");
                env.arg("--ignore-signal=XFSZ").arg(binaries::redis_server()?);
                env
            }
            false => Command::new(binaries::redis_server()?),
        };
        if !config.sentinel.is_empty() {
            // A Sentinel rewrites its configuration file.
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
            // No snapshots besides the append-only file.
            set("save", &"");
            set("maxmemory-policy", &"noeviction");
        }
        if let Some(bytes) = config.max_memory_bytes {
            set("maxmemory", &bytes.to_string());
        }
        command.args(&config.extra_args);
        command.envs(config.environment.iter().map(|(name, value)| (name, value)));

        let process = Process::spawn("Redis", &mut command, &data, &self.log_path(), StopSignal::Term)?;
        // Stored before the wait, so that a cancelled start drops it, which kills it.
        let socket = self.socket_path();
        self.process.insert(process).until_ready(|| answers(&socket)).await?;
        tracing::debug!(pid = self.pid(), socket = %socket.display(), "Redis is ready");
        Ok(())
    }

    /// The URL for redis-rs: `redis://127.0.0.1:PORT/`, or `redis+unix://SOCKET` without a port. A restart does not
    /// change it.
    #[must_use]
    pub fn url(&self) -> String {
        match self.config.port {
            Some(port) => format!("redis://127.0.0.1:{port}/"),
            None => format!("redis+unix://{}", percent_encode(&self.socket_path())),
        }
    }

    /// The Unix socket, for `redis-cli -s`.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.socket.path().join(SOCKET)
    }

    /// The directory of the append-only file. To simulate a lost disk, kill the server and remove it.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.config.dir.join("data")
    }

    /// The log of the server.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.config.dir.join("redis.log")
    }

    /// The process, unless it was stopped or killed.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Stops the server in order (SIGTERM), and waits for its end; SIGKILL after a minute.
    ///
    /// # Errors
    /// The server survives the SIGKILL.
    pub async fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.stop(StopSignal::Term).await,
            None => Ok(()),
        }
    }

    /// Kills the server (SIGKILL), and waits for its end.
    ///
    /// # Errors
    /// The server is still there after half a minute.
    pub async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Pauses the server (SIGSTOP): connections stay open, and nothing answers.
    ///
    /// # Errors
    /// The server is not running.
    pub fn pause(&mut self) -> Result<()> {
        self.process.as_mut().context("Redis is not running")?.pause()
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// The server is not running.
    pub fn resume(&mut self) -> Result<()> {
        let process = self.process.as_ref().context("Redis is not running")?;
        process.resume();
        Ok(())
    }

    /// Makes every write beyond this file size fail, as on a full disk, until a call with `None` or the next start.
    /// Requires [`full_disks`](RedisServerConfig::full_disks).
    ///
    /// # Errors
    /// The server is not running.
    pub fn limit_file_size(&mut self, bytes: Option<u64>) -> Result<()> {
        self.process.as_mut().context("Redis is not running")?.limit_file_size(bytes, None)
    }

    /// Adds to [`RedisServerConfig::extra_args`], for the next start.
    pub fn add_args(&mut self, args: &[&str]) {
        self.config.extra_args.extend(args.iter().map(|arg| (*arg).to_owned()));
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

/// Stops the server that a killed earlier run left behind in `dir`.
pub(super) async fn stop_leftovers(dir: &Path) -> Result<()> {
    process::stop_leftovers(&dir.join("data"), StopSignal::Term).await
}

/// Whether a server answers at `socket`, and has loaded its data.
async fn answers(socket: &Path) -> bool {
    let ping = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut reply = [0; 64];
        let length = stream.read(&mut reply).await?;
        io::Result::Ok(reply[..length].to_vec())
    };
    match tokio::time::timeout(Duration::from_secs(1), ping).await {
        // Any other error (a missing password, an unavailable primary) comes from a server that is ready.
        Ok(Ok(reply)) => !reply.is_empty() && !reply.starts_with(b"-LOADING"),
        _ => false,
    }
}
