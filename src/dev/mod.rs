//! Private Redis and PostgreSQL servers, for `firstcome dev` and for the tests. Needs Linux.
//!
//! The module finds the server programs, places their data, sockets and logs, starts and stops them, and guarantees
//! that no server outlives the process that started it, however that process ends. It does not install the programs
//! (`scripts/install-servers`), and does not talk to a server that is ready.
//!
//! - [`Stack`]: one Redis and one PostgreSQL under a directory, as `firstcome dev` needs them.
//! - [`RedisServer`], [`PostgresServer`]: one server each, which tests also kill, pause and restart.
//! - [`ScratchDir`]: a directory that is removed afterwards, even after `kill -9`.
//!
//! A server is identified by its working directory in `/proc`: every process of a server works in its data directory,
//! and no other program of that name does. So neither a reused process id nor a stale pid file leads to a signal to a
//! foreign process.

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
pub use postgres_server::{PostgresServer, PostgresServerConfig};
pub use redis_server::{AppendFsync, RedisServer, RedisServerConfig};
pub use stack::Stack;

/// A TCP port on 127.0.0.1 that was free a moment ago, for servers that need one (cluster tests). If another process
/// takes it first, the start of the server fails.
///
/// # Errors
/// No port can be bound.
pub fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
