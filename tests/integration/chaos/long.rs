//! The command of the long run, with small figures.

use std::{path::Path, process::Output};

use firstcome::dev::ScratchDir;
use serde_json::Value;
use tokio::process::Command;

/// Runs it until so many faults were injected, one in each run; `None` without Python.
async fn run(dir: &ScratchDir, faults: u64) -> Option<Output> {
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chaos-long"));
    command.env("CHAOS_TEST_BINARY", std::env::current_exe().unwrap()).env("CHAOS_DIR", dir.path());
    command.env("CHAOS_OPERATIONS", "1").env("CHAOS_FAULTS", faults.to_string()).env("CHAOS_RUN_FAULTS", "1");
    command.env("CHAOS_SEED", "7").env("CHAOS_SITUATIONS", "0").kill_on_drop(true).output().await.ok()
}

/// The faults of all runs so far.
fn injected(dir: &ScratchDir) -> u64 {
    let results = std::fs::read_to_string(dir.path().join("results.jsonl")).unwrap();
    let results = results.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap());
    results.map(|result| result["faultCount"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn long_run_resumed_after_the_last_seed_and_reported() {
    let dir = ScratchDir::new().unwrap();
    let mut faults = 0;
    for said in ["seed 7: ", "going on after 1 runs"] {
        // One more than the runs so far had.
        let Some(output) = run(&dir, faults + 1).await else { return println!("this machine has no python3") };
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && log.contains(said), "{log}");
        assert_eq!(log.matches("seed ").count(), 1, "{log}");
        faults = injected(&dir);
    }
    let report = std::fs::read_to_string(dir.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["passed"], &report["options"]["Seeds"]), (&true.into(), &"7 to 8".into()), "{report:#}");
    let situations = report["rules"].as_array().unwrap().iter().filter(|rule| rule["kind"] == "Situations").count();
    assert_eq!(situations, super::situations::TABLE.len());
    let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains("crash test") && page.contains("Situations"));
    // Nothing else is left: the logs are those of runs with violations.
    let mut left: Vec<String> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, ["report.html", "report.json", "results.jsonl"]);
}
