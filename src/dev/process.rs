//! One server process: started with its log, watched, signalled, ended. Knows nothing of Redis or
//! PostgreSQL but the names of their programs; when a server is ready is for its own module.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{dirs::User, reaper::Entry};

/// A starting server may replay a long log. It is given up on when it ends, not when it is slow;
/// this only bounds one that neither ends nor gets ready.
const START_LIMIT: Duration = Duration::from_secs(600);
/// How long a server may take over its orderly end before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long PostgreSQL may take over the end that it makes of itself without a checkpoint.
const QUIT_LIMIT: Duration = Duration::from_secs(10);
/// How long the kernel may take to end killed processes. One in the middle of a disk write ends after it.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How often a state is looked at that we wait for.
const POLL: Duration = Duration::from_millis(5);
/// A log longer than this is set aside at the server's next start.
const LOG_LIMIT_BYTES: u64 = 8 << 20;
/// How much of a log an error message shows.
const LOG_TAIL_LINES: usize = 20;

/// What ends a server that is dropped, or left over, without a word from us.
#[derive(Clone, Copy, Debug)]
pub(super) enum StopSignal {
    /// Redis: flush and end.
    Term,
    /// PostgreSQL "fast": disconnect the clients, write a checkpoint, end.
    Int,
    /// PostgreSQL "immediate": end without a checkpoint, but remove the shared memory.
    Quit,
    /// `initdb`: nothing. It ends by itself in a second or two; interrupted, it would leave its
    /// servers' shared memory behind.
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

/// A server's first process, a child of ours that has not been waited for: so its id is its own.
#[derive(Debug)]
pub(super) struct Process {
    /// For messages: `Redis`, `PostgreSQL`.
    name: &'static str,
    child: Child,
    /// Where the server's processes, and no others of that name, work. Canonical.
    dir: PathBuf,
    log: PathBuf,
    /// Where in the log this process's part begins.
    log_start: u64,
    when_dropped: StopSignal,
    /// Takes the server off the reaper's list, after it has ended.
    _listed: Entry,
}

impl Process {
    /// Spawns `command` in `dir`, its output appended to `log`.
    ///
    /// # Errors
    /// When another server works in `dir` (two would ruin the data), or `command` cannot be run.
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
        // Before the spawn: a server that is not on the list yet would outlive us if we died now.
        let listed = Entry::server(when_dropped.name(), &dir)?;
        let child = command
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A terminal's Ctrl-C is for us: we drain first, then end the servers.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        Ok(Self { name, child, dir, log: log.to_owned(), log_start, when_dropped, _listed: listed })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the process ends first, or is not ready after ten minutes; the message shows the end
    /// of its log.
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
                begun.elapsed() < START_LIMIT,
                "{} is running but not ready after {} s\n{}",
                self.name,
                START_LIMIT.as_secs(),
                self.log_tail()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for the end of one that ends by itself.
    ///
    /// # Errors
    /// When it failed, or has not ended after ten minutes; the message shows the end of its log.
    pub(super) async fn finish(mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{} failed: {status}\n{}", self.name, self.log_tail());
                return Ok(());
            }
            ensure!(begun.elapsed() < START_LIMIT, "{} does not end\n{}", self.name, self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// SIGSTOP to all of the server's processes.
    ///
    /// # Errors
    /// When the server has ended.
    pub(super) fn pause(&mut self) -> Result<()> {
        ensure!(!self.has_ended()?, "{} has ended", self.name);
        // The first one first: it starts the others.
        self.send(Signal::STOP);
        send_to_all(&self.dir, Signal::STOP);
        Ok(())
    }

    /// SIGCONT to all of the server's processes.
    pub(super) fn resume(&self) {
        send_to_all(&self.dir, Signal::CONT);
    }

    /// What none of the server's processes can write a file beyond: the same to them as a full disk. `None`: no limit.
    ///
    /// By the program `prlimit`, as the server's own user: in a container root may not limit another user's processes.
    ///
    /// # Errors
    /// When the server has ended, or there is no such program.
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
            // One of PostgreSQL's may have ended meanwhile.
            let gone = !Path::new(&format!("/proc/{pid}")).exists();
            ensure!(done.status.success() || gone, "prlimit: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }

    /// Asks it to end, and waits for it.
    ///
    /// # Errors
    /// When it has not even ended half a minute after a SIGKILL.
    pub(super) async fn stop(mut self, how: StopSignal) -> Result<()> {
        self.send(how.signal());
        // A paused process would sleep on the signal.
        self.resume();
        let begun = Instant::now();
        while !self.has_ended()? {
            if begun.elapsed() > STOP_LIMIT {
                tracing::warn!(server = self.name, pid = self.pid(), "did not stop: killing it");
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.kill().await
    }

    /// SIGKILL to all of the server's processes, and waits until they are gone.
    ///
    /// # Errors
    /// When they are not, half a minute later.
    pub(super) async fn kill(mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.kill_once()? {
            ensure!(begun.elapsed() < KILL_LIMIT, "cannot kill {}", self.name);
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// One round of killing: whether nothing is left. The first process goes first, after which
    /// PostgreSQL starts no others.
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

    /// The end of what this process has logged, for an error message.
    fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            file.seek(SeekFrom::Start(self.log_start))?;
            let mut text = Vec::new();
            file.take(LOG_LIMIT_BYTES).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("the end of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

/// Ends it quickly rather than orderly: who wants that calls `stop`. Blocks for the milliseconds
/// that it takes.
impl Drop for Process {
    fn drop(&mut self) {
        // Killed, PostgreSQL would leave its shared memory behind. Redis has nothing to tidy up.
        if !matches!(self.when_dropped, StopSignal::Term) && matches!(self.has_ended(), Ok(false)) {
            if !matches!(self.when_dropped, StopSignal::Wait) {
                self.send(Signal::QUIT);
            }
            self.resume();
            let begun = Instant::now();
            while begun.elapsed() < QUIT_LIMIT && matches!(self.has_ended(), Ok(false)) {
                std::thread::sleep(POLL);
            }
        }
        let begun = Instant::now();
        while begun.elapsed() < KILL_LIMIT && matches!(self.kill_once(), Ok(false)) {
            std::thread::sleep(POLL);
        }
    }
}

/// Ends the servers that a killed earlier run left in `dir`; the caller knows that nobody owns them.
///
/// # Errors
/// When they can not be ended.
pub(super) async fn stop_leftovers(dir: &Path, how: StopSignal) -> Result<()> {
    let Ok(dir) = dir.canonicalize() else {
        return Ok(());
    };
    let pids = servers_in(&dir);
    if pids.is_empty() {
        return Ok(());
    }
    tracing::warn!(dir = %dir.display(), ?pids, "stopping servers that an earlier run left behind");
    // PostgreSQL's children have other uses for the signal: only the first process gets it.
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
        if begun.elapsed() > STOP_LIMIT {
            send_to_all(&dir, Signal::KILL);
        }
        ensure!(
            begun.elapsed() < STOP_LIMIT + KILL_LIMIT,
            "cannot end the servers {:?} that an earlier run left in {}",
            servers_in(&dir),
            dir.display()
        );
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Sends `signal` to every server process in `dir` and says how many there were.
fn send_to_all(dir: &Path, signal: Signal) -> usize {
    let pids = servers_in(dir);
    pids.iter().for_each(|pid| send(*pid, signal));
    pids.len()
}

/// A process that is gone needs no signal, so an error is none.
fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, signal);
    }
}

/// The server processes that work in `dir` (canonical). Zombies have no working directory and do
/// not count; nor does a person's shell or `psql` that stands there.
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

/// Appends, so that a restart does not wipe out why the last run ended.
fn open_log(path: &Path) -> std::io::Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_LIMIT_BYTES) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
