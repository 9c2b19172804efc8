//! Finds the server programs. `scripts/install-servers`, which installs them, searches the same places in the same
//! order.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The oldest supported major version. The scripts begin with `#!lua`, a syntax error in older versions.
const MIN_REDIS_VERSION: u32 = 7;
/// The oldest supported major version.
const MIN_POSTGRES_VERSION: u32 = 15;

const HOW_TO_INSTALL: &str = "run `make install`, or install them yourself: \
     `apt-get install -y --no-install-recommends redis-server postgresql`";

/// The Redis (or Valkey) server program: `REDIS_SERVER_BIN`, else `redis-server` or
/// `valkey-server` on `PATH`, else the one in the project's cache.
///
/// # Errors
/// None of them is of version 7 or newer. The message says how to install one.
pub fn redis_server() -> Result<PathBuf> {
    if let Some(given) = env_path("REDIS_SERVER_BIN") {
        let found = major_version(&given);
        if found.is_none_or(|major| major < MIN_REDIS_VERSION) {
            bail!(
                "REDIS_SERVER_BIN={} is not a Redis or Valkey server of version {MIN_REDIS_VERSION} or newer",
                given.display()
            );
        }
        return Ok(given);
    }
    let mut candidates: Vec<PathBuf> = ["redis-server", "valkey-server"]
        .into_iter()
        .flat_map(|name| path_dirs().map(move |dir| dir.join(name)))
        .collect();
    candidates.push(cache_dir()?.join("valkey/bin/valkey-server"));
    candidates
        .into_iter()
        .find(|path| major_version(path).is_some_and(|major| major >= MIN_REDIS_VERSION))
        .with_context(|| {
            format!(
                "no redis-server or valkey-server of version {MIN_REDIS_VERSION} or newer found: {HOW_TO_INSTALL}, \
                 or set REDIS_SERVER_BIN to the program"
            )
        })
}

/// The directory that holds PostgreSQL's `postgres` and `initdb`: `POSTGRES_BIN_DIR`, else the newest of Debian's
/// `/usr/lib/postgresql/*/bin`, else one on `PATH`, else the project's cache. With `data_version`, the first of them of
/// this major version: only the major version that created a data directory can open it.
///
/// # Errors
/// None is of version 15 or newer, or of `data_version`. The message says how to install one.
pub fn postgres_bin_dir(data_version: Option<u32>) -> Result<PathBuf> {
    if let Some(given) = env_path("POSTGRES_BIN_DIR") {
        let found = postgres_version(&given);
        if found.is_none_or(|major| major < MIN_POSTGRES_VERSION) {
            bail!(
                "POSTGRES_BIN_DIR={} does not hold `postgres` and `initdb` of PostgreSQL {MIN_POSTGRES_VERSION} or newer",
                given.display()
            );
        }
        return Ok(given);
    }
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse().ok()?;
            Some((major, entry.path().join("bin")))
        })
        .collect();
    debian.sort_by_key(|(major, _)| std::cmp::Reverse(*major));

    let found: Vec<(u32, PathBuf)> = debian
        .into_iter()
        .map(|(_, dir)| dir)
        .chain(path_dirs())
        .chain([cache_dir()?.join("postgres/bin")])
        .filter_map(|dir| Some((postgres_version(&dir)?, dir)))
        .filter(|(major, _)| *major >= MIN_POSTGRES_VERSION)
        .collect();
    let newest = found.first().with_context(|| {
        format!(
            "no PostgreSQL {MIN_POSTGRES_VERSION} or newer found: {HOW_TO_INSTALL}, \
             or set POSTGRES_BIN_DIR to the directory that holds `postgres` and `initdb`"
        )
    })?;
    match data_version {
        None => Ok(newest.1.clone()),
        Some(wanted) => {
            found.iter().find(|(major, _)| *major == wanted).map(|(_, dir)| dir.clone()).with_context(|| {
                format!(
                    "the data was made by PostgreSQL {wanted}, but only {} was found, in {}: install \
                     PostgreSQL {wanted}, or set POSTGRES_BIN_DIR, or remove the data directory to begin anew",
                    newest.0,
                    newest.1.display()
                )
            })
        }
    }
}

fn env_path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The absolute directories of `PATH`. The server changes its working directory, after which a relative one would be
/// another.
fn path_dirs() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).filter(|dir| dir.is_absolute()).collect::<Vec<_>>().into_iter()
}

/// The directory in which `scripts/install-servers` unpacks the programs that it fetches.
fn cache_dir() -> Result<PathBuf> {
    let dir = env_path("FIRSTCOME_CACHE_DIR").unwrap_or_else(|| ".firstcome/cache".into());
    std::path::absolute(&dir).with_context(|| format!("cannot resolve {}", dir.display()))
}

fn postgres_version(bin_dir: &Path) -> Option<u32> {
    is_executable(&bin_dir.join("initdb")).then_some(())?;
    major_version(&bin_dir.join("postgres"))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The major version in the output of `PROGRAM --version`: `Redis server v=7.0.15 ...`, `Valkey server v=9.1.2 ...` or
/// `postgres (PostgreSQL) 15.18 ...`. `None` if the program is missing, does not run, or prints something else.
fn major_version(program: &Path) -> Option<u32> {
    is_executable(program).then_some(())?;
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_major_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_major_version(text: &str) -> Option<u32> {
    let version = text.split_once(" v=").or_else(|| text.split_once("(PostgreSQL) "))?.1;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse_major_version;

    #[test]
    fn version_parsed_from_server_output() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64";
        assert_eq!(parse_major_version(redis), Some(7));
        let valkey = "Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64";
        assert_eq!(parse_major_version(valkey), Some(9));
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(parse_major_version(debian), Some(15));
        assert_eq!(parse_major_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major_version("something else 9.1"), None);
    }
}
