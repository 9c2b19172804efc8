//! docs/configuration.md names every setting of the program with its default.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use super::page;

const COMMANDS: [&str; 8] = ["dev", "serve", "project", "migrate", "seed", "rebuild", "audit", "health"];
/// What the page may show for an option whose help names no default.
const WITHOUT_DEFAULT: [&str; 3] = ["–", "false", "off"];

/// The program's environment variables with the defaults of its help.
fn program_settings() -> BTreeMap<String, Option<String>> {
    // No option names RUST_LOG, since tracing-subscriber reads it.
    let mut settings = BTreeMap::from([("RUST_LOG".to_owned(), Some("info".to_owned()))]);
    for command in COMMANDS {
        let help = Command::new(env!("CARGO_BIN_EXE_firstcome")).args([command, "--help"]).output().unwrap();
        assert!(help.status.success(), "{command}");
        let help = String::from_utf8(help.stdout).unwrap();
        for option in help.split("\n      --") {
            let option = option.split_whitespace().collect::<Vec<_>>().join(" ");
            let Some((_, rest)) = option.split_once("[env: ") else { continue };
            let name = rest.split(['=', ']']).next().unwrap().to_owned();
            let default = option.split_once("[default: ").map(|(_, rest)| rest.split(']').next().unwrap().to_owned());
            settings.insert(name, default);
        }
    }
    settings
}

/// The variables on the page with their defaults.
fn documented_settings() -> BTreeMap<String, String> {
    let page = page("docs/configuration.md");
    let mut settings = BTreeMap::new();
    for row in page.text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        let names: Vec<&str> = cells[0].split(", ").map(|name| name.trim_matches('`')).collect();
        let defaults: Vec<&str> = cells[1].split(", ").collect();
        assert!(defaults.len() == 1 || defaults.len() == names.len(), "{row}");
        for (n, name) in names.iter().enumerate() {
            let default = defaults[n.min(defaults.len() - 1)];
            assert!(settings.insert((*name).to_owned(), default.to_owned()).is_none(), "{name} is documented twice");
        }
    }
    settings
}

/// The variables that docs/configuration.md documents.
pub fn documented_variables() -> BTreeSet<String> {
    documented_settings().into_keys().collect()
}

#[test]
fn configuration_page_names_every_setting_with_its_default() {
    let (program, documented) = (program_settings(), documented_settings());
    assert_eq!(documented.keys().collect::<Vec<_>>(), program.keys().collect::<Vec<_>>());
    for (name, default) in &program {
        let documented = documented[name].as_str();
        match default {
            // The help may explain a default that depends on another setting.
            Some(default) => {
                assert_eq!(default.split([',', ';']).next(), Some(documented), "{name}");
            }
            None => assert!(WITHOUT_DEFAULT.contains(&documented), "{name}: {documented}"),
        }
    }
}
