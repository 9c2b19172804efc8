//! The command line: one binary, a file per command.

mod audit;
mod dev;
mod health;
mod import;
mod listeners;
mod migrate;
mod project;
mod rebuild;
mod seed;
mod serve;
mod stop;
mod waiting;

use std::{io::Write, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    config::{TelemetryConfig, environment, redact},
    telemetry::{self, traces},
};

/// A flash-sale commerce engine: first come, first served, exactly once.
///
/// New here? `firstcome dev` starts everything at once, with a Redis and a PostgreSQL of its own and a demo catalogue. In
/// a real deployment run `firstcome migrate` once, then `firstcome serve` with REDIS_URL and DATABASE_URL. Every option can
/// be given as the environment variable named beside it; one that is empty counts as not set. A secret NAME may be in a file
/// that NAME_FILE names, and is refused on the command line. RUST_LOG sets what is logged (default: info).
#[derive(Parser)]
#[command(version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    telemetry: TelemetryConfig,
}

#[derive(Subcommand)]
enum Command {
    /// Everything at once, to try it: private Redis and PostgreSQL, migrations, a demo catalogue, and the API
    Dev(Box<dev::DevArgs>),
    /// The API, and (unless --no-projector) the projector
    Serve(Box<serve::ServeArgs>),
    /// The projector alone: carries what Redis decided to PostgreSQL
    Project(Box<project::ProjectArgs>),
    /// Brings PostgreSQL's schema up to date, and ends
    Migrate(migrate::MigrateArgs),
    /// Puts the demo catalogue into a store without products, and ends
    Seed(Box<seed::SeedArgs>),
    /// Brings users, products or coupons in from a file, under the ids that they have there, beside running services or alone, and
    /// ends: with status 0 if every row was taken, 1 if some are in the file of rejected rows or it failed, 3 if PostgreSQL does not
    /// have every row yet. Running it again changes nothing
    Import(Box<import::ImportArgs>),
    /// Puts Redis back together from PostgreSQL, after a loss, and ends
    Rebuild(Box<rebuild::RebuildArgs>),
    /// Recomputes every conservation law from Redis and PostgreSQL, while they work, and ends: with status 0 if the books
    /// balance, 1 if not, 2 if that could not be found out
    Audit(Box<audit::AuditArgs>),
    /// Asks a running service whether it is ready, for health checks: ends with status 0 if it is, 1 if not
    Health(health::HealthArgs),
}

impl Cli {
    /// Reads the command line and the environment.
    ///
    /// # Errors
    /// The status to end with, where help was asked for or an option is wrong; the text has been printed.
    pub fn parse() -> Result<Self, ExitCode> {
        let matches = environment::read(Cli::command())?;
        Cli::from_arg_matches(&matches).map_err(|error| failed(&error.into()))
    }

    /// Runs the command to its end, on a runtime of its own.
    pub fn run(self) -> ExitCode {
        telemetry::log(self.telemetry.log_format);
        self.run_on_runtime().unwrap_or_else(|error| failed(&error))
    }

    fn run_on_runtime(self) -> anyhow::Result<ExitCode> {
        // The one TLS implementation, for rediss://, PostgreSQL and https gateways alike.
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            anyhow::bail!("a TLS implementation is installed already");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let status = runtime.block_on(async {
            let delivery = match &self.command {
                Command::Dev(_) | Command::Serve(_) | Command::Project(_) => traces::start(&self.telemetry)?,
                _ => None,
            };
            let status = self.command.run().await;
            if let Some(delivery) = delivery {
                delivery.stop().await;
            }
            status
        });
        // Do not wait for a pending DNS lookup.
        runtime.shutdown_background();
        status
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Dev(options) => dev::run(*options).await,
            Command::Serve(options) => serve::run(*options).await,
            Command::Project(options) => project::run(*options).await,
            Command::Migrate(options) => migrate::run(options).await,
            Command::Seed(options) => seed::run(*options).await,
            Command::Import(options) => import::run(*options).await,
            Command::Rebuild(options) => rebuild::run(*options).await,
            Command::Audit(options) => audit::run(*options).await,
            Command::Health(options) => health::run(options).await,
        }
    }
}

/// Prints why the program ends, as its last line and with no secret in it.
fn failed(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{}", redact(&format!("Error: {error:?}")));
    ExitCode::FAILURE
}

/// The status of a command that succeeded or not; the log says why not.
fn status(succeeded: bool) -> ExitCode {
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints to the person at the terminal.
fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
