//! PostgreSQL's data directory: its place and owner, its creation, and the cleanup after a killed server.
//! `postgres_server` runs the server.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::{
    binaries,
    dirs::{User, make_passable, make_private, run, short_hash},
    postgres_server::PostgresServerConfig,
    process::{self, Process, StopSignal},
};

/// The superuser, and the only role.
pub(super) const ROLE: &str = "firstcome";
/// The file of the superuser's password for TCP, in the data directory, so that it moves with the data.
pub(super) const PASSWORD_FILE: &str = "firstcome.password";

/// The directory of data and socket: `dir` (absolute), or a directory below `/var/tmp` if `user` cannot reach `dir`. A
/// link in `dir` records that choice for later starts.
pub(super) fn base_dir(dir: &Path, user: Option<&User>) -> Result<PathBuf> {
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

/// Creates `base` for the data, and the link to it in `dir`.
pub(super) fn use_elsewhere(dir: &Path, base: &Path) -> Result<()> {
    make_passable(base)?;
    let (link, data) = (dir.join("data"), base.join("data"));
    if !link.is_symlink() {
        // Data without a link belong to a directory that was removed since.
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

/// Creates the data directory if it is missing, and returns the directory of the programs that can open it.
///
/// # Errors
/// There are no such programs, `user` cannot reach them, or they fail.
pub(super) async fn prepare(
    data: &Path,
    config: &PostgresServerConfig,
    user: Option<&User>,
    log: &Path,
) -> Result<PathBuf> {
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
        match config.template.clone() {
            Some(template) => {
                let data = data.to_owned();
                tokio::task::spawn_blocking(move || copy(&template, &data)).await??;
            }
            None => init(&bin, data, config, user, log).await?,
        }
    }
    // An earlier run may have used another user: `nobody`, before there was a `postgres`.
    if let Some(user) = user
        && fs::metadata(data)?.uid() != user.uid
    {
        let owner = format!("{}:{}", user.uid, user.gid);
        let args = ["-R", owner.as_str(), "--"].map(OsStr::new);
        run("chown", &[&args, &[data.as_os_str()][..]].concat())?;
    }
    Ok(bin)
}

/// Creates a data directory, under another name until it is complete.
async fn init(bin: &Path, data: &Path, config: &PostgresServerConfig, user: Option<&User>, log: &Path) -> Result<()> {
    let unfinished = unfinished(data);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    make_private(&unfinished, user)?;
    // Beside the directory, which `initdb` requires to be empty.
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
        // In MiB. Temporary data are copied often, and a log file of the default 16 MiB would double their size.
        .args((!config.fsync).then_some("--wal-segsize=1"));
    Process::spawn("initdb", &mut command, &unfinished, log, StopSignal::Wait)?.finish().await?;
    fs::rename(&password_file, unfinished.join(PASSWORD_FILE))?;
    fs::rename(&unfinished, data)?;
    Ok(())
}

/// Copies the data of a stopped server, under another name until they are complete.
fn copy(template: &Path, data: &Path) -> Result<()> {
    ensure!(!template.join("postmaster.pid").exists(), "the server of the template {} is running", template.display());
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

/// The name of a data directory until it is complete.
pub(super) fn unfinished(data: &Path) -> PathBuf {
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

/// A command that runs `program` as `user`, without the `PG…` variables and the locale of this process.
pub(super) fn server_command(program: &Path, user: Option<&User>) -> Command {
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

/// Removes the remains of a killed server: a segment of shared memory, which would stay until the machine restarts, and
/// the status file, which would prevent the next start if another process had the same process id by then.
pub(super) fn clean_up_killed(data: &Path) {
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

/// Whether process `pid` created the shared memory `segment`, and no process is attached to it: after a restart of the
/// machine, the segment of another server may have the same number.
fn is_abandoned(segment: &str, pid: &str) -> bool {
    fs::read_to_string("/proc/sysvipc/shm").is_ok_and(|table| {
        table.lines().any(|row| {
            // key shmid perms size cpid lpid nattch ...
            let columns: Vec<&str> = row.split_whitespace().collect();
            matches!(columns[..], [_, id, _, _, maker, _, "0", ..] if id == segment && maker == pid)
        })
    })
}
