//! `firstcome migrate`: PostgreSQL's schema.

use std::process::ExitCode;

use clap::Args;

use crate::{config::PostgresConfig, postgres};

#[derive(Args)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    postgres: PostgresConfig,
}

pub(super) async fn run(options: MigrateArgs) -> anyhow::Result<ExitCode> {
    postgres::migrate(&postgres::connect(&options.postgres).await?).await?;
    Ok(ExitCode::SUCCESS)
}
