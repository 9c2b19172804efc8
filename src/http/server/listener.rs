//! Listening sockets with a backlog of our choice.
//!
//! The backlog holds connections that the kernel has established and the [server](super) has not accepted yet. When it is full, the
//! kernel drops new ones, and each client tries again after a second. The standard library asks for 128, which the first moment of a
//! sale fills at once.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// The kernel's bound of any backlog.
const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";

/// Listens on `address`. Up to `backlog` connections wait to be accepted, or as many as the kernel allows; if that is less, it is
/// logged.
///
/// # Errors
/// The address can't be used.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart can't wait for the last connections of the process before it.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(backlog)?;
    if let Some(most) = kernel_bound()
        && most < backlog
    {
        tracing::info!(
            backlog = most,
            LISTEN_BACKLOG = backlog,
            "the kernel allows fewer waiting connections than LISTEN_BACKLOG: raise net.core.somaxconn"
        );
    }
    Ok(listener)
}

/// The kernel's bound, if it is known.
pub fn kernel_bound() -> Option<u32> {
    std::fs::read_to_string(SOMAXCONN).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::future::join_all;
    use tokio::{net::TcpStream, time::timeout};

    use super::*;

    /// Handshakes that find the backlog full are repeated after a second at the earliest, and do not end while no connection is accepted.
    #[tokio::test]
    async fn listener_holds_backlog_when_not_accepting() {
        let people = kernel_bound().unwrap_or(128).min(2_000);
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), 16_384).unwrap();
        let address = listener.local_addr().unwrap();
        let connecting = join_all((0..people).map(|_| TcpStream::connect(address)));
        let connected = timeout(std::time::Duration::from_secs(300), connecting).await.unwrap();
        assert!(connected.iter().all(Result::is_ok));
        // The other way round: a short one does not hold them, so what is measured here is the backlog.
        let short = listen((Ipv4Addr::LOCALHOST, 0).into(), 16).unwrap();
        let address = short.local_addr().unwrap();
        let crowd = join_all((0..64).map(|_| TcpStream::connect(address)));
        assert!(timeout(std::time::Duration::from_millis(500), crowd).await.is_err());
    }

    #[tokio::test]
    async fn listener_fails_when_address_taken() {
        let first = listen((Ipv4Addr::LOCALHOST, 0).into(), 16).unwrap();
        let error = listen(first.local_addr().unwrap(), 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
