//! Every test that a page cites exists, and every promise of the README cites one.

use std::{fs, path::Path, process::Command};

use super::{Page, page, pages, root, spans_of};

/// The paths of all tests: of this program, by its own list, and of the library, by its sources.
pub(super) fn all_tests() -> Vec<String> {
    let list = Command::new(std::env::current_exe().unwrap()).args(["--list", "--format", "terse"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let mut tests: Vec<String> =
        list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    assert!(tests.len() > 100, "too few tests: {}", tests.len());
    unit_tests(&root().join("src"), &mut tests);
    tests
}

fn unit_tests(dir: &Path, tests: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            unit_tests(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = path.strip_prefix(root().join("src")).unwrap().with_extension("");
            let module = module.to_str().unwrap().replace('/', "::");
            let module = module.strip_suffix("::mod").unwrap_or(&module);
            let (text, mut marked) = (fs::read_to_string(&path).unwrap(), false);
            for line in text.lines().map(str::trim) {
                marked |= line == "#[test]" || line.starts_with("#[tokio::test");
                if let Some((_, rest)) = line.split_once("fn ").filter(|_| marked) {
                    tests.push(format!("{module}::{}", rest.split('(').next().unwrap()));
                    marked = false;
                }
            }
        }
    }
}

/// Whether a test's path has the cited segments, side by side.
fn names(test: &str, cited: &str) -> bool {
    format!("::{test}::").contains(&format!("::{cited}::"))
}

/// The tests in the page's `(*tests: …*)`.
fn cited(page: &Page) -> Vec<String> {
    let prose = page.prose();
    let mut cited = Vec::new();
    for marker in ["*test: ", "*tests: ", "*Test: ", "*Tests: "] {
        for rest in prose.split(marker).skip(1) {
            let citation = rest.split('*').next().unwrap();
            cited.extend(spans_of(citation).into_iter().filter(|span| !span.starts_with("make ")));
        }
    }
    cited
}

#[test]
fn every_cited_test_exists() {
    let (tests, mut count) = (all_tests(), 0);
    for page in pages() {
        for cited in cited(&page) {
            assert!(tests.iter().any(|test| names(test, &cited)), "{}: no test {cited}", page.name());
            count += 1;
        }
    }
    assert!(count > 20, "{count} citations");
}

#[test]
fn every_promise_cites_a_test() {
    let (tests, readme) = (all_tests(), page("README.md"));
    let rows = readme.section("Promises").lines().filter(|line| line.starts_with("| **"));
    let mut count = 0;
    for row in rows {
        let cited = spans_of(row.trim_end_matches(" |").rsplit(" | ").next().unwrap());
        assert!(!cited.is_empty(), "no test: {row}");
        for cited in cited {
            assert!(
                tests.iter().any(|test| test == &cited || test.ends_with(&format!("::{cited}"))),
                "no test {cited}"
            );
        }
        count += 1;
    }
    assert!(count >= 8, "{count} promises");
}
