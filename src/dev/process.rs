//! A server process: start with a log, wait, signals, end. Of Redis and PostgreSQL it knows only the names of the
//! programs; the modules of the servers define readiness.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{dirs::User, reaper::ReaperEntry};

/// How long a server may neither end nor get ready. Generous, because it may replay a long log.
const START_TIMEOUT: Duration = Duration::from_secs(600);
/// How long an orderly stop may take before the server is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long PostgreSQL's stop without a checkpoint may take.
const QUIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel may take to end killed processes: a process in a disk write ends after it.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval between two checks of an awaited state.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The size from which a log is renamed at the next start.
const MAX_LOG_BYTES: u64 = 8 << 20;
/// Lines of a log in an error message.
const LOG_TAIL_LINES: usize = 20;

/// The signal for a server that is dropped or left over.
#[derive(Clone, Copy, Debug)]
pub(super) enum StopSignal {
    /// Redis: flush and end.
    Term,
    /// PostgreSQL "fast": disconnect the clients, write a checkpoint, end.
    Int,
    /// PostgreSQL "immediate": end without a checkpoint, but remove the shared memory.
    Quit,
    /// `initdb`: none. It ends by itself in a second or two; an interrupt would leave shared memory behind.
    Wait,
}

impl StopSignal {
    fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Wait => "CONT",
        }
    }

    fn signal(self) -> Signal {
        match self {
            Self::Term => Signal::TERM,
            Self::Int => Signal::INT,
            Self::Quit => Signal::QUIT,
            Self::Wait => Signal::CONT,
        }
    }
}

/// The first process of a server: a child that has not been reaped, so that no other process gets its id.
#[derive(Debug)]
pub(super) struct Process {
    /// For messages: `Redis`, `PostgreSQL`.
    name: &'static str,
    child: Child,
    /// The working directory of the server's processes, and of no other process of that name. Canonical.
    dir: PathBuf,
    log: PathBuf,
    /// The offset in the log at which this process started.
    log_start: u64,
    when_dropped: StopSignal,
    /// Dropped after the server has ended, which removes it from the reaper's list.
    _listed: ReaperEntry,
}

