//! Ends the servers of this process when this process ends, even by `kill -9`.
//!
//! A shell process (`reaper.sh`) waits at the other end of a pipe. Any end of this process closes the pipe; the shell
//! then ends the listed servers and removes the listed directories. An orderly stop is up to the servers' own methods:
//! a dropped [`ReaperEntry`] is off the list.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// The running reaper. Never dropped: the kernel closes the pipe at the end of the process.
static REAPER: Mutex<Option<Child>> = Mutex::new(None);

/// A line of the reaper's list. A drop removes it.
#[derive(Debug)]
pub(super) struct ReaperEntry(Vec<u8>);

impl ReaperEntry {
    /// Lists a server: at the end of this process, the server whose processes work in `dir` gets `signal` (`TERM`,
    /// `INT`, `QUIT`), and SIGKILL after a minute. List a server *before* its spawn, so that it can never be left over.
    ///
    /// # Errors
    /// The reaper cannot be started or reached, or the path contains a line break.
    pub(super) fn server(signal: &str, dir: &Path) -> Result<Self> {
        Self::add(&format!("server {signal} "), dir)
    }

    /// Lists a directory: it is removed with its contents after the end of this process and of the servers.
    ///
    /// # Errors
    /// As [`ReaperEntry::server`].
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

impl Drop for ReaperEntry {
    fn drop(&mut self) {
        // Without a reaper there is no list, so an error needs no handling.
        let _ = self.send(b'-');
    }
}

/// Starts the shell. Std opens the pipe close-on-exec, so that no server keeps it open.
fn spawn() -> io::Result<Child> {
    Command::new("/bin/sh")
        // In the environment, so that a list of processes does not show the whole script.
        .args(["-c", "eval \"$FIRSTCOME_REAPER\"", "firstcome-reaper"])
        .env("FIRSTCOME_REAPER", include_str!("reaper.sh"))
        .current_dir("/")
        .stdin(Stdio::piped())
        // A reader of this process's output waits for its end, and must not wait for the reaper.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}
