//! `make bench`: everything that the README says about speed, measured in one run on this machine.
//!
//! What is compared runs in alternation, round by round, and is told as ratios of the same round, for absolute figures are
//! those of one machine in one hour. The service, Redis, PostgreSQL and the load generator are processes of their own, and
//! each one's CPU time is told apart.
//!
//! `bench [SECTION …]` runs some of the sections; `--rounds`, `--seconds` and `--only TEXT` make it shorter.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod client;
mod cpu;
mod endpoints;
mod peer;
mod report;
mod servers;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;

use self::{report::Report, servers::Servers};

#[derive(Parser)]
pub struct Options {
    /// The sections to run; all of them by default
    sections: Vec<String>,
    /// Rounds of each kind of request, after one to warm up
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only what has this name; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Where the Markdown goes
    #[arg(long, default_value = "target/bench/report.md")]
    output: PathBuf,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn round(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn runs(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|name| name == section)
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let role = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let several = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    if [servers::SERVE, servers::PROJECT, servers::PEER].contains(&role.as_str()) {
        let filter = tracing_subscriber::EnvFilter::new("warn");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    match role.as_str() {
        servers::SERVE => several()?.block_on(servers::serve(rest.is_empty())),
        servers::PROJECT => several()?.block_on(servers::project()),
        servers::PEER => several()?.block_on(peer::serve(rest.iter().any(|lock| lock == "redis"))),
        _ => {
            let options = Options::parse();
            // `cargo test --benches` runs this too, and gets nothing to wait for.
            if !options.bench {
                return Ok(());
            }
            // One thread: the load generator's.
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&options))
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let mut report = Report::default();
    report.text(&format!("# Benchmarks\n\n{}", report::machine()));
    let servers = Servers::start().await?;
    if options.runs("endpoints") {
        endpoints::run(&servers, options, &mut report).await?;
    }
    report.write(&options.output)
}
