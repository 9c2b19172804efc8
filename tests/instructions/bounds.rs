//! The file of the bounds.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use firstcome::dev;

/// How much more than its bound a count may be, in percent: the addresses and hash seeds of each run differ a little.
const TOLERANCE: u64 = 5;

/// The instructions of one request, by name.
pub struct Count {
    pub name: String,
    pub instructions: u64,
}

/// What the counts depend on besides the code.
#[derive(PartialEq)]
pub struct Versions {
    compiler: String,
    redis: String,
}

impl Versions {
    pub fn here() -> Result<Versions> {
        let version = |program: PathBuf, words: usize| -> Result<String> {
            let output = Command::new(&program).arg("--version").output();
            let output = output.with_context(|| format!("can't run {}", program.display()))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text.split_whitespace().take(words).collect::<Vec<_>>().join(" "))
        };
        let compiler = std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from);
        Ok(Versions { compiler: version(compiler, 2)?, redis: version(dev::redis_server()?, 3)? })
    }
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/instructions/bounds.txt"))
}

pub fn write(versions: &Versions, counts: &[Count]) -> Result<()> {
    let mut text = format!(
        "# Instructions per request of the build that `cargo test` makes, counted by callgrind. A count may be {TOLERANCE} % more.\n\
         # `make instructions ARGS=--update` writes this file: say in the commit why a count has grown.\n\
         compiler = {}\nredis = {}\n",
        versions.compiler, versions.redis
    );
    for Count { name, instructions } in counts {
        writeln!(text, "{name} = {instructions}")?;
    }
    fs::write(path(), &text)?;
    eprint!("{text}");
    Ok(())
}

/// Prints the counts, and fails if one is more than its bound allows.
pub fn compare(versions: &Versions, counts: &[Count]) -> Result<()> {
    let text = fs::read_to_string(path()).context("there are no bounds")?;
    let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(" = ")).collect();
    let find = |name: &str| lines.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let known = |name: &str, version: &str| find(name).is_some_and(|known| known == version);
    let (same_compiler, same_redis) = (known("compiler", &versions.compiler), known("redis", &versions.redis));
    let (mut exceeded, mut cheaper) = (Vec::new(), false);
    for Count { name, instructions } in counts {
        let bound = find(name).and_then(|bound| bound.parse::<u64>().ok());
        let compared = same_compiler && (same_redis || name.starts_with("service"));
        let change = match bound {
            Some(bound) => format!("{:+.1} %", (*instructions as f64 / bound as f64 - 1.0) * 100.0),
            None => "no bound".to_owned(),
        };
        println!("{name}: {instructions} instructions ({change}){}", if compared { "" } else { ", not compared" });
        let Some(bound) = bound.filter(|_| compared) else {
            ensure!(bound.is_some() || !compared, "{name} has no bound: run `make instructions ARGS=--update`");
            continue;
        };
        if instructions * 100 > bound * (100 + TOLERANCE) {
            exceeded.push(format!("{name}: {instructions} instead of {bound} ({change})"));
        }
        cheaper |= instructions * 100 < bound * (100 - TOLERANCE);
    }
    if !(same_compiler && same_redis) {
        println!("the bounds are of another compiler or Redis: `make instructions ARGS=--update` renews them");
    }
    if cheaper {
        println!("some requests have become cheaper: `make instructions ARGS=--update` keeps it so");
    }
    ensure!(
        exceeded.is_empty(),
        "requests have become dearer by more than {TOLERANCE} %: {}\nIf that is worth it, `make instructions ARGS=--update`, and say so in \
         the commit",
        exceeded.join("; ")
    );
    Ok(())
}
