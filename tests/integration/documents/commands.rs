//! Every command on a page is valid: the Makefile has the target, the program has the command and its options, and a
//! test matches each filter.

use std::{fs, process::Command};

use super::{Page, pages};
use crate::{support::repository::root, test_names::all_tests};

/// Further programs that a shell block may call.
const OTHER_PROGRAMS: [&str; 6] = ["psql", "export", "curl", "mariadb", "redis-server", "sed"];

/// The commands of shell blocks, with continued lines joined, and inline code that begins with a program of ours.
fn commands(page: &Page) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut continued = false;
    for line in page.lines().iter().filter(|line| line.block == Some("sh")) {
        let code = line.text.split(" # ").next().unwrap().trim();
        if code.is_empty() || code.starts_with('#') {
            continue;
        }
        let (text, more) = code.strip_suffix('\\').map_or((code, false), |text| (text, true));
        match commands.last_mut().filter(|_| continued) {
            Some(command) => *command += text,
            None => commands.push(text.to_owned()),
        }
        continued = more;
    }
    let ours = ["make ", "firstcome ", "cargo ", "scripts/"];
    commands.extend(page.spans().into_iter().filter(|span| ours.iter().any(|program| span.starts_with(program))));
    commands
}

/// Splits a command into words; a quoted text is one word.
pub(super) fn words(command: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for c in command.chars() {
        match c {
            '\'' | '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn check_make(words: &[String], tests: &[String]) {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let target = &words[0];
    assert!(makefile.contains(&format!("\n{target}:")), "the Makefile has no {target}");
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(&format!("{name}=")));
    let arguments = value("ARGS").unwrap_or_default().split(' ').filter(|word| !word.is_empty());
    match target.as_str() {
        "test" | "test-fetched" => check_filters(arguments.take_while(|word| *word != "--"), tests),
        "drill" => {
            let drills: Vec<String> = arguments.map(|drill| format!("drill::{}", drill.replace('-', "_"))).collect();
            check_filters(drills.iter().map(String::as_str), tests);
        }
        "bench" => {
            let source = fs::read_to_string(root().join("benches/bench/main.rs")).unwrap().to_lowercase();
            for word in arguments.take_while(|word| *word != "--only") {
                assert!(
                    source.contains(&word.trim_start_matches('-').to_lowercase()),
                    "make bench has no section {word}"
                );
            }
        }
        _ => {}
    }
    if let Some(scenario) = value("SCENARIO").filter(|scenario| *scenario != "all" && *scenario != "...") {
        assert!(root().join(format!("load-tests/{scenario}.js")).exists(), "no scenario {scenario}");
    }
}

fn check_filters<'a>(filters: impl Iterator<Item = &'a str>, tests: &[String]) {
    for filter in filters.filter(|filter| !filter.starts_with('-')) {
        assert!(tests.iter().any(|test| test.contains(filter)), "no test matches {filter}");
    }
}

/// The program's own help for the command has to name each option.
fn check_program(words: &[String]) {
    let help = Command::new(env!("CARGO_BIN_EXE_firstcome")).args([&words[0], "--help"]).output().unwrap();
    assert!(help.status.success(), "the program has no {}", words[0]);
    let help = String::from_utf8(help.stdout).unwrap();
    let named: Vec<&str> = help.split([' ', '\n', ',']).collect();
    for option in words[1..].iter().filter(|word| word.starts_with("--")) {
        let option = option.split('=').next().unwrap();
        assert!(named.contains(&option), "firstcome {} has no {option}", words[0]);
    }
}

fn check_cargo(words: &[String], tests: &[String]) {
    assert!(
        ["fmt", "clippy", "check", "test", "run", "bench", "build"].contains(&words[0].as_str()),
        "cargo {}",
        words[0]
    );
    if words[0] == "test" {
        check_filters(words.iter().skip_while(|word| *word != "--").skip(1).map(String::as_str), tests);
    }
}

#[test]
fn every_command_of_a_page_exists() {
    let (tests, mut count) = (all_tests(), 0);
    for page in pages() {
        for command in commands(&page) {
            println!("{}: {command}", page.name());
            let words = words(&command);
            match words[0].as_str() {
                "make" => check_make(&words[1..], &tests),
                "firstcome" => check_program(&words[1..]),
                "cargo" => check_cargo(&words[1..], &tests),
                script if script.starts_with("scripts/") => assert!(root().join(script).exists(), "no {script}"),
                // `operators::runbook` runs these.
                _ if page.path.ends_with("docs/operations.md") => {}
                program => assert!(OTHER_PROGRAMS.contains(&program), "{}: unknown program in {command}", page.name()),
            }
            count += 1;
        }
    }
    assert!(count > 30, "{count} commands");
}
