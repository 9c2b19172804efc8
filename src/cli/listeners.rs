//! The sockets that a process serves on.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::{config::HttpConfig, http::server::listener};

/// The sockets of a process that serves the API.
pub(super) struct Listeners {
    pub public: TcpListener,
    /// The operators' own, where OPS_BIND_ADDR is set.
    pub operators: Option<TcpListener>,
}

impl Listeners {
    /// Binds BIND_ADDR, and OPS_BIND_ADDR where it is set.
    ///
    /// # Errors
    /// As [`bind`].
    pub fn bind(http: &HttpConfig) -> anyhow::Result<Self> {
        let operators = match http.ops_bind_addr {
            Some(address) => Some(bind(address, "OPS_BIND_ADDR", http.listen_backlog)?),
            None => None,
        };
        Ok(Listeners { public: bind(http.bind_addr, "BIND_ADDR", http.listen_backlog)?, operators })
    }
}

/// Binds the address that the setting `name` gives; `backlog` connections may wait to be accepted.
///
/// # Errors
/// The address is taken, with what to do about it, or not this machine's.
pub(super) fn bind(address: SocketAddr, name: &str, backlog: u32) -> anyhow::Result<TcpListener> {
    listener::listen(address, backlog).map_err(|error| {
        let next = SocketAddr::new(address.ip(), address.port().checked_add(1).unwrap_or(8081));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
                "{address} is taken: stop what uses it (`ss -ltnp` shows it), or serve elsewhere with {name}={next}"
            ),
            _ => anyhow::Error::new(error).context(format!("can't serve on {address} ({name})")),
        }
    })
}
