//! Private Redis and PostgreSQL servers, for `firstcome dev` and for the tests.
//!
//! Owns: finding the server programs, where their data, sockets and logs live, starting and
//! stopping them, and that none outlives the process that started it, however that one ends.
//! Leaves to others: installing the programs (`scripts/install-servers`), every word spoken to
//! the servers once they answer (databases, migrations, data), and deciding when to stop.
//!
//! - [`Stack`]: one Redis and one PostgreSQL under a directory, as `firstcome dev` needs them.
//! - [`RedisServer`], [`PostgresServer`]: one server each, which tests also kill, pause and restart.
//! - [`ScratchDir`]: a directory that is gone afterwards, even after `kill -9`.
//!
//! A server is known by its working directory: every process of a server that we start works in
//! its data directory, no other program of that name does, and Linux tells the working directory
//! of each process in `/proc`. So neither a reused process id nor a stale pid file can make us
//! signal a stranger. The module needs Linux.

mod binaries;
mod dirs;
mod postgres_data;
mod postgres_server;
mod process;
mod reaper;
mod redis_server;
mod stack;

pub use binaries::{postgres_bin_dir, redis_server};
pub use dirs::ScratchDir;
pub use postgres_server::{PostgresConfig, PostgresServer};
pub use redis_server::{AppendFsync, RedisConfig, RedisServer};
pub use stack::Stack;

/// A TCP port on 127.0.0.1 that was free a moment ago, for servers that need one (cluster tests).
/// Another process may take it before the server binds it: the server's start then fails.
///
/// # Errors
/// When no port can be bound at all.
pub fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
