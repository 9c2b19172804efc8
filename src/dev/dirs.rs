//! Private and temporary directories, and the directories of a server's data and socket.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;

use super::reaper::ReaperEntry;

/// The maximum length of a Unix socket's path: Linux's 108 bytes less the closing zero.
const MAX_SOCKET_PATH_LEN: usize = 107;

/// A new directory, removed on drop, or by the reaper if the process is killed. Servers in it have to be dropped first:
/// declare them before it.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
    /// Dropped after the directory is removed.
    _listed: ReaperEntry,
}

impl ScratchDir {
    /// Creates one below the system's temporary directory, or below `/tmp` if PostgreSQL's user cannot reach the
    /// former.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn new() -> Result<Self> {
        let mut parent = std::env::temp_dir();
        if User::for_postgres()?.is_some_and(|user| !user.can_reach(&parent.join("any"))) {
            parent = "/tmp".into();
        }
        Self::named(&parent, "firstcome-test")
    }

    fn named(parent: &Path, prefix: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let parent = parent.canonicalize().with_context(|| format!("cannot reach {}", parent.display()))?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unique = short_hash(
            &parent,
            &[
                u64::from(std::process::id()),
                u64::from(COUNT.fetch_add(1, Ordering::Relaxed)),
                u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
            ],
        );
        let path = parent.join(format!("{prefix}-{unique}"));
        // Listed before it exists, so that it is removed whenever this process is killed.
        let listed = ReaperEntry::remove(&path)?;
        // Under root, PostgreSQL runs as another user, who has to pass through.
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        DirBuilder::new().mode(mode).create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path, _listed: listed })
    }

    /// The path: absolute, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.path.display(), %error, "cannot remove a scratch directory");
        }
    }
}

/// The directory of a server's socket.
#[derive(Debug)]
pub(super) struct SocketDir {
    path: PathBuf,
    /// The temporary directory, if the path of the wanted one is too long.
    _scratch: Option<ScratchDir>,
}

