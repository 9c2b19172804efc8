//! What a process answers while it waits for its stores.

use std::{os::fd::AsFd, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    config::{BrowserConfig, EngineConfig, ProjectorConfig},
    http::{
        server,
        waiting::{self, Waiting},
    },
    model::Clock,
};

/// Servers that answer on a process's listeners until its stores are open.
pub(super) struct WaitingServers {
    waiting: Waiting,
    opened: CancellationToken,
    servers: Vec<JoinHandle<std::io::Result<usize>>>,
}

impl WaitingServers {
    /// Starts one server per listener.
    ///
    /// # Errors
    /// A socket can't be shared.
    pub fn start<'a>(
        listeners: impl Iterator<Item = &'a TcpListener>,
        browsers: &BrowserConfig,
    ) -> anyhow::Result<WaitingServers> {
        let (waiting, opened) = (Waiting::default(), CancellationToken::new());
        let mut servers = Vec::new();
        for listener in listeners {
            // A second descriptor of the same socket: connections that arrive while one server stops wait for the next.
            let shared = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
            let (router, limits) = (
                waiting::router(waiting.clone(), browsers),
                server::ServerLimits { drain: Duration::from_millis(500), ..server::ServerLimits::default() },
            );
            servers.push(tokio::spawn(server::serve(TcpListener::from_std(shared)?, router, limits, opened.clone())));
        }
        Ok(WaitingServers { waiting, opened, servers })
    }

    /// Stops the servers; later connections are left to the next server on the same sockets.
    async fn stop(self) {
        self.opened.cancel();
        for server in self.servers {
            if let Err(error) = server.await {
                tracing::debug!(%error, "a server that answered while the stores opened has failed");
            }
        }
    }
}

/// Waits until the stores are open, and opens them; `None` where `stop` came first. `joins`: other instances that serve
/// may stand for PostgreSQL.
///
/// # Errors
/// As [`App::open_when_there`].
pub(super) async fn open(
    engine: &EngineConfig,
    projector: &ProjectorConfig,
    stop: &CancellationToken,
    servers: WaitingServers,
    joins: bool,
) -> anyhow::Result<Option<App>> {
    // Boxed: it is large, and so would be every future that awaits it.
    let opening = Box::pin(App::open_when_there(engine, projector, Clock::system(), &servers.waiting, joins));
    let opened = stop.run_until_cancelled(opening).await.transpose();
    servers.stop().await;
    Ok(opened?.map(|app| app.until(stop.clone())))
}