impl Process {
    /// Spawns `command` in `dir`, and appends its output to `log`.
    ///
    /// # Errors
    /// Another server works in `dir` (two would corrupt the data), or `command` cannot be run.
    pub(super) fn spawn(
        name: &'static str,
        command: &mut Command,
        dir: &Path,
        log: &Path,
        when_dropped: StopSignal,
    ) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("cannot reach {}", dir.display()))?;
        if let Some(pid) = servers_in(&dir).first() {
            bail!("{name} (pid {pid}) already works in {}", dir.display());
        }
        let output = open_log(log).with_context(|| format!("cannot open {}", log.display()))?;
        let log_start = output.metadata()?.len();
        // Before the spawn: an unlisted server would outlive a crash of this process.
        let listed = ReaperEntry::server(when_dropped.name(), &dir)?;
        let child = command
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Keeps Ctrl-C of the terminal from the servers: this process drains first, and then stops them.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        Ok(Self { name, child, dir, log: log.to_owned(), log_start, when_dropped, _listed: listed })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` returns true.
    ///
    /// # Errors
    /// The process ends first, or is not ready after ten minutes; the message has the end of its log.
    pub(super) async fn until_ready<F, R>(&mut self, mut ready: F) -> Result<()>
    where
        F: FnMut() -> R,
        R: Future<Output = bool>,
    {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} did not start: {status}\n{}", self.name, self.log_tail());
            }
            if ready().await {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < START_TIMEOUT,
                "{} is running but not ready after {} s\n{}",
                self.name,
                START_TIMEOUT.as_secs(),
                self.log_tail()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits for the end of a process that ends by itself.
    ///
    /// # Errors
    /// It failed, or has not ended after ten minutes; the message has the end of its log.
    pub(super) async fn finish(mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} failed: {status}\n{}", self.name, self.log_tail());
                return Ok(());
            }
            ensure!(begun.elapsed() < START_TIMEOUT, "{} does not end\n{}", self.name, self.log_tail());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether the first process has ended.
    ///
    /// # Errors
    /// The kernel refuses the wait.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends SIGSTOP to all processes of the server.
    ///
    /// # Errors
    /// The server has ended.
    pub(super) fn pause(&mut self) -> Result<()> {
        ensure!(!self.has_ended()?, "{} has ended", self.name);
        // The first process first, because it starts the others.
        self.send(Signal::STOP);
        send_to_all(&self.dir, Signal::STOP);
        Ok(())
    }

    /// Sends SIGCONT to all processes of the server.
    pub(super) fn resume(&self) {
        send_to_all(&self.dir, Signal::CONT);
    }

    /// Limits the size of files that the server's processes can write, as a full disk would. `None`: no limit.
    ///
    /// Runs `prlimit` as the user of the server: in a container, root may not limit the processes of another user.
    ///
    /// # Errors
    /// The server has ended, or `prlimit` is missing.
    pub(super) fn limit_file_size(&mut self, bytes: Option<u64>, user: Option<&User>) -> Result<()> {
        ensure!(!self.has_ended()?, "{} has ended", self.name);
        let bytes = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
        for pid in servers_in(&self.dir) {
            let mut limit = Command::new("prlimit");
            limit.arg(format!("--pid={pid}")).arg(format!("--fsize={bytes}:")).stdin(Stdio::null());
            if let Some(user) = user {
                limit.uid(user.uid).gid(user.gid);
            }
            let done = limit.output().context("cannot run prlimit")?;
            // A process of PostgreSQL may have ended meanwhile.
            let gone = !Path::new(&format!("/proc/{pid}")).exists();
            ensure!(done.status.success() || gone, "prlimit: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }

    /// Stops the server with a signal, and waits for its end; SIGKILL after a minute.
    ///
    /// # Errors
    /// The server is still there half a minute after the SIGKILL.
    pub(super) async fn stop(mut self, how: StopSignal) -> Result<()> {
        self.send(how.signal());
        // A paused process handles no signal.
        self.resume();
        let begun = Instant::now();
        while !self.has_ended()? {
            if begun.elapsed() > STOP_TIMEOUT {
                tracing::warn!(server = self.name, pid = self.pid(), "did not stop: killing it");
                break;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.kill().await
    }

    /// Sends SIGKILL to all processes of the server, and waits for their end.
    ///
    /// # Errors
    /// A process is still there after half a minute.
    pub(super) async fn kill(mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.kill_once()? {
            ensure!(begun.elapsed() < KILL_TIMEOUT, "cannot kill {}", self.name);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Kills once. Returns whether no process is left. The first process is killed first, so that PostgreSQL starts no
    /// others.
    fn kill_once(&mut self) -> Result<bool> {
        if !self.has_ended()? {
            self.child.kill()?;
            return Ok(false);
        }
        Ok(send_to_all(&self.dir, Signal::KILL) == 0)
    }

    fn send(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// The last lines that this process logged, for an error message.
    fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            file.seek(SeekFrom::Start(self.log_start))?;
            let mut text = Vec::new();
            file.take(MAX_LOG_BYTES).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("the end of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

/// Ends the server quickly, not in order as `stop` does. Blocks for some milliseconds.
impl Drop for Process {
    fn drop(&mut self) {
        // A killed PostgreSQL leaves shared memory behind, so it gets SIGQUIT first. Redis has nothing to clean up.
        if !matches!(self.when_dropped, StopSignal::Term) && matches!(self.has_ended(), Ok(false)) {
            if !matches!(self.when_dropped, StopSignal::Wait) {
                self.send(Signal::QUIT);
            }
            self.resume();
            let begun = Instant::now();
            while begun.elapsed() < QUIT_TIMEOUT && matches!(self.has_ended(), Ok(false)) {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < KILL_TIMEOUT && matches!(self.kill_once(), Ok(false)) {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Stops the servers that a killed earlier run left in `dir`. The caller ensures that no running process owns them.
///
/// # Errors
/// They cannot be stopped.
pub(super) async fn stop_leftovers(dir: &Path, how: StopSignal) -> Result<()> {
    let Ok(dir) = dir.canonicalize() else {
        return Ok(());
    };
    let pids = servers_in(&dir);
    if pids.is_empty() {
        return Ok(());
    }
    tracing::warn!(dir = %dir.display(), ?pids, "stopping servers that an earlier run left behind");
    // Only to the first process: to PostgreSQL's children the signal means something else.
    let first = fs::read_to_string(dir.join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.parse().ok())
        .filter(|pid| pids.contains(pid));
    match first {
        Some(pid) => send(pid, how.signal()),
        None => pids.iter().for_each(|pid| send(*pid, how.signal())),
    }
    send_to_all(&dir, Signal::CONT);

    let begun = Instant::now();
    while !servers_in(&dir).is_empty() {
        if begun.elapsed() > STOP_TIMEOUT {
            send_to_all(&dir, Signal::KILL);
        }
        ensure!(
            begun.elapsed() < STOP_TIMEOUT + KILL_TIMEOUT,
            "cannot end the servers {:?} that an earlier run left in {}",
            servers_in(&dir),
            dir.display()
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Sends `signal` to every server process in `dir`. Returns their number.
fn send_to_all(dir: &Path, signal: Signal) -> usize {
    let pids = servers_in(dir);
    pids.iter().for_each(|pid| send(*pid, signal));
    pids.len()
}

/// Sends a signal. Ignores an error, which means that the process has ended.
fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}

/// The server processes that work in `dir` (canonical). Zombies, which have no working directory, do not count; nor
/// does a shell or a `psql` in that directory.
pub(super) fn servers_in(dir: &Path) -> Vec<u32> {
    let is_server = |pid: &u32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)
            && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| {
                ["redis-server", "valkey-server", "postgres", "initdb"].iter().any(|server| name.contains(server))
            })
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(is_server)
        .collect()
}

/// Opens the log for appending, so that a restart keeps the reason of the last end.
fn open_log(path: &Path) -> std::io::Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > MAX_LOG_BYTES) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