impl SocketDir {
    /// `wanted`, made private to `owner`, if the path of a socket `file_name` in it is short enough; else a temporary
    /// directory under `/tmp`.
    ///
    /// # Errors
    /// The directory cannot be created, or belongs to another user.
    pub(super) fn new(wanted: &Path, file_name: &str, owner: Option<&User>) -> Result<Self> {
        let length = wanted.as_os_str().len() + 1 + file_name.len();
        if length <= MAX_SOCKET_PATH_LEN {
            make_private(wanted, owner)?;
            return Ok(Self { path: wanted.to_owned(), _scratch: None });
        }
        // A new name for each run: the reaper of an earlier run may still remove that run's directory.
        let scratch = ScratchDir::named(Path::new("/tmp"), "firstcome")?;
        make_private(scratch.path(), owner)?;
        Ok(Self { path: scratch.path().to_owned(), _scratch: Some(scratch) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The user that PostgreSQL runs as under root: it refuses to run as root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    /// `None` if this process does not run as root: PostgreSQL then runs as the same user.
    ///
    /// # Errors
    /// This process runs as root, and the system has neither a user `postgres` nor `nobody`.
    pub(super) fn for_postgres() -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let find = |name: &str| passwd.lines().find_map(|line| parse_passwd(line, name));
        match find("postgres").or_else(|| find("nobody")) {
            Some(user) => Ok(Some(user)),
            None => bail!(
                "PostgreSQL does not run as root, and there is no user `postgres` or `nobody`: \
                 run as an ordinary user"
            ),
        }
    }

    /// Whether this user can pass through every directory above `path`. Ignores access lists, so it may return false
    /// needlessly.
    pub(super) fn can_reach(&self, path: &Path) -> bool {
        path.ancestors().skip(1).all(|dir| {
            fs::metadata(dir).is_ok_and(|meta| {
                let bit = if meta.uid() == self.uid {
                    0o100
                } else if meta.gid() == self.gid {
                    0o010
                } else {
                    0o001
                };
                meta.mode() & bit != 0
            })
        })
    }
}

fn parse_passwd(line: &str, name: &str) -> Option<User> {
    let mut fields = line.split(':');
    if fields.next()? != name {
        return None;
    }
    let mut numbers = fields.skip(1);
    Some(User { name: name.to_owned(), uid: numbers.next()?.parse().ok()?, gid: numbers.next()?.parse().ok()? })
}

/// Creates `path` with its parents, private to this process's user, and returns it absolute and without symbolic links.
/// With a `user`, who has data in it, others may pass through to their own files.
///
/// # Errors
/// It cannot be created, or belongs to another user.
pub(super) fn make_own(path: &Path, user: Option<&User>) -> Result<PathBuf> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    let path = path.canonicalize()?;
    ensure_owner(&path, geteuid().as_raw())?;
    // In one step, because a server of an earlier run may use a directory below.
    let mode = if user.is_some() { 0o711 } else { 0o700 };
    fs::set_permissions(&path, Permissions::from_mode(mode))?;
    Ok(path)
}

/// Creates `path` or takes it over, private to `owner`, or to this process's user.
///
/// # Errors
/// It cannot be created, is a symbolic link, or belongs to a third user: in a directory like `/tmp` any user could have
/// created it.
pub(super) fn make_private(path: &Path, owner: Option<&User>) -> Result<()> {
    claim(path, owner, 0o700)
}

/// Creates `path` or takes it over, and lets others pass through to their own files.
///
/// # Errors
/// As [`make_private`].
pub(super) fn make_passable(path: &Path) -> Result<()> {
    claim(path, None, 0o711)
}

fn claim(path: &Path, owner: Option<&User>, mode: u32) -> Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(path)?;
            if owner.is_none_or(|user| user.uid != meta.uid()) || !meta.is_dir() {
                ensure_owner(path, geteuid().as_raw())?;
            }
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
    }
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    if let Some(user) = owner {
        chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("cannot give {} to user {}", path.display(), user.name))?;
    }
    Ok(())
}

fn ensure_owner(path: &Path, uid: u32) -> Result<()> {
    let meta = fs::symlink_metadata(path)?;
    ensure!(
        meta.is_dir() && meta.uid() == uid,
        "{} is not a directory of our own (its owner is uid {}, ours is {uid})",
        path.display(),
        meta.uid()
    );
    Ok(())
}

/// Runs a command.
///
/// # Errors
/// It cannot be run, or fails; the message has its error output.
pub(super) fn run(program: &str, args: &[&OsStr]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A short hash of `path` and `more` (64-bit FNV-1a, the same in every run and build).
pub(super) fn short_hash(path: &Path, more: &[u64]) -> String {
    let more = more.iter().flat_map(|number| number.to_le_bytes());
    let hash = path
        .as_os_str()
        .as_bytes()
        .iter()
        .copied()
        .chain(more)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")[..12].to_owned()
}

/// Percent-encodes `path` for a URL, except for letters, digits, `/`, `.`, `_` and `-`.
pub(super) fn percent_encode(path: &Path) -> String {
    let mut encoded = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_parsed_from_passwd_file() {
        let line = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash";
        let user = parse_passwd(line, "postgres").map(|user| (user.uid, user.gid));
        assert_eq!(user, Some((101, 104)));
        assert_eq!(parse_passwd(line, "nobody"), None);
    }

    #[test]
    fn path_encoded_for_url() {
        let path = Path::new("/tmp/a b/é+%?");
        assert_eq!(percent_encode(path), "/tmp/a%20b/%C3%A9%2B%25%3F");
    }

    #[test]
    fn scratch_directory_removed_on_drop() -> Result<()> {
        let scratch = ScratchDir::new()?;
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "")?;
        drop(scratch);
        assert!(!path.exists());
        Ok(())
    }
}
