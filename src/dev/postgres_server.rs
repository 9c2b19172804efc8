//! A private PostgreSQL. Owns the process, the data directory and who runs it; databases, tables
//! and every other word of SQL are for whoever connects.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::binaries;
use super::dirs::{SocketDir, User, make_own, make_passable, make_private, percent_encode, run, short_hash};
use super::process::{self, Process, StopSignal};

/// The superuser, and the only role.
const ROLE: &str = "firstcome";
/// Without TCP the port is only a part of the socket's name.
const SOCKET_PORT: u16 = 5432;
/// The superuser's password for TCP, kept in the data directory, so that it moves with the data.
const PASSWORD_FILE: &str = "firstcome.password";

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
        let base = base_dir(&config.dir, user.as_ref())?;
        if base != config.dir {
            use_elsewhere(&config.dir, &base)?;
        }
        let socket = SocketDir::new(&base.join("run"), &socket_name(config.port), user.as_ref())?;
        let mut server = Self { config, user, process: None, socket, data: base.join("data") };
        server.spawn().await?;
        Ok(server)
    }

    async fn spawn(&mut self) -> Result<()> {
        let bin = self.prepare_data().await?;
        let mut command = server_command(&bin.join("postgres"), self.user.as_ref());
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
        forget_killed(&self.data);
        let process = Process::spawn("PostgreSQL", &mut command, &self.data, &self.log_path(), when_dropped)?;
        let pid = process.pid();
        let data = &self.data;
        // Kept from here on: given up while it starts, it is ended by its drop.
        self.process.insert(process).until_ready(|| async { is_ready(data, pid) }).await?;
        tracing::debug!(pid, dir = %self.data.display(), "PostgreSQL is ready");
        Ok(())
    }

    /// Makes the data directory if there is none, and returns the programs that can open it.
    async fn prepare_data(&self) -> Result<PathBuf> {
        let (data, user) = (&self.data, self.user.as_ref());
        let version = fs::read_to_string(data.join("PG_VERSION")).ok().and_then(|text| text.trim().parse().ok());
        let bin = binaries::postgres_bin_dir(version)?;
        if let Some(user) = user {
            ensure!(
                user.can_reach(&bin.join("postgres")),
                "PostgreSQL has to run as user {}, who cannot reach its programs in {}: install them \
                 elsewhere, or set POSTGRES_BIN_DIR or FIRSTCOME_CACHE_DIR",
                user.name,
                bin.display()
            );
        }
        if version.is_none() {
            match self.config.template.clone() {
                Some(template) => {
                    let data = data.clone();
                    tokio::task::spawn_blocking(move || copy_data(&template, &data)).await??;
                }
                None => self.init_data(&bin).await?,
            }
        }
        // An earlier run may have been another user's: `nobody`, before there was a `postgres`.
        if let Some(user) = user
            && fs::metadata(data)?.uid() != user.uid
        {
            let owner = format!("{}:{}", user.uid, user.gid);
            let args = ["-R", owner.as_str(), "--"].map(OsStr::new);
            run("chown", &[&args, &[data.as_os_str()][..]].concat())?;
        }
        Ok(bin)
    }

    /// Makes a data directory. Under another name until it is complete, so that there is never half a one.
    async fn init_data(&self, bin: &Path) -> Result<()> {
        let (data, user) = (&self.data, self.user.as_ref());
        let unfinished = unfinished(data);
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        make_private(&unfinished, user)?;
        // `initdb` wants the directory empty, so the password waits beside it.
        let password_file = data.with_extension("password");
        write_password(&password_file, user)?;
        let mut command = server_command(&bin.join("initdb"), user);
        command
            .arg("-D")
            .arg(&unfinished)
            .arg(format!("--username={ROLE}"))
            .args(["--encoding=UTF8", "--locale=C"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg("--pwfile")
            .arg(&password_file)
            .args(["--no-sync", "--no-instructions"])
            // Throwaway data are copied and removed often: in MiB, their log's first file is most of them.
            .args((!self.config.fsync).then_some("--wal-segsize=1"));
        Process::spawn("initdb", &mut command, &unfinished, &self.log_path(), StopSignal::Wait)?.finish().await?;
        fs::rename(&password_file, unfinished.join(PASSWORD_FILE))?;
        fs::rename(&unfinished, data)?;
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
        match self.process.take() {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
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
        forget_killed(&self.data);
    }
}

/// Ends what a killed earlier run left behind in `dir`.
pub(super) async fn stop_leftovers(dir: &Path) -> Result<()> {
    let base = base_dir(dir, User::for_postgres()?.as_ref())?;
    let data = base.join("data");
    process::stop_leftovers(&unfinished(&data), StopSignal::Wait).await?;
    process::stop_leftovers(&data, StopSignal::Int).await
}

/// Where data and socket go: `dir` (absolute), or a directory below `/var/tmp` if `user` cannot reach
/// it. Once there, they stay there: the link in `dir` tells.
fn base_dir(dir: &Path, user: Option<&User>) -> Result<PathBuf> {
    let elsewhere = Path::new("/var/tmp").join(format!("firstcome-{}", short_hash(dir, &[])));
    let data = fs::symlink_metadata(dir.join("data")).ok();
    match (data, user) {
        (Some(data), _) if data.is_symlink() => Ok(elsewhere),
        (Some(_), Some(user)) if !user.can_reach(dir) => {
            bail!("PostgreSQL has to run as user {}, who cannot reach {} any more", user.name, dir.display())
        }
        (None, Some(user)) if !user.can_reach(dir) => Ok(elsewhere),
        _ => Ok(dir.to_owned()),
    }
}

/// Makes `base`, for the data that should be in `dir`.
fn use_elsewhere(dir: &Path, base: &Path) -> Result<()> {
    make_passable(base)?;
    let (link, data) = (dir.join("data"), base.join("data"));
    if !link.is_symlink() {
        // Without their link, what is there belonged to a directory that was removed since.
        if data.exists() {
            tracing::warn!(dir = %data.display(), "removing the data of a directory that is gone");
            fs::remove_dir_all(&data)?;
        }
        symlink(&data, &link)?;
    }
    tracing::info!(
        "PostgreSQL's data are in {}: the user that it runs as cannot reach {}",
        base.display(),
        dir.display()
    );
    Ok(())
}

/// Copies the data of a stopped server. Under another name until they are complete, likewise.
fn copy_data(template: &Path, data: &Path) -> Result<()> {
    ensure!(
        !template.join("postmaster.pid").exists(),
        "the server of the template {} runs, or was killed",
        template.display()
    );
    let unfinished = unfinished(data);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    let args = [OsStr::new("-a"), OsStr::new("--")];
    let paths = [template.as_os_str(), unfinished.as_os_str()];
    run("cp", &[args, paths].concat())?;
    fs::rename(&unfinished, data)?;
    Ok(())
}

/// The name under which data are made.
fn unfinished(data: &Path) -> PathBuf {
    data.with_extension("unfinished")
}

fn write_password(path: &Path, user: Option<&User>) -> Result<()> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(password.as_bytes())?;
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

/// `program` run by `user`, in an environment in which no `PG…` variable or locale of the caller's
/// changes what it does.
fn server_command(program: &Path, user: Option<&User>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    for name in ["PATH", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// Clears away what a killed server left: a small segment of shared memory, which would stay as long
/// as the machine runs, and its status file. That one would keep the next server from starting if some
/// other process had got its process id by then, as after the machine's restart.
fn forget_killed(data: &Path) {
    let file = data.join("postmaster.pid");
    let Ok(status) = fs::read_to_string(&file) else {
        return;
    };
    if !process::servers_in(data).is_empty() {
        return;
    }
    let mut lines = status.lines();
    let pid = lines.next().unwrap_or_default();
    let segment = lines.nth(5).and_then(|line| line.split_whitespace().nth(1));
    if let Some(segment) = segment
        && is_abandoned(segment, pid)
    {
        let _ = run("ipcrm", &["-m", segment].map(OsStr::new));
    }
    let _ = fs::remove_file(file);
}

/// Whether the shared memory `segment` was made by process `pid` and is attached to by none: after
/// the machine's restart another server's may have the same number.
fn is_abandoned(segment: &str, pid: &str) -> bool {
    fs::read_to_string("/proc/sysvipc/shm").is_ok_and(|table| {
        table.lines().any(|row| {
            // key shmid perms size cpid lpid nattch ...
            let columns: Vec<&str> = row.split_whitespace().collect();
            matches!(columns[..], [_, id, _, _, maker, _, "0", ..] if id == segment && maker == pid)
        })
    })
}

fn socket_name(port: Option<u16>) -> String {
    // The longest name in that directory.
    format!(".s.PGSQL.{}.lock", port.unwrap_or(SOCKET_PORT))
}

/// Whether the server whose first process is `pid` takes connections: its status file says so.
fn is_ready(data: &Path, pid: u32) -> bool {
    fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|status| {
        let mut lines = status.lines();
        lines.next().and_then(|line| line.parse().ok()) == Some(pid) && lines.nth(6).map(str::trim) == Some("ready")
    })
}
