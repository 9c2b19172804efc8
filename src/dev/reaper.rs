//! Ends what this process started when this process ends, even by `kill -9`.
//!
//! Owns: one shell process per process of ours (`reaper.sh`), which waits at the other end of a
//! pipe. Whatever ends us closes the pipe, and the shell then ends the listed servers and removes
//! the listed directories. Leaves the ordinary, orderly stop to the servers' own methods; each
//! [`Entry`] is off the list once it is dropped.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// The running reaper. Never dropped: the kernel closes the pipe, which is the point.
static REAPER: Mutex<Option<Child>> = Mutex::new(None);

/// One line on the reaper's list; dropping it takes the line off.
#[derive(Debug)]
pub(super) struct Entry(Vec<u8>);

impl Entry {
    /// When we end, the server whose processes work in `dir` gets `signal` (`TERM`, `INT`, `QUIT`),
    /// and after a minute SIGKILL. To be listed *before* the server is spawned, so that there is no
    /// moment in which it could be left over.
    ///
    /// # Errors
    /// When the reaper cannot be started or reached, or the path contains a line break.
    pub(super) fn server(signal: &str, dir: &Path) -> Result<Self> {
        Self::add(&format!("server {signal} "), dir)
    }

    /// When we end, and after the servers have, `path` is removed with all that is in it.
    ///
    /// # Errors
    /// As [`Entry::server`].
    pub(super) fn remove(path: &Path) -> Result<Self> {
        Self::add("remove ", path)
    }

    fn add(kind: &str, path: &Path) -> Result<Self> {
        let path_bytes = path.as_os_str().as_bytes();
        ensure!(path.is_absolute() && !path_bytes.contains(&b'\n'), "unusable path {}", path.display());
        let entry = Self([kind.as_bytes(), path_bytes].concat());
        entry.send(b'+').context("cannot reach the shell that stops the servers when this process ends")?;
        Ok(entry)
    }

    fn send(&self, sign: u8) -> io::Result<()> {
        let mut reaper = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
        let child = match &mut *reaper {
            Some(child) => child,
            none => none.insert(spawn()?),
        };
        let pipe = child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(&[&[sign], self.0.as_slice(), b"\n"].concat())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Without a reaper nothing is listed any more: there is nothing to take off.
        let _ = self.send(b'-');
    }
}

/// The pipe's writing end is close-on-exec, as all that std opens: no server holds it open.
fn spawn() -> io::Result<Child> {
    Command::new("/bin/sh")
        // By the environment, so that a list of processes does not show all of it.
        .args(["-c", "eval \"$FIRSTCOME_REAPER\"", "firstcome-reaper"])
        .env("FIRSTCOME_REAPER", include_str!("reaper.sh"))
        .current_dir("/")
        .stdin(Stdio::piped())
        // Whoever reads our output waits for its end, and must not wait for the reaper.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}
