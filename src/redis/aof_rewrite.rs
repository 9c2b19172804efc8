//! The rewrite of the append-only file of a server that has started again.
//!
//! A power loss may tear the file's last transaction. The server then starts without it, but leaves its first commands in the file: what
//! is appended completes them, and the next start applies half of a decision that never was. (So do Redis 7.0 and 8 and Valkey 9; see
//! valkey-io/valkey#4342.) Nothing tells that a file was torn. Therefore no process decides on a server before the server has rewritten
//! its file once since its start.

use std::time::{Duration, Instant};

use redis::{RedisError, aio::MultiplexedConnection};

use super::server_error::Means;

/// Why a partition does not decide yet.
const REASON: &str = "Redis has started again, and rewrites its append-only file";

/// How long a check waits for the end of a rewrite, and how often it asks.
const WAIT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The persistence of a server.
#[derive(Debug, PartialEq, Eq)]
enum Rewrite {
    /// Done, or not needed.
    Done,
    InProgress,
    /// Not begun since the start of the server.
    Due,
}

impl Rewrite {
    /// Parses the reply to `INFO persistence`.
    fn read(info: &str) -> Rewrite {
        let number = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse::<u64>().ok())
        };
        let runs = number("aof_rewrite_in_progress") == Some(1);
        match number("aof_rewrites") {
            _ if number("aof_enabled") != Some(1) => Rewrite::Done,
            Some(0) if number("aof_rewrite_scheduled") == Some(1) => Rewrite::InProgress,
            Some(0) => Rewrite::Due,
            Some(1) if runs => Rewrite::InProgress,
            // It began later than the first one has ended, or the server does not count.
            _ => Rewrite::Done,
        }
    }
}

/// Has the server rewrite its file, if that is due, and waits for the end. Returns why its partitions can't decide yet, if it takes
/// longer than [`WAIT`].
///
/// A server that refuses the command, or whose rewrite fails, is used all the same: nothing is wrong with most files.
///
/// # Errors
/// Redis is unavailable.
pub(super) async fn complete(link: &mut MultiplexedConnection) -> Result<Option<String>, RedisError> {
    let began = Instant::now();
    loop {
        let info: String = redis::cmd("INFO").arg("persistence").query_async(link).await?;
        match Rewrite::read(&info) {
            Rewrite::Done => return Ok(None),
            Rewrite::InProgress => {}
            Rewrite::Due if begin(link).await? => {}
            Rewrite::Due => return Ok(None),
        }
        if began.elapsed() >= WAIT {
            return Ok(Some(REASON.to_owned()));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Begins a rewrite. Returns false if the server refuses.
async fn begin(link: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    let begun = redis::cmd("BGREWRITEAOF").query_async::<String>(link).await;
    match begun {
        Ok(_) => {
            tracing::info!("{REASON}");
            Ok(true)
        }
        // Another process was faster.
        Err(error) if error.detail().is_some_and(|detail| detail.contains("in progress")) => Ok(true),
        Err(error) if matches!(Means::of(&error), Means::Wrong | Means::Forbidden) => {
            tracing::warn!(
                %error,
                "Redis has started again and does not rewrite its append-only file: if a power loss has torn the file, the next \
                 start applies half a decision. The user needs +bgrewriteaof (docs/running.md)"
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrite_due_once_since_start() {
        let read = |enabled: u8, rewrites: u8, runs: u8, scheduled: u8| {
            Rewrite::read(&format!(
                "# Persistence\r\naof_enabled:{enabled}\r\naof_rewrites:{rewrites}\r\naof_rewrite_in_progress:{runs}\r\n\
                 aof_rewrite_scheduled:{scheduled}\r\n"
            ))
        };
        assert_eq!(read(0, 0, 0, 0), Rewrite::Done);
        assert_eq!(read(1, 0, 0, 0), Rewrite::Due);
        assert_eq!(read(1, 0, 0, 1), Rewrite::InProgress);
        assert_eq!(read(1, 1, 1, 0), Rewrite::InProgress);
        assert_eq!(read(1, 1, 0, 0), Rewrite::Done);
        assert_eq!(read(1, 2, 1, 0), Rewrite::Done);
        assert_eq!(Rewrite::read("aof_enabled:1\r\n"), Rewrite::Done);
    }
}
