//! A test name stands for one thing: no two tests share one, whichever module they are in. Pages cite tests by their names.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use crate::support::repository::{files_below, root};

/// The paths of all tests: integration tests by this program's own list, unit tests by the sources.
pub fn all_tests() -> Vec<String> {
    let list = Command::new(std::env::current_exe().unwrap()).args(["--list", "--format", "terse"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let mut tests: Vec<String> =
        list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    assert!(tests.len() > 100, "too few tests: {}", tests.len());
    tests.extend(files_below("src", ".rs").iter().flat_map(|path| unit_tests(path)));
    tests
}

/// The paths of the unit tests in a source file.
fn unit_tests(path: &Path) -> Vec<String> {
    let module = path.strip_prefix(root().join("src")).unwrap().with_extension("");
    let module = module.to_str().unwrap().replace('/', "::");
    let module = module.strip_suffix("::mod").unwrap_or(&module);
    let (text, mut tests, mut marked) = (fs::read_to_string(path).unwrap(), Vec::new(), false);
    for line in text.lines().map(str::trim) {
        marked |= line == "#[test]" || line.starts_with("#[tokio::test");
        if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
            tests.push(format!("{module}::{}", rest.split('(').next().unwrap()));
            marked = false;
        }
    }
    tests
}

#[test]
fn test_names_used_once() {
    let mut paths: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in all_tests() {
        paths.entry(path.rsplit("::").next().unwrap().to_owned()).or_default().push(path);
    }
    paths.retain(|_, paths| paths.len() > 1);
    assert!(paths.is_empty(), "test names that stand for two things: {paths:#?}");
}
