//! Instructions of the hot paths, compared with bounds: a change that makes a request dearer is noticed before it is merged.
//!
//! callgrind counts, which does not depend on the load of the machine. The service's part of a request is counted in this program
//! itself (role [`SERVICE`]), and Redis's in the scripts' calls (role [`SCRIPTS`]). Both are of the profile that `cargo test` builds:
//! the counts are no costs of the `dist` build, but grow with them. `bounds.txt` has the counts, and the versions of the compiler and
//! of Redis that they hold for; with others, and without `valgrind`, nothing is compared.
//!
//! `make instructions ARGS=--update` writes the bounds.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod bounds;
mod roles;
mod shop;

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use firstcome::{
    config::{PostgresConfig, Secret},
    dev::{self, PostgresServer, PostgresServerConfig, RedisServer, RedisServerConfig, ScratchDir},
    postgres,
};
use tokio::runtime::Runtime;

use self::bounds::{Count, Versions};

/// The roles of a child process of this program.
const SERVICE: &str = "service";
const SCRIPTS: &str = "scripts";
/// Where callgrind writes.
const OUT: &str = "out";

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some(SERVICE) => return roles::service(),
        Some(SCRIPTS) => return roles::scripts(),
        _ => {}
    }
    let update = args.iter().any(|arg| arg == "--update");
    let filters = || args.iter().filter(|arg| !arg.starts_with('-'));
    // As a test harness would: the arguments of `cargo test` go to every target.
    if args.iter().any(|arg| arg == "--list") || filters().count() > 0 && !filters().any(|f| "instructions".contains(f))
    {
        return Ok(());
    }
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("instructions are not counted: there is no valgrind (Debian has it under that name)");
        ensure!(!update, "nothing to update");
        return Ok(());
    }
    let began = Instant::now();
    let dir = ScratchDir::new()?;
    let (service, scripts) = std::thread::scope(|scope| {
        let scripts = scope.spawn(|| count_scripts(&dir.path().join(SCRIPTS)));
        let service = count_service(&dir.path().join(SERVICE));
        (service, scripts.join().unwrap())
    });
    let counts: Vec<Count> = service?.into_iter().chain(scripts?).collect();
    let seconds = began.elapsed().as_secs_f64();
    let versions = Versions::here()?;
    if update {
        bounds::write(&versions, &counts)?;
        return Ok(());
    }
    let compared = bounds::compare(&versions, &counts);
    eprintln!("instructions counted in {seconds:.0} s");
    compared
}

/// Counts this program's instructions, in stores of its own.
fn count_service(dir: &Path) -> Result<Vec<Count>> {
    fs::create_dir_all(dir)?;
    let runtime = Runtime::new()?;
    let (redis, _postgres, database) = runtime.block_on(stores(dir))?;
    let mut child = Command::new("valgrind");
    // Counts within `counted_iterations` only, and dumps the count at each return.
    child.args(["--tool=callgrind", "--toggle-collect=*counted_iterations*"]);
    child.arg(concat!("--dump-after=", module_path!(), "::roles::counted_iterations"));
    child.arg(format!("--callgrind-out-file={}", dir.join(OUT).display()));
    child.arg(env::current_exe()?).arg(SERVICE).env("REDIS_URL", redis.url()).env("DATABASE_URL", database);
    let names = output(&mut child)?;
    let count = |(at, name): (usize, &str)| {
        let dumps = (1..=roles::COUNTS).map(|count| dumped(dir, at * roles::COUNTS + count));
        let least = dumps.collect::<Result<Vec<u64>>>()?.into_iter().min().unwrap_or_default();
        Ok(Count { name: format!("service: {name}"), instructions: least / roles::ITERATIONS })
    };
    names.lines().enumerate().map(count).collect()
}

/// Counts the instructions of Redis in calls of scripts. The server runs under callgrind, and dumps at each ECHO.
fn count_scripts(dir: &Path) -> Result<Vec<Count>> {
    fs::create_dir_all(dir)?;
    let (server, wrapper) = (dev::redis_server()?, dir.join("redis-server"));
    let (server, out) = (server.display(), dir.join(OUT));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec '{server}' --version\nexec valgrind --tool=callgrind \
         --toggle-collect=evalShaCommand --dump-after=echoCommand --callgrind-out-file='{}' '{server}' \"$@\"\n",
        out.display()
    );
    fs::write(&wrapper, script)?;
    ensure!(Command::new("chmod").arg("+x").arg(&wrapper).status()?.success(), "chmod failed");
    let mut child = Command::new(env::current_exe()?);
    let names = output(child.arg(SCRIPTS).env("REDIS_SERVER_BIN", &wrapper).env("INSTRUCTIONS_DIR", dir))?;
    let count = |(at, line): (usize, &str)| {
        let (requests, name) = line.split_once(' ').context("a line without a number")?;
        // Each phase is between two dumps.
        let instructions = dumped(dir, 2 * at + 2)? / requests.parse::<u64>()?;
        Ok(Count { name: format!("Redis: {name}"), instructions })
    };
    names.lines().enumerate().map(count).collect()
}

/// A Redis and a PostgreSQL with an empty store, and the URL of its database.
async fn stores(dir: &Path) -> Result<(RedisServer, PostgresServer, String)> {
    let mut config = RedisServerConfig::new(dir.join("redis"));
    // Nothing by timers: they are no part of a request.
    config.extra_args = ["--appendonly", "no", "--hz", "1", "--activerehashing", "no"].map(str::to_owned).to_vec();
    let redis = RedisServer::start(config).await?;
    let server = PostgresServer::start(PostgresServerConfig::new(dir.join("postgres"))).await?;
    postgres::create_database(&database(server.url("postgres")), "firstcome").await?;
    let url = server.url("firstcome");
    postgres::migrate(&postgres::connect(&database(url.clone())).await?).await?;
    Ok((redis, server, url))
}

fn database(url: String) -> PostgresConfig {
    PostgresConfig { database_url: Secret::new(url), database_connections: 2, database_timeout_ms: 120_000 }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{:?} failed: {}", command.get_program(), text(&output.stderr));
    Ok(text(&output.stdout))
}

/// The instructions of a dump of callgrind, from 1.
fn dumped(dir: &Path, dump: usize) -> Result<u64> {
    let path = dir.join(format!("{OUT}.{dump}"));
    let text = fs::read_to_string(&path).with_context(|| format!("callgrind wrote no {}", path.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    Ok(total.context("no total in the output of callgrind")?.trim().parse()?)
}
