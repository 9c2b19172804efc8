//! The Helm chart matches the program: its settings with their types and bounds, its version, its alerts.
//! (`make test-deploy` renders the chart.)

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use serde_json::Value;

use super::deployment::help;
use crate::support::repository::root;

const SCHEMA: &str = include_str!("../../../deploy/helm/values.schema.json");
const CHART: &str = include_str!("../../../deploy/helm/Chart.yaml");
/// The roles that the chart runs.
const ROLES: [&str; 3] = ["serve", "project", "migrate"];
/// The settings that its templates set.
const SET_BY_TEMPLATES: [&str; 3] = ["BIND_ADDR", "OPS_BIND_ADDR", "NO_PROJECTOR"];

/// A setting as the program's help shows it.
struct Setting {
    role: &'static str,
    is_secret: bool,
    is_flag: bool,
    choices: BTreeSet<String>,
}

/// The settings of the chart's roles by name.
fn settings() -> BTreeMap<String, Setting> {
    let mut settings = BTreeMap::new();
    for role in ROLES {
        for option in help(role).split("\n      --").skip(1) {
            let Some((_, rest)) = option.split_once("[env: ") else { continue };
            let name = rest.split(['=', ']']).next().unwrap();
            let explained = option.split("\n          - ").skip(1).map(|line| line.split(':').next().unwrap());
            let listed =
                option.split_once("[possible values: ").map_or("", |(_, rest)| rest.split(']').next().unwrap());
            let listed = listed.split(", ").filter(|choice| !choice.is_empty());
            let choices = explained.chain(listed).map(str::to_owned);
            let setting = Setting {
                role,
                // Its value is hidden.
                is_secret: rest[name.len()..].starts_with(']'),
                is_flag: !option.lines().next().unwrap().contains('<'),
                choices: choices.collect(),
            };
            settings.entry(name.to_owned()).or_insert(setting);
        }
    }
    settings.retain(|name, _| !SET_BY_TEMPLATES.contains(&name.as_str()));
    settings
}

/// Whether the program refuses this value of a setting. It does not start either way: it has no address of a store.
fn is_refused(role: &str, name: &str, value: &str) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firstcome"));
    let output = command.arg(role).env_clear().env(name, value).output().unwrap();
    let problem = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{name}={value}: {problem}");
    let refused = problem.contains("invalid value");
    assert!(refused || problem.contains("required arguments were not provided"), "{name}={value}: {problem}");
    refused
}

fn check_type(name: &str, setting: &Setting, schema: &Value) {
    let refuses = |value: &str| is_refused(setting.role, name, value);
    let check = |value: &str, refused: bool| {
        assert_eq!(refuses(value), refused, "values.schema.json, {name}={value}: the schema has {schema}");
    };
    if let Some(choices) = schema["enum"].as_array() {
        let choices: BTreeSet<String> = choices.iter().map(|choice| choice.as_str().unwrap().to_owned()).collect();
        choices.iter().for_each(|choice| check(choice, false));
        check("no-such-choice", true);
        assert!(setting.choices.is_empty() || setting.choices == choices, "{name}: {:?}", setting.choices);
        return;
    }
    assert!(setting.choices.is_empty(), "{name} is an enum of {:?}", setting.choices);
    assert_eq!(setting.is_flag, schema["type"] == "boolean", "{name}");
    match schema["type"].as_str() {
        Some("boolean") => check("maybe", true),
        Some("integer") => {
            let (minimum, maximum) = (schema["minimum"].as_i64(), schema["maximum"].as_i64());
            let (minimum, maximum) = minimum.zip(maximum).unwrap_or_else(|| panic!("{name}: no bounds"));
            for (value, refused) in [(minimum - 1, true), (minimum, false), (maximum, false), (maximum + 1, true)] {
                check(&value.to_string(), refused);
            }
        }
        Some("string") => assert!(!refuses("1") || refuses("x"), "{name} is a number"),
        kind => panic!("{name}: {kind:?}"),
    }
}

#[test]
fn chart_schema_has_every_setting_with_its_type_and_bounds() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let names = |at: &str| -> BTreeSet<String> {
        schema["properties"][at]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let program = settings();
    let of_kind = |is_secret: bool| -> BTreeSet<String> {
        program.iter().filter(|(_, setting)| setting.is_secret == is_secret).map(|(name, _)| name.clone()).collect()
    };
    // No option names it, since tracing-subscriber reads it.
    let mut expected = of_kind(false);
    expected.insert("RUST_LOG".to_owned());
    assert_eq!(names("settings"), expected, "deploy/helm/values.schema.json: settings");
    assert_eq!(names("secrets"), of_kind(true), "deploy/helm/values.schema.json: secrets");
    let files = schema["properties"]["settings"]["patternProperties"].as_object().unwrap();
    let files = files.keys().next().unwrap().strip_prefix("^(").unwrap().strip_suffix(")_FILE$").unwrap();
    assert_eq!(files.split('|').map(str::to_owned).collect::<BTreeSet<_>>(), of_kind(true), "settings: *_FILE");
    for (name, setting) in program.iter().filter(|(_, setting)| !setting.is_secret) {
        check_type(name, setting, &schema["properties"]["settings"]["properties"][name]);
    }
}

#[test]
fn chart_schema_closes_every_list_of_values() {
    fn closed(at: &str, schema: &Value) {
        if let Some(properties) = schema["properties"].as_object() {
            assert_eq!(schema["additionalProperties"], false, "{at}");
            properties.iter().for_each(|(name, schema)| closed(&format!("{at}.{name}"), schema));
        }
    }
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    closed("", &schema);
    schema["definitions"].as_object().unwrap().iter().for_each(|(name, schema)| closed(name, schema));
}

#[test]
fn chart_is_of_this_version_and_has_the_alerts() {
    assert!(CHART.contains(concat!("\nappVersion: ", env!("CARGO_PKG_VERSION"), "\n")), "{CHART}");
    for name in ["alerts.yml", "grafana-dashboard.json"] {
        let link = root().join("deploy/helm/files").join(name);
        assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(format!("../../{name}").as_str()));
        assert_eq!(fs::read(&link).unwrap(), fs::read(root().join("deploy").join(name)).unwrap());
    }
}
