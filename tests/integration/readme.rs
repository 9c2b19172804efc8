//! The README, held to its word: its tour is run as printed, and its table of settings is the program's.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
};

use firstcome::dev::{ScratchDir, free_port};

use crate::support::harness::{client, until};

const README: &str = include_str!("../../README.md");

/// The tour: each command with the output printed below it, in order.
fn tour() -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in README.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            _ => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => output.push_str(line),
                (None, None) => panic!("an output before any command: {line}"),
            },
        }
    }
    steps
}

/// Without what differs from run to run: times, and receipts.
fn timeless(output: &str) -> String {
    let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
    let mut text = String::new();
    for (n, part) in output.trim().split('"').enumerate() {
        let bare: String = part.chars().map(digits).collect();
        let is_receipt = part.len() == 36 && part.matches('-').count() == 4;
        let odd = n % 2 == 1;
        text.push_str(match bare.as_str() {
            "0000-00-00T00:00:00" if odd => "(time)",
            _ if odd && is_receipt => "(receipt)",
            _ => part,
        });
        text.push('"');
    }
    text
}

/// Ends the program however the test ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn tour_runs_as_printed() {
    let dir = ScratchDir::new().unwrap();
    let port = free_port().unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_firstcome"))
        .arg("dev")
        .current_dir(dir.path())
        .env("BIND_ADDR", format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut program = Running(program.unwrap());
    let (ready, client) = (format!("http://127.0.0.1:{port}/readyz"), client());
    until("`firstcome dev` comes up", async || {
        assert!(program.0.try_wait().unwrap().is_none(), "`firstcome dev` ended");
        client.get(&ready).send().await.ok()
    })
    .await;
    let steps = tour();
    assert!(steps.len() > 10);
    // One shell for all, as a reader has; a line of its own before each output.
    let mut script = String::from("exec 2>&1\n");
    for (command, _) in &steps {
        script.push_str("printf '\\n@@@\\n'\n");
        script.push_str(&command.replace("localhost:8080", &format!("127.0.0.1:{port}")));
        script.push('\n');
    }
    let shell = Command::new("bash").arg("-c").arg(script).current_dir(dir.path()).output();
    let outputs = String::from_utf8(shell.expect("bash").stdout).unwrap();
    let outputs: Vec<&str> = outputs.split("\n@@@\n").skip(1).collect();
    assert_eq!(outputs.len(), steps.len());
    for ((command, printed), output) in steps.iter().zip(outputs) {
        // The projection runs on meanwhile; what is printed is where it ends up.
        assert_eq!(timeless(output), timeless(printed), "$ {command}");
    }
}

#[test]
fn settings_table_complete() {
    let mut known = BTreeSet::from(["RUST_LOG".to_owned()]);
    for role in ["dev", "serve", "project", "migrate", "seed"] {
        let help = Command::new(env!("CARGO_BIN_EXE_firstcome")).args([role, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let variables = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
        known.extend(variables.map(str::to_owned));
    }
    assert_eq!(settings(), known);
}

/// The variables of the table of settings.
pub fn settings() -> BTreeSet<String> {
    let table = README.split("## Configuration").nth(1).unwrap().split("\n## ").next().unwrap();
    let named = table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    named.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}
