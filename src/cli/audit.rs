//! `firstcome audit`: every invariant over both stores.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;

use super::print;
use crate::{
    audit::{Audit, AuditReport, AuditTracker},
    config::{PostgresConfig, RedisConfig},
    model::Clock,
    postgres,
    redis::Store,
};

#[derive(Args)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
    /// The zone of the rankings' days
    #[arg(long, env = "TIME_ZONE", default_value = "Asia/Seoul")]
    time_zone: chrono_tz::Tz,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
    /// Print the progress to standard error, also where that is no terminal
    #[arg(long)]
    progress: bool,
}

/// The intervals between two lines of progress: on a terminal, where each replaces the one before, and elsewhere.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(250);
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// Moves to the begin of the line of a terminal, and clears it.
const CLEAR_LINE: &str = "\r\x1b[2K";

/// The status tells an invariant that does not hold (1) from an audit that could not be made (2).
pub(super) async fn run(options: AuditArgs) -> anyhow::Result<ExitCode> {
    let AuditArgs { redis, postgres, time_zone, json, progress } = options;
    let audited = async {
        let (store, db) = (Store::connect(&redis).await?, postgres::connect(&postgres).await?);
        postgres::check_schema(&db).await?;
        let clock = Clock::system();
        let tracker = AuditTracker::new(clock.now());
        run_shown(Audit { store, db, clock, zone: time_zone, tracker }, progress).await
    };
    match Box::pin(audited).await {
        Ok(report) => {
            print(&if json { report.json().to_string() } else { report.to_string() })?;
            Ok(if report.balanced { ExitCode::SUCCESS } else { ExitCode::from(1) })
        }
        Err(error) => {
            tracing::error!("{error:#}");
            Ok(ExitCode::from(2))
        }
    }
}

/// Runs an audit. Prints its progress to standard error, if that is a terminal or with `asked`.
async fn run_shown(audit: Audit, asked: bool) -> anyhow::Result<AuditReport> {
    let (tracker, terminal) = (audit.tracker.clone(), std::io::stderr().is_terminal());
    if !terminal && !asked {
        return audit.run().await;
    }
    let show = |text: String| {
        // A terminal that is gone must not stop the audit.
        let _ = write!(
            std::io::stderr(),
            "{}{text}{}",
            if terminal { CLEAR_LINE } else { "" },
            if terminal { "" } else { "\n" }
        );
    };
    let mut ticks = tokio::time::interval(if terminal { TERMINAL_INTERVAL } else { LINE_INTERVAL });
    let mut running = std::pin::pin!(audit.run());
    let audited = loop {
        tokio::select! {
            audited = &mut running => break audited,
            _ = ticks.tick() => show(tracker.progress().to_string()),
        }
    };
    if terminal {
        show(String::new());
    }
    audited
}
