//! `firstcome audit`: every invariant over both stores.

use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::{
    audit::Audit,
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
}

/// The status tells an invariant that does not hold (1) from an audit that could not be made (2).
pub(super) async fn run(options: AuditArgs) -> anyhow::Result<ExitCode> {
    let AuditArgs { redis, postgres, time_zone, json } = options;
    let audited = async {
        let (store, db) = (Store::connect(&redis).await?, postgres::connect(&postgres).await?);
        postgres::check_schema(&db).await?;
        Audit { store, db, clock: Clock::system(), zone: time_zone }.run().await
    };
    match audited.await {
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
