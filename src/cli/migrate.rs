//! `firstcome migrate`: PostgreSQL's schema.

use std::process::ExitCode;

use clap::Args;

use crate::{config::PostgresConfig, postgres};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    postgres: PostgresConfig,
}

pub(super) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    postgres::migrate(&postgres::connect(&options.postgres).await?).await?;
    Ok(ExitCode::SUCCESS)
}
