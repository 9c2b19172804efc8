//! The console blocks of the README and of the tour run as printed, each page on a new store.

use std::process::{Child, Command, Stdio};

use firstcome::dev::{ScratchDir, free_port};

use super::{Page, page};
use crate::support::harness::{client, until};

/// Separates the outputs of a page's commands.
const SEPARATOR: &str = "\n@@@\n";

struct Step {
    command: String,
    output: String,
}

/// Each command with the output printed below it, in order.
fn steps(page: &Page) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in page.lines().iter().filter(|line| line.block == Some("console")) {
        match (line.text.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_owned(), output: String::new() }),
            (None, Some(step)) => step.output.push_str(line.text),
            (None, None) => panic!("an output before any command: {}", line.text),
        }
    }
    steps
}

/// The output without times and receipts, which differ between runs.
fn timeless(output: &str) -> String {
    let zeros = |c: char| if c.is_ascii_digit() { '0' } else { c };
    let mut text = String::new();
    for (n, part) in output.trim().split('"').enumerate() {
        let shape: String = part.chars().map(zeros).collect();
        let is_receipt = part.len() == 36 && part.matches('-').count() == 4;
        let quoted = n % 2 == 1;
        text.push_str(match shape.as_str() {
            "0000-00-00T00:00:00" if quoted => "(time)",
            _ if quoted && is_receipt => "(receipt)",
            _ => part,
        });
        text.push('"');
    }
    text
}

/// Kills the program when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the page's commands and then `last` in one shell, beside `firstcome dev`. Returns the output of `last`.
async fn run_as_printed(page: &Page, last: &str) -> String {
    let dir = ScratchDir::new().unwrap();
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let program = Command::new(env!("CARGO_BIN_EXE_firstcome"))
        .arg("dev")
        .current_dir(dir.path())
        .env("BIND_ADDR", &address)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut program = Running(program.unwrap());
    let (ready, client) = (format!("http://{address}/readyz"), client());
    until("`firstcome dev` serves", async || {
        assert!(program.0.try_wait().unwrap().is_none(), "`firstcome dev` ended");
        client.get(&ready).send().await.ok()
    })
    .await;
    let steps = steps(page);
    assert!(steps.len() >= 3, "{} has {} commands", page.name(), steps.len());
    let mut script = String::from("exec 2>&1\n");
    for command in steps.iter().map(|step| step.command.as_str()).chain([last]) {
        script += &format!("printf '{SEPARATOR}'\n{}\n", command.replace("localhost:8080", &address));
    }
    let shell = Command::new("bash").arg("-c").arg(script).current_dir(dir.path()).output();
    let printed = String::from_utf8(shell.expect("bash").stdout).unwrap();
    let mut outputs = printed.split(SEPARATOR).skip(1);
    for step in &steps {
        assert_eq!(timeless(outputs.next().unwrap()), timeless(&step.output), "$ {}", step.command);
    }
    let said = outputs.next().unwrap().to_owned();
    assert!(outputs.next().is_none());
    said
}

#[tokio::test]
async fn readme_commands_run_as_printed() {
    run_as_printed(&page("README.md"), "true").await;
}

#[tokio::test]
async fn tour_commands_run_as_printed() {
    let tour = page("docs/tour.md");
    let lines = tour.lines();
    let [psql] = *lines.iter().filter(|line| line.block == Some("sh")).map(|line| line.text).collect::<Vec<_>>() else {
        panic!("the tour has exactly one psql command")
    };
    let said = run_as_printed(&tour, psql).await;
    // The Debian package of the server includes psql; a server that `scripts/install-servers` fetched does not.
    if !(std::env::var_os("POSTGRES_BIN_DIR").is_some() && said.contains("not found")) {
        assert!(said.contains("| PAID") && said.contains("138000"), "{said}");
    }
}
