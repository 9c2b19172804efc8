//! The signals that end a process: the first asks for an orderly stop, the second ends it at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first SIGINT or SIGTERM cancels. The second one ends the process at once, as a crash would: decisions that
/// are not projected wait in the outbox, and a repeat of the request settles a reply that was not sent.
///
/// # Errors
/// The signal handlers can't be installed.
pub(super) fn stop_signal() -> std::io::Result<CancellationToken> {
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
        // The status by which a shell reports a process that a signal ended.
        std::process::exit(128 + again.as_raw_value());
    });
    Ok(stop)
}
