//! `make bench`: measures every figure of the documentation about speed, in one run on this machine.
//!
//! Compared cases alternate, round by round, and the report has ratios within a round: an absolute figure holds for one machine
//! in one hour. The service, Redis, PostgreSQL and the load generator are separate processes, and the CPU time of each is
//! reported separately.
//!
//! `bench [SECTION …]` runs some of the sections, `--quick` a short form of each. See `benches/README.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod audit;
mod burst;
mod calls;
mod client;
mod cluster;
mod compare;
mod connections;
mod cpu;
mod endpoints;
mod growth;
mod loads;
mod lock_based;
mod measure;
mod micro;
mod nodes;
mod open_loop;
mod outbox;
mod projector;
mod recovery;
mod replica;
mod report;
mod saturation;
mod scripts;
mod servers;
mod targets;
mod webhooks;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::Parser;

use self::{nodes::Layout, report::Report, servers::Servers, targets::Targets};

/// In the order of the report.
const SECTIONS: &[&str] = &[
    "endpoints",
    "scripts",
    "everysec",
    "connections",
    "projector",
    "webhooks",
    "burst",
    "saturation",
    "replica",
    "recovery",
    "audit",
    "cluster",
    "growth",
    "micro",
];

/// The role that compares the reports of two commits.
const COMPARE: &str = "compare";

#[derive(Parser)]
#[command(about = "Measures the figures of the documentation about speed; see benches/README.md")]
pub struct Options {
    /// The sections to run; all of them by default
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(SECTIONS))]
    sections: Vec<String>,
    /// Short rounds and small sizes: for a first look, not for figures
    #[arg(long)]
    quick: bool,
    /// Rounds of each kind of request, after one to warm up [default: 5; quick: 2]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of a round [default: 2; quick: 0.5]
    #[arg(long)]
    seconds: Option<f64>,
    /// Only the kinds of request of this name; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Decisions of a backlog [default: 100000; quick: 20000]
    #[arg(long)]
    decisions: Option<u64>,
    /// Connections of a burst [default: 10000]
    #[arg(long, default_value_t = 10_000)]
    crowd: usize,
    /// The sizes of the section growth [default: 10000,100000,1000000; quick: 1000,10000]
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<u64>,
    /// The users, and the balance entries, of the section audit [default: 5000000,3000000; quick: 50000,30000]
    #[arg(long, value_delimiter = ',')]
    large: Vec<u64>,
    /// The requests per second of the first step of saturation
    #[arg(long, default_value_t = 5000)]
    rate: u64,
    /// The p99, in ms, at which saturation ends
    #[arg(long, default_value_t = 100)]
    max_p99_ms: u64,
    /// The file for the Markdown report
    #[arg(long, default_value = "target/bench/report.md")]
    output: PathBuf,
    /// `cargo bench` passes this
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 }).max(1)
    }

    fn round(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.quick { 0.5 } else { 2.0 }))
    }

    fn decisions(&self) -> u64 {
        self.decisions.unwrap_or(if self.quick { 20_000 } else { 100_000 })
    }

    /// In ascending order.
    fn sizes(&self) -> Vec<u64> {
        let mut sizes = match (self.sizes.is_empty(), self.quick) {
            (false, _) => self.sizes.clone(),
            (true, false) => vec![10_000, 100_000, 1_000_000],
            (true, true) => vec![1000, 10_000],
        };
        sizes.sort_unstable();
        sizes
    }

    /// The numbers of users and of balance entries of a large store.
    fn large_store(&self) -> (u64, u64) {
        match (self.large.as_slice(), self.quick) {
            ([users, entries, ..], _) => (*users, *entries),
            (_, false) => (5_000_000, 3_000_000),
            (_, true) => (50_000, 30_000),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn runs(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|name| name == section)
    }
}

/// The same allocator as `firstcome`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let role = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let several = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    if [servers::SERVE, servers::PROJECT, servers::AUDIT, servers::REBUILD, servers::LOCK_BASED, servers::MICRO]
        .contains(&role.as_str())
    {
        let filter = tracing_subscriber::EnvFilter::new("warn");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    match role.as_str() {
        servers::SERVE => several()?.block_on(servers::serve(rest.is_empty())),
        servers::PROJECT => several()?.block_on(servers::project()),
        servers::AUDIT => several()?.block_on(audit::audit_role(!rest.is_empty())),
        servers::REBUILD => several()?.block_on(audit::rebuild_role()),
        // One thread, so that callgrind counts all of it.
        servers::MICRO => micro::role(&rest),
        COMPARE => compare::run(&rest),
        servers::LOCK_BASED => several()?.block_on(lock_based::serve(rest.iter().any(|lock| lock == "redis"))),
        _ => {
            let options = Options::parse();
            // `cargo test --benches` runs this program as well, and must not measure.
            if !options.bench {
                return Ok(());
            }
            // One thread, for the load generator.
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&options))
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let (mut report, mut targets) = (Report::default(), Targets::default());
    let started = Instant::now();
    report.text(&format!("# Benchmarks\n\n{}", report::machine()));
    if options.quick {
        report.text("A quick run: short rounds, few of them, small sizes.");
    }
    burst::raise_limit();
    let mut failed = Vec::new();
    for section in SECTIONS.iter().filter(|section| options.runs(section)) {
        if let Err(error) = Box::pin(run_section(section, options, &mut report, &mut targets)).await {
            // A failed section does not stop the others.
            report.text(&format!("**`{section}` failed**: {error:#}"));
            failed.push(*section);
        }
        eprintln!("{section}: done after {:.0} s", started.elapsed().as_secs_f64());
    }
    targets.table(&mut report);
    report.text(&format!("Measured in {:.1} minutes.", started.elapsed().as_secs_f64() / 60.0));
    report.write(&options.output)?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs one section on new servers, so that it finds no data of another.
async fn run_section(section: &str, options: &Options, report: &mut Report, targets: &mut Targets) -> Result<()> {
    // Starts servers of each layout itself.
    match section {
        "cluster" => return cluster::run(options, report, targets).await,
        "recovery" => return recovery::run(options, report, targets).await,
        _ => {}
    }
    let servers = Servers::start(Layout::SMALLEST).await?;
    match section {
        "endpoints" => endpoints::run(&servers, options, report, targets).await,
        "scripts" => scripts::run(&servers, options, report, targets).await,
        "everysec" => scripts::everysec(&servers, options, report).await,
        "connections" => connections::run(&servers, options, report).await,
        "projector" => projector::run(&servers, options, report, targets).await,
        "webhooks" => webhooks::run(&servers, options, report, targets).await,
        "burst" => burst::run(&servers, options, report, targets).await,
        "saturation" => saturation::run(&servers, options, report).await,
        "audit" => audit::run(&servers, options, report).await,
        "replica" => replica::run(&servers, options, report, targets).await,
        "growth" => growth::run(&servers, options, report, targets).await,
        "micro" => micro::run(&servers, options, report).await,
        other => bail!("there is no section {other}"),
    }
}
