//! PostgreSQL's data directory: where it is and whose, how it is made, and what a killed server leaves
//! in it. The server that runs on it is `postgres_server`'s.

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
    postgres_server::PostgresConfig,
    process::{self, Process, StopSignal},
};

/// The superuser, and the only role.
pub(super) const ROLE: &str = "firstcome";
/// The superuser's password for TCP, kept in the data directory, so that it moves with the data.
pub(super) const PASSWORD_FILE: &str = "firstcome.password";

/// Where data and socket go: `dir` (absolute), or a directory below `/var/tmp` if `user` cannot reach
/// it. Once there, they stay there: the link in `dir` tells.
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

/// Makes `base`, for the data that should be in `dir`.
pub(super) fn use_elsewhere(dir: &Path, base: &Path) -> Result<()> {
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

/// Makes the data directory if there is none, and returns the programs that can open it.
///
/// # Errors
/// When there are no such programs, `user` cannot reach them, or they fail.
pub(super) async fn prepare(data: &Path, config: &PostgresConfig, user: Option<&User>, log: &Path) -> Result<PathBuf> {
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
async fn init(bin: &Path, data: &Path, config: &PostgresConfig, user: Option<&User>, log: &Path) -> Result<()> {
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
        // In MiB. Throwaway data are copied often, and a log file of the usual 16 would be half of them.
        .args((!config.fsync).then_some("--wal-segsize=1"));
    Process::spawn("initdb", &mut command, &unfinished, log, StopSignal::Wait)?.finish().await?;
    fs::rename(&password_file, unfinished.join(PASSWORD_FILE))?;
    fs::rename(&unfinished, data)?;
    Ok(())
}

/// Copies the data of a stopped server. Under another name until they are complete, likewise.
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

/// The name under which data are made.
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

/// `program` run by `user`, in an environment in which no `PG…` variable or locale of the caller's
/// changes what it does.
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

/// Clears away what a killed server left: a small segment of shared memory, which would stay as long
/// as the machine runs, and its status file. That one would keep the next server from starting if some
/// other process had got its process id by then, as after the machine's restart.
pub(super) fn forget_killed(data: &Path) {
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
