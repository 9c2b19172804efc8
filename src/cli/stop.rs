//! The signals that end a process: the first asks for an orderly end, another one for an end.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancelled by the first SIGINT or SIGTERM. The second ends the process at once: what it was about to carry to Postgres
/// waits in the outbox, and what it was about to answer is settled by a repeat, as after a crash.
///
/// # Errors
/// The system gives out no signals.
pub fn stop_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = stop.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => SignalKind::interrupt(),
                _ = terminate.recv() => SignalKind::terminate(),
            }
        };
        next().await;
        tracing::info!("stopping");
        stopped.cancel();
        let again = next().await;
        tracing::warn!("stopping at once");
        // As a shell tells of one that a signal has ended.
        std::process::exit(128 + again.as_raw_value());
    });
    Ok(stop)
}
